"""`unet-batch audit`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Command, complete_path, option
from unet_batch.cli.options import json_option

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.review.audit import Audit


@click.command(cls=Command, short_help="Say how good a whole run is, from a few items that you look at.")
@click.argument("output", metavar="OUT", shell_complete=complete_path)
@option(
    "-n",
    "--count",
    section="Output",
    metavar="N",
    type=click.IntRange(2, 10_000),
    default=40,
    show_default=True,
    help="How many items to draw.",
)
@option(
    "--seed",
    section="Output",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Of the draw.  [default: 0]",
)
@option("-o", "--output", "where", section="Output", metavar="FOLDER", help="Where to.  [default: OUT-audit]")
@json_option
def audit(output: str, count: int, seed: int, where: str | None, as_json: bool) -> None:
    """Draw items of the run in OUT for you to look at; called again, say what your answers tell of all.

    \b
    Example:
      unet-batch audit out          # draws forty into out-audit
      (mark each good or bad in out-audit/marks.csv,
       or put corrected masks into out-audit/corrected)
      unet-batch audit out          # says how good the run is

    The items are drawn from strata of how sure the network was, so that easy and hard ones are in it as they
    are in the run. No true masks of the run are needed. The interval holds whatever the accuracies are: the
    more items, the narrower.
    """
    from unet_batch.cli.progress import drawing
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.cli.text import shown
    from unet_batch.review.audit import MARKS, default_folder, draw, is_drawn, read
    from unet_batch.run.finished import FinishedRun

    lines = Lines(quiet=as_json, to_stderr=as_json)
    with FinishedRun(output) as run:
        folder = os.path.abspath(where or default_folder(run))
        if is_drawn(folder):
            result = read(run, folder)
            if as_json:
                print_json(asdict(result))
            else:
                _print(lines, result, folder)
            raise SystemExit(0 if result.answered else 1)
        with drawing(run.done, quiet=as_json, what="looking") as progress:
            drawn = draw(run, folder, count, seed=seed, progress=progress)
    if as_json:
        print_json(asdict(drawn))
        return
    how = "in strata of how sure the network was"
    if not drawn.by_certainty:
        how = "along their names: the run saved neither stats nor probabilities"
    lines.line("drawn", f"{len(drawn.keys):,} of {drawn.total:,}, {how}")
    lines.line("look", f"at overlays, masks and photos in {shown(folder)}")
    lines.line("mark", f"good or bad in {shown(os.path.join(folder, MARKS))}")
    lines.line(
        "correct", f"or put corrected masks, called alike, into {shown(os.path.join(folder, 'corrected'))}"
    )
    lines.line("then", "give this command again")


def _print(lines: Lines, result: Audit, folder: str) -> None:
    from unet_batch.cli.text import plural, shown

    lines.line("audit", f"{result.answered:,} of {result.drawn:,} items answered", shown(folder))
    if not result.answered:
        lines.warn("nothing is marked or corrected yet", "write good or bad into marks.csv, and call again")
        return
    if result.answered < result.drawn:
        lines.line("", "as if those that are left were like the others: answer them all")
    of = f"of all {result.total:,} items"
    if result.good is not None:
        mean, low, high = result.good
        lines.line("good", f"{mean:.1%} {of}", f"{low:.1%} to {high:.1%} with 95 % confidence")
    if result.dice is not None:
        mean, low, high = result.dice
        lines.line("Dice", f"{mean:.4f} mean {of}", f"{low:.4f} to {high:.4f} with 95 % confidence")
    if result.unknown:
        these = plural(result.unknown, "item")
        lines.line("", f"no Dice: {result.unknown:,} bad {these} without a corrected mask")
