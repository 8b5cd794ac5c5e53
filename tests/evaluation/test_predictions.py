"""What predicted masks mean, whatever type they are stored in, whoever made them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.datasets import mask, photo
from unet_batch.datasets.find import find_dataset
from unet_batch.evaluation.evaluate import Evaluation, compare
from unet_batch.evaluation.predictions import Predictions, find_predictions

SIZE = (40, 60)
NAMES = ("a", "b", "c")


def truth(seed: int) -> np.ndarray:
    """A disc, 0 and 1."""
    disc = np.zeros(SIZE, np.uint8)
    return cv2.circle(disc, (20 + 5 * seed, 20), 9 + seed, 1, -1)


def sure(seed: int, *, spread: float = 1.5) -> np.ndarray:
    """Probabilities of the disc, 0..1, the more of them in between the wider they are spread."""
    disc = truth(seed)
    inside, outside = (
        cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (disc, 1 - disc)
    )
    return 1 / (1 + np.exp((outside - inside) / spread))


def judged(root: Path, save: Callable[[Path, int], None]) -> tuple[Evaluation, Predictions]:
    """Judge what `save` writes for each picture."""
    for seed, name in enumerate(NAMES):
        photo(root / f"data/images/{name}.png", seed, SIZE)
        mask(root / f"data/masks/{name}.png", 255 * truth(seed))
        (root / "found").mkdir(exist_ok=True)
        save(root / "found" / name, seed)
    dataset = find_dataset(str(root / "data"))
    predictions = find_predictions(dataset, dataset.pairs, str(root / "found"))
    return compare(dataset, dataset.pairs, predictions, workers=2), predictions


def tiff(path: Path, values: np.ndarray) -> None:
    pytest.importorskip("tifffile", reason="needs tifffile").imwrite(path.with_suffix(".tif"), values)


def png(path: Path, values: np.ndarray) -> None:
    mask(path.with_suffix(".png"), values, values.dtype.type)


def levels(full: int, dtype: type, **how: float) -> Callable[[Path, int], None]:
    return lambda path, seed: png(path, np.rint(sure(seed, **how) * full).astype(dtype))


def inverted(path: Path, seed: int) -> None:
    image = Image.fromarray(1 - truth(seed), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path.with_suffix(".png"))


KINDS: dict[str, Callable[[Path, int], None]] = {
    "bytes": levels(255, np.uint8),
    "bytes, unsure": levels(255, np.uint8, spread=6),
    "16 bits": levels(65535, np.uint16),
    "16 bits, unsure": levels(65535, np.uint16, spread=6),
    "16 bits of two values": lambda path, seed: png(path, 65535 * truth(seed).astype(np.uint16)),
    "16 bits of two levels": lambda path, seed: png(
        path, np.where(truth(seed), 60000, 2000).astype(np.uint16)
    ),
    "16 bits that hold bytes": lambda path, seed: png(path, 255 * truth(seed).astype(np.uint16)),
    "16 bits that hold 0 and 1": lambda path, seed: png(path, truth(seed).astype(np.uint16)),
    "fractions": lambda path, seed: tiff(path, sure(seed).astype(np.float32)),
    "fractions, unsure": lambda path, seed: tiff(path, sure(seed, spread=6).astype(np.float32)),
    "doubles": lambda path, seed: tiff(path, sure(seed).astype(np.float64).astype(np.float32)),
    "floats of 0 and 1": lambda path, seed: tiff(path, truth(seed).astype(np.float32)),
    "floats of 0 and 255": lambda path, seed: tiff(path, 255 * truth(seed).astype(np.float32)),
    "bits": lambda path, seed: Image.fromarray(truth(seed) > 0).save(path.with_suffix(".png")),
    "white first": inverted,
    "two kinds": lambda path, seed: [levels(65535, np.uint16), levels(255, np.uint8)][seed % 2](path, seed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_range_is_the_border_whatever_the_type(tmp_path: Path, kind: str) -> None:
    found, predictions = judged(tmp_path, KINDS[kind])
    assert found.failures == ()
    assert found.photo.mean("dice") > 0.99, predictions.reasons


def test_a_picture_where_nothing_was_found_is_no_other_range(tmp_path: Path) -> None:
    def save(path: Path, seed: int) -> None:
        values = np.full(SIZE, 200 + np.arange(SIZE[1]), np.uint16) if seed == 1 else 65535 * sure(seed)
        png(path, np.rint(values).astype(np.uint16))

    found, predictions = judged(tmp_path, save)
    assert found.failures == ()
    assert [each.confusion[:, 1].sum() > 0 for each in found.photo.counts] == [True, False, True]
    assert any("probabilities from 0 to 65,535" in reason for reason in predictions.reasons)


@pytest.mark.parametrize("full", [255, 4095])
def test_numbers_of_fewer_bits_than_their_type_are_refused(tmp_path: Path, full: int) -> None:
    found, _ = judged(tmp_path, levels(full, np.uint16))
    assert [failure.key for failure in found.failures] == list(NAMES)
    for failure in found.failures:
        assert re.search(
            rf"{failure.key}\.png: values from 0 to {str(full)[0]}\d+, where its type goes to 65,535: "
            "nothing reaches half",
            failure.message,
        )


def test_of_our_own_run_the_range_is_known(tmp_path: Path) -> None:
    """A model that finds nothing says so in small numbers, too."""
    dataset_root = tmp_path / "data"
    for seed, name in enumerate(NAMES):
        photo(dataset_root / f"images/{name}.png", seed, SIZE)
        mask(dataset_root / f"masks/{name}.png", 255 * truth(seed))
        mask(tmp_path / f"out/prob16/{name}.png", np.rint(200 * sure(seed)), np.uint16)
    (tmp_path / "out/run.json").write_text("{}")
    dataset = find_dataset(str(dataset_root))
    found = find_predictions(dataset, dataset.pairs, str(tmp_path / "out/prob16"))
    evaluation = compare(dataset, dataset.pairs, found, workers=1)
    assert evaluation.failures == ()
    assert evaluation.photo.mean("dice") == 0


def test_numbers_of_objects_are_no_probabilities(tmp_path: Path) -> None:
    def save(path: Path, seed: int) -> None:
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] // 8
        png(path, ((rows * 8 + columns) * (1 - truth(seed))).astype(np.uint8))

    found, _ = judged(tmp_path, save)
    assert len(found.failures) == 3
    assert "unexpected value" in found.failures[0].message


@pytest.mark.parametrize("kind", ["bytes", "16 bits, unsure", "16 bits that hold 0 and 1", "bits"])
def test_true_masks_that_are_probabilities_are_cut_at_half_and_predictions_stay_what_they_are(
    tmp_path: Path, kind: str
) -> None:
    for seed, name in enumerate(NAMES):
        photo(tmp_path / f"data/images/{name}.png", seed, SIZE)
        mask(tmp_path / f"data/masks/{name}.png", np.rint(255 * sure(seed)))
        (tmp_path / "found").mkdir(exist_ok=True)
        KINDS[kind](tmp_path / "found" / name, seed)
    (tmp_path / "data/classes.toml").write_text('values = "probability"\n[[class]]\nname = "car"\n')
    dataset = find_dataset(str(tmp_path / "data"))
    predictions = find_predictions(dataset, dataset.pairs, str(tmp_path / "found"))
    found = compare(dataset, dataset.pairs, predictions, workers=2)
    assert found.failures == ()
    assert found.photo.mean("dice") > 0.99, predictions.reasons
