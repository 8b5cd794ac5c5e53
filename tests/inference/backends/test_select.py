"""Which backend runs, and what is said of those that do not: with pretended GPUs and real engines."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.engines import confident, harm
from tests.helpers.graphs import openvino_engine, saved_checkpoint, saved_graph
from unet_batch import gpu
from unet_batch.build import BuildOptions, build_engine
from unet_batch.engine import flavours, source, store
from unet_batch.engine.compiler import Profile
from unet_batch.engine.flavours import Flavour
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory, UsageError
from unet_batch.inference.backends import select
from unet_batch.inference.backends.openvino import OpenVinoBackend
from unet_batch.inference.backends.select import Request, Selection, Step
from unet_batch.inference.backends.tensorrt import TensorRTBackend
from unet_batch.inference.backends.torch import TorchBackend
from unet_batch.model import checkpoint
from unet_batch.model.checkpoint import ModelFile
from unet_batch.testing import fake_spec
from unet_batch.types import ClassTable

H200 = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))
SIZE = (64, 96)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = str(tmp_path_factory.mktemp("model") / "net.safetensors")
    model = confident(size=SIZE)
    checkpoint.save(path, model.model, replace(model.spec, name="net"))
    return checkpoint.identify(path)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU in the driver, with a PyTorch that cannot use it."""
    monkeypatch.setattr(gpu, "driver", lambda: H200)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "MODULES", dict.fromkeys(flavours.NAMES, "no_such_module"))


@pytest.fixture(autouse=True)
def no_openvino(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not it is installed; but for the tests of it."""
    if "openvino" not in request.keywords:
        monkeypatch.setattr(select, "installed_version", lambda name: None)


@pytest.mark.usefixtures("no_driver")
class TestWithoutADriver:
    def test_auto_says_so_once(self, file: ModelFile) -> None:
        selection = select.select(Request(file))
        close_open(selection)
        assert selection.backend.name == "torch-cpu"
        assert selection.backend.reason.startswith("no NVIDIA driver; openvino is not installed; ")
        *gpus, openvino = selection.passed_over
        assert [(step.name, step.reason) for step in gpus] == [
            (name, "no NVIDIA driver") for name in ("tensorrt", "tensorrt-rtx", "torch-cuda")
        ]
        assert all("driver" in step.fix for step in gpus)
        assert openvino == Step("openvino", "openvino is not installed", 'pip install "unet-batch[openvino]"')

    @pytest.mark.parametrize("backend", ["auto", "torch"])
    def test_and_without_pytorch(
        self, file: ModelFile, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Engines run without it, so it may not be there."""
        monkeypatch.setitem(sys.modules, "unet_batch.inference.backends.torch", None)
        between = "openvino is not installed; torch-cpu: " if backend == "auto" else ""
        with pytest.raises(
            BackendUnavailable, match=f"no NVIDIA driver; {between}PyTorch is not installed or does not load"
        ) as caught:
            select.select(Request(file, backend))
        assert (
            caught.value.hint == "pip install --force-reinstall torch -i https://download.pytorch.org/whl/cpu"
        )

    @pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
    def test_an_explicit_choice_never_falls_back(self, file: ModelFile, name: str) -> None:
        with pytest.raises(BackendUnavailable, match="no NVIDIA driver") as caught:
            select.select(Request(file, name))
        assert "install NVIDIA's driver" in caught.value.hint

    @pytest.mark.parametrize("backend", ["auto", "torch"])
    def test_a_gpu_that_is_required(self, file: ModelFile, backend: str) -> None:
        with pytest.raises(BackendUnavailable, match="no GPU can be used: no NVIDIA driver") as caught:
            select.select(Request(file, backend, require_gpu=True))
        assert "install NVIDIA's driver" in caught.value.hint


def test_a_driver_without_a_gpu(file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver((13, 0), (), "no GPU is visible"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    selection = select.select(Request(file))
    close_open(selection)
    assert selection.backend.reason.startswith("NVIDIA driver found, but no GPU is visible; ")


@pytest.mark.usefixtures("h200")
class TestWithAGpu:
    @pytest.mark.usefixtures("nothing_installed")
    def test_every_step_down_has_its_reason_and_its_fix(self, file: ModelFile) -> None:
        selection = select.select(Request(file))
        close_open(selection)
        assert [(step.name, step.fix) for step in selection.passed_over] == [
            ("tensorrt", 'pip install "unet-batch[tensorrt]"'),
            ("tensorrt-rtx", 'pip install "unet-batch[tensorrt-rtx]"'),
            ("torch-cuda", "pip install --force-reinstall torch -i https://download.pytorch.org/whl/cu130"),
            ("openvino", 'pip install "unet-batch[openvino]"'),
        ]
        assert selection.backend.reason.startswith(
            "tensorrt is not installed; tensorrt-rtx is not installed; "
            "torch-cuda: an NVIDIA GPU is present, but this PyTorch was built without CUDA or needs a newer "
            "driver; "
        )

    def test_a_missing_engine_names_the_command_that_builds_it(self, file: ModelFile, tmp_path: Path) -> None:
        request = Request(file, "tensorrt-rtx", engines_dir=str(tmp_path), size=(32, 48), batch_size=8)
        with pytest.raises(BackendUnavailable, match="no engine in ") as caught:
            select.select(request)
        assert caught.value.hint == (
            f"build one: unet-batch build-engine {file.path} --builder tensorrt-rtx --size 32x48 "
            f"--engines-dir {tmp_path} --batch 8"
        )

    def test_a_gpu_that_is_not_the_first_is_not_built_for(
        self, file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        two = gpu.Driver((13, 0), (H200.gpus[0], replace(H200.gpus[0], index=1)))
        monkeypatch.setattr(gpu, "driver", lambda: two)
        with pytest.raises(BackendUnavailable, match="built on the first GPU") as caught:
            select.select(
                Request(file, "tensorrt-rtx", "cuda:1", engines_dir=str(tmp_path), build=pytest.fail)
            )
        assert caught.value.hint == "CUDA_VISIBLE_DEVICES=1 and --device cuda"

    def test_auto_goes_on_when_pytorch_cannot_open_the_gpu(
        self, file: ModelFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another program may have filled it."""

        def full(request: Request, device: str | None, reason: str) -> TorchBackend:
            if device == "cuda":
                raise DeviceOutOfMemory("CUDA out of memory")
            return TorchBackend(checkpoint.load(request.model.path), device, reason=reason)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(select, "_torch", full)
        selection = select.select(Request(file))
        close_open(selection)
        assert selection.backend.name == "torch-cpu"
        assert selection.passed_over[2] == Step("torch-cuda", "CUDA out of memory", "")

    def test_it_is_built_when_told(self, file: ModelFile, tmp_path: Path, engine: store.Engine) -> None:
        """And then only the machine is missing."""
        asked = []

        def build(name: str) -> None:
            asked.append(name)
            shutil.copytree(Path(engine.path).parent, tmp_path, dirs_exist_ok=True)

        with pytest.raises(BackendUnavailable, match="no CUDA memory"):
            select.select(Request(file, "tensorrt-rtx", engines_dir=str(tmp_path), build=build))
        assert asked == ["tensorrt-rtx"]

    def test_auto_goes_on_when_a_build_or_a_backend_fails(self, file: ModelFile, tmp_path: Path) -> None:
        def build(name: str) -> None:
            raise BackendError("asked for fp16, but only 3.0% of the arithmetic is fp16")

        selection = select.select(Request(file, engines_dir=str(tmp_path), build=build))
        close_open(selection)
        assert selection.backend.name == "torch-cpu"
        assert "only 3.0%" in next(
            step.reason for step in selection.passed_over if step.name == "tensorrt-rtx"
        )

    def test_a_gpu_that_is_not_there(self, file: ModelFile) -> None:
        with pytest.raises(BackendUnavailable, match=r"cuda:3: this machine has 1 GPU\(s\)"):
            select.select(Request(file, "tensorrt-rtx", device="cuda:3"))

    def test_a_cpu_that_was_asked_for_is_not_looked_for_on_the_gpu(self, file: ModelFile) -> None:
        selection = select.select(Request(file, device="cpu"))
        close_open(selection)
        assert selection.backend.name == "torch-cpu"
        assert [step.name for step in selection.passed_over] == ["openvino"]
        assert selection.backend.reason.startswith("as asked")


def close_open(selection: Selection) -> None:
    """It comes open: close it."""
    assert isinstance(selection.backend, (TorchBackend, TensorRTBackend))
    with selection:
        assert selection.backend.is_open
    assert not selection.backend.is_open


@pytest.fixture(scope="module")
def engine(file: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> store.Engine:
    pytest.importorskip(
        "tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU: pip install tensorrt-rtx"
    )
    options = BuildOptions(
        file.path, str(tmp_path_factory.mktemp("engines")), batch=(1, 2, 4), builder="tensorrt-rtx"
    )
    built = build_engine(options).engine
    assert built is not None
    return built


@pytest.mark.usefixtures("h200")
class TestEnginesThatDoNotFit:
    """Each gives one sentence, and never a mask."""

    @pytest.fixture
    def folder(self, engine: store.Engine, tmp_path: Path) -> Path:
        return Path(shutil.copytree(Path(engine.path).parent, tmp_path / "engines"))

    def refusal(self, file: ModelFile, folder: Path, **changes: object) -> str:
        with pytest.raises(BackendUnavailable) as caught:
            select.select(Request(file, "tensorrt-rtx", engines_dir=str(folder), **changes))  # type: ignore[arg-type]
        assert "\n" not in caught.value.message
        assert caught.value.hint
        return caught.value.message

    def test_a_sound_one_only_lacks_the_machine(self, file: ModelFile, folder: Path) -> None:
        assert "no CUDA memory" in self.refusal(file, folder)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("byte", "not the plan that was built: its sha256 differs"),
            ("cut", " bytes, "),
            ("no plan", "is missing"),
            ("no pictures", "the pictures to prove it on are missing"),
            ("no sidecar", "has no sidecar"),
            ("half a sidecar", "not the sidecar of an engine"),
            ("another key", "not the sidecar of an engine: its key does not belong to its recipe"),
        ],
    )
    def test_damaged(self, file: ModelFile, folder: Path, damage: str, message: str) -> None:
        (plan,) = folder.glob("*.plan")
        harm(str(plan), damage)
        assert message in self.refusal(file, folder)

    def test_of_another_model(self, file: ModelFile, folder: Path) -> None:
        assert "belongs to another model (net, sha256 " in self.refusal(
            replace(file, sha256="0" * 64), folder
        )

    def test_of_another_size(self, file: ModelFile, folder: Path) -> None:
        assert "takes batch 1..4 (best 2), 64x96, not 32x48" in self.refusal(file, folder, size=(32, 48))

    def test_of_another_batch(self, file: ModelFile, folder: Path) -> None:
        assert "not a batch of 8" in self.refusal(file, folder, batch_size=8)

    def test_of_a_background_and_one_class_as_ids(
        self, file: ModelFile, engine: store.Engine, tmp_path: Path
    ) -> None:
        """As an earlier release built them: its maps hold 0 and 1 where this one takes a probability."""
        spec = replace(
            fake_spec(SIZE, classes=2), classes=ClassTable(("background", "car"), ((0, 0, 0), (1, 2, 3)))
        )
        sidecar = replace(engine.sidecar, spec=spec, plan_bytes=4)
        store.install(str(tmp_path), sidecar, b"plan", engine.read_reference())
        assert "computes ids of a background and one class" in self.refusal(file, tmp_path)

    def test_of_another_version(self, file: ModelFile, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__version__", "1.99.0")
        assert "installed is 1.99.0" in self.refusal(file, folder)

    def test_that_was_run_and_refused(self, file: ModelFile, folder: Path) -> None:
        (plan,) = folder.glob("*.plan")
        store.load(str(plan)).refuse("NVIDIA H200", "Dice 0.4")
        assert "was run and refused: Dice 0.4" in self.refusal(file, folder)

    def test_auto_steps_down_and_says_why(self, file: ModelFile, folder: Path) -> None:
        (plan,) = folder.glob("*.plan")
        harm(str(plan), "byte")
        selection = select.select(Request(file, engines_dir=str(folder)))
        close_open(selection)
        assert selection.backend.name == "torch-cpu"
        assert "not the plan that was built" in next(
            step.reason for step in selection.passed_over if step.name == "tensorrt-rtx"
        )

    def test_what_was_proven_here_comes_before_what_is_newer(
        self, engine: store.Engine, tmp_path: Path
    ) -> None:
        recipe = engine.sidecar.recipe
        wide = Profile((1, 2, 4), ((32, 48), (32, 48), (128, 192)))
        for at, proofs, profile in (
            (1.0, {}, recipe.profile),
            (2.0, {"NVIDIA H200": {"batch 1": {}}}, recipe.profile),
            (3.0, {"NVIDIA RTX 4090": {"batch 1": {}}}, recipe.profile),
            (4.0, {}, wide),
        ):
            made = replace(recipe, profile=profile, options={"opt_level": int(at)})
            sidecar = replace(engine.sidecar, recipe=made, built={"at": at}, proofs=proofs, plan_bytes=4)
            store.install(str(tmp_path), sidecar, b"plan", engine.read_reference())
        common = {"size": SIZE, "flavour": recipe.flavour, "version": recipe.version}
        found = [
            store.find(
                str(tmp_path), recipe.source_sha256, device=replace(H200.gpus[0], name=name), **common
            ).sidecar.built["at"]
            for name in ("NVIDIA H200", "NVIDIA A100")
        ]
        assert found == [2.0, 3.0], "then what is tuned for the size, then the newest"

    def test_the_best_of_several(self, engine: store.Engine, tmp_path: Path) -> None:
        """fp16 before fp32, then the newest; and an engine for another GPU is not among them."""
        for index, (precision, target, at) in enumerate(
            [("fp32", "any", 9.0), ("fp16", "any", 1.0), ("fp16", "any", 2.0), ("fp16", "sm_80", 3.0)]
        ):
            recipe = replace(
                engine.sidecar.recipe, precision=precision, target=target, options={"opt_level": index}
            )
            sidecar = replace(engine.sidecar, recipe=recipe, built={"at": at}, plan_bytes=4)
            store.install(str(tmp_path), sidecar, b"plan", engine.read_reference())
        recipe = engine.sidecar.recipe
        found = store.find(
            str(tmp_path),
            recipe.source_sha256,
            size=SIZE,
            flavour=recipe.flavour,
            version=recipe.version,
            device=H200.gpus[0],
        )
        assert (found.sidecar.recipe.precision, found.sidecar.built["at"]) == ("fp16", 2.0)
        ampere = replace(
            recipe, target="sm_80", options={"hardware_compat": "ampere+"}, profile=recipe.profile
        )
        assert not store._excludes(ampere, H200.gpus[0])
        assert store._excludes(replace(ampere, options={}), H200.gpus[0])

    def test_a_backend_outside_the_profile(self, engine: store.Engine) -> None:
        for changes in ({"batch_size": 5}, {"size": (32, 48)}):
            with pytest.raises(UsageError, match=r"takes batch 1\.\.4"):
                TensorRTBackend(Flavour("tensorrt-rtx"), engine, **changes)  # type: ignore[arg-type]


class TestRequests:
    def test_an_unknown_backend(self, file: ModelFile) -> None:
        with pytest.raises(UsageError, match="'onnx' is not known"):
            select.select(Request(file, "onnx"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"backend": "tensorrt", "device": "cudafoo"}, "'cudafoo' is not known"),
            ({"backend": "tensorrt", "device": "cpu"}, "runs on NVIDIA GPUs, not on cpu"),
            ({"device": "cpu", "require_gpu": True}, "--require-gpu contradicts --device cpu"),
        ],
    )
    def test_contradictions(self, file: ModelFile, changes: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            select.select(Request(file, **changes))  # type: ignore[arg-type]

    @pytest.mark.usefixtures("no_driver")
    @pytest.mark.parametrize(
        ("device", "message"),
        [("warp", "not a device PyTorch knows"), ("xpu", "not supported"), ("cuda:99", "cuda:99: ")],
    )
    def test_an_impossible_device_never_falls_back(self, file: ModelFile, device: str, message: str) -> None:
        with pytest.raises(BackendUnavailable, match=message):
            select.select(Request(file, device=device))

    @pytest.mark.usefixtures("no_driver")
    def test_another_size(self, file: ModelFile) -> None:
        selection = select.select(Request(file, size=(32, 48)))
        assert selection.backend.input_size == (32, 48)
        assert selection.backend.infer([selection.backend.buffer()]).shape == (1, 32, 48)
        close_open(selection)


class Openvino:
    """Stands for the library where nothing of it may be imported."""

    def __init__(self) -> None:
        raise AssertionError("imported though no engine fits")


@pytest.mark.usefixtures("no_driver")
@pytest.mark.openvino
class TestOpenVino:
    @pytest.fixture
    def file(self) -> ModelFile:
        return source.identify(saved_checkpoint())

    def test_auto_takes_its_engine_before_pytorch(self, file: ModelFile) -> None:
        engine = openvino_engine()
        for device in (None, "cpu"):
            request = Request(file, device=device, engines_dir=str(Path(engine.path).parent), batch_size=3)
            with select.select(request) as selection:
                assert isinstance(selection.backend, OpenVinoBackend)
                assert selection.backend.batch_size == 3
                assert selection.backend.infer([selection.backend.buffer()] * 3).shape == (3, 32, 48)

    def test_the_graph_takes_the_engine_of_its_checkpoint(self) -> None:
        engine = openvino_engine()
        graph = source.identify(saved_graph())
        with select.select(Request(graph, engines_dir=str(Path(engine.path).parent))) as selection:
            assert selection.backend.name == "openvino"

    def test_without_an_engine_auto_passes_it_over_and_imports_nothing(
        self, file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        openvino_engine()  # or skip
        monkeypatch.setattr("unet_batch.engine.openvino.OpenVino", Openvino)
        with select.select(Request(file, engines_dir=str(tmp_path / "none"))) as selection:
            assert selection.backend.name == "torch-cpu"
            step = selection.passed_over[-1]
            assert (step.name, step.reason) == ("openvino", f"no engine in {tmp_path / 'none'}")
            assert step.fix.startswith(f"build one: unet-batch build-engine {file.path} --builder openvino")
            assert selection.backend.reason.startswith(f"no NVIDIA driver; openvino: no engine in {tmp_path}")

    def test_it_is_built_when_told(self, file: ModelFile, tmp_path: Path) -> None:
        asked = []

        def build(name: str) -> None:
            asked.append(name)
            shutil.copytree(Path(openvino_engine().path).parent, tmp_path, dirs_exist_ok=True)

        with select.select(Request(file, engines_dir=str(tmp_path), build=build)) as selection:
            assert selection.backend.name == "openvino"
        assert asked == ["openvino"]

    def test_an_explicit_choice_never_falls_back(self, file: ModelFile, tmp_path: Path) -> None:
        openvino_engine()
        with pytest.raises(BackendUnavailable, match="no engine in ") as caught:
            select.select(Request(file, "openvino", engines_dir=str(tmp_path)))
        assert "--builder openvino" in caught.value.hint

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"device": "cuda"}, "not with cuda"), ({"require_gpu": True}, "not with --require-gpu")],
    )
    def test_it_runs_on_cpus_only(self, file: ModelFile, changes: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            select.select(Request(file, "openvino", **changes))  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_driver")
class TestGraphs:
    @pytest.fixture
    def graph(self) -> ModelFile:
        return source.identify(saved_graph())

    def test_auto_passes_pytorch_over_and_ends_with_onnx_runtime(self, graph: ModelFile) -> None:
        with select.select(Request(graph)) as selection:
            assert selection.backend.name == "onnxruntime-cpu"
            assert [step.name for step in selection.passed_over] == [
                "tensorrt",
                "tensorrt-rtx",
                "torch-cuda",
                "openvino",
                "torch-cpu",
            ]
            assert selection.passed_over[-1].reason == "PyTorch runs checkpoints, not ONNX graphs"
            assert selection.backend.reason == (
                "no NVIDIA driver; PyTorch runs checkpoints, not ONNX graphs; openvino is not installed; "
                "fp32: as the graph is"
            )

    def test_pytorch_refuses_a_graph_when_asked(self, graph: ModelFile) -> None:
        with pytest.raises(BackendUnavailable, match="PyTorch runs checkpoints, not ONNX graphs") as caught:
            select.select(Request(graph, "torch"))
        assert "--backend onnxruntime" in caught.value.hint

    def test_onnx_runtime_names_the_command_that_exports_a_checkpoint(self, file: ModelFile) -> None:
        with pytest.raises(BackendUnavailable, match="a checkpoint, and ONNX Runtime runs graphs") as caught:
            select.select(Request(file, "onnxruntime"))
        assert f"unet-batch build-engine {file.path} --onnx-only --precision fp32" in caught.value.hint

    def test_without_onnx_runtime_the_command_that_installs_it_is_named(
        self, graph: ModelFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        for backend in ("auto", "onnxruntime"):
            with pytest.raises(BackendUnavailable, match="onnxruntime is not installed") as caught:
                select.select(Request(graph, backend))
            assert caught.value.hint == 'pip install "unet-batch[onnx]"'

    def test_another_size_than_the_graphs_is_refused(self, graph: ModelFile) -> None:
        with pytest.raises(UsageError, match="takes 32x48 only, not 64x96"):
            select.select(Request(graph, size=(64, 96)))

    def test_a_gpu_that_is_required(self, graph: ModelFile) -> None:
        with pytest.raises(BackendUnavailable, match="no GPU can be used: no NVIDIA driver"):
            select.select(Request(graph, require_gpu=True))

    def test_a_device_that_it_does_not_know(self, graph: ModelFile) -> None:
        with pytest.raises(UsageError, match="runs on CPUs and NVIDIA GPUs, not on mps"):
            select.select(Request(graph, "onnxruntime", "mps"))
