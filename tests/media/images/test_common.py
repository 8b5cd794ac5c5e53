"""What all formats share: errors, limits, extensions, orientation, threads and warnings."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from tests.helpers.formats import encoded, jpeg_variants, png, read_bytes
from tests.helpers.systems import needs_links, needs_permissions, needs_pipes
from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images
from unet_batch.media.images import profiles
from unet_batch.media.images.profiles import coded_profile


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(tmp_path: Path, photo: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.int16)
    pixels = read_bytes(tmp_path, data)
    assert pixels.shape == reference.shape
    assert np.abs(pixels - reference).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(40))],
)
def test_broken_exif_is_ignored(tmp_path: Path, photo: Image.Image, exif: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        assert read_bytes(tmp_path, encoded(photo, kind, exif=exif)).shape == (317, 403, 3)


@pytest.mark.parametrize(
    ("data", "says", "hint"),
    [
        (b"", "an empty file", "restore it from its source, or leave it out"),
        (b"hello, this is no picture\n", "looks like a text file", ""),
        ("Grüße\n".encode(), "looks like a text file", ""),
        (bytes(300), "zero bytes", "restore it from its source, or leave it out"),
        (b"%PDF-1.7\n...", "not an image format known here", "PNG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video", ""),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer", "git lfs pull"),
        (b"\xff\xd8\xff", "cannot decode this JPEG", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "cannot decode this PNG", "damaged"),
        (b"GIF89a", "cannot decode this GIF", "damaged"),
        (b"II*\0\x08\0\0\0", "cannot decode this TIFF", "damaged"),
    ],
)
def test_not_a_picture(tmp_path: Path, data: bytes, says: str, hint: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=says) as caught:
        images.read(str(path))
    assert caught.value.message.startswith(f"{path}: ")
    assert hint in caught.value.hint


def damaged(data: bytes, seed: int) -> Iterator[bytes]:
    """A file cut, and with single bytes changed, at many places."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(1, len(data), 25):
        yield data[:at]
        yield data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
    for at in range(min(len(data), 60)):
        yield data[:at] + b"\xff" + data[at + 1 :]


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("PNG", "P", {}),
        ("GIF", "P", {}),
        ("BMP", "P", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("AVIF", "RGB", {}),
        ("PPM", "RGB", {}),
        ("ICO", "RGBA", {"sizes": [(32, 32)]}),
        ("JPEG2000", "RGB", {}),
    ],
)
def test_what_is_said_of_a_damaged_file_is_for_people(
    photo: Image.Image, kind: str, mode: str, options: dict[str, Any]
) -> None:
    """No bare number, no words of an exception of a library's."""
    data = encoded(photo.resize((48, 40)).convert(mode), kind, **options)
    refused = 0
    for copy in damaged(data, 1):
        try:
            images.read_bytes(copy, "x", max_pixels=10**6)
        except ImageError as caught:
            error = caught
        else:
            continue
        refused += 1
        assert error.hint
        if not isinstance(error, ImageTooLarge) and error.message.startswith("x: cannot decode this"):
            reason = error.message.partition(": cannot decode this ")[2].partition(": ")[2]
            assert re.search(
                "damaged|cut short|truncated|early|fails its checksum|no pixel data|not supported", reason
            )
            assert not re.search(r"[A-Z]\w+Error|index|buffer|unpack|None|b'|\(\)|0x\w+ \w", reason)
            assert not re.search(r"(^|: )[\d.,]+$", reason)
    assert refused > 20


def test_whole_files_of_a_kind_that_is_not_supported_are_not_called_damaged(photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "BMP"))
    data[30] = 4  # compressed as a JPEG
    with pytest.raises(ImageError, match="it is of a kind that is not supported") as caught:
        images.read_bytes(bytes(data))
    assert "save it as PNG" in caught.value.hint


@needs_pipes
@needs_links
def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, says in (
        ("pipe.jpg", "not a regular file"),
        ("", "a directory"),
        ("none.jpg", "no such file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(ImageError, match=says):
            images.read(str(tmp_path / name))
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(ImageError, match="cannot be opened: Too many levels"):
        images.read(str(tmp_path / "loop"))


@needs_permissions
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        images.read(str(path))


def test_limit_is_checked_before_decoding(tmp_path: Path, photo: Image.Image) -> None:
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        data = encoded(photo, kind)
        with pytest.raises(ImageTooLarge, match=r"317x403 .* 127,751 pixels, the limit is 127,750") as caught:
            read_bytes(tmp_path, data, max_pixels=127_750)
        assert "--max-pixels 127751 (in Python: max_pixels=127751)" in caught.value.hint
        assert read_bytes(tmp_path, data, max_pixels=127_751).shape == (317, 403, 3)
    huge = bytearray(encoded(photo, "JPEG"))
    at = huge.index(b"\xff\xc0") + 5
    huge[at : at + 4] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(ImageTooLarge, match="60000x60000"):
        read_bytes(tmp_path, bytes(huge))
    # 100 megapixels of which next to nothing is there: no warning of Pillow's either
    with pytest.raises(ImageError):
        read_bytes(tmp_path, png(10_000, 10_000, 8, 0, b"\0"))


def test_limit_holds_for_what_is_inside(tmp_path: Path) -> None:
    """Headers that announce 16x16 and hold more: refused before anything is decoded."""
    inner = png(3000, 2000, 8, 0, b"")
    bitmap = struct.pack("<IiiHHIIiiII", 40, 3000, -4000, 1, 1, 0, 0, 0, 0, 0, 0)
    core = struct.pack("<IHHHH", 12, 3000, 4000, 1, 1)
    for picture in (inner, bitmap, core):
        entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 1, len(picture), 22)
        with pytest.raises(ImageTooLarge, match=r"2000x3000 .* the limit is 5,999,999"):
            read_bytes(tmp_path, struct.pack("<HHH", 0, 1, 1) + entry + picture, max_pixels=5_999_999)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 3008, 323: 2000, 324: 200, 325: 8}
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with pytest.raises(ImageTooLarge, match="2000x3008"):
        read_bytes(tmp_path, tiff.ljust(200, b"\0") + zlib.compress(b""), max_pixels=6_000_000)


def test_bytes_in_memory_are_read_as_files_are(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo.crop((0, 0, 400, 312)), "JPEG", exif=exif)
    picture = images.read_bytes(data, at_least=(100, 78))
    assert picture.size == (400, 312)
    assert picture.pixels.shape == (100, 78, 3)
    for kind in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO"):
        assert images.read_bytes(encoded(photo.resize((32, 32)), kind)).size == (32, 32), kind
    assert images.read_bytes(encoded(photo, "TGA"), "upload.tga").size == (317, 403)


def test_bytes_that_are_no_picture_are_an_error_with_their_name(photo: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"^upload 7: an empty file"):
        images.read_bytes(b"", "upload 7")
    with pytest.raises(ImageError, match=r"^picture: looks like a text file"):
        images.read_bytes(b"hello, this is no picture\n")
    with pytest.raises(ImageError, match=r"^upload 7: cannot decode this PNG"):
        images.read_bytes(encoded(photo, "PNG")[:5000], "upload 7")
    with pytest.raises(ImageTooLarge, match=r"^upload 7: 317x403 .* the limit is 127,750"):
        images.read_bytes(encoded(photo, "PNG"), "upload 7", max_pixels=127_750)


def test_out_of_memory_is_an_image_error(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    with pytest.raises(ImageError, match="not enough memory"):
        read_bytes(tmp_path, encoded(photo, "JPEG"))


def test_a_disk_that_fails_is_not_called_a_damaged_file(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(ImageError, match="cannot decode this PNG") as caught:
        read_bytes(tmp_path, encoded(photo, "PNG"))
    assert caught.value.hint == ""
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO  # tells the run that another try may help


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="pillow-heif") as caught:
        read_bytes(tmp_path, b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    assert caught.value.hint == "pip install pillow-heif"


def test_every_extension_can_be_read(tmp_path: Path, photo: Image.Image) -> None:
    kinds = {
        "JPEG": "jpg jpeg jpe jfif mpo",
        "PNG": "png apng",
        "WEBP": "webp",
        "TIFF": "tif tiff",
        "BMP": "bmp dib",
        "GIF": "gif",
        "AVIF": "avif avifs",
        "PPM": "ppm pgm pbm pnm",
        "TGA": "tga",
        "ICO": "ico",
        "JPEG2000": "jp2 j2k",
    }
    small = photo.resize((32, 32))
    made = {name for names in kinds.values() for name in names.split()}
    raw = {"dng", "cr2", "cr3", "nef", "nrw", "arw", "raf", "orf", "rw2", "pef", "srw"}  # see test_raw.py
    scientific = {"dcm", "dicom", "zarr", "npy"}  # see test_dicom.py, test_zarr.py, test_npy.py
    # The next four: see the odd files
    assert set(images.EXTENSIONS) == made | raw | scientific | {"heic", "heif", "hif", "psd"}
    for kind, names in kinds.items():
        for name in names.split():
            path = tmp_path / f"a.{name.upper()}"
            path.write_bytes(encoded(small, kind))
            assert images.is_supported(path.name)
            assert images.read(str(path)).size == (32, 32)
    for name in ("a", "a.txt", ".jpg", "jpg", "a.jpg.part", "a.svg", ""):
        assert not images.is_supported(name)


def test_threads_agree(tmp_path: Path, photo: Image.Image) -> None:
    odd_tiff = encoded(photo.resize((40, 30)), "TIFF", compression="tiff_lzw")
    files = [
        *jpeg_variants(photo).values(),
        encoded(photo, "PNG"),
        encoded(photo, "GIF"),
        encoded(photo, "WEBP"),
        odd_tiff,
    ]
    paths = []
    for index, data in enumerate(files):
        paths.append(str(tmp_path / f"{index}.tga"))
        Path(paths[-1]).write_bytes(data)
    once = [images.read(path).pixels for path in paths]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [images.read(path).pixels for path in paths], range(8)))
    for run in runs:
        assert all(np.array_equal(a, b) for a, b in zip(once, run, strict=True))


def test_warnings_of_pillow_stay_inside(tmp_path: Path, photo: Image.Image) -> None:
    """The same broken EXIF makes Pillow warn elsewhere, and nothing while `read` is at work, on this thread
    only.
    """
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(10)
    data = encoded(photo, "JPEG", exif=broken)
    for _ in range(2):
        read_bytes(tmp_path, data)  # warnings are errors here
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            read_bytes(tmp_path, data)
            assert not seen
            with Image.open(io.BytesIO(data)) as image:
                image.getexif()
            assert seen


def test_a_library_that_is_missing_is_no_damage(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of another colour space need imagecodecs: they were said to be damaged."""
    wide = coded_profile(12, 13)[0]
    data = encoded(photo, "JPEG", icc_profile=wide)
    profiles._examine.cache_clear()
    monkeypatch.setattr(builtins, "__import__", partial(refuse, "imagecodecs", builtins.__import__))
    with pytest.raises(ImageError, match=r"it needs imagecodecs, which is not installed$") as caught:
        images.read_bytes(data, "a.jpg")
    assert caught.value.hint == "pip install imagecodecs"


def refuse(missing: str, real: Any, name: str, *more: Any, **options: Any) -> Any:
    if name == missing:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, *more, **options)
