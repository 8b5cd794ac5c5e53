"""Clean masks: keep some classes, drop what is small, fill holes, keep the largest.

Components are 8-connected, the holes in them 4-connected: a slanted line one pixel wide has an inside, too.
What is dropped becomes background; of classes none of which is called so it becomes `NONE`. Small components
go first, then all but the largest, then holes are filled: to clean twice is to clean once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from unet_batch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import ClassTable, Pixels

NONE = 255
"""The id of what is none of the classes, where no class is the background."""
ALL = "all"


@dataclass(frozen=True)
class Cleanup:
    """What masks are cleaned of; as it stands, of nothing.

    Attributes:
        classes: names of those that are kept; () keeps all.
        min_area: components of fewer pixels are dropped: "500", or "0.1%" of the picture; "" drops none.
        fill_holes: holes of so many pixels at most are filled: "500", "0.1%", or "all"; "" fills none.
        largest: of each class only the largest component is kept, the topmost of several.

    Raises:
        UsageError: an area cannot be read.
    """

    classes: tuple[str, ...] = ()
    min_area: str = ""
    fill_holes: str = ""
    largest: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, text, words in (
            ("min-area", self.min_area, ""),
            ("fill-holes", self.fill_holes, f", or {ALL}"),
        ):
            if text and not (words and text == ALL) and _parse(text) is None:
                raise UsageError(
                    f"--{name} {text}: no area",
                    hint=f"a number of pixels such as 500, or 0.1% of a picture{words}",
                )

    @property
    def needs_whole(self) -> bool:
        """Whether a pixel depends on others far away."""
        return bool(self.min_area or self.fill_holes or self.largest)

    def facts(self) -> dict[str, Any]:
        """What is asked for, as JSON; {} if nothing."""
        found = {name: value for name, value in asdict(self).items() if value}
        if self.classes:
            found["classes"] = sorted(self.classes)
        return found

    def __str__(self) -> str:
        said = [f"only {','.join(self.classes)}"] if self.classes else []
        said += [f"min area {self.min_area}"] if self.min_area else []
        said += [f"holes filled {self.fill_holes}"] if self.fill_holes else []
        said += ["largest only"] if self.largest else []
        return ", ".join(said)

    def check(self, table: ClassTable, name: str) -> None:
        """See that a model has these classes.

        Raises:
            UsageError: it does not, or has no id to spare for what is none of them.
        """
        if unknown := [wanted for wanted in self.classes if wanted not in table.names]:
            raise UsageError(
                f"--classes: {name} has no class {', '.join(unknown)}",
                hint=f"choose from {', '.join(table.names)}",
            )
        if self.facts() and table.background is None and len(table.names) > NONE:
            raise UsageError(
                f"{name} has {len(table.names)} classes and no background: no id is left for the rest",
                hint="leave the clean-up out",
            )

    def only(self, ids: Pixels, table: ClassTable) -> Pixels:
        """Keep the chosen classes of a map of ids, or of some of its rows."""
        if not self.classes or len(table.names) == 1:
            return ids
        becomes = np.full(256, ground(table), np.uint8)
        for id in self.chosen(table):
            becomes[id] = id
        return cast("Pixels", cv2.LUT(ids, becomes))

    def chosen(self, table: ClassTable) -> tuple[int, ...]:
        """Ids of the classes that are kept."""
        return tuple(id for id, name in enumerate(table.names) if not self.classes or name in self.classes)

    def __call__(self, mask: Pixels, table: ClassTable) -> Pixels:
        """Clean a mask.

        Args:
            mask: uint8 (h, w): for a table of one class 0 or 255, for several the ids.
            table: the classes.

        Returns:
            uint8 (h, w), another array or, where nothing is asked for, the same.
        """
        mask = self.only(mask, table)
        if not self.needs_whole:
            return mask
        one, nothing = len(table.names) == 1, ground(table)
        cleaned: Pixels = mask.copy()
        marks = [255] if one else [id for id in self.chosen(table) if id != nothing]
        boxes = {mark: box for mark in marks if (box := _box(mask, mark)) is not None}
        least, most = _pixels(self.min_area, mask.shape), _pixels(self.fill_holes, mask.shape)
        if least or self.largest:
            for mark, box in boxes.items():
                view = cleaned[box]
                view[_dropped(view == mark, least, largest=self.largest)] = nothing
        if most:
            for mark, box in boxes.items():
                view = cleaned[box]
                view[_holes(view == mark, view == nothing, most)] = mark
        return cleaned


UNTOUCHED = Cleanup()


def ground(table: ClassTable) -> int:
    """What dropped pixels become: the id of the background, or `NONE`; 0 in the mask of one class."""
    if len(table.names) == 1:
        return 0
    return NONE if table.background is None else table.background


def settle(alpha: Pixels, raw: Pixels, cleaned: Pixels) -> Pixels:
    """Make how much of each pixel is the object follow from its mask once that is cleaned.

    Args:
        alpha: uint8 (h, w), 128 or more where the mask was set.
        raw, cleaned: uint8 (h, w), the mask as it was and as it is, 0 or 255.

    Returns:
        uint8 (h, w), 128 or more where `cleaned` is set: soft surroundings of what is gone are gone as well.
    """
    if np.array_equal(raw, cleaned):
        return alpha
    settled: Pixels = np.where(raw == cleaned, alpha, cleaned)
    for without, there in ((0, cleaned > 0), (255, cleaned == 0)):
        count, labels = cv2.connectedComponents(np.not_equal(settled, without).view(np.uint8), connectivity=8)
        held = np.zeros(count, np.bool_)
        held[labels[there]] = True
        settled[~held[labels]] = without
    return settled


def _parse(text: str) -> tuple[float, bool] | None:
    """The number, and whether it is a share in per cent."""
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(%)?\s*", text)
    if found is None or (found[2] is None and "." in found[1]) or float(found[1]) <= 0:
        return None
    return float(found[1]), found[2] is not None


def _pixels(text: str, size: Sequence[int]) -> float:
    """Pixels of an area in a picture of (height, width); 0 for none."""
    if not text:
        return 0.0
    if text == ALL:
        return float("inf")
    parsed = _parse(text)
    assert parsed is not None, "checked when it was made"
    value, share = parsed
    return value / 100 * size[0] * size[1] if share else value


def _box(mask: Pixels, mark: int) -> tuple[slice, slice] | None:
    """The rows and columns that hold a value; None where it is nowhere."""
    left, top, width, height = cv2.boundingRect(np.equal(mask, np.uint8(mark)).view(np.uint8))
    return (slice(top, top + height), slice(left, left + width)) if width else None


def _dropped(region: NDArray[np.bool_], least: float, *, largest: bool) -> NDArray[np.bool_]:
    """Which pixels lie in components that are too small, or not the largest."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    gone = areas < least
    if largest and len(areas) > 1:
        gone[1:] |= np.arange(1, len(areas)) != 1 + int(areas[1:].argmax())
    gone[0] = False
    dropped: NDArray[np.bool_] = gone[labels]
    return dropped


def _holes(region: NDArray[np.bool_], empty: NDArray[np.bool_], most: float) -> NDArray[np.bool_]:
    """Which pixels lie in holes of a region, within its box, that hold nothing else and are no larger."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~region).view(np.uint8), connectivity=4)
    filled = stats[:, cv2.CC_STAT_AREA] <= most
    filled[labels[~region & ~empty]] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        filled[edge] = False
    filled[0] = False
    holes: NDArray[np.bool_] = filled[labels]
    return holes
