"""JPEG: decoded strictly, at a reduced size where that is enough, and repaired where that is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.pictures import encoded, jpeg_variants, read_bytes
from unet_batch.errors import ImageError
from unet_batch.media import images


def test_cmyk_jpeg_looks_as_in_pillow(odd: Path) -> None:
    for path in odd.glob("cmyk_jpeg*"):
        with Image.open(path) as image:
            reference = np.asarray(image.convert("RGB"), np.int16)
        assert np.abs(images.read(str(path)).pixels - reference).max() <= 2


@pytest.mark.parametrize(
    ("size", "at_least", "shape"),
    [
        ((312, 400), None, (312, 400)),
        ((312, 400), (312, 400), (312, 400)),
        ((312, 400), (157, 10), (312, 400)),
        ((312, 400), (156, 200), (156, 200)),
        ((312, 400), (156, 201), (312, 400)),
        ((312, 400), (78, 100), (78, 100)),
        ((312, 400), (79, 10), (156, 200)),
        ((312, 400), (39, 50), (39, 50)),
        ((312, 400), (1, 1), (39, 50)),
        ((312, 400), (9999, 1), (312, 400)),
        ((316, 400), (1, 1), (79, 100)),
        ((310, 400), (1, 1), (155, 200)),
        ((312, 402), (1, 1), (156, 201)),
        ((317, 400), (1, 1), (317, 400)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decode(
    tmp_path: Path, photo: Image.Image, size: tuple[int, int], at_least: Any, shape: Any, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p.jpg"
    part = photo.crop((0, 0, size[1], size[0]))
    path.write_bytes(encoded(part, "JPEG", quality=95, subsampling=0, exif=exif))
    if orientation == 6:
        at_least = at_least and at_least[::-1]
        shape = shape[::-1]
    full = images.read(str(path))
    small = images.read(str(path), at_least=at_least)
    assert small.size == full.size == full.pixels.shape[:2]
    assert small.pixels.shape == (*shape, 3)
    assert small.pixels.flags.c_contiguous
    # Aligned: each pixel is the mean of a block of the full picture. A shift by half a small pixel gives 4
    # and more.
    step = full.size[0] // shape[0]
    whole = full.pixels.reshape(shape[0], step, shape[1], step, 3).mean((1, 3))
    assert np.abs(small.pixels - whole).mean() < 1.5


@pytest.mark.parametrize("variant", ["baseline", "progressive", "restarts", "grey", "cmyk"])
def test_jpeg_cut_anywhere_is_an_error(tmp_path: Path, photo: Image.Image, variant: str) -> None:
    data = jpeg_variants(photo)[variant]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, len(data) - 3), st.sampled_from([None, (20, 20)]))
    def cut(length: int, at_least: Any) -> None:
        with pytest.raises(ImageError):
            read_bytes(tmp_path, data[:length], at_least=at_least)

    cut()


def test_jpeg_without_end_marker(tmp_path: Path, photo: Image.Image) -> None:
    data = jpeg_variants(photo)
    assert np.array_equal(read_bytes(tmp_path, data["baseline"][:-2]), read_bytes(tmp_path, data["baseline"]))
    with pytest.raises(ImageError, match="Premature end"):  # a scan may be missing too
        read_bytes(tmp_path, data["progressive"][:-2])


def test_jpeg_blemishes_that_do_not_touch_the_picture(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo, "JPEG", exif=exif)
    right = read_bytes(tmp_path, data)
    assert right.shape == (403, 317, 3)
    future = bytearray(data)
    future[data.index(b"JFIF\0") + 5] = 9
    blemished = {
        "bytes after the end": data + b"\0trailer\xff\xd8\xff",
        "short padding before the end": data[:-2] + b"\x5a\xa5" + data[-2:],
        "long padding before the end": data[:-2] + bytes(500) + data[-2:],
        "stray bytes in the header": data[:20] + b"\x11\x22\x33" + data[20:],
        "revision 9 of JFIF": bytes(future),
        "unknown Adobe transform": data[:20] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\x07" + data[20:],
        "several": bytes(future[:-2]) + b"\x5a" + data[-2:],
    }
    for name, copy in blemished.items():
        assert np.array_equal(read_bytes(tmp_path, copy), right), name
    with pytest.raises(ImageError, match="extraneous bytes before marker 0xd9"):
        read_bytes(tmp_path, data[:-2] + bytes(range(1, 41)) + data[-2:])
