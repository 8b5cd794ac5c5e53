"""Pictures of several pages: the pages of a TIFF, the planes of an OME-TIFF or ImageJ stack, the frames of an
animation, read one after the other; and stacks of results, written in the same shape.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from unet_batch.errors import ImageError
from unet_batch.media.images import tiff
from unet_batch.media.images.common import MAX_PIXELS, Picture, Source, choose_channels, open_source
from unet_batch.media.images.decode import open_image, stored_values, to_picture
from unet_batch.media.images.dicom import count_frames, read_frames, read_header
from unet_batch.media.images.ome_zarr import open_volume, read_volume_pages
from unet_batch.media.images.ranges import AUTO, Range, Usage
from unet_batch.media.images.tiff_channels import (
    describe_axes,
    list_pages,
    list_planes,
    page_of,
    read_channels,
    settle_channels,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile
    from tifffile import TiffFile

    from unet_batch.types import Channels

_BIG = 3_900_000_000  # bytes of a stack from which offsets of 32 bits may not do


@dataclass(frozen=True)
class Stack:
    """What a picture of several pages is, by its headers.

    Attributes:
        count: of pages.
        shape, axes: of the stack without samples, with the letters of OME: (5, 2, 40, 512, 512), "TCZYX";
            () and "" where the file says nothing of it.
        form: "ome", "imagej" or "".
    """

    count: int
    shape: tuple[int, ...] = ()
    axes: str = ""
    form: str = ""


def look_at_pages(path: str, *, max_pixels: int = MAX_PIXELS, channels: Channels | None = None) -> Stack:
    """How many pages a picture has, from its headers; a picture like most others has one.

    Where channels are chosen, those that ImageJ and OME have as an axis are no pages.

    Raises:
        ImageError: as for `read`.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "TIFF":
            from tifffile import TiffFile

            with tiff.explained(source):
                return _describe(TiffFile(source.file), channels)
        if source.format.name == "OME-Zarr":
            volume = open_volume(source)
            shape, axes = (*volume.outer, *volume.size), volume.axes.replace("c", "").upper()
            return Stack(volume.count, shape, axes, "ome") if volume.count > 1 else Stack(1)
        return Stack(count_frames(read_header(source)) if source.format.name == "DICOM" else _frames(source))


def read_pages(
    path: str,
    choose: Callable[[int], range],
    *,
    max_pixels: int = MAX_PIXELS,
    value_range: Range = AUTO,
    channels: Channels | None = None,
) -> Generator[Picture, None, None]:
    """Decode some pages of a picture, in order; each as `read` decodes the first, but all in one range.

    Where values decide what is black and white, those of all these pages do, which are then read before: once
    for minimum and maximum, and once for each two bytes of a value for percentiles.

    Args:
        path: a regular file.
        choose: given how many pages there are, says which; counted from 0.
        max_pixels: largest height x width that is decoded.
        value_range: which values are black and white.
        channels: as for `read`.

    Raises:
        ImageTooLarge: a page has more than `max_pixels`.
        ImageError: as for `read`, when its turn comes; or there are no such pages.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "TIFF":
            yield from _read_tiff(source, choose, value_range, channels)
            return
        if source.format.name == "OME-Zarr":
            numbers_of = partial(_chosen, source, choose)
            yield from read_volume_pages(source, numbers_of, value_range, channels)
            return
        if source.format.name == "DICOM":
            count = count_frames(read_header(source))
            for picture in read_frames(source, _chosen(source, choose, count), value_range):
                if channels:
                    picture = replace(picture, pixels=choose_channels(picture.pixels, channels, path))
                yield picture
            return
        numbers = _chosen(source, choose, _frames(source))
        if value_range != AUTO:  # which for frames, of 8 or 16 bits, is that of their type
            values, bits, _ = stored_values(next(_load(source, numbers)))

            def parts() -> Iterator[tuple[NDArray[Any], None]]:
                return ((stored_values(image)[0], None) for image in _load(source, numbers))

            value_range = value_range.settle(values.dtype, bits, parts)
        for image in _load(source, numbers):
            yield to_picture(image, value_range=value_range, channels=channels, name=path)


def _load(source: Source, numbers: range) -> Iterator[ImageFile]:
    """Frames of an animation, one after the other."""
    source.file.seek(0)
    image = open_image(source)
    for number in numbers:
        image.seek(number)
        source.check_size(image.height, image.width)
        image.load()
        yield image


def _chosen(source: Source, choose: Callable[[int], range], count: int) -> range:
    if not (numbers := choose(count)):
        raise ImageError(f"{source.name}: has {count:,} pages, none of those that were asked for")
    return numbers


def _frames(source: Source) -> int:
    """Frames of an animation; 1 of what is none, or of layers and thumbnails."""
    if source.format.name not in ("GIF", "WebP", "PNG", "AVIF"):
        return 1
    return int(getattr(open_image(source), "n_frames", 1))


# TIFF -------------------------------------------------------------------------------------------------------


def _read_tiff(
    source: Source, choose: Callable[[int], range], value_range: Range, channels: Channels | None
) -> Generator[Picture, None, None]:
    from tifffile import TiffFile

    with tiff.explained(source):
        tif = TiffFile(source.file)
        if channels:
            pages = [[page_of(tif, plane) for plane in page] for page in list_pages(tif)]
            chosen = [pages[number] for number in _chosen(source, choose, len(pages))]
            ranges = settle_channels(source, value_range, chosen, None, channels)
            for page in chosen:
                yield read_channels(source, page, None, channels, ranges)
            return
        planes = list_planes(tif)
        numbers = _chosen(source, choose, len(planes))

        def read() -> Iterator[tiff.Stored]:
            for number in numbers:
                yield tiff.read_page(source, page_of(tif, planes[number]), None, [])

        value_range = tiff.settle(source, value_range, page_of(tif, planes[numbers[0]]), read)
        usage = Usage()
        for number, stored in zip(numbers, read(), strict=True):
            picture = tiff.to_picture(stored, value_range, usage)
            last = number == numbers[-1]
            yield replace(picture, notes=picture.notes + usage.notes) if last else picture


def _describe(tif: TiffFile, channels: Channels | None) -> Stack:
    pages = list_pages(tif) if channels else [[plane] for plane in list_planes(tif)]
    count, planes = len(pages), sum(map(len, pages))
    form = "ome" if tif.is_ome else "imagej" if tif.is_imagej else ""
    if count > 1 and form and (found := describe_axes(tif, planes)) is not None:
        shape, axes = found
        if channels and "C" in axes:
            at = axes.index("C")
            shape, axes = shape[:at] + shape[at + 1 :], axes[:at] + axes[at + 1 :]
        return Stack(count, shape, axes, form)
    return Stack(count)


class StackWriter:
    """Writes pages one after the other into a TIFF, deflated; a context manager that closes it.

    Args:
        path: of the file.
        like: what the stack was made of, all of it: its axes are written, too. One without any for a part.
        size: bytes of all pages, about: from 4 GB on it is a BigTIFF.
    """

    def __init__(self, path: str, like: Stack, size: int) -> None:
        from tifffile import TiffWriter

        self._like, self._first = like, True
        self._file = TiffWriter(path, bigtiff=size > _BIG)

    def __enter__(self) -> StackWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, page: NDArray[Any], dpi: tuple[float, float] | None) -> None:
        """Write a page: grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4); its resolution if it has one.

        Raises:
            OSError: it cannot be written.
        """
        colour = page.ndim == 3
        about: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
        self._file.write(
            page,
            photometric="rgb" if colour else "minisblack",
            extrasamples=["unassalpha"] if colour and page.shape[2] == 4 else None,
            compression="zlib",
            predictor=False,
            contiguous=False,
            metadata=None,
            software="unet-batch",
            description=self._description(page) if self._first else None,
            **about,
        )
        self._first = False

    def _description(self, page: NDArray[Any]) -> str | bytes | None:
        """What says which page is which, for readers of OME-TIFF and for ImageJ."""
        from tifffile import OmeXml, imagej_description

        like, samples = self._like, page.shape[2:]
        if not like.axes or page.shape[:2] != like.shape[-2:]:
            return None
        shape, axes = (*like.shape, *samples), like.axes + "S" * len(samples)
        if like.form == "imagej":
            return imagej_description(shape, axes, rgb=bool(samples)) if set(axes) <= set("TZCYXS") else None
        # Equal stacks are equal files
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{shape} {axes} {page.dtype}")
        described = OmeXml(UUID=f"urn:uuid:{identity}", Creator="unet-batch")
        stored = (like.count, 1, 1, *page.shape[:2], *(samples or (1,)))
        described.addimage(page.dtype, shape, cast("tuple[int, int, int, int, int, int]", stored), axes=axes)
        return described.tostring()
