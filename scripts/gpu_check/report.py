"""Markdown of the results. What was not measured is a dash, never a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from scripts.gpu_check import tables
from scripts.gpu_check.tables import Json, Row, cell, number

TABLES: tuple[tuple[str, str, Callable[[Json], Iterator[Row]]], ...] = (
    ("Tests marked gpu", "tests", tables.tests),
    ("Engines", "build ", tables.engines),
    ("Buffers, graphs and threads", "buffers ", tables.buffers),
    ("Throughput", "throughput ", tables.speed),
    ("torch.compile", "torch.compile ", tables.speed),
    ("From photos to masks (1280x1918)", "run ", tables.runs),
    ("Masks of photos", "run ", tables.masks),
    ("Masks of photos, all networks", "masks", tables.masks),
    ("Photos decoded (1280x1918)", "photo decoding", tables.photo_decoders),
    ("Damaged photos", "photo decoding", tables.damaged),
    ("Memory", "memory ", tables.memory),
    ("Out of memory", "out of memory ", tables.starved),
    ("Training", "training ", tables.training),
    ("Training, repeated and resumed", "training ", tables.equal),
    ("Training in two processes", "training ", tables.processes),
    ("Training from files", "training ", tables.loading),
    ("Clips: decoders", "clip ", tables.decoders),
    ("Clips: encoders", "clip ", tables.encoders),
    ("Clips to masks and overlay", "clip ", tables.clips),
)


def markdown(results: Sequence[Json]) -> str:
    """One document of one or several runs."""
    return "\n".join(line for result in results for line in _document(result)) + "\n"


def _document(result: Json) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    yield f"# {result['gpu']}, driver for CUDA {result['driver_cuda']}, {result['date']}"
    yield ""
    yield f"`{result['command']}`; {result['system']}; {versions}."
    yield ""
    yield from _table(
        ("section", "status", "seconds", "remark"),
        [(s["name"], s["status"], number(s["seconds"], 1), cell(s["reason"])) for s in result["sections"]],
    )
    for title, prefix, render in TABLES:
        rows = [
            line
            for section in result["sections"]
            if section["name"].startswith(prefix)
            for line in render(section)
        ]
        if rows:
            yield f"## {title}"
            yield ""
            yield from _table(rows[0], rows[1:]) if prefix != "tests" else [*map(str, rows[0]), ""]
    broken = [section for section in result["sections"] if section["output"]]
    for section in broken:
        yield f"## Output of {section['name']} ({section['status']})"
        yield ""
        yield from ("```", *(line.replace("```", "'''") for line in section["output"]), "```", "")


def _table(head: Row, rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    seen_head = tuple(head)
    for row in rows:
        if tuple(row) != seen_head:  # each section brings its own head
            yield f"| {' | '.join(map(cell, row))} |"
    yield ""
