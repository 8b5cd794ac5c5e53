"""What a command prints cannot be written: nothing it does is lost, and it says so in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.helpers.processes import Forked, command_line, with_nothing_installed, without_reader
from tests.helpers.systems import needs_full_device, needs_posix
from tests.helpers.tiny import tiny_model, tiny_spec
from tests.helpers.waiting import PATIENCE
from unet_batch.cli import main
from unet_batch.model import checkpoint

pytestmark = needs_posix

COMMANDS = [
    "--help",
    "--version",
    "run --help",
    "run photos -o new/out -m tiny.safetensors",
    "run photos -o new/out -m tiny.safetensors -v",
    "run photos -o new/out -m tiny.safetensors --json",
    "run photos -o new/out -m tiny.safetensors --log-json -",
    "run photos -o new/out -m tiny.safetensors --dry-run",
    "merge shards",
    "sample new/more --photos 1 --size 64x96",
    "doctor --json",
    "check-data data",
    "check-data data --json",
    "evaluate data -m tiny.safetensors",
    "evaluate data -m tiny.safetensors --json",
    "inspect tiny.safetensors",
    "inspect tiny.safetensors --json",
    "train data -o new/model.safetensors --epochs 1 --size 32x48 --widths 4,8 --device cpu",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a dataset, a model, and what shards have left."""
    folder = tmp_path_factory.mktemp("streams")
    made = CliRunner().invoke(main, ["sample", str(folder / "data"), "--photos", "4", "--size", "64x96"])
    assert made.exit_code == 0, made.output
    (folder / "photos").symlink_to(folder / "data/photos")
    spec = tiny_spec()
    checkpoint.save(str(folder / "tiny.safetensors"), tiny_model(spec), spec)
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    """The same for one test, which may write into it."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def outcome(folder: Path, words: str, program: Callable[..., None], stdout: Path | None) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    if words.startswith("merge"):
        for shard in ("1/2", "2/2"):
            arguments = ["run", "photos", "-o", "shards", "-m", "tiny.safetensors", "--shard", shard]
            assert Forked(command_line, *arguments, cwd=folder).wait(PATIENCE) == 0
    errors = folder / "errors.txt"
    command = (with_nothing_installed, program, *words.split())
    process = Forked(*command, output=stdout, errors=errors, cwd=folder)
    try:
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    assert code is not None
    return code, errors.read_text()


def said(errors: str) -> list[str]:
    """The errors, each of them one line."""
    assert "Traceback" not in errors
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def check_files(folder: Path, words: str) -> None:
    """What the command was to leave is there, and whole."""
    if "--dry-run" in words or "--help" in words:
        return
    if words.startswith("run"):
        report = json.loads((folder / "new/out/run.json").read_text())
        assert (report["status"], report["done"]) == ("done", 4)
        assert len(list((folder / "new/out/masks").iterdir())) == 4
    elif words.startswith("merge"):
        assert json.loads((folder / "shards/run.json").read_text())["done"] == 4
    elif words.startswith("sample"):
        assert list((folder / "new/more").rglob("*.jpg"))
    elif words.startswith("train"):
        checkpoint.identify(str(folder / "new/model.safetensors"))


@needs_full_device
@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk_behind_stdout(here: Path, words: str) -> None:
    code, errors = outcome(here, words, command_line, Path("/dev/full"))
    assert said(errors) == ["error: stdout cannot be written: No space left on device"], errors
    assert code == 2 or words.startswith("doctor"), "which may have an exit code of its own"
    assert code
    check_files(here, words)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_that_has_seen_enough(here: Path, words: str) -> None:
    """`unet-batch ... | head -n 1`: the exit code is that of the work."""
    code, errors = outcome(here, words, without_reader, None)
    assert said(errors) == ["error: stdout cannot be written: Broken pipe"], errors
    assert code == 0 or words.startswith("doctor")
    check_files(here, words)


@needs_full_device
def test_nothing_can_be_said_at_all(here: Path) -> None:
    """Both streams go to a log on a disk that is full."""
    process = Forked(
        command_line,
        *["run", "photos", "bad.png", "-o", "new/out", "-m", "tiny.safetensors"],
        output=Path("/dev/full"),
        errors=Path("/dev/full"),
        cwd=here,
    )
    (here / "bad.png").write_bytes(b"")
    assert process.wait(PATIENCE) == 1, "a picture failed: that is what the exit code tells"
    assert json.loads((here / "new/out/run.json").read_text())["done"] == 4


def test_streams_that_are_closed(here: Path) -> None:
    """As some schedulers start a job: `unet-batch ... >&- 2>&-`."""
    command = f"{sys.executable} -m unet_batch sample new/more --photos 1 --size 64x96 >&- 2>&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], cwd=here, env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert list((here / "new/more").rglob("*.jpg"))


_OPENS_A_FILE = """
import os, sys
from unet_batch.cli.command import lasting_streams
with lasting_streams():
    with open(sys.argv[1], "w") as file:
        number = file.fileno()
        os.write(1, b"printed by a library"); os.write(2, b"printed by a library")
        file.write(str(number))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_what_libraries_print_where_streams_are_closed(here: Path, closed: str) -> None:
    (here / "opens.py").write_text(_OPENS_A_FILE)
    command = f"{sys.executable} opens.py file {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", command], cwd=here, env=environment, timeout=PATIENCE, check=False, capture_output=True
    )
    assert done.returncode == 0
    assert int((here / "file").read_text()) > 2
