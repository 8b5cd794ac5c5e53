"""INT8: what NNCF quantizes is what was asked for, equal to float32, and refused where it is not."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from tests.helpers.foreign import SIZE, Net
from unet_batch.build import BuildOptions, Built, build_engine
from unet_batch.cli import main
from unet_batch.engine import int8, onnx_model, pictures, proof, source, store
from unet_batch.engine.importing.importer import import_graph
from unet_batch.engine.importing.settings import Settings
from unet_batch.engine.onnx_model import OnnxModel, OnnxRunner
from unet_batch.engine.openvino import Cpu, OpenVino
from unet_batch.engine.pictures import Calibration, calibration_pictures
from unet_batch.engine.proof import Parity
from unet_batch.engine.sidecar import parse_sidecar
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.inference.backends.select import Request, select
from unet_batch.testing import fake_spec
from unet_batch.types import Size

# Not imported here, which takes 1.7 s: every process of a run would do so, and one of them needs it
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason='needs NNCF: pip install "unet-batch[int8]"'
)

BLUR = np.full((1, 1, 3, 3), 1 / 9)
POINT = np.zeros((1, 1, 3, 3))
POINT[..., 1, 1] = 1


def net(kind: str = "plain") -> Net:
    """Bright pixels against dark ones, through dense, depthwise and transposed convolutions.

    Args:
        kind: `wide`: one channel that enters the second convolution takes values two thousand times those
            that matter in another; `deep`: all of them hold at once values a thousand times those that
            matter, which no scale brings together; `skip`: the last dense convolution sees what comes
            from the first one as well, smaller than one, behind a Concat.
    """
    made = Net()
    mean = np.repeat(BLUR, 3, 1) / 3
    first = np.repeat(mean, 8, 0)
    second = np.repeat(np.repeat(POINT, 8, 0), 8, 1) / 8
    if kind == "wide":
        first[1:] *= 2000
        second[:, 1:] = 0
        second *= 8
    skip = made.add("Conv", made.weight(first), pads=[1] * 4).add("Relu").last
    if kind == "deep":
        made.add("Mul", made.weight(1.12)).add("Pow", made.weight(64))
    made.add("Conv", made.weight(second), pads=[1] * 4, name="second").add("Relu")
    if kind == "deep":
        made.add("Pow", made.weight(1 / 64))
    mix = np.repeat(np.repeat(POINT, 8, 0), 8, 1) / 8
    mix *= made.rng.uniform(0.9, 1.1, (8, 8, 1, 1))
    made.add("Conv", made.weight(mix), pads=[1] * 4).add("Relu")
    made.add("Conv", made.weight(np.repeat(POINT, 8, 0)), pads=[1] * 4, group=8).add("Relu")
    if kind == "skip":
        made.add("Neg", at=skip).add("Concat", at=made.nodes[-2].output[0])
        made.nodes[-1].input.append(made.nodes[-2].output[0])
        made.nodes[-1].attribute.append(helper.make_attribute("axis", 1))
        made.add("Conv", made.weight(np.repeat([[1 / 8] * 8 + [-1 / 8] * 8], 8, 0)[..., None, None] / 2))
    else:
        made.add("Conv", made.weight(np.full((8, 8, 1, 1), 1 / 8)), strides=[1, 1])
    made.add("Conv", made.weight(np.full((1, 8, 1, 1), 1 / 8)))
    return made.add("Sub", made.weight([0.5])).add("Mul", made.weight([40.0])).add("Sigmoid")


@functools.cache
def folder() -> Path:
    """A folder that goes with the process."""
    path = tempfile.mkdtemp(prefix="unet-batch-int8-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@functools.cache
def graph(kind: str = "plain") -> str:
    """Path of that network as a graph of ours."""
    path = net(kind).save(folder() / f"{kind}-foreign.onnx")
    given = Settings(range="0..1", name=kind)
    return import_graph(path, str(folder() / f"{kind}-mine.onnx"), given).path


@functools.cache
def photos(count: int = 25, first: int = 0) -> str:
    """A folder of bright boxes on dark grounds, at the network's size."""
    path = folder() / f"boxes-{count}-{first}"
    path.mkdir()
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        picture = rng.integers(15, 40, (*SIZE, 3), np.uint8)
        top, left = rng.integers(2, 12), rng.integers(2, 20)
        picture[top : top + 14, left : left + 20] = rng.integers(215, 240, (14, 20, 3), np.uint8)
        cv2.imwrite(str(path / f"{number:03}.png"), picture)
    return str(path)


def options(out: Path, model: str | None = None, **changes: object) -> BuildOptions:
    settings = {"precision": "int8", "calibration_images": (photos(),), **changes}
    return BuildOptions(model or graph(), str(out), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The quantized graph alone, as for a TensorRT elsewhere."""
    built = build_engine(options(tmp_path_factory.mktemp("onnx"), onnx_only=True))
    assert built.onnx is not None
    return onnx_model.read(built.onnx)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An engine for CPUs, to look at or to copy."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')
    return build_engine(options(tmp_path_factory.mktemp("engines"), builder="openvino"))


class TestGraph:
    def test_ranges_are_symmetric_and_of_weights_per_channel(self, written: OnnxModel) -> None:
        proto = onnx.load_model_from_string(written.data)
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        nodes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
        zeros = [tensors[node.input[2]] for node in nodes]
        assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
        weights = [node for node in nodes if node.input[0] in tensors]
        assert len(weights) == 4
        for node in weights:
            assert tensors[node.input[1]].shape == tensors[node.input[0]].shape[:1]
            (axis,) = (entry.i for entry in node.attribute if entry.name == "axis")
            assert axis == 0
        assert all(tensors[node.input[1]].size == 1 for node in nodes if node not in weights)

    def test_depthwise_and_last_convolutions_stay_float32(self, written: OnnxModel) -> None:
        found = [each.precision for each in written.convolutions.values()]
        assert found == ["int8", "int8", "int8", "fp32", "int8", "fp32"]
        layers = [each.layer for each in written.convolutions.values()]
        assert written.float32 == (layers[3], layers[5])
        assert written.precision == "int8"

    def test_it_is_valid_and_its_masks_are_those_of_float32(self, written: OnnxModel) -> None:
        onnx.checker.check_model(onnx.load_model_from_string(written.data), full_check=True)
        exact = onnx_model.read(graph())
        shown = calibration_pictures((photos(25, 500),), (), exact.spec, SIZE).pictures
        parity = proof.compare(OnnxRunner(written.data)(shown), OnnxRunner(exact.data)(shown), exact.spec)
        parity.check("int8", "it")
        assert 0.05 < parity.foreground < 0.5

    def test_its_work_is_that_of_the_graph_it_came_from(self, written: OnnxModel) -> None:
        before = onnx_model.read(graph()).convolutions
        assert {name: each.flops for name, each in written.convolutions.items()} == {
            name: each.flops for name, each in before.items()
        }

    def test_it_says_what_calibrated_it(self, written: OnnxModel) -> None:
        facts = written.facts["calibration"]
        assert (facts["pictures"], facts["held_out"], facts["source"]) == (20, 5, "20 pictures")

    def test_a_layer_that_int8_breaks_stays_float32(self, tmp_path: Path) -> None:
        path = build_engine(options(tmp_path, graph("deep"), onnx_only=True)).onnx
        assert path is not None
        made = onnx_model.read(path)
        found = [each.precision for each in made.convolutions.values()]
        assert found[:3] == ["int8", "fp32", "int8"]
        assert list(made.convolutions.values())[1].layer in made.float32

    def test_channels_of_unlike_ranges_are_brought_together(self, tmp_path: Path) -> None:
        path = build_engine(options(tmp_path, graph("wide"), onnx_only=True)).onnx
        assert path is not None
        found = [each.precision for each in onnx_model.read(path).convolutions.values()]
        assert found == ["int8", "int8", "int8", "fp32", "int8", "fp32"]

    def test_what_brings_them_together_changes_nothing_in_float32(self) -> None:
        exact = onnx_model.read(graph("wide"))
        proto = onnx.load_model_from_string(exact.data)
        shown = calibration_pictures((photos(25, 500),), (), exact.spec, SIZE).pictures
        dense, kept = int8._choose(proto, exact)
        added = int8._equalize(proto, dense, shown)
        assert len(added) == len(dense) == 4
        assert not dense & set(kept)
        onnx.checker.check_model(proto, full_check=True)
        changed = OnnxRunner(proto.SerializeToString())(shown).astype(int)
        assert abs(changed - OnnxRunner(exact.data)(shown)).max() <= 1
        names = [node.input[0] for node in proto.graph.node if node.name in dense]
        ranges = int8._channel_maxima(proto, names, shown)
        assert all(each.max() < 20 * each.min() for each in ranges.values())

    def test_an_encoder_of_ours_stays_float32(self) -> None:
        plain = onnx_model.read(graph())
        names = list(plain.convolutions)
        layers = ["encoder.stem.0", *("encoder.stages.0" for _ in names[2:]), "merge.0.0"]
        work = {
            name: replace(each, layer=layer)
            for (name, each), layer in zip(plain.convolutions.items(), layers, strict=True)
        }
        proto = onnx.load_model_from_string(plain.data)
        other = replace(plain, convolutions=work)
        ours = replace(other, spec=replace(plain.spec, architecture="encoder-unet"))
        assert int8._choose(proto, other)[0] == {names[0], names[1], names[2], names[4]}
        assert int8._choose(proto, ours)[0] == set()
        work[names[1]] = replace(work[names[1]], layer="merge.0.0")
        assert int8._choose(proto, ours)[0] == {names[1]}

    def test_where_too_little_is_left_it_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(int8, "MIN_SHARE", 0.99)
        with pytest.raises(BackendError, match=r"only \d\d% of the convolutions' arithmetic can be int8"):
            build_engine(options(tmp_path, onnx_only=True))
        assert not list(tmp_path.glob("*.onnx"))

    def test_without_nncf_it_is_a_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(BackendUnavailable, match="INT8 needs NNCF") as caught:
            build_engine(options(tmp_path, onnx_only=True))
        assert caught.value.hint == 'pip install "unet-batch[int8]"'

    def test_nothing_is_told_to_anybody(self, tmp_path: Path) -> None:
        """NNCF sends its telemetry where the package for it can be imported."""
        code = (
            "import sys\nsys.modules['torch'] = None  # takes seconds to import\n"
            "from unet_batch.engine import int8\nint8._import_nncf()\n"
            "from nncf.telemetry import telemetry\n"
            "assert type(telemetry).__name__ == 'MagicMock', telemetry\n"
            "assert sys.modules['openvino_telemetry'] is None"
        )
        home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **home})
        assert not [path for path in tmp_path.rglob("*") if "telemetry" in path.name or "intel" in path.name]


class TestEngine:
    def test_it_is_proven_and_says_how(self, built: Built) -> None:
        assert built.engine is not None
        sidecar = built.engine.sidecar
        assert sidecar.recipe.precision == "int8"
        assert sidecar.built["calibration"]["sha256"] == sidecar.recipe.calibration
        assert {share["source"]: share["asked"] for share in sidecar.shares} == {
            "onnx": "int8",
            "engine": "int8",
        }
        assert all(share["body"] == 1 and 0.7 < share["overall"] < 1 for share in sidecar.shares)
        proven = sidecar.proofs[OpenVino().cpu.name]["batch 1"]
        assert (proven["pictures"], proven["reference"]) == (5, "ONNX Runtime")
        assert proven["dice"] >= 0.999
        assert proven["worst"] >= 0.99
        assert len(sidecar.float32) == 2
        assert parse_sidecar(sidecar.as_dict()) == sidecar

    def test_behind_a_concat_it_computes_what_the_graph_says(self, tmp_path: Path) -> None:
        """Signed values are rounded to whole numbers there by OpenVINO 2026.4, of 0..1 to 0 and 1."""
        made = build_engine(options(tmp_path, graph("skip"), builder="openvino"))
        assert made.engine is not None
        assert made.onnx is not None
        quantized = onnx_model.read(made.onnx)
        library = OpenVino()
        engine = library.load(made.engine.read_plan(), SIZE, "int8", 1)
        shown = calibration_pictures((photos(25, 500),), (), quantized.spec, SIZE).pictures
        difference = abs(engine.batch(shown).astype(int) - OnnxRunner(quantized.data)(shown))
        assert difference.mean() < 0.5

    def test_the_same_pictures_find_it_and_others_make_another(self, built: Built, tmp_path: Path) -> None:
        assert built.engine is not None
        for file in Path(built.engine.path).parent.iterdir():
            shutil.copy(file, tmp_path)
        assert build_engine(options(tmp_path, builder="openvino")).was_there
        other = build_engine(
            options(tmp_path, builder="openvino", calibration_images=(photos(25, 100),))
        ).engine
        assert other is not None
        assert other.sidecar.recipe.calibration != built.engine.sidecar.recipe.calibration
        assert other.path != str(tmp_path / Path(built.engine.path).name)

    def test_a_run_takes_it_before_one_in_float32(self, built: Built, tmp_path: Path) -> None:
        assert built.engine is not None
        for file in Path(built.engine.path).parent.glob(Path(built.engine.path).stem + ".*"):
            shutil.copy(file, tmp_path)
        build_engine(BuildOptions(graph(), str(tmp_path), builder="openvino", precision="fp32"))
        with select(Request(source.identify(graph()), engines_dir=str(tmp_path), device="cpu")) as chosen:
            assert (chosen.backend.name, chosen.backend.precision) == ("openvino", "int8")
            shown = calibration_pictures((photos(25, 500),), (), chosen.backend.spec, SIZE).pictures[:1]
            exact = OnnxRunner(Path(graph()).read_bytes())(shown)
            assert proof.compare(chosen.backend.infer(shown), exact, chosen.backend.spec).dice >= 0.99

    def test_wrong_masks_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compile_engine = OpenVino.compile

        def compile_damaged(self: OpenVino, data: bytes, profile: object) -> object:
            proto = onnx.load_model_from_string(data)
            scales = {node.input[1] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
            for tensor in proto.graph.initializer:
                if tensor.name in scales:
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
            return compile_engine(self, proto.SerializeToString(), profile)  # type: ignore[arg-type]

        monkeypatch.setattr(OpenVino, "compile", compile_damaged)
        with pytest.raises(BackendError, match=r"in the worst one, at least 0\.999 and 0\.99") as caught:
            build_engine(options(tmp_path, builder="openvino"))
        assert "--calibration-images" in caught.value.hint
        assert not [*tmp_path.glob("*.plan"), *tmp_path.glob("*.json")]

    def test_a_cpu_without_int8_is_not_for_it(self, built: Built) -> None:
        assert built.engine is not None
        recipe = built.engine.sidecar.recipe
        old = Cpu("Old CPU (FP32)", has_bf16=False, has_int8=False)
        assert "computes in int8, which Old CPU" in store._excludes(recipe, old)
        assert store._excludes(recipe, Cpu("New CPU (FP32, INT8)", has_bf16=False)) == ""

    def test_inspect_says_what_calibrated_it(self, built: Built) -> None:
        assert built.engine is not None
        shown = CliRunner().invoke(main, ["inspect", built.engine.path]).output
        assert "with 20 pictures" in shown
        assert "5 held out for the proof" in shown
        assert "of the arithmetic is int8" in shown
        assert "kept in float32: " in shown

    def test_tensorrt_rtx_builds_the_graph(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
        made = build_engine(options(tmp_path, builder="tensorrt-rtx", batch=(1, 2, 2))).engine
        assert made is not None
        assert {share["source"]: share["body"] for share in made.sidecar.shares} == {"onnx": 1, "network": 1}
        assert not made.sidecar.verified_on_gpu
        assert made.sidecar.recipe.calibration

    def test_a_graph_that_is_quantized_already_is_built_as_it_is(
        self, written: OnnxModel, tmp_path: Path
    ) -> None:
        pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')
        (tmp_path / "mine.onnx").write_bytes(written.data)
        asked = BuildOptions(str(tmp_path / "mine.onnx"), str(tmp_path), onnx_only=True)
        with pytest.raises(UsageError, match="calibrated already"):
            build_engine(options(tmp_path, asked.model, onnx_only=True))
        with pytest.raises(BackendUnavailable, match=r"mine\.npz"):
            build_engine(asked)


class TestCalibration:
    def chosen(self, paths: Sequence[str], proofs: Sequence[str] = (), size: Size = SIZE) -> Calibration:
        return calibration_pictures(paths, proofs, fake_spec(size), size)

    def test_a_bad_picture_is_named_and_the_others_are_used(self, tmp_path: Path) -> None:
        shutil.copytree(photos(), tmp_path / "some")
        for number in range(25):
            (tmp_path / "some" / f"bad{number}.png").write_bytes(b"no picture")
        found = self.chosen((str(tmp_path / "some"),))
        assert 16 <= len(found.pictures) < 25
        assert f"of {50 - 10} pictures to calibrate with cannot be read, for example: " in found.note

    def test_too_few_are_counted(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="8 pictures to calibrate INT8 with: 10 were given, of which 0"):
            self.chosen((photos(10),))

    def test_pictures_of_the_proof_are_left_out(self) -> None:
        with pytest.raises(UsageError, match="of which 25 prove the engine"):
            self.chosen((photos(),), (photos(),))
        whole = self.chosen((photos(),))
        held_out = [cv2.imread(path)[..., ::-1] for path in whole.held_out]
        assert len(held_out) == 5
        for picture in held_out:
            assert not (whole.pictures == picture).all((1, 2, 3)).any()

    def test_the_same_pictures_are_the_same_set_whatever_their_folder(self, tmp_path: Path) -> None:
        shutil.copytree(photos(), tmp_path / "again")
        first, again = self.chosen((photos(),)), self.chosen((str(tmp_path / "again"),))
        assert first.sha256 == again.sha256
        assert first.sha256 != self.chosen((photos(25, 100),)).sha256

    def test_drawn_scenes_are_none_of_those_that_prove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pictures, "CALIBRATION_SCENES", 2)
        drawn = self.chosen(())
        assert (drawn.pictures.shape, drawn.source, drawn.held_out) == ((2, *SIZE, 3), "2 drawn scenes", ())
        seeds = range(pictures.FIRST_SCENE, pictures.FIRST_SCENE + pictures.SCENES)
        assert pictures.FIRST_CALIBRATION_SCENE not in seeds

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"calibration_images": ()}, "none are given"),
            ({"precision": "fp32"}, "it is fp32, and INT8 alone is calibrated"),
        ],
    )
    def test_what_makes_no_sense(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            build_engine(options(tmp_path, onnx_only=True, **changes))

    def test_only_bundled_models_are_calibrated_with_drawn_scenes(self) -> None:
        from unet_batch.model import zoo

        assert source.Source(zoo.resolve("classic")).is_bundled
        assert not source.Source(graph()).is_bundled


@pytest.mark.parametrize(
    ("dice", "worst", "share"), [(1.0, 1.0, 0.0), (0.9995, 0.999, 0.5), (0.9999, 0.98, 2.0)]
)
def test_the_loss_is_that_of_the_nearer_limit(dice: float, worst: float, share: float) -> None:
    parity = Parity(4, dice, worst, 0.0, 0.0, 0.5)
    assert int8.loss(parity) == pytest.approx(share)
    if share > 1:
        with pytest.raises(BackendError, match=r"and 0\.98000 in the worst one"):
            parity.check("int8", "it")
    else:
        parity.check("int8", "it")
