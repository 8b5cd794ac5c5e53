"""What the NVIDIA driver says of this machine's GPUs.

Asks libcuda through ctypes, because the libraries above it cannot be asked safely: TensorRT 8.6 ends the
process where there is no driver, and PyCUDA and PyTorch take seconds to say no. Needs the standard library
only, creates no CUDA context.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import sys
from contextlib import suppress
from dataclasses import dataclass

# Attributes of the CUDA driver API (cuda.h, CUdevice_attribute).
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One visible GPU.

    Attributes:
        index: as CUDA counts, `CUDA_VISIBLE_DEVICES` applied.
        name: e.g. `NVIDIA H200`.
        compute_capability: e.g. (9, 0).
        memory: bytes of device memory, in all.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory: int

    @property
    def sm(self) -> str:
        """The compute capability as NVIDIA's tools write it: `sm_90`."""
        return "sm_{}{}".format(*self.compute_capability)


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        cuda: newest CUDA version it supports, e.g. (13, 0).
        gpus: those that are visible.
        problem: why none is, in the driver's words; empty when one is.
    """

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    problem: str = ""


@functools.cache
def driver() -> Driver | None:
    """The driver and its GPUs; None where there is no driver."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    supported = (version.value // 1000, version.value % 1000 // 10)
    error = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if error:
        return Driver(supported, (), _words(cuda, error))
    gpus = tuple(gpu for index in range(count.value) if (gpu := _gpu(cuda, index)) is not None)
    return Driver(supported, gpus, "" if gpus else "no GPU is visible")


def missing() -> str:
    """Why no NVIDIA GPU can be used, in a few words; empty when the driver shows one."""
    found = driver()
    if found is None:
        return "no NVIDIA driver"
    return "" if found.gpus else f"NVIDIA driver found, but {found.problem}"


def torch_wheel() -> str:
    """Which of PyTorch's builds suits the driver and its GPUs: `cpu`, `cu126`, `cu128` or `cu130`."""
    found = driver()
    if found is None or not found.gpus:
        return "cpu"
    # A driver runs what was built for its own CUDA or an older one, and within one major version also what
    # was built for a newer one: from CUDA 12.0 on, cu126 works. cu128 and cu130 have left out the GPUs before
    # Turing (sm_75).
    if min(card.compute_capability for card in found.gpus) < (7, 5):
        return "cu126"
    return "cu130" if found.cuda >= (13, 0) else "cu128" if found.cuda >= (12, 8) else "cu126"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    )
    if failed:
        return None
    return Gpu(index, name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _words(cuda: ctypes.CDLL, error: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(error, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"CUDA error {error}"


def is_on_pci() -> bool:
    """Whether Linux sees NVIDIA hardware; containers see it too, before anyone has let them use it."""
    for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
        with suppress(OSError), open(path, encoding="ascii") as file:
            if file.read().strip() == "0x10de":
                return True
    return False
