"""Of what is hidden so little is left as is stated, whatever the picture holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.media.privacy import CELLS, FLOOR, hide


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """The sharpest picture there is: black and white pixels at random."""
    levels = np.random.default_rng(seed).integers(0, 2, (height, width, 3)) * 255
    return levels.astype(np.uint8)


def box(height: int, width: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + rows, left : left + columns] = 255
    return mask


def largest_step(pixels: np.ndarray, mask: np.ndarray) -> int:
    """The largest difference of two neighbours that are both of the object."""
    values, inside, found = pixels.astype(int), mask > 0, 0
    for axis in (0, 1):
        both = _both(inside, axis)
        steps = np.abs(np.diff(values, axis=axis)).max(axis=2)
        found = max(found, int(steps[both].max(initial=0)))
    return found


def _both(inside: np.ndarray, axis: int) -> np.ndarray:
    first, second = [slice(None)] * 2, [slice(None)] * 2
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    return np.asarray(inside[tuple(first)] & inside[tuple(second)])


sides, shares = st.integers(40, 260), st.floats(0, 1)
boxes = st.tuples(sides, sides, shares, shares, st.floats(0.05, 1), st.floats(0.05, 1))


def place(drawn: tuple[int, int, float, float, float, float]) -> tuple[np.ndarray, int]:
    """A mask with one object, and its shorter side."""
    height, width, top, left, rows, columns = drawn
    high, across = max(1, int(rows * height)), max(1, int(columns * width))
    mask = box(height, width, int(top * (height - high)), int(left * (width - across)), high, across)
    return mask, min(high, across)


class TestBlur:
    @given(boxes, st.integers(0, 9))
    @settings(max_examples=40, deadline=None)
    def test_no_pixel_of_the_object_is_sharper_than_stated(
        self, drawn: tuple[int, int, float, float, float, float], seed: int
    ) -> None:
        mask, shorter = place(drawn)
        deviation = max(4, shorter / CELLS, min(mask.shape) / FLOOR) / 2
        assert largest_step(hide(noise(*mask.shape, seed), mask, "blur"), mask) <= 102 / deviation + 1

    @pytest.mark.parametrize("upright", [True, False])
    @pytest.mark.parametrize("side", [60, 100, 190])
    def test_stripes_are_gone(self, side: int, upright: bool) -> None:
        period = side / 4
        wave = np.rint(127.5 + 127.5 * np.sin(2 * math.pi * np.arange(640) / period)).astype(np.uint8)
        stripes = np.broadcast_to(wave[None, :] if upright else wave[:, None], (640, 640))
        mask = box(640, 640, 240, 230, side, side)
        hidden = hide(np.dstack([stripes] * 3), mask, "blur")
        inner = hidden[240 : 240 + side, 230 : 230 + side, 0].astype(int)
        lines = inner.mean(axis=0 if upright else 1)
        assert np.ptp(lines) <= 255 / 100 + 1, "less than one in a hundred, and rounding"

    def test_an_edge_as_sharp_as_can_be_comes_close_to_the_bound(self) -> None:
        """Else the bound would say nothing."""
        pixels = np.zeros((256, 256, 3), np.uint8)
        pixels[:, 128:] = 255
        mask = box(256, 256, 64, 64, 128, 128)
        assert 0.8 * 102 / 16 <= largest_step(hide(pixels, mask, "blur"), mask) <= 102 / 16 + 1


class TestPixelate:
    @given(boxes, st.integers(0, 9))
    @settings(max_examples=40, deadline=None)
    def test_an_object_is_few_squares_of_one_colour(
        self, drawn: tuple[int, int, float, float, float, float], seed: int
    ) -> None:
        mask, shorter = place(drawn)
        hidden = hide(noise(*mask.shape, seed), mask, "pixelate")
        side = 4
        while side < max(shorter / CELLS, min(mask.shape) / FLOOR):
            side *= 2
        rows, columns = np.nonzero(mask)
        for top in range(rows.min() // side * side, rows.max() + 1, side):
            for left in range(columns.min() // side * side, columns.max() + 1, side):
                square = hidden[top : top + side, left : left + side].reshape(-1, 3)
                assert (square == square[0]).all()
        across = (
            rows.max() // side - rows.min() // side + 1,
            columns.max() // side - columns.min() // side + 1,
        )
        assert min(across) <= CELLS + 1

    def test_the_colour_is_the_mean(self) -> None:
        pixels = noise(64, 64)
        hidden = hide(pixels, box(64, 64, 16, 16, 32, 32), "pixelate")
        assert np.abs(hidden[16, 16] - pixels[16:24, 16:24].mean(axis=(0, 1))).max() <= 0.5

    def test_squares_stay_where_they_are(self) -> None:
        """As an object moves through a clip, the grid does not."""
        pixels = noise(256, 256)
        first, second = (
            hide(pixels, box(256, 256, 60, 60 + shift, 100, 100), "pixelate") for shift in (0, 7)
        )
        both = np.logical_and(first != pixels, second != pixels)
        assert both.any()
        assert (first[both] == second[both]).all()


@pytest.mark.parametrize("how", ["blur", "pixelate"])
class TestBoth:
    def test_crumbs_hide_what_lies_between_them(self, how: str) -> None:
        """Letters of a number plate, each found by itself, are one object."""
        pixels, whole = noise(512, 512), box(512, 512, 200, 100, 60, 300)
        letters = whole.copy()
        letters[:, 100::20] = 0
        letters[:, 101::20] = 0
        assert (hide(pixels, letters, how) == hide(pixels, whole, how)).all()  # type: ignore[arg-type]

    def test_the_rim_is_hidden_and_what_is_far_is_not(self, how: str) -> None:
        pixels = noise(640, 640)
        mask = box(640, 640, 280, 280, 60, 60)
        hidden = hide(pixels, mask, how)  # type: ignore[arg-type]
        assert largest_step(hidden[270:350, 270:350], np.ones((80, 80), np.uint8)) < 255
        near = np.zeros((640, 640), bool)
        near[280 - 160 : 340 + 160, 280 - 160 : 340 + 160] = True
        assert (hidden[~near] == pixels[~near]).all()
        assert hidden is not pixels

    def test_nothing_found_is_nothing_hidden(self, how: str) -> None:
        pixels = noise(50, 70)
        assert (hide(pixels, np.zeros((50, 70), np.uint8), how) == pixels).all()  # type: ignore[arg-type]

    def test_a_picture_that_is_all_object(self, how: str) -> None:
        hidden = hide(noise(37, 91), np.full((37, 91), 255, np.uint8), how)  # type: ignore[arg-type]
        assert hidden.shape == (37, 91, 3)
        assert largest_step(hidden, np.ones((37, 91), np.uint8)) < 128

    def test_one_pixel(self, how: str) -> None:
        hidden = hide(noise(1, 1), np.full((1, 1), 255, np.uint8), how)  # type: ignore[arg-type]
        assert hidden.shape == (1, 1, 3)
