"""PyTorch on the CPU, on NVIDIA GPUs and on Apple's.

On a CPU every stream is one thread that runs whole pictures by itself. Splitting each convolution over all
cores instead makes the threads wait for each other at the end of every layer, and for whichever of them the
decoder has just displaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends.base import Backend
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
    ) -> None:
        self.spec = checkpoint.spec
        self.input_size = size or checkpoint.spec.input_size
        self.device = pick_device(device)
        self.name = f"torch-{self.device.type}"
        self.precision, why = pick_precision(self.device)
        self.reason = "; ".join(part for part in (reason, why) if part)
        on_cpu = self.device.type == "cpu"
        self.batch_size = batch_size or (1 if on_cpu else CUDA_BATCH)
        self.streams = cpu_count() if on_cpu else 2
        self._checkpoint = checkpoint
        self._graph: Graph | None = None

    def _open(self) -> None:
        with self._errors():
            graph = Graph(self._checkpoint.model, self.spec, DTYPES[self.precision]).eval()
            self._graph = graph.to(self.device)
        # A GPU for which this PyTorch holds no kernels takes weights, and fails on pictures
        if self.device.type == "cuda":
            self._infer([np.zeros((*self.input_size, self.spec.in_channels), np.uint8)])

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        assert self._graph is not None
        with self._errors(), torch.inference_mode():
            maps: Pixels = self._graph(_as_batch(pictures).to(self.device)).cpu().numpy()
            return maps

    def _resize(self, batch: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # pieces of the large batches would not do for the small ones

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            kind = DeviceOutOfMemory if isinstance(error, torch.OutOfMemoryError) else BackendError
            raise kind(f"{self.name}: {' '.join(str(error).split())[:300]}") from error

    def _close(self) -> None:
        self._graph = None

    def thread(self) -> AbstractContextManager[object]:
        if self.device.type == "cpu":
            return _one_thread()
        # One CUDA stream a thread: the copies of one batch overlap the arithmetic of the other.
        if self.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        return nullcontext()


def _as_batch(pictures: Sequence[Pixels]) -> torch.Tensor:
    """uint8 (N, H, W, C) on the CPU; the memory of a single picture, or of an array of several, is shared."""
    batch = pictures[0][None] if len(pictures) == 1 else np.asarray(pictures)
    # torch has no read-only tensors, and warns of an array that is.
    return torch.from_numpy(np.require(batch, requirements=("C", "W")))


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
