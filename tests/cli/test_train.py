"""`unet-batch train`, as a person meets it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.conftest import ROOT
from tests.helpers import processes
from tests.helpers.datasets import write_shapes
from tests.helpers.systems import needs_posix
from tests.helpers.tiny import tiny_model, tiny_spec
from tests.helpers.waiting import PATIENCE
from unet_batch.cli import main
from unet_batch.model import checkpoint
from unet_batch.types import ClassTable

TINY = ["--size", "40x56", "--widths", "4,8", "--batch-size", "4", "--epochs", "2", "--precision", "fp32"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers this small take longer to share between cores than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), 20)


def train(dataset: Path, output: Path, *more: str, tiny: bool = True) -> Result:
    return CliRunner().invoke(
        main, ["train", str(dataset), "-o", str(output), *(TINY if tiny else []), *more]
    )


def test_leaves_model_card_curves_sheet_and_figures(shapes: Path, tmp_path: Path) -> None:
    result = train(shapes, tmp_path / "discs.safetensors", "--epochs", "6", "--lr", "0.02")
    assert result.exit_code == 0, result.output
    for text in (
        "16 pictures of 8 groups train, 4 of 2 validate",
        "at the network's 40x56",
        "kept epoch",
        "unet-batch run ./photos -m",
    ):
        assert text in result.output
    folder = tmp_path / "discs.training"
    written = {path.name for path in folder.iterdir()}
    assert written == {
        "curves.png",
        "lock",
        "metrics.jsonl",
        "results.json",
        "sheet.jpg",
        "state.safetensors",
        "val.txt",
    }
    assert cv2.imread(str(folder / "curves.png")).shape[1] > 800
    assert cv2.imread(str(folder / "sheet.jpg")).std() > 10
    listed = (folder / "val.txt").read_text().split()
    again = [
        "evaluate",
        str(shapes),
        "-m",
        str(tmp_path / "discs.safetensors"),
        "--split",
        str(folder / "val.txt"),
        "--json",
    ]
    judged = json.loads(CliRunner().invoke(main, again).stdout)
    assert judged["judged"] == len(listed) == 4
    everything = CliRunner().invoke(main, again[:4])
    assert "trained on 16 images of a folder of this name" in everything.output
    card = (tmp_path / "discs.md").read_text()
    for text in (
        "# Model card: `discs`",
        "mean Dice per picture 0.",
        "flatter a little",
        "](discs.training/curves.png)",
        "seed 0",
    ):
        assert text in card
    facts = checkpoint.identify(str(tmp_path / "discs.safetensors")).spec.training
    assert judged["photo"]["mean"]["dice_per_picture"] == pytest.approx(
        facts["metrics"]["photo"]["dice"], abs=1e-4
    )
    results = json.loads((folder / "results.json").read_text())
    assert facts["metrics"] == results["metrics"]
    low, high = facts["metrics"]["photo"]["intervals"]["dice_per_picture"]
    assert low <= facts["metrics"]["photo"]["dice"] <= high
    assert (facts["train_images"], facts["val_images"]) == (16, 4)
    assert facts["scales"] == [facts["scales"][0]] * 3, "all are of one size"


def test_the_model_runs(shapes: Path, tmp_path: Path) -> None:
    assert train(shapes, tmp_path / "m.safetensors", "--epochs", "6", "--lr", "0.02").exit_code == 0
    arguments = [
        "run",
        str(shapes / "images"),
        "-m",
        str(tmp_path / "m.safetensors"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "set00_0.png"), cv2.IMREAD_UNCHANGED)
    truth = cv2.imread(str(shapes / "masks" / "set00_0.png"), cv2.IMREAD_UNCHANGED)
    assert 2 * np.sum((mask > 0) & (truth > 0)) / (np.sum(mask > 0) + np.sum(truth > 0)) > 0.8


def test_a_small_model_is_trained_on_a_large_ones_output_as_the_documents_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    said = pages.partition("### Masks that are probabilities")[2]
    toml = said.partition("```toml\n")[2].partition("```")[0]
    recipe = pages.partition("## Train a small model on a large one's output")[2]
    commands = [line.split()[1:] for line in recipe.splitlines() if line.startswith("unet-batch ")]
    assert [words[0] for words in commands] == ["run", "check-data", "train", "evaluate"]
    monkeypatch.chdir(tmp_path)
    write_shapes(Path("by-hand"), 12)
    shutil.copytree("by-hand/images", "photos")
    twin = cv2.imread("photos/set05_0.png")
    Path("photos/set05_0.png").unlink()
    cv2.imwrite("photos/set05_1.jpg", twin)  # beside set05_1.png
    spec = tiny_spec(size=(40, 56), classes=1)
    spec = replace(spec, classes=ClassTable(("car",), spec.classes.colours))
    checkpoint.save("large.safetensors", tiny_model(spec), spec)
    for words in commands:
        done = CliRunner().invoke(main, [*words, *(TINY if words[0] == "train" else [])])
        assert done.exit_code == 0, done.output
        if words[0] == "run":
            Path("labelled/classes.toml").write_text(toml)
        elif words[0] != "evaluate":
            assert "12 of 12 images have a mask of the same name" in done.output
            assert "masks are probabilities of car, 0 to 255, used as they are in training" in done.output
    assert "masks are probabilities of car" in Path("small.md").read_text()
    assert checkpoint.identify("small.safetensors").spec.classes.names == ("car",)


def test_dry_run_says_what_it_would_take_and_writes_nothing(shapes: Path, tmp_path: Path) -> None:
    result = train(shapes, tmp_path / "m.safetensors", "--dry-run")
    assert result.exit_code == 0, result.output
    for text in ("2 epochs of 4 steps, 4 images each", "to train", "an epoch", "nothing was written"):
        assert text in result.output
    assert list(tmp_path.iterdir()) == []


def test_misaligned_masks_are_never_trained_on(shapes: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(shapes, bad)
    mask = bad / "masks" / "set03_1.png"
    cv2.imwrite(str(mask), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)[:-4])
    result = train(bad, tmp_path / "m.safetensors")
    assert result.exit_code == 1
    for text in ("set03_1.png: the image is 40x56, the mask 36x56", "hint: export masks", "not trained"):
        assert text in result.output
    assert not (tmp_path / "m.safetensors").exists()


def test_a_copy_on_the_other_side_of_the_split_is_refused(shapes: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(shapes, bad)
    for part in ("images", "masks"):
        shutil.copy(bad / part / "set00_0.png", bad / part / "other_0.png")
    (tmp_path / "val.txt").write_text("other_0\nset05_0\nset05_1\n")
    result = train(bad, tmp_path / "m.safetensors", "--val-list", str(tmp_path / "val.txt"))
    assert result.exit_code == 1
    assert "duplicates across splits" in result.output


def test_a_group_in_both_lists_is_refused(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("set05_0\n")
    result = train(shapes, tmp_path / "m.safetensors", "--val-list", str(tmp_path / "val.txt"))
    assert result.exit_code == 2
    assert "group 'set05' is in training and validation" in result.output


def test_what_exists_is_not_overwritten_unasked(shapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    assert train(shapes, output).exit_code == 0
    first = output.read_bytes()
    refused = train(shapes, output)
    assert refused.exit_code == 2
    assert "--resume goes on with it, --overwrite begins again" in refused.output
    assert output.read_bytes() == first
    assert train(shapes, output, "--overwrite", "--seed", "3").exit_code == 0
    assert output.read_bytes() != first
    shutil.rmtree(tmp_path / "m.training")
    assert "exists" in train(shapes, output).output
    output.unlink()
    assert "m.md: exists" in train(shapes, output).output, "somebody's notes, for all we know"
    assert "m.md: exists" in train(shapes, output, "--resume").output, "there is no state to go on with"


def test_resume_begins_where_there_is_nothing_to_go_on_with(shapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    begun = train(shapes, output, "--resume", "--epochs", "1")
    assert begun.exit_code == 0, begun.output
    assert "no training to go on with yet: begins" in begun.output
    assert "20 pairs are fit for training" in begun.output
    again = train(shapes, output, "--resume", "--epochs", "1")
    assert again.exit_code == 0, again.output
    assert "begins one" not in again.output


def test_what_nobody_trains_on_spoils_nothing(shapes: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(shapes, more)
    for number in range(30):
        shutil.copy(more / "images" / "set00_0.png", more / "images" / f"unmarked{number}_0.png")
    result = train(more, tmp_path / "m.safetensors", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert "30 files without a partner, or with several, are left out" in result.output


def test_a_model_is_not_trained_over_itself(shapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    assert train(shapes, output, "--epochs", "1").exit_code == 0
    result = train(shapes, output, "--init", str(output), "--overwrite")
    assert result.exit_code == 2
    assert "is where the training starts from" in result.output


def test_nothing_to_find_in_validation_is_said(shapes: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(shapes, empty)
    for name in ("set05_0", "set05_1"):
        mask = empty / "masks" / f"{name}.png"
        cv2.imwrite(str(mask), np.zeros_like(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)))
    (tmp_path / "val.txt").write_text("set05_0\nset05_1\n")
    result = train(
        empty, tmp_path / "m.safetensors", "--val-list", str(tmp_path / "val.txt"), "--epochs", "1"
    )
    assert result.exit_code == 1
    assert "not one validation mask holds foreground" in result.output


def test_a_folder_that_cannot_be_locked_is_explained(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "m.training" / "lock").mkdir(parents=True)
    result = train(shapes, tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "cannot be locked" in result.output


def test_options_from_a_file_give_way_to_the_command_line(shapes: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        'size = [40, 56]\ncrop = [20, 28]\nwidths = [4, 8]\nbatch-size = 4\nepochs = 9\nkeep = "last"\nseed '
        "= 4\n"
    )
    result = train(
        shapes, tmp_path / "m.safetensors", "--config", str(config), "--epochs", "1", "--dry-run", tiny=False
    )
    assert result.exit_code == 0, result.output
    for text in ("widths 4, 8", "1 epochs of 16 steps, 4 windows of 20x28 each", "40x56", "seed 4"):
        assert text in result.output


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("epoch = 3", "'epoch' is not an option of train; there are augment, batch_size"),
        ("epochs = 0", "0 is not in the range x>=1"),
        ('widths = "a,b"', "numbers with commas expected"),
        ("epochs = ", "train.toml"),
    ],
)
def test_a_wrong_file_of_options_is_explained(
    shapes: Path, tmp_path: Path, line: str, complaint: str
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(line + "\n")
    result = train(shapes, tmp_path / "m.safetensors", "--config", str(config), tiny=False)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def test_tensorboard_gets_the_curves(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert train(shapes, tmp_path / "m.safetensors", "--tensorboard").exit_code == 0
    assert list((tmp_path / "m.training" / "tensorboard").glob("events.*"))


def test_two_trainings_do_not_share_their_files(shapes: Path, tmp_path: Path) -> None:
    import filelock

    (tmp_path / "m.training").mkdir()
    with filelock.FileLock(tmp_path / "m.training" / "lock"):
        result = train(shapes, tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "another training writes here" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@needs_posix
def test_a_signal_saves_the_state_and_says_how_to_go_on(
    shapes: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output, metrics = tmp_path / "m.safetensors", tmp_path / "m.training" / "metrics.jsonl"

    def lines() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def interrupt_after_an_epoch(*more: str) -> None:
        errors, before = tmp_path / "errors.txt", lines()
        errors.unlink(missing_ok=True)
        arguments = ("train", str(shapes), "-o", str(output), *TINY, "--epochs", "5000", *more)
        process = processes.Forked(processes.one_thread, *arguments, errors=errors)
        try:
            while lines() <= before and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(number)
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
        assert process.returncode == 130, said
        assert "--resume goes on" in said

    interrupt_after_an_epoch()
    before = lines()
    interrupt_after_an_epoch("--resume")
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > before


def test_help_shows_examples_and_loads_no_torch() -> None:
    code = "import sys; from unet_batch.cli import main; main(['train', '--help'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unet-batch train ./cars -o cars.safetensors --resume" in done.stdout


def test_of_several_datasets_the_card_the_lists_and_evaluate_know_each(shapes: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "street", 12, seed=5)
    model = tmp_path / "both.safetensors"
    config = tmp_path / "both.toml"
    config.write_text(
        "size = [32, 40]\nwidths = [4, 8]\nweights = [1.5, 0.5]\nepochs = 1\npaste = 0.25\nplain-epochs = 1\n"
    )
    done = CliRunner().invoke(
        main, ["train", str(shapes), str(other), "-o", str(model), "--config", str(config)]
    )
    assert done.exit_code == 0, done.output
    assert f"dataset   {shapes.name} + street" in done.output
    assert "val-NAME.txt" in done.output
    card = (tmp_path / "both.md").read_text()
    assert f"weights of the datasets: {shapes.name} 1.5, street 0.5" in card
    assert "objects of other images pasted into 25% of the samples" in card
    assert "last epochs without augmentation but for flips: 1" in card
    folder = tmp_path / "both.training"
    both = (folder / "val.txt").read_text().split()
    own = (folder / "val-street.txt").read_text().split()
    assert own
    assert own == [key.removeprefix("street/") for key in both if key.startswith("street/")]
    command = ["evaluate", str(other), "-m", str(model)]
    everything = CliRunner().invoke(main, command)
    assert f"trained on {12 - len(own)} images of a folder of this name" in everything.output
    assert f"val-street.txt takes the {len(own)} others" in everything.output
    judged = CliRunner().invoke(main, [*command, "--split", str(folder / "val-street.txt")])
    assert judged.exit_code == 0, judged.output
    assert "trained on" not in judged.output
