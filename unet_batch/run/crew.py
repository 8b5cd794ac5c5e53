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

Devices of a cluster may be lost, arrive, and be in use by others for a while: the rest goes on meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from unet_batch.errors import BackendError, DecoderCrashed, RunError, UnetBatchError
from unet_batch.files import remote
from unet_batch.inference.segmenter import BROKEN_DEVICE, Segmenter
from unet_batch.pipeline import StageStats
from unet_batch.processes import Died
from unet_batch.run.hands import computes_on_cpu
from unet_batch.run.manifest import Manifest
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange
from unet_batch.run.pictures import OutputRenderer
from unet_batch.run.plan import RunPlan
from unet_batch.run.recipe import recipe_of
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
_TRY = 0.05  # seconds between two tries to end what starts
# On Windows Ctrl-C does not interrupt a wait
_TURN = 0.1 if os.name == "nt" else None
_LOOK = 1.0  # seconds between two looks at which devices have come
PATIENCE = 600.0
"""Seconds without any device before a run on a cluster ends."""


class Pending(Exception):
    """A process has not started yet; to go on with that, start it again."""


class Lost(Exception):
    """A device is gone, and does not come back under its name; the argument says how, in words."""


class Link(Protocol):
    """A process with a `Session`, and how to speak with it; one thread at a time does."""

    def start(self, open_segmenter: Callable[[], Segmenter]) -> None:
        """Start it; raise what opening the segmenter raised, or why it does not start.

        Raises:
            Died, OSError: it does not start; another try may help.
            Pending: it takes longer than a moment.
            Lost: it never will.
        """

    def call(self, function: Callable[[Segmenter], T]) -> T:
        """What a function says of its segmenter."""

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        """As of a `Session`."""

    def exchange(self, order: Order) -> Told:
        """As of a `Session`; raise Died where it has died, Lost where its device is gone, too."""

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
        arrivals: devices that have come since it was last called, where some may.

    Raises:
        UnetBatchError: what opening a segmenter raised; the message names the device.
        RunError: a process does not start.
    """

    def __init__(self, devices: Sequence[Device], arrivals: Callable[[], list[Device]] | None = None) -> None:
        self._arrivals = arrivals
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
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def _start_all(self) -> None:
        """Start what can be started at once; one device at least."""
        until = time.monotonic() + PATIENCE
        while True:
            seats = [seat for seat in self._alive if not seat.is_up]
            with ThreadPoolExecutor(max(1, len(seats))) as pool:
                starts = [pool.submit(self._bring_up, seat) for seat in seats]
                try:
                    for start in starts:
                        start.result()
                except BaseException:  # Ctrl-C above all; opening a model may take a minute
                    self._is_ending = True
                    while wait(starts, _TRY).not_done:  # one that is just being created cannot be ended yet
                        for seat in seats:
                            self._links[seat.name].abort()
                    raise
            if any(seat.is_up for seat in self._seats):
                return
            if time.monotonic() > until:
                raise self._nobody()
            if not seats:
                time.sleep(_LOOK)
            self._welcome()

    def _nobody(self) -> RunError:
        waiting = f"{len(self._alive)} are in use by others" if self._alive else "all are gone"
        return RunError(
            f"no device of the cluster could be used for {PATIENCE / 60:.0f} minutes: {waiting}",
            hint="see `ray status`",
        )

    def _welcome(self) -> list[Seat]:
        """Seats for devices that have come."""
        found = self._arrivals() if self._arrivals is not None else []
        for device in found:
            self._links[device.name], self._opens[device.name] = device.link, device.open_segmenter
        seats = [Seat(device.name) for device in found]
        self._seats += seats
        return seats

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
        while True:
            for seat in self._up:
                try:
                    return self._links[seat.name].call(function)
                except (Died, Lost):
                    seat.note_death()
            self._start_all()

    @property
    def links(self) -> list[Link]:
        """To the processes, in the order of the devices."""
        return list(self._links.values())

    @property
    def _alive(self) -> list[Seat]:
        return [seat for seat in self._seats if not seat.dropped]

    @property
    def _up(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.is_up and not seat.dropped]

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
        self._manifest, self._identity, self._outputs = plan.manifest, plan.identity, plan.outputs
        self._ask_once("cpu", computes_on_cpu)  # while there is somebody to ask
        self._plan = outline(plan), recipe
        # Each run counts anew
        self._seats = [Seat(seat.name, seat.dropped, is_up=seat.is_up) for seat in self._seats]
        for seat in self._up:
            self._bring_up(seat)

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
        threads: list[Thread] = []
        left, looked, seen = 0, 0.0, time.monotonic()
        try:
            seats = self._alive
            while True:
                for seat in seats:
                    threads.append(
                        Thread(target=self._serve, args=(seat, queue, stop, kind, events.put), name=seat.name)
                    )
                    threads[-1].start()
                    left += 1
                seats = []
                if not left and (self._arrivals is None or queue.is_over):
                    break
                if (event := _next(events, _TURN if self._arrivals is None else _LOOK)) is None:
                    pass
                elif isinstance(event, Outcome):
                    yield event
                elif isinstance(event, _End):
                    left -= 1
                    if event.error is not None:
                        raise event.error
                else:
                    on_progress(*event)
                if self._arrivals is None or (now := time.monotonic()) - looked < _LOOK:
                    continue
                looked, seats = now, self._welcome()
                seen = now if self._up else seen
                if now - seen > PATIENCE:
                    raise self._nobody()
        finally:
            queue.closed = True
            if left:  # something went wrong, or nobody wants to hear more: whoever still works is ended
                self._is_ending = True
                for seat in self._alive:
                    self._links[seat.name].abort()
            for thread in threads:
                thread.join()
            if left:
                self.close()
            if left or any(seat.deaths for seat in self._seats):
                self._outputs.clean_leftovers()

    # In the threads, one for each device.

    def _serve(
        self, seat: Seat, queue: SharedQueue, stop: Stop, kind: Order, put: Callable[[Any], None]
    ) -> None:
        error: BaseException | None = None
        try:
            while not seat.dropped and not self._is_ending:
                try:
                    if not seat.is_up:
                        if queue.is_over:
                            break
                        self._bring_up(seat)
                    elif self._exchange(seat, queue, stop, kind, put):
                        break
                except Died as death:
                    if not self._is_ending:
                        self._survive(seat, queue, death, put)
                except Lost as loss:
                    seat.note_death()
                    self._drop(seat, loss)
        except BaseException as raised:  # noqa: BLE001 - the thread that iterates raises it
            error = raised
        put(_End(None if self._is_ending else error))

    def _exchange(
        self, seat: Seat, queue: SharedQueue, stop: Stop, kind: Order, put: Callable[[Any], None]
    ) -> bool:
        """Hand out items once, and take note of what is told; returns whether it is over."""
        taken = queue.take(seat, len(self._up))
        reason = stop.reason or ("halt" if queue.closed else "")
        known = remote.known_of(item.path for item in taken or ())
        order = replace(kind, items=taken or (), finish=taken is None, stop=reason, known=known)
        told = self._links[seat.name].exchange(order)
        seat.note(told)
        if self._outputs.store is not None:
            self._outputs.store.check()  # the processes do not know of its lock
        # On record before anybody hears of it
        self._manifest.record(*(outcome.record for outcome in told.outcomes if outcome.record is not None))
        for event in told.progress:
            put(event)
        for outcome in told.outcomes:
            self._take(seat, queue, outcome, put)
        failures = [each.error for each in told.outcomes if isinstance(each.error, BackendError)]
        if failures and seat.in_a_row >= BROKEN_DEVICE and len(self._alive) > 1:
            self._drop(seat, failures[-1])
        if told.error is not None:
            raise told.error
        return told.is_over and (order.finish or bool(order.stop))

    def _take(self, seat: Seat, queue: SharedQueue, outcome: Outcome, put: Callable[[Any], None]) -> None:
        """Tell of an outcome, unless another device is to try the item."""
        key, error = outcome.item.key, outcome.error
        if isinstance(error, BackendError):
            seat.in_a_row += 1
            if len(self._up) > 1 and queue.refuse(seat, key):
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
        queue.forgive()  # or what this device alone has not failed for would wait for it
        if seat.in_a_row >= BROKEN_DEVICE:
            error = f"{seat.name}: its process {death.how}, {seat.in_a_row} times in a row"
            self._drop(seat, RunError(error, hint="leave that device out"))

    def _drop(self, seat: Seat, reason: UnetBatchError | Lost) -> None:
        """Go on without a device; raise the error if it is the last, and no other may come in its place."""
        with self._lock:
            if isinstance(reason, UnetBatchError) and len(self._alive) == 1:
                raise reason
            seat.dropped = str(reason)
        self._queue.take_back(seat, suspect=False)
        self._queue.forgive()
        self._links[seat.name].end()

    def _bring_up(self, seat: Seat) -> None:
        """Start the process of a device, or have the one that runs begin; unless that takes longer."""
        try:
            if seat.is_up and self._plan is not None:
                self._links[seat.name].begin(*self._plan)
            else:
                self._start(seat)
        except Pending:
            pass
        except Died:
            seat.is_up = False
            self._bring_up(seat)
        except Lost as loss:
            self._drop(seat, loss)
        except UnetBatchError as error:
            if self._plan is None and self._arrivals is None:
                raise
            self._drop(seat, error)

    def _start(self, seat: Seat) -> None:
        """Start the process of a device; try again a few times."""
        link, reason = self._links[seat.name], ""
        for _ in range(_STARTS):
            try:
                link.start(self._opens[seat.name])
                if self._plan is not None:
                    link.begin(*self._plan)
                seat.is_up = True
                return
            except Died as death:
                reason = death.said or f"it {death.how}"
            except OSError as error:
                reason = str(error)
            except UnetBatchError as error:
                raise error.with_context(seat.name) from error
            if self._is_ending:
                return
        raise RunError(f"{seat.name}: its process does not start: {reason}", hint="leave that device out")


@dataclass(frozen=True)
class _End:
    """A thread has ended, perhaps by an error."""

    error: BaseException | None


def _next(events: SimpleQueue[T], seconds: float | None) -> T | None:
    with suppress(Empty):
        return events.get(timeout=seconds)
    return None


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
