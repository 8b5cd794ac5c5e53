"""The masks of a run, written as labels."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command import unet_batch
from tests.helpers.models import fake_file
from tests.helpers.runs import half_bright, write
from tests.labels.readers import READERS
from unet_batch.datasets.find import find_dataset
from unet_batch.errors import OutputError, UsageError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.labels.base import LabelSettings
from unet_batch.labels.export import FORMATS, export
from unet_batch.run.execute import execute
from unet_batch.run.finished import FinishedRun
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run of four pictures, two of one name, and of a file that is none."""
    for name in ("a.png", "lot/b.png", "same.jpg", "same.png"):
        write(tmp_path / "in" / name, half_bright(64, 96))
    run(tmp_path / "in", tmp_path / "out")
    return tmp_path / "out"


def run(source: Path, out: Path, **options: object) -> None:
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(prepare(RunOptions((str(source),), str(out), **options)), segmenter)  # type: ignore[arg-type]


def mask_of(out: Path, key: str) -> np.ndarray:
    with Image.open(out / "masks" / f"{key}.png") as image:
        return np.array(image) > 0


@pytest.mark.parametrize("form", FORMATS)
def test_every_picture_is_in_it_as_the_run_has_masked_it(form: str, out: Path, tmp_path: Path) -> None:
    with FinishedRun(str(out)) as finished:
        report = export(finished, form, str(tmp_path / "labels"))
        [name] = finished.classes.names
    assert (report.pictures, report.failed, report.missing) == (4, 0, 0)
    for key, file in (("a", "a.png"), ("lot/b", "lot/b.png"), ("same.jpg", "same.jpg")):
        where = f"{key}.png" if form in ("yolo", "labelme", "geojson") else file  # files called by keys
        [mask] = READERS[form](tmp_path / "labels", where, [name], (64, 96)).values()
        assert np.array_equal(mask, mask_of(out, key))
        assert mask.any()
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".ub")]


def test_coco_with_images_is_a_dataset_that_trains(out: Path, tmp_path: Path) -> None:
    with FinishedRun(str(out)) as finished:
        settings = LabelSettings(with_images=True)
        export(finished, "coco", str(tmp_path / "set"), settings=settings, sources=[str(tmp_path / "in/lot")])
    dataset = find_dataset(str(tmp_path / "set"))
    [pair] = dataset.pairs
    assert np.array_equal(dataset.masks.decode(pair.mask).ids > 0, mask_of(out, "lot/b"))
    assert Path(pair.image).read_bytes() == (tmp_path / "in/lot/b.png").read_bytes()


def test_a_list_chooses_and_names_that_took_nothing_are_told(out: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("in/a.png\nin/gone.png\n")
    (tmp_path / "in" / "a.png").unlink()  # labels need no source
    with FinishedRun(str(out)) as finished:
        report = export(finished, "labelme", str(tmp_path / "labels"), sources=[f"@{tmp_path / 'bad.txt'}"])
        assert report.unselected == (str(tmp_path / "in" / "gone.png"),)
        assert sorted(os.listdir(report.folder)) == ["a.json", "unet-batch-labels.json"]
        pattern = export(
            finished, "labelme", str(tmp_path / "more"), sources=[str(tmp_path / "in" / "same.*")]
        )
        assert pattern.pictures == 2


def test_nothing_foreign_is_overwritten_and_labels_only_when_asked(out: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    with FinishedRun(str(out)) as finished:
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="other files"):
                export(finished, "cvat", str(tmp_path / "mine"), overwrite=overwrite)
        first = export(finished, "cvat").folder
        assert first == f"{out}-cvat"
        with pytest.raises(UsageError, match="earlier export"):
            export(finished, "cvat")
        export(finished, "cvat", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "words"


def test_what_fails_midway_leaves_nothing(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*anything: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(FORMATS["coco"], "add", full)
    with FinishedRun(str(out)) as finished, pytest.raises(OutputError):
        export(finished, "coco", str(tmp_path / "labels"))
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_damaged_mask_costs_its_picture_only(out: Path, tmp_path: Path) -> None:
    (out / "masks" / "a.png").write_bytes(b"torn")
    (out / "masks" / "lot" / "b.png").unlink()
    result = unet_batch("labels", str(out), "--format", "coco", "-o", str(tmp_path / "labels"))
    assert result.returncode == 1
    assert "a.png" in result.stderr
    assert "b.png" in result.stderr
    assert "2 pictures" in result.stdout


def test_an_unfinished_run_is_told(out: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "torn.jpg").write_bytes(b"no picture")
    run(tmp_path / "in", out)
    with FinishedRun(str(out)) as finished:
        assert export(finished, "yolo").missing == 1


def test_a_run_without_masks_says_so(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", half_bright())
    run(tmp_path / "in", tmp_path / "out", save=("prob",))
    with FinishedRun(str(tmp_path / "out")) as finished, pytest.raises(UsageError, match="no masks"):
        export(finished, "coco")


def test_georeferenced_pictures_give_coordinates_of_their_map(tmp_path: Path) -> None:
    import rasterio
    from rasterio.features import rasterize

    place = rasterio.Affine(0.5, 0.0, 500_000, 0.0, -0.25, 5_300_000)
    (tmp_path / "in").mkdir()
    size = {"width": 96, "height": 64, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        tmp_path / "in" / "a.tif", "w", driver="GTiff", crs="EPSG:32633", transform=place, **size
    ) as file:
        file.write(half_bright(64, 96).transpose(2, 0, 1))
    run(tmp_path / "in", tmp_path / "out")
    with FinishedRun(str(tmp_path / "out")) as finished:
        folder = export(finished, "geojson").folder
    content = json.loads((Path(folder) / "a.geojson").read_text())
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    shapes = [feature["geometry"] for feature in content["features"]]
    assert np.array_equal(rasterize(shapes, (64, 96), transform=place) > 0, mask_of(tmp_path / "out", "a"))


@pytest.mark.usefixtures("one_core")
def test_what_is_held_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """A manifest of many pictures that share one mask."""
    write(tmp_path / "out" / "masks" / "m.png", np.eye(8, dtype=np.uint8) * 255)
    model = {"classes": ["car"], "colours": [[255, 0, 0]]}
    report = {"unet_batch": "0", "model": model, "save": ["mask"]}
    (tmp_path / "out" / "run.json").write_text(json.dumps(report))

    def most(count: int) -> int:
        with open(tmp_path / "out" / "manifest.jsonl", "w") as file:
            for number in range(count):
                source = {"source": f"{number}.jpg", "size": 1, "mtime_ns": 1}
                outputs = {"mask": [["masks/m.png", 3]]}
                values = {"v": 1, "key": f"{number}", "status": "done", **source, "outputs": outputs}
                file.write(json.dumps({**values, "root": "/in", "at": 1.0}) + "\n")
        tracemalloc.start()
        with FinishedRun(str(tmp_path / "out")) as finished:
            assert export(finished, "coco", str(tmp_path / f"{count}")).pictures == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most(2000) < most(200) + (1 << 19)
