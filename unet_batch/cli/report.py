"""`unet-batch report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Command, complete_path
from unet_batch.cli.pipe import STANDARD
from unet_batch.errors import UsageError
from unet_batch.files import remote
from unet_batch.files.outputs import KINDS

if TYPE_CHECKING:
    from unet_batch.cli.screen import Screen
    from unet_batch.review.report import Report
    from unet_batch.run.options import RunOptions


@click.command(cls=Command, short_help="Make a page to look through what a run has made.")
@click.argument("output", metavar="OUT", shell_complete=complete_path)
@click.option("--wait", is_flag=True, help="Wait for another report of the same folder.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def report(output: str, wait: bool, quiet: bool) -> None:
    """Make a page to look through what a run has made: OUT/report.html.

    \b
    Examples:
      unet-batch run ./photos -o out --report
      unet-batch report out
      unet-batch run @bad.txt -o again -m fine

    It opens from a disk, without network or server: thumbnails of photos and masks, suspicious ones first;
    filters, sorting, histograms; a close look; failures; clips along their timelines. Marks (good, bad, to
    fix) are kept in the browser, and saved as a list of sources that `run @bad.txt` takes.

    Again, it looks at what is new or has changed only.
    """
    from unet_batch.cli.screen import Screen

    print_report(Screen(quiet=quiet, verbose=False, to_stderr=False), output, wait=wait)


def with_report(options: RunOptions) -> RunOptions:
    """What a run is to do whose page is made at its end: what the page shows is saved, too.

    Raises:
        UsageError: the page could not be made, or not of everything.
    """
    if options.shard is not None:
        raise UsageError(
            "--report with --shard: a shard does not see what the others do",
            hint="unet-batch report OUT, once all are done",
        )
    if options.output is not None and remote.is_remote(options.output):
        raise UsageError(
            f"--report: a page opens from a disk, and not from {options.output}",
            hint="leave --report out; then copy that folder to this machine, and make the page of the copy: "
            "unet-batch report COPY",
        )
    if options.output == STANDARD:
        raise UsageError("--report: a page needs a folder, and not -o -", hint="give a folder with -o")
    shown = [kind for kind in ("mask", "stats") if kind in KINDS]
    return replace(options, save=tuple(dict.fromkeys((*options.save, *shown))))


def print_report(screen: Screen, output: str, *, wait: bool = False) -> None:
    """Make the page of an output folder, and say where it is and what is suspicious."""
    from unet_batch.cli.progress import counting
    from unet_batch.review.report import write_report

    with counting("looking", quiet=screen.quiet) as progress:
        made = write_report(output, wait=wait, progress=progress)
    _print_made(screen, made)


def refreshing(screen: Screen, output: str) -> Callable[[], bool]:
    """What makes the page of `watch` again and again, and says whether that went well.

    It tells where the page is once, and what goes wrong once as well: what is segmented is more than a page.
    """
    from unet_batch.errors import UnetBatchError
    from unet_batch.review.report import write_report

    told: list[str] = []

    def refresh() -> bool:
        try:
            made = write_report(output)
        except UnetBatchError as error:
            if error.message not in told:
                told.append(error.message)
                screen.warn(error.message, error.hint)
            return False
        if made.page not in told:
            told.append(made.page)
            _print_made(screen, made)
        return True

    return refresh


def _print_made(screen: Screen, made: Report) -> None:
    from unet_batch.cli.text import plural, shown

    screen.line(
        "report",
        shown(made.page),
        f"{made.items:,} {plural(made.items, 'item')}, {made.made:,} new or changed",
        f"{made.gone:,} without their source" if made.gone else "",
    )
    if made.any:
        screen.line("look at", f"{made.any:,}: " + suspicions(made))


def suspicions(made: Report) -> str:
    """`12 nothing marked, 3 low confidence`."""
    from unet_batch.review.suspicion import REASONS

    return ", ".join(
        f"{made.suspicious[reason.name]:,} {reason.label}"
        for reason in REASONS
        if made.suspicious[reason.name]
    )
