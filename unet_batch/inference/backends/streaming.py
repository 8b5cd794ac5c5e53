"""Batches through a GPU without pauses: copies in, computing and copies out of different batches overlap.

Knows nothing of TensorRT: a `Program` computes, a `CudaMemory` moves bytes. A call of `infer` takes a slot,
which is memory on the GPU for one batch, and queues three steps in three streams that all slots share:

    upload      pictures of batch 2 | ...
    compute              of batch 1 | batch 2 ...
    download        maps of batch 0 | batch 1 ...

Events order the steps of a batch; steps of different batches need no order, as each batch has a slot to
itself.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.inference.backends.base import halve_batch
from unet_batch.inference.backends.cuda_memory import CudaMemory, Resource
from unet_batch.pipeline import cpu_count

if TYPE_CHECKING:
    from unet_batch.types import Pixels

# What the page-locked pictures may take, at the most: it is lost to every other program.
POOL_BYTES = 256 * 2**20
# Stages beside inference that a run has, with a thread for every core in each: decode, render, write.
STAGES = 3
# Batches on the GPU at once: one on its way in, one being computed, one on its way out.
SLOTS = 3


class Execution(Protocol):
    """One batch size in fixed memory, ready to run."""

    def enqueue(self, stream: Resource) -> None:
        """Queue the work in a stream. Raises `BackendError`."""

    def close(self) -> None:
        """Free what it holds; called once, when nothing of it runs."""


class Program(Protocol):
    """Computes maps from pictures that are on the GPU."""

    def prepare(self, batch: int, pictures: Resource, maps: Resource) -> Execution:
        """Make ready for a batch size and its memory; several executions of one program run at once.

        Args:
            batch: how many pictures.
            pictures: memory of the GPU for uint8 (batch, H, W, C).
            maps: the same for uint8 (batch, H, W).

        Raises:
            DeviceOutOfMemory: there is no memory for it.
            BackendError: anything else.
        """


class StreamingExecutor:
    """Runs a program on batches, for as many threads at once as it has slots; more threads wait.

    A batch always runs at its full size, so that shapes never change and a CUDA graph can repeat it: a ragged
    one leaves the last rows as they were and drops their maps.

    Args:
        memory: of the GPU; callers need not make it current.
        program: what to run.
        shape: (H, W, C) of a picture; maps are (H, W).
        batch: how many pictures run at once; halved, with a note, until all slots fit the GPU.
        least: the smallest batch to try.
        slots: how many batches may be on the GPU at once.
        pictures: how many page-locked pictures `buffer` may lend; None takes what a pipeline has on its way.
        graphs: whether to repeat the work through CUDA graphs, where there are any: all slots do, or none.
        notes: a list to append to.

    Attributes:
        batch: how many pictures run at once from now on; see `resize`.

    Raises:
        DeviceOutOfMemory: not even the least batch fits.
        BackendError: the program cannot run. Either way nothing is left allocated.
    """

    def __init__(
        self,
        memory: CudaMemory,
        program: Program,
        shape: tuple[int, int, int],
        *,
        batch: int,
        least: int = 1,
        slots: int = SLOTS,
        pictures: int | None = None,
        graphs: bool = True,
        notes: list[str],
    ) -> None:
        self.batch = batch
        self._memory = memory
        self._program = program
        self._shape = shape
        self._map_bytes = shape[0] * shape[1]
        self._least = least
        self._graphs = graphs
        self._notes = notes
        self._closed = False
        self._closing = Lock()
        self._building = Lock()
        self._slots = [_Slot() for _ in range(slots)]
        self._idle: SimpleQueue[_Slot] = SimpleQueue()
        with memory.current(), undo_on_failure() as self._undo:
            self._upload, self._compute, self._download = (_Lane(memory, self._undo) for _ in range(3))
            for slot in self._slots:
                self._undo.callback(slot.close)
            self._undo.callback(self._settle)
            self._fill_slots()
            if pictures is None:  # what a pipeline has on its way at the most: see `Segmenter.pipeline`
                pictures = 2 * (slots * self.batch + STAGES * cpu_count())
            self._pool = self._make_pool(pictures)
            if self._pool is not None:
                self._undo.callback(self._pool.close)
        for slot in self._slots:
            self._idle.put(slot)

    def infer(self, pictures: Sequence[Pixels]) -> Pixels:
        """Maps of any number of pictures.

        When it returns or raises, nothing reads the pictures any more.

        Args:
            pictures: N arrays uint8 (H, W, C), C-contiguous.

        Returns:
            uint8 (N, H, W), the caller's.

        Raises:
            DeviceOutOfMemory: a slot that had to be built again did not fit; `resize` may help.
            BackendError: closed, or the GPU failed. The next call starts afresh.
        """
        maps = np.empty((len(pictures), *self._shape[:2]), np.uint8)
        with self._borrow_slot() as slot, self._memory.current():
            if not self._is_current(slot):
                self._build(slot)
            try:
                for at in range(0, len(pictures), slot.batch):
                    part = slice(at, at + slot.batch)
                    self._run(slot, pictures[part], maps[part])
            except BaseException:
                slot.batch = 0  # who knows what state it is in: the next call builds it again
                self._settle()
                raise
        return maps

    def buffer(self) -> Pixels:
        """Memory for one picture, uninitialised, page-locked while there is some; see `Backend.buffer`."""
        return np.empty(self._shape, np.uint8) if self._pool is None else self._pool.take()

    def resize(self, batch: int) -> None:
        """Run `batch` pictures at once from now on; each slot is built again when it is next used."""
        self.batch = max(batch, self._least)

    def close(self) -> None:
        """Refuse new calls, wait for those that run, and free everything; may be called again.

        Lent pictures are freed as soon as nobody holds them.
        """
        with self._closing:
            self._closed = True
            taken: list[_Slot] = []
            try:
                while len(taken) < len(self._slots):
                    taken.append(self._idle.get())  # whoever runs gives its slot back first
                with self._memory.current():
                    self._undo.close()
            finally:
                for slot in taken:  # wakes those who wait for one, to be refused
                    self._idle.put(slot)

    @contextmanager
    def _borrow_slot(self) -> Iterator[_Slot]:
        slot = self._idle.get()
        try:
            if self._closed:
                raise BackendError("the executor is closed")
            yield slot
        finally:
            self._idle.put(slot)

    def _is_current(self, slot: _Slot) -> bool:
        """Whether a slot can run the batch of now, as all others do it."""
        return slot.batch == self.batch and (self._graphs or slot.graph is None)

    def _run(self, slot: _Slot, pictures: Sequence[Pixels], maps: Pixels) -> None:
        """Run one batch, and write its maps."""
        memory = self._memory
        with self._upload.lock:
            for row, picture in enumerate(pictures):
                memory.upload(slot.pictures, row * picture.nbytes, picture, self._upload.stream)
            memory.record(slot.uploaded, self._upload.stream)
        with self._compute.lock:
            memory.wait(self._compute.stream, slot.uploaded)
            if slot.graph is None:
                slot.execution.enqueue(self._compute.stream)
            else:
                memory.launch(slot.graph, self._compute.stream)
            memory.record(slot.computed, self._compute.stream)
        with self._download.lock:
            memory.wait(self._download.stream, slot.computed)
            memory.download(slot.output, slot.maps, maps.nbytes, self._download.stream)
            memory.record(slot.downloaded, self._download.stream)
        memory.synchronize(slot.downloaded)
        maps[:] = slot.output.raw[: maps.nbytes].reshape(maps.shape)

    def _settle(self) -> None:
        """Wait until no stream has work left, whatever state the GPU is in."""
        for lane in (self._upload, self._compute, self._download):
            with lane.lock, suppress(Exception):  # the lock, as waiting for a stream would spoil a capture
                self._memory.synchronize(lane.stream)

    def _build(self, slot: _Slot) -> None:
        """Build a slot for the batch of now; it is left empty where that fails."""
        memory = self._memory
        with self._building, memory.current(), undo_on_failure() as undo:
            slot.close()  # before the new one, which may need the memory
            batch = self.batch

            def keep(resource: Resource) -> Resource:
                undo.callback(memory.free, resource)
                return resource

            slot.pictures = keep(memory.device(batch * math.prod(self._shape)))
            slot.maps = keep(memory.device(batch * self._map_bytes))
            slot.output = keep(memory.host(batch * self._map_bytes))
            slot.uploaded, slot.computed, slot.downloaded = (keep(memory.event()) for _ in range(3))
            slot.execution = self._program.prepare(batch, slot.pictures, slot.maps)
            undo.callback(slot.execution.close)
            try:
                slot.graph = self._rehearse(slot.execution)
            except BaseException:
                self._settle()
                raise
            if slot.graph is not None:
                keep(slot.graph)
            slot.undo, slot.batch = undo, batch

    def _rehearse(self, execution: Execution) -> Resource | None:
        """Run it once, as libraries load and allocate then, and capture it as a graph if possible.

        Where it is not, no slot uses a graph from then on: one that has it is built again. A lack of memory
        says nothing of graphs, and a smaller batch may have one.
        """
        stream = self._compute.stream
        with self._compute.lock:  # what others queued in this stream would become part of the graph
            execution.enqueue(stream)
            self._memory.synchronize(stream)
            if not self._graphs:
                return None
            try:
                return self._memory.capture(stream, lambda: execution.enqueue(stream))
            except DeviceOutOfMemory:
                raise
            except BackendError as error:
                self._graphs = False
                self._notes.append(f"{error}: the steps of each batch are queued one by one")
                return None

    def _fill_slots(self) -> None:
        while missing := [slot for slot in self._slots if not self._is_current(slot)]:
            try:
                self._build(missing[0])
            except DeviceOutOfMemory as error:
                self.batch = halve_batch(self.batch, self._least, error, self._notes)

    def _make_pool(self, count: int) -> PicturePool | None:
        count = min(count, POOL_BYTES // math.prod(self._shape))
        try:
            with self._memory.current():
                return PicturePool(self._memory, self._shape, count, self._notes) if count else None
        except BackendError as error:
            self._notes.append(f"no page-locked memory for {count} pictures, copies take longer: {error}")
            return None


@contextmanager
def undo_on_failure() -> Iterator[ExitStack]:
    """A stack of what to undo where the block raises; what raises while undoing would hide why."""
    undo = ExitStack()
    try:
        yield undo
    except BaseException:
        with suppress(Exception):
            undo.close()
        raise


class _Lane:
    """A stream, and a lock to be held while a batch's work is queued in it."""

    def __init__(self, memory: CudaMemory, undo: ExitStack) -> None:
        self.lock = Lock()
        self.stream = memory.stream()
        undo.callback(memory.free, self.stream)


class _Slot:
    """Memory on the GPU for one batch, and what runs there; empty while `batch` is 0."""

    pictures: Resource
    maps: Resource
    output: Resource
    uploaded: Resource
    computed: Resource
    downloaded: Resource
    execution: Execution
    graph: Resource | None

    def __init__(self) -> None:
        self.batch = 0
        self.undo = ExitStack()

    def close(self) -> None:
        """Free it all; inside `current()`, when none of it is in use."""
        self.batch = 0
        self.undo.close()


class PicturePool:
    """Page-locked memory for pictures, lent out one by one.

    A picture returns when the last array that shares its memory is gone: in whichever thread that happens,
    and perhaps amid any of these methods. Hence no locks, only what is atomic in CPython. When none is left
    an ordinary array is lent: to copy from it takes longer, but nobody ever waits for one.

    Args:
        shape: of a picture.
        count: how many. All are allocated at once, inside `memory.current()`; the methods need not be called
            there.
        notes: told once, when ordinary arrays were lent as often as there are pictures.
    """

    def __init__(self, memory: CudaMemory, shape: tuple[int, ...], count: int, notes: list[str]) -> None:
        self._memory = memory
        self._shape = shape
        self._size = math.prod(shape)
        self._count = count
        self._free = deque(range(count))
        self._missed = itertools.count(1)
        self._notes = notes
        self._closed = False
        slab = memory.host(count * self._size)
        self._address = slab.address
        self._slab = deque([slab])  # whoever takes it out frees it

    def take(self) -> Pixels:
        """An uninitialised uint8 array of `shape`."""
        try:
            index = self._free.pop()
        except IndexError:
            if next(self._missed) == self._count:
                self._notes.append(
                    f"more pictures are on their way than the {self._count} in page-locked memory: "
                    "copies of some take longer"
                )
            return np.empty(self._shape, np.uint8)
        if self._closed:  # asked with a picture in hand, as the memory cannot go away from then on
            self._give_back(index)
            return np.empty(self._shape, np.uint8)
        # A view need not keep the array alive that it is a view of, but every one keeps the owner of the
        # memory.
        loan = (ctypes.c_uint8 * self._size).from_address(self._address + index * self._size)
        weakref.finalize(loan, self._give_back, index).atexit = False
        return np.frombuffer(memoryview(loan), np.uint8).reshape(self._shape)

    def close(self) -> None:
        """Lend no more, and free the memory as soon as all pictures are back."""
        self._closed = True
        self._free_if_complete()

    def _give_back(self, index: int) -> None:
        self._free.append(index)
        if self._closed:
            with suppress(BackendError):  # whoever let go of a picture cannot do anything about it
                self._free_if_complete()

    def _free_if_complete(self) -> None:
        if len(self._free) == self._count:
            with suppress(IndexError):
                slab = self._slab.pop()
                with self._memory.current():
                    self._memory.free(slab)
