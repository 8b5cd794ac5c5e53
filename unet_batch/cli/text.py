"""Words, numbers and paths as people read them. Needs the standard library only."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from unet_batch import gpu
from unet_batch.files import naming

if TYPE_CHECKING:
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.types import Item


def printable(text: str) -> str:
    """Escape what could steer a terminal: file names may hold escape codes and undecodable bytes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


def columns(stream: TextIO) -> int | None:
    """Width of the terminal behind a stream; None for a pipe or file, whose readers want whole lines."""
    if not stream.isatty():
        return None
    try:
        return int(os.environ.get("COLUMNS", "")) or None
    except ValueError:
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def wrap(text: str, width: int | None, indent: int = 0, keep: Iterable[str] = ()) -> str:
    """Break a line at words; words, and so most paths, are never cut.

    Args:
        text: one line.
        width: columns of the terminal; None leaves the line whole.
        indent: columns before each line; the first line has them already.
        keep: texts with spaces, such as paths, that must stay whole as well.
    """
    if width is None:
        return text
    for whole in keep:
        text = text.replace(whole, whole.replace(" ", "\0"))
    # A terminal of a few columns gets short lines, not none.
    lines = textwrap.wrap(text, max(20, width - indent), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines).replace("\0", " ")


def arguments_with_spaces() -> list[str]:
    """What stands on the command line with spaces in it, mostly paths, as messages may show it."""
    words = [word for word in sys.argv[1:] if " " in word]
    paths = [os.path.normpath(word) for word in words]
    return [*words, *paths, *(folder for path in paths if " " in (folder := os.path.dirname(path)))]


def shown(path: str) -> str:
    """A path relative to here where that is shorter; an address without its password."""
    if "://" in path:
        return naming.shown(path)
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return relative if len(relative) < len(path) else path


def plural(count: int, word: str) -> str:
    """`picture` for 1, else `pictures`."""
    return word if count == 1 else word + "s"


def clock(seconds: float) -> str:
    """`7.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def megabytes(count: int) -> str:
    """`16.4 MB`."""
    return f"{count / 1e6:.1f} MB"


def gigabytes(count: float) -> str:
    """`1.3 GB`, and `40 MB` below a tenth of one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def some(names: Iterable[str], count: int | None = None) -> str:
    """`a, b, c and 7 more`: the first of these names.

    Args:
        names: all of them, or the first three.
        count: how many there are, where these are not all.
    """
    names = list(names)
    rest = (len(names) if count is None else count) - len(names[:3])
    return ", ".join(names[:3]) + (f" and {rest:,} more" if rest > 0 else "")


def left_out(ignored: Mapping[str, int]) -> str:
    """`3 other files left out: 2 .txt, 1 .mp4`."""
    total = sum(ignored.values())
    if not total:
        return ""
    commonest = sorted(ignored.items(), key=lambda entry: (-entry[1], entry[0]))[:4]
    kinds = ", ".join(f"{count:,} {suffix or 'without extension'}" for suffix, count in commonest)
    more = ", ..." if len(ignored) > 4 else ""
    return f"{total:,} other {plural(total, 'file')} left out: {kinds}{more}"


def census(items: Sequence[Item]) -> str:
    """`3 pictures and 1 clip`."""
    clips = sum(item.is_clip for item in items)
    counts = ((len(items) - clips, "picture"), (clips, "clip"))
    return " and ".join(f"{count:,} {plural(count, word)}" for count, word in counts if count) or "0 pictures"


def describe_network(segmenter: Segmenter) -> list[tuple[str, ...]]:
    """What there is to say of a network, each line with its label; for `Screen.model`."""
    spec, backend = segmenter.spec, segmenter.backend
    names, lines = spec.classes.names, list[tuple[str, ...]]()
    for loaded, sight in zip(segmenter.models, segmenter.view.members, strict=True):
        height, width = sight.backend.input_size
        seen = " ".join(part for part in (f"{height}x{width}", str(sight.options)) if part)
        classes = names[0] if len(names) == 1 else f"{len(names)} classes"
        size = f"{loaded.parameters / 1e6:.1f} M parameters"
        lines.append(("model", loaded.spec.name, size, seen, classes, f"sha256 {loaded.sha256[:12]}"))
    if (count := len(segmenter.models)) > 1:
        votes = f"the class that most of the {count} models say, the first of them on a tie"
        mean = f"the mean of the {count} models' probabilities, threshold {segmenter.threshold:g}"
        lines.append(("averaged", mean if len(names) == 1 else votes))
    if spec.terms:
        lines.append(("terms", spec.terms))
    lines.append(("backend", f"{backend.name} {backend.precision} ({backend.reason})"))
    if not gpu.missing():  # what helps a GPU is no advice where there is none
        for fix in dict.fromkeys(step.fix for step in segmenter.passed_over if step.fix):
            lines.append(("", f"faster: {fix}"))
    elif backend.name in ("torch-cpu", "onnxruntime-cpu"):
        for step in segmenter.passed_over:
            if step.name == "openvino" and step.fix:
                lines.append(("", f"faster on this CPU: {step.fix.removeprefix('build one: ')}"))
    lines += (("note", note) for note in (*backend.notes, *segmenter.view.assumed))
    streams, threads = backend.streams, segmenter.workers
    feeding = f"{threads} {plural(threads, 'thread')} each for decode, render, write"
    lines.append(("batch", f"{backend.batch_size} x {streams} {plural(streams, 'stream')}", feeding))
    return lines
