"""Numbers of any type become uint8 by a range: of their type, of themselves, or of two given ends."""

from __future__ import annotations

import io
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from unet_batch.errors import ImageError, UsageError
from unet_batch.media import images
from unet_batch.media.images import AUTO, Range, trained_range
from unet_batch.media.images.ranges import Usage

RNG = np.random.default_rng(0)
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "?"]
DTYPE, PERCENTILE = Range.parse("dtype"), Range.parse("percentile")


def fixed(low: float, high: float) -> Range:
    return Range.parse(f"{low!r},{high!r}")


def values(kind: str, shape: Any = (23, 31)) -> np.ndarray:
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return (RNG.normal(size=shape) * 100).astype(dtype)
    if dtype.kind == "b":
        return RNG.random(shape) > 0.5
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype, endpoint=True)


class TestText:
    @pytest.mark.parametrize(
        "text", ["auto", "dtype", "percentile", "0,4095", "-100,300", "-0.5,1.25", "0,1e+300"]
    )
    def test_is_what_it_was_parsed_from(self, text: str) -> None:
        assert str(Range.parse(text)) == text

    @settings(max_examples=40)
    @given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
    def test_two_numbers_are_read_again_as_they_are(self, low: float, high: float) -> None:
        if low < high:
            assert Range.parse(str(fixed(low, high))) == fixed(low, high)
            assert fixed(low, high).ends == (low, high)

    @pytest.mark.parametrize(
        "text",
        ["", "all", "fixed", "1", "1,1", "2,1", "0,nan", "0,inf", "0,1,2", "a,b", "AUTO", "-1e308,1e308"],
    )
    def test_all_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="two numbers A,B with A below B"):
            Range.parse(text)

    def test_a_model_says_its_own(self) -> None:
        assert trained_range({}) == (AUTO, "")
        assert trained_range({"range": "0,4095"}) == (fixed(0, 4095), "range 0,4095: that of its training")
        known, why = trained_range({"range": "gamma"})
        assert known == AUTO
        assert "'gamma'" in why


@pytest.mark.parametrize("bits", range(1, 17))
def test_auto_and_dtype_take_unsigned_integers_by_their_bits(bits: int) -> None:
    full = 2**bits - 1
    every = np.arange(full + 1, dtype=np.uint16)[None]
    exactly = (every.astype(int) * 255 + full // 2) // full
    for way in (AUTO, DTYPE):
        np.testing.assert_array_equal(way.apply(every, bits), exactly)


def test_bytes_stay_what_they_are_without_a_copy() -> None:
    levels = values("u1", (5, 7, 3))
    assert AUTO.apply(levels) is levels
    assert DTYPE.apply(levels) is levels


@pytest.mark.parametrize("kind", TYPES)
def test_dtype_is_all_that_a_type_can_hold(kind: str) -> None:
    dtype = np.dtype(kind)
    least, most = (0, 1) if dtype.kind in "fb" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    found = DTYPE.apply(np.array([[least, most]], dtype))
    assert found.tolist() == [[0, 255]]
    assert (
        DTYPE.apply(np.array([[most // 2 if dtype.kind != "f" else 0.5]], dtype))[0, 0]
        in ((0,) if dtype.kind == "b" else (127, 128))
        or dtype.kind == "i"
    )


@pytest.mark.parametrize("kind", TYPES)
def test_percentiles_are_those_of_sorted_values(kind: str) -> None:
    numbers = values(kind, (37, 29, 3))
    inside = np.sort(numbers, axis=None)
    low = float(inside[math.ceil(inside.size * 0.005) - 1])
    high = float(inside[math.ceil(inside.size * 0.995) - 1])
    parts = [(numbers[:9], None), (numbers[9:], None)]
    assert PERCENTILE.settle(numbers.dtype, 0, lambda: parts).ends == (low, high)
    np.testing.assert_array_equal(PERCENTILE.apply(numbers), Range("fixed", (low, high)).apply(numbers))


ARRAYS = st.sampled_from(TYPES).flatmap(
    lambda kind: hnp.arrays(kind, st.tuples(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 3])))
)
RANGES = st.one_of(
    st.sampled_from([AUTO, DTYPE, PERCENTILE]),
    st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda ends: fixed(ends[0], ends[0] + ends[1])),
)


@settings(max_examples=40)
@given(ARRAYS, RANGES)
def test_a_larger_value_is_no_darker_and_the_shape_is_kept(numbers: np.ndarray, way: Range) -> None:
    levels = way.apply(numbers)
    assert (levels.dtype, levels.shape) == (np.uint8, numbers.shape)
    order = np.argsort(numbers, axis=None)
    finite = np.isfinite(numbers.astype(float)).reshape(-1)[order]
    assert (np.diff(levels.reshape(-1)[order][finite].astype(int)) >= 0).all()
    assert not levels.reshape(-1)[order][~finite].any()


@settings(max_examples=40)
@given(ARRAYS, st.floats(-1e4, 1e4), st.floats(0.5, 1e4))
def test_ends_are_black_and_white_and_all_beyond(numbers: np.ndarray, low: float, width: float) -> None:
    numbers = np.nan_to_num(numbers.astype(float))
    levels = fixed(low, low + width).apply(numbers)
    assert not levels[numbers <= low].any()
    assert (levels[numbers >= low + width] == 255).all()
    exactly = np.rint((numbers.clip(low, low + width) - low) / (low + width - low) * 255)
    assert np.abs(levels - exactly).max() <= 1


@settings(max_examples=40)
@given(ARRAYS, RANGES, st.data())
def test_what_is_invalid_decides_nothing(numbers: np.ndarray, way: Range, data: st.DataObject) -> None:
    invalid = data.draw(hnp.arrays(bool, numbers.shape))
    other = np.where(invalid, values(numbers.dtype.str, numbers.shape), numbers).astype(numbers.dtype)
    first, second = way.apply(numbers, invalid=invalid), way.apply(other, invalid=invalid)
    np.testing.assert_array_equal(first[~invalid], second[~invalid])
    if numbers.dtype.kind not in "bu" or numbers.itemsize > 2:
        assert not first[invalid].any()


@settings(max_examples=40)
@given(ARRAYS, RANGES, st.integers(1, 5))
def test_rows_in_a_settled_range_are_those_of_the_whole(numbers: np.ndarray, way: Range, step: int) -> None:
    parts = [numbers[top : top + step] for top in range(0, len(numbers), step)]
    settled = way.settle(numbers.dtype, 0, lambda: [(part, None) for part in parts])
    found = np.concatenate([settled.apply(part) for part in parts])
    np.testing.assert_array_equal(found, way.apply(numbers))


@pytest.mark.parametrize("way", [PERCENTILE, AUTO])
def test_a_picture_of_one_value_is_black(way: Range) -> None:
    for kind in ("i2", "u4", "f4"):
        assert not way.apply(np.full((4, 5), 7, kind)).any()
    assert not PERCENTILE.apply(np.full((4, 5), 7, np.uint8)).any()


def test_few_bright_pixels_are_not_lost_where_percentiles_are_the_same() -> None:
    sparse = np.full((100, 100), 300, np.uint16)
    sparse[:2, :10] = 1300
    assert PERCENTILE.apply(sparse)[0, 0] == 255
    assert PERCENTILE.apply(sparse)[50, 50] == 0


def test_one_hot_pixel_does_not_make_all_others_dark() -> None:
    numbers = RNG.integers(300, 1500, (100, 100)).astype(np.uint16)
    numbers[3, 3] = 65535
    levels = PERCENTILE.apply(numbers)
    assert np.unique(levels).size > 250
    assert levels[3, 3] == 255


def test_memory_is_that_of_the_levels_and_little_more() -> None:
    numbers = np.zeros((3000, 2000), np.float32)
    numbers[::7] = 3
    tracemalloc.start()
    try:
        for way in (PERCENTILE, AUTO, fixed(0, 2)):
            tracemalloc.reset_peak()
            way.apply(numbers)
            assert tracemalloc.get_traced_memory()[1] < 2.5 * numbers.nbytes, "a float64 copy alone is 2"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("low", "high", "bits", "says"),
    [
        (0, 4095, 16, True),
        (32978, 36863, 16, True),
        (0, 4096, 16, False),
        (0, 255, 12, True),
        (0, 256, 12, False),
    ],
)
def test_a_picture_that_uses_little_of_its_bits_is_told_of(
    low: int, high: int, bits: int, says: bool
) -> None:
    usage = Usage()
    usage.add(np.array([[low, low + 1]], np.uint16), 2**bits - 1)
    usage.add(np.array([[high, 65535]], np.uint16), 2**bits - 1, np.array([[False, True]]))
    assert bool(usage.notes) is says
    if says:
        assert f"{bits}-bit" in usage.notes[0]
        assert "--range percentile" in usage.notes[0]


def test_nothing_is_said_of_what_is_all_there_or_nothing() -> None:
    for numbers, full in (
        (np.zeros((2, 2), np.uint8), 255),
        (np.full((2, 2), 900, np.uint16), 65535),
        (np.array([[0.1, 0.2]]), 65535),
        (np.zeros((0, 3), np.uint16), 65535),
    ):
        usage = Usage()
        usage.add(numbers, full)
        assert usage.notes == ()


# Files ------------------------------------------------------------------------------------------------------

DEEP = RNG.integers(300, 1500, (20, 33, 3)).astype(np.uint16)


def tiff(numbers: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, numbers, photometric="rgb" if numbers.ndim == 3 else "minisblack", **options)
    return out.getvalue()


def test_bytes_are_stretched_where_that_is_asked_for() -> None:
    dim = np.repeat(np.linspace(10, 60, 64).astype(np.uint8)[None], 48, 0)
    photo = np.dstack((dim, dim, dim))
    for kind, options in (("JPEG", {"quality": 98}), ("PNG", {}), ("BMP", {}), ("TIFF", {})):
        out = io.BytesIO()
        Image.fromarray(photo).save(out, kind, **options)
        assert images.read_bytes(out.getvalue()).pixels.max() < 66
        stretched = images.read_bytes(out.getvalue(), value_range=PERCENTILE).pixels
        assert (stretched.min(), stretched.max()) == (0, 255)
        cut = images.read_bytes(out.getvalue(), value_range=fixed(10, 30)).pixels
        assert (cut[:, 40:] == 255).all()


def test_a_palette_is_looked_up_first_and_inks_are_left_alone(photo: Image.Image) -> None:
    photo = photo.resize((50, 40))
    for kind in ("PNG", "TIFF"):
        out = io.BytesIO()
        photo.quantize(16).save(out, kind)
        plain = images.read_bytes(out.getvalue()).pixels
        np.testing.assert_array_equal(
            images.read_bytes(out.getvalue(), value_range=fixed(0, 100)).pixels, fixed(0, 100).apply(plain)
        )
    for kind in ("JPEG", "TIFF"):
        out = io.BytesIO()
        photo.convert("CMYK").save(out, kind)
        plain = images.read_bytes(out.getvalue()).pixels
        np.testing.assert_array_equal(
            images.read_bytes(out.getvalue(), value_range=fixed(0, 100)).pixels, plain
        )


def test_zero_is_white_where_a_tiff_says_so() -> None:
    numbers = DEEP[..., 0]
    out = io.BytesIO()
    tifffile.imwrite(out, numbers, photometric="miniswhite")
    found = images.read_bytes(out.getvalue(), value_range=fixed(300, 1500)).pixels[..., 0]
    np.testing.assert_array_equal(found, 255 - fixed(300, 1500).apply(numbers))


def test_values_that_are_missing_stay_black_and_decide_nothing() -> None:
    numbers = DEEP[..., 0].astype(np.float32)
    numbers[:5] = np.nan
    numbers[5:9] = -9999
    data = tiff(numbers, extratags=[(42113, 2, None, "-9999", True)])
    found = images.read_bytes(data, value_range=PERCENTILE)
    assert found.missing is not None
    assert found.missing[:9].all()
    assert not found.missing[9:].any()
    np.testing.assert_array_equal(found.pixels[9:, :, 0], PERCENTILE.apply(DEEP[9:, :, 0]))
    assert not found.pixels[:9].any()


@pytest.mark.parametrize("way", [PERCENTILE, AUTO])
def test_tiles_that_are_absent_decide_nothing(way: Range) -> None:
    numbers = RNG.integers(300, 1500, (32, 48)).astype(np.float32)
    data = bytearray(tiff(numbers, tile=(16, 16), extratags=[(42113, 2, None, "-9999", True)]))
    page = tifffile.TiffFile(io.BytesIO(bytes(data))).pages[0]
    for code in (324, 325):  # where the second tile lies, and its bytes
        size = {3: 2, 4: 4}[page.tags[code].dtype]
        at = page.tags[code].valueoffset + size
        data[at : at + size] = bytes(size)
    there = np.ones((32, 48), bool)
    there[:16, 16:32] = False
    found = images.read_bytes(bytes(data), value_range=way).pixels[..., 0]
    np.testing.assert_array_equal(found[there], way.apply(numbers, invalid=~there)[there])
    assert not found[~there].any()


def test_arrays_of_any_type_are_taken_where_a_range_says_what_they_mean() -> None:
    def read(array: np.ndarray, way: Range = PERCENTILE) -> Any:
        return images.from_memory(array, "x", value_range=way)

    np.testing.assert_array_equal(read(DEEP).pixels, PERCENTILE.apply(DEEP))
    np.testing.assert_array_equal(read(DEEP[..., 0]).pixels[..., 2], PERCENTILE.apply(DEEP[..., 0]))
    hounsfield = np.array([[-1000, -100, 110, 300, 3000]], np.int16)
    assert read(hounsfield, fixed(-100, 300)).pixels[0, :, 0].tolist() == [0, 0, 134, 255, 255]
    clear = np.dstack((DEEP, np.full(DEEP.shape[:2], 65535, np.uint16)))
    np.testing.assert_array_equal(read(clear).pixels, PERCENTILE.apply(DEEP))
    holes = np.array([[np.nan, 1.0, 5.0]])
    assert read(holes).missing.tolist() == [[True, False, False]]
    with pytest.raises(ImageError, match="uint16") as caught:
        read(DEEP, AUTO)
    assert "value_range" in caught.value.hint


# Several pages ----------------------------------------------------------------------------------------------


def pages_of(path: Path, way: Range, choose: Any = range) -> list[images.Picture]:
    return list(images.read_pages(str(path), choose, value_range=way))


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("text", ["percentile", "auto", "2,90"])
def test_a_stack_has_one_range_for_all_its_pages(tmp_path: Path, kind: str, text: str) -> None:
    stack = (values("u1", (4, 20, 30)) // np.array([1, 2, 4, 8])[:, None, None]).astype(kind)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    way = Range.parse(text)
    found = np.stack([page.pixels[..., 0] for page in pages_of(tmp_path / "x.tif", way)])
    np.testing.assert_array_equal(found, way.apply(stack))
    some = [page.pixels[..., 0] for page in pages_of(tmp_path / "x.tif", way, lambda count: range(1, 3))]
    np.testing.assert_array_equal(np.stack(some), way.apply(stack[1:3]))


def test_frames_of_an_animation_have_one_range(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), level, np.uint8)) for level in (40, 80, 60)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert [page.pixels.max() for page in pages_of(tmp_path / "x.webp", PERCENTILE)] == [0, 255, 128]


def test_a_stack_that_uses_little_of_its_bits_says_so_once(tmp_path: Path) -> None:
    stack = np.stack([DEEP[..., 0], DEEP[..., 1], np.zeros_like(DEEP[..., 0])])
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    notes = [page.notes for page in pages_of(tmp_path / "x.tif", AUTO)]
    assert [len(said) for said in notes] == [0, 0, 1]
    stack[2, 0, 0] = 50000
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    assert not any(page.notes for page in pages_of(tmp_path / "x.tif", AUTO))


def test_pages_of_several_types_need_a_range_of_two_numbers(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(DEEP[..., 0], photometric="minisblack")
        file.write((DEEP[..., 0] // 8).astype(np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match="pages of uint16 and of uint8") as caught:
        pages_of(tmp_path / "x.tif", PERCENTILE)
    assert "--range 0,4095" in caught.value.hint
    found = pages_of(tmp_path / "x.tif", fixed(0, 187))
    assert found[0].pixels.min() == 255
    assert found[1].pixels.min() < 60


# Bands ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["u1", "u2", "i2", "u4", "f4", "f8"]),
    st.sampled_from(["auto", "dtype", "percentile", "0,1000", "-50.5,300"]),
    st.sampled_from([1, 3]),
    st.integers(1, 60),
    st.sampled_from([{"tile": (16, 16)}, {"rowsperstrip": 7}]),
)
def test_bands_are_the_rows_of_the_whole(
    tmp_path: Path, kind: str, text: str, bands: int, height: int, layout: dict[str, Any]
) -> None:
    numbers = values(kind, (height, 41) if bands == 1 else (height, 41, 3))
    if numbers.dtype.kind == "f":
        numbers[0] = np.nan
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(numbers, compression="zlib", **layout))
    way = Range.parse(text)
    whole = images.read(str(path), value_range=way)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_batch.media.images.tiff_bands._BAND", 1)
        found = list(images.read_bands(str(path), whole.size, 2, way))
    assert len(found) >= height // 16
    np.testing.assert_array_equal(np.concatenate([band.pixels for band in found]), whole.pixels)
    assert [note for band in found for note in band.notes] == list(whole.notes)


# Real data --------------------------------------------------------------------------------------------------


def test_nuclei_of_a_microscope_are_seen(odd: Path) -> None:
    path = next((odd.parent / "cells").glob("*.tif*"), None)
    if path is None:
        pytest.skip("no cells in the data folder")
    stacks = [file for file in sorted(path.parent.iterdir()) if tifffile.imread(file).min() > 30000]
    assert stacks, "none of 32978 to 36863"
    dull, seen = images.read(str(stacks[0])), images.read(str(stacks[0]), value_range=PERCENTILE)
    assert np.unique(dull.pixels).size < 20
    assert np.unique(seen.pixels).size > 200
    assert any("--range percentile" in note for note in dull.notes)
