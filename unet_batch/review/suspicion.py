"""Which results of a run a person should look at first, and why.

Nothing here knows whether a mask is right. It knows what is rare: masks that are empty or cover everything,
where the model was unsure, whose figures lie far from those of the other pictures, or whose picture is unlike
what the model has learned from.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

FAR = 4.0
"""Robust deviations from the median beyond which a figure is unlike those of the others: of figures that are
spread normally, one in 16,000."""
MANY = 1 / 3
"""Share of a run beyond which what many have in common is no exception."""
FULL = 0.995
"""Share of a picture from which everything is marked."""
UNSURE = 0.8
"""Mean confidence below which a mask is doubtful whatever those of the others are."""
_WORST = 4.0  # what one reason counts at most


@dataclass(frozen=True)
class Reason:
    """Why something is worth a look.

    Attributes:
        name: one word.
        label, help: for people.
    """

    name: str
    label: str
    help: str


REASONS: tuple[Reason, ...] = (
    Reason("empty", "nothing marked", "No pixel is marked."),
    Reason("full", "everything marked", "One class covers 99.5 % of the picture or more."),
    Reason("unsure", "low confidence", "Mean confidence below 80 %, or far below that of the others."),
    Reason("area", "unusual area", "A class covers far more or less of the picture than in the others."),
    Reason("pieces", "unusual pieces", "The mask falls into far more pieces than those of the others."),
    Reason("unlike", "unlike the training", "The picture is unlike what the model has learned from."),
)


class Figures:
    """What is remembered of each item until all are known: four bytes for each column.

    Args:
        columns: their names.

    Attributes:
        count: how many items there are.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.count = 0
        self._columns = {name: array("f") for name in columns}

    def add(self, values: Mapping[str, float | None]) -> None:
        """Take those of the next item; what is not known counts nowhere."""
        self.count += 1
        for name, column in self._columns.items():
            value = values.get(name)
            column.append(float("nan") if value is None else value)

    def column(self, name: str) -> Values:
        """The values of all items, NaN where one is not known."""
        if name not in self._columns:
            return np.full(self.count, np.nan)
        return np.asarray(self._columns[name], np.float64)

    def areas(self) -> list[Values]:
        """The shares of each class."""
        return [self.column(name) for name in self._columns if name.startswith("share")]


def judge(figures: Figures) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Say of each item why it is worth a look, and how much.

    Args:
        figures: of `share` (of what is marked), `share NAME` of each of several classes, `largest` (that of
            the one that covers most), `components`, `confidence` and `unlike`, as far as they are known.

    Returns:
        Bits of `REASONS`, uint8 (count,), the first reason is 1; and their weight, float32 (count,): 0 where
        there is no reason.
    """
    bits = np.zeros(figures.count, np.uint8)
    weight = np.zeros(figures.count)

    def add(name: str, found: NDArray[np.bool_], how: Values | float) -> None:
        place = [reason.name for reason in REASONS].index(name)
        bits[found] |= np.uint8(1 << place)
        weight[found] += np.minimum(np.broadcast_to(how, found.shape)[found], _WORST)

    def is_rare(found: NDArray[np.bool_]) -> bool:
        return bool(found.any() and found.mean() <= MANY)

    empty = figures.column("share") == 0
    full = np.fmax(figures.column("share"), figures.column("largest")) >= FULL
    for name, found in (("empty", empty), ("full", full)):
        if is_rare(found):
            add(name, found, 3.0)
    confidence = figures.column("confidence")
    how_low = -deviation(confidence, least=0.005)
    low = (confidence < UNSURE) | ((how_low > FAR) & (confidence < 0.97))
    if is_rare(low):
        add("unsure", low, np.fmax(how_low / FAR, 1 + 5 * (UNSURE - confidence)))
    far = np.zeros(figures.count)
    for area in figures.areas():
        seen = ~(empty | full) & (area > 0) & (area < 1)
        part = np.where(seen, area, 0.5)
        odds = np.where(seen, np.log(part / (1 - part)), np.nan)
        far = np.maximum(far, np.abs(deviation(odds, least=0.15)))
    add("area", far > FAR, far / FAR)
    components = figures.column("components")
    number = np.log(np.where(components > 0, components, 1))
    pieces = deviation(np.where(components > 0, number, np.nan), least=0.35)
    add("pieces", pieces > FAR, pieces / FAR)
    unlike = figures.column("unlike")
    add("unlike", unlike > 1, unlike)
    return bits, weight.astype(np.float32)


def deviation(values: Values, least: float) -> Values:
    """How many robust standard deviations each value lies above the median; 0 where it is not known.

    Args:
        values: NaN where one is not known.
        least: the smallest deviation that is believed: where nearly all are equal it would be 0.
    """
    known = np.isfinite(values)
    if known.sum() < 8:  # of fewer there is no "usual"
        return np.zeros(values.shape)
    middle = np.median(values[known])
    spread = 1.4826 * np.median(np.abs(values[known] - middle))
    return np.where(known, (values - middle) / max(spread, least), 0)
