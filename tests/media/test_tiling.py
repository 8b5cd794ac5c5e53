"""Tiles cover every pixel, and their maps blend into what the whole picture would have given."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.media.tiling import Axis, Mosaic, Tiling, lay_out

sides = st.integers(1, 90)
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])


def put_together(tiling: Tiling, pictures: np.ndarray, answer: Any, *, ids: bool = False) -> np.ndarray:
    """The map of a picture (height, width, 3), each tile answered by itself."""
    grid = tiling.grid((pictures.shape[0], pictures.shape[1]))
    mosaic, rows = Mosaic(grid, ids=ids), []
    for place in grid:
        tile = np.empty((*tiling.tile, 3), np.uint8)
        grid.cut(pictures, place, tile)
        rows.append(mosaic.add(answer(tile)))
    return np.concatenate(rows)


def first_channel(tile: np.ndarray) -> np.ndarray:
    return tile[..., 0]


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class TestAxis:
    @given(sides, sides, overlaps)
    def test_shares_sum_to_one_everywhere(self, length: int, tile: int, overlap: float) -> None:
        axis = lay_out(length, tile, overlap)
        total = np.zeros(length + 4 * tile)
        for start, share in zip(axis.starts, axis.weights, strict=True):
            total[start + 2 * tile : start + 3 * tile] += share
        np.testing.assert_allclose(total[2 * tile : 2 * tile + length], 1, atol=1e-5)
        assert not total[: 2 * tile].any()
        assert not total[2 * tile + length :].any()

    @given(sides, sides, overlaps)
    def test_neighbours_have_what_was_asked_for_in_common(
        self, length: int, tile: int, overlap: float
    ) -> None:
        axis = lay_out(length, tile, overlap)
        steps = np.diff(axis.starts)
        assert (steps > 0).all()
        shared = round(overlap * tile)
        assert (steps <= max(1, tile - shared + shared // 8)).all()
        assert (tile - steps >= min(2 * axis.margin, tile - 1)).all(), "what counts nothing has a neighbour"

    def test_a_little_less_is_in_common_where_that_saves_a_tile(self) -> None:
        assert len(lay_out(2000, 512, 0.25).starts) == 5
        assert len(lay_out(2048, 512, 0.25).starts) == 5
        assert len(lay_out(2050, 512, 0.25).starts) == 6

    @given(sides, sides, overlaps)
    def test_each_pixel_has_one_owner_that_sees_it(self, length: int, tile: int, overlap: float) -> None:
        axis = lay_out(length, tile, overlap)
        assert axis.borders[0] == 0
        assert axis.borders[-1] == length
        for number, start in enumerate(axis.starts):
            first, end = axis.borders[number : number + 2]
            assert first <= end
            assert first == end or start <= first
            assert end <= start + tile

    def test_the_margin_counts_only_where_nothing_else_reaches(self) -> None:
        axis = lay_out(200, 64, 0.5)
        assert axis.margin == 8
        assert axis.starts[0] == -8
        for share in axis.weights[1:]:
            assert share[: axis.margin].max() < 1e-5
        assert lay_out(64, 64, 0.5).weights[0].min() == 1

    def test_a_side_no_longer_than_a_tile_lies_in_its_middle(self) -> None:
        assert lay_out(10, 64, 0.25).starts == (-27,)
        assert lay_out(64, 64, 0.25).starts == (0,)

    @pytest.mark.parametrize(
        ("length", "tile", "overlap"), [(0, 8, 0.1), (8, 0, 0.1), (8, 8, 1.0), (8, 8, -0.1)]
    )
    def test_nonsense_is_refused(self, length: int, tile: int, overlap: float) -> None:
        with pytest.raises(ValueError, match="cannot lay tiles"):
            lay_out(length, tile, overlap)

    def test_nothing_is_finished_that_another_tile_reaches(self) -> None:
        axis = Axis(100, 40, (-4, 30, 64), 4)
        assert [axis.finished(number) for number in range(3)] == [30, 64, 100]


class TestMosaic:
    @settings(max_examples=60)
    @given(sides, sides, st.integers(1, 40), st.integers(1, 40), overlaps, st.booleans())
    def test_what_depends_on_its_own_pixel_comes_back_as_it_was(
        self, height: int, width: int, tile_height: int, tile_width: int, overlap: float, ids: bool
    ) -> None:
        picture = random_picture(height, width)
        tiling = Tiling((tile_height, tile_width), overlap)
        # A tile of a picture smaller than itself is mirrored over and over; what is inside stays itself
        found = put_together(tiling, picture, first_channel, ids=ids)
        np.testing.assert_array_equal(found, picture[..., 0])

    @pytest.mark.parametrize("size", [(150, 210), (64, 64), (65, 333), (40, 500)])
    def test_a_network_that_sees_no_further_than_the_margin_gives_what_it_would_on_the_whole(
        self, size: tuple[int, int]
    ) -> None:
        def blur(pixels: np.ndarray) -> np.ndarray:  # 17 wide: 8 to each side, black beyond a tile
            return cv2.GaussianBlur(pixels[..., 0], (17, 17), 4, borderType=cv2.BORDER_CONSTANT)

        picture = random_picture(*size)
        mirrored = cv2.copyMakeBorder(picture, 32, 32, 32, 32, cv2.BORDER_REFLECT_101)
        whole = blur(mirrored)[32:-32, 32:-32].astype(int)
        found = put_together(Tiling((64, 64), 0.5), picture, blur).astype(int)
        inside = np.zeros(size, bool)
        for axis, side in enumerate(size):  # a side that one tile covers has no neighbour to see more
            keep = slice(8, side - 8) if side <= 64 else slice(None)
            where = np.zeros(side, bool)
            where[keep] = True
            inside = where[:, None] & np.ones(size, bool) if axis == 0 else inside & where
        assert np.abs(found - whole)[inside].max() <= 1

    def test_a_constant_picture_stays_constant(self) -> None:
        picture = np.full((131, 173, 3), 97, np.uint8)
        assert (put_together(Tiling((48, 32), 0.25), picture, first_channel) == 97).all()

    def test_there_is_no_seam_where_tiles_disagree(self) -> None:
        numbers = iter(range(1000))

        def disagree(tile: np.ndarray) -> np.ndarray:
            return np.full(tile.shape[:2], 100 if next(numbers) % 2 else 140, np.uint8)

        found = put_together(Tiling((64, 64), 0.5), np.zeros((64, 400, 3), np.uint8), disagree).astype(int)
        assert found.min() <= 101
        assert found.max() >= 139
        assert np.abs(np.diff(found, axis=1)).max() <= 6  # of 40, one step after the other

    def test_rows_leave_as_soon_as_they_are_finished(self) -> None:
        grid = Tiling((32, 32), 0.25).grid((300, 100))
        mosaic = Mosaic(grid, ids=False)
        height = [len(mosaic.add(np.zeros((32, 32), np.uint8))) for _ in grid]
        columns = len(grid.columns.starts)
        assert sum(height) == 300
        assert all(rows <= 32 for rows in height)
        assert all(rows > 0 for rows in height[columns - 1 :: columns])
        assert mosaic._band.shape == (32, 100)


class TestTiling:
    def test_the_scale_is_that_of_a_side(self) -> None:
        assert Tiling((8, 8), scale=0.5).scaled((1280, 1919)) == (640, 960)
        assert Tiling((8, 8), scale=0.01).scaled((10, 10)) == (1, 1)
