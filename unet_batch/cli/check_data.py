"""`unet-batch check-data`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Command, complete_path, option
from unet_batch.cli.options import CHANNELS, DatasetOptions, dataset_options, json_option
from unet_batch.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.check import Report
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.datasets.named import Named
    from unet_batch.media.images import Range

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_SHOWN = 4  # cases of each finding that are printed
_SHEET, _NAMED_SHEET = 24, 120  # pairs in a sheet; of those that lists name all are wanted


@click.command(
    "check-data",
    cls=Command,
    short_help="Say what a dataset holds, and what would spoil a training.",
    epilog="Exit codes: 0 fine, 1 a training would be wrong, 2 the folder could not be understood.",
)
@click.argument(
    "folders", metavar="DATASET... [@LIST]...", nargs=-1, required=True, shell_complete=complete_path
)
@dataset_options
@option(
    "--split",
    "split_files",
    section="Data",
    metavar="FILE",
    multiple=True,
    help="Check a split: a file that names the images of one part, one a line; once for each part.",
)
@option(
    "--range",
    "value_range",
    section="Data",
    metavar="RANGE",
    default="auto",
    help="As it will be given to train: images of 16 bits may look alike in another range.  [default: auto]",
)
@option(
    "--channels",
    section="Data",
    metavar="N,N,...",
    type=CHANNELS,
    help="Bands of each image that a network is to take, as for train.",
)
@option(
    "--sheet",
    section="Output",
    metavar="FILE",
    help="Write a JPEG of images and masks, the suspicious ones first.",
)
@json_option
def check_data(
    folders: Sequence[str],
    data: DatasetOptions,
    split_files: tuple[str, ...],
    value_range: str,
    channels: tuple[int, ...] | None,
    sheet: str | None,
    as_json: bool,
) -> None:
    """Say what a folder of images and masks holds, and what would spoil a training.

    \b
    Examples:
      unet-batch check-data cars
      unet-batch check-data cars --coco cars/annotations/instances_train.json
      unet-batch check-data cars --split train.txt --split val.txt --sheet c.jpg
      unet-batch check-data studio street
      unet-batch check-data cars @bad.txt --sheet bad.jpg

    Finds pairs by their names, or in a file of COCO annotations, works out what the values in the masks mean,
    and reads every file: sizes that differ, values without a meaning, duplicates on both sides of a split,
    classes that never occur. Nothing in DATASET is written. Several are checked as `train` joins them.

    @LIST, one path a line as `run` takes it and a report saves it, has only the pictures checked that it
    names: their masks, and which have none yet.
    """
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.datasets.dataset import natural_channels
    from unet_batch.datasets.join import join
    from unet_batch.datasets.named import choose_named
    from unet_batch.datasets.split import read_split
    from unet_batch.errors import UsageError
    from unet_batch.media.images import Range

    seen = Range.parse(value_range)
    out = Lines(quiet=as_json, to_stderr=as_json)
    folders, lists = _part(folders, split_files)
    dataset = join([data.find(folder, faulty=True) for folder in folders])
    dataset = replace(dataset, channels=channels or natural_channels(dataset.pairs))
    splits: dict[str, tuple[Pair, ...]] = {}
    for file in split_files:
        name = os.path.splitext(os.path.basename(file))[0]
        if name in splits:
            raise UsageError(f"two parts are called {name}", hint="give the files of --split different names")
        splits[name] = read_split(file, dataset.pairs)
    out.dataset(dataset)
    if dataset.channels:
        wanted = ",".join(map(str, dataset.channels))
        out.line("", f"channels {wanted}: {'asked for' if channels else 'all that the pictures have'}")
    for name, pairs in splits.items():
        groups = len({pair.group for pair in pairs})
        out.line("", f"{len(pairs):,} images in {groups:,} groups are in {name}")
    named = None
    if lists:
        named = choose_named(dataset, lists)
        out.line("", f"{len(named.dataset.pairs):,} of {len(dataset.pairs):,} pairs: what the list names")
        dataset = named.dataset
    report = _check(dataset, splits, seen, named)
    if sheet is not None:
        from unet_batch.datasets.sheet import contact_sheet
        from unet_batch.files.atomic import write_atomic

        count = _SHEET if named is None else _NAMED_SHEET
        write_atomic(os.path.abspath(sheet), contact_sheet(dataset, report, count, seen))
    if as_json:
        print_json(_as_dict(dataset, splits, report))
    else:
        _print(out, report, sheet)
    raise SystemExit(0 if report.ok else 1)


def _part(names: Sequence[str], split_files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Folders, and lists of pictures without their @."""
    from unet_batch.errors import UsageError

    folders = [name for name in names if not name.startswith("@")]
    lists = [name[1:] for name in names if name.startswith("@")]
    if not folders:
        raise UsageError(
            f"{names[0]} names pictures, but no dataset is named",
            hint="name the folder of images and masks before it; a folder called so is written ./@name",
        )
    if lists and split_files:
        raise UsageError(
            f"@{lists[0]} with --split: parts are checked of a whole dataset", hint="leave one of them out"
        )
    return folders, lists


def _check(
    dataset: Dataset, splits: Mapping[str, Sequence[Pair]], value_range: Range, named: Named | None
) -> Report:
    from unet_batch.cli.progress import staged
    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.check import check
    from unet_batch.datasets.named import check_named

    total = len(dataset.pairs)
    with staged(Lines(quiet=not sys.stderr.isatty(), to_stderr=True)) as progress:

        def tell(done: int) -> None:
            progress(f"checking {total:,} pairs", done / total)

        if named is not None:
            return check_named(named, value_range=value_range, progress=tell)
        return check(dataset, splits=splits or None, value_range=value_range, progress=tell)


def _print(lines: Lines, report: Report, sheet: str | None) -> None:
    from unet_batch.cli.text import plural, shown

    out = lines.out
    width = max(len("classes"), *(2 + len(printable(share.name)) for share in report.classes))
    out.print(f"\n{'classes':<{width}}  {'pixels':>8}  {'images':>8}", style="bold cyan")
    for share in report.classes:
        out.print(f"{'  ' + printable(share.name):<{width}}  {share.pixels:>8.2%}  {share.images:>8,}")
    if report.void:
        out.print(f"{'  void':<{width}}  {report.void:>8.2%}", style="dim")
    for finding in report.findings:
        out.print(f"\n{finding.severity:<10}", style=_STYLES[finding.severity], end="")
        out.print(finding.kind, style="bold")
        lines.line("", finding.message)
        for case in finding.files[:_SHOWN]:
            out.print(f"            {printable(case)}", style="dim")
        if len(finding.files) > _SHOWN:
            out.print(
                f"            and {len(finding.files) - _SHOWN:,} more (--json lists them)", style="dim"
            )
        lines.line("", f"fix: {finding.fix}" if finding.severity != "note" else finding.fix)
    out.print()
    if sheet is not None:
        lines.line("sheet", shown(os.path.abspath(sheet)))
    counts = {
        level: sum(finding.severity == level for finding in report.findings) for level in ("error", "warning")
    }
    found = " and ".join(f"{count} {plural(count, level)}" for level, count in counts.items() if count)
    if counts["error"]:
        these = "this pair" if report.pairs == 1 else f"these {report.pairs:,} pairs"
        out.print(f"A training on {these} would be wrong: {found}.", style="bold red")
    else:
        out.print(
            f"{report.pairs:,} {'pair is' if report.pairs == 1 else 'pairs are'} ready for training"
            f"{': ' + found if found else ''}.",
            style="bold green",
        )


def _as_dict(dataset: Dataset, splits: Mapping[str, Sequence[Pair]], report: Report) -> dict[str, object]:
    return {
        "ok": report.ok,
        "root": dataset.root,
        "pairs": report.pairs,
        "groups": len({pair.group for pair in dataset.pairs}),
        "reasons": dataset.reasons,
        "channels": dataset.channels,
        "splits": {name: [pair.key for pair in pairs] for name, pairs in splits.items()},
        "classes": [asdict(share) for share in report.classes],
        "void": report.void,
        "findings": [asdict(finding) for finding in report.findings],
    }
