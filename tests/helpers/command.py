"""The command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.processes import Forked, command_line
from tests.helpers.shared import once
from tests.helpers.waiting import PATIENCE


def unet_batch(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, for as long as `PATIENCE` lasts."""
    words = list(map(str, arguments))
    if os.name == "nt":
        command = [sys.executable, "-m", "unet_batch", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = Forked(command_line, *words, output=output, errors=errors, cwd=cwd)
        code = process.wait(PATIENCE)
        if code is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, PATIENCE)
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


def doctor_of_this_machine() -> subprocess.CompletedProcess[str]:
    """`unet-batch doctor --json` in a fresh interpreter, run once for all tests.

    It starts one for each of twenty libraries, PyTorch in several of them: 11 seconds of processor time.
    """
    command = [sys.executable, "-m", "unet_batch", "doctor", "--json"]

    def make(path: Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        path.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))

    return subprocess.CompletedProcess(command, *json.loads(once("doctor.json", make).read_text()))
