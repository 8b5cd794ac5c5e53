"""`run --shard` and `merge`, as a person or a Slurm script calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.command import unet_batch
from tests.helpers.processes import Forked, command_line
from tests.helpers.waiting import PATIENCE
from unet_batch.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    result = CliRunner().invoke(main, ["sample", str(tmp_path / "demo"), "--photos", "12", "--size", "64x96"])
    assert result.exit_code == 0, result.output
    return tmp_path / "demo" / "photos"


def test_a_job_array_and_its_merge(
    photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", str(photos), "-o", str(tmp_path / "out"), "-m", tiny, "--shard", "slurm")
    for name, value in (("MIN", 0), ("MAX", 1), ("COUNT", 2)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    tasks = []
    for task in range(2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        tasks.append(Forked(command_line, *command, output=tmp_path / f"{task}.txt"))
    monkeypatch.undo()
    for number, started in enumerate(tasks, 1):
        stdout, _ = started.communicate(timeout=PATIENCE)
        assert started.returncode == 0
        assert f"shard {number}/2: " in stdout
        assert f"Shard {number}/2 is done: nothing failed." in stdout
        assert "once all are done: unet-batch merge" in stdout
    done = unet_batch("merge", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 done" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("All done. Results in ")
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "manifest.jsonl",
        "masks",
        "run.json",
    ]
    assert json.loads((tmp_path / "out/run.json").read_text())["found"] == 12
    assert "12 already done" in unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny).stdout


def test_nothing_to_merge(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["merge", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no manifests of shards" in result.output
