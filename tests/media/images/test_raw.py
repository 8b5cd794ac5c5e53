"""Raw files of cameras: told from TIFFs, developed as LibRaw does it, upright, within limits."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.helpers.formats import dng, read_bytes
from tests.helpers.runs import files, read, segment, write
from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images

rawpy = pytest.importorskip("rawpy", reason="rawpy is not installed: pip install 'unet-batch[raw]'")


def sensor(height: int = 64, width: int = 96) -> np.ndarray:
    """Dark, bright at the right, and something of both at the top left."""
    values = np.full((height, width), 600, np.uint16)
    values[:, width // 2 :] = 40000
    values[: height // 3, : width // 3] = 9000
    return values


def developed(data: bytes) -> np.ndarray:
    with rawpy.imread(io.BytesIO(data)) as raw:
        return np.asarray(raw.postprocess(use_camera_wb=True))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_dng_is_developed_and_upright(tmp_path: Path, orientation: int) -> None:
    data = dng(sensor(), orientation)
    found = read_bytes(tmp_path, data)
    np.testing.assert_array_equal(found, developed(data))
    upright = np.rot90(found, {1: 0, 3: 2, 6: 1, 8: 3}[orientation])  # back to how the sensor saw it
    assert upright.shape == (64, 96, 3)
    assert upright[-5:, :40].max() < 60
    assert upright[:, 60:].min() > 200


def test_a_raw_file_behind_a_thumbnail_is_told_from_a_tiff(tmp_path: Path) -> None:
    """As cameras store it: a small RGB picture first, the sensor's among its own pages."""
    path = tmp_path / "a.nef"
    with tifffile.TiffWriter(path) as file:
        small = np.full((16, 24, 3), 99, np.uint8)
        file.write(small, photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        file.write(sensor(), photometric=32803, subfiletype=0, metadata=None)
    assert images.read(str(path)).size == (64, 96)
    assert images.measure(str(path)) is None


def test_a_dng_whose_pages_are_asked_for_is_one_picture(tmp_path: Path) -> None:
    (tmp_path / "a.dng").write_bytes(dng(sensor()))
    assert images.look_at_pages(str(tmp_path / "a.dng")).count == 1


@pytest.mark.parametrize(
    "head",
    [
        b"II*\0\x10\0\0\0CR\2\0",
        b"\0\0\0\x18ftypcrx ",
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO\x08\0\0\0",
        b"IIRS\x08\0\0\0",
        b"MMOR\0\0\0\x08",
        b"IIU\0\x18\0\0\0",
    ],
)
def test_cameras_are_known_by_their_signatures(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(ImageError, match="cannot decode this RAW"):
        read_bytes(tmp_path, head + bytes(200))


def test_limits_hold_before_it_is_developed(tmp_path: Path) -> None:
    data = dng(sensor())
    with pytest.raises(ImageTooLarge, match=r"64x96 .* the limit is 6,143"):
        read_bytes(tmp_path, data[: len(data) // 2], max_pixels=64 * 96 - 1)  # its pixels are not there


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    data = dng(sensor())
    with pytest.raises(ImageError, match="its data are damaged or cut short"):
        read_bytes(tmp_path, data[: len(data) // 2])


def test_without_rawpy_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match="need the package rawpy") as caught:
        read_bytes(tmp_path, dng(sensor()))
    assert caught.value.hint == "pip install 'unet-batch[raw]'"


@pytest.mark.parametrize("data", [dng(sensor()), b"IIRO" + bytes(100)])
def test_a_raw_file_is_no_mask(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.dng").write_bytes(data)
    with pytest.raises(ImageError, match="its values are no ids"):
        images.read_ids(str(tmp_path / "a.dng"))


def test_its_mask_is_that_of_the_developed_pixels_beside_a_jpeg(tmp_path: Path) -> None:
    """A camera's two files of one photo are two pictures."""
    data = dng(sensor())
    write(tmp_path / "in" / "IMG_1.jpg", np.full((64, 96, 3), 255, np.uint8))
    (tmp_path / "in" / "IMG_1.DNG").write_bytes(data)
    write(tmp_path / "single" / "a.png", developed(data))
    segment(tmp_path / "in", output=tmp_path / "out")
    segment(tmp_path / "single", output=tmp_path / "single-out")
    assert files(tmp_path / "out" / "masks") == ["IMG_1.DNG.png", "IMG_1.jpg.png"]
    expected = read(tmp_path / "single-out" / "masks" / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "out" / "masks" / "IMG_1.DNG.png"), expected)
    assert 0 < expected.mean() < 255
