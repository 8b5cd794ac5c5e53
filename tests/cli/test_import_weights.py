"""`unet-batch import-weights` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.helpers.public_unets import source
from unet_batch.cli import main
from unet_batch.model import checkpoint
from unet_batch.scenes import write_samples


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "MODEL.pth"
    torch.save({**source("milesial", 2), "mask_values": [0, 1]}, path)
    return path


def test_says_what_it_found_and_proved(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    result = CliRunner().invoke(main, ["import-weights", "MODEL.pth", "-o", "my cars.safetensors"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "found     milesial U-Net of widths 4, 6, 8 · 640x960"
    assert lines[1] == "classes   background, car · the map holds ids 0 to 1, of the largest output"
    assert lines[2] == "pixels    0 to 1, mean 0, 0, 0, std 1, 1, 1"
    assert lines[3].endswith("assumed, and can be given: --size, --classes, --mean, --std")
    assert lines[4].startswith("proven    logits differ from the original's by ")
    assert lines[-1] == "next      unet-batch run ./photos -m 'my cars.safetensors'"
    assert checkpoint.load("my cars.safetensors").spec.name == "MODEL"


def test_json_and_options(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = [
        "--arch",
        "milesial",
        "--size",
        "32x48",
        "--classes",
        "ground,tree",
        "--name",
        "trees",
        "--json",
    ]
    options += ["--mean", "0.1,0.2,0.3", "--std", "1,2,3"]
    result = CliRunner().invoke(main, ["import-weights", str(weights), "-o", str(out), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["difference"] < found["stored_difference"] < 0.02
    assert (found["path"], found["arch"], found["assumed"], found["widths"]) == (
        str(out),
        "milesial",
        [],
        [4, 6, 8],
    )
    spec = checkpoint.load(str(out)).spec
    assert (spec.name, spec.input_size, spec.classes.names) == ("trees", (32, 48), ("ground", "tree"))
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "33x48"], "multiples of 4"),
        (["--size", "big"], "is not a size"),
        (["--classes", "a,,b"], "names an empty class"),
        (["--classes", "a"], "outputs: 2, class names given: 1"),
        (["--mean", "1,2"], "one number for each of red, green and blue"),
        (["--mean", "nan,1,1"], "one number for each of red, green and blue"),
        (["--std", "0,1,1"], "deviations are above 0"),
        (["--arch", "resnet"], "is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2(weights: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(
        main, ["import-weights", str(weights), "-o", str(tmp_path / "out.safetensors"), *options]
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_what_was_imported_runs(weights: Path, tmp_path: Path) -> None:
    write_samples(str(tmp_path), 2, (64, 96), 0)
    model = str(tmp_path / "out.safetensors")
    assert (
        CliRunner().invoke(main, ["import-weights", str(weights), "-o", model, "--size", "32x48"]).exit_code
        == 0
    )
    options = ["-o", str(tmp_path / "out"), "-m", model, "--device", "cpu"]
    result = CliRunner().invoke(main, ["run", str(tmp_path / "photos"), *options])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 2


def test_the_hint_of_run_names_this_command(weights: Path, tmp_path: Path) -> None:
    write_samples(str(tmp_path), 1, (64, 64), 0)
    result = CliRunner().invoke(
        main, ["run", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "-m", str(weights)]
    )
    assert result.exit_code == 2
    assert "unet-batch import-weights FILE.pth -o MODEL.safetensors" in result.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom unet_batch.cli import main\n"
        "try: main(['import-weights', '--help'])\nexcept SystemExit as e: assert not e.code, e.code\n"
        "print('LOADED', sorted({'torch', 'numpy', 'cv2', 'safetensors', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
