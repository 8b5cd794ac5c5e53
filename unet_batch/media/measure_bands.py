"""Measure the components of a mask that comes in bands of rows, as `measure` does those of the whole.

The pieces of a component in a band are joined with those that reach the last row before it. What reaches no
further is finished, and handed out: only what the last row holds is kept, however many components there are.
Rows are measured once the two below them are known, on which the edges of a row depend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.media import measure
from unet_batch.media.measure import Pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from unet_batch.media.measure import Floats, Labels, Regions
    from unet_batch.types import Pixels

    Numbers = NDArray[np.int64]

_AROUND = 2  # rows above and below that the edges of a row depend on


@dataclass(frozen=True, eq=False)
class Finished:
    """Components that are whole.

    Attributes:
        classes: of each.
        regions: their figures.
        sums: float64 (maps, n), of the values of each map over each of them.
    """

    classes: Numbers
    regions: Regions
    sums: Floats


class BandMeasurer:
    """Measures the components of a mask whose rows come from the top; for one thread.

    Components come in the order of their last rows, then of their left ends, whatever the bands are.

    Args:
        classes: whose components are wanted, as for `measure.find_objects`.
        maps: how many maps of values there are beside the mask.
    """

    def __init__(self, classes: Sequence[int], maps: int = 0) -> None:
        self._classes = np.array(classes, np.int64)
        self._becomes = np.zeros(256, np.uint8)  # of an id: 0 for what nobody wants
        self._becomes[list(classes)] = np.arange(1, len(classes) + 1)
        self._rows: list[Pixels] = []  # held: the mask, then each map
        self._measured = 0  # of the rows that are held
        self._top = 0  # the row of the picture that these begin with
        # Of the components that reach the last row that is measured
        self._pieces = Pieces(np.zeros((4, 0), np.int64), np.zeros((7 + maps, 0)))
        self._kinds = np.zeros(0, np.int64)
        self._last: Numbers | None = None  # which one has which pixel, from 1

    def add(self, ids: Pixels, *maps: Pixels) -> Finished:
        """Take in the next rows.

        Args:
            ids: uint8 (n, width), the class of every pixel.
            maps: uint8 (n, width) each.

        Returns:
            What is whole now.
        """
        rows = [cast("Pixels", cv2.LUT(ids, self._becomes)), *maps]
        if self._rows:
            rows = [np.concatenate(each) for each in zip(self._rows, rows, strict=True)]
        self._rows = rows
        upto = len(self._rows[0]) - _AROUND
        if upto <= self._measured:
            return self._finished(self._pieces, self._kinds, np.zeros(len(self._kinds), np.bool_))
        return self._measure(upto)

    def finish(self) -> Finished:
        """What is whole now that all rows have come."""
        if self._rows and len(self._rows[0]) > self._measured:
            return self._measure(len(self._rows[0]), at_end=True)
        return self._finished(self._pieces, self._kinds, np.ones(len(self._kinds), np.bool_))

    def _measure(self, upto: int, *, at_end: bool = False) -> Finished:
        """Measure the rows that are held before one of them, and join them to what was open."""
        labels, kinds, pieces = self._pieces_of(self._measured, upto)
        open = len(self._kinds)
        kinds = np.concatenate([self._kinds, kinds])
        pieces = Pieces(
            np.concatenate([self._pieces.boxes, pieces.boxes], 1),
            np.concatenate([self._pieces.sums, pieces.sums], 1),
        )
        numbers = np.arange(len(kinds))
        if self._last is not None:
            _unite(numbers, _touching(self._last, np.where(labels[0] > 0, labels[0] + open, 0), kinds))
        _, firsts, numbers = np.unique(numbers, return_index=True, return_inverse=True)
        pieces, kinds = pieces.joined(numbers, len(firsts)), kinds[firsts]

        ends = np.where(labels[-1] > 0, labels[-1] + open, 0)
        ends[ends > 0] = 1 + numbers[ends[ends > 0] - 1]
        goes_on = np.zeros(len(kinds), np.bool_)
        goes_on[ends[ends > 0] - 1] = not at_end
        self._last = np.concatenate([[0], np.cumsum(goes_on)])[ends]
        self._let_go(upto)
        self._pieces = Pieces(pieces.boxes[:, goes_on], pieces.sums[:, goes_on])
        self._kinds = kinds[goes_on]
        return self._finished(pieces, kinds, ~goes_on)

    def _pieces_of(self, first: int, upto: int) -> tuple[Labels, Numbers, Pieces]:
        """The components of some of the rows that are held: labels, kinds, and what adds up."""
        mask = self._rows[0]
        objects = measure.find_objects(mask[first:upto], range(1, len(self._classes) + 1))
        labels, count = objects.labels, len(objects.classes)
        pieces = measure.pieces_of(labels)
        rows, columns, lengths = measure.edges_of(mask)
        inside = (rows >= first) & (rows < upto)
        at = labels[rows[inside] - first, columns[inside]] - 1
        more = [np.bincount(at, lengths[inside], count).astype(np.float64)]
        more += [measure.sum_of(labels, map[first:upto], count) for map in self._rows[1:]]
        top = self._top + first
        boxes = pieces.boxes + np.array([[0], [top], [0], [top]])
        return labels, objects.classes.astype(np.int64), Pieces(boxes, np.concatenate([pieces.sums, more]))

    def _let_go(self, upto: int) -> None:
        """Keep of the rows those that have not been measured, and those above that their edges depend on."""
        gone = max(0, upto - _AROUND)
        self._rows = [each[gone:].copy() for each in self._rows]
        self._top += gone
        self._measured = upto - gone

    def _finished(self, pieces: Pieces, kinds: Numbers, which: NDArray[np.bool_]) -> Finished:
        """Some components, in order."""
        left, top, _, bottom = pieces.boxes[:, which]
        order = np.flatnonzero(which)[np.lexsort((kinds[which], top, left, bottom))]
        pieces = Pieces(pieces.boxes[:, order], pieces.sums[:, order])
        return Finished(self._classes[kinds[order] - 1], pieces.regions(pieces.sums[6]), pieces.sums[7:])


def _unite(numbers: Numbers, pairs: Numbers) -> None:
    """Give what is connected by pairs one number, in place."""
    parents: dict[int, int] = {}

    def root(number: int) -> int:
        while (parent := parents.get(number, number)) != number:
            parents[number] = number = parents.get(parent, parent)  # halves the way of the next one
        return number

    for one, other in pairs.tolist():
        first, second = sorted((root(one), root(other)))
        parents[second] = first
    for number in list(parents):
        numbers[number] = root(number)


def _touching(above: Numbers, below: Numbers, kinds: Numbers) -> Numbers:
    """Pairs of components, counted from 0, that touch from one row to the next: int64 (n, 2).

    Args:
        above, below: int64 (width,), which one has which pixel, from 1.
        kinds: of each; only those of the same touch.
    """
    width, found = len(above), []
    for shift in (-1, 0, 1):
        one = above[max(0, shift) : width + min(0, shift)]
        other = below[max(0, -shift) : width + min(0, -shift)]
        both = np.flatnonzero((one > 0) & (other > 0))
        pairs = np.stack([one[both], other[both]], 1) - 1
        found.append(pairs[np.append(True, (pairs[1:] != pairs[:-1]).any(1))[: len(pairs)]])  # each run once
    pairs = np.concatenate(found)
    touching: Numbers = pairs[kinds[pairs[:, 0]] == kinds[pairs[:, 1]]]
    return touching
