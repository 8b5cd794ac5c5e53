"""The files of an evaluation: evaluation.json, pictures.csv, and a sheet of the worst pictures."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unet_batch.datasets.sheet import comparison_sheet
from unet_batch.evaluation import objects
from unet_batch.evaluation.evaluate import METRICS, comparison
from unet_batch.evaluation.metrics import score_each
from unet_batch.files.atomic import write_atomic, write_json
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.evaluation.evaluate import Evaluation
    from unet_batch.evaluation.predictions import Predictions
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.types import ModelSpec

FILES = ("evaluation.json", "pictures.csv")
_COUNTS = ("true", "found")
_OBJECTS = (*_COUNTS, "ap", "ap50", "ap75", "pq", "rand", "info")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """An evaluation, and what was evaluated: a model on a backend, or predictions.

    Attributes:
        dataset: where the true masks come from.
        pairs: what was judged, of the dataset.
        evaluation: the figures.
        model: what identifies the model, see `ModelFile.as_dict`; None for predictions.
        backend: what ran it, and how; None for predictions.
        predictions: their folder, and how they were understood; None for a model.
        sheet: the worst pictures as a JPEG; None where none was asked for, or nothing is marked or found.
    """

    dataset: Dataset
    pairs: Sequence[Pair]
    evaluation: Evaluation
    model: Mapping[str, Any] | None = None
    backend: Mapping[str, Any] | None = None
    predictions: Mapping[str, Any] | None = None
    sheet: bytes | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything that does not depend on the command or the machine."""
        return {
            "unet_batch": __version__,
            "ok": not self.evaluation.failures,
            "dataset": self.dataset.root,
            "reasons": list(self.dataset.reasons),
            "pairs": len(self.pairs),
            "groups": len({pair.group for pair in self.pairs}),
            "model": self.model,
            "backend": self.backend,
            "predictions": self.predictions,
            **self.evaluation.as_dict(),
        }

    def pictures_csv(self) -> bytes:
        """Give each picture a row, in the order of the pairs; what has no figure is empty."""
        header = ["key", "group", "error"]
        cells: dict[str, list[str]] = {pair.key: [] for pair in self.pairs}
        errors = {failure.key: failure.message for failure in self.evaluation.failures}
        for size, figures in (("photo", self.evaluation.photo), ("network", self.evaluation.network)):
            if figures is None:
                continue
            columns = [(metric, id) for id in figures.judged for metric in METRICS]
            header.append(f"{size}_accuracy")
            header += [f"{size}_{metric}_{figures.names[id]}" for metric, id in columns]
            accuracy, values = score_each(figures.counts)
            for row, each in enumerate(figures.counts):
                found = [accuracy[row], *(values[metric][row, id] for metric, id in columns)]
                cells[each.key] += map(_cell, found)
        if (seen := self.evaluation.objects) is not None and seen.counts:
            columns = [(figure, id) for id in range(len(seen.names)) for figure in _OBJECTS]
            header += [f"objects_{figure}_{seen.names[id]}" for figure, id in columns]
            values = objects.score_each(seen.counts)
            for row, objects_of in enumerate(seen.counts):
                cells[objects_of.key] += [
                    _cell(values[figure][row, id], whole=figure in _COUNTS) for figure, id in columns
                ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for pair in self.pairs:
            line = [pair.key, pair.group, errors.get(pair.key, ""), *cells[pair.key]]
            writer.writerow(line + [""] * (len(header) - len(line)))
        return text.getvalue().encode("utf-8", "backslashreplace")

    def write(self, folder: str | None, sheet: str | None, document: Mapping[str, Any]) -> None:
        """Write FILES into a folder, and the sheet; None leaves either out.

        Args:
            folder: made if it is missing.
            sheet: the JPEG's path.
            document: what evaluation.json shall hold: `as_dict`, and what the caller adds.

        Raises:
            OutputError: a file cannot be written.
        """
        if folder is not None:
            json_path, csv_path = (os.path.join(os.path.abspath(folder), name) for name in FILES)
            write_json(json_path, document)
            write_atomic(csv_path, self.pictures_csv())
        if sheet is not None and self.sheet is not None:
            write_atomic(os.path.abspath(sheet), self.sheet)


def _cell(value: float, *, whole: bool = False) -> str:
    return "" if value != value else f"{value:.0f}" if whole else f"{value:.6f}"  # nan is not itself


def worst_sheet(
    dataset: Dataset,
    pairs: Sequence[Pair],
    evaluation: Evaluation,
    count: int,
    source: Segmenter | Predictions,
) -> bytes | None:
    """Draw the `count` worst pictures as a JPEG, reading and segmenting them again: no pixels were kept.

    Returns:
        The JPEG; None if `count` is 0, or if nothing is marked and nothing was found in any picture.

    Raises:
        ImageError: a file cannot be read any more.
        BackendError: inference failed.
    """
    by_key = {pair.key: pair for pair in pairs}
    rows = [
        comparison(dataset, by_key[key], source, f"Dice {dice:.4f}")
        for key, dice in evaluation.ranked()[:count]
    ]
    return comparison_sheet(rows, dataset.classes) if rows else None


def trained_on(spec: ModelSpec, dataset: Dataset, pairs: Sequence[Pair]) -> tuple[int, int, str] | None:
    """Guess whether a model was trained on these pairs, by their number and the folder's name.

    Returns:
        How many images of them trained the model, how many were kept out, and the file beside the model that
        names these; None if it was not.
    """
    seen, kept_out = spec.training.get("train_images"), spec.training.get("val_images")
    if not (isinstance(seen, int) and isinstance(kept_out, int)):
        return None
    listed = "val.txt"
    if spec.training.get("data") != dataset.name:
        seen, kept_out = spec.training.get("datasets", {}).get(dataset.name, (0, 0))  # one of several
        listed = f"val-{dataset.name}.txt"
    return (seen, kept_out, listed) if seen and len(pairs) == seen + kept_out else None
