"""The command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def unet_batch(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unet_batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)
