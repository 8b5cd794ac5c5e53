"""PyTorch on the CPU, on NVIDIA GPUs and on Apple's.

On a CPU every stream is one thread that runs whole pictures by itself. Splitting each convolution over all
cores instead makes the threads wait for each other at the end of every layer, and for whichever of them the
decoder has just displaced.

An NVIDIA GPU is kept busy by `streaming`, as TensorRT keeps it: every batch is run at its full size, so that
cuDNN picks the same kernels for each, and repeated through a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.cuda_memory import CudaMemory, Resource, TorchMemory, is_out_of_memory
from unet_batch.inference.backends.streaming import SLOTS, StreamingExecutor
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.model.graph import Graph
from unet_batch.pipeline import cpu_count

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CUDA_BATCH = 32


class TorchBackend(Backend):
    """Runs a checkpoint with PyTorch.

    Args:
        checkpoint: the model.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None takes CUDA where there is a usable GPU, else the CPU.
        batch_size: None lets the backend choose.
        size: (height, width) to run at; None takes the model's own.
        reason: why this backend was chosen; the choice of precision is added to it.
        memory: for tests: batches go through it as through a GPU's, whatever the device. None opens a CUDA
            device's own.

    Raises:
        BackendUnavailable: the device does not exist on this machine or PyTorch was built without it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str | None = None,
        *,
        batch_size: int | None = None,
        size: Size | None = None,
        reason: str = "",
        memory: CudaMemory | None = None,
    ) -> None:
        self.spec = checkpoint.spec
        self.input_size = size or checkpoint.spec.input_size
        self.device = pick_device(device)
        self.name = f"torch-{self.device.type}"
        self.precision, why = pick_precision(self.device)
        self.reason = "; ".join(part for part in (reason, why) if part)
        on_cpu = self.device.type == "cpu"
        self.batch_size = batch_size or (1 if on_cpu else CUDA_BATCH)
        self.streams = {"cpu": cpu_count(), "cuda": SLOTS}.get(self.device.type, 2)
        self.memory = memory
        self._checkpoint = checkpoint
        self._graph: Graph | None = None
        self._executor: StreamingExecutor | None = None

    def _open(self) -> None:
        memory = self.memory
        if memory is None and self.device.type == "cuda":
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            memory = TorchMemory(index)
        with nullcontext() if memory is None else memory.current(), _errors(self.name):
            graph = Graph(self._checkpoint.model, self.spec, DTYPES[self.precision]).eval().to(self.device)
        if memory is None:
            self._graph = graph
            return
        shape = (*self.input_size, self.spec.in_channels)
        self._executor = StreamingExecutor(
            memory,
            Program(self.name, graph, shape),
            shape,
            batch=self.batch_size,
            least=self.least_batch,
            notes=self.notes,
        )
        self.batch_size = self._executor.batch

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        executor, graph = self._executor, self._graph
        if executor is not None:
            return executor.infer(pictures)
        if graph is None:
            raise BackendError(f"{self.name}: closed while it ran")
        batch = _as_batch(pictures)
        if self.device.type != "cpu":
            batch = _pad(batch, self._limit)
        with _errors(self.name), torch.inference_mode():
            maps: Pixels = graph(batch.to(self.device)).cpu().numpy()
            return maps[: len(pictures)]

    def _resize(self, batch: int) -> None:
        if self._executor is not None:
            self._executor.resize(batch)

    def buffer(self) -> Pixels:
        executor = self._executor
        return super().buffer() if executor is None else executor.buffer()

    def _close(self) -> None:
        try:
            if self._executor is not None:
                self._executor.close()
        finally:
            self._executor = self._graph = None
            _release_cache()  # the weights, for whoever uses the GPU next

    def thread(self) -> AbstractContextManager[object]:
        return _one_thread() if self.device.type == "cpu" else nullcontext()


class Program:
    """A network for pictures of one shape, (H, W, C); a `streaming.Program`.

    cuDNN chooses kernels by shape alone, as `torch.backends.cudnn.benchmark` is off unless somebody sets it.

    Args:
        name: of the backend, for errors.
        graph: on the device whose memory `prepare` is given.
        shape: of a picture.
    """

    def __init__(self, name: str, graph: Graph, shape: tuple[int, int, int]) -> None:
        self._name = name
        self._graph = graph
        self._shape = shape

    def prepare(self, batch: int, pictures: Resource, maps: Resource) -> Execution:
        """See `streaming.Program`."""
        return Execution(
            self._name,
            self._graph,
            torch.as_tensor(pictures.raw).view(batch, *self._shape),
            torch.as_tensor(maps.raw).view(batch, *self._shape[:2]),
        )


class Execution:
    """A network between two tensors that stay where they are; a `streaming.Execution`."""

    def __init__(self, name: str, graph: Graph, pictures: torch.Tensor, maps: torch.Tensor) -> None:
        self._name = name
        self._graph: Graph | None = graph
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = (pictures, maps)
        self._rehearsed = False

    def enqueue(self, stream: Resource) -> None:
        """See `streaming.Execution`."""
        # Whatever it allocates belongs to this stream, in which all batches run one after the other.
        with torch.cuda.stream(stream.raw):
            self.run()
        if not self._rehearsed:
            self._rehearsed = True
            # What PyTorch's allocator keeps of this run is out of a graph's reach, which needs as much again
            _release_cache()

    def run(self) -> None:
        """Compute the maps, in the stream that is current."""
        assert self._graph is not None
        assert self._tensors is not None
        pictures, maps = self._tensors
        with _errors(self._name), torch.inference_mode():
            maps.copy_(self._graph(pictures))

    def close(self) -> None:
        """See `streaming.Execution`."""
        self._graph = self._tensors = None


def _release_cache() -> None:
    """Give back what PyTorch's allocator keeps for later."""
    with suppress(RuntimeError):  # some releases refuse while anybody captures a graph
        torch.cuda.empty_cache()


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """PyTorch's errors as ours, behind the backend's name."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = DeviceOutOfMemory if is_out_of_memory(error) else BackendError
        raise kind(f"{name}: {' '.join(str(error).split())[:300]}") from error


def _as_batch(pictures: Sequence[Pixels]) -> torch.Tensor:
    """uint8 (N, H, W, C) on the CPU; the memory of a single picture, or of an array of several, is shared."""
    batch = pictures[0][None] if len(pictures) == 1 else np.asarray(pictures)
    # torch has no read-only tensors, and warns of an array that is.
    return torch.from_numpy(np.require(batch, requirements=("C", "W")))


def _pad(batch: torch.Tensor, size: int) -> torch.Tensor:
    """The batch with black pictures behind it: other shapes may run other kernels, whose maps differ."""
    missing = max(0, size - len(batch))
    return torch.cat([batch, batch.new_zeros((missing, *batch.shape[1:]))]) if missing else batch


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep convolutions in the calling thread; OpenMP keeps the count for each thread apart."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendUnavailable(
            f"{name}: not a device PyTorch knows", hint="use cpu, cuda, cuda:N or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = (
            "PyTorch was built without CUDA"
            if torch.version.cuda is None
            else "no usable NVIDIA GPU or driver"
        )
        raise BackendUnavailable(f"{name}: {reason}", hint="use --device cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"{name}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendUnavailable(f"{name}: no Apple GPU here", hint="use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise BackendUnavailable(f"{name}: not supported", hint="use cpu, cuda, cuda:N or mps")
    return device


def pick_precision(device: torch.device) -> tuple[str, str]:
    """Precision of the body, and why."""
    if device.type == "cuda":
        return "fp16", "fp16 on tensor cores"
    if device.type == "mps":
        return "fp32", "fp32 on Apple GPUs"
    # Older releases of PyTorch cannot tell.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512"), ("sve_bf16", "SVE"), ("bf16", "Arm")):
        if capabilities.get(flag):
            return "bf16", f"bf16: this CPU executes it natively, {name}"
    return "fp32", "fp32: this CPU does not execute bfloat16"


def matrix_peak(side: int = 8192, rounds: int = 5) -> float:
    """FLOP/s of the current NVIDIA GPU: the best of several float16 products."""
    left, right = torch.randn(2, side, side, dtype=torch.float16, device="cuda")
    best = float("inf")
    for _ in range(rounds):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begun.record()
        left @ right
        ended.record()
        torch.cuda.synchronize()
        best = min(best, begun.elapsed_time(ended) / 1000)
    return 2 * side**3 / best
