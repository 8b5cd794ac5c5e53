"""Rows that come in bands are resized to what the whole picture would be."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.media import bands, geometry
from unet_batch.media.tiling import Tiling
from unet_batch.types import Placement

sides = st.integers(1, 150)
scales = st.sampled_from([1.0, 0.9, 0.75, 0.5, 0.4, 1 / 3, 0.25, 0.2, 1 / 7, 0.125, 1 / 16])
heights = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def placed(height: int, width: int, scale: float) -> Placement:
    size = (height, width)
    return geometry.place(size, Tiling((32, 32), scale=scale).scaled(size), stretch=True)


def fed(taker: Any, rows: np.ndarray, heights: list[int]) -> np.ndarray:
    """What comes of rows that are handed over so many at a time, over and over."""
    made, top, at = [], 0, 0
    while top < len(rows):
        made.append(taker.add(rows[top : top + heights[at % len(heights)]]))
        top, at = top + heights[at % len(heights)], at + 1
    return np.concatenate([part for part in made if part is not None])


@settings(max_examples=60)
@given(sides, sides, st.sampled_from([1, 3, 7]), scales, heights)
def test_a_picture_is_shrunk_as_the_whole_is(
    height: int, width: int, channels: int, scale: float, heights: list[int]
) -> None:
    placement = placed(height, width, scale)
    picture = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    whole = geometry.to_network(picture, placement)
    found = fed(bands.Shrinker(placement), picture, heights)
    assert found.shape == whole.shape
    assert np.abs(found.astype(int) - whole).max() <= 2  # each of two steps rounds
    steps = geometry.shrinking_steps((height, width), placement.covered, placement.content)
    if all(many % few == 0 for full, less, _ in steps for many, few in zip(full, less, strict=True)):
        np.testing.assert_array_equal(found, whole)


@settings(max_examples=60)
@given(sides, sides, scales, heights, st.booleans())
def test_a_map_is_enlarged_as_the_whole_is(
    height: int, width: int, scale: float, heights: list[int], wide: bool
) -> None:
    placement = placed(height, width, scale)
    there, size = placement.content, placement.covered
    map = np.random.default_rng(width).integers(0, 65536, there, np.uint16)
    map = map if wide else np.where(map > 32767, np.uint16(65504), np.uint16(0))

    def make(held: np.ndarray, first: int, rows: range) -> np.ndarray:
        return bands.interpolate(there, size, held, first, rows)

    def by(heights: list[int]) -> np.ndarray:
        return fed(
            bands.RowMap(there[0], size[0], lambda row: bands.interpolated(there[0], size[0], row), make),
            map,
            heights,
        )

    found = by(heights)
    assert np.abs(found.astype(int) - by([1000])).max() <= 1  # of 65535: cv2 rounds pairs of rows otherwise
    # cv2's places have 24 bits: of 150 rows, the last is off by some 1e-5 of the way to the next
    assert np.abs(found.astype(int) - geometry.resize_map(map, size)).max() <= 3


@pytest.mark.parametrize(("size", "scale"), [((60, 33000), 0.5), ((7, 70001), 0.25)])
def test_pictures_may_be_wider_than_a_short_integer(size: tuple[int, int], scale: float) -> None:
    placement = placed(*size, scale)
    picture = np.broadcast_to((np.arange(size[1]) % 251).astype(np.uint8)[None, :, None], (*size, 3))
    whole = geometry.to_network(np.ascontiguousarray(picture), placement)
    found = fed(bands.Shrinker(placement), np.ascontiguousarray(picture), [64])
    assert np.abs(found.astype(int) - whole).max() <= 1


@settings(max_examples=30)
@given(sides, scales, st.integers(1, 9))
def test_a_constant_stays_constant(side: int, scale: float, height: int) -> None:
    placement = placed(side, 2 * side, scale)
    picture = np.full((side, 2 * side, 3), 97, np.uint8)
    assert (fed(bands.Shrinker(placement), picture, [height]) == 97).all()


def test_only_the_rows_that_are_needed_are_held() -> None:
    placement = placed(5000, 20, 0.4)
    shrinker, held = bands.Shrinker(placement), 0
    for _ in range(0, 5000, 10):
        shrinker.add(np.zeros((10, 20, 3), np.uint8))
        held = max(held, *(len(step._held) for step in shrinker._steps if step._held is not None))
    assert held <= 4


def test_what_is_not_shrunk_is_refused() -> None:
    with pytest.raises(ValueError, match="not only shrunk"):
        bands.Shrinker(placed(40, 40, 2.0))
    with pytest.raises(ValueError, match="not only shrunk"):
        bands.Shrinker(geometry.place((40, 80), (32, 32)))


def test_halves_of_a_gradient_have_no_seam() -> None:
    gradient = np.linspace(0, 65535, 200).astype(np.uint16)[:, None].repeat(8, 1)
    rows = bands.RowMap(
        200,
        1000,
        lambda row: bands.interpolated(200, 1000, row),
        lambda held, first, rows: bands.interpolate((200, 8), (1000, 8), held, first, rows),
    )
    found = fed(rows, gradient, [7]).astype(int)
    assert np.abs(np.diff(found, axis=0)).max() <= 330 / 5 + 1
    expected = cv2.resize(gradient, (8, 1000), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found - expected).max() <= 3
