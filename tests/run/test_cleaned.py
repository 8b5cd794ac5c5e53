"""What masks are cleaned of holds for all that shows them, and is part of what made them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers.observers import observing
from tests.helpers.runs import read, write
from unet_batch.errors import ImageError, ManifestError, UsageError
from unet_batch.inference.measuring import frame_cells, frame_columns
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import geometry
from unet_batch.media.cleanup import NONE, Cleanup
from unet_batch.media.render import class_table
from unet_batch.run import giant
from unet_batch.run.execute import execute
from unet_batch.run.masks import LabelTable, read_ids
from unet_batch.run.options import PageRange, RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.report import RunReport
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Frame, Item, Prediction

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_thread_is_left")]

SIZE = (64, 96)


def several(names: tuple[str, ...] = ("background", "car", "road")) -> FakeBackend:
    """Ids are the red levels in steps of ten."""
    spec = replace(fake_spec(SIZE, len(names)), classes=class_table(names))
    return FakeBackend(spec, lambda batch: batch[..., 0] // 10)


def one() -> FakeBackend:
    return FakeBackend(fake_spec(SIZE))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A large object with a hole, and a small one."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[10:50, 10:50] = 255
    picture[25:31, 25:31] = 0
    picture[5:12, 70:80] = 255
    write(tmp_path / "photos/a.png", picture)
    return tmp_path / "photos/a.png"


def run(
    source: Path, out: Path, cleanup: Cleanup, backend: FakeBackend | None = None, **options: object
) -> RunReport:
    view, isolate = options.pop("view", None), bool(options.get("isolate"))
    max_pixels = options.pop("max_pixels", 10**8)
    plan = prepare(RunOptions((str(source),), str(out), **options))  # type: ignore[arg-type]
    with Segmenter(
        backend or one(),
        workers=1,
        view=view,
        cleanup=cleanup,
        isolate=isolate,
        max_pixels=max_pixels,  # type: ignore[arg-type]
    ) as segmenter:
        return execute(plan, segmenter, observing())


EVERYTHING = Cleanup(min_area="100", fill_holes="all", largest=True)


def test_a_frame_has_a_figure_for_each_column_whatever_is_gone() -> None:
    spec = several(("sky", "car", "road")).spec
    mask = np.full(SIZE, NONE, np.uint8)
    mask[:, :24] = 2
    placement = geometry.place(SIZE, SIZE)
    prediction = Prediction(Frame(Item("a.mp4"), placement, (), None), mask)
    cells = frame_cells(spec, prediction, mask, 0.5, cleaned=True)
    assert len(cells) == len(frame_columns(spec))
    assert cells[:4] == ("0.000000", "0.000000", "0.250000", 1)


@pytest.mark.parametrize("isolate", [False, True])
def test_all_that_shows_a_mask_shows_it_clean(photo: Path, tmp_path: Path, isolate: bool) -> None:
    save = ("mask", "cutout", "overlay", "prob", "geotiff", "background")
    run(photo, tmp_path / "out", EVERYTHING, save=save, isolate=isolate)
    run(photo, tmp_path / "raw", Cleanup(), save=save)
    out, raw = tmp_path / "out", tmp_path / "raw"
    mask = read(out / "masks/a.png")
    expected = np.zeros(SIZE, np.uint8)
    expected[10:50, 10:50] = 255
    assert np.array_equal(mask, expected)
    assert np.array_equal(tifffile.imread(out / "geotiffs/a.tif"), expected // 255)
    alpha = read(out / "cutouts/a.png")[..., 3]
    assert np.array_equal(alpha >= 128, expected > 0)
    assert not alpha[:, 60:].any()
    assert (read(out / "backgrounds/a.jpg")[3:14, 66:84] > 250).all(), "the small one is gone"
    assert (out / "probs/a.png").read_bytes() == (raw / "probs/a.png").read_bytes(), "what the network said"


def test_a_folder_is_not_gone_on_with_otherwise_cleaned(photo: Path, tmp_path: Path) -> None:
    assert run(photo, tmp_path / "out", Cleanup(min_area="100")).done == 1
    assert run(photo, tmp_path / "out", Cleanup(min_area="100")).done == 0
    for other in (Cleanup(), Cleanup(min_area="99"), Cleanup(min_area="100", largest=True)):
        with pytest.raises(ManifestError, match="min area 100") as info:
            run(photo, tmp_path / "out", other)
        assert "--overwrite" in info.value.hint


def test_of_several_classes_some_are_kept(tmp_path: Path) -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:, 30:60], picture[:, 60:] = 10, 20
    write(tmp_path / "photos/a.png", picture)
    kept = Cleanup(("road",))
    run(tmp_path / "photos", tmp_path / "out", kept, several(), save=("mask", "cutout"))
    mask = read(tmp_path / "out/masks/a.png")
    assert set(np.unique(mask)) == {0, 2}
    assert np.array_equal(read(tmp_path / "out/cutouts/a.png")[..., 3] >= 128, mask == 2)
    # Without a background, what is chosen is the object, and all else is none of the classes
    backend = several(("sky", "car", "road"))
    run(tmp_path / "photos", tmp_path / "other", kept, backend, save=("mask", "blur", "palette", "sheet"))
    mask = read(tmp_path / "other/masks/a.png")
    assert set(np.unique(mask)) == {2, NONE}
    with Image.open(tmp_path / "other/palettes/a.png") as image:
        assert np.array_equal(np.asarray(image), mask)
        assert image.convert("RGB").getpixel((5, 5)) == (0, 0, 0)
    written = str(tmp_path / "other/masks/a.png")
    assert np.array_equal(read_ids(written, LabelTable.of(backend.spec.classes)), mask), (
        "what is gone is no damage"
    )
    with pytest.raises(ImageError, match="holds id 255"):
        read_ids(written, LabelTable.of(class_table(("background", "car", "road"))))
    with pytest.raises(UsageError, match="fake has no class bus"):
        Segmenter(several(), cleanup=Cleanup(("bus",)))


def test_every_page_of_a_stack(tmp_path: Path) -> None:
    pages = np.zeros((2, *SIZE, 3), np.uint8)
    pages[0, 10:50, 10:50] = 255
    pages[1, 10:15, 10:15] = 255
    tifffile.imwrite(tmp_path / "cells.tif", pages, photometric="rgb")
    options = {"pages": PageRange.parse("all")}
    run(tmp_path / "cells.tif", tmp_path / "out", Cleanup(min_area="100"), **options)
    found = tifffile.imread(tmp_path / "out/masks/cells.tif")
    assert found[0].any()
    assert not found[1].any()


def test_of_a_picture_by_rows_classes_are_kept_and_areas_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.zeros((150, 200, 3), np.uint8)
    picture[:, 60:120], picture[:, 120:] = 10, 20
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", tile=(32, 32))
    tiles = ViewOptions("tile")
    monkeypatch.setattr(giant, "MEMORY", 0)
    report = run(tmp_path / "a.tif", tmp_path / "rows", Cleanup(("car",)), several(), view=tiles)
    assert report.done == 1
    monkeypatch.undo()
    run(tmp_path / "a.tif", tmp_path / "whole", Cleanup(("car",)), several(), view=tiles)
    found = read(tmp_path / "rows/masks/a.png")
    assert set(np.unique(found)) == {0, 1}
    assert np.array_equal(found, read(tmp_path / "whole/masks/a.png"))
    report = run(
        tmp_path / "a.tif", tmp_path / "no", Cleanup(min_area="5"), several(), view=tiles, max_pixels=20_000
    )
    [failure] = report.failures
    assert "nobody knows how large a component is in the end (min area 5)" in failure.message
    assert "--min-area" in failure.hint


def test_in_python(photo: Path) -> None:
    with Segmenter(one(), workers=1, cleanup=EVERYTHING) as segmenter:
        assert segmenter(str(photo))[28, 28] == 255
        [result] = segmenter.stream([str(photo)])
        assert result.mask is not None
        assert not result.mask[:, 60:].any()
        with Image.open(io.BytesIO(result.encode("mask"))) as image:
            assert np.array_equal(np.asarray(image), result.mask)
        assert segmenter.describe()["cleanup"] == {"min_area": "100", "fill_holes": "all", "largest": True}


def test_pixels_without_a_value_are_nothing_and_fill_no_hole(tmp_path: Path) -> None:
    picture = np.full((*SIZE, 3), 255, np.uint8)
    picture[20:30, 20:30] = 7
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", extratags=[(42113, 2, 2, "7", True)])
    run(tmp_path / "a.tif", tmp_path / "out", Cleanup(fill_holes="all"))
    found = read(tmp_path / "out/masks/a.png")
    assert not found[20:30, 20:30].any()
    assert found[40:].all()


def test_a_threshold_without_a_probability_is_refused() -> None:
    with pytest.raises(UsageError, match=r"threshold 0\.4: fake gives ids of classes, no probability"):
        Segmenter(several(), threshold=0.4)
    Segmenter(one(), threshold=0.4).close()
