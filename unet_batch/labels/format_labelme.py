"""LabelMe: a JSON file a picture, each object a mask or a polygon."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.files import remote
from unet_batch.labels.base import LabelFormat, numbers
from unet_batch.media.images import encode_map

if TYPE_CHECKING:
    from unet_batch.labels.picture import LabelledPicture

_VERSION = "5.5.0"  # the first of LabelMe that knows masks as these are written


class LabelmeFormat(LabelFormat):
    """See the top of this module."""

    images = ""

    def encode(self, picture: LabelledPicture) -> str:
        """Its file."""
        height, width = picture.size
        shapes = self._outlines(picture) if self.settings.polygons else self._masks(picture)
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": self._image_path(picture),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        return json.dumps(content, indent=1)

    def add(self, picture: LabelledPicture, encoded: str) -> None:
        """Write it."""
        self.write(f"{picture.key}.json", encoded)

    def finish(self) -> None:
        """Nothing is left to write."""

    def image_file(self, picture: LabelledPicture) -> str:
        """Beside its labels, and called like them."""
        return f"{picture.key}.{picture.file.rpartition('.')[2]}"

    def _image_path(self, picture: LabelledPicture) -> str:
        """Where LabelMe looks for the picture, seen from the file of its labels."""
        if self.settings.with_images or remote.is_remote(picture.source):
            return os.path.basename(self.image_file(picture))
        return picture.source

    def _masks(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        found = []
        for each in picture.objects():
            down, across = each.mask.shape
            corner = [each.left + across - 1, each.top + down - 1]  # the last pixel, not what is behind it
            png = base64.b64encode(encode_map(each.mask.astype(np.uint8))).decode("ascii")
            found.append(self._shape(each.category, [[each.left, each.top], corner], "mask", png))
        return found

    def _outlines(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        return [
            self._shape(category, numbers(ring), "polygon")
            for category, ring in picture.rings(self.settings.simplify, centres=True)
        ]

    def _shape(self, category: int, points: Any, kind: str, mask: str | None = None) -> dict[str, Any]:
        return {
            "label": self.table.names[category],
            "points": points,
            "group_id": None,
            "description": "",
            "shape_type": kind,
            "flags": {},
            "mask": mask,
        }
