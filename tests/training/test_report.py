"""The sheet beside a model: the best, the middle and the worst, whatever the number of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unet_batch
from tests.helpers.datasets import write_shapes
from unet_batch.datasets.find import find_dataset
from unet_batch.model import checkpoint
from unet_batch.training import loop, report
from unet_batch.training.check import check_pairs
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


def test_a_model_of_12_bit_images_is_judged_and_run_in_the_range_of_its_training(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", 24)
    for path in (folder / "images").iterdir():
        levels = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(levels * 4 + 300).save(path)
    options = Options(
        size=(40, 56), widths=(4, 8), batch_size=4, epochs=12, lr=1e-2, value_range="percentile"
    )
    plan = make_plan(find_dataset(str(folder)), str(tmp_path / "m.safetensors"), options)
    assert check_pairs(plan).report.ok, "in 8 bits of 16 all of them would be the same"
    outcome = loop.train(plan)
    found = report.finish(plan, outcome)
    assert found.photo.mean("dice", per_picture=True) > 0.85
    spec = checkpoint.identify(plan.output).spec
    assert spec.training["range"] == "percentile"
    assert spec.domain is not None
    assert (spec.domain.pictures, spec.domain.validated) == (len(plan.train), len(plan.val))
    image = str(folder / "images" / "set00_0.png")
    with unet_batch.load(plan.output, backend="torch", device="cpu") as segmenter:
        mask = segmenter(image)
        assert segmenter.describe()["range"] == "percentile"
    truth = np.asarray(Image.open(folder / "masks" / "set00_0.png"))
    assert (mask == truth).mean() > 0.95
    with unet_batch.load(plan.output, backend="torch", device="cpu", value_range="auto") as segmenter:
        assert "range" not in segmenter.describe()
        assert (segmenter(image) != mask).any()


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
