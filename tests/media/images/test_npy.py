"""Arrays of NumPy as pictures."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images


def saved(folder: Path, values: np.ndarray) -> str:
    path = folder / "a.npy"
    np.save(path, values)
    return str(path)


@pytest.mark.parametrize("bands", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, np.dtype(">u2")])
def test_an_array_is_read_as_a_tiff_of_the_same_bands(tmp_path: Path, bands: int, kind: np.dtype) -> None:
    values = np.random.default_rng(0).integers(0, 250, (20, 29, bands)).astype(kind)
    tiff = str(tmp_path / "a.tif")
    tifffile.imwrite(
        tiff,
        values[..., 0] if bands == 1 else values,
        photometric="minisblack",
        planarconfig="contig" if bands > 1 else None,
    )
    expected = images.read(tiff)
    for stored in (values, np.asfortranarray(values), np.moveaxis(values, -1, 0)):
        read = images.read(saved(tmp_path, stored))
        assert np.array_equal(read.pixels, expected.pixels)
        assert read.notes == expected.notes
    assert images.orientation(saved(tmp_path, values)) == 1


def test_nan_has_no_value(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    values[3, 4] = np.nan
    read = images.read(saved(tmp_path, values))
    assert read.missing is not None
    assert np.argwhere(read.missing).tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), r"uint8 \(2, 3, 4, 5\)"),
        (np.zeros((80, 90, 100), np.uint8), "1 to 64 bands"),
        (np.zeros((30, 40, 30), np.uint8), "fewer than rows"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (np.zeros((0, 5), np.uint8), r"\(0, 5\)"),
        (np.zeros((5, 5), complex), "whole numbers or floats"),
        (np.zeros((5, 5), "U3"), "whole numbers or floats"),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(tmp_path: Path, values: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        images.read(saved(tmp_path, values))


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pickle.loads, ("it was unpickled",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    objects = np.array([[Bomb()]], dtype=object)
    with pytest.raises(ImageError, match="whole numbers or floats"):
        images.read(saved(tmp_path, objects))


def test_a_header_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (100_000, 100_000)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ImageTooLarge, match="100000x100000"):
        images.read(str(path))
    path.write_bytes((tmp_path / "a.npy").read_bytes().replace(b"(100000, 100000)", b"(100, 100)      "))
    with pytest.raises(ImageError, match="end 10,000 bytes early"):
        images.read(str(path))


def test_a_mask_may_be_an_array(tmp_path: Path) -> None:
    ids = np.arange(600).reshape(20, 30) % 3
    for kind in (np.uint8, np.int64, np.float32):
        assert np.array_equal(images.read_ids(saved(tmp_path, ids.astype(kind))).values, ids)
    flags = images.read_ids(saved(tmp_path, ids == 1))
    assert np.array_equal(flags.values, ids == 1)
    with pytest.raises(ImageError, match="2 bands cannot be ids"):
        images.read_ids(saved(tmp_path, np.zeros((20, 30, 2), np.uint8)))
