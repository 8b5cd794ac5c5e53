"""Decode pictures from files and from memory: some formats by their own modules, all else by Pillow."""

from __future__ import annotations

import importlib
import struct
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

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
)
from unet_batch.media.images.depth import find_depth
from unet_batch.media.images.dicom import read_dicom
from unet_batch.media.images.huffman import read_frame
from unet_batch.media.images.jpeg import open_header, read_jpeg
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.media.images.ome_zarr import open_volume, read_volume
from unet_batch.media.images.png import open_png
from unet_batch.media.images.profiles import coded_profile, named_profile, to_srgb
from unet_batch.media.images.ranges import AUTO, Range, Usage, scale_channels
from unet_batch.media.images.raw import RawInTiff, read_raw
from unet_batch.media.images.tiff import (
    explained,
    read_tiff,
    tiff_orientation,
)
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from unet_batch.media.images.depth import Depth
    from unet_batch.types import Channels, Pixels, Size

_AT_ONCE = 4 << 20  # bytes of a file that is read before its decoder asks for them


def read(
    path: str,
    *,
    at_least: Size | None = None,
    max_pixels: int = MAX_PIXELS,
    value_range: Range = AUTO,
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
        value_range: which of its values are black and white. Percentiles are those of the pixels that are
            decoded; inks (CMYK) and L*a*b* are left as they are. Of chosen channels each has its own.
        channels: bands of the file to take as they are stored, by their numbers from 1; None makes RGB of it.
            See the package.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: no such file, not a picture, truncated, damaged, or of a kind that is not supported; or
            it has fewer bands.
    """
    with open_source(path, max_pixels, at_once=_AT_ONCE) as source:
        return _read(source, at_least, value_range, channels)


def read_bytes(
    data: bytes,
    name: str = "picture",
    *,
    at_least: Size | None = None,
    max_pixels: int = MAX_PIXELS,
    value_range: Range = AUTO,
    channels: Channels | None = None,
) -> Picture:
    """Decode a picture that is in memory, as `read` does a file.

    Args:
        data: the contents of a picture file.
        name: what errors call it; "x.tga" also says that it is a TGA.
        at_least, max_pixels, value_range, channels: as for `read`.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: not a picture, truncated, damaged, or of a kind that is not supported.
    """
    with open_source(name, max_pixels, data) as source:
        return _read(source, at_least, value_range, channels)


def natural_channels(path: str, *, max_pixels: int = MAX_PIXELS) -> Channels | None:
    """All bands of a picture that has more, or other ones, than a person sees; from its header.

    None of grey and colour, with opacity or without. All bands of a TIFF of two or of four and more, of one
    with an axis of channels, of such an array and of such an OME-Zarr; opacity is none of them.

    Raises:
        ImageError: as for `read`.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "TIFF":
            with suppress(RawInTiff), explained(source):
                return tiff_channels.natural_channels(source)
        if source.format.name == "NumPy" and (count := npy.count_bands(source)) not in (1, 3):
            return tuple(range(1, count + 1))
        if source.format.name == "OME-Zarr" and (count := open_volume(source).channels) not in (1, 3):
            return tuple(range(1, count + 1))
        return None


def _read(source: Source, at_least: Size | None, value_range: Range, channels: Channels | None) -> Picture:
    """Decode by the format's own function; a format that needs one gets its branch here."""
    if channels is not None and source.format.name in ("JPEG", "RAW", "DICOM"):
        picture = _read(source, at_least, value_range, None)
        return replace(picture, pixels=choose_channels(picture.pixels, channels, source.name))
    if source.format.name == "JPEG":
        return read_jpeg(source, at_least, value_range)
    notes: tuple[str, ...] = ()
    if source.format.name == "TIFF":
        with suppress(RawInTiff):
            if channels is not None:
                return tiff_channels.read_tiff_channels(source, channels, value_range)
            return read_tiff(source, value_range)
    if source.format.name in ("TIFF", "RAW"):
        picture = read_raw(source)
        if channels is None:
            return picture
        return replace(picture, pixels=choose_channels(picture.pixels, channels, source.name))
    if source.format.name == "DICOM":
        return read_dicom(source, value_range)
    if source.format.name == "OME-Zarr":
        return read_volume(source, value_range, channels)
    if source.format.name == "NumPy":
        return npy.read_npy(source, value_range, channels)
    if source.format.name == "PNG":
        image: ImageFile = open_png(source, source.file.read())
    else:
        image = open_image(source)
        notes = frame_notes(image)
    image.load()
    depth = find_depth(source, image)
    return to_picture(
        image,
        notes,
        with_metadata=at_least is None,
        value_range=value_range,
        depth=depth,
        channels=channels,
        name=source.name,
    )


def to_picture(
    image: Image.Image,
    notes: tuple[str, ...] = (),
    *,
    with_metadata: bool = True,
    value_range: Range = AUTO,
    depth: Depth | None = None,
    channels: Channels | None = None,
    name: str = "picture",
) -> Picture:
    """Make of a loaded picture what `read` returns: by the package's table, in sRGB, over white, upright.

    Args:
        image: loaded.
        notes: to which those of its decoding are added.
        with_metadata: outputs will take it over.
        value_range: which values are black and white.
        depth: where its file holds more bits than the loaded picture; decoded only if these are needed.
        channels: as for `read`.
        name: what errors call it.
    """
    info = image.info
    if channels is not None:
        return _to_channels(image, channels, notes, name, value_range, depth)
    values, alpha, more = _levels(image, value_range, depth)
    notes += more
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


def _levels(
    image: Image.Image, value_range: Range, depth: Depth | None
) -> tuple[Pixels, Pixels | None, tuple[str, ...]]:
    """Values in a range, as uint8, and opacity, in the shapes of `stored_values`; and notes."""
    values, bits, alpha = stored_values(image)
    usage = Usage()
    if value_range == AUTO:
        usage.add(values, 2 ** (bits or 8 * values.itemsize) - 1)
        if depth is not None and np.ptp(values) <= 16:  # of 255: more is not worth to be decoded again
            usage.add(depth.decode(), depth.ends[1])
    elif image.mode in ("CMYK", "LAB"):
        return values, alpha, ()
    elif depth is not None:
        values = depth.decode()
        if value_range.kind == "dtype":
            value_range = Range("fixed", depth.ends)
    levels = value_range.apply(values, bits)
    # PhotometricInterpretation 0: zero is white
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0:
        levels = 255 - levels
    return levels, alpha, usage.notes


def _to_channels(
    image: Image.Image,
    channels: Channels,
    notes: tuple[str, ...],
    name: str,
    value_range: Range,
    depth: Depth | None,
) -> Picture:
    """The same, of channels as they are stored: grey, or red, green, blue, or four inks; then opacity."""
    values, bits, alpha = stored_values(image)
    if depth is not None and value_range != AUTO:
        values, bits = depth.decode(), 0
        if value_range.kind == "dtype":
            value_range = Range("fixed", depth.ends)
    bands = values if values.ndim == 3 else values[..., None]
    bands = scale_channels(bands, bits, None, [value_range] * bands.shape[2])
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


def orientation(path: str) -> int:
    """EXIF orientation of a picture file, 1 to 8, which `read` undoes; 1 where it is absent or unreadable.

    Raises:
        ImageError: no such file, or not a picture.
    """
    with open_source(path, MAX_PIXELS) as source:
        if source.format.name == "TIFF":
            return tiff_orientation(source)
        if source.format.name in ("RAW", "DICOM", "OME-Zarr", "NumPy"):
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
            hint="pip install pillow-heif",
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


def stored_values(image: Image.Image) -> tuple[NDArray[Any], int, Pixels | None]:
    """The numbers of a loaded picture, in its own colours, also where nothing of them shows.

    Returns:
        Grey (h, w) of any type; or uint8 RGB (h, w, 3) or CMYK (h, w, 4); the bits of a number, 0 for
        those of its type; and uint8 opacity (h, w), None where it is opaque.
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
        return values, 12 if tags.get(258) == (12,) else 0, alpha
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.array(converted, np.uint8), 0, None
    grey = mode in ("1", "L", "LA", "La")
    if alpha is None and image.has_transparency_data:
        full = np.asarray(image if mode == "RGBA" else image.convert("RGBA"))
        # 1.7 ms for the colours of 1280x1918, where numpy takes 18
        alpha = cast("Pixels", cv2.extractChannel(full, 3))
        values = cv2.extractChannel(full, 0) if grey else cv2.cvtColor(full, cv2.COLOR_RGBA2RGB)
        return values, 0, None if alpha.min() == 255 else alpha
    plain = mode if mode in ("RGB", "CMYK") else "L" if grey else "RGB"
    return np.array(image if mode == plain else image.convert(plain), np.uint8), 0, alpha


def no_value(image: Image.Image) -> NDArray[np.bool_] | None:
    """Pixels of a loaded picture that have no value, as NaN and infinity say: bool (h, w), or None."""
    if image.mode != "F":
        return None
    missing: NDArray[np.bool_] = ~np.isfinite(np.asarray(image))
    return missing if missing.any() else None
