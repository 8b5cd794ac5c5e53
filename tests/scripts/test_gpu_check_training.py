"""The sections of `scripts.gpu_check` that train, on the processor, at sizes that take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu_check import training
from scripts.gpu_check.sections import Skip
from tests.helpers.command import unet_batch
from tests.helpers.processes import run_together
from unet_batch.errors import TrainingError, UnetBatchError
from unet_batch.training import loop

TINY: dict[str, Any] = {"device": "cpu", "size": [32, 48], "widths": [4, 8], "batch_size": 4}


def nothing() -> None:
    """A `save`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """10 drawn photos, 4 times each."""
    path = str(tmp_path_factory.mktemp("training"))
    training.training_data({}, nothing, path, drawn=10, copies=4, size=[64, 96])
    return path


def test_copies_of_a_photo_are_on_one_side_of_the_split_and_three_ids_are_drawn(folder: str) -> None:
    many = training._make_plan(training._pictures(folder, "many", "cpu"), "m.safetensors", "cpu", {})
    assert len(many.train) + len(many.val) == 40
    assert not {pair.group for pair in many.train} & {pair.group for pair in many.val}
    three = training._make_plan(training._pictures(folder, "three", "cpu"), "m.safetensors", "cpu", {})
    assert (len(three.train) + len(three.val), len(three.spec.classes.names)) == (10, 3)


def test_without_pictures_a_section_is_skipped(tmp_path: Path) -> None:
    for run in (training.training_deterministic, training.training_killed, training.training_processes):
        with pytest.raises(Skip, match="no pictures were drawn"):
            run({}, nothing, str(tmp_path), **TINY)


def test_a_training_is_described(folder: str) -> None:
    data: dict[str, Any] = {}
    training.training(data, nothing, folder, precision="bf16", epochs=4, lr=1e-2, **TINY)
    assert (data["ended"], data["precision"], data["epochs"], len(data["history"])) == (
        "all epochs",
        "bf16",
        4,
        4,
    )
    assert data["all_steps"] == 4 * data["steps"]
    assert len(data["images_per_s"]["rounds"]) == 3  # without the first epoch
    assert (data["scale"], data["skipped_steps"], data["peak_bytes"], data["finite"]) == (None, 0, None, True)
    assert data["estimated_bytes"] > 0
    assert not list(Path(folder).glob("tmp*"))


def trained(**changes: Any) -> dict[str, Any]:
    history = [{"loss": 1.0}, {"loss": 0.5}]
    facts = {"ended": "all epochs", "history": history, "finite": True, "precision": "fp16", "scale": 65536.0}
    return {**facts, "skipped_steps": 3, "all_steps": 80, **changes}


def test_a_good_training_passes() -> None:
    training.judge_training(trained())
    training.judge_training(trained(precision="bf16", scale=None, skipped_steps=0))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"history": [{"loss": 1.0}, {"loss": 0.95}]}, r"the loss went from 1\.0000 to 0\.9500"),
        ({"history": [{"loss": 1.0}, {"loss": float("nan")}]}, "the loss went from"),
        ({"ended": "interrupted"}, "it ended with 'interrupted'"),
        ({"finite": False}, "not finite"),
        ({"scale": 0.0}, r"the scale of the gradients is 0\.0"),
        ({"scale": None}, "the scale of the gradients is None"),
        ({"skipped_steps": 40}, "40 of 80 steps overflowed"),
    ],
)
def test_bad_ends_of_a_training_are_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainingError, match=problem):
        training.judge_training(trained(**changes))


def test_a_training_repeats_itself_and_resumes(folder: str) -> None:
    data: dict[str, Any] = {}
    training.training_deterministic(data, nothing, folder, epochs=2, **TINY)
    assert [(entry["data"], entry["differing"]) for entry in data["equal"]] == [
        ("one", []),
        ("one", []),
        ("three", []),
        ("three", []),
    ]
    assert all(entry["tensors"] > 50 for entry in data["equal"])


def test_a_training_that_does_not_repeat_itself_is_found(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = loop.build_state, iter(range(100))

    def prepare(*values: Any) -> Any:
        trainee = real(*values)
        next(trainee.model.parameters()).data.add_(1e-6 * next(made))
        return trainee

    monkeypatch.setattr(loop, "build_state", prepare)
    data: dict[str, Any] = {}
    with pytest.raises(TrainingError, match=r"one, the same seed again: \d+ of \d+ tensors differ"):
        training.training_deterministic(data, nothing, folder, epochs=2, **TINY)
    assert data["equal"][0]["differing"]


def test_loading_is_compared_with_a_fixed_batch(folder: str) -> None:
    data: dict[str, Any] = {}
    training.training_loading(
        data, nothing, folder, batch_sizes=(4, 64), steps=3, rounds=2, **{**TINY, "batch_size": 1}
    )
    small, large = data["loading"]
    assert (small["batch"], small["steps"]) == (4, 3)
    assert all(len(small[name]["rounds"]) == 2 for name in ("fixed", "remembered", "decoded"))
    assert (small["fixed_times"], small["decoded_times"] > 0) == (1, True)
    assert "too few" in large["reason"]


def test_options_become_the_command_line() -> None:
    command = training._command(
        "in", "out", "cuda", {"size": [160, 240], "widths": (4, 8), "batch_size": 4, "deterministic": True}
    )
    assert command[3:] == [
        *("in", "-o", "out", "--device", "cuda"),
        *("--size", "160x240", "--widths", "4,8", "--batch-size", "4", "--deterministic"),
    ]


def test_a_process_that_fails_is_quoted() -> None:
    with pytest.raises(UnetBatchError, match="ended with 3: the last word"):
        training._run_python(["-c", "import sys; print('the last word', file=sys.stderr); sys.exit(3)"])


@pytest.mark.slow
def test_killed_and_resumed_by_the_command_line(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is killed is a fresh interpreter, which is where a GPU's process begins."""

    def forked(command: Sequence[str]) -> str:
        assert command[:2] == ["-m", "unet_batch"]
        done = unet_batch(*command[2:])
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(training, "_run_python", forked)
    data: dict[str, Any] = {}
    training.training_killed(data, nothing, folder, epochs=4, **TINY)  # each costs a second of processor time
    assert 1 <= data["killed_after"] < 4
    assert data["equal"][0]["differing"] == []


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True], ids=["each a device", "sharing one"])
def test_two_processes_are_compared_with_one(
    folder: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that share a device are started by torchrun itself, those that do not as it would."""

    def forked(command: Sequence[str]) -> str:
        assert command[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        assert command[5:7] == ["-m", "unet_batch"]
        return "".join(run_together(tmp_path, *command[7:]))

    if not shared:
        monkeypatch.setattr(training, "_run_python", forked)
    data: dict[str, Any] = {}
    training.training_processes(data, nothing, folder, shared=shared, epochs=2, precision="fp32", **TINY)
    assert data["how"] == "gloo, on the processor"
    assert len(data["one"]) == len(data["two"]) == 2
    assert 0 < data["apart"] < 0.05
