"""Encode masks, maps, cutouts and overlays as PNG, WebP and JPEG.

Overlays and cutouts say that they are sRGB, and carry the metadata of their pictures; masks and maps hold
numbers.
"""

from __future__ import annotations

import functools
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import cv2
import numpy as np
import simplejpeg

from unet_batch.errors import EncodeError
from unet_batch.media.images.profiles import srgb_profile
from unet_batch.media.scratch import scratch
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from unet_batch.types import Colour, Pixels, Size

JPEG_SIDE = 65500
"""Most pixels along a side of a JPEG: libjpeg's own limit; the format could hold 65535."""

WEBP_SIDE = 16383
"""The same of a WebP: what 14 bits hold."""

_NO_METADATA = Metadata()
_NO_FILTER, _UP = 0, 2  # of a PNG's rows
_LARGEST = 2**30  # bytes that are compressed at once: a chunk of a PNG holds less than 2 ** 31


def encode_mask(mask: Pixels) -> bytes:
    """Encode uint8 (h, w) as an 8-bit grey PNG.

    For a 1280x1918 mask of 0 and 255: 0.8 to 1.1 ms for zlib-ng and 7 kB; by cv2 at its best 7 ms and 5 kB.

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    return _grey_png(_checked(mask, np.uint8, 2), _NO_FILTER)


def mask_canvas(size: Size) -> Pixels:
    """Lend memory for a mask, uint8 `size`, all 0, that `encode_mask` then takes without a copy.

    It is scratch: whatever this thread encodes next writes over it.
    """
    rows = _rows(size[0], size[1])
    rows.fill(_NO_FILTER)  # 0.05 ms for 1280x1918
    return rows[:, 1:]


def encode_map(values: Pixels | NDArray[np.uint16]) -> bytes:
    """Encode a smooth map, uint8 or uint16 (h, w), as a grey PNG of as many bits.

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    return _grey_png(_checked(values, np.uint16 if values.dtype == np.uint16 else np.uint8, 2), _UP)


def encode_palette(ids: Pixels, colours: Sequence[Colour]) -> bytes:
    """Encode class ids, uint8 (h, w), as a PNG whose palette has their colours: ids without one are black.

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    values = _checked(ids, np.uint8, 2)
    entries = np.zeros((max(len(colours), int(values.max()) + 1), 3), np.uint8)
    entries[: len(colours)] = colours
    return _grey_png(values, _NO_FILTER, entries.tobytes())


def encode_webp(rgba: Pixels, quality: int = 90, metadata: Metadata = _NO_METADATA) -> bytes:
    """Encode uint8 (h, w, 4), RGBA in sRGB, as a WebP; its alpha is kept as it is.

    Raises:
        EncodeError: another shape or type, or a side above 16383 pixels.
    """
    from PIL import Image

    pixels = _contiguous(rgba, 4)
    if max(pixels.shape) > WEBP_SIDE:
        raise EncodeError(
            f"{pixels.shape[0]}x{pixels.shape[1]} (height x width) is too large for WebP: no side may "
            f"exceed {WEBP_SIDE}",
            hint="ask for PNG",
        )
    out = BytesIO()
    more = {"exif": b"Exif\0\0" + metadata.exif} if metadata.exif else {}
    try:
        Image.fromarray(pixels).save(out, "WEBP", quality=quality, icc_profile=srgb_profile(), **more)
    except (OSError, ValueError, MemoryError) as error:
        raise EncodeError(f"cannot encode {pixels.shape[0]}x{pixels.shape[1]} as WebP: {error}") from error
    return out.getvalue()


def encode_rgba(rgba: Pixels, metadata: Metadata = _NO_METADATA) -> bytes:
    """Encode uint8 (h, w, 4), RGBA in sRGB, as a PNG.

    For a 1280x1918 photo: 38 ms and 1.0 MB; cv2's own choice 39 ms and 1.3 MB.

    Raises:
        EncodeError: another shape or type, or the encoder refused.
    """
    bgra = cv2.cvtColor(_contiguous(rgba, 4), cv2.COLOR_RGBA2BGRA)
    data = _png(bgra, "UP", cv2.IMWRITE_PNG_STRATEGY_DEFAULT)
    chunks = _chunk(b"sRGB", b"\1")  # for a rendering intent: relative colorimetric
    if metadata.dpi:
        across, down = (min(round(dots / 0.0254), 2**31 - 1) for dots in metadata.dpi)
        chunks += _chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if metadata.exif:
        chunks += _chunk(b"eXIf", metadata.exif)
    start = 8 + 12 + 13  # behind the signature and IHDR
    return data[:start] + chunks + data[start:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode_jpeg(rgb: Pixels, quality: int = 90, metadata: Metadata = _NO_METADATA) -> bytes:
    """Encode uint8 (h, w, 3), RGB in sRGB, as a JPEG with full-resolution colour (4:4:4).

    Halving the colour planes smears the coloured contours of an overlay: along a 2-pixel line the mean error
    is 20 levels instead of 3. It would save 3.3 of 7.9 ms and 24 % of 195 kB for 1280x1918.

    Raises:
        EncodeError: another shape or type, or a side above 65500 pixels.
    """
    pixels = _contiguous(rgb, 3)
    if max(pixels.shape) > JPEG_SIDE:
        raise EncodeError(
            f"{pixels.shape[0]}x{pixels.shape[1]} (height x width) is too large for JPEG: no side may "
            f"exceed {JPEG_SIDE}",
            hint="ask for PNG",
        )
    try:
        data = cast("bytes", simplejpeg.encode_jpeg(pixels, quality, "RGB", "444"))
    except (ValueError, MemoryError) as error:
        raise EncodeError(f"cannot encode {pixels.shape[0]}x{pixels.shape[1]} as JPEG: {error}") from error
    jfif = bytearray(data[:20])  # with the marker before it
    if metadata.dpi:
        jfif[13:18] = struct.pack(">BHH", 1, *(min(max(round(dots), 1), 65535) for dots in metadata.dpi))
    segments = _segment(0xE2, b"ICC_PROFILE\0\1\1" + srgb_profile())
    if metadata.exif:
        segments = _segment(0xE1, b"Exif\0\0" + metadata.exif) + segments
    return bytes(jfif) + segments + data[20:]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _checked(values: NDArray[Any], dtype: type, ndim: int, channels: int = 0) -> NDArray[Any]:
    """Check the type and shape of what is encoded."""
    fits = values.dtype == dtype and values.ndim == ndim and channels in (0, values.shape[-1])
    if not fits or not values.size:
        shape = "(h, w)" if not channels else f"(h, w, {channels})"
        raise EncodeError(
            f"cannot encode {values.dtype} {values.shape}: needs {np.dtype(dtype)} {shape} and no side of 0"
        )
    return values


def _contiguous(values: NDArray[Any], channels: int) -> NDArray[Any]:
    return np.ascontiguousarray(_checked(values, np.uint8, 3, channels))


def _rows(height: int, width: int) -> Pixels:
    """Rows of bytes as a PNG has them, each with its filter before it; scratch."""
    return scratch("png", (height, 1 + width), np.uint8)


def _grey_png(values: NDArray[Any], row_filter: int, palette: bytes = b"") -> bytes:
    """Encode uint8 or uint16 (h, w) as a PNG, grey or with a palette, one filter for all rows, by zlib-ng.

    Masks as networks make them are smaller without a filter, and a quarter faster from map to file; smooth
    maps need the row above taken off. zlib-ng at level 1 makes masks four times as large, at level 3 maps
    10 % smaller and takes 20 % longer. A build of imagecodecs without it leaves this to cv2: the same pixels,
    in other bytes.
    """
    deflate = _zlib_ng()
    if (deflate is None or values.nbytes > _LARGEST) and not palette:
        name = "UP" if row_filter == _UP else "NONE"
        return _png(np.ascontiguousarray(values), name, cv2.IMWRITE_PNG_STRATEGY_RLE)
    (height, width), size = values.shape, values.itemsize
    try:
        stored = values if size == 1 else values.astype(">u2", order="C").view(np.uint8)
        rows = _rows(height, width * size)
        if row_filter == _UP:
            rows[:, 0] = _UP
            rows[0, 1:] = stored[0]
            np.subtract(stored[1:], stored[:-1], out=rows[1:, 1:])
        elif _place(stored) != _place(rows[:, 1:]):  # else it was drawn there: `mask_canvas`
            rows[:, 0] = _NO_FILTER
            rows[:, 1:] = stored
        pixels = zlib.compress(rows.data, 2) if deflate is None else deflate(rows, level=2)
    except (RuntimeError, MemoryError) as error:
        raise EncodeError(f"cannot encode {height}x{width} as PNG: {error}") from error
    header = struct.pack(">IIBBBBB", width, height, 8 * size, 3 if palette else 0, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    if palette:
        chunks.insert(1, _chunk(b"PLTE", palette))
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks))


def _place(array: NDArray[Any]) -> tuple[int, tuple[int, ...]]:
    """Where the elements of an array lie in memory."""
    return array.__array_interface__["data"][0], array.strides


@functools.cache
def _zlib_ng() -> Callable[..., bytes] | None:
    """The encoder of imagecodecs, imported when the first PNG is written; None where it has none."""
    try:
        import imagecodecs
    except ImportError:
        return None
    return cast("Callable[..., bytes]", imagecodecs.zlibng_encode) if imagecodecs.ZLIBNG.available else None


def _png(values: NDArray[Any], row_filter: str, strategy: int) -> bytes:
    """Encode grey or BGRA pixels as a PNG with one filter for all rows.

    Level 1 alone makes cv2 try every filter on every row (15 ms for a mask). cv2 4.10 gives no choice of a
    filter: there, its own choice of everything (level 1, one filter) is the fast one.
    """
    options: list[int] = []
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        row = getattr(cv2, f"IMWRITE_PNG_FILTER_{row_filter}")
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy]
        options += [cv2.IMWRITE_PNG_FILTER, row]
    try:
        done, data = cv2.imencode(".png", values, options)
    except (cv2.error, MemoryError) as error:
        raise EncodeError(f"cannot encode {values.shape[0]}x{values.shape[1]} as PNG: {error}") from error
    if not done:
        raise EncodeError(f"cannot encode {values.shape[0]}x{values.shape[1]} as PNG")
    return data.tobytes()


class GreyPngWriter:
    """Writes a grey PNG from top to bottom, as `encode_mask` and `encode_map` make it of the whole.

    By zlib, whose runs of one byte make masks smaller than zlib-ng does, in the same time; of smooth maps its
    level 2 makes as much, in a quarter more time.

    Args:
        file: to write to.
        size: (height, width).
        bits: of a value, 8 or 16.
        smooth: it is a map, and each row is stored less the one above.
    """

    def __init__(self, file: BinaryIO, size: Size, *, bits: int = 8, smooth: bool = False) -> None:
        self._file, self._smooth = file, smooth
        strategy = zlib.Z_DEFAULT_STRATEGY if smooth else zlib.Z_RLE
        self._deflate = zlib.compressobj(2 if smooth else 1, zlib.DEFLATED, 15, 9, strategy)
        self._above = np.zeros(size[1] * bits // 8, np.uint8)
        header = struct.pack(">IIBBBBB", size[1], size[0], bits, 0, 0, 0, 0)
        file.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header))

    def write(self, rows: Pixels | NDArray[np.uint16]) -> None:
        """Add rows, (n, width) of as many bits; less than a gigabyte of them."""
        stored = rows if rows.itemsize == 1 else rows.astype(">u2", order="C").view(np.uint8)
        filtered = _rows(stored.shape[0], stored.shape[1])
        if self._smooth:
            filtered[:, 0] = _UP
            np.subtract(stored[0], self._above, out=filtered[0, 1:])
            np.subtract(stored[1:], stored[:-1], out=filtered[1:, 1:])
            self._above = stored[-1].copy()
        else:
            filtered[:, 0] = _NO_FILTER
            filtered[:, 1:] = stored
        self._write_data(self._deflate.compress(filtered.data))

    def finish(self) -> None:
        """Write the end; call it once all rows have been."""
        self._write_data(self._deflate.flush())
        self._file.write(_chunk(b"IEND", b""))

    def _write_data(self, data: bytes) -> None:
        if data:
            self._file.write(_chunk(b"IDAT", data))
