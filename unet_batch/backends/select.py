"""Which backend runs, and why: every automatic choice carries its reason.

`auto` takes the first that can run; an explicit choice never falls back.
"""

from __future__ import annotations

import ctypes
import sys

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
    """Why no NVIDIA GPU can be used, in a few words; empty when one can."""
    count = driver_devices()
    if count is None:
        return "no NVIDIA driver"
    if count == 0:
        return "NVIDIA driver found, but no GPU is visible"
    import torch

    if not torch.cuda.is_available():
        return "an NVIDIA GPU is present, but this PyTorch was built without CUDA or needs a newer driver"
    return ""


def driver_devices() -> int | None:
    """Number of GPUs the NVIDIA driver shows; None without a driver.

    Asks libcuda directly: some libraries above it end the whole process where there is no driver.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return None
    if cuda.cuInit(0) != 0:
        return 0
    count = ctypes.c_int(0)
    return count.value if cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
