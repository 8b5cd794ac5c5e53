"""One suite over everything that can hold a batch on a GPU, and over the stand-in that other tests rely
on.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from tests.helpers.cuda_driver import FakeDriver
from unet_batch import gpu
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends import cuda_driver, cuda_memory
from unet_batch.inference.backends.cuda_driver import CudaBindingsMemory, PyCudaMemory
from unet_batch.inference.backends.cuda_memory import CudaMemory, TorchMemory, is_out_of_memory, open_memory
from unet_batch.testing import HostMemory

GPU = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))


def real(kind: Callable[[], CudaMemory]) -> Callable[[], CudaMemory]:
    def make() -> CudaMemory:
        if reason := gpu.missing():
            pytest.skip(reason)
        try:
            return kind()
        except BackendUnavailable as error:
            pytest.skip(error.message)

    return make


@pytest.fixture(
    params=[
        pytest.param(lambda: HostMemory(capacity=2**20), id="host"),
        pytest.param(None, id="cuda-bindings-on-the-host"),
        pytest.param(real(PyCudaMemory), id="pycuda", marks=pytest.mark.gpu),
        pytest.param(real(CudaBindingsMemory), id="cuda-bindings", marks=pytest.mark.gpu),
        pytest.param(real(TorchMemory), id="torch", marks=pytest.mark.gpu),
    ]
)
def memory(request: pytest.FixtureRequest, bindings: Callable[[], FakeDriver]) -> CudaMemory:
    if request.param is None:
        bindings()
        return CudaBindingsMemory()
    return request.param()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def test_bytes_go_there_and_back(memory: CudaMemory) -> None:
    with memory.current():
        there, back, stream = memory.device(100), memory.host(100), memory.stream()
        source = noise(60)
        source.flags.writeable = False
        memory.upload(there, 30, source, stream)
        memory.download(back, there, 95, stream)
        memory.synchronize(stream)
        assert back.raw.dtype == np.uint8
        assert back.raw.shape == (100,)
        assert not back.raw[:30].any()  # device memory is zeroed
        assert np.array_equal(back.raw[30:90], source)
        assert not back.raw[90:95].any()
        for resource in (there, back, stream):
            memory.free(resource)
            memory.free(resource)  # nothing happens


def test_addresses_are_those_of_the_bytes(memory: CudaMemory) -> None:
    with memory.current():
        host, device, stream, other = memory.host(8), memory.device(8), memory.stream(), memory.stream()
        assert host.address == host.raw.ctypes.data
        assert all(
            isinstance(resource.address, int) and resource.address
            for resource in (host, device, stream, other)
        )
        assert stream.address != other.address
        assert (host.nbytes, device.nbytes) == (8, 8)
        for resource in (host, device, stream, other):
            memory.free(resource)


def test_several_dimensions_and_ordinary_memory(memory: CudaMemory) -> None:
    with memory.current():
        there, back, stream = memory.device(24), memory.host(24), memory.stream()
        picture = noise(24).reshape(2, 4, 3)
        memory.upload(there, 0, picture, stream)
        memory.download(back, there, 24, stream)
        memory.synchronize(stream)
        assert np.array_equal(back.raw, picture.reshape(-1))
        for resource in (there, back, stream):
            memory.free(resource)


def test_events_order_streams(memory: CudaMemory) -> None:
    """Without the waits, 200 rounds of three streams do not come out right."""
    size = 2**16
    with memory.current():
        there, back, source = memory.device(size), memory.host(size), memory.host(size)
        upload, download = memory.stream(), memory.stream()
        uploaded, downloaded = memory.event(), memory.event()
        memory.wait(upload, downloaded)  # not recorded yet: delays nothing
        for number in range(200):
            source.raw[:] = number
            memory.upload(there, 0, source.raw, upload)
            memory.record(uploaded, upload)
            memory.wait(download, uploaded)
            memory.download(back, there, size, download)
            memory.record(downloaded, download)
            memory.synchronize(downloaded)
            assert back.raw[0] == back.raw[-1] == number
        for resource in (there, back, source, upload, download, uploaded, downloaded):
            memory.free(resource)


def test_threads_share_what_one_made(memory: CudaMemory) -> None:
    with memory.current():
        there, stream = memory.device(16), memory.stream()
    seen: list[np.ndarray] = []

    def work() -> None:
        with memory.current():
            back, event = memory.host(16), memory.event()
            memory.upload(there, 0, np.full(16, 9, np.uint8), stream)
            memory.download(back, there, 16, stream)
            memory.record(event, stream)
            memory.synchronize(event)
            seen.append(back.raw.copy())
            memory.free(back)
            memory.free(event)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all((array == 9).all() for array in seen)
    with memory.current():
        memory.free(there)
        memory.free(stream)


def test_current_may_be_nested(memory: CudaMemory) -> None:
    with memory.current():
        with memory.current():
            buffer = memory.host(4)
        memory.free(buffer)


def test_too_much_is_out_of_memory(memory: CudaMemory) -> None:
    with memory.current():
        free, total = memory.free_memory()
    assert 0 < free <= total
    with pytest.raises(DeviceOutOfMemory), memory.current():
        memory.device(2 * total)
    with memory.current():  # and goes on
        memory.free(memory.device(1000))


def test_a_graph_repeats_its_work(memory: CudaMemory) -> None:
    with memory.current():
        there, back, stream = memory.device(8), memory.host(8), memory.stream()

        def enqueue() -> None:
            memory.download(back, there, 8, stream)

        enqueue()
        memory.synchronize(stream)
        back.raw[:] = 1
        try:
            graph = memory.capture(stream, enqueue)
        except BackendError as error:
            if "no CUDA graphs" not in error.message:
                raise
            pytest.skip(error.message)
        memory.synchronize(stream)
        assert (back.raw == 1).all()  # captured, not run
        for value in (5, 6):
            memory.upload(there, 0, np.full(8, value, np.uint8), stream)
            memory.launch(graph, stream)
            memory.synchronize(stream)
            assert (back.raw == value).all()
        for resource in (graph, there, back, stream):
            memory.free(resource)


def test_a_capture_that_fails_leaves_the_stream_usable(memory: CudaMemory) -> None:
    def enqueue() -> None:
        raise BackendError("this kernel refuses")

    with memory.current():
        there, back, stream = memory.device(4), memory.host(4), memory.stream()
        with pytest.raises(BackendError, match=r"this kernel refuses|no CUDA graphs"):
            memory.capture(stream, enqueue)
        memory.upload(there, 0, np.full(4, 3, np.uint8), stream)
        memory.download(back, there, 4, stream)
        memory.synchronize(stream)
        assert (back.raw == 3).all()
        for resource in (there, back, stream):
            memory.free(resource)


class TestHostMemory:
    """What the stand-in adds: it is stricter than a GPU."""

    def test_outside_of_current(self) -> None:
        memory = HostMemory()
        with pytest.raises(AssertionError, match="outside `current"):
            memory.device(4)

    def test_a_missing_wait_shows(self) -> None:
        memory = HostMemory()
        with memory.current():
            there, back, upload, download = memory.device(4), memory.host(4), memory.stream(), memory.stream()
            done = memory.event()
            memory.upload(there, 0, np.full(4, 7, np.uint8), upload)
            memory.download(back, there, 4, download)
            memory.record(done, download)
            memory.synchronize(done)
            assert not back.raw.any()
            assert memory.pending == 1
            memory.synchronize(upload)
            assert memory.pending == 0

    def test_use_after_free(self) -> None:
        memory = HostMemory()
        with memory.current():
            there, stream = memory.device(4), memory.stream()
            kept = there.raw
            memory.upload(there, 0, np.zeros(4, np.uint8), stream)
            memory.free(there)
            with pytest.raises(AssertionError, match="after it was freed"):
                memory.synchronize(stream)
            assert (kept == 0xDD).all()

    def test_a_copy_past_the_end(self) -> None:
        memory = HostMemory()
        with memory.current():
            there, stream = memory.device(4), memory.stream()
            with pytest.raises(AssertionError, match="4 bytes at 1 of 4"):
                memory.upload(there, 1, np.zeros(4, np.uint8), stream)

    def test_another_thread_cannot_queue_in_a_stream_that_is_captured(self) -> None:
        memory = HostMemory()
        failures: list[BaseException] = []
        with memory.current():
            stream = memory.stream()

            def intrude() -> None:
                try:
                    with memory.current():
                        memory.queue(stream, lambda: None)
                except AssertionError as error:
                    failures.append(error)

            def enqueue() -> None:
                thread = threading.Thread(target=intrude)
                thread.start()
                thread.join()

            memory.capture(stream, enqueue)
        assert "another thread captures" in str(failures[0])


class FakeGraph:
    """A `torch.cuda.CUDAGraph` that refuses and warns where PyTorch's does."""

    alive: ClassVar[weakref.WeakSet[FakeGraph]] = weakref.WeakSet()
    recording: ClassVar[set[object]] = set()
    begins = ends = True
    warns = "The CUDA Graph is empty. This usually means that the graph was attempted to be captured on wrong"

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local"
        assert pool is None or any(other._pool is pool for other in self.alive), "its last graph is gone"
        self._pool = object() if pool is None else pool
        if self._pool in self.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.recording.add(self._pool)  # before CUDA begins, which may fail
        if not self.begins:
            raise RuntimeError("operation not permitted when stream is capturing")

    def capture_end(self) -> None:
        if not (self.begins and self.ends):
            raise RuntimeError("operation failed due to a previous error during capture")
        self.recording.discard(self._pool)
        self.alive.add(self)
        if self.warns:
            warnings.warn(self.warns, UserWarning, stacklevel=2)

    def reset(self) -> None:
        self.alive.discard(self)

    def pool(self) -> object:
        return self._pool


class TestTorch:
    """What holds without a GPU, too: over as much of `torch.cuda` as these need."""

    @pytest.fixture
    def torch(self, monkeypatch: pytest.MonkeyPatch, bindings: Callable[[], FakeDriver]) -> SimpleNamespace:
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # type: ignore[arg-type]
        cuda_driver._driver.cache_clear()
        numbers = itertools.count(100)
        cuda = SimpleNamespace(
            is_available=lambda: True,
            device=lambda device: nullcontext(),
            stream=lambda stream: nullcontext(),
            Stream=lambda device: SimpleNamespace(cuda_stream=next(numbers), synchronize=lambda: None),
            ExternalStream=lambda handle, device: SimpleNamespace(
                cuda_stream=handle, synchronize=lambda: None
            ),
            CUDAGraph=type("Graph", (FakeGraph,), {}),
        )
        fake = SimpleNamespace(
            cuda=cuda,
            device=lambda kind, index: f"{kind}:{index}",
            OutOfMemoryError=type("OutOfMemoryError", (RuntimeError,), {}),
            Tensor=type("Tensor", (), {}),
            empty=lambda count, **options: SimpleNamespace(numpy=lambda: np.empty(count, np.uint8)),
            uint8=np.uint8,
        )
        monkeypatch.setitem(sys.modules, "torch", fake)  # type: ignore[arg-type]
        FakeGraph.recording.clear()
        FakeGraph.alive.clear()
        return fake

    @pytest.mark.filterwarnings("error")
    def test_the_warning_of_an_empty_graph_does_not_take_the_place_of_the_error(
        self, torch: SimpleNamespace
    ) -> None:
        def enqueue() -> None:
            raise DeviceOutOfMemory("this kernel refuses")

        memory = TorchMemory()
        with memory.current():
            stream = memory.stream()
            with pytest.raises(DeviceOutOfMemory, match="this kernel refuses"):
                memory.capture(stream, enqueue)
            with pytest.raises(UserWarning, match="is empty"):  # elsewhere it is heard as before
                memory.capture(stream, lambda: None)

    def test_graphs_of_a_stream_share_their_memory(self, torch: SimpleNamespace) -> None:
        torch.cuda.CUDAGraph.warns = ""
        memory = TorchMemory()
        with memory.current():
            stream, other = memory.stream(), memory.stream()
            first, second = (memory.capture(stream, lambda: None) for _ in range(2))
            third = memory.capture(other, lambda: None)
            assert first.raw.pool() is second.raw.pool()
            assert third.raw.pool() is not first.raw.pool()
            pool = first.raw.pool()
            memory.free(first)
            assert memory.capture(stream, lambda: None).raw.pool() is pool
            memory.free(second)
            gc.collect()
            assert memory.capture(stream, lambda: None).raw.pool() is not pool  # nobody holds it any more

    def test_a_capture_that_cannot_be_ended_spoils_no_other(self, torch: SimpleNamespace) -> None:
        torch.cuda.CUDAGraph.warns = ""
        memory = TorchMemory()
        with memory.current():
            stream = memory.stream()
            kept = memory.capture(stream, lambda: None)
            torch.cuda.CUDAGraph.ends = False
            with pytest.raises(BackendError, match="previous error during capture"), memory.current():
                memory.capture(stream, lambda: None)
            torch.cuda.CUDAGraph.ends = True
            assert memory.capture(stream, lambda: None).raw.pool() is not kept.raw.pool()

    def test_a_capture_that_had_no_memory_gives_back_what_it_took(self, torch: SimpleNamespace) -> None:
        """Or half the batch would find what the whole one left."""
        torch.cuda.CUDAGraph.warns = ""

        def enqueue() -> None:
            raise DeviceOutOfMemory("no memory")

        memory = TorchMemory()
        with memory.current():
            stream = memory.stream()
            sibling = memory.capture(stream, lambda: None)
            with pytest.raises(DeviceOutOfMemory) as caught:
                memory.capture(stream, enqueue)
            assert set(FakeGraph.alive) == {sibling.raw}, "held, and not by the error alone"
            assert memory.capture(stream, lambda: None).raw.pool() is sibling.raw.pool()
        assert caught.value.message == "no memory"

    @pytest.mark.parametrize("where", ["begins", "ends"])
    def test_a_graph_that_the_allocator_asks_outlives_its_memory(
        self, torch: SimpleNamespace, where: str
    ) -> None:
        """Its allocator calls a function of the graph for each capture that CUDA did not end."""
        graphs: weakref.WeakSet[FakeGraph] = weakref.WeakSet()

        class Graph(FakeGraph):
            def __init__(self) -> None:
                graphs.add(self)

        setattr(Graph, where, False)
        torch.cuda.CUDAGraph = Graph
        memory = TorchMemory()
        with pytest.raises(BackendError), memory.current():
            memory.capture(memory.stream(), lambda: None)
        del memory
        gc.collect()
        assert [graph.pool() for graph in graphs] == list(FakeGraph.recording)

    def test_no_two_streams_are_one(self, torch: SimpleNamespace, bindings: Callable[[], FakeDriver]) -> None:
        """PyTorch deals 32 streams in turn; in one that another executor shares nothing can be captured."""
        driver = bindings()
        memories = [TorchMemory() for _ in range(2)]
        streams = [memory.stream() for memory in memories for _ in range(33)]
        assert len({stream.address for stream in streams}) == len(streams) == len(driver.alive)
        assert all(stream.raw.cuda_stream == stream.address for stream in streams)
        for stream in streams:
            memories[0].free(stream)
            memories[0].free(stream)
        assert not driver.alive
        assert driver.contexts == []

    def test_page_locked_memory_is_given_back(
        self, torch: SimpleNamespace, bindings: Callable[[], FakeDriver]
    ) -> None:
        """PyTorch keeps its own, and marks the streams it was used in when it is freed, which may be gone."""
        driver = bindings()
        memory = TorchMemory()
        host = memory.host(100)
        host.raw[:] = 7
        assert host.address in driver.alive
        memory.free(host)
        assert not driver.alive

    def test_without_cuda_bindings_pytorch_has_its_own(self, torch: SimpleNamespace) -> None:
        memory = TorchMemory()
        with memory.current():
            stream, host = memory.stream(), memory.host(8)
            assert stream.address == stream.raw.cuda_stream == 100
            assert host.raw.nbytes == 8
            for resource in (stream, host):
                memory.free(resource)
                memory.free(resource)
                assert resource.raw is None


class TestOpenMemory:
    def test_without_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "driver", lambda: None)
        with pytest.raises(BackendUnavailable, match="no CUDA memory: no NVIDIA driver"):
            open_memory()

    def test_a_gpu_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "driver", lambda: GPU)
        with pytest.raises(BackendUnavailable, match=r"GPU 1: this machine has 1 GPU\(s\), counted from 0"):
            open_memory(1)

    def test_another_provider(self) -> None:
        with pytest.raises(BackendUnavailable, match="'cupy' is no way") as caught:
            open_memory(provider="cupy")
        assert caught.value.hint == "choose from: pycuda, cuda-bindings, torch"

    def test_why_neither_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing(name: str) -> object:
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(gpu, "driver", lambda: GPU)
        monkeypatch.setattr(cuda_memory.importlib, "import_module", nothing)
        cuda_driver._driver.cache_clear()
        with pytest.raises(BackendUnavailable) as caught:
            open_memory()
        assert caught.value.message == (
            "no CUDA memory: PyCUDA: No module named 'pycuda.driver'; cuda-bindings 12.9.1 or newer: No "
            "module named 'cuda.bindings.driver'; PyTorch: No module named 'torch'"
        )
        assert caught.value.hint == "pip install cuda-bindings"

    def test_a_pytorch_without_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(gpu, "driver", lambda: GPU)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", None)
        with pytest.raises(BackendUnavailable, match="PyTorch: built without CUDA"):
            open_memory(provider="torch")

    def test_the_first_that_works_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(device: int) -> CudaMemory:
            raise BackendUnavailable("broken")

        monkeypatch.setattr(gpu, "driver", lambda: GPU)
        monkeypatch.setattr(
            cuda_memory, "PROVIDERS", {"first": broken, "second": lambda device: HostMemory()}
        )
        assert isinstance(open_memory(), HostMemory)
        with pytest.raises(BackendUnavailable, match="no CUDA memory: broken"):
            open_memory(provider="first")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("CUDA: cudaErrorMemoryAllocation", True),
        ("CUDA: CUDA_ERROR_OUT_OF_MEMORY", True),
        ("MPS backend out of memory (MPS allocated: 18.13 GB, max allowed: 18.13 GB)", True),
        ("[executionContext.cpp::initialize::123] Error Code 2: OutOfMemory (no further information)", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: no kernel image is available for execution on the device", False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("CUDA error: misaligned address", False),
    ],
)
def test_out_of_memory_in_the_words_of_each_library(words: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(words)) is expected
    assert is_out_of_memory(words) is expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: out of memory"), DeviceOutOfMemory),  # torch.AcceleratorError
        (RuntimeError("CUDA error: misaligned address"), BackendError),
    ],
)
def test_pytorchs_errors_become_ours(error: RuntimeError, kind: type[BackendError]) -> None:
    torch = pytest.importorskip("torch")
    memory = TorchMemory.__new__(TorchMemory)  # opening it needs a GPU
    memory._torch = SimpleNamespace(
        OutOfMemoryError=torch.OutOfMemoryError, cuda=SimpleNamespace(device=nullcontext)
    )
    memory._device = None
    with pytest.raises(BackendError, match=str(error)) as caught, memory.current():
        raise error
    assert type(caught.value) is kind
