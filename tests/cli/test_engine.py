"""`build-engine`, `inspect` and the choice of backend in `run`, as a person meets them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers.command import unet_batch
from tests.helpers.engines import confident, harm, remember_exports
from unet_batch import gpu
from unet_batch.cli import main
from unet_batch.engine import flavours, openvino
from unet_batch.model import checkpoint
from unet_batch.model.zoo import BUNDLED
from unet_batch.scenes import write_samples

pytest.importorskip(
    "tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU: pip install tensorrt-rtx"
)
TERMS = "non-commercial: drawn for a test"
needs_no_gpu = pytest.mark.skipif(not gpu.missing(), reason="this machine has a GPU: nothing falls back")


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, photos, and an engine."""
    folder = tmp_path_factory.mktemp("home")
    model = confident(size=(64, 96))
    spec = replace(model.spec, name="net", terms=TERMS)
    checkpoint.save(str(folder / "net.safetensors"), model.model, spec)
    write_samples(str(folder), 3, (128, 192))
    done = unet_batch(
        *("build-engine", "net.safetensors", "--proof-images", "photos", "--batch", "1,2,4"), cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder


def invoke(folder: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, list(arguments))


def labelled(text: str) -> dict[str, str]:
    return {line[:10].strip(): line[10:] for line in text.splitlines() if line[:10].strip()}


class TestBuildEngine:
    def test_says_what_was_proven(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        result = invoke(home, "build-engine", "net.safetensors", "--batch", "1,2,4", monkeypatch=monkeypatch)
        assert result.exit_code == 0
        said = labelled(result.stdout)
        assert said["plan"].startswith("engines/net-64x96-fp16-")
        assert said["builder"].startswith("tensorrt-rtx ")
        assert said["profile"] == "batch 1..4 (best 2), 64x96"
        assert said["precision"].startswith("100.00% of the body's arithmetic is fp16 · ")
        assert said["precision"].endswith("counted in: onnx, network")
        assert said["parity"].startswith("Dice 0.99") or said["parity"].startswith("Dice 1.0")
        assert (
            "3 pictures at batch 1, 3 pictures at batch 2 and 1, 6 pictures at batch 4 and 2" in result.stdout
        )
        assert "it was there already" in said["note"]

    def test_stages_in_a_pipe(self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ("--proof-images", "photos", "--engines-dir", str(tmp_path))
        done = invoke(home, "build-engine", "net.safetensors", *arguments, monkeypatch=monkeypatch)
        assert [line[10:] for line in done.stderr.splitlines()][:3] == [
            "export to ONNX",
            "PyTorch in float32",
            "compare ONNX with PyTorch",
        ]
        assert labelled(done.stdout)["onnx"].endswith(".onnx")

    def test_json(self, home: Path) -> None:
        done = unet_batch("build-engine", "net.safetensors", "--batch", "1,2,4", "--json", cwd=home)
        data = json.loads(done.stdout)
        assert data["was_there"]
        assert data["sidecar"]["format"] == "unet-batch engine"
        assert data["sidecar"]["shares"][-1]["body"] == 1

    def test_the_folder_from_the_environment(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ("build-engine", "net.safetensors", "--onnx-only", "--proof-images", "photos", "-q")
        monkeypatch.setenv("UNET_BATCH_ENGINES", str(tmp_path / "mine"))
        done = invoke(home, *arguments, monkeypatch=monkeypatch)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
        assert list((tmp_path / "mine").glob("net-64x96-fp16-*.onnx"))

    def test_a_model_repository(self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ("build-engine", "net.safetensors", "--onnx-only", "--proof-images", "photos")
        places = ("--engines-dir", str(tmp_path / "engines"), "--triton", str(tmp_path / "models"))
        result = invoke(home, *arguments, *places, "--batch", "1,2,4", monkeypatch=monkeypatch)
        assert result.exit_code == 0
        version = tmp_path / "models" / "net" / "1"
        assert labelled(result.stdout)["triton"].endswith("models/net/1")
        (graph,) = (tmp_path / "engines").glob("*.onnx")
        assert (version / "model.onnx").read_bytes() == graph.read_bytes()
        assert "max_batch_size: 4\n" in (version.parent / "config.pbtxt").read_text()

    def test_triton_loads_no_plan_of_tensorrt_rtx(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ("build-engine", "net.safetensors", "--builder", "tensorrt-rtx")
        places = ("--engines-dir", str(tmp_path / "engines"), "--triton", str(tmp_path / "models"))
        result = invoke(home, *arguments, *places, monkeypatch=monkeypatch)
        assert result.exit_code == 2
        assert "Triton loads plans of TensorRT, and none of tensorrt-rtx" in result.stderr
        assert not list(tmp_path.iterdir())

    def test_without_a_builder(self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flavours, "MODULES", dict.fromkeys(flavours.NAMES, "no_such_module"))
        monkeypatch.setattr(openvino, "installed_version", lambda name: None)
        arguments = (
            "build-engine",
            "net.safetensors",
            "--proof-images",
            "photos",
            "--engines-dir",
            str(tmp_path),
        )
        models = tmp_path / "models"
        result = invoke(home, *arguments, "--triton", str(models), monkeypatch=monkeypatch)
        assert result.exit_code == 1
        assert not models.exists()  # what was asked for is an engine
        assert list(tmp_path.glob("*.onnx"))
        assert labelled(result.stdout)["parity"].startswith("Dice ")
        said = labelled(result.stderr)
        assert said["missing"] == (
            "no engine was built: tensorrt is not installed; tensorrt-rtx is not installed; "
            "openvino is not installed"
        )
        assert said["fix"].startswith("pip install ")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--size", "64"], "is not a size"),
            (["--size", "64x96,128x192"], "one size, or smallest,best,largest"),
            (["--batch", "1,2"], "one number, or smallest,best,largest"),
            (["--batch", "4,2,8"], "smallest, best and largest expected"),
            (["--workspace", "much"], "is not an amount of memory"),
            (["--size", "64x90"], "use --size 64x88"),
            (["--opset", "12"], "17<=x<=22"),
        ],
    )
    def test_what_makes_no_sense(
        self, home: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        command = ("build-engine", "net.safetensors", "--engines-dir", str(tmp_path), *arguments)
        result = invoke(home, *command, monkeypatch=monkeypatch)
        assert result.exit_code == 2
        assert message in result.stderr

    @needs_no_gpu
    def test_tensorrt_needs_a_gpu_or_is_not_installed(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = invoke(
            home, "build-engine", "net.safetensors", "--builder", "tensorrt", monkeypatch=monkeypatch
        )
        assert result.exit_code == 2
        assert "error: tensorrt" in result.stderr
        assert " hint: " in result.stderr

    def test_amounts_of_memory(self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ("--workspace", "1.5G", "--batch", "2", "--opt-level", "1", "--json")
        places = ("--proof-images", "photos", "--engines-dir", str(tmp_path))
        done = invoke(home, "build-engine", "net.safetensors", *arguments, *places, monkeypatch=monkeypatch)
        recipe = json.loads(done.stdout)["sidecar"]["recipe"]
        assert recipe["options"] == {"opt_level": 1, "workspace": 1536 * 2**20}
        assert recipe["batch"] == [2, 2, 2]


class TestInspect:
    def test_a_checkpoint(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        result = invoke(tmp_path, "inspect", "classic", monkeypatch=monkeypatch)
        assert result.exit_code == 0
        said = labelled(result.stdout)
        assert said["terms"] == BUNDLED["classic"].terms
        assert said["tried on"].startswith("192 photos of 12 cars kept out of training")
        assert said["not for"].startswith("streets, crowds of cars")
        assert said["model"].startswith("classic · U-Net, widths 32, 64, 128, 256, 512 · 160x240")
        assert said["weights"].startswith("7,763,041 parameters")
        assert "metrics network: accuracy 0.9965, dice 0.9918" in result.stdout
        assert str(Path.home()) not in result.stdout.partition("\n")[2], (
            "a checkpoint names no folder of the machine that made it"
        )

    def test_a_graph_and_an_engine(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (graph,), (plan,) = (home / "engines").glob("*.onnx"), (home / "engines").glob("*.plan")
        said = labelled(invoke(home, "inspect", str(graph), monkeypatch=monkeypatch).stdout)
        assert said["graph"] == "opset 18, IR 10 · any batch · 64x96"
        assert said["precision"].startswith("100.00% of the body's arithmetic is fp16")
        assert said["terms"] == TERMS
        for path in (plan, plan.with_suffix(".json")):
            said = labelled(invoke(home, "inspect", str(path), monkeypatch=monkeypatch).stdout)
            assert said["profile"] == "batch 1..4 (best 2), 64x96"
            assert said["terms"] == TERMS
            assert "Dice" in said["parity"]

    def test_what_states_no_terms(self, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        result = invoke(tmp_path, "inspect", tiny, monkeypatch=monkeypatch)
        assert labelled(result.stdout)["terms"] == "not stated"

    def test_nothing_lists_the_bundled_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = invoke(tmp_path, "inspect", monkeypatch=monkeypatch).stdout.splitlines()
        assert lines == [
            line
            for name, bundled in BUNDLED.items()
            for line in (f"{name:<10}{bundled.purpose}", f"{'':<10}{bundled.terms}")
        ]
        found = json.loads(invoke(tmp_path, "inspect", "--json", monkeypatch=monkeypatch).stdout)
        assert list(found) == list(BUNDLED)
        assert found["fine"] == {"purpose": BUNDLED["fine"].purpose, "terms": BUNDLED["fine"].terms}

    def test_a_model_that_shares_weights_is_as_large_as_both_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = invoke(tmp_path, "inspect", "fine", monkeypatch=monkeypatch).stdout.splitlines()[0]
        assert re.search(r" [1-9]\d*\.\d MB · with the weights of default\.safetensors$", line)
        line = invoke(tmp_path, "inspect", "default", monkeypatch=monkeypatch).stdout.splitlines()[0]
        assert line.endswith(" MB")

    @pytest.mark.parametrize("kind", ["classic", "onnx", "plan"])
    def test_json(self, home: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = kind if kind == "classic" else str(next((home / "engines").glob(f"*.{kind}")))
        data = json.loads(invoke(home, "inspect", path, "--json", monkeypatch=monkeypatch).stdout)
        assert {"classic": "parameters", "onnx": "opset", "plan": "verified_on_gpu"}[kind] in data
        if kind == "classic":
            assert data["terms"] == BUNDLED["classic"].terms
            assert data["tried_on"]
            assert data["not_for"]
        else:
            assert data["spec"]["terms"] == TERMS
        network = data if kind == "classic" else data["spec"]
        assert (network["architecture"], network["encoder"]) == ("unet", "")
        assert len(network["widths"]) in (3, 5)

    def test_damage_is_found(self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (plan,) = (home / "engines").glob("*.plan")
        for suffix in (".plan", ".json"):
            (tmp_path / "a").with_suffix(suffix).write_bytes(plan.with_suffix(suffix).read_bytes())
        harm(str(tmp_path / "a.plan"), "byte")
        result = invoke(tmp_path, "inspect", "a.plan", monkeypatch=monkeypatch)
        assert result.exit_code == 2
        assert "not the plan that was built" in result.stderr
        (tmp_path / "a.json").unlink()
        assert "needs its sidecar" in invoke(tmp_path, "inspect", "a.plan", monkeypatch=monkeypatch).stderr

    @pytest.mark.parametrize("name", ["no-such.onnx", "no-such.plan", "no-such"])
    def test_missing(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        result = invoke(tmp_path, "inspect", name, monkeypatch=monkeypatch)
        assert result.exit_code == 2
        assert "no-such" in result.stderr


@needs_no_gpu
class TestRunWithoutAGpu:
    def test_auto_says_why(self, home: Path, tmp_path: Path) -> None:
        done = unet_batch("run", "photos", "-m", "net.safetensors", "-o", tmp_path, cwd=home)
        assert done.returncode == 0
        assert (
            "(no NVIDIA driver; " in labelled(done.stdout)["backend"]
            or "no GPU" in labelled(done.stdout)["backend"]
        )
        report = json.loads((tmp_path / "run.json").read_text())
        assert [step["name"] for step in report["backend"]["passed_over"]] == [
            "tensorrt",
            "tensorrt-rtx",
            "torch-cuda",
            "openvino",
        ]
        assert all(step["reason"] and step["fix"] for step in report["backend"]["passed_over"])
        assert len(list((tmp_path / "masks").glob("*.png"))) == 3

    @pytest.mark.parametrize(
        "arguments", [["--backend", "tensorrt"], ["--backend", "tensorrt-rtx"], ["--require-gpu"]]
    )
    def test_what_was_asked_for_is_an_error_with_its_fix(
        self, home: Path, tmp_path: Path, arguments: list[str]
    ) -> None:
        places = ("photos", "-m", "net.safetensors", "-o", tmp_path / "out")
        done = unet_batch("run", *places, *arguments, cwd=home)
        assert done.returncode == 2
        assert "error: " in done.stderr
        assert " hint: install NVIDIA's driver" in done.stderr
        assert not (tmp_path / "out" / "masks").exists()

    def test_another_size(self, home: Path, tmp_path: Path) -> None:
        places = ("photos", "-m", "net.safetensors", "-o", tmp_path)
        done = unet_batch("run", *places, "--size", "32x48", cwd=home)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "run.json").read_text())["backend"]["input_size"] == [32, 48]
