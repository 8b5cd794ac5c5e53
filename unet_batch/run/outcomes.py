"""What becomes of the items of a run: counted in its report, recorded in the manifest, told to observers."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from unet_batch.errors import BackendError, DecoderCrashed, UnetBatchError
from unet_batch.files import archives
from unet_batch.files.atomic import LineLog
from unet_batch.files.naming import shown
from unet_batch.inference.segmenter import BROKEN_DEVICE
from unet_batch.media.domain import UNLIKE
from unet_batch.run.manifest import Manifest
from unet_batch.run.observe import Observer
from unet_batch.run.plan import RunPlan
from unet_batch.run.records import Identity, Record
from unet_batch.run.report import LISTED_FAILURES, FileNote, RunReport, add_note, errors_name
from unet_batch.types import Failure, Item

_PASSING_NAMES = (
    *("EIO", "EAGAIN", "EINTR", "EBUSY", "ENFILE", "EMFILE", "ESTALE", "EREMOTEIO", "ENOBUFS", "ETIMEDOUT"),
    *("ECONNRESET", "ECONNABORTED", "ENOTCONN", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    *("EHOSTDOWN", "EHOSTUNREACH"),
)
_PASSING = frozenset(code for name in _PASSING_NAMES if (code := getattr(errno, name, None)) is not None)


class Outcomes:
    """Counts, records and tells what became of each item.

    Args:
        plan: resumed.
        manifest: that of the plan, open for writing as long as this is used.
        recipe: digest of the recipe.
        report: counts.
        observer: hears.

    Raises:
        OutputError: here and everywhere: a file of the output folder cannot be written.
    """

    def __init__(
        self,
        plan: RunPlan,
        manifest: Manifest,
        recipe: str,
        report: RunReport,
        observer: Observer,
    ) -> None:
        self.plan, self.manifest, self.recipe = plan, manifest, recipe
        self.report, self.observer = report, observer
        self.limit = 1 if plan.options.fail_fast else plan.options.max_errors
        self.failures = _FailureList(plan, os.path.join(plan.outputs.folder, errors_name(plan.part)))
        self._notes: dict[str, FileNote] = {}
        self.inference_failures = 0  # in a row
        self._tells = observer.wants_events
        self._last_progress = time.monotonic()

    def tell(self, event: str, **values: Any) -> None:
        """Tell of an event, for the log."""
        if self._tells:
            self.observer.event({"event": event, "at": round(time.time(), 3), **values})

    def tell_progress(self, values: Callable[[], dict[str, Any]]) -> None:
        """Tell how far the run is, unless that has been told just now."""
        if self._tells and time.monotonic() - self._last_progress >= self.plan.options.progress_seconds:
            self._last_progress = time.monotonic()
            self.tell("progress", **values())

    def record_earlier(self) -> None:
        """Record what the plan knows before anything is segmented, and count what has failed already."""
        plan = self.plan
        self.manifest.record(*plan.records)
        self.report.unreadable = len(plan.sources.unreadable)
        for path, reason in plan.sources.unreadable:
            self._count_failure(Failure(path, "source", "SourceError", f"{path}: {reason}", ""))
        for item in plan.quarantined:
            message = f"{item.path}: crashed its decoder in an earlier run, and was not tried again"
            hint = "--isolate tries it in a process of its own"
            self._count_failure(
                Failure(item.path, "decode", DecoderCrashed.__name__, message, hint), item.key
            )

    def count_done(
        self, item: Item, path: str, seconds: dict[str, float], notes: Sequence[str] = (), **values: Any
    ) -> None:
        """Count an item that is done and recorded."""
        self.report.done += 1
        self.inference_failures = 0
        self.failures.settle(path)
        self.report.unlike += UNLIKE in notes
        for note in notes:
            add_note(self._notes, note, (path,))
        if self._tells:
            seconds = {name: round(value, 6) for name, value in seconds.items()}
            more = {"notes": list(notes)} if notes else {}
            self.tell("item", status="done", key=item.key, path=path, **values, **more, seconds=seconds)
        self.observer.outcome(item, None)
        if notes:
            self.observer.note(item, notes)

    def close(self) -> None:
        """Put what is known by now into the report and into the list of failures."""
        self.report.file_notes = list(self._notes.values())
        self.failures.close()
        self.report.failed_before = max(0, self.failures.count - self.report.failed)

    def fail(self, item: Item, identity: Identity | None, stage: str, error: UnetBatchError) -> bool:
        """Record and count that an item failed.

        Returns:
            Whether it was one failure too many.

        Raises:
            BackendError: the device has failed for one item after the other.
        """
        failure = Failure(shown(item.path), stage, type(error).__name__, error.message, error.hint)
        if stage == "infer" or (stage == "clip" and isinstance(error, BackendError)):
            self.inference_failures += 1
            if self.inference_failures >= BROKEN_DEVICE:
                raise error
        words = f"{stage}: {failure.error}"
        self.manifest.record(Record(item.key, "failed", identity, self.recipe, error=words))
        self._count_failure(failure, item.key)
        enough = self.limit is not None and self.report.failed >= self.limit
        if enough:
            self.report.status = "stopped"
        self.observer.outcome(item, failure)
        return enough

    def _count_failure(self, failure: Failure, key: str = "") -> None:
        self.report.failed += 1
        if len(self.report.failures) < LISTED_FAILURES:
            self.report.failures.append(failure)
        self.failures.add(failure)
        self.tell("item", status="failed", key=key, **dataclasses.asdict(failure))


def is_passing(error: BaseException | None) -> bool:
    """Whether a disk or network failed, and not the file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False


class _FailureList:
    """`errors.jsonl`: the files that have failed in this folder and have not been done since.

    Lines of earlier runs stay until their file is tried again: a run that is killed loses none, and `watch`,
    which is a run for each batch, lists the failures of all.

    Args:
        plan: resumed.
        path: the file.
    """

    def __init__(self, plan: RunPlan, path: str) -> None:
        self._settled: set[str] = set()
        self._earlier: set[str] = set()
        pending: set[str] = set()
        known: set[str] = set()
        if os.path.exists(path):
            pending = {shown(item.path) for item in (*plan.todo, *plan.quarantined)}
            known = {shown(item.path) for item in plan.items}

        def is_failed(number: int, line: Any) -> bool:
            """Whether an earlier failure is one still, as far as can be known before the run."""
            if not isinstance(line, dict) or not isinstance(failed := line.get("path"), str):
                return False
            if line.get("stage") == "source":  # this run looks for itself
                return False
            if failed in pending or (failed not in known and archives.exists(failed)):
                self._earlier.add(failed)
                return True
            return False

        self._lines = LineLog(path, is_failed)
        self._before = self._lines.count

    @property
    def count(self) -> int:
        """How many lines there are."""
        return self._lines.count

    def add(self, failure: Failure) -> None:
        """List a failure."""
        self.settle(failure.path)
        self._lines.write(dataclasses.asdict(failure))

    def settle(self, path: str) -> None:
        """Take note that a file was tried: what an earlier run said of it no longer counts."""
        if path in self._earlier:
            self._settled.add(path)

    def close(self) -> None:
        """Take out what no longer counts."""
        if self._settled:
            self._lines.prune(
                lambda number, line: number >= self._before or line["path"] not in self._settled
            )
        self._lines.close()
