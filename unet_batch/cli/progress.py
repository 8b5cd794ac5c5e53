"""How far the work is: live bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from unet_batch.cli.screen import console
from unet_batch.cli.text import clock, printable, shown
from unet_batch.files import naming

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines, Screen
    from unet_batch.run.plan import RunPlan
    from unet_batch.training.loop import StepReport
    from unet_batch.training.plan import TrainingPlan
    from unet_batch.types import Failure, Item

# Seconds between two lines of progress where there is no terminal.
QUIET_SECONDS = 10.0


class RunProgress:
    """How far a run is: a live bar for items and one for the frames of a clip, or a line now and then.

    Args:
        screen: where to.
    """

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.bar = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failures]}", style="red"),
            console=screen.out,
            expand=True,
        )
        self.items = self.bar.add_task("", total=0, speed="", failures="")
        self.frames = self.bar.add_task("", total=None, speed="", failures="", visible=False)
        self.live = False
        self.total = self.done = self.failed = 0
        self.begun = self.spoken = time.monotonic()
        self.clip, self.clip_begun, self.clip_first = "", 0.0, 0

    def start(self, plan: RunPlan) -> None:
        """Show what is left."""
        screen = self.screen
        screen.todo(plan)
        self.total = self.done + len(plan.todo)  # `watch` begins more than once
        self.live = not screen.quiet and screen.out.is_terminal and self.total > 0
        self.begun = self.spoken = time.monotonic()
        if self.live:
            self.bar.update(self.items, total=self.total)
            self.bar.start()

    def advance(self, item: Item, failure: Failure | None) -> None:
        """Count an item that has ended."""
        screen = self.screen
        self.done += 1
        if failure is not None:
            self.failed += 1
            screen.failure(failure, self.failed, self.bar if self.live else None)
        elif screen.verbose:
            (self.bar.console if self.live else screen.out).print(
                Text(f"done      {printable(shown(item.path))}")
            )
        speed = f"{self.done / max(1e-9, time.monotonic() - self.begun):.1f}/s"
        failures = f"{self.failed:,} failed" if self.failed else ""
        if self.live:
            self.bar.update(
                self.items, completed=self.done, speed="" if self.clip else speed, failures=failures
            )
            self.bar.update(self.frames, visible=False)
        elif self._may_speak():
            left = (self.total - self.done) * (self.spoken - self.begun) / self.done
            screen.line(
                "progress", f"{self.done:,} of {self.total:,}", speed, f"{clock(left)} left", failures
            )

    def note(self, item: Item, notes: Sequence[str]) -> None:
        """Tell what people should know of an item that is done."""
        self.screen.note(item, notes, self.bar if self.live else None)

    def frame(self, item: Item, done: int, total: int | None) -> None:
        """Count a frame of a clip."""
        now = time.monotonic()
        if self.clip != item.key:
            self.clip, self.clip_begun, self.clip_first = item.key, now, done
            name = printable(os.path.basename(naming.shown(item.path)))
            self.bar.reset(self.frames, total=total, description=name, visible=True, speed="", failures="")
        speed = f"{(done - self.clip_first) / max(1e-9, now - self.clip_begun):.1f} frames/s"
        if self.live:
            self.bar.update(self.frames, completed=done, speed=speed)
        elif self._may_speak():
            self.screen.line(
                "progress", shown(item.path), f"frame {done:,}" + (f" of {total:,}" if total else ""), speed
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.live:
            self.bar.stop()

    def _may_speak(self) -> bool:
        if self.screen.quiet or self.live or time.monotonic() - self.spoken < QUIET_SECONDS:
            return False
        self.spoken = time.monotonic()
        return True


@contextmanager
def staged(lines: Lines) -> Iterator[Callable[[str, float], None]]:
    """Yield the function that hears of a stage and its share: a bar for each, or a line in a pipe."""
    live = not lines.quiet and lines.err.is_terminal
    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=lines.err, disable=not live, transient=True) as bar:

        def advance(stage: str, share: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=1.0)
                tasks[stage] = bar.add_task(stage, total=1.0)
                if not live and not lines.quiet:
                    lines.err.print(Text(f"...       {printable(stage)}"))
            bar.update(tasks[stage], completed=share)

        yield advance


@contextmanager
def drawing(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar for `sample`; silent without a terminal."""
    with Progress(
        console=console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True
    ) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def training(
    lines: Lines, plan: TrainingPlan
) -> Iterator[tuple[Callable[[StepReport], None], Callable[[Sequence[dict[str, Any]]], None]]]:
    """A bar for the epoch that runs, a line for each that is over."""
    from unet_batch.training.loop import best_epoch  # needs torch

    headed = False
    epochs = plan.options.epochs
    live = not lines.quiet and lines.out.is_terminal
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[state]}"),
        console=lines.out,
        disable=not live,
        expand=True,
        transient=True,
    )
    task = bar.add_task("", total=plan.steps, state="reading the first images")
    first: tuple[int, float] | None = None  # steps done and the time, when this run took up
    spoken = time.monotonic()

    def on_step(report: StepReport) -> None:
        nonlocal first, spoken
        done, now = (report.epoch - 1) * plan.steps + report.step, time.monotonic()
        first = first or (done, now)
        left = (
            f" · {clock((now - first[1]) / (done - first[0]) * (epochs * plan.steps - done))} left"
            if done > first[0]
            else ""
        )
        text = f"loss {report.loss:.4f} · {report.speed:.1f} images/s{left}"
        bar.update(task, description=f"epoch {report.epoch}/{epochs}", completed=report.step, state=text)
        if not live and not lines.quiet and now - spoken >= QUIET_SECONDS:
            spoken = now
            lines.line(
                "...", f"epoch {report.epoch}/{epochs}, step {report.step:,} of {report.steps:,}", text
            )

    def on_epoch(history: Sequence[dict[str, Any]]) -> None:
        nonlocal headed
        record, best = history[-1], best_epoch(plan, history) == len(history)
        if not headed and not lines.quiet:
            headed = True
            one = len(plan.spec.classes.names) == 1
            over = "means per picture" if one else "means of the classes, over all pixels"
            lines.line("", f"Dice and IoU are {over}, of the validation images")
            columns = {"epoch": 9, "loss": 7, "val loss": 8, "Dice": 6, "IoU": 6, "accuracy": 8, "time": 8}
            heading = "  ".join(f"{name:>{width}}" for name, width in columns.items())
            lines.out.print(heading, style="bold cyan")
        if not lines.quiet:
            loss, val_loss, *shares = (
                record[key] for key in ("loss", "val_loss", "val_dice", "val_iou", "val_accuracy")
            )
            figures = "".join(
                f"  {'-' if share is None else f'{share:.4f}':>{width}}"
                for share, width in zip(shares, (6, 6, 8), strict=True)
            )
            row = f"{record['epoch']:>5}/{epochs:<3}  {loss:>7.4f}  {val_loss:>8.4f}{figures}"
            row += f"  {clock(record['seconds']):>8}" + ("  best" if best else "")
            lines.out.print(row, style="" if best else "dim")

    with bar:
        yield on_step, on_epoch
