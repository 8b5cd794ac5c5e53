"""YOLO segmentation: `data.yaml`, and for each picture a text file with a line an object.

A line is the class and the outline's points, as shares of width and height. Points lie in the outermost
pixels, as readers paint outlines as well as what is inside: a quarter of a pixel from their upper left
corner, where those who cut a number to a whole one and those who round it both find the pixel. Holes are
joined to the outline by cuts of one pixel's path, as YOLO knows no holes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.labels.base import LabelFormat

if TYPE_CHECKING:
    from unet_batch.labels.picture import LabelledPicture


class YoloFormat(LabelFormat):
    """See the top of this module."""

    def encode(self, picture: LabelledPicture) -> str:
        """The lines of a picture; none where nothing is marked, which YOLO takes for background."""
        size = np.array(picture.size[::-1], np.float64)
        lines = []
        for category, ring in picture.rings(self.settings.simplify, centres=True):
            shares = " ".join(f"{value:.7g}" for value in ((ring - 0.25) / size).ravel())
            lines.append(f"{category} {shares}\n")
        return "".join(lines)

    def add(self, picture: LabelledPicture, encoded: str) -> None:
        """Write them."""
        self.write(f"labels/{picture.key}.txt", encoded)

    def finish(self) -> None:
        """Write the classes."""
        names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(self.table.names))
        self.write("data.yaml", f"train: images\nval: images  # divide them before training\nnames:\n{names}")

    def image_file(self, picture: LabelledPicture) -> str:
        """Called like its labels, by which YOLO finds them."""
        return f"images/{picture.key}.{picture.file.rpartition('.')[2]}"
