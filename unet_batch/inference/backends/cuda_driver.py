"""CUDA's buffers, streams, events and graphs through its driver interface: by PyCUDA, or by cuda-bindings."""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends.cuda_base import CudaMemory, Resource, one_line

if TYPE_CHECKING:
    from unet_batch.types import Pixels

INSTALL = "pip install cuda-bindings"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every context
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2  # CU_EVENT_...


@dataclass(eq=False)
class Owned(Resource):
    """Something of cuda-bindings, which frees nothing by itself.

    Attributes:
        release: the call that frees it, with its arguments.
    """

    release: Callable[[], tuple[Any, ...]] = field(kw_only=True)


class _DriverMemory(CudaMemory):
    """What PyCUDA lacks and cuda-bindings has: graphs. For streams of either library, by their handles."""

    def free(self, resource: Resource) -> None:
        there = resource.raw is not None
        super().free(resource)
        if there and isinstance(resource, Owned):
            _check(resource.release())

    def capture(self, stream: Resource, enqueue: Callable[[], None]) -> Resource:
        try:
            cuda = _driver()
        except ImportError as error:
            raise BackendError(f"no CUDA graphs without cuda-bindings ({error})", hint=INSTALL) from error
        # Other threads allocate and wait while this one captures: only its own calls may spoil the capture.
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self.current():
            _check(cuda.cuStreamBeginCapture(stream.address, mode))
            try:
                enqueue()
            except BaseException:
                with suppress(BackendError):  # the stream is of no use until the capture has ended
                    cuda.cuGraphDestroy(_check(cuda.cuStreamEndCapture(stream.address)))
                raise
            graph = _check(cuda.cuStreamEndCapture(stream.address))
            try:
                ready = _check(cuda.cuGraphInstantiate(graph, 0))
            finally:
                cuda.cuGraphDestroy(graph)
            return Owned(ready, release=functools.partial(cuda.cuGraphExecDestroy, ready))

    def launch(self, graph: Resource, stream: Resource) -> None:
        _check(_driver().cuGraphLaunch(graph.raw, stream.address))


class PyCudaMemory(_DriverMemory):
    """Through PyCUDA, and graphs through cuda-bindings; raises `BackendUnavailable` without PyCUDA."""

    name = "pycuda"

    def __init__(self, device: int = 0) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise BackendUnavailable(f"PyCUDA: {error}", hint='pip install "unet-batch[pycuda]"') from error
        try:
            self._context = _primary_context(device)
        except self._cuda.Error as error:
            raise BackendUnavailable(f"PyCUDA: {one_line(error)}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            self._context.push()
            try:
                yield
            except BaseException:
                with suppress(self._cuda.Error):  # a broken GPU refuses this, too: the first error counts
                    self._context.pop()
                raise
            self._context.pop()
        except self._cuda.MemoryError as error:
            raise DeviceOutOfMemory(one_line(error)) from error
        except self._cuda.Error as error:
            raise BackendError(one_line(error)) from error

    def host(self, nbytes: int) -> Resource:
        array: Pixels = self._cuda.pagelocked_empty(nbytes, np.uint8)
        return Resource(array, array.ctypes.data, nbytes)

    def device(self, nbytes: int) -> Resource:
        raw = self._cuda.mem_alloc(nbytes)
        # The whole context cannot be waited for while a thread captures
        stream = self._cuda.Stream(_NON_BLOCKING)
        self._cuda.memset_d8_async(int(raw), 0, nbytes, stream)
        stream.synchronize()
        return Resource(raw, int(raw), nbytes)

    def stream(self) -> Resource:
        raw = self._cuda.Stream(_NON_BLOCKING)
        return Resource(raw, int(raw.handle))

    def event(self) -> Resource:
        return Resource(self._cuda.Event(_DISABLE_TIMING | _BLOCKING_SYNC))

    def upload(self, target: Resource, offset: int, source: Pixels, stream: Resource) -> None:
        self._cuda.memcpy_htod_async(target.address + offset, source, stream.raw)

    def download(self, target: Resource, source: Resource, nbytes: int, stream: Resource) -> None:
        self._cuda.memcpy_dtoh_async(target.raw[:nbytes], source.address, stream.raw)

    def record(self, event: Resource, stream: Resource) -> None:
        event.raw.record(stream.raw)

    def wait(self, stream: Resource, event: Resource) -> None:
        stream.raw.wait_for_event(event.raw)

    def free_memory(self) -> tuple[int, int]:
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)


@functools.cache
def _primary_context(device: int) -> Any:
    # One handle for each GPU: PyCUDA frees nothing while another of the same context is current. Detached in
    # the end only: the context stays current in the thread that does it, and a handle nobody detached
    # complains. Never `pycuda.autoinit`, which makes a context of its own, whose streams TensorRT cannot use.
    cuda = importlib.import_module("pycuda.driver")
    cuda.init()
    context = cuda.Device(device).retain_primary_context()
    atexit.register(context.detach)
    return context


class CudaBindingsMemory(_DriverMemory):
    """Through NVIDIA's cuda-bindings, which no compiler is needed for.

    It is CUDA's driver interface that is called: a context is pushed and popped, so that a thread gets back
    the GPU it had, and no error of one call is reported by the next. After an error that breaks the context
    (an illegal address) every call reports that one, until the process ends.

    Raises:
        BackendUnavailable: it is missing, too old, or refuses the GPU.
    """

    name = "cuda-bindings"

    def __init__(self, device: int = 0) -> None:
        try:
            self._cuda = _driver()
            # Came with 12.9.1, as did calls that release the interpreter lock; without that, a thread that
            # waits for the GPU stops all the others:
            # https://nvidia.github.io/cuda-python/cuda-bindings/latest/release/12.9.1-notes.html
            self._handle: Callable[[Any], int] = importlib.import_module(
                "cuda.bindings.utils"
            ).get_cuda_native_handle
        except (ImportError, AttributeError) as error:
            raise BackendUnavailable(f"cuda-bindings 12.9.1 or newer: {error}", hint=INSTALL) from error
        try:
            self._context = _bound_context(device)
        except (
            BackendError,
            RuntimeError,
        ) as error:  # RuntimeError: the driver lacks a function, or is absent
            raise BackendUnavailable(f"cuda-bindings: {one_line(error)}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        _check(self._cuda.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent()  # unchecked: it repeats what an earlier call reported

    def host(self, nbytes: int) -> Resource:
        address = int(_check(self._cuda.cuMemHostAlloc(nbytes, _PORTABLE)))
        array: Pixels = np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)
        release = functools.partial(self._cuda.cuMemFreeHost, address)
        return Owned(array, address, nbytes, release=release)

    def device(self, nbytes: int) -> Resource:
        raw = _check(self._cuda.cuMemAlloc(nbytes))
        memory = Owned(raw, int(raw), nbytes, release=functools.partial(self._cuda.cuMemFree, raw))
        with self._freed_on_error(memory):
            stream = self.stream()  # the whole context cannot be waited for while a thread captures
            with self._freed_on_error(stream):
                _check(self._cuda.cuMemsetD8Async(raw, 0, nbytes, stream.raw))
                self.synchronize(stream)
            self.free(stream)
        return memory

    @contextmanager
    def _freed_on_error(self, resource: Resource) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(BackendError):  # the first error counts
                self.free(resource)
            raise

    def stream(self) -> Resource:
        raw = _check(self._cuda.cuStreamCreate(_NON_BLOCKING))
        return Owned(raw, self._handle(raw), release=functools.partial(self._cuda.cuStreamDestroy, raw))

    def event(self) -> Resource:
        raw = _check(self._cuda.cuEventCreate(_DISABLE_TIMING | _BLOCKING_SYNC))
        return Owned(raw, release=functools.partial(self._cuda.cuEventDestroy, raw))

    def upload(self, target: Resource, offset: int, source: Pixels, stream: Resource) -> None:
        address = target.address + offset
        _check(self._cuda.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, stream.raw))

    def download(self, target: Resource, source: Resource, nbytes: int, stream: Resource) -> None:
        _check(self._cuda.cuMemcpyDtoHAsync(target.address, source.address, nbytes, stream.raw))

    def record(self, event: Resource, stream: Resource) -> None:
        _check(self._cuda.cuEventRecord(event.raw, stream.raw))

    def wait(self, stream: Resource, event: Resource) -> None:
        _check(self._cuda.cuStreamWaitEvent(stream.raw, event.raw, 0))

    def synchronize(self, resource: Resource) -> None:
        is_stream = resource.address != 0
        wait = self._cuda.cuStreamSynchronize if is_stream else self._cuda.cuEventSynchronize
        _check(wait(resource.raw))

    def free_memory(self) -> tuple[int, int]:
        free, total = _check(self._cuda.cuMemGetInfo())
        return int(free), int(total)


@functools.cache
def _driver() -> Any:
    """CUDA's driver interface. Raises ImportError without cuda-bindings."""
    return importlib.import_module("cuda.bindings.driver")


@functools.cache
def _bound_context(device: int) -> Any:
    # Retained once for each GPU and never released
    cuda = _driver()
    _check(cuda.cuInit(0))
    return _check(cuda.cuDevicePrimaryCtxRetain(_check(cuda.cuDeviceGet(device))))


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda-bindings, which return (error, values...); several are a list.

    Raises:
        DeviceOutOfMemory, BackendError: the call failed.
    """
    error, *values = result
    if int(error):
        kind = DeviceOutOfMemory if error.name == "CUDA_ERROR_OUT_OF_MEMORY" else BackendError
        raise kind(f"CUDA: {error.name}")
    return values[0] if len(values) == 1 else values
