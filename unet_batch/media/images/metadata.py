"""What outputs take over from the file of a picture: EXIF that is true of them, copyright, resolution.

EXIF is kept as the bytes it is, and only its first directory is written anew: everything else stays where it
was, so that the offsets inside a camera's MakerNote, which nobody can correct, go on being right.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from html import unescape
from typing import TYPE_CHECKING, Any

from unet_batch.types import Metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIFF_HEADS = {b"II*\0": "<", b"MM\0*": ">"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes, by type
_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5
_ORIENTATION, _ARTIST, _COPYRIGHT, _EXIF_IFD = 0x0112, 0x013B, 0x8298, 0x8769
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
# (across, down), exchanged where a picture is turned: pixels and resolution in the first directory, pixels in
# that of EXIF
_SIDES = ((0x0100, 0x0101), (_X_RESOLUTION, _Y_RESOLUTION))
_SIDES_OF_EXIF = (0xA002, 0xA003)
# Tags that speak of how a TIFF stores its pixels, which an output does not
_LAYOUT = frozenset((0x00FE, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C, 0x013D, 0x8773))
_MOST_BYTES = 65_000
"""Of EXIF: a segment of a JPEG holds 65,533."""
_MOST_ENTRIES = 1000
_EMPTY = b"II*\0\x08\0\0\0\0\0\0\0\0\0"

_Entry = tuple[int, int, int, bytes]  # tag, type, count, the four bytes of a value or its offset


def outputs_metadata(
    info: Mapping[Any, Any], orientation: int = 1, dpi: tuple[float, float] | None = None
) -> tuple[Metadata, tuple[str, ...]]:
    """Choose what outputs take over.

    Artist and copyright come from EXIF, else from XMP (dc:creator, dc:rights), else from IPTC.

    Args:
        info: as Pillow fills it: "exif", "xmp", "photoshop"; and "words", texts by their tags in EXIF.
        orientation: that has been undone, 1..8.
        dpi: that the file's own header says, (across, down) as stored; None takes it from EXIF.

    Returns:
        What to write, and what people should know of it.
    """
    exif, words = _exif_bytes(info), dict[int, bytes]()
    for tag, in_xmp, in_iptc in ((_COPYRIGHT, "rights", 116), (_ARTIST, "creator", 80)):
        if text := _xmp_text(info.get("xmp"), in_xmp) or _iptc_text(info, in_iptc):
            words[tag] = text
    words.update(info.get("words", {}))
    notes: tuple[str, ...] = ()
    block, found = b"", None
    if exif or words:
        with suppress(struct.error, ValueError, KeyError):
            block, found = _rewrite(exif or _EMPTY, words, orientation)
    if len(block) > _MOST_BYTES:
        notes = (f"its EXIF of {len(block):,} bytes is too large to be taken over, but for its texts",)
        block, _ = _rewrite(_EMPTY, {**words, **_texts(exif)}, 1)
    dpi = dpi if dpi and min(dpi) > 0 else found
    if dpi and orientation >= 5:
        dpi = dpi[::-1]
    return Metadata(block, dpi), notes


def _exif_bytes(info: Mapping[Any, Any]) -> bytes:
    exif = info.get("exif")
    if not isinstance(exif, bytes):
        return b""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return exif


def _rewrite(
    exif: bytes, words: Mapping[int, bytes], orientation: int
) -> tuple[bytes, tuple[float, float] | None]:
    """Write the first directory of EXIF anew, behind the rest.

    Args:
        exif: TIFF-structured.
        words: artist and copyright, for where it has none.
        orientation: that was undone.

    Returns:
        EXIF without orientation and thumbnail, b"" if nothing is left of it; dots per inch as stored.

    Raises:
        KeyError, ValueError, struct.error: it is damaged.
    """
    order = _TIFF_HEADS[exif[:4]]
    entries, after = _directory(exif, struct.unpack_from(order + "I", exif, 4)[0], order)
    dpi = _resolution(exif, entries, order)
    block = bytearray(_without_thumbnail(exif, after, order))
    kept = {entry[0]: entry for entry in entries if entry[0] not in _LAYOUT}
    kept.pop(_ORIENTATION, None)
    if orientation >= 5:
        for tags in _SIDES:
            kept = _exchange(kept, tags)
        _exchange_in_place(block, kept.get(_EXIF_IFD), order)
    for tag, text in words.items():
        if tag not in kept or not _text(exif, kept[tag], order).strip(b" \0"):
            value = text + b"\0"
            if len(value) <= 4:
                kept[tag] = (tag, _ASCII, len(value), value.ljust(4, b"\0"))
            else:
                block += b"\0" * (len(block) % 2)
                kept[tag] = (tag, _ASCII, len(value), struct.pack(order + "I", len(block)))
                block += value
    if not kept:
        return b"", dpi
    block += b"\0" * (len(block) % 2)
    struct.pack_into(order + "I", block, 4, len(block))
    block += struct.pack(order + "H", len(kept))
    for tag, kind, count, value in (kept[tag] for tag in sorted(kept)):
        block += struct.pack(order + "HHI", tag, kind, count) + value
    return bytes(block) + bytes(4), dpi  # no further directory


def _directory(exif: bytes, at: int, order: str) -> tuple[list[_Entry], int]:
    """Entries of a directory whose values lie inside the block, and the offset of the next one (0: none)."""
    count = struct.unpack_from(order + "H", exif, at)[0]
    if count > _MOST_ENTRIES:
        raise ValueError("a directory of EXIF with too many entries")
    entries = []
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", exif, place)
        value = exif[place + 8 : place + 12]
        size = _SIZES.get(kind, 0) * number
        if len(value) == 4 and size and (size <= 4 or _offset(value, order) + size <= len(exif)):
            entries.append((tag, kind, number, value))
    end = at + 2 + 12 * count
    following = struct.unpack_from(order + "I", exif, end)[0] if end + 4 <= len(exif) else 0
    return entries, following


def _offset(value: bytes, order: str) -> int:
    offset: int = struct.unpack(order + "I", value)[0]
    return offset


def _text(exif: bytes, entry: _Entry, order: str) -> bytes:
    """Value of an entry of text."""
    _, _, count, value = entry
    return value[:count] if count <= 4 else exif[_offset(value, order) :][:count]


def _texts(exif: bytes) -> dict[int, bytes]:
    """Short texts of the first directory, by tag: maker, artist, copyright..."""
    order = _TIFF_HEADS[exif[:4]]
    entries, _ = _directory(exif, struct.unpack_from(order + "I", exif, 4)[0], order)
    texts = {entry[0]: _text(exif, entry, order).strip(b" \0") for entry in entries if entry[1] == _ASCII}
    return {tag: text for tag, text in texts.items() if text and len(text) <= 1000}


def _resolution(exif: bytes, entries: list[_Entry], order: str) -> tuple[float, float] | None:
    """Dots per inch, (across, down), of the first directory."""
    by_tag = {entry[0]: entry for entry in entries}
    sides = []
    for tag in (_X_RESOLUTION, _Y_RESOLUTION):
        entry = by_tag.get(tag)
        if entry is None or entry[1] != _RATIONAL:
            return None
        above, below = struct.unpack_from(order + "II", exif, _offset(entry[3], order))
        sides.append(above / below if below else 0.0)
    unit = by_tag.get(_RESOLUTION_UNIT)
    kind = struct.unpack(order + "H", unit[3][:2])[0] if unit else 2
    scale = {2: 1.0, 3: 2.54}.get(kind)
    return (sides[0] * scale, sides[1] * scale) if scale and min(sides) > 0 else None


def _without_thumbnail(exif: bytes, at: int, order: str) -> bytes:
    """EXIF without the bytes of its thumbnail: cut off at the end, where cameras put it, or else blanked."""
    with suppress(struct.error, ValueError):
        by_tag = {entry[0]: entry for entry in _directory(exif, at, order)[0]} if at else {}
        if _THUMBNAIL in by_tag and _THUMBNAIL_BYTES in by_tag:
            start = _offset(by_tag[_THUMBNAIL][3], order)
            end = start + _offset(by_tag[_THUMBNAIL_BYTES][3], order)
            if 8 <= start < end:
                blank = b"" if end >= len(exif) else bytes(end - start)
                return exif[:start] + blank + exif[end:]
    return exif


def _exchange(entries: dict[int, _Entry], tags: tuple[int, int]) -> dict[int, _Entry]:
    """Exchange the values of two tags, if there are both."""
    first, second = (entries.get(tag) for tag in tags)
    if first is None or second is None:
        return entries
    return {**entries, tags[0]: (tags[0], *second[1:]), tags[1]: (tags[1], *first[1:])}


def _exchange_in_place(block: bytearray, pointer: _Entry | None, order: str) -> None:
    """Exchange width and height of pixels in the directory that an entry points to."""
    with suppress(struct.error, ValueError):
        if pointer is None:
            return
        at = _offset(pointer[3], order)
        places = {}
        for place in range(at + 2, at + 2 + 12 * struct.unpack_from(order + "H", block, at)[0], 12):
            places[struct.unpack_from(order + "H", block, place)[0]] = place
        first, second = (places.get(tag) for tag in _SIDES_OF_EXIF)
        if first is not None and second is not None and max(first, second) + 12 <= len(block):
            one, other = block[first + 2 : first + 12], block[second + 2 : second + 12]
            block[first + 2 : first + 12], block[second + 2 : second + 12] = other, one


def _xmp_text(xmp: Any, name: str) -> bytes:
    """First entry of dc:rights or dc:creator of an XMP packet, as UTF-8."""
    if not isinstance(xmp, (bytes, str)):
        return b""
    data = xmp.encode() if isinstance(xmp, str) else xmp
    found = re.search(rb"<dc:%b\b[^>]*>.*?<rdf:li[^>]*>([^<]*)</rdf:li>" % name.encode(), data, re.DOTALL)
    return unescape(found[1].decode("utf-8", "replace")).strip().encode() if found else b""


def _iptc_text(info: Mapping[Any, Any], dataset: int) -> bytes:
    """A text of IPTC's record 2 among Photoshop's resources."""
    blocks = info.get("photoshop")
    data = blocks.get(0x0404) if isinstance(blocks, dict) else None
    found = re.search(rb"\x1c\x02%b(..)" % re.escape(bytes([dataset])), data or b"", re.DOTALL)
    if not found or not data:
        return b""
    text: bytes = data[found.end() :][: int.from_bytes(found[1], "big")]
    return text.strip()
