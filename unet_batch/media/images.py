"""Picture files to RGB pixels, and results to the contents of files: the only room that knows image formats.

What `read` returns is RGB uint8 as a person sees the picture, whatever was stored:

| stored                                    | becomes                                                                      |
|-------------------------------------------|------------------------------------------------------------------------------|
| 8-bit RGB                                 | itself                                                                       |
| grey, palette, 1 bit                      | replicated, looked up, 0 or 255                                              |
| alpha (RGBA, LA, a transparent colour)    | composited over white                                                        |
| CMYK, YCCK, YCbCr                         | the decoder's plain conversion; CMYK in a JPEG is taken as inverted (Adobe)  |
| L*a*b*                                    | sRGB by Little CMS                                                           |
| unsigned 16 bits                          | v / 257 rounded; colour read by Pillow: v >> 8, at most 1 below that         |
| unsigned 12 bits (TIFF BitsPerSample)     | v * 255 / 4095 rounded. 12 bits inside 16-bit samples count as 16: dark      |
| integers of 32 bits, signed ones, floats  | minimum..maximum of the finite values to 0..255; floats already within 0..1  |
|                                           | times 255; NaN 0; a constant picture 0                                       |
| several frames or pages                   | the first one; of an animated PNG the default image                          |
| EXIF orientation 2..8                     | applied; absent, invalid or unreadable: as stored                            |
| an ICC profile, gamma, white point        | ignored: networks are trained on pixels as stored                            |

A JPEG is decoded in libjpeg's strict mode, where every warning is an error: a lenient decoder fills what is
missing with grey. Some blemishes are cut out of the data, which must then pass the strict decoder as a whole:
metadata it dislikes (JFIF revision, Adobe transform), stray bytes between header segments, and, where one
Huffman-coded scan holds everything, a missing end marker or up to 16 surplus bytes (any number of zeros)
before it. A damaged scan that never shows as an error in the bit stream cannot be told from a picture; nor
can one inside a TIFF. PNG checksums are verified. libtiff, inside Pillow, writes a line of its own to stderr
when compressed TIFF data are damaged; nothing else here does.

A long room, since each of these rules has its exceptions; in four parts: what is common, JPEG, everything
else, encoders.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from unet_batch.errors import EncodeError, ImageError, ImageTooLarge

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from unet_batch.types import Pixels, Size

MAX_PIXELS = 200_000_000
"""Default limit, checked before decoding: 600 MB as RGB. Pillow allows TIFF, GIF and WebP no more than
178,956,970.

An AVIF or HEIC whose inner stream is larger than its header says is held by its library's own limit (libavif:
268,435,456).
"""

_NAMES = "jpg jpeg jpe jfif mpo png apng webp tif tiff bmp dib gif avif avifs heic heif hif ppm pgm pbm pnm tga ico psd jp2 j2k"
EXTENSIONS = frozenset(_NAMES.split())
"""Extensions of the files that `read` can decode, lower case, without the dot."""

_DAMAGED = "the file is damaged: restore it from its source, or leave it out"

# Pillow's plugins by name: PIL.Image.open would import all of them, warn from 89 megapixels on, and let a
# file of any extension reach formats that run other programs (EPS).
_PLUGINS = {
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "WebP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "PNM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "PSD": ("PIL.PsdImagePlugin", "PsdImageFile"),
    "ICO": ("PIL.IcoImagePlugin", "IcoImageFile"),
    "TGA": ("PIL.TgaImagePlugin", "TgaImageFile"),
    "JPEG 2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "HEIC": ("pillow_heif", "HeifImageFile"),
}
_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM", "BMP"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"....ftyp(avif|avis|(mif1|msf1|miaf).{4}(.{4})*?avif)", "AVIF"),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC"),
    (rb"II[*+]\x00|MM\x00[*+]", "TIFF"),
    (rb"P[1-6fF]\s", "PNM"),
    (rb"8BPS", "PSD"),
    (rb"\x00\x00\x01\x00[^\x00]", "ICO"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
)
_FORMATS = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _SIGNATURES)
_HEAD = 64


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: RGB uint8 (h, w, 3), C-contiguous, upright. `size` / 2, / 4 or / 8 after a reduced decode:
            then each pixel stands for a whole block of the full picture, so that stretching `pixels` over
            `size` shifts nothing.
        size: (height, width) of the whole picture, upright, at full resolution.
    """

    pixels: Pixels
    size: Size


def is_supported(name: str) -> bool:
    """Tell from its extension whether a file is worth reading; HEIC counts even where pillow-heif is not
    installed.
    """
    return os.path.splitext(name)[1][1:].lower() in EXTENSIONS


def read(path: str, *, at_least: Size | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture file. The contents decide the format, not the extension (but for TGA, which has no
    signature).

    Safe to call from many threads; the decoders release the GIL.

    Args:
        path: a regular file.
        at_least: (height, width), upright, that is enough for the caller: a JPEG is then decoded at 1/8, 1/4
            or 1/2, the first that divides both sides and is at least as large in both directions. Other
            formats ignore it.
        max_pixels: largest height x width that is decoded.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: no such file, not a picture, truncated, damaged, or of a kind that is not supported.
    """
    with _decoding(path) as (file, name):
        if name == "JPEG":
            return _read_jpeg(path, file.read(), at_least, max_pixels)
        if name == "TIFF":
            pixels = _read_tiff(path, file, max_pixels)
        elif name == "PNG":
            pixels = _finished(_open_png(path, file.read(), max_pixels))
        else:
            pixels = _finished(_opened(path, file, name, max_pixels))
        return Picture(pixels, (pixels.shape[0], pixels.shape[1]))


def read_ids(path: str, *, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[Any], str]:
    """Decode a mask: the numbers that are stored, not what a person sees. Upright, like everything from this
    room.

    Returns:
        The values and what they are: "grey" (uint8 or uint16, h x w; 1-bit pixels are 0 and 1), "index"
        (uint8, h x w: places in a palette, whatever its colours), "colour" (RGB uint8, h x w x 3; black where
        alpha is 0), "jpeg" (uint8, h x w: grey levels that the compression has blurred).

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: as for `read`; or the values are fractions, negative, or above 65535.
    """
    with _decoding(path) as (file, name):
        if name == "JPEG":
            return cv2.cvtColor(
                _read_jpeg(path, file.read(), None, max_pixels).pixels, cv2.COLOR_RGB2GRAY
            ), "jpeg"
        data = file.read() if name == "PNG" else b""
        image = _open_png(path, data, max_pixels) if data else _opened(path, file, name, max_pixels)
        image.load()
        if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
            values: NDArray[Any] = np.array(image)
            if values.dtype.kind != "u":  # bits, and 16-bit numbers that Pillow holds in 32
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError(
                        f"its values, {values.min()} to {values.max()}, cannot be ids: 0 to 65535 expected"
                    )
                values = values.astype(np.uint8 if image.mode == "1" else np.uint16)
            # Pillow stretches 2 and 4 bits of grey over 0..255
            if data and image.mode == "L" and data[24] in (2, 4):
                values //= 255 // (2 ** data[24] - 1)
        elif image.mode in ("F", "LAB"):
            raise ImageError(
                f"{path}: pixels of type {image.mode} cannot be ids",
                hint="save the mask as an 8-bit grey PNG",
            )
        elif image.has_transparency_data:
            rgba = np.array(image.convert("RGBA"))
            values = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(0))
        else:
            values = np.array(image.convert("RGB"))
        kind = "index" if image.mode == "P" else "grey" if values.ndim == 2 else "colour"
        return _upright(values, _orientation(image)), kind


def orientation(path: str) -> int:
    """EXIF orientation of a picture, 1 to 8: the turn that `read` has undone; 1 where it is absent or
    unreadable.

    Raises:
        ImageError: no such file, or not a picture.
    """
    with _decoding(path) as (file, name):
        return _orientation(JpegImageFile(file) if name == "JPEG" else _opened(path, file, name, MAX_PIXELS))


@contextmanager
def _decoding(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open a picture, name its format, and turn whatever its decoder raises into an ImageError."""
    name = "picture"
    try:
        with _open(path) as file, _pillow_warnings_ignored():
            name = _format_of(path, file.read(_HEAD))
            file.seek(0)
            yield file, name
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory to decode this {name}") from error
    except Image.DecompressionBombError as error:
        reason = str(error).partition(", could")[0]  # says how many pixels, and the limit
        raise ImageTooLarge(f"{path}: {reason}", hint="scale the picture down first") from error
    except Exception as error:
        # On a hostile file Pillow raises nearly anything: struct.error, KeyError, zlib.error...
        reason = str(error) or type(error).__name__
        hint = "" if getattr(error, "errno", None) else _DAMAGED  # errno: the disk failed, not the file
        raise ImageError(f"{path}: cannot decode this {name}: {reason}", hint=hint) from error


def _open(path: str) -> BinaryIO:
    """Open a regular file; a named pipe would wait for ever, a directory has no pixels."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    raise ImageError(f"{path}: is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}")


def _format_of(path: str, head: bytes) -> str:
    """Name the format from the first bytes of a file; raise ImageError saying what they look like instead."""
    for pattern, name in _FORMATS:
        if pattern.match(head):
            return name
    if path.lower().endswith(".tga") and len(head) > 18:
        return "TGA"
    hint = "leave it out, or convert it to PNG or JPEG"
    if not head:
        looks = "an empty file"
    elif not head.strip(b"\0"):
        looks = "a file of zero bytes, as an interrupted copy leaves behind"
    elif head.startswith(b"version https://git-lfs"):
        looks, hint = (
            "a Git LFS pointer, not the picture it stands for",
            "fetch the picture with: git lfs pull",
        )
    elif head[4:8] == b"ftyp":
        looks = f"a video or another ISO media file (brand {head[8:12].decode('latin-1')!r})"
    elif all(byte >= 0x20 or byte in b"\t\n\r" for byte in head.rstrip(b"\0")) and head[:4] != b"%PDF":
        looks = "looks like a text file"
    else:
        looks = f"not an image format known here (first bytes {head[:8].hex(' ')})"
    raise ImageError(f"{path}: {looks}", hint=hint)


def _check_size(path: str, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageTooLarge(
            f"{path}: {height}x{width} (height x width) are {height * width:,} pixels, the limit is "
            f"{max_pixels:,}",
            hint="scale the picture down first",
        )


class _PillowInside:
    """Stands in a warnings filter for the pattern of module names: Pillow's, on threads that are inside
    `read`.
    """

    def match(self, module: str) -> bool:
        return getattr(_thread, "reading", False) and module.startswith(("PIL.", "pillow_heif"))


_thread = threading.local()
_FILTER = ("ignore", None, Warning, _PillowInside(), 0)


@contextmanager
def _pillow_warnings_ignored() -> Iterator[None]:
    """Keep Pillow's warnings about odd metadata from the screen, and from becoming errors.

    `warnings.catch_warnings` swaps a list that all threads share, so threads that overlap undo each other's
    work. This filter stays in the list instead (put back first where others have changed the list) and
    matches nothing outside `read`.
    """
    filters = cast("list[Any]", warnings.filters)
    if not filters or filters[0] is not _FILTER:
        with suppress(ValueError):
            filters.remove(_FILTER)
        filters.insert(0, _FILTER)
    _thread.reading = True
    try:
        yield
    finally:
        _thread.reading = False


# JPEG -------------------------------------------------------------------------------------------------------


def _read_jpeg(path: str, data: bytes, at_least: Size | None, max_pixels: int) -> Picture:
    """Decode with TurboJPEG, which makes RGB itself: 3.3 ms for 1280x1918, cv2 3.6, Pillow 5 and more; 1.7 ms
    at 1/4.
    """
    height, width = (int(n) for n in simplejpeg.decode_jpeg_header(data, strict=False)[:2])
    _check_size(path, height, width, max_pixels)
    orientation = 1
    with suppress(Exception):  # a header that Pillow cannot read; the pixels have a decoder of their own
        orientation = _orientation(JpegImageFile(BytesIO(data)))  # 0.02 to 0.05 ms
    # libjpeg also knows 3/8, 5/8, 6/8 and 7/8, but without SIMD: 3.4, 6.4, 8.2 and 11 ms where 1/1 takes 3.2.
    step = 1
    if at_least is not None:
        need = at_least if orientation < 5 else at_least[::-1]
        # Where a step does not divide a side, libjpeg rounds up and the last pixel reaches past the picture:
        # 1918 columns at 1/4 become 480 for 479.5, which moves masks by a quarter of a network pixel (Dice
        # 0.998; without it 0.9993).
        fits = (
            n
            for n in (8, 4, 2)
            if height % n == width % n == 0 and height // n >= need[0] and width // n >= need[1]
        )
        step = next(fits, 1)
    for attempt in range(4):
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height // step, min_width=width // step)
            break
        except ValueError as error:
            mended = _mend_jpeg(data, str(error))
            if attempt == 3 or mended is None or mended == data:
                raise
            data = mended
    return Picture(_upright(pixels, orientation), (height, width) if orientation < 5 else (width, height))


def _mend_jpeg(data: bytes, complaint: str) -> bytes | None:
    """Cut from a JPEG what only a strict decoder minds; None if that cannot be done. The result proves itself
    by decoding.

    Where several scans follow each other (progressive files), a missing end can be a missing scan, which no
    decoder notices.
    A surplus of random bytes means that the decoder lost its place: of 200 flipped bits none left fewer than
    17 behind.
    """
    keep, at, frame, parts = [b"\xff\xd8"], 2, 0, 0
    while True:
        at = data.find(b"\xff", at)
        if not 0 <= at < len(data) - 9:
            return None
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        # Not a segment: stray bytes, or a marker without contents
        if kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD8:
            at += 1
            continue
        if kind == 0xD9:
            return None
        if kind == 0xDA:
            break
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame, parts = kind, data[at + 9]
        adobe = kind == 0xEE and "Adobe" not in complaint  # tells RGB from YCbCr
        if adobe or not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            keep.append(data[at:end])
        at = end
    body = data[at:]
    if frame in (0xC0, 0xC1) and body[4] == parts:  # Huffman, and one scan for all components
        close = body.find(b"\xff\xd9")
        surplus = re.search(r"(\d+) extraneous bytes before marker 0xd9", complaint)
        if close < 0 and "Premature end" in complaint:
            body += b"\xff\xd9"
        elif close > 0 and surplus:
            cut = close - int(surplus[1])
            if close - cut <= 16 or not body[cut:close].strip(b"\0"):
                body = body[:cut] + body[close:]
    return b"".join((*keep, body))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 where it is absent, invalid or unreadable."""
    with suppress(Exception):
        value = image.getexif().get(0x0112)
        if value in range(1, 9):
            return cast("int", value)
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1..8) to (h, w, c) or (h, w). cv2 takes 1 ms for 1280x1918, numpy 11 to 25
    ms.
    """
    turned: Any = pixels
    if orientation in (3, 6, 8):
        turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
        turned = cv2.rotate(pixels, turns[orientation])
    elif orientation in (2, 4):
        turned = cv2.flip(pixels, 1 if orientation == 2 else 0)
    elif orientation in (5, 7):
        turned = cv2.transpose(pixels if orientation == 5 else cv2.rotate(pixels, cv2.ROTATE_180))
    return cast("Pixels", np.ascontiguousarray(turned))


# Everything else --------------------------------------------------------------------------------------------


def _opened(path: str, file: BinaryIO, name: str, max_pixels: int) -> ImageFile:
    """Read a header with Pillow, and check the size it announces."""
    module, plugin = _PLUGINS[name]
    try:
        opener = getattr(importlib.import_module(module), plugin)
    except ImportError as error:
        raise ImageError(
            f"{path}: {name} needs the package pillow-heif", hint="pip install 'unet-batch[heic]'"
        ) from error
    if name == "ICO":
        _check_icons(path, file, max_pixels)
    image = cast("ImageFile", opener(file))
    _check_size(path, image.height, image.width, max_pixels)
    return image


def _check_icons(path: str, file: BinaryIO, max_pixels: int) -> None:
    """Check what the pictures inside an ICO say of their sizes: Pillow decodes one on opening, whatever its
    directory says.
    """
    directory = file.read(6 + 16 * 65535)
    for entry in range(6, min(len(directory), 6 + 16 * int.from_bytes(directory[4:6], "little")) - 15, 16):
        file.seek(int.from_bytes(directory[entry + 12 : entry + 16], "little"))
        head = file.read(24)
        png = head.startswith(b"\x89PNG")
        layout = ">16xII" if png else "<4xHH" if head.startswith(b"\x0c\0\0\0") else "<4xii"
        if len(head) >= struct.calcsize(layout):
            width, height = struct.unpack_from(layout, head)
            # A bitmap counts its mask's rows, too
            _check_size(path, abs(height) // (1 if png else 2), abs(width), max_pixels)
    file.seek(0)


def _finished(image: ImageFile) -> Pixels:
    """Decode the first frame; a TIFF is upright by then, and has lost its orientation tag."""
    image.load()
    return _upright(_to_rgb(image), _orientation(image))


def _open_png(path: str, data: bytes, max_pixels: int) -> ImageFile:
    """Decode with Pillow (23 ms for 1280x1918, cv2 24) what makes the pixels: critical chunks, transparency,
    orientation.

    Pillow checks no checksum of pixel data, gives up on a large text or profile that nobody asked for, and
    leaves rows black that the compressed stream does not hold. Without the animation chunks it decodes the
    default image.
    """
    view, stream, at = memoryview(data), [], 8
    keep = [view[:8]]
    while at + 12 <= len(data):
        length, kind = int.from_bytes(view[at : at + 4], "big"), data[at + 4 : at + 8]
        end, critical = at + 12 + length, not kind[0] & 0x20
        sound = end <= len(data) and zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(
            view[end - 4 : end], "big"
        )
        if kind == b"IEND":
            break
        if critical and not sound:
            raise ValueError(f"chunk {kind!r} at byte {at} is cut short or fails its checksum")
        if kind == b"IDAT":
            stream.append(view[at + 8 : end - 4])
        if sound and (
            critical or kind in (b"tRNS", b"eXIf") or data[at + 8 : at + 30] == b"Raw profile type exif\0"
        ):
            keep.append(view[at:end])
        at = end
    if not stream:
        raise ValueError("it holds no pixel data")
    image = _opened(path, BytesIO(b"".join(keep)), "PNG", max_pixels)
    image.load()
    tail = np.asarray(image.crop((0, max(0, image.height - 2), image.width, image.height)))
    # Two rows: the last one of an interlaced PNG may not come last
    if not tail.reshape(len(tail), -1).any(axis=1).all():
        _check_png_rows(keep[1], stream)
    return image


def _check_png_rows(header: memoryview, stream: list[memoryview]) -> None:
    """Raise ValueError if the compressed stream of a PNG holds fewer bytes than its IHDR chunk announces."""
    width, height, depth, colour, interlaced = struct.unpack(">8xIIBB2xB4x", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]  # first row and column, steps down and right
    if interlaced:
        passes = [
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]
    sizes = [
        (len(range(top, height, down)), len(range(left, width, right))) for top, left, down, right in passes
    ]
    missing = sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in sizes if columns)
    inflate = zlib.decompressobj()
    for chunk in stream:
        left: bytes | memoryview = chunk
        while left and missing > 0:
            missing -= len(inflate.decompress(left, 1 << 20))  # 1 MiB at a time
            left = inflate.unconsumed_tail
    missing -= len(inflate.flush())
    if missing > 0:
        raise ValueError(f"the pixel data end {missing:,} bytes early")


def _read_tiff(path: str, file: BinaryIO, max_pixels: int) -> Pixels:
    """Decode the first page with Pillow. cv2 knows a few layouts more, but takes planes of 16 bits for
    interleaved pixels.
    """
    hint = "convert it to 8-bit RGB"
    try:
        image = _opened(path, file, "TIFF", max_pixels)
    except SyntaxError as error:
        if "unknown pixel mode" not in str(error):
            raise
        reason = "its kind of TIFF (64-bit or RGB floats, over 4 channels...) is not supported"
        raise ImageError(f"{path}: {reason}", hint=hint) from error
    tags = cast("Any", image).tag_v2
    if tags.get(284) == 2 and max(tags.get(258, (1,))) > 8:  # Pillow reads planes of 16 bits as if they had 8
        raise ImageError(f"{path}: TIFF in separate planes of more than 8 bits is not supported", hint=hint)
    # Tiles, which are decoded whole, however much larger than the picture they are
    if 322 in tags and 323 in tags:
        _check_size(path, tags[323], tags[322], max_pixels)
    return _finished(image)


def _to_rgb(image: ImageFile) -> Pixels:
    """Apply the table at the top of this module to a loaded picture; returns (height, width, 3)."""
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    if mode.startswith("I") or mode == "F":
        values: NDArray[Any] = np.asarray(image)
        if mode == "I" and image.format == "PPM":  # 0..65535, whatever the file's own maximum
            values = values.astype(np.uint16)
        elif mode == "I" and image.format == "TIFF" and tags.get(339, (1,))[0] == 1:
            # Unsigned, held as signed
            values = values.view(np.uint32)
        levels = _levels(values, 4095 if tags.get(258) == (12,) else 65535)
        if values.itemsize == 2 and tags.get(262) == 0:  # PhotometricInterpretation 0: zero is white
            levels = 255 - levels
        if isinstance(clear := image.info.get("transparency"), int):
            levels[values == clear] = 255
        return cast("Pixels", cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB))
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.array(converted, np.uint8)
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return np.array(image if mode == "RGB" else image.convert("RGB"), np.uint8)


def _over_white(rgba: Image.Image) -> Pixels:
    canvas = Image.new("RGB", rgba.size, (255, 255, 255))
    canvas.paste(rgba, mask=rgba)
    return np.array(canvas, np.uint8)


def _levels(values: NDArray[Any], full: int = 65535) -> Pixels:
    """Scale numbers of any kind to uint8, by the table at the top of this module; `full` is white for
    uint16.
    """
    if values.dtype == np.uint8:
        return cast("Pixels", values)
    if values.dtype.kind == "u" and values.itemsize == 2:
        table = (np.arange(65536, dtype=np.uint32).clip(max=full) * 255 + full // 2) // full
        return cast("Pixels", table.astype(np.uint8)[values])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if low == high:
        return np.zeros(values.shape, np.uint8)
    with np.errstate(all="ignore"):
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    scaled = np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


# Encoders ---------------------------------------------------------------------------------------------------

_JPEG_SIDE = 65500  # libjpeg's own limit; the format could hold 65535


def encode_mask(mask: Pixels) -> bytes:
    """Encode uint8 (h, w) as an 8-bit grey PNG.

    For a 1280x1918 mask of 0 and 255: 3.3 ms and 5.5 kB; cv2's own choice 4.4 ms and 8.9 kB.

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    return _png(_checked(mask, np.uint8, 2), "NONE", cv2.IMWRITE_PNG_STRATEGY_RLE)


def encode_map(values: Pixels | NDArray[np.uint16]) -> bytes:
    """Encode a smooth map, uint8 or uint16 (h, w), as a grey PNG of as many bits.

    1280x1918 in 8 bit: 5.2 ms and 47 kB (as a mask: 4.5 ms and 114 kB); in 16 bit: 10.7 ms and 61 kB (cv2's
    choice: 97 kB).

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    return _png(
        _checked(values, np.uint16 if values.dtype == np.uint16 else np.uint8, 2),
        "UP",
        cv2.IMWRITE_PNG_STRATEGY_RLE,
    )


def encode_rgba(rgba: Pixels) -> bytes:
    """Encode uint8 (h, w, 4), RGBA, as a PNG: 38 ms and 1.0 MB for a 1280x1918 photo (cv2's choice: 39 ms and
    1.3 MB).

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    bgra = cv2.cvtColor(_checked(rgba, np.uint8, 3, 4), cv2.COLOR_RGBA2BGRA)
    return _png(bgra, "UP", cv2.IMWRITE_PNG_STRATEGY_DEFAULT)


def encode_jpeg(rgb: Pixels, quality: int = 90) -> bytes:
    """Encode uint8 (h, w, 3), RGB, as a JPEG with full-resolution colour (4:4:4).

    Halving the colour planes smears the coloured contours of an overlay: along a 2-pixel line the mean error
    is 20 levels instead of 3. It would save 3.3 of 7.9 ms and 24 % of 195 kB for 1280x1918.

    Raises:
        EncodeError: another shape or type, or a side above 65500 pixels.
    """
    pixels = _checked(rgb, np.uint8, 3, 3)
    if max(pixels.shape) > _JPEG_SIDE:
        raise EncodeError(
            f"{pixels.shape[0]}x{pixels.shape[1]} (height x width) is too large for JPEG: no side may "
            f"exceed {_JPEG_SIDE}",
            hint="ask for PNG",
        )
    try:
        return cast("bytes", simplejpeg.encode_jpeg(pixels, quality, "RGB", "444"))
    except (ValueError, MemoryError) as error:
        raise EncodeError(f"cannot encode {pixels.shape[0]}x{pixels.shape[1]} as JPEG: {error}") from error


def _checked(values: NDArray[Any], dtype: type, ndim: int, channels: int = 0) -> NDArray[Any]:
    right = (
        values.dtype == dtype and values.ndim == ndim and values.size and channels in (0, values.shape[-1])
    )
    if not right:
        shape = "(h, w)" if not channels else f"(h, w, {channels})"
        raise EncodeError(
            f"cannot encode {values.dtype} {values.shape}: needs {np.dtype(dtype)} {shape} and no side of 0"
        )
    return np.ascontiguousarray(values)


def _png(values: NDArray[Any], row_filter: str, strategy: int) -> bytes:
    """Encode as cv2 takes it (grey or BGRA).

    Level 1 alone makes cv2 try every filter on every row (15 ms for a mask). cv2 4.10 gives no choice of a
    filter: there, its own choice of everything (level 1, one filter) is the fast one.
    """
    options: list[int] = []
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        row = getattr(cv2, f"IMWRITE_PNG_FILTER_{row_filter}")
        options = [
            cv2.IMWRITE_PNG_COMPRESSION,
            1,
            cv2.IMWRITE_PNG_STRATEGY,
            strategy,
            cv2.IMWRITE_PNG_FILTER,
            row,
        ]
    try:
        done, data = cv2.imencode(".png", values, options)
    except (cv2.error, MemoryError) as error:
        raise EncodeError(f"cannot encode {values.shape[0]}x{values.shape[1]} as PNG: {error}") from error
    if not done:
        raise EncodeError(f"cannot encode {values.shape[0]}x{values.shape[1]} as PNG")
    return data.tobytes()
