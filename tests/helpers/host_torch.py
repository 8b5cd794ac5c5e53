"""PyTorch's backend as it runs on a GPU, over `HostMemory`; only the streams are stand-ins."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.inference.backends import torch as torch_module
from unet_batch.inference.backends.cuda_memory import Resource
from unet_batch.inference.backends.torch import Execution, Program, TorchBackend
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.testing import HostMemory


def tiny_checkpoint(classes: int = 1, size: tuple[int, int] = (32, 48)) -> Checkpoint:
    spec = tiny_spec(classes, size)
    return Checkpoint(tiny_model(spec), spec, "0" * 64, "tiny")


class HostTorchBackend(TorchBackend):
    """A `TorchBackend` whose GPU is host memory."""

    memory: HostMemory

    def __init__(
        self, checkpoint: Checkpoint | None = None, *, batch_size: int = 4, memory: HostMemory | None = None
    ) -> None:
        super().__init__(
            checkpoint or tiny_checkpoint(), "cpu", batch_size=batch_size, memory=memory or HostMemory()
        )

    def _open(self) -> None:
        with patch.object(torch_module, "Program", partial(QueuedProgram, self.memory)):
            super()._open()


class QueuedProgram(Program):
    """A program whose streams are those of host memory."""

    def __init__(self, memory: HostMemory, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.memory = memory

    def prepare(self, batch: int, pictures: Resource, maps: Resource) -> Execution:
        prepared = super().prepare(batch, pictures, maps)

        def enqueue(stream: Resource) -> None:
            self.memory.queue(stream, prepared.run, pictures, maps)

        prepared.enqueue = enqueue  # type: ignore[method-assign]
        return prepared
