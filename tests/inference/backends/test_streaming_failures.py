"""The streaming executor while each of its calls fails once: of the memory, and of the program."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.helpers.host import SHAPE, Brightness, HostBackend, brightness, pictures
from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.inference.backends.streaming import StreamingExecutor
from unet_batch.testing import HostMemory, fake_spec

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
MEMORY = ["host", "device", "stream", "event", "free", "upload", "download", "record", "wait", "synchronize"]
GRAPHS = ["capture", "launch"]
PROGRAM = ["prepare", "enqueue", "close"]
ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: BackendError("the GPU fell off the bus"),
    "out of memory": lambda: DeviceOutOfMemory("out of memory"),
    "Ctrl-C": KeyboardInterrupt,
}


class Ride:
    """Open, infer with three threads, resize, infer one by one, close; but for one call all goes well.

    Attributes:
        errors: kinds of what arrived; not the errors, which hold on to pictures.
        notes: what was told.
        waits: calls of `synchronize` before closing, which waits once more and ignores whether it can.
    """

    def __init__(self, memory: HostMemory, graphs: bool = True) -> None:
        self.memory = memory
        self.program = Brightness(memory)
        self.graphs = graphs
        self.errors: list[type[BaseException]] = []
        self.notes: list[str] = []

    def open(self) -> Any:
        return StreamingExecutor(
            self.memory, self.program, SHAPE, batch=2, pictures=3, graphs=self.graphs, notes=self.notes
        )

    def attempt(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (BackendError, KeyboardInterrupt) as error:
            self.errors.append(type(error))
            return None

    def infer(self, count: int, seed: int) -> None:
        batch = []
        for picture in pictures(count, seed, self.program.shape):
            batch.append(self.opened.buffer())
            batch[-1][:] = picture
        maps = self.attempt(lambda: self.opened.infer(batch))
        assert maps is None or np.array_equal(maps, brightness(batch))
        for picture in batch:
            picture[:] = 0  # the caller's again, also after a failure

    def infer_together(self, count: int) -> None:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda seed: self.infer(count, seed), range(3)))

    def resize(self) -> None:
        self.opened.resize(1)

    def executor(self) -> StreamingExecutor:
        found: StreamingExecutor = self.opened
        return found

    def __call__(self) -> Ride:
        self.opened = self.attempt(self.open)
        if self.opened is None:
            self.is_clean()
            self.opened = self.open()  # the second time it works
        self.infer_together(3)
        self.resize()
        self.infer_together(2)
        for seed in range(3):
            self.infer(1, seed)
        executor = self.executor()
        ready = [slot for slot in executor._slots if executor._is_current(slot)]
        assert len({slot.graph is None for slot in ready}) == 1, "some slots have graphs, some have not"
        self.waits = self.memory.calls["synchronize"]
        self.attempt(self.opened.close)
        self.opened.close()
        self.is_clean()
        return self

    def is_clean(self) -> None:
        if self.memory.alive:
            gc.collect()
        assert not self.memory.alive
        assert not self.memory.pending
        assert self.program.open == 0


class BackendRide(Ride):
    """The same through `Backend`, which halves batches where memory runs out."""

    def open(self) -> HostBackend:
        self.backend = HostBackend(fake_spec(SHAPE[:2]), batch_size=4, graphs=self.graphs)
        self.backend.memory, self.backend.program = self.memory, self.program
        self.backend.notes = self.notes
        return self.backend.open()

    def infer(self, count: int, seed: int) -> None:
        super().infer(min(count, self.backend.batch_size), seed)

    def resize(self) -> None:
        pass

    def executor(self) -> StreamingExecutor:
        found = self.backend.executor
        assert found is not None
        return found


def every_call(method: str, kind: str, ride: type[Ride], graphs: bool = True) -> Sequence[Ride]:
    """Rides on which one call of a method failed, for each of its calls."""
    unharmed = HostMemory()
    assert not ride(unharmed, graphs)().errors
    assert unharmed.calls[method], "a call that is never made proves nothing"
    rides = []
    for call in range(1, unharmed.calls[method] + 1):
        memory = HostMemory()
        memory.fail(method, call, ERRORS[kind]())
        rides.append(ride(memory, graphs)())
        assert memory.calls[method] >= call
        assert len(rides[-1].errors) <= 1
        if method != "synchronize" or call <= rides[-1].waits:
            assert rides[-1].errors or rides[-1].notes, f"nothing was told of failure {call}"
        assert all(error is type(ERRORS[kind]()) for error in rides[-1].errors)
    return rides


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("method", MEMORY + GRAPHS + PROGRAM)
def test_each_call_fails_once(method: str, kind: str) -> None:
    """It arrives as an error of ours or a note, all other maps are right, and nothing is left."""
    every_call(method, kind, Ride)


@pytest.mark.parametrize("method", ["enqueue", "record", "synchronize", "close"])  # what graphs make another
def test_each_call_fails_once_without_graphs(method: str) -> None:
    every_call(method, "error", Ride, graphs=False)


@pytest.mark.parametrize("method", MEMORY + GRAPHS + PROGRAM)
def test_out_of_memory_through_a_backend_costs_no_picture(method: str) -> None:
    """Batches are halved; only what opening or closing cannot do without arrives as an error."""
    for call, ride in enumerate(every_call(method, "out of memory", BackendRide), 1):
        closing = method in ("free", "close")
        assert not ride.errors or method == "stream" or closing
        halved = [note for note in ride.notes if "continuing with 2" in note]
        locked = [note for note in ride.notes if "page-locked" in note]
        assert len(halved) + len(locked) + len(ride.errors) == (method != "synchronize" or call <= ride.waits)
        assert ride.executor().batch == (2 if halved else 4)


@pytest.mark.parametrize("method", MEMORY + GRAPHS + PROGRAM)
def test_an_error_through_a_backend_costs_one_call(method: str) -> None:
    for ride in every_call(method, "error", BackendRide):
        assert ride.executor().batch == 4
