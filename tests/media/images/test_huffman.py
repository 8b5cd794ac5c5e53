"""The check of entropy-coded data is as strict as libjpeg."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.formats import encoded, jpeg_variants
from unet_batch.errors import ImageError
from unet_batch.media import images
from unet_batch.media.images import huffman
from unet_batch.media.images.common import Damage


@pytest.mark.parametrize("variant", ["baseline", "restarts", "grey", "cmyk"])
def test_what_libjpeg_refuses_is_refused(photo: Image.Image, variant: str) -> None:
    data = jpeg_variants(photo)[variant]
    frame = huffman.read_frame(data)
    assert frame is not None
    huffman.check(data, frame)
    scan = data.index(b"\xff\xda")
    scan += 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(scan, len(data) - 3), st.integers(1, 255), st.sampled_from(["flip", "cut", "drop"]))
    def damage(at: int, change: int, how: str) -> None:
        copy = {
            "flip": data[:at] + bytes([data[at] ^ change]) + data[at + 1 :],
            "cut": data[:at] + b"\xff\xd9",
            "drop": data[:at] + data[at + change :],
        }[how]
        try:
            images.read_bytes(copy)
        except ImageError:
            with pytest.raises(Damage):
                huffman.check(copy, frame)

    damage()


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(37, 53), (37, 53, 3)])
def test_whole_lossless_files_pass_and_cut_ones_do_not(bits: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    data = imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits)
    frame = huffman.read_frame(data)
    assert frame is not None
    assert (frame.kind, frame.bits, frame.height, frame.width) == (0xC3, bits, 37, 53)
    huffman.check(data, frame)
    for length in range(frame.at + 40, len(data) - 4, 97):
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(Damage):
                huffman.check(data[:length] + end, frame)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0broken",
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\x10\0\x10\x01\x01\x00\0",
        bytes(40),
    ],
)
def test_a_header_without_a_frame_is_none(data: bytes) -> None:
    assert huffman.read_frame(data) is None


@pytest.mark.parametrize("kind", ["plain", "exif", "profile", "exif behind the frame", "stray bytes"])
def test_metadata_is_noticed_wherever_it_stands(photo: Image.Image, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if "exif" in kind else {"icc_profile": b"x" * 200} if kind == "profile" else {}
    data = encoded(photo, "JPEG", **options)
    if kind == "exif behind the frame":
        start = data.index(b"\xff\xe1")
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        segment, data = data[start:end], data[:start] + data[end:]
        scan = data.index(b"\xff\xda")
        data = data[:scan] + segment + data[scan:]
    elif kind == "stray bytes":
        data = data[:20] + b"\0\0" + data[20:]
    assert huffman.has_metadata(data) == (kind not in ("plain", "stray bytes"))
    upright = photo.size if "exif" in kind else photo.size[::-1]
    assert images.read_bytes(data, at_least=(9, 9)).size == upright
