"""Masks as GeoTIFF: where on Earth they are, taken over from the picture they were made of.

What places a TIFF on Earth are a few tags (OGC 19-008r4, section 7), which are copied as they are: the mask
has the picture's pixels, so it lies where the picture does. Values are class ids: 0 is background, the only
class of a model 1, those of several their own; 255 is where the picture has no value, as GDAL's own tag says.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from io import BytesIO
from queue import Full, Queue
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import EncodeError
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage

    from unet_batch.types import Pixels, Size

NODATA = 255
_GDAL_NODATA = 42113
_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""ModelPixelScale, ModelTiepoint, ModelTransformation, and the keys: directory, doubles, text."""
_ASCII, _SHORT, _DOUBLE = 2, 3, 12
_TYPES = {34735: _SHORT, 34737: _ASCII}
_TILE = (512, 512)
_BIG = 3_900_000_000  # pixels, a byte each: deflated there are fewer, but nobody knows how many


def read_geo_tags(page: TiffPage) -> tuple[tuple[int, Any], ...]:
    """The tags that place a page on Earth, by their numbers; () where none do."""
    found = ((tag, page.tags.valueof(tag)) for tag in _TAGS)
    return tuple((tag, value) for tag, value in found if value)


def encode_geotiff(ids: Pixels, missing: NDArray[np.bool_] | None, metadata: Metadata) -> bytes:
    """Encode class ids as a deflated GeoTIFF in tiles.

    Args:
        ids: uint8 (h, w), below NODATA where `missing` says that there are pixels without a value.
        missing: bool (h, w), True where the picture has no value; None where it has one everywhere.
        metadata: of the picture.

    Raises:
        EncodeError: it cannot be encoded.
    """
    from tifffile import imwrite

    if ids.dtype != np.uint8 or ids.ndim != 2 or not ids.size:
        raise EncodeError(f"cannot encode {ids.dtype} {ids.shape}: needs uint8 (h, w) and no side of 0")
    if missing is not None:
        ids = np.where(missing, np.uint8(NODATA), ids)
    out = BytesIO()
    try:
        imwrite(out, ids, **write_options(metadata, with_nodata=missing is not None))
    except (ValueError, MemoryError) as error:
        raise EncodeError(f"cannot encode {ids.shape[0]}x{ids.shape[1]} as GeoTIFF: {error}") from error
    return out.getvalue()


def encode_floats(values: NDArray[np.float32], metadata: Metadata) -> bytes:
    """Encode a map of numbers, float32 (h, w), as such a TIFF; NaN is where there is none.

    Raises:
        EncodeError: it cannot be encoded.
    """
    from tifffile import imwrite

    if values.dtype != np.float32 or values.ndim != 2 or not values.size:
        raise EncodeError(
            f"cannot encode {values.dtype} {values.shape}: needs float32 (h, w) and no side of 0"
        )
    options, out = write_options(metadata, with_nodata=False), BytesIO()
    if np.isnan(values).any():
        options["extratags"] = [*options["extratags"], (_GDAL_NODATA, _ASCII, None, "nan", True)]
    try:
        imwrite(out, values, **options, predictor=True)  # of floats, which deflate by a third more
    except (ValueError, MemoryError) as error:
        raise EncodeError(f"cannot encode {values.shape[0]}x{values.shape[1]} as TIFF: {error}") from error
    return out.getvalue()


def write_options(metadata: Metadata, *, with_nodata: bool) -> dict[str, Any]:
    """How tifffile is to write ids."""
    tags: list[tuple[int, int, int | None, Any, bool]] = []
    for tag, value in metadata.geo:
        kind = _TYPES.get(tag, _DOUBLE)
        tags.append((tag, kind, None if kind == _ASCII else len(value), value, True))
    if with_nodata:
        tags.append((_GDAL_NODATA, _ASCII, None, str(NODATA), True))
    resolution = {"resolution": metadata.dpi, "resolutionunit": "INCH"} if metadata.dpi else {}
    return {
        "photometric": "minisblack",
        "compression": "zlib",
        "tile": _TILE,
        "metadata": None,
        "software": "unet-batch",
        "extratags": tags,
        **resolution,
    }


class GeoTiffWriter:
    """Writes class ids as `encode_geotiff` does, given row after row; a BigTIFF from 4 GB on.

    What writes TIFFs asks for the tiles, and rows come when they come: it has a thread of its own, which
    waits for them.

    Args:
        path: of the file.
        size: (height, width).
        metadata: of the picture.
    """

    def __init__(self, path: str, size: Size, metadata: Metadata) -> None:
        self._path, self._size, self._metadata = path, size, metadata
        self._rows: Queue[Pixels | None] = Queue(2)  # None ends it
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="geotiff", daemon=False)
        self._thread.start()

    def write(self, rows: Pixels) -> None:
        """Take the next rows, uint8 (n, width), NODATA where there is no value.

        Raises:
            OSError, ValueError: what was written before could not be.
        """
        self._put(rows)

    def finish(self) -> None:
        """Write the end. Raises as `write`."""
        self._put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread, whatever is written."""
        while self._thread.is_alive():
            try:
                self._rows.put(None, timeout=0.1)
            except Full:
                continue
            self._thread.join(0.1)

    def _put(self, rows: Pixels | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._rows.put(rows, timeout=0.1)
                return
            except Full:  # of a thread that may have failed
                continue

    def _work(self) -> None:
        from tifffile import imwrite

        try:
            options = write_options(self._metadata, with_nodata=True)
            large = self._size[0] * self._size[1] > _BIG
            imwrite(self._path, self._tiles(), shape=self._size, dtype=np.uint8, bigtiff=large, **options)
        except BaseException as error:  # noqa: BLE001 - the writer's caller gets it
            self._error = error

    def _tiles(self) -> Iterator[Pixels]:
        """Tiles from left to right, from top to bottom; those at the edges are filled up with 0."""
        (height, width), (tile, across) = self._size, _TILE
        for top in range(0, height, tile):
            held = np.zeros((tile, -(-width // across) * across), np.uint8)
            wanted = min(tile, height - top)
            filled = self._fill(held[:wanted, :width])
            if filled < wanted:
                raise ValueError(f"row {top + filled} of {height} never came")
            for left in range(0, width, across):
                yield np.ascontiguousarray(held[:, left : left + across])

    _left: Pixels | None = None

    def _fill(self, out: Pixels) -> int:
        """Put the next rows into `out`; returns how many there were."""
        filled = 0
        while filled < len(out):
            rows = self._left if self._left is not None else self._rows.get()
            self._left = None
            if rows is None:
                break
            taken = rows[: len(out) - filled]
            out[filled : filled + len(taken)] = taken
            filled += len(taken)
            if len(taken) < len(rows):
                self._left = rows[len(taken) :]
        return filled
