"""What the commands print: plain lines everywhere, a live bar only on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
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
from rich.table import Table
from rich.text import Text

from unet_batch import gpu
from unet_batch.cli.errors import printable
from unet_batch.files import naming

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Step
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.model.checkpoint import CheckpointFile
    from unet_batch.run.execute import Plan
    from unet_batch.run.report import Failure, RunReport
    from unet_batch.training.loop import StepReport
    from unet_batch.training.plan import TrainingPlan
    from unet_batch.types import Item

# How the states of `manifest.State` are told, most telling first.
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
# So many failures are printed as they happen; a folder of ten thousand broken files should not scroll
# everything away.
SHOWN_FAILURES = 20
# Seconds between two lines of progress where there is no terminal.
QUIET_SECONDS = 10.0


def console(*, stderr: bool = False) -> Console:
    """A console that never guesses: no markup or highlighting in file names, no wrapping of lines in a
    pipe.
    """
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


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
        """`label     text`, the label dimmed."""
        if not self.quiet:
            text = " · ".join(printable(part) for part in parts if part)
            self.out.print(Text.assemble((f"{label:<10}", "bold cyan"), text))

    def warn(self, message: str, fix: str) -> None:
        """What did not work, and the command that helps; also with `quiet`."""
        self.err.print(Text.assemble(("missing   ", "bold yellow"), printable(message)))
        if fix:
            self.err.print(Text.assemble(("fix       ", "bold yellow"), printable(fix)))


class Screen(Lines):
    """The voice of `unet-batch run`.

    Args:
        quiet: print failures and errors only.
        verbose: print a line for each picture.
        to_stderr: leave stdout to the JSON report.
    """

    def __init__(self, *, quiet: bool, verbose: bool, to_stderr: bool) -> None:
        super().__init__(quiet=quiet, to_stderr=to_stderr)
        self.verbose = verbose

    def sources(self, plan: Plan) -> None:
        """The output folder and what was found."""
        self.line("output", shown(plan.outputs.folder), ", ".join(plan.options.save))
        self.line(
            "sources",
            f"{census(plan.sources.items)} in {shown(plan.sources.root)}",
            f"shard {plan.options.shard}: {len(plan.items):,} of them" if plan.options.shard else "",
            f"{plan.sources.duplicates:,} named twice" if plan.sources.duplicates else "",
            left_out(plan.sources.ignored),
        )
        for folder in plan.sources.skipped_folders:
            self.line("", f"left out {shown(folder)}: holds results of an earlier run")
        for path, reason in plan.sources.unreadable:
            self.err.print(Text.assemble(("failed    ", "bold red"), printable(f"{shown(path)}: {reason}")))

    def model(self, loaded: CheckpointFile, segmenter: Segmenter, passed: Sequence[Step]) -> None:
        """The model, the backend and how it is fed."""
        spec, backend = loaded.spec, segmenter.backend
        height, width = backend.input_size
        names = spec.classes.names
        self.line(
            "model",
            spec.name,
            f"{loaded.parameters / 1e6:.1f} M parameters",
            f"{height}x{width}",
            names[0] if len(names) == 1 else f"{len(names)} classes",
            f"sha256 {loaded.sha256[:12]}",
        )
        self.line("backend", f"{backend.name} {backend.precision} ({backend.reason})")
        if not gpu.missing():  # what helps a GPU is no advice where there is none
            for fix in dict.fromkeys(step.fix for step in passed if step.fix):
                self.line("", f"faster: {fix}")
        for note in backend.notes:
            self.line("note", note)
        self.line(
            "batch",
            f"{backend.batch_size} x {backend.streams} {plural(backend.streams, 'stream')}",
            f"{segmenter.workers} {plural(segmenter.workers, 'thread')} each for decode, render, write",
        )

    def todo(self, plan: Plan) -> None:
        """What earlier runs have left to do; nothing where there were none."""
        if set(plan.states) - {"new"}:
            counts = [
                f"{plan.states[state]:,} {words}" for state, words in STATES.items() if plan.states.get(state)
            ]
            self.line("resume", ", ".join(counts))
        for note in plan.notes:
            self.line("note", note)

    def dry_run(self, plan: Plan) -> None:
        """What would be done."""
        self.line("dry run", f"{census(plan.todo)} would be segmented, nothing was written")
        for item in plan.todo if self.verbose else plan.todo[:3]:
            for path in plan.paths(item):
                self.line("", f"{shown(item.path)} -> {shown(path)}")
        if not self.verbose and len(plan.todo) > 3:
            self.line("", f"and {len(plan.todo) - 3:,} more (-v lists them)")

    @contextmanager
    def progress(self) -> Iterator[RunProgress]:
        """Yields what hears of each picture, clip and frame."""
        heard = RunProgress(self)
        try:
            yield heard
        finally:
            heard.stop()

    def failure(self, failure: Failure, count: int, bar: Progress | None) -> None:
        if count > SHOWN_FAILURES:
            return
        where = bar.console if bar is not None and not self.out.stderr else self.err
        message = failure.message
        if message.startswith(failure.path):
            message = shown(failure.path) + message[len(failure.path) :]
        hint = f"  ({printable(failure.hint)})" if failure.hint else ""
        where.print(Text.assemble(("failed    ", "bold red"), printable(message), (hint, "dim")))
        if count == SHOWN_FAILURES:
            where.print(Text("          further failures are only listed in errors.jsonl"))

    def batch(self, report: RunReport) -> None:
        """A line for a batch of `watch`."""
        counts = f"{report.done:,} done", f"{report.failed:,} failed" if report.failed else ""
        self.line(
            time.strftime("%H:%M:%S"),
            *counts,
            f"{report.frames:,} frames" if report.frames else "",
            clock(report.seconds),
        )

    def summary(self, report: RunReport) -> None:
        """The closing table."""
        if self.quiet:
            return
        counts = Table.grid(padding=(0, 2))
        for _ in range(5):
            counts.add_column(justify="left")
        pictures = report.done + report.failed - len(report.clips)
        pace = f"{report.images_per_second:.1f} pictures/s" if pictures and not report.clips else ""
        if report.frames:
            pace = f"{report.frames:,} frames" + (
                f", {report.frames / report.seconds:.1f}/s" if not pictures else ""
            )
        counts.add_row(
            Text(f"{report.done:,} done", style="bold green" if report.done else ""),
            Text(f"{report.failed:,} failed", style="bold red" if report.failed else ""),
            f"{report.skipped:,} skipped",
            clock(report.seconds),
            pace,
        )
        self.out.print()
        self.out.print(counts)
        if report.done + report.failed:
            stages = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for name in ("stage", "threads", "busy s", "cpu s", "ms each", "load"):
                stages.add_column(name, justify="left" if name == "stage" else "right")
            for stage in report.stages:
                if stage.name == "source":
                    continue
                bottleneck = stage.name == report.bottleneck
                stages.add_row(
                    stage.name + ("  <- bottleneck" if bottleneck else ""),
                    str(stage.workers),
                    f"{stage.busy:.2f}",
                    f"{stage.cpu:.2f}",
                    f"{1000 * stage.busy / max(1, stage.items):.1f}",
                    f"{stage.busy / stage.workers / max(1e-9, report.seconds):.0%}",
                    style="bold" if bottleneck else "",
                )
            self.out.print(stages)
            if report.floor_seconds:
                share = min(1.0, report.floor_seconds / max(1e-9, report.seconds))
                floor = f"{clock(report.seconds)}; with nothing ever idle {clock(report.floor_seconds)} ({share:.0%})"
                self.out.print(Text(floor, style="dim"))
        if report.encoder:
            self.line("encoder", f"{report.encoder['name']} ({report.encoder['reason']})")
        for clip in report.clips:
            for note in clip["notes"]:
                self.line("note", f"{shown(clip['path'])}: {note}")
        self.out.print(Text(closing(report)))


class RunProgress:
    """How far a run is: a live bar on a terminal, with a second one for the frames of a clip; else a line now
    and then.

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

    def start(self, plan: Plan) -> None:
        """It is known what is left."""
        screen = self.screen
        screen.todo(plan)
        self.total = self.done + len(plan.todo)  # `watch` begins more than once
        self.live = not screen.quiet and screen.out.is_terminal and self.total > 0
        self.begun = self.spoken = time.monotonic()
        if self.live:
            self.bar.update(self.items, total=self.total)
            self.bar.start()

    def advance(self, item: Item, failure: Failure | None) -> None:
        """An item has ended."""
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

    def frame(self, item: Item, done: int, total: int | None) -> None:
        """A frame of a clip has ended."""
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

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.live:
            self.bar.stop()

    def _may_speak(self) -> bool:
        if self.screen.quiet or self.live or time.monotonic() - self.spoken < QUIET_SECONDS:
            return False
        self.spoken = time.monotonic()
        return True


def closing(report: RunReport) -> str:
    """One sentence or two: is it over, is anything wrong, and what to do."""
    where = printable(shown(report.output))
    again = "the same command without --overwrite" if report.overwrite else "the same command"
    if report.status == "interrupted":
        how = "Interrupted" if report.signal in ("", "SIGINT") else f"Stopped by {report.signal}"
        return f"{how}; {report.left:,} left. What is in {where} is whole: run {again} to go on."
    if report.status == "stopped":
        when = "at the first failure" if report.failed == 1 else f"after {report.failed:,} failures"
        return f"Stopped {when}, as asked; {report.left:,} left. Run {again} to go on."
    if report.failed:
        errors = printable(shown(report.errors_file))
        return f"Results in {where}. {report.failed:,} failed: see {errors}. All else is done; {again} tries only these again."
    if report.shard:
        return f"Shard {report.shard} is done: nothing failed. Results in {where}; once all are done: unet-batch merge {where}"
    if not report.done:
        return f"Nothing to do: all results are in {where} already (--overwrite redoes them)."
    return f"All done. Results in {where}; nothing failed, nothing is left."


def census(items: Sequence[Item]) -> str:
    """`3 pictures and 1 clip`."""
    from unet_batch.run.plan import is_clip  # needs cv2 and PyAV

    clips = sum(map(is_clip, items))
    counts = ((len(items) - clips, "picture"), (clips, "clip"))
    return " and ".join(f"{count:,} {plural(count, word)}" for count, word in counts if count) or "0 pictures"


def shown(path: str) -> str:
    """A path as a person would type it, relative to here where that is shorter; an address without its
    password.
    """
    if naming.is_live(path):
        return naming.shown(path)
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return relative if len(relative) < len(path) else path


def left_out(ignored: Mapping[str, int]) -> str:
    """`3 other files left out: 2 .txt, 1 .mp4`."""
    total = sum(ignored.values())
    if not total:
        return ""
    commonest = sorted(ignored.items(), key=lambda entry: (-entry[1], entry[0]))[:4]
    kinds = ", ".join(f"{count:,} {suffix or 'without extension'}" for suffix, count in commonest)
    return f"{total:,} other {plural(total, 'file')} left out: {kinds}" + (
        ", ..." if len(ignored) > 4 else ""
    )


def plural(count: int, word: str) -> str:
    """`1 picture`, `2 pictures`."""
    return word if count == 1 else word + "s"


def clock(seconds: float) -> str:
    """`7.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


@contextmanager
def staged(lines: Lines) -> Iterator[Callable[[str, float], None]]:
    """Yields the function that hears of a stage and its share: a bar for each, or a line where there is no
    terminal.
    """
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
            heading = f"{'epoch':>9}  {'loss':>7}  {'val loss':>8}  {'Dice':>6}  {'IoU':>6}  {'accuracy':>8}  {'time':>8}"
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
