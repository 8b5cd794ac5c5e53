"""Messages between an owner and its worker."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

REQUEST = struct.Struct("<HHIQ")
"""Before a request: bytes of the function's name, of numbers to forget, of the request, of its data."""
ANSWER = struct.Struct("<?IQd")
"""Before an answer: whether it is an error, bytes of the answer, of its data, processor seconds."""
READY = b"ready\n"
_CHUNK = 16384  # most messages come in one piece


class Channel:
    """Messages through two pipes; what comes along with them goes through a file, where there is one."""

    def __init__(self, source: int, target: int, file: int | None) -> None:
        self._source, self._target, self._file = source, target, file
        self._rest = b""

    def lay(self, data: Sequence[memoryview]) -> Sequence[memoryview]:
        """Put what comes along with a message into the file; return what must be sent with it instead."""
        if self._file is None:
            return data
        _transfer(os.pwrite, self._file, data)
        return ()

    def send(self, message: bytes, data: Sequence[memoryview] = ()) -> None:
        """Send a message, and what must be sent with it; raise EOFError where the other side is gone."""
        try:
            for part in (memoryview(message), *data):
                at = 0
                while at < len(part):
                    at += os.write(self._target, part[at:])
        except OSError as error:  # a broken pipe, for which Windows also has EINVAL
            raise EOFError from error

    def read(self, size: int) -> bytes:
        """Read so many bytes of the message; raise EOFError where the other side is gone."""
        while len(self._rest) < size:
            if not (more := os.read(self._source, _CHUNK)):
                raise EOFError
            self._rest += more
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def read_data(self, views: Sequence[memoryview]) -> None:
        """Read what came along with the message."""
        if self._file is not None:
            _transfer(_read_at, self._file, views)
            return
        for view in views:
            at = 0
            while at < len(view):
                part = self.read(min(len(view) - at, len(self._rest) or _CHUNK))
                view[at : at + len(part)] = part
                at += len(part)


def _transfer(
    function: Callable[[int, memoryview, int], int], file: int, views: Sequence[memoryview]
) -> None:
    """Read or write a file from its beginning; 2 GB at a time is the most that Linux does."""
    at = 0
    for view in views:
        done = 0
        while done < len(view):
            if not (more := function(file, view[done:], at)):
                raise EOFError
            done, at = done + more, at + more


def _read_at(file: int, view: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file, [view], at)
    part = os.pread(file, len(view), at)
    view[: len(part)] = part
    return len(part)
