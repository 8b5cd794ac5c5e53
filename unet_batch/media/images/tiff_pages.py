"""Find the picture among the pages of a TIFF.

A TIFF is a container, in which the picture is found by these rules:

1. Pages that say of themselves that they are a reduced copy, or a mask, of another one do not count
   (NewSubfileType), unless there is no other.
2. A page of the same shape, a quarter as wide and high or less, is a thumbnail of the larger one, whatever it
   says, wherever it stands: among the SubIFDs (of camera files), before or after it.
3. The first page that is left is the picture. Where there are others, a note says so.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from unet_batch.media.images.common import Damage

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_THUMBNAIL = 4  # times as wide and high is the picture, or more
_LOOKED_AT = 64  # pages whose sizes are compared; of more, that there are some is counted
_MOST_PAGES = 100_000


def find_picture(tif: TiffFile) -> tuple[TiffPage, TiffPage | None, list[str]]:
    """Find the page that is the picture, and its mask; see the top of the module.

    Returns:
        The page; the page that says where it is valid, or None; and a note, if there are other pictures.
    """
    count = count_pages(tif)
    if count == 0:
        raise Damage("there is no picture in it")
    pages = [cast("TiffPage", tif.pages[at]) for at in range(min(count, _LOOKED_AT))]
    # A camera file begins with a thumbnail, and has the photo among its SubIFDs
    below = [page for parent in pages[:1] for page in _subpages(parent)]
    plain = [page for page in pages if not page.subfiletype & 5]
    large = [page for page in below if not page.subfiletype & 5]
    found = plain or large or sorted(pages, key=_area)[-1:]
    whole = [page for page in found if not any(is_thumbnail(page, of) for of in found + large)]
    picture = whole[0] if whole else max(found + large, key=_area)
    shape = (picture.imagelength, picture.imagewidth)
    masks = (page for page in pages if page.subfiletype & 4 and not picture.subfiletype & 4)
    mask = next((page for page in masks if (page.imagelength, page.imagewidth) == shape), None)
    several = max((len(whole) if plain else 1) + count - len(pages), stacked(pages[0]))
    return picture, mask, [f"{several:,} pages: the first is read"] if several > 1 else []


def count_pages(tif: TiffFile) -> int:
    """Count directories, without reading them; a chain that bites its tail ends there."""
    form = tif.tiff
    file, seen, offset = tif.filehandle, set[int](), 0
    if not len(tif.pages[:1]):
        return 0
    offset = tif.pages.first.offset
    while 0 < offset < file.size and offset not in seen and len(seen) < _MOST_PAGES:
        file.seek(offset)
        head = file.read(form.tagnosize)
        if len(head) < form.tagnosize:
            break
        file.seek(offset + form.tagnosize + form.tagsize * struct.unpack(form.tagnoformat, head)[0])
        tail = file.read(form.offsetsize)
        seen.add(offset)
        offset = struct.unpack(form.offsetformat, tail)[0] if len(tail) == form.offsetsize else 0
    return len(seen)


def _subpages(page: TiffPage) -> Iterator[TiffPage]:
    """The pages that a page refers to as its own."""
    if page.subifds is None or page.pages is None:
        return
    for at in range(min(len(page.subifds), _LOOKED_AT)):
        with suppress(Exception):  # a private one, perhaps; the picture has a page of its own
            yield cast("TiffPage", page.pages[at])


def _area(page: TiffPage) -> int:
    return page.imagelength * page.imagewidth


def is_thumbnail(page: TiffPage, of: TiffPage) -> bool:
    """Whether a page has the shape of a much larger one, to the pixel."""
    height, width = page.imagelength, page.imagewidth
    if min(height, width) < 1 or of.imagelength < _THUMBNAIL * height or of.imagewidth < _THUMBNAIL * width:
        return False
    across, down = of.imagewidth / width, of.imagelength / height
    return abs(of.imagelength / across - height) <= 1 or abs(of.imagewidth / down - width) <= 1


def stacked(page: TiffPage) -> int:
    """How many pictures ImageJ has put behind one directory."""
    found = re.search(r"^images=(\d+)", page.description or "", re.MULTILINE)
    return int(found[1]) if found and page.is_imagej else 1
