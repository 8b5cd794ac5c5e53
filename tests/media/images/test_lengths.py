"""How large pixels are: what each format says ends as one resolution, and as the unit of areas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers.dicom import save_dicom
from unet_batch.media import images
from unet_batch.media.images.lengths import to_dpi
from unet_batch.media.measure import PixelSize

GREY = np.zeros((24, 36), np.uint8)


def size_of(path: Path | str) -> PixelSize | None:
    return PixelSize.of(images.read(str(path)).metadata)


@pytest.mark.parametrize(
    ("width", "height", "unit", "expected"),
    [
        (0.5, 0.25, None, "0.25x0.5um"),  # the unit that OME means
        (500, 500, "nm", "0.5um"),
        (2, 2, "mm", "2mm"),
        (2, 2, "pixel", None),
        (None, None, None, None),
    ],
)
def test_ome_tiff(tmp_path: Path, width: Any, height: Any, unit: str | None, expected: str | None) -> None:
    about = {"PhysicalSizeX": width, "PhysicalSizeY": height}
    about |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    said = {name: value for name, value in about.items() if value is not None}
    tifffile.imwrite(tmp_path / "a.ome.tif", GREY, metadata={"axes": "YX", **said})
    found = size_of(tmp_path / "a.ome.tif")
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_imagej(tmp_path: Path, unit: str) -> None:
    metadata = {"unit": unit, "axes": "YX"}
    tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True, resolution=(4.0, 2.0), metadata=metadata)
    found = size_of(tmp_path / "a.tif")
    assert found is not None
    assert (found.unit, found.height, found.width) == ("um", pytest.approx(0.5), pytest.approx(0.25))


def test_imagej_without_a_unit(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True, resolution=(4.0, 2.0), metadata={"axes": "YX"})
    assert size_of(tmp_path / "a.tif") is None


def test_dicom(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    path = save_dicom(tmp_path / "a.dcm", GREY.astype(np.uint16), PixelSpacing=[0.5, 0.25])
    assert str(size_of(path)) == "0.5x0.25mm"
    path = save_dicom(tmp_path / "b.dcm", GREY.astype(np.uint16), PixelSpacing=None)
    assert size_of(path) is None


@pytest.mark.parametrize(("unit", "expected"), [("micrometer", "0.5x0.25um"), ("parsec", None), ("", None)])
def test_ome_zarr(tmp_path: Path, unit: str, expected: str | None) -> None:
    zarr = pytest.importorskip("zarr")
    if not hasattr(zarr, "create_array"):
        pytest.skip("written by zarr 3")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=GREY, chunks=(16, 16), chunk_key_encoding={"name": "v2", "separator": "/"})
    scales = [{"type": "scale", "scale": [1.0, 0.5]}], [{"type": "scale", "scale": [0.5, 0.5]}]
    axes = [{"name": axis, "type": "space", **({"unit": unit} if unit else {})} for axis in "yx"]
    level = {"path": "0", "coordinateTransformations": scales[0]}
    about = {"axes": axes, "datasets": [level], "coordinateTransformations": scales[1]}
    group.attrs.update({"multiscales": [about]})
    for metadata in (
        images.read(str(tmp_path / "a.zarr")).metadata,
        images.read_place(str(tmp_path / "a.zarr")),
    ):
        found = PixelSize.of(metadata)
        assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize("side", [0, -1, "nan", "inf", "", None, "1e400"])
def test_what_is_no_length_says_nothing(side: Any) -> None:
    assert to_dpi(side, 1) is None
    assert to_dpi(1, side) is None
