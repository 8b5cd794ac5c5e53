"""A legend in the corner of a picture: which colour is which class."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.media.images.lettering import draw_text

if TYPE_CHECKING:
    from collections.abc import Collection

    from unet_batch.types import ClassTable, Pixels

MOST = 16
"""Lines of a legend: of more classes those in the picture are named, as many as fit."""
_PANEL, _SHARE = 24, 0.72  # its grey, and how much of it shows
_INK = 240


def draw_legend(
    pixels: Pixels,
    classes: ClassTable,
    among: Collection[int] | None = None,
    present: Collection[int] | None = None,
) -> Pixels:
    """Write names and colours of the classes into the lower left corner; where it is too small, nothing.

    Args:
        pixels: RGB uint8 (h, w, 3).
        classes: of which those that an overlay tints are named: neither the background nor what is black.
        among: ids of those that may be named; None for all.
        present: ids of those in the picture, which decide where there are more than `MOST`.

    Returns:
        RGB uint8 (h, w, 3): a new array, or `pixels` themselves.
    """
    shown = [
        id
        for id, colour in enumerate(classes.colours)
        if len(classes.names) > 1 and colour != (0, 0, 0) and id != classes.background
        if among is None or id in among
    ]
    if len(shown) > MOST:
        shown = [id for id in shown if present is None or id in present][:MOST]
    height, width = pixels.shape[:2]
    lettering = round(min(min(height, width) / 36, 0.45 * height / (1.5 * max(1, len(shown)) + 1)))
    if not shown or lettering < 8:
        return pixels
    lines = tuple((classes.names[id], classes.colours[id]) for id in shown)
    panel, opacity = _panel(lines, min(lettering, 40))
    gap = lettering // 2
    if panel.shape[1] + 2 * gap > 0.6 * width:
        return pixels
    out: Pixels = np.array(pixels, order="C")
    bottom = height - gap
    view = out[bottom - panel.shape[0] : bottom, gap : gap + panel.shape[1]]
    mixed = view * (255 - opacity) + panel.astype(np.uint16) * opacity
    view[:] = (mixed + 127) // 255
    return out


@functools.lru_cache(maxsize=32)
def _panel(
    lines: tuple[tuple[str, tuple[int, int, int]], ...], lettering: int
) -> tuple[Pixels, np.ndarray[tuple[int, ...], np.dtype[np.uint16]]]:
    """The panel, RGB uint8 (h, w, 3), and its opacity, uint16 (h, w, 1) of 0 to 255."""
    words = [draw_text(name if len(name) <= 32 else name[:31] + "\u2026", lettering) for name, _ in lines]
    row, edge = round(1.5 * lettering), lettering // 2
    first = edge + round(1.5 * lettering)
    width = first + max(word.shape[1] for word in words) + edge
    panel = np.full((row * len(lines) + 2 * edge, width, 3), _PANEL, np.uint8)
    opacity = np.full((*panel.shape[:2], 1), round(255 * _SHARE), np.uint16)
    for number, (word, (_, colour)) in enumerate(zip(words, lines, strict=True)):
        top = edge + number * row
        swatch = slice(top + (row - lettering) // 2, top + (row + lettering) // 2)
        panel[swatch, edge : edge + lettering] = colour
        opacity[swatch, edge : edge + lettering] = 255
        high = min(word.shape[0], row)
        at = slice(top + (row - high) // 2, top + (row - high) // 2 + high)
        across = slice(first, first + word.shape[1])
        ink = word[:high].astype(np.uint16)[..., None]
        panel[at, across] = (panel[at, across] * (255 - ink) + _INK * ink) // 255
        opacity[at, across] = np.maximum(opacity[at, across], ink)
    return panel, opacity
