"""Files that the processes of one run of pytest make once for all of them, such as exported graphs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER = "UNET_BATCH_SHARED"
"""The environment variable that names the folder, here and in processes that tests start; see `conftest`."""


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The path of a file or folder that the first process to ask for it makes; the others wait.

    Args:
        name: what it depends on is part of it. A suffix stays one.
        make: writes it to the path that it is given. What it leaves when it raises is not used.
    """
    path = Path(os.environ[FOLDER]) / name
    half = path.with_name(f"half-{name}")
    with FileLock(path.with_name(f"{name}.lock")):
        if not path.exists():
            if half.is_dir():
                shutil.rmtree(half)
            make(half)
            half.rename(path)
    return path
