"""Masks lie where their pictures lie on Earth, by the tags and by GDAL's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers.runs import segment
from unet_batch.errors import EncodeError
from unet_batch.media import images
from unet_batch.media.images.geotiff import NODATA, GeoTiffWriter, encode_geotiff
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Metadata

# UTM zone 32 north, half a metre a pixel, as GDAL writes it
KEYS = (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 1026, 34737, 4, 0, 3072, 0, 1, 32632)
PLACED: list[tuple[int, int, int | None, Any, bool]] = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5600000.0, 0.0), True),
    (34735, 3, len(KEYS), KEYS, True),
    (34737, 2, None, "UTM|", True),
]


def survey(path: Path, bands: int = 3, nodata: str | None = None, **options: Any) -> np.ndarray:
    """A picture on Earth, its left third without a value where nodata is given."""
    values = np.random.default_rng(1).integers(1, 256, (60, 90, bands), np.uint8)
    tags = list(PLACED)
    if nodata is not None:
        values[:, :30] = int(nodata)
        tags.append((42113, 2, None, nodata, True))
    extra = ["unspecified"] * (bands - 3)
    tifffile.imwrite(
        path, values, photometric="rgb", extrasamples=extra, extratags=tags, metadata=None, **options
    )
    return values


def tags_of(path: Path) -> dict[int, Any]:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages[0].tags}


def test_a_mask_lies_where_its_picture_does(tmp_path: Path) -> None:
    survey(tmp_path / "a.tif", bands=4, nodata="0")
    report, _ = segment(tmp_path / "a.tif", output=tmp_path / "out", save=("mask", "geotiff"))
    assert report.done == 1
    found, before = tags_of(tmp_path / "out" / "geotiffs" / "a.tif"), tags_of(tmp_path / "a.tif")
    for tag in (33550, 33922, 34735, 34737):
        assert found[tag] == before[tag]
    assert found[42113] == "255"
    ids = tifffile.imread(tmp_path / "out" / "geotiffs" / "a.tif")
    mask = images.read_ids(str(tmp_path / "out" / "masks" / "a.png")).values
    assert (ids[:, :30] == NODATA).all()
    np.testing.assert_array_equal(ids[:, 30:], mask[:, 30:] // 255)
    assert set(np.unique(ids)) == {0, 1, NODATA}


def test_gdal_reads_it_so(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio, GDAL's own reading")
    survey(tmp_path / "a.tif", nodata="0")
    segment(tmp_path / "a.tif", output=tmp_path / "out", save=("geotiff",))
    with (
        rasterio.open(tmp_path / "a.tif") as source,
        rasterio.open(tmp_path / "out" / "geotiffs" / "a.tif") as made,
    ):
        assert made.crs == source.crs
        assert made.crs.to_epsg() == 32632
        assert made.transform == source.transform
        assert made.bounds == source.bounds
        assert made.nodata == NODATA
        assert (made.read_masks(1) == source.read_masks(1)).all()


def test_ids_of_classes_are_their_own(tmp_path: Path) -> None:
    survey(tmp_path / "a.tif")
    backend = FakeBackend(fake_spec(classes=4), lambda batch: np.asarray(batch[..., 0] // 64))
    segment(tmp_path / "a.tif", output=tmp_path / "out", backend=backend, save=("mask", "geotiff"))
    ids = tifffile.imread(tmp_path / "out" / "geotiffs" / "a.tif")
    np.testing.assert_array_equal(ids, images.read_ids(str(tmp_path / "out" / "masks" / "a.png")).values)
    assert 42113 not in tags_of(tmp_path / "out" / "geotiffs" / "a.tif")


def test_a_picture_without_a_place_makes_a_plain_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((40, 30), np.uint8), resolution=(300, 300), resolutionunit=2
    )
    segment(tmp_path / "a.tif", output=tmp_path / "out", save=("geotiff",))
    found = tags_of(tmp_path / "out" / "geotiffs" / "a.tif")
    assert not {33550, 33922, 34735} & found.keys()
    assert found[282] == (300, 1)


def test_what_was_turned_upright_does_not_lie_there_any_more(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = np.zeros((40, 30), np.uint8)
    tifffile.imwrite(path, values, extratags=[*PLACED, (274, 3, 1, 6, True)], metadata=None)
    assert images.read(str(path)).metadata.geo == ()


@pytest.mark.parametrize(
    "ids", [np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8)]
)
def test_what_is_no_mask_is_refused(ids: np.ndarray) -> None:
    with pytest.raises(EncodeError, match="cannot encode"):
        encode_geotiff(ids, None, Metadata())


@pytest.mark.usefixtures("no_thread_is_left")
class TestRows:
    @pytest.mark.parametrize("step", [1, 7, 512, 2000])
    def test_rows_become_the_file_of_the_whole(self, tmp_path: Path, step: int) -> None:
        ids = np.random.default_rng(0).integers(0, 3, (1030, 700), np.uint8)
        writer = GeoTiffWriter(str(tmp_path / "a.tif"), ids.shape, Metadata())
        for top in range(0, len(ids), step):
            writer.write(ids[top : top + step])
        writer.finish()
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), ids)

    def test_what_cannot_be_written_is_told_to_who_writes(self, tmp_path: Path) -> None:
        writer = GeoTiffWriter(str(tmp_path / "none" / "a.tif"), (100, 100), Metadata())
        with pytest.raises(OSError, match="No such file"):
            _write_all(writer, np.zeros((60, 100), np.uint8))
        writer.close()

    def test_rows_that_never_come_are_missed(self, tmp_path: Path) -> None:
        writer = GeoTiffWriter(str(tmp_path / "a.tif"), (100, 100), Metadata())
        writer.write(np.zeros((60, 100), np.uint8))
        with pytest.raises(ValueError, match="row 60 of 100 never came"):
            writer.finish()

    def test_it_can_be_closed_at_any_time(self, tmp_path: Path) -> None:
        writer = GeoTiffWriter(str(tmp_path / "a.tif"), (5000, 100), Metadata())
        writer.write(np.zeros((600, 100), np.uint8))
        writer.close()
        writer.close()


def _write_all(writer: GeoTiffWriter, rows: np.ndarray) -> None:
    """What cannot be written is told when the next rows come, at the latest at the end."""
    writer.write(rows)
    writer.finish()
