"""`unet-batch import-weights` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.public_unets import source, with_background
from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.cli import main
from unet_batch.datasets.find import find_dataset
from unet_batch.model import checkpoint, zoo
from unet_batch.scenes import write_samples
from unet_batch.training.options import Options
from unet_batch.training.plan import make_plan
from unet_batch.types import ClassTable


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
    assert lines[0] == "found     milesial: U-Net, widths 4, 6, 8 · 640x960"
    assert lines[1] == "classes   car · the map holds the probability of it"
    assert lines[2] == "pixels    0 to 1, mean 0, 0, 0, std 1, 1, 1"
    assert lines[3] == "note      background and car had an output each: one probability says the same"
    assert lines[4].endswith("assumed, and can be given: --size, --classes, --mean, --std")
    assert lines[5].startswith("proven    logits differ from the original's by ")
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
    options += ["--mean", "0.1,0.2,0.3", "--std", "1,2,3", "--terms", "CC BY 4.0,\nwith a name"]
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
    assert spec.terms == found["terms"] == "CC BY 4.0, with a name"


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


def done(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained network as its authors may have trained it: with an output for the background, too."""
    folder = tmp_path_factory.mktemp("two")
    bundled = checkpoint.load(zoo.resolve("classic"))
    torch.save(with_background(bundled.model, "milesial"), folder / "two.pth")
    spec, path = bundled.spec, str(folder / "two.safetensors")
    options = ["--size", "{}x{}".format(*spec.input_size)]
    for name, values in (("--mean", spec.mean), ("--std", spec.std)):
        options += [name, ",".join(map(str, values))]
    done("import-weights", folder / "two.pth", "-o", path, *options)
    return path


class TestBackgroundAndOneClass:
    """One probability in every command: masks that can be seen, cutouts, probabilities, figures."""

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Path:
        """Drawn cars with masks of 0 and 255."""
        write_samples(str(tmp_path / "cars"), 4, (96, 144), 0)
        (tmp_path / "cars/photos").rename(tmp_path / "cars/images")
        return tmp_path / "cars"

    def masks(self, folder: Path) -> dict[str, np.ndarray]:
        return {path.name: np.array(Image.open(path)) for path in sorted((folder / "masks").glob("*.png"))}

    def test_all_outputs_are_those_of_the_class_alone(
        self, dataset: Path, model: str, tmp_path: Path
    ) -> None:
        options = ["--save", "mask,overlay,cutout,prob,prob16", "--device", "cpu"]
        done("run", dataset / "images", "-o", tmp_path / "two", "-m", model, *options)
        done("run", dataset / "images", "-o", tmp_path / "one", "-m", "classic", *options)
        for kind in ("masks", "overlays", "cutouts", "probs", "probs16"):
            assert len(list((tmp_path / "two" / kind).iterdir())) == 4
        two, one = self.masks(tmp_path / "two"), self.masks(tmp_path / "one")
        for name, mask in two.items():
            assert set(np.unique(mask)) == {0, 255}
            assert (mask != one[name]).mean() < 0.002

    def test_figures_are_those_of_the_class_alone(self, dataset: Path, model: str) -> None:
        options = ["--device", "cpu", "--json"]
        two = json.loads(done("evaluate", dataset, "-m", model, *options).stdout)
        one = json.loads(done("evaluate", dataset, "-m", "classic", *options).stdout)
        assert two["counted"] == one["counted"] == ["car"]
        assert two["photo"]["mean"]["dice"] == pytest.approx(one["photo"]["mean"]["dice"], abs=0.001)
        assert two["photo"]["mean"]["dice"] > 0.8
        toml = '[[class]]\nname = "background"\nid = 0\n[[class]]\nname = "car"\nid = 255\n'
        (dataset / "classes.toml").write_text(toml)
        named = json.loads(done("evaluate", dataset, "-m", model, *options).stdout)
        assert named["photo"] == two["photo"]

    def test_masks_of_an_earlier_release_are_not_mixed_with_these(
        self, dataset: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That one read the same checkpoint as two classes, and wrote 0 and 1."""
        two, out = str(tmp_path / "earlier.safetensors"), tmp_path / "out"
        spec = replace(tiny_spec(2), classes=ClassTable(("background", "car"), ((0, 0, 0), (9, 9, 9))))
        checkpoint.save(two, tiny_model(spec), spec)
        command = ["run", dataset / "images", "-o", out, "-m", two, "--device", "cpu"]
        with monkeypatch.context() as earlier:
            earlier.setattr(ClassTable, "foreground", None)
            done(*command)
        before = self.masks(out)
        assert {value for mask in before.values() for value in np.unique(mask)} == {0, 1}
        refused = done(*command, code=2)
        assert "holds outputs of 4 items" in refused.stderr
        assert "threshold 0.5" in refused.stderr
        after = self.masks(out)
        assert all(np.array_equal(before[name], after[name]) for name in before)
        done(*command, "--overwrite")
        assert {value for mask in self.masks(out).values() for value in np.unique(mask)} == {0, 255}

    def test_of_two_real_classes_the_ids_stay_and_the_note_names_the_way_out(
        self, weights: Path, dataset: Path, tmp_path: Path
    ) -> None:
        model = tmp_path / "pets.safetensors"
        said = done("import-weights", weights, "-o", model, "--classes", "cat,dog", "--size", "32x48")
        assert "map holds ids 0 to 1" in said.stdout
        assert "--classes background,dog" in " ".join(said.stdout.split())
        command = ["run", dataset / "images", "-o", tmp_path / "out", "-m", model, "--device", "cpu"]
        refused = done(*command, "--save", "cutout", code=2)
        assert "none of the 2 classes of MODEL is a background" in refused.stderr
        done(*command)
        assert {value for mask in self.masks(tmp_path / "out").values() for value in np.unique(mask)} <= {
            0,
            1,
        }

    def test_training_goes_on_from_it(self, dataset: Path, model: str, tmp_path: Path) -> None:
        """With its head, which knows the class already; classes.toml may name the background or not."""
        toml = '[[class]]\nname = "background"\nid = 0\n[[class]]\nname = "car"\nid = 255\n'
        for text in ("", toml):
            (dataset / "classes.toml").write_text(text) if text else None
            found = find_dataset(str(dataset))
            plan = make_plan(found, str(tmp_path / "new.safetensors"), Options(init=model, device="cpu"))
            assert not plan.new_head
            assert plan.spec.output == "probability"


def test_what_was_chosen_of_a_file_is_said(tmp_path: Path) -> None:
    own = source("milesial", 2)
    average = {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in own.items()}
    torch.save({"model_state_dict": own, "ema_state_dict": average}, tmp_path / "two.pth")
    command = ["import-weights", str(tmp_path / "two.pth"), "-o", str(tmp_path / "out.safetensors"), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    said = "ema_state_dict, the averaged weights, are taken, not model_state_dict"
    assert json.loads(result.stdout)["notes"] == [said]
    assert f"note      {said}" in result.stderr


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
