"""Evaluate a model, or masks that somebody predicted, against the true masks.

| at                 | the truth                               | what was found                             |
|--------------------|-----------------------------------------|--------------------------------------------|
| the photo's size   | the mask                                | the mask that `unet-batch run` would write |
| the network's size | the class that covers most of the pixel | the network's map, cut at the threshold    |

The first is what a user gets, the second what the network was trained for; padding counts in neither. A
network's pixel of which half or more is void is void, else what is known of it decides; pixels that have no
value in the photo's file (nodata, NaN) are void, too. Of a model of one class the figures are that class's,
of one of several their mean over the classes that occur or were found; a list of classes can be named.
Objects are looked at where that is asked for, at the photo's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.datasets.coco import Coco
from unet_batch.datasets.encoding import VOID
from unet_batch.datasets.sheet import Comparison
from unet_batch.errors import BackendError, EncodeError, UnetBatchError
from unet_batch.evaluation import metrics
from unet_batch.evaluation.classes import choose_classes, id_names, match_classes, object_ids
from unet_batch.evaluation.objects import ObjectCounts, ObjectFigures
from unet_batch.evaluation.objects import count as count_objects
from unet_batch.evaluation.predictions import Predictions
from unet_batch.inference import postprocess
from unet_batch.inference.segmenter import BROKEN_DEVICE, Segmenter, as_error, concerns_one_item, item_of
from unet_batch.media import geometry, images, render
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Failed, Pipeline, Stage, cpu_count
from unet_batch.types import HasItem, Item, Prediction

if TYPE_CHECKING:
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.evaluation.metrics import Counts, Scores
    from unet_batch.types import ModelSpec, Pixels, Placement, Size

METRICS = ("dice", "iou", "precision", "recall", "boundary_f1")
_SHOWN = (480, 720)  # pixels that a sheet needs of a photo


@dataclass(frozen=True)
class EvaluationFailure:
    """A picture that could not be judged: its key and path, the message, and a hint."""

    key: str
    path: str
    message: str
    hint: str


@dataclass(frozen=True, eq=False)
class Figures:
    """The metrics of a set of pictures at one size, with their intervals.

    Attributes:
        counts: of each picture that could be judged.
        names: of the ids, background included.
        judged: the ids that count: 1 of a model of one class, all of several.
    """

    counts: tuple[Counts, ...]
    names: tuple[str, ...]
    judged: tuple[int, ...]

    @cached_property
    def scores(self) -> Scores:
        """The figures of all pictures.

        Raises:
            UsageError: not one picture could be judged.
        """
        return metrics.scores(self.counts)

    @cached_property
    def groups(self) -> int:
        """How many groups the pictures are from."""
        return len({each.group or each.key for each in self.counts})

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals over groups; empty if there are fewer than two.

        Of `metrics.LABELS` (means over the classes that count), and for each of these classes of "dice NAME",
        "iou NAME", "marked NAME" and "marked_per_picture NAME".
        """
        if self.groups < 2:
            return {}
        figures: dict[str, Callable[[Scores], float]] = {"accuracy": lambda found: found.accuracy}
        for metric in ("dice", "iou"):
            figures[metric] = partial(metrics.Scores.mean, metric=metric, ids=self.judged)
            figures[f"{metric}_per_picture"] = partial(
                metrics.Scores.mean, metric=metric, ids=self.judged, per_picture=True
            )
            for id in self.judged:
                figures[f"{metric} {self.names[id]}"] = partial(metrics.Scores.mean, metric=metric, ids=(id,))
        for share in ("marked", "marked_per_picture"):
            for id in self.judged:
                figures[f"{share} {self.names[id]}"] = partial(_share_without, share, id)
        return metrics.intervals(self.counts, figures)

    def mean(self, metric: str, *, per_picture: bool = False) -> float:
        """The mean of one of METRICS over the classes that count; see `Scores.mean`."""
        return self.scores.mean(metric, self.judged, per_picture=per_picture)

    def most_marked(self, id: int) -> tuple[str, float] | None:
        """Find the picture without a class with most of it found: its key, and the share of its pixels."""
        shares = [
            (float(each.confusion[:, id].sum() / each.confusion.sum()), each.key)
            for each in self.counts
            if not each.confusion[id].any() and each.confusion.any()
        ]
        share, key = max(shares, key=itemgetter(0), default=(0.0, ""))
        return (key, share) if shares else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; nan becomes null."""
        mean = {metric: self.mean(metric) for metric in METRICS}
        for metric in ("dice", "iou"):
            mean[f"{metric}_per_picture"] = self.mean(metric, per_picture=True)
        ends = {name: [_number(end) for end in ends] for name, ends in self.intervals.items()}
        without = {self.names[id]: self._without(id, ends) for id in self.judged}
        intervals: dict[str, Any] = {"accuracy": ends.pop("accuracy", None), "mean": {}, "pooled": {}}
        for name, pair in ends.items():
            metric, _, of_class = name.partition(" ")
            place = intervals["pooled"].setdefault(metric, {}) if of_class else intervals["mean"]
            place[of_class or metric] = pair
        return {
            "groups": self.groups,
            **self.scores.as_dict(self.names),
            "mean": {metric: _number(value) for metric, value in mean.items()},
            "without": without,
            "intervals": intervals,
        }

    def _without(self, id: int, ends: dict[str, list[float | None]]) -> dict[str, Any]:
        """For JSON: what was found of a class in pictures without it; takes its intervals out of `ends`."""
        worst = self.most_marked(id)
        facts: dict[str, Any] = {"pictures": int(self.scores.without["pictures"][id])}
        for share in ("marked", "marked_per_picture"):
            facts[share] = _number(self.scores.without[share][id])
            facts[f"{share}_interval"] = ends.pop(f"{share} {self.names[id]}", None)
        return {**facts, "worst": worst and {"key": worst[0], "marked": worst[1]}}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `evaluate` or `compare`.

    Attributes:
        photo: at the photos' own size.
        network: at the network's; None where there was none.
        objects: at the photos' own size; None where objects were not asked for.
        size: (height, width) of the network's input, or None.
        failures: pictures that could not be judged: the figures are over the others.
        notes: what a person should know.
        seconds: it took.
    """

    photo: Figures
    network: Figures | None
    objects: ObjectFigures | None
    size: Size | None
    failures: tuple[EvaluationFailure, ...]
    notes: tuple[str, ...]
    seconds: float

    def ranked(self) -> list[tuple[str, float]]:
        """Rank pictures by their Dice at the photo's size, mean over the classes that count, worst first.

        Of pictures with the same Dice, such as 0, the one with more wrong pixels comes first.

        Returns:
            Keys with their Dice; pictures where nothing is marked and nothing was found have none.
        """
        if not self.photo.counts:
            return []
        accuracy, figures = metrics.score_each(self.photo.counts)
        dice = figures["dice"][:, list(self.photo.judged)]
        some = ~np.isnan(dice)
        found = [
            (each.key, float(np.where(row, values, 0).sum() / row.sum()), right)
            for each, values, row, right in zip(self.photo.counts, dice, some, accuracy, strict=True)
            if row.any()
        ]
        return [(key, value) for key, value, _ in sorted(found, key=itemgetter(1, 2))]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; nan becomes null, and figures are null where not one picture could be judged."""
        figures = {"photo": self.photo, "network": self.network}
        return {
            "judged": len(self.photo.counts),
            "failed": len(self.failures),
            "classes": list(self.photo.names),
            "counted": [self.photo.names[id] for id in self.photo.judged],
            "network_size": None if self.size is None else list(self.size),
            **{name: found.as_dict() if found and found.counts else None for name, found in figures.items()},
            "objects": self.objects.as_dict() if self.objects and self.objects.counts else None,
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def evaluate(
    dataset: Dataset,
    pairs: Sequence[Pair],
    segmenter: Segmenter,
    *,
    classes: Sequence[str] | None = None,
    objects: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Segment pictures as `unet-batch run` does, and compare the masks with the true ones.

    Args:
        dataset: says how the true masks are read.
        pairs: what to judge; of the dataset.
        segmenter: open; stays open.
        classes: the names of those that count; see `choose_classes`.
        objects: whether to look at objects, too.
        progress: called with the number of pictures done, from this thread.

    Raises:
        UsageError: the classes of model and dataset are not the same, or one of `classes` is none of them.
        BackendError: the backend fails for one picture after the other.
    """
    names, notes = match_classes(dataset.classes, segmenter.spec.classes)
    judged_ids = choose_classes(dataset.classes, names, classes)
    things = object_ids(names, judged_ids, classes) if objects else ()
    by_key = {pair.key: pair for pair in pairs}
    one = segmenter.spec.output == "probability"

    def judge(prediction: Prediction) -> _Judged:
        item, placement = prediction.frame.item, prediction.frame.placement
        pair = by_key[item.key]
        truth = dataset.read_mask(pair, placement.source)
        if (missing := prediction.frame.missing) is not None:
            truth = np.where(geometry.resize_flags(missing, placement.source), VOID, truth).astype(np.uint8)
        content = geometry.content_of(prediction.map, placement)
        small = (
            np.greater_equal(content, postprocess.cut(segmenter.threshold)).view(np.uint8) if one else content
        )
        small_truth = resize_truth(truth, placement, ties_to_class=one)
        found = _as_ids(segmenter.mask(prediction), segmenter.spec)
        return _Judged(
            item,
            _count(found, truth, pair, names),
            _count(small, small_truth, pair, names),
            _count_objects(found, truth, pair, dataset, things),
        )

    begun = time.perf_counter()
    items = [Item(pair.image, pair.key) for pair in pairs]
    with segmenter.pipeline(items, [("compare", judge)], keep_pixels=False) as outcomes:
        judged, failures = _collect(outcomes, progress)
    photo = Figures(tuple(each.photo for each in judged), names, judged_ids)
    network = Figures(tuple(each.network for each in judged if each.network), names, judged_ids)
    found = _object_figures(judged, dataset, names, things)
    seconds = time.perf_counter() - begun
    return Evaluation(photo, network, found, segmenter.backend.input_size, failures, notes, seconds)


def compare(
    dataset: Dataset,
    pairs: Sequence[Pair],
    predictions: Predictions,
    *,
    classes: Sequence[str] | None = None,
    objects: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Compare masks that somebody predicted with the true ones; photos are not looked at.

    Args:
        dataset: says how the true masks are read.
        pairs: what to judge; of the dataset, each with a prediction.
        predictions: see `find_predictions`.
        classes, objects: see `evaluate`.
        workers: threads; None takes one for each core.
        progress: called with the number of pictures done, from this thread.

    Raises:
        UsageError: one of `classes` is none of the dataset's.
    """
    names = id_names(dataset.classes.names)
    judged_ids = choose_classes(dataset.classes, names, classes)
    things = object_ids(names, judged_ids, classes) if objects else ()
    by_key = {pair.key: pair for pair in pairs}

    def judge(item: Item) -> _Judged:
        pair = by_key[item.key]
        truth = dataset.read_mask(pair)
        found = predictions.read(pair, (truth.shape[0], truth.shape[1]))
        seen = _count_objects(found, truth, pair, dataset, things)
        return _Judged(item, _count(found, truth, pair, names), None, seen)

    begun = time.perf_counter()
    workers = workers or cpu_count()
    stage = Stage("compare", judge, workers, isolate=concerns_one_item)
    items = (Item(pair.mask, pair.key) for pair in pairs)
    with (
        single_threaded_cv2(),
        closing(items),
        Pipeline[HasItem, "_Judged | Failed[HasItem]"](items, [stage], in_flight=4 * workers) as outcomes,
    ):
        judged, failures = _collect(outcomes, progress)
    photo = Figures(tuple(each.photo for each in judged), names, judged_ids)
    found = _object_figures(judged, dataset, names, things)
    return Evaluation(photo, None, found, None, failures, (), time.perf_counter() - begun)


def resize_truth(ids: Pixels, placement: Placement, *, ties_to_class: bool = False) -> Pixels:
    """Resize a true mask to the network's size: each pixel gets the class that covers most of it.

    Args:
        ids: uint8 (height, width) at the source's size, VOID where nothing is known.
        placement: where the picture lies.
        ties_to_class: of classes that cover the same, take the highest id, as one class cut at one half does;
            else the lowest.

    Returns:
        uint8 (h, w) at the size of the placement's content; VOID where half of the pixel or more is void.
    """
    ids = geometry.cover(ids, placement)
    size, occurs = placement.content, np.bincount(ids.reshape(-1), minlength=256)
    known, void = [int(id) for id in np.flatnonzero(occurs[:VOID])], bool(occurs[VOID])
    out: Pixels = np.full(size, known[0] if known else VOID, np.uint8)
    if len(known) == 2 and not void:  # the first has what the second leaves
        share = _coverage(ids, known[1], size)
        out[share >= postprocess.HALF if ties_to_class else share > postprocess.HALF] = known[1]
    elif len(known) > 1:
        best = np.zeros(size, np.uint16)
        for id in known:
            share = _coverage(ids, id, size)
            out[share >= best if ties_to_class else share > best] = id
            np.maximum(best, share, out=best)
    if void and known:
        out[_coverage(ids, VOID, size) >= postprocess.HALF] = VOID
    return out


def comparison(
    dataset: Dataset, pair: Pair, source: Segmenter | Predictions, caption: str = ""
) -> Comparison:
    """Read picture, true mask and predicted mask of a pair, for `sheet.comparison_sheet`.

    Args:
        dataset: says how the true mask is read.
        pair: which; its picture, of which the whole mask and a part of the pixels stay in memory, is read
            again.
        source: what finds the mask.
        caption: a few words, such as its Dice.

    Raises:
        ImageError: a file cannot be read.
        BackendError: inference failed.
    """
    found = source.read(pair) if isinstance(source, Predictions) else _as_ids(source(pair.image), source.spec)
    pixels = None
    if pair.image != pair.mask:
        how: dict[str, Any] = {}
        if isinstance(source, Segmenter):
            how = {"channels": source.channels, "value_range": source.view.options.range}
        pixels = render.visible(images.read(pair.image, at_least=_SHOWN, **how).pixels)
    return Comparison(pair.key, caption, pixels, dataset.read_mask(pair), found)


# Parts of the above -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Judged:
    """What is kept of a picture; of its pixels nothing."""

    item: Item
    photo: Counts
    network: Counts | None
    objects: ObjectCounts | None


def _collect(
    outcomes: Iterable[_Judged | Failed[HasItem]], progress: Callable[[int], None] | None
) -> tuple[list[_Judged], tuple[EvaluationFailure, ...]]:
    judged: list[_Judged] = []
    failures: list[EvaluationFailure] = []
    broken = 0
    for done, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, Failed):
            error, item = _error_of(outcome), item_of(outcome)
            failures.append(EvaluationFailure(item.key, item.path, error.message, error.hint))
            broken = broken + 1 if outcome.stage == "infer" else broken
            if broken >= BROKEN_DEVICE:
                raise (
                    error if isinstance(error, BackendError) else BackendError(error.message, hint=error.hint)
                )
        else:
            judged.append(outcome)
            broken = 0
        if progress is not None:
            progress(done)
    return judged, tuple(failures)


def _error_of(failed: Failed[HasItem]) -> UnetBatchError:
    error = as_error(failed)
    if isinstance(error, EncodeError) and error is not failed.error:
        return error.with_hint("unexpected; please report it with picture and mask")
    return error


def _as_ids(mask: Pixels, spec: ModelSpec) -> Pixels:
    return mask & np.uint8(1) if spec.output == "probability" else mask  # 255 is 1


def _count(found: Pixels, truth: Pixels, pair: Pair, names: Sequence[str]) -> Counts:
    return metrics.count(found, truth, len(names), key=pair.key, group=pair.group)


def _coverage(ids: Pixels, id: int, size: Size) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Compute how much of each pixel at another size a class covers: uint16, 0..postprocess.SHARE."""
    return geometry.resize_map((ids == id).astype(np.uint16) * np.uint16(postprocess.SHARE), size)


def _count_objects(
    found: Pixels, truth: Pixels, pair: Pair, dataset: Dataset, ids: Sequence[int]
) -> ObjectCounts | None:
    if not ids:
        return None
    known = dataset.masks.objects(pair.mask) if isinstance(dataset.masks, Coco) else None
    return count_objects(found, truth, ids, objects=known, key=pair.key, group=pair.group)


def _object_figures(
    judged: Sequence[_Judged], dataset: Dataset, names: Sequence[str], ids: Sequence[int]
) -> ObjectFigures | None:
    if not ids:
        return None
    counts = tuple(each.objects for each in judged if each.objects)
    return ObjectFigures(counts, tuple(names[id] for id in ids), isinstance(dataset.masks, Coco))


def _share_without(share: str, id: int, found: Scores) -> float:
    return float(found.without[share][id])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
