"""The masks that a run has made, read again, and what their ids mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ImageError
from unet_batch.media import images
from unet_batch.media.cleanup import NONE
from unet_batch.types import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelTable:
    """The classes that are labelled: all but the background.

    Attributes:
        names: of the classes.
        colours: RGB, of each.
        ids: of each in masks; () where masks are of one class, and say yes and no.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]

    @classmethod
    def of(cls, classes: ClassTable) -> LabelTable:
        """Those of a model."""
        if len(classes.names) == 1:
            return cls(classes.names, classes.colours, ())
        ids = tuple(id for id in range(len(classes.names)) if id != classes.background)
        return cls(tuple(classes.names[id] for id in ids), tuple(classes.colours[id] for id in ids), ids)


def read_ids(path: str, table: LabelTable) -> NDArray[Any]:
    """Read a mask that a run has made: ids, or 0 and 1 of one class.

    Where no class is the background, `cleanup.NONE` is what a clean-up has taken away.

    Raises:
        ImageError: it cannot be read, or holds what no class is.
    """
    stored = images.read_ids(path)
    ids = stored.values
    if ids.ndim != 2 or ids.dtype.kind != "u" or stored.kind == "jpeg":
        raise ImageError(f"{path}: {stored.kind} values are no mask of a run", hint="restore it: run again")
    if not table.ids:
        # Who edits masks of 0 and 255 may leave levels between.
        return np.asarray(ids > (127 if stored.full == 255 and stored.kind == "grey" else 0), np.uint8)
    has_ground = len(table.ids) <= max(table.ids)
    highest = int((ids if has_ground else ids[ids != NONE]).max(initial=0))
    if highest > max(*table.ids, len(table.ids)):
        raise ImageError(
            f"{path}: holds id {highest}, the last class is {max(table.ids)}", hint="restore it: run again"
        )
    return ids
