"""What happens in the process of a worker: functions are found, requests answered."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from unet_batch.errors import UnetBatchError
from unet_batch.processes.channel import ANSWER, READY, REQUEST, Channel

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Function = Callable[[bytes, memoryview, dict[int, Any]], tuple[bytes, Sequence[Buffer]]]


@functools.cache
def find_function(name: str) -> Any:
    """What "module:function" names, imported."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


@contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Have the kernel end this process after some seconds, whatever it does then. Windows does not."""
    _set_alarm(seconds)
    try:
        yield
    finally:
        _set_alarm(0)


def _set_alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(functions: Sequence[str], shared: int | None, lifeline: int | None) -> None:
    """Answer requests until the owner closes the pipe, or is gone."""
    # The libraries' stdout is our stderr: what they print must not be taken for an answer.
    channel = Channel(os.dup(0), os.dup(1), shared)
    os.dup2(2, 1)
    if lifeline is not None:
        _die_with_owner(lifeline)
    with suppress(ImportError):
        import resource

        # A thousand crashes would fill the disk with core files.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for name in functions:
        find_function(name)
    _set_alarm(0)
    channel.send(READY)
    kept: dict[int, Any] = {}
    with suppress(EOFError):
        while True:
            _serve_one(channel, shared, kept)
    os._exit(0)  # nothing is left to tidy up, and none of the libraries gets a chance to crash over it


def _serve_one(channel: Channel, shared: int | None, kept: dict[int, Any]) -> None:
    named, numbers, length, size = REQUEST.unpack(channel.read(REQUEST.size))
    function: Function = find_function(channel.read(named).decode())
    for (number,) in struct.iter_unpack("<Q", channel.read(numbers)):
        kept.pop(number, None)
    request, data = channel.read(length), memoryview(bytearray(size))
    channel.read_data([data])
    cpu = time.process_time()
    # So stderr holds the words of this request, and does not grow.
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    failed, size, known = False, 0, set(kept)
    rest: Sequence[memoryview] = ()
    try:
        answer, parts = function(request, data, kept)
        views = [memoryview(part).cast("B") for part in parts]
        size, rest = sum(map(len, views)), channel.lay(views)
        if shared is not None and views:
            os.ftruncate(shared, size)  # a large one before it leaves nothing
    except Exception as error:  # noqa: BLE001 - the owner gets it
        for number in kept.keys() - known:  # of which nobody will ever say that it can be forgotten
            del kept[number]
        failed, size, rest, answer = True, 0, (), _write_error(error)
    channel.send(ANSWER.pack(failed, len(answer), size, time.process_time() - cpu) + answer, rest)


def _write_error(error: Exception) -> bytes:
    """The answer that stands for an error, with the number of the OSError among its causes."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    number = cause and cause.errno
    if isinstance(error, UnetBatchError):
        return json.dumps([type(error).__name__, error.message, error.hint, number]).encode()
    if isinstance(error, OSError):
        return json.dumps(["OSError", error.strerror or str(error), "", number]).encode()
    return json.dumps(["", f"{type(error).__name__}: {error}", "", None]).encode()


def _die_with_owner(lifeline: int) -> None:
    """Have the kernel end this process when the owner, who holds the other end of this pipe, is gone."""
    import fcntl

    with suppress(OSError):
        signal.signal(signal.SIGIO, signal.SIG_DFL)  # sent where a pipe is closed; it ends us
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
