"""A pool of workers: who may ask which one, and what becomes of one that dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from unet_batch.errors import RunError, UsageError
from unet_batch.processes.process import TIMED_OUT, Died, Worker

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

KEEP = 64 * 2**20
"""Bytes that the file between owner and worker keeps: new pages would have to be cleared first."""

# Starting may fail by accident: a moment without memory, a signal to all processes of a job.
_STARTS = 3


class Answer(NamedTuple):
    """What a worker answered, and which one: it may have kept something."""

    head: bytes
    worker: Worker


class Kept:
    """A value that a worker keeps under a number; when this is gone, the worker is told to forget it.

    The worker may have died since: then `Workers.ask` turns to another one, which does not know the number.
    """

    __slots__ = ("number", "worker")

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.number = number

    def __del__(self) -> None:
        self.worker.forgotten.append(self.number)


class Workers:
    """A pool of processes; a context manager that ends them.

    Args:
        number: the most processes.
        functions: as "module:function"; looked for when a worker starts, so that one that is missing is an
            error of the start.
        shared: data come through a file that both sides hold open, not through a pipe.
        keep: bytes that this file keeps between requests.

    Attributes:
        deaths: how many workers have died at work.
        cpu: seconds of processor time that answering took.

    Raises:
        UsageError: the number is below 1.
    """

    def __init__(
        self, number: int, functions: Sequence[str], *, shared: bool = os.name == "posix", keep: int = KEEP
    ) -> None:
        if number < 1:
            raise UsageError(f"{number} worker processes: 1 or more expected")
        self.deaths, self.cpu = 0, 0.0
        self._functions, self._shared, self._keep = tuple(functions), shared, keep
        self._numbers = count(1)
        self._lock = Lock()
        self._unstarted = number
        self._idle: list[Worker] = []
        self._waiting: list[_Turn] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, those at work after their request; nothing can be asked afterwards."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.come(None)
        for worker in idle:
            worker.end()

    def number(self) -> int:
        """A number under which a worker can keep something: no other worker has it."""
        return next(self._numbers)

    def ask(
        self,
        function: str,
        request: bytes,
        data: Sequence[Buffer] = (),
        *,
        receive: Callable[[bytes], Sequence[memoryview]] | None = None,
        kept: Kept | None = None,
    ) -> Answer:
        """Have a worker answer a request; safe to call from many threads, which wait for one to be free.

        Args:
            function: who answers; of those given at the start.
            request: for it.
            data: for it.
            receive: given the answer, says where the data that come with it go.
            kept: asks the worker that keeps this, unless it has died.

        Raises:
            Died: the worker died, and so did a fresh one; or it took longer than it may.
            UnetBatchError: what the function raised; of its causes, only the number of an `OSError` arrives.
            RunError: no worker can be started.
            RuntimeError: the function raised anything else; or this is closed.
        """
        worker, again, cpu = self._take(kept), False, 0.0
        try:
            while True:
                worker = worker or self._start()
                try:
                    answer, cpu = worker.ask(function.encode(), request, data, receive)
                    return Answer(answer, worker)
                except Died as death:
                    self.deaths += 1
                    self._give_up(worker)
                    worker = None
                    if again or death.code == TIMED_OUT:
                        raise
                    again = True
        finally:
            self._give_back(worker, cpu)

    # Who may ask which worker. A turn is a worker, or (None) the right to start one.

    def _take(self, kept: Kept | None) -> Worker | None:
        wanted = None if kept is None else kept.worker
        with self._lock:
            if self._closed:
                raise RuntimeError("these workers are closed")
            if wanted is not None and wanted.alive:
                if wanted in self._idle:
                    self._idle.remove(wanted)
                    return wanted
            elif self._idle:
                return self._idle.pop()
            elif self._unstarted:
                self._unstarted -= 1
                return None
            else:
                wanted = None
            turn = _Turn(wanted)
            self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:  # Ctrl-C; it may have come meanwhile
            with self._lock:
                came = turn not in self._waiting
                if not came:
                    self._waiting.remove(turn)
            if came:
                self._give_back(turn.worker)
            raise
        if turn.worker is None and self._is_closed():
            raise RuntimeError("these workers are closed")
        return turn.worker

    def _is_closed(self) -> bool:
        return self._closed

    def _give_up(self, dead: Worker) -> None:
        """Let those who wait for a worker that has died have any other."""
        with self._lock:
            for turn in self._waiting:
                if turn.wanted is dead:
                    turn.wanted = None

    def _give_back(self, worker: Worker | None, cpu: float = 0.0) -> None:
        if worker is not None and not worker.alive:  # killed, as it was not heard out
            self._give_up(worker)
            worker = None
        with self._lock:
            self.cpu += cpu
            for turn in sorted(self._waiting, key=lambda turn: turn.wanted is None):
                if turn.wanted is None or turn.wanted is worker:
                    self._waiting.remove(turn)
                    turn.come(worker)
                    return
            if worker is None:
                self._unstarted += 1
            elif not self._closed:
                self._idle.append(worker)
                return
        if worker is not None:
            worker.end()

    def _start(self) -> Worker:
        """Start a process; try again a few times, and raise RunError if none starts."""
        reason = ""
        for _ in range(_STARTS):
            try:
                return Worker(self._functions, self._shared, self._keep)
            except Died as death:
                reason = death.said or f"it {death.how}"
            except OSError as error:
                reason = str(error)
        raise RunError(
            f"cannot start a worker process ({sys.executable}): {reason}", hint="leave --isolate out"
        )


class _Turn:
    """Somebody's turn to have a worker; `wanted` is the only one that will do, or None."""

    __slots__ = ("_arrival", "wanted", "worker")

    def __init__(self, wanted: Worker | None) -> None:
        self.wanted = wanted
        self.worker: Worker | None = None
        self._arrival = Lock()
        self._arrival.acquire()

    def wait(self) -> None:
        self._arrival.acquire()

    def come(self, worker: Worker | None) -> None:
        self.worker = worker
        self._arrival.release()
