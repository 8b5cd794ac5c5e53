"""`unet-batch diff`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Command, complete_path, option
from unet_batch.cli.options import json_option

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.review.diff import Diff

_SHOWN = 5


@click.command(
    cls=Command,
    short_help="Compare two runs, or two sets of masks, picture by picture.",
    epilog="Exit codes: 0 compared, 1 some pictures could not be, 2 none could.",
)
@click.argument("a", metavar="A", shell_complete=complete_path)
@click.argument("b", metavar="B", shell_complete=complete_path)
@option(
    "--truth",
    section="Output",
    metavar="FOLDER",
    help="True masks, called like the pictures: which of both is better.",
)
@option("--csv", "table", section="Output", metavar="FILE", help="Write a row a picture, the worst first.")
@option(
    "--sheet",
    section="Output",
    metavar="FILE",
    help="Write a JPEG of the worst: photo, A, B, where they differ.",
)
@option(
    "-n",
    "--count",
    section="Output",
    metavar="N",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    help="In the sheet.",
)
@json_option
def diff(
    a: str, b: str, truth: str | None, table: str | None, sheet: str | None, count: int, as_json: bool
) -> None:
    """Compare the masks in A with those in B: output folders of runs, or folders of masks.

    \b
    Examples:
      unet-batch diff out-old out-new --sheet worst.jpg
      unet-batch diff out-fast out-fine --truth cars/masks --csv diff.csv

    Says how far they agree, as Dice and IoU a picture, with intervals. With true masks it says which is
    better, and by how much, picture by picture: an interval of that difference which holds 0 says that
    nobody knows.
    """
    from unet_batch.cli.progress import drawing
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.errors import UsageError
    from unet_batch.files.atomic import write_atomic
    from unet_batch.review.diff import MaskSet, draw_sheet, write_csv
    from unet_batch.review.diff import diff as compare

    lines = Lines(quiet=as_json, to_stderr=as_json)
    with ExitStack() as stack:
        sets = [MaskSet(folder) for folder in (a, b, *([truth] if truth is not None else []))]
        for each in sets:
            stack.callback(each.close)
        total = sum(1 for _ in sets[0].entries())
        with drawing(total, quiet=as_json, what="comparing") as progress:
            result = compare(sets[0], sets[1], sets[2] if len(sets) > 2 else None, progress)
        if table is not None:
            write_csv(os.path.abspath(table), result)
        if sheet is not None:
            drawn = draw_sheet(sets[0], sets[1], result, count)
            if drawn is None:
                raise UsageError("nothing differs: there is no sheet to draw", hint="leave --sheet out")
            write_atomic(os.path.abspath(sheet), drawn)
    if as_json:
        print_json(asdict(result))
    else:
        _print(lines, result, table, sheet)
    raise SystemExit(1 if result.failures else 0)


def _print(lines: Lines, result: Diff, table: str | None, sheet: str | None) -> None:
    from unet_batch.cli.text import plural, shown

    count = len(result.pictures)
    lines.line(
        "pictures",
        f"{count:,} in both",
        f"{result.only_a:,} in A only" if result.only_a else "",
        f"{result.only_b:,} in B only" if result.only_b else "",
        f"{result.same:,} {plural(result.same, 'mask')} equal",
    )
    for message in result.failures[:_SHOWN]:
        lines.warn(message, "")
    lines.line("agree", f"mean Dice per picture {_figure(result.dice)}", f"IoU {_figure(result.iou)}")
    if result.truth_a and result.truth_b and result.gain:
        lines.line("truth", f"A: Dice {_figure(result.truth_a)}", f"B: {_figure(result.truth_b)}")
        mean, low, high = result.gain
        verdict = (
            "nobody can say which is better" if low <= 0 <= high else f"{'B' if mean > 0 else 'A'} is better"
        )
        lines.line("", f"B - A: {mean:+.4f} ({low:+.4f} to {high:+.4f})", verdict)
        if result.without_truth:
            lines.line("", f"{result.without_truth:,} have no true mask")
    for each in result.pictures[:_SHOWN]:
        if each.dice < 1:
            lines.line("worst" if each is result.pictures[0] else "", f"{each.dice:.4f}", each.key)
    for label, path in (("table", table), ("sheet", sheet)):
        if path is not None:
            lines.line(label, shown(os.path.abspath(path)))


def _figure(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.4f} ({value[1]:.4f} to {value[2]:.4f})"
