"""What comes out is sRGB, whatever the profile; checked against Little CMS as Pillow calls it."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.helpers.formats import chunk, encoded, grey
from unet_batch.media import images
from unet_batch.media.images.profiles import coded_profile, srgb_profile, to_srgb

D65 = (0.3127, 0.3290, 1.0)
ADOBE = imagecodecs.cms_profile(
    "rgb", whitepoint=D65, primaries=(0.64, 0.33, 1, 0.21, 0.71, 1, 0.15, 0.06, 1), gamma=563 / 256
)
PROPHOTO = imagecodecs.cms_profile(
    "rgb",
    whitepoint=(0.3457, 0.3585, 1.0),
    primaries=(0.7347, 0.2653, 1, 0.1596, 0.8404, 1, 0.0366, 0.0001, 1),
    gamma=1.8,
)
GREY = imagecodecs.cms_profile("gray", gamma=1.8)
P3 = coded_profile(12, 13)[0] or b""
WIDE = {"Display P3": P3, "Adobe RGB": ADOBE, "ProPhoto": PROPHOTO}


def by_pillow(image: Image.Image, profile: bytes) -> NDArray[np.int16]:
    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None
    return np.asarray(converted, np.int16)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 98}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_wide_colours_are_converted(
    photo: Image.Image, name: str, kind: str, options: dict[str, Any]
) -> None:
    data = encoded(photo, kind, icc_profile=WIDE[name], **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = by_pillow(image.convert("RGB"), WIDE[name])
    picture = images.read_bytes(data)
    assert picture.notes == ()
    assert np.abs(picture.pixels - expected).max() <= (3 if kind == "JPEG" else 1)
    assert np.abs(expected - np.asarray(photo)).mean() > 3  # without conversion it would be far off
    assert np.abs(images.from_memory(Image.open(io.BytesIO(data)), "x").pixels - expected).max() <= 1


@pytest.mark.parametrize(("name", "moves"), [("R03", True), ("R98", False), ("THM", False)])
def test_cameras_that_name_adobe_rgb_without_a_profile_are_believed(
    photo: Image.Image, name: str, moves: bool
) -> None:
    """As DCF has it: Canon's "Adobe RGB" photos have no profile."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 65535, 0xA005: {1: name, 2: b"0100"}})
    data = encoded(photo, "JPEG", quality=98, subsampling=0, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        stored = image.convert("RGB")
        expected = by_pillow(stored, ADOBE) if moves else np.asarray(stored, np.int16)
        assert np.abs(images.from_memory(image, "x").pixels - expected).max() <= 1
    picture = images.read_bytes(data)
    assert np.abs(picture.pixels - expected).max() <= 3
    again = images.read_bytes(images.encode_jpeg(picture.pixels, 98, picture.metadata))
    assert np.abs(again.pixels.astype(int) - picture.pixels).mean() < 1  # its profile goes before the name


def test_display_p3_by_the_formula() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    level = values / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]]
    linear = (linear @ np.transpose(matrix)).clip(0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(to_srgb(values, P3)[0] - expected).max() < 1


@pytest.mark.parametrize(
    "profile", [srgb_profile(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None]
)
def test_srgb_is_left_alone(profile: bytes | None) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert to_srgb(values, profile)[0] is values


def test_grey_of_another_gamma(photo: Image.Image) -> None:
    for kind in ("JPEG", "PNG"):
        data = encoded(photo.convert("L"), kind, icc_profile=GREY)
        with Image.open(io.BytesIO(data)) as image:
            expected = by_pillow(image, GREY)
        pixels = images.read_bytes(data).pixels
        assert np.abs(pixels - expected).max() <= 3
        assert (pixels == pixels[..., :1]).all()
        assert np.abs(expected - grey(photo.convert("L")).astype(int)).mean() > 5


def test_reduced_pixels_are_converted_too(photo: Image.Image) -> None:
    data = encoded(photo.crop((0, 0, 400, 312)), "JPEG", quality=98, icc_profile=ADOBE)
    small = images.read_bytes(data, at_least=(39, 50)).pixels
    whole = images.read_bytes(data).pixels.reshape(39, 8, 50, 8, 3).mean((1, 3))
    assert small.shape == (39, 50, 3)
    assert np.abs(small - whole).mean() < 2


def test_colours_are_converted_before_they_are_laid_over_white(photo: Image.Image) -> None:
    image = photo.copy()
    image.putalpha(128)
    picture = images.read_bytes(encoded(image, "PNG", icc_profile=ADOBE))
    expected = by_pillow(photo, ADOBE) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(picture.pixels - expected).max() <= 1.5
    assert picture.alpha is not None
    assert (picture.alpha == 128).all()


CMYK = b"\0" * 16 + b"CMYK" + b"\0" * 16 + b"acsp" + bytes(200)


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (b"no profile", "damaged: its colours are taken as sRGB"),
        (ADOBE[:200], "damaged: its colours are taken as sRGB"),
        (GREY, "one for grey, the picture is RGB: its colours are taken as sRGB"),
        (CMYK, "one for CMYK, the picture is RGB: its colours are taken as sRGB"),
    ],
)
def test_a_profile_that_does_not_fit_is_ignored_and_noted(
    photo: Image.Image, profile: bytes, says: str
) -> None:
    for kind in ("JPEG", "PNG"):
        picture = images.read_bytes(encoded(photo, kind, icc_profile=profile))
        assert len(picture.notes) == 1
        assert says in picture.notes[0]
        assert np.array_equal(picture.pixels, images.read_bytes(encoded(photo, kind)).pixels)
        assert (
            images.read_bytes(encoded(photo, kind, icc_profile=profile), at_least=(9, 9)).notes
            == picture.notes
        )


def test_a_profile_that_does_not_unpack_is_noted(photo: Image.Image) -> None:
    data = encoded(photo, "PNG")
    for packed in (b"x", zlib.compress(bytes(50_000_000))):
        picture = images.read_bytes(data[:33] + chunk(b"iCCP", b"x\0\0" + packed) + data[33:])
        assert picture.notes == ("its colour profile is damaged: its colours are taken as sRGB",)


def test_inks_without_a_usable_profile_are_converted_plainly(photo: Image.Image) -> None:
    plain = images.read_bytes(encoded(photo.convert("CMYK"), "JPEG"))
    picture = images.read_bytes(encoded(photo.convert("CMYK"), "JPEG", icc_profile=ADOBE))
    assert picture.notes == (
        "its colour profile is one for RGB, the picture is CMYK: its inks are converted plainly",
    )
    assert np.abs(picture.pixels.astype(int) - plain.pixels).max() <= 2


def test_threads_convert_alike(photo: Image.Image) -> None:
    files = [encoded(photo, "JPEG", icc_profile=profile) for profile in WIDE.values()]
    once = [images.read_bytes(data).pixels for data in files]
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in enumerate(pool.map(lambda i: images.read_bytes(files[i % 3]).pixels, range(24))):
            assert np.array_equal(pixels, once[index % 3])


def test_the_profile_of_outputs_is_the_same_in_every_run() -> None:
    assert srgb_profile()[24:36] == b"\x07\xd0\0\1\0\1\0\0\0\0\0\0"
    assert len(srgb_profile()) < 700
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tiff_is_converted_and_gives_its_copyright(photo: Image.Image, mode: str) -> None:
    profile = ADOBE if mode == "RGB" else GREY
    data = encoded(
        photo.convert(mode), "TIFF", icc_profile=profile, dpi=(300, 200), tiffinfo={33432: "(c) Someone"}
    )
    picture = images.read_bytes(data)
    assert np.abs(picture.pixels - by_pillow(photo.convert(mode), profile)).max() <= 1
    assert picture.metadata.dpi == (300, 200)
    assert b"(c) Someone\0" in picture.metadata.exif
    assert picture.notes == ()
