"""Two sets of masks compared."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command import unet_batch
from tests.helpers.models import fake_file
from tests.helpers.runs import write
from unet_batch.errors import UsageError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.review.diff import MaskSet, diff, draw_sheet
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend


def run(source: Path, out: Path) -> None:
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(prepare(RunOptions((str(source),), str(out))), segmenter)


def square(left: int, width: int = 20) -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, left : left + width] = 255
    return mask


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three folders of masks, the second a little off in one picture, much in another; and the truth."""
    for number in range(6):
        write(tmp_path / "a" / f"{number}.png", square(10))
        write(tmp_path / "b" / f"{number}.png", square({2: 15, 4: 25}.get(number, 10)))
        write(tmp_path / "truth" / f"{number}.png", square(10))
    write(tmp_path / "b" / "lone.png", square(10))
    return tmp_path / "a", tmp_path / "b", tmp_path / "truth"


def test_the_worst_come_first_with_their_figures(sets: tuple[Path, Path, Path]) -> None:
    result = diff(MaskSet(str(sets[0])), MaskSet(str(sets[1])))
    assert [each.key for each in result.pictures][:2] == ["4", "2"]
    assert [each.dice for each in result.pictures][:3] == pytest.approx([0.25, 0.75, 1.0])
    assert result.pictures[0].iou == pytest.approx(0.25 / 1.75)
    assert (result.only_a, result.only_b, result.same) == (0, 1, 4)
    assert result.dice[0] == pytest.approx((0.25 + 0.75 + 4) / 6)
    assert result.dice[1] < result.dice[0] < result.dice[2]


def test_truth_says_which_is_better(sets: tuple[Path, Path, Path]) -> None:
    a, b, truth = map(MaskSet, map(str, sets))
    result = diff(a, b, truth)
    assert result.truth_a == pytest.approx((1, 1, 1))
    assert result.gain is not None
    assert result.gain[0] == pytest.approx(-1 / 6)
    assert diff(b, a, truth).gain == pytest.approx(
        (-result.gain[0], -result.gain[2], -result.gain[1]), abs=0.05
    )
    with_itself = diff(a, a, truth)
    assert with_itself.gain == (0, 0, 0)


def test_empty_masks_agree(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "x.png", np.zeros((8, 8), np.uint8))
        write(tmp_path / name / "y.png", square(3))
    assert diff(MaskSet(str(tmp_path / "a")), MaskSet(str(tmp_path / "b"))).same == 2


def test_sizes_that_differ_cost_their_picture(sets: tuple[Path, Path, Path]) -> None:
    write(sets[1] / "3.png", square(10)[:30])
    result = diff(MaskSet(str(sets[0])), MaskSet(str(sets[1])))
    assert len(result.pictures) == 5
    assert "3" in result.failures[0]


def test_nothing_in_common_is_told(sets: tuple[Path, Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "c" / "z.png", square(10))
    with pytest.raises(UsageError, match="no picture in common"):
        diff(MaskSet(str(sets[0])), MaskSet(str(tmp_path / "c")))


def test_runs_are_compared_with_their_photos_on_the_sheet(tmp_path: Path) -> None:
    for number in range(3):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, 30:] = 255
        write(tmp_path / "in" / f"{number}.png", picture)
    run(tmp_path / "in", tmp_path / "one")
    run(tmp_path / "in", tmp_path / "two")
    write(tmp_path / "two" / "masks" / "1.png", square(5))
    a, b = MaskSet(str(tmp_path / "one")), MaskSet(str(tmp_path / "two"))
    result = diff(a, b)
    assert [each.key for each in result.pictures] == ["1", "0", "2"]
    sheet = draw_sheet(a, b, result, 5)
    assert sheet is not None
    with Image.open(io.BytesIO(sheet)) as drawn:
        assert drawn.height < 400  # one row: the others do not differ
    assert draw_sheet(a, a, diff(a, a), 5) is None


def test_the_command_writes_table_and_sheet(sets: tuple[Path, Path, Path], tmp_path: Path) -> None:
    files = tmp_path / "d.csv", tmp_path / "d.jpg"
    result = unet_batch(
        *("diff", sets[0], sets[1], "--truth", sets[2], "--csv", files[0], "--sheet", files[1])
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "6 in both" in result.stdout
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert [row["picture"] for row in rows][:2] == ["4", "2"]
    assert float(rows[0]["gain"]) == pytest.approx(-0.75)
    with Image.open(files[1]) as drawn:
        assert drawn.format == "JPEG"
