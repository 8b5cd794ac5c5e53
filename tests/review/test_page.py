"""The page of a run in a real browser, opened from the disk."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.bench_report import make_run
from tests.helpers.shared import once
from tests.helpers.waiting import PATIENCE
from unet_batch.review.report import write_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [
    pytest.mark.skipif(
        not CHROMIUM, reason="no Chromium here: apt-get install chromium, or name one in $CHROMIUM"
    ),
    pytest.mark.slow,
]
ITEMS = 450


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a drawn run of 450 photos, one of which is called like a tag."""

    def make(path: Path) -> None:
        out = make_run(path.with_suffix(".run"), ITEMS, 90)
        write_report(str(out))
        path.write_text(str(out / "report.html"))

    return Path(once("report.page", make).read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page in a browser that keeps nothing from the test before; nothing may be said on its console."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    context.set_default_timeout(30_000)
    said: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(page_file.as_uri())
    painted(page)
    yield page
    assert not said
    context.close()


def painted(page: Any) -> None:
    """Wait until every thumbnail in view is there."""
    page.wait_for_function(
        "() => { const seen = [...document.querySelectorAll('.cell .photo')];"
        " return seen.length && seen.every(photo => photo.naturalWidth) }"
    )


def shown(page: Any) -> list[str]:
    return [
        name.split("/")[1]
        for name in page.locator(".cell").evaluate_all("cells => cells.map(cell => cell.title)")
    ]


def total(page: Any) -> int:
    return int(page.evaluate("document.getElementById('grid').getAttribute('aria-rowcount')"))


def becomes(page: Any, is_so: Callable[[], object]) -> None:
    """Wait until something is so: a browser answers keys and clicks in its own time."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, inspect.getsource(is_so).strip()
        page.wait_for_timeout(20)


def test_suspicious_ones_come_first_and_only_rows_in_view_exist(page: Any) -> None:
    becomes(page, lambda: page.locator("#summary").inner_text().startswith("450 results · "))
    becomes(page, lambda: "low confidence" in page.locator(".cell .detail").first.inner_text())
    becomes(page, lambda: page.locator(".cell").count() < 80)
    becomes(page, lambda: page.locator(".cell[aria-selected=true]").count() == 1)
    first = shown(page)[0]
    page.locator("#grid").evaluate("grid => { grid.scrollTop = grid.scrollHeight }")
    page.wait_for_function(
        f"() => [...document.querySelectorAll('.cell')].some(cell => cell.place === {ITEMS - 1})"
    )
    painted(page)
    becomes(page, lambda: page.locator(".cell").count() < 90)
    becomes(page, lambda: first in shown(page))


def test_sorting_by_a_column_and_by_name(page: Any) -> None:
    page.select_option("#sort", "name")
    becomes(page, lambda: shown(page)[:2] == ["photo_000000", "photo_000001"])
    page.click("#direction")
    becomes(page, lambda: shown(page)[0] == f"photo_{ITEMS - 1:06d}")
    page.select_option("#sort", "share")
    becomes(page, lambda: page.locator(".cell .detail").first.inner_text().startswith("100"))
    values = [float(text.split(" %")[0]) for text in page.locator(".cell .detail").all_inner_texts()]
    assert values == sorted(values, reverse=True)


def test_filters_narrow_what_is_shown_and_go_again(page: Any) -> None:
    page.locator("#filters label", has_text="nothing marked").click()
    page.wait_for_selector("#chips button")
    becomes(
        page,
        lambda: all("nothing marked" in text for text in page.locator(".cell .detail").all_inner_texts()),
    )
    page.locator("#filters label", has_text="low confidence").click()
    becomes(page, lambda: page.locator("#chips button").count() == 2)
    many = page.locator(".cell").count()
    page.locator("#chips button").first.click()
    becomes(page, lambda: page.locator(".cell").count() < many)
    page.locator("#chips button").first.click()
    becomes(page, lambda: page.locator("#chips button").count() == 0)
    page.fill("#search", "000123")
    page.wait_for_function("() => document.querySelectorAll('.cell').length === 1")
    becomes(page, lambda: shown(page) == ["photo_000123"])
    page.fill("#search", "no such name")
    page.wait_for_selector("#nothing:visible")


def test_bars_of_a_histogram_are_filters(page: Any) -> None:
    bars = page.locator(".bars").first.locator("button")
    bars.nth(0).click()
    becomes(page, lambda: bars.nth(0).get_attribute("aria-pressed") == "true")
    told = bars.nth(0).get_attribute("aria-label")
    assert told.split(": ")[1].split(" of ")[0] == page.locator("#chips span").inner_text().split(" of ")[0]
    bars.nth(2).click(modifiers=["Shift"])
    becomes(page, lambda: page.locator(".bars [aria-pressed=true]").count() == 3)
    page.locator("#chips button").click()
    becomes(page, lambda: page.locator(".bars [aria-pressed=true]").count() == 0)


def test_marks_by_keyboard_are_kept_saved_and_read_again(page: Any, page_file: Path, tmp_path: Path) -> None:
    page.select_option("#sort", "name")
    page.locator(".cell").first.focus()
    page.keyboard.press("b")  # and on to the next
    page.keyboard.press("g")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("f")
    page.keyboard.press("b")
    page.keyboard.press("u")
    marks = "cells => cells.slice(0, 5).map(cell => cell.dataset.mark)"
    becomes(page, lambda: page.locator(".cell").evaluate_all(marks) == ["bad", "good", "", "fix", ""])
    becomes(page, lambda: page.locator(".cell").nth(3).inner_text().endswith("fix"))
    page.click("#marks-menu summary")
    with page.expect_download() as saved:
        page.click("[data-export=bad]")
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    photos = page_file.parents[1] / "photos/lot000"
    assert (path.name, path.read_text()) == ("bad.txt", f"{photos}/photo_000000.jpg\n")
    with page.expect_download() as saved:
        page.click("[data-export=all]")
    saved.value.save_as(tmp_path / "marks.json")
    kept = json.loads((tmp_path / "marks.json").read_text())["marks"]
    assert {key: mark for key, (mark, _) in kept.items()} == {
        "lot000/photo_000000": "bad", "lot000/photo_000001": "good", "lot000/photo_000003": "fix"
    }  # fmt: skip
    page.wait_for_function("() => Object.keys(localStorage).length === 1")
    page.reload()
    painted(page)
    becomes(page, lambda: page.locator("#marked-count").inner_text() == "3")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#marks-menu summary")
    page.click("#clear-marks")
    becomes(page, lambda: page.locator("#marked-count").inner_text() == "0")
    kept["lot000/photo_000003"][1] = "00000000"  # of another mask
    (tmp_path / "marks.json").write_text(json.dumps({"marks": kept}))
    page.set_input_files("#import-file", tmp_path / "marks.json")
    page.wait_for_function("() => document.getElementById('marked-count').textContent === '2'")
    page.set_input_files("#import-file", path)
    page.wait_for_function(
        "() => document.getElementById('live').textContent.includes('1 marks taken from bad.txt')"
    )


def test_a_close_look(page: Any) -> None:
    page.select_option("#sort", "name")
    page.locator(".cell").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('full-photo').naturalWidth === 360")
    page.wait_for_function("() => document.getElementById('full-mask').naturalWidth === 360")
    becomes(page, lambda: page.locator("#zoom-name").inner_text() == "lot000/photo_000000")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("b")
    becomes(page, lambda: page.locator("#zoom-at").inner_text() == "3 / 450")
    page.keyboard.press("ArrowLeft")
    becomes(page, lambda: page.locator("dialog [data-mark=bad]").get_attribute("aria-pressed") == "true")
    page.locator("#wipe").fill("50")
    becomes(page, lambda: "inset" in str(page.locator("#full-mask").get_attribute("style")))
    page.locator("#zoom-name").focus()
    page.keyboard.press("+")
    becomes(page, lambda: "scale(1.5)" in str(page.locator("#paper").get_attribute("style")))
    page.keyboard.press("3")
    becomes(page, lambda: not page.locator("#full-photo").is_visible())
    page.keyboard.press("Escape")
    becomes(page, lambda: page.evaluate("document.activeElement.title") == "lot000/photo_000001")


def test_a_run_that_has_gone_on_is_noticed(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Of `watch --report`: what an open page has not read yet is replaced."""
    shutil.copy(page_file, tmp_path)
    shutil.copytree(page_file.parent / "report", tmp_path / "report")
    pack = next((tmp_path / "report" / "packs").glob("*.js"))
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        page = context.new_page()
        pack.rename(pack.with_suffix(".replaced"))
        page.goto((tmp_path / page_file.name).as_uri())
        becomes(page, page.locator("#reload").is_visible)
        pack.with_suffix(".replaced").rename(pack)
        page.locator("#reload").click()
        painted(page)
        assert page.locator("#reload").is_hidden()


def test_the_other_parts_and_a_narrow_window(page: Any) -> None:
    page.click("#tab-failures")
    becomes(page, lambda: "broken.jpg\ncut short (leave it out)\n" in page.locator("#failures").inner_text())
    page.keyboard.press("ArrowRight")
    becomes(page, lambda: "blob" in page.locator("#facts").inner_text())
    page.click("#tab-items")
    page.set_viewport_size({"width": 390, "height": 800})
    becomes(page, lambda: not page.locator("#filters").is_visible())
    page.click("#toggle-filters")
    becomes(page, lambda: page.locator("#filters").is_visible())
    becomes(page, lambda: page.evaluate("document.documentElement.scrollWidth") == 390)


@pytest.mark.skipif("AXE" not in os.environ, reason="name axe-core's axe.min.js in $AXE")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.add_script_tag(path=os.environ["AXE"])

    def faults() -> list[str]:
        found = page.evaluate("axe.run({preload: false}).then(result => result.violations)")
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    assert not faults()
    page.locator(".cell").first.focus()
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.wait_for_selector("#zoom[open]")
    assert not faults()
    page.keyboard.press("Escape")
    page.click("#tab-run")
    assert not faults()
