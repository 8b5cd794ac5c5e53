"""Where the pixels of a picture are on Earth, read from the tags of a GeoTIFF (OGC 19-008r4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ImageError
from unet_batch.media.images import read_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SCALE, _TIEPOINTS, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
_POINT, _USER_DEFINED, _WGS84 = 2, 32767, 4326


@dataclass(frozen=True, eq=False)
class Georeference:
    """From pixels to coordinates.

    Attributes:
        name: of the coordinate reference system, as GeoJSON has it.
        matrix: float64 (2, 3): coordinates of a corner of pixels (x, y, 1).
    """

    name: str
    matrix: NDArray[np.float64]

    def of(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Coordinates of points x, y, both (n, 2)."""
        moved: NDArray[np.float64] = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return moved


def read_georeference(path: str) -> Georeference | None:
    """The georeference of a TIFF; None where it has none.

    Raises:
        ImageError: the file cannot be read, or its coordinate system has no EPSG code.
    """
    tags = dict(read_place(path).geo)
    matrix = _matrix(tags)
    if matrix is None or _KEYS not in tags:
        return None
    keys = _keys(tags[_KEYS])
    code = keys.get(_PROJECTED) or keys.get(_GEOGRAPHIC) or _USER_DEFINED
    if code == _USER_DEFINED:
        raise ImageError(
            f"{path}: its coordinate system has no EPSG code, so GeoJSON cannot name it",
            hint="warp it to one that has, e.g. gdalwarp -t_srs EPSG:3857",
        )
    if keys.get(_RASTER_TYPE) == _POINT:  # coordinates are of centres of pixels
        matrix[:, 2] -= matrix[:, :2].sum(1) / 2
    geographic = code == _WGS84 and not keys.get(_PROJECTED)
    return Georeference(
        "urn:ogc:def:crs:OGC:1.3:CRS84" if geographic else f"urn:ogc:def:crs:EPSG::{code}", matrix
    )


def _matrix(tags: dict[int, Any]) -> NDArray[np.float64] | None:
    if _MATRIX in tags and len(tags[_MATRIX]) >= 8:
        rows = np.array(tags[_MATRIX][:8], np.float64).reshape(2, 4)
        return rows[:, [0, 1, 3]]
    if _SCALE in tags and _TIEPOINTS in tags and len(tags[_TIEPOINTS]) >= 6:
        across, down = map(float, tags[_SCALE][:2])
        column, row, _, x, y, _ = map(float, tags[_TIEPOINTS][:6])
        return np.array([[across, 0, x - column * across], [0, -down, y + row * down]])
    return None


def _keys(directory: Sequence[int]) -> dict[int, int]:
    """Keys whose value stands in the directory itself, which is in groups of four after a head of four."""
    groups = [directory[start : start + 4] for start in range(4, len(directory) - 3, 4)]
    return {int(key): int(value) for key, place, _, value in groups if place == 0}
