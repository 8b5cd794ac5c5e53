"""`run --devices`: several processes share a run, and nobody sees that but by the time it takes."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers.processes import Forked, command_line
from tests.helpers.runs import many, tree
from tests.helpers.systems import needs_posix
from tests.helpers.tiny import tiny_model, tiny_spec
from tests.helpers.waiting import PATIENCE, until
from unet_batch.cli import main
from unet_batch.model import checkpoint

pytestmark = needs_posix


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    spec = tiny_spec()
    checkpoint.save(path, tiny_model(spec), spec)
    return path


TWO = ("--devices", "cpu:2")


def stopped(out: str, *arguments: str) -> None:
    """`unet-batch`, which sends itself SIGTERM once there are some masks."""

    def stop() -> None:
        until(lambda: sum(1 for _ in Path(out).rglob("masks/*/[!.]*.png")) >= 5, 0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    command_line(*arguments)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def test_two_processes_leave_what_one_leaves(model: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 24)
    one, two = tmp_path / "one", tmp_path / "two"
    done = run(photos, "-o", one, "-m", model, "--overlay", "--device", "cpu")
    assert done.exit_code == 0, done.output
    done = run(photos, "-o", two, "-m", model, "--overlay", "--devices", "cpu:2")
    assert done.exit_code == 0, done.output
    assert tree(two) == tree(one)
    lines = done.output.splitlines()
    assert any(line.split() == ["devices", "2", "processes", "·", "cpu", "1,", "cpu", "2"] for line in lines)
    assert [line.split()[:3] for line in lines if line.startswith("cpu ")] == [
        ["cpu", str(number), str(device["done"])]
        for number, device in enumerate(json.loads((two / "run.json").read_text())["devices"], 1)
    ]


def test_sigterm_finishes_what_has_begun(model: Path, tmp_path: Path) -> None:
    photos, out = many(tmp_path / "photos", 200), tmp_path / "out"
    child = Forked(stopped, str(out), "run", str(photos), "-o", str(out), "-m", str(model), *TWO)
    assert child.wait(PATIENCE) == 143
    report = json.loads((out / "run.json").read_text())
    assert (report["status"], report["failed"]) == ("interrupted", 0)
    assert len(list((out / "masks").rglob("[!.]*.png"))) == report["done"] < 200
    again = run(photos, "-o", out, "-m", model, *TWO)
    assert again.exit_code == 0, again.output
    assert f"{report['done']} skipped (done before)" in again.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "cpu:2", "--device", "cpu"], "--devices cpu:2 contradicts --device cpu"),
        (["--devices", "0,0"], "GPU 0 is there twice"),
        (["--devices", "cpu:0"], "cpu:0"),
        (["--devices", "cpu:2", "--backend", "tensorrt"], "runs on NVIDIA GPUs, not on cpu"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], message: str, model: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 2)
    done = run(photos, "-o", tmp_path / "out", "-m", model, *options)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_auto_without_gpus_is_one_process(model: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 2)
    done = run(photos, "-o", tmp_path / "out", "-m", model, "--devices", "auto")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["devices"] == []
