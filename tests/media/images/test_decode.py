"""Every odd file decodes to what a person would see, or fails with a reason."""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import ROOT
from tests.helpers.formats import chunk, encoded, grey, png, read_bytes, tiff
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images

HEIC = importlib.util.find_spec("pillow_heif") is not None


# name: size and mean colour of the right picture, looked at once; or the error and a piece of its message
AWKWARD: dict[str, tuple[Any, ...]] = {
    "apng__blend_op_over.png": ((64, 128), (255, 0, 0)),
    "avif_10bit__gradient_10bit.avif": ((48, 64), (126.4, 127.1, 126.0)),
    "avif__hopper.avif": ((128, 128), (89.8, 79.8, 95.6)),
    "avif_alpha__transparency.avif": ((64, 64), (127.8, 176.4, 162.7)),
    "avif_rot__rot1mir1.avif": ((427, 640), (130.5, 137.4, 97.0)),
    "avif_sequence__star.avifs": ((159, 159), (254.5, 248.5, 223.2)),
    "bad_exif_jpeg__hopper_bad_exif.jpg": (ImageError, "1214 extraneous bytes before marker 0xd0"),
    "bad_huffman_jpeg__bad_huffman.jpg": (ImageError, "260 extraneous bytes before marker 0xd9"),
    "bmp_badwidth__badwidth.bmp": (ImageTooLarge, "64x4294967169"),
    "bmp_huge_header__reallybig.bmp": (ImageTooLarge, "2000000x3000000"),
    "bmp_pal8__pal8.bmp": ((64, 127), (119.4, 116.9, 120.5)),
    "bmp_rgb16_565__rgb16-565.bmp": ((64, 127), (121.1, 118.0, 122.5)),
    "broken_png__broken.png": (ImageError, "no pixel data"),
    "broken_stream_png__broken_data_stream.png": (ImageError, "fails its checksum"),
    "cmyk_jpeg__cmyk.jpg": ((720, 1280), (128.0, 128.0, 127.8)),
    "cmyk_jpeg__pil_sample_cmyk.jpg": ((100, 100), (31.1, 6.4, 7.6)),
    "corrupt_jpeg__corrupt.jpg": (ImageError, "Unsupported marker type 0xae"),
    "cv2_orientation_rect__orientation_rectangle.jpg": ((2, 1), (254, 0, 0)),
    "empty_gps_o6__empty_gps_ifd.jpg": ((10, 10), (5.9, 3.9, 6.9)),
    "exif_o0_invalid__Landscape_0.jpg": ((1200, 1800), (98.4, 115.7, 134.1)),
    "exif_o5_mirror__Landscape_5.jpg": ((1200, 1800), (98.4, 115.7, 134.1)),
    "exif_o6__Landscape_6.jpg": ((1200, 1800), (98.4, 115.7, 134.2)),
    "exif_o8__Portrait_8.jpg": ((1800, 1200), (144.5, 155.8, 163.1)),
    "flower_jpeg_photo__flower.jpg": ((360, 480), (119.3, 132.0, 94.1)),
    "gif_animated__iss634.gif": ((245, 245), (134.6, 136.6, 90.2)),
    "gif_decompression_bomb__decompression_bomb.gif": (ImageTooLarge, "4364696535 pixels"),
    "gif_dispose__dispose_bgnd.gif": ((100, 100), (72.5, 169.1, 246.9)),
    "gray_jpeg__hopper_gray.jpg": ((128, 128), (84.7, 84.7, 84.7)),
    "heic__gradient.heic": ((720, 1280), (127.0, 127.0, 126.8)),
    "heic_alpha__rgba.heic": ((720, 1280), (201.8, 180.5, 191.0)),
    "heic_named_heif__hopper.heif": ((128, 128), (89.8, 80.2, 95.4)),
    "heic_rotated__gradient_rotated.heic": ((1280, 720), (127.0, 127.0, 126.8)),
    "ico__hopper.ico": ((16, 16), (42.6, 31.0, 46.9)),
    "mpo_two_frames__frozenpond.mpo": ((480, 640), (108.2, 104.0, 100.6)),
    "pgm_16bit__16_bit_binary.pgm": ((100, 20), (127.5, 127.5, 127.5)),
    "png_16bit_I_tRNS__i_trns.png": ((64, 64), (35.1, 35.1, 35.1)),
    "png_16bit_gray__grayscale_16bit.png": ((48, 64), (127.5, 127.5, 127.5)),
    "png_1bit_tRNS__1_trns.png": ((64, 64), (124.1, 124.1, 124.1)),
    "png_dos__png_decompression_dos.png": ((1, 1), (0, 0, 0)),  # the bomb is text, which is not unpacked
    "png_exif_o3__exif_imagemagick_orientation.png": ((512, 512), (144.5, 142.6, 143.1)),
    "png_palette__a_fli.png": ((200, 320), (93.6, 92.3, 92.6)),
    "png_palette_tRNS__p_trns_single.png": ((64, 64), (127.9, 176.3, 162.7)),
    "ppm__hopper.ppm": ((128, 128), (89.7, 80.1, 95.4)),
    "progressive_icc_jpeg__icc_profile_big.jpg": ((250, 425), (59.5, 121.6, 176.5)),  # as stored 57, 107, 169
    "psd__hopper.psd": ((128, 128), (89.7, 80.1, 95.4)),
    "tga_rle__rgb32rle.tga": ((199, 199), (85.7, 84.5, 68.2)),
    "tiff_12bit__12bit.cropped.tif": ((100, 100), (0.1, 0.1, 0.1)),  # values 0..30 of 4095
    "tiff_16bit_MM__16bit.MM.cropped.tif": ((64, 64), (1.4, 1.4, 1.4)),  # values 291..694 of 65535
    "tiff_16bit_deflate__16bit.MM.deflate.tif": ((64, 64), (1.4, 1.4, 1.4)),
    "tiff_16bit_noise__16_bit_noise.tif": ((32, 32), (1.0, 1.0, 1.0)),
    "tiff_float32__10ct_32bit_128.tiff": ((128, 128), (133.9, 133.9, 133.9)),
    "tiff_int16_signed__16bit.s.tif": ((10, 10), (25.5, 25.5, 25.5)),
    "tiff_jpeg_in_tiff__hopper_jpg.tif": ((128, 128), (89.7, 80.1, 95.4)),
    "tiff_lab__lab.tif": ((10, 10), (254, 255, 254)),
    "tiff_multipage__multipage.tiff": ((10, 10), (0, 128, 0)),  # the pages are green, red, blue
    "tiff_o6__g4_orientation_6.tif": ((88, 590), (226.7, 226.7, 226.7)),
    "trunc_tiff_seek__seek_too_large.tif": (ImageError, "cannot decode this TIFF"),
    "truncated_end_png__truncated_end_chunk.png": ((128, 128), (89.7, 80.1, 95.4)),  # only IEND is cut short
    "truncated_jpeg__truncated_jpeg.jpg": (ImageError, "Premature end of JPEG file"),
    "truncated_png__truncated_image.png": (ImageError, "is cut short"),
    "webp_alpha__transparent.webp": ((150, 200), (210.9, 202.7, 204.2)),
    "webp_animated__iss634.webp": ((245, 245), (134.6, 136.6, 90.2)),
    "webp_o6__hopper_orientation_6.webp": ((128, 128), (89.8, 80.2, 95.7)),
}


PIXELS = {  # where a mean would not notice: turned, mirrored, or blue and red exchanged
    "exif_o5_mirror__Landscape_5.jpg": ((0, 0), (112, 158, 218)),
    "exif_o6__Landscape_6.jpg": ((0, 0), (110, 159, 218)),
    "heic_rotated__gradient_rotated.heic": ((0, 0), (0, 255, 127)),
    "heic__gradient.heic": ((0, 1279), (255, 1, 126)),
    "cmyk_jpeg__cmyk.jpg": ((0, 1279), (255, 1, 127)),
    "cmyk_jpeg__pil_sample_cmyk.jpg": ((0, 0), (255, 14, 26)),
    "avif_rot__rot1mir1.avif": ((0, 0), (165, 201, 225)),
    "avif_10bit__gradient_10bit.avif": ((0, 0), (4, 4, 253)),
    "tiff_o6__g4_orientation_6.tif": ((0, 0), (255, 255, 255)),
    "tga_rle__rgb32rle.tga": ((20, 20), (255, 0, 0)),
    "webp_alpha__transparent.webp": ((0, 0), (255, 255, 255)),
}


def test_the_table_names_every_odd_file(odd: Path) -> None:
    assert {entry.name for entry in odd.iterdir()} - {"LIST.tsv"} == set(AWKWARD)


@pytest.mark.parametrize("name", sorted(AWKWARD))
def test_odd_file(odd: Path, name: str) -> None:
    expected, detail = AWKWARD[name]
    path = str(odd / name)
    if name.startswith("heic") and not HEIC:
        expected, detail = ImageError, "pillow-heif"
    assert images.is_supported(name)
    if isinstance(expected, type):
        with pytest.raises(expected) as caught:
            images.read(path)
        assert type(caught.value) is expected
        assert caught.value.message.startswith(f"{path}: ")
        assert detail in caught.value.message
        assert caught.value.hint
        return
    if name.startswith("tga") and int(Image.__version__.partition(".")[0]) < 13:
        pytest.skip("an older Pillow takes the unused byte of this TGA for alpha")
    picture = images.read(path)
    assert picture.size == expected
    assert picture.pixels.shape == (*expected, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.flags.writeable
    assert picture.pixels.mean((0, 1)) == pytest.approx(detail, abs=0.8)
    if name in PIXELS:
        at, colour = PIXELS[name]
        assert picture.pixels[at].tolist() == pytest.approx(colour, abs=3)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of one process is read from /proc")
def test_odd_files_stay_below_1_gb_and_off_stderr(odd: Path) -> None:
    script = """
import json, os, resource, sys
from unet_batch.media import images
from unet_batch.errors import ImageError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
failed = 0
for entry in os.scandir(sys.argv[1]):
    try:
        images.read(entry.path)
    except ImageError:
        failed += 1
# Not ru_maxrss: it begins with the size of the process that was forked, which here is all of the tests.
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps([failed, peak]))
"""
    command = [sys.executable, "-W", "error", "-c", script, str(odd)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    failed, peak = json.loads(done.stdout)
    # 1: LIST.tsv
    assert failed == 1 + sum(isinstance(row[0], type) for row in AWKWARD.values()) + (0 if HEIC else 4)
    assert peak < 1_000_000  # KiB; about 110 MiB


def test_rules_for_8_bits(tmp_path: Path, photo: Image.Image) -> None:
    rgb = np.asarray(photo)
    assert np.array_equal(read_bytes(tmp_path, encoded(photo, "PNG")), rgb)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        assert np.array_equal(
            read_bytes(tmp_path, encoded(photo.convert("L"), kind)), grey(photo.convert("L"))
        ), kind
    palette = photo.quantize(50)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(
            read_bytes(tmp_path, encoded(palette, kind)), np.asarray(palette.convert("RGB"))
        ), kind
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        bits = photo.convert("1")
        assert np.array_equal(read_bytes(tmp_path, encoded(bits, kind)), grey(np.asarray(bits) * 255)), kind
    cmyk = photo.convert("CMYK")
    assert np.array_equal(read_bytes(tmp_path, encoded(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_over_white(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    base = {"RGBA": photo, "LA": photo.convert("L").convert("RGB"), "PA": photo.quantize(40).convert("RGB")}[
        mode
    ]
    alpha = np.tile(np.linspace(0, 255, 403).round().astype(np.uint8), (317, 1))
    image = base.copy()
    image.putalpha(Image.fromarray(alpha))
    if mode == "PA":  # a palette of which entry i has alpha 5 i
        image = photo.quantize(40)
        alpha = (np.asarray(image) * 5).astype(np.uint8)
        data = encoded(image, "PNG", transparency=bytes(5 * i for i in range(40)))
    else:
        data = encoded(image.convert(mode), "PNG")
    share = alpha[..., None] / 255
    expected = np.asarray(base) * share + 255 * (1 - share)
    assert np.abs(read_bytes(tmp_path, data) - expected).max() <= 1


def test_transparent_colour_becomes_white(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (4, 3), (10, 20, 30))
    rgb.putpixel((1, 1), (200, 0, 0))
    pixels = read_bytes(tmp_path, encoded(rgb, "PNG", transparency=(10, 20, 30)))
    assert pixels[1, 1].tolist() == [200, 0, 0]
    assert (np.delete(pixels.reshape(-1, 3), 5, axis=0) == 255).all()


def test_16_and_12_bits(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = grey(np.rint(values / 257))
    assert np.array_equal(read_bytes(tmp_path, encoded(Image.fromarray(values), "PNG")), expected)
    assert np.array_equal(read_bytes(tmp_path, encoded(Image.fromarray(values), "TIFF")), expected)
    assert np.array_equal(
        read_bytes(tmp_path, b"P5 256 256 65535\n" + values.astype(">u2").tobytes()), expected
    )
    assert np.array_equal(read_bytes(tmp_path, tiff(values, 1, 0)), 255 - expected)
    colour = np.random.default_rng(5).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    done, png = cv2.imencode(".png", colour[..., ::-1])
    assert done
    assert np.array_equal(read_bytes(tmp_path, png.tobytes()), colour >> 8)
    assert np.array_equal(read_bytes(tmp_path, tiff(colour, 1, 2)), np.rint(colour / 257))
    twelve = bytes([0xFF, 0xF8, 0x00, 0x00, 0x10, 0x00])  # 4095, 2048, 1, 0
    pixels = read_bytes(tmp_path, tiff(np.zeros((1, 4), np.uint16), 1, 1, raw=twelve, bits=12))
    assert pixels[0, :, 0].tolist() == [255, 128, 0, 0]


@pytest.mark.parametrize(
    ("values", "sample_format", "expected"),
    [
        (np.float32([[0, 0.25, 0.5, 1]]), 3, [0, 64, 128, 255]),
        (np.float32([[-1, 0, 1, 3]]), 3, [0, 64, 128, 255]),
        (np.float32([[np.nan, 0, 1, 0.5]]), 3, [0, 0, 255, 128]),
        (np.float32([[np.inf, -np.inf, 0, 0.2]]), 3, [0, 0, 0, 51]),  # no values, as NaN
        (np.float32([[np.nan, np.nan, np.inf, np.nan]]), 3, [0, 0, 0, 0]),
        (np.float32([[7, 7, 7, 7]]), 3, [0, 0, 0, 0]),
        (np.float32([[-3e38, 0, 0, 3e38]]), 3, [0, 128, 128, 255]),
        (np.int16([[-100, 0, 50, 100]]), 2, [0, 128, 191, 255]),
        (np.int32([[-(2**31), 0, 0, 2**31 - 1]]), 2, [0, 128, 128, 255]),
        (np.uint32([[0, 2**31, 2**31, 2**32 - 1]]), 1, [0, 128, 128, 255]),
    ],
)
def test_signed_and_float(
    tmp_path: Path, values: NDArray[Any], sample_format: int, expected: list[int]
) -> None:
    pixels = read_bytes(tmp_path, tiff(values, sample_format, 1))
    assert pixels[0, :, 0].tolist() == pytest.approx(expected, abs=1)
    assert (pixels == pixels[..., :1]).all()


def test_tiff_kinds_that_pillow_misreads_or_refuses(tmp_path: Path) -> None:
    colour = np.random.default_rng(7).integers(0, 65536, (4, 5, 3)).astype(np.uint16)
    planes = np.ascontiguousarray(np.moveaxis(colour, -1, 0)).tobytes()
    pixels = read_bytes(tmp_path, tiff(colour, 1, 2, raw=planes, planar=2))
    assert np.array_equal(pixels, np.rint(colour / 257))
    floats = colour / 65535
    for values, photometric in ((floats, 2), (floats.astype(np.float32), 2), (floats[..., 0], 1)):
        expected = values if photometric == 2 else values[..., None]
        assert np.abs(read_bytes(tmp_path, tiff(values, 3, photometric)) - 255 * expected).max() <= 0.51


def test_floats_of_other_formats_say_what_is_missing(tmp_path: Path) -> None:
    values = np.float32([[0, np.nan, 1], [0.5, 0.25, np.inf]])
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf 3 2 -1.0\n" + values[::-1].tobytes())
    picture = images.read(str(path))
    assert picture.missing is not None
    assert picture.missing.tolist() == (~np.isfinite(values)).tolist()
    assert np.array_equal(picture.pixels, grey([[0, 0, 255], [128, 64, 0]]))
    memory = images.from_memory(Image.fromarray(values), "image")
    assert memory.missing is not None
    assert np.array_equal(memory.missing, picture.missing)
    assert np.array_equal(memory.pixels, picture.pixels)


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for kind, options in (
        ("GIF", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        pixels = read_bytes(tmp_path, data)
        if kind not in ("PNG", "TIFF"):
            notes = ("3 frames: the first is read",)
            assert images.read_bytes(data).notes == images.read_bytes(data, at_least=(1, 1)).notes == notes
            assert images.from_memory(Image.open(io.BytesIO(data)), "x").notes == notes
            assert images.read_bytes(encoded(frames[0], kind, **options)).notes == ()
        assert pixels.shape == (10, 20, 3), kind
        assert np.abs(pixels - np.int16([255, 0, 0])).max() <= 3, kind


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "RGBA", "1"])
def test_png_cut_or_changed_is_an_error_or_right(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    data = encoded(photo.resize((90, 70)).convert(mode), "PNG")
    right = read_bytes(tmp_path, data)
    end_of_pixels = data.rindex(b"IEND") - 4

    @settings(max_examples=80, deadline=None)
    @given(st.integers(0, len(data) - 1), st.integers(1, 255), st.booleans())
    def damage(at: int, change: int, cut: bool) -> None:
        copy = data[:at] if cut else data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
        try:
            pixels = read_bytes(tmp_path, copy)
        except ImageError:
            return
        assert at >= end_of_pixels or not cut
        assert np.array_equal(pixels, right)

    damage()


def test_png_with_too_few_rows_is_an_error(tmp_path: Path) -> None:
    row = b"\0" + bytes(range(1, 31))
    assert read_bytes(tmp_path, png(10, 20, 8, 2, row * 20)).shape == (20, 10, 3)
    # Black, but there
    assert read_bytes(tmp_path, png(10, 20, 8, 2, row * 10 + bytes(31 * 10))).shape == (20, 10, 3)
    for rows in (0, 1, 10, 19):
        with pytest.raises(ImageError, match=r"early|truncated"):
            read_bytes(tmp_path, png(10, 20, 8, 2, row * rows))
    # Adam7 for 9x7 grey: passes of 1x2, 1x1, 1x3, 2x2 (width 2), 2x5, 4x4 and 3x9 (rows x columns)
    sizes = [(1, 2), (1, 1), (1, 3), (2, 2), (2, 5), (4, 4), (3, 9)]
    stream = b"".join((b"\0" + b"\x80" * columns) * rows for rows, columns in sizes)
    assert (read_bytes(tmp_path, png(9, 7, 8, 0, stream, interlaced=1)) == 128).all()
    with pytest.raises(ImageError):
        read_bytes(tmp_path, png(9, 7, 8, 0, stream[:-10], interlaced=1))
    black = bytes(len(stream))
    assert (read_bytes(tmp_path, png(9, 7, 8, 0, black, interlaced=1)) == 0).all()


def test_png_ignores_what_is_not_pixels(tmp_path: Path) -> None:
    rows = (b"\0" + bytes(range(1, 31))) * 20
    right = read_bytes(tmp_path, png(10, 20, 8, 2, rows))
    bomb = b"k\0\0" + zlib.compress(bytes(50_000_000))
    broken = bytearray(chunk(b"gAMA", struct.pack(">I", 45455)))
    broken[-1] ^= 1
    for extra in (chunk(b"zTXt", bomb), chunk(b"iCCP", bomb), bytes(broken), chunk(b"acTL", b"\0")):
        assert np.array_equal(read_bytes(tmp_path, png(10, 20, 8, 2, rows, extra=extra)), right)


def test_icons_are_read_whatever_their_kind(tmp_path: Path, photo: Image.Image) -> None:
    for kind in ("bmp", "png"):
        data = encoded(photo, "ICO", sizes=[(16, 16), (48, 48)], bitmap_format=kind)
        side = read_bytes(tmp_path, data, max_pixels=48 * 48).shape[0]  # of the one that Pillow prefers
        with pytest.raises(ImageTooLarge):
            read_bytes(tmp_path, data, max_pixels=side * side - 1)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("white_first", [False, True])
def test_a_bmp_of_black_and_white_shows_them_at_every_depth(
    tmp_path: Path, bits: int, white_first: bool
) -> None:
    """Pillow takes one whose palette holds no more for one of 1 bit."""
    values = np.random.default_rng(3).integers(0, 2, (9, 21)).astype(np.uint8)
    rows = np.packbits(np.unpackbits(values[::-1, :, None], -1)[..., 8 - bits :].reshape(9, -1), -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    table = b"\xff\xff\xff\0\0\0\0\0" if white_first else b"\0\0\0\0\xff\xff\xff\0"
    head = struct.pack("<IiiHHIIiiII", 40, 21, 9, 1, bits, 0, rows.size, 0, 0, 2, 0)
    data = b"BM" + struct.pack("<IHHI", 62 + rows.size, 0, 0, 62) + head + table + rows.tobytes()
    shown = np.uint8(255) * (1 - values if white_first else values)
    assert np.array_equal(read_bytes(tmp_path, data), grey(shown))
