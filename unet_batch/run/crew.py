"""Several processes that share the work of a run, one for each device.

    with Crew([Device("cuda:0", open_first), Device("cuda:1", open_second)]) as crew:
        report = execute(plan, crew)

Each has a `Session`. A thread here asks it again and again: hands it as many items as it will need for the
next moment, from one queue, so that no device waits for another, and takes back what became of those before.
Nothing but names and records passes between them.

Why no item is lost. An item is out with one device until that tells what became of it. If its process dies,
what was out with it comes back, and is then handed out one by one: so the item that ends a process is found.
One that does so twice has failed, and is named. A device that cannot be started again, or fails for one item
after the other, is left out, as long as there is another one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from unet_batch.errors import BackendError, DecoderCrashed, RunError, UnetBatchError
from unet_batch.inference.segmenter import BROKEN_DEVICE, Segmenter
from unet_batch.pipeline import StageStats
from unet_batch.processes import Died
from unet_batch.run.hands import computes_on_cpu
from unet_batch.run.manifest import Manifest
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange
from unet_batch.run.pictures import OutputRenderer
from unet_batch.run.plan import RunPlan, recipe_of
from unet_batch.run.records import OutputRecipe
from unet_batch.run.report import add_stats
from unet_batch.run.session import Order, Told, outline
from unet_batch.run.sharing import Seat, SharedQueue
from unet_batch.run.work import Outcome, Progress
from unet_batch.types import Item

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from unet_batch.files.outputs import OutputTree
    from unet_batch.media.video import Codec

T = TypeVar("T")

_STARTS = 3  # starting may fail by accident
# On Windows Ctrl-C does not interrupt a wait
_PATIENCE = 0.1 if os.name == "nt" else None


class Link(Protocol):
    """A process with a `Session`, and how to speak with it; one thread at a time does."""

    def start(self, open_segmenter: Callable[[], Segmenter]) -> None:
        """Start it; raise Died or OSError where it does not start, or what opening the segmenter raised."""

    def call(self, function: Callable[[Segmenter], T]) -> T:
        """What a function says of its segmenter."""

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        """As of a `Session`."""

    def exchange(self, order: Order) -> Told:
        """As of a `Session`; raise Died where it has died."""

    def abort(self) -> None:
        """Kill it, from any thread: `exchange` raises Died."""

    def end(self) -> None:
        """End it; nobody may be speaking with it."""


@dataclass(frozen=True)
class Device:
    """A device, and the process that is to use it.

    Attributes:
        name: for people, each its own: `cuda:1`, `cpu 2`.
        open_segmenter: opens a segmenter on it, there; can be pickled.
        link: to the process.
    """

    name: str
    open_segmenter: Callable[[], Segmenter]
    link: Link


class Crew:
    """Hands (see `hands`) of several devices; a context manager that starts and ends their processes.

    Args:
        devices: at least one.

    Raises:
        UnetBatchError: what opening a segmenter raised; the message names the device.
        RunError: a process does not start.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._links = {device.name: device.link for device in devices}
        self._opens = {device.name: device.open_segmenter for device in devices}
        self._seats = [Seat(device.name) for device in devices]
        self._plan: tuple[RunPlan, OutputRecipe] | None = None
        self._manifest: Manifest
        self._queue = SharedQueue((), one_by_one=False)
        self._lock = Lock()
        self._is_ending = False
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(self._seats)) as pool:
                for _ in pool.map(self._start, self._seats):
                    pass
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; nothing can be done afterwards."""
        self._is_ending = True
        for seat in self._seats:
            self._links[seat.name].end()

    def call(self, function: Callable[[Segmenter], T]) -> T:
        """What a function, which can be pickled, says of the segmenter of the first device."""
        return self._links[self._alive[0].name].call(function)

    @property
    def links(self) -> list[Link]:
        """To the processes, in the order of the devices."""
        return list(self._links.values())

    @property
    def _alive(self) -> list[Seat]:
        return [seat for seat in self._seats if not seat.dropped]

    # What reports say.

    @property
    def cpu(self) -> float:
        return time.process_time() + sum(seat.cpu for seat in self._seats)

    @property
    def computes_on_cpu(self) -> bool:
        return self._ask_once("cpu", computes_on_cpu)

    @property
    def stages(self) -> Mapping[str, StageStats]:
        total: dict[str, StageStats] = {}
        for seat in self._seats:
            for stats in seat.stages.values():
                found = total.setdefault(stats.name, StageStats(stats.name, 0))
                add_stats(found, stats)
                found.workers += stats.workers
        return total

    @property
    def stats(self) -> Sequence[StageStats]:
        return tuple(self.stages.values())

    @property
    def devices(self) -> list[dict[str, Any]]:
        return [seat.as_dict() for seat in self._seats]

    def _ask_once(self, name: str, function: Callable[[Segmenter], T]) -> T:
        if name not in self._facts:
            self._facts[name] = self.call(function)
        found: T = self._facts[name]
        return found

    def describe(self) -> dict[str, Any]:
        return {**self._ask_once("backend", Segmenter.describe), "devices": len(self._seats)}

    def describe_model(self) -> dict[str, Any]:
        return self._ask_once("model", Segmenter.describe_model)

    # The work.

    def recipe(self, pages: PageRange | None) -> OutputRecipe:
        return self._ask_once(f"recipe {pages}", partial(recipe_of, pages=pages))

    def check(self, plan: RunPlan) -> None:
        self.call(partial(_check, plan.outputs))

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        assert plan.manifest is not None, "not resumed"
        self._manifest, self._identity = plan.manifest, plan.identity
        self._ask_once("cpu", computes_on_cpu)  # while there is somebody to ask
        self._plan = outline(plan), recipe
        self._seats = [Seat(seat.name, seat.dropped) for seat in self._seats]  # each run counts anew
        for seat in self._alive:
            try:
                self._links[seat.name].begin(*self._plan)
            except Died:
                self._start(seat)

    def pictures(self, items: Sequence[Item], stop: Stop) -> Iterator[Outcome]:
        yield from self._share(items, stop, Order(), lambda item, done, total: None)

    def alone(
        self, items: Sequence[Item], codec: Codec | None, on_progress: Progress, stop: Stop
    ) -> Iterator[Outcome]:
        yield from self._share(items, stop, Order(alone=True, codec=codec), on_progress)

    def halt(self) -> None:
        self._queue.closed = True  # nothing else: this may be a signal handler

    def _share(
        self, items: Sequence[Item], stop: Stop, kind: Order, on_progress: Progress
    ) -> Iterator[Outcome]:
        """Have a thread for each device hand out items; what they hear comes from here, in their order."""
        queue = self._queue = SharedQueue(items, one_by_one=kind.alone)
        stop.watch(self.halt)
        events: SimpleQueue[Outcome | tuple[Item, int, int | None] | _End] = SimpleQueue()
        threads = [
            Thread(target=self._serve, args=(seat, queue, stop, kind, events.put), name=seat.name)
            for seat in self._alive
        ]
        left = len(threads)
        try:
            for thread in threads:
                thread.start()
            while left:
                try:
                    event = events.get(timeout=_PATIENCE)
                except Empty:
                    continue
                if isinstance(event, Outcome):
                    yield event
                elif isinstance(event, _End):
                    left -= 1
                    if event.error is not None:
                        raise event.error
                else:
                    on_progress(*event)
        finally:
            queue.closed = True
            if left:  # something went wrong, or nobody wants to hear more: whoever still works is ended
                self._is_ending = True
                for seat in self._alive:
                    self._links[seat.name].abort()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    # In the threads, one for each device.

    def _serve(
        self, seat: Seat, queue: SharedQueue, stop: Stop, kind: Order, put: Callable[[Any], None]
    ) -> None:
        error: BaseException | None = None
        try:
            while not seat.dropped and not self._is_ending:
                try:
                    if self._exchange(seat, queue, stop, kind, put):
                        break
                except Died as death:
                    if not self._is_ending:
                        self._survive(seat, queue, death, put)
        except BaseException as raised:  # noqa: BLE001 - the thread that iterates raises it
            error = raised
        put(_End(None if self._is_ending else error))

    def _exchange(
        self, seat: Seat, queue: SharedQueue, stop: Stop, kind: Order, put: Callable[[Any], None]
    ) -> bool:
        """Hand out items once, and take note of what is told; returns whether it is over."""
        taken = queue.take(seat, len(self._alive))
        reason = stop.reason or ("halt" if queue.closed else "")
        order = replace(kind, items=taken or (), finish=taken is None, stop=reason)
        told = self._links[seat.name].exchange(order)
        seat.note(told)
        # On record before anybody hears of it
        self._manifest.record(*(outcome.record for outcome in told.outcomes if outcome.record is not None))
        for event in told.progress:
            put(event)
        for outcome in told.outcomes:
            self._take(seat, queue, outcome, put)
        if seat.in_a_row >= BROKEN_DEVICE and len(self._alive) > 1:
            self._drop(seat, queue, next(each.error for each in reversed(told.outcomes) if each.error))
        if told.error is not None:
            raise told.error
        return told.is_over and (order.finish or bool(order.stop))

    def _take(self, seat: Seat, queue: SharedQueue, outcome: Outcome, put: Callable[[Any], None]) -> None:
        """Tell of an outcome, unless another device is to try the item."""
        key, error = outcome.item.key, outcome.error
        if isinstance(error, BackendError):
            seat.in_a_row += 1
            if len(self._alive) > 1 and queue.refuse(seat, key):
                return
        elif error is None:
            seat.in_a_row = 0
        seat.done += outcome.record is not None
        seat.failed += error is not None and not outcome.passing
        queue.settle(seat, key)
        put(outcome)

    def _survive(self, seat: Seat, queue: SharedQueue, death: Died, put: Callable[[Any], None]) -> None:
        """A process has died: what was out with it comes back, and another one is started."""
        seat.note_death()
        for item in queue.take_back(seat, suspect=True):
            seat.failed += 1
            put(Outcome(item, self._identity(item), stage="decode", error=_death_error(item.path, death)))
        try:
            if seat.in_a_row >= BROKEN_DEVICE:
                raise RunError(
                    f"{seat.name}: its process {death.how}, {seat.in_a_row} times in a row",
                    hint="leave it out of --devices",
                )
            self._start(seat)
        except UnetBatchError as error:
            self._drop(seat, queue, error)

    def _drop(self, seat: Seat, queue: SharedQueue, error: UnetBatchError) -> None:
        """Go on without a device; raise the error if it is the last."""
        with self._lock:
            if len(self._alive) == 1:
                raise error
            seat.dropped = error.message
        queue.take_back(seat, suspect=False)
        queue.forgive()
        self._links[seat.name].end()

    def _start(self, seat: Seat) -> None:
        """Start the process of a device; try again a few times."""
        link, reason = self._links[seat.name], ""
        for _ in range(_STARTS):
            try:
                link.start(self._opens[seat.name])
                if self._plan is not None:
                    link.begin(*self._plan)
                return
            except Died as death:
                reason = death.said or f"it {death.how}"
            except OSError as error:
                reason = str(error)
            except UnetBatchError as error:
                raise type(error)(f"{seat.name}: {error.message}", hint=error.hint) from error
            if self._is_ending:
                return
        raise RunError(f"{seat.name}: its process does not start: {reason}", hint="leave it out of --devices")


@dataclass(frozen=True)
class _End:
    """A thread has ended, perhaps by an error."""

    error: BaseException | None


def _check(outputs: OutputTree, segmenter: Segmenter) -> None:
    OutputRenderer(outputs, segmenter)


def _death_error(path: str, death: Died) -> DecoderCrashed:
    """The error of an item that has ended two processes."""
    if death.was_killed:
        return DecoderCrashed(
            f"{path}: the process that segmented it was killed (SIGKILL) twice, as the system does when "
            "memory runs out",
            hint="take fewer --devices or --workers, or set a lower --max-pixels",
        )
    said = f": {death.said}" if death.said else ""
    return DecoderCrashed(
        f"{path}: the process that segmented it {death.how} twice{said}",
        hint="the file is damaged, or made to do harm: leave it out, or save it anew with the program that "
        "made it",
    )
