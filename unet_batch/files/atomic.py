"""Write whole files or none at all, with errors that say what to do.

A file is written under a temporary name in its own folder and then renamed, so that whoever reads it under
its own name, or a run that resumes, never sees half of one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from unet_batch.errors import OutputError

_TEMPORARY = re.compile(r"\.ub-([0-9a-f]{8})-([1-9][0-9]{0,9})-[0-9a-f]{8}\.part")
_HALF = re.compile(r"\.ub-([0-9a-f]{8})-([1-9][0-9]{0,9})-[0-9a-f]{8}\.half")
_DAY = 24 * 3600.0
_numbers = itertools.count(secrets.randbits(32))  # of temporary files: those of a dead process may be left
# Worth another try: a folder that vanished under us; on Windows also a file that a virus scanner or viewer
# holds open.
_PASSING = (FileNotFoundError, PermissionError) if os.name == "nt" else (FileNotFoundError,)
_ELSEWHERE = "choose another output folder with -o"


def write_atomic(path: str, data: bytes, *, sync: bool = False) -> None:
    """Write a whole file, or leave what was there; folders that are missing are made.

    Args:
        path: the file.
        data: all its bytes.
        sync: wait until the bytes are on the disk, so that not even a power cut leaves an empty file.

    Raises:
        OutputError: the file cannot be written; it names the path, the reason and the fix.
    """
    for pause in (0.05, 0.5, None):
        temporary = ""
        try:
            temporary, descriptor = open_temporary(os.path.dirname(path))
            try:
                _write(descriptor, data)
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
            return
        except BaseException as error:  # an interrupt must not leave the temporary file either
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            if not isinstance(error, OSError | ValueError):
                raise
            if pause is None or not isinstance(error, _PASSING):
                raise translate(error, path, len(data)) from error
            time.sleep(pause)


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`, in one call of the system as a rule.

    A file object makes four. Each lets go of Python's lock, and may have to wait for other threads after it.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]  # in pieces only where the disk is filling up


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a temporary name to write a file under, then rename the file to its own.

    Args:
        path: the file; folders that are missing are made.

    Raises:
        OutputError: the file cannot be written; whatever else the block raises is passed on, and nothing is
            left behind.
    """
    temporary = ""
    try:
        temporary, descriptor = open_temporary(os.path.dirname(path))
        os.close(descriptor)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if not isinstance(error, OSError | ValueError):
            raise
        raise translate(error, path, 0) from error


@contextmanager
def new_folder(path: str) -> Iterator[str]:
    """Yield a folder of a temporary name to fill, then rename it to its own: whole or not at all.

    Args:
        path: the folder, which is not there yet; those above it are made.

    Raises:
        FileExistsError: by then it is there.
        OutputError: it cannot be made; whatever the block raises is passed on, and nothing is left behind.
    """
    above = os.path.dirname(path) or os.curdir
    make_folder(above)
    for entry in scan(above):
        left = _HALF.fullmatch(entry.name)
        if left and left[1] == host_id() and not is_alive(int(left[2])):
            shutil.rmtree(entry.path, ignore_errors=True)
    temporary = os.path.join(above, f".ub-{host_id()}-{os.getpid()}-{secrets.token_hex(4)}.half")
    try:
        make_folder(temporary)
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError as error:
            if os.path.lexists(path):
                raise FileExistsError(path) from error
            raise translate(error, path, 0) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: str) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise translate(error, path, 0) from error


def write_json(path: str, value: Any, *, sync: bool = False) -> None:
    """Write a value as JSON, whole or not at all; objects keep their order.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), sync=sync)


class LineLog:
    """A file of JSON lines, each written out at once so that a killed run leaves them; absent while empty.

    Args:
        path: the file.
        keep: which lines of earlier runs stay, as for `prune`; by default none does.

    Attributes:
        count: lines in the file.

    Raises:
        OutputError: here and everywhere: the file cannot be read, removed or written.
    """

    def __init__(self, path: str, keep: Callable[[int, Any], bool] = lambda number, value: False) -> None:
        self.path, self.count = path, 0
        self._file: TextIO | None = None
        self.prune(keep)

    def write(self, value: Any) -> None:
        """Add a line."""
        line = json.dumps(value) + "\n"
        try:
            if self._file is None:
                self._file = open(self.path, "a", encoding="ascii", buffering=1)  # noqa: SIM115 - stays open
            self._file.write(line)
        except OSError as error:
            raise translate(error, self.path, len(line)) from error
        self.count += 1

    def prune(self, keep: Callable[[int, Any], bool]) -> None:
        """Leave only some of the lines; at any moment the file is the old one or the new one.

        Args:
            keep: says of each line whether it stays, from its number, 0 for the first, and its value. What is
                no JSON, such as a line that a power cut has torn, goes.
        """
        self.close()
        stays = bytearray()  # a byte a line, each of which is looked at once: there may be many
        try:
            with open(self.path, "rb") as file:
                stays.extend(_stays(keep, number, line) for number, line in enumerate(file))
            if stays and not any(stays):
                os.unlink(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise translate(error, self.path, 0) from error
        self.count = sum(stays)
        if 0 < self.count < len(stays):
            with (
                replacing(self.path) as temporary,
                open(self.path, "rb") as file,
                open(temporary, "wb") as kept,
            ):
                kept.writelines(itertools.compress(file, stays))

    def close(self) -> None:
        """Close the file; a line that a full disk refused is refused here, too, and has been reported."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _stays(keep: Callable[[int, Any], bool], number: int, line: bytes) -> bool:
    try:
        return keep(number, json.loads(line))
    except (ValueError, RecursionError):
        return False


def remove(paths: Iterable[str]) -> None:
    """Remove files that may be there.

    Raises:
        OutputError: one cannot be removed.
    """
    for path in paths:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise translate(error, path, 0) from error


def clean_leftovers(folder: str) -> int:
    """Remove the temporary files of killed processes from a folder, not from those below; return how many.

    A process on this machine is asked whether it lives. One elsewhere cannot be asked: its files go after
    a day.
    """
    try:
        return remove_leftovers(scan(folder))
    except OutputError:
        return 0


def remove_leftovers(entries: Iterable[os.DirEntry[str]]) -> int:
    """The same of a folder that is listed already."""
    removed = 0
    for entry in entries:
        if not entry.name.startswith(".ub-"):  # of 100,000 names all
            continue
        with contextlib.suppress(OSError):
            if (name := _TEMPORARY.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                dead = name[1] == host_id() and not is_alive(int(name[2]))
                if dead or time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY:
                    os.unlink(entry.path)
                    removed += 1
    return removed


def scan(folder: str) -> list[os.DirEntry[str]]:
    """List a folder; one that does not exist is empty.

    Raises:
        OutputError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"{folder} cannot be listed: {error.strerror or error}", hint=_ELSEWHERE) from error


def open_temporary(folder: str) -> tuple[str, int]:
    """Make a file of a unique name, from which `clean_leftovers` knows its owner."""
    path = os.path.join(folder, f".ub-{host_id()}-{os.getpid()}-{next(_numbers) % 2**32:08x}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        return path, os.open(path, flags, 0o666)
    except FileNotFoundError:  # looking before each file would cost a call; noticing now costs none
        os.makedirs(folder, exist_ok=True)
        return path, os.open(path, flags, 0o666)


def translate(error: OSError | ValueError, path: str, size: int) -> OutputError:
    """Say why a file of `size` bytes could not be written, and what helps."""
    code = error.errno if isinstance(error, OSError) else None
    there = path
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    there = there or os.curdir
    reason, hint = (error.strerror if isinstance(error, OSError) else None) or str(error), _ELSEWHERE
    if code in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full" if code == errno.ENOSPC else "your disk quota is used up"
        reason += f": {size:,} bytes to write"
        with contextlib.suppress(OSError):
            reason += f", {shutil.disk_usage(there).free:,} free"
        hint = f"free some space, or {_ELSEWHERE}"
    elif code == errno.EROFS:
        reason = "the disk is read-only"
    elif code in (errno.EACCES, errno.EPERM):
        where = there if os.path.isdir(there) else os.path.dirname(there)
        reason, hint = f"no right to write in {where}", f"change its permissions, or {_ELSEWHERE}"
    elif code == errno.ENAMETOOLONG:
        longest = max(len(os.fsencode(part)) for part in path.split(os.sep))
        reason = f"the name is too long ({len(os.fsencode(path))} bytes, the longest part {longest})"
    elif code in (errno.ENOTDIR, errno.EEXIST):
        reason, hint = f"{there} is in the way: it is not a folder", f"move it away, or {_ELSEWHERE}"
    elif code == errno.EISDIR:
        reason, hint = "a folder of this name is in the way", f"move it away, or {_ELSEWHERE}"
    return OutputError(f"{path} cannot be written: {reason}", hint=hint)


@functools.cache
def host_id() -> str:
    """Identify the machine and the container: a process number means nothing outside."""
    place = platform.node()
    with contextlib.suppress(OSError):
        place += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine lives, as far as can be told."""
    if os.name == "nt":
        return True  # asking would end the process; age decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's
    return True
