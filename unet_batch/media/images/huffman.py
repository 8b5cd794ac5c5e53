"""Check the entropy-coded data of a JPEG as strictly as libjpeg does, for the decoders that do not.

TurboJPEG makes every warning of libjpeg an error, but refuses unusual samplings (4:1:0, 3x1...), 12 bits and
lossless files; imagecodecs decodes those with the same libjpeg, and keeps quiet where it runs out of data. So
here the bits are walked symbol by symbol, without making pixels: each restart interval must be made of codes
of its Huffman tables, and end in its last byte. A second for each megabyte, which only such files take.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from unet_batch.media.images.common import Damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# Also that of JPEG-LS; 0xC4, 0xC8 and 0xCC mean other things
_STARTS_OF_FRAME = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_SURPLUS_BYTES = 16

Table = list[int]
"""For each 16 bits: bits of the code and of the number behind it, + 32 x (coefficients to go on)."""


@dataclass(frozen=True)
class Component:
    """One colour of a JPEG: its id, and its share of the samples across and down."""

    id: int
    across: int
    down: int


@dataclass(frozen=True)
class Frame:
    """What a JPEG's start of frame says.

    Attributes:
        kind: second byte of the marker: 0xC0 baseline, 0xC2 progressive, 0xC3 lossless...
        at: place of the marker in the file.
        bits: of a sample.
        height, width: in pixels.
        components: the colours.
    """

    kind: int
    at: int
    bits: int
    height: int
    width: int
    components: tuple[Component, ...]

    @property
    def sampling(self) -> str:
        """Factors of the components: "4x2 1x1 1x1"."""
        return " ".join(f"{component.across}x{component.down}" for component in self.components)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Second byte of the marker, and place, of each segment of a header, up to the first scan."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 9:
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1
            continue
        if marker in (0xD9, 0xDA):
            return
        yield marker, at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def has_metadata(data: bytes) -> bool:
    """Tell whether a header may hold EXIF, XMP, a colour profile, or a list of several pictures."""
    return any(marker in (0xE1, 0xE2) for marker, _ in _segments(data))


def read_frame(data: bytes) -> Frame | None:
    """Find the start of frame; None where the header is not that of a JPEG, or ends before it."""
    for marker, at in _segments(data):
        if marker in _STARTS_OF_FRAME:
            bits, height, width, count = struct.unpack_from(">BHHB", data, at + 4)
            sides = data[at + 10 : at + 10 + 3 * count]
            if len(sides) < 3 * count or not count:
                return None
            parts = [(sides[i], sides[i + 1] >> 4, sides[i + 1] & 15) for i in range(0, 3 * count, 3)]
            if any(not 1 <= factor <= 4 for part in parts for factor in part[1:]):
                return None
            return Frame(marker, at, bits, height, width, tuple(Component(*part) for part in parts))
    return None


def check(data: bytes, frame: Frame) -> None:
    """Walk all scans of a sequential or lossless JPEG with Huffman codes.

    Raises:
        Damage: its data end early, go on too long, or hold what is no code.
    """
    dc: dict[int, Table] = {}
    ac: dict[int, Table] = {}
    interval, at, seen = 0, 2, set[int]()
    lossless = frame.kind == 0xC3
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            break
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1
            continue
        if marker == 0xD9:
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : end]
        if marker == 0xC4:
            _define_tables(body, dc, ac, lossless)
        elif marker == 0xDD and len(body) >= 2:
            interval = int.from_bytes(body[:2], "big")
        at = end
        if marker == 0xDA:
            scan, at = _scan_bytes(data, end)
            parts = [(body[i], body[i + 1]) for i in range(1, 1 + 2 * body[0], 2)] if body else []
            seen.update(id for id, _ in parts)
            units, blocks = _layout(frame, parts, dc, ac, lossless)
            _check_scan(scan, units, blocks, interval)
    if seen < {component.id for component in frame.components}:
        raise Damage("its data end early, before the last of its colours")


def _scan_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Entropy-coded data from a place to the next marker, and its place."""
    end = at
    while True:
        end = data.find(b"\xff", end)
        if end < 0 or end + 1 >= len(data):
            raise Damage("its data end early: there is no end marker")
        if data[end + 1] and not 0xD0 <= data[end + 1] <= 0xD7:
            return data[at:end], end
        end += 2


def _layout(
    frame: Frame,
    parts: list[tuple[int, int]],
    dc: dict[int, Table],
    ac: dict[int, Table],
    lossless: bool,
) -> tuple[int, list[tuple[Table, Table | None]]]:
    """How many units a scan has (MCUs; pixels of a lossless file), and the tables of each unit's blocks."""
    known = {component.id: component for component in frame.components}
    if not parts or any(id not in known for id, _ in parts):
        raise Damage("a scan speaks of colours that the header does not name")
    most_across = max(component.across for component in frame.components)
    most_down = max(component.down for component in frame.components)
    side = 1 if lossless else 8
    blocks: list[tuple[Table, Table | None]] = []
    for id, tables in parts:
        one = known[id]
        try:
            pair = (dc[tables >> 4], None if lossless else ac[tables & 15])
        except KeyError:
            raise Damage("a Huffman table is missing") from None
        blocks += [pair] * (one.across * one.down if len(parts) > 1 else 1)
    if len(parts) > 1:
        across, down = side * most_across, side * most_down
        return _ceil(frame.width, across) * _ceil(frame.height, down), blocks
    one = known[parts[0][0]]
    columns = _ceil(_ceil(frame.width * one.across, most_across), side)
    rows = _ceil(_ceil(frame.height * one.down, most_down), side)
    return columns * rows, blocks


def _ceil(value: int, step: int) -> int:
    return -(-value // step)


def _define_tables(body: bytes, dc: dict[int, Table], ac: dict[int, Table], lossless: bool) -> None:
    """Read the tables of a segment."""
    while body:
        counts = body[1:17]
        symbols = body[17 : 17 + sum(counts)]
        if len(counts) < 16 or len(symbols) < sum(counts):
            raise Damage("a Huffman table is cut short")
        steps: Table = [0] * 65536
        code, place = 0, 0
        for length, count in enumerate(counts, 1):
            for symbol in symbols[place : place + count]:
                bits = 16 - length
                first, last = code << bits, (code + 1) << bits
                if last > 65536:
                    raise Damage("a Huffman table holds too many codes")
                steps[first:last] = [_step(symbol, length, bool(body[0] >> 4), lossless)] * (last - first)
                code += 1
            place += count
            code <<= 1
        (ac if body[0] >> 4 else dc)[body[0] & 15] = steps
        body = body[17 + len(symbols) :]


def _step(symbol: int, length: int, is_ac: bool, lossless: bool) -> int:
    if not is_ac:
        # The 16 of lossless files stands for one number, and none follows
        extra = 0 if lossless and symbol == 16 else symbol
        return (length + extra) + 32 * (64 if lossless else 1) if extra <= 15 else 0
    run, size = symbol >> 4, symbol & 15
    onward = run + 1 if size else 16 if run == 15 else 64
    return (length + size) + 32 * onward


def _check_scan(scan: bytes, units: int, blocks: list[tuple[Table, Table | None]], interval: int) -> None:
    """Walk the restart intervals of a scan."""
    parts = _RESTART.split(scan)
    for number, marker in enumerate(_RESTART.findall(scan)):
        if marker[1] != 0xD0 + number % 8:
            raise Damage("a part of its data is missing: restart markers are out of order")
    each = interval or units
    if len(parts) != max(1, _ceil(units, each)):
        raise Damage(f"its data are in {len(parts)} parts, {_ceil(units, each)} expected")
    for part in parts:
        count = min(each, units)
        units -= count
        raw = part.replace(b"\xff\x00", b"\xff")
        used = _walk(raw, count, blocks)
        surplus = len(raw) - _ceil(used, 8)
        if surplus < 0:
            raise Damage("its data end early")
        # Before the end, some cameras leave a few bytes, or zeros, as `jpeg` repairs them elsewhere
        harmless = part is parts[-1] and (surplus <= _SURPLUS_BYTES or not raw[-surplus:].strip(b"\0"))
        if surplus and not harmless:
            raise Damage(f"its data go on for {surplus:,} bytes too many")


def _walk(raw: bytes, units: int, blocks: list[tuple[Table, Table | None]]) -> int:
    """Bits that some units take; stops soon after the end of the data."""
    padded = np.frombuffer(raw + bytes(8), np.uint8).astype(np.uint32)
    numbers: NDArray[Any] = (padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]
    windows: Sequence[int] = cast("Any", numbers.data)  # a memoryview: twice as fast to index as an array
    at, end = 0, 8 * len(raw)
    for _ in range(units):
        for dc, ac in blocks:
            step = dc[(windows[at >> 3] >> (8 - (at & 7))) & 0xFFFF]
            if not step:
                raise Damage("its data hold what is no Huffman code")
            at += step & 31
            place = step >> 5
            while place < 64:
                step = ac[(windows[at >> 3] >> (8 - (at & 7))) & 0xFFFF]  # type: ignore[index]
                if not step:
                    raise Damage("its data hold what is no Huffman code")
                at += step & 31
                place += step >> 5
                if at > end:
                    return at
            if at > end:
                return at
    return at
