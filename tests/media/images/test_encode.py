"""Results survive their encoders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.helpers.formats import grey, read_bytes
from unet_batch.errors import EncodeError
from unet_batch.media import images
from unet_batch.types import Metadata


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


def test_overlays_and_cutouts_say_that_they_are_srgb_and_masks_hold_numbers() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(images.encode_jpeg(rgb))) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
    cutout = images.encode_rgba(np.dstack([rgb, rgb[..., 0]]))
    with Image.open(io.BytesIO(cutout)) as image:
        assert image.info == {"srgb": 1}
        image.load()  # checks the chunks' checksums
    for data in (images.encode_mask(rgb[..., 0]), images.encode_map(rgb[..., 0])):
        with Image.open(io.BytesIO(data)) as image:
            assert image.info == {}
    assert images.encode_jpeg(rgb) == images.encode_jpeg(rgb)


def test_resolutions_out_of_range_are_held() -> None:
    rgb = np.zeros((2, 2, 3), np.uint8)
    for dpi in ((0.001, 1e9), (300.4, 299.6)):
        metadata = Metadata(dpi=dpi)
        assert images.encode_rgba(np.dstack([rgb, rgb[..., 0]]), metadata)
        with Image.open(io.BytesIO(images.encode_jpeg(rgb, metadata=metadata))) as image:
            assert image.info["dpi"] == ((1, 65535) if dpi[0] < 1 else (300, 300))
