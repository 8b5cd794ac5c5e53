"""`unet-batch evaluate`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from math import nan
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from unet_batch.cli.command import Command, complete_path, option
from unet_batch.cli.options import (
    DatasetOptions,
    NetworkOptions,
    dataset_options,
    json_option,
    network_options,
)
from unet_batch.cli.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.evaluation.evaluate import Evaluation, Figures
    from unet_batch.evaluation.report import EvaluationReport

_SHOWN = 10  # failures that are printed
_COLUMNS = (
    ("dice", "Dice"),
    ("iou", "IoU"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("boundary_f1", "boundary F1"),
)


@click.command(
    cls=Command,
    short_help="Say how good a model, or predicted masks, are.",
    epilog="Exit codes: 0 all pictures judged, 1 some could not be, 2 wrong usage or nothing could be done, "
    "130 interrupted.",
)
@click.argument("folder", metavar="DATASET", shell_complete=complete_path)
@dataset_options
@option(
    "--split",
    "split_file",
    section="Data",
    metavar="FILE",
    help="Judge only the images that this file names, one a line, such as those kept from training.",
)
@option(
    "--predictions",
    section="Data",
    metavar="DIR",
    help="Judge the masks in this folder, or in the output of a run, instead of a model's.",
)
@network_options
@option(
    "-o",
    "--output",
    section="Output",
    metavar="DIR",
    help="Write evaluation.json and pictures.csv (a row for each picture) into this folder.",
)
@option(
    "--sheet",
    section="Output",
    metavar="FILE",
    help="Write a JPEG of the worst pictures: image, truth, prediction, error.",
)
@option(
    "--worst",
    section="Output",
    metavar="N",
    type=click.IntRange(1, 150),
    default=12,
    show_default=True,
    help="Pictures on the sheet.",
)
@option(
    "--workers",
    section="Scale",
    metavar="N",
    type=click.IntRange(1, 256),
    help="Threads for decoding, and as many for comparing.  [default: the cores]",
)
@json_option
def evaluate(
    folder: str,
    data: DatasetOptions,
    split_file: str | None,
    predictions: str | None,
    network: NetworkOptions,
    output: str | None,
    sheet: str | None,
    worst: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Say how good a model is on images with masks, or how good predicted masks are.

    \b
    Examples:
      unet-batch evaluate cars --split val.txt -m mine.safetensors
      unet-batch evaluate cars --split val.txt --sheet worst.jpg -o figures
      unet-batch evaluate cars --predictions photos-segmented
      unet-batch evaluate cars/masks --predictions others

    Dice, IoU, precision, recall, boundary F1 and accuracy over all pixels, and the mean of the Dice of each
    picture, at the photos' own size (the masks that `run` writes) and at the network's, with 95 % intervals
    from whole groups: photos of one car say little of other cars. Nothing in DATASET is written.
    """
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.datasets.split import read_split
    from unet_batch.files.atomic import make_folder
    from unet_batch.run.report import versions

    started, begun = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
    out = Lines(quiet=as_json, to_stderr=as_json)
    dataset = _find(folder, data, masks_only=predictions is not None)
    pairs = dataset.pairs if split_file is None else read_split(split_file, dataset.pairs)
    _print_dataset(out, dataset, pairs, split_file)
    # To fail before the work rather than after
    for place in (output, sheet and os.path.dirname(os.path.abspath(sheet))):
        if place:
            make_folder(os.path.abspath(place))
    count = worst if sheet is not None else 0
    if predictions is None:
        report = _evaluate_model(out, dataset, pairs, count, network, workers)
    else:
        report = _evaluate_predictions(out, dataset, pairs, count, predictions, workers)
    document = {
        **report.as_dict(),
        "options": {
            "split": split_file,
            "group_by": data.group_by,
            **asdict(network),
            "workers": workers,
        },
        "versions": versions(),
        "seconds": round(time.perf_counter() - begun, 3),
        "started": started,
    }
    report.write(output, sheet, document)
    if as_json:
        print_json(document)
    else:
        _print(out, report.evaluation, output, sheet if report.sheet else None)
    raise SystemExit(1 if report.evaluation.failures else 0)


def _find(folder: str, data: DatasetOptions, *, masks_only: bool) -> Dataset:
    """Find the dataset; where predictions are judged, a folder of masks alone will do."""
    if masks_only:
        from unet_batch.errors import UsageError
        from unet_batch.evaluation.predictions import find_masks, is_mask_folder

        names = [field.name for field in fields(NetworkOptions)]
        if given := [name for name in names if _is_given(name)]:
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(
                f"{listed}: there is no model where --predictions are judged", hint="leave one of them out"
            )
        if not (data.images or data.masks or data.coco) and is_mask_folder(folder):
            return find_masks(folder, group_by=data.group_by)
    return data.find(folder)


def _print_dataset(out: Lines, dataset: Dataset, pairs: Sequence[Pair], split_file: str | None) -> None:
    out.dataset(dataset)
    if split_file is not None:
        groups = len({pair.group for pair in pairs})
        out.line("", f"{len(pairs):,} images in {groups:,} groups are in {split_file}")
    elif left_out := len(dataset.unmatched_images) + len(dataset.ambiguous):
        out.line(
            "note",
            f"{left_out:,} images without one mask of their own are left out: `unet-batch check-data` lists "
            f"them",
        )


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _evaluate_model(
    out: Lines,
    dataset: Dataset,
    pairs: Sequence[Pair],
    worst: int,
    network: NetworkOptions,
    workers: int | None,
) -> EvaluationReport:
    from unet_batch.cli.screen import Screen
    from unet_batch.evaluation.evaluate import evaluate, match_classes
    from unet_batch.evaluation.report import EvaluationReport, trained_on, worst_sheet
    from unet_batch.inference.segmenter import open_segmenter

    file = network.checkpoint()
    match_classes(dataset.classes, file.spec.classes)  # before the seconds that loading torch takes
    if known := trained_on(file.spec, dataset, pairs):
        what = f"the model was trained on {known[0]:,} images of a folder of this name, which flatter it"
        listed = f"--split {os.path.splitext(file.path)[0]}.training/val.txt"
        out.line("note", what, f"{listed} takes the {known[1]:,} others")
    with open_segmenter(network.request(file), threshold=network.threshold, workers=workers) as segmenter:
        Screen(quiet=out.quiet, verbose=False, to_stderr=False).model(file, segmenter)
        with _progress("segmenting", len(pairs)) as progress:
            evaluation = evaluate(dataset, pairs, segmenter, progress=progress)
        sheet = worst_sheet(dataset, pairs, evaluation, worst, segmenter)
        backend = segmenter.describe()
    return EvaluationReport(dataset, pairs, evaluation, model=file.as_dict(), backend=backend, sheet=sheet)


def _evaluate_predictions(
    out: Lines, dataset: Dataset, pairs: Sequence[Pair], worst: int, folder: str, workers: int | None
) -> EvaluationReport:
    from unet_batch.cli.text import shown
    from unet_batch.evaluation.evaluate import compare
    from unet_batch.evaluation.predictions import find_predictions
    from unet_batch.evaluation.report import EvaluationReport, worst_sheet

    found = find_predictions(dataset, pairs, folder)
    out.line("judged", shown(found.folder))
    for reason in found.reasons:
        out.line("", reason)
    with _progress("comparing", len(pairs)) as progress:
        evaluation = compare(dataset, pairs, found, workers=workers, progress=progress)
    sheet = worst_sheet(dataset, pairs, evaluation, worst, found)
    source = {"folder": found.folder, "reasons": list(found.reasons)}
    return EvaluationReport(dataset, pairs, evaluation, predictions=source, sheet=sheet)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from unet_batch.cli.progress import staged
    from unet_batch.cli.screen import Lines
    from unet_batch.cli.text import plural

    stage = f"{what} {total:,} {plural(total, 'picture')}"
    with staged(Lines(quiet=not sys.stderr.isatty(), to_stderr=True)) as advance:
        yield lambda done: advance(stage, done / total)


def _print(lines: Lines, evaluation: Evaluation, output: str | None, sheet: str | None) -> None:
    from unet_batch.cli.text import plural, shown
    from unet_batch.evaluation.metrics import FEW_GROUPS
    from unet_batch.evaluation.report import FILES

    out = lines.out
    for note in evaluation.notes:
        lines.line("note", note)
    for failure in evaluation.failures[:_SHOWN]:
        lines.err.print("failed    ", style="bold red", end="")
        lines.err.print(
            printable(failure.message) + (f"  ({printable(failure.hint)})" if failure.hint else "")
        )
    if len(evaluation.failures) > _SHOWN:
        lines.err.print(f"          and {len(evaluation.failures) - _SHOWN:,} more (--json and -o list them)")
    failed, judged = len(evaluation.failures), len(evaluation.photo.counts)
    if not judged:
        out.print(f"Not one of {failed:,} {plural(failed, 'picture')} could be judged.", style="bold red")
        return
    height, width = evaluation.size or (0, 0)
    _print_figures(out, "at the photos' own size", evaluation.photo)
    if evaluation.network is not None:
        _print_figures(out, f"at the network's size, {height}x{width}", evaluation.network)
    out.print()
    groups = evaluation.photo.groups
    if groups < 2:
        lines.line("note", "no intervals: all pictures are of one group, which says nothing of others")
    elif groups < FEW_GROUPS:
        lines.line("note", f"with {groups} groups only, intervals are rough, and rather too narrow")
    if sheet is not None:
        lines.line("sheet", shown(os.path.abspath(sheet)))
    if output is not None:
        lines.line("written", *(shown(os.path.join(os.path.abspath(output), name)) for name in FILES))
    figures = f"{judged:,} {plural(judged, 'picture')} in {groups:,} {plural(groups, 'group')}"
    if failed:
        out.print(
            f"{failed:,} of {failed + judged:,} pictures could not be judged: the figures are over the "
            f"others.",
            style="bold red",
        )
    else:
        out.print(f"Judged on {figures}.", style="bold green")


def _print_figures(out: Console, title: str, figures: Figures) -> None:
    several = len(figures.judged) > 1
    mean = "mean " if several else ""
    head = {
        "accuracy": ("accuracy", figures.scores.accuracy),
        "dice": (f"{mean}Dice (all pixels)", figures.mean("dice")),
        "iou": (f"{mean}IoU (all pixels)", figures.mean("iou")),
        "dice_per_picture": ("mean Dice per picture", figures.mean("dice", per_picture=True)),
    }
    out.print(f"\n{title}", style="bold cyan")
    for key, (label, value) in head.items():
        low, high = figures.intervals.get(key, (nan, nan))
        between = f"   95 % between {_figure(low).strip()} and {_figure(high).strip()}" if low == low else ""
        out.print(f"  {label:<22}  {_figure(value)}{between}")
    names = {id: printable(figures.names[id]) for id in figures.judged}
    width = max(22, *(len(name) for name in names.values()))
    out.print(
        f"  {'over all pixels':<{width}}"
        + "".join(f"  {label:>{max(6, len(label))}}" for _, label in _COLUMNS),
        style="dim",
    )
    rows = [
        (name, [figures.scores.pooled[metric][id] for metric, _ in _COLUMNS]) for id, name in names.items()
    ]
    if several:
        rows.append(("mean", [figures.mean(metric) for metric, _ in _COLUMNS]))
    for name, values in rows:
        cells = (
            f"  {_figure(value):>{max(6, len(label))}}"
            for value, (_, label) in zip(values, _COLUMNS, strict=True)
        )
        out.print(f"  {name:<{width}}" + "".join(cells), style="bold" if several and name == "mean" else "")


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "     -"  # nan is not itself
