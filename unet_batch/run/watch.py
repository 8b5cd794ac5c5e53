"""`unet-batch watch`: a run that goes on as files arrive.

It looks at the folders again and again, and hands the files that have come to rest to `run.execute`, a batch
at a time: the same manifest, lock and guarantees. A file is at rest when its size and time have been the same
for a while, because whoever copies it has no way to say that it is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unet_batch.errors import SourceError
from unet_batch.run.execute import OnFrame, OnOutcome, Stop, execute
from unet_batch.run.plan import Plan, RunOptions, is_clip, prepare

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Step
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.execute import Log
    from unet_batch.run.report import RunReport
    from unet_batch.types import Item

SETTLE = 3.0
"""Seconds that a file must have been the same."""
POLL = 1.0
"""Seconds between two looks; more where a look itself takes long."""
_SHARE = 0.1  # of a processor that looking may take


@dataclass
class Watched:
    """What came of it all: files `done` and `failed` since it began, in so many `batches`, and the last
    `report`.
    """

    done: int = 0
    failed: int = 0
    batches: int = 0
    report: RunReport | None = None


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
                found = os.stat(item.path)
            except OSError:  # gone again, or a link to nothing
                continue
            state = (found.st_size, found.st_mtime_ns)
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
    segmenter: Segmenter,
    model: Mapping[str, Any],
    on_outcome: OnOutcome,
    passed_over: Sequence[Step] = (),
    *,
    settle: float = SETTLE,
    poll: float = POLL,
    on_start: Callable[[Plan], None] = lambda plan: None,
    on_batch: Callable[[RunReport], None] = lambda report: None,
    on_frame: OnFrame = lambda item, done, total: None,
    log: Log | None = None,
    stop: Stop | None = None,
) -> Watched:
    """Segment what is there and what arrives, until stopped.

    Args:
        options: as for `run.prepare`; the sources are folders.
        segmenter, model, on_outcome, passed_over, on_frame, log: as for `run.execute`.
        settle: seconds that a file must have been the same.
        poll: seconds between two looks.
        on_start: called with the plan of each batch once it is known what is left of it.
        on_batch: called with the report of each batch in which anything happened.
        stop: ends it when called.

    Raises:
        SourceError: a source is no folder, or vanished.
        OutputError, BackendError: as from `run.execute`.
    """
    stop = stop or Stop()
    total, arrivals = Watched(), Arrivals(settle)
    while not stop.reason:
        begun = time.monotonic()
        plan = _look(options)
        ready = arrivals.look(plan.items, begun) if plan is not None else []
        took = time.monotonic() - begun
        if plan is not None and ready:
            # Pictures first, as always; a clip that takes an hour must not hold up those that arrive
            # meanwhile for longer.
            for batch in (
                [item for item in ready if not is_clip(item)],
                *([item] for item in ready if is_clip(item)),
            ):
                if batch and not stop.reason:
                    _segment(
                        replace(plan, items=tuple(batch), todo=tuple(batch)),
                        total,
                        on_batch,
                        lambda part: execute(
                            part,
                            segmenter,
                            model,
                            on_outcome,
                            passed_over,
                            on_start=on_start,
                            on_frame=on_frame,
                            log=log,
                            stop=stop,
                        ),
                    )
        stop.sleep(max(poll, took / _SHARE))
    return total


def _segment(
    plan: Plan, total: Watched, on_batch: Callable[[RunReport], None], carry_out: Callable[[Plan], RunReport]
) -> None:
    report = carry_out(plan)
    total.report = report
    total.done += report.done
    total.failed += report.failed
    if report.done + report.failed:
        total.batches += 1
        on_batch(report)


def _look(options: RunOptions) -> Plan | None:
    """What the folders hold now; None if that is nothing yet."""
    for source in options.sources:
        if not os.path.isdir(source):
            raise SourceError(
                f"{source}: not a folder, and only folders can be watched"
                if os.path.exists(source)
                else f"{source} is not there",
                hint="name folders; make an empty one if its files are still to come",
            )
    try:
        return prepare(options)
    except SourceError:  # which are there, but hold nothing
        return None
