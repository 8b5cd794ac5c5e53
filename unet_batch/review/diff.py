"""Two sets of masks of the same pictures compared: where they differ, and which is nearer to the truth."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.datasets.encoding import VOID
from unet_batch.datasets.sheet import Comparison, comparison_sheet
from unet_batch.errors import ImageError, ItemError, UsageError
from unet_batch.evaluation import metrics
from unet_batch.evaluation.classes import match_classes
from unet_batch.evaluation.predictions import find_masks
from unet_batch.files.atomic import write_atomic
from unet_batch.media import images
from unet_batch.run.finished import FinishedRun
from unet_batch.run.manifest import Manifest
from unet_batch.run.masks import LabelTable, read_ids
from unet_batch.types import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interval = tuple[float, float, float]
"""A mean, and the ends of its interval."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A picture in both sets.

    Attributes:
        key: of the picture.
        dice, iou: how far both masks agree; of several classes the mean of those in either, the background
            left out; 1 where both are empty.
        truth_a, truth_b: Dice of either with the truth; None without one.
    """

    key: str
    dice: float
    iou: float
    truth_a: float | None = None
    truth_b: float | None = None


@dataclass(frozen=True)
class Diff:
    """What a comparison has found.

    Attributes:
        pictures: the worst first.
        only_a, only_b, without_truth: how many are in one set only, or have no true mask.
        failures: what could not be compared, the first hundred.
        dice, iou: means over pictures, with bootstrap intervals.
        truth_a, truth_b: the same of Dice with the truth; None without one.
        gain: mean of what B has more than A, picture by picture.
        same: pictures whose masks are equal.
    """

    pictures: tuple[Difference, ...]
    only_a: int
    only_b: int
    without_truth: int
    failures: tuple[str, ...]
    dice: Interval
    iou: Interval
    truth_a: Interval | None
    truth_b: Interval | None
    gain: Interval | None
    same: int


class MaskSet:
    """Masks by the keys of their pictures: an output folder of a run, or a folder of mask files.

    Args:
        folder: which.

    Raises:
        UsageError, SourceError, ImageError: it holds no masks, or their values have no meaning.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._run = FinishedRun(folder) if Manifest.is_in(folder) else None
        self._files: dict[str, tuple[str, str]] = {}
        if self._run is not None:
            self.classes = self._run.classes
            self._table = LabelTable.of(self.classes)
        else:
            dataset = find_masks(folder)
            self.classes, self._decode = dataset.classes, dataset.masks.decode
            self._files = {pair.key: (pair.mask, "") for pair in dataset.pairs}

    def entries(self) -> Iterator[tuple[str, str, str]]:
        """Key, mask and source of each picture, in the order of their keys' components."""
        if self._run is None:
            for key in sorted(self._files, key=_order):
                yield key, *self._files[key]
            return
        for item in self._run.items():
            if not item.is_clip and item.files.get("mask", "").lower().endswith(".png"):
                yield item.key, item.files["mask"], item.source

    def read(self, mask: str) -> NDArray[Any]:
        """Ids of a mask, uint8 (height, width); 0 and 1 of one class. Raises ImageError."""
        return read_ids(mask, self._table) if self._run is not None else self._decode(mask).ids

    def close(self) -> None:
        """Let go of the records of a run."""
        if self._run is not None:
            self._run.close()


def diff(
    a: MaskSet, b: MaskSet, truth: MaskSet | None = None, progress: Callable[[int], None] = lambda done: None
) -> Diff:
    """Compare two sets of masks.

    Args:
        a, b: the sets; pictures are matched by their keys.
        truth: true masks, if there are any.
        progress: hears how many pictures were compared.

    Raises:
        UsageError: they are of other classes, or have no picture in common.
    """
    names, _ = match_classes(a.classes, b.classes)
    if truth is not None:
        match_classes(truth.classes, a.classes)
    ids = _judged(names, a.classes)
    found: list[Difference] = []
    only = {"a": 0, "b": 0, "truth": 0}
    failures: list[str] = []
    known = {key: mask for key, mask, _ in truth.entries()} if truth is not None else {}
    for key, first, second, _ in _matched(a, b, only):
        try:
            one, two = a.read(first), b.read(second)
            dice, iou = _compare(one, two, key, len(names), ids)
            truths: list[float] = []
            if truth is not None and key in known:
                right = truth.read(known[key])
                truths = [_compare(mask, right, key, len(names), ids)[0] for mask in (one, two)]
            elif truth is not None:
                only["truth"] += 1
            found.append(Difference(key, dice, iou, *truths))
        except (ItemError, UsageError) as error:
            failures += [error.message] if len(failures) < 100 else []
        progress(len(found))
    if not found:
        why = f": {failures[0]}" if failures else ""
        raise UsageError(
            f"{a.folder} and {b.folder} have no picture in common that can be compared{why}",
            hint="name two output folders of runs over the same pictures",
        )
    judged = [each for each in found if each.truth_a is not None]
    gains = [(each.truth_b or 0.0) - (each.truth_a or 0.0) for each in judged]
    return Diff(
        tuple(sorted(found, key=lambda each: each.dice)),  # of the same, they stay in the order of their keys
        only["a"],
        only["b"],
        only["truth"],
        tuple(failures),
        _interval([each.dice for each in found]),
        _interval([each.iou for each in found]),
        _interval([each.truth_a or 0.0 for each in judged]) if judged else None,
        _interval([each.truth_b or 0.0 for each in judged]) if judged else None,
        _interval(gains) if judged else None,
        sum(each.dice == 1.0 for each in found),
    )


def write_csv(path: str, result: Diff) -> None:
    """Write a row a picture, the worst first. Raises OutputError."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    head = ["picture", "dice", "iou"]
    with_truth = result.gain is not None
    rows.writerow([*head, "truth_dice_a", "truth_dice_b", "gain"] if with_truth else head)
    for each in result.pictures:
        row: list[Any] = [each.key, f"{each.dice:.6f}", f"{each.iou:.6f}"]
        if each.truth_a is not None and each.truth_b is not None:
            values = each.truth_a, each.truth_b, each.truth_b - each.truth_a
            row += [f"{value:.6f}" for value in values]
        elif with_truth:
            row += ["", "", ""]
        rows.writerow(row)
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


def draw_sheet(a: MaskSet, b: MaskSet, result: Diff, count: int) -> bytes | None:
    """Draw the pictures in which both differ most, as a JPEG: photo, A, B, and where they differ.

    None where nothing differs.
    """
    wanted = [each for each in result.pictures if each.dice < 1][:count]
    places = {each.key for each in wanted}
    nowhere = {"a": 0, "b": 0}
    files = {key: rest for key, *rest in _matched(a, b, nowhere) if key in places}
    rows = []
    for each in wanted:
        first, second, source = files[each.key]
        pixels = None
        with suppress(ImageError):
            pixels = images.read(source).pixels if source else None
        if pixels is not None and pixels.shape[2] != 3:
            pixels = None
        rows.append(Comparison(each.key, f"Dice {each.dice:.4f}", pixels, a.read(first), b.read(second)))
    return comparison_sheet(rows, a.classes, sides=("A", "B")) if rows else None


def _matched(a: MaskSet, b: MaskSet, only: dict[str, int]) -> Iterator[tuple[str, str, str, str]]:
    """Key, both masks and source of each picture in both sets; counts the others."""
    left, right = a.entries(), b.entries()
    one, two = next(left, None), next(right, None)
    while one is not None or two is not None:
        if two is None or (one is not None and _order(one[0]) < _order(two[0])):
            only["a"] += 1
            one = next(left, None)
        elif one is None or _order(two[0]) < _order(one[0]):
            only["b"] += 1
            two = next(right, None)
        else:
            yield one[0], one[1], two[1], one[2] or two[2]
            one, two = next(left, None), next(right, None)


def _compare(
    one: NDArray[Any], two: NDArray[Any], key: str, classes: int, ids: Sequence[int]
) -> tuple[float, float]:
    """Dice and IoU, their mean over the classes in either mask; 1 where none is."""
    if (one == VOID).any():  # nothing is known there: truth is what may say so
        one, two = two, one
    _, scores = metrics.score_each(
        [metrics.count(one.astype(np.uint8), two.astype(np.uint8), classes, key=key)]
    )
    figures = []
    for metric in ("dice", "iou"):
        values = scores[metric][0, list(ids)]
        values = values[~np.isnan(values)]
        figures.append(float(values.mean()) if len(values) else 1.0)
    return figures[0], figures[1]


def _judged(names: Sequence[str], classes: ClassTable) -> list[int]:
    background = ClassTable(tuple(names), ()).background if len(classes.names) > 1 else 0
    return [id for id in range(len(names)) if id != background]


def _interval(values: Sequence[float]) -> Interval:
    """Mean, and its bootstrap interval over pictures."""
    sums = np.array(values, np.float64)[:, None]
    groups = [str(number) for number in range(len(values))]
    [(low, high)] = metrics.bootstrap(sums, groups, lambda totals, counts: totals / counts[:, None])
    return float(sums.mean()), low, high


def _order(key: str) -> list[str]:
    return key.split("/")


def default_csv(a: str, b: str) -> str:
    """Where the table goes unless somebody says otherwise: into the current folder."""
    first, second = (os.path.basename(os.path.abspath(folder)) for folder in (a, b))
    return f"diff-{first}-{second}.csv"
