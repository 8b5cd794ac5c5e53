"""What tests have workers do; imported there, so it imports nothing heavy."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.helpers.waiting import until
from unet_batch.errors import ImageTooLarge


def echo(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Answer with what came."""
    return request, [bytes(data)]


def pid(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Tell which process this is; asked with a path, make PATH.asked and wait until there is PATH."""
    if request:
        os.close(os.open(request + b".asked", os.O_CREAT))
        until(lambda: os.path.exists(request))
    return b"%d" % os.getpid(), []


def keep(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Keep the data under a number."""
    kept[int(request)] = bytes(data)
    return b"", []


def keep_and_fail(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Keep the data under a number, and raise something."""
    keep(request, data, kept)
    raise OSError(28, "No space left on device")


def look(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Tell what is kept."""
    return repr(sorted(kept.items())).encode(), []


def fail(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Raise something."""
    if request == b"ours":
        raise ImageTooLarge("a.jpg: large", hint="smaller") from OSError(5, "Input/output error")
    if request == b"system":
        raise OSError(28, "No space left on device")
    raise KeyError("x")


def die_once(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Be killed, unless that has happened already: then the file named exists."""
    if not os.path.exists(request):
        os.close(os.open(request, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
    return b"alive", []


def die(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[bytes]]:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    return b"", []
