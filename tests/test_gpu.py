"""The driver is asked without a crash, whatever this machine has; a pretended libcuda answers the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from unet_batch import gpu


class PretendedCuda:
    """What libcuda would answer: fills what the pointers point to."""

    def __init__(self, count: int = 2, init: int = 0) -> None:
        self.count, self.init = count, init

    def cuDriverGetVersion(self, version: object) -> int:  # noqa: N802 - CUDA's names
        version._obj.value = 13000
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init

    def cuGetErrorName(self, error: int, text: object) -> int:  # noqa: N802
        text._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    def cuDeviceGetCount(self, count: object) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: object, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: ctypes.Array, size: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = b"NVIDIA H200"
        return 101 if device.value == 1 else 0  # the second one is broken

    def cuDeviceTotalMem_v2(self, memory: object, device: ctypes.c_int) -> int:  # noqa: N802
        memory._obj.value = 150_000_000_000
        return 0

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


@pytest.fixture(autouse=True)
def ask_again() -> Iterator[None]:
    gpu.driver.cache_clear()
    yield
    gpu.driver.cache_clear()


def test_this_machine() -> None:
    found = gpu.driver()
    assert found is None or found.gpus or found.problem
    assert bool(gpu.missing()) == (found is None or not found.gpus)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert gpu.driver() is None
    assert gpu.missing() == "no NVIDIA driver"


def test_gpus_with_a_broken_one_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: PretendedCuda())
    found = gpu.driver()
    assert found == gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))
    assert found.gpus[0].sm == "sm_90"
    assert gpu.missing() == ""


def test_a_driver_that_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: PretendedCuda(init=100))
    assert gpu.missing() == "NVIDIA driver found, but CUDA_ERROR_NO_DEVICE"
    gpu.driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: PretendedCuda(count=0))
    assert gpu.missing() == "NVIDIA driver found, but no GPU is visible"
