"""Masks through each label format and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.labels.readers import READERS, unpack
from unet_batch.labels.base import LabelSettings
from unet_batch.labels.export import FORMATS
from unet_batch.labels.format_labelstudio import pack
from unet_batch.labels.picture import LabelledPicture
from unet_batch.run.masks import LabelTable
from unet_batch.types import ClassTable

CLASSES = ClassTable(("background", "car", "a <tree> & 'b'"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))
WAYS = [(name, False) for name in FORMATS] + [
    (name, True) for name in ("coco", "cvat", "labelme", "labelstudio")
]


def there_and_back(way: tuple[str, bool], pictures: dict[str, np.ndarray], folder: Path) -> dict[str, dict]:
    """Write masks of ids in a format, and read them again: of each picture its masks by class."""
    name, polygons = way
    table = LabelTable.of(CLASSES)
    writer = FORMATS[name](str(folder), table, LabelSettings(polygons))
    for key, ids in pictures.items():
        picture = LabelledPicture(key, f"{key}.png", f"/nowhere/{key}.png", ids, table)
        writer.add(picture, writer.encode(picture))
    writer.finish()
    return {
        key: READERS[name](folder, f"{key}.png", list(table.names), ids.shape)
        for key, ids in pictures.items()
    }


def check(way: tuple[str, bool], pictures: dict[str, np.ndarray], folder: Path) -> None:
    for key, masks in there_and_back(way, pictures, folder).items():
        for id, mask in zip((1, 2), masks.values(), strict=True):
            assert np.array_equal(mask, pictures[key] == id), f"{way}: {key}, class {id}"


def components() -> np.ndarray:
    """1,024 components, every other one with a hole."""
    cell = np.zeros((6, 12), np.uint8)
    cell[1:5, 1:5] = cell[1:5, 7:11] = 1
    cell[2:4, 8:10] = 0
    return np.tile(cell, (16, 32))


def nested() -> np.ndarray:
    """Rings in rings, of both classes in turn."""
    ids = np.zeros((41, 61), np.uint8)
    for step in range(0, 18, 2):
        ids[step + 1 : 40 - step, step + 1 : 60 - step] = 1 + step // 2 % 2
        ids[step + 2 : 39 - step, step + 2 : 59 - step] = 0
    return ids


def lines() -> np.ndarray:
    """Lines of one pixel: across, down, both diagonals, a cross, dots, the corners of the picture."""
    ids = np.zeros((40, 50), np.uint8)
    ids[2, 3:40] = ids[5:30, 2] = 1
    ids[np.arange(6, 26), np.arange(10, 30)] = ids[np.arange(6, 26), np.arange(48, 28, -1)] = 2
    ids[32, 5:20] = ids[28:37, 12] = 1
    ids[36, 30::2] = 2
    ids[[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    return ids


AWKWARD = {
    "components": components(),
    "nested": nested(),
    "lines": lines(),
    "chequered": (np.indices((9, 12)).sum(0) % 2).astype(np.uint8),
    "empty": np.zeros((8, 5), np.uint8),
    "full": np.full((7, 9), 2, np.uint8),
    "pixel": np.ones((1, 1), np.uint8),
    "column": np.array([[1], [0], [2], [2], [1]], np.uint8),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}{'-polygons' * way[1]}")
def test_awkward_masks_come_back_to_the_pixel(way: tuple[str, bool], tmp_path: Path) -> None:
    check(way, AWKWARD, tmp_path)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}{'-polygons' * way[1]}")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=arrays.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 2))
)
def test_any_mask_comes_back_to_the_pixel(way: tuple[str, bool], tmp_path: Path, ids: np.ndarray) -> None:
    check(way, {"any": ids}, tmp_path)


@given(mask=arrays.arrays(np.bool_, st.tuples(st.integers(1, 30), st.integers(1, 30))))
@settings(max_examples=50, deadline=None)
def test_packed_runs_hold_the_mask(mask: np.ndarray) -> None:
    assert np.array_equal(unpack(pack(mask)).reshape(*mask.shape, 4) > 0, mask[..., None].repeat(4, -1))


def test_runs_longer_than_a_length_can_tell_are_packed_too() -> None:
    mask = np.zeros((300, 400), bool)
    mask[120:] = True
    assert np.array_equal(unpack(pack(mask)).reshape(300, 400, 4)[..., 0] > 0, mask)
