"""Engines for CPUs that OpenVINO really builds, proves and loads."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from tests.conftest import ROOT
from tests.helpers.engines import harm, remember_exports
from tests.helpers.graphs import openvino_engine, photos, saved_checkpoint, saved_graph
from unet_batch.build import BuildOptions, build_engine, build_for_run
from unet_batch.build.builders import OpenVinoBuilder
from unet_batch.cli import main
from unet_batch.engine import onnx_model, openvino, source, store
from unet_batch.engine.compiler import Profile
from unet_batch.engine.openvino import Cpu, OpenVino
from unet_batch.engine.store import Engine
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.inference.backends.openvino import OpenVinoBackend
from unet_batch.inference.backends.select import Request, select

pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')

SIZE = (32, 48)


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch)
        yield


def options(folder: Path, model: str | None = None, **changes: object) -> BuildOptions:
    settings = {"builder": "openvino", "proof_images": (photos(),), **changes}
    return BuildOptions(model or saved_graph(), str(folder), **settings)  # type: ignore[arg-type]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A copy that may be damaged."""
    path = openvino_engine().path
    for file in Path(path).parent.glob(Path(path).stem + ".*"):
        shutil.copy(file, tmp_path)
    return store.load(str(tmp_path / Path(path).name))


def opened(engine: Engine, **changes: object) -> OpenVinoBackend:
    return OpenVinoBackend(OpenVino(), engine, **changes)  # type: ignore[arg-type]


class TestBuild:
    def test_the_engine_itself_is_proven_and_its_precision_counted(self) -> None:
        sidecar = openvino_engine().sidecar
        library = OpenVino()
        assert (sidecar.recipe.flavour, sidecar.recipe.version) == ("openvino", library.version)
        assert sidecar.recipe.precision == ("bf16" if library.cpu.has_bf16 else "fp32")
        assert (sidecar.recipe.target, sidecar.recipe.profile.batch) == ("any", (1, 1, 1))
        (proof,) = (proof for name, proof in sidecar.proofs.items() if name == library.cpu.name)
        assert proof["batch 1"]["dice"] >= 0.99
        assert proof["batch 1"]["pictures"] == 4
        assert 0.001 < proof["batch 1"]["foreground"] < 0.999
        (share,) = sidecar.shares
        assert (share["source"], share["body"]) == ("engine", 1)
        assert share["convolutions"] == share["in_precision"] == 13

    def test_a_graph_alone_is_proven_against_onnx_runtime(self) -> None:
        engine = openvino_engine()
        (proof,) = engine.sidecar.proofs.values()
        assert proof["batch 1"]["reference"] == "ONNX Runtime"
        reference = engine.read_reference()
        assert reference.made_by == "ONNX Runtime"
        exact = onnx_model.OnnxRunner(Path(saved_graph()).read_bytes())(reference.pictures)
        assert np.array_equal(exact, reference.maps)

    def test_a_checkpoint_is_proven_against_pytorch(self, tmp_path: Path) -> None:
        built = build_engine(options(tmp_path, saved_checkpoint()))
        assert built.engine is not None
        sidecar = built.engine.sidecar
        assert {name.split()[0] for name in sidecar.proofs} >= {"onnxruntime"}
        assert sidecar.proofs[OpenVino().cpu.name]["batch 1"]["reference"] == "PyTorch"
        assert built.onnx is not None
        assert onnx_model.read(built.onnx).precision == "fp32"
        assert sidecar.recipe == openvino_engine().sidecar.recipe, "of a checkpoint and its graph"

    def test_the_second_build_finds_the_first(self, engine: Engine, tmp_path: Path) -> None:
        again = build_engine(options(tmp_path))
        assert again.was_there
        assert again.engine is not None
        assert again.engine.path == engine.path

    def test_a_run_builds_what_it_looks_for(self, tmp_path: Path) -> None:
        build_for_run(saved_graph(), str(tmp_path), None, 8, "openvino", lambda stage, share: None)
        with select(Request(source.identify(saved_graph()), "openvino", engines_dir=str(tmp_path))) as chosen:
            assert chosen.backend.name == "openvino"

    def test_the_plan_is_an_archive_of_what_other_programs_load(self, tmp_path: Path) -> None:
        import openvino as library

        with zipfile.ZipFile(io.BytesIO(openvino_engine().read_plan())) as archive:
            assert archive.namelist() == ["model.xml", "model.bin"]
            archive.extractall(tmp_path)
        compiled = library.Core().compile_model(str(tmp_path / "model.xml"), "CPU")
        assert compiled(np.zeros((1, *SIZE, 3), np.uint8))[0].shape == (1, *SIZE)

    def test_wrong_masks_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Damaged weights: what is compiled is not what the reference was computed with."""
        proto = onnx.load(saved_graph())
        weights = max(proto.graph.initializer, key=lambda each: len(each.dims))
        weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
        compile_engine = OpenVino.compile
        monkeypatch.setattr(
            OpenVino,
            "compile",
            lambda self, data, profile: compile_engine(self, proto.SerializeToString(), profile),
        )
        with pytest.raises(BackendError, match="the masks differ from ONNX Runtime's in float32: Dice"):
            build_engine(options(tmp_path))
        assert not list(tmp_path.glob("*.plan"))
        assert not list(tmp_path.glob("*.json"))

    def test_a_precision_that_the_cpu_took_in_silence_is_refused(self) -> None:
        """OpenVINO computes in float32 where it is asked for what it has not, and does not say so."""
        if OpenVino().cpu.has_bf16:
            pytest.skip("this CPU executes bfloat16")
        plan = openvino_engine().read_plan()
        with pytest.raises(BackendUnavailable, match="computes in fp32, not bf16"):
            OpenVino().load(plan, SIZE, "bf16", 1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"precision": "fp16"}, "'fp16': openvino computes in int8, bf16 or fp32"),
            ({"batch": (1, 8, 8)}, "take one picture at a time"),
            ({"size": ((33, 48),) * 3}, "that 4 divides"),
        ],
    )
    def test_what_makes_no_sense(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            build_engine(options(tmp_path, **changes))

    def test_bf16_on_a_cpu_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        builder = OpenVinoBuilder()
        builder.library.cpu = Cpu("Old CPU (FP32)", has_bf16=False)
        with pytest.raises(UsageError, match=r"bf16: Old CPU \(FP32\) does not execute it"):
            builder.check("bf16", Profile((1, 1, 1), (SIZE,) * 3))

    def test_a_graph_in_half_precision_is_refused(self, tmp_path: Path) -> None:
        proto = onnx.load(saved_graph())
        entry = next(entry for entry in proto.metadata_props if entry.key == onnx_model.KEY)
        entry.value = json.dumps({**json.loads(entry.value), "precision": "fp16"})
        onnx.save(proto, tmp_path / "half.onnx")
        with pytest.raises(UsageError, match=r"a graph in fp16, openvino .* takes one in float32") as caught:
            build_engine(options(tmp_path, str(tmp_path / "half.onnx")))
        assert "--precision fp32" in caught.value.hint

    def test_a_range_of_sizes_is_one_engine(self, tmp_path: Path) -> None:
        graph = saved_graph(any_size=True)
        sizes = ((16, 24), SIZE, (64, 96))
        built = build_engine(options(tmp_path, graph, size=sizes)).engine
        assert built is not None
        with opened(built, size=(64, 96)) as backend:
            pictures = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
            exact = onnx_model.OnnxRunner(Path(graph).read_bytes())(pictures)
            assert np.abs(backend.infer(pictures).astype(int) - exact).max() <= 64
            assert any("proven at 32x48; at 64x96" in note for note in backend.notes)
        with pytest.raises(UsageError, match="not 128x96"):
            opened(built, size=(128, 96))


class TestStore:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("byte", "not the plan that was built: its sha256 differs"),
            ("cut", " bytes, "),
            ("no plan", "is missing"),
            ("no sidecar", "has no sidecar"),
            ("half a sidecar", "not the sidecar of an engine"),
        ],
    )
    def test_what_is_damaged_is_one_sentence(self, engine: Engine, damage: str, message: str) -> None:
        harm(engine.path, damage)
        request = Request(
            source.identify(saved_graph()), "openvino", engines_dir=os.path.dirname(engine.path)
        )
        with pytest.raises(BackendUnavailable, match=message) as caught:
            select(request)
        assert "\n" not in caught.value.message
        assert "--builder openvino" in caught.value.hint

    def test_another_cpu_proves_it_again(self, engine: Engine) -> None:
        backend = opened(engine)
        backend.library.cpu = replace(backend.library.cpu, name="Another CPU (FP32)")
        with backend:
            assert [note for note in backend.notes if "first run on this CPU" in note]
        sidecar = store.load(engine.path).sidecar
        assert "Another CPU (FP32)" in sidecar.proofs
        assert not sidecar.verified_on_gpu
        with opened(store.load(engine.path)) as again:
            assert again.notes == []

    def test_wrong_masks_on_another_cpu_are_refused_for_good(self, engine: Engine) -> None:
        reference = engine.read_reference()
        npz = Path(engine.path).with_suffix(".npz")
        npz.write_bytes(store.pack(replace(reference, maps=255 - reference.maps)))
        backend = opened(engine)
        backend.library.cpu = replace(backend.library.cpu, name="Another CPU (FP32)")
        with pytest.raises(BackendUnavailable, match=r"on Another CPU \(FP32\), batch 1: the masks differ"):
            backend.open()
        found = {"size": SIZE, "flavour": "openvino", "version": engine.sidecar.recipe.version}
        with pytest.raises(BackendUnavailable, match="was run and refused: "):
            store.find(
                os.path.dirname(engine.path),
                engine.sidecar.recipe.source_sha256,
                device=backend.library.cpu,
                **found,  # type: ignore[arg-type]
            )

    def test_bf16_is_not_for_a_cpu_without_it(self, engine: Engine) -> None:
        recipe = replace(engine.sidecar.recipe, precision="bf16")
        assert "computes in bf16" in store._excludes(recipe, Cpu("Old CPU (FP32)", has_bf16=False))
        assert store._excludes(recipe, Cpu("New CPU (FP32, BF16)", has_bf16=True)) == ""

    def test_what_is_no_engine_is_refused_by_openvino(self) -> None:
        with pytest.raises(BackendUnavailable, match="refuses the engine"):
            OpenVino().load(b"no archive", SIZE, "fp32", 1)

    def test_inspect_says_what_it_is(self, engine: Engine) -> None:
        shown = CliRunner().invoke(main, ["inspect", engine.path]).output
        assert f"openvino {engine.sidecar.recipe.version}" in shown
        assert "for any CPU" in shown
        assert "with ONNX Runtime float32" in shown
        assert "the engine itself was run on a CPU" in shown


class TestLibrary:
    def test_one_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino, "installed_version", lambda name: None)
        with pytest.raises(BackendUnavailable, match="openvino is not installed") as caught:
            OpenVino()
        assert caught.value.hint == 'pip install "unet-batch[openvino]"'

    def test_an_unknown_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino, "installed_version", lambda name: "2099.1.0")
        with pytest.raises(BackendUnavailable, match=r"2099\.1\.0 is installed, this program knows 2026\.x"):
            OpenVino()

    def test_one_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(BackendUnavailable, match="openvino does not load"):
            OpenVino()

    def test_its_converter_and_what_that_reports_to_intel_stay_out(self) -> None:
        code = (
            "import sys\n"
            "from unet_batch.engine.openvino import OpenVino\n"
            "OpenVino()\n"
            "unwanted = {'openvino.tools.ovc', 'openvino_telemetry', 'ssl'} & set(sys.modules)\n"
            "assert not unwanted, unwanted\n"
            "from openvino.tools.ovc import convert_model"  # for whoever asks for it
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_a_run_imports_no_pytorch(self, engine: Engine, tmp_path: Path) -> None:
        code = (
            "import sys, unet_batch\n"
            "with unet_batch.load(sys.argv[1], engines_dir=sys.argv[2]) as segmenter:\n"
            "    assert segmenter.backend.name == 'openvino', segmenter.passed_over\n"
            "    assert segmenter(sys.argv[3]).shape == (128, 192)\n"
            "from click.testing import CliRunner\n"
            "from unet_batch.cli import main\n"
            "_, model, engines, photo, out = sys.argv\n"
            "words = ['run', photo, '-o', out, '-m', model, '--engines-dir', engines]\n"
            "done = CliRunner().invoke(main, words)\n"
            "assert done.exit_code == 0 and 'backend   openvino' in done.output, done.output\n"
            "unwanted = {'torch', 'onnx', 'onnxruntime', 'onnxscript', 'nncf'} & set(sys.modules)\n"
            "assert not unwanted, unwanted"
        )
        paths = (os.path.dirname(engine.path), str(next(Path(photos()).iterdir())), str(tmp_path / "out"))
        subprocess.run([sys.executable, "-c", code, saved_checkpoint(), *paths], check=True)


def test_numpy_is_looked_up_before_there_are_threads() -> None:
    """Under a lock of C++: two threads with a first call each would wait for each other for ever."""
    code = """
import sys
import numpy as np
import openvino
from numpy.lib import NumpyVersion
from openvino import opset13 as ops
from unet_batch.engine.openvino import LoadedEngine

given = ops.parameter([1, 8, 12, 3], np.uint8)
model = openvino.Model([ops.squeeze(ops.slice(given, [0], [1], [1], [3]), [3])], [given])
engine = LoadedEngine(openvino.Core().compile_model(model, "CPU"), 2)
NumpyVersion.__init__ = lambda self, text: sys.exit("NumPy is looked up only now")
print(engine(np.full((1, 8, 12, 3), 7, np.uint8))[0, :3].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[7, 7, 7]\n", "")


def test_ctrl_c_after_an_engine_was_closed_in_another_thread() -> None:
    """The plugin gives the thread that loads it a stack for signals, and takes it along when it goes."""
    code = """
import gc, signal, threading
from unet_batch.engine.openvino import OpenVino

held = [OpenVino()]
closing = threading.Thread(target=lambda: (held.clear(), gc.collect()))
closing.start()
closing.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
