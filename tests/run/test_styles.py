"""How outputs are drawn is part of what they are: folders never hold a mixture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers.runs import files, half_bright, segment, write
from unet_batch.errors import UsageError
from unet_batch.files.outputs import Style
from unet_batch.run.options import PageRange
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_thread_is_left")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write(tmp_path / f"photos/{name}.png", half_bright())
    return tmp_path / "photos"


@pytest.mark.parametrize("isolate", [False, True])
def test_another_background_makes_all_of_them_anew_and_nothing_else_does(
    photos: Path, tmp_path: Path, isolate: bool
) -> None:
    out, save = tmp_path / "out", ("mask", "background")

    def run(**style: object) -> int:
        report, _ = segment(photos, output=out, save=save, style=Style(**style), isolate=isolate)  # type: ignore[arg-type]
        return report.done

    def corner() -> tuple[int, ...]:
        return tuple(map(int, np.asarray(Image.open(out / "backgrounds/a.jpg"))[0, 0]))

    assert run() == 2
    assert corner() == (255, 255, 255)
    assert run() == 0
    assert run(cutout_format="webp") == 0, "of what is not asked for"
    assert run(background="black") == 2
    assert corner() == (0, 0, 0)
    assert run(background="black") == 0
    assert run() == 2, "what was made before is not taken for it"
    assert corner() == (255, 255, 255)


def test_a_picture_as_background_counts_by_its_contents(photos: Path, tmp_path: Path) -> None:
    out, save = tmp_path / "out", ("background",)
    for name in ("one", "same"):
        write(tmp_path / f"{name}.png", np.full((9, 9, 3), 77, np.uint8))
    write(tmp_path / "other.png", np.full((9, 9, 3), 99, np.uint8))
    done = [
        segment(photos, output=out, save=save, style=Style(str(tmp_path / f"{name}.png")))[0].done
        for name in ("one", "same", "other")
    ]
    assert done == [2, 0, 2]
    recorded = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert not any("one.png" in str(line.get("outputs")) for line in recorded)


def test_formats_of_cutouts_stand_side_by_side(photos: Path, tmp_path: Path) -> None:
    for kind in ("png", "webp"):
        report, _ = segment(
            photos, output=tmp_path / "out", save=("cutout",), style=Style(cutout_format=kind)
        )
        assert report.done == 2
    assert [name for name in files(tmp_path / "out") if name.startswith("cutouts")] == [
        "cutouts/a.png", "cutouts/a.webp", "cutouts/b.png", "cutouts/b.webp"
    ]  # fmt: skip
    report, _ = segment(photos, output=tmp_path / "out", save=("cutout",))
    assert report.done == 0


@pytest.mark.parametrize(
    ("save", "style", "classes", "message"),
    [
        (("background",), Style("nowhere.jpg"), 1, "--background nowhere.jpg: no colour, and no picture"),
        (("mask", "blur"), Style(), 3, "no blur: none of the 3 classes of fake is a background"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_done(
    photos: Path, tmp_path: Path, save: tuple[str, ...], style: Style, classes: int, message: str
) -> None:
    backend = FakeBackend(fake_spec(classes=classes), lambda batch: batch[..., 0] % 3)
    with pytest.raises(UsageError, match=message):
        segment(photos, output=tmp_path / "out", backend=backend, save=save, style=style)
    assert not (tmp_path / "out").exists()


def test_stacks_have_every_kind_at_their_own_size(tmp_path: Path) -> None:
    pages = np.stack([half_bright(), 255 - half_bright(), np.zeros((64, 96, 3), np.uint8)])
    tifffile.imwrite(tmp_path / "cells.tif", pages, photometric="rgb")
    save = ("contour", "sheet", "cutout", "background", "blur", "pixelate", "palette", "prob32")
    report, _ = segment(
        tmp_path / "cells.tif",
        output=tmp_path / "out",
        save=save,
        pages=PageRange.parse("all"),
        style=Style("blue", "webp", crop=True),
    )
    assert report.done == 1, report.failures
    shapes = {path.parent.name: tifffile.imread(path).shape for path in (tmp_path / "out").rglob("*.tif")}
    assert shapes.pop("sheets") == (3, 64, 3 * 96 + 16, 3)
    assert shapes.pop("probs32") == (3, 64, 96)
    assert shapes.pop("cutouts") == (3, 64, 96, 4)
    assert set(shapes.values()) == {(3, 64, 96, 3)}
    assert len(shapes) == 5
    assert (tifffile.imread(tmp_path / "out/backgrounds/cells.tif")[0, :, :40] == (0, 0, 255)).all()
