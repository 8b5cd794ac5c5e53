"""Dice, IoU, accuracy, precision, recall and boundary F1, and how far they can be trusted.

Everything is a sum over pixels of a picture, so that a set of a hundred thousand pictures is judged without keeping one of
them: `count` turns a picture into a few integers, `scores` turns integers into figures, `interval` says how much the figures
would move with another draw of groups.

Two ways to average are in use, and both are given. Pooled: over all pixels of all pictures, as CamVid and Cityscapes do for
IoU. Per picture: the mean of every picture's own value, as Carvana does for Dice; a picture in which a class neither occurs nor
is found says nothing about it and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.errors import UsageError
from unet_batch.training.encoding import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

    Floats = NDArray[np.float64]

# Of the picture's diagonal: how far apart two boundaries may be and still agree (Csurka et al., BMVC 2013).
BOUNDARY_TOLERANCE = 0.0075


@dataclass(frozen=True, eq=False)
class Counts:
    """One picture as integers.

    Attributes:
        key: of the picture.
        group: pictures of one group are not independent: photos of one car, frames of one film.
        confusion: int64 (classes, classes): pixels of each class (row) that were found as each class (column); void left out.
        boundary: int64 (classes, 4): boundary pixels found, those of them near a true boundary, true boundary pixels, those of
            them near a found one.
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
        pooled: of each class, by name: `dice`, `iou`, `precision`, `recall`, `boundary_f1`; float64 (classes,).
        per_picture: mean over pictures of `dice` and `iou`, float64 (classes,).
    """

    pictures: int
    accuracy: float
    pooled: dict[str, Floats]
    per_picture: dict[str, Floats]

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For JSON; nan becomes null."""

        def by_class(values: Floats) -> dict[str, float | None]:
            return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}

        return {
            "pictures": self.pictures,
            "accuracy": self.accuracy,
            "pooled": {metric: by_class(values) for metric, values in self.pooled.items()},
            "per_picture": {metric: by_class(values) for metric, values in self.per_picture.items()},
        }


def count(found: Pixels, truth: Pixels, classes: int, *, key: str = "", group: str = "") -> Counts:
    """Compare a mask with the truth.

    Args:
        found: uint8 (height, width), ids below `classes`.
        truth: the same, or `VOID` where nothing is known: there nothing is counted.
        classes: how many ids there are; 2 for one class against background.
        key, group: see `Counts`.

    Raises:
        UsageError: other sizes, or ids that do not exist.
    """
    if found.shape != truth.shape or found.ndim != 2:
        raise UsageError(f"{key or 'mask'}: masks of {found.shape} and {truth.shape} cannot be compared, one size expected")
    known = truth != VOID
    for what, mask in (("found", found), ("true", truth)):
        highest = int(mask[known].max(initial=0))
        if highest >= classes:
            raise UsageError(f"{key or 'mask'}: the {what} mask holds id {highest}, the classes are 0 to {classes - 1}")
    pairs = classes * truth[known].astype(np.int64) + found[known]
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)
    reach = max(1.0, BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape)))
    boundary = np.array([_boundary(found == k, truth == k, known, reach) for k in range(classes)], np.int64)
    return Counts(key, group, confusion, boundary)


def scores(counts: Sequence[Counts]) -> Scores:
    """Figures of a set of pictures.

    Raises:
        UsageError: there are none.
    """
    if not counts:
        raise UsageError("nothing to score: no picture has a mask to compare with")
    return _scores(*_stacked(counts))


def _stacked(counts: Sequence[Counts]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([each.confusion for each in counts]), np.array([each.boundary for each in counts])


def _scores(confusion: NDArray[np.int64], boundary: NDArray[np.int64]) -> Scores:
    """Of int64 (pictures, classes, classes) and (pictures, classes, 4)."""
    total, boundary = confusion.sum(0), boundary.sum(0)
    right = np.trace(total)
    with np.errstate(invalid="ignore", divide="ignore"):
        near_found, near_true = boundary[:, 1] / boundary[:, 0], boundary[:, 3] / boundary[:, 2]
        pooled = _of_confusion(total)
        pooled["boundary_f1"] = np.where(
            boundary[:, 0] + boundary[:, 2] == 0,
            np.nan,
            np.nan_to_num(2 * near_found * near_true / (near_found + near_true)),
        )
    single = _of_confusion(confusion)
    return Scores(
        pictures=len(confusion),
        accuracy=float(right / total.sum()) if total.sum() else float("nan"),
        pooled=pooled,
        per_picture={metric: _mean(single[metric]) for metric in ("dice", "iou")},
    )


def interval(
    counts: Sequence[Counts], figure: Callable[[Scores], float], *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval of a figure, resampling whole groups: pictures of one group would make it too narrow.

    Args:
        counts: of the pictures.
        figure: what to judge, of the scores of a sample.
        samples: how many sets are drawn.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        Lower and upper end; both are the figure itself where there is a single group, which says nothing of others.
    """
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(counts):
        groups.setdefault(each.group or each.key, []).append(index)
    if len(groups) < 2:
        value = figure(scores(counts))
        return value, value
    members = [np.array(indices) for indices in groups.values()]
    confusion, boundary = _stacked(counts)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        sample = np.concatenate([members[index] for index in random.integers(0, len(members), len(members))])
        drawn.append(figure(_scores(confusion[sample], boundary[sample])))
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _of_confusion(confusion: NDArray[np.int64]) -> dict[str, Floats]:
    """Dice, IoU, precision and recall of each class, (..., classes); nan where a class neither occurs nor was found."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, found = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "dice": 2 * hits / (true + found),
            "iou": hits / (true + found - hits),
            "precision": hits / found,
            "recall": hits / true,
        }


def _mean(values: Floats) -> Floats:
    """Mean over the first axis without nan; nan where there is nothing else."""
    some = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(some, values, 0).sum(0) / some.sum(0), np.float64)


def _boundary(found: NDArray[np.bool_], truth: NDArray[np.bool_], known: NDArray[np.bool_], reach: float) -> list[int]:
    edges = [_edge(mask, known) for mask in (found, truth)]
    sizes = [int(edge.sum()) for edge in edges]
    near = []
    for own, other in ((0, 1), (1, 0)):
        if not sizes[own] or not sizes[other]:
            near.append(0)
            continue
        distance = cv2.distanceTransform((~edges[other]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near.append(int((distance[edges[own]] <= reach).sum()))
    return [sizes[0], near[0], sizes[1], near[1]]


def _edge(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour that is known to lie outside; the picture's own border is no boundary."""
    inside = (mask | ~known).astype(np.uint8)
    eroded = cv2.erode(inside, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(mask & known & (eroded == 0), np.bool_)
