"""PyTorch through the streaming executor, as on a GPU: over host memory, and on a GPU where there is one.

What all backends have in common is in `test_backends`.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext

import numpy as np
import pytest
import torch

from tests.helpers.host_torch import HostTorchBackend, QueuedProgram, tiny_checkpoint
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory
from unet_batch.inference.backends import torch as torch_module
from unet_batch.inference.backends.cuda_memory import Resource, TorchMemory
from unet_batch.inference.backends.streaming import StreamingExecutor
from unet_batch.inference.backends.torch import Program, TorchBackend
from unet_batch.model.graph import Graph
from unet_batch.testing import HostMemory

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More of them are slower for networks as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((count, seed)).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def direct(batch: np.ndarray) -> np.ndarray:
    """The maps of a batch of four, without an executor."""
    with TorchBackend(tiny_checkpoint(), "cpu", batch_size=4) as backend:
        return backend.infer(batch)


class TestThroughTheExecutor:
    @pytest.mark.parametrize("graphs", [True, False])
    def test_every_batch_runs_at_its_full_size(self, monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
        """Other shapes may take other kernels, and their maps differ."""
        shapes: list[tuple[int, ...]] = []
        forward = Graph.forward

        def watch(graph: Graph, batch: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(batch.shape))
            return forward(graph, batch)

        monkeypatch.setattr(Graph, "forward", watch)
        expected = direct(pictures(4))
        shapes.clear()
        with HostTorchBackend(memory=HostMemory(graphs=graphs)) as backend:
            for count in (1, 2, 3, 4):
                assert np.array_equal(backend.infer(pictures(4)[:count]), expected[:count])
            assert backend.memory.launches == (4 if graphs else 0)
        assert set(shapes) == {(4, 32, 48, 3)}
        assert len(shapes) == 3 + 4  # the rehearsal of each slot, and the batches

    def test_pictures_are_page_locked(self) -> None:
        with HostTorchBackend() as backend:
            slab = max(
                (found for found, kind in backend.memory.alive.items() if kind == "host"),
                key=lambda found: found.nbytes,
            )
            lent = [backend.buffer() for _ in range(3)]
            for picture, source in zip(lent, pictures(3), strict=True):
                assert slab.address <= picture.ctypes.data < slab.address + slab.nbytes
                picture[:] = source
            assert np.array_equal(backend.infer(lent), direct(pictures(3)))

    def test_closing_lets_the_network_go(self) -> None:
        backend = HostTorchBackend()
        with backend:
            backend.infer(pictures(2))
            executor = backend._executor
            assert executor is not None
            network = weakref.ref(executor._program._graph)  # type: ignore[attr-defined]
            del executor
        gc.collect()
        assert network() is None
        assert not backend.memory.alive
        assert backend.buffer().shape == (32, 48, 3)
        with backend:
            assert np.array_equal(backend.infer(pictures(4)), direct(pictures(4)))

    def test_a_call_that_closing_overtakes_is_refused(self) -> None:
        for backend in (HostTorchBackend(), TorchBackend(tiny_checkpoint(), "cpu")):
            with backend:
                backend._close()
                with pytest.raises(BackendError, match="torch-cpu: closed while it ran"):
                    backend.infer(pictures(1))

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: out of memory"),  # torch.AcceleratorError, where there is such a class
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ],
    )
    def test_batches_are_halved_until_they_fit(
        self, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
    ) -> None:
        forward, limit = Graph.forward, 1

        def some(graph: Graph, batch: torch.Tensor) -> torch.Tensor:
            if len(batch) > limit:
                raise error
            return forward(graph, batch)

        monkeypatch.setattr(Graph, "forward", some)
        with HostTorchBackend() as backend:
            assert backend.batch_size == 1
            assert backend.describe()["batch_size"] == 1
            assert backend.notes == [
                "out of GPU memory at a batch of 4: continuing with 2",
                "out of GPU memory at a batch of 2: continuing with 1",
            ]
        limit = 4
        with HostTorchBackend() as backend:  # somebody else takes the memory during the run
            limit = 2
            batch = pictures(4)
            maps = backend.infer(batch)
            assert backend.notes == ["out of GPU memory at a batch of 4: continuing with 2"]
            limit = 0
            with pytest.raises(DeviceOutOfMemory, match=r"torch-cpu: (CU|cu).*, at a batch of 1, the"):
                backend.infer(batch)
        limit = 4
        assert np.array_equal(maps[:2], direct(batch[:2]))

    def test_another_failure_is_named_and_the_next_batch_is_right(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with HostTorchBackend() as backend, monkeypatch.context() as patch:

            def broken(graph: Graph, batch: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

            patch.setattr(Graph, "forward", broken)
            with pytest.raises(BackendError, match=r"^torch-cpu: CUDA error: an illegal memory access"):
                backend.infer(pictures(1))
            patch.undo()
            assert np.array_equal(backend.infer(pictures(4)), direct(pictures(4)))
            assert backend.notes == []

    @pytest.mark.parametrize("method", ["device", "capture", "launch", "synchronize"])
    def test_wherever_it_fails_once(self, method: str) -> None:
        """All maps but those of one call are right, and nothing is left; see `test_streaming_failures`."""
        checkpoint, batch = tiny_checkpoint(size=(16, 16)), np.zeros((2, 16, 16, 3), np.uint8)
        graph, memory = Graph(checkpoint.model, checkpoint.spec).eval(), HostMemory()
        program = QueuedProgram(memory, "torch-host", graph, (16, 16, 3))

        def make() -> StreamingExecutor:
            return StreamingExecutor(memory, program, (16, 16, 3), batch=2, slots=1, pictures=1, notes=[])

        with closing(make()) as executor:
            right = executor.infer(batch)
        for call in range(1, memory.calls[method] + 1):
            memory.fail(method, call, BackendError("the GPU is gone"))
            failures = 0
            try:
                executor = make()
            except BackendError:
                failures += 1
                assert not memory.alive
                executor = make()
            with closing(executor):
                for _ in range(2):
                    try:
                        assert np.array_equal(executor.infer(batch), right)
                    except BackendError:
                        failures += 1
            assert failures <= 1
            assert not memory.alive


def test_apples_gpus_run_full_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directly, without an executor; a CPU's kernels do not look at how many pictures there are."""
    shapes: list[tuple[int, ...]] = []

    def watch(graph: Graph, batch: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(batch.shape))
        return batch[..., 0]

    monkeypatch.setattr(Graph, "forward", watch)
    with TorchBackend(tiny_checkpoint(), "cpu", batch_size=4) as backend:
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
        for device, expected in (("mps", [4, 4, 4, 4]), ("cpu", [1, 2, 3, 4])):
            backend.device = torch.device(device)
            shapes.clear()
            for count in (1, 2, 3, 4):
                assert np.array_equal(backend.infer(pictures(4)[:count]), pictures(4)[:count, ..., 0])
            assert [shape[0] for shape in shapes] == expected
        monkeypatch.undo()


class TestOnCuda:
    """What can be said of it without a GPU."""

    def test_its_memory_is_that_of_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[int] = []

        def memory(index: int) -> HostMemory:
            opened.append(index)
            raise BackendUnavailable("not here")

        monkeypatch.setattr(torch_module, "TorchMemory", memory)
        monkeypatch.setattr(torch_module, "pick_device", torch.device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        for device in ("cuda:1", "cuda"):
            backend = TorchBackend(tiny_checkpoint(), device)
            with pytest.raises(BackendUnavailable, match="not here"):
                backend.open()
        assert opened == [1, 3]

    def test_a_network_runs_in_the_stream_it_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And leaves nothing in PyTorch's cache before it is captured, as no graph could use it."""
        events: list[object] = []

        @contextmanager
        def current(stream: object) -> Iterator[None]:
            events.append(stream)
            yield
            events.append("queued")

        monkeypatch.setattr(torch.cuda, "stream", current)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("cache released"))
        checkpoint, batch = tiny_checkpoint(size=(16, 16)), pictures(2)[:, :16, :16].copy()
        graph = Graph(checkpoint.model, checkpoint.spec).eval()
        maps = np.zeros((2, 16, 16), np.uint8)
        program = Program("torch-cuda", graph, (16, 16, 3))
        execution = program.prepare(2, Resource(batch.reshape(-1)), Resource(maps.reshape(-1)))
        for _ in range(2):
            execution.enqueue(Resource("a stream"))
        assert events == ["a stream", "queued", "cache released", "a stream", "queued"]
        assert np.array_equal(maps, graph(torch.from_numpy(batch)).numpy())

    def test_threads_need_no_streams_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """PyTorch's allocator keeps memory for every stream that was ever used."""
        monkeypatch.setattr(torch_module, "pick_device", torch.device)
        backend = TorchBackend(tiny_checkpoint(), "cuda")
        assert (backend.name, backend.precision, backend.streams) == ("torch-cuda", "fp16", 3)
        assert isinstance(backend.thread(), nullcontext)


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.fixture(autouse=True)
    def _needs_a_gpu(self) -> None:
        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU and a PyTorch built with CUDA")

    def test_batches_are_repeated_through_graphs_and_masks_are_the_cpus(self) -> None:
        checkpoint = tiny_checkpoint()
        batch = pictures(8)
        with TorchBackend(checkpoint, "cpu") as cpu:
            expected = np.concatenate([cpu.infer(batch[at : at + 1]) for at in range(8)])
        with TorchBackend(checkpoint, "cuda", batch_size=8) as backend:
            maps = backend.infer(batch)
            for count in range(1, 8):
                assert np.array_equal(backend.infer(batch[:count]), maps[:count])
            assert backend.notes == []
            assert backend._executor is not None
            assert all(slot.graph is not None for slot in backend._executor._slots)
        assert np.abs(maps.astype(int) - expected).mean() < 1.5

    def test_closing_gives_the_memory_back(self) -> None:
        backend = TorchBackend(tiny_checkpoint(), "cuda", batch_size=8)
        with backend:
            backend.infer(pictures(8))
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for _ in range(3):
            with backend:
                backend.infer(pictures(8))
        assert torch.cuda.memory_reserved() <= before

    def test_a_capture_that_had_no_memory_keeps_none(self) -> None:
        memory = TorchMemory()

        def enqueue() -> None:
            with torch.cuda.stream(stream.raw):
                torch.empty(2**28, dtype=torch.uint8, device="cuda")  # no kernel that may have to load
            raise DeviceOutOfMemory("no memory")

        with memory.current():
            stream = memory.stream()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            with pytest.raises(DeviceOutOfMemory):
                memory.capture(stream, enqueue)
            torch.cuda.empty_cache()
            assert torch.cuda.memory_reserved() <= before
            memory.free(stream)
