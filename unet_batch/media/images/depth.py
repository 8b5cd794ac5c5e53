"""Values at their file's own depth, where Pillow makes 8 bits of more, or stretches them over 16."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from unet_batch.media.images.common import Source

_HEADER_BYTES = 4096
_PNM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"(?:#[^\n]*)?\s")
_COMMENT = re.compile(rb"#[^\n]*")
_SIZ = b"\xff\x4f\xff\x51"  # a codestream of JPEG 2000 begins, and says its size
_SYCC = re.compile(rb"colr\x01..\0\0\0\x12", re.DOTALL)  # colours that would have to be converted


@dataclass(frozen=True)
class Depth:
    """What a file holds beyond its loaded picture.

    Attributes:
        decode: gives its values, grey (h, w) or colour (h, w, 3), in the file's own units.
        ends: the lowest and the highest that can be stored.
    """

    decode: Callable[[], NDArray[Any]]
    ends: tuple[int, int]


def find_depth(source: Source, image: Image.Image) -> Depth | None:
    """Look into a header; None where a loaded picture holds all there is in its file."""
    if source.format.name == "PNG" and (file := image.info.get("deep")) is not None:
        return Depth(lambda: _colours(_codecs().png_decode(file)), (0, 65535))
    if source.format.name not in ("JPEG 2000", "PNM"):
        return None
    source.file.seek(0)
    head = source.file.read(_HEADER_BYTES)
    if source.format.name == "PNM":
        return _find_pnm(source, head, image.size)
    at = head.find(_SIZ)
    if at < 0 or _SYCC.search(head, 0, at):
        return None
    (count,) = struct.unpack_from(">H", head, at + 40)
    kinds = {head[start : start + 3] for start in range(at + 42, at + 42 + 3 * count, 3)}
    bits = 1 + (head[at + 42] & 0x7F)
    if not 8 < bits <= 16 or kinds != {bytes((head[at + 42], 1, 1))}:
        return None
    signed = 1 << (bits - 1) if head[at + 42] & 0x80 else 0
    return Depth(
        lambda: _colours(_codecs().jpeg2k_decode(_contents(source))), (-signed, (1 << bits) - 1 - signed)
    )


def _find_pnm(source: Source, head: bytes, size: tuple[int, int]) -> Depth | None:
    header = _PNM.match(head)
    if header is None or header[4] == b"255":
        return None
    kind, full, start = int(header[1]), int(header[4]), header.end()
    shape = (size[1], size[0], 3) if kind in (3, 6) else (size[1], size[0])

    def decode() -> NDArray[Any]:
        data = _contents(source)[start:]
        if kind < 4:
            return np.array(_COMMENT.sub(b"", data).split()[: int(np.prod(shape))], np.uint16).reshape(shape)
        values = np.frombuffer(data, ">u2" if full > 255 else "u1", int(np.prod(shape)))
        return values.astype(np.uint16).reshape(shape)

    return Depth(decode, (0, full))


def _contents(source: Source) -> bytes:
    source.file.seek(0)
    return source.file.read()


def _colours(values: NDArray[Any]) -> NDArray[Any]:
    """Without opacity."""
    if values.ndim == 3 and values.shape[2] < 3:
        return values[..., 0]
    return values[..., :3] if values.ndim == 3 else values


def _codecs() -> Any:
    import imagecodecs

    return imagecodecs
