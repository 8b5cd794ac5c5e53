"""What `check-data` calls ready is what `train` begins with, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from tests.helpers.datasets import write_shapes
from unet_batch.cli import main
from unet_batch.datasets.check import check
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.split import choose_parts
from unet_batch.errors import SplitError
from unet_batch.training.check import check_pairs
from unet_batch.training.options import Options
from unet_batch.training.plan import make_plan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "shapes", 12)


def part(root: Path, name: str) -> list[Path]:
    """The masks of a part of the split."""
    pairs = choose_parts(find_dataset(str(root)).pairs)[0][name]
    return [Path(pair.mask) for pair in pairs]


def fill(masks: list[Path], value: int) -> None:
    for path in masks:
        cv2.imwrite(str(path), np.full_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), value))


def everything(root: Path) -> list[Path]:
    return sorted((root / "masks").iterdir())


def keep(root: Path, count: int) -> None:
    for folder in ("images", "masks"):
        for path in sorted((root / folder).iterdir())[count:]:
            path.unlink()


def copy_across(root: Path) -> None:
    """The image of a training pair among those that validate, with its mask."""
    one, other = part(root, "training")[0], part(root, "validation")[0]
    shutil.copy(one, other)
    shutil.copy(root / "images" / one.name, root / "images" / other.name)


def copy_within(root: Path) -> None:
    one, other = part(root, "training")[:2]
    shutil.copy(one, other)
    shutil.copy(root / "images" / one.name, root / "images" / other.name)


def twice(root: Path) -> None:
    shutil.copy(root / "masks/set00_0.png", root / "masks/set00_0_mask.png")


def unmarked(root: Path) -> None:
    for number in range(20):
        shutil.copy(root / "images/set00_0.png", root / f"images/other{number}.png")


def riddle(root: Path) -> None:
    for path in everything(root):
        cv2.imwrite(str(path), np.arange(40 * 56, dtype=np.uint8).reshape(40, 56))


FAULTS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "sound": (lambda root: None, True),
    "one pair": (lambda root: keep(root, 1), False),
    "two pairs": (lambda root: keep(root, 2), True),
    "two groups": (lambda root: keep(root, 4), True),
    "nothing marked where it validates": (lambda root: fill(part(root, "validation"), 0), False),
    "nothing marked where it trains": (lambda root: fill(part(root, "training"), 0), False),
    "nothing marked": (lambda root: fill(everything(root), 0), False),
    "nothing but marked": (lambda root: fill(everything(root), 255), False),
    "one mask of nothing": (lambda root: fill(everything(root)[:1], 0), True),
    "the same image on both sides": (copy_across, False),
    "the same image on one side": (copy_within, True),
    "an image that is no image": (lambda root: (root / "images/set01_0.png").write_bytes(b""), False),
    "a mask that is no image": (lambda root: (root / "masks/set01_0.png").write_bytes(b""), False),
    "no mask that is an image": (lambda root: [path.write_bytes(b"") for path in everything(root)], False),
    "a mask of another size": (
        lambda root: cv2.imwrite(str(root / "masks/set01_0.png"), np.zeros((20, 28), np.uint8)),
        False,
    ),
    "a mask of other values": (lambda root: fill(everything(root)[:1], 7), False),
    "masks of values that nobody knows": (riddle, False),
    "two masks of one image": (twice, True),
    "more images without a mask than with": (unmarked, True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_and_training_judge_alike(root: Path, tmp_path: Path, fault: str) -> None:
    spoil, trains = FAULTS[fault]
    spoil(root)
    dataset = find_dataset(str(root), faulty=True)
    options = Options(size=(40, 56), widths=(4, 8), batch_size=2)
    try:
        begins = check_pairs(make_plan(dataset, str(tmp_path / "m.safetensors"), options)).report.ok
    except SplitError:
        begins = False
    report = check(dataset)
    assert report.ok == begins == trains, report.findings


@pytest.mark.parametrize(
    ("lists", "trains"),
    [
        ({"train": ["set00_0", "set00_1"], "val": ["set01_0", "set01_1"]}, True),
        ({"train": ["set00_0"], "val": ["set00_1"]}, False),
        ({"val": ["set01_0", "set01_1"]}, True),
        ({"val": ["set01_0"]}, False),  # the other one of its group trains
        ({"val": [f"set{index // 2:02}_{index % 2}" for index in range(12)]}, False),
    ],
)
def test_lists_are_judged_alike(
    root: Path, tmp_path: Path, lists: dict[str, list[str]], trains: bool
) -> None:
    splits, to_train = [], []
    for name, keys in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(keys))
        splits += ["--split", str(tmp_path / f"{name}.txt")]
        to_train += [f"--{name}-list", str(tmp_path / f"{name}.txt")]
    checked = CliRunner().invoke(main, ["check-data", str(root), *splits])
    tiny = ["--size", "40x56", "--widths", "4,8", "--epochs", "1", "-o", str(tmp_path / "m.safetensors")]
    trained = CliRunner().invoke(main, ["train", str(root), *to_train, *tiny])
    assert (checked.exit_code == 0, trained.exit_code == 0) == (trains, trains), (
        checked.output + trained.output
    )


def test_all_kinds_of_faults_are_told_at_once(root: Path, tmp_path: Path) -> None:
    for fault in (
        "an image that is no image",
        "a mask of another size",
        "a mask of other values",
        "two masks of one image",
    ):
        FAULTS[fault][0](root)
    (root / "masks/set02_0.png").unlink()
    shutil.copy(root / "images/set03_0.png", root / "images/set03_1.png")
    cv2.imwrite(str(root / "masks/set02_1.png"), np.zeros((20, 28), np.uint8) + np.uint8(9))
    checked = CliRunner().invoke(main, ["check-data", str(root)]).output
    tiny = ["--size", "40x56", "--widths", "4,8", "-o", str(tmp_path / "m.safetensors")]
    trained = CliRunner().invoke(main, ["train", str(root), *tiny]).output
    kinds = ("unreadable image", "size mismatch", "unexpected mask values", "different masks for one image")
    assert all(kind in checked for kind in (*kinds, "missing mask", "ambiguous match"))
    assert all(kind in trained for kind in kinds)
    for text in (checked, trained):
        assert "set01_0.png: an empty file" in text
        assert text.count("set02_1.png") == 2, "a mask may be wrong in two ways"


def test_of_one_group_the_other_faults_are_told_too(root: Path, tmp_path: Path) -> None:
    (root / "images/set00_1.png").write_bytes(b"")
    group = ["--group-by", "^(set)"]
    trained = CliRunner().invoke(main, ["train", str(root), *group, "-o", str(tmp_path / "m.safetensors")])
    checked = CliRunner().invoke(main, ["check-data", str(root), *group])
    assert (checked.exit_code, trained.exit_code) == (1, 2)
    for text in (checked.output, trained.output):
        assert "1 pair: cannot be decoded" in text
        assert "1 group cannot be on both sides of a split" in text


def test_files_of_one_name_are_told_apart(root: Path) -> None:
    for folder in ("images", "masks"):
        for name in ("x", "y"):
            (root / folder / name).mkdir()
            shutil.copy(root / folder / "set00_0.png", root / folder / name / "0.png")
    (root / "masks/y/0.png").write_bytes(b"")
    (found,) = (
        finding for finding in check(find_dataset(str(root))).findings if "unreadable" in finding.kind
    )
    assert found.files[0].replace("\\", "/").startswith("masks/y/0.png: an empty file")
