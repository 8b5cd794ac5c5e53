"""GeoJSON: a file a picture, a feature an object, in the coordinates of the picture's own map.

A picture with a georeference gives coordinates in its coordinate reference system, which the `crs` member
names as GDAL and QGIS read it (GeoJSON of 2008; the later RFC 7946 knows degrees of WGS 84 only). Any other
gives pixels: x to the right, y down, from the upper left corner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.files import archives
from unet_batch.labels import polygons
from unet_batch.labels.base import LabelFormat, compact
from unet_batch.labels.georeference import Georeference, read_georeference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.labels.picture import LabelledPicture


class GeoJsonFormat(LabelFormat):
    """See the top of this module."""

    def encode(self, picture: LabelledPicture) -> str:
        """Its file.

        Raises:
            ImageError: its georeference cannot be read, or is not one that GeoJSON can name.
        """
        place = None
        if picture.source.lower().endswith((".tif", ".tiff")) and archives.exists(picture.source):
            place = read_georeference(picture.source)
        features = []
        for category, mask in picture.masks():
            parts: dict[int, list[list[Any]]] = {}
            for part in polygons.trace(mask, simple=True):
                rings = [
                    polygons.simplify(ring, self.settings.simplify) for ring in (part.outer, *part.holes)
                ]
                parts.setdefault(part.object, []).append(
                    [_close(ring, place, outer=number == 0) for number, ring in enumerate(rings)]
                )
            _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
            for number, shapes in parts.items():
                properties = {
                    "class": self.table.names[category],
                    "pixels": int(boxes[number, cv2.CC_STAT_AREA]),
                }
                one = len(shapes) == 1
                geometry = {
                    "type": "Polygon" if one else "MultiPolygon",
                    "coordinates": shapes[0] if one else shapes,
                }
                features.append({"type": "Feature", "properties": properties, "geometry": geometry})
        head: dict[str, Any] = {"type": "FeatureCollection"}
        if place is not None:
            head["crs"] = {"type": "name", "properties": {"name": place.name}}
        lines = ",\n".join(map(compact, features))
        return compact(head)[:-1] + f',"features":[\n{lines}\n]}}\n'

    def add(self, picture: LabelledPicture, encoded: str) -> None:
        """Write it."""
        self.write(f"{picture.key}.geojson", encoded)

    def finish(self) -> None:
        """Nothing is left to write."""


def _close(ring: NDArray[Any], place: Georeference | None, *, outer: bool) -> list[Any]:
    """A ring as GeoJSON has it: its first point again at its end, outer rings counter-clockwise on a map."""
    points = ring if place is None else place.of(ring)
    x, y = (points - points[:1]).T
    area = float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
    if (area > 0) != outer:
        points = points[::-1]
    closed: list[Any] = np.concatenate([points, points[:1]]).tolist()
    return closed
