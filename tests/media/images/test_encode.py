"""Results survive their encoders."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.helpers.formats import grey, read_bytes
from unet_batch.errors import EncodeError
from unet_batch.media import images
from unet_batch.media.images.encode import _zlib_ng
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


def decode_png(data: bytes) -> np.ndarray[Any, Any]:
    """Decode a grey PNG by the letter of its specification, with rows filtered by "None" or "Up"."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, list[tuple[bytes, bytes]]()
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        chunks.append((kind, body))
        at += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", *[b"IDAT"] * (len(chunks) - 2), b"IEND"]
    width, height, bits, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (rest, chunks[-1][1]) == ([0, 0, 0, 0], b"")
    unpack = zlib.decompressobj()
    stored = unpack.decompress(b"".join(body for _, body in chunks[1:-1]))
    assert unpack.eof
    assert not unpack.unused_data
    rows = np.frombuffer(stored, np.uint8).reshape(height, 1 + width * bits // 8)
    assert set(rows[:, 0]) <= {0, 2}
    values = np.zeros((height + 1, width * bits // 8), np.uint8)
    for number, row in enumerate(rows):
        values[number + 1] = row[1:] + (values[number] if row[0] else np.uint8(0))
    return values[1:] if bits == 8 else values[1:].view(">u2")


DECODERS: dict[str, Callable[[bytes], np.ndarray[Any, Any]]] = {
    "ours": decode_png,
    "pillow": lambda data: np.asarray(Image.open(io.BytesIO(data))),
    "cv2": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
    "imagecodecs": imagecodecs.png_decode,
}


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([2, 5, 65536]),
    st.integers(0, 9),
)
def test_every_reader_finds_the_values_in_a_png(
    shape: tuple[int, int], dtype: type, levels: int, seed: int
) -> None:
    values = (np.random.default_rng(seed).integers(0, levels, shape) * (65536 // levels)).astype(np.uint16)
    encoded = (values >> 8).astype(np.uint8) if dtype == np.uint8 else values
    files = [images.encode_map(encoded)]
    if dtype == np.uint8:
        files.append(images.encode_mask(encoded))
    for data, (name, decode) in itertools.product(files, DECODERS.items()):
        assert np.array_equal(decode(data), encoded), name


def test_a_mask_drawn_on_the_canvas_is_the_same_file_as_any_other() -> None:
    mask = np.random.default_rng(5).integers(0, 256, (40, 60), dtype=np.uint8)
    expected = images.encode_mask(mask)
    images.encode_map(mask)  # leaves in the same memory what must not be seen
    canvas = images.mask_canvas(mask.shape)
    assert not canvas.any()
    canvas[:] = mask
    assert images.encode_mask(canvas) == expected
    canvas = images.mask_canvas(mask.shape)
    canvas[:] = mask
    part = canvas[:7, :9]  # it begins where the rows of a smaller mask would, and is not laid out as they are
    assert images.encode_mask(part) == images.encode_mask(mask[:7, :9].copy())


@pytest.mark.parametrize("shape", [(1, 65500), (65500, 1), (4000, 5000)])
def test_large_masks_are_read_by_everyone(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, (shape[1] // 2, shape[0] // 2), max(1, min(shape) // 3), 255, -1)
    data = images.encode_mask(mask)
    assert len(data) < 100_000
    for name, decode in DECODERS.items():
        if name != "ours":
            assert np.array_equal(decode(data), mask), name


def test_the_same_mask_is_the_same_file_whatever_was_encoded_before() -> None:
    rng = np.random.default_rng(3)
    mask = cv2.GaussianBlur(rng.integers(0, 256, (300, 400), np.uint8), (0, 0), 9)
    first = images.encode_mask(mask)
    images.encode_map(rng.integers(0, 65536, (500, 700), dtype=np.uint16))
    images.encode_mask(mask[:7, :9])
    with ThreadPoolExecutor(4) as pool:
        assert {first, *pool.map(images.encode_mask, [mask, mask.copy(order="F")] * 8)} == {first}


@pytest.mark.parametrize("build", ["without zlib-ng", "without imagecodecs", "too large for one chunk"])
def test_without_zlib_ng_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    rng = np.random.default_rng(4)
    deep = rng.integers(0, 65536, (31, 47), dtype=np.uint16)
    mask = (deep >> 8).astype(np.uint8)
    usual = images.encode_mask(mask), images.encode_map(deep)
    _zlib_ng.cache_clear()
    if build == "without zlib-ng":
        monkeypatch.setattr(imagecodecs.ZLIBNG, "available", False)
    elif build == "without imagecodecs":
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    else:
        monkeypatch.setattr("unet_batch.media.images.encode._LARGEST", mask.nbytes - 1)
    try:
        data = images.encode_mask(mask), images.encode_map(deep)
        monkeypatch.delattr(cv2, "IMWRITE_PNG_FILTER", raising=False)  # as in cv2 4.10
        plain = images.encode_mask(mask), images.encode_map(deep)
    finally:
        _zlib_ng.cache_clear()
    assert data != usual
    for found in (usual, data, plain):
        assert np.array_equal(DECODERS["pillow"](found[0]), mask)
        assert np.array_equal(DECODERS["pillow"](found[1]), deep)


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


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 70),
    st.lists(st.integers(1, 25), min_size=1, max_size=8),
    st.sampled_from([8, 16]),
    st.booleans(),
)
def test_a_png_by_rows_holds_what_one_of_the_whole_holds(
    height: int, width: int, heights: list[int], bits: int, smooth: bool
) -> None:
    kind = np.uint8 if bits == 8 else np.uint16
    values = np.random.default_rng(height).integers(0, 2**bits, (height, width), kind)
    file, top = io.BytesIO(), 0
    writer = images.GreyPngWriter(file, (height, width), bits=bits, smooth=smooth)
    for rows in itertools.cycle(heights):
        if top >= height:
            break
        writer.write(values[top : top + rows])
        top += rows
    writer.finish()
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.mode == ("L" if bits == 8 else "I;16")
        np.testing.assert_array_equal(np.array(image), values)
    found = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, values)


def test_a_png_by_rows_is_no_larger_than_one_of_the_whole() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 700))
    smooth = cv2.GaussianBlur(noise, (0, 0), 9)
    level = np.clip(127 + 300 * smooth, 0, 255).astype(np.uint8)
    for values, whole, options in (
        (np.where(smooth > 0, 255, 0).astype(np.uint8), images.encode_mask, {}),
        (level // 60, images.encode_mask, {}),
        (level, images.encode_map, {"smooth": True}),
        (level.astype(np.uint16) * 257, images.encode_map, {"smooth": True, "bits": 16}),
    ):
        file = io.BytesIO()
        writer = images.GreyPngWriter(file, (400, 700), **options)
        for top in range(0, 400, 40):
            writer.write(values[top : top + 40])
        writer.finish()
        assert len(file.getvalue()) < 1.1 * len(whole(values))
