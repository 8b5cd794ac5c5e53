"""One of several processes that share the work of a run: orders in, what became of items out.

    session = Session(open)              # a segmenter of its own
    session.begin(plan, recipe)
    told = session.exchange(Order(items))

`Session` is what runs there, whoever carries the messages: `crew` does over pipes, `cluster` by Ray. Nothing
here knows how many others there are. A thread works; `exchange` hands it items and brings back what it has to
tell, and never waits for long, so that whoever asks can be told to stop, too.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from unet_batch.files import remote
from unet_batch.inference.segmenter import Segmenter
from unet_batch.pipeline import StageStats
from unet_batch.run.manifest import Presence, manifest_path
from unet_batch.run.observe import Stop
from unet_batch.run.plan import RunPlan
from unet_batch.run.records import OutputRecipe
from unet_batch.run.report import add_stats
from unet_batch.run.work import ItemWorker, Outcome
from unet_batch.types import Item

if TYPE_CHECKING:
    from unet_batch.media.video import Codec

WAIT = 0.25
"""Seconds that an exchange waits for something to tell, at most."""
_GATHER = 0.01  # seconds from the first thing to tell to the answer: what comes meanwhile goes with it
_AHEAD = 0.1  # seconds of work that should lie here: a few exchanges, or two where these take long
_BEGINNING = 4  # items, before it is known how long one takes


@dataclass(frozen=True)
class Order:
    """What a session is to do.

    Attributes:
        items: more items; pictures for the pipeline, or by themselves.
        alone: each by itself, with an encoder for clips.
        codec: that encoder.
        finish: no more will come: finish what is there.
        stop: name of a signal: begin with nothing more, and end early what can go on later.
        known: what is known of items that lie behind addresses.
    """

    items: tuple[Item, ...] = ()
    alone: bool = False
    codec: Codec | None = None
    finish: bool = False
    stop: str = ""
    known: remote.Known | None = None


class Told(NamedTuple):
    """What a session has to tell.

    Attributes:
        outcomes: of items.
        progress: the last of each item by itself: it, what is done, and of how much.
        wanted: how many items more should lie here for the next moment.
        is_over: what was to be finished, or stopped, is over.
        error: what concerns all items; it is over then.
        stages: what each stage has done, since the plan began.
        cpu: seconds of processor time, since then.
    """

    outcomes: tuple[Outcome, ...]
    progress: tuple[tuple[Item, int, int | None], ...]
    wanted: int
    is_over: bool
    error: BaseException | None
    stages: tuple[StageStats, ...]
    cpu: float


def outline(plan: RunPlan) -> RunPlan:
    """A plan without its items, which a session is handed a few at a time."""
    sources = replace(plan.sources, items=(), unreadable=(), ignored={}, skipped_folders=())
    nothing: dict[str, Any] = dict.fromkeys(("items", "todo", "records", "quarantined", "notes"), ())
    return replace(plan, sources=sources, states={}, manifest=None, **nothing)


class Session:
    """Works on what it is handed; one thread at a time may use it.

    Args:
        open_segmenter: gives the segmenter, on its own device.
    """

    def __init__(self, open_segmenter: Callable[[], Segmenter]) -> None:
        self.segmenter = open_segmenter()
        self._worker: ItemWorker
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._events: SimpleQueue[Outcome | None] = SimpleQueue()  # None at the end
        self._progress: dict[str, tuple[Item, int, int | None]] = {}
        self._thread: Thread | None = None
        self._stop = Stop()
        self._error: BaseException | None = None
        self._arrivals: deque[float] = deque(maxlen=64)
        self._told = self._between = 0.0  # when an exchange ended, and seconds from there to the next

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        """Make ready for a plan, of which no item is needed."""
        presence = Presence(
            manifest_path(plan.outputs.folder, plan.part), optional=plan.outputs.store is not None
        )
        self._worker = ItemWorker(plan, self.segmenter, recipe, check=presence.check)
        self._cpu = self._worker.cpu
        self._waited = 0.0  # seconds for pictures that had not been handed yet

    def exchange(self, order: Order) -> Told:
        """Take an order, and tell what has happened since the last one; waits a moment if nothing has."""
        self._between = time.monotonic() - self._told if self._told else 0.0
        if order.items and self._thread is None:
            self._stop = Stop()
            self._arrivals.clear()
            target = self._work_alone if order.alone else self._work
            self._thread = Thread(target=self._run, args=(target, order.codec), name="work", daemon=True)
            self._thread.start()
        if order.known is not None:
            remote.take_over(order.known)
        for item in order.items:
            self._items.put(item)
        if order.stop:
            self._stop(order.stop)
        if (order.finish or order.stop) and self._thread is not None:
            self._items.put(None)
        told = self._tell(is_idle=self._thread is None)
        self._told = time.monotonic()
        return told

    def _tell(self, *, is_idle: bool) -> Told:
        outcomes: list[Outcome] = []
        is_over, until = is_idle, time.monotonic() + WAIT
        while not is_over:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if event is None:
                is_over = True
            else:
                outcomes.append(event)
                until = min(until, time.monotonic() + _GATHER)
        error = None
        if is_over and self._thread is not None:
            self._thread.join()
            self._thread, error, self._error = None, self._error, None
            with suppress(Empty):  # of a stop: what was never begun
                while True:
                    self._items.get_nowait()
        self._arrivals.extend([time.monotonic()] * len(outcomes))
        progress = tuple(self._progress.values())
        self._progress = {}
        stages = self._stages()
        return Told(
            tuple(outcomes), progress, self._wanted(), is_over, error, stages, self._worker.cpu - self._cpu
        )

    def _wanted(self) -> int:
        if len(self._arrivals) < _BEGINNING:
            ahead = _BEGINNING
        else:
            took = time.monotonic() - self._arrivals[0]
            ahead = 1 + int(max(_AHEAD, 2 * self._between) * len(self._arrivals) / max(1e-3, took))
        return max(0, ahead - self._items.qsize())

    def _stages(self) -> tuple[StageStats, ...]:
        total = {name: replace(stats) for name, stats in self._worker.stages.items()}
        for stats in self._worker.stats:
            add_stats(total.setdefault(stats.name, StageStats(stats.name, stats.workers)), stats)
        if (source := total.get("source")) is not None:  # which has waited inside its work
            waited = min(self._waited, source.busy)
            source.busy, source.waiting = source.busy - waited, source.waiting + waited
        return tuple(total.values())

    # In the thread that works.

    def _run(self, work: Callable[[Codec | None], None], codec: Codec | None) -> None:
        try:
            work(codec)
        except BaseException as error:  # noqa: BLE001 - whoever asks gets it
            self._error = _sendable(error)
        remote.release_all()  # of a stop: what was never begun
        self._events.put(None)

    def _handed(self) -> Iterator[Item]:
        while (item := self._items.get()) is not None and not self._stop.reason:
            yield item

    def _awaited(self) -> Iterator[Item]:
        begun = time.perf_counter()
        for item in self._handed():
            self._waited += time.perf_counter() - begun
            yield item
            begun = time.perf_counter()

    def _work(self, codec: Codec | None) -> None:
        def set_aside(item: Item) -> None:
            self._events.put(Outcome(item, aside=True))

        for outcome in self._worker.pictures(self._awaited(), self._stop, set_aside, self._items.empty):
            self._events.put(outcome)

    def _work_alone(self, codec: Codec | None) -> None:
        for item in self._handed():
            outcome = self._worker.alone(item, codec, self._on_progress, self._stop)
            if outcome is not None:
                self._events.put(outcome)

    def _on_progress(self, item: Item, done: int, total: int | None) -> None:
        self._progress = {**self._progress, item.key: (item, done, total)}


def _sendable(error: BaseException) -> BaseException:
    """An error that can be pickled: those of libraries may be more than their message."""
    try:
        pickle.dumps(error)
    except Exception:  # noqa: BLE001 - they may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
