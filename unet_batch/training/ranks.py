"""Processes that train together, as torchrun starts them, or one process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unet_batch.errors import UsageError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process, `rank`, among `count` that train together."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes and prints."""
        return self.rank == 0

    def share(self, values: Sequence[Value]) -> Sequence[Value]:
        """The part of `values` for this process: consecutive ones, as many for each as can be."""
        return values[self.rank * len(values) // self.count : (self.rank + 1) * len(values) // self.count]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.count > 1 and tensors:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.count
            for tensor, mean in zip(
                tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
            ):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """Collect the values of all processes, in the order of their ranks."""
        if self.count == 1:
            return list(values)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(values))
        return [value for part in parts for value in part]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        tensor = torch.tensor(float(flag), device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def join_processes(device: str | None) -> Iterator[Ranks]:
    """Join the processes that torchrun started; on GPUs each takes that of its local rank.

    Args:
        device: what --device says.

    Raises:
        UsageError: there are more processes than GPUs, or several are to share one named GPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device is not None and ":" in device:
        raise UsageError(
            f"--device {device} for {count} processes", hint="--device cuda: each takes a GPU of its own"
        )
    on_gpu = (device or "cuda").startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(
                f"process {local + 1} of this machine has no GPU, there are {gpus}",
                hint=f"--nproc-per-node {gpus}",
            )
        torch.cuda.set_device(local)
    # The first may check a large dataset while the others wait for it.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=1))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
