"""Decode pictures from files and from memory: JPEG by `jpeg.py`, TIFF by `tiff.py`, all else by Pillow."""

from __future__ import annotations

import importlib
import struct
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import cv2
import numpy as np
from PIL import Image

from unet_batch.errors import ImageError
from unet_batch.media.images import npy, tiff_channels
from unet_batch.media.images.common import (
    MAX_PIXELS,
    Picture,
    Source,
    apply_orientation,
    check_channels,
    choose_channels,
    exif_orientation,
    open_source,
    over_white,
    to_uint8,
)
from unet_batch.media.images.huffman import read_frame
from unet_batch.media.images.jpeg import open_header, read_jpeg
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.media.images.png import open_png
from unet_batch.media.images.profiles import coded_profile, named_profile, to_srgb
from unet_batch.media.images.tiff import (
    PALETTE,
    WHITE_IS_ZERO,
    explained,
    read_stored,
    read_tiff,
    tiff_orientation,
)
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from unet_batch.types import Channels, Pixels, Size


def read(
    path: str,
    *,
    at_least: Size | None = None,
    max_pixels: int = MAX_PIXELS,
    channels: Channels | None = None,
) -> Picture:
    """Decode a picture file.

    The contents decide the format, not the extension (but for TGA, which has no signature). Safe to call from
    many threads; the decoders release the GIL.

    Args:
        path: a regular file.
        at_least: (height, width), upright, that is enough for the caller: a JPEG is then decoded at 1/8, 1/4
            or 1/2, sides rounded up: the first that is at least as large in both directions. Other formats
            ignore it.
        max_pixels: largest height x width that is decoded.
        channels: bands of the file to take as they are stored, by their numbers from 1; None makes RGB of it.
            See the package.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: no such file, not a picture, truncated, damaged, or of a kind that is not supported; or
            it has fewer bands.
    """
    with open_source(path, max_pixels) as source:
        return _read(source, at_least, channels)


def read_bytes(
    data: bytes,
    name: str = "picture",
    *,
    at_least: Size | None = None,
    max_pixels: int = MAX_PIXELS,
    channels: Channels | None = None,
) -> Picture:
    """Decode a picture that is in memory, as `read` does a file.

    Args:
        data: the contents of a picture file.
        name: what errors call it; "x.tga" also says that it is a TGA.
        at_least: as for `read`.
        max_pixels: as for `read`.
        channels: as for `read`.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: not a picture, truncated, damaged, or of a kind that is not supported.
    """
    with open_source(name, max_pixels, data) as source:
        return _read(source, at_least, channels)


def natural_channels(path: str, *, max_pixels: int = MAX_PIXELS) -> Channels | None:
    """All bands of a picture that has more, or other ones, than a person sees; from its header.

    None of grey and colour, with opacity or without. All bands of a TIFF of two or of four and more, of one
    with an axis of channels, and of such an array; opacity is none of them.

    Raises:
        ImageError: as for `read`.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "TIFF":
            with explained(source):
                return tiff_channels.natural_channels(source)
        if source.format.name == "NumPy" and (count := npy.count_bands(source)) not in (1, 3):
            return tuple(range(1, count + 1))
        return None


def _read(source: Source, at_least: Size | None, channels: Channels | None) -> Picture:
    """Decode by the format's own function; a format that needs one gets its branch here."""
    if source.format.name == "JPEG":
        picture = read_jpeg(source, at_least)
        if channels is None:
            return picture
        return replace(picture, pixels=choose_channels(picture.pixels, channels, source.name))
    notes: tuple[str, ...] = ()
    if source.format.name == "TIFF":
        return read_tiff(source) if channels is None else tiff_channels.read_tiff_channels(source, channels)
    if source.format.name == "NumPy":
        return npy.read_npy(source, channels)
    if source.format.name == "PNG":
        image: ImageFile = open_png(source, source.file.read())
    else:
        image = open_image(source)
        notes = frame_notes(image)
    image.load()
    return to_picture(image, notes, with_metadata=at_least is None, channels=channels, name=source.name)


def to_picture(
    image: Image.Image,
    notes: tuple[str, ...] = (),
    *,
    with_metadata: bool = True,
    channels: Channels | None = None,
    name: str = "picture",
) -> Picture:
    """Make of a loaded picture what `read` returns: by the package's table, in sRGB, over white, upright.

    Args:
        image: the picture.
        notes: that are known already.
        with_metadata: outputs take something over.
        channels: as for `read`.
        name: what errors call it.
    """
    info = image.info
    values, alpha = stored_values(image)
    if channels is not None:
        return _to_channels(image, values, alpha, channels, notes, name)
    profile, notes = info.get("icc_profile"), notes + info.get("notes", ())
    if not profile and isinstance(coded := info.get("nclx_profile"), dict):  # of pillow-heif
        profile, more = coded_profile(
            coded.get("color_primaries", 0), coded.get("transfer_characteristics", 0)
        )
        notes += more
    if not profile and image.format in ("JPEG", "MPO"):
        profile = named_profile(image)
    pixels, more = to_srgb(values, profile)
    notes += more
    turn = exif_orientation(image)
    if alpha is not None:
        pixels, alpha = over_white(pixels, alpha), cast("Pixels", apply_orientation(alpha, turn))
    metadata = Metadata()
    if with_metadata:
        metadata, more = outputs_metadata(info, turn, info.get("dpi"))
        notes += more
    upright = cast("Pixels", apply_orientation(pixels, turn))
    if (missing := no_value(image)) is not None:
        missing = apply_orientation(missing.view(np.uint8), turn).view(np.bool_)
    return Picture(upright, upright.shape[:2], missing, alpha, metadata, notes)


def _to_channels(
    image: Image.Image,
    values: Pixels,
    alpha: Pixels | None,
    channels: Channels,
    notes: tuple[str, ...],
    name: str,
) -> Picture:
    """The same, of channels as they are stored: grey, or red, green, blue, or four inks; then opacity."""
    bands = values if values.ndim == 3 else values[..., None]
    if image.has_transparency_data or alpha is not None:
        opacity = np.full(bands.shape[:2], 255, np.uint8) if alpha is None else alpha
        bands = np.dstack([bands, opacity])
    notes += check_channels(bands.shape[2], channels, name)
    turn = exif_orientation(image)
    pixels = cast("Pixels", apply_orientation(choose_channels(bands, channels, name), turn))
    pixels = pixels.reshape(*pixels.shape[:2], len(channels))  # cv2 turns one channel to none
    missing = no_value(image)
    if missing is not None:
        missing = apply_orientation(missing.view(np.uint8), turn).view(np.bool_)
    metadata, more = outputs_metadata(image.info, turn, image.info.get("dpi"))
    return Picture(pixels, (pixels.shape[0], pixels.shape[1]), missing, None, metadata, notes + more)


def frame_notes(image: Image.Image) -> tuple[str, ...]:
    """Say of a picture, not loaded yet, that it is the first of several."""
    count = 1 if image.format == "PSD" else getattr(image, "n_frames", 1)  # of a PSD those are layers
    if count == 1 or (image.format != "HEIF" and image.tell() > 0):  # a frame that the caller chose
        return ()
    return (f"{count} {'pictures: the main one' if image.format == 'HEIF' else 'frames: the first'} is read",)


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
            return _tiff_mask(source)
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


def _array_mask(source: Source) -> StoredMask:
    """What an array of NumPy stores: a plane of ids, or three of colour."""
    values = npy.read_array(source)
    if values.shape[2] == 3 and values.dtype == np.uint8:
        return StoredMask(np.ascontiguousarray(values), "colour")
    try:
        if values.shape[2] > 1:
            raise ValueError(f"an array of {values.dtype} with {values.shape[2]} bands cannot be ids")
        return StoredMask(
            *_as_ids(values[..., 0].view(np.uint8) if values.dtype.kind == "b" else values[..., 0])
        )
    except ValueError as error:
        raise ImageError(f"{source.name}: {error}", hint="save the mask as an 8-bit grey PNG") from error


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


def orientation(path: str) -> int:
    """EXIF orientation of a picture file, 1 to 8, which `read` undoes; 1 where it is absent or unreadable.

    Raises:
        ImageError: no such file, or not a picture.
    """
    with open_source(path, MAX_PIXELS) as source:
        if source.format.name == "TIFF":
            return tiff_orientation(source)
        if source.format.name == "NumPy":
            return 1
        if source.format.name != "JPEG":
            return exif_orientation(open_image(source))
        data = source.file.read()
        frame = read_frame(data)
        header = open_header(data, frame) if frame else None
        return 1 if header is None else exif_orientation(header)


def open_image(source: Source) -> ImageFile:
    """Read a header with Pillow, and check the size it announces."""
    module, _, plugin = source.format.plugin.partition(":")
    try:
        opener = getattr(importlib.import_module(module), plugin)
    except ImportError as error:
        raise ImageError(
            f"{source.name}: {source.format.name} needs the package pillow-heif",
            hint="pip install 'unet-batch[heic]'",
        ) from error
    if source.format.name == "ICO":
        _check_icons(source)
    file = _tell_bmp_apart(source.file) if source.format.name == "BMP" else source.file
    image = cast("ImageFile", opener(file))
    source.check_size(image.height, image.width)
    return image


def _tell_bmp_apart(file: BinaryIO) -> BinaryIO:
    """Say of a BMP of 4 or 8 bits whose palette is black and white that it has a third, unused colour.

    With two, Pillow reads its pixels as bits, and without a word shows all of it black or torn.
    """
    head = bytearray(file.read(50))
    file.seek(0)
    if len(head) < 50 or int.from_bytes(head[14:18], "little") < 40:
        return file
    bits, colours = int.from_bytes(head[28:30], "little"), int.from_bytes(head[46:50], "little")
    if bits not in (4, 8) or colours not in (1, 2):
        return file
    head[46] = 3
    return BytesIO(bytes(head) + file.read()[50:])


def _check_icons(source: Source) -> None:
    """Check the sizes of the pictures inside an ICO, of which Pillow decodes one on opening.

    Its directory may say anything else.
    """
    file = source.file
    directory = file.read(6 + 16 * 65535)
    for entry in range(6, min(len(directory), 6 + 16 * int.from_bytes(directory[4:6], "little")) - 15, 16):
        file.seek(int.from_bytes(directory[entry + 12 : entry + 16], "little"))
        head = file.read(24)
        png = head.startswith(b"\x89PNG")
        layout = ">16xII" if png else "<4xHH" if head.startswith(b"\x0c\0\0\0") else "<4xii"
        if len(head) >= struct.calcsize(layout):
            width, height = struct.unpack_from(layout, head)
            # A bitmap counts its mask's rows, too
            source.check_size(abs(height) // (1 if png else 2), abs(width))
    file.seek(0)


def stored_values(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Apply the package's table of conversions to a loaded picture.

    Returns:
        uint8: grey (h, w), RGB (h, w, 3) or CMYK (h, w, 4), in the picture's own colours, also where nothing
        of them shows; and its opacity (h, w), None where it is opaque.
    """
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    alpha: Pixels | None = image.info.get("alpha")
    if mode.startswith("I") or mode == "F":
        values: NDArray[Any] = np.asarray(image)
        if mode == "I" and image.format == "PPM":  # 0..65535, whatever the file's own maximum
            values = values.astype(np.uint16)
        elif mode == "I" and image.format == "TIFF" and tags.get(339, (1,))[0] == 1:
            # Unsigned, held as signed
            values = values.view(np.uint32)
        levels = to_uint8(values, 12 if tags.get(258) == (12,) else 0)
        if values.itemsize == 2 and tags.get(262) == 0:  # PhotometricInterpretation 0: zero is white
            levels = 255 - levels
        return levels, alpha
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.array(converted, np.uint8), None
    grey = mode in ("1", "L", "LA", "La")
    if alpha is None and image.has_transparency_data:
        full = np.asarray(image if mode == "RGBA" else image.convert("RGBA"))
        # 1.7 ms for the colours of 1280x1918, where numpy takes 18
        alpha = cast("Pixels", cv2.extractChannel(full, 3))
        values = cv2.extractChannel(full, 0) if grey else cv2.cvtColor(full, cv2.COLOR_RGBA2RGB)
        return cast("Pixels", values), None if alpha.min() == 255 else alpha
    plain = mode if mode in ("RGB", "CMYK") else "L" if grey else "RGB"
    values = np.array(image if mode == plain else image.convert(plain), np.uint8)
    return values, alpha


def no_value(image: Image.Image) -> NDArray[np.bool_] | None:
    """Pixels of a loaded picture that have no value, as NaN and infinity say: bool (h, w), or None."""
    if image.mode != "F":
        return None
    missing: NDArray[np.bool_] = ~np.isfinite(np.asarray(image))
    return missing if missing.any() else None
