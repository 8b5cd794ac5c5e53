"""One suite over every backend that can run here."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tiny_spec
from unet_batch import gpu
from unet_batch.backends import select
from unet_batch.backends.base import Backend
from unet_batch.backends.torch import TorchBackend
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.model import checkpoint
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.model.graph import Graph
from unet_batch.testing import FakeBackend

GPU = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))


def loaded(classes: int = 1) -> Checkpoint:
    spec = tiny_spec(classes)
    return Checkpoint(tiny_model(spec), spec, "0" * 64, "tiny")


def torch_cuda(batch_size: int) -> Backend:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and a PyTorch built with CUDA")
    return TorchBackend(loaded(), "cuda", batch_size=batch_size)


BACKENDS: dict[str, Callable[[int], Backend]] = {
    "fake": lambda batch_size: FakeBackend(tiny_spec(), batch_size=batch_size),
    "torch-cpu": lambda batch_size: TorchBackend(loaded(), "cpu", batch_size=batch_size),
    "torch-cuda": torch_cuda,
}


@pytest.fixture(params=["fake", "torch-cpu", pytest.param("torch-cuda", marks=pytest.mark.gpu)])
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


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 32, 48, 3), np.uint8),
        np.zeros((4, 32, 48, 3), np.uint8),
        np.zeros((1, 32, 40, 3), np.uint8),
        np.zeros((1, 32, 48), np.uint8),
        np.zeros((1, 32, 48, 3), np.float32),
    ],
    ids=["none", "too many", "another size", "no channels", "floats"],
)
def test_a_wrong_batch_is_named(make: Callable[[int], Backend], wrong: np.ndarray) -> None:
    with make(3) as backend, pytest.raises(BackendError, match=r"1 to 3 pictures of uint8 \(32, 48, 3\) expected, got"):
        backend.infer(wrong)


def test_misuse_is_caught(make: Callable[[int], Backend]) -> None:
    backend = make(1)
    with pytest.raises(BackendError, match="outside the `with` block"):
        backend.infer(pictures(1))
    with backend:
        with pytest.raises(BackendError, match="opened twice"):
            backend.__enter__()
        backend.infer(pictures(1))
    with pytest.raises(BackendError, match="outside the `with` block"):
        backend.infer(pictures(1))


def test_opens_again(make: Callable[[int], Backend]) -> None:
    backend = make(1)
    with backend:
        first = backend.infer(pictures(1))
    with backend:
        assert np.array_equal(backend.infer(pictures(1)), first)


@pytest.mark.parametrize("classes", [1, 3])
def test_torch_computes_the_graph(classes: int) -> None:
    model = loaded(classes)
    batch = pictures(4)
    exact = Graph(model.model, model.spec)(torch.from_numpy(batch)).numpy()
    with TorchBackend(model, "cpu", batch_size=4) as backend:
        maps = backend.infer(batch)
    if classes == 1:
        assert np.abs(maps.astype(int) - exact).mean() < 1.5
    else:
        assert (maps == exact).mean() > 0.97


def test_one_thread_per_stream() -> None:
    before = torch.get_num_threads()
    with TorchBackend(loaded(), "cpu") as backend:
        with backend.thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before


class TestSelect:
    def test_without_a_driver_auto_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "driver", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        backend = select.select(loaded())
        assert backend.name == "torch-cpu"
        assert backend.reason.startswith("no NVIDIA driver; ")

    def test_a_gpu_that_pytorch_cannot_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "driver", lambda: GPU)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "built without CUDA" in select.select(loaded()).reason

    def test_a_driver_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver((13, 0), (), "no GPU is visible"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "no GPU is visible" in select.select(loaded()).reason

    def test_as_asked(self) -> None:
        assert select.select(loaded(), "torch", device="cpu").reason.startswith("as asked")

    def test_an_unknown_backend(self) -> None:
        with pytest.raises(UsageError, match="'onnx' is not known"):
            select.select(loaded(), "onnx")

    @pytest.mark.parametrize(
        ("device", "message"), [("warp", "not a device PyTorch knows"), ("xpu", "not supported"), ("cuda:99", "cuda:99: ")]
    )
    def test_an_impossible_device_never_falls_back(self, device: str, message: str) -> None:
        with pytest.raises(BackendUnavailable, match=message):
            select.select(loaded(), device=device)


@pytest.mark.parametrize(
    ("capabilities", "precision"), [({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({}, "fp32")]
)
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    backend = TorchBackend(loaded(), "cpu")
    assert backend.precision == precision
    assert precision in backend.reason


def test_a_checkpoint_from_disk(tiny: str) -> None:
    with TorchBackend(checkpoint.load(tiny), "cpu") as backend:
        assert backend.infer(pictures(1)).std() > 1
