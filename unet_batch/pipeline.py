"""A pipeline of threads: every stage works at once, results come in the source's order, memory is bounded.

    stages = [Stage("decode", decode, workers=2), Stage("infer", infer, batch=8)]
    with Pipeline(paths, stages, in_flight=32) as results:
        for result in results:
            ...

One thread iterates the source, each worker of each stage has its own, and the thread that iterates the
pipeline is the consumer. It suits work that releases the interpreter lock: decoding, encoding, inference,
files.

Why it cannot deadlock. Everything is bounded in one place: a value is read from the source only when fewer
than `in_flight` others are on their way. Hence the queues need no bounds of their own, handing a value on
never blocks, and there are just two kinds of wait: for a value, and for space. (A batch waits for more values
as well, but not for long.) The oldest value on its way never waits for space; and as the first queue is
filled and emptied in the source's order, no worker that waits there for space can stand before it. So the
oldest value always moves on until the consumer has it, and the next one is the oldest. (A stage that takes
its values in order waits for the one whose turn it is. If that is not the oldest value, the oldest is further
on, and moves.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Condition, Lock, Thread
from traceback import format_tb
from types import TracebackType
from typing import Any, Generic, TypeVar

# On Windows Ctrl-C does not interrupt a wait: there the consumer looks up from it now and then.
_PATIENCE = 0.1 if os.name == "nt" else None

In = TypeVar("In")
Out = TypeVar("Out")
Value = TypeVar("Value")
Outcome = TypeVar("Outcome")


class PipelineError(RuntimeError):
    """A stage broke its contract: a bug, not bad luck."""


def _nothing(error: Exception) -> bool:
    return False


@dataclass(frozen=True)
class Stage(Generic[In, Out]):
    """One step of a pipeline, done by threads of its own.

    Attributes:
        name: for messages, statistics and the names of threads.
        work: turns a value into the next stage's value; with a `batch`, a list of values into a list as
            long. It is called from `workers` threads at once.
        workers: how many threads work.
        batch: None gives `work` one value; a number gives it a list of up to so many. A worker waits for one
            value and takes along what else is waiting already. While more are on their way it waits for
            these, too, but no longer than the last batch took: where batches are not full the stage is not
            the slow one, and on a GPU a batch of few costs what a full one does.
        isolate: tells whether an exception concerns only the value it was raised for. Then the value ends as
            a `Failed` and the run goes on. Any other exception ends the run; by default that is every one.
            Values that shared a batch are tried again one by one, so that only the culprit fails.
        enter: makes a context that each worker enters, in its thread, before its first value, and leaves
            after its last.
        ordered: give the values to the only worker in the source's order, for work that remembers what came
            before.
    """

    name: str
    work: Callable[[In], Out]
    workers: int = 1
    batch: int | None = None
    isolate: Callable[[Exception], bool] = _nothing
    enter: Callable[[], AbstractContextManager[object]] = nullcontext
    ordered: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1 or (self.batch is not None and self.batch < 1):
            raise ValueError(
                f"stage {self.name!r}: workers={self.workers} and batch={self.batch} must be at least 1"
            )
        if self.ordered and (self.workers, self.batch) != (1, None):
            raise ValueError(f"stage {self.name!r}: in order there is one worker and one value at a time")


@dataclass(frozen=True, eq=False)
class Failed(Generic[Value]):
    """Takes the place of a value whose stage failed; skips the stages after it, and is delivered in its turn.

    Attributes:
        stage: name of the stage that failed.
        error: what it raised. Its traceback is turned into a note, as the frames would keep the value alive
            with the error.
        value: what the stage had been given.
    """

    stage: str
    error: Exception
    value: Value


@dataclass
class StageStats:
    """What a stage has done so far.

    Attributes:
        name: the stage; the first is "source".
        workers: its threads.
        items: values it has finished, failed ones included.
        batches: calls of `work` they took, retries not counted.
        busy: seconds of work, summed over the workers.
        cpu: seconds of processor time in them, of the workers' own threads only.
        waiting: seconds the workers waited for a value, or for space.
    """

    name: str
    workers: int
    items: int = 0
    batches: int = 0
    busy: float = 0.0
    cpu: float = 0.0
    waiting: float = 0.0

    def _add(self, items: int, begun: float, ready: float, cpu: float) -> None:
        """Count a batch: waited for since `begun`, worked on since `ready`, thread time `cpu` then."""
        self.items += items
        self.batches += 1
        self.busy += time.perf_counter() - ready
        self.cpu += time.thread_time() - cpu
        self.waiting += ready - begun


def bottleneck(stats: Sequence[StageStats]) -> StageStats:
    """The stage whose workers were busy longest: the one to speed up."""
    return max(stats, key=lambda stage: stage.busy / stage.workers)


def cpu_count(quota_file: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Count the cores this process may use: it may be pinned to some, a container may have a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(quota_file, encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # not Linux, an older control group, or "max": no quota
        return count


class _Slot:
    """A value on its way, its place in the source's order, and what it was last found to weigh."""

    __slots__ = ("index", "value", "weight")

    def __init__(self, index: int, value: Any) -> None:
        self.index = index
        self.value = value
        self.weight = 0


_WAKE = _Slot(-1, None)  # makes whoever waits at a queue look around; its turn never comes


class Pipeline(Iterator[Outcome], Generic[Value, Outcome]):
    """Run values through stages; a context manager around, and an iterator over, the results.

    `Pipeline[Value, Outcome]`: what all values on their way have in common, and what the consumer gets: the
    last stage's results, and a `Failed[Value]` for each that a stage isolated.

    The first failure wins: all threads stop after the value in hand, results not delivered yet are dropped,
    and the iterator raises the original exception, with a note (`__notes__`) of the stage and the value.
    Later failures, of closing too, become notes of the first. One that the iterator had no occasion to raise
    is raised at the end of the block. Whichever way the block ends, its threads have ended then; only a
    Ctrl-C during that last wait can leave before them.

    Args:
        source: the values. Iterated in a thread of its own; if it is a generator, it is closed there too.
        stages: what each value goes through, in order.
        in_flight: the most values between source and consumer.
        weigh: tells what a value weighs; asked when it is read and after each stage.
        budget: while the other values in flight weigh more than this, a value is neither read nor let into
            the first stage, unless it is the oldest. So all in flight weigh at most `budget`, plus what the
            values just being read or in the first stage turn out to weigh, plus what values gain in later
            stages.
        describe: names a value in the note of a failure.
    """

    def __init__(
        self,
        source: Iterable[Value],
        stages: Sequence[Stage[Any, Any]],
        *,
        in_flight: int,
        weigh: Callable[[Value], int] | None = None,
        budget: int = 0,
        describe: Callable[[Value], str] = repr,
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight={in_flight} must be at least 1")
        self._source = source
        self._stages = tuple(stages)
        self._in_flight, self._budget = in_flight, budget
        self._weigh = weigh
        self._describe = describe

        # Each thread writes to its own tally and so needs no lock; `stats` sums them.
        self._tallies = [[StageStats("source", 1)]]
        self._threads = [Thread(target=self._read, args=self._tallies[0], name="source", daemon=False)]
        for position, stage in enumerate(self._stages):
            self._tallies.append([StageStats(stage.name, 1) for _ in range(stage.workers)])
            for number, tally in enumerate(self._tallies[-1]):
                name = f"{stage.name}-{number}"
                self._threads.append(
                    Thread(target=self._serve, args=(position, tally), name=name, daemon=False)
                )
        # Queue i feeds stage i, the last one the consumer. SimpleQueue is atomic even where Ctrl-C strikes.
        self._queues: list[SimpleQueue[_Slot]] = [SimpleQueue() for _ in range(len(self._stages) + 1)]
        # Of each stage: values read that are not there yet, seconds of its last batch, who gathers the next.
        self._coming, self._lasted = [0] * len(self._stages), [0.0] * len(self._stages)
        self._gathering = [Lock() for _ in self._stages]
        self._early: dict[int, _Slot] = {}  # finished, but it is not their turn yet
        # The same for each stage that takes values in order: what came too early, and whose turn it is.
        self._waiting: list[dict[int, _Slot]] = [{} for _ in self._stages]
        self._turns = [0 for _ in self._stages]

        # A bare lock, not `with condition`: its `__enter__` is Python, where Ctrl-C could leave it locked.
        self._lock = Lock()
        self._space = Condition(self._lock)
        self._short_of_space = 0  # threads that wait for it
        self._turn = 0  # index of the value the consumer gets next: the oldest in flight
        self._weight = 0  # of all values in flight
        self._total: int | None = None  # how many values there were, once the source has ended
        self._stopping = False  # read no more
        self._halted = False  # work no more
        self._failure: BaseException | None = None
        self._raised = False  # the consumer knows of the failure

    def __enter__(self) -> Pipeline[Value, Outcome]:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()
        if self._failure is None or self._raised:
            return
        self._raised = True
        if error is None:
            raise self._failure
        _note(error, f"the pipeline had failed as well: {self._failure!r}")

    def __next__(self) -> Outcome:
        while self._turn not in self._early and not self._halted and self._turn != self._total:
            if self._threads[0].ident is None:
                raise PipelineError("a pipeline runs inside its `with` block only")
            with suppress(Empty):
                slot = self._queues[-1].get(timeout=_PATIENCE)
                self._early[slot.index] = slot
        if self._failure is not None:
            self._raised = True
            raise self._failure
        if self._halted or self._turn == self._total:
            raise StopIteration
        slot = self._early.pop(self._turn)
        with self._lock:
            was_heavy = self._weight > self._budget
            self._turn += 1
            self._weight -= slot.weight
            # To be woken for each value costs the source more than to read it: it reads several at a time.
            if self._short_of_space and (was_heavy or self._turn % max(1, self._in_flight // 8) == 0):
                self._space.notify_all()
        outcome: Outcome = slot.value
        return outcome

    def stop(self) -> None:
        """Read no more from the source: what is in flight is finished and delivered, then the iteration ends.

        Safe in any thread and in a signal handler, as it takes no lock. Nobody needs waking: while the source
        waits for space, something is in flight, and delivering that will wake it.
        """
        self._stopping = True

    @property
    def stats(self) -> list[StageStats]:
        """What the source and the stages have done, in order; a copy of the figures at this moment."""
        figures = ("items", "batches", "busy", "cpu", "waiting")
        return [
            StageStats(
                tallies[0].name,
                len(tallies),
                *(sum(getattr(tally, figure) for tally in tallies) for figure in figures),
            )
            for tallies in self._tallies
        ]

    # The source's thread and the workers'. Each step is a call of its own, so that no variable of a thread
    # holds on to the last value while the thread waits for the next.

    def _read(self, tally: StageStats) -> None:
        try:
            iterator = iter(self._source)
            try:
                while self._read_step(iterator, tally):
                    pass
            finally:
                if isinstance(iterator, Generator):
                    iterator.close()
        except BaseException as error:  # noqa: BLE001 - the consumer gets it
            self._fail(error, f"in the source, after {tally.items} values")
        self._total = tally.items
        self._queues[-1].put(_WAKE)

    def _read_step(self, iterator: Iterator[Value], tally: StageStats) -> bool:
        begun, slot = time.perf_counter(), _Slot(tally.items, None)
        self._wait_for_space(slot)
        if self._halted or self._stopping:
            return False
        ready, cpu = time.perf_counter(), time.thread_time()
        slot.value = next(iterator, _WAKE)
        if slot.value is _WAKE:
            return False
        tally._add(1, begun, ready, cpu)
        self._update_weight(slot)
        with self._lock:
            self._coming = [number + 1 for number in self._coming]
        self._queues[0].put(slot)
        return True

    def _serve(self, position: int, tally: StageStats) -> None:
        stage = self._stages[position]
        try:
            with stage.enter():
                try:
                    while self._step(position, stage, tally):
                        pass
                except BaseException as error:  # noqa: BLE001 - the consumer gets it, whatever the context does about it
                    self._fail(error, f"in stage {stage.name!r}")
        except BaseException as error:  # noqa: BLE001 - the consumer gets it
            self._fail(error, f"on entering or leaving stage {stage.name!r}")

    def _step(self, position: int, stage: Stage[Any, Any], tally: StageStats) -> bool:
        begun = time.perf_counter()
        queue = self._queues[position]
        if stage.batch is not None:
            slots = self._gather(position, stage.batch)
        else:
            slots = [self._next_in_order(position) if stage.ordered else queue.get()]
        if position == 0:
            self._wait_for_space(slots[0])
        if self._halted:
            queue.put(_WAKE)  # for the next worker
            return False
        if isinstance(slots[0].value, Failed):  # it comes by so that the others are not waited for in vain
            self._queues[self._after(position, slots[0].value)].put(slots[0])
            return True
        ready, cpu = time.perf_counter(), time.thread_time()
        results = self._apply(stage, [slot.value for slot in slots])
        tally._add(len(slots), begun, ready, cpu)
        self._lasted[position] = time.perf_counter() - ready
        for slot, result in zip(slots, results, strict=True):
            slot.value = result
            if not isinstance(result, Failed):  # which holds the value, and weighs what the value did
                self._update_weight(slot)
            self._queues[self._after(position, result)].put(slot)
        return True

    def _gather(self, position: int, batch: int) -> list[_Slot]:
        """Wait for a value; then for others on their way, for as long as the last batch took.

        One worker at a time, or each would have a part of what comes.
        """
        queue, deadline = self._queues[position], 0.0
        with self._gathering[position]:
            slots = [queue.get()]
            with suppress(Empty):
                while len(slots) < min(batch, self._coming[position]) and slots[-1] is not _WAKE:
                    deadline = deadline or time.perf_counter() + self._lasted[position]
                    slots.append(queue.get(timeout=max(0.0, deadline - time.perf_counter())))
            if len(slots) > 1 and slots[-1] is _WAKE:
                slots.pop()
            with self._lock:
                self._coming[position] -= len(slots)
            return slots

    def _next_in_order(self, position: int) -> _Slot:
        early, turn = self._waiting[position], self._turns[position]
        while turn not in early:
            slot = self._queues[position].get()
            if slot is _WAKE:
                return slot
            early[slot.index] = slot
        self._turns[position] += 1
        return early.pop(turn)

    def _after(self, position: int, value: Any) -> int:
        """The queue where a value goes next; one that failed skips the stages that keep no order."""
        position += 1
        if isinstance(value, Failed):
            while position < len(self._stages) and not self._stages[position].ordered:
                with self._lock:
                    self._coming[position] -= 1
                position += 1
        return position

    def _apply(self, stage: Stage[Any, Any], values: list[Any]) -> list[Any]:
        try:
            results = [stage.work(values[0])] if stage.batch is None else stage.work(values)
        except BaseException as error:
            if not isinstance(error, Exception) or not stage.isolate(error):
                names = ", ".join(f"{self._describe(value):.200}" for value in values)
                _note(error, f"while working on {names}")
                raise
            if len(values) == 1:
                return [Failed(stage.name, _without_frames(error), values[0])]
        else:
            if len(results) != len(values):
                raise PipelineError(
                    f"stage {stage.name!r} was given {len(values)} values and returned {len(results)}"
                )
            return list(results)
        # Outside the handler, or the culprit's error would name the batch's as its context.
        return [result for value in values for result in self._apply(stage, [value])]

    # What the threads share.

    def _wait_for_space(self, slot: _Slot) -> None:
        """Wait until a value may be read into `slot`, or enter the first stage; or until all is halted."""
        with self._lock:
            while not self._halted and slot.index != self._turn:  # the oldest need not wait
                if slot.index < self._turn + self._in_flight and self._weight - slot.weight <= self._budget:
                    return
                self._short_of_space += 1
                self._space.wait()
                self._short_of_space -= 1

    def _update_weight(self, slot: _Slot) -> None:
        if self._weigh is None:
            return
        weight = self._weigh(slot.value)
        with self._lock:
            self._weight += weight - slot.weight
            if weight < slot.weight and self._short_of_space:
                self._space.notify_all()
            slot.weight = weight

    def _fail(self, error: BaseException, where: str) -> None:
        _note(error, where)
        if isinstance(error, StopIteration):  # raised from `__next__` it would look like a happy end
            error, cause = PipelineError(f"StopIteration {where}"), error
            error.__cause__ = cause
        with self._lock:
            if self._failure is None:
                self._failure = error
            else:
                _note(self._failure, f"then, {where}: {error!r}")
        self._halt()

    def _halt(self) -> None:
        """Make every thread end after the value in hand, and the consumer look around."""
        with self._lock:
            self._halted = True
            self._space.notify_all()
        for queue in self._queues:
            queue.put(_WAKE)

    def _close(self) -> None:
        self._halt()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_PATIENCE)
        # What was on its way must not live as long as the pipeline, which may be kept for its statistics.
        self._queues = [SimpleQueue() for _ in self._queues]
        for early in (self._early, *self._waiting):
            early.clear()


def _note(error: BaseException, note: str) -> None:
    """`error.add_note(note)`, also for Python 3.10, whose tracebacks do not show it."""
    vars(error).setdefault("__notes__", []).append(note)


def _without_frames(error: Exception) -> Exception:
    """`error` and what caused it, their tracebacks turned into text."""
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and link.__traceback__ is not None:
            _note(link, "".join(format_tb(link.__traceback__)))
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
    return error
