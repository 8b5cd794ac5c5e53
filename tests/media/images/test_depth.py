"""Files of more than 8 bits are read at their full depth, also where Pillow keeps 8 of them."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from unet_batch.media import images
from unet_batch.media.images import Range

DEEP = np.random.default_rng(0).integers(300, 1500, (20, 33, 3)).astype(np.uint16)


def pnm(numbers: np.ndarray, full: int, *, plain: bool = False) -> bytes:
    kind = {(2, False): 5, (2, True): 2, (3, False): 6, (3, True): 3}[numbers.ndim, plain]
    head = b"P%d\n# by hand\n%d %d\n%d\n" % (kind, numbers.shape[1], numbers.shape[0], full)
    body = " ".join(map(str, numbers.ravel())).encode() if plain else numbers.astype(">u2").tobytes()
    return head + body


def jpeg2000(numbers: np.ndarray, bits: int) -> bytes:
    data: bytes = imagecodecs.jpeg2k_encode(
        numbers, level=0, bitspersample=bits, codecformat="jp2", reversible=True
    )
    return data


FILES = {
    "PNG in colour": (imagecodecs.png_encode(DEEP), DEEP, 65535),
    "PNG in grey": (imagecodecs.png_encode(DEEP[..., 0].copy()), DEEP[..., :1], 65535),
    "PNG in grey with opacity": (
        imagecodecs.png_encode(np.dstack((DEEP[..., 0], np.full(DEEP.shape[:2], 65535, np.uint16)))),
        DEEP[..., :1],
        65535,
    ),
    "PPM": (pnm(DEEP, 65535), DEEP, 65535),
    "PPM of 12 bits": (pnm(DEEP, 4095), DEEP, 4095),
    "PGM in words": (pnm(DEEP[..., 0], 2000, plain=True), DEEP[..., :1], 2000),
    "JPEG 2000": (jpeg2000(DEEP, 16), DEEP, 65535),
    "JPEG 2000 in grey, 12 bits": (jpeg2000(DEEP[..., 0].copy(), 12), DEEP[..., :1], 4095),
    "JPEG, lossless": (imagecodecs.ljpeg_encode(DEEP[..., 0].copy(), bitspersample=12), DEEP[..., :1], 4095),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_at_their_full_depth(name: str) -> None:
    data, numbers, full = FILES[name]
    for way in (Range.parse("percentile"), Range.parse("500,1000")):
        found = images.read_bytes(data, value_range=way)
        np.testing.assert_array_equal(found.pixels, np.broadcast_to(way.apply(numbers), DEEP.shape))
        assert found.notes == ()
    np.testing.assert_array_equal(
        images.read_bytes(data, value_range=Range.parse("dtype")).pixels,
        np.broadcast_to(Range.parse(f"0,{full}").apply(numbers), DEEP.shape),
    )


@pytest.mark.parametrize("name", FILES)
def test_files_of_16_bits_that_use_little_of_them_say_so(name: str) -> None:
    data, _, full = FILES[name]
    notes = images.read_bytes(data).notes
    assert [note for note in notes if "--range percentile" in note] == list(notes)
    assert len(notes) == (full == 65535 and name != "JPEG 2000 in grey, 12 bits")
