"""What commands print: labelled lines, broken at words on a terminal and whole in a pipe."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len as cell_len
from rich.cells import set_cell_size as set_cell_size
from rich.console import Console
from rich.text import Text

from unet_batch.cli.text import (
    arguments_with_spaces,
    census,
    clock,
    left_out,
    printable,
    shown,
    some,
    wrap,
)
from unet_batch.model.zoo import BUNDLED, DEFAULT

if TYPE_CHECKING:
    from rich.progress import Progress

    from unet_batch.datasets.dataset import Dataset
    from unet_batch.run.plan import RunPlan
    from unet_batch.run.report import RunReport
    from unet_batch.types import Failure, Item

# How the states of `manifest.State` are called, most telling first.
STATES = {
    "new": "new",
    "changed": "changed",
    "lost": "with outputs gone or cut short",
    "more": "with further outputs to make",
    "failed": "failed before",
    "quarantined": "that crashed their decoder and are left alone",
    "void": "to redo",
    "other": "of another model",
    "adopted": "taken over from before there were manifests",
    "edited": "edited by hand and left alone",
    "touched": "touched but equal",
    "done": "already done",
}
# So many failures are printed as they happen: a folder of ten thousand broken files must not scroll all away.
SHOWN_FAILURES = 20
LABEL = 10
"""Columns of the label before a line."""


def console(*, stderr: bool = False) -> Console:
    """A console that never guesses: no markup or highlighting in file names, no wrapping in a pipe."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document on stdout, for programs."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


class Lines:
    """Labelled lines.

    Args:
        quiet: print failures and errors only.
        to_stderr: leave stdout to JSON.
    """

    def __init__(self, *, quiet: bool, to_stderr: bool) -> None:
        self.quiet = quiet
        self.out = console(stderr=to_stderr)
        self.err = console(stderr=True)

    def line(self, label: str, *parts: str) -> None:
        """Print `label     text`, the label in colour; empty parts are left out."""
        if not self.quiet:
            text = " · ".join(printable(part) for part in parts if part)
            self.out.print(labelled(self.out, label, "bold cyan", text))

    def warn(self, message: str, fix: str) -> None:
        """Print what did not work, and the command that helps; also with `quiet`."""
        self.err.print(labelled(self.err, "missing", "bold yellow", printable(message)))
        if fix:
            self.err.print(labelled(self.err, "fix", "bold yellow", printable(fix)))

    def dataset(self, dataset: Dataset) -> None:
        """Print where the dataset is, and every guess about it."""
        self.line("dataset", dataset.name if dataset.parts else shown(dataset.root))
        for reason in dataset.reasons:
            self.line("", reason)


def _of_shard(plan: RunPlan) -> str:
    """What the items are that a shard has."""
    if plan.depth:  # nobody has counted those of the others
        return f"shard {plan.options.shard}: those of its own folders"
    return f"shard {plan.options.shard}: {len(plan.items):,} of them" if plan.options.shard else ""


def labelled(console: Console, label: str, style: str, text: str, keep: Sequence[str] = ()) -> Text:
    """A label and a text beside it, broken where the console is a terminal."""
    width = console.width if console.is_terminal else None
    body = wrap(text, width, LABEL, (*keep, *arguments_with_spaces()))
    return Text.assemble((f"{label:<{LABEL}}", style), body)


def places(plan: RunPlan) -> Sequence[str]:
    """The folders that all sources lie in: one, unless they have none in common."""
    return (plan.sources.root,) if plan.sources.root else plan.sources.folders


class Screen(Lines):
    """What `unet-batch run` and `watch` print.

    Args:
        quiet: print failures and errors only.
        verbose: print a line for each picture, and what each stage took.
        to_stderr: leave stdout to the JSON report.
    """

    def __init__(self, *, quiet: bool, verbose: bool, to_stderr: bool) -> None:
        super().__init__(quiet=quiet, to_stderr=to_stderr)
        self.verbose = verbose

    def loading(self, models: Sequence[str]) -> None:
        """Say at once what will take a second or two to load."""
        for name in models or (DEFAULT,):
            bundled = BUNDLED.get(name)
            self.line("loading", f"{name} ({bundled.purpose}) ..." if bundled else f"{shown(name)} ...")

    def print_wrapped(self, text: str) -> None:
        """Print a sentence without a label."""
        width = self.out.width if self.out.is_terminal else None
        self.out.print(Text(wrap(text, width, keep=arguments_with_spaces())))

    def output(self, plan: RunPlan) -> None:
        """Print where results go."""
        self.line("output", shown(plan.outputs.name), ", ".join(plan.options.save))

    def sources(self, plan: RunPlan) -> None:
        """Print the output folder and what was found."""
        self.output(plan)
        self.line(
            "sources",
            f"{census(plan.items if plan.depth else plan.sources.items)} in {some(map(shown, places(plan)))}",
            _of_shard(plan),
            f"{plan.sources.duplicates:,} named twice" if plan.sources.duplicates else "",
            left_out(plan.sources.ignored),
        )
        for folder in plan.sources.skipped_folders:
            self.line("", f"left out {shown(folder)}: holds results of an earlier run")
        for path, reason in plan.sources.unreadable:
            text = printable(f"{shown(path)}: {reason}")
            self.err.print(labelled(self.err, "failed", "bold red", text, (shown(path),)))

    def model(self, lines: Sequence[tuple[str, ...]]) -> None:
        """Print what `describe_network` says of the model, or each of an ensemble, and the backend."""
        for label, *parts in lines:
            self.line(label, *parts)

    def todo(self, plan: RunPlan) -> None:
        """Print what earlier runs have left to do; nothing where there were none."""
        if set(plan.states) - {"new"}:
            counts = [
                f"{plan.states[state]:,} {words}" for state, words in STATES.items() if plan.states.get(state)
            ]
            self.line("resume", ", ".join(counts))
        for note in plan.notes:
            self.line("note", note)

    def dry_run(self, plan: RunPlan) -> None:
        """Print what would be done."""
        self.line("dry run", f"{census(plan.todo)} would be segmented, nothing was written")
        for item in plan.todo if self.verbose else plan.todo[:3]:
            for path in plan.paths(item):
                self.line("", f"{shown(item.path)} -> {shown(path)}")
        if not self.verbose and len(plan.todo) > 3:
            self.line("", f"and {len(plan.todo) - 3:,} more (-v lists them)")

    def failure(self, failure: Failure, count: int, bar: Progress | None) -> None:
        """Print a failure, but not the hundredth; with a live bar above it."""
        if count > SHOWN_FAILURES:
            return
        where = bar.console if bar is not None and not self.out.stderr else self.err
        path, message = shown(failure.path), failure.message
        if message.startswith(failure.path):
            message = path + message[len(failure.path) :]
        text = labelled(where, "failed", "bold red", printable(message), (printable(path),))
        hint = printable(failure.hint)
        if hint and where.is_terminal:
            text.append(f"\n{' ' * LABEL}{wrap(hint, where.width, LABEL, (printable(path),))}", "dim")
        elif hint:
            text.append(f"  ({hint})")
        where.print(text)
        if count == SHOWN_FAILURES:
            where.print(Text(f"{' ' * LABEL}further failures are only listed in errors.jsonl"))

    def note(self, item: Item, notes: Sequence[str], bar: Progress | None) -> None:
        """With `-v`, print what people should know of an item."""
        for note in notes if self.verbose else ():
            where = bar.console if bar is not None else self.out
            where.print(labelled(where, "note", "bold cyan", printable(f"{shown(item.path)}: {note}")))

    def notes(self, report: RunReport) -> None:
        """Print what people should know of files: a line for all that a phrase holds for."""
        from unet_batch.run.report import every_note

        for note in every_note(report):
            names = [shown(path) for path in note.examples]
            if note.files == 1:
                self.line("note", f"{names[0]}: {note.note}")
            else:
                self.line("note", f"{note.files:,} files: {note.note} ({some(names, note.files)})")

    def batch(self, report: RunReport) -> None:
        """Print a line for a batch of `watch`, and what people should know of its files."""
        self.line(
            time.strftime("%H:%M:%S"),
            f"{report.done:,} done",
            f"{report.failed:,} failed" if report.failed else "",
            f"{report.frames:,} frames" if report.frames else "",
            clock(report.seconds),
        )
        self.notes(report)
