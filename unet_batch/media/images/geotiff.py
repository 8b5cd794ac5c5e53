"""Masks as GeoTIFF: where on Earth they are, taken over from the picture they were made of.

What places a TIFF on Earth are a few tags (OGC 19-008r4, section 7), which are copied as they are: the mask
has the picture's pixels, so it lies where the picture does. Values are class ids: 0 is background, the only
class of a model 1, those of several their own; 255 is where the picture has no value, as GDAL's own tag says.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import EncodeError
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage

    from unet_batch.types import Pixels

NODATA = 255
_GDAL_NODATA = 42113
_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""ModelPixelScale, ModelTiepoint, ModelTransformation, and the keys: directory, doubles, text."""
_ASCII, _SHORT, _DOUBLE = 2, 3, 12
_TYPES = {34735: _SHORT, 34737: _ASCII}
_TILE = (512, 512)


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
