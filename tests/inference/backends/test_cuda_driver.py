"""What cuda-bindings adds to the suite of `test_cuda_memory`: contexts, threads, errors, who frees what."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.cuda_driver import CONTEXT, CUresult, FakeDriver
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends import cuda_driver
from unet_batch.inference.backends.cuda_driver import CudaBindingsMemory, PyCudaMemory


@pytest.fixture
def driver(bindings: Callable[[], FakeDriver]) -> FakeDriver:
    return bindings()


def test_a_thread_gets_back_the_gpu_it_had(driver: FakeDriver) -> None:
    memory = CudaBindingsMemory()
    driver.contexts.append(7)  # of whoever called us
    with memory.current():
        assert driver.contexts == [7, CONTEXT]
        with memory.current():
            assert driver.contexts == [7, CONTEXT, CONTEXT]
    with pytest.raises(ValueError, match="ours"), memory.current():
        raise ValueError("ours")
    assert driver.contexts == [7]


def test_the_primary_context_is_retained_once(driver: FakeDriver) -> None:
    CudaBindingsMemory()
    CudaBindingsMemory()
    assert driver.retained == 1


def test_each_thread_has_a_context_of_its_own(driver: FakeDriver) -> None:
    memory = CudaBindingsMemory()
    refused: list[str] = []

    def work() -> None:
        try:
            memory.event()
        except BackendError as error:
            refused.append(error.message)

    with memory.current():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert refused == ["CUDA: CUDA_ERROR_INVALID_CONTEXT"]


def test_all_that_was_made_is_freed_once(driver: FakeDriver) -> None:
    memory = CudaBindingsMemory()
    with memory.current():
        made = [memory.host(4), memory.device(4), memory.stream(), memory.event()]
        made.append(memory.capture(made[2], lambda: None))
        assert len(driver.alive) == 5  # neither the stream that cleared the memory nor the graph's draft
        for resource in made:
            memory.free(resource)
            memory.free(resource)
    assert not driver.alive


def test_memory_that_cannot_be_cleared_is_given_back(driver: FakeDriver) -> None:
    memory = CudaBindingsMemory()
    driver.errors["cuMemsetD8Async"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"), memory.current():
        memory.device(4)
    assert not driver.alive


def test_the_first_error_is_told_where_the_context_is_broken(driver: FakeDriver) -> None:
    memory = CudaBindingsMemory()
    driver.errors = {
        "cuMemGetInfo": CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
        "cuCtxPopCurrent": CUresult.CUDA_ERROR_INVALID_CONTEXT,
    }
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"), memory.current():
        memory.free_memory()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CUresult.CUDA_ERROR_OUT_OF_MEMORY, DeviceOutOfMemory),
        (CUresult.CUDA_ERROR_INVALID_HANDLE, BackendError),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        *(
            "cuMemAlloc",
            "cuMemHostAlloc",
            "cuStreamCreate",
            "cuEventCreate",
            "cuMemGetInfo",
            "cuMemsetD8Async",
        ),
        *("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventRecord", "cuStreamWaitEvent"),
        *("cuEventSynchronize", "cuStreamSynchronize"),
        *("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"),
        *("cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphExecDestroy"),
    ],
)
def test_every_call_is_checked(driver: FakeDriver, call: str, error: CUresult, kind: type[Exception]) -> None:
    memory = CudaBindingsMemory()
    driver.errors[call] = error

    def use_all() -> None:
        there, back, stream, event = memory.device(4), memory.host(4), memory.stream(), memory.event()
        memory.upload(there, 0, np.zeros(4, np.uint8), stream)
        memory.download(back, there, 4, stream)
        memory.record(event, stream)
        memory.wait(stream, event)
        memory.synchronize(event)
        memory.synchronize(stream)
        memory.free_memory()
        graph = memory.capture(stream, lambda: None)
        memory.launch(graph, stream)
        for resource in (graph, there, back, event, stream):
            memory.free(resource)

    with pytest.raises(kind, match=error.name) as caught, memory.current():
        use_all()
    assert type(caught.value) is kind


class TestUnavailable:
    def test_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing(name: str) -> object:
            raise ModuleNotFoundError(f"No module named {name!r}")

        cuda_driver._driver.cache_clear()
        monkeypatch.setattr(cuda_driver.importlib, "import_module", nothing)
        with pytest.raises(BackendUnavailable, match=r"12\.9\.1 or newer: No module named 'cuda\.") as caught:
            CudaBindingsMemory()
        assert caught.value.hint == "pip install cuda-bindings"

    def test_too_old(self, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before 12.9.1 a thread that waits keeps the interpreter lock."""
        monkeypatch.setattr(cuda_driver.importlib, "import_module", lambda name: SimpleNamespace())
        with pytest.raises(BackendUnavailable, match=r"12\.9\.1 or newer: .*get_cuda_native_handle"):
            CudaBindingsMemory()

    def test_a_driver_that_refuses(self, driver: FakeDriver) -> None:
        driver.errors["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
        with pytest.raises(BackendUnavailable, match="cuda-bindings: CUDA: CUDA_ERROR_NO_DEVICE"):
            CudaBindingsMemory()

    def test_a_gpu_that_is_not_there(self, driver: FakeDriver) -> None:
        with pytest.raises(BackendUnavailable, match="CUDA_ERROR_INVALID_DEVICE"):
            CudaBindingsMemory(1)


def test_the_real_library_without_a_driver() -> None:
    pytest.importorskip("cuda.bindings.driver")
    if importlib.import_module("unet_batch.gpu").driver() is not None:
        pytest.skip("this machine has a driver")
    for cached in (cuda_driver._driver, cuda_driver._bound_context):
        cached.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"cuda-bindings: .*(driver|libcuda)") as caught:
        CudaBindingsMemory()
    assert "\n" not in caught.value.message


def test_the_stand_in_is_spelt_as_the_real_library() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    ours = {name.removeprefix("_") for name in vars(FakeDriver) if name.lstrip("_").startswith("cu")}
    assert len(ours) > 25
    assert not [name for name in ours if not hasattr(real, name)]
    for error in CUresult:
        assert getattr(real.CUresult, error.name) == error
    flags = real.CUevent_flags
    assert cuda_driver._BLOCKING_SYNC == flags.CU_EVENT_BLOCKING_SYNC
    assert cuda_driver._DISABLE_TIMING == flags.CU_EVENT_DISABLE_TIMING
    assert cuda_driver._NON_BLOCKING == real.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert cuda_driver._PORTABLE == real.CU_MEMHOSTALLOC_PORTABLE
    assert real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1


class FakePyCuda:
    """As much of `pycuda.driver` as contexts need."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    def __init__(self) -> None:
        self.broken = ""
        self.depth = 0

    def init(self) -> None:
        pass

    def Device(self, number: int) -> Any:  # noqa: N802
        return SimpleNamespace(retain_primary_context=lambda: self)

    def push(self) -> None:
        if self.broken == "push":
            raise self.LogicError("push failed")
        self.depth += 1

    def pop(self) -> None:
        self.depth -= 1
        if self.broken == "pop":
            raise self.LogicError("pop failed")

    def detach(self) -> None:
        pass


class TestPyCuda:
    @pytest.fixture
    def pycuda(self, monkeypatch: pytest.MonkeyPatch) -> FakePyCuda:
        fake = FakePyCuda()
        monkeypatch.setattr(cuda_driver.importlib, "import_module", lambda name: fake)
        monkeypatch.setattr(cuda_driver.atexit, "register", lambda call: None)
        monkeypatch.setattr(cuda_driver, "_primary_context", cuda_driver._primary_context.__wrapped__)
        return fake

    def test_its_errors_are_ours(self, pycuda: FakePyCuda) -> None:
        memory = PyCudaMemory()
        with pytest.raises(DeviceOutOfMemory, match="full"), memory.current():
            raise pycuda.MemoryError("full")
        with pytest.raises(BackendError, match="bad handle"), memory.current():
            raise pycuda.LogicError("bad\nhandle")
        assert pycuda.depth == 0

    def test_the_first_error_is_told_where_the_context_is_broken(self, pycuda: FakePyCuda) -> None:
        memory = PyCudaMemory()
        pycuda.broken = "pop"
        with pytest.raises(BackendError, match="illegal address"), memory.current():
            raise pycuda.LogicError("illegal address")

    @pytest.mark.parametrize("broken", ["push", "pop"])
    def test_a_context_that_cannot_be_made_current(self, pycuda: FakePyCuda, broken: str) -> None:
        memory = PyCudaMemory()
        pycuda.broken = broken
        with pytest.raises(BackendError, match=f"{broken} failed"), memory.current():
            pass
