"""A picture that memory does not hold ends as the same outputs, with the guarantees of all others."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.giants import (
    TILE,
    TILES,
    fake,
    peak_of_segmenting,
    read_all_in_bands,
    save,
    segment_slowly,
    smooth_picture,
)
from tests.helpers.observers import observing
from tests.helpers.processes import Forked
from tests.helpers.runs import files, half_bright, read, segment, write
from tests.helpers.waiting import PATIENCE, until
from unet_batch.errors import BackendError, OutputError
from unet_batch.files.outputs import OutputTree
from unet_batch.inference.backends.ensemble import Ensemble
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import images
from unet_batch.media.images import tiff
from unet_batch.run import giant
from unet_batch.run.execute import execute
from unet_batch.run.observe import Stop
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Item

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

FOLDERS = {"mask": "masks", "prob": "probs", "prob16": "probs16"}


@pytest.fixture(autouse=True)
def tiny_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is held by memory, and bands are a row of blocks."""
    read_all_in_bands(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A giant, and an ordinary photo whose name comes later."""
    save(tmp_path / "photos/a.tif", smooth_picture(150, 200))
    write(tmp_path / "photos/b.png", half_bright())
    return tmp_path / "photos"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from([{}, {"tile": None, "rowsperstrip": 9}, {"tile": None, "compression": None}]),
    st.sampled_from([1.0, 0.5, 0.25, 1 / 3, 0.4, 0.125]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0.0, 0.25, 0.7]),
    st.sampled_from(["none", "horizontal"]),
)
def test_outputs_are_what_they_are_of_the_picture_in_memory(
    tmp_path: Path, height: int, width: int, layout: Any, scale: float, classes: int, overlap: float, tta: Any
) -> None:
    path = save(tmp_path / "x.tif", smooth_picture(height, width), **layout)
    kinds = tuple(FOLDERS) if classes == 1 else ("mask",)
    tree = OutputTree(str(tmp_path / "out"), kinds)
    with Segmenter(fake(classes), view=ViewOptions("tile", overlap, scale, tta), workers=2) as segmenter:
        result = segmenter.predict(path)
        done = giant.segment(Item(path, "x"), (height, width), segmenter, tree)
    assert done.complete
    assert done.outputs == {kind: Path(tree.path(kind, "x")).stat().st_size for kind in kinds}
    found = {kind: read(Path(tree.path(kind, "x"))).astype(int) for kind in kinds}
    assert result.mask is not None
    # Blocks of whole numbers are averaged alike; of others a level may be another, and with it an edge
    exact = height % round(1 / scale) == 0 and width % round(1 / scale) == 0 and scale != 0.4
    if classes == 1:
        assert np.abs(found["prob"] - result.probability).max() <= (0 if exact else 2)
        close = result.probability == 128 if exact else np.abs(result.probability - 128.0) <= 2
        assert ((found["mask"] == result.mask) | close).all()
        np.testing.assert_array_equal(found["mask"], np.where(found["prob16"] >= 32768, 255, 0))
        np.testing.assert_array_equal(found["prob"], np.rint(found["prob16"] / 257))
    elif exact:
        np.testing.assert_array_equal(found["mask"], result.mask)
    else:
        # A pixel of the network's that lies beside another class may have it, too
        near = np.ones((2 * math.ceil(1 / scale) + 3,) * 2, np.uint8)
        masks = (found["mask"].astype(np.uint8), result.mask)
        edges = [cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, near) > 0 for mask in masks]
        assert ((masks[0] == masks[1]) | edges[0] | edges[1]).all()


@pytest.mark.parametrize("text", ["auto", "percentile", "-50,50"])
def test_a_picture_of_floats_has_the_range_of_the_picture_in_memory(tmp_path: Path, text: str) -> None:
    picture = smooth_picture(128, 192).astype(np.float32) * 3 - 300
    path, tree = save(tmp_path / "x.tif", picture), OutputTree(str(tmp_path / "out"), ("mask", "prob"))
    with Segmenter(fake(), view=ViewOptions("tile", scale=0.5, value_range=text), workers=2) as segmenter:
        result = segmenter.predict(path)
        assert giant.segment(Item(path, "x"), (128, 192), segmenter, tree).complete
        assert segmenter.describe().get("range", "auto") == text
    np.testing.assert_array_equal(read(Path(tree.path("prob", "x"))), result.probability)
    np.testing.assert_array_equal(read(Path(tree.path("mask", "x"))), result.mask)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("size", [(150, 200), (600, 530), (513, 512)])
def test_its_geotiff_is_that_of_the_picture_in_memory(
    tmp_path: Path, classes: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giant, "_WRITTEN_AT_ONCE", 20_000)
    picture = np.maximum(smooth_picture(*size), 1)
    picture[20:60, 30:90] = 0
    tags: list[Any] = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5600000.0, 0.0), True),
        (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True),
        (42113, 2, None, "0", True),
    ]
    save(tmp_path / "in/a.tif", picture, extratags=tags)
    segment(tmp_path / "in", output=tmp_path / "out", view=TILES, backend=fake(classes), save=("geotiff",))
    with Segmenter(fake(classes), view=TILES) as segmenter:
        segmenter.predict(tmp_path / "in/a.tif").save(tmp_path / "whole", ("geotiff",))
    both = []
    for folder in ("out", "whole"):
        with tifffile.TiffFile(tmp_path / folder / "geotiffs/a.tif") as file:
            told = {tag.code: tag.value for tag in file.pages[0].tags}
            both.append((file.asarray(), {code: told[code] for code in (33550, 33922, 34735, 42113)}))
    np.testing.assert_array_equal(both[0][0], both[1][0])
    assert both[0][1] == both[1][1]
    assert (both[0][0][20:60, 30:90] == 255).all()


def test_a_run_does_it_after_the_others_and_never_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report, heard = segment(folder, output=out, view=TILES, backend=fake(), save=("mask", "prob"))
    assert heard == ["b", "a"]
    assert (report.status, report.done, report.failed) == ("done", 2, 0)
    assert {"decode", "infer", "blend", "write"} <= {stage.name for stage in report.stages if stage.busy}
    masks = ["masks/a.png", "masks/b.png", "probs/a.png", "probs/b.png"]
    assert files(out) == ["manifest.jsonl", *masks, "run.json"]
    with Segmenter(fake(), view=TILES) as segmenter:
        np.testing.assert_array_equal(read(out / "masks/a.png"), segmenter(folder / "a.tif"))
    assert segment(folder, output=out, view=TILES, backend=fake(), save=("mask", "prob"))[0].found == 2
    assert segment(folder, output=out, view=TILES, backend=fake(), save=("mask", "prob"))[1] == []


def test_only_size_decides_which_pictures_are_read_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_giant(name: str, kinds: tuple[str, ...] = ("mask",), **options: Any) -> bool:
        view = options.pop("view", TILES)
        with Segmenter(fake(), view=view, **options) as segmenter:
            tree = OutputTree(str(tmp_path), kinds)
            return giant.giant_size(Item(str(folder / name)), segmenter, tree) is not None

    assert is_giant("a.tif")
    assert not is_giant("b.png")
    assert not is_giant("a.tif", view=ViewOptions())
    assert not is_giant("a.tif", kinds=("mask", "overlay"))
    assert is_giant("a.tif", kinds=("mask", "overlay"), max_pixels=29_999)
    monkeypatch.setattr(giant, "MEMORY", 150 * 200 * 6)
    assert not is_giant("a.tif")
    assert not is_giant("a.tif", max_pixels=30_000)
    assert is_giant("a.tif", max_pixels=29_999)


def test_pixels_without_a_value_are_nothing(tmp_path: Path) -> None:
    picture = np.full((90, 120, 3), 255, np.uint8)
    picture[10:60, 20:50] = 7
    save(tmp_path / "in/a.tif", picture, extratags=[(42113, 2, 2, "7", True)])
    for scale in (1.0, 0.5):
        view, out = ViewOptions("tile", scale=scale), tmp_path / f"out{scale}"
        report, _ = segment(tmp_path / "in", output=out, view=view, backend=fake(), save=tuple(FOLDERS))
        assert report.done == 1
        for kind, white in (("mask", 255), ("prob", 255), ("prob16", 65535)):
            found = read(out / FOLDERS[kind] / "a.png")
            assert not found[10:60, 20:50].any()
            assert (found[:, 60:] == white).all()
            assert (found[64:] == white).all()


def test_an_ensemble_of_one_kind_of_tiles_is_read_in_bands_too(folder: Path, tmp_path: Path) -> None:
    def ensemble(*sizes: tuple[int, int]) -> Ensemble:
        first = FakeBackend(fake_spec(TILE), lambda tiles: 255 - tiles[..., 2])
        return Ensemble([first, *(FakeBackend(fake_spec(size)) for size in sizes)])

    tree = OutputTree(str(tmp_path / "out"), ("prob",))
    size = (150, 200)
    with Segmenter(ensemble(TILE), view=TILES, workers=2) as segmenter:
        expected = segmenter.predict(str(folder / "a.tif")).probability
        assert giant.segment(Item(str(folder / "a.tif"), "a"), size, segmenter, tree).complete
    np.testing.assert_array_equal(read(tmp_path / "out/probs/a.png"), expected)
    report, _ = segment(folder, output=tmp_path / "other", view=TILES, backend=ensemble((48, 32)))
    assert (report.done, report.failed) == (1, 1)
    assert "tiles of different sizes" in report.failures[0].message
    assert "--size HxW and --scale F" in report.failures[0].hint


def test_it_tells_of_its_rows(folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    plan = prepare(RunOptions((str(folder),), str(tmp_path / "out")))
    with Segmenter(fake(), view=TILES) as segmenter:
        execute(plan, segmenter, observing(frame=lambda item, done, total: heard.append((done, total))))
    assert heard == sorted(heard)
    assert len(dict(heard)) > 3
    assert heard[-1] == (150, 150)


@pytest.mark.parametrize(
    ("options", "view", "message", "hint"),
    [
        ({"save": ("mask", "overlay")}, TILES, "no overlay can be drawn of it", "--save mask,prob,prob16"),
        ({}, ViewOptions("tile", scale=2.0), "cannot be enlarged (scale 2)", "--scale up to 1"),
    ],
)
def test_what_cannot_be_made_of_it_is_said_and_the_rest_is_done(
    folder: Path, tmp_path: Path, options: Any, view: ViewOptions, message: str, hint: str
) -> None:
    plan = prepare(RunOptions((str(folder),), str(tmp_path / "out"), **options))
    with Segmenter(fake(), view=view, max_pixels=20_000) as segmenter:
        report = execute(plan, segmenter)
    assert (report.done, report.failed) == (1, 1)
    [failure] = report.failures
    assert message in failure.message
    assert hint in failure.hint
    assert failure.path == str(folder / "a.tif")
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_failure_leaves_nothing_and_the_next_run_does_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pictures: np.ndarray) -> np.ndarray:
        if len(seen) == 4:
            raise BackendError("the device is gone", hint="look for it")
        seen.append(1)
        return np.asarray(pictures[..., 0])

    seen: list[int] = []
    out, backend = tmp_path / "out", FakeBackend(fake_spec(TILE), refuse)
    report, _ = segment(folder / "a.tif", output=out, view=TILES, backend=backend)
    assert (report.failed, report.failures[0].stage) == (1, "infer")
    assert files(out) == ["errors.jsonl", "manifest.jsonl", "run.json"]
    assert not list(out.rglob("*.part"))
    assert segment(folder / "a.tif", output=out, view=TILES, backend=fake())[0].done == 1
    assert files(out) == ["manifest.jsonl", "masks/a.png", "run.json"]


def test_a_disk_that_fails_for_a_moment_is_asked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = tiff.read_page, []

    def fail_twice(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 4):
            raise OSError(errno.EIO, "the cable")
        return real(*arguments)

    monkeypatch.setattr(tiff, "read_page", fail_twice)
    options: Any = {"output": tmp_path / "out", "view": TILES, "backend": fake()}
    report, _ = segment(folder / "a.tif", retry_pauses=(0.0, 0.0), **options)
    assert (report.done, report.failed, report.retried) == (1, 0, 2)
    calls.clear()
    (tmp_path / "out/masks/a.png").unlink()
    report, _ = segment(folder / "a.tif", retry_pauses=(0.0,), **options)
    assert (report.done, report.failed) == (0, 1)
    assert report.failures[0].stage == "decode"


def test_damage_in_the_middle_is_told_of_its_item(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "a.tif").read_bytes())
    with tifffile.TiffFile(folder / "a.tif") as file:
        at = file.pages[0].dataoffsets[-1]
    data[at + 8 : at + 100] = bytes(92)
    (folder / "a.tif").write_bytes(data)
    report, heard = segment(folder, output=tmp_path / "out", view=TILES, backend=fake())
    assert (report.done, report.failed, heard) == (1, 1, ["b", "a"])
    assert report.failures[0].stage == "decode"
    assert "cannot decode this TIFF" in report.failures[0].message


def test_one_that_vanishes_is_told_of(folder: Path, tmp_path: Path) -> None:
    def remove(item: Item, failure: object) -> None:
        (folder / "a.tif").unlink(missing_ok=True)

    plan = prepare(RunOptions((str(folder),), str(tmp_path / "out")))
    with Segmenter(fake(), view=TILES) as segmenter:
        report = execute(plan, segmenter, observing(outcome=remove))
    assert report.failures[0].error == "SourceVanished"


def test_asked_to_stop_it_leaves_nothing_and_the_next_run_begins_anew(folder: Path, tmp_path: Path) -> None:
    out, stop = tmp_path / "out", Stop()

    def answer(pictures: np.ndarray) -> np.ndarray:
        stop("SIGTERM")
        return np.asarray(pictures[..., 0])

    plan = prepare(RunOptions((str(folder / "a.tif"),), str(out)))
    with Segmenter(FakeBackend(fake_spec((8, 8)), answer), view=TILES) as segmenter:
        report = execute(plan, segmenter, stop=stop)
    assert (report.status, report.done, report.left, report.exit_code) == ("interrupted", 0, 1, 143)
    assert files(out) == ["manifest.jsonl", "run.json"]
    assert not list(out.rglob("*.part"))
    assert segment(folder / "a.tif", output=out, view=TILES, backend=fake())[0].done == 1


def test_what_a_killed_run_leaves_is_cleaned_and_it_begins_anew(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = Forked(segment_slowly, str(folder), str(out))
    until(lambda: any((out / "masks").glob(".ub-*.part")))
    process.kill()
    process.wait(PATIENCE)
    assert not (out / "masks/a.png").exists()
    report, _ = segment(folder, output=out, view=TILES, backend=fake())
    assert report.status == "done"
    assert not list(out.rglob("*.part"))
    with Segmenter(fake(), view=TILES) as segmenter:
        np.testing.assert_array_equal(read(out / "masks/a.png"), segmenter(folder / "a.tif"))


def test_a_full_disk_is_named_and_ends_the_run(small_disk: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    path = save(tmp_path / "in/a.tif", noise)
    with pytest.raises(OutputError, match=r"a\.png cannot be written: the disk is full") as caught:
        segment(Path(path), output=small_disk / "out", view=TILES, backend=fake(), save=("prob",))
    assert "run the same command again" in caught.value.hint
    assert not list(small_disk.rglob("*.part"))
    assert not (small_disk / "out/probs/a.png").exists()


def test_isolated_or_not_is_said(folder: Path, tmp_path: Path) -> None:
    plan = prepare(RunOptions((str(folder / "a.tif"),), str(tmp_path / "out"), isolate=True))
    with Segmenter(fake(), view=TILES, workers=1, isolate=True) as segmenter:
        report = execute(plan, segmenter)
    assert report.done == 1
    [note] = json.loads((tmp_path / "out/run.json").read_text())["file_notes"]
    assert "in this process, not in one of its own" in json.dumps(note)


def test_memory_is_that_of_a_few_bands(tmp_path: Path) -> None:
    """Of 6 MB of pixels, and 2 of the mask."""
    path, shape = str(tmp_path / "x.tif"), (4096, 512, 3)
    blocks = (np.full((64, 64, 3), number % 251, np.uint8) for number in range(8 * 64))
    tifffile.imwrite(path, blocks, shape=shape, dtype="u1", tile=(64, 64), photometric="rgb")
    tree = OutputTree(str(tmp_path / "out"), ("mask",))
    assert peak_of_segmenting(path, (4096, 512), tree) < 3e6
    assert images.read(tree.path("mask", "x")).size == (4096, 512)
