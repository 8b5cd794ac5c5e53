"""Read a TIFF or OME-Zarr too large for memory in bands of rows, each pixel as it is read of the whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media.images import ome_zarr, tiff, tiff_blocks, tiff_pages
from unet_batch.media.images.common import Damage, Source, open_source
from unet_batch.media.images.geotiff import read_geo_tags
from unet_batch.media.images.ranges import AUTO, Range, Usage
from unet_batch.media.images.tiff_channels import find_channels, read_rows, settle_channels
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage

    from unet_batch.types import Channels, Pixels, Size

_BAND = 2**25  # bytes of numbers that are read at once, where blocks allow
_LARGEST_BAND = 2**29  # bytes of a row of blocks at most, which have to be decoded together
_TILE_IT = "save it in tiles, with GDAL: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT"


@dataclass(frozen=True, eq=False)
class Band:
    """Some rows of a picture.

    Attributes:
        pixels: RGB uint8 (n, width, 3), or the channels that were chosen.
        missing: bool (n, width), True where the file says that it has no value; None where there is one.
        notes: what people should know of how it was read.
    """

    pixels: Pixels
    missing: NDArray[np.bool_] | None
    notes: tuple[str, ...]


def measure(path: str, channels: Channels | None = None) -> tuple[Size, int] | None:
    """Look into the directory of a TIFF, or the metadata of an OME-Zarr.

    Returns:
        (height, width) of the picture, and the bytes of its numbers and of its pixels, which reading it, or
        channels of it, as a whole takes; None of what is neither, or cannot be read.
    """
    from tifffile import TiffFile

    with suppress(ImageError), open_source(path, sys.maxsize) as source:
        if source.format.name == "OME-Zarr":
            return ome_zarr.measure_volume(source, channels)
        if source.format.name == "TIFF":
            with tiff.explained(source):
                page, _, _ = tiff_pages.find_picture(TiffFile(source.file))
                area, number = page.imagelength * page.imagewidth, page.dtype.itemsize if page.dtype else 0
                bands, kept = (len(channels),) * 2 if channels else (_count_bands(page), 3)
                return (page.imagelength, page.imagewidth), area * (kept + number * bands)
    return None


def read_place(path: str) -> Metadata:
    """Where a picture is on Earth, and its resolution. Raises ImageError as `images.read`."""
    from tifffile import TiffFile

    with open_source(path, sys.maxsize) as source, tiff.explained(source):
        if source.format.name == "OME-Zarr":
            return ome_zarr.open_volume(source).metadata
        page, _, _ = tiff_pages.find_picture(TiffFile(source.file))
        return Metadata(dpi=tiff.resolution_of(page), geo=read_geo_tags(page))


def read_bands(
    path: str,
    size: Size,
    workers: int = 1,
    value_range: Range = AUTO,
    channels: Channels | None = None,
) -> Iterator[Band]:
    """Decode a picture from top to bottom.

    Where its values decide what is black and white in it, all of it is read before: once for minimum and
    maximum, and once for each two bytes of a value for percentiles; of chosen channels each by itself.

    Args:
        path: a regular file.
        size: (height, width) of the picture, as `measure` has found it.
        workers: how many strips or tiles are decoded at once.
        value_range: which values are black and white.
        channels: as for `images.read`.

    Raises:
        ImageTooLarge: it is stored in a way of which no part can be read by itself; the hint says what to do.
        ImageError: as for `images.read`.
    """
    from tifffile import TiffFile

    with open_source(path, sys.maxsize) as source, ThreadPoolExecutor(workers) as pool:
        if source.format.name == "OME-Zarr":
            yield from (
                Band(*band)
                for band in ome_zarr.read_volume_bands(source, size, _LARGEST_BAND, value_range, channels)
            )
            return
        with tiff.explained(source):
            tif = TiffFile(source.file)
            page, mask, notes = tiff_pages.find_picture(tif)
            if (page.imagelength, page.imagewidth) != size:
                raise Damage("it was changed while it was read")
            pages = find_channels(tif)[0] if channels else [page]
            step = min(_rows_at_once(source, each, channels) for each in pages)
            if mask is not None:
                _check_blocks(source, mask, 1)
        tops = range(0, size[0], step)
        if channels:
            ranges = settle_channels(source, value_range, [pages], mask, channels, tops, pool.map)
            for top in tops:
                with tiff.explained(source):
                    rows = range(top, min(size[0], top + step))
                    yield Band(*read_rows(source, pages, mask, channels, ranges, rows, pool.map))
            return

        def read() -> Iterator[tiff.Stored]:
            for top in tops:
                rows = range(top, min(size[0], top + step))
                with tiff.explained(source):
                    yield tiff.read_page(source, page, mask, notes, rows, pool.map)

        value_range, usage, rows_left = tiff.settle(source, value_range, page, read), Usage(), size[0]
        for stored in read():
            with tiff.explained(source):
                pixels, _, missing, said = tiff.to_rgb(stored, value_range, usage)
            rows_left -= len(pixels)
            yield Band(pixels, missing, said if rows_left else said + usage.notes)


def _rows_at_once(source: Source, page: TiffPage, channels: Channels | None) -> int:
    """How many rows are a band.

    Raises:
        ImageTooLarge: none can be.
    """
    tiff_blocks.check_compression(page)
    height, width = page.imagelength, page.imagewidth
    what = f"{source.name}: {height}x{width} (height x width) is read in bands of rows, and"
    if (turn := tiff.orientation_of(page)) != 1:
        raise ImageTooLarge(
            f"{what} its orientation ({turn}) asks to turn it",
            hint="turn its pixels, and save it with orientation 1",
        )
    if page.compression == 6 and 513 in page.tags:
        raise ImageTooLarge(f"{what} it is one old-style JPEG", hint=_TILE_IT)
    block, size = _check_blocks(source, page, len(channels) if channels else _count_bands(page))
    return block * max(1, _BAND // size)


def _check_blocks(source: Source, page: TiffPage, bands: int) -> tuple[int, int]:
    """Rows that have to be decoded together, and their bytes.

    Raises:
        ImageTooLarge: that is too much.
    """
    height, width = page.imagelength, page.imagewidth
    rows = tiff_blocks.block_rows(page, source.file)
    size = rows * width * bands * (page.dtype.itemsize if page.dtype is not None else 1)
    if size > _LARGEST_BAND:
        raise ImageTooLarge(
            f"{source.name}: {height}x{width} (height x width) is read in bands of rows, and its strips or "
            f"tiles have {rows:,} of them: {size:,} bytes at once, the limit is {_LARGEST_BAND:,}",
            hint=_TILE_IT,
        )
    return rows, size


def _count_bands(page: TiffPage) -> int:
    """How many bands are decoded."""
    bands, alpha, _ = tiff.choose_bands(page, tiff.photometric_of(page))
    return len(bands) + (alpha is not None)
