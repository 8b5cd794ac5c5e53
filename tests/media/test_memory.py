"""Pictures that are in memory already."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
RGBA = np.dstack([RGB, np.full((6, 8), 100, np.uint8)])
GREY = RGB[..., 0]


def stored(array: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("array", [RGB, RGBA, GREY, RGB[:, ::-1]], ids=["rgb", "rgba", "grey", "view"])
def test_the_same_picture_whatever_holds_it(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(stored(array, "PNG"))
    expected = images.read(str(path))
    for held in (
        array,
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        Image.open(path),
        Image.fromarray(array),
        array / 255,
        (array / 255).astype(np.float32),
    ):
        picture = images.from_memory(held, "held")
        assert picture.size == expected.size
        assert picture.pixels.flags.c_contiguous
        assert np.array_equal(picture.pixels, expected.pixels), type(held)


def test_a_single_channel_is_grey() -> None:
    assert np.array_equal(
        images.from_memory(GREY[..., None], "x").pixels, images.from_memory(GREY, "x").pixels
    )


def test_an_image_is_turned_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    assert images.from_memory(Image.open(path), "x").size == (8, 6)
    assert np.array_equal(images.from_memory(Image.open(path), "x").pixels, images.read(str(path)).pixels)


def test_bytes_are_decoded_at_reduced_scale_where_that_is_enough() -> None:
    data = stored(np.zeros((64, 96, 3), np.uint8), "JPEG")
    picture = images.from_memory(data, "x", at_least=(16, 16))
    assert picture.size == (64, 96)
    assert picture.pixels.shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("array", "span", "hint"),
    [
        (np.array([[0.0, 255.0]]), "0..255", "x / 255"),
        (np.array([[-2.1, 2.5]]), "-2.1..2.5", "x * std + mean"),
        (np.array([[0.0, np.nan]]), "nan..nan", "nan_to_num"),
        (np.array([[0.0, np.inf]]), "0..inf", "x / 255"),
        (np.array([[0.0, 1.001]], np.float32), "0..1.001", "x / 255"),
    ],
)
def test_floats_out_of_range_name_theirs_and_the_fix(array: np.ndarray, span: str, hint: str) -> None:
    with pytest.raises(ImageError, match=r"floats must lie in 0\.\.1, these lie in ") as caught:
        images.from_memory(array, "array")
    assert caught.value.message.endswith(span)
    assert hint in caught.value.hint


def test_bytes_and_images_that_do_not_decode() -> None:
    data = stored(RGB, "PNG")
    with pytest.raises(ImageError, match="upload: looks like a text file"):
        images.from_memory(b"hello", "upload")
    with pytest.raises(ImageError, match="image: Pillow cannot decode it: "):
        images.from_memory(Image.open(io.BytesIO(data[:-40])), "image")
    with pytest.raises(ImageTooLarge, match="the limit is 47"):
        images.from_memory(data, "upload", max_pixels=47)
    with pytest.raises(ImageTooLarge, match="the limit is 47"):
        images.from_memory(Image.fromarray(RGB), "image", max_pixels=47)


def test_anything_else_is_no_picture() -> None:
    with pytest.raises(ImageError, match=r"image: builtins.int is no picture") as caught:
        images.from_memory(7, "image")  # type: ignore[arg-type]
    assert "numpy array" in caught.value.hint
