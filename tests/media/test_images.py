"""Every odd file decodes to what a person would see, or fails with a reason; results survive their
encoders.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from unet_batch.errors import EncodeError, ImageError, ImageTooLarge
from unet_batch.media import images

HEIC = importlib.util.find_spec("pillow_heif") is not None
ROOT = Path(__file__).resolve().parents[2]

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
    "progressive_icc_jpeg__icc_profile_big.jpg": ((250, 425), (57.4, 106.9, 168.5)),
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


@pytest.fixture(scope="session")
def odd() -> Path:
    folder = Path(os.environ.get("UNET_BATCH_DATA", ROOT.parent / "shared" / "data")) / "awkward"
    if not folder.is_dir():
        pytest.skip(f"no odd pictures in {folder}: set UNET_BATCH_DATA")
    return folder


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """403x317, neither side a multiple of 8: soft gradients, hard edges, some noise."""
    y, x = np.mgrid[:317, :403]
    rgb = np.stack([x * 255 / 402, y * 255 / 316, 127 + 90 * np.sin(x / 23) * np.cos(y / 17)], axis=-1)
    rgb[60:140, 90:200] = (250, 20, 40)
    rgb[200:290, 250:380] = (10, 200, 30)
    rgb += np.random.default_rng(3).normal(0, 4, rgb.shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_bytes(folder: Path, data: bytes, name: str = "x", **options: Any) -> NDArray[np.uint8]:
    path = folder / f"{name}-{threading.get_ident()}"
    path.write_bytes(data)
    return images.read(str(path), **options).pixels


# Real files -------------------------------------------------------------------------------------------------


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
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.stderr == ""
    failed, peak = json.loads(done.stdout)
    # 1: LIST.tsv
    assert failed == 1 + sum(isinstance(row[0], type) for row in AWKWARD.values()) + (0 if HEIC else 4)
    assert peak < 1_000_000  # KiB; about 110 MiB


def test_cmyk_jpeg_looks_as_in_pillow(odd: Path) -> None:
    for path in odd.glob("cmyk_jpeg*"):
        with Image.open(path) as image:
            reference = np.asarray(image.convert("RGB"), np.int16)
        assert np.abs(images.read(str(path)).pixels - reference).max() <= 2


# JPEG -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(tmp_path: Path, photo: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.int16)
    pixels = read_bytes(tmp_path, data)
    assert pixels.shape == reference.shape
    assert np.abs(pixels - reference).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("size", "at_least", "shape"),
    [
        ((312, 400), None, (312, 400)),
        ((312, 400), (312, 400), (312, 400)),
        ((312, 400), (157, 10), (312, 400)),
        ((312, 400), (156, 200), (156, 200)),
        ((312, 400), (156, 201), (312, 400)),
        ((312, 400), (78, 100), (78, 100)),
        ((312, 400), (79, 10), (156, 200)),
        ((312, 400), (39, 50), (39, 50)),
        ((312, 400), (1, 1), (39, 50)),
        ((312, 400), (9999, 1), (312, 400)),
        ((316, 400), (1, 1), (79, 100)),
        ((310, 400), (1, 1), (155, 200)),
        ((312, 402), (1, 1), (156, 201)),
        ((317, 400), (1, 1), (317, 400)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decode(
    tmp_path: Path, photo: Image.Image, size: tuple[int, int], at_least: Any, shape: Any, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p.jpg"
    part = photo.crop((0, 0, size[1], size[0]))
    path.write_bytes(encoded(part, "JPEG", quality=95, subsampling=0, exif=exif))
    if orientation == 6:
        at_least = at_least and at_least[::-1]
        shape = shape[::-1]
    full = images.read(str(path))
    small = images.read(str(path), at_least=at_least)
    assert small.size == full.size == full.pixels.shape[:2]
    assert small.pixels.shape == (*shape, 3)
    assert small.pixels.flags.c_contiguous
    # Aligned: each pixel is the mean of a block of the full picture. A shift by half a small pixel gives 4
    # and more.
    step = full.size[0] // shape[0]
    whole = full.pixels.reshape(shape[0], step, shape[1], step, 3).mean((1, 3))
    assert np.abs(small.pixels - whole).mean() < 1.5


def jpeg_variants(photo: Image.Image) -> dict[str, bytes]:
    small = photo.resize((120, 95))
    return {
        "baseline": encoded(small, "JPEG"),
        "progressive": encoded(small, "JPEG", progressive=True),
        "restarts": encoded(small, "JPEG", restart_marker_rows=1, subsampling=0),
        "grey": encoded(small.convert("L"), "JPEG"),
        "cmyk": encoded(small.convert("CMYK"), "JPEG"),
    }


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


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(40))],
)
def test_broken_exif_is_ignored(tmp_path: Path, photo: Image.Image, exif: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        assert read_bytes(tmp_path, encoded(photo, kind, exif=exif)).shape == (317, 403, 3)


# Rules of conversion ----------------------------------------------------------------------------------------


def grey(values: Any) -> NDArray[np.uint8]:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


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
    for data in (png.tobytes(), tiff(colour, 1, 2)):
        assert np.array_equal(read_bytes(tmp_path, data), colour >> 8)
    twelve = bytes([0xFF, 0xF8, 0x00, 0x00, 0x10, 0x00])  # 4095, 2048, 1, 0
    pixels = read_bytes(tmp_path, tiff(np.zeros((1, 4), np.uint16), 1, 1, raw=twelve, bits=12))
    assert pixels[0, :, 0].tolist() == [255, 128, 0, 0]


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


@pytest.mark.parametrize(
    ("values", "sample_format", "expected"),
    [
        (np.float32([[0, 0.25, 0.5, 1]]), 3, [0, 64, 128, 255]),
        (np.float32([[-1, 0, 1, 3]]), 3, [0, 64, 128, 255]),
        (np.float32([[np.nan, 0, 1, 0.5]]), 3, [0, 0, 255, 128]),
        (np.float32([[np.inf, -np.inf, 0, 0.2]]), 3, [255, 0, 0, 51]),
        (np.float32([[np.nan, np.nan, np.inf, np.nan]]), 3, [0, 0, 255, 0]),
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


def test_tiff_kinds_that_would_come_out_wrong(tmp_path: Path) -> None:
    colour = np.zeros((4, 5, 3), np.uint16)
    with pytest.raises(ImageError, match="separate planes"):
        read_bytes(tmp_path, tiff(colour, 1, 2, planar=2))
    for values, sample_format, photometric in ((np.zeros((4, 5)), 3, 1), (colour.astype(np.float32), 3, 2)):
        with pytest.raises(ImageError, match="is not supported") as caught:
            read_bytes(tmp_path, tiff(values, sample_format, photometric))
        assert "convert" in caught.value.hint


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
        assert pixels.shape == (10, 20, 3), kind
        assert np.abs(pixels - np.int16([255, 0, 0])).max() <= 3, kind


# PNG --------------------------------------------------------------------------------------------------------


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


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


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


# Files that are no pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says", "hint"),
    [
        (b"", "an empty file", ""),
        (b"hello, this is no picture\n", "looks like a text file", ""),
        ("Grüße\n".encode(), "looks like a text file", ""),
        (bytes(300), "zero bytes", ""),
        (b"%PDF-1.7\n...", "not an image format known here", "PNG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video", ""),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer", "git lfs pull"),
        (b"\xff\xd8\xff", "cannot decode this JPEG", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "cannot decode this PNG", "damaged"),
        (b"GIF89a", "cannot decode this GIF", "damaged"),
        (b"II*\0\x08\0\0\0", "cannot decode this TIFF", "damaged"),
    ],
)
def test_not_a_picture(tmp_path: Path, data: bytes, says: str, hint: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=says) as caught:
        images.read(str(path))
    assert caught.value.message.startswith(f"{path}: ")
    assert hint in caught.value.hint


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, says in (
        ("pipe.jpg", "not a regular file"),
        ("", "a directory"),
        ("none.jpg", "no such file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(ImageError, match=says):
            images.read(str(tmp_path / name))
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(ImageError, match="cannot be opened: Too many levels"):
        images.read(str(tmp_path / "loop"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        images.read(str(path))


def test_limit_is_checked_before_decoding(tmp_path: Path, photo: Image.Image) -> None:
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        data = encoded(photo, kind)
        with pytest.raises(ImageTooLarge, match=r"317x403 .* 127,751 pixels, the limit is 127,750") as caught:
            read_bytes(tmp_path, data, max_pixels=127_750)
        assert caught.value.hint
        assert read_bytes(tmp_path, data, max_pixels=127_751).shape == (317, 403, 3)
    huge = bytearray(encoded(photo, "JPEG"))
    at = huge.index(b"\xff\xc0") + 5
    huge[at : at + 4] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(ImageTooLarge, match="60000x60000"):
        read_bytes(tmp_path, bytes(huge))
    # 100 megapixels of which next to nothing is there: no warning of Pillow's either
    with pytest.raises(ImageError):
        read_bytes(tmp_path, png(10_000, 10_000, 8, 0, b"\0"))


def test_limit_holds_for_what_is_inside(tmp_path: Path) -> None:
    """Headers that announce 16x16 and hold more: refused before anything is decoded."""
    inner = png(3000, 2000, 8, 0, b"")
    bitmap = struct.pack("<IiiHHIIiiII", 40, 3000, -4000, 1, 1, 0, 0, 0, 0, 0, 0)
    core = struct.pack("<IHHHH", 12, 3000, 4000, 1, 1)
    for picture in (inner, bitmap, core):
        entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 1, len(picture), 22)
        with pytest.raises(ImageTooLarge, match=r"2000x3000 .* the limit is 5,999,999"):
            read_bytes(tmp_path, struct.pack("<HHH", 0, 1, 1) + entry + picture, max_pixels=5_999_999)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 3008, 323: 2000, 324: 200, 325: 8}
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with pytest.raises(ImageTooLarge, match="2000x3008"):
        read_bytes(tmp_path, tiff.ljust(200, b"\0") + zlib.compress(b""), max_pixels=6_000_000)


def test_icons_are_read_whatever_their_kind(tmp_path: Path, photo: Image.Image) -> None:
    for kind in ("bmp", "png"):
        data = encoded(photo, "ICO", sizes=[(16, 16), (48, 48)], bitmap_format=kind)
        side = read_bytes(tmp_path, data, max_pixels=48 * 48).shape[0]  # of the one that Pillow prefers
        with pytest.raises(ImageTooLarge):
            read_bytes(tmp_path, data, max_pixels=side * side - 1)


def test_bytes_in_memory_are_read_as_files_are(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo.crop((0, 0, 400, 312)), "JPEG", exif=exif)
    picture = images.read_bytes(data, at_least=(100, 78))
    assert picture.size == (400, 312)
    assert picture.pixels.shape == (100, 78, 3)
    for kind in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO"):
        assert images.read_bytes(encoded(photo.resize((32, 32)), kind)).size == (32, 32), kind
    assert images.read_bytes(encoded(photo, "TGA"), "upload.tga").size == (317, 403)


def test_bytes_that_are_no_picture_are_an_error_with_their_name(photo: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"^upload 7: an empty file"):
        images.read_bytes(b"", "upload 7")
    with pytest.raises(ImageError, match=r"^picture: looks like a text file"):
        images.read_bytes(b"hello, this is no picture\n")
    with pytest.raises(ImageError, match=r"^upload 7: cannot decode this PNG"):
        images.read_bytes(encoded(photo, "PNG")[:5000], "upload 7")
    with pytest.raises(ImageTooLarge, match=r"^upload 7: 317x403 .* the limit is 127,750"):
        images.read_bytes(encoded(photo, "PNG"), "upload 7", max_pixels=127_750)


def test_out_of_memory_is_an_image_error(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    with pytest.raises(ImageError, match="not enough memory"):
        read_bytes(tmp_path, encoded(photo, "JPEG"))


def test_a_disk_that_fails_is_not_called_a_damaged_file(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(ImageError, match="cannot decode this PNG") as caught:
        read_bytes(tmp_path, encoded(photo, "PNG"))
    assert caught.value.hint == ""
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO  # tells the run that another try may help


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="pillow-heif") as caught:
        read_bytes(tmp_path, b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    assert caught.value.hint == "pip install 'unet-batch[heic]'"


def test_every_extension_can_be_read(tmp_path: Path, photo: Image.Image) -> None:
    kinds = {
        "JPEG": "jpg jpeg jpe jfif mpo",
        "PNG": "png apng",
        "WEBP": "webp",
        "TIFF": "tif tiff",
        "BMP": "bmp dib",
        "GIF": "gif",
        "AVIF": "avif avifs",
        "PPM": "ppm pgm pbm pnm",
        "TGA": "tga",
        "ICO": "ico",
        "JPEG2000": "jp2 j2k",
    }
    small = photo.resize((32, 32))
    made = {name for names in kinds.values() for name in names.split()}
    assert set(images.EXTENSIONS) == made | {"heic", "heif", "hif", "psd"}  # those four: see the odd files
    for kind, names in kinds.items():
        for name in names.split():
            path = tmp_path / f"a.{name.upper()}"
            path.write_bytes(encoded(small, kind))
            assert images.is_supported(path.name)
            assert images.read(str(path)).size == (32, 32)
    for name in ("a", "a.txt", ".jpg", "jpg", "a.jpg.part", "a.svg", ""):
        assert not images.is_supported(name)


# Threads and warnings ---------------------------------------------------------------------------------------


def test_threads_agree(tmp_path: Path, photo: Image.Image) -> None:
    odd_tiff = encoded(photo.resize((40, 30)), "TIFF", compression="tiff_lzw")
    files = [
        *jpeg_variants(photo).values(),
        encoded(photo, "PNG"),
        encoded(photo, "GIF"),
        encoded(photo, "WEBP"),
        odd_tiff,
    ]
    paths = []
    for index, data in enumerate(files):
        paths.append(str(tmp_path / f"{index}.tga"))
        Path(paths[-1]).write_bytes(data)
    once = [images.read(path).pixels for path in paths]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [images.read(path).pixels for path in paths], range(8)))
    for run in runs:
        assert all(np.array_equal(a, b) for a, b in zip(once, run, strict=True))


def test_warnings_of_pillow_stay_inside(tmp_path: Path, photo: Image.Image) -> None:
    """The same broken EXIF makes Pillow warn elsewhere, and nothing while `read` is at work, on this thread
    only.
    """
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(10)
    data = encoded(photo, "JPEG", exif=broken)
    for _ in range(2):
        read_bytes(tmp_path, data)  # warnings are errors here
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            read_bytes(tmp_path, data)
            assert not seen
            with Image.open(io.BytesIO(data)) as image:
                image.getexif()
            assert seen


# Encoders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (97, 131)])
def test_png_round_trips(tmp_path: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mask = (rng.random(shape) > 0.5).astype(np.uint8) * 255
    deep = rng.integers(0, 65536, shape, dtype=np.uint16)
    smooth = (deep >> 8).astype(np.uint8)
    rgba = rng.integers(0, 256, (*shape, 4), dtype=np.uint8)
    for values, mode, data in (
        (mask, "L", images.encode_mask(mask)),
        (mask.T, "L", images.encode_mask(mask.T)),  # not contiguous
        (deep, "I;16", images.encode_map(deep)),
        (smooth, "L", images.encode_map(smooth)),
        (rgba, "RGBA", images.encode_rgba(rgba)),
    ):
        assert isinstance(data, bytes)
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == mode
            assert np.array_equal(np.asarray(image), values)
    assert np.array_equal(read_bytes(tmp_path, images.encode_mask(mask)), grey(mask))


def test_png_without_a_choice_of_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "IMWRITE_PNG_FILTER", raising=False)  # as in cv2 4.10
    mask = np.arange(200, dtype=np.uint8).reshape(10, 20)
    with Image.open(io.BytesIO(images.encode_mask(mask))) as image:
        assert np.array_equal(np.asarray(image), mask)


def test_jpeg_keeps_coloured_edges(photo: Image.Image) -> None:
    rgb = np.asarray(photo).copy()
    rgb[:, 200:202] = (255, 0, 0)
    with Image.open(io.BytesIO(images.encode_jpeg(rgb))) as image:
        assert image.mode == "RGB"
        back = np.asarray(image, np.int16)
    assert np.abs(back - rgb).mean() < 4
    assert np.abs(back - rgb)[:, 200:202].mean() < 8  # 4:2:0 gives 20 and more
    assert len(images.encode_jpeg(rgb, 50)) < len(images.encode_jpeg(rgb))


def test_encoders_refuse() -> None:
    with pytest.raises(EncodeError, match=r"1x65501 .* too large for JPEG") as caught:
        images.encode_jpeg(np.zeros((1, 65501, 3), np.uint8))
    assert "PNG" in caught.value.hint
    assert images.encode_jpeg(np.zeros((1, 65500, 3), np.uint8))
    wrong: list[tuple[Any, Any]] = [
        (images.encode_mask, np.zeros((2, 2), np.float32)),
        (images.encode_mask, np.zeros((2, 2, 3), np.uint8)),
        (images.encode_mask, np.zeros((0, 2), np.uint8)),
        (images.encode_map, np.zeros((2, 2), np.float32)),
        (images.encode_rgba, np.zeros((2, 2, 3), np.uint8)),
        (images.encode_jpeg, np.zeros((2, 2), np.uint8)),
        (images.encode_jpeg, np.zeros((2, 0, 3), np.uint8)),
    ]
    for encode, values in wrong:
        with pytest.raises(EncodeError, match="needs uint"):
            encode(values)
