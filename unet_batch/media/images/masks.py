"""Masks as they are stored: numbers that stand for classes, whatever the format."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from unet_batch.errors import ImageError
from unet_batch.media.images import npy
from unet_batch.media.images.common import (
    MAX_PIXELS,
    Source,
    apply_orientation,
    exif_orientation,
    open_source,
)
from unet_batch.media.images.decode import open_image
from unet_batch.media.images.dicom import read_stored_frame
from unet_batch.media.images.jpeg import read_jpeg
from unet_batch.media.images.ome_zarr import read_stored_page
from unet_batch.media.images.png import open_png
from unet_batch.media.images.raw import NO_MASK, RawInTiff
from unet_batch.media.images.tiff import PALETTE, WHITE_IS_ZERO, read_stored

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from unet_batch.types import Pixels


@dataclass(frozen=True, slots=True, eq=False)
class StoredMask:
    """A mask as its file stores it, upright: numbers, not what a viewer makes of them.

    Attributes:
        values: "grey": uint8 or uint16 (h, w), or float32 (h, w) from 0 to 1; bits are 0 (black) and 1.
            "index": uint8 (h, w), places in `palette`. "colour": RGB uint8 (h, w, 3), black where alpha is 0.
            "jpeg": uint8 (h, w), grey levels that the compression has blurred.
        kind: which of these.
        full: the highest value that its type can hold: 255, 65535, 15 for 4 bits, 1 for bits and fractions;
            0 where that says nothing, as for 32 bits.
        palette: uint8 (n, 3), the colours of "index"; else None.
        white_is_zero: a TIFF asks viewers to show 0 as white, which is "ignored" or "obeyed" here; else "".
    """

    values: NDArray[Any]
    kind: Literal["grey", "index", "colour", "jpeg"]
    full: int = 255
    palette: Pixels | None = None
    white_is_zero: Literal["", "ignored", "obeyed"] = ""


def read_ids(path: str, *, max_pixels: int = MAX_PIXELS) -> StoredMask:
    """Decode a mask, upright: the numbers that are stored, not what a person sees.

    Args:
        path: a regular file.
        max_pixels: largest height x width that is decoded.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: as for `read`; or the values are fractions beyond 0 to 1, negative, or above 65535.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "JPEG":
            return StoredMask(cv2.cvtColor(read_jpeg(source, None).pixels, cv2.COLOR_RGB2GRAY), "jpeg")
        if source.format.name == "TIFF":
            with suppress(RawInTiff):
                return _tiff_mask(source)
        if source.format.name in ("TIFF", "RAW"):
            raise ImageError(f"{path}: {NO_MASK}", hint="save the mask as an 8-bit grey PNG")
        if source.format.name == "DICOM":
            return _numbers_mask(source, *read_stored_frame(source))
        if source.format.name == "OME-Zarr":
            return _numbers_mask(source, read_stored_page(source))
        if source.format.name == "NumPy":
            return _array_mask(source)
        if source.format.name == "PNG":
            data = source.file.read()
            image: ImageFile = open_png(source, data)
            bits = data[24]
        else:
            image, bits = open_image(source), 8
        image.load()
        try:
            stored = _stored_mask(image, bits)
        except ValueError as error:
            raise ImageError(f"{path}: {error}", hint="save the mask as an 8-bit grey PNG") from error
        return replace(stored, values=apply_orientation(stored.values, exif_orientation(image)))


def _stored_mask(image: ImageFile, bits: int) -> StoredMask:
    """What a loaded picture stores; `bits` of each value, where its format lets them vary."""
    mode = image.mode
    if mode == "LAB":
        raise ValueError(f"pixels of type {mode} cannot be ids")
    if mode == "P":
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return StoredMask(np.array(image), "index", palette=palette)
    if mode == "1":
        return StoredMask(np.array(image, np.uint8), "grey", 1)
    if mode == "L":
        # Pillow stretches 2 and 4 bits over 0..255
        full = 2**bits - 1 if bits in (2, 4) else 255
        return StoredMask(np.array(image) // np.uint8(255 // full), "grey", full)
    if mode.startswith("I") or mode == "F":
        return StoredMask(*_as_ids(np.array(image)))
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        return StoredMask(np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(0)), "colour")
    return StoredMask(np.array(image.convert("RGB")), "colour")


def _tiff_mask(source: Source) -> StoredMask:
    """What a TIFF stores."""
    stored = read_stored(source)
    values: NDArray[Any] = np.ascontiguousarray(stored.values[..., 0])
    if stored.values.shape[2] > 1:
        colours, opacity = stored.rgb(), stored.opacity()
        if stored.lossy:
            return StoredMask(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), "jpeg")
        if opacity is not None:
            colours = np.where(opacity[..., None] > 0, colours, np.uint8(0))
        return StoredMask(colours, "colour")
    white_is_zero: Literal["", "ignored"] = "ignored" if stored.photometric == WHITE_IS_ZERO else ""
    # Fax machines, scanners and editors store what they mean either way
    if stored.bits == 1 and white_is_zero and not stored.is_array:
        return StoredMask(1 - values.astype(np.uint8), "grey", 1, white_is_zero="obeyed")
    try:
        values, kind, full = _as_ids(values)
    except ValueError as error:
        raise ImageError(f"{source.name}: {error}", hint="save the mask as an 8-bit grey PNG") from error
    if stored.photometric == PALETTE and values.max(initial=0) < 256:
        return StoredMask(values.astype(np.uint8), "index", palette=stored.palette)
    if values.dtype.kind == "u" and full > 1:
        full = min(full, 2**stored.bits - 1)
    return StoredMask(values, "jpeg" if stored.lossy else kind, full, white_is_zero=white_is_zero)


def _numbers_mask(source: Source, values: NDArray[Any], bits: int = 0) -> StoredMask:
    """What a file stores that holds numbers, of so many bits if it says so."""
    if values.ndim == 3:
        return StoredMask(values, "colour")
    try:
        values, kind, full = _as_ids(values)
    except ValueError as error:
        raise ImageError(f"{source.name}: {error}", hint="save the mask as an 8-bit grey PNG") from error
    return StoredMask(values, kind, 2**bits - 1 if bits else full)


def _array_mask(source: Source) -> StoredMask:
    """What an array of NumPy stores: a plane of ids, or three of colour."""
    values = npy.read_array(source)
    if values.shape[2] == 3 and values.dtype == np.uint8:
        return StoredMask(np.ascontiguousarray(values), "colour")
    if values.shape[2] > 1:
        what = f"an array of {values.dtype} with {values.shape[2]} bands cannot be ids"
        raise ImageError(f"{source.name}: {what}", hint="save the mask as an 8-bit grey PNG")
    plane = values[..., 0]
    return _numbers_mask(source, plane.view(np.uint8) if plane.dtype.kind == "b" else plane)


def _as_ids(values: NDArray[Any]) -> tuple[NDArray[Any], Literal["grey"], int]:
    """Numbers of any type as the first three attributes of `StoredMask`.

    Raises:
        ValueError: they are neither whole numbers from 0 to 65535 nor fractions from 0 to 1.
    """
    if values.dtype in (np.uint8, np.uint16):
        return values, "grey", int(np.iinfo(values.dtype).max)
    if missing := int(np.isnan(values).sum()):
        raise ValueError(f"{missing:,} of its {values.size:,} values are not a number")
    low, high = values.min(initial=0), values.max(initial=0)
    whole = values.dtype.kind in "iu" or bool((values == np.rint(values)).all())
    if low < 0 or high > (65535 if whole else 1):
        raise ValueError(
            f"its values, {low:g} to {high:g}, cannot be ids or probabilities: whole numbers from 0 to "
            f"65535, or fractions from 0 to 1, expected"
        )
    if values.dtype.kind == "f" and high <= 1:
        return values.astype(np.uint8 if whole else np.float32), "grey", 1
    return values.astype(np.uint16), "grey", 0
