"""The report of a run: `run.json`, and how the reports of shards become one."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import re
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from itertools import pairwise
from typing import Any, Literal

from unet_batch.files import remote
from unet_batch.pipeline import StageStats, bottleneck
from unet_batch.types import Failure

Status = Literal["running", "done", "failures", "stopped", "interrupted", "aborted"]

LISTED_FAILURES = 100
LISTED_EXAMPLES = 20
NOTE_KINDS = 50
_NUMBER = re.compile(r"(?<![^\s(])([0-9]{1,18})(?:-([0-9]{1,18}))?(?=[\s:;,)]|$)")  # a word of its own
LIBRARIES = (
    *("torch", "tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings"),
    *("numpy", "opencv-python-headless", "pillow", "simplejpeg", "safetensors"),
)
_SEVERITY: Sequence[Status] = ("done", "failures", "stopped", "interrupted", "aborted")


@dataclass
class FileNote:
    """What people should know of how files were read, said once for all that it holds for.

    Attributes:
        note: the phrase; where only numbers differ, with their range: `2-12 pages: the first is read`.
        files: how many.
        examples: the first of them.
    """

    note: str
    files: int
    examples: list[str]


def add_note(notes: dict[str, FileNote], note: str, examples: Sequence[str], files: int = 1) -> None:
    """Count a phrase of some files.

    Args:
        notes: what was counted so far, by the phrase without its numbers. Their number is bounded.
        note: the phrase.
        examples: the files, or the first of them.
        files: how many.
    """
    kind = _NUMBER.sub("#", note)
    if kind not in notes and len(notes) >= NOTE_KINDS:
        kind = note = "other notes, which --log-json lists"
    found = notes.setdefault(kind, FileNote(note, 0, []))
    others = _NUMBER.finditer(note)

    def widen(match: re.Match[str]) -> str:
        numbers = [int(text) for each in (match, next(others, match)) for text in each.groups() if text]
        low, high = min(numbers), max(numbers)
        return str(low) if low == high else f"{low}-{high}"

    if found.note != note:
        found.note = _NUMBER.sub(widen, found.note)
    found.files += files
    found.examples.extend(examples[: LISTED_EXAMPLES - len(found.examples)])


def every_note(report: RunReport) -> list[FileNote]:
    """The notes of pictures and of clips."""
    notes: dict[str, FileNote] = {}
    for each in report.file_notes:
        add_note(notes, each.note, each.examples, each.files)
    for clip in report.clips:
        for note in clip["notes"]:
            add_note(notes, note, (clip["path"],))
    return list(notes.values())


@dataclass
class RunReport:
    """What a run did; the same as `OUT/run.json`.

    Attributes:
        status: `done` (everything), `failures` (some items failed), `stopped` (by --fail-fast or
            --max-errors), `interrupted` (by Ctrl-C or SIGTERM), `aborted` (by an error that concerns the
            whole run); `running` in the file of a run that goes on or was killed.
        shard: `2/8`; "" for a run that does everything.
        overwrite: whether outputs of earlier runs were to be made again.
        found: items in the sources (of the shard), of which `done` were segmented now, `failed`, and
            `skipped` had their outputs already.
        failed_before: files that failed in earlier runs and were not tried now; `OUT/errors.jsonl` lists
            them, too.
        unreadable: folders and links among the sources that could not be listed; they count as failed, and
            not as found.
        states: how many items were in which `records.State` when the run began.
        frames: of clips, segmented now.
        clips: of each clip that did not fail: frames, damaged packets, notes, and whether its end was
            reached.
        encoder: of overlay videos, and why this one.
        retried: reads that were tried again after an error of the disk or network.
        signal: name of the signal that interrupted it; "" for a Ctrl-C that Python itself raised.
        seconds: wall time from the first decode to the last file, start-up apart.
        floor_seconds: what would do if nothing ever waited: the network's seconds, and the processor seconds
            of all else (encoders and decoders with their own threads) divided by the cores. On a CPU all is
            processor seconds.
        stages: work of each stage.
        devices: of a run on several, what each has done: its `name`, items `done` and `failed`, how often its
            process died, seconds that its network was `busy` in so many `streams`, and why it was left out.
        bottleneck: name of the stage whose threads were busiest.
        backlog: of each stage, how many items waited for it or were in it: the mean over the run, and the
            most.
        failures: the first hundred; all of them stand in `OUT/errors.jsonl`.
        notes: what people should know: a sentence each.
        command: what a person typed, passwords left out.
        file_notes: what they should know of how pictures were read that were segmented now, those of clips
            apart.
        tables: of each table of the folder its files, rows and pictures, and the manifest that it is of.
        parquet: tables were wanted as Parquet, too.
        unlike: pictures, segmented now, that are unlike what the model learned from.
    """

    unet_batch: str
    status: Status
    output: str
    sources: tuple[str, ...]
    save: tuple[str, ...]
    model: Mapping[str, Any]
    backend: Mapping[str, Any]
    found: int
    skipped: int
    shard: str = ""
    overwrite: bool = False
    done: int = 0
    failed: int = 0
    failed_before: int = 0
    unreadable: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    retried: int = 0
    frames: int = 0
    clips: list[dict[str, Any]] = field(default_factory=list)
    encoder: Mapping[str, str] = field(default_factory=dict)
    signal: str = ""
    seconds: float = 0.0
    floor_seconds: float = 0.0
    bottleneck: str = ""
    stages: list[StageStats] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    backlog: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    notes: Sequence[str] = ()
    file_notes: list[FileNote] = field(default_factory=list)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parquet: bool = False
    unlike: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    command: str = ""

    @property
    def images_per_second(self) -> float:
        """Items that ended, well or not, for each second of the run."""
        return (self.done + self.failed) / self.seconds if self.seconds else 0.0

    @property
    def left(self) -> int:
        """Items that nobody has tried yet."""
        return max(0, self.found - self.skipped - self.done - (self.failed - self.unreadable))

    @property
    def errors_file(self) -> str:
        """Where every file is listed that has failed and was not done since; absent without any."""
        name = errors_name(_part(self.shard))
        return f"{self.output}/{name}" if remote.is_remote(self.output) else os.path.join(self.output, name)

    @property
    def exit_code(self) -> int:
        """0 everything done, 1 some items failed or were left, 130 after Ctrl-C, 143 after SIGTERM."""
        if self.status == "interrupted":
            return 128 + (signal.Signals[self.signal] if self.signal else signal.SIGINT)
        return 0 if self.status == "done" else 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the first key marks the folder as outputs of this program."""
        data = dataclasses.asdict(self)
        return {"unet_batch": data.pop("unet_batch"), **data, "images_per_second": self.images_per_second}


def run_name(part: str) -> str:
    """File of the report of a shard, such as `2-of-8`, or of a run that does everything ("")."""
    return f"run-{part}.json" if part else "run.json"


def errors_name(part: str) -> str:
    """File of the failures of a shard, or of a run that does everything ("")."""
    return f"errors-{part}.jsonl" if part else "errors.jsonl"


def load_report(path: str) -> dict[str, Any] | None:
    """Read a report; None where there is none, or none that can be read."""
    with suppress(OSError, ValueError, RecursionError), open(path, encoding="ascii") as file:
        data = json.load(file)
        return data if isinstance(data, dict) and "unet_batch" in data else None
    return None


def merge_reports(
    output: str, reports: Sequence[Mapping[str, Any]], failures: Sequence[Failure]
) -> RunReport:
    """Merge reports into that of one run that did what all of them did side by side.

    Args:
        output: the folder.
        reports: of the shards, as `load_report` returned them; one at least. One that still says `running`
            was killed.
        failures: of all.

    Raises:
        KeyError, TypeError, ValueError: a report lacks what it should hold.
    """
    first = reports[0]
    known: dict[str, Any] = {
        name: first[name] for name in ("unet_batch", "model", "backend", "versions", "overwrite", "notes")
    }
    states: Counter[str] = Counter()
    notes: dict[str, FileNote] = {}
    stages: dict[str, StageStats] = {}
    for each in reports:
        states.update(each["states"])
        for values in each.get("file_notes", ()):  # 0.2.0 had none
            add_note(notes, values["note"], values["examples"], values["files"])
        for values in each["stages"]:
            more = StageStats(**values)
            total = stages.setdefault(more.name, StageStats(more.name, 0))
            add_stats(total, more)
            total.workers += more.workers
    statuses: list[Status] = [
        "interrupted" if each["status"] == "running" else each["status"] for each in reports
    ]
    status = max(statuses, key=_SEVERITY.index)
    report = RunReport(
        **known,
        status=status,
        output=output,
        sources=tuple(first["sources"]),
        save=tuple(first["save"]),
        found=sum(each["found"] for each in reports),
        skipped=sum(each["skipped"] for each in reports),
        done=sum(each["done"] for each in reports),
        failed=sum(each["failed"] for each in reports),
        failed_before=sum(each.get("failed_before", 0) for each in reports),
        unreadable=sum(each["unreadable"] for each in reports),
        states=dict(states),
        retried=sum(each["retried"] for each in reports),
        frames=sum(each["frames"] for each in reports),
        clips=[clip for each in reports for clip in each["clips"]],
        encoder=next((each["encoder"] for each in reports if each["encoder"]), {}),
        signal=next((each["signal"] for each in reports if each["signal"]), ""),
        seconds=max(each["seconds"] for each in reports),
        stages=list(stages.values()),
        devices=[device for each in reports for device in each.get("devices", ())],
        failures=list(failures[:LISTED_FAILURES]),
        file_notes=list(notes.values()),
        parquet=any(each.get("parquet") for each in reports),
        unlike=sum(each.get("unlike", 0) for each in reports),
        started=min(each["started"] for each in reports),
        command=first.get("command", ""),
    )
    report.bottleneck = bottleneck(report.stages).name if report.stages else ""
    return report


def add_stats(total: StageStats, more: StageStats) -> None:
    """Add work that more threads, or the same ones later, did for a stage."""
    for figure in ("items", "batches", "busy", "cpu", "waiting"):
        setattr(total, figure, getattr(total, figure) + getattr(more, figure))


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on, as far as they are installed.

    Looked up once: 20 ms, in which four photos are segmented, and `watch` is a run for each batch.
    """
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        # An engine runs without PyTorch, PyTorch without TensorRT
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _part(shard: str) -> str:
    return shard.replace("/", "-of-")


class Backlog:
    """How many items wait for each stage or are in it, looked at now and then."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        self.now: dict[str, int] = {}
        self.seen = 0.0
        self._sum: Counter[str] = Counter()
        self._most: dict[str, int] = {}
        self._looks = 0

    def begin(self) -> None:
        """Begin with a new pipeline."""
        self.failed.clear()
        self.seen = 0.0

    def look(self, stats: Sequence[StageStats], now: float) -> None:
        """Count what lies between the stages at a time of `time.monotonic`."""
        self.seen = now
        self._looks += 1
        for before, stage in pairwise(stats):
            waiting = max(0, before.items - self.failed[before.name] - stage.items)
            self.now[stage.name] = waiting
            self._sum[stage.name] += waiting
            self._most[stage.name] = max(waiting, self._most.get(stage.name, 0))

    def figures(self) -> dict[str, dict[str, float]]:
        """Of each stage, the mean and the most."""
        return {
            name: {"mean": round(self._sum[name] / max(1, self._looks), 1), "most": most}
            for name, most in self._most.items()
        }
