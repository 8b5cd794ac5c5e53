"""ONNX graphs wherever `-m` stands, as a person meets them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

import unet_batch as package
from tests.helpers.command import unet_batch
from tests.helpers.graphs import openvino_engine, photos, saved_checkpoint, saved_graph
from tests.helpers.processes import Forked, command_line
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE, until
from unet_batch.cli import main
from unet_batch.engine import onnx_model, source
from unet_batch.errors import BackendUnavailable, CheckpointError

ON_CPU = ("--device", "cpu")


def masks(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "masks").iterdir()}


def many(folder: Path, count: int) -> Path:
    """So many links to the photos."""
    folder.mkdir()
    files = sorted(Path(photos()).iterdir())
    for number in range(count):
        (folder / f"{number:04}.jpg").hardlink_to(files[number % len(files)])
    return folder


class TestIdentity:
    def test_a_graph_is_the_model_that_it_was_exported_from(self) -> None:
        checkpoint, graph = source.identify(saved_checkpoint()), source.identify(saved_graph())
        assert (graph.sha256, graph.spec) == (checkpoint.sha256, checkpoint.spec)
        assert (graph.is_graph, checkpoint.is_graph) == (True, False)
        assert graph.path == saved_graph()
        assert 0.9 < graph.parameters / checkpoint.parameters < 1.1

    def test_it_is_known_by_its_contents_whatever_it_is_called(self, tmp_path: Path) -> None:
        shutil.copy(saved_graph(), tmp_path / "model")
        assert source.identify(str(tmp_path / "model")).is_graph

    def test_a_graph_of_one_size_is_a_model_of_that_size(self, tmp_path: Path) -> None:
        """`build-engine --size 64x96 --onnx-only` of a model of 32x48."""
        proto = onnx.load(saved_graph())
        for value, sides in ((proto.graph.input[0], (64, 96)), (proto.graph.output[0], (64, 96))):
            for dim, side in zip(value.type.tensor_type.shape.dim[1:3], sides, strict=True):
                dim.dim_value = side
        onnx.save(proto, tmp_path / "large.onnx")
        assert source.identify(str(tmp_path / "large.onnx")).spec.input_size == (64, 96)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("cut", "not an ONNX graph, or a damaged one"),
            ("no metadata", "carries no description of its model"),
            ("old", "version 0 of the network's graph, this program makes"),
            ("picture", "a picture .PNG., not a model, not an ONNX graph"),
            ("missing", "no such model file"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, tmp_path: Path, damage: str, message: str) -> None:
        path, proto = tmp_path / "x.onnx", onnx.load(saved_graph())
        if damage == "cut":
            path.write_bytes(Path(saved_graph()).read_bytes()[:-100])
        elif damage == "no metadata":
            del proto.metadata_props[:]
            onnx.save(proto, path)
        elif damage == "old":
            entry = next(entry for entry in proto.metadata_props if entry.key == onnx_model.KEY)
            entry.value = json.dumps({**json.loads(entry.value), "graph": 0})
            onnx.save(proto, path)
        elif damage == "picture":
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, "PNG")
        done = CliRunner().invoke(main, ["run", photos(), "-m", str(path), "-o", str(tmp_path / "out")])
        assert done.exit_code == 2
        assert re.search(message, " ".join(done.output.split())), done.output
        assert "Traceback" not in done.output
        assert not (tmp_path / "out/masks").exists()

    def test_without_the_onnx_package_the_command_that_installs_it_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(BackendUnavailable, match="onnx is not installed") as caught:
            source.identify(saved_graph())
        assert caught.value.hint == 'pip install "unet-batch[onnx]"'

    def test_a_training_cannot_begin_with_one(self, tmp_path: Path) -> None:
        from unet_batch.model import checkpoint

        with pytest.raises(CheckpointError, match="an ONNX graph of unet-batch"):
            checkpoint.identify(saved_graph())


class TestRun:
    def test_its_masks_are_those_of_its_checkpoint_and_either_goes_on(self, tmp_path: Path) -> None:
        """A night's work does not begin anew because the graph was taken in the morning."""
        models = {"graph": saved_graph(), "checkpoint": saved_checkpoint()}
        made = {}
        for name, model in models.items():
            out = tmp_path / name
            assert unet_batch("run", photos(), "-o", out, "-m", model, *ON_CPU).returncode == 0
            (out / "masks" / "scene_0000.png").unlink()
            other = next(path for other, path in models.items() if other != name)
            done = unet_batch("run", photos(), "-o", out, "-m", other, *ON_CPU)
            assert done.returncode == 0, done.stderr
            assert re.search(r"^resume +1 with outputs gone or cut short, 3 already done$", done.stdout, re.M)
            lines = (out / "manifest.jsonl").read_text().splitlines()
            makers = [json.loads(line).get("maker") for line in lines]
            assert {"onnxruntime-cpu fp32"} < set(filter(None, makers))
            made[name] = [np.array(Image.open(path)) for path in sorted((out / "masks").iterdir())]
        for ours, theirs in zip(made["graph"], made["checkpoint"], strict=True):
            assert (ours != theirs).mean() < 0.01
        assert 0.001 < np.mean([(mask > 0).mean() for mask in made["graph"]]) < 0.999

    @needs_posix
    def test_killed_and_resumed(self, tmp_path: Path) -> None:
        folder, out = many(tmp_path / "in", 300), tmp_path / "out"
        command = ("run", str(folder), "-m", saved_graph(), *ON_CPU)
        process = Forked(command_line, *command, "-o", str(out))
        try:
            while len(list((out / "masks").glob("*.png"))) < 5:
                time.sleep(0.01)
                assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        assert 5 <= len(masks(out)) < 300
        for target in (out, tmp_path / "clean"):
            done = unet_batch(*command, "-o", target)
            assert done.returncode == 0, done.stderr
        assert masks(out) == masks(tmp_path / "clean")
        assert len(masks(out)) == 300

    def test_says_what_runs_it(self, tmp_path: Path) -> None:
        done = unet_batch("run", photos(), "-o", tmp_path / "out", "-m", saved_graph())
        assert re.search(r"^model +net · 0\.0 M parameters · 32x48", done.stdout, re.M)
        assert re.search(r"^backend +onnxruntime-cpu fp32 \(", done.stdout, re.M)
        assert "PyTorch runs checkpoints, not ONNX graphs" in done.stdout

    def test_built_and_run_in_one_command(self, tmp_path: Path) -> None:
        openvino_engine()  # or skip
        engines = ("--engines-dir", tmp_path / "engines")
        command = (
            "run",
            photos(),
            "-o",
            tmp_path / "out",
            "-m",
            saved_graph(),
            "--backend",
            "openvino",
            *engines,
        )
        refused = unet_batch(*command)
        assert refused.returncode == 2
        assert re.search(r"^error: no engine in .*engines", refused.stderr)
        assert f"unet-batch build-engine {saved_graph()} --builder openvino" in refused.stderr
        done = unet_batch(*command, "--build")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^backend +openvino ", done.stdout, re.M)
        assert len(masks(tmp_path / "out")) == 4

    @needs_posix
    def test_watched(self, tmp_path: Path) -> None:
        folder, out = many(tmp_path / "in", 2), tmp_path / "out"
        process = Forked(
            command_line, "watch", str(folder), "-o", str(out), "-m", saved_graph(), "--settle", "0", *ON_CPU
        )
        try:
            until(lambda: len(list((out / "masks").glob("*.png"))) == 2)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


def test_evaluated_like_its_checkpoint(tmp_path: Path) -> None:
    root = Path(photos()).parent
    dice = []
    for model in (saved_graph(), saved_checkpoint()):
        done = CliRunner().invoke(main, ["evaluate", str(root), "-m", model, *ON_CPU, "--json"])
        report = json.loads(done.stdout)
        assert report["model"]["sha256"] == source.identify(model).sha256
        dice.append(report["photo"]["mean"]["dice"])
    assert dice[0] == pytest.approx(dice[1], abs=0.005)


def test_python_takes_it() -> None:
    photo = next(Path(photos()).iterdir())
    with package.load(saved_graph(), backend="onnxruntime") as segmenter:
        assert segmenter(photo).shape == (128, 192)
        assert segmenter.backend.name == "onnxruntime-cpu"


def test_running_one_imports_no_pytorch() -> None:
    code = (
        "import sys, unet_batch\n"
        "with unet_batch.load(sys.argv[1]) as segmenter:\n"
        "    assert segmenter.backend.name == 'onnxruntime-cpu', segmenter.passed_over\n"
        "    segmenter(sys.argv[2])\n"
        "assert 'torch' not in sys.modules"
    )
    photo = str(next(Path(photos()).iterdir()))
    subprocess.run([sys.executable, "-c", code, saved_graph(), photo], check=True)


def test_inspected() -> None:
    done = CliRunner().invoke(main, ["inspect", saved_graph()])
    assert done.exit_code == 0
    assert "opset 18" in done.output
