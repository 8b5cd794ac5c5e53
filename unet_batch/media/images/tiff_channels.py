"""Channels of a TIFF, by their numbers: the bands of a page, or of several pages where they are an axis.

ImageJ and OME write a page for each channel, as for each depth and time. Read by channels, those pages are
one picture of several bands, and only the other axes count as pages.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from unet_batch.media.images import tiff, tiff_blocks, tiff_pages
from unet_batch.media.images.common import Damage, Picture, Source, check_channels
from unet_batch.media.images.geotiff import read_geo_tags
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.media.images.ranges import Range, scale_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffFile, TiffPage

    from unet_batch.types import Channels, Pixels, Size

    Plane = tuple[int, int]  # the number of a directory, and how many bytes behind its pixels they begin
    Levels = tuple[Pixels, NDArray[np.bool_] | None, tuple[str, ...]]


def list_planes(tif: TiffFile) -> list[Plane]:
    """The number of the directory of each plane, and how many bytes behind its first one it lies.

    ImageJ writes one directory for a stack of more than 4 GB. Copies of another size are left out.
    """
    count = tiff_pages.count_pages(tif)
    first, _, _ = tiff_pages.find_picture(tif)
    if count == 1 and (planes := tiff_pages.stacked(first)) > 1:
        size = first.imagelength * first.imagewidth * first.samplesperpixel * first.dtype.itemsize  # type: ignore[union-attr]
        return [(first.index, number * size) for number in range(planes)]
    found = []
    for at in range(count):
        page = cast("TiffPage", tif.pages[at])
        if not page.subfiletype & 5 and not tiff_pages.is_thumbnail(page, first):
            found.append((at, 0))
    return found or [(first.index, 0)]


def list_pages(tif: TiffFile) -> list[list[Plane]]:
    """The planes of each page, in the order of their channels; one where these are no axis of the file."""
    planes = list_planes(tif)
    if len(planes) > 1 and (found := describe_axes(tif, len(planes))) is not None:
        shape, axes = found
        if "C" in axes:
            at = axes.index("C")
            grid: NDArray[np.intp] = np.moveaxis(np.arange(len(planes)).reshape(shape[:-2]), at, -1)
            return [[planes[number] for number in page] for page in grid.reshape(-1, shape[at])]
    return [[plane] for plane in planes]


def describe_axes(tif: TiffFile, planes: int) -> tuple[tuple[int, ...], str] | None:
    """Shape and axes of a stack of so many planes, without samples; None where the file does not say."""
    if not (tif.is_ome or tif.is_imagej or tif.is_shaped):
        return None
    series = tif.series[0]
    axes = series.axes.removesuffix("S")
    shape = tuple(series.shape[: len(axes)])
    return (shape, axes) if axes.endswith("YX") and int(np.prod(shape[:-2])) == planes else None


def page_of(tif: TiffFile, plane: Plane) -> TiffPage:
    """The directory of a plane, its pixels where the plane has them."""
    at, shift = plane
    page = tif.pages[at].aspage()  # what describes the axes leaves less than a page
    if shift:
        page = copy.copy(page)
        page.dataoffsets = tuple(offset + shift for offset in page.dataoffsets)
    return page


def find_channels(tif: TiffFile) -> tuple[list[TiffPage], TiffPage | None]:
    """The directories whose bands, one behind the other, are the channels of the picture; and its mask."""
    first, mask, _ = tiff_pages.find_picture(tif)
    page = list_pages(tif)[0]
    return ([first] if len(page) == 1 else [page_of(tif, plane) for plane in page]), mask


def count_channels(pages: Sequence[TiffPage]) -> int:
    """How many bands some directories have."""
    return sum(page.samplesperpixel for page in pages)


def natural_channels(source: Source) -> Channels | None:
    """Which channels are more than a person sees: see `decode.natural_channels`."""
    from tifffile import TiffFile

    pages, _ = find_channels(TiffFile(source.file))
    count = count_channels(pages)
    if len(pages) > 1:
        return tuple(range(1, count + 1))
    photometric = tiff.photometric_of(pages[0])
    _, alpha, _ = tiff.choose_bands(pages[0], photometric)
    if photometric not in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.RGB):
        return None
    opaque = tuple(band + 1 for band in range(count) if band != alpha)
    return None if len(opaque) in (1, 3) else opaque


def read_tiff_channels(source: Source, channels: Channels, value_range: Range) -> Picture:
    """Decode channels of the picture in a TIFF, as `decode.read`."""
    from tifffile import TiffFile

    with tiff.explained(source):
        pages, mask = find_channels(TiffFile(source.file))
        return read_channels(source, pages, mask, channels, [value_range] * len(channels))


def read_channels(
    source: Source,
    pages: Sequence[TiffPage],
    mask: TiffPage | None,
    channels: Channels,
    ranges: Sequence[Range],
) -> Picture:
    """Decode channels of the picture that some directories are, as `decode.read`."""
    tiff.check_size(source, pages[0], len(channels))
    pixels, missing, notes = read_rows(source, pages, mask, channels, ranges)
    first = pages[0]
    info = {"words": tiff.words_of(first), "xmp": tiff.bytes_of(first, 700)}
    metadata, more = outputs_metadata(info, dpi=tiff.resolution_of(first))
    if tiff.orientation_of(first) == 1:
        metadata = replace(metadata, geo=read_geo_tags(first))
    size: Size = (pixels.shape[0], pixels.shape[1])
    return Picture(pixels, size, missing, None, metadata, notes + more)


def read_rows(
    source: Source,
    pages: Sequence[TiffPage],
    mask: TiffPage | None,
    channels: Channels,
    ranges: Sequence[Range],
    rows: range | None = None,
    each: tiff_blocks.Each = map,
) -> Levels:
    """Decode channels of the picture that some directories are, or some rows of it.

    Args:
        source: that they are in.
        pages, mask: as `find_channels` gives them.
        channels: which ones.
        ranges: which values are black and white in each.
        rows, each: as for `tiff.read_page`.

    Returns:
        uint8 (h, w, channels); bool (h, w), where none of them has a value, None if one has everywhere; and
        notes.
    """
    notes = check_channels(count_channels(pages), channels, source.name)
    places = [(page, band) for page in pages for band in range(page.samplesperpixel)]
    levels: Pixels | None = None
    nowhere: list[NDArray[np.bool_] | None] = []
    for page in pages:
        into = [at for at, channel in enumerate(channels) if places[channel - 1][0] is page]
        if not into:
            continue
        bands = [places[channels[at] - 1][1] for at in into]
        stored = tiff.read_page(source, page, mask, [], rows, each, bands)
        if levels is None:
            levels = np.empty((*stored.values.shape[:2], len(channels)), np.uint8)
        elif levels.shape[:2] != stored.values.shape[:2]:
            raise Damage("its channels are not of one size")
        of_these = [ranges[at] for at in into]
        levels[..., into] = scale_channels(stored.values, stored.bits, stored.invalid, of_these)
        nowhere.append(stored.missing)
    assert levels is not None, "there is no channel"
    found = [missing for missing in nowhere if missing is not None]
    if len(found) < len(nowhere):
        return levels, None, notes
    missing: NDArray[np.bool_] = np.logical_and.reduce(found)
    if not missing.any():
        return levels, None, notes
    levels[missing] = 0
    return levels, missing, notes


def settle_channels(
    source: Source,
    value_range: Range,
    pictures: Sequence[Sequence[TiffPage]],
    mask: TiffPage | None,
    channels: Channels,
    tops: range | None = None,
    each: tiff_blocks.Each = map,
) -> list[Range]:
    """The range of each channel of pictures, or of one in bands: settled by all of it where values decide.

    Args:
        source: that they are in.
        value_range: as was chosen.
        pictures: the directories of each, as `find_channels` gives them.
        mask, channels, each: as for `read_rows`.
        tops: the first rows of the bands; None for all at once.
    """
    height = pictures[0][0].imagelength

    def read(channel: int) -> Iterator[tiff.Stored]:
        for pages in pictures:
            check_channels(count_channels(pages), channels, source.name)
            page, band = [(page, band) for page in pages for band in range(page.samplesperpixel)][channel - 1]
            for top in tops or (None,):
                rows = None if top is None or tops is None else range(top, min(height, top + tops.step))
                with tiff.explained(source):
                    yield tiff.read_page(source, page, mask, [], rows, each, [band])

    def settle(channel: int) -> Range:
        first = next(read(channel))
        parts = lambda: ((stored.values, stored.invalid) for stored in read(channel))  # noqa: E731
        return value_range.settle(first.values.dtype, first.bits, parts)

    if value_range.kind in ("dtype", "fixed"):
        return [value_range] * len(channels)
    return [settle(channel) for channel in channels]
