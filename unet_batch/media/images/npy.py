"""Arrays of NumPy (.npy) as pictures: (h, w), (h, w, bands) or (bands, h, w), read without pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media.images import tiff
from unet_batch.media.images.common import (
    Damage,
    Picture,
    Source,
    check_channels,
    choose_channels,
)
from unet_batch.media.images.ranges import Range, Usage, scale_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Channels

MOST_BANDS = 64
_BYTES_PER_PIXEL = 64 * 8  # of what is read at once: as many numbers of 8 bytes


def read_array(source: Source) -> NDArray[Any]:
    """Read the numbers of an array (h, w, bands), once its header has been checked.

    Of three axes the first or the last are the bands, whichever is shorter.

    Raises:
        ImageTooLarge: the header announces more than the source's limit.
        ImageError: it is no picture.
        Damage: it is cut short.
    """
    shape, by_columns, kind, start = _read_header(source)
    what = f"{source.name}: an array of {kind} {shape}"
    if kind.hasobject or kind.kind not in "buif" or kind.itemsize > 8:
        raise ImageError(f"{what}: whole numbers or floats expected", hint="x.astype('float32') makes floats")
    first = len(shape) == 3 and shape[0] < shape[2]
    height, width = shape[1:] if first else shape[:2] if len(shape) in (2, 3) else (0, 0)
    bands = 1 if len(shape) == 2 else min(shape[0], shape[-1]) if shape else 0
    if min(height, width, bands) < 1 or bands > MOST_BANDS or (len(shape) == 3 and shape[0] == shape[2]):
        raise ImageError(
            f"{what}: (height, width), (height, width, bands) or (bands, height, width) expected, with 1 to "
            f"{MOST_BANDS} bands, fewer than rows or columns",
            hint="save one picture a file, its bands last",
        )
    source.check_size(height, width)
    size = height * width * bands * kind.itemsize
    if size > (limit := _BYTES_PER_PIXEL * source.max_pixels):
        raise ImageTooLarge(f"{what}: {size:,} bytes, the limit is {limit:,}")
    source.file.seek(start)
    data = source.file.read(size)
    if len(data) < size:
        raise Damage(f"its numbers end {size - len(data):,} bytes early")
    values = np.frombuffer(data, kind).reshape(shape, order="F" if by_columns else "C")
    values = values.astype(kind.newbyteorder("="), copy=False)
    if values.ndim == 2:
        return values[..., None]
    return np.moveaxis(values, 0, 2) if first else values


def count_bands(source: Source) -> int:
    """How many bands an array has, from its header; 1 of what is no picture."""
    shape, *_ = _read_header(source)
    return min(shape[0], shape[2]) if len(shape) == 3 else 1


def _read_header(source: Source) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns lie together, dtype, and where the numbers begin."""
    version = npy.read_magic(source.file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:  # 3.0 is for names of fields
        raise ImageError(
            f"{source.name}: .npy of version {version[0]}.{version[1]} is not read", hint="np.save it"
        )
    shape, by_columns, kind = read(source.file)
    return shape, by_columns, kind, source.file.tell()


def read_npy(source: Source, value_range: Range, channels: Channels | None) -> Picture:
    """Decode an array as `decode.read`: as a TIFF of so many bands, without opacity."""
    values = read_array(source)
    count, size = values.shape[2], (values.shape[0], values.shape[1])
    if channels is not None:
        notes = check_channels(count, channels, source.name)
        values = choose_channels(values, channels, source.name)
        invalid = _invalid(values)
        missing: NDArray[np.bool_] | None = (
            None if invalid is None else np.all(invalid, axis=2, keepdims=False)
        )
        missing = missing if missing is not None and missing.any() else None
        levels = scale_channels(values, 0, invalid, [value_range] * len(channels))
        return Picture(levels, size, missing, notes=notes)
    bands = 3 if count >= 3 else 1
    taken = "first three are read as red, green and blue" if bands == 3 else "first is read"
    notes = () if count == bands else (f"{count} bands: the {taken}",)
    values = np.ascontiguousarray(values[..., :bands])
    meaning = tiff.RGB if bands == 3 else tiff.BLACK_IS_ZERO
    invalid = _invalid(values)
    bits = 8 * values.itemsize if values.dtype.kind == "u" else 0
    stored = tiff.Stored(values, bits, meaning, None, None, False, invalid, None, False, None, notes)
    usage = Usage()
    pixels, _, missing, notes = tiff.to_rgb(stored, value_range, usage)
    return Picture(pixels, size, missing, notes=notes + usage.notes)


def _invalid(values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Numbers that are none."""
    invalid = ~np.isfinite(values) if values.dtype.kind == "f" else None
    return invalid if invalid is not None and invalid.any() else None
