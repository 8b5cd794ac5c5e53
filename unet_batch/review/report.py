"""The page of a run: `OUT/report.html`, and what it shows, in `OUT/report/`.

    report.html                the page; opens from a disk, without network or server
    report/report.css, .js     how it looks, what it does
    report/facts.js            of the run: model, counts, what stands in columns, why something is suspicious
    report/items.js            of each item: name, files, figures; a line for each pack
    report/failures.js         what failed, and why
    report/packs/, clips/      thumbnails, and the frames of clips: read when they come into view

A page that was opened as a file may not fetch files, but it may load scripts: so all data are scripts that
call a function of the page. Everything is made beside what the last report left, and then changed over to, so
that a report that was killed leaves the old page, and goes on when it is made again.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from unet_batch.errors import UsageError
from unet_batch.files import archives, remote
from unet_batch.files.atomic import clean_leftovers, make_folder, remove, replacing, scan, write_atomic
from unet_batch.files.locks import claim
from unet_batch.files.outputs import KINDS
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Pipeline, Stage, cpu_count
from unet_batch.review.facts import describe_columns, describe_run
from unet_batch.review.filmstrip import look_at_clip
from unet_batch.review.packs import Entry, PackStore, Task, Thumbnails, is_current
from unet_batch.review.suspicion import REASONS, Figures, judge
from unet_batch.review.thumbnails import Look, look_at_picture
from unet_batch.run.finished import FinishedRun
from unet_batch.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import ClassTable

PAGE = "report.html"
FOLDER = "report"
_SCRIPTS = ("data.js", "marks.js", "filters.js", "grid.js", "zoom.js", "page.js")  # joined into report.js
_SHOWN = ("mask", "overlay", "stats", "timeline")  # kinds that the page reads or links to

Made = tuple[Entry, Thumbnails]


@dataclass(frozen=True)
class Report:
    """What was made.

    Attributes:
        page: path of the page.
        items: how many it shows, of which `made` are new or have changed.
        suspicious: how many are worth a look, by the name of the reason.
        any: how many are worth a look at all.
        gone: items whose source is not where it was.
        failures: how many failed.
    """

    page: str
    items: int
    made: int
    suspicious: dict[str, int]
    any: int
    gone: int
    failures: int


def write_report(
    folder: str, *, wait: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Make the page of a run, or bring it up to date.

    Args:
        folder: the output folder of a run, which may still go on.
        wait: wait for another report of the same folder.
        progress: called with the number of items looked at, and how many there are.

    Raises:
        UsageError: it is no output folder, or an address.
        OutputError: something cannot be written there, or another report is being made.
    """
    if remote.is_remote(folder):
        raise UsageError(
            f"{folder}: a page opens from a disk only",
            hint="copy the folder to this machine, then name the copy",
        )
    with FinishedRun(folder) as run:
        below = os.path.join(run.folder, FOLDER)
        make_folder(below)
        with claim(below, wait=wait):
            for each in (run.folder, below, os.path.join(below, "packs"), os.path.join(below, "clips")):
                clean_leftovers(each)
            return _Writer(run, below, progress).write()


class _Writer:
    """One report of one run."""

    def __init__(self, run: FinishedRun, folder: str, progress: Callable[[int, int], None]) -> None:
        self.run, self.folder, self.progress = run, folder, progress
        self.look = Look(run.folder, run.classes)
        self.packs = PackStore(os.path.join(folder, "packs"), self.look.digest)
        self.columns = describe_columns(run.classes)
        self.figures = Figures([column["name"] for column in self.columns])
        self.roots: dict[str, int] = {}
        self.clips: set[str] = set()
        self.items = self.made = self.gone = 0

    def write(self) -> Report:
        """See `write_report`."""
        names = [self._pack(old, chunk) for old, chunk in self.packs.ranges(self._tasks())]
        bits, weights = judge(self.figures)
        self._write_lines("items.js", self._blocks(names, bits, weights))
        failures = self._write_failures()
        by_reason = {reason.name: int((bits >> place & 1).sum()) for place, reason in enumerate(REASONS)}
        facts = {
            "id": hashlib.sha256(self.run.folder.encode("utf-8", "surrogateescape")).hexdigest()[:16],
            "title": self.run.name,
            "made": time.strftime("%Y-%m-%d %H:%M"),
            "unet_batch": __version__,
            "items": self.items,
            "clips": len(self.clips),
            "failures": failures,
            "gone": self.gone,
            "classes": self._classes(self.run.classes),
            "ids": len(self.run.classes.names) > 1,
            "columns": self.columns,
            "reasons": [{**asdict(reason), "count": by_reason[reason.name]} for reason in REASONS],
            "roots": [self._root(root) for root in self.roots],
            "folders": {kind: [KINDS[kind].folder, KINDS[kind].suffix] for kind in ("mask", "overlay")},
            "run": describe_run(self.run.report),
        }
        self._write_call("facts.js", "facts", facts)
        self._write_page(facts)
        self.packs.keep_only(names)
        clips = os.path.join(self.folder, "clips")
        remove(entry.path for entry in scan(clips) if os.path.splitext(entry.name)[0] not in self.clips)
        found = int((bits > 0).sum())
        page = os.path.join(self.run.folder, PAGE)
        return Report(page, self.items, self.made, by_reason, found, self.gone, failures)

    def _tasks(self) -> Iterator[Task]:
        """What is done, with the sizes and times of its outputs."""
        for item in self.run.items():
            files, stamp = {}, []
            for kind in _SHOWN:
                if (path := item.files.get(kind)) is None:
                    continue
                try:
                    found = os.stat(path)
                except OSError:  # removed since
                    continue
                files[kind] = os.path.relpath(path, self.run.folder).replace(os.sep, "/")
                stamp.append([kind, found.st_size, found.st_mtime_ns])
            yield Task(item.key, item.source, files, stamp, item.is_clip)

    # Packs.

    def _pack(self, old: str, tasks: Sequence[Task]) -> str:
        """The name of the pack that holds these items: the old one, if they are what it holds."""
        known = {entry.key: entry for entry in self.packs.entries(old)} if old else {}
        fresh = [self._known(known, task) for task in tasks]
        entries: list[Entry] = [entry for entry in fresh if entry is not None]
        if len(entries) < len(tasks) or [*known] != [task.key for task in tasks]:
            lines: dict[str, str] = {}
            if entries:
                lines = dict(zip(known, self.packs.lines(old), strict=False))
            todo = [
                task
                for task, entry in zip(tasks, fresh, strict=True)
                if entry is None or task.key not in lines
            ]
            made = {entry.key: (entry, thumbnails.line()) for entry, thumbnails in self._make(todo)}
            kept = {entry.key: (entry, lines.get(entry.key, "")) for entry in entries}
            both = [made.get(task.key) or kept[task.key] for task in tasks]
            entries = [entry for entry, _ in both]
            old = self.packs.write(entries, [line for _, line in both])
            self.made += len(made)
        for entry in entries:
            self.figures.add(entry.values)
            self.gone += entry.lacks == "source"
            if entry.clip:
                self.clips.add(entry.clip)
        self.items += len(entries)
        self.progress(self.items, self.run.done)
        return old

    def _known(self, known: dict[str, Entry], task: Task) -> Entry | None:
        """What a pack holds of an item, if that would not be made otherwise now."""
        entry = known.get(task.key)
        if entry is None or not is_current(entry, task):
            return None
        if entry.lacks and archives.exists(task.source):
            return None
        if entry.clip and not os.path.exists(os.path.join(self.folder, "clips", entry.clip + ".js")):
            return None
        return entry

    def _make(self, tasks: Sequence[Task]) -> Iterator[Made]:
        """Look at items, in several threads."""
        if not tasks:
            return
        workers = min(len(tasks), cpu_count())
        stages = [Stage("look", self._look_at, workers)]
        ahead = remote.read_ahead(tasks, lambda task: task.source)
        with single_threaded_cv2(), Pipeline[Task, Made](ahead, stages, in_flight=2 * workers) as results:
            yield from results

    def _look_at(self, task: Task) -> Made:
        if task.is_clip:
            return look_at_clip(task, self.look, os.path.join(self.folder, "clips"))
        return look_at_picture(task, self.look)

    # What the page reads.

    def _blocks(self, names: Iterable[str], bits: NDArray[Any], weights: NDArray[Any]) -> Iterator[str]:
        """A line for each pack: its items, column by column, as `page/data.js` takes them apart."""
        at = 0
        for name in names:
            entries = self.packs.entries(name)
            span = slice(at, at + len(entries))
            at += len(entries)
            columns = {
                column["name"]: _same([_rounded(entry.values.get(column["name"])) for entry in entries])
                for column in self.columns
            }
            columns["suspicion"] = _same([round(weight, 3) for weight in weights[span].tolist()])
            block = {
                "pack": name,
                "keys": [entry.key for entry in entries],
                "sources": [self._source(entry) for entry in entries],
                "reasons": _same(bits[span].tolist()),
                "columns": columns,
                "digests": [entry.digest for entry in entries],
                "files": {
                    kind: _same([self._file(entry, kind) for entry in entries])
                    for kind in ("mask", "overlay")
                },
                "clips": _same([entry.clip for entry in entries]),
                "notes": _same([entry.note for entry in entries]),
            }
            yield f"unetReport.block({_json(block)})\n"

    def _source(self, entry: Entry) -> str:
        """A source: `NUMBER=SUFFIX` below a root, where it is called like its outputs; else `NUMBER/NAME`."""
        path = entry.source.replace(os.sep, "/")
        stem, dot, suffix = path.rpartition(".")
        if dot and (stem == entry.key or stem.endswith(f"/{entry.key}")):
            root, name = stem[: -len(entry.key)].rstrip("/"), f"=.{suffix}"
        elif path.endswith(f"/{entry.key}"):
            root, name = path[: -len(entry.key) - 1], "="
        else:
            root, _, last = path.rpartition("/")
            name = f"/{last}"
        return f"{self.roots.setdefault(root, len(self.roots))}{name}"

    def _file(self, entry: Entry, kind: str) -> str | int:
        """An output: 0 there is none, 1 it lies where it usually does, else its name."""
        file = entry.files.get(kind)
        usual = f"{KINDS[kind].folder}/{entry.key}{KINDS[kind].suffix}"
        return 0 if file is None else 1 if file == usual else file

    def _root(self, root: str) -> dict[str, str | None]:
        """A folder of sources, and where the page finds it: None where a browser cannot."""
        url: str | None = None
        path = (root or "/").replace("/", os.sep)
        if not remote.is_remote(root) and os.path.isdir(path):
            try:
                url = quote(os.fsencode(os.path.relpath(path, self.run.folder).replace(os.sep, "/")))
            except ValueError:  # another drive of Windows
                url = "file:///" + quote(root)
        return {"path": root, "url": url}

    def _classes(self, classes: ClassTable) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "colour": "#{:02x}{:02x}{:02x}".format(*colour),
                "ground": id == classes.background,
            }
            for id, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
        ]

    def _write_failures(self) -> int:
        """The failures, a hundred a line; return how many."""
        count = 0

        def lines() -> Iterator[str]:
            nonlocal count
            failures = iter(self.run.failures())
            while batch := list(islice(failures, 100)):
                count += len(batch)
                yield f"unetReport.failures({_json([asdict(failure) for failure in batch])})\n"

        self._write_lines("failures.js", lines())
        return count

    def _write_lines(self, name: str, lines: Iterable[str]) -> None:
        with (
            replacing(os.path.join(self.folder, name)) as temporary,
            open(temporary, "w", encoding="ascii") as file,
        ):
            file.writelines(lines)

    def _write_call(self, name: str, function: str, value: Any) -> None:
        write_atomic(
            os.path.join(self.folder, name), f"unetReport.{function}({_json(value)})\n".encode("ascii")
        )

    def _write_page(self, facts: dict[str, Any]) -> None:
        parts = resources.files("unet_batch.review") / "page"
        scripts = b"\n".join((parts / name).read_bytes() for name in _SCRIPTS)
        # Within a function: at the top of a script, `top` and others would be the window's
        write_atomic(
            os.path.join(self.folder, "report.js"), b'"use strict";\n(() => {\n' + scripts + b"})();\n"
        )
        write_atomic(os.path.join(self.folder, "report.css"), (parts / "report.css").read_bytes())
        title = facts["title"].encode("utf-8", "replace").decode()
        page = (parts / PAGE).read_text(encoding="utf-8").replace("{{title}}", html.escape(title))
        write_atomic(os.path.join(self.run.folder, PAGE), page.encode())


def _rounded(value: float | None) -> float | None:
    """Six significant digits are more than anybody sees."""
    return None if value is None else float(f"{value:.6g}")


def _same(values: list[Any]) -> Any:
    """One value for all, where all are the same and no list."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _json(value: Any) -> str:
    """In ASCII, so that nothing in a name ends a line or a script."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
