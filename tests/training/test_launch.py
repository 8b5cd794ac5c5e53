"""`train --devices`: which devices, which error of several, and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.conftest import ROOT
from tests.helpers.processes import Forked
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.cli import main
from unet_batch.errors import BackendUnavailable, TrainingError, UnetBatchError, UsageError
from unet_batch.training import launch


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", launch._LAUNCHER, launch._ERROR_FILE):
        monkeypatch.delenv(name, raising=False)


class TestDevices:
    def test_auto_is_every_gpu_or_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert launch.choose_devices("auto", None) == ("cuda:0", "cuda:1")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert launch.choose_devices("auto", None) == ()

    def test_one_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert launch.choose_devices("cpu:2", None) == ("cpu", "cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(BackendUnavailable, match=r"cuda:7: this machine has 2 GPU\(s\)"):
            launch.choose_devices("0,7", None)

    def test_both_options(self) -> None:
        with pytest.raises(UsageError, match="--devices cpu:2 and --device cpu"):
            launch.choose_devices("cpu:2", "cpu")

    def test_a_process_does_not_look_for_gpus_that_its_launcher_hid(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert launch.choose_devices("4,7", None) == ("cuda:4", "cuda:7")

    @pytest.mark.parametrize(
        ("visible", "shown"), [(None, "1,3"), ("", "1,3"), ("4,5,6,7", "5,7"), ("GPU-a,GPU-b,c,d", "GPU-b,d")]
    )
    def test_what_processes_see(self, visible: str | None, shown: str) -> None:
        assert launch._visible(("cuda:1", "cuda:3"), visible) == shown


class TestTheCommand:
    def test_hands_its_words_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[tuple[Sequence[str], Sequence[str]]] = []
        monkeypatch.setattr(launch, "launch", lambda devices, words: given.append((devices, words)))
        words = ("cars", "-o", "a b.safetensors", "--devices", "cpu:2", "--epochs=3")
        result = CliRunner().invoke(main, ["train", *words])
        assert result.exit_code == 0, result.output
        assert given == [(("cpu", "cpu"), words)]

    def test_one_device_is_trained_on_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("launched"))
        result = CliRunner().invoke(main, ["train", str(tmp_path / "no"), "-o", "x", "--devices", "cpu"])
        assert result.exit_code == 2
        assert result.stderr.startswith("error: "), result.stderr
        assert str(tmp_path / "no") in result.stderr


def failure(folder: Path, rank: int, code: int, **left: Any) -> ProcessFailure:
    path = folder / f"{rank}.json"
    if left:
        path.write_text(json.dumps({"hint": "", "traceback": "", "timestamp": 1, **left}))
    return ProcessFailure(rank, 1, code, str(path))


class TestTheError:
    """Processes that lose one of them fail, too; who asks why hears of the first."""

    def test_ours_comes_first(self, tmp_path: Path) -> None:
        failures = [
            failure(tmp_path, 0, 1, is_ours=False, message="Connection closed by peer", at=1.0),
            failure(tmp_path, 1, 2, is_ours=True, message="a.png: is empty", hint="remove it", at=3.0),
            failure(tmp_path, 2, 2, is_ours=True, message="b.png: is empty", at=4.0),
        ]
        with pytest.raises(UnetBatchError, match=r"a\.png: is empty") as caught:
            launch._fail(failures, ("cpu",) * 3)
        assert caught.value.hint == "remove it"

    def test_a_killed_one_comes_before_those_that_miss_it(self, tmp_path: Path) -> None:
        failures = [
            failure(tmp_path, 0, 1, is_ours=False, message="Connection closed by peer", at=1.0),
            failure(tmp_path, 1, -signal.SIGKILL),
        ]
        with pytest.raises(TrainingError, match="process 2 of 2, on cuda:3, was ended by SIGKILL") as caught:
            launch._fail(failures, ("cuda:1", "cuda:3"))
        assert "--resume" in caught.value.hint

    def test_what_said_its_reason_itself_is_an_exit_code(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failures = [failure(tmp_path, 0, -signal.SIGTERM), failure(tmp_path, 1, 1)]
        with pytest.raises(SystemExit) as caught:
            launch._fail(failures, ("cpu", "cpu"))
        assert caught.value.code == 1
        assert capsys.readouterr().err == ""

    def test_a_bug_is_shown_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        failures = [
            failure(tmp_path, rank, 1, is_ours=False, message="m", traceback=f"at {rank}\n", at=2.0 - rank)
            for rank in range(2)
        ]
        with pytest.raises(SystemExit) as caught:
            launch._fail(failures, ("cpu", "cpu"))
        assert (caught.value.code, capsys.readouterr().err) == (1, "at 1\n")


class TestAProcess:
    def test_leaves_its_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "error.json"
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv(launch._LAUNCHER, str(os.getppid()))
        with pytest.raises(TrainingError), launch.launched():  # nobody to leave it to
            raise TrainingError("diverged", hint="--lr")
        monkeypatch.setenv(launch._ERROR_FILE, str(path))
        with pytest.raises(SystemExit) as caught, launch.launched():
            raise TrainingError("diverged", hint="--lr")
        assert caught.value.code == 2
        found = ProcessFailure(0, 1, 2, str(path))  # as torchrun reads it
        assert (found.message, launch._record(found)["hint"]) == ("diverged", "--lr")

    def test_that_torchrun_started_alone_speaks_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(TrainingError), launch.launched():
            raise TrainingError("diverged")

    @needs_posix
    def test_ends_when_its_launcher_has_gone(self) -> None:
        assert Forked(orphan).wait(PATIENCE) == -signal.SIGTERM


def orphan() -> None:
    os.environ |= {"WORLD_SIZE": "2", launch._LAUNCHER: "1"}  # not the process that has started this one
    with launch.launched():
        signal.pause()


WATCH = """
import os, threading, time
def end():
    while not (os.path.exists({path!r}) and os.path.getsize({path!r})):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
if os.environ.get("RANK") == "1":
    threading.Thread(target=end, daemon=True).start()
"""


@needs_posix
@pytest.mark.slow
def test_a_killed_process_ends_the_training_with_one_error(shapes: Path, tmp_path: Path) -> None:
    written = tmp_path / "net.training" / "metrics.jsonl"
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(path=str(written)))
    command = ("train", str(shapes), "-o", str(tmp_path / "net.safetensors"), "--devices", "cpu:2", "-q")
    options = ("--size", "32x48", "--widths", "4,8", "--batch-size", "8", "--epochs", "999")
    done = subprocess.run(
        [sys.executable, "-m", "unet_batch", *command, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: process 2 of 2, on cpu, was ended by SIGKILL"
    assert hint.startswith(" hint: --resume goes on")
    assert "Traceback" not in done.stderr
