"""How far the work is: live bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from unet_batch.media import video

if TYPE_CHECKING:
    from fractions import Fraction

    from unet_batch.cli.screen import Lines, Screen
    from unet_batch.run.plan import RunPlan
    from unet_batch.training.loop import StepReport
    from unet_batch.training.plan import TrainingPlan
    from unet_batch.types import Failure, Item

# Seconds between two lines of progress where there is no terminal.
QUIET_SECONDS = 10.0


_NOTHING: dict[str, Any] = {"speed": "", "left": "", "failures": ""}  # the fields of a bar


class TimeLeft:
    """Estimates how long the pictures and clips that are left will take.

    A frame takes as long as the frames so far did, and before the first one as long as a picture. How many
    there are stands in the headers of clips, which are read for a second at most; those that are not read
    are expected to have as many frames a byte as the others.

    Args:
        plan: what is left.
        patience: seconds to read headers for.
    """

    def __init__(self, plan: RunPlan, patience: float = 1.0) -> None:
        clips = [item for item in plan.todo if item.is_clip]
        self.pictures, self.done = len(plan.todo) - len(clips), 0
        self.frames: dict[str, float | None] = {}  # to do of each clip; None if nobody knows
        self.made, self.clip, self.last = 0, "", 0
        self.begun = self.turned = self.now = time.monotonic()
        self._estimate_frames(clips if len(plan.todo) > 1 else [], plan, patience)

    def _estimate_frames(self, clips: Sequence[Item], plan: RunPlan, patience: float) -> None:
        options, until = plan.options.video, time.monotonic() + patience
        sizes: dict[str, int] = {}
        for item in clips:
            found: tuple[int | None, Fraction | None] = None, None
            if not naming.is_live(item.path):
                with suppress(OSError):
                    sizes[item.key] = os.path.getsize(item.path)
                if time.monotonic() < until:
                    found = video.look(item.path)
            self.frames[item.key] = options.frames_of(*found)
        known = {key: frames for key, frames in self.frames.items() if frames and sizes.get(key)}
        if known:
            density = sum(known.values()) / sum(sizes[key] for key in known)
            for key, size in sizes.items():
                if self.frames[key] is None:
                    self.frames[key] = density * size

    def advance(self, item: Item) -> None:
        """Count an item that has ended."""
        self.now = time.monotonic()
        if item.is_clip:
            self.frames[item.key] = 0
        else:
            self.done += 1
            self.turned = self.now  # clips come after the pictures

    def frame(self, item: Item, done: int, total: int | None) -> None:
        """Count a frame of a clip."""
        self.now = time.monotonic()
        # What an earlier run has done took no time of this one
        self.made += done - self.last if self.clip == item.key else 1
        self.clip, self.last = item.key, done
        self.frames[item.key] = None if total is None else max(0, total - done)

    @property
    def seconds(self) -> float | None:
        """Seconds left of all; None while nobody can tell."""
        picture = (self.turned - self.begun) / self.done if self.done else None
        frame = (self.now - self.turned) / self.made if self.made else picture
        left, pictures = 0.0, self.pictures - self.done
        for count, each in ((pictures, picture), *((frames, frame) for frames in self.frames.values())):
            if count is None or (count and each is None):
                return None
            left += count * (each or 0)
        return left

    def __str__(self) -> str:
        seconds = self.seconds
        return "" if seconds is None else f"{clock(seconds)} left"


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
            TextColumn("{task.fields[left]}", style="cyan"),
            TextColumn("{task.fields[failures]}", style="red"),
            console=screen.out,
            expand=True,
        )
        self.items = self.bar.add_task("", total=0, **_NOTHING)
        self.frames = self.bar.add_task("", total=None, visible=False, **_NOTHING)
        self.live = False
        self.total = self.done = self.failed = 0
        self.begun = self.spoken = time.monotonic()
        self.clip, self.clip_begun, self.clip_first = "", 0.0, 0
        self.time_left: TimeLeft | None = None

    def start(self, plan: RunPlan) -> None:
        """Show what is left."""
        screen = self.screen
        screen.todo(plan)
        self.total = self.done + len(plan.todo)  # `watch` begins more than once
        self.live = not screen.quiet and screen.out.is_terminal and self.total > 0
        self.begun = self.spoken = time.monotonic()
        self.time_left = None if screen.quiet else TimeLeft(plan)
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
        if self.time_left is not None:
            self.time_left.advance(item)
        left = str(self.time_left or "")
        if self.live:
            self.bar.update(
                self.items,
                completed=self.done,
                speed="" if self.clip else speed,
                left=left,
                failures=failures,
            )
            self.bar.update(self.frames, visible=False)
        elif self._may_speak():
            screen.line("progress", f"{self.done:,} of {self.total:,}", speed, left, failures)

    def note(self, item: Item, notes: Sequence[str]) -> None:
        """Tell what people should know of an item that is done."""
        self.screen.note(item, notes, self.bar if self.live else None)

    def frame(self, item: Item, done: int, total: int | None) -> None:
        """Count a frame of a clip, or a row or page of a picture that is segmented by itself."""
        now, unit = time.monotonic(), "frame" if item.is_clip else ""
        if self.clip != item.key:
            self.clip, self.clip_begun, self.clip_first = item.key, now, done
            name = printable(os.path.basename(naming.shown(item.path)))
            self.bar.reset(self.frames, total=total, description=name, visible=True, **_NOTHING)
            self.bar.update(self.items, speed="")  # of pictures; frames have their own
        speed = f"{(done - self.clip_first) / max(1e-9, now - self.clip_begun):.1f}{unit and f' {unit}s'}/s"
        if self.time_left is not None and item.is_clip:
            self.time_left.frame(item, done, total)
        left = str(self.time_left or "")
        if self.live:
            self.bar.update(self.frames, completed=done, speed=speed)
            self.bar.update(self.items, left=left)
        elif self._may_speak():
            done_of = f"{self.done:,} of {self.total:,} done" if self.total > 1 else ""
            frames = f"{unit} {done:,}".lstrip() + (f" of {total:,}" if total else "")
            self.screen.line("progress", shown(item.path), frames, speed, done_of, left)

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
def drawing(total: int, *, quiet: bool, what: str = "drawing") -> Iterator[Callable[[int], None]]:
    """A bar for what goes through so many pictures; silent without a terminal."""
    with Progress(
        console=console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told how many of how many are done; silent without a terminal."""
    with Progress(
        console=console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
