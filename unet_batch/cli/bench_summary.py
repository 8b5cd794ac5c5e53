"""What `bench` prints: one table, what limits each backend, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from unet_batch import gpu
from unet_batch.bench import report
from unet_batch.bench.measure import LEVELS
from unet_batch.cli.screen import labelled
from unet_batch.cli.text import gigabytes, printable
from unet_batch.engine.flavours import NAMES

if TYPE_CHECKING:
    from unet_batch.bench.compare import Comparison, Entry, Skipped
    from unet_batch.bench.report import Ratio
    from unet_batch.cli.screen import Lines

_WIDE = 76
"""Columns from which a table shows how far the rounds lie apart."""


def print_comparison(lines: Lines, comparison: Comparison) -> None:
    """Print what was measured."""
    facts = report.machine(comparison)
    peak = f"{facts['matrix_peak_gflops']:,.0f} GFLOP/s (float32, NumPy)" if comparison.peak else ""
    lines.line("machine", f"{facts['cores']} cores", facts["processor"], *facts["gpus"], peak)
    lines.line("photos", comparison.photos)
    _print_skipped(lines, comparison)
    if not comparison.entries:
        lines.line("stopped", "nothing was measured")
        return
    for entry in comparison.entries:
        lines.line("measured", *_facts(comparison, entry))
    lines.out.print()
    lines.out.print(table(comparison, wide=not lines.out.is_terminal or lines.out.width >= _WIDE))
    if any(entry.is_auto for entry in comparison.entries):
        lines.out.print(Text("* what auto takes", style="dim"))
    lines.out.print()
    for sentence in report.limits(comparison):
        lines.line("limit", sentence)
    for sentence in report.notes(comparison):
        lines.line("note", sentence)
    for sentence in report.judge_auto(comparison):
        lines.line("auto", sentence.removeprefix("auto "))
    if comparison.interrupted:
        lines.line("stopped", "before all rounds were done: the figures are of those that were")
    if sentence := report.verdict(comparison):
        lines.out.print(labelled(lines.out, "verdict", "bold green", printable(sentence)))


def _print_skipped(lines: Lines, comparison: Comparison) -> None:
    """Print which backends cannot run, a line a reason, and what helps where that is no GPU."""
    reasons: dict[str, list[Skipped]] = {}
    for each in comparison.skipped:
        reasons.setdefault(each.reason, []).append(each)
    for reason, skipped in reasons.items():
        names = ", ".join(dict.fromkeys(each.backend for each in skipped))
        helps = skipped[0].fix and not (gpu.missing() and skipped[0].backend in NAMES)
        lines.line("skipped", f"{names}: {reason}", skipped[0].fix if helps else "")


def _facts(comparison: Comparison, entry: Entry) -> list[str]:
    """What an entry is, what it computes and holds."""
    work, share, (host, on_gpu) = report.gflop(entry), report.peak_share(entry), report.memory(entry)
    return [
        report.label(comparison, entry),
        f"{entry.size[0]}x{entry.size[1]}",
        "" if work is None else f"{work:.1f} GFLOP a picture",
        "" if share is None else f"{share:.0%} of the matrix peak",
        "" if host is None else gigabytes(host),
        "" if on_gpu is None else f"{gigabytes(on_gpu)} on the GPU",
    ]


def table(comparison: Comparison, *, wide: bool) -> Table:
    """A row for each level and entry; what `auto` takes has a star."""
    found = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    found.add_column("")
    for name in ("photos/s", "ms p50", "p95", "p99", *(("cpu ms",) if wide else ())):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("times the first" if wide else "times", no_wrap=True)
    first = comparison.entries[0]
    for level in LEVELS:
        entries = [entry for entry in comparison.entries if level in entry.levels]
        rows = [(entry, report.figures(entry, level, first)) for entry in entries]
        if not any(figures for _, figures in rows):
            continue
        found.add_row(Text(report.TITLES[level], style="bold cyan"))
        best = max(figures.rate for _, figures in rows if figures)
        for entry, figures in rows:
            name = f"  {report.label(comparison, entry)}{' *' if entry.is_auto else ''}"
            if figures is None:
                found.add_row(Text(name), "-")
                continue
            numbers = [figures.rate, *figures.percentiles, *((figures.cpu_ms,) if wide else ())]
            found.add_row(
                Text(printable(name)),
                *map(short, numbers),
                _times(figures.ratio, wide),
                style="bold" if figures.rate == best else "",
            )
    return found


def _times(ratio: Ratio | None, wide: bool) -> str:
    if ratio is None:
        return "1"
    return str(ratio) if wide else f"{ratio.median:.2f}"


def short(value: float) -> str:
    """`1,234`, `123`, `12.3`, `1.23`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
