"""Take pictures that are in memory already: the bytes of a file, a Pillow image, or an array."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media.images.common import (
    MAX_PIXELS,
    Picture,
    choose_channels,
    over_white,
    too_large_hint,
)
from unet_batch.media.images.decode import frame_notes, read_bytes, to_picture
from unet_batch.media.images.ranges import AUTO, Range, scale_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Channels, Pixels, Size

    InMemory = bytes | bytearray | memoryview | Image.Image | NDArray[Any]

_EXPECTED = (
    "uint8 (height, width, 3) in RGB order, (height, width, 4) with alpha or (height, width) grey expected, "
    "or floats in 0..1 of such a shape"
)
# Pillow decodes an image on first use, and not in two threads at once.
_loading = Lock()


def from_memory(
    picture: InMemory,
    name: str,
    *,
    at_least: Size | None = None,
    max_pixels: int = MAX_PIXELS,
    value_range: Range = AUTO,
    channels: Channels | None = None,
) -> Picture:
    """Make RGB pixels of a picture in memory; alpha is composited over white, as it is in files.

    Args:
        picture: the bytes of a picture file; a Pillow image, whose EXIF orientation is applied; or an array,
            grey (h, w) or (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4), of uint8 or of floats in 0..1; of
            numbers of any type where `value_range` says what they mean. An RGB uint8 array is not copied:
            leave it as it is while its result is used.
        name: what errors call it.
        at_least: as for `read`; for bytes only.
        max_pixels: as for `read`; arrays are exempt.
        value_range: as for `read`; of an image of Pillow, of what Pillow keeps: 8 bits of 16-bit colour.
        channels: as for `read`; an array then has any number of bands, last: (h, w, bands).

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: it is no picture, is damaged, or has values out of range; the hint says how to convert it.
    """
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return read_bytes(
            bytes(picture),
            name,
            at_least=at_least,
            max_pixels=max_pixels,
            value_range=value_range,
            channels=channels,
        )
    if isinstance(picture, np.ndarray):
        if channels is not None:
            return _choose(picture, name, value_range, channels)
        return _from_array(picture, name, value_range)
    if isinstance(picture, Image.Image):
        return _from_pillow(picture, name, max_pixels, value_range, channels)
    raise ImageError(
        f"{name}: {type(picture).__module__}.{type(picture).__qualname__} is no picture",
        hint="give a path, the bytes of a file, a PIL.Image, or a numpy array",
    )


def _from_pillow(
    image: Image.Image, name: str, max_pixels: int, value_range: Range, channels: Channels | None
) -> Picture:
    if image.height * image.width > max_pixels:
        raise ImageTooLarge(
            f"{name}: {image.height}x{image.width} (height x width) are {image.height * image.width:,} "
            f"pixels, the limit is {max_pixels:,}",
            hint=too_large_hint(image.height * image.width),
        )
    try:
        with _loading:
            notes = frame_notes(image)
            image.load()
        return to_picture(image, notes, value_range=value_range, channels=channels, name=name)
    except ImageError:
        raise
    except Exception as error:  # on a hostile file Pillow raises nearly anything
        raise ImageError(
            f"{name}: Pillow cannot decode it: its data are damaged or cut short",
            hint="give the path or the bytes of the file to hear more, or restore it from its source",
        ) from error


def _choose(array: NDArray[Any], name: str, value_range: Range, channels: Channels) -> Picture:
    """Channels of an array (h, w) or (h, w, bands) of uint8, of floats in 0..1, of all in a range."""
    bands = array[..., None] if array.ndim == 2 else array
    known = array.dtype == np.uint8 or array.dtype.kind in ("f" if value_range == AUTO else "buif")
    if array.size == 0 or bands.ndim != 3 or not known:
        raise ImageError(
            f"{name} of {array.dtype} {array.shape}: uint8 (height, width, bands), or floats in 0..1 of "
            f"such a shape, expected",
            hint="channels come last, and one picture at a time",
        )
    chosen = choose_channels(bands, channels, name)
    if value_range != AUTO:
        chosen = scale_channels(chosen, 0, None, [value_range] * len(channels))
    elif chosen.dtype.kind == "f":
        chosen = _bytes_of_floats(chosen, name)
    return Picture(chosen, (array.shape[0], array.shape[1]))


def _from_array(array: NDArray[Any], name: str, value_range: Range) -> Picture:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.size == 0 or channels not in (1, 3, 4):
        planes = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] > 4
        hint = "channels come last: x.transpose(1, 2, 0)" if planes else "give one picture at a time"
        raise ImageError(f"{name} of {array.dtype} {array.shape}: {_EXPECTED}", hint=hint)
    missing = None
    if value_range != AUTO and array.dtype.kind in "buif" and array.itemsize <= 8:
        colours = array[:, :, :3] if channels == 4 else array
        if array.dtype.kind == "f" and not (finite := np.isfinite(colours)).all():
            missing = ~(finite if channels == 1 else finite.any(axis=2))
        levels = value_range.apply(colours)
        array = levels if channels < 4 else np.dstack((levels, Range("dtype").apply(array[:, :, 3])))
    elif array.dtype.kind == "f":
        array = _bytes_of_floats(array, name)
    elif array.dtype != np.uint8:
        hint = "scale it to 0..255: x.astype('uint8'); or load the model with a value_range, 'percentile' say"
        raise ImageError(f"{name} of {array.dtype} {array.shape}: {_EXPECTED}", hint=hint)
    rgb = np.repeat(array[:, :, None], 3, axis=2) if channels == 1 else array[:, :, :3]
    alpha = np.ascontiguousarray(array[:, :, 3]) if channels == 4 else None
    if alpha is not None:
        rgb = over_white(np.ascontiguousarray(rgb), alpha)
        alpha = None if alpha.min() == 255 else alpha
    return Picture(np.ascontiguousarray(rgb), array.shape[:2], missing, alpha)


def _bytes_of_floats(array: NDArray[Any], name: str) -> Pixels:
    """round(255 v) of floats in 0..1."""
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also where one is NaN
        if np.isnan(low):
            hint = "replace NaN first: numpy.nan_to_num(x)"
        elif low < 0:
            hint = "undo the normalisation first, e.g. x * std + mean"
        else:
            hint = "divide it by its white first, e.g. x / 255"
        raise ImageError(
            f"{name} of {array.dtype} {array.shape}: floats must lie in 0..1, these lie in {low:g}..{high:g}",
            hint=hint,
        )
    levels: Pixels = np.rint(array.astype(np.float32, copy=False) * np.float32(255)).astype(np.uint8)
    return levels
