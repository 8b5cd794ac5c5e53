"""Render results for people: overlays, cutouts, comparisons side by side, and the colours of classes.

All functions are pure: they write into none of their inputs and may run in several threads at once. Pictures
stay bytes, but along the edge of a cutout, and cv2 releases the GIL while it works. Times are for 1280x1918,
one core.
"""

from __future__ import annotations

import colorsys
import functools
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.media.refine import own_colours
from unet_batch.types import ClassTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from unet_batch.types import Colour, Pixels, Size

# Half the width of a cutout's soft edge, in probability. An edge of a 160x240 map is 16 pixels wide at
# 1280x1918; 0.3 lets a rim of the background through, 0.15 (about 5 pixels) looks cut out by hand.
RAMP = 0.15

# Violet comes first: hardly any car, road, plant or skin has it, so it stands out from red, white, blue and
# black alike. The others are far apart in OKLab, also as simulated for red- and green-blind eyes: the closest
# two of the first six are 0.16 apart, of all ten 0.10 (the closest two of Okabe and Ito's seven: 0.08).
_COLOURS: tuple[Colour, ...] = (
    (200, 40, 255),  # violet
    (50, 250, 255),  # cyan
    (255, 235, 0),  # yellow
    (20, 155, 140),  # teal
    (255, 60, 15),  # vermilion
    (60, 70, 160),  # indigo
    (255, 100, 215),  # pink
    (205, 185, 100),  # sand
    (140, 55, 15),  # brown
    (0, 175, 255),  # azure
)


def palette(count: int) -> tuple[Colour, ...]:
    """Colours for classes: the same ones in the same order every time.

    Args:
        count: how many.

    Returns:
        RGB colours, all different up to 256. The first ten are distinct for colour-blind eyes too; the rest
        walk around the colour circle by the golden angle, which keeps neighbours in the table far apart.
    """
    colours = list(_COLOURS[:count])
    for step in range(count - len(colours)):
        hue, light = step * 0.618034 % 1.0, (0.62, 0.42, 0.78)[step % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.75)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)


def class_table(names: Sequence[str]) -> ClassTable:
    """A table of these classes in the colours of `palette`; a background among several is black."""
    table = ClassTable(tuple(names), palette(len(names)))
    if (ground := table.background) is None:
        return table
    colours = list(palette(len(names) - 1))
    return ClassTable(table.names, (*colours[:ground], (0, 0, 0), *colours[ground:]))


def visible(pixels: Pixels) -> Pixels:
    """What a person is shown of a picture (h, w, n): RGB uint8 (h, w, 3).

    Three channels as they are. Of others the first three as red, green and blue, of fewer the first one as
    grey, each stretched from its 2nd to its 98th percentile: what satellites and microscopes measure fills a
    small part of the range.
    """
    if pixels.shape[2] == 3:
        return pixels
    shown = [_stretch(pixels[..., number]) for number in range(3 if pixels.shape[2] > 3 else 1)]
    return np.dstack(shown * (3 // len(shown)))


def _stretch(channel: Pixels) -> Pixels:
    counts = np.bincount(channel.reshape(-1), minlength=256).cumsum()
    low, high = (int(np.searchsorted(counts, share * counts[-1])) for share in (0.02, 0.98))
    levels = (np.arange(256) - low) * 255 / max(1, high - low)
    return cast(
        "Pixels", cv2.LUT(np.ascontiguousarray(channel), np.rint(levels).clip(0, 255).astype(np.uint8))
    )


def line_width(height: int, width: int) -> int:
    """Width in pixels of a contour: 1/400 of the shorter side, so it looks the same at every size."""
    return max(1, round(min(height, width) / 400))


def overlay(
    pixels: Pixels, regions: Pixels, classes: ClassTable, alpha: float = 0.45, contour: bool = True
) -> Pixels:
    """Tint the classes in a picture and outline them.

    3 ms for a car, 1 ms without the contour; 2 ms for each class that fills the picture.

    Args:
        pixels: RGB uint8 (h, w, 3).
        regions: uint8 (h, w): for a table of one class its mask, 0 or 255; for several the ids.
        classes: the table. Of several classes, the background and those that are black stay as they are.
        alpha: strength of the tint, 0 (none) to 1 (opaque).
        contour: whether to draw a line of `line_width` along the inside of every region, so that neighbours
            keep theirs.

    Returns:
        RGB uint8 (h, w, 3), a new array.
    """
    out: Pixels = np.array(pixels, order="C")
    line = line_width(*pixels.shape[:2]) if contour else 0
    for region, colour in _regions(regions, classes):
        _draw(out, region, colour, alpha, line)
    return out


def cutout(
    pixels: Pixels, probability: Pixels, threshold: float = 0.5, opacity: Pixels | None = None
) -> Pixels:
    """Cut the class out of a picture, with a soft edge, whose colours are the object's own.

    Args:
        pixels: RGB uint8 (h, w, 3).
        probability: uint8 (h, w), round(255 p).
        threshold: probability of the edge, in (0, 1]: there the alpha crosses one half, so it is 128 or more
            exactly where the mask of that threshold is set.
        opacity: uint8 (h, w), the picture's own, with which `pixels` were composited over white; None where
            it is opaque.

    Returns:
        RGBA uint8 (h, w, 4), straight (not premultiplied) alpha: 0 up to threshold - RAMP, 255 from threshold
        + RAMP on, and a smooth step between, times the picture's own. Colours are the photo's, along the edge
        without what shines through of the background, and black where nothing shows: that makes the PNGs of
        car photos 34 to 52 % smaller, and their encoding 3 to 10 % faster.
    """
    return cutout_by(pixels, opacity_of(probability, threshold), opacity)


def opacity_of(probability: Pixels, threshold: float) -> Pixels:
    """How much of each pixel is the object, uint8 (h, w): the alpha of `cutout`."""
    return cast("Pixels", cv2.LUT(probability, _ramp(threshold)))


def soften(mask: Pixels) -> Pixels:
    """How much of each pixel is the object: a mask, 0 or 255, with a soft edge, 128 or more inside."""
    width = 2 * line_width(*mask.shape) + 1
    soft = cv2.blur(mask, (width, width), borderType=cv2.BORDER_REPLICATE)
    return np.where(mask, np.maximum(soft, 128), np.minimum(soft, 127)).astype(np.uint8)


def cutout_by(pixels: Pixels, alpha: Pixels, opacity: Pixels | None = None) -> Pixels:
    """Cut an object out of a picture, given how much of each pixel it is; else as `cutout`."""
    if opacity is None:
        pixels = own_colours(pixels, alpha)
    else:
        alpha = ((alpha.astype(np.uint16) * opacity + 127) // 255).astype(np.uint8)
        pixels = _off_white(pixels, opacity)
    rgba = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    cv2.insertChannel(alpha, rgba, 3)
    return cast("Pixels", cv2.copyTo(rgba, alpha, np.zeros_like(rgba)))


def _off_white(pixels: Pixels, opacity: Pixels) -> Pixels:
    """The colours of a picture that was composited over white.

    Exact to a level where it is shown again: what rounding has lost of a colour weighs as much as it shows.
    """
    straight: Pixels = pixels.copy()
    soft = (opacity > 0) & (opacity < 255)
    share = opacity[soft].astype(np.float32)[:, None] / 255
    own = 255 - (255 - pixels[soft].astype(np.float32)) / share
    straight[soft] = np.rint(own).clip(0, 255).astype(np.uint8)
    return straight


def shrink(pixels: Pixels, size: Size) -> Pixels:
    """Make a picture smaller, each pixel the mean of those it stands for."""
    return cast("Pixels", cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA))


def on_checkerboard(rgba: Pixels, square: int = 16) -> Pixels:
    """Lay a picture with alpha over a light checkerboard, as image editors show transparency.

    Args:
        rgba: RGBA uint8 (h, w, 4), straight alpha.
        square: side of the squares in pixels.

    Returns:
        RGB uint8 (h, w, 3).
    """
    height, width = rgba.shape[:2]
    dark = (np.arange(height)[:, None] // square + np.arange(width) // square) % 2
    board = np.where(dark, np.uint16(208), np.uint16(244))[..., None]
    alpha = rgba[..., 3:].astype(np.uint16)
    shown: Pixels = ((rgba[..., :3] * alpha + board * (255 - alpha) + 127) // 255).astype(np.uint8)
    return shown


def side_by_side(images: Sequence[Pixels], height: int, gap: int = 8) -> Pixels:
    """Put pictures in a row on white, all at one height.

    Args:
        images: at least one; RGB uint8 (h, w, 3), or grey uint8 (h, w) such as masks.
        height: of the row in pixels.
        gap: white columns between the pictures.

    Returns:
        RGB uint8 (height, sum of the widths and gaps, 3).
    """
    parts: list[Pixels] = []
    for image in images:
        rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
        if parts:
            parts.append(np.full((height, gap, 3), 255, np.uint8))
        parts.append(cast("Pixels", cv2.resize(rgb, (width, height), interpolation=method)))
    return np.concatenate(parts, axis=1)


def _regions(regions: Pixels, classes: ClassTable) -> Iterator[tuple[Pixels, Colour]]:
    """Yield the mask (0 or 255) and the colour of every class that is drawn."""
    if len(classes.names) == 1:
        yield regions, classes.colours[0]
        return
    for id, colour in enumerate(classes.colours):
        if colour != (0, 0, 0) and id != classes.background:
            # True is the byte 1, and -1 is the byte 255.
            yield np.negative(np.equal(regions, np.uint8(id)).view(np.int8)).view(np.uint8), colour


def _draw(out: Pixels, region: Pixels, colour: Colour, alpha: float, line: int) -> None:
    """Tint and outline one region (a mask, 0 or 255) in `out`, touching only its bounding box."""
    left, top, width, height = cv2.boundingRect(region)
    if width == 0:
        return
    margin = line + 1  # what the blur below reads
    rows = slice(max(0, top - margin), top + height + margin)
    columns = slice(max(0, left - margin), left + width + margin)
    part, view = region[rows, columns], out[rows, columns]
    plane = np.empty(view.shape, np.uint8)  # numpy fills three channels in 2.9 ms, cv2 in 0.1 ms
    cv2.rectangle(plane, (0, 0), (view.shape[1], view.shape[0]), colour, cv2.FILLED)
    cv2.copyTo(cv2.addWeighted(view, 1 - alpha, plane, alpha, 0), part, view)
    if not line:
        return
    # Within reach of its box, a blurred mask says how far the edge is; so a table turns it into a line with
    # smooth rims. At the picture's border the mask goes on as it is, and no line is drawn there.
    soft = cv2.blur(part, (2 * line + 1, 2 * line + 1), borderType=cv2.BORDER_REPLICATE)
    # Few pixels are near an edge (1 % for a car), so they are picked out and blended one by one: those
    # neither 0 nor 255.
    row, column = np.divmod(np.flatnonzero(np.subtract(soft, np.uint8(1)) < 254), view.shape[1])
    share = _line(line)[soft[row, column]][:, None]
    mixed = view[row, column] * (255 - share) + np.array(colour, np.uint16) * share
    view[row, column] = (mixed + 127) // 255


@functools.lru_cache(maxsize=16)
def _line(width: int) -> NDArray[np.uint16]:
    """Table (256,) from a blurred mask to the opacity, 0..255, of a line along the inside of its edge.

    The line is `width` pixels wide, and fades over one pixel outside the edge.
    """
    inside = (np.arange(256) / 255 - 0.5) * (2 * width + 1)  # pixels from the edge, for a straight one
    opacity = np.clip(np.minimum(inside + 1, width + 0.5 - inside), 0, 1)
    table: NDArray[np.uint16] = np.rint(255 * opacity).astype(np.uint16)
    return table


@functools.lru_cache(maxsize=16)
def _ramp(threshold: float) -> Pixels:
    """Table (256,) from probability to alpha: a smooth step around the threshold, narrower near 0 and 1."""
    p = np.arange(256) / 255
    half = min(RAMP, threshold, 1 - threshold)
    # A ramp narrower than a byte is a hard edge (and would divide by next to nothing).
    step = (
        np.clip((p - threshold) / (2 * half) + 0.5, 0, 1)
        if 255 * half >= 1
        else np.where(p >= threshold, 1.0, 0.0)
    )
    table: Pixels = np.rint(255 * step * step * (3 - 2 * step)).astype(np.uint8)
    return table
