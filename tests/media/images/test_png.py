"""PNG: transparent colours of all types and depths, and what its chunks say."""

from __future__ import annotations

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from tests.helpers.formats import chunk, encoded, png
from unet_batch.media import images
from unet_batch.media.images.profiles import coded_profile, to_srgb


def packed(values: list[int], bits: int) -> bytes:
    """A row of a PNG, with the byte of its filter."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("noise", [0, 0xFF00])
def test_a_grey_level_is_transparent_at_every_depth(bits: int, noise: int) -> None:
    """Bits above the depth mean nothing."""
    top = 2**bits - 1
    values = sorted({0, 1, top // 3, top // 2, top - 1, top})
    for clear in values:
        said = clear | (noise if bits < 16 else 0)
        data = png(
            len(values), 1, bits, 0, packed(values, bits), extra=chunk(b"tRNS", struct.pack(">H", said))
        )
        picture = images.read_bytes(data)
        expected = [255 if value == clear else round(value * 255 / top) for value in values]
        assert picture.pixels[0].tolist() == [[level] * 3 for level in expected], clear
        assert picture.alpha is not None
        assert picture.alpha[0].tolist() == [0 if value == clear else 255 for value in values], clear


@pytest.mark.parametrize("bits", [8, 16])
def test_one_colour_is_transparent_and_none_that_is_only_near(bits: int) -> None:
    top = 2**bits - 1
    colours = [(1, 2, 3), (1, 2, 4), (2, 2, 3), (1, 3, 3), (top, 2, 3), (3, 2, 1)]
    rows = packed([value for colour in colours for value in colour], bits)
    data = png(len(colours), 1, bits, 2, rows, extra=chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    picture = images.read_bytes(data)
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [0, 255, 255, 255, 255, 255]
    shift = bits - 8
    assert picture.pixels[0].tolist() == [
        [255] * 3,
        *([v >> shift for v in colour] for colour in colours[1:]),
    ]


@pytest.mark.parametrize(("colour", "size"), [(0, 0), (0, 1), (0, 6), (2, 2), (2, 5), (4, 2), (6, 6)])
def test_a_transparent_colour_of_a_wrong_size_is_ignored_as_viewers_do(colour: int, size: int) -> None:
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    data = png(1, 1, 8, colour, bytes([0, *[255] * bands]), extra=chunk(b"tRNS", b"\xff" * size))
    picture = images.read_bytes(data)
    assert picture.pixels.tolist() == [[[255] * 3]]
    assert picture.alpha is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_have_the_opacity_of_their_entries(bits: int) -> None:
    entries = [(10 * i, 0, 200 - i) for i in range(2**bits)]
    palette = chunk(b"PLTE", bytes(value & 255 for entry in entries for value in entry))
    values = list(range(min(2**bits, 6)))
    for opacity in ([0], [128, 255], [255, 0], [255, 255]):
        extra = palette + chunk(b"tRNS", bytes(opacity))
        picture = images.read_bytes(png(len(values), 1, bits, 3, packed(values, bits), extra=extra))
        own = np.array((opacity + [255] * 9)[: len(values)])
        colours = np.array([[v & 255 for v in entries[i]] for i in values])
        expected = colours * own[:, None] / 255 + 255 - own[:, None]
        assert np.abs(picture.pixels[0] - expected).max() <= 1
        if (own == 255).all():
            assert picture.alpha is None
        else:
            assert picture.alpha is not None
            assert picture.alpha[0].tolist() == own.tolist()


def test_frames_are_counted_and_the_default_image_is_read() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    picture = images.read_bytes(data)
    assert picture.notes == ("3 frames: the default image is read",)
    assert picture.pixels[0, 0].tolist() == [255, 0, 0]
    assert images.read_bytes(encoded(frames[0], "PNG")).notes == ()


def test_code_points_go_before_a_profile() -> None:
    row = b"\0" + bytes(53 * i % 256 for i in range(30))
    plain = images.read_bytes(png(10, 1, 8, 2, row)).pixels
    p3, _ = coded_profile(12, 13)
    assert p3 is not None
    expected = to_srgb(plain, p3)[0]
    assert np.abs(expected.astype(int) - plain).max() > 5
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(imagecodecs.cms_profile("gray", gamma=2.2)))
    for extra in (chunk(b"cICP", b"\x0c\x0d\0\1"), profile + chunk(b"cICP", b"\x0c\x0d\0\1")):
        picture = images.read_bytes(png(10, 1, 8, 2, row, extra=extra))
        assert np.array_equal(picture.pixels, expected)
        assert picture.notes == ()
    hdr = images.read_bytes(png(10, 1, 8, 2, row, extra=chunk(b"cICP", b"\x09\x10\0\1")))
    assert np.array_equal(hdr.pixels, plain)
    assert "high dynamic range (PQ)" in hdr.notes[0]


def test_texts_and_resolution_reach_the_outputs() -> None:
    row = b"\0" + bytes(30)
    extra = chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))
    extra += chunk(b"tEXt", b"Copyright\0\xa9 J\xf6rg") + chunk(
        b"iTXt", b"Author\0\0\0\0\0" + "Jörg".encode()
    )
    picture = images.read_bytes(png(10, 1, 8, 2, row, extra=extra))
    assert picture.metadata.dpi == pytest.approx((300, 300), abs=0.01)
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + picture.metadata.exif)
    assert exif[0x8298].encode("latin-1").decode() == "© Jörg"
    assert exif[0x013B].encode("latin-1").decode() == "Jörg"
