"""COCO: one `annotations.json`, an annotation an object, as compressed RLE or as polygons.

A polygon of COCO has no holes: they are joined to its outline by cuts, which pycocotools fills exactly.
FiftyOne, Roboflow and our own `train --coco` take these files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unet_batch.errors import UsageError
from unet_batch.files.atomic import remove
from unet_batch.labels.base import LabelFormat, LabelSettings, TextFile, compact, numbers
from unet_batch.labels.picture import split_runs

if TYPE_CHECKING:
    from unet_batch.labels.picture import LabelledPicture
    from unet_batch.run.masks import LabelTable


class CocoFormat(LabelFormat):
    """See the top of this module.

    Raises:
        UsageError: pycocotools is not installed.
    """

    def __init__(self, folder: str, table: LabelTable, settings: LabelSettings) -> None:
        super().__init__(folder, table, settings)
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "--format coco needs pycocotools, which is not installed",
                hint='pip install "unet-batch[coco]"',
            ) from error
        # Two lists that grow at once: the second waits in a file of its own.
        self._images = TextFile(self.path("annotations.json"))
        self._annotations = TextFile(self.path("annotations.part"))
        categories = [{"id": number, "name": name} for number, name in enumerate(table.names, 1)]
        self._images.write('{"categories":' + compact(categories) + ',\n"images":[\n')

    def encode(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        """Its annotations, without numbers."""
        return self._outlines(picture) if self.settings.polygons else self._masks(picture)

    def add(self, picture: LabelledPicture, encoded: list[dict[str, Any]]) -> None:
        """Write an image and its annotations."""
        number, (height, width) = self._images.pieces + 1, picture.size
        image = {"id": number, "file_name": picture.file, "width": width, "height": height}
        self._images.write_entries([compact(image)])
        for annotation in encoded:
            ids = {"id": self._annotations.pieces + 1, "image_id": number}
            self._annotations.write_entries([compact({**ids, **annotation})])

    def finish(self) -> None:
        """Put both lists into one file."""
        self._images.write('\n],\n"annotations":[\n')
        self._annotations.copy_to(self._images)
        self._images.write("\n]}\n")
        self._images.close()
        remove([self._annotations.path])

    def close(self) -> None:
        """Close both files."""
        self._annotations.close()
        self._images.close()

    def _masks(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        from pycocotools import mask as rle

        height, width = picture.size
        found = []
        for each in picture.objects():
            across, down = each.mask.shape[1], each.mask.shape[0]
            lengths = split_runs(each.columns(height), by_columns=True)
            lengths[0] += each.left * height
            lengths += [0] * (len(lengths) % 2)
            lengths.append(height * width - sum(lengths))
            packed = rle.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
            shape = {"size": [height, width], "counts": packed["counts"].decode("ascii")}
            found.append(_annotation(each.category, shape, each.area, [each.left, each.top, across, down]))
        return found

    def _outlines(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        from pycocotools import mask as rle

        height, width = picture.size
        found = []
        for category, ring in picture.rings(self.settings.simplify):
            shape = [[value for point in numbers(ring) for value in point]]
            low, high = ring.min(0), ring.max(0)
            box = [float(value) for value in (*low, *(high - low))]
            area = int(rle.area(rle.merge(rle.frPyObjects(shape, height, width))))
            found.append(_annotation(category, shape, area, box))
        return found


def _annotation(category: int, shape: Any, area: int, box: list[Any]) -> dict[str, Any]:
    return {"category_id": category + 1, "iscrowd": 0, "area": area, "bbox": box, "segmentation": shape}
