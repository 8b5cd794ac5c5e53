"""What a run says when it is over: three lines, and with `-v` what each stage took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from unet_batch.cli.text import clock, plural, printable, shown

if TYPE_CHECKING:
    from unet_batch.cli.screen import Screen
    from unet_batch.run.report import RunReport


def print_summary(screen: Screen, report: RunReport) -> None:
    """Print how many were done, how fast, and what to do next; nothing where the screen is quiet."""
    if screen.quiet:
        return
    screen.out.print()
    screen.notes(report)
    screen.out.print(counts(report))
    if report.done + report.failed + report.left or report.frames:
        screen.print_wrapped(pace(report))
    if report.devices:
        screen.out.print(device_table(report))
    if screen.verbose:
        if report.done + report.failed:
            screen.out.print(stage_table(report))
        if report.floor_seconds:
            screen.out.print(Text(f"if nothing ever waited: {floor(report)}", style="dim"))
        if report.encoder:
            screen.line("encoder", f"{report.encoder['name']} ({report.encoder['reason']})")
    for line in map(table_line, report.tables, report.tables.values()):
        screen.line("table", *line)
    screen.print_wrapped(closing(report))


def table_line(kind: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """`stats.csv, stats.parquet`, `24 rows of 12 pictures`."""
    rows, pictures = facts["rows"], facts["pictures"]
    counted = f"{rows:,} {plural(rows, 'row')} of {pictures:,} {plural(pictures, 'picture')}"
    return ", ".join(facts["files"]), counted


def counts(report: RunReport) -> Text:
    """`12 done · 1 failed · 3 skipped (done before)`."""
    parts = [(f"{report.done:,} done", "bold green" if report.done else "")]
    if report.failed:
        parts.append((f"{report.failed:,} failed", "bold red"))
    else:
        parts.append(("0 failed", ""))
    if report.failed_before:
        parts.append((f"{report.failed_before:,} failed before, not tried now", ""))
    if report.skipped:
        parts.append((f"{report.skipped:,} skipped (done before)", ""))
    return Text(" · ").join(Text(text, style=style) for text, style in parts)


def pace(report: RunReport) -> str:
    """`7.3 s · 1.6 pictures/s · slowest stage: infer (busy 98% of the time)`."""
    parts = [clock(report.seconds)]
    pictures = report.done + report.failed - len(report.clips)
    if report.frames:
        rate = "" if pictures else f" ({report.frames / max(1e-9, report.seconds):.1f}/s)"
        clips = len(report.clips)
        parts.append(f"{report.frames:,} frames of {clips:,} {plural(clips, 'clip')}{rate}")
    elif report.done and not report.clips:
        parts.append(f"{report.images_per_second:.1f} pictures/s")
    for stage in report.stages:
        if report.done and stage.name == report.bottleneck:
            load = stage.busy / stage.workers / max(1e-9, report.seconds)
            parts.append(f"slowest stage: {stage.name} (busy {load:.0%} of the time)")
    return " · ".join(parts)


def stage_table(report: RunReport) -> Table:
    """A row for each stage; the slowest is marked."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "threads", "busy s", "cpu s", "ms each", "load"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in report.stages:
        if stage.name == "source":
            continue
        slowest = stage.name == report.bottleneck
        table.add_row(
            stage.name + ("  <- bottleneck" if slowest else ""),
            str(stage.workers),
            f"{stage.busy:.2f}",
            f"{stage.cpu:.2f}",
            f"{1000 * stage.busy / max(1, stage.items):.1f}",
            f"{stage.busy / stage.workers / max(1e-9, report.seconds):.0%}",
            style="bold" if slowest else "",
        )
    return table


def device_table(report: RunReport) -> Table:
    """A row for each of several devices."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("device", "done", "failed", "busy", "died", ""):
        table.add_column(name, justify="right" if name not in ("device", "") else "left")
    for device in report.devices:
        table.add_row(
            device["name"],
            f"{device['done']:,}",
            f"{device['failed']:,}",
            f"{device['busy'] / device['streams'] / max(1e-9, report.seconds):.0%}",
            f"{device['died']:,}",
            printable(f"left out: {device['left_out']}") if "left_out" in device else "",
        )
    return table


def floor(report: RunReport) -> str:
    """How long a run would take if nothing ever waited, and its share of the actual time."""
    share = min(1.0, report.floor_seconds / max(1e-9, report.seconds))
    return f"{clock(report.floor_seconds)} ({share:.0%} of {clock(report.seconds)})"


def closing(report: RunReport) -> str:
    """One sentence or two: is it over, is anything wrong, and what to do."""
    where = printable(shown(report.output))
    again = "the same command without --overwrite" if report.overwrite else "the same command"
    if report.status == "interrupted":
        how = "Interrupted" if report.signal in ("", "SIGINT") else f"Stopped by {report.signal}"
        return f"{how}; {report.left:,} left. What is in {where} is whole: run {again} to go on."
    if report.status == "stopped":
        when = "at the first failure" if report.failed == 1 else f"after {report.failed:,} failures"
        left = f"{report.left:,} left. Results so far in {where}"
        return f"Stopped {when}, as asked; {left}: run {again} to go on."
    if report.failed:
        errors = printable(shown(report.errors_file))
        return (
            f"Results in {where}. {report.failed:,} failed: see {errors}. "
            f"All else is done; {again} tries only these again."
        )
    if report.shard:
        return (
            f"Shard {report.shard} is done: nothing failed. Results in {where}; "
            f"once all are done: unet-batch merge {where}"
        )
    if report.failed_before:
        errors = printable(shown(report.errors_file))
        return f"Done. Results in {where}; nothing failed now, for what failed before see {errors}."
    if not report.done:
        return f"Nothing to do: all results are in {where} already (--overwrite redoes them)."
    return f"All done. Results in {where}; nothing failed, nothing is left."
