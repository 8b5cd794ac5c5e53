"""CUDA's driver interface as cuda-bindings spells it, over the computer's own memory; no more than is used.

What it does is `HostMemory`'s, so that work runs as late as the events allow; what is its own is the form:
results are (error, values...), handles are numbers, everything needs a context that is current in its
thread, and what is freed or unknown is CUDA_ERROR_INVALID_HANDLE, as it is with CUDA.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from unet_batch.errors import DeviceOutOfMemory
from unet_batch.inference.backends.cuda_base import Resource
from unet_batch.testing import HostMemory

CONTEXT = 0xC0DE


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class FakeDriver:
    """A module `cuda.bindings.driver` for a machine with one GPU.

    Attributes:
        errors: what a call of a name returns instead of doing anything.
        alive: what was made and not freed, by handle.
        retained: how often the primary context was asked for.
    """

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, capacity: int = 2**20) -> None:
        self.errors: dict[str, CUresult] = {}
        self.alive: dict[int, Resource] = {}
        self.retained = 0
        self._memory = HostMemory(capacity)
        self._thread = threading.local()
        self._captures: dict[int, Any] = {}

    @property
    def contexts(self) -> list[int]:
        """The stack of contexts of this thread."""
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        stack: list[int] = self._thread.stack
        return stack

    def cuInit(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return (self.errors.get("cuInit", CUresult.CUDA_SUCCESS),)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:  # noqa: N802
        if ordinal:
            return CUresult.CUDA_ERROR_INVALID_DEVICE, None
        return CUresult.CUDA_SUCCESS, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        self.retained += 1
        return CUresult.CUDA_SUCCESS, CONTEXT

    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:  # noqa: N802
        self.contexts.append(context)
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:  # noqa: N802
        if "cuCtxPopCurrent" in self.errors:
            self.contexts.clear()
            return self.errors["cuCtxPopCurrent"], None
        return CUresult.CUDA_SUCCESS, self.contexts.pop()

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """What needs a context."""
        if not name.startswith("cu") or (work := getattr(type(self), "_" + name, None)) is None:
            raise AttributeError(f"Function {name} not found")

        def call(*arguments: Any) -> tuple[Any, ...]:
            if name in self.errors:
                return self.errors[name], None
            if not self.contexts:
                return CUresult.CUDA_ERROR_INVALID_CONTEXT, None
            try:
                with self._memory.current():
                    values = work(self, *arguments)
            except DeviceOutOfMemory:
                return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
            except KeyError:
                return CUresult.CUDA_ERROR_INVALID_HANDLE, None
            except AssertionError:
                return CUresult.CUDA_ERROR_INVALID_VALUE, None
            return (CUresult.CUDA_SUCCESS, *(values if isinstance(values, tuple) else (values,)))

        return call

    def _make(self, resource: Resource) -> int:
        handle = resource.address or id(resource)
        self.alive[handle] = resource
        return handle

    def _free(self, handle: int) -> None:
        self._memory.free(self.alive.pop(handle))

    def _at(self, address: int) -> tuple[Resource, int]:
        """The memory that an address lies in, and how far inside."""
        for start, found in self.alive.copy().items():
            if found.nbytes and start <= address < start + found.nbytes:
                return found, address - start
        raise KeyError(address)

    def _cuMemAlloc(self, nbytes: int) -> int:  # noqa: N802
        # What fresh memory holds is nobody's business, so that it has to be cleared
        resource = self._memory.device(nbytes)
        resource.raw.fill(0xBB)
        return self._make(resource)

    def _cuMemHostAlloc(self, nbytes: int, flags: int) -> int:  # noqa: N802
        assert flags == 1
        return self._make(self._memory.host(nbytes))

    def _cuStreamCreate(self, flags: int) -> int:  # noqa: N802
        assert flags == 1, "not CU_STREAM_NON_BLOCKING"
        return self._make(self._memory.stream())

    def _cuEventCreate(self, flags: int) -> int:  # noqa: N802
        assert flags == 3, "not CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING"
        return self._make(self._memory.event())

    _cuMemFree = _cuMemFreeHost = _cuStreamDestroy = _cuEventDestroy = _cuGraphExecDestroy = _free  # noqa: N815

    def _cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> None:  # noqa: N802
        self._copy_in(address, np.full(nbytes, value, np.uint8), stream)

    def _cuMemcpyHtoDAsync(self, address: int, source: int, nbytes: int, stream: int) -> None:  # noqa: N802
        self._copy_in(address, np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(source)), stream)

    def _copy_in(self, address: int, source: Any, stream: int) -> None:
        target, offset = self._at(address)
        self._memory.upload(target, offset, source, self.alive[stream])

    def _cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> None:  # noqa: N802
        self._memory.download(self.alive[target], self.alive[source], nbytes, self.alive[stream])

    def _cuEventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        self._memory.record(self.alive[event], self.alive[stream])

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:  # noqa: N802
        self._memory.wait(self.alive[stream], self.alive[event])

    def _cuStreamSynchronize(self, handle: int) -> None:  # noqa: N802
        self._memory.synchronize(self.alive[handle])

    _cuEventSynchronize = _cuStreamSynchronize  # noqa: N815

    def _cuMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self._memory.free_memory()

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        assert mode == 1, "not CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"
        capture = self._capture(self.alive[stream])
        next(capture)
        self._captures[stream] = capture

    def _capture(self, stream: Resource) -> Iterator[Any]:
        """What queues between the first and the second step belongs to the graph, which comes third."""
        before, stream.raw = stream.raw, type(stream.raw)()
        yield None
        queued, stream.raw = tuple(stream.raw), before
        yield queued

    def _cuStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        return self._make(self._memory._keep("graph", next(self._captures.pop(stream))))

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:  # noqa: N802
        return self._make(self._memory._keep("graph", self.alive[graph].raw))

    _cuGraphDestroy = _free  # noqa: N815

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        self._memory.launch(self.alive[graph], self.alive[stream])
