"""Objects instead of pixels: average precision, panoptic quality, and the Rand and information scores.

An object is a connected component of one class. Pixels are connected by their sides (4-connectivity): a line
of one pixel parts two objects however it runs, and so the ISBI 2012 challenge counts cells. Of true masks
that come from annotations the objects are the annotated ones, whether they touch or not.

| figure      | of one class                                                                               |
|-------------|--------------------------------------------------------------------------------------------|
| ap50, ap75  | TP / (TP + FP + FN) at an IoU over 0.5, over 0.75                                          |
| ap          | the mean of that over 0.5, 0.55, ... 0.95 (Data Science Bowl 2018, StarDist)               |
| rq, sq, pq  | TP / (TP + FP/2 + FN/2), mean IoU of the TP, their product (Kirillov et al., CVPR 2019)    |
| rand, info  | scores of pixels of true objects (Arganda-Carreras et al., 2015), `_compare_partitions`    |

An object is a TP where its IoU with a true one is over the threshold, which is 0.5 at least: no other can
have as much of either, so there is nothing to assign. Void counts in no IoU, and a found object that is no TP
and lies in void by more than half counts as no FP, as in Kirillov's rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from unet_batch.datasets.encoding import VOID
from unet_batch.evaluation.metrics import bootstrap, mean_of_some

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]
    Labels = NDArray[np.int32]

LABELS = {
    "ap": "mean AP per picture",
    "ap50": "mean AP50 per picture",
    "pq": "PQ (all objects)",
    "rand": "mean V-Rand per picture",
    "info": "mean V-Info per picture",
}
"""What the main figures are called; PQ is over all objects, the others are means of the pictures' own."""
FIGURES = ("ap", "ap50", "ap75", "pq", "sq", "rq", "rand")
"""Those that can be added up over all pictures; per picture there is `info`, too."""
_TWENTIETHS = np.arange(10, 20)  # the thresholds 0.5 to 0.95, so that whole numbers are compared
_AP50, _AP75 = 0, 5  # of them

# Numbers of a picture: true objects; TP and FP at each threshold; sum of the IoU of the TP at 0.5; of the
# pairs of pixels of true objects those in one object of both, of what was found, of the truth; the
# information score, nan where there is no true object.
_TRUE, _TP, _FP, _IOU, _PAIRS, _INFO, _NUMBERS = 0, slice(1, 11), slice(11, 21), 21, slice(22, 25), 25, 26


@dataclass(frozen=True, eq=False)
class ObjectCounts:
    """The objects of one picture as numbers: 208 bytes for each class.

    Attributes:
        key, group: as in `metrics.Counts`.
        numbers: float64 (classes, 26); what they are stands above.
    """

    key: str
    group: str
    numbers: Floats


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """Figures of a set of pictures, each float64 (classes,); nan where there is nothing to judge.

    Attributes:
        true, found: how many objects there are.
        pooled: FIGURES over all objects (and pairs of pixels) of all pictures.
        per_picture: mean of the pictures' own FIGURES and "info"; those without any object are left out, and
            of "rand" and "info" those without a true one.
    """

    true: Floats
    found: Floats
    pooled: dict[str, Floats]
    per_picture: dict[str, Floats]

    def mean(self, figure: str, *, per_picture: bool = False) -> float:
        """Mean of a figure over classes, leaving out those without one; nan if that is all of them."""
        return mean_of_some((self.per_picture if per_picture else self.pooled)[figure])


@dataclass(frozen=True, eq=False)
class ObjectFigures:
    """The figures of the objects of a set of pictures, with their intervals.

    Attributes:
        counts: of each picture that could be judged.
        names: of the classes, as many as there are in each of `counts`.
        annotated: whether the true objects are those of annotations, not components of masks.
    """

    counts: tuple[ObjectCounts, ...]
    names: tuple[str, ...]
    annotated: bool

    @cached_property
    def scores(self) -> ObjectScores:
        """The figures of all pictures; there is at least one."""
        return scores(self.counts)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of LABELS, over groups; empty if there are fewer than two."""
        if len({each.group or each.key for each in self.counts}) < 2:
            return {}
        figures = {
            figure: partial(ObjectScores.mean, figure=figure, per_picture=figure != "pq") for figure in LABELS
        }
        return intervals(self.counts, figures)

    def headline(self, figure: str) -> float:
        """One of LABELS, the mean over the classes."""
        return self.scores.mean(figure, per_picture=figure != "pq")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; nan becomes null."""

        def by_class(values: Floats) -> dict[str, float | None]:
            return dict(zip(self.names, map(_number, values.tolist()), strict=True))

        def whole(values: Floats) -> dict[str, int]:
            return dict(zip(self.names, map(int, values), strict=True))

        found = self.scores
        return {
            "true_objects": "annotated" if self.annotated else "components",
            "connectivity": 4,
            "true": whole(found.true),
            "found": whole(found.found),
            "pooled": {figure: by_class(values) for figure, values in found.pooled.items()},
            "per_picture": {figure: by_class(values) for figure, values in found.per_picture.items()},
            "mean": {
                **{figure: _number(found.mean(figure)) for figure in FIGURES},
                **{
                    f"{figure}_per_picture": _number(found.mean(figure, per_picture=True))
                    for figure in found.per_picture
                },
            },
            "intervals": {
                figure if figure == "pq" else f"{figure}_per_picture": [_number(end) for end in ends]
                for figure, ends in self.intervals.items()
            },
        }


def count(
    found: Pixels,
    truth: Pixels,
    ids: Sequence[int],
    *,
    objects: Labels | None = None,
    key: str = "",
    group: str = "",
) -> ObjectCounts:
    """Compare the objects of a mask with the true ones; takes 20 to 40 bytes a pixel meanwhile.

    Args:
        found: uint8 (height, width), ids.
        truth: the same, VOID where nothing is known.
        ids: the classes whose objects are looked at.
        objects: int32 (height, width), the number of the true object that each pixel belongs to, where these
            are known; None takes the components of `truth`.
        key, group: see `ObjectCounts`.
    """
    void = truth == VOID
    known = ~void if void.any() else None
    numbers = [_count(found == id, truth == id, known, objects) for id in ids]
    return ObjectCounts(key, group, np.array(numbers))


def scores(counts: Sequence[ObjectCounts]) -> ObjectScores:
    """Figures of a set of pictures; there is at least one."""
    return _scores(_sums(counts).sum(0)[None])[0]


def score_each(counts: Sequence[ObjectCounts]) -> dict[str, Floats]:
    """Compute each picture's figures: `true`, `found`, FIGURES and `info`, float64 (pictures, classes)."""
    numbers = np.array([each.numbers for each in counts])
    return {"true": numbers[..., _TRUE], "found": _found(numbers), **_figures(numbers)}


def intervals(
    counts: Sequence[ObjectCounts], figures: Mapping[str, Callable[[ObjectScores], float]]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of figures over groups; see `metrics.bootstrap`."""

    def judge(sums: Floats, pictures: Floats) -> list[list[float]]:
        return [[figure(found) for figure in figures.values()] for found in _scores(sums)]

    groups = [each.group or each.key for each in counts]
    return dict(zip(figures, bootstrap(_sums(counts), groups, judge), strict=True))


# Of one picture and class -----------------------------------------------------------------------------------


def _count(found: Mask, truth: Mask, known: Mask | None, objects: Labels | None) -> Floats:
    """The numbers of a picture for one class, float64 (_NUMBERS,)."""
    numbers = np.zeros(_NUMBERS)
    ours, theirs = _label(found), _label(truth) if objects is None else np.where(truth, objects, 0)
    whole, true = np.bincount(ours.ravel()), np.bincount(theirs.ravel())
    area = whole if known is None else np.bincount(ours[known], minlength=len(whole))
    whole, area, true = whole[1:], area[1:], true[1:]  # background is no object
    numbers[_TRUE] = np.count_nonzero(true)
    one, other, shared = _overlaps(theirs, ours, found & (theirs > 0))
    union = true[one - 1] + area[other - 1] - shared
    hit = 20 * shared[:, None] > _TWENTIETHS * union[:, None]
    counts = np.ones((len(area), len(_TWENTIETHS)), np.bool_)
    counts[2 * area < whole] = False  # in void, unless it is a TP
    counts[other - 1] |= hit
    numbers[_TP] = hit.sum(0)
    numbers[_FP] = counts.sum(0) - hit.sum(0)
    numbers[_IOU] = (shared / np.maximum(union, 1))[hit[:, _AP50]].sum()
    numbers[_PAIRS], numbers[_INFO] = _compare_partitions(theirs, ours, true)
    return numbers


def _compare_partitions(theirs: Labels, ours: Labels, true: NDArray[np.int64]) -> tuple[Floats, float]:
    """Pairs of pixels in one object, and the information score, over the pixels of true objects.

    What was found first grows until its objects meet: their borders shall not count, however wide they are.
    Where nothing was found each pixel is an object of its own.
    """
    pixels = int(true.sum())
    if not pixels:
        return np.zeros(3), float("nan")
    if ours.any():
        _, other, joint = _overlaps(theirs, _grow(ours), theirs > 0)
        found = np.asarray(np.bincount(other, joint), np.float64)
    else:
        joint = found = np.ones(pixels)
    sizes = [each[each > 0].astype(np.float64) for each in (joint, found, true)]
    pairs = np.array([(each**2).sum() for each in sizes])
    both, ours_alone, theirs_alone = (np.log(pixels) - (each * np.log(each)).sum() / pixels for each in sizes)
    total = ours_alone + theirs_alone
    # One object, found as one: nothing to learn, and all of it was
    info = 2 * (total - both) / total if total > 1e-12 else 1.0
    return pairs, float(np.clip(info, 0, 1))


def _label(mask: Mask) -> Labels:
    """Number the connected components from 1; 0 is background."""
    return cast("Labels", cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)[1])


def _overlaps(one: Labels, other: Labels, where: Mask) -> tuple[Labels, Labels, Floats]:
    """Which pairs of labels share pixels `where`, and how many each.

    Labels come in runs along rows, so runs are sorted, not pixels.
    """
    first, second = one[where], other[where]
    if not len(first):
        return first, second, np.zeros(0)
    starts = np.flatnonzero((first[1:] != first[:-1]) | (second[1:] != second[:-1])) + 1
    starts = np.concatenate([[0], starts])
    lengths = np.diff(starts, append=len(first))
    width = int(second.max()) + 1
    pairs, places = np.unique(first[starts].astype(np.int64) * width + second[starts], return_inverse=True)
    left, right = np.divmod(pairs, width)
    shared = np.asarray(np.bincount(places, lengths), np.float64)
    return left.astype(np.int32), right.astype(np.int32), shared


def _grow(labels: Labels) -> Labels:
    """Give each pixel of the background to the nearest object; there is one."""
    inside = labels > 0
    nearest = cv2.distanceTransformWithLabels(
        (~inside).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    table = np.zeros(int(nearest.max()) + 1, np.int32)
    table[nearest[inside]] = labels[inside]
    return cast("Labels", table[nearest])


# Of many pictures -------------------------------------------------------------------------------------------


def _found(numbers: Floats) -> Floats:
    """How many objects were found, those in void left out."""
    return np.asarray(numbers[..., _TP][..., _AP50] + numbers[..., _FP][..., _AP50], np.float64)


def _figures(numbers: Floats) -> dict[str, Floats]:
    """FIGURES and "info" of numbers (..., _NUMBERS), each (...); nan where there is nothing to judge."""
    true, hits, extra = numbers[..., _TRUE], numbers[..., _TP], numbers[..., _FP]
    joint, found, truth = np.moveaxis(numbers[..., _PAIRS], -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = hits / (true[..., None] + extra)  # true is TP + FN
        half = hits[..., _AP50]
        quality = half / ((true + half + extra[..., _AP50]) / 2)
        iou = numbers[..., _IOU] / half
        return {
            "ap": precision.mean(-1),
            "ap50": precision[..., _AP50],
            "ap75": precision[..., _AP75],
            "pq": np.where(half > 0, quality * iou, quality),  # 0, or nan without any object
            "sq": iou,
            "rq": quality,
            "rand": 2 * joint / (found + truth),
            "info": numbers[..., _INFO],
        }


def _sums(counts: Sequence[ObjectCounts]) -> Floats:
    """float64 (pictures, classes, n): the numbers, then of each figure its value and whether there is one."""
    numbers = np.array([each.numbers for each in counts])
    columns = [np.nan_to_num(numbers)]
    for values in _figures(numbers).values():
        some = ~np.isnan(values)
        columns.append(np.stack([np.where(some, values, 0), some], -1))
    return np.concatenate(columns, -1)


def _scores(sums: Floats) -> list[ObjectScores]:
    """Of float64 (sets, classes, n) as `_sums` makes them, added up over the pictures of each set."""
    numbers, values, some = sums[..., :_NUMBERS], sums[..., _NUMBERS::2], sums[..., _NUMBERS + 1 :: 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.swapaxes(values / some, 1, 2)
    true, found, figures = numbers[..., _TRUE], _found(numbers), _figures(numbers)
    return [
        ObjectScores(
            true=true[index],
            found=found[index],
            pooled={name: figures[name][index] for name in FIGURES},
            per_picture=dict(zip((*FIGURES, "info"), means[index], strict=True)),
        )
        for index in range(len(sums))
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
