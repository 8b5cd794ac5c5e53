"""The mask of one picture as labels: which pixels are of which class, and the objects in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.labels import polygons

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.run.masks import LabelTable
    from unet_batch.types import Size


@dataclass(frozen=True, slots=True, eq=False)
class LabelObject:
    """A connected part of what one class covers; pixels that touch at a corner are connected.

    Attributes:
        category: place of its class among the names of a `LabelTable`.
        left, top: column and row of the upper left pixel of its box.
        mask: bool (height, width) of its box.
    """

    category: int
    left: int
    top: int
    mask: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    def columns(self, height: int) -> NDArray[np.bool_]:
        """The columns of its box in a picture of such a height, from top to bottom."""
        below = height - self.top - self.mask.shape[0]
        return np.pad(self.mask, ((self.top, below), (0, 0)))


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture with its mask.

    Attributes:
        key: its name in the output folder.
        file: its name in a dataset, `/`-separated.
        source: its path.
        ids: uint8 or uint16 (height, width): ids as the model's masks have them, or 0 and 1.
        table: what they mean.
    """

    key: str
    file: str
    source: str
    ids: NDArray[Any]
    table: LabelTable

    @property
    def size(self) -> Size:
        """(height, width), as a person sees the picture."""
        return self.ids.shape[0], self.ids.shape[1]

    def masks(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Of each class that occurs, its place in the table and a mask of the picture's size."""
        there = np.flatnonzero(np.bincount(self.ids.ravel()))
        for category, id in enumerate(self.table.ids or (1,)):
            if id in there:
                yield category, self.ids == id

    def objects(self) -> Iterator[LabelObject]:
        """The objects, class by class, from top to bottom."""
        for category, mask in self.masks():
            count, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
            for number in range(1, count):
                left, top, width, height = boxes[number, :4].tolist()
                box = numbers[top : top + height, left : left + width]
                yield LabelObject(category, left, top, box == number)

    def rings(self, simplify: float = 0.0, *, centres: bool = False) -> Iterator[tuple[int, NDArray[Any]]]:
        """The objects as rings, each with the place of its class: see `polygons.thread`."""
        for category, mask in self.masks():
            for ring in polygons.thread(mask, ends="centres" if centres else "corners"):
                yield category, polygons.simplify(ring, simplify)


def split_runs(mask: NDArray[np.bool_], *, by_columns: bool = False) -> list[int]:
    """Run lengths of a mask, zeros first, row after row or column after column."""
    line = (mask.T if by_columns else mask).ravel()
    changes = np.flatnonzero(line[1:] != line[:-1]) + 1
    ends = np.concatenate([changes, [line.size]])
    lengths = np.diff(ends, prepend=0).tolist()
    return [0, *lengths] if line.size and line[0] else lengths
