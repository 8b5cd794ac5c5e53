"""A program and a backend over `HostMemory`: the streaming executor without a GPU. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.cuda_memory import Resource
from unet_batch.inference.backends.streaming import StreamingExecutor
from unet_batch.testing import HostMemory, fake_spec
from unet_batch.types import ModelSpec

SHAPE = (4, 6, 3)


def pictures(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> list[np.ndarray]:
    return list(np.random.default_rng((count, seed)).integers(0, 256, (count, *shape), dtype=np.uint8))


def brightness(batch: Sequence[np.ndarray]) -> np.ndarray:
    return (np.asarray(batch).sum(axis=3, dtype=np.uint16) // 3).astype(np.uint8)


class Brightness:
    """A `Program`: maps show how bright each pixel is.

    `HostMemory.fail` can make its `prepare`, `enqueue` and `close` fail, too.

    Attributes:
        largest: batches above it do not fit; may change at any time, as the memory of a GPU that others use,
            too.
        fails: called with the batch whenever work was queued; may raise.
        kernel: replaces the arithmetic: pictures (N, H, W, C) -> maps (N, H, W).
        prepared: the batches asked for.
        open: executions that were not closed.
    """

    def __init__(self, memory: HostMemory, shape: tuple[int, int, int] = SHAPE, largest: int = 1000) -> None:
        self.memory = memory
        self.shape = shape
        self.largest = largest
        self.fails: Callable[[int], object] = lambda batch: None
        self.kernel = brightness
        self.prepared: list[int] = []
        self.open = 0

    def prepare(self, batch: int, pictures: Resource, maps: Resource) -> BrightnessExecution:
        self.prepared.append(batch)
        self.attempt("prepare")
        if batch > self.largest:
            raise DeviceOutOfMemory(f"no room for activations of {batch}")
        self.open += 1
        return BrightnessExecution(self, batch, pictures, maps)

    def attempt(self, call: str) -> None:
        with self.memory.current():  # a program's errors are ours from the beginning
            self.memory.attempt(call)


class BrightnessExecution:
    def __init__(self, program: Brightness, batch: int, pictures: Resource, maps: Resource) -> None:
        self.program, self.batch, self.pictures, self.maps = program, batch, pictures, maps
        self.is_open = True

    def enqueue(self, stream: Resource) -> None:
        assert self.is_open
        self.program.attempt("enqueue")
        self.program.memory.queue(stream, self._compute, self.pictures, self.maps)
        self.program.fails(self.batch)

    def _compute(self) -> None:
        shape = (self.batch, *self.program.shape)
        self.maps.raw[:] = self.program.kernel(self.pictures.raw.reshape(shape)).reshape(-1)

    def close(self) -> None:
        assert self.is_open
        self.is_open = False
        self.program.open -= 1
        self.program.attempt("close")


class HostBackend(Backend):
    """What a backend over the executor looks like."""

    name = "streaming-host"
    precision = "fp32"
    reason = "asked for in a test"
    streams = 3

    def __init__(
        self, spec: ModelSpec | None = None, *, batch_size: int = 4, largest: int = 1000, graphs: bool = True
    ) -> None:
        self.spec = spec or fake_spec()
        self.batch_size = batch_size
        self.memory = HostMemory(graphs=graphs)
        self.program = Brightness(self.memory, (*self.input_size, 3), largest)
        self.executor: StreamingExecutor | None = None

    def _open(self) -> None:
        shape = (*self.input_size, self.spec.in_channels)
        self.executor = StreamingExecutor(
            self.memory, self.program, shape, batch=self.batch_size, least=self.least_batch, notes=self.notes
        )
        self.batch_size = self.executor.batch

    def _infer(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        assert self.executor is not None
        if len(pictures) > self.program.largest:
            raise DeviceOutOfMemory(f"no room for a batch of {len(pictures)}")
        return self.executor.infer(pictures)

    def _resize(self, batch: int) -> None:
        assert self.executor is not None
        self.executor.resize(batch)

    def buffer(self) -> np.ndarray:
        assert self.executor is not None
        return self.executor.buffer()

    def _close(self) -> None:
        assert self.executor is not None
        self.executor.close()


def fail(message: str = "the GPU fell off the bus") -> None:
    raise BackendError(message)
