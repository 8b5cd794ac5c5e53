"""CUDA's buffers, streams, events and graphs through PyTorch, and who of three holds them.

Whoever allocates something frees it, see `cuda_base`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from unet_batch import gpu
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends.cuda_base import CudaMemory, Resource, one_line
from unet_batch.inference.backends.cuda_driver import INSTALL, CudaBindingsMemory, Owned, PyCudaMemory

if TYPE_CHECKING:
    from unet_batch.types import Pixels

_UNENDED: list[Any] = []  # graphs that must outlive whoever captured them, see `TorchMemory`

__all__ = ["PROVIDERS", "CudaMemory", "Resource", "TorchMemory", "is_out_of_memory", "open_memory"]


def open_memory(device: int = 0, provider: str | None = None) -> CudaMemory:
    """The memory of a GPU.

    Args:
        device: as CUDA counts them.
        provider: one of `PROVIDERS`; None takes the first that is there.

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
    raise BackendUnavailable(f"no CUDA memory: {'; '.join(reasons)}", hint=INSTALL)


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
        # Streams and page-locked memory of cuda-bindings where it is installed, as PyTorch 2.10 for CUDA sees
        # to. PyTorch deals its 32 streams in turn, so that two executors may share one: fatal while it is
        # captured. And its page-locked memory is rounded up to a power of two, is never given back, and marks
        # the streams it was used in when it is freed, when they may be gone.
        try:
            self._bindings: CudaBindingsMemory | None = CudaBindingsMemory(device)
        except BackendUnavailable:
            self._bindings = None
        self._graphs: WeakKeyDictionary[Resource, WeakSet[Resource]] = WeakKeyDictionary()  # by stream

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            with self._torch.cuda.device(self._device):
                yield
        except RuntimeError as error:  # all of PyTorch's are
            kind = DeviceOutOfMemory if is_out_of_memory(error) else BackendError
            raise kind(one_line(error)) from error

    def host(self, nbytes: int) -> Resource:
        if self._bindings is not None:
            with self._bindings.current():
                return self._bindings.host(nbytes)
        array: Pixels = self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=True).numpy()
        return Resource(array, array.ctypes.data, nbytes)

    def device(self, nbytes: int) -> Resource:
        raw = self._torch.zeros(nbytes, dtype=self._torch.uint8, device=self._device)
        self._torch.cuda.current_stream().synchronize()  # the streams below do not wait for this one
        return Resource(raw, raw.data_ptr(), nbytes)

    def stream(self) -> Resource:
        if self._bindings is None:
            raw = self._torch.cuda.Stream(self._device)
            return Resource(raw, raw.cuda_stream)
        with self._bindings.current():
            stream = self._bindings.stream()
        stream.raw = self._torch.cuda.ExternalStream(stream.address, self._device)
        return stream

    def event(self) -> Resource:
        return Resource(self._torch.cuda.Event(blocking=True))

    def free(self, resource: Resource) -> None:
        if isinstance(resource, Owned):
            assert self._bindings is not None
            with self._bindings.current():
                self._bindings.free(resource)
            return
        on_gpu = isinstance(resource.raw, self._torch.Tensor)
        super().free(resource)
        if on_gpu:
            # TensorRT allocates past PyTorch: what that keeps for itself would be lost
            with suppress(RuntimeError):  # some releases refuse while anybody captures a graph
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
        # Graphs of one stream share their memory: what one leaves there, the next overwrites. That is right
        # as they never run at once, the stream sees to it, and none needs what another left: `enqueue` takes
        # its input from outside and leaves its result there. Three slots would else hold all activations
        # three times.
        siblings = self._graphs.setdefault(stream, WeakSet())
        # Of a graph that lives, as PyTorch refuses a pool whose last graph is gone
        pool = next((sibling.raw.pool() for sibling in siblings if sibling.raw is not None), None)
        with self.current(), self._torch.cuda.stream(stream.raw):
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                enqueue()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, stream)
                raise
        captured = Resource(graph)
        siblings.add(captured)
        return captured

    def _abandon(self, graph: Any, stream: Resource) -> None:
        """End a capture that failed, as the stream is of no use until then, and give its memory back."""
        try:
            with warnings.catch_warnings():
                # Expected here, and where warnings are errors it would take the place of what went wrong
                warnings.filterwarnings("ignore", "The CUDA Graph is empty", UserWarning)
                graph.capture_end()
        except RuntimeError:
            # Where CUDA will not end it, PyTorch's allocator goes on asking this graph what belongs to its
            # pool, and lets no other capture use that.
            _UNENDED.append(graph)
            del self._graphs[stream]
        graph.reset()  # what it took may be what the next, smaller batch needs

    def launch(self, graph: Resource, stream: Resource) -> None:
        with self._torch.cuda.stream(stream.raw):
            graph.raw.replay()


PROVIDERS: dict[str, Callable[[int], CudaMemory]] = {
    memory.name: memory for memory in (PyCudaMemory, CudaBindingsMemory, TorchMemory)
}
"""Who can hold the buffers, first choice first."""

_OUT_OF_MEMORY = (
    "outofmemory",  # PyTorch, CUDA, TensorRT
    "cudaerrormemoryallocation",
    "statusallocfailed",  # cuBLAS, cuDNN 8
    "deviceallocationfailed",  # cuDNN 9
    # PyTorch where no kernel's scratch memory fits: https://github.com/pytorch/pytorch/issues/108645
    "unabletofindanengine",
)


def is_out_of_memory(error: object) -> bool:
    """Whether an error, or what a library wrote of it, means that the GPU has not enough memory.

    By its words: releases of PyTorch differ in the class, and of cuDNN it comes as any `RuntimeError`.
    """
    text = str(error).lower().replace(" ", "").replace("_", "")
    return any(words in text for words in _OUT_OF_MEMORY)
