"""Which backend runs, and why: every automatic choice carries its reason.

`auto` takes the first that can run; an explicit choice never falls back.
"""

from __future__ import annotations

from unet_batch import gpu
from unet_batch.backends.base import Backend
from unet_batch.errors import UsageError
from unet_batch.model.checkpoint import Checkpoint

CHOICES = ("auto", "torch")


def select(
    checkpoint: Checkpoint, backend: str = "auto", *, device: str | None = None, batch_size: int | None = None
) -> Backend:
    """The backend to run a checkpoint with, not yet open.

    Args:
        backend: one of `CHOICES`.
        device: as PyTorch names devices; None chooses.
        batch_size: None lets the backend choose.

    Raises:
        UsageError: not one of `CHOICES`.
        BackendUnavailable: the device that was asked for cannot be used.
    """
    if backend not in CHOICES:
        raise UsageError(f"backend {backend!r} is not known", hint=f"choose from: {', '.join(CHOICES)}")
    from unet_batch.backends.torch import TorchBackend

    reason = "as asked" if backend != "auto" or device else missing_gpu()
    return TorchBackend(checkpoint, device, batch_size=batch_size, reason=reason)


def missing_gpu() -> str:
    """Why PyTorch cannot use an NVIDIA GPU, in a few words; empty when it can."""
    if reason := gpu.missing():
        return reason
    import torch

    if not torch.cuda.is_available():
        return "an NVIDIA GPU is present, but this PyTorch was built without CUDA or needs a newer driver"
    return ""
