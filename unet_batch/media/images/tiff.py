"""Read TIFF: what the numbers of a page mean, and how they become RGB."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
from PIL import Image

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media.images import tiff_blocks
from unet_batch.media.images.common import (
    CONVERT,
    Damage,
    Picture,
    Source,
    apply_orientation,
    over_white,
)
from unet_batch.media.images.geotiff import read_geo_tags
from unet_batch.media.images.lengths import dpi_of_tiff
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.media.images.profiles import to_srgb
from unet_batch.media.images.ranges import AUTO, Range, Usage
from unet_batch.media.images.raw import RawInTiff
from unet_batch.media.images.tiff_pages import find_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage

    from unet_batch.types import Pixels

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
"""Values of the tag PhotometricInterpretation."""

_CAMERA = (32803, 34892)  # numbers behind a colour filter array, or linear light
_BYTES_PER_PIXEL = 16  # of what is decoded at once: RGB and opacity as 32-bit numbers
_GEO = (33550, 33922, 34264, 34735, 42112, 42113)  # tags of GeoTIFF and GDAL
_UNREADABLE = {10: "of ITULab colours", 32844: "of LogL light", 32845: "of LogLuv colours"}


@dataclass(frozen=True, eq=False)
class Stored:
    """The numbers of the picture in a TIFF as they are stored, but upright.

    Attributes:
        values: (h, w, bands) of any kind of integer or float: 1 band of grey or places in a palette, 3 of
            colour, 4 of CMYK.
        bits: of a number, as the file declares them.
        photometric: what they mean: one of the constants above, e.g. WHITE_IS_ZERO; YCbCr is RGB by now.
        palette: RGB uint8 (n, 3), or None.
        alpha: (h, w) of the same kind, opacity; None where there is none.
        premultiplied: colours are multiplied by it already.
        invalid: bool as `values`, True where a number stands for no value; None where all are values.
        absent: bool (h, w), True where the file holds nothing; None where it is complete.
        lossy: JPEG has changed the numbers.
        dpi: pixels per inch of the upright picture, (across, down), or None.
        notes: what people should know of how it was read.
        is_array: tifffile has written it, which stores True as 1, and asks viewers to show 0 as white.
        profile: the ICC profile of its colours, b"" without one.
        info: what outputs take over, as `metadata.outputs_metadata` takes it.
        geo: the tags that place it on Earth, as `geotiff.read_geo_tags` gives them.
    """

    values: NDArray[Any]
    bits: int
    photometric: int
    palette: Pixels | None
    alpha: NDArray[Any] | None
    premultiplied: bool
    invalid: NDArray[np.bool_] | None
    absent: NDArray[np.bool_] | None
    lossy: bool
    dpi: tuple[float, float] | None
    notes: tuple[str, ...]
    is_array: bool = False
    profile: bytes = b""
    info: Mapping[str, Any] = field(default_factory=dict)
    geo: tuple[tuple[int, Any], ...] = ()

    @property
    def missing(self) -> NDArray[np.bool_] | None:
        """Pixels that have no value in any band: bool (h, w), or None."""
        missing = self.absent
        if self.invalid is not None:
            nowhere: NDArray[np.bool_] = np.all(self.invalid, axis=-1)
            missing = nowhere if missing is None else missing | nowhere
        return missing if missing is not None and missing.any() else None

    @property
    def light(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None] | None:
        """The values that a range is for, (h, w, bands), and which are invalid; None of inks and L*a*b*."""
        if self.photometric in (CMYK, CIELAB, ICCLAB):
            return None
        values, invalid = self.values, self.invalid
        if self.palette is not None:
            index = values[..., 0].astype(np.intp if values.itemsize > 1 else np.uint8)
            values, invalid = self.palette.take(index, axis=0, mode="clip"), None
        if self.absent is not None:
            absent = np.broadcast_to(self.absent[..., None], values.shape)
            invalid = absent if invalid is None else invalid | absent
        return values, invalid

    @property
    def light_bits(self) -> int:
        """Bits of one of these values."""
        return self.bits if self.palette is None else 8

    def rgb(self, value_range: Range = AUTO) -> Pixels:
        """What a person sees, as RGB uint8 (h, w, 3): without regard to opacity; black where missing."""
        pixels = np.ascontiguousarray(self._rgb(value_range))
        if (missing := self.missing) is not None:
            pixels = np.where(missing[..., None], np.uint8(0), pixels)
        return pixels

    def _rgb(self, value_range: Range) -> Pixels:
        if self.photometric in (CIELAB, ICCLAB):
            return _lab_to_rgb(self.values, self.photometric)
        if (light := self.light) is None:
            return np.array(Image.fromarray(self.inks(), "CMYK").convert("RGB"))
        values, invalid = light
        levels = value_range.apply(values, self.light_bits, invalid)
        if self.photometric == WHITE_IS_ZERO:
            levels = 255 - levels
        if levels.shape[2] == 1:
            return cast("Pixels", cv2.cvtColor(np.ascontiguousarray(levels), cv2.COLOR_GRAY2RGB))
        return levels

    def inks(self) -> Pixels:
        """CMYK as uint8 (h, w, 4)."""
        return np.ascontiguousarray(AUTO.apply(self.values, self.bits, self.invalid))

    def opacity(self) -> Pixels | None:
        """`alpha` as uint8 (h, w), 255 opaque; None where it is opaque all over."""
        if self.alpha is None:
            return None
        if self.alpha.dtype.kind == "f":
            levels = np.nan_to_num(self.alpha, nan=0, posinf=1, neginf=0).clip(0, 1) * 255
        else:  # no minimum and maximum here: opacity has a scale of its own
            levels = self.alpha.astype(np.float64) * (255 / (2.0**self.bits - 1))
        opacity = np.rint(levels).clip(0, 255).astype(np.uint8)
        return None if (opacity == 255).all() else opacity


def read_tiff(source: Source, value_range: Range = AUTO) -> Picture:
    """Decode the picture in a TIFF; alpha is composited over white.

    Raises:
        ImageTooLarge: the directory asks for more than the source's limit.
        ImageError: it is of a kind that is not read.
        ValueError, RuntimeError, ...: it is damaged.
    """
    stored = read_stored(source)
    usage = Usage()
    picture = to_picture(stored, value_range, usage)
    return replace(picture, notes=picture.notes + usage.notes)


def to_picture(stored: Stored, value_range: Range, usage: Usage) -> Picture:
    """Make of stored numbers what `images.read` returns; how much of their range they use goes to `usage`."""
    pixels, alpha, missing, notes = to_rgb(stored, value_range, usage)
    size = (pixels.shape[0], pixels.shape[1])
    metadata, more = outputs_metadata(stored.info, dpi=stored.dpi)
    return Picture(pixels, size, missing, alpha, replace(metadata, geo=stored.geo), notes + more)


def to_rgb(
    stored: Stored, value_range: Range, usage: Usage
) -> tuple[Pixels, Pixels | None, NDArray[np.bool_] | None, tuple[str, ...]]:
    """What a person sees of a picture; or of some rows of it, each pixel by itself if the range is settled.

    Args:
        stored: the numbers.
        value_range: which of them are black and white.
        usage: is told how much of the range of their type they use, where "auto" takes all of it.

    Returns:
        RGB uint8 (h, w, 3) in sRGB and over white; uint8 (h, w), opacity, None where it is opaque; bool
        (h, w), where there is no value, None if there is one everywhere; and notes.
    """
    pixels, alpha, missing = stored.rgb(value_range), stored.opacity(), stored.missing
    notes = stored.notes
    if value_range == AUTO and stored.palette is None and stored.photometric != CMYK:
        usage.add(stored.values, 2**stored.bits - 1, stored.invalid)
    if stored.profile and stored.photometric not in (CIELAB, ICCLAB):
        grey = stored.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        inks = stored.inks() if stored.photometric == CMYK else None
        pixels, more = to_srgb(pixels[..., 0] if grey else pixels if inks is None else inks, stored.profile)
        notes += more
        if missing is not None:
            pixels[missing] = 0
    if alpha is not None:
        pixels = over_white(pixels, alpha, stored.premultiplied)
    return pixels, alpha, missing, notes


def settle(source: Source, value_range: Range, page: TiffPage, read: Callable[[], Iterator[Stored]]) -> Range:
    """The range of a picture, or a stack, that is read in parts: settled by all of them where they decide.

    Args:
        source: that it is in.
        value_range: as was chosen.
        page: the picture's, or the first one.
        read: gives the parts, anew each time it is called.

    Raises:
        ImageError: the values of the parts are of several types, or as for reading them.
    """
    photometric = photometric_of(page)
    bits = 0 if page.dtype is None or page.dtype.kind == "f" else page.bitspersample
    looks = photometric not in (CMYK, CIELAB, ICCLAB) and page.dtype is not None
    if not looks or not value_range.looks_at_values(np.dtype(page.dtype), bits):
        return value_range
    light = next(read()).light
    kind = np.dtype(np.uint8) if light is None else light[0].dtype

    def parts() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
        for stored in read():
            if (light := stored.light) is None or light[0].dtype != kind:
                raise ImageError(
                    f"{source.name}: has pages of {kind} and of {stored.values.dtype}, of which no range of "
                    "values is found together",
                    hint="give two numbers, --range 0,4095 for example",
                )
            yield light

    return value_range.settle(kind, 8 if photometric == PALETTE else bits, parts)


def read_stored(source: Source) -> Stored:
    """Decode the numbers of the picture in a TIFF.

    Raises:
        As `read_tiff`.
    """
    from tifffile import TiffFile

    with explained(source):
        return read_page(source, *find_picture(TiffFile(source.file)))


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Say of what is raised inside why a TIFF cannot be read."""
    try:
        yield
    except tiff_blocks.UnsupportedTiff as error:
        raise ImageError(f"{source.name}: TIFF {error} cannot be read", hint=CONVERT) from error
    except (TypeError, LookupError, AttributeError, ArithmeticError, struct.error) as error:
        raise Damage("its directory makes no sense") from error


def tiff_orientation(source: Source) -> int:
    """Orientation of the picture in a TIFF, 1 to 8, which `read_tiff` undoes; 1 where it says nothing."""
    from tifffile import TiffFile

    return orientation_of(find_picture(TiffFile(source.file))[0])


# What its numbers mean --------------------------------------------------------------------------------------


def read_page(
    source: Source,
    page: TiffPage,
    mask: TiffPage | None,
    notes: list[str],
    rows: range | None = None,
    each: tiff_blocks.Each = map,
    chosen: list[int] | None = None,
) -> Stored:
    """Decode the bands of a page that make the picture.

    Args:
        source, page, mask, notes: that it is in; as `find_picture` gives them.
        rows: which rows, whose size has been checked; None for all.
        each: as for `tiff_blocks.read_blocks`.
        chosen: bands to take instead, by their numbers from 0, in this order.
    """
    photometric = photometric_of(page)
    bands, alpha, more = choose_bands(page, photometric) if chosen is None else (chosen, None, [])
    wanted = bands if alpha is None else [*bands, alpha]
    if rows is None:
        for there, count in ((page, len(wanted)), *([] if mask is None else [(mask, 1)])):
            check_size(source, there, count)
    sparse = any(tag in page.tags for tag in _GEO)
    values, absent = tiff_blocks.read_blocks(page, source.file, wanted, sparse=sparse, rows=rows, each=each)
    if mask is not None:
        inside, _ = tiff_blocks.read_blocks(mask, source.file, [0], sparse=sparse, rows=rows, each=each)
        outside = inside[..., 0] == 0
        absent = outside if absent is None else absent | outside
    orientation = orientation_of(page)
    values = _upright(values, orientation)
    colours = values[..., : len(bands)] if alpha is not None else values
    if photometric == YCBCR or (photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and len(bands) == 3):
        photometric = RGB
    return Stored(
        colours,
        page.bitspersample if page.dtype is not None and page.dtype.kind != "f" else 0,
        photometric,
        _palette(page) if photometric == PALETTE else None,
        values[..., -1] if alpha is not None else None,
        alpha is not None and 1 in page.extrasamples,
        _invalid(colours, page.tags.valueof(42113)),
        None if absent is None else _upright(absent, orientation),
        int(page.compression) in tiff_blocks.JPEG,
        resolution_of(page),
        (*notes, *more),
        page.is_shaped or page.software.startswith("tifffile"),
        bytes_of(page, 34675),
        {"words": words_of(page), "xmp": bytes_of(page, 700)},
        # They speak of the pixels as they are stored
        read_geo_tags(page) if orientation == 1 else (),
    )


def bytes_of(page: TiffPage, tag: int) -> bytes:
    value = page.tags.valueof(tag)
    return value if isinstance(value, bytes) else b""


def words_of(page: TiffPage) -> dict[int, bytes]:
    """Maker, model, program, time, artist and copyright, by their tags."""
    texts = {tag: page.tags.valueof(tag) for tag in (271, 272, 305, 306, 315, 33432)}
    return {tag: text.encode() for tag, text in texts.items() if isinstance(text, str) and text}


def check_size(source: Source, page: TiffPage, bands: int) -> None:
    """Check what a page announces: its size, and that of its blocks, which are decoded whole."""
    source.check_size(page.imagelength, page.imagewidth)
    if page.is_tiled:
        source.check_size(page.tilelength, page.tilewidth)
    number = page.dtype.itemsize if page.dtype is not None else 0
    size = number * max(page.imagelength * page.imagewidth * bands, tiff_blocks.block_size(page))
    if size > (limit := _BYTES_PER_PIXEL * source.max_pixels):
        raise ImageTooLarge(
            f"{source.name}: {page.imagelength}x{page.imagewidth} (height x width) with "
            f"{page.samplesperpixel} bands of {number} bytes: {size:,} bytes to be decoded at once, the "
            f"limit is {limit:,}",
            hint="save it with fewer bands, or in strips or tiles",
        )


def photometric_of(page: TiffPage) -> int:
    """What the numbers mean; where a page does not say, as libtiff guesses."""
    if 262 not in page.tags and page.compression != 6:
        if page.samplesperpixel >= 3:
            return RGB
        return WHITE_IS_ZERO if page.compression in (2, 3, 4) else BLACK_IS_ZERO
    if (photometric := int(page.photometric)) in _CAMERA:
        raise RawInTiff
    if photometric in _UNREADABLE:
        raise tiff_blocks.UnsupportedTiff(_UNREADABLE[photometric])
    if photometric in (4, 51177, 52527):  # a mask, a map of depth, a map of things
        return BLACK_IS_ZERO
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB):
        raise tiff_blocks.UnsupportedTiff(f"of an unknown kind (PhotometricInterpretation {photometric})")
    return photometric


def choose_bands(page: TiffPage, photometric: int) -> tuple[list[int], int | None, list[str]]:
    """Choose the bands that are the picture: their numbers, that of opacity or None, and a note.

    Colour takes as many as it has. Of grey pictures with more bands, three or more are taken for colour, as
    microscopes and satellites store it; other bands than these are left out.
    """
    count, extra = page.samplesperpixel, [int(kind) for kind in page.extrasamples]
    if photometric == RGB and count == 4 and 338 not in page.tags:
        extra = [2]  # older writers do not say what the fourth is; viewers take it for opacity
    alpha = next((count - len(extra) + at for at, kind in enumerate(extra) if kind in (1, 2)), None)
    bands = [band for band in range(count) if band != alpha]
    needed = {RGB: 3, YCBCR: 3, CIELAB: 3, ICCLAB: 3, CMYK: 4, PALETTE: 1}.get(photometric)
    if needed is None:
        needed = 3 if len(bands) >= 3 else 1
    if photometric == CMYK and page.tags.valueof(332) == 2:  # InkSet
        raise tiff_blocks.UnsupportedTiff("of other inks than cyan, magenta, yellow and black")
    if len(bands) < needed:
        raise Damage(f"{needed} bands are needed, {len(bands)} are there")
    notes = []
    if len(bands) > needed:
        taken = {1: "the first is read", 3: "the first three are read as red, green and blue"}
        notes.append(f"{len(bands)} bands: {taken.get(needed, f'the first {needed} are read')}")
    return bands[:needed], alpha, notes


def _palette(page: TiffPage) -> Pixels:
    """The page's palette as RGB uint8 (n, 3).

    Its numbers have 16 bits, of which the upper 8 are the colour, whether a writer stored v * 256 or v * 257;
    older writers stored v itself.
    """
    colours = np.asarray(page.tags.valueof(320) if 320 in page.tags else (), np.uint16).reshape(-1)
    if colours.size < 3:
        raise Damage("its colours are a palette, and there is none")
    colours = colours[: colours.size // 3 * 3].reshape(3, -1).T
    return np.ascontiguousarray(colours if colours.max() < 256 else colours >> 8).astype(np.uint8)


def _invalid(values: NDArray[Any], nodata: object) -> NDArray[np.bool_] | None:
    """Find the numbers that stand for no value: NaN, infinity, and GDAL's nodata.

    Args:
        values: of any kind.
        nodata: what GDAL_NODATA says: a number as text. One that the kind of `values` cannot hold stands for
            nothing.
    """
    invalid = ~np.isfinite(values) if values.dtype.kind == "f" else None
    number = None
    with suppress(ValueError, OverflowError):
        text = str(nodata).strip(" \0").replace(",", ".")
        number = float(text) if values.dtype.kind == "f" else _whole(text)
    if number is not None and values.dtype.kind != "b":
        if values.dtype.kind == "f":
            with np.errstate(all="ignore"):
                found = values == values.dtype.type(number)
                if abs(number) > 1e30:  # the largest float, written with as many digits as somebody cared for
                    found |= np.isclose(values, values.dtype.type(number), rtol=1e-5, atol=0)
        elif np.iinfo(values.dtype).min <= number <= np.iinfo(values.dtype).max:
            found = values == values.dtype.type(number)
        else:
            return invalid
        invalid = found if invalid is None else invalid | found
    return invalid if invalid is not None and invalid.any() else None


def _whole(text: str) -> int | None:
    """The integer that a text like "-9999" or "255.0" stands for."""
    with suppress(ValueError):
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() else None


def orientation_of(page: TiffPage) -> int:
    value = page.tags.valueof(274)
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an array upright.

    cv2 turns numbers of any size, but not of any kind: it takes int64 for int32, without a word.
    """
    if orientation == 1:
        return values
    carrier = np.dtype({1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.float64}[values.itemsize])
    turned = apply_orientation(np.ascontiguousarray(values).view(carrier), orientation)
    return turned.view(values.dtype).reshape(*turned.shape[:2], *values.shape[2:])


def resolution_of(page: TiffPage) -> tuple[float, float] | None:
    """Pixels per inch of the upright picture, (across, down), where the page or its file says so."""
    with suppress(TypeError, ValueError, ZeroDivisionError):
        per_unit = tuple(a / b for a, b in (page.tags.valueof(282, (0, 1)), page.tags.valueof(283, (0, 1))))
        inch = {2: 1.0, 3: 2.54}.get(int(page.tags.valueof(296, 2)))
        dpi = dpi_of_tiff(page.parent, per_unit)
        if dpi is None and inch and min(per_unit) > 0:
            dpi = per_unit[0] * inch, per_unit[1] * inch
        if dpi is not None:
            return dpi if orientation_of(page) < 5 else dpi[::-1]
    return None


# Colour -----------------------------------------------------------------------------------------------------


def _lab_to_rgb(values: NDArray[Any], photometric: int) -> Pixels:
    """Convert L*a*b* of 8 or 16 bits to sRGB, by Little CMS with 8 bits."""
    from PIL import ImageCms

    if values.dtype.kind not in "ui" or values.itemsize > 2:
        raise tiff_blocks.UnsupportedTiff(f"of L*a*b* in {values.dtype}")
    lab = values.view(np.dtype(f"u{values.itemsize}"))
    lab = (lab >> (8 * (values.itemsize - 1))).astype(np.uint8)
    if photometric == ICCLAB:  # a* and b* are signed in CIELab, which Pillow expects; here, shifted by 128
        lab[..., 1:] ^= 128
    picture = Image.frombytes("LAB", (lab.shape[1], lab.shape[0]), np.ascontiguousarray(lab).tobytes())
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return np.array(ImageCms.profileToProfile(picture, *profiles, outputMode="RGB"), np.uint8)
