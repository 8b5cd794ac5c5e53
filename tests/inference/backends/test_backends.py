"""One suite over every backend that can run here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tests.helpers.graphs import openvino_engine, saved_checkpoint, saved_graph
from tests.helpers.host import HostBackend
from tests.helpers.host_torch import HostTorchBackend, tiny_checkpoint
from tests.helpers.tiny import tiny_spec
from unet_batch import gpu
from unet_batch.engine import onnx_model
from unet_batch.engine.openvino import OpenVino
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory, UsageError
from unet_batch.inference.backends import torch as torch_module
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.onnxruntime import OnnxRuntimeBackend
from unet_batch.inference.backends.openvino import OpenVinoBackend
from unet_batch.inference.backends.torch import TorchBackend
from unet_batch.model import checkpoint
from unet_batch.model.graph import Graph
from unet_batch.testing import FakeBackend

GPU = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))


def torch_cuda(batch_size: int) -> Backend:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and a PyTorch built with CUDA")
    return TorchBackend(tiny_checkpoint(), "cuda", batch_size=batch_size)


def onnxruntime(batch_size: int) -> Backend:
    return OnnxRuntimeBackend(onnx_model.read(saved_graph()), batch_size=batch_size)


def openvino(batch_size: int) -> Backend:
    return OpenVinoBackend(OpenVino(), openvino_engine(), batch_size=batch_size, reason="as asked")


BACKENDS: dict[str, Callable[[int], Backend]] = {
    "fake": lambda batch_size: FakeBackend(tiny_spec(), batch_size=batch_size),
    "streaming-host": lambda batch_size: HostBackend(tiny_spec(), batch_size=batch_size),
    "torch-cpu": lambda batch_size: TorchBackend(tiny_checkpoint(), "cpu", batch_size=batch_size),
    "torch-host": lambda batch_size: HostTorchBackend(batch_size=batch_size),
    "torch-cuda": torch_cuda,
    "onnxruntime-cpu": onnxruntime,
    "openvino": openvino,
}


@pytest.fixture(
    params=[
        "fake",
        "streaming-host",
        "torch-cpu",
        "torch-host",
        pytest.param("torch-cuda", marks=pytest.mark.gpu),
        "onnxruntime-cpu",
        "openvino",
    ]
)
def make(request: pytest.FixtureRequest) -> Callable[[int], Backend]:
    return BACKENDS[request.param]


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def test_says_what_it_is(make: Callable[[int], Backend]) -> None:
    backend = make(3)
    assert backend.name
    assert backend.precision in ("fp32", "bf16", "fp16")
    assert backend.reason
    assert backend.batch_size == 3
    assert backend.streams >= 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_maps_have_the_size_of_the_input(make: Callable[[int], Backend], count: int) -> None:
    with make(5) as backend:
        maps = backend.infer(pictures(count))
    assert maps.dtype == np.uint8
    assert maps.shape == (count, 32, 48)


def test_a_picture_does_not_depend_on_its_batch(make: Callable[[int], Backend]) -> None:
    """A run that is resumed batches differently, and must write the same bytes."""
    batch = pictures(6)
    with make(6) as backend, backend.thread():
        together = backend.infer(batch)
        for index in range(6):
            assert np.array_equal(backend.infer(batch[index : index + 1])[0], together[index])
        assert np.array_equal(backend.infer(batch[::-1].copy())[::-1], together)


def test_several_threads_at_once(make: Callable[[int], Backend]) -> None:
    batches = [pictures(2) + np.uint8(i) for i in range(8)]
    results: dict[int, np.ndarray] = {}
    with make(2) as backend:
        expected = [backend.infer(batch) for batch in batches]

        def work(number: int) -> None:
            with backend.thread():
                for index in range(number, 8, 4):
                    results[index] = backend.infer(batches[index])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index in range(8):
        assert np.array_equal(results[index], expected[index])


def test_the_pictures_are_only_read_and_the_maps_are_the_callers(make: Callable[[int], Backend]) -> None:
    batch = pictures(2)
    copy = batch.copy()
    with make(2) as backend:
        first = backend.infer(batch)
        kept = first.copy()
        assert np.array_equal(batch, copy)
        batch[:] = 0  # the caller may reuse its buffer
        backend.infer(batch)
        assert np.array_equal(first, kept)
        first[:] = 7  # and write into what it got


def test_a_list_of_pictures_is_as_good_as_an_array(make: Callable[[int], Backend]) -> None:
    batch = pictures(4)
    with make(4) as backend:
        expected = backend.infer(batch)
        buffers = [backend.buffer() for _ in batch]
        for buffer, picture in zip(buffers, batch, strict=True):
            assert buffer.dtype == np.uint8
            assert buffer.shape == picture.shape
            buffer[:] = picture
        assert np.array_equal(backend.infer(buffers), expected)
        assert np.array_equal(backend.infer(buffers[:1]), expected[:1])
        assert np.array_equal(backend.infer(tuple(buffers[::-1])), expected[::-1])
    buffers[0][:] = 0  # still there


def test_pictures_may_be_read_only(make: Callable[[int], Backend]) -> None:
    batch = pictures(3)
    batch.flags.writeable = False
    with make(3) as backend:
        expected = backend.infer(pictures(3))
        assert np.array_equal(backend.infer(batch), expected)
        assert np.array_equal(backend.infer([batch[1]])[0], expected[1])


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros((0, 32, 48, 3), np.uint8), "0"),
        (np.zeros((4, 32, 48, 3), np.uint8), "4"),
        (np.zeros((1, 32, 40, 3), np.uint8), r"1, one of uint8 \(32, 40, 3\)"),
        (np.zeros((1, 32, 48), np.uint8), r"1, one of uint8 \(32, 48\)"),
        (np.zeros((1, 32, 48, 3), np.float32), r"1, one of float32 \(32, 48, 3\)"),
        (
            [np.zeros((32, 48, 3), np.uint8), np.zeros((32, 40, 3), np.uint8)],
            r"2, one of uint8 \(32, 40, 3\)",
        ),
        ([np.zeros((48, 32, 3), np.uint8).transpose(1, 0, 2)], "1, one not C-contiguous"),
        ([], "0"),
    ],
    ids=[
        "none",
        "too many",
        "another size",
        "no channels",
        "floats",
        "one of two",
        "transposed",
        "an empty list",
    ],
)
def test_a_wrong_batch_is_named(
    make: Callable[[int], Backend], wrong: Sequence[np.ndarray], got: str
) -> None:
    with (
        make(3) as backend,
        pytest.raises(BackendError, match=rf"1 to 3 pictures of uint8 \(32, 48, 3\) expected, got {got}$"),
    ):
        backend.infer(wrong)


def test_misuse_is_caught(make: Callable[[int], Backend]) -> None:
    backend = make(1)
    with pytest.raises(BackendError, match="outside the `with` block"):
        backend.infer(pictures(1))
    with backend:
        with pytest.raises(BackendError, match="opened twice"):
            backend.open()
        backend.infer(pictures(1))
    with pytest.raises(BackendError, match="outside the `with` block"):
        backend.infer(pictures(1))


def test_says_whether_it_is_open(make: Callable[[int], Backend]) -> None:
    backend = make(1)
    assert not backend.is_open
    with backend:
        assert backend.is_open
        assert backend.notes == []
    assert not backend.is_open


def test_open_and_close_are_what_the_with_block_does(make: Callable[[int], Backend]) -> None:
    backend = make(1)
    backend.close()  # nothing to do yet
    assert backend.open() is backend
    assert backend.is_open
    assert backend.infer(pictures(1)).shape == (1, 32, 48)
    for _ in range(2):
        backend.close()
        assert not backend.is_open


def test_describes_itself_for_reports(make: Callable[[int], Backend]) -> None:
    with make(2) as backend:
        described = backend.describe()
        json.dumps(described)
        backend.notes.append("later")
    assert described == {
        "name": backend.name,
        "reason": backend.reason,
        "precision": backend.precision,
        "input_size": [32, 48],
        "batch_size": 2,
        "streams": backend.streams,
        "notes": ["later"],
    }


def test_opens_again(make: Callable[[int], Backend]) -> None:
    backend = make(1)
    with backend:
        first = backend.infer(pictures(1))
    with backend:
        assert np.array_equal(backend.infer(pictures(1)), first)


@pytest.mark.parametrize("classes", [1, 3])
def test_torch_computes_the_graph(classes: int) -> None:
    model = tiny_checkpoint(classes)
    batch = pictures(4)
    exact = Graph(model.model, model.spec)(torch.from_numpy(batch)).numpy()
    with TorchBackend(model, "cpu", batch_size=4) as backend:
        maps = backend.infer(batch)
    if classes == 1:
        assert np.abs(maps.astype(int) - exact).mean() < 1.5
    else:
        assert (maps == exact).mean() > 0.97


class TestOutOfMemory:
    """What `Backend` does about it; `test_streaming.TestBackend` has the rest."""

    def test_a_batch_is_tried_again_in_pieces(self) -> None:
        def answer(batch: np.ndarray) -> np.ndarray:
            if len(batch) > 2:
                raise DeviceOutOfMemory("no room")
            return batch[:, :, :, 0]

        batch = pictures(11)
        with FakeBackend(tiny_spec(), answer, batch_size=11) as backend:
            assert np.array_equal(backend.infer(batch), batch[:, :, :, 0])
            assert backend.batches == [11, 5, 2, 2, 2, 2, 2, 1]
            assert backend.notes == [
                "out of GPU memory at a batch of 11: continuing with 5",
                "out of GPU memory at a batch of 5: continuing with 2",
            ]

    def test_not_below_the_least_batch(self) -> None:
        def answer(batch: np.ndarray) -> np.ndarray:
            raise DeviceOutOfMemory("no room")

        backend = FakeBackend(tiny_spec(), answer, batch_size=16)
        backend.least_batch = 4
        with (
            backend,
            pytest.raises(DeviceOutOfMemory, match="no room, at a batch of 4, the smallest there is"),
        ):
            backend.infer(pictures(16))
        assert backend.batches == [16, 8, 4]

    def test_as_torch_says_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with TorchBackend(tiny_checkpoint(), "cpu", batch_size=4) as backend:
            graph = backend._graph
            assert graph is not None

            def forward(batch: torch.Tensor) -> torch.Tensor:
                if len(batch) > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return batch[..., 0]

            monkeypatch.setattr(graph, "forward", forward)
            assert np.array_equal(backend.infer(pictures(4)), pictures(4)[..., 0])
            assert len(backend.notes) == 2
            monkeypatch.setattr(graph, "forward", lambda batch: forward(torch.cat([batch] * 2)))
            with pytest.raises(DeviceOutOfMemory, match="torch-cpu: CUDA out of memory"):
                backend.infer(pictures(1))


def test_torch_at_another_size() -> None:
    with TorchBackend(tiny_checkpoint(), "cpu", batch_size=2, size=(48, 80)) as backend:
        assert backend.input_size == (48, 80)
        assert backend.buffer().shape == (48, 80, 3)
        batch = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
        assert backend.infer(batch).shape == (2, 48, 80)
        with pytest.raises(BackendError, match=r"uint8 \(48, 80, 3\) expected"):
            backend.infer(pictures(1))
    assert TorchBackend(tiny_checkpoint(), "cpu").input_size == (32, 48)


def test_torch_does_not_copy_a_single_picture() -> None:
    picture = pictures(1)[0]
    for batch in ([picture], picture[None]):
        assert torch_module._as_batch(batch).data_ptr() == picture.ctypes.data


def test_one_thread_per_stream() -> None:
    before = torch.get_num_threads()
    with TorchBackend(tiny_checkpoint(), "cpu") as backend:
        with backend.thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({}, "fp32")],
)
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    backend = TorchBackend(tiny_checkpoint(), "cpu")
    assert backend.precision == precision
    assert precision in backend.reason


def test_a_checkpoint_from_disk(tiny: str) -> None:
    with TorchBackend(checkpoint.load(tiny), "cpu") as backend:
        assert backend.infer(pictures(1)).std() > 1


@pytest.mark.parametrize("classes", [1, 3])
def test_onnx_runtime_computes_the_graph_in_float32(classes: int) -> None:
    loaded = checkpoint.load(saved_checkpoint(classes=classes))
    batch = pictures(4)
    exact = Graph(loaded.model, loaded.spec)(torch.from_numpy(batch)).numpy()
    with OnnxRuntimeBackend(onnx_model.read(saved_graph(classes=classes)), batch_size=4) as backend:
        maps = backend.infer(batch)
    if classes == 1:
        assert np.abs(maps.astype(int) - exact).max() <= 1
    else:
        assert (maps == exact).mean() > 0.999


def test_openvino_computes_the_graph() -> None:
    batch = pictures(4)
    with OnnxRuntimeBackend(onnx_model.read(saved_graph()), batch_size=4) as exact, openvino(4) as backend:
        difference = np.abs(backend.infer(batch).astype(int) - exact.infer(batch))
        assert difference.max() <= (1 if backend.precision == "fp32" else 64)
        assert backend.infer(batch).std() > 10


def test_a_graph_for_any_size_runs_at_any_that_its_levels_divide() -> None:
    graph = onnx_model.read(saved_graph(any_size=True))
    with OnnxRuntimeBackend(graph, size=(48, 80)) as backend:
        assert backend.infer([backend.buffer()]).shape == (1, 48, 80)
    assert OnnxRuntimeBackend(graph).input_size == (32, 48)
    with pytest.raises(UsageError, match="that 4 divides"):
        OnnxRuntimeBackend(graph, size=(50, 80))
    with pytest.raises(UsageError, match="takes 32x48 only, not 48x80"):
        OnnxRuntimeBackend(onnx_model.read(saved_graph()), size=(48, 80))


def test_onnx_runtime_without_cuda_says_so() -> None:
    if onnx_model.has_cuda():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendUnavailable, match="was built without CUDA") as caught:
        OnnxRuntimeBackend(onnx_model.read(saved_graph()), device=0).open()
    assert "onnxruntime-gpu" in caught.value.hint
