"""Edges of a map move to those of the picture, and nothing else moves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.media import refine as refine_module
from unet_batch.media import render
from unet_batch.media.refine import own_colours, refine


def disc(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - height / 2, x - width / 2) < radius


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, 2)


def coarse(truth: np.ndarray, step: int) -> np.ndarray:
    """What a network with pixels `step` wide would know of it, enlarged."""
    height, width = truth.shape
    small = cv2.resize(
        truth.astype(np.float32), (width // step, height // step), interpolation=cv2.INTER_AREA
    )
    wide = cv2.resize(np.rint(small * 255), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.rint(wide * 257), np.uint16)


def test_an_edge_moves_to_that_of_the_picture() -> None:
    truth = disc(300, 400, 90)
    truth[140:160] = True  # a bar, whose corners a coarse map rounds off
    map = coarse(truth, 12)
    refined = refine(map, grey(np.where(truth, 190, 60)), 12)
    before, after = ((values >= 32768) != truth for values in (map, refined))
    assert after.sum() < 0.35 * before.sum()


def test_a_flat_picture_moves_nothing_far() -> None:
    truth = disc(200, 200, 60)
    map = coarse(truth, 8)
    refined = refine(map, grey(np.full(truth.shape, 128)), 8)
    moved = (refined >= 32768) != (map >= 32768)
    assert moved.sum() < 0.02 * truth.sum()


@settings(max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.integers(0, 5))
def test_blocks_leave_no_trace(height: int, width: int, radius: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    map = random.integers(0, 65536, (height, width), np.uint16)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    whole = refine(map, pixels, radius)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine_module, "_BLOCK", 23)
        parts = refine(map, pixels, radius)
    assert np.abs(whole.astype(int) - parts).max() <= 65  # a quarter of a level of 255: rounding


@pytest.mark.parametrize("value", [0, 40000, 65535])
def test_what_is_the_same_all_over_stays(value: int) -> None:
    map = np.full((70, 50), value, np.uint16)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    np.testing.assert_array_equal(refine(map, pixels, 4), map)


def test_neither_argument_is_written_to() -> None:
    map = coarse(disc(60, 60, 20), 6)
    pixels = grey(disc(60, 60, 22) * 200)
    map.setflags(write=False)
    pixels.setflags(write=False)
    assert refine(map, pixels, 6) is not map


@pytest.mark.parametrize(("shape", "radius"), [((5, 6), 2), ((5, 5), 0)])
def test_sizes_that_do_not_fit_are_a_bug(shape: tuple[int, int], radius: int) -> None:
    with pytest.raises(ValueError, match="cannot refine"):
        refine(np.zeros((5, 5), np.uint16), np.zeros((*shape, 3), np.uint8), radius)


class TestOwnColours:
    @staticmethod
    def composite(size: tuple[int, int] = (300, 400)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An object, the picture of it before another background, and how much of each pixel it is."""
        y, x = np.mgrid[: size[0], : size[1]]
        own = np.stack((180 + 40 * np.sin(x / 30), 60 + 0.2 * y, 90 + 0 * x), 2)
        behind = np.stack((20 + 0 * x, 200 + 20 * np.cos(y / 25), 40 + 0 * x), 2)
        share = cv2.GaussianBlur(disc(*size, 90).astype(np.float32), (0, 0), 2.5)
        alpha = np.rint(255 * share).astype(np.uint8)
        part = alpha[..., None] / 255
        return own, np.rint(part * own + (1 - part) * behind).astype(np.uint8), alpha

    def test_the_background_is_taken_out_of_the_edge(self) -> None:
        own, picture, alpha = self.composite()
        edge = (alpha > 20) & (alpha < 235)
        before, after = (
            np.abs(seen.astype(float) - own)[edge].mean() for seen in (picture, own_colours(picture, alpha))
        )
        assert after < 0.4 * before

    def test_what_is_all_object_or_none_of_it_stays(self) -> None:
        _, picture, alpha = self.composite()
        found = own_colours(picture, alpha)
        whole = (alpha == 0) | (alpha == 255)
        np.testing.assert_array_equal(found[whole], picture[whole])
        np.testing.assert_array_equal(own_colours(picture, np.full_like(alpha, 255)), picture)

    def test_blocks_leave_no_trace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, picture, alpha = self.composite()
        whole = own_colours(picture, alpha)
        monkeypatch.setattr(refine_module, "_BLOCK", 37)
        assert np.abs(own_colours(picture, alpha).astype(int) - whole).max() <= 1

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3)])
    def test_small_pictures(self, size: tuple[int, int]) -> None:
        picture, alpha = np.full((*size, 3), 90, np.uint8), np.full(size, 100, np.uint8)
        assert own_colours(picture, alpha).shape == (*size, 3)

    def test_a_cutout_has_no_fringe(self) -> None:
        own, picture, alpha = self.composite()
        rgba = render.cutout(picture, alpha)
        edge = (rgba[..., 3] > 20) & (rgba[..., 3] < 235)
        # Where the ramp is narrower than the picture's own edge, some of the background stays
        assert (
            np.abs(rgba[..., :3].astype(float) - own)[edge].mean()
            < np.abs(picture.astype(float) - own)[edge].mean()
        )
