"""What surrounds TensorRT in its backend: the proof at the first run, batches and buffers, in host memory.

The calls into TensorRT itself (`LoadedEngine`, `Program.prepare`, `Execution`) need a real one:
`test_a_real_engine`, and `python -m scripts.gpu_check`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.host import Brightness, brightness, pictures
from tests.helpers.systems import needs_permissions
from unet_batch import gpu
from unet_batch.engine import onnx_model, store
from unet_batch.engine.compiler import Profile
from unet_batch.engine.proof import Reference
from unet_batch.engine.sidecar import EngineRecipe, Sidecar
from unet_batch.engine.store import Engine
from unet_batch.errors import BackendError, BackendUnavailable, OutputError
from unet_batch.inference.backends import tensorrt
from unet_batch.inference.backends.tensorrt import TensorRTBackend
from unet_batch.testing import HostMemory, fake_spec

SIZE = (32, 48)
SHAPE = (*SIZE, 3)
H200 = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))
FLAVOUR = SimpleNamespace(name="tensorrt", version="10.9", strongly_typed=True)


class HostEngine:
    """A loaded plan that computes brightness in host memory."""

    loaded = 0
    largest = 1000
    inspector = json.dumps({"Layers": []})

    compiled = b""

    def __init__(
        self, flavour: SimpleNamespace, data: bytes, memory: HostMemory, kernels: bytes = b""
    ) -> None:
        assert data == b"plan"
        self.given = kernels
        HostEngine.loaded += 1
        self.flavour, self.memory = flavour, memory

    def information(self) -> str:
        return self.inspector

    def kernels(self) -> bytes:
        return self.given or self.compiled

    def close(self) -> None:
        HostEngine.loaded -= 1


def host_program(plan: HostEngine, shape: tuple[int, int, int]) -> Brightness:
    return Brightness(plan.memory, shape, plan.largest)


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensorrt, "LoadedEngine", HostEngine)
    monkeypatch.setattr(tensorrt, "Program", host_program)
    monkeypatch.setattr(gpu, "driver", lambda: H200)
    yield
    assert HostEngine.loaded == 0, "every plan is unloaded, whatever happened"


def engine(folder: Path, *, right: bool = True, verified: bool = False) -> Engine:
    """An engine on disk whose reference says what brightness is, or something else."""
    shown = np.stack(pictures(5, shape=SHAPE))
    maps = brightness(shown) if right else 255 - brightness(shown)
    recipe = EngineRecipe("5" * 64, "fp16", Profile((1, 4, 8), (SIZE,) * 3), "tensorrt", "10.9", "sm_90", {})
    sidecar = Sidecar(
        spec=fake_spec(SIZE),
        recipe=recipe,
        plan_sha256=onnx_model.sha256(b"plan"),
        plan_bytes=4,
        float32=(),
        shares=(),
        proofs={"NVIDIA H200": {f"batch {batch}": {} for batch in (1, 4, 8)}} if verified else {},
        verified_on_gpu=verified,
        built={"at": 1.0},
    )
    return store.install(str(folder), sidecar, b"plan", Reference(shown, maps))


def backend(made: Engine, memory: HostMemory | None = None, **changes: object) -> TensorRTBackend:
    return TensorRTBackend(FLAVOUR, made, memory=memory or HostMemory(), **changes)  # type: ignore[arg-type]


def test_says_what_it_is(tmp_path: Path) -> None:
    made = backend(engine(tmp_path), reason="as asked")
    assert (made.name, made.precision, made.batch_size, made.least_batch, made.streams) == (
        "tensorrt",
        "fp16",
        4,
        1,
        3,
    )
    assert made.reason.startswith("as asked; tensorrt 10.9; fake-32x48-fp16-")


class TestTheFirstRun:
    def test_proves_the_plan_and_records_it(self, tmp_path: Path) -> None:
        made = engine(tmp_path)
        with backend(made) as opened:
            assert any("its masks are PyTorch's, Dice 1.00000" in note for note in opened.notes)
        recorded = store.load(made.path).sidecar
        assert recorded.verified_on_gpu
        assert sorted(recorded.proofs["NVIDIA H200"]) == ["batch 1", "batch 4 and 2", "batch 8 and 4"]
        with backend(store.load(made.path)) as again:
            assert again.notes == [], "once is enough"

    def test_another_gpu_and_another_batch_prove_it_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TensorRT-RTX compiles for each of them."""
        made = engine(tmp_path, verified=True)
        with backend(made, batch_size=5) as opened:
            assert any("first run on this GPU" in note for note in opened.notes)
        assert "batch 5 and 2" in store.load(made.path).sidecar.proofs["NVIDIA H200"]
        other = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA RTX 5090", (12, 0), 32_000_000_000),))
        monkeypatch.setattr(gpu, "driver", lambda: other)
        with backend(store.load(made.path)) as opened:
            assert any("first run on this GPU" in note for note in opened.notes)
        assert list(store.load(made.path).sidecar.proofs) == ["NVIDIA H200", "NVIDIA RTX 5090"]

    def test_a_batch_that_does_not_fit_is_not_asked_for_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The profile's largest was too much for this GPU: a run that does not need it opens at once."""
        monkeypatch.setattr(HostEngine, "largest", 4)
        made = engine(tmp_path)
        with backend(made) as opened:
            assert any("first run on this GPU" in note for note in opened.notes)
        with backend(store.load(made.path)) as again:
            assert again.notes == []

    def test_a_proof_that_comes_too_late_leaves_the_newer_engine_alone(self, tmp_path: Path) -> None:
        old = engine(tmp_path)
        newer = replace(old.sidecar, plan_sha256=onnx_model.sha256(b"newer"), plan_bytes=5)
        store.install(str(tmp_path), newer, b"newer", old.read_reference())
        old.record_proof("NVIDIA H200", {})
        assert store.load(old.path).read_plan() == b"newer"

    def test_where_the_refusal_cannot_be_written_the_masks_are_what_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OutputError("the disk is full")

        made = engine(tmp_path, right=False)
        monkeypatch.setattr(store, "write_json", full)
        with pytest.raises(BackendUnavailable, match="the masks differ"):
            backend(made).open()

    def test_refuses_a_plan_whose_masks_are_wrong(self, tmp_path: Path) -> None:
        made = engine(tmp_path, right=False)
        memory = HostMemory()
        with pytest.raises(
            BackendUnavailable, match=r"NVIDIA H200, batch 1: the masks differ from PyTorch's"
        ) as caught:
            backend(made, memory).open()
        assert "build it again" in caught.value.hint
        assert not memory.alive
        recorded = store.load(made.path).sidecar
        assert not recorded.verified_on_gpu
        assert "the masks differ" in recorded.refused["NVIDIA H200"]
        with pytest.raises(BackendUnavailable, match=r"was run and refused: .*the masks differ"):
            store.find(
                str(tmp_path), "5" * 64, size=SIZE, flavour="tensorrt", version="10.9", gpu=H200.gpus[0]
            )

    def test_without_its_pictures_it_is_not_used(self, tmp_path: Path) -> None:
        made = engine(tmp_path)
        Path(made.path).with_suffix(".npz").unlink()
        with pytest.raises(
            BackendUnavailable, match="pictures to prove the engine on, cannot be read: there is none"
        ):
            backend(made).open()

    @needs_permissions
    def test_in_a_folder_that_cannot_be_written_it_is_proven_each_time(self, tmp_path: Path) -> None:
        made = engine(tmp_path)
        tmp_path.chmod(0o500)
        try:
            with backend(made) as opened:
                assert any("the proof could not be recorded" in note for note in opened.notes)
        finally:
            tmp_path.chmod(0o700)

    def test_of_a_weakly_typed_engine_the_inspector_must_name_its_layers(self, tmp_path: Path) -> None:
        made = engine(tmp_path)
        convolutions = {"conv": onnx_model.Convolution(10, "fp32", False, "down.0.0")}
        loaded = HostEngine(SimpleNamespace(name="tensorrt", strongly_typed=False), b"plan", HostMemory())
        with pytest.raises(BackendError, match="names 0 of 1 convolutions"):
            tensorrt.prove_loaded(loaded, made.sidecar, made.read_reference(), convolutions, (1,))  # type: ignore[arg-type]
        loaded.inspector = json.dumps(
            {"Layers": [{"Name": "conv", "Inputs": [{"Format/Datatype": "FP32 NCHW"}]}]}
        )
        with pytest.raises(BackendError, match=r"asked for fp16, but only 0\.0% .* in the engine"):
            tensorrt.prove_loaded(loaded, made.sidecar, made.read_reference(), convolutions, (1,))  # type: ignore[arg-type]
        loaded.inspector = json.dumps(
            {"Layers": [{"Name": "conv", "Inputs": [{"Format/Datatype": "Half NHWC8"}]}]}
        )
        ran = tensorrt.prove_loaded(loaded, made.sidecar, made.read_reference(), convolutions, (1,))  # type: ignore[arg-type]
        assert ran.shares[0]["body"] == 1
        loaded.close()


class TestRunning:
    def test_maps(self, tmp_path: Path) -> None:
        with backend(engine(tmp_path, verified=True)) as opened:
            for count in (1, 3, 4):
                batch = pictures(count, shape=SHAPE)
                assert np.array_equal(opened.infer(batch), brightness(batch))

    def test_a_batch_of_ones_own(self, tmp_path: Path) -> None:
        with backend(engine(tmp_path, verified=True), batch_size=8) as opened:
            batch = pictures(8, shape=SHAPE)
            assert np.array_equal(opened.infer(batch), brightness(batch))

    def test_a_plan_that_was_changed_is_not_loaded(self, tmp_path: Path) -> None:
        made = engine(tmp_path, verified=True)
        Path(made.path).write_bytes(b"pla?")
        with pytest.raises(BackendUnavailable, match="not the plan that was built"):
            backend(made).open()

    def test_too_large_for_the_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(HostEngine, "largest", 2)
        with backend(engine(tmp_path, verified=True), batch_size=8) as opened:
            assert opened.batch_size == 2
            assert opened.notes == [
                "out of GPU memory at a batch of 8: continuing with 4",
                "out of GPU memory at a batch of 4: continuing with 2",
            ]
            batch = pictures(2, shape=SHAPE)
            assert np.array_equal(opened.infer(batch), brightness(batch))

    def test_what_was_compiled_for_this_gpu_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(HostEngine, "compiled", b"kernels")
        made = engine(tmp_path, verified=True)
        with backend(made):
            pass
        kept = Path(made.path.replace(".plan", "-sm_90.kernels"))
        assert kept.read_bytes() == b"kernels"
        kept.write_bytes(b"of an earlier run")
        monkeypatch.setattr(store.Engine, "write_kernels", lambda *_: pytest.fail("nothing new to keep"))
        with backend(made) as opened:
            assert opened.notes == []

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        memory = HostMemory()
        with backend(engine(tmp_path), memory) as opened:
            kept = opened.buffer()
            kept[:] = 7
            opened.infer([kept])
        del kept
        assert not memory.alive

    def test_buffers_come_from_the_pool(self, tmp_path: Path) -> None:
        memory = HostMemory()
        with backend(engine(tmp_path, verified=True), memory) as opened:
            before = memory.used
            room = [opened.buffer() for _ in range(10)]
            assert memory.used == before, "lent, not allocated"
            assert all(each.shape == SHAPE for each in room)


@pytest.mark.gpu
def test_a_real_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Build with each flavour that is installed, run it, and compare with PyTorch; the whole path at once."""
    monkeypatch.undo()
    if reason := gpu.missing():
        pytest.skip(reason)
    pytest.importorskip("torch", reason="the checkpoint is made with PyTorch")
    from tests.helpers.engines import confident
    from unet_batch.build import BuildOptions, build_engine
    from unet_batch.engine.flavours import NAMES, Flavour
    from unet_batch.model import checkpoint

    model = confident(size=(64, 96))
    path = str(tmp_path / "net.safetensors")
    checkpoint.save(path, model.model, replace(model.spec, name="net"))
    ran = 0
    for name in NAMES:
        try:
            flavour = Flavour(name)
        except BackendUnavailable:
            continue
        built = build_engine(BuildOptions(path, str(tmp_path / name), batch=(1, 4, 8), builder=name)).engine
        assert built is not None
        if name == "tensorrt-rtx" and not built.sidecar.verified_on_gpu:
            continue  # not a GPU that TensorRT-RTX supports
        assert built.sidecar.verified_on_gpu
        reference = built.read_reference()
        with TensorRTBackend(flavour, built, batch_size=8) as opened:
            maps = opened.infer(list(reference.pictures[:5]))
            for index in range(5):
                assert np.array_equal(opened.infer([reference.pictures[index]])[0], maps[index]), (
                    "depends on its batch"
                )
            assert (np.abs(maps.astype(int) - reference.maps[:5]) > 8).mean() < 0.01
        ran += 1
    if not ran:
        pytest.skip("neither tensorrt nor tensorrt-rtx is installed for this GPU")
