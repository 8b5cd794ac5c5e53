"""What outputs take over from a file is still true of them."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.formats import encoded
from unet_batch.media import images
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.types import Metadata

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6">
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">© J&amp;M</rdf:li></rdf:Alt></dc:rights>
<dc:creator><rdf:Seq><rdf:li>Jörg</rdf:li></rdf:Seq></dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"""


def exif_of(metadata: Metadata) -> Image.Exif:
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + metadata.exif)
    return exif


def full_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x8298] = "Maker", "Model X", "(c) Someone"
    exif[0x0112], exif[0x011A], exif[0x011B], exif[0x0128] = 6, 300.0, 240.0, 2
    exif.get_ifd(0x8769).update(
        {0x9003: "2026:11:28 10:00:00", 0xA002: 403, 0xA003: 317, 0x927C: b"MAKER NOTE"}
    )
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_reaches_overlays_and_cutouts_without_orientation(photo: Image.Image, kind: str) -> None:
    data = encoded(photo, kind, exif=full_exif())
    picture = images.read_bytes(data)
    assert picture.size == (403, 317)
    assert picture.metadata.dpi == (240, 300)  # turned with the picture
    rgba = np.dstack([picture.pixels, picture.pixels[..., 0]])
    for output in (
        images.encode_jpeg(picture.pixels, metadata=picture.metadata),
        images.encode_rgba(rgba, picture.metadata),
    ):
        with Image.open(io.BytesIO(output)) as image:
            exif = image.getexif()
            assert 0x0112 not in exif
            assert (exif[0x010F], exif[0x0110], exif[0x8298]) == ("Maker", "Model X", "(c) Someone")
            ifd = exif.get_ifd(0x8769)
            assert ifd[0x9003] == "2026:11:28 10:00:00"
            assert ifd[0x927C] == b"MAKER NOTE"
            assert (ifd[0xA002], ifd[0xA003]) == (317, 403)
            assert exif.get_ifd(0x8825)[2] == (52.0, 31.0, 12.0)
            assert image.info["dpi"] == pytest.approx((240, 300), abs=0.02)
            assert (exif[0x011A], exif[0x011B]) == (240, 300)
            assert image.size == (317, 403)
        again = images.read_bytes(output)
        assert again.size == (403, 317)  # not turned once more
        assert dict(exif_of(again.metadata)) == dict(exif_of(picture.metadata))


def with_thumbnail(order: str) -> tuple[bytes, bytes]:
    """EXIF byte by byte: a MakerNote that knows its own place in the block, and a thumbnail at the end."""
    thumbnail = b"\xff\xd8\xff" + b"THUMBNAIL" * 20 + b"\xff\xd9"
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    note_at, second, sub = 200, 120, 60
    note = b"NOTE" + struct.pack(order + "I", note_at)

    def directory(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
        packed = b""
        for tag, kind, count, value in entries:
            short = kind == 3 and count == 1
            packed += struct.pack(order + "HHI", tag, kind, count)
            packed += struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
        return struct.pack(order + "H", len(entries)) + packed + struct.pack(order + "I", following)

    block = bytearray(300)
    block[:8] = head
    first = directory([(0x0112, 3, 1, 8), (0x0132, 2, 20, 220), (0x8769, 4, 1, sub)], second)
    block[8 : 8 + len(first)] = first
    inner = directory([(0x927C, 7, len(note), note_at)], 0)
    block[sub : sub + len(inner)] = inner
    last = directory([(0x0103, 3, 1, 6), (0x0201, 4, 1, 300), (0x0202, 4, 1, len(thumbnail))], 0)
    block[second : second + len(last)] = last
    block[note_at : note_at + len(note)] = note
    block[220:240] = b"2026:11:28 10:00:00\0"
    return bytes(block) + thumbnail, note


@pytest.mark.parametrize("order", ["<", ">"])
def test_thumbnails_go_and_maker_notes_stay_where_they_are(order: str) -> None:
    block, note = with_thumbnail(order)
    for exif in (block, block + b"something after the thumbnail"):
        metadata, notes = outputs_metadata({"exif": b"Exif\0\0" + exif}, 8)
        assert notes == ()
        assert b"THUMBNAIL" not in metadata.exif
        assert metadata.exif[200 : 200 + len(note)] == note
        read = exif_of(metadata)
        assert read[0x0132] == "2026:11:28 10:00:00"
        assert read.get_ifd(0x8769)[0x927C] == note
        assert 0x0112 not in read
        assert read.get_ifd(0x0001) == {} or 0x0201 not in read.get_ifd(0x0001)


def test_copyright_in_xmp_or_iptc_becomes_that_of_exif(photo: Image.Image) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        options: dict[str, Any] = {"xmp": XMP.encode()}
        if kind == "PNG":
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", XMP)
            options = {"pnginfo": info}
        exif = exif_of(images.read_bytes(encoded(photo, kind, **options)).metadata)
        assert exif[0x8298].encode("latin-1").decode() == "© J&M", kind
        assert exif[0x013B].encode("latin-1").decode() == "Jörg", kind
        assert 0x0112 not in exif
    iptc = b"\x1c\x02\x74\0\x08(c) Firm\x1c\x02\x50\0\x04Ruth"
    metadata, _ = outputs_metadata({"photoshop": {0x0404: iptc}})
    assert exif_of(metadata)[0x8298] == "(c) Firm"
    assert exif_of(metadata)[0x013B] == "Ruth"
    own = Image.Exif()
    own[0x8298] = "(c) Own"
    metadata, _ = outputs_metadata({"exif": own.tobytes(), "xmp": XMP.encode(), "photoshop": {0x0404: iptc}})
    assert exif_of(metadata)[0x8298] == "(c) Own"
    assert exif_of(metadata)[0x013B].encode("latin-1").decode() == "Jörg"


def test_bytes_of_text_stay_as_they_are() -> None:
    """UTF-8, as most programs write it, though EXIF knows ASCII only."""
    exif = Image.Exif()
    exif[0x8298] = "© Jörg".encode()
    metadata, _ = outputs_metadata({"exif": exif.tobytes()})
    assert "© Jörg".encode() + b"\0" in metadata.exif


def test_what_says_nothing_gives_nothing(photo: Image.Image) -> None:
    assert images.read_bytes(encoded(photo, "PNG")).metadata == Metadata()
    turned = Image.Exif()
    turned[0x0112] = 3
    assert images.read_bytes(encoded(photo, "JPEG", exif=turned)).metadata == Metadata()
    data = encoded(photo, "JPEG", exif=full_exif(), dpi=(72, 72))
    assert images.read_bytes(data, at_least=(9, 9)).metadata == Metadata()  # nobody draws on a reduced decode


def test_exif_that_no_jpeg_holds_is_left_out_with_a_note(photo: Image.Image) -> None:
    exif = full_exif()
    exif.get_ifd(0x8769)[0x927C] = bytes(100_000)
    picture = images.read_bytes(encoded(photo, "PNG", exif=exif))
    assert len(picture.notes) == 1
    assert "is too large to be taken over" in picture.notes[0]
    assert exif_of(picture.metadata)[0x8298] == "(c) Someone"
    assert images.encode_jpeg(picture.pixels, metadata=picture.metadata)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from("<>"))
def test_damaged_exif_never_fails(data: st.DataObject, order: str) -> None:
    block = bytearray(with_thumbnail(order)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        block[data.draw(st.integers(0, 260))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(block)))
    metadata, _ = outputs_metadata({"exif": bytes(block[:cut])}, 6)
    assert len(metadata.exif) < 66_000
    images.encode_jpeg(np.zeros((2, 2, 3), np.uint8), metadata=metadata)
