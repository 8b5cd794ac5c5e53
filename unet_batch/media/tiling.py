"""Cut a picture into overlapping tiles, and blend the maps of the tiles into one.

The overlap-tile strategy of the U-Net paper (Ronneberger and others, 2015, figure 2): what a network says
near the edge of a tile it says without seeing what lies beyond, so neighbours overlap, the outermost part of
each counts nothing, and beyond the picture's own edge the picture is mirrored. Where two tiles overlap they
are averaged with Gaussian weights, so that nothing jumps from one to the other; of class ids, which cannot be
averaged, the tile decides that sees a pixel nearest to its middle.

Weights and owners are products of a row's and a column's, so they are laid out once for each axis, sum to 1,
and nothing is divided in the end. Tiles come row after row from the top, and a row of the map leaves as soon
as no later tile can change it: a band as high as a tile is all that is held.

All classes but `Mosaic` are immutable, and may be used by several threads at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Size

OVERLAP = 0.25
"""Share of a tile's side that it has in common with its neighbour, where nobody asks for another."""
MARGIN = 0.25
"""Share of the overlap that counts nothing, at each edge of a tile."""
_LESS = 8  # times as small as the overlap, of which twice `MARGIN` must not be lost
_DEVIATION = 1 / 8  # of the Gaussian, as a share of the side
_NEXT_TO_NOTHING = 1e-7  # what the margin weighs, so that it still counts where there is nothing else


@dataclass(frozen=True)
class Axis:
    """Where tiles lie along one side of a picture.

    Attributes:
        length: pixels of the picture.
        tile: pixels of a tile.
        starts: first pixel of each tile, ascending; negative, or so far on that the tile reaches beyond the
            end, where the picture is mirrored.
        margin: pixels at each edge of a tile that count only where no other tile reaches.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    margin: int

    @cached_property
    def weights(self) -> tuple[NDArray[np.float32], ...]:
        """Of each tile, float32 (tile,): its share in each pixel, 0 beyond the picture; they sum to 1."""
        places = np.arange(self.tile)
        bell = np.exp(-0.5 * ((places - (self.tile - 1) / 2) / (self.tile * _DEVIATION)) ** 2)
        bell[: self.margin] *= _NEXT_TO_NOTHING
        bell[self.tile - self.margin :] *= _NEXT_TO_NOTHING
        inside = [(places + start >= 0) & (places + start < self.length) for start in self.starts]
        total = np.zeros(self.length)
        for start, seen in zip(self.starts, inside, strict=True):
            total[places[seen] + start] += bell[seen]
        shares = []
        for start, seen in zip(self.starts, inside, strict=True):
            share = np.zeros(self.tile, np.float32)
            share[seen] = bell[seen] / total[places[seen] + start]
            shares.append(share)
        return tuple(shares)

    @cached_property
    def borders(self) -> tuple[int, ...]:
        """Tile n is nearest to the pixels borders[n]..borders[n + 1] of the picture."""
        between = [
            min(self.length, max(0, (one + other + self.tile) // 2))
            for one, other in zip(self.starts, self.starts[1:], strict=False)
        ]
        return (0, *between, self.length)

    def finished(self, number: int) -> int:
        """How many pixels from the first on no tile behind this one reaches."""
        last = number + 1 == len(self.starts)
        return self.length if last else max(0, self.starts[number + 1])


def lay_out(length: int, tile: int, overlap: float) -> Axis:
    """Lay tiles evenly along a side.

    A side no longer than a tile gets one, in the middle. On a longer one the first and the last tile begin
    and end a margin beyond it, and all have at least `overlap` in common with the next, or an eighth of
    that less where it saves a tile: at 2,000 pixels, 25 tiles of 512x512 do instead of 36.

    Args:
        length: pixels of the side, at least 1.
        tile: pixels of a tile, at least 1.
        overlap: share of the tile, 0 up to but not including 1.
    """
    if length < 1 or tile < 1 or not 0 <= overlap < 1:
        raise ValueError(f"cannot lay tiles of {tile} along {length} with an overlap of {overlap}")
    shared = round(overlap * tile)
    margin = int(MARGIN * shared)
    if length <= tile:
        return Axis(length, tile, (-((tile - length) // 2),), margin)
    span = length + 2 * margin - tile  # from the first start to the last
    steps = math.ceil(span / max(1, tile - shared + shared // _LESS))
    return Axis(length, tile, tuple(round(span * step / steps) - margin for step in range(steps + 1)), margin)


@dataclass(frozen=True)
class Grid:
    """The tiles of a picture, numbered row after row."""

    rows: Axis
    columns: Axis

    @property
    def size(self) -> Size:
        """(height, width) of the picture."""
        return self.rows.length, self.columns.length

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(first row, first column) of each tile."""
        return ((top, left) for top in self.rows.starts for left in self.columns.starts)

    def cut(self, pixels: Pixels, place: tuple[int, int], out: Pixels, first: int = 0) -> None:
        """Copy a tile out of a picture, mirrored where it reaches beyond.

        Args:
            pixels: uint8 (height, width, channels), or a band of it that holds all rows of the tile.
            place: (first row, first column) of the tile.
            out: uint8 (H, W, channels), the tile.
            first: row of the picture that `pixels` begin with.
        """
        (top, left), (height, width) = place, self.size
        bottom, right = top + self.rows.tile, left + self.columns.tile
        part = pixels[max(0, top) - first : min(height, bottom) - first, max(0, left) : min(width, right)]
        beyond = (max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width))
        if any(beyond):
            cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REFLECT_101, dst=out)
        else:
            np.copyto(out, part)


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into tiles.

    Attributes:
        tile: (height, width) of a tile: the network's input.
        overlap: share of it that neighbours have in common, 0 up to but not including 1.
        scale: pixels of the network for one of the picture, along each side.
    """

    tile: Size
    overlap: float = OVERLAP
    scale: float = 1.0

    def scaled(self, source: Size) -> Size:
        """Size of a picture of (height, width) pixels as the network sees it; at least 1x1."""
        return max(1, round(source[0] * self.scale)), max(1, round(source[1] * self.scale))

    def grid(self, size: Size) -> Grid:
        """The tiles of a picture that has been scaled to `size`."""
        rows, columns = (
            lay_out(length, tile, self.overlap) for length, tile in zip(size, self.tile, strict=True)
        )
        return Grid(rows, columns)


class Mosaic:
    """Puts maps of tiles together, tile after tile in the order of the grid; for one thread.

    Args:
        grid: of the picture.
        ids: the maps hold class ids, not probabilities.
    """

    def __init__(self, grid: Grid, *, ids: bool) -> None:
        self.grid, self.ids = grid, ids
        self._added = 0
        self._first = 0  # row of the picture that the band begins with
        kind = np.uint8 if ids else np.float32
        self._band = np.zeros((min(grid.rows.tile, grid.rows.length), grid.columns.length), kind)

    def add(self, map: Pixels) -> Pixels:
        """Take in the map of the next tile.

        Args:
            map: uint8 (H, W).

        Returns:
            uint8 (n, width): the rows that are finished, behind those that were returned before; often none.
        """
        rows, columns = self.grid.rows, self.grid.columns
        row, column = divmod(self._added, len(columns.starts))
        self._added += 1
        if self.ids:
            self._own(map, row, column)
        else:
            self._blend(map, row, column)
        if column + 1 < len(columns.starts):
            return self._band[:0].astype(np.uint8)
        return self._release(rows.finished(row))

    def _blend(self, map: Pixels, row: int, column: int) -> None:
        rows, columns = self.grid.rows, self.grid.columns
        (top, bottom), (left, right) = (
            (max(0, axis.starts[n]), min(axis.length, axis.starts[n] + axis.tile))
            for axis, n in ((rows, row), (columns, column))
        )
        inner = (
            slice(top - rows.starts[row], bottom - rows.starts[row]),
            slice(left - columns.starts[column], right - columns.starts[column]),
        )
        share = np.multiply.outer(rows.weights[row][inner[0]], columns.weights[column][inner[1]])
        band = self._band[top - self._first : bottom - self._first, left:right]
        band += share * map[inner]

    def _own(self, map: Pixels, row: int, column: int) -> None:
        rows, columns = self.grid.rows, self.grid.columns
        (top, bottom), (left, right) = (
            axis.borders[n : n + 2] for axis, n in ((rows, row), (columns, column))
        )
        y, x = rows.starts[row], columns.starts[column]
        self._band[top - self._first : bottom - self._first, left:right] = map[
            top - y : bottom - y, left - x : right - x
        ]

    def _release(self, upto: int) -> Pixels:
        """Give away the rows before `upto`, and move the band on."""
        count, left = upto - self._first, len(self._band) - (upto - self._first)
        if not count:
            return self._band[:0].astype(np.uint8)
        done = self._band[:count].copy() if self.ids else cv2.convertScaleAbs(self._band[:count])
        self._first = upto
        # In pieces that do not overlap: a second band, mapped anew each time, costs more than to blend
        for top in range(0, left, count):
            end = min(top + count, left)
            self._band[top:end] = self._band[top + count : end + count]
        self._band[left:] = 0
        return cast("Pixels", done)
