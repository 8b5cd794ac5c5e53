"""Stand-ins for `images.read` that crash or hang on command: the first line of a "picture" says what to do.

Loaded by decoder processes, so it imports nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

from tests.helpers.waiting import until
from unet_batch.errors import ImageError
from unet_batch.media import images

_spoiled = False


def obey(path: str, **options: Any) -> images.Picture:
    """Do what the file says; read it as a picture if it says nothing."""
    global _spoiled
    with open(path, "rb") as file:
        command, _, argument = file.readline(200).decode("latin-1").strip().partition(" ")
    if command == "signal":
        os.kill(os.getpid(), getattr(signal, argument))
        time.sleep(60)
    elif command == "segfault":
        ctypes.string_at(0)
    elif command == "abort":
        os.write(2, b"malloc(): corrupted top size\n")
        os.abort()
    elif command == "spoil" or _spoiled:
        if _spoiled:
            os.kill(os.getpid(), signal.SIGSEGV)
        _spoiled = True
        raise ImageError(f"{path}: damaged")
    elif command == "hang":
        while True:
            pass
    elif command == "interrupt":
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(600)
    elif command == "wait":
        until(lambda: os.path.exists(f"{path}.go on"))
        raise ImageError(f"{path}: waited")
    elif command == "sleep":
        time.sleep(float(argument))
        raise ImageError(f"{path}: {os.getpid()}")
    elif command == "exit":
        os._exit(int(argument))
    elif command == "raise":
        raise KeyError(argument)
    elif command == "noise":
        os.write(1, b"noise\n" * 1000)
        os.write(2, b"noise\n" * 100_000)
        sys.stdout.write("noise\n")
        sys.stdout.flush()
        raise ImageError(f"{path}: noisy, stderr held {os.fstat(2).st_size} bytes")
    elif command == "quiet":
        raise ImageError(f"{path}: quiet, stderr held {os.fstat(2).st_size} bytes")
    elif command == "modules":
        raise ImageError(" ".join(sorted(sys.modules)))
    elif command == "pid":
        raise ImageError(str(os.getpid()))
    return images.read(path, **options)


def refuse(path: str, **options: Any) -> images.Picture:
    """Fail like a file that vanished from the network."""
    raise ImageError(f"{path}: cannot be read", hint="wait") from OSError(116, "Stale file handle")
