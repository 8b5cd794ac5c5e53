"""What a map owes to its picture: edges where the picture has them, and cutouts without a fringe.

Edges are moved by a guided filter (He, Sun, Tang, 2010). Within a small window the probability is taken to be
a line over the picture's luminance, a I + b, fitted by least squares, and each pixel gets the mean of the
lines of all windows that it lies in. Where the picture has an edge, so has the result; where it is flat, the
map stays as it was. What both are worth is in docs/log/2026-11-29.md.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

EPSILON = 1e-4
"""Variance of the luminance (0..1) below which a window counts as flat: deviations of one per cent."""
_BLOCK = 128  # pixels of a side; only blocks that an edge of the map runs through are worked on
_BLURS = ((75, 15), (270, 5))  # so many times as wide is a picture, and pixels at least: 25 and 7 of 1918


def refine(map: NDArray[np.uint16], pixels: Pixels, radius: int) -> NDArray[np.uint16]:
    """Move the edges of a map to those of its picture.

    27 to 42 ms for the edges of a car in 1280x1918, at radii of 3 to 8 (one core of AVX2).

    Args:
        map: uint16 (h, w), a probability over the full range.
        pixels: RGB uint8 (h, w, 3).
        radius: of the windows, 1 or more: as many pixels as one of the network's was enlarged to.

    Returns:
        uint16 (h, w).
    """
    if map.shape != pixels.shape[:2] or radius < 1:
        raise ValueError(f"cannot refine {map.shape} by {pixels.shape} with a radius of {radius}")
    refined: NDArray[np.uint16] = map.copy()
    (height, width), margin = map.shape, 2 * radius
    for top, left in product(range(0, height, _BLOCK), range(0, width, _BLOCK)):
        bottom, right = min(height, top + _BLOCK), min(width, left + _BLOCK)
        y, x = max(0, top - margin), max(0, left - margin)
        around = (slice(y, min(height, bottom + margin)), slice(x, min(width, right + margin)))
        part = map[around]
        if part.min() == part.max():
            continue
        luminance = cast("Pixels", cv2.cvtColor(pixels[around], cv2.COLOR_RGB2GRAY))
        found = _guided(luminance, part, radius)
        refined[top:bottom, left:right] = found[top - y : bottom - y, left - x : right - x]
    return refined


def _guided(luminance: Pixels, map: NDArray[np.uint16], radius: int) -> NDArray[np.uint16]:
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return cast("NDArray[np.float32]", cv2.boxFilter(values, -1, size, borderType=cv2.BORDER_REFLECT))

    guide, values = luminance * np.float32(1 / 255), map * np.float32(1 / 65535)
    centre, level = mean(guide), mean(values)
    slope = (mean(guide * values) - centre * level) / (
        mean(guide * guide) - centre * centre + np.float32(EPSILON)
    )
    lines = mean(slope) * guide + mean(level - slope * centre)
    return cast("NDArray[np.uint16]", np.rint(lines.clip(0, 1) * 65535).astype(np.uint16))


def own_colours(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Take the background out of the colours of what is half transparent, or a cutout has a fringe of it.

    By blurring (Forte, "Approximate Fast Foreground Colour Estimation", 2021): the colours of object and
    background around a pixel are means weighted by opacity, and what these two do not explain is the
    object's own; twice, the second time more narrowly.

    Args:
        pixels: RGB uint8 (h, w, 3), object before background.
        alpha: uint8 (h, w), how much is the object.

    Returns:
        RGB uint8 (h, w, 3): other colours only where alpha is neither 0 nor 255.
    """
    height, width = alpha.shape
    kernels = [max(least, max(height, width) // part | 1) for part, least in _BLURS]
    margin = sum(kernels) // 2 + 1
    found: Pixels = pixels.copy()
    for top, left in product(range(0, height, _BLOCK), range(0, width, _BLOCK)):
        inside = (slice(top, top + _BLOCK), slice(left, left + _BLOCK))
        soft = (alpha[inside] > 0) & (alpha[inside] < 255)
        if not soft.any():
            continue
        y, x = max(0, top - margin), max(0, left - margin)
        around = (slice(y, top + _BLOCK + margin), slice(x, left + _BLOCK + margin))
        share = alpha[around].astype(np.float32)[..., None] / np.float32(255)
        seen = pixels[around].astype(np.float32)
        before = behind = seen
        for kernel in kernels:
            before, behind = _part_colours(seen, before, behind, share, kernel)
        rows, columns = soft.shape
        part = before[top - y : top - y + rows, left - x : left - x + columns]
        found[inside][soft] = np.rint(part[soft]).clip(0, 255).astype(np.uint8)
    return found


def _part_colours(
    seen: NDArray[np.float32],
    before: NDArray[np.float32],
    behind: NDArray[np.float32],
    share: NDArray[np.float32],
    kernel: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours of the object, and of the background blurred, from a guess at both; float32 (h, w, 3)."""

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        blurred = cv2.blur(values, (kernel, kernel), borderType=cv2.BORDER_REFLECT)
        return cast("NDArray[np.float32]", blurred.reshape(values.shape))

    little = np.float32(1e-5)
    there = blur(share)
    smooth = blur(before * share) / (there + little)
    background = blur(behind * (1 - share)) / (1 - there + little)
    return smooth + share * (seen - share * smooth - (1 - share) * background), background
