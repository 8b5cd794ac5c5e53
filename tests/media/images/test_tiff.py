"""TIFF of every kind becomes what a person would see, and says what it has no value for, or fails."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import ROOT
from tests.helpers.formats import encoded
from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images
from unet_batch.media.images import Picture, tiff_blocks

KINDS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
LOSSLESS = (None, "lzw", "deflate", "zstd", "lzma", "packbits")
SHAPE = (37, 51)


def written(values: NDArray[Any], **options: Any) -> bytes:
    """The contents of a TIFF file, by tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"metadata": None, **options})
    return buffer.getvalue()


def read(data: bytes, **options: Any) -> Picture:
    return images.read_bytes(data, **options)


def random_values(kind: str, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if kind.startswith("f"):
        return (rng.normal(size=shape) * 100).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)


def levels(values: NDArray[Any], bits: int = 0) -> NDArray[np.float64]:
    """What the table says of numbers, by another way than the program's."""
    exact = values.astype(np.longdouble)
    if values.dtype.kind == "u" and (bits or values.itemsize * 8) <= 16:
        return np.floor(exact * 255 / (2 ** (bits or values.itemsize * 8) - 1) + 0.5).astype(float)
    low, high = exact.min(), exact.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = np.longdouble(0), np.longdouble(1)
    return np.rint((exact - low) * 255 / (high - low)).astype(float)


def assert_shows(picture: Picture, expected: NDArray[Any], tolerance: float = 1) -> None:
    """The picture shows these levels, (h, w) or (h, w, 3)."""
    expected = expected[..., None] if expected.ndim == 2 else expected
    assert picture.size == picture.pixels.shape[:2] == expected.shape[:2]
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert np.abs(picture.pixels - expected.astype(float)).max() <= tolerance


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(KINDS),
    photometric=st.sampled_from(["minisblack", "miniswhite", "rgb"]),
    compression=st.sampled_from(LOSSLESS),
    byteorder=st.sampled_from("<>"),
    bigtiff=st.booleans(),
    predictor=st.booleans(),
    tiled=st.booleans(),
    separate=st.booleans(),
    orientation=st.integers(0, 9),
    seed=st.integers(0, 3),
)
def test_every_layout_gives_the_levels_that_the_table_says(
    kind: str,
    photometric: str,
    compression: str | None,
    byteorder: str,
    bigtiff: bool,
    predictor: bool,
    tiled: bool,
    separate: bool,
    orientation: int,
    seed: int,
) -> None:
    colour = photometric == "rgb"
    values = random_values(kind, (*SHAPE, 3) if colour else SHAPE, seed)
    options: dict[str, Any] = {"tile": (16, 32)} if tiled else {"rowsperstrip": 10}
    if colour and separate:
        options["planarconfig"] = "separate"
    data = written(
        np.moveaxis(values, -1, 0) if colour and separate else values,
        photometric=photometric,
        compression=compression,
        byteorder=byteorder,
        bigtiff=bigtiff,
        predictor=predictor and compression is not None and kind not in ("u8", "i8"),
        extratags=[(274, 3, 1, orientation, True)],
        **options,
    )
    expected = levels(values)
    if photometric == "miniswhite":
        expected = 255 - expected
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    picture = read(data)
    assert_shows(picture, turns.get(orientation, lambda a: a)(expected))
    assert picture.missing is None
    assert picture.alpha is None
    assert picture.notes == ()


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "jpegxl", "png", "lerc", "jpegxr", "jpeg"])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_codecs_of_pictures(compression: str, tiled: bool, colour: bool) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    soft = (x * 2 + y * 3).astype(np.uint8)
    values = np.stack([soft, 255 - soft, soft // 2], axis=-1) if colour else soft
    options: dict[str, Any] = {"tile": (16, 32)} if tiled else {"rowsperstrip": 16}
    if compression == "webp":
        if not colour:
            return  # holds colour only
        options["compressionargs"] = {"lossless": True}
    if compression == "jpeg":
        options["subsampling"] = (1, 1)
    try:
        data = written(
            values, photometric="rgb" if colour else "minisblack", compression=compression, **options
        )
    except (ValueError, imagecodecs.DelayedImportError) as error:
        pytest.skip(f"cannot be written here: {error}")
    assert_shows(read(data), values, {"jpeg": 8, "jpegxr": 8}.get(compression, 0))


@pytest.mark.parametrize(
    ("compression", "kind"),
    [(name, "u2") for name in ("jpeg2000", "jpegxl", "png", "lerc", "jpeg")]
    + [("jpegxl", "f4"), ("lerc", "f4"), ("lerc", "f8"), ("lerc", "i2"), ("lerc", "u4")],
)
@pytest.mark.parametrize("colour", [False, True])
def test_codecs_of_pictures_hold_more_than_bytes(compression: str, kind: str, colour: bool) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    soft = ((x * 2 + y * 3) * 12).astype(kind)  # 2496 at most: JPEG has 12 bits
    values = np.stack([soft, soft // 2, soft // 3], axis=-1) if colour else soft
    data = written(values, photometric="rgb" if colour else "minisblack", compression=compression)
    bits = 12 if compression == "jpeg" else 0
    assert_shows(read(data), levels(values, bits), 4 if compression == "jpeg" else 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_packed_samples_are_white_at_their_own_maximum(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, SHAPE).astype("u2")
    values[0, :2] = 0, 2**bits - 1
    entries = {256: (4, [SHAPE[1]]), 257: (4, [SHAPE[0]]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [1])}
    data = tiff_of({**entries, 277: (3, [1]), 278: (4, [SHAPE[0]])}, [packed(values, bits)])
    assert_shows(read(data), levels(values, bits), 0)


def packed(values: NDArray[Any], bits: int) -> bytes:
    """Numbers (h, w) in so many bits each, most significant first, rows from whole bytes on."""
    planes = np.stack([values >> bit & 1 for bit in range(bits)][::-1], axis=-1).astype(np.uint8)
    return np.packbits(planes.reshape(len(values), -1), axis=1).tobytes()


@pytest.mark.parametrize("compression", [None, "tiff_ccitt", "group3", "group4", "tiff_lzw", "packbits"])
@pytest.mark.parametrize("older", [False, True])
def test_one_bit_and_fax(
    photo: Image.Image, compression: str | None, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:  # an imagecodecs that cannot decode fax
        monkeypatch.setattr(tiff_blocks, "_FAX", dict.fromkeys((2, 3, 4), "absent_decode"))
    bits = photo.convert("1")
    data = encoded(bits, "TIFF", **({"compression": compression} if compression else {}))
    assert_shows(read(data), np.asarray(bits) * 255.0, 0)
    inverted = written(np.asarray(bits), photometric="miniswhite", rowsperstrip=50)
    assert_shows(read(inverted), 255 - np.asarray(bits) * 255.0, 0)


def test_floats_of_24_bits() -> None:
    raw = b"".join(map(_float24, (0, 0.25, 0.5, 1)))
    for order, coded in (("<", raw), (">", b"".join(raw[at : at + 3][::-1] for at in range(0, 12, 3)))):
        # Three bytes of a number where there were three bands of one
        data = bytearray(written(np.zeros((1, 4, 3), np.uint8), photometric="rgb", byteorder=order))
        tags = tifffile.TiffFile(io.BytesIO(bytes(data))).pages[0].tags
        at = tags[273].value[0]
        data[at : at + 12] = coded
        for code, now, value in ((277, 277, 1), (258, 258, 24), (262, 262, 1), (284, 339, 3)):
            at = tags[code].offset
            data[at : at + 12] = struct.pack(order + "HHIHH", now, 3, 1, value, 0)
        assert_shows(read(bytes(data)), np.float64([[0, 64, 128, 255]]))


def _float24(value: float) -> bytes:
    """Little-endian 24-bit float of a value from 0 to 1."""
    if value == 0:
        return bytes(3)
    fraction, exponent = np.frexp(value)
    bits = (int(exponent - 1 + 63) << 16) | round((2 * fraction - 1) * 65536)
    return bits.to_bytes(3, "little")


# Opacity, palettes, bands, colour ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
def test_opacity_is_composited_over_white_and_told(
    kind: str, planar: str, premultiplied: bool, colours: int
) -> None:
    rng = np.random.default_rng(1)
    share = rng.random((*SHAPE, 1))
    share[0, 0], share[0, 1] = 0, 1
    colour = rng.random((*SHAPE, colours))
    colour[0, 2], colour[0, 3] = 0, 1  # so that the range of floats is 0..1
    share[0, 2:4] = 1
    stored = np.concatenate([colour * share if premultiplied else colour, share], axis=-1)
    full = 1 if kind == "f4" else np.iinfo(kind).max
    values = (stored * full).astype(kind) if kind == "f4" else np.rint(stored * full).astype(kind)
    data = written(
        np.moveaxis(values, -1, 0) if planar == "separate" else values,
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig=planar,
        extrasamples=["assocalpha" if premultiplied else "unassalpha"],
    )
    picture = read(data)
    assert_shows(picture, 255 * (colour * share + 1 - share), 2)
    assert picture.alpha is not None
    assert np.abs(picture.alpha - 255 * share[..., 0]).max() <= 1
    assert picture.notes == ()


def test_opacity_that_is_full_is_none() -> None:
    values = random_values("u1", (*SHAPE, 4))
    values[..., 3] = 255
    picture = read(written(values, photometric="rgb", extrasamples=["unassalpha"]))
    assert picture.alpha is None
    assert_shows(picture, values[..., :3], 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("factor", [1, 256, 257])
def test_palettes_of_every_writer_have_their_colours(bits: int, factor: int) -> None:
    rng = np.random.default_rng(bits)
    index = rng.integers(0, 2**bits, SHAPE)
    colours = rng.integers(0, 256, (3, 2**bits))
    colours[:, -1] = 255
    rows = index.astype("<u2").tobytes() if bits == 16 else packed(index, bits)
    entries = {256: (4, [SHAPE[1]]), 257: (4, [SHAPE[0]]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [3])}
    palette = (colours * factor).ravel().tolist()
    data = tiff_of({**entries, 277: (3, [1]), 278: (4, [SHAPE[0]]), 320: (3, palette)}, [rows])
    assert_shows(read(data), colours.T[index], 0)


@pytest.mark.parametrize(
    ("bands", "photometric", "extra", "shown", "note"),
    [
        (2, "minisblack", (0,), [0, 0, 0], "2 bands: the first is read"),
        (3, "minisblack", (0, 0), [0, 1, 2], None),
        (5, "minisblack", (0, 0, 0, 0), [0, 1, 2], "5 bands: the first three are read"),
        (4, "rgb", (0,), [0, 1, 2], "4 bands: the first three are read"),
        (7, "rgb", (0, 0, 0, 0), [0, 1, 2], "7 bands: the first three are read"),
    ],
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_more_bands_than_colours(
    bands: int, photometric: str, extra: tuple[int, ...], shown: list[int], note: str, planar: str, kind: str
) -> None:
    values = random_values(kind, (*SHAPE, bands))
    data = written(
        np.moveaxis(values, -1, 0) if planar == "separate" else values,
        photometric=photometric,
        planarconfig=planar,
        extrasamples=extra,
        compression="deflate",
        tile=(16, 16),
    )
    picture = read(data)
    assert_shows(picture, levels(values[..., sorted(set(shown))]) + np.zeros(3))
    assert picture.notes == () if note is None else picture.notes[0].startswith(note)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk(kind: str, planar: str) -> None:
    values = random_values("u1", (*SHAPE, 4))
    stored = values if kind == "u1" else values.astype("u2") * 257
    if planar == "separate":
        stored = np.moveaxis(stored, -1, 0)
    cyan, black = values[..., :3].astype(float), values[..., 3:].astype(float)
    data = written(stored, photometric="separated", planarconfig=planar)
    assert_shows(read(data), (255 - cyan) * (255 - black) / 255)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
def test_lab(kind: str, photometric: str) -> None:
    lab = {
        (0, 0, 0): (0, 0, 0),
        (100, 0, 0): (255, 255, 255),
        (53, 80, 67): (254, 0, 2),
        (50, 0, 0): (119,) * 3,
    }
    rows = []
    for lightness, a, b in lab:
        shift = 0 if photometric == "cielab" else 128
        rows.append([round(lightness * 2.55), (a + shift) % 256, (b + shift) % 256])
    values = np.uint8([rows])
    data = written(values if kind == "u1" else values.astype("u2") << 8, photometric=photometric)
    assert_shows(read(data), np.float64([list(lab.values())]), 8)  # of L*a*b* in 8 bits


@pytest.mark.parametrize("across", [1, 2, 4])
@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("compression", [1, 8])
def test_ycbcr_without_jpeg(across: int, down: int, compression: int) -> None:
    height, width, rows = 11, 14, 8
    strips, expected = [], np.zeros((height, width, 3))
    rng = np.random.default_rng(2)
    for top in range(0, height, rows):
        high = -(-min(rows, height - top) // down)
        wide = -(-width // across)
        light = rng.integers(60, 200, (high * down, wide * across))
        colour = rng.integers(100, 156, (high, wide, 2))
        units = [
            [*light[y * down : y * down + down, x * across : x * across + across].ravel(), *colour[y, x]]
            for y in range(high)
            for x in range(wide)
        ]
        strips.append(np.uint8(units).tobytes())
        blue, red = np.moveaxis(colour.repeat(down, 0).repeat(across, 1) - 128.0, -1, 0)
        # ITU-R BT.601, as JPEG has it
        rgb = np.stack(
            [light + 1.402 * red, light - 0.344136 * blue - 0.714136 * red, light + 1.772 * blue], -1
        )
        expected[top : top + rows] = rgb[: min(rows, height - top), :width]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8, 8, 8]),
        259: (3, [compression]),
        262: (3, [6]),
        277: (3, [3]),
        278: (4, [rows]),
        530: (3, [across, down]),
    }
    assert_shows(read(tiff_of(entries, strips)), expected.clip(0, 255), 1.1)


def tiff_of(entries: dict[int, tuple[int, list[int]]], strips: list[bytes]) -> bytes:
    """A little-endian TIFF of one page: entries of shorts (3) and longs (4) by tag, and strips."""
    body, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip + bytes(len(strip) % 2)
    entries = {**entries, 273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
    directory = struct.pack("<H", len(entries))
    after = 8 + len(body) + 2 + 12 * len(entries) + 4
    extra = b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place, extra = struct.pack("<I", after + len(extra)), extra + packed
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, kind, len(values)) + place
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory + bytes(4) + extra


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampled", [False, True])
def test_jpeg_inside(photo: Image.Image, mode: str, subsampled: bool) -> None:
    """As Pillow and libtiff write it: tables apart, several strips, colour as the directory says."""
    small = photo.resize((120, 95), Image.Resampling.BOX).convert(mode)
    planes = np.moveaxis(np.asarray(small.convert("RGB")), -1, 0)
    data = written(planes, photometric="rgb", planarconfig="separate", compression="jpeg")
    assert np.abs(read(data).pixels - np.moveaxis(planes, 0, -1).astype(float)).mean() < 4
    data = encoded(small, "TIFF", compression="jpeg", quality=95)
    assert_shows(read(data), np.asarray(small.convert("RGB"), float), 24)
    if mode == "RGB":  # stored as YCbCr, which is what most do
        options = {"subsampling": (2, 2) if subsampled else (1, 1)}
        data = written(np.asarray(small), photometric="rgb", compression="jpeg", tile=(64, 64), **options)
        assert np.abs(read(data).pixels - np.asarray(small, float)).mean() < 4


# No value ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "nodata", "hole"),
    [
        ("f4", "-9999", -9999),
        ("f4", "nan", np.nan),
        ("f4", "-3.4028234663852886e+38", -3.4028234663852886e38),
        ("f4", "-3.40282e+38", -3.4028234663852886e38),
        ("f4", "1e+20", 1e20),
        ("f8", "-1.7976931348623157e+308", -1.7976931348623157e308),
        ("f4", "0", 0),
        ("f4", None, np.nan),
        ("f4", None, np.inf),
        ("f8", None, -np.inf),
        ("f2", "-9999", -9999),
        ("f4", "-9999,0", -9999),
        ("i2", "-32768", -32768),
        ("i2", "-9999.0", -9999),
        ("u2", "65535", 65535),
        ("u1", "255 ", 255),
        ("u1", "0", 0),
        ("i8", "-9223372036854775808", -(2**63)),
        ("u8", "18446744073709551615", 2**64 - 1),
    ],
)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_numbers_that_stand_for_no_value_are_black_and_widen_nothing(
    kind: str, nodata: str | None, hole: float, photometric: str
) -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(20, 100, SHAPE).astype(kind)
    holes = rng.random(SHAPE) < 0.2
    stored = values.copy()
    stored[holes] = np.array(hole).astype(kind)
    tags = [] if nodata is None else [(42113, 2, len(nodata) + 1, nodata, True)]
    picture = read(written(stored, photometric=photometric, extratags=tags))
    seen = levels(values[~holes])
    expected = np.zeros(SHAPE)
    expected[~holes] = 255 - seen if photometric == "miniswhite" else seen
    assert_shows(picture, expected)
    assert picture.missing is not None
    assert np.array_equal(picture.missing, holes)


@pytest.mark.parametrize("nodata", ["-9999", "300", "nan", "none", "1.5", ""])
def test_nodata_that_the_numbers_cannot_hold_stands_for_nothing(nodata: str) -> None:
    values = random_values("u1")
    picture = read(
        written(values, photometric="minisblack", extratags=[(42113, 2, len(nodata) + 1, nodata, True)])
    )
    assert_shows(picture, values, 0)
    assert picture.missing is None


def test_a_pixel_is_missing_where_no_band_has_a_value() -> None:
    values = np.full((2, 3, 3), 50, np.uint8)
    values[0, 0], values[1, 1, 2] = 0, 0
    picture = read(written(values, photometric="rgb", extratags=[(42113, 2, 2, "0", True)]))
    assert picture.missing is not None
    assert picture.missing.tolist() == [[True, False, False], [False, False, False]]
    assert_shows(picture, values, 0)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_a_level_of_one_band_that_is_also_the_nodata_is_a_colour(kind: str, planarconfig: str) -> None:
    """The red roof of an orthophoto whose collar is white: 255 in one band, nodata in all three."""
    top = np.iinfo(kind).max
    values = np.full((2, 4, 3), top // 5, kind)
    values[0, 0], values[1, 1], values[1, 2] = top, (top, 0, 0), (0, top, top)
    stored = np.moveaxis(values, -1, 0) if planarconfig == "separate" else values
    tags = [(42113, 2, len(str(top)) + 1, str(top), True)]
    picture = read(written(stored, photometric="rgb", planarconfig=planarconfig, extratags=tags))
    assert picture.missing is not None
    assert np.argwhere(picture.missing).tolist() == [[0, 0]]
    values[0, 0] = 0
    assert_shows(picture, values // (top // 255), 0)


def test_missing_pixels_are_turned_with_the_picture() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    values[0, 2] = np.nan
    picture = read(written(values, photometric="minisblack", extratags=[(274, 3, 1, 6, True)]))
    assert picture.missing is not None
    assert picture.missing.tolist() == np.rot90(np.isnan(values), -1).tolist()


def test_all_of_it_without_a_value_is_black() -> None:
    picture = read(written(np.full(SHAPE, np.nan, np.float32), photometric="minisblack"))
    assert picture.missing is not None
    assert picture.missing.all()
    assert not picture.pixels.any()


def test_a_mask_inside_says_what_is_missing() -> None:
    values, inside = random_values("u1", (*SHAPE, 3)), random_values("u1") > 128
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(values, photometric="rgb", metadata=None)
        file.write(inside, photometric="mask", subfiletype=4, metadata=None)
    picture = read(buffer.getvalue())
    assert picture.missing is not None
    assert np.array_equal(picture.missing, ~inside)
    assert picture.notes == ()


@pytest.mark.parametrize("geo", [True, False])
def test_tiles_that_are_absent_have_no_value_in_a_geotiff_and_are_an_error_elsewhere(geo: bool) -> None:
    values = np.full((32, 48), 7, np.uint8)
    tags = [(42113, 2, 2, "0", True)] if geo else []
    data = bytearray(written(values, photometric="minisblack", tile=(16, 16), extratags=tags))
    page = tifffile.TiffFile(io.BytesIO(bytes(data))).pages[0]
    for code in (324, 325):
        size = {3: 2, 4: 4}[page.tags[code].dtype]
        at = page.tags[code].valueoffset + size
        data[at : at + size] = bytes(size)
    if not geo:
        with pytest.raises(ImageError, match="strip or tile 2 of 6 is absent"):
            read(bytes(data))
        return
    picture = read(bytes(data))
    values[:16, 16:32] = 0
    assert_shows(picture, values, 0)
    assert picture.missing is not None
    assert np.array_equal(picture.missing, values == 0)


def test_lerc_says_itself_what_is_missing() -> None:
    values, valid = random_values("f4"), np.ones(SHAPE, bool)
    valid[3:9, 4:30] = False
    strip = imagecodecs.lerc_encode(values, masks=valid, level=0)
    entries = {256: (4, [SHAPE[1]]), 257: (4, [SHAPE[0]]), 258: (3, [32]), 259: (3, [34887]), 262: (3, [1])}
    for packed, more in (
        (strip, {}),
        (zlib.compress(strip), {50674: (4, [4, 1])}),
        (imagecodecs.zstd_encode(strip), {50674: (4, [4, 2])}),
    ):
        picture = read(tiff_of({**entries, 278: (4, [SHAPE[0]]), 339: (3, [3]), **more}, [bytes(packed)]))
        expected = np.zeros(SHAPE)
        expected[valid] = levels(values[valid])
        assert picture.missing is not None
        assert np.array_equal(picture.missing, ~valid)
        assert_shows(picture, expected)


# Pages ------------------------------------------------------------------------------------------------------


def pages(*shapes: tuple[int, int], flags: dict[int, int] | None = None, **options: Any) -> bytes:
    """A TIFF whose pages are as large as asked and filled with 10, 20, ...; some with a NewSubfileType."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as file:
        for at, shape in enumerate(shapes):
            values = np.full(shape, 10 * (at + 1) % 256, np.uint8)
            file.write(values, photometric="minisblack", metadata=None, subfiletype=(flags or {}).get(at, 0))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("shapes", "flags", "shown", "notes"),
    [
        ([(12, 17), (45, 67)], {0: 1}, 20, ()),  # it says so
        ([(90, 120), (480, 640), (45, 60)], {}, 20, ()),  # it does not, but has the shape
        ([(480, 640), (90, 120)], {}, 10, ()),
        ([(480, 640), (240, 320), (120, 160)], {1: 1, 2: 1}, 10, ()),  # levels of a pyramid
        ([(12, 17), (6, 8)], {0: 1, 1: 1}, 10, ()),  # nothing but copies
        ([(40, 40), (40, 40)], {}, 10, ("2 pages: the first is read",)),
        ([(10, 10), (10, 10), (20, 20)], {}, 10, ("3 pages: the first is read",)),  # scanned finer, no copy
        ([(12, 17), (45, 67), (45, 67)], {0: 1}, 20, ("2 pages: the first is read",)),
        ([(30, 60), (300, 400)], {}, 10, ("2 pages: the first is read",)),  # of another shape
        ([(30, 60), (30, 40), (300, 400), (9, 9)], {}, 10, ("3 pages: the first is read",)),
    ],
)
@pytest.mark.parametrize("bigtiff", [False, True])
def test_the_picture_among_pages(
    shapes: list[tuple[int, int]], flags: dict[int, int], shown: int, notes: tuple[str, ...], bigtiff: bool
) -> None:
    picture = read(pages(*shapes, flags=flags, bigtiff=bigtiff))
    assert picture.notes == notes
    assert picture.size == shapes[shown // 10 - 1]
    assert (picture.pixels == shown).all()


def test_the_photo_in_a_camera_file_is_below_its_thumbnail() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(
            np.full((30, 40), 1, np.uint8), photometric="minisblack", subfiletype=1, subifds=1, metadata=None
        )
        file.write(np.full((300, 400), 2, np.uint8), photometric="minisblack", subfiletype=0, metadata=None)
    picture = read(buffer.getvalue())
    assert picture.size == (300, 400)
    assert (picture.pixels == 2).all()
    assert picture.notes == ()


def test_pyramids_below_a_page_are_not_pages() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as file:
        file.write(np.full((64, 80), 1, np.uint8), subifds=2, tile=(16, 16))
        file.write(np.full((32, 40), 2, np.uint8), subfiletype=1, tile=(16, 16))
        file.write(np.full((16, 20), 3, np.uint8), subfiletype=1, tile=(16, 16))
    picture = read(buffer.getvalue())
    assert (picture.size, picture.notes) == ((64, 80), ())


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
def test_a_stack_is_so_many_pages(kind: str) -> None:
    stack = random_values("u2", (5, *SHAPE))
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack, photometric="minisblack", imagej=kind == "imagej", ome=kind == "ome")
    picture = read(buffer.getvalue())
    assert picture.notes == ("5 pages: the first is read",)
    assert_shows(picture, levels(stack[0]))


def test_a_stack_of_imagej_behind_one_directory_is_so_many_pages() -> None:
    text = "ImageJ=1.53t\nimages=300\nslices=300\n"
    data = written(random_values("u2"), photometric="minisblack", description=text, metadata=None)
    assert read(data).notes == ("300 pages: the first is read",)


def test_a_chain_of_pages_that_bites_its_tail_ends() -> None:
    data = bytearray(pages((8, 9), (8, 9), (8, 9)))
    file = tifffile.TiffFile(io.BytesIO(bytes(data)))
    last = file.pages[2]
    at = last.offset + 2 + 12 * len(last.tags)
    assert data[at : at + 4] == bytes(4)
    data[at : at + 4] = struct.pack("<I", file.pages[1].offset)
    assert read(bytes(data)).notes == ("3 pages: the first is read",)


def test_many_pages_are_counted_without_being_read() -> None:
    assert read(pages(*[(2, 3)] * 300)).notes == ("300 pages: the first is read",)


def test_resolution_is_told() -> None:
    for unit, expected in (("INCH", (300, 150)), ("CENTIMETER", (762, 381)), ("NONE", None)):
        dpi = read(written(random_values("u1"), resolution=(300, 150), resolutionunit=unit)).metadata.dpi
        assert dpi == (pytest.approx(expected) if expected else None)
    turned = written(random_values("u1"), resolution=(300, 150), extratags=[(274, 3, 1, 6, True)])
    assert read(turned).metadata.dpi == (150, 300)


# What is not read, limits, damage ---------------------------------------------------------------------------


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Change a tag of one short in a little-endian TIFF."""
    at = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[tag].offset
    return data[: at + 2] + struct.pack("<HIHH", 3, 1, value, 0) + data[at + 12 :]


@pytest.mark.parametrize(
    ("tag", "value", "says"),
    [
        (259, 34676, "compressed with SGI LogLuv"),
        (259, 32809, "compressed with ThunderScan"),
        (259, 34661, "compressed with JBIG"),
        (259, 34713, "compressed with Nikon NEF"),
        (259, 12345, "compressed with an unknown method (Compression 12345)"),
        (262, 32845, "LogLuv"),
        (262, 777, "unknown kind (PhotometricInterpretation 777)"),
        (258, 33, "33-bit unsigned integers"),
        (339, 6, "complex numbers"),
    ],
)
def test_what_is_not_read_is_named_as_what_it_is(tag: int, value: int, says: str) -> None:
    entries = {256: (4, [2]), 257: (4, [2]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1])}
    data = tiff_of({**entries, 277: (3, [1]), 278: (4, [2]), 339: (3, [1])}, [bytes(4)])
    with pytest.raises(ImageError) as caught:
        read(with_tag(data, tag, value))
    assert says in caught.value.message
    assert caught.value.message.startswith("picture: TIFF ")
    assert caught.value.message.endswith("cannot be read")
    assert "save it as PNG" in caught.value.hint
    assert "damaged" not in f"{caught.value}{caught.value.hint}"


def test_old_style_jpeg_is_read_where_it_is_one_stream(photo: Image.Image) -> None:
    small = photo.resize((64, 48))
    stream = encoded(small, "JPEG", quality=95, subsampling=0)
    entries = {256: (4, [64]), 257: (4, [48]), 259: (3, [6]), 262: (3, [6]), 277: (3, [3]), 278: (4, [48])}
    entries |= {513: (4, [8]), 514: (4, [len(stream)])}
    picture = read(tiff_of({**entries, 258: (3, [8, 8, 8])}, [stream]))
    assert_shows(picture, np.asarray(small, float), 40)
    assert np.abs(picture.pixels - np.asarray(small, float)).mean() < 3
    scan = stream[stream.index(b"\xff\xda") :]
    with pytest.raises(ImageError, match="old-style JPEG in pieces"):
        read(tiff_of({tag: entries[tag] for tag in entries if tag < 500} | {258: (3, [8, 8, 8])}, [scan]))


def test_limits_hold_before_anything_is_decoded() -> None:
    small = written(random_values("u1"), photometric="minisblack", compression="deflate")
    for tag, value in ((256, 60000), (257, 60000)):
        with pytest.raises(ImageTooLarge, match="the limit is 2,000,000"):
            read(with_tag(small, tag, value), max_pixels=2_000_000)
    many = written(np.zeros((8, 8, 3), np.uint8), photometric="rgb", compression="deflate")
    with pytest.raises(ImageTooLarge, match="60000 bands of 1 bytes"):
        read(with_tag(many, 277, 60000), max_pixels=200_000)


@pytest.mark.parametrize("codec", ["jpeg2k", "webp", "jpegxl", "png", "jpeg"])
def test_a_stream_larger_than_its_block_is_not_decoded(codec: str) -> None:
    code = {"jpeg2k": 34712, "webp": 50001, "jpegxl": 50002, "png": 34933, "jpeg": 7}[codec]
    stream = bytes(getattr(imagecodecs, f"{codec}_encode")(np.zeros((512, 640, 3), np.uint8)))
    entries = {256: (4, [16]), 257: (4, [16]), 258: (3, [8, 8, 8]), 259: (3, [code]), 262: (3, [2])}
    with pytest.raises(ImageError, match="a block of 16x16 holds"):
        read(tiff_of({**entries, 277: (3, [3]), 278: (4, [16])}, [stream]))


@pytest.mark.parametrize("compression", ["deflate", "lzw", "zstd", "lzma"])
def test_a_bomb_is_not_unpacked(compression: str) -> None:
    """A strip of 32 MB behind a directory of 40 KB."""
    code = {"deflate": 8, "lzw": 5, "zstd": 50000, "lzma": 34925}[compression]
    stream = bytes(getattr(imagecodecs, f"{compression}_encode")(bytes(32 << 20)))
    entries = {
        256: (4, [200]),
        257: (4, [200]),
        258: (3, [8]),
        259: (3, [code]),
        262: (3, [1]),
        277: (3, [1]),
    }
    data = tiff_of({**entries, 278: (4, [200])}, [stream])
    tracemalloc.start()
    try:
        if compression == "zstd":  # says its size, and is refused for it
            with pytest.raises(ImageError):
                read(data)
        else:
            assert_shows(read(data), np.zeros((200, 200)), 0)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", ["deflate", "packbits", "lzw", "zstd", None])
def test_a_last_strip_may_be_as_long_as_the_others(compression: str | None) -> None:
    values = random_values("u1", (10, 20))
    padded = np.concatenate([values, np.zeros((6, 20), np.uint8)])
    code = {"deflate": 8, "packbits": 32773, "lzw": 5, "zstd": 50000, None: 1}[compression]
    strips = [padded[:8].tobytes(), padded[8:].tobytes()]
    if compression:
        strips = [bytes(getattr(imagecodecs, f"{compression}_encode")(strip)) for strip in strips]
    entries = {256: (4, [20]), 257: (4, [10]), 258: (3, [8]), 259: (3, [code]), 262: (3, [1]), 277: (3, [1])}
    assert_shows(read(tiff_of({**entries, 278: (4, [8])}, strips)), values, 0)


CODINGS = [
    None,
    "lzw",
    "deflate",
    "zstd",
    "lzma",
    "packbits",
    "jpeg",
    "jpeg2000",
    "webp",
    "jpegxl",
    "png",
    "lerc",
]


@pytest.mark.parametrize("compression", CODINGS)
@pytest.mark.parametrize("tiled", [False, True])
def test_a_file_that_is_cut_short_is_an_error(compression: str | None, tiled: bool) -> None:
    y, x = np.mgrid[:96, :128]
    values = np.stack([x, y, (x + y) % 256], axis=-1).astype(np.uint8)
    options: dict[str, Any] = {"tile": (32, 32)} if tiled else {"rowsperstrip": 32}
    data = written(values, photometric="rgb", compression=compression, **options)
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    end = max(a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True))
    read(data[:end])
    for cut in (1, 7, 100, end // 2, end - 300):
        with pytest.raises(ImageError):
            read(data[: end - cut])


@pytest.mark.parametrize("compression", ["deflate", "jpeg", "png", "lerc"])
def test_codings_that_can_tell_notice_changed_bytes(compression: str) -> None:
    y, x = np.mgrid[:96, :128]
    values = np.stack([x, y, (x + y) % 256], axis=-1).astype(np.uint8)
    data = written(values, photometric="rgb", compression=compression, rowsperstrip=96)
    right = read(data).pixels
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    start, count = page.dataoffsets[0], page.databytecounts[0]
    rng = np.random.default_rng(6)
    wrong = 0
    for _ in range(60):
        copy = bytearray(data)
        copy[start + int(rng.integers(count))] ^= int(rng.integers(1, 256))
        with contextlib.suppress(ImageError):
            wrong += not np.array_equal(read(bytes(copy)).pixels, right)
    # A changed bit of a JPEG can be another picture, which nothing can tell
    assert wrong <= (45 if compression == "jpeg" else 0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_but_an_image_error(data: st.DataObject) -> None:
    compression = data.draw(st.sampled_from(CODINGS))
    values = random_values("u1", (24, 32, 3))
    whole = written(
        values, photometric="rgb", compression=compression, tile=data.draw(st.sampled_from([None, (16, 16)]))
    )
    copy = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        copy[data.draw(st.integers(8, len(copy) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = read(bytes(copy), max_pixels=1_000_000)
    except ImageError:
        return
    assert picture.pixels.dtype == np.uint8


# Noise, threads, imports ------------------------------------------------------------------------------------


def test_the_log_of_tifffile_is_left_alone_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(written(random_values("u1"), photometric="minisblack", rowsperstrip=5))
    at = tifffile.TiffFile(io.BytesIO(bytes(data))).pages[0].tags[279].offset + 4
    data[at : at + 4] = struct.pack("<I", 3)  # too few strips are listed: tifffile logs an error
    with pytest.raises(ImageError):
        read(bytes(data))
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "tifffile"):
        tifffile.TiffFile(io.BytesIO(bytes(data)))
    assert caplog.records


def test_threads_read_at_once(photo: Image.Image) -> None:
    files = [encoded(photo, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    files += [written(random_values(kind), photometric="minisblack") for kind in KINDS]
    once = [read(data).pixels for data in files]
    start = threading.Barrier(8)

    def work(_: int) -> list[NDArray[np.uint8]]:
        start.wait()
        return [read(data).pixels for data in files]

    with ThreadPoolExecutor(8) as pool:
        for run in pool.map(work, range(8)):
            assert all(np.array_equal(a, b) for a, b in zip(once, run, strict=True))


def test_nothing_of_tiff_is_imported_before_one_is_read() -> None:
    script = (
        "import sys; from unet_batch.media import images; "
        "print(sorted({'tifffile', 'imagecodecs'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
