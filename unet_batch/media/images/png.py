"""Decode PNG: chunk by chunk, each against its checksum."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from unet_batch.media.images.common import Damage, Source
from unet_batch.media.images.profiles import coded_profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

_GREY, _RGB = 0, 2
# Bytes of a tRNS chunk by the kind of colour; others are ignored, as libpng does
_TRANSPARENT = {_GREY: (2,), _RGB: (6,), 3: range(1, 257)}
_MOST_BYTES = 1 << 22  # of a profile, or of a text, once unpacked
_DAMAGED_PROFILE = b"?"
# Keywords that PNG itself names, and their tags in EXIF
_WORDS = {b"Copyright": 0x8298, b"Author": 0x013B}


def open_png(source: Source, data: bytes) -> PngImageFile:
    """Decode the chunks that make the pixels, with Pillow: critical ones, transparency, orientation.

    Pillow checks no checksum of pixel data, gives up on a large text or profile that nobody asked for, and
    leaves rows black that the compressed stream does not hold. Without the animation chunks it decodes the
    default image. 23 ms for 1280x1918, cv2 24.

    Args:
        source: the picture.
        data: its contents.

    Returns:
        The loaded picture. Of its `info`, "icc_profile", "dpi", "xmp" and "exif" are as Pillow fills them;
        also "notes" (phrases for people), "words" (texts by their tag in EXIF), "deep" (the file, if Pillow
        has made 8 bits of 16) and "alpha" (uint8 (h, w)), if a colour is transparent: Pillow loses that where
        values have 2, 4 or 16 bits.
    """
    view, stream, at = memoryview(data), [], 8
    keep, info = [view[:8]], dict[str, Any]()
    while at + 12 <= len(data):
        length, kind = int.from_bytes(view[at : at + 4], "big"), data[at + 4 : at + 8]
        end, critical = at + 12 + length, not kind[0] & 0x20
        checksum = int.from_bytes(view[end - 4 : end], "big")
        intact = end <= len(data) and zlib.crc32(view[at + 4 : end - 4]) == checksum
        if kind == b"IEND":
            break
        if critical and not intact:
            name = kind.decode("latin-1") if kind.isalpha() else kind.hex(" ")
            raise Damage(f"chunk {name} at byte {at} is cut short or fails its checksum")
        if kind == b"IDAT":
            stream.append(view[at + 8 : end - 4])
        exif = kind == b"eXIf" or data[at + 8 : at + 30] == b"Raw profile type exif\0"
        transparent = kind == b"tRNS" and length in _TRANSPARENT.get(data[25], ())
        if intact and (critical or exif or transparent):
            keep.append(view[at:end])
        if not critical:
            _note_chunk(kind, bytes(view[at + 8 : end - 4]) if intact else b"", info)
        at = end
    if not stream:
        raise Damage("it holds no pixel data")
    file = b"".join(keep)
    image = PngImageFile(BytesIO(file))
    source.check_size(image.height, image.width)
    image.load()
    tail = np.asarray(image.crop((0, max(0, image.height - 2), image.width, image.height)))
    # Two rows: the last one of an interlaced PNG may not come last
    if not tail.reshape(len(tail), -1).any(axis=1).all():
        _check_rows(keep[1], stream)
    if keep[1][8 + 8] == 16 and keep[1][8 + 9] != _GREY:  # of which Pillow keeps 8
        info["deep"] = file
    if "transparency" in image.info and (colour := keep[1][8 + 9]) in (_GREY, _RGB):
        info["alpha"] = _opacity(image, keep[1][8 + 8], colour, file)
    if "cicp" in info:  # goes before any other description of colours
        info["icc_profile"], info["notes"] = coded_profile(*info.pop("cicp"))
    frames = info.pop("frames", 1)
    if frames > 1:
        info["notes"] = (*info.get("notes", ()), f"{frames} frames: the default image is read")
    image.info.update(info)
    return image


def _opacity(image: PngImageFile, bits: int, colour: int, file: bytes) -> Pixels:
    """Opacity (h, w) where one grey level or RGB colour is transparent: 0 there, else 255.

    Pillow compares it with values of another depth, where these have 2, 4 or 16 bits.
    """
    if colour == _RGB and bits == 16:  # of which Pillow keeps 8
        import imagecodecs

        return _opaque(imagecodecs.png_decode(file)[..., 3] > 0)
    at = file.index(b"tRNS") + 4
    clear = np.frombuffer(file, ">u2", 1 if colour == _GREY else 3, at) & (2**bits - 1)
    if bits < 8:
        clear = clear * 255 // (2**bits - 1)
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    hidden = values == clear
    return _opaque(~(hidden if colour == _GREY else hidden.all(axis=2)))


def _opaque(where: NDArray[np.bool_]) -> Pixels:
    opacity: Pixels = where.astype(np.uint8) * np.uint8(255)
    return opacity


def _note_chunk(kind: bytes, body: bytes, info: dict[str, Any]) -> None:
    """Take from an ancillary chunk what is worth it; `body` is empty where the chunk is damaged."""
    if kind == b"iCCP":
        info["icc_profile"] = _inflate(body.partition(b"\0")[2][1:]) or _DAMAGED_PROFILE
    elif kind == b"cICP" and len(body) == 4:
        info["cicp"] = body[0], body[1]
    elif kind == b"pHYs" and len(body) == 9 and body[8] == 1:
        across, down = struct.unpack(">II", body[:8])
        info["dpi"] = across * 0.0254, down * 0.0254
    elif kind == b"acTL" and len(body) == 8:
        info["frames"] = int.from_bytes(body[:4], "big")
    elif kind == b"tEXt":
        name, _, text = body.partition(b"\0")
        if name in _WORDS:
            info.setdefault("words", {})[_WORDS[name]] = text.decode("latin-1").encode()
    elif kind == b"iTXt":
        name, _, rest = body.partition(b"\0")
        parts = rest[2:].split(b"\0", 2)
        text = parts[2] if len(parts) == 3 else b""
        if rest[:1] == b"\1":
            text = _inflate(text)
        if name in _WORDS and text:
            info.setdefault("words", {})[_WORDS[name]] = text
        elif name == b"XML:com.adobe.xmp" and text:
            info["xmp"] = text


def _inflate(data: bytes) -> bytes:
    """Unpack what zlib has packed; b"" where that is damaged or large."""
    inflate = zlib.decompressobj()
    try:
        unpacked = inflate.decompress(data, _MOST_BYTES)
    except zlib.error:
        return b""
    return unpacked if inflate.eof else b""


# First row and column of each pass of an interlaced PNG, and its steps down and right
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def _check_rows(header: memoryview, stream: list[memoryview]) -> None:
    """Raise ValueError if the compressed stream of a PNG holds fewer bytes than its IHDR chunk announces."""
    width, height, depth, colour, interlaced = struct.unpack(">8xIIBB2xB4x", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
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
        raise Damage(f"the pixel data end {missing:,} bytes early")
