"""`unet-batch watch`: a run that goes on as files arrive.

It looks at the folders again and again, and hands the files that have come to rest to `run.execute`, a batch
at a time: the same manifest, lock and guarantees. A file is at rest when its size and time have been the same
for a while, because whoever copies it has no way to say that it is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unet_batch.errors import SourceError
from unet_batch.files import archives, remote
from unet_batch.run.execute import execute
from unet_batch.run.observe import Observer, Stop
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import RunPlan, prepare

if TYPE_CHECKING:
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.hands import Hands
    from unet_batch.run.report import RunReport
    from unet_batch.types import Item

SETTLE = 3.0
"""Seconds that a file must have been the same."""
POLL = 1.0
"""Seconds between two looks; more where a look itself takes long."""
_SHARE = 0.1  # of a processor that looking may take
_JOINING_SHARE = 0.1  # and joining tables
_REFRESH_SHARE, _REFRESH_PAUSE = (
    0.1,
    10.0,
)  # and what is made of the whole folder; seconds between two at least


@dataclass
class Watched:
    """Counts of a `watch`: files done, files whose last try failed, and batches; and the last report."""

    done: int = 0
    failed: int = 0
    batches: int = 0
    report: RunReport | None = None

    def add(self, report: RunReport) -> None:
        """Count the report of a batch; one in which nothing was tried is no batch."""
        self.report = report
        self.done += report.done
        self.failed = report.failed + report.failed_before
        self.batches += bool(report.done + report.failed)


class _Joining:
    """When the tables of the folder are brought up to date: as long as that takes a small share of the time.

    Attributes:
        is_left: they lack what came last.
    """

    def __init__(self) -> None:
        self.is_left, self._next = False, 0.0

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def add(self, report: RunReport, *, joined: bool) -> None:
        """Take note of what a run has done, and whether it has joined them."""
        if joined:
            seconds = sum(facts.get("seconds", 0.0) for facts in report.tables.values())
            self._next = time.monotonic() + seconds / _JOINING_SHARE
        self.is_left = not joined and (self.is_left or report.done > 0)


class _Refreshing:
    """When what is made of the whole folder is made again: as long as that takes a small share of the time.

    Args:
        make: makes it, and says whether that went well; None for nothing.
    """

    def __init__(self, make: Callable[[], bool] | None) -> None:
        self._make, self._is_left, self._next = make, True, 0.0

    def add(self, report: RunReport) -> None:
        """Take note of what a run has done."""
        self._is_left = self._is_left or report.done + report.failed > 0

    def now(self, *, is_last: bool = False) -> None:
        """Make it, if it is left to do and it is time; the last time it is."""
        begun = time.monotonic()
        if self._make is None or not self._is_left or (begun < self._next and not is_last):
            return
        self._is_left = not self._make()
        now = time.monotonic()
        self._next = now + max(_REFRESH_PAUSE, (now - begun) / _REFRESH_SHARE)


class Arrivals:
    """Tells which files have come to rest and were not handed out as they are now.

    Args:
        settle: seconds that a file must have been the same.
    """

    def __init__(self, settle: float) -> None:
        self.settle = settle
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}  # size and time, and since when they are so
        self._given: dict[str, tuple[int, int]] = {}

    def look(self, items: Sequence[Item], now: float) -> list[Item]:
        """Those to take now.

        Args:
            items: all that are there.
            now: a clock that never goes back.
        """
        ready = []
        seen: dict[str, tuple[tuple[int, int], float]] = {}
        for item in items:
            try:
                found = archives.stat(item.path)
            except OSError:  # gone again, or a link to nothing
                continue
            state = (found.size, found.mtime_ns)
            before = self._seen.get(item.path)
            since = before[1] if before is not None and before[0] == state else now
            seen[item.path] = state, since
            if now - since >= self.settle and self._given.get(item.path) != state:
                ready.append(item)
                self._given[item.path] = state
        self._seen = seen
        self._given = {path: state for path, state in self._given.items() if path in seen}
        return ready


def watch(
    options: RunOptions,
    segmenter: Segmenter | Hands,
    observer: Observer = Observer(),  # noqa: B008 - it has no state
    stop: Stop | None = None,
    settle: float = SETTLE,
    poll: float = POLL,
    refresh: Callable[[], bool] | None = None,
) -> Watched:
    """Segment what is there and what arrives, until stopped.

    Args:
        options: as for `prepare`; the sources are folders.
        segmenter: open; or several processes that have one each.
        observer: hears what happens.
        stop: ends it when called.
        settle: seconds that a file must have been the same.
        poll: seconds between two looks.
        refresh: makes what is made of the whole output folder, such as a page, and says whether that went
            well: called when a batch has ended, but for a tenth of the time at most, and at the end.

    Raises:
        SourceError: a source is no folder, or vanished.
        UsageError, OutputError, BackendError: as from `prepare` and `execute`.
    """
    stop = stop or Stop()
    total, arrivals = Watched(), Arrivals(settle)
    joining, refreshing = _Joining(), _Refreshing(refresh)
    begun, plan = time.monotonic(), look(options)
    options = replace(options, output=plan.outputs.name)  # of all batches
    while not stop.reason:
        ready = arrivals.look(plan.items, begun)
        took = time.monotonic() - begun
        for batch in _batches(ready):
            if not stop.reason:
                part = replace(plan, items=batch, todo=batch)
                joined = joining.is_due()
                report = execute(part, segmenter, observer, stop, join_tables=joined)
                joining.add(report, joined=joined and report.status in ("done", "failures"))
                total.add(report)
                refreshing.add(report)
                if report.done + report.failed:
                    observer.batch(report)
                if not stop.reason:
                    refreshing.now()
        if joining.is_left and joining.is_due():
            joining.add(_join(plan, segmenter), joined=True)
        if total.report is not None and not stop.reason:
            refreshing.now()
        stop.sleep(max(poll, took / _SHARE))
        begun, plan = time.monotonic(), _look_again(options, plan)
    if joining.is_left:
        _join(plan, segmenter)
    if total.report is not None:  # else nothing is there to make it of
        refreshing.now(is_last=True)
    return total


def _join(plan: RunPlan, segmenter: Segmenter | Hands) -> RunReport:
    """Bring the tables of the folder up to date: a run of nothing does."""
    return execute(replace(plan, items=(), todo=()), segmenter)


def look(options: RunOptions) -> RunPlan:
    """What the folders hold now, and where results go. Writes nothing.

    Raises:
        SourceError: a source is no folder, cannot be listed, or holds results.
        UsageError, OutputError: as from `prepare`.
    """
    for source in options.sources:
        if remote.is_remote(source):
            raise SourceError(
                f"{source}: only folders of this machine can be watched",
                hint="run the same `run` again and again: it does what is new",
            )
        if not os.path.isdir(source):
            raise SourceError(
                f"{source}: not a folder, and only folders can be watched"
                if os.path.exists(source)
                else f"{source} is not there",
                hint="name folders; make an empty one if its files are still to come",
            )
    return prepare(options, may_be_empty=True)


def _batches(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """The pictures, then each clip by itself: what arrives meanwhile must not wait for all of them."""
    if pictures := tuple(item for item in items if not item.is_clip):
        yield pictures
    for item in items:
        if item.is_clip:
            yield (item,)


def _look_again(options: RunOptions, before: RunPlan) -> RunPlan:
    """The same later; a folder that is there and cannot be listed may be so the next time."""
    try:
        return look(options)
    except SourceError:
        if all(map(os.path.isdir, options.sources)):
            return replace(before, items=(), todo=())
        raise
