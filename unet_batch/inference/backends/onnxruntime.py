"""ONNX Runtime: graphs on the CPU, and on an NVIDIA GPU where its build has CUDA. Imports no PyTorch.

On a CPU every stream is one thread that runs whole pictures by itself, as PyTorch's backend does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.engine import onnx_model
from unet_batch.engine.onnx_model import OnnxModel, OnnxRunner
from unet_batch.errors import BackendError
from unet_batch.inference.backends.base import Backend, streams_for
from unet_batch.pipeline import cpu_count

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

CUDA_BATCH = 32


class OnnxRuntimeBackend(Backend):
    """Runs a graph with ONNX Runtime.

    Args:
        graph: as `onnx_model.read` gives it.
        device: index of the NVIDIA GPU; None runs on the CPU.
        batch_size: None lets the backend choose.
        size: (height, width) to run at; None takes the graph's own.
        reason: why this backend was chosen.

    Raises:
        UsageError: the graph does not take this size.
    """

    def __init__(
        self,
        graph: OnnxModel,
        *,
        device: int | None = None,
        batch_size: int | None = None,
        size: Size | None = None,
        reason: str = "",
    ) -> None:
        self.spec = graph.spec
        self.input_size = size or graph.size or graph.spec.input_size
        onnx_model.check_input(graph, self.input_size)
        self.name = "onnxruntime-cpu" if device is None else "onnxruntime-cuda"
        self.precision = graph.precision
        self.reason = "; ".join(part for part in (reason, f"{graph.precision}: as the graph is") if part)
        self.batch_size = batch_size or (1 if device is None else CUDA_BATCH)
        if device is not None and graph.batch is not None:  # it computes no more than these at once
            self.batch_size = graph.batch
        self.streams = cpu_count() if device is None else 2
        self._device = device
        self._graph = graph
        self._runner: OnnxRunner | None = None

    def _open(self) -> None:
        if self._device is None:
            self.streams = streams_for(onnx_model.picture_bytes(self._graph, self.input_size), self.notes)
        self._runner = OnnxRunner(self._graph.data, threads=1, device=self._device)

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        runner = self._runner
        if runner is None:
            raise BackendError(f"{self.name}: closed while it ran")
        if self._device is None:  # one by one: a batch saves a thread nothing, and no map depends on another
            return np.concatenate([runner(picture[None]) for picture in pictures])
        missing = self._limit - len(pictures)  # other shapes may run other kernels, whose maps differ
        black = np.zeros((missing, *pictures[0].shape), np.uint8)
        return runner(np.concatenate([np.stack(pictures), black]))[: len(pictures)]

    def _close(self) -> None:
        self._runner = None
