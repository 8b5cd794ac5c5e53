"""Rows of the tables of a picture that comes in bands of rows: those that `measuring` makes of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unet_batch.inference import measuring
from unet_batch.media import measure
from unet_batch.media.measure_bands import BandMeasurer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from unet_batch.files.tables import ClassStats, ObjectStats
    from unet_batch.media.measure import PixelSize
    from unet_batch.media.measure_bands import Finished
    from unet_batch.types import ModelSpec, Pixels

    Flags = NDArray[np.bool_]

_NONE = 255  # more than there are classes
_AT_ONCE = 2**20  # pixels that are measured together: what is known of them is several times as large


class BandTables:
    """Makes rows of tables as a picture comes; for one thread.

    Objects are numbered in the order of their last rows, then of their left ends.

    Args:
        spec: of the model.
        pixel: what a pixel measures; None where nobody says.
        with_brightness: whether `add` is given any.
        on_objects: called with the rows of objects as they become whole; None where nobody wants them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        pixel: PixelSize | None,
        *,
        with_brightness: bool = False,
        on_objects: Callable[[Iterator[ObjectStats]], None] | None = None,
    ) -> None:
        self._spec, self._pixel, self._names = spec, pixel, measuring.class_ids(spec)
        self._probable, self._bright = spec.output == "probability", with_brightness
        self._measurer = BandMeasurer(measuring.countable(spec), self._probable + with_brightness)
        self._on_objects = on_objects
        self._levels = np.zeros(256, np.int64)  # of the network's map, how many pixels have each
        self._top = self._known = self._objects = 0
        self._components = np.zeros(256, np.int64)
        self._pixels = np.zeros(256, np.int64)
        self._boxes: dict[int, tuple[int, int, int, int]] = {}  # left, top, right, bottom

    def see(self, map: Pixels, missing: Flags | None) -> None:
        """Take in the next rows of the network's map, without what shows pixels that have no value.

        Args:
            map: uint8 (n, W), as it is before it is enlarged.
            missing: bool (n, W), True where there is no value; None where there is one everywhere.
        """
        if self._probable:
            self._levels += measure.count_levels(map if missing is None else map[~missing])

    def add(
        self, ids: Pixels, missing: Flags | None, probability: Pixels | None, brightness: Pixels | None
    ) -> None:
        """Take in the next rows of the picture.

        Args:
            ids: uint8 (n, width), the class of every pixel as `measuring.class_ids` has it.
            missing: bool (n, width), as for `see`.
            probability: uint8 (n, width), round(255 p); None of a model of several classes.
            brightness: uint8 (n, width).
        """
        if missing is not None:
            ids = np.where(missing, np.uint8(_NONE), ids)
        step = max(1, _AT_ONCE // ids.shape[1])
        for top in range(0, len(ids), step):
            some = slice(top, top + step)
            self._count(ids[some], None if missing is None else missing[some])
            maps = (map[some] for map in (probability, brightness) if map is not None)
            self._take(self._measurer.add(ids[some], *maps))

    def finish(self, unlike: float | None) -> list[ClassStats]:
        """Rows of the table `stats`, and of the objects that are whole now that all rows have come.

        Args:
            unlike: as a `Frame` has it.
        """
        self._take(self._measurer.finish())
        sure = measure.certainty_of(self._levels) if self._levels.any() else (None, None, None)
        places = {
            id: (int(self._pixels[id]), (left, top, right - left, bottom - top))
            for id, (left, top, right, bottom) in self._boxes.items()
        }
        return measuring.class_rows(
            self._spec, places, self._known, self._components, sure, unlike, self._pixel
        )

    def _count(self, ids: Pixels, missing: Flags | None) -> None:
        """Count the pixels of classes, and widen their boxes."""
        counts = measure.count_levels(ids)
        self._pixels += counts
        self._known += ids.size - (0 if missing is None else int(np.count_nonzero(missing)))
        for id in np.flatnonzero(counts).tolist():
            left, top, width, height = measure.box_of(ids == id)
            top, right = top + self._top, left + width
            before = self._boxes.get(id, (left, top, right, 0))
            self._boxes[id] = (min(before[0], left), before[1], max(before[2], right), top + height)
        self._top += len(ids)

    def _take(self, found: Finished) -> None:
        """Count objects, and hand on their rows."""
        self._components += np.bincount(found.classes, minlength=256)
        first, self._objects = self._objects + 1, self._objects + len(found.classes)
        if self._on_objects is None or not len(found.classes):
            return
        means = list(found.sums / found.regions.pixels)
        sure = means.pop(0) / 255 if self._probable else None
        light = means.pop(0) if self._bright else None
        names, regions = self._names, found.regions
        self._on_objects(
            measuring.object_rows(names, found.classes, regions, light, sure, self._pixel, first)
        )
