"""Small pictures in many formats, written by Pillow and byte by byte."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_batch.media import images


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The contents of a file of a format of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_bytes(folder: Path, data: bytes, name: str = "x", **options: Any) -> NDArray[np.uint8]:
    """Write a file into a folder, and read its pixels."""
    path = folder / f"{name}-{threading.get_ident()}"
    path.write_bytes(data)
    return images.read(str(path), **options).pixels


def jpeg_variants(photo: Image.Image) -> dict[str, bytes]:
    """JPEG files of every coding that occurs, by name."""
    small = photo.resize((120, 95))
    return {
        "baseline": encoded(small, "JPEG"),
        "progressive": encoded(small, "JPEG", progressive=True),
        "restarts": encoded(small, "JPEG", restart_marker_rows=1, subsampling=0),
        "grey": encoded(small.convert("L"), "JPEG"),
        "cmyk": encoded(small.convert("CMYK"), "JPEG"),
    }


def grey(values: Any) -> NDArray[np.uint8]:
    """RGB (h, w, 3) of grey levels (h, w)."""
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def tiff(
    values: NDArray[Any],
    sample_format: int,
    photometric: int,
    raw: bytes = b"",
    bits: int = 0,
    planar: int = 1,
) -> bytes:
    """An uncompressed little-endian TIFF of one strip, or of one per channel."""
    height, width, channels = (*values.shape, 1)[:3]
    bits, raw = bits or values.itemsize * 8, raw or values.tobytes()
    start, tags = 400, 12
    shorts = 8 + 2 + tags * 12 + 4  # arrays of one short per channel follow the directory
    planes = channels if planar == 2 else 1

    def per_channel(tag: int, value: int, at: int) -> bytes:
        return struct.pack(
            "<HHII" if channels > 2 else "<HHIHH",
            tag,
            3,
            channels,
            *([at] if channels > 2 else [value, value]),
        )

    entries = [
        struct.pack("<HHII", 256, 4, 1, width),
        struct.pack("<HHII", 257, 4, 1, height),
        per_channel(258, bits, shorts),
        struct.pack("<HHII", 259, 3, 1, 1),
        struct.pack("<HHII", 262, 3, 1, photometric),
        struct.pack("<HHII", 273, 4, planes, start if planes == 1 else shorts + 40),
        struct.pack("<HHII", 277, 3, 1, channels),
        struct.pack("<HHII", 278, 4, 1, height),
        struct.pack("<HHII", 279, 4, planes, len(raw) if planes == 1 else shorts + 60),
        struct.pack("<HHII", 284, 3, 1, planar),
        struct.pack("<HHII", 296, 3, 1, 1),
        per_channel(339, sample_format, shorts + 20),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, tags) + b"".join(entries) + bytes(4)
    head += struct.pack("<10H", *[bits] * 10) + struct.pack("<10H", *[sample_format] * 10)
    size = len(raw) // planes
    head += struct.pack("<5I", *(start + i * size for i in range(5))) + struct.pack("<5I", *[size] * 5)
    return head.ljust(start, b"\0") + raw


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG of uncompressed rows, each after the byte of its filter."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def flat_jpeg(planes: list[NDArray[Any]], factors: list[tuple[int, int]], size: tuple[int, int]) -> bytes:
    """A baseline JPEG of flat 8x8 blocks, of any sampling.

    Args:
        planes: of each component its blocks, uint8 (rows, columns): whole MCUs.
        factors: of each component (across, down).
        size: (height, width).
    """
    lines, columns = (planes[0].shape[i] // factors[0][1 - i] for i in (0, 1))
    bits, last = [], [0] * len(planes)
    for row in range(lines):
        for column in range(columns):
            for index, (plane, (across, down)) in enumerate(zip(planes, factors, strict=True)):
                for y in range(row * down, (row + 1) * down):
                    for x in range(column * across, (column + 1) * across):
                        value = int(plane[y, x]) - 128
                        step, last[index] = value - last[index], value
                        length = abs(step).bit_length()
                        number = step if step > 0 else step + 2**length - 1
                        bits.append(f"{length:04b}" + (f"{number:0{length}b}" if length else "") + "0")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    parts = b"".join(bytes([i + 1, f[0] << 4 | f[1], 0]) for i, f in enumerate(factors))
    chosen = b"".join(bytes([i + 1, 0]) for i in range(len(planes)))
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            segment(0xDB, b"\0" + bytes([8] * 64)),
            segment(0xC0, struct.pack(">BHHB", 8, *size, len(planes)) + parts),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xDA, bytes([len(planes)]) + chosen + b"\0\x3f\0"),
            scan,
            b"\xff\xd9",
        )
    )


def dng(values: NDArray[np.uint16], orientation: int = 1, **options: Any) -> bytes:
    """A raw file of a camera with one filter of red, two of green and one of blue: an uncompressed DNG."""
    import tifffile

    short, text, byte, rational, signed = 3, 2, 1, 5, 10
    to_camera = [number for row in np.eye(3, dtype=int).tolist() for one in row for number in (one, 1)]
    tags = [
        (274, short, 1, orientation, True),
        (33421, short, 2, (2, 2), True),  # CFARepeatPatternDim, CFAPattern
        (33422, byte, 4, bytes([0, 1, 1, 2]), True),
        (50706, byte, 4, bytes([1, 4, 0, 0]), True),  # DNGVersion
        (50708, text, None, "unet-batch test", True),  # UniqueCameraModel
        (50714, short, 1, 0, True),  # BlackLevel, WhiteLevel
        (50717, short, 1, 65535, True),
        (50721, signed, 9, to_camera, True),  # ColorMatrix1, AsShotNeutral, CalibrationIlluminant1
        (50728, rational, 3, (1, 1) * 3, True),
        (50778, short, 1, 21, True),
    ]
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=32803, metadata=None, extratags=tags, **options)
    return file.getvalue()
