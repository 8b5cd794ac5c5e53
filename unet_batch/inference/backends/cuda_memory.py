"""CUDA's buffers, streams, events and graphs through PyCUDA or PyTorch: what `streaming` needs, and no more.

Whoever allocates something frees it. Both libraries work in the device's primary context, which TensorRT
uses, too; it is kept until the process ends, as PyTorch does, so that memory can be freed at any time and
from any thread.
"""

from __future__ import annotations

import atexit
import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch import gpu
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory

if TYPE_CHECKING:
    from unet_batch.types import Pixels


_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


@dataclass(eq=False)
class Resource:
    """Something that belongs to CUDA, until `CudaMemory.free`.

    Attributes:
        raw: the library's own object; of page-locked memory a uint8 array (nbytes,). None once freed.
        address: where memory begins, or a stream's handle, as CUDA's C interface takes them; else 0.
        nbytes: the size of memory; else 0.
    """

    raw: Any
    address: int = 0
    nbytes: int = 0


class CudaMemory(ABC):
    """One GPU, for several threads at once. All but `current` must be called inside `current()`."""

    name: str  # of the library: `pycuda` or `torch`

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make the GPU the thread's own; may be nested.

        Raises:
            DeviceOutOfMemory, BackendError: in place of CUDA's own errors inside.
        """

    @abstractmethod
    def host(self, nbytes: int) -> Resource:
        """Page-locked memory, which copies to and from the GPU need to be asynchronous."""

    @abstractmethod
    def device(self, nbytes: int) -> Resource:
        """Memory of the GPU, zeroed."""

    @abstractmethod
    def stream(self) -> Resource:
        """A queue of work that no other stream waits for, nor it for them."""

    @abstractmethod
    def event(self) -> Resource:
        """A mark in a stream. Waiting for it blocks the thread and uses no processor time."""

    def free(self, resource: Resource) -> None:
        """Give something back that no work on the GPU uses any more; nothing happens the second time."""
        resource.raw = None  # the libraries free what nobody holds

    @abstractmethod
    def upload(self, target: Resource, offset: int, source: Pixels, stream: Resource) -> None:
        """Queue a copy of a C-contiguous array to the GPU, `offset` bytes into `target`.

        `source` must stay as it is until the copy is done.
        """

    @abstractmethod
    def download(self, target: Resource, source: Resource, nbytes: int, stream: Resource) -> None:
        """Queue a copy of the first bytes of GPU memory to the beginning of page-locked memory."""

    @abstractmethod
    def record(self, event: Resource, stream: Resource) -> None:
        """Mark what was queued so far; an earlier mark of the event is forgotten."""

    @abstractmethod
    def wait(self, stream: Resource, event: Resource) -> None:
        """Let what is queued from now on begin after the event's mark; one without a mark delays nothing."""

    def synchronize(self, resource: Resource) -> None:
        """Wait for the event's mark or for all work of the stream; releases the interpreter lock."""
        resource.raw.synchronize()

    @abstractmethod
    def free_memory(self) -> tuple[int, int]:
        """Bytes of GPU memory: free, and in all."""

    @abstractmethod
    def capture(self, stream: Resource, enqueue: Callable[[], None]) -> Resource:
        """A CUDA graph of what `enqueue` queues in the stream; nothing of it runs now.

        Nothing else may be queued in the stream meanwhile. `enqueue` must have run before with the same
        addresses and shapes.

        Raises:
            BackendError: there are no graphs here, or not of this; the stream is as before.
        """

    @abstractmethod
    def launch(self, graph: Resource, stream: Resource) -> None:
        """Queue all the work of a graph at once."""


def open_memory(device: int = 0, provider: str | None = None) -> CudaMemory:
    """The memory of a GPU.

    Args:
        device: as CUDA counts them.
        provider: `pycuda` or `torch`; None takes the first that is there.

    Raises:
        BackendUnavailable: there is no such GPU, or nothing to reach it with.
    """
    if provider is not None and provider not in PROVIDERS:
        raise BackendUnavailable(
            f"{provider!r} is no way to CUDA memory", hint=f"choose from: {', '.join(PROVIDERS)}"
        )
    if (reason := gpu.missing()) or (driver := gpu.driver()) is None:
        raise BackendUnavailable(
            f"no CUDA memory: {reason}", hint="use the torch backend, which runs on the CPU, too"
        )
    if not 0 <= device < len(driver.gpus):
        raise BackendUnavailable(f"GPU {device}: this machine has {len(driver.gpus)} GPU(s), counted from 0")
    reasons: list[str] = []
    for name in PROVIDERS if provider is None else (provider,):
        provide = PROVIDERS[name]
        try:
            return provide(device)
        except BackendUnavailable as error:
            reasons.append(error.message)
    raise BackendUnavailable(f"no CUDA memory: {'; '.join(reasons)}", hint="pip install pycuda")


class PyCudaMemory(CudaMemory):
    """Through PyCUDA, and graphs through cuda-bindings; raises `BackendUnavailable` without PyCUDA."""

    name = "pycuda"

    def __init__(self, device: int = 0) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise BackendUnavailable(f"PyCUDA: {error}", hint="pip install pycuda") from error
        try:
            self._context = _primary_context(device)
        except self._cuda.Error as error:
            raise BackendUnavailable(f"PyCUDA: {_words(error)}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._cuda.MemoryError as error:
            raise DeviceOutOfMemory(_words(error)) from error
        except self._cuda.Error as error:
            raise BackendError(_words(error)) from error
        finally:
            self._context.pop()

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
        flags = self._cuda.event_flags
        return Resource(self._cuda.Event(flags.DISABLE_TIMING | flags.BLOCKING_SYNC))

    def free(self, resource: Resource) -> None:
        if resource.raw is not None and isinstance(resource, _Graph):
            _check(_runtime().cudaGraphExecDestroy(resource.raw))
        super().free(resource)

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

    def capture(self, stream: Resource, enqueue: Callable[[], None]) -> Resource:
        try:
            runtime = _runtime()
        except ImportError as error:
            raise BackendError(
                f"no CUDA graphs without cuda-bindings ({error})", hint="pip install cuda-bindings"
            ) from error
        # Other threads allocate and wait while this one captures: only its own calls may spoil the capture.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.current():
            _check(runtime.cudaStreamBeginCapture(stream.address, mode))
            try:
                enqueue()
            except BaseException:
                with suppress(BackendError):  # the stream is of no use until the capture has ended
                    runtime.cudaGraphDestroy(_check(runtime.cudaStreamEndCapture(stream.address)))
                raise
            graph = _check(runtime.cudaStreamEndCapture(stream.address))
            try:
                return _Graph(_check(runtime.cudaGraphInstantiate(graph, 0)))
            finally:
                runtime.cudaGraphDestroy(graph)

    def launch(self, graph: Resource, stream: Resource) -> None:
        _check(_runtime().cudaGraphLaunch(graph.raw, stream.address))


class _Graph(Resource):
    """Of cuda-bindings, which frees nothing by itself."""


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


@functools.cache
def _runtime() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda-bindings, which return (error, value). Raises BackendError."""
    error, *values = result
    if int(error):
        _runtime().cudaGetLastError()  # clears it: later calls would report it again
        raise BackendError(f"CUDA: {error.name}")
    return values[0] if values else None


class TorchMemory(CudaMemory):
    """Through PyTorch; raises `BackendUnavailable` without it, or where it cannot use the GPU."""

    name = "torch"

    def __init__(self, device: int = 0) -> None:
        try:
            self._torch: Any = importlib.import_module("torch")
        except (ImportError, OSError) as error:
            raise BackendUnavailable(f"PyTorch: {error}", hint="pip install torch") from error
        if not self._torch.cuda.is_available():
            why = (
                "built without CUDA" if self._torch.version.cuda is None else "cannot use this GPU or driver"
            )
            raise BackendUnavailable(f"PyTorch: {why}")
        self._device = self._torch.device("cuda", device)

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            with self._torch.cuda.device(self._device):
                yield
        except RuntimeError as error:  # all of PyTorch's are
            kind = DeviceOutOfMemory if is_out_of_memory(error) else BackendError
            raise kind(_words(error)) from error

    def host(self, nbytes: int) -> Resource:
        array: Pixels = self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=True).numpy()
        return Resource(array, array.ctypes.data, nbytes)

    def device(self, nbytes: int) -> Resource:
        raw = self._torch.zeros(nbytes, dtype=self._torch.uint8, device=self._device)
        self._torch.cuda.current_stream().synchronize()  # the streams below do not wait for this one
        return Resource(raw, raw.data_ptr(), nbytes)

    def stream(self) -> Resource:
        raw = self._torch.cuda.Stream(self._device)
        return Resource(raw, raw.cuda_stream)

    def event(self) -> Resource:
        return Resource(self._torch.cuda.Event(blocking=True))

    def free(self, resource: Resource) -> None:
        on_gpu = isinstance(resource.raw, self._torch.Tensor)
        super().free(resource)
        if on_gpu:
            # TensorRT allocates past PyTorch: what that keeps for itself would be lost
            self._torch.cuda.empty_cache()

    def upload(self, target: Resource, offset: int, source: Pixels, stream: Resource) -> None:
        # PyTorch has no read-only tensors. CUDA is done with an array that is not page-locked when the call
        # returns.
        flat = (source if source.flags.writeable else source.copy()).reshape(-1)
        with self._torch.cuda.stream(stream.raw):
            target.raw[offset : offset + flat.nbytes].copy_(self._torch.from_numpy(flat), non_blocking=True)

    def download(self, target: Resource, source: Resource, nbytes: int, stream: Resource) -> None:
        with self._torch.cuda.stream(stream.raw):
            self._torch.from_numpy(target.raw[:nbytes]).copy_(source.raw[:nbytes], non_blocking=True)

    def record(self, event: Resource, stream: Resource) -> None:
        event.raw.record(stream.raw)

    def wait(self, stream: Resource, event: Resource) -> None:
        stream.raw.wait_event(event.raw)

    def free_memory(self) -> tuple[int, int]:
        free, total = self._torch.cuda.mem_get_info(self._device)
        return int(free), int(total)

    def capture(self, stream: Resource, enqueue: Callable[[], None]) -> Resource:
        graph = self._torch.cuda.CUDAGraph()
        with self.current(), self._torch.cuda.stream(stream.raw):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                enqueue()
            except BaseException:
                with suppress(RuntimeError):  # the stream is of no use until the capture has ended
                    graph.capture_end()
                raise
            graph.capture_end()
        return Resource(graph)

    def launch(self, graph: Resource, stream: Resource) -> None:
        with self._torch.cuda.stream(stream.raw):
            graph.raw.replay()


PROVIDERS: dict[str, Callable[[int], CudaMemory]] = {"pycuda": PyCudaMemory, "torch": TorchMemory}


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


_OUT_OF_MEMORY = (
    "outofmemory",  # PyTorch, CUDA, TensorRT
    "cudaerrormemoryallocation",
    "statusallocfailed",  # cuBLAS, cuDNN 8
    "deviceallocationfailed",  # cuDNN 9
)


def is_out_of_memory(error: object) -> bool:
    """Whether an error, or what a library wrote of it, means that the GPU has not enough memory.

    By its words: releases of PyTorch differ in the class, and of cuDNN it comes as any `RuntimeError`.
    """
    text = str(error).lower().replace(" ", "").replace("_", "")
    return any(words in text for words in _OUT_OF_MEMORY)
