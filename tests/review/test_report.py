"""The page of a run: what it says, and what is made anew."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.bench_report import make_run
from tests.helpers.models import fake_file
from tests.helpers.runs import half_bright, write
from unet_batch.errors import FolderInUse, ImageError, OutputError, UsageError
from unet_batch.files.locks import claim
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media.images.thumbnails import encode_mask_thumbnail, fit
from unet_batch.media.render import class_table
from unet_batch.review import report as module
from unet_batch.review.facts import describe_run
from unet_batch.review.report import write_report
from unet_batch.review.thumbnails import Look, look_at_picture, measure, read_stats, regions
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend
from unet_batch.types import ClassTable

ONE = class_table(["car"])


def segment(photos: Path, out: Path, *save: str) -> None:
    """A run with a fake network, which marks what is bright."""
    plan = prepare(RunOptions((str(photos),), str(out), save))
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(plan, segmenter)


def read_data(out: Path) -> dict[str, Any]:
    """What the page would be told: facts, items by key, failures."""
    items: dict[str, dict[str, Any]] = {}
    facts = json.loads((out / "report/facts.js").read_text().split("(", 1)[1].rstrip(")\n"))
    for line in (out / "report/items.js").read_text().splitlines():
        block = json.loads(line.split("(", 1)[1].removesuffix(")"))
        pack = (out / "report/packs" / f"{block['pack']}.js").read_text()
        images = json.loads(pack.split(",", 1)[1].strip().removesuffix(")"))

        def at(values: Any, slot: int) -> Any:
            return values[slot] if isinstance(values, list) else values

        for slot, key in enumerate(block["keys"]):
            items[key] = {
                name: at(block[name], slot) for name in ("sources", "reasons", "digests", "notes", "clips")
            }
            items[key] |= {name: at(values, slot) for name, values in block["columns"].items()}
            items[key]["thumbnails"] = images[slot]
    return {"facts": facts, "items": items}


def test_a_run_is_shown_with_its_figures_and_failures(tmp_path: Path) -> None:
    for name in ("a", "lot/b", "lot/c"):
        write(tmp_path / f"photos/{name}.png", half_bright())
    write(tmp_path / "photos/dark.png", np.zeros((64, 96, 3), np.uint8))
    (tmp_path / "photos/broken.jpg").write_bytes(b"no picture")
    segment(tmp_path / "photos", tmp_path / "out", "mask", "overlay")
    made = write_report(str(tmp_path / "out"))
    assert (made.items, made.made, made.failures, made.gone) == (4, 4, 1, 0)
    data = read_data(tmp_path / "out")
    assert list(data["items"]) == ["a", "dark", "lot/b", "lot/c"]
    assert data["items"]["lot/b"]["share"] == pytest.approx(0.5, abs=0.05)
    assert data["items"]["lot/b"]["components"] == 1
    assert (data["items"]["a"]["height"], data["items"]["a"]["width"]) == (64, 96)
    assert data["items"]["dark"]["reasons"] == 1  # empty
    assert all(all(item["thumbnails"]) for item in data["items"].values())
    assert data["facts"]["roots"] == [{"path": str(tmp_path / "photos"), "url": "../photos"}]
    assert data["items"]["lot/b"]["sources"] == "0=.png"
    assert "broken.jpg" in (tmp_path / "out/report/failures.js").read_text()
    assert ["Saved", "mask, overlay"] in data["facts"]["run"]
    assert "<title>out</title>" in (tmp_path / "out/report.html").read_text()


def test_only_what_is_new_or_has_changed_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_run(tmp_path, 250, 10)
    assert write_report(str(out)).made == 250
    looked: list[str] = []

    def look(task: Any, look: Look) -> Any:
        looked.append(task.key)
        return look_at_picture(task, look)

    monkeypatch.setattr(module, "look_at_picture", look)
    before = {path.name for path in (out / "report/packs").iterdir()}
    assert write_report(str(out)).made == 0
    assert not looked
    (out / "masks/lot000/photo_000120.png").unlink()
    shutil.copy(out / "masks/lot000/photo_000003.png", out / "masks/lot000/photo_000120.png")
    assert write_report(str(out)).made == 1
    assert looked == ["lot000/photo_000120"]
    after = {path.name for path in (out / "report/packs").iterdir()}
    assert len(after - before) == 2
    assert len(before - after) == 2


def test_a_report_that_was_cut_short_goes_on_and_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_run(tmp_path, 250, 10)
    looked: list[str] = []

    def look(task: Any, look: Look) -> Any:
        looked.append(task.key)
        if len(looked) == 210:
            raise OutputError("the disk is full")
        return look_at_picture(task, look)

    monkeypatch.setattr(module, "look_at_picture", look)
    with pytest.raises(OutputError, match="full"):
        write_report(str(out))
    assert not (out / "report.html").exists()
    assert write_report(str(out)).made == 50
    assert len(read_data(out)["items"]) == 250


def test_a_source_that_is_gone_leaves_its_mask_and_comes_back(tmp_path: Path) -> None:
    out = make_run(tmp_path, 3, 3)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    made = write_report(str(out))
    item = read_data(out)["items"]["lot000/photo_000001"]
    assert made.gone == 3
    assert item["thumbnails"][0] == ""
    assert item["thumbnails"][1]
    assert "not where it was" in item["notes"]
    (tmp_path / "elsewhere").rename(tmp_path / "photos")
    assert (write_report(str(out)).gone, write_report(str(out)).made) == (0, 0)
    assert all(read_data(out)["items"]["lot000/photo_000001"]["thumbnails"])


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    for name in ("<script>alert(1)<!--", "a'b\" & c", "u\u2028v"):
        write(tmp_path / f"photos/{name}.png", half_bright())
    segment(tmp_path / "photos", tmp_path / "<b>out", "mask")
    write_report(str(tmp_path / "<b>out"))
    page = (tmp_path / "<b>out/report.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;out" in page
    for path in (tmp_path / "<b>out/report").rglob("*.js"):
        if path.name != "report.js":
            text = path.read_bytes()
            assert b"</" not in text
            assert all(byte < 128 for byte in text)
    assert "<script>alert(1)<!--" in read_data(tmp_path / "<b>out")["items"]


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no outputs"):
        write_report(str(tmp_path))
    with pytest.raises(UsageError, match="disk only"):
        write_report("s3://bucket/out")
    out = make_run(tmp_path, 1, 1)
    (out / "report").mkdir()
    with claim(str(out / "report")), pytest.raises(FolderInUse):
        write_report(str(out))


def test_a_table_of_figures_goes_before_what_the_mask_tells(tmp_path: Path) -> None:
    out = make_run(tmp_path, 3, 3)
    write_report(str(out))
    with open(out / "stats/lot000/photo_000001.csv", newline="") as file:
        [row] = csv.DictReader(file)
    item = read_data(out)["items"]["lot000/photo_000001"]
    for name in ("share", "confidence", "unlike"):
        assert item[name] == pytest.approx(float(row[name]), rel=1e-5)


def test_figures_of_several_classes_and_pages_become_one(tmp_path: Path) -> None:
    classes = class_table(["background", "car", "tree"])
    path = tmp_path / "stats.csv"
    path.write_text(
        "page,class,share,components,confidence,unlike\n"
        "1,background,0.5,,,0.3\n1,car,0.4,2,0.8,0.3\n1,tree,0.1,3,,0.3\n"
        "2,background,0.7,,,1.3\n2,car,0.2,1,0.6,1.3\n2,tree,0.1,0,,1.3\n"
    )
    found = read_stats(str(path), classes)
    assert found == pytest.approx(
        {"share": 0.4, "share car": 0.3, "share tree": 0.1, "largest": 0.3, "components": 6}
        | {"confidence": 0.7, "unlike": 1.3}
    )
    assert read_stats(str(tmp_path / "absent.csv"), classes) == {}


def test_areas_and_pieces_are_measured_on_masks() -> None:
    mask = np.zeros((40, 80), np.uint8)
    mask[:10, :10] = mask[20:30, 20:40] = 255
    assert measure(mask, ONE) == {"height": 40, "width": 80, "share": 300 / 3200, "components": 2}
    ids = (mask > 0).astype(np.uint8) * 2
    found = measure(ids, class_table(["background", "car", "tree"]))
    assert (found["share tree"], found["share car"], found["largest"]) == (300 / 3200, 0, 300 / 3200)
    assert "share" not in measure(ids, class_table(["sky", "car", "tree"]))
    assert regions(np.array([[0, 1, 255]], np.uint8), ONE).tolist() == [[0, 255, 255]]
    coloured = np.zeros((4, 6, 3), np.uint8)  # a mask that an editor has saved as RGB
    coloured[0, 0, 1] = 9
    assert regions(coloured, ONE).sum() == 255
    with pytest.raises(ImageError, match="colours"):
        regions(coloured, class_table(["background", "car"]))


@pytest.mark.parametrize("count", [1, 3, 15, 16, 200])
def test_thumbnails_of_masks_have_the_colours_of_their_classes(count: int) -> None:
    import io

    from PIL import Image

    names = ["car"] if count == 1 else ["background", *(f"c{number}" for number in range(1, count))]
    classes = class_table(names)
    mask = np.zeros((30, 60), np.uint8)
    mask[:, 30:] = 255 if count == 1 else count - 1
    with Image.open(io.BytesIO(encode_mask_thumbnail(mask, (15, 30), classes))) as image:
        shown = np.array(image.convert("RGBA"))
    assert shown.shape == (15, 30, 4)
    assert not shown[:, :15, 3].any()
    assert (shown[:, 15:, 3] == 255).all()
    assert (shown[:, 15:, :3] == classes.colours[-1]).all()


def test_one_marked_pixel_shows_in_a_thumbnail() -> None:
    import io

    from PIL import Image

    mask = np.zeros((300, 600), np.uint8)
    mask[100, 100] = 255
    with Image.open(io.BytesIO(encode_mask_thumbnail(mask, fit((300, 600), (144, 192)), ONE))) as image:
        assert np.array(image.convert("RGBA"))[..., 3].any()


def test_facts_of_a_run_that_says_little_are_few() -> None:
    assert describe_run({}) == []
    told = dict(
        map(tuple, describe_run({"done": 1200, "found": 1300, "seconds": 2, "model": {"name": "cars"}}))
    )
    assert told == {"Items": "1,300 found · 1,200 done", "Time": "2.0 s", "Model": "cars"}


def test_notes_and_reasons_of_a_run_read_well() -> None:
    told = describe_run(
        {
            "backend": {"name": "torch-cpu", "precision": "fp32", "reason": "no GPU"},
            "file_notes": [{"files": 1, "note": "3 pages"}, {"files": 2000, "note": "unlike the others"}],
        }
    )
    assert told == [
        ["Backend", "torch-cpu · fp32 (no GPU)"],
        ["Note", "1 file: 3 pages"],
        ["Note", "2,000 files: unlike the others"],
    ]


def test_ids_beyond_the_table_are_clear() -> None:
    classes = ClassTable(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert encode_mask_thumbnail(np.full((4, 4), 9, np.uint8), (4, 4), classes)
