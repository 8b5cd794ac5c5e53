"""What all image formats share: the table of formats, an open source, limits, errors, orientation."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import cv2
import numpy as np
from PIL import Image

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.files import archives, stores
from unet_batch.files.naming import extension_of
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Channels, Pixels, Size

MAX_PIXELS = 200_000_000
"""Default limit, checked before decoding: 600 MB as RGB. Pillow allows GIF and WebP no more than 178,956,970.

An AVIF or HEIC whose inner stream is larger than its header says is held by its library's own limit (libavif:
268,435,456).
"""


_PILLOW_PIXELS = 178_956_970


@dataclass(frozen=True)
class Format:
    """One row of `FORMATS`.

    Attributes:
        name: what errors and `decode` call it.
        extensions: of its files, lower case, without the dot, separated by spaces.
        signature: regular expression that the first bytes of a file match; "" where a format has none: then
            its extension decides.
        plugin: the class of Pillow that decodes it, as "module:class"; "" where Pillow does not.
    """

    name: str
    extensions: str
    signature: bytes
    plugin: str


# Here a new format is added. One that Pillow decodes needs a row and no more; another one also a branch in
# `decode.read`. The first signature that matches wins: AVIF comes before HEIC, whose brands it shares. Most
# raw files of cameras have that of a TIFF, and are told from it by the page that would be read (`tiff`).
# Plugins are named one by one: PIL.Image.open would import all of them, warn from 89 megapixels on, and let a
# file of any extension reach formats that run other programs (EPS).
FORMATS = (
    # Before all: its first 128 bytes may be anything, and scanners write the beginning of a TIFF
    Format("DICOM", "dcm dicom", rb".{128}DICM", ""),
    Format("JPEG", "jpg jpeg jpe jfif mpo", rb"\xff\xd8\xff", ""),
    Format("PNG", "png apng", rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile"),
    Format("GIF", "gif", rb"GIF8[79]a", "PIL.GifImagePlugin:GifImageFile"),
    Format("BMP", "bmp dib", rb"BM", "PIL.BmpImagePlugin:BmpImageFile"),
    Format("WebP", "webp", rb"RIFF....WEBP", "PIL.WebPImagePlugin:WebPImageFile"),
    Format(
        "AVIF",
        "avif avifs",
        rb"....ftyp(avif|avis|(mif1|msf1|miaf).{4}(.{4})*?avif)",
        "PIL.AvifImagePlugin:AvifImageFile",
    ),
    Format("HEIC", "heic heif hif", rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "pillow_heif:HeifImageFile"),
    Format(
        "RAW",
        "dng cr2 cr3 nef nrw arw raf orf rw2 pef srw",
        rb"II\*\x00.{4}CR|....ftypcrx |FUJIFILMCCD-RAW|II(RO|RS|U\x00)|MMOR",
        "",
    ),
    Format("TIFF", "tif tiff", rb"II[*+]\x00|MM\x00[*+]", ""),
    Format("PNM", "ppm pgm pbm pnm", rb"P[1-6f]\s", "PIL.PpmImagePlugin:PpmImageFile"),
    Format("PSD", "psd", rb"8BPS", "PIL.PsdImagePlugin:PsdImageFile"),
    Format("ICO", "ico", rb"\x00\x00\x01\x00[^\x00]", "PIL.IcoImagePlugin:IcoImageFile"),
    Format(
        "JPEG 2000",
        "jp2 j2k",
        rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
        "PIL.Jpeg2KImagePlugin:Jpeg2KImageFile",
    ),
    Format("OME-Zarr", "zarr", rb"(?!)", ""),  # a folder: no file begins like it
    Format("NumPy", "npy", rb"\x93NUMPY", ""),
    Format("TGA", "tga", b"", "PIL.TgaImagePlugin:TgaImageFile"),
)
OME_ZARR = next(format for format in FORMATS if format.name == "OME-Zarr")
EXTENSIONS = frozenset(extension for format in FORMATS for extension in format.extensions.split())
"""Extensions of the files that `read` can decode, lower case, without the dot."""

_SIGNATURES = tuple(
    (re.compile(format.signature, re.DOTALL), format) for format in FORMATS if format.signature
)
_WITHOUT_SIGNATURE = tuple(format for format in FORMATS if not format.signature)
_HEAD_BYTES = 132
_RESTORE = "restore it from its source, or leave it out"
_DAMAGED = "the file is damaged: restore it from its source, or leave it out"
CONVERT = "open it in the program that made it, and save it as PNG or 8-bit RGB"
# What libraries say of a file that is whole, but of a kind that they do not know
_UNKNOWN_KIND = re.compile(
    r"un(supported|known|recogni[sz]ed)|not (supported|implemented)|cannot handle|no codec", re.I
)


class Damage(ValueError):
    """What is wrong with a file, in words that people can read; becomes an ImageError."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: RGB uint8 (h, w, 3), or the channels that were chosen (h, w, n), C-contiguous, upright.
            ceil(`size` / 2), / 4 or / 8 after a reduced decode: then each pixel stands for a whole block of
            the full picture, the last ones for a block that may reach past its bottom and right (see
            `geometry.to_network`).
        size: (height, width) of the whole picture, upright, at full resolution.
        missing: bool (h, w) as `pixels`, True where the file says that it has no value; None where there is a
            value everywhere.
        alpha: uint8 (h, w) as `pixels`, its opacity; None where it is opaque.
        metadata: what outputs take over from the file.
        notes: what people should know of how it was read.
    """

    pixels: Pixels
    size: Size
    missing: NDArray[np.bool_] | None = None
    alpha: Pixels | None = None
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """A picture that is open and whose format is known.

    Attributes:
        name: what errors call it: its path, or the name of bytes in memory.
        file: its contents, from the first byte; empty for an OME-Zarr, which is a folder of that name.
        format: of the contents.
        max_pixels: largest height x width that may be decoded.
    """

    name: str
    file: BinaryIO
    format: Format
    max_pixels: int

    def check_size(self, height: int, width: int) -> None:
        """Raise ImageTooLarge if a header announces more than `max_pixels`."""
        if height * width > self.max_pixels:
            raise ImageTooLarge(
                f"{self.name}: {height}x{width} (height x width) are {height * width:,} pixels, the limit is "
                f"{self.max_pixels:,}",
                hint=too_large_hint(height * width)
                + (
                    "; or have run read it in bands of rows: --fit tile"
                    if self.format.name in ("TIFF", "OME-Zarr")
                    else ""
                ),
            )


def too_large_hint(pixels: int) -> str:
    """The smallest limit that a picture passes, and where to give it."""
    return f"if you trust the file: --max-pixels {pixels} (in Python: max_pixels={pixels}); or scale it down"


def is_supported(name: str) -> bool:
    """Tell from its extension whether a file is worth reading; so it is even without its package."""
    return extension_of(name) in EXTENSIONS


def may_be_dicom(name: str) -> bool:
    """Tell from its extension whether a file may be DICOM: it is none of another format."""
    return name.lower().endswith((".dcm", ".dicom")) or not is_supported(name)


def is_unnamed_dicom(path: str) -> bool:
    """Tell whether a file without an extension, as scanners write them, is DICOM; looks into no other."""
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1][1:]
    if (extension and not extension.isdigit()) or name.upper() == "DICOMDIR":  # 1.2.840.113619.2.55 is a name
        return False
    with suppress(OSError, ValueError):
        return archives.read_head(path, _HEAD_BYTES)[128:] == b"DICM"
    return False


@contextmanager
def open_source(
    name: str, max_pixels: int, data: bytes | None = None, *, at_once: int = 0
) -> Iterator[Source]:
    """Open a picture, find out its format, and turn whatever its decoder raises into an ImageError.

    Args:
        name: path of a regular file; with `data`, only what errors call it.
        max_pixels: largest height x width that may be decoded.
        data: the contents of a file, if they are in memory.
        at_once: a file of up to so many bytes is read as a whole, even if its decoder wants a part.
    """
    kind = "picture"
    try:
        is_store = data is None and stores.is_store(name)
        with (
            BytesIO(data or b"") if is_store or data is not None else _open_file(name, at_once) as file,
            ignore_warnings(),
        ):
            format = OME_ZARR if is_store else _detect_format(name, file.read(_HEAD_BYTES))
            kind = format.name
            file.seek(0)
            yield Source(name, file, format, max_pixels)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode this {kind}") from error
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        pixels = int(count[0]) if count else 0
        raise ImageTooLarge(
            f"{name}: {pixels} pixels, Pillow reads no more than {_PILLOW_PIXELS:,} of a {kind}",
            hint=f"save it as PNG or JPEG, of which --max-pixels {pixels} reads more; or scale it down",
        ) from error
    except Exception as error:
        message = f"{name}: cannot decode this {kind}: {_reason(error)}"
        raise ImageError(message, hint=_hint(error)) from error


def _reason(error: Exception) -> str:
    """Why a file cannot be decoded, in words for people.

    On a hostile file libraries raise nearly anything, down to a bare number or "string index out of range":
    of theirs only the kind is told; the exception itself is the cause of the ImageError.
    """
    if isinstance(error, Damage):
        return str(error)
    if number := getattr(error, "errno", None):  # the disk failed, not the file
        return os.strerror(number)
    if isinstance(error, ModuleNotFoundError):
        return f"it needs {error.name}, which is not installed"
    if _is_of_unknown_kind(error):
        return "it is of a kind that is not supported, or its header is damaged"
    if "truncated" in str(error):
        return "it is truncated: its data end early"
    return "its data are damaged or cut short"


def _hint(error: Exception) -> str:
    if getattr(error, "errno", None):
        return ""
    if isinstance(error, ModuleNotFoundError):
        return f"pip install {error.name}"
    return CONVERT if _is_of_unknown_kind(error) else _DAMAGED


def _is_of_unknown_kind(error: Exception) -> bool:
    said = not isinstance(error, Damage) and _UNKNOWN_KIND.search(str(error))
    return bool(said) or isinstance(error, NotImplementedError)


def _open_file(path: str, at_once: int) -> BinaryIO:
    """Open a regular file; a named pipe would wait for ever, a directory has no pixels."""
    try:
        if (file := archives.open_regular(path, at_once)) is not None:
            return file
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    raise ImageError(f"{path}: is {'a directory' if os.path.isdir(path) else 'not a regular file'}")


def _detect_format(name: str, head: bytes) -> Format:
    """Find the format from the first bytes of a file; raise ImageError saying what they look like instead."""
    for pattern, format in _SIGNATURES:
        if pattern.match(head):
            return format
    extension = os.path.splitext(name)[1][1:].lower()
    for format in _WITHOUT_SIGNATURE:
        if extension in format.extensions.split() and len(head) > 18:  # the bytes of a TGA's header
            return format
    hint = "leave it out, or convert it to PNG or JPEG"
    if not head:
        looks, hint = "an empty file", _RESTORE
    elif not head.strip(b"\0"):
        looks, hint = "a file of zero bytes, as an interrupted copy leaves behind", _RESTORE
    elif head.startswith(b"version https://git-lfs"):
        looks = "a Git LFS pointer, not the picture it stands for"
        hint = "fetch the picture with: git lfs pull"
    elif head[4:8] == b"ftyp":
        looks = f"a video or another ISO media file (brand {head[8:12].decode('latin-1')!r})"
    elif all(byte >= 0x20 or byte in b"\t\n\r" for byte in head.rstrip(b"\0")) and head[:4] != b"%PDF":
        looks = "looks like a text file"
    else:
        looks = f"not an image format known here (first bytes {head[:8].hex(' ')})"
    raise ImageError(f"{name}: {looks}", hint=hint)


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 where it is absent, invalid or unreadable."""
    with suppress(Exception):
        value = image.getexif().get(0x0112)
        if value in range(1, 9):
            return cast("int", value)
    return 1


def apply_orientation(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (h, w, c) or (h, w) upright by its EXIF orientation (1..8); returns a C-contiguous array.

    cv2 takes 1 ms for 1280x1918, numpy 11 to 25 ms.
    """
    if orientation > 1 and pixels.ndim == 3 and pixels.shape[2] > 4:  # more than cv2 turns together
        planes = [
            apply_orientation(np.ascontiguousarray(plane), orientation) for plane in np.moveaxis(pixels, 2, 0)
        ]
        pixels = np.stack(planes, -1)
    elif orientation in (3, 6, 8):
        rotations = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
        pixels = cv2.rotate(pixels, rotations[orientation])
    elif orientation in (2, 4):
        pixels = cv2.flip(pixels, 1 if orientation == 2 else 0)
    elif orientation in (5, 7):
        pixels = cv2.transpose(pixels if orientation == 5 else cv2.rotate(pixels, cv2.ROTATE_180))
    return np.ascontiguousarray(pixels)


def over_white(rgb: Pixels, alpha: Pixels, premultiplied: bool = False) -> Pixels:
    """Composite RGB pixels with their opacity over white; `premultiplied`: they are multiplied by it."""
    if premultiplied:
        return cast("Pixels", cv2.add(rgb, cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2RGB)))
    canvas = Image.new("RGB", rgb.shape[1::-1], (255, 255, 255))
    canvas.paste(Image.fromarray(rgb), mask=Image.fromarray(alpha))
    return np.array(canvas, np.uint8)


def choose_channels(bands: NDArray[Any], channels: Channels, name: str) -> NDArray[Any]:
    """Take channels of a picture (h, w, bands), in their order: (h, w, len(channels)).

    Raises:
        ImageError: it has fewer.
    """
    check_channels(bands.shape[2], channels, name)
    return np.ascontiguousarray(bands[..., [channel - 1 for channel in channels]])


def check_channels(count: int, channels: Channels, name: str) -> tuple[str, ...]:
    """Raise ImageError if a picture of `count` bands has not all channels; a note if some are left out."""
    wanted = ",".join(map(str, channels))
    if max(channels) > count:
        there = ",".join(map(str, range(1, 1 + min(count, len(channels)))))
        hint = f"leave it out, or choose from its own: --channels {there} (in Python: channels=...)"
        if count < len(set(channels)):
            hint = f"leave it out, or take a model for its bands: train --channels {there} makes one"
        raise ImageError(
            f"{name}: has {count} {'band' if count == 1 else 'bands'}, the network takes channels {wanted}",
            hint=hint,
        )
    return (
        (f"{count} bands: {wanted} {'is' if len(channels) == 1 else 'are'} read",)
        if count > len(set(channels))
        else ()
    )


class _DecoderModules:
    """The pattern of module names in a warnings filter: the decoders', on threads that are decoding."""

    def match(self, module: str) -> bool:
        return getattr(_thread, "decoding", False) and module.startswith(
            ("PIL.", "pillow_heif", "tifffile", "pydicom", "highdicom", "zarr")
        )


def _ours_to_say(record: logging.LogRecord) -> bool:
    """Keep what a library logs of a file that is being decoded here; what matters becomes an error."""
    return not getattr(_thread, "decoding", False)


for _library in ("tifffile", "pydicom"):
    logging.getLogger(_library).addFilter(_ours_to_say)


_thread = threading.local()
_FILTER = ("ignore", None, Warning, _DecoderModules(), 0)


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Keep the decoders' warnings about odd metadata from the screen, and from becoming errors.

    `warnings.catch_warnings` swaps a list that all threads share, so threads that overlap undo each other's
    work. This filter stays in the list instead (put back first where others have changed the list) and
    matches nothing while no picture is decoded.
    """
    filters = cast("list[Any]", warnings.filters)
    if not filters or filters[0] is not _FILTER:
        with suppress(ValueError):
            filters.remove(_FILTER)
        filters.insert(0, _FILTER)
    _thread.decoding = True
    try:
        yield
    finally:
        _thread.decoding = False
