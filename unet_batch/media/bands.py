"""Resize pictures that come in bands of rows, and give what `geometry` gives of the whole.

A row of the result depends on a few rows of what it is made from. `RowMap` holds those until they have
served, so a picture of any height passes in the memory of a band. Places are counted from the top of the
whole picture: no band begins anew, and none shows.

What is shrunk by whole numbers is the same to the bit; by others, rows are weighted here rather than by cv2,
which knows of no row above the ones that it is given, and a pixel may be another by a level or two. Enlarged,
it may be another by a few of 65535: cv2 counts rows in 24 bits, of which this module has 53.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from unet_batch.media import geometry

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Placement, Size

    Array = TypeVar("Array", NDArray[np.uint8], NDArray[np.uint16])
    # The rows of a span, from the ones that are held, of which the first is at that place
    Make = Callable[[NDArray[Any], int, range], NDArray[Any]]


class RowMap:
    """Makes rows of other rows as they come; for one thread.

    Args:
        rows: how many come.
        into: how many are made.
        needs: which rows one is made of, a range in 0..rows; no row needs less than the one before it.
        make: given rows, the number of the first of them, and the range of those that are to be made, whose
            needs they hold.
    """

    def __init__(self, rows: int, into: int, needs: Callable[[int], range], make: Make) -> None:
        self.rows, self.into = rows, into
        self._needs, self._make = needs, make
        self._held: NDArray[Any] | None = None
        self._first = 0  # number of the first row that is held
        self._made = 0

    def add(self, rows: NDArray[Any]) -> NDArray[Any] | None:
        """Take in the next rows; returns those that can be made now, None while there are none."""
        held = rows if self._held is None else np.concatenate([self._held, rows])
        end, last = self._first + len(held), self._made
        while last < self.into and self._needs(last).stop <= end:
            last += 1
        made = self._make(held, self._first, range(self._made, last)) if last > self._made else None
        self._made = last
        keep = min(end, self._needs(last).start if last < self.into else end)
        self._held, self._first = held[keep - self._first :].copy(), keep
        return made


class Shrinker:
    """Makes of the rows of a picture those of what the network sees, as `geometry.to_network` does.

    Args:
        placement: of a picture that is no smaller than what the network sees, and fills it.

    Raises:
        ValueError: it is smaller, or there is padding.
    """

    def __init__(self, placement: Placement) -> None:
        source, out = placement.source, placement.content
        if out != placement.network or out[0] > source[0] or out[1] > source[1]:
            raise ValueError(f"{source} are not only shrunk to {placement.network}")
        steps = geometry.shrinking_steps(source, placement.covered, out) if source != out else []
        self._steps: list[RowMap] = []
        there = source
        for full, smaller, how in steps:
            spans, resize = (interpolated, interpolate) if how == cv2.INTER_LINEAR else (_averaged, _average)
            needs = partial(_needs, spans, there[0], full[0], smaller[0])
            make = partial(_extend_and_resize, resize, there, full, smaller)
            self._steps.append(RowMap(there[0], smaller[0], needs, make))
            there = smaller

    def add(self, rows: Pixels) -> Pixels | None:
        """Take in the next rows of the picture; returns those that are finished, None if there are none."""
        made: NDArray[Any] | None = rows
        for step in self._steps:
            if made is not None:
                made = step.add(made)
        return made


def _needs(spans: Callable[[int, int, int], range], there: int, full: int, out: int, row: int) -> range:
    """Which of `there` rows, extended to `full` by the last, one of `out` is made of."""
    span = spans(full, out, row)
    return range(min(span.start, there - 1), min(span.stop, there))


def _extend_and_resize(
    resize: Callable[[Size, Size, Pixels, int, range], Pixels],
    there: Size,
    full: Size,
    out: Size,
    held: Pixels,
    first: int,
    rows: range,
) -> Pixels:
    """One of `geometry.shrinking_steps`; see `Make`."""
    at_end = first + len(held) == there[0]
    held = geometry.extend(held, (len(held) + (full[0] - there[0] if at_end else 0), full[1]))
    return resize(full, out, held, first, rows)


def _averaged(there: int, out: int, row: int) -> range:
    """Which of `there` rows an averaged one of `out` is made of."""
    return range(row * there // out, -(-(row + 1) * there // out))


def _average(full: Size, out: Size, held: Pixels, first: int, rows: range) -> Pixels:
    """Shrink by averaging areas; the arguments are those of `interpolate`."""
    if full[0] % out[0] == 0:
        each = full[0] // out[0]
        part = held[rows.start * each - first : rows.stop * each - first]
        return geometry.resize(part, (len(rows), out[1]), cv2.INTER_AREA)
    averages = np.empty((len(rows), *held.shape[1:]), np.float32)
    for place, row in enumerate(rows):
        span = _averaged(full[0], out[0], row)
        weights = np.ones(len(span), np.float32)  # in rows
        weights[0] -= row * full[0] / out[0] - span.start
        weights[-1] -= span.stop - (row + 1) * full[0] / out[0]
        part = held[span.start - first : span.stop - first]
        averages[place] = np.tensordot(weights * np.float32(out[0] / full[0]), part.astype(np.float32), 1)
    if full[1] != out[1]:
        averages = geometry.resize(averages, (len(rows), out[1]), cv2.INTER_AREA)
    return np.rint(averages).clip(0, 255).astype(np.uint8)


def interpolated(there: int, out: int, row: int) -> range:
    """Which of `there` rows one of `out` is interpolated from; see `interpolate`."""
    lower, upper, _ = _between(there, out, row)
    return range(lower, upper + 1)


def interpolate(there: Size, out: Size, held: Array, first: int, rows: range) -> Array:
    """Resize bilinearly, as cv2 does the whole; see `Make`.

    Args:
        there: (height, width) of the whole.
        out: of the whole result.
        held: some of its rows.
        first: the number of the first of them.
        rows: which ones to make.

    Returns:
        (len(rows), width of `out`), with the channels and in the type of `held`.
    """
    if there == out:
        return held[rows.start - first : rows.stop - first]
    wide = held.astype(np.float32)
    if there[1] != out[1]:
        wide = geometry.resize(wide, (len(held), out[1]), cv2.INTER_LINEAR)
    made = np.empty((len(rows), out[1], *held.shape[2:]), held.dtype)
    between = np.empty(made.shape[1:], np.float32)
    for place, row in enumerate(rows):
        lower, upper, share = _between(there[0], out[0], row)
        np.subtract(wide[upper - first], wide[lower - first], out=between)
        between *= np.float32(share)
        between += wide[lower - first]
        made[place] = np.rint(between, out=between)
    return made


def _between(there: int, out: int, row: int) -> tuple[int, int, float]:
    """The two of `there` rows around the middle of one of `out`, and what the lower one of them weighs."""
    place = (row + 0.5) * there / out - 0.5
    upper = int(np.floor(place))
    return max(0, upper), min(there - 1, upper + 1), place - upper
