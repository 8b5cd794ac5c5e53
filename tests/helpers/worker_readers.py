"""Imported by workers in place of `images.read`: what they draw and write afterwards goes wrong on command.

Drawing what is called crash-N.png kills the worker, the first N times. What becomes of writing stands in the
environment: WRITING=full meets a full disk, WRITING=die leaves a file half written, once.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

from unet_batch.files import atomic
from unet_batch.inference import result
from unet_batch.media.images import read

__all__ = ["read"]
_encode = result.Result.encode
_open_temporary = atomic.open_temporary


def _is_first(mark: str) -> bool:
    """Whether nobody has asked this before, in any process."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _crash(self: result.Result, kind: str) -> bytes:
    name, _, times = os.path.splitext(os.path.basename(self.path))[0].partition("-")
    if name == "crash" and any(_is_first(f"{self.path}.{number}") for number in range(int(times))):
        os.kill(os.getpid(), signal.SIGSEGV)
    return _encode(self, kind)


def _begin(folder: str) -> Any:
    if os.environ["WRITING"] == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    found = _open_temporary(folder)
    if _is_first(os.path.join(os.path.dirname(folder), ".died")):
        os.kill(os.getpid(), signal.SIGKILL)
    return found


result.Result.encode = _crash  # type: ignore[method-assign]
if "WRITING" in os.environ:
    atomic.open_temporary = _begin
