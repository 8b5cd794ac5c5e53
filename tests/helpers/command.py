"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.processes import Forked, command_line


def unet_batch(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, for 100 seconds at most."""
    words = list(map(str, arguments))
    if os.name == "nt":
        command = [sys.executable, "-m", "unet_batch", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = Forked(command_line, *words, output=output, errors=errors, cwd=cwd)
        code = process.wait(100)
        if code is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, 100)
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())
