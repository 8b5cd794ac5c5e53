"""The sheet beside a model: the best, the middle and the worst, whatever the number of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_batch.datasets.find import find_dataset
from unet_batch.training.options import Options
from unet_batch.training.plan import make_plan
from unet_batch.training.report import Curves, pick_examples


@pytest.mark.parametrize(
    ("count", "captions"),
    [
        (0, []),
        (1, ["best"]),
        (2, ["best", "worst"]),
        (3, ["best", "middle", "worst"]),
        (5, ["best"] * 2 + ["middle"] + ["worst"] * 2),
        (12, ["best"] * 4 + ["middle"] * 4 + ["worst"] * 4),
        (101, ["best"] * 4 + ["middle"] * 4 + ["worst"] * 4),
    ],
)
def test_the_sheet_ends_with_the_worst(count: int, captions: list[str]) -> None:
    ranked = [(f"p{number:03}", number / 128) for number in range(count)]  # worst first
    rows = pick_examples(ranked)
    keys = [key for key, _ in rows]
    assert [caption.split(",")[0] for _, caption in rows] == captions
    assert keys == sorted(set(keys), reverse=True)
    if count <= 12:
        assert len(keys) == count
    else:
        assert keys[0] == "p100"
        assert keys[4:8] == ["p052", "p051", "p050", "p049"]
        assert keys[-1] == "p000"
    assert all(caption.endswith(f"Dice {dict(ranked)[key]:.4f}") for key, caption in rows)


HISTORY = [
    {"epoch": epoch, "step": epoch, "loss": 1 / epoch, "val_loss": 1 / epoch, "val_dice": 0.1 * epoch}
    for epoch in range(1, 6)
]


def test_drawing_waits_where_epochs_are_short_and_the_last_one_is_drawn(shapes: Path, tmp_path: Path) -> None:
    plan = make_plan(find_dataset(str(shapes)), str(tmp_path / "m.safetensors"), Options(size=(40, 56)))
    picture = Path(plan.folder) / "curves.png"
    with Curves(plan) as curves:
        curves.add(HISTORY[:1])
        first = picture.read_bytes()
        for count in range(2, 6):
            curves.add(HISTORY[:count])
        assert picture.read_bytes() == first, "five epochs without work between are drawn once"
    last = picture.read_bytes()
    assert last != first


def test_what_ended_a_training_is_not_covered_by_a_drawing(shapes: Path, tmp_path: Path) -> None:
    plan = make_plan(find_dataset(str(shapes)), str(tmp_path / "m.safetensors"), Options(size=(40, 56)))

    def fail() -> None:
        with Curves(plan) as curves:
            curves.add(HISTORY[:1])
            (Path(plan.folder) / "curves.png").unlink()
            curves.add(HISTORY[:2])
            raise KeyError("full")

    with pytest.raises(KeyError, match="full"):
        fail()
    assert not (Path(plan.folder) / "curves.png").exists()
