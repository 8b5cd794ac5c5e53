"""Pictures of several pages: the pages of a TIFF, the planes of an OME-TIFF or ImageJ stack, the frames of an
animation, read one after the other; and stacks of results, written in the same shape.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from unet_batch.errors import ImageError
from unet_batch.media.images import tiff, tiff_pages
from unet_batch.media.images.common import MAX_PIXELS, Picture, Source, open_source
from unet_batch.media.images.decode import open_image, stored_values, to_picture
from unet_batch.media.images.dicom import count_frames, read_frames, read_header
from unet_batch.media.images.ome_zarr import open_volume, read_volume_pages
from unet_batch.media.images.ranges import AUTO, Range, Usage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile
    from tifffile import TiffFile, TiffPage


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


def look_at_pages(path: str, *, max_pixels: int = MAX_PIXELS) -> Stack:
    """How many pages a picture has, from its headers; a picture like most others has one.

    Raises:
        ImageError: as for `read`.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "TIFF":
            from tifffile import TiffFile

            with tiff.explained(source):
                return _describe(TiffFile(source.file))
        if source.format.name == "OME-Zarr":
            volume = open_volume(source)
            shape, axes = (*volume.outer, *volume.size), volume.axes.replace("c", "").upper()
            return Stack(volume.count, shape, axes, "ome") if volume.count > 1 else Stack(1)
        return Stack(count_frames(read_header(source)) if source.format.name == "DICOM" else _frames(source))


def read_pages(
    path: str, choose: Callable[[int], range], *, max_pixels: int = MAX_PIXELS, value_range: Range = AUTO
) -> Generator[Picture, None, None]:
    """Decode some pages of a picture, in order; each as `read` decodes the first, but all in one range.

    Where values decide what is black and white, those of all these pages do, which are then read before: once
    for minimum and maximum, and once for each two bytes of a value for percentiles.

    Args:
        path: a regular file.
        choose: given how many pages there are, says which; counted from 0.
        max_pixels: largest height x width that is decoded.
        value_range: which values are black and white.

    Raises:
        ImageTooLarge: a page has more than `max_pixels`.
        ImageError: as for `read`, when its turn comes; or there are no such pages.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "TIFF":
            yield from _read_tiff(source, choose, value_range)
            return
        if source.format.name == "OME-Zarr":
            yield from read_volume_pages(source, lambda count: _chosen(source, choose, count), value_range)
            return
        if source.format.name == "DICOM":
            count = count_frames(read_header(source))
            yield from read_frames(source, _chosen(source, choose, count), value_range)
            return
        numbers = _chosen(source, choose, _frames(source))
        if value_range != AUTO:  # which for frames, of 8 or 16 bits, is that of their type
            values, bits, _ = stored_values(next(_load(source, numbers)))

            def parts() -> Iterator[tuple[NDArray[Any], None]]:
                return ((stored_values(image)[0], None) for image in _load(source, numbers))

            value_range = value_range.settle(values.dtype, bits, parts)
        for image in _load(source, numbers):
            yield to_picture(image, value_range=value_range)


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
    source: Source, choose: Callable[[int], range], value_range: Range
) -> Generator[Picture, None, None]:
    from tifffile import TiffFile

    with tiff.explained(source):
        tif = TiffFile(source.file)
        planes = _planes(tif)
        numbers = _chosen(source, choose, len(planes))

        def read() -> Iterator[tiff.Stored]:
            for number in numbers:
                at, shift = planes[number]
                page = cast("TiffPage", tif.pages[at])
                if shift:
                    page = copy.copy(page)
                    page.dataoffsets = tuple(offset + shift for offset in page.dataoffsets)
                yield tiff.read_page(source, page, None, [])

        first = cast("TiffPage", tif.pages[planes[numbers[0]][0]])
        value_range = tiff.settle(source, value_range, first, read)
        usage = Usage()
        for number, stored in zip(numbers, read(), strict=True):
            picture = tiff.to_picture(stored, value_range, usage)
            last = number == numbers[-1]
            yield replace(picture, notes=picture.notes + usage.notes) if last else picture


def _planes(tif: TiffFile) -> list[tuple[int, int]]:
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


def _describe(tif: TiffFile) -> Stack:
    count = len(_planes(tif))
    form = "ome" if tif.is_ome else "imagej" if tif.is_imagej else ""
    if count > 1 and form:
        series = tif.series[0]
        axes = series.axes.removesuffix("S")
        shape = tuple(series.shape[: len(axes)])
        if axes.endswith("YX") and int(np.prod(shape[:-2])) == count:
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
