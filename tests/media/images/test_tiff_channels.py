"""Channels of TIFFs and arrays: which numbers of a file a network is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_batch.errors import ImageError
from unet_batch.media import images
from unet_batch.media.images import tiff_bands

SIZE = (20, 29)
KINDS = (np.uint8, np.uint16, np.int32, np.float32)


def write(folder: Path, layout: str, bands: np.ndarray) -> str:
    """Save (h, w, bands) in one of the ways in which channels are stored."""
    planes = np.moveaxis(bands, -1, 0)
    path = str(folder / f"picture.{'npy' if 'npy' in layout else 'ome.tif' if layout == 'ome' else 'tif'}")
    how: dict[str, Any] = {"photometric": "minisblack"}
    if layout == "npy":
        np.save(path, bands)
    elif layout == "npy, first":
        np.save(path, planes)
    elif layout == "pixels":
        tifffile.imwrite(path, bands, planarconfig="contig", **how)
    elif layout == "planes":
        tifffile.imwrite(path, planes, planarconfig="separate", tile=(16, 16), **how)
    elif layout == "imagej":
        tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(path, planes, metadata={"axes": "CYX"}, **how)
    return path


LAYOUTS = ("npy", "npy, first", "pixels", "planes", "imagej", "ome", "axes")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_channels_of_a_file_are_those_that_numpy_picks(tmp_path: Path, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 9))
    layout, kind = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(KINDS))
    if layout == "imagej" and kind == np.int32:
        kind = np.uint16  # of which ImageJ knows none
    channels = tuple(data.draw(st.lists(st.integers(1, count), min_size=1, max_size=9)))
    levels = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 256, (*SIZE, count))
    levels[0, 0], levels[0, 1] = 0, 255  # a range that minimum and maximum lead back to
    bands = (levels * {np.uint16: 257, np.int32: 1000}.get(kind, 1)).astype(kind)
    read = images.read(write(tmp_path, layout, bands), channels=channels)
    assert np.array_equal(read.pixels, levels[..., [channel - 1 for channel in channels]])
    assert read.size == SIZE
    assert read.notes == () if len(set(channels)) == count else "bands: " in read.notes[0]


@pytest.mark.parametrize("layout", ["npy", "pixels", "planes", "ome"])
def test_a_channel_is_the_same_beside_any_others(tmp_path: Path, layout: str) -> None:
    bands = np.random.default_rng(0).normal(size=(*SIZE, 3)).astype(np.float32) * (1, 1000, 0.01)
    path = write(tmp_path, layout, bands.astype(np.float32))
    alone = images.read(path, channels=(1,)).pixels
    assert np.array_equal(images.read(path, channels=(3, 1, 2)).pixels[..., 1:2], alone)
    assert alone.min() == 0
    assert alone.max() == 255


@pytest.mark.parametrize("layout", LAYOUTS)
def test_too_few_bands_are_named_with_the_file_and_the_option(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, layout, np.zeros((*SIZE, 2), np.uint8))
    with pytest.raises(ImageError, match=r"has 2 bands, the network takes channels 1,3,4") as caught:
        images.read(path, channels=(1, 3, 4))
    assert caught.value.message.startswith(path)
    assert "train --channels 1,2 " in caught.value.hint
    with pytest.raises(ImageError, match="takes channels 3") as caught:
        images.read(path, channels=(3,))
    assert ": --channels 1 " in caught.value.hint


def test_pixels_without_a_value_in_all_channels_are_missing(tmp_path: Path) -> None:
    bands = np.ones((*SIZE, 3), np.float32)
    bands[2, 3], bands[4, 5, 0], bands[0, 0] = np.nan, np.nan, 0
    for layout in ("npy", "pixels", "ome"):
        read = images.read(write(tmp_path, layout, bands), channels=(1, 3))
        assert read.missing is not None
        assert np.argwhere(read.missing).tolist() == [[2, 3]]
        assert images.read(write(tmp_path, layout, bands), channels=(2,)).missing is not None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_many_channels_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    bands = np.random.default_rng(1).integers(0, 256, (*SIZE, 7), np.uint8)
    path = str(tmp_path / "a.tif")
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig", extratags=tag)
    one = str(tmp_path / "one.tif")
    tifffile.imwrite(one, bands[..., 4], photometric="minisblack", extratags=tag)
    assert np.array_equal(
        images.read(path, channels=(5,)).pixels, images.read(path, channels=(5, 1)).pixels[..., :1]
    )
    assert np.array_equal(images.read(path, channels=(1, 5)).pixels[..., 1], images.read(one).pixels[..., 0])


class TestPages:
    def test_an_axis_of_channels_is_no_page_of_what_is_read_by_channels(self, tmp_path: Path) -> None:
        stack = np.random.default_rng(2).integers(0, 256, (3, 2, 4, *SIZE), np.uint8)
        path = str(tmp_path / "stack.ome.tif")
        tifffile.imwrite(path, stack, metadata={"axes": "TCZYX"}, photometric="minisblack")
        assert images.look_at_pages(path).count == 24
        found = images.look_at_pages(path, channels=(2, 1))
        assert (found.count, found.shape, found.axes) == (12, (3, 4, *SIZE), "TZYX")
        read = list(images.read_pages(path, range, channels=(2, 1)))
        assert len(read) == 12
        for number, page in enumerate(read):
            time, depth = divmod(number, 4)
            assert np.array_equal(page.pixels, np.stack([stack[time, 1, depth], stack[time, 0, depth]], -1))

    def test_plain_pages_are_no_channels(self, tmp_path: Path) -> None:
        path = str(tmp_path / "pages.tif")
        tifffile.imwrite(path, np.zeros((4, *SIZE), np.uint8), photometric="minisblack", metadata=None)
        with pytest.raises(ImageError, match="has 1 band, the network takes channels 1,2"):
            images.read(path, channels=(1, 2))


@pytest.mark.parametrize("layout", ["pixels", "planes", "ome"])
def test_rows_of_channels_are_those_of_the_whole(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_batch.media.images.tiff_bands._BAND", 1)
    monkeypatch.setattr("unet_batch.media.images.tiff_blocks._PART", 500)
    bands = np.random.default_rng(3).integers(0, 65536, (50, 29, 4)).astype(np.uint16)
    path = write(tmp_path, layout, bands)
    found = images.measure(path, (4, 2))
    assert found == ((50, 29), 50 * 29 * (2 + 2 * 2))
    rows = [band.pixels for band in images.read_bands(path, (50, 29), channels=(4, 2))]
    assert len(rows) > 2
    assert np.array_equal(np.concatenate(rows), images.read(path, channels=(4, 2)).pixels)


class TestOtherFormats:
    def test_opacity_is_the_last_channel_as_it_is_stored(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(4).integers(0, 256, (*SIZE, 4), np.uint8)
        for alpha in (pixels[..., 3], np.full(SIZE, 255, np.uint8)):  # also where it hides nothing
            pixels[..., 3] = alpha
            Image.fromarray(pixels).save(tmp_path / "a.png")
            read = images.read(str(tmp_path / "a.png"), channels=(4, 1, 2))
            assert np.array_equal(read.pixels, pixels[..., [3, 0, 1]])
            assert read.alpha is None

    def test_grey_has_one_channel_and_a_jpeg_three(self, tmp_path: Path) -> None:
        grey = np.random.default_rng(5).integers(0, 256, SIZE, np.uint8)
        Image.fromarray(grey).save(tmp_path / "a.png")
        assert np.array_equal(images.read(str(tmp_path / "a.png"), channels=(1,)).pixels[..., 0], grey)
        with pytest.raises(ImageError, match="has 1 band,"):
            images.read(str(tmp_path / "a.png"), channels=(1, 2))
        Image.fromarray(np.dstack([grey, grey // 2, grey // 3])).save(tmp_path / "a.jpg", quality=95)
        whole = images.read(str(tmp_path / "a.jpg")).pixels
        assert np.array_equal(
            images.read(str(tmp_path / "a.jpg"), channels=(3, 1)).pixels, whole[..., [2, 0]]
        )

    def test_arrays_in_memory_have_their_channels_last(self) -> None:
        bands = np.random.default_rng(6).integers(0, 256, (*SIZE, 5), np.uint8)
        assert np.array_equal(images.from_memory(bands, "array", channels=(5, 2)).pixels, bands[..., [4, 1]])
        with pytest.raises(ImageError, match="array: has 5 bands"):
            images.from_memory(bands, "array", channels=(6,))


@pytest.mark.parametrize(
    ("bands", "layout", "expected"),
    [
        (1, "pixels", None),
        (3, "pixels", None),
        (2, "pixels", (1, 2)),
        (7, "planes", (1, 2, 3, 4, 5, 6, 7)),
        (3, "ome", (1, 2, 3)),
        (3, "npy", None),
        (4, "npy, first", (1, 2, 3, 4)),
    ],
)
def test_natural_channels_are_all_but_those_of_colour(
    tmp_path: Path, bands: int, layout: str, expected: tuple[int, ...] | None
) -> None:
    values = np.zeros((*SIZE, bands), np.uint8)
    path = write(tmp_path, layout, values[..., 0] if (bands, layout) == (1, "pixels") else values)
    assert images.natural_channels(path) == expected


def test_opacity_is_no_natural_channel(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    for bands, kinds, expected in (
        (4, ["unassalpha"], None),
        (5, ["unspecified", "unassalpha"], (1, 2, 3, 4)),
    ):
        tifffile.imwrite(path, np.zeros((*SIZE, bands), np.uint8), photometric="rgb", extrasamples=kinds)
        assert images.natural_channels(path) == expected


@pytest.mark.parametrize("value_range", ["auto", "percentile", "dtype", "0,300"])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_each_channel_has_a_range_of_its_own(
    tmp_path: Path, kind: type, value_range: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole picture, of one in bands of rows, of an array, and of pages together."""
    how, chosen = images.Range.parse(value_range), (3, 1)
    random = np.random.default_rng(0)
    values = random.normal((10, 200, 3000), (1, 20, 300), (90, 40, 3)).clip(0).astype(kind)
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", rowsperstrip=16)
    expected = np.dstack([how.apply(np.ascontiguousarray(values[..., at - 1])) for at in chosen])
    read = images.read(path, channels=chosen, value_range=how)
    np.testing.assert_array_equal(read.pixels, expected)
    monkeypatch.setattr(tiff_bands, "_BAND", 1)
    bands = list(images.read_bands(path, (90, 40), value_range=how, channels=chosen))
    assert len(bands) > 3
    np.testing.assert_array_equal(np.vstack([band.pixels for band in bands]), expected)
    np.save(tmp_path / "a.npy", values)
    array = images.read(str(tmp_path / "a.npy"), channels=chosen, value_range=how)
    np.testing.assert_array_equal(array.pixels, expected)

    halves = np.moveaxis(values.reshape(2, 45, 40, 3), 3, 1)  # pages, channels, rows, columns
    stack = str(tmp_path / "stack.ome.tif")
    tifffile.imwrite(stack, halves, photometric="minisblack", metadata={"axes": "ZCYX"})
    pages = list(images.read_pages(stack, range, channels=chosen, value_range=how))
    found = np.vstack([page.pixels for page in pages])
    np.testing.assert_array_equal(found, expected)
