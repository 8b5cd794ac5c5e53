"""Dice, IoU, accuracy, precision, recall and boundary F1, with bootstrap intervals.

Everything is a sum over pixels of a picture, so that a set of a hundred thousand pictures is judged without
keeping one of them: `count` turns a picture into a few integers, `scores` turns integers into figures,
`intervals` says how much the figures would move with another draw of groups.

Two ways to average are in use, and both are given. Pooled: over all pixels of all pictures, as CamVid and
Cityscapes do for IoU. Per picture: the mean of every picture's own value, as Carvana does for Dice; a picture
in which a class neither occurs nor is found says nothing about it and is left out. Of several classes each is
the mean over those that count.

One figure has one name wherever it is printed (`label`). Files keep the keys under which it was ever stored:
docs/evaluate.md lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from unet_batch.datasets.encoding import VOID
from unet_batch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

# Of the picture's diagonal: how far apart two boundaries may be and still agree (Csurka et al., BMVC 2013).
BOUNDARY_TOLERANCE = 0.0075
FEW_GROUPS = 10
"""Below so many groups an interval is a guess, and rather too narrow."""
LABELS = {
    "accuracy": "accuracy",
    "dice": "Dice (all pixels)",
    "iou": "IoU (all pixels)",
    "dice_per_picture": "mean Dice per picture",
    "iou_per_picture": "mean IoU per picture",
}
"""What the main figures are called; see `label`."""
_BATCH, _DRAWN = 64, 2**18  # samples of a bootstrap, and groups drawn for them, that are added up at once


@dataclass(frozen=True, eq=False)
class Counts:
    """One picture as integers.

    Attributes:
        key: of the picture.
        group: pictures of one group are not independent: photos of one car, frames of one film.
        confusion: int64 (classes, classes): pixels of each class (row) that were found as each class
            (column); void left out.
        boundary: int64 (classes, 4): boundary pixels found, those of them near a true boundary, true boundary
            pixels, those of them near a found one.
    """

    key: str
    group: str
    confusion: NDArray[np.int64]
    boundary: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of a set of pictures; nan where a class occurs nowhere.

    Attributes:
        pictures: how many.
        accuracy: share of the pixels that are right, void left out.
        pooled: of each class, by name: `dice`, `iou`, `precision`, `recall`, `boundary_f1`; float64
            (classes,).
        per_picture: mean over pictures of `dice` and `iou`, float64 (classes,).
        without: of the pictures in whose truth a class does not occur, float64 (classes,): how many there are
            (`pictures`), and which share of their pixels was found as it, void left out: of all pixels
            (`marked`) and the mean of the pictures (`marked_per_picture`).
    """

    pictures: int
    accuracy: float
    pooled: dict[str, Floats]
    per_picture: dict[str, Floats]
    without: dict[str, Floats]

    def mean(self, metric: str, ids: Sequence[int], *, per_picture: bool = False) -> float:
        """Mean of a metric over classes, leaving out those without a figure; nan if that is all of them."""
        return mean_of_some((self.per_picture if per_picture else self.pooled)[metric][list(ids)])

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For JSON; nan becomes null."""

        def by_class(values: Floats) -> dict[str, float | None]:
            return {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(names, values, strict=True)
            }

        return {
            "pictures": self.pictures,
            "accuracy": self.accuracy,
            "pooled": {metric: by_class(values) for metric, values in self.pooled.items()},
            "per_picture": {metric: by_class(values) for metric, values in self.per_picture.items()},
        }


def mean_of_some(values: Floats) -> float:
    """Mean of the values (n,) that are not nan; nan if all are."""
    some = [value for value in values.tolist() if value == value]  # few: NumPy would take ten times as long
    return math.fsum(some) / len(some) if some else math.nan


def label(figure: str, classes: int) -> str:
    """Say what one of LABELS is called where it is the mean over so many classes."""
    text = LABELS[figure]
    return f"mean {text}" if classes > 1 and figure in ("dice", "iou") else text


def count(
    found: Pixels,
    truth: Pixels,
    classes: int,
    *,
    key: str = "",
    group: str = "",
    reach: float | None = None,
) -> Counts:
    """Compare a mask with the truth.

    Args:
        found: uint8 (height, width), ids below `classes`.
        truth: the same, or `VOID` where nothing is known: there nothing is counted.
        classes: how many ids there are; 2 for one class against background.
        key, group: see `Counts`.
        reach: pixels that two boundaries may lie apart and still agree; None takes BOUNDARY_TOLERANCE.

    Raises:
        UsageError: other sizes, or ids that do not exist.
    """
    if found.shape != truth.shape or found.ndim != 2:
        raise UsageError(
            f"{key or 'mask'}: masks of {found.shape} and {truth.shape} cannot be compared, one size expected"
        )
    pairs = truth.astype(np.uint16)
    pairs <<= 8
    pairs |= found
    # By id, so that it shows wrong ones too
    table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
    void = bool(table[VOID].any())
    for what, occurs in (("found", table[:VOID].any(0)), ("true", table[:VOID].any(1))):
        highest = int(np.flatnonzero(occurs).max(initial=0))
        if highest >= classes:
            raise UsageError(
                f"{key or 'mask'}: the {what} mask holds id {highest}, the classes are 0 to {classes - 1}"
            )
    confusion = table[:classes, :classes].astype(np.int64)
    if reach is None:
        reach = max(1.0, BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape)))
    known = truth != VOID if void else None
    boundary = np.zeros((classes, 4), np.int64)
    for id in np.flatnonzero(confusion.sum(0) + confusion.sum(1)):
        boundary[id] = _count_boundary(found == id, truth == id, known, reach)
    return Counts(key, group, confusion, boundary)


def scores(counts: Sequence[Counts]) -> Scores:
    """Figures of a set of pictures.

    Raises:
        UsageError: there are none.
    """
    return _scores(_sums(counts).sum(0)[None], np.array([len(counts)]))[0]


def score_each(counts: Sequence[Counts]) -> tuple[Floats, dict[str, Floats]]:
    """Compute the figures of every picture alone.

    Returns:
        Accuracy, float64 (pictures,), and the metrics of `Scores.pooled`, float64 (pictures, classes).
    """
    if not counts:
        return np.empty(0), {}
    sums = _sums(counts)
    return _accuracy(sums), {**_pixel_scores(sums), "boundary_f1": _boundary_f1(sums)}


def intervals(
    counts: Sequence[Counts],
    figures: Mapping[str, Callable[[Scores], float]],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of figures by resampling whole groups; see `bootstrap`.

    Args:
        counts: of the pictures.
        figures: by name, what to judge of the scores of a sample.
        samples, confidence, seed: see `bootstrap`.

    Returns:
        Lower and upper end of each.

    Raises:
        UsageError: there are no pictures.
    """

    def judge(sums: Floats, pictures: Floats) -> list[list[float]]:
        return [[figure(found) for figure in figures.values()] for found in _scores(sums, pictures)]

    groups = [each.group or each.key for each in counts]
    ends = bootstrap(_sums(counts), groups, judge, samples=samples, confidence=confidence, seed=seed)
    return dict(zip(figures, ends, strict=True))


def bootstrap(
    sums: Floats,
    groups: Sequence[str],
    judge: Callable[[Floats, Floats], Sequence[Sequence[float]] | Floats],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Bootstrap intervals by resampling whole groups; single pictures would make them too narrow.

    All figures are of the same samples. Each group is added up first, so 10,000 pictures take less than a
    second.

    Args:
        sums: what adds up over pictures, float64 (pictures, ...).
        groups: of each picture.
        judge: the figures of each of some sets, (sets, figures), of their added up numbers (sets, ...) and of
            how many pictures each has, (sets,).
        samples: how many sets are drawn.
        confidence: of the intervals.
        seed: of the draws.

    Returns:
        Lower and upper end of each figure; both are the figure itself where there is a single group, which
        says nothing of others, and nan where the figure is nan in every sample.
    """
    numbers = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return [
            (float(value), float(value)) for value in judge(sums.sum(0)[None], np.array([len(groups)]))[0]
        ]
    places = np.array([numbers[name] for name in groups])
    pictures = np.bincount(places)
    totals = np.zeros((len(numbers), *sums.shape[1:]))
    np.add.at(totals, places, sums)
    random = np.random.default_rng(seed)
    drawn = []
    batch = max(1, min(_BATCH, _DRAWN // len(numbers)))
    for start in range(0, samples, batch):
        draws = random.integers(0, len(numbers), (min(batch, samples - start), len(numbers)))
        # Each group is in a sample
        times = np.array([np.bincount(draw, minlength=len(numbers)) for draw in draws], np.float64)
        drawn.append(np.asarray(judge(np.tensordot(times, totals, 1), times @ pictures)))
    ends = []
    for values in np.concatenate(drawn).T:
        sound = values[~np.isnan(values)]
        low, high = (
            np.quantile(sound, [(1 - confidence) / 2, (1 + confidence) / 2])
            if len(sound)
            else (np.nan, np.nan)
        )
        ends.append((float(low), float(high)))
    return ends


# Fifteen numbers of each class that add up over pictures: pixels found right, true, found; the boundary's
# four; of the picture's own Dice and IoU the value and whether there is one; and of a picture without the
# class the pixels found as it, all pixels, the share, and 1. All but the three values are whole, and exact up
# to 2^53.
_HITS, _TRUE, _FOUND, _EDGE, _DICE, _IOU = 0, 1, 2, slice(3, 7), slice(7, 9), slice(9, 11)
_WITHOUT, _COLUMNS = slice(11, 15), 15


def _sums(counts: Sequence[Counts]) -> Floats:
    """float64 (pictures, classes, _COLUMNS).

    Raises:
        UsageError: there are no pictures.
    """
    if not counts:
        raise UsageError("nothing to score: no picture has a mask to compare with")
    sums = np.empty((len(counts), len(counts[0].confusion), _COLUMNS))
    for row, each in zip(sums, counts, strict=True):
        row[:, _HITS] = each.confusion.diagonal()
        row[:, _TRUE], row[:, _FOUND] = each.confusion.sum(1), each.confusion.sum(0)
        row[:, _EDGE] = each.boundary
    single = _pixel_scores(sums)
    for metric, place in (("dice", _DICE), ("iou", _IOU)):
        some = ~np.isnan(single[metric])
        sums[..., place] = np.stack([np.where(some, single[metric], 0), some], -1)
    known = sums[..., _TRUE].sum(-1, keepdims=True)
    absent = (sums[..., _TRUE] == 0) & (known > 0)
    share = sums[..., _FOUND] / np.maximum(known, 1)
    numbers = np.broadcast_arrays(sums[..., _FOUND], known, share, 1.0)
    sums[..., _WITHOUT] = np.where(absent[..., None], np.stack(numbers, -1), 0)
    return sums


def _scores(sums: Floats, pictures: Floats) -> list[Scores]:
    """Of float64 (sets, classes, _COLUMNS), and of how many pictures each set has, (sets,)."""
    marked, pixels, share, without = np.moveaxis(sums[..., _WITHOUT], -1, 0)
    pooled = {**_pixel_scores(sums), "boundary_f1": _boundary_f1(sums)}
    with np.errstate(invalid="ignore", divide="ignore"):
        per_picture = {
            name: sums[..., place][..., 0] / sums[..., place][..., 1]
            for name, place in (("dice", _DICE), ("iou", _IOU))
        }
        absent = {"pictures": without, "marked": marked / pixels, "marked_per_picture": share / without}
    facts = zip(pictures.tolist(), _accuracy(sums).tolist(), strict=True)

    def of_set(figures: dict[str, Floats], index: int) -> dict[str, Floats]:
        return {name: values[index] for name, values in figures.items()}

    return [
        Scores(
            pictures=int(number),
            accuracy=accuracy,
            pooled=of_set(pooled, index),
            per_picture=of_set(per_picture, index),
            without=of_set(absent, index),
        )
        for index, (number, accuracy) in enumerate(facts)
    ]


def _accuracy(sums: Floats) -> Floats:
    """Share of the pixels that are right, (...); nan where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., _HITS].sum(-1) / sums[..., _TRUE].sum(-1), np.float64)


def _pixel_scores(sums: Floats) -> dict[str, Floats]:
    """Dice, IoU, precision and recall of each class, (..., classes); nan where it is in neither mask."""
    hits, true, found = sums[..., _HITS], sums[..., _TRUE], sums[..., _FOUND]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "dice": 2 * hits / (true + found),
            "iou": hits / (true + found - hits),
            "precision": hits / found,
            "recall": hits / true,
        }


def _boundary_f1(sums: Floats) -> Floats:
    """Boundary F1 of each class, (..., classes); 0 where only one side has a boundary, nan where none has."""
    found, near_found, true, near_true = np.moveaxis(sums[..., _EDGE], -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precise, complete = near_found / found, near_true / true
        f1 = np.nan_to_num(2 * precise * complete / (precise + complete))
    return np.asarray(np.where(found + true == 0, np.nan, f1), np.float64)


def _count_boundary(found: Mask, truth: Mask, known: Mask | None, reach: float) -> list[int]:
    """Boundary pixels found, those of them near a true one, true ones, those of them near a found one."""
    edges = [_find_edge(mask, known) for mask in (found, truth)]
    left, top, width, height = cv2.boundingRect(edges[0] | edges[1])
    one, other = (np.ascontiguousarray(edge[top : top + height, left : left + width]) for edge in edges)
    return [
        cv2.countNonZero(edges[0]),
        _count_near(one, other, reach),
        cv2.countNonZero(edges[1]),
        _count_near(other, one, reach),
    ]


def _find_edge(mask: Mask, known: Mask | None) -> Pixels:
    """Mark pixels of the mask that have a neighbour known to lie outside; the picture's border is no edge."""
    inside = (mask if known is None else mask | ~known).view(np.uint8)
    eroded = cv2.erode(inside, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    edge = mask & (eroded == 0)
    return cast("Pixels", (edge if known is None else edge & known).view(np.uint8))


def _count_near(own: Pixels, others: Pixels, reach: float) -> int:
    """How many pixels of `own` have one of `others` within reach; both uint8 (h, w), 0 and 1.

    cv2.distanceTransform would take 28 ms for 1280x1918, this takes 2, and is exact in whole numbers: nearly
    all pixels have one inside the square that fits into the circle, or none in the square around it. Only
    those between are measured.
    """
    if not cv2.countNonZero(own) or not cv2.countNonZero(others):
        return 0
    limit = int(reach * reach * (1 + 1e-9))  # squared; a reach of 3 may have come out as 2.9999999999999996
    inner, outer = math.isqrt(limit // 2), math.isqrt(limit)
    surely = own & _dilate(others, inner)
    perhaps = (own ^ surely) & _dilate(others, outer)
    sure = cv2.countNonZero(surely)
    left, top, width, height = cv2.boundingRect(perhaps)
    if not width:
        return sure
    row, column = np.nonzero(perhaps[top : top + height, left : left + width])
    around = np.pad(others, outer)[top : top + height + 2 * outer, left : left + width + 2 * outer]
    # How many there are in a row up to each column
    before = np.zeros((around.shape[0], around.shape[1] + 1), np.int32)
    np.cumsum(around, axis=1, out=before[:, 1:])
    near = np.zeros(len(row), np.bool_)
    for step in range(-outer, outer + 1):
        half = math.isqrt(limit - step * step)
        line, middle = row + outer + step, column + outer
        near |= before[line, middle + half + 1] > before[line, middle - half]
    return sure + int(near.sum())


def _dilate(mask: Pixels, by: int) -> Pixels:
    """Every pixel of the mask as a square that goes `by` pixels to each side."""
    return cast("Pixels", cv2.dilate(mask, np.ones((2 * by + 1, 2 * by + 1), np.uint8)))
