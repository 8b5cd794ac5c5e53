"""JPEG: decoded strictly, at a reduced size where that is enough, and repaired where that is safe."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.formats import encoded, flat_jpeg, grey, jpeg_variants, read_bytes
from unet_batch.errors import ImageError
from unet_batch.media import images, isolation
from unet_batch.processes import Workers


def test_cmyk_jpeg_looks_as_in_pillow(odd: Path) -> None:
    for path in odd.glob("cmyk_jpeg*"):
        with Image.open(path) as image:
            reference = np.asarray(image.convert("RGB"), np.int16)
        assert np.abs(images.read(str(path)).pixels - reference).max() <= 2


@pytest.mark.parametrize(
    ("size", "at_least", "step"),
    [
        ((312, 400), None, 1),
        ((312, 400), (312, 400), 1),
        ((312, 400), (157, 10), 1),
        ((312, 400), (156, 200), 2),
        ((312, 400), (156, 201), 1),
        ((312, 400), (78, 100), 4),
        ((312, 400), (79, 10), 2),
        ((312, 400), (39, 50), 8),
        ((312, 400), (1, 1), 8),
        ((312, 400), (9999, 1), 1),
        ((305, 400), (39, 50), 8),
        ((304, 400), (39, 50), 4),
        ((309, 398), (78, 100), 4),
    ],
)
@pytest.mark.parametrize("orientation", [1, 5])
def test_reduced_decode(
    tmp_path: Path, photo: Image.Image, size: tuple[int, int], at_least: Any, step: int, orientation: int
) -> None:
    check_reduced_decode(tmp_path, photo, size, at_least, step, orientation)


@pytest.mark.parametrize(
    ("size", "orientation", "step"),
    [
        *(((310, 404), orientation, step) for orientation, step in enumerate((8, 4, 2, 2, 8, 2, 2, 4), 1)),
        *(((317, 400), orientation, step) for orientation, step in enumerate((8, 8, 1, 1, 8, 1, 1, 8), 1)),
        *(((312, 403), orientation, step) for orientation, step in enumerate((8, 1, 1, 8, 8, 8, 1, 1), 1)),
    ],
)
def test_what_a_reduced_decode_rounds_up_lies_at_the_bottom_or_right(
    tmp_path: Path, photo: Image.Image, size: tuple[int, int], orientation: int, step: int
) -> None:
    check_reduced_decode(tmp_path, photo, size, (1, 1), step, orientation)


def check_reduced_decode(
    tmp_path: Path, photo: Image.Image, size: tuple[int, int], at_least: Any, step: int, orientation: int
) -> None:
    """Of a JPEG of a stored size and an orientation; `at_least` is as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p.jpg"
    part = photo.crop((0, 0, size[1], size[0]))
    path.write_bytes(encoded(part, "JPEG", quality=95, subsampling=0, exif=exif))
    if orientation >= 5:
        at_least = at_least and at_least[::-1]
    full = images.read(str(path))
    small = images.read(str(path), at_least=at_least)
    assert small.size == full.size == full.pixels.shape[:2]
    shape = tuple(-(-side // step) for side in full.size)
    assert small.pixels.shape == (*shape, 3)
    assert small.pixels.flags.c_contiguous
    # Aligned: each pixel is the mean of a block of the full picture. A shift by half a small pixel gives 4
    # and more.
    past = [(0, step * after - before) for after, before in zip(shape, full.size, strict=True)]
    blocks = np.pad(full.pixels, (*past, (0, 0)), "edge").reshape(shape[0], step, shape[1], step, 3)
    assert np.abs(small.pixels - blocks.mean((1, 3))).mean() < 1.5


@pytest.mark.parametrize("variant", ["baseline", "progressive", "restarts", "grey", "cmyk"])
def test_jpeg_cut_anywhere_is_an_error(tmp_path: Path, photo: Image.Image, variant: str) -> None:
    data = jpeg_variants(photo)[variant]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, len(data) - 3), st.sampled_from([None, (20, 20)]))
    def cut(length: int, at_least: Any) -> None:
        with pytest.raises(ImageError):
            read_bytes(tmp_path, data[:length], at_least=at_least)

    cut()


def test_jpeg_without_end_marker(tmp_path: Path, photo: Image.Image) -> None:
    data = jpeg_variants(photo)
    assert np.array_equal(read_bytes(tmp_path, data["baseline"][:-2]), read_bytes(tmp_path, data["baseline"]))
    with pytest.raises(ImageError, match="Premature end"):  # a scan may be missing too
        read_bytes(tmp_path, data["progressive"][:-2])


def test_jpeg_blemishes_that_do_not_touch_the_picture(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo, "JPEG", exif=exif)
    right = read_bytes(tmp_path, data)
    assert right.shape == (403, 317, 3)
    future = bytearray(data)
    future[data.index(b"JFIF\0") + 5] = 9
    blemished = {
        "bytes after the end": data + b"\0trailer\xff\xd8\xff",
        "short padding before the end": data[:-2] + b"\x5a\xa5" + data[-2:],
        "long padding before the end": data[:-2] + bytes(500) + data[-2:],
        "stray bytes in the header": data[:20] + b"\x11\x22\x33" + data[20:],
        "revision 9 of JFIF": bytes(future),
        "unknown Adobe transform": data[:20] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\x07" + data[20:],
        "several": bytes(future[:-2]) + b"\x5a" + data[-2:],
    }
    for name, copy in blemished.items():
        assert np.array_equal(read_bytes(tmp_path, copy), right), name
    with pytest.raises(ImageError, match="extraneous bytes before marker 0xd9"):
        read_bytes(tmp_path, data[:-2] + bytes(range(1, 41)) + data[-2:])


SAMPLINGS = {
    "4:1:0": [(4, 2), (1, 1), (1, 1)],
    "4:4:1": [(1, 4), (1, 1), (1, 1)],
    "3x1": [(3, 1), (1, 1), (1, 1)],
    "1x3": [(1, 3), (1, 1), (1, 1)],
    "4x1 2x1 1x1": [(4, 1), (2, 1), (1, 1)],
    "2x2 2x1 1x1": [(2, 2), (2, 1), (1, 1)],
    "1x1 2x1 1x1": [(1, 1), (2, 1), (1, 1)],
    "4:2:0": [(2, 2), (1, 1), (1, 1)],
    "4:1:1": [(4, 1), (1, 1), (1, 1)],
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_sampling_is_read_with_its_right_colours(name: str) -> None:
    """Blocks of one colour each; their edges are left out, where decoders may blend."""
    factors = SAMPLINGS[name]
    across, down = (max(factor[i] for factor in factors) for i in (0, 1))
    rng = np.random.default_rng(2)
    planes = [rng.integers(90, 170, (2 * v, 3 * h)).astype(np.uint8) for h, v in factors]
    height, width = 2 * 8 * down, 3 * 8 * across - 3  # the last block is cut
    picture = images.read_bytes(flat_jpeg(planes, factors, (height, width)))
    assert picture.size == (height, width)
    wide = [
        np.kron(plane, np.ones((8 * down // v, 8 * across // h)))[:height, :width]
        for plane, (h, v) in zip(planes, factors, strict=True)
    ]
    y, cb, cr = wide[0], wide[1] - 128, wide[2] - 128
    expected = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    flat = np.ones((height, width), bool)
    for plane in wide:
        for shift in (-2, -1, 1, 2):
            flat &= (np.roll(plane, shift, 0) == plane) & (np.roll(plane, shift, 1) == plane)
    assert flat.mean() > 0.15
    assert np.abs(picture.pixels - expected.clip(0, 255))[flat].max() <= 1.5
    small = images.read_bytes(flat_jpeg(planes, factors, (height, width)), at_least=(1, 1))
    assert small.size == picture.size


@pytest.mark.parametrize("name", ["4:1:0", "3x1", "4x1 2x1 1x1"])
def test_unusual_sampling_cut_anywhere_is_an_error(name: str) -> None:
    factors = SAMPLINGS[name]
    rng = np.random.default_rng(2)
    planes = [rng.integers(0, 256, (8 * v, 8 * h)).astype(np.uint8) for h, v in factors]
    data = flat_jpeg(planes, factors, (64 * factors[0][1], 64 * factors[0][0]))
    images.read_bytes(data)
    for length in range(3, len(data) - 3, 7):
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(ImageError, match=r"early|damaged|cut short|missing"):
                images.read_bytes(data[:length] + end)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_lossless_jpeg_is_exact(bits: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    data = imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits)
    picture = images.read_bytes(data)
    expected = np.rint(values / (2**bits - 1) * 255)
    assert np.array_equal(picture.pixels, expected if len(shape) == 3 else grey(expected))
    with pytest.raises(ImageError, match="cannot decode this JPEG: its data end early"):
        images.read_bytes(data[: len(data) // 2] + b"\xff\xd9")


JFIF, ADOBE = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"


@pytest.mark.parametrize("marker", [JFIF, ADOBE + b"\1", ADOBE + b"\0", b""])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_lossless_jpeg_is_ycbcr_where_it_says_so(marker: bytes, bits: int) -> None:
    """Libjpeg refuses to convert the colours, as that loses a little."""
    rgb = np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    says = marker in (JFIF, ADOBE + b"\1")
    stored = np.asarray(Image.fromarray(rgb).convert("YCbCr")) if says else rgb
    values = stored if bits == 8 else np.rint(stored / 255 * 4095).astype(np.uint16)
    data = imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits)
    # Component ids, which would say that it is RGB, from its letters to numbers
    at, end = data.index(b"\xff\xee"), data.index(b"\xff\xda") + 12
    head = data[at + 16 : end]
    for id, letter in enumerate(b"RGB", 1):
        for tables in (b"\x11\0", b"\0"):
            head = head.replace(bytes([letter]) + tables, bytes([id]) + tables)
    data = data[:at] + marker + head + data[end:]
    picture = images.read_bytes(data)
    assert np.abs(picture.pixels.astype(int) - rgb).max() <= (3 if says else 0)


def test_a_lossless_jpeg_of_less_colour_than_light_is_ycbcr(photo: Image.Image) -> None:
    av = pytest.importorskip("av", reason="needs the encoder of lossless JPEG of FFmpeg")
    rgb = np.asarray(photo.crop((0, 0, 160, 96)))
    codec = av.CodecContext.create("ljpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 160, 96, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuvj420p")
    data = b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None)))
    shown = frame.reformat(format="rgb24").to_ndarray()
    assert np.abs(images.read_bytes(data).pixels.astype(int) - shown).mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_12_bit_jpeg_looks_as_in_8_bits(photo: Image.Image, mode: str) -> None:
    values = (np.asarray(photo.convert(mode)).astype(np.uint32) * 4095 // 255).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = imagecodecs.jpeg8_encode(values, level=98, bitspersample=12)
    block = exif.tobytes()
    data = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    picture = images.read_bytes(data)
    assert picture.size == (403, 317)
    right = np.rot90(np.asarray(photo.convert(mode).convert("RGB"), np.int16), -1)
    assert np.abs(picture.pixels - right).mean() < 3.5  # colour is at half resolution


def test_kinds_that_nobody_reads_are_named(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "JPEG"))
    at = data.index(b"\xff\xc0")
    for kind, says in ((0xC5, "hierarchical"), (0xF7, "JPEG-LS"), (0xCB, "lossless with arithmetic coding")):
        data[at + 1] = kind
        with pytest.raises(ImageError, match=f"a JPEG that is {says} is not supported") as caught:
            images.read_bytes(bytes(data))
        assert "save it as PNG" in caught.value.hint
        assert "damaged" not in str(caught.value) + caught.value.hint


TRAILERS = {
    "Samsung's panorama": b"\0\0\x01\x08\x12\0\0\0Panorama_Shot_Info" + bytes(range(256)) * 3,
    "Samsung's clip": b"\0\0\x41\x0a\x10\0\0\0MotionPhoto_Data\0\0\0\x18ftypmp42" + bytes(range(255, 0, -1)),
    "a clip": b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(range(255, 0, -1)),
    "another picture": b"",
}


@pytest.mark.parametrize("name", TRAILERS)
def test_a_makers_trailer_may_stand_where_the_end_marker_should(photo: Image.Image, name: str) -> None:
    data = encoded(photo, "JPEG", quality=92)
    trailer = TRAILERS[name] or encoded(photo.resize((64, 48)), "JPEG")
    right = images.read_bytes(data).pixels
    assert np.array_equal(images.read_bytes(data[:-2] + trailer).pixels, right)
    for lost in (3, 40, len(data) // 2):  # of the picture itself
        with pytest.raises(ImageError, match="libjpeg finds it damaged"):
            images.read_bytes(data[:-lost] + trailer)


def mpo(first: Image.Image, second: Image.Image, **options: Any) -> bytes:
    return encoded(first, "MPO", save_all=True, append_images=[second], **options)


def test_a_second_picture_is_noted_but_no_preview_and_no_gain_map(photo: Image.Image, tmp_path: Path) -> None:
    stereo = mpo(photo, photo)
    assert images.read_bytes(stereo).notes == ("2 pictures: the first is read",)
    assert images.read_bytes(stereo, at_least=(20, 20)).notes == ("2 pictures: the first is read",)
    path = tmp_path / "stereo.mpo"
    path.write_bytes(stereo)
    with Workers(1, [isolation.DECODE]) as workers:
        decoders = isolation.Decoders(workers)
        assert decoders.read(str(path)).notes == ("2 pictures: the first is read",)
    assert images.read_bytes(mpo(photo, photo.resize((200, 160)))).notes == ()
    gain = stereo.rindex(b"\xff\xd8\xff") + 2
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0'/>"
    size = len(stereo) - gain + 2
    grown = stereo[:gain] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + stereo[gain:]
    entry = bytes(4) + size.to_bytes(4, "little")
    assert grown.count(entry) == 1
    grown = grown.replace(entry, bytes(4) + (size + len(xmp) + 4).to_bytes(4, "little"))
    assert images.read_bytes(grown).notes == ()
