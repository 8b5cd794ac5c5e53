"""`unet-batch evaluate`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from math import nan
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from unet_batch.cli.command import Command, Parsed, complete_path, option
from unet_batch.cli.mask_options import parse_names
from unet_batch.cli.network_options import NetworkOptions, network_options
from unet_batch.cli.options import (
    DatasetOptions,
    dataset_options,
    json_option,
)
from unet_batch.cli.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.evaluation.evaluate import Evaluation, Figures
    from unet_batch.evaluation.objects import ObjectFigures
    from unet_batch.evaluation.report import EvaluationReport

_SHOWN = 10  # failures that are printed
_WIDTH = 23  # of the names of figures and classes
_COLUMNS = (
    ("dice", "Dice"),
    ("iou", "IoU"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("boundary_f1", "boundary F1"),
)
_OBJECT_COLUMNS = (
    ("ap", "AP"),
    ("ap50", "AP50"),
    ("ap75", "AP75"),
    ("pq", "PQ"),
    ("sq", "SQ"),
    ("rq", "RQ"),
    ("rand", "V-Rand"),
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
    brief="Judge only the images that this file names.",
    help="Judge only the images that this file names, one a line, such as those kept from training.",
)
@option(
    "--predictions",
    section="Data",
    metavar="DIR",
    brief="Judge the masks in this folder, or of a run.",
    help="Judge the masks in this folder, or in the output of a run, instead of a model's.",
)
@option(
    "--classes",
    section="Data",
    metavar="NAMES",
    type=Parsed(parse_names),
    help="Judge these classes, with commas; means are over them.  [default: all, without void]",
)
@option(
    "--objects",
    section="Data",
    is_flag=True,
    brief="Judge objects, too, such as nuclei.",
    help="Judge objects, too: AP at IoU 0.5 to 0.95, PQ, and for cells between membranes V-Rand and V-Info.",
)
@network_options
@option(
    "-o",
    "--output",
    section="Output",
    metavar="DIR",
    brief="Write the figures into this folder.",
    help="Write evaluation.json and pictures.csv (a row for each picture) into this folder.",
)
@option(
    "--sheet",
    section="Output",
    metavar="FILE",
    brief="Write a JPEG of the worst pictures.",
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
    classes: tuple[str, ...] | None,
    objects: bool,
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
      unet-batch evaluate nuclei -m nuclei.safetensors --objects

    Dice, IoU, precision, recall, boundary F1 and accuracy over all pixels, and the means of each picture's
    Dice and IoU, at the photos' own size (the masks that `run` writes) and at the network's, with 95 %
    intervals from whole groups: photos of one car say little of other cars. Of pictures without the class:
    which share of their pixels was marked. Nothing in DATASET is written.
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
    judging = _Judging(dataset, pairs, classes, objects, worst if sheet is not None else 0, workers)
    if predictions is None:
        report = _evaluate_model(out, judging, network)
    else:
        report = _evaluate_predictions(out, judging, predictions)
    document = {
        **report.as_dict(),
        "options": {
            "split": split_file,
            "group_by": data.group_by,
            "classes": classes,
            "objects": objects,
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


@dataclass(frozen=True)
class _Judging:
    """What is judged, and what shall be said of it."""

    dataset: Dataset
    pairs: Sequence[Pair]
    classes: tuple[str, ...] | None
    objects: bool
    worst: int
    workers: int | None


def _evaluate_model(out: Lines, judging: _Judging, network: NetworkOptions) -> EvaluationReport:
    from unet_batch.cli.screen import Screen
    from unet_batch.cli.text import describe_network
    from unet_batch.evaluation.classes import choose_classes, match_classes
    from unet_batch.evaluation.evaluate import evaluate
    from unet_batch.evaluation.report import EvaluationReport, trained_on, worst_sheet
    from unet_batch.inference.segmenter import open_segmenter

    dataset, pairs = judging.dataset, judging.pairs
    files = network.model_files()
    # Before the seconds that loading torch takes
    names, _ = match_classes(dataset.classes, files[0].spec.classes)
    choose_classes(dataset.classes, names, judging.classes)
    for file in files:
        if known := trained_on(file.spec, dataset, pairs):
            whose = "the model" if len(files) == 1 else file.spec.name
            what = f"{whose} was trained on {known[0]:,} images of a folder of this name, which flatter it"
            listed = f"--split {os.path.splitext(file.path)[0]}.training/{known[2]}"
            out.line("note", what, f"{listed} takes the {known[1]:,} others" if known[1] else "")
    with open_segmenter(
        *map(network.request, files),
        threshold=network.threshold,
        workers=judging.workers,
        view=network.view,
        channels=network.channels,
    ) as segmenter:
        Screen(quiet=out.quiet, verbose=False, to_stderr=False).model(describe_network(segmenter))
        with _progress("segmenting", len(pairs)) as progress:
            evaluation = evaluate(
                dataset,
                pairs,
                segmenter,
                classes=judging.classes,
                objects=judging.objects,
                progress=progress,
            )
        sheet = worst_sheet(dataset, pairs, evaluation, judging.worst, segmenter)
        model, backend = segmenter.describe_model(), segmenter.describe()
    return EvaluationReport(dataset, pairs, evaluation, model=model, backend=backend, sheet=sheet)


def _evaluate_predictions(out: Lines, judging: _Judging, folder: str) -> EvaluationReport:
    from unet_batch.cli.text import shown
    from unet_batch.evaluation.evaluate import compare
    from unet_batch.evaluation.predictions import find_predictions
    from unet_batch.evaluation.report import EvaluationReport, worst_sheet

    dataset, pairs = judging.dataset, judging.pairs
    found = find_predictions(dataset, pairs, folder)
    out.line("judged", shown(found.folder))
    for reason in found.reasons:
        out.line("", reason)
    with _progress("comparing", len(pairs)) as progress:
        evaluation = compare(
            dataset,
            pairs,
            found,
            classes=judging.classes,
            objects=judging.objects,
            workers=judging.workers,
            progress=progress,
        )
    sheet = worst_sheet(dataset, pairs, evaluation, judging.worst, found)
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
    if evaluation.objects is not None:
        _print_objects(out, evaluation.objects)
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
    from unet_batch.evaluation.metrics import LABELS, label

    several = len(figures.judged) > 1
    out.print(f"\n{title}", style="bold cyan")
    if not several and figures.scores.without["pictures"][figures.judged[0]] == len(figures.counts):
        out.print("  the true masks mark nothing, so there is no Dice: what counts is what was marked")
        _print_figure(out, LABELS["accuracy"], figures.scores.accuracy, figures.intervals.get("accuracy"))
        _print_without(out, figures, figures.judged[0])
        return
    if several:
        _print_list(out, [figures.names[id] for id in figures.judged])
    for key in LABELS:
        metric, per_picture = key.removesuffix("_per_picture"), key.endswith("_per_picture")
        value = (
            figures.scores.accuracy if key == "accuracy" else figures.mean(metric, per_picture=per_picture)
        )
        _print_figure(out, label(key, len(figures.judged)), value, figures.intervals.get(key))
    rows = [
        (figures.names[id], [figures.scores.pooled[metric][id] for metric, _ in _COLUMNS])
        for id in figures.judged
    ]
    if several:
        mean = [figures.mean(metric) for metric, _ in _COLUMNS]
        rows.append(("mean", mean))
    _print_table(out, "over all pixels", [heading for _, heading in _COLUMNS], rows)
    if not several:
        _print_without(out, figures, figures.judged[0])


def _print_without(out: Console, figures: Figures, id: int) -> None:
    """What was marked in pictures that show nothing of the class, of which Dice says little."""
    from unet_batch.cli.text import plural

    worst, pictures = figures.most_marked(id), int(figures.scores.without["pictures"][id])
    if worst is None:
        return
    name = printable(figures.names[id])
    out.print(f"  pixels marked in {pictures:,} {plural(pictures, 'picture')} without {name}", style="dim")
    for key, heading in (("marked_per_picture", "mean per picture"), ("marked", "all pixels")):
        value, ends = figures.scores.without[key][id], figures.intervals.get(f"{key} {figures.names[id]}")
        low, high = ends or (nan, nan)
        between = f"   95 % between {100 * low:.2f} and {100 * high:.2f} %" if low == low else ""
        out.print(f"  {heading:<{_WIDTH}} {100 * value:6.2f} %{between}")
    out.print(f"  {'most':<{_WIDTH}} {100 * worst[1]:6.2f} %   {printable(worst[0])}")


def _print_objects(out: Console, objects: ObjectFigures) -> None:
    from unet_batch.evaluation.objects import LABELS

    what = (
        "those of the annotations" if objects.annotated else "connected parts of masks: touching ones are one"
    )
    out.print("\nobjects, at the photos' own size", style="bold cyan")
    out.print(f"  true objects are {what}", style="dim")
    if len(objects.names) > 1:
        _print_list(out, objects.names)
    for key, heading in LABELS.items():
        _print_figure(out, heading, objects.headline(key), objects.intervals.get(key))
    found = objects.scores
    rows = [
        (name, [found.pooled[figure][place] for figure, _ in _OBJECT_COLUMNS])
        for place, name in enumerate(objects.names)
    ]
    if len(rows) > 1:
        mean = [found.mean(figure) for figure, _ in _OBJECT_COLUMNS]
        rows.append(("mean", mean))
    _print_table(out, "over all objects", [heading for _, heading in _OBJECT_COLUMNS], rows)
    for name, true, seen in zip(objects.names, found.true, found.found, strict=True):
        out.print(f"  {printable(name)}: {int(true):,} true, {int(seen):,} found")


def _print_list(out: Console, names: Sequence[str]) -> None:
    """Which classes the means are over: without the list they can be compared with nothing."""
    from unet_batch.cli.text import wrap

    text = f"means over {len(names)} classes: {printable(', '.join(names))}"
    out.print("  " + wrap(text, out.width if out.is_terminal else None, 2), style="dim")


def _print_figure(out: Console, heading: str, value: float, ends: tuple[float, float] | None) -> None:
    low, high = ends or (nan, nan)
    between = f"   95 % between {_figure(low).strip()} and {_figure(high).strip()}" if low == low else ""
    out.print(f"  {heading:<{_WIDTH}}  {_figure(value)}{between}")


def _print_table(
    out: Console, title: str, headings: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]
) -> None:
    """A line for each class; the mean, if there is one, comes last and in bold."""
    from unet_batch.cli.screen import cell_len, set_cell_size

    needed = accumulate(2 + max(6, len(heading)) for heading in headings)
    fit = sum(columns <= out.width - 2 - len(title) for columns in needed) or 1
    if out.is_terminal and fit < len(headings):  # the others below, under the same names
        for part in (slice(fit), slice(fit, None)):
            _print_table(out, title, headings[part], [(name, values[part]) for name, values in rows])
        return
    rows = [(printable(name), values) for name, values in rows]
    width = max(_WIDTH, *(cell_len(name) for name, _ in rows))
    if out.is_terminal:  # long names are whole in the list above
        figures = sum(2 + max(6, len(heading)) for heading in headings)
        width = min(width, max(len(title), out.width - 2 - figures))
    out.print(
        f"  {title:<{width}}" + "".join(f"  {heading:>{max(6, len(heading))}}" for heading in headings),
        style="dim",
    )
    for place, (name, values) in enumerate(rows):
        cells = (
            f"  {_figure(value):>{max(6, len(heading))}}"
            for value, heading in zip(values, headings, strict=True)
        )
        bold = place and place == len(rows) - 1
        out.print(f"  {set_cell_size(name, width)}" + "".join(cells), style="bold" if bold else "")


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "     -"  # nan is not itself
