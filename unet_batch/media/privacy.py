"""Make objects unrecognisable: blurred, or in squares of one colour, by how large each of them is.

What is guaranteed is how little is left, whatever the picture holds: `hide` says it in numbers. That is no
encryption: who knows what to expect, such as the few thousand number plates of a place, can blur all of them
and compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

CELLS = 4
"""Squares that show the shorter side of an object's upright box at most, beside the one it begins in."""
FLOOR = 64
"""No square is smaller than this part of the picture's shorter side: a mask in crumbs must hide, too."""
_LEAST = 4  # pixels of a square
_FADE = 4  # units beyond the rim in which a blur fades out
_STEPS = 8  # of a blurred picture in a square's side: finer ones could not be told from these


def hide(pixels: Pixels, mask: Pixels, how: Literal["blur", "pixelate"]) -> Pixels:
    """Make what a mask marks unrecognisable.

    A square's side is the smallest power of two that is a `CELLS`-th of the shorter side of the object's
    upright box, and a `FLOOR`-th of the picture's. What is nearer together than a `FLOOR`-th is one object. A
    rim around it of that width is hidden as well: a mask may be a little too small.

    "pixelate": the picture lies in squares of that side, and each that the object or its rim touches has one
    colour, the mean. "blur": a Gaussian whose standard deviation is half a side, an eighth of the object's
    shorter side or more. No two neighbouring pixels of the object differ by more than 102 over the deviation,
    and one for rounding, of 255 levels; stripes of which the shorter side holds four pairs or more keep less
    than 1 % of their contrast.

    Args:
        pixels: RGB uint8 (h, w, 3).
        mask: uint8 (h, w), 255 where the object is, else 0.
        how: "blur" or "pixelate".

    Returns:
        RGB uint8 (h, w, 3), a new array: the picture's own pixels elsewhere.
    """
    out: Pixels = np.array(pixels, order="C")
    for side, where, unit in _levels(mask):
        if how == "pixelate":
            _pixelate(out, pixels, side, where, unit)
        else:
            _blur(out, pixels, side, where, unit)
    return out


def _levels(mask: Pixels) -> Iterator[tuple[int, Pixels, int]]:
    """Yield the sides of squares that are needed, ascending, and where: with a rim, in `unit` pixels.

    The grid is the same in every picture of a size, so that squares stay where they are from frame to frame.
    """
    unit = _power(max(_LEAST, min(mask.shape) / FLOOR))
    marked = cv2.copyMakeBorder(_pool(mask, unit), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    square = np.ones((3, 3), np.uint8)
    rim = cast("Pixels", cv2.dilate(marked, square))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(rim, connectivity=8)
    sides = np.zeros(count, np.int64)
    for label in range(1, count):
        width, height = (int(boxes[label, at]) for at in (cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT))
        sides[label] = _power(max(unit, (min(width, height) - 2) * unit / CELLS))
    for side in sorted({int(side) for side in sides[1:]}):
        where = np.where(sides[labels] == side, np.uint8(255), np.uint8(0))[1:-1, 1:-1]
        yield side, np.ascontiguousarray(where), unit


def _power(least: float) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(0, int(np.ceil(np.log2(least))))


def _pool(mask: Pixels, side: int) -> Pixels:
    """The largest value in each square, uint8 (ceil(h / side), ceil(w / side))."""
    rows = np.maximum.reduceat(mask, range(0, mask.shape[0], side), axis=0)
    return np.ascontiguousarray(np.maximum.reduceat(rows, range(0, mask.shape[1], side), axis=1))


def _padded(pixels: Pixels, side: int) -> Pixels:
    """The picture with its last rows and columns repeated, up to a multiple of `side`."""
    below, right = (-pixels.shape[axis] % side for axis in (0, 1))
    return cast("Pixels", cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE))


def _region(
    where: Pixels, unit: int, side: int, shape: tuple[int, ...], around: int = 0
) -> tuple[slice, slice]:
    """The rows and columns, from multiples of `side` on, that hold `where` and so many units around it."""
    left, top, width, height = cv2.boundingRect(where)
    rows, columns = (
        slice(
            max(0, (first - around) * unit // side * side),
            min(end, -(-(first + count + around) * unit // side) * side),
        )
        for first, count, end in ((top, height, shape[0]), (left, width, shape[1]))
    )
    return rows, columns


def _pixelate(out: Pixels, pixels: Pixels, side: int, where: Pixels, unit: int) -> None:
    touched = _pool(where, side // unit)
    rows, columns = _region(where, unit, side, out.shape)
    view = out[rows, columns]
    part = _padded(pixels[rows, columns], side)
    size = part.shape[1] // side, part.shape[0] // side
    means = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    cells = touched[rows.start // side :, columns.start // side :][: size[1], : size[0]]

    def enlarge(small: NDArray[np.uint8]) -> Pixels:
        whole = cv2.resize(small, part.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return cast("Pixels", np.ascontiguousarray(whole[: view.shape[0], : view.shape[1]]))

    cv2.copyTo(enlarge(cast("Pixels", means)), enlarge(cells), view)


def _blur(out: Pixels, pixels: Pixels, side: int, where: Pixels, unit: int) -> None:
    rows, columns = _region(where, unit, side, out.shape, _FADE)
    view = out[rows, columns]
    step = max(1, side // _STEPS)
    # As far around as the Gaussian reaches, so that the part is blurred as the whole would be
    reach = 2 * side
    top, left = max(0, rows.start - reach), max(0, columns.start - reach)
    part = _padded(pixels[top : rows.stop + reach, left : columns.stop + reach], step)
    size = part.shape[1] // step, part.shape[0] // step
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), side / 2 / step, borderType=cv2.BORDER_REFLECT)
    whole = cv2.resize(small, part.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    soft = whole[rows.start - top :, columns.start - left :][: view.shape[0], : view.shape[1]]
    # All of `where` and the units beside it, of which its pixels are interpolated, and less and less beyond
    around = cv2.dilate(where, np.ones((2 * _FADE - 1, 2 * _FADE - 1), np.uint8))
    around = cv2.blur(around, (2 * _FADE - 3, 2 * _FADE - 3), borderType=cv2.BORDER_REPLICATE)
    full = cv2.resize(
        around, (around.shape[1] * unit, around.shape[0] * unit), interpolation=cv2.INTER_LINEAR
    )
    weight = full[rows, columns][..., None].astype(np.uint16)
    view[:] = ((view * (255 - weight) + soft * weight + 127) // 255).astype(np.uint8)
