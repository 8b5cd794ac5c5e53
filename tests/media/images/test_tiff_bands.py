"""A TIFF read in bands of rows shows what it shows as a whole, or says what keeps it from being read so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images
from unet_batch.media.images import tiff_bands

RNG = np.random.default_rng(0)
SIZE = (75, 101)
RGB: dict[str, Any] = {"photometric": "rgb"}
PROPHOTO = imagecodecs.cms_profile(
    "rgb",
    whitepoint=(0.3457, 0.3585, 1.0),
    primaries=(0.7347, 0.2653, 1, 0.1596, 0.8404, 1, 0.0366, 0.0001, 1),
    gamma=1.8,
)


@pytest.fixture(autouse=True)
def short_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of strips or tiles is a band."""
    monkeypatch.setattr(tiff_bands, "_BAND", 1)
    monkeypatch.setattr("unet_batch.media.images.tiff_blocks._PART", 2000)


def written(folder: Path, values: np.ndarray, **options: Any) -> str:
    path = str(folder / "x.tif")
    tifffile.imwrite(path, values, **{"metadata": None, **options})
    return path


def assert_bands_are_the_whole(path: str, least: int = 2) -> None:
    whole = images.read(path)
    found = images.measure(path)
    assert found is not None
    assert found[0] == whole.size
    bands = list(images.read_bands(path, whole.size, 2))
    assert len(bands) >= least
    np.testing.assert_array_equal(np.concatenate([band.pixels for band in bands]), whole.pixels)
    missing = [
        np.zeros(band.pixels.shape[:2], bool) if band.missing is None else band.missing for band in bands
    ]
    if whole.missing is not None:
        np.testing.assert_array_equal(np.concatenate(missing), whole.missing)
    else:
        assert not any(map(np.any, missing))
    assert set(whole.notes) == {note for band in bands for note in band.notes}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([{"tile": (16, 32)}, {"rowsperstrip": 7}, {}]),
    st.sampled_from([None, "deflate", "lzw", "zstd"]),
    st.sampled_from(["u1", "u2"]),
    st.sampled_from(["contig", "separate"]),
    st.sampled_from([1, 3, 4]),
    st.booleans(),
)
def test_every_layout(
    tmp_path: Path,
    height: int,
    width: int,
    layout: dict[str, Any],
    compression: str | None,
    kind: str,
    planar: str,
    count: int,
    big: bool,
) -> None:
    shape = (height, width) if count == 1 else (height, width, count)
    values = RNG.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    options: dict[str, Any] = {"photometric": "minisblack"}
    if count > 1:
        options = {"photometric": "rgb", "planarconfig": planar}
        if planar == "separate":
            values = np.moveaxis(values, -1, 0)
        if count == 4:
            options["extrasamples"] = ["unassalpha"]
    path = written(tmp_path, values, compression=compression, bigtiff=big, **layout, **options)
    assert_bands_are_the_whole(path, 1)


def test_jpeg_in_tiles(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
    assert_bands_are_the_whole(written(tmp_path, values, tile=(32, 32), compression="jpeg", **RGB))


def test_one_strip_without_compression_is_read_in_parts(tmp_path: Path) -> None:
    path = written(tmp_path, RNG.integers(0, 256, (*SIZE, 3), np.uint8), **RGB)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages[0].dataoffsets) == 1
    assert_bands_are_the_whole(path, 12)


def test_a_profile_is_applied(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
    path = written(tmp_path, values, rowsperstrip=10, iccprofile=PROPHOTO, **RGB)
    assert not np.array_equal(images.read(path).pixels, values)
    assert_bands_are_the_whole(path)


def test_a_note_is_said(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (*SIZE, 5), np.uint8)
    path = written(tmp_path, values, rowsperstrip=10, photometric="minisblack", planarconfig="contig")
    assert len(images.read(path).notes) == 1
    assert_bands_are_the_whole(path)


def test_nodata_has_no_value(tmp_path: Path) -> None:
    values = RNG.integers(0, 4, (*SIZE, 1), np.uint8).repeat(3, -1)
    tags = [(42113, 2, 2, "0", True)]
    path = written(tmp_path, values, rowsperstrip=10, extratags=tags, **RGB)
    assert images.read(path).missing is not None
    assert_bands_are_the_whole(path)


def test_a_mask_inside_has_strips_of_its_own(tmp_path: Path) -> None:
    path, inside = str(tmp_path / "x.tif"), RNG.integers(0, 2, SIZE) > 0
    with tifffile.TiffWriter(path) as file:
        file.write(RNG.integers(0, 256, (*SIZE, 3), np.uint8), tile=(16, 16), metadata=None, **RGB)
        file.write(inside, photometric="mask", subfiletype=4, rowsperstrip=11, metadata=None)
    assert images.read(path).missing is not None
    assert_bands_are_the_whole(path)


@pytest.mark.parametrize("geo", [True, False])
def test_absent_tiles_have_no_value_in_a_geotiff_and_are_an_error_elsewhere(
    tmp_path: Path, geo: bool
) -> None:
    tags = [(42113, 2, 2, "0", True)] if geo else []
    path = written(
        tmp_path, np.full((48, 48), 7, np.uint8), photometric="minisblack", tile=(16, 16), extratags=tags
    )
    with tifffile.TiffFile(path) as file:
        places = [
            (file.pages[0].tags[code].valueoffset, {3: 2, 4: 4}[file.pages[0].tags[code].dtype])
            for code in (324, 325)
        ]
    data = bytearray(Path(path).read_bytes())
    for at, size in places:
        data[at + 3 * size : at + 6 * size] = bytes(3 * size)  # the second row of tiles
    Path(path).write_bytes(data)
    if geo:
        assert_bands_are_the_whole(path, 3)
        return
    bands = images.read_bands(path, (48, 48))
    next(bands)
    with pytest.raises(ImageError, match="strip or tile 4 of 9 is absent"):
        next(bands)


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = written(
        tmp_path, RNG.integers(0, 256, (*SIZE, 3), np.uint8), rowsperstrip=10, compression="zlib", **RGB
    )
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[4]
    data = bytearray(Path(path).read_bytes())
    data[at + 20 : at + 400] = bytes(380)
    Path(path).write_bytes(data)
    with pytest.raises(ImageError, match="cannot decode this TIFF"):
        list(images.read_bands(path, SIZE))


@pytest.mark.parametrize(
    ("kind", "options", "message", "hint"),
    [
        ("u1", {"extratags": [(274, 3, 1, 6, True)]}, r"orientation \(6\)", "orientation 1"),
        ("u1", {"compression": "zlib", "rowsperstrip": 75}, "75 of them: 22,725 bytes", "TILED=YES"),
    ],
)
def test_what_has_no_bands_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: Any, message: str, hint: str
) -> None:
    monkeypatch.setattr(tiff_bands, "_LARGEST_BAND", 20000)
    path = written(tmp_path, np.zeros((*SIZE, 3), kind), **RGB, **options)
    with pytest.raises(ImageTooLarge, match=message) as caught:
        list(images.read_bands(path, SIZE))
    assert path in str(caught.value)
    assert hint in caught.value.hint


def test_a_picture_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((*SIZE, 3), np.uint8), **RGB)
    with pytest.raises(ImageError, match="changed while it was read"):
        list(images.read_bands(path, (10, 10)))


def test_only_a_tiff_is_measured(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((*SIZE, 3), np.uint16), **RGB)
    assert images.measure(path) == (SIZE, 75 * 101 * 9)
    (tmp_path / "x.png").write_bytes(images.encode_mask(np.zeros(SIZE, np.uint8)))
    assert images.measure(str(tmp_path / "x.png")) is None
    (tmp_path / "y.tif").write_bytes(b"II*\0 and nothing else")
    assert images.measure(str(tmp_path / "y.tif")) is None
    assert images.measure(str(tmp_path / "absent.tif")) is None
