"""Fit pictures into the network's input (letterbox), and resize its maps back to the pictures.

A picture keeps its aspect ratio: it is scaled until it touches the network's input on one axis, centred on
the other, and the rest is grey ("letterbox"). Training and inference place pictures through this module, so
both see the same thing.

Every resize maps pixel areas onto pixel areas (half-pixel centres, as cv2.resize does), so nothing shifts on
the way there and back. A JPEG decoded at 1/4 has a quarter of its columns, rounded up: 480 for 1918, the last
of which reaches two columns past the picture. So a large picture is placed as the next whole multiples of the
step at which it may be decoded (1920 columns): these are its *covered* size, its last row and column repeated
where there are no pixels. Maps come back at the covered size, and are cut to the picture's.

All functions are pure and may run in several threads at once; cv2 releases the GIL while it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import cv2
import numpy as np

from unet_batch.media.scratch import scratch
from unet_batch.types import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Size

    Array = TypeVar("Array", NDArray[np.uint8], NDArray[np.uint16])
    Values = TypeVar("Values", NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float32])

# The grey of the padding, 0..255: near the mean of photographs (0.45), so that after normalisation it is
# close to zero.
PAD_VALUE = 114

OVERSAMPLING = 2
"""A photo is decoded at a reduced scale only while it stays this many times as large as the network sees it.

Dice against the masks of a full decode, 24 photos: 0.9996 at 4, 0.9993 at 2, 0.998 at 1.6, 0.997 at 1. Noise
of one level gives 0.9995.
"""

_STEPS = (8, 4, 2)
_TOGETHER = 4  # channels: of more, cv2 averages no areas by factors that are not whole


def reduction(size: Size, at_least: Size) -> int:
    """Choose 8, 4, 2 or 1: the largest at which ceil(size / step) is at least (height, width) `at_least`.

    libjpeg also knows 3/8, 5/8, 6/8 and 7/8, but without SIMD: 3.4, 6.4, 8.2 and 11 ms where 1/1 takes 3.2.
    """
    for step in _STEPS:
        if -(-size[0] // step) >= at_least[0] and -(-size[1] // step) >= at_least[1]:
            return step
    return 1


def place(source: Size, network: Size, *, stretch: bool = False, covered: Size | None = None) -> Placement:
    """Decide where a picture of size `source` lies inside an input of size `network`.

    Args:
        source: (height, width) of the picture in pixels, both at least 1.
        network: (height, width) of the network's input in pixels, both at least 1.
        stretch: fill it, whatever becomes of the aspect ratio.
        covered: of the picture's placement in another network's input, so that both show the same; None
            chooses.

    Returns:
        The placement: centred, with an odd row or column of padding at the bottom or right. A picture that
        would miss the network's size by at most one pixel fills it without padding (1280x1912 in 160x240:
        239 columns).
    """
    height, width = source
    net_height, net_width = network
    if min(height, width, net_height, net_width) < 1:
        raise ValueError(
            f"sizes must be at least 1x1, got source {height}x{width}, network {net_height}x{net_width}"
        )
    if covered is None:
        step = reduction(source, (OVERSAMPLING * net_height, OVERSAMPLING * net_width))
        covered = (-(-height // step) * step, -(-width // step) * step)
    height, width = covered
    # Round half up on integers: floats would decide 0.5 by chance. One axis is met exactly, the other is
    # `net * side / other side`, e.g. net_height * width / height columns.
    if net_height * width <= net_width * height:  # the height is the tight axis
        content = (net_height, max(1, (2 * net_height * width + height) // (2 * height)))
    else:
        content = (max(1, (2 * net_width * height + width) // (2 * width)), net_width)
    if stretch or (net_height - content[0] <= 1 and net_width - content[1] <= 1):
        # A padding of one pixel would cost more (an artificial edge beside the picture) than this stretch of
        # under 1 %.
        content = network
    top, left = (net_height - content[0]) // 2, (net_width - content[1]) // 2
    return Placement(
        source=(source[0], source[1]),
        network=(net_height, net_width),
        top=top,
        left=left,
        content=content,
        covered=covered,
    )


def cover(values: Array, placement: Placement) -> Array:
    """Extend what has the picture's size to the covered one, by its last row and column.

    Args:
        values: uint8 or uint16, (height, width) or (height, width, channels) at the source's size.
        placement: how the picture is put into the network's input.

    Returns:
        `values` itself where the two sizes are the same.
    """
    return extend(values, placement.covered)


def to_network(
    pixels: Pixels, placement: Placement, out: Pixels | None = None, *, channels: int | None = None
) -> Pixels:
    """Resize a picture into the network's input, and pad it.

    Args:
        pixels: uint8 (h, w, n), the whole picture: at the source's size, or at ceil(size / step) for a
            step of 2, 4 or 8, as a JPEG is decoded at a reduced scale: that goes straight to its place. Any
            other size is stretched over the covered one.
        placement: where it goes.
        out: uint8 (H, W, channels) to write the result to, whatever it holds; None makes a new array.
        channels: of the result: as many as `pixels` have, or 1 for the luminance of RGB; None takes those of
            `out`, or of `pixels`.

    Returns:
        uint8 (H, W, channels) at the network's size, padded with PAD_VALUE: `out`, if given.
    """
    if channels is None:
        channels = pixels.shape[2] if out is None or out.ndim < 3 else out.shape[2]
    if channels == 1 and pixels.shape[2] == 3:
        grey = luminance(to_network(pixels, placement))
        if out is None:
            return grey
        np.copyto(out, grey)
        return out
    if channels != pixels.shape[2]:
        raise ValueError(f"a picture of {pixels.shape[2]} channels for a network of {channels}")
    shape = (*placement.network, channels)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.dtype != np.uint8 or out.shape != shape:
        # cv2 would write elsewhere, silently
        raise ValueError(f"out must be uint8 {shape}, got {out.dtype} {out.shape}")
    content = content_of(out, placement)
    if _shrinks(pixels, placement.content):
        _shrink(pixels, content, _at_step(pixels, placement))
    else:
        cv2.resize(pixels, placement.content[::-1], dst=content, interpolation=cv2.INTER_LINEAR)
    bottom, right = placement.top + placement.content[0], placement.left + placement.content[1]
    out[: placement.top] = out[bottom:] = out[:, : placement.left] = out[:, right:] = PAD_VALUE
    return out


def luminance(pixels: Pixels) -> Pixels:
    """What is left of RGB (h, w, 3) without its colours, as Rec. 601 weighs them: uint8 (h, w, 1)."""
    return cast("Pixels", cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[..., None]


def resize(values: Values, size: Size, interpolation: int) -> Values:
    """Resize (h, w) or (h, w, n) with cv2, which averages areas of four channels at most; keeps all axes."""
    if values.ndim == 2 or values.shape[2] <= _TOGETHER:
        resized = cv2.resize(values, size[::-1], interpolation=interpolation)
        return cast("Values", resized.reshape(*size, *values.shape[2:]))
    parts = [
        resize(np.ascontiguousarray(values[..., first : first + _TOGETHER]), size, interpolation)
        for first in range(0, values.shape[2], _TOGETHER)
    ]
    return np.concatenate(parts, 2)


def content_of(map: Array, placement: Placement) -> Array:
    """The part of a map (H, W) that shows the picture: a view (h, w) without the padding."""
    height, width = placement.content
    return map[placement.top : placement.top + height, placement.left : placement.left + width]


def from_network(map: Array, placement: Placement, out: Array | None = None) -> Array:
    """Resize a map of the network to the size of the picture, without the padding.

    Args:
        map: uint8 or uint16 (H, W) at the network's size.
        placement: how the picture was put there.
        out: array of the covered size and of the type of `map` to work in; None makes a new one.

    Returns:
        The map of the picture, (height, width) at the source's size, in the type of `map`: the part of `out`
        that shows the picture.
    """
    height, width = placement.source
    return resize_map(content_of(map, placement), placement.covered, out)[:height, :width]


def resize_map(map: Array, size: Size, out: Array | None = None) -> Array:
    """Resize a map (h, w) to `size`, into `out` or a new array.

    Bilinear where the map is enlarged; averaged over areas where it is shrunk on both axes (pictures smaller
    than their place in the network's input). uint16 maps come out right to 0.002 of a uint8 level; uint8 maps
    to 0.8 of one, because cv2 interpolates bytes with few bits.
    """
    if out is None:
        out = np.empty(size, map.dtype)
    elif out.dtype != map.dtype or out.shape != size:  # cv2 would write elsewhere, silently
        raise ValueError(f"out must be {map.dtype} {size}, got {out.dtype} {out.shape}")
    if _shrinks(map, size):
        _shrink(map, out)
    else:  # of equal sizes this is a copy
        cv2.resize(map, size[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    return out


def resize_flags(flags: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Bring a map of yes and no, bool (h, w), to a size: every pixel gets what is at its centre."""
    if flags.shape == size:
        return flags
    resized = cv2.resize(flags.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return cast("NDArray[np.bool_]", resized.view(np.bool_))


def _shrinks(array: Array, size: Size) -> bool:
    """Tell whether `size` is smaller on some axis and larger on none: only then INTER_AREA averages areas."""
    height, width = array.shape[:2]
    return size[0] <= height and size[1] <= width and size != (height, width)


def _at_step(pixels: Array, placement: Placement) -> Size:
    """The covered size in pixels such as these."""
    shape = pixels.shape[:2]
    for step in (1, *_STEPS[::-1]):
        if shape == tuple(-(-side // step) for side in placement.source):
            # Rounded up: a step may be larger than the one that the placement expects
            return -(-placement.covered[0] // step), -(-placement.covered[1] // step)
    return shape


def extend(pixels: Array, size: Size) -> Array:
    """Repeat the last row and column until `pixels` have a size; themselves where they have it."""
    below, beside = size[0] - pixels.shape[0], size[1] - pixels.shape[1]
    if not below and not beside:
        return pixels
    extended = cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_REPLICATE)
    return cast("Array", extended.reshape(*size, *pixels.shape[2:]))  # cv2 drops a single channel


def shrinking_steps(pixels: Size, size: Size, out: Size) -> list[tuple[Size, Size, int]]:
    """How a picture is shrunk: each step's size that it is extended to, size of the result, and flag of cv2.

    cv2 averages areas fast only by whole factors: 1280x1918 to 160x240 takes 6.8 ms at once and 2.3 ms with a
    halving first (one core). So even sides are halved until a factor between 2 and 4 is left. Where that is
    no whole number, it takes two steps: bilinear to twice the result, then a halving. 1280x1918 to 448x672
    takes 4.4 ms so, at once 13 ms; photos differ by 0.2 grey levels on average, masks of `default` agree to
    Dice 0.9996 and are as near to the truth. No step blurs edges more than a direct resize would. What is
    extended is extended as late as possible, where there are fewer pixels to copy.

    Args:
        pixels: (height, width) of what there is.
        size: to which it counts as extended.
        out: of the result.
    """
    steps = []
    (rows, columns), (height, width) = pixels, size
    while height % 2 == 0 and width % 2 == 0 and height >= 3.99 * out[0] and width >= 3.99 * out[1]:
        height, width = height // 2, width // 2
        even = (rows + rows % 2, columns + columns % 2)
        rows, columns = even[0] // 2, even[1] // 2
        steps.append((even, (rows, columns), cv2.INTER_AREA))
    full = (height, width)
    by_whole_numbers = size[0] % out[0] == 0 and size[1] % out[1] == 0
    if not by_whole_numbers and all(2 * a <= b < 3.99 * a for a, b in zip(out, full, strict=True)):
        twice = (2 * out[0], 2 * out[1])
        steps.append((full, twice, cv2.INTER_LINEAR))
        full = twice
    return [*steps, (full, out, cv2.INTER_AREA)]


def _shrink(pixels: Array, out: Array, size: Size | None = None) -> None:
    """Shrink `pixels`, extended to `size`, into `out` by averaging areas; see `shrinking_steps`."""
    there = (pixels.shape[0], pixels.shape[1])
    *earlier, (full, (height, width), last) = shrinking_steps(
        there, size or there, (out.shape[0], out.shape[1])
    )
    for number, (extended, (rows, columns), how) in enumerate(earlier):
        if pixels.ndim == 3 and pixels.shape[2] > _TOGETHER:
            pixels = resize(extend(pixels, extended), (rows, columns), how)
            continue
        lent = scratch(f"shrunk {number}", (rows, columns, *pixels.shape[2:]), pixels.dtype)
        shrunk = cv2.resize(extend(pixels, extended), (columns, rows), lent, interpolation=how)
        pixels = cast("Array", shrunk.reshape(lent.shape))
    if out.ndim == 3 and out.shape[2] > _TOGETHER:
        out[:] = resize(extend(pixels, full), (height, width), last)
    else:  # straight to its place
        cv2.resize(extend(pixels, full), (width, height), dst=out, interpolation=last)
