"""What surrounds TensorRT in its backend: the proof at the first run, batches and buffers, in host memory.

`TestCalls` has the order of the calls into TensorRT, and what is done where one fails, over an engine that
only keeps its rules. Whether they are the right calls shows with a real one: `test_a_real_engine`, and
`python -m scripts.gpu_check`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import closing
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
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory, OutputError
from unet_batch.inference.backends import tensorrt
from unet_batch.inference.backends.streaming import StreamingExecutor
from unet_batch.inference.backends.tensorrt import LoadedEngine, Program, TensorRTBackend
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
                str(tmp_path), "5" * 64, size=SIZE, flavour="tensorrt", version="10.9", device=H200.gpus[0]
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


class FakeLibrary:
    """TensorRT's rules for the order of calls, and nothing else of it; what it "computes" is brightness.

    Args:
        refuses: the method of a context that fails, as it fails there; `create` makes none.
        words: what is then in the log.

    Attributes:
        contexts: how many there were.
        events: `context` and `engine` as they were destroyed.
    """

    name, version = "tensorrt", "10.9"
    module = SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="input"), DataType=SimpleNamespace(UINT8="uint8")
    )

    def __init__(self, memory: HostMemory, *, lends_memory: bool, refuses: str = "", words: str = "") -> None:
        self.memory = memory
        self.lends_memory = lends_memory
        self.refuses = refuses
        self.words = words
        self.errors: list[str] = []
        self.events: list[str] = []
        self.contexts = 0
        self.dtype = "uint8"

    def take_errors(self) -> str:
        said = "; ".join(self.errors) or "no reason given"
        self.errors.clear()
        return said

    def runtime(self) -> SimpleNamespace:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: FakeEngine(self) if data else None)

    def runtime_config(self, engine: FakeEngine, kernels: bytes) -> None:
        return None

    def create_context(self, engine: FakeEngine, config: object) -> FakeContext | None:
        return None if self.fails("create") else FakeContext(self)

    def fails(self, method: str) -> bool:
        if self.refuses == method:
            self.errors.append(self.words)
        return self.refuses == method

    def infer_shapes(self) -> list[str]:
        if self.fails("infer_shapes"):
            raise RuntimeError("shape inference failed")
        return []

    def destroyed(self, what: str) -> None:
        current = getattr(self.memory._thread, "depth", 0)
        self.events.append(what if current else f"{what} where no GPU is current")


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, library: FakeLibrary) -> None:
        self.library = library

    def get_tensor_name(self, index: int) -> str:
        return ("pictures", "maps")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"pictures": "input", "maps": "output"}[name]

    def get_tensor_dtype(self, name: str) -> str:
        return self.library.dtype

    def __del__(self) -> None:
        self.library.destroyed("engine")


class FakeContext:
    def __init__(self, library: FakeLibrary) -> None:
        self.library = library
        library.contexts += 1
        first = library.contexts == 1 or library.lends_memory
        self.active_optimization_profile = 0 if first else -1  # 8.6 chooses for the first only
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.lent = 0
        self.infer_shapes = library.infer_shapes  # no method: in the bindings no frame holds the context

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream
        if not self.library.fails("set_optimization_profile_async"):
            self.active_optimization_profile = index
        return self.active_optimization_profile == index

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.active_optimization_profile == 0
        self.shape = shape
        return not self.library.fails("set_input_shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[:3]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.shape
        self.addresses[name] = address
        return not self.library.fails("set_tensor_address")

    def update_device_memory_size_for_shapes(self) -> int:
        assert len(self.addresses) == 2
        return 0 if self.library.fails("update_device_memory_size_for_shapes") else 1000 * self.shape[0]

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= 1000 * self.shape[0]
        self.lent = address

    def execute_async_v3(self, stream: int) -> bool:
        assert bool(self.lent) == self.library.lends_memory
        if self.library.fails("execute_async_v3"):
            return False
        at = {resource.address: resource for resource in self.library.memory.alive}
        source, target = (at[self.addresses[name]] for name in ("pictures", "maps"))
        used = [source, target] + [at[self.lent]] * bool(self.lent)

        def compute() -> None:
            target.raw[:] = brightness(source.raw.reshape(self.shape)).reshape(-1)

        self.library.memory.queue(at[stream], compute, *used)
        return True

    def __del__(self) -> None:
        self.library.destroyed("context")


class TestCalls:
    @pytest.fixture(params=[True, False], ids=["lends memory", "8.6"])
    def lends_memory(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    def load(self, fake: FakeLibrary) -> LoadedEngine:
        return LoadedEngine(fake, b"plan", fake.memory)  # type: ignore[arg-type]

    def run(self, fake: FakeLibrary, batch: int = 4, least: int = 1, graphs: bool = True) -> list[str]:
        """Open, compare maps, close; returns the notes."""
        notes: list[str] = []
        loaded = self.load(fake)
        try:
            program = Program(loaded, SHAPE)
            with closing(
                StreamingExecutor(
                    fake.memory, program, SHAPE, batch=batch, least=least, graphs=graphs, notes=notes
                )
            ) as executor:
                for count in (1, 4, 9):
                    shown = pictures(count, shape=SHAPE)
                    assert np.array_equal(executor.infer(shown), brightness(shown))
        finally:
            loaded.close()
        return notes

    def test_in_their_order(self, lends_memory: bool) -> None:
        fake = FakeLibrary(HostMemory(), lends_memory=lends_memory)
        assert self.run(fake) == []
        assert fake.contexts == 3
        assert fake.events == ["context"] * 3 + ["engine"], "each where the GPU is current"
        assert not fake.memory.alive

    @pytest.mark.parametrize(
        "method",
        [
            "create",
            "set_optimization_profile_async",
            "set_input_shape",
            "infer_shapes",
            "set_tensor_address",
            "update_device_memory_size_for_shapes",
            "execute_async_v3",
        ],
    )
    @pytest.mark.parametrize(
        ("words", "kind"),
        [("Error Code 2: OutOfMemory", DeviceOutOfMemory), ("Error Code 3: API Usage", BackendError)],
    )
    def test_one_that_fails_is_told_in_the_librarys_words(
        self, method: str, words: str, kind: type[BackendError], lends_memory: bool
    ) -> None:
        fake = FakeLibrary(HostMemory(), lends_memory=lends_memory, refuses=method, words=words)
        of_86, of_later = "set_optimization_profile_async", "update_device_memory_size_for_shapes"
        if method == (of_86 if lends_memory else of_later):
            assert self.run(fake, least=4) == [], "never called"
            return
        with pytest.raises(BackendError, match=words) as caught:
            self.run(fake, least=4)
        assert type(caught.value) is kind
        del caught
        gc.collect()
        assert set(fake.events) <= {"context", "engine"}, "each is destroyed where the GPU is current"
        assert not fake.memory.alive

    def test_no_memory_for_the_activations_makes_batches_smaller(self) -> None:
        """Also where the library's error is a RuntimeError, as PyTorch's are and the bindings' own."""
        slot = 4 * 32 * 48 * 4  # bytes of its pictures and maps; activations are 4000 more
        fake = FakeLibrary(HostMemory(capacity=3 * slot + 2 * 4000), lends_memory=True)
        assert self.run(fake) == ["out of GPU memory at a batch of 4: continuing with 2"]
        assert set(fake.events) == {"context", "engine"}
        assert not fake.memory.alive

    def test_a_plan_that_is_none_of_ours_is_unloaded_where_the_gpu_is_current(self) -> None:
        fake = FakeLibrary(HostMemory(), lends_memory=True)
        fake.dtype = "float32"
        with pytest.raises(BackendUnavailable, match="tensor pictures is float32, not UINT8"):
            self.load(fake)
        assert fake.events == ["engine"]

    def test_kernels_that_cannot_be_serialized_are_none(self) -> None:
        loaded = self.load(FakeLibrary(HostMemory(), lends_memory=True))
        loaded._cache = SimpleNamespace(serialize=lambda: None)
        assert loaded.kernels() == b""


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
