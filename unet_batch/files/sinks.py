"""Where results go: whole files or none at all, in one folder, and errors that say what to do.

A file is written under a temporary name in its own folder and then renamed, so that whoever reads it under
its own name, or a run that resumes, never sees half of one. Whoever writes to a folder holds its lock
(`claim`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from unet_batch.errors import FolderInUse, OutputError
from unet_batch.types import Item

LAYOUT = {  # folder and suffix of each kind of output
    "mask": ("masks", ".png"),
    "overlay": ("overlays", ".jpg"),
    "cutout": ("cutouts", ".png"),
    "prob": ("probs", ".png"),
    "prob16": ("probs16", ".png"),
}
OF_CLIPS = ("frames", "timelines", "unfinished")
"""Folders that only clips have, beside their masks and overlays."""
_TEMPORARY = re.compile(r"\.ub-([0-9a-f]{8})-([1-9][0-9]{0,9})-[0-9a-f]{8}\.part")
_LOCK = re.compile(r"\.run(?:-[0-9]+-of-([0-9]+))?\.lock")
_DAY = 24 * 3600.0
_LOOK = 0.5  # seconds; whoever only looks whether a lock is free holds it for some microseconds
# Worth another try: a folder that vanished under us; on Windows also a file that a virus scanner or viewer
# holds open.
_PASSING = (FileNotFoundError, PermissionError) if os.name == "nt" else (FileNotFoundError,)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
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
            temporary, descriptor = _open_temporary(os.path.dirname(path))
            with open(descriptor, "wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
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


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yields a name to write a file under, for those who write it themselves; afterwards it stands under its
    own.

    Args:
        path: the file; folders that are missing are made.

    Raises:
        OutputError: the file cannot be written; whatever else the block raises is passed on, and nothing is
            left behind.
    """
    temporary = ""
    try:
        temporary, descriptor = _open_temporary(os.path.dirname(path))
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
    """A file of JSON lines, each written out at once, so that a killed run leaves all of them. Absent while
    it has none.

    Args:
        path: the file; what an earlier run left there is removed.

    Raises:
        OutputError: here and in `write`: the file cannot be removed or written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: TextIO | None = None
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise translate(error, path, 0) from error

    def write(self, value: Any) -> None:
        """Add a line."""
        line = json.dumps(value) + "\n"
        try:
            if self._file is None:
                self._file = open(self.path, "w", encoding="ascii", buffering=1)  # noqa: SIM115 - stays open
            self._file.write(line)
        except OSError as error:
            raise translate(error, self.path, len(line)) from error

    def close(self) -> None:
        """Close the file; a line that a full disk refused is refused here, too, and has been reported."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


class OutputTree:
    """The output folder: `masks/<key>.png`, `overlays/<key>.jpg`, and so on by `LAYOUT`.

    Args:
        folder: the output folder; need not exist yet.
        kinds: which outputs are wanted, as named in `LAYOUT`.

    Raises:
        OutputError: a kind is unknown.
    """

    def __init__(self, folder: str, kinds: Sequence[str]) -> None:
        unknown = [kind for kind in kinds if kind not in LAYOUT]
        if unknown:
            raise OutputError(
                f"unknown kind of output: {', '.join(unknown)}", hint=f"choose from {', '.join(LAYOUT)}"
            )
        self.folder = os.path.abspath(folder)
        self.kinds = tuple(dict.fromkeys(kinds))

    def path(self, kind: str, key: str) -> str:
        """Say where an output goes.

        Raises:
            OutputError: it would lie outside the output folder.
        """
        return os.path.join(self.folder, *self.file(kind, key).split("/"))

    def file(self, kind: str, key: str) -> str:
        """The same, relative to the output folder and `/`-separated.

        Raises:
            OutputError: it would lie outside the output folder.
        """
        steps = re.split(r"[/\\]" if os.name == "nt" else "/", key)
        if "\0" in key or os.path.splitdrive(key)[0] or not {"", os.curdir, os.pardir}.isdisjoint(steps):
            raise OutputError(f"{key!r} would lie outside the output folder {self.folder}")
        folder, suffix = LAYOUT[kind]
        return "/".join((folder, *steps)) + suffix

    def existing(self, items: Iterable[Item]) -> set[str]:
        """Return the keys of the items whose outputs, of every kind wanted, are all there.

        Each folder is listed once; no file is looked at by itself.

        Raises:
            OutputError: an output folder cannot be listed.
        """
        by_folder: defaultdict[str, set[str]] = defaultdict(set)
        for item in items:
            by_folder[item.key.rpartition("/")[0]].add(item.key)
        done: set[str] = set()
        for keys in by_folder.values() if self.kinds else ():
            left = keys
            for kind in self.kinds:
                if left:
                    there = {
                        entry.name
                        for entry in _scan(os.path.dirname(self.path(kind, next(iter(left)))))
                        if _is_file(entry)
                    }
                    left = {key for key in left if key.rpartition("/")[2] + LAYOUT[kind][1] in there}
            done |= left
        return done

    def prepare(self) -> None:
        """Make the output folder and write a byte into it, to fail before the work rather than after.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        temporary = ""
        try:
            temporary, descriptor = _open_temporary(self.folder)
            with open(descriptor, "wb") as file:
                file.write(b"\n")
        except (OSError, ValueError) as error:
            raise translate(error, self.folder, 1) from error
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def clean_leftovers(self) -> int:
        """Remove the temporary files of runs that were killed, and return how many; see `clean_leftovers`."""
        removed = clean_leftovers(self.folder)
        stack = [
            os.path.join(self.folder, folder)
            for folder in (*(folder for folder, _ in LAYOUT.values()), *OF_CLIPS)
        ]
        while stack:
            folder = stack.pop()
            removed += clean_leftovers(folder)
            with contextlib.suppress(OutputError, OSError):  # what we cannot tidy up is no reason not to work
                stack += [entry.path for entry in _scan(folder) if entry.is_dir(follow_symlinks=False)]
        return removed


def clean_leftovers(folder: str) -> int:
    """Remove the temporary files of killed processes from a folder, not from those below, and return how
    many.

    A process on this machine is asked whether it lives. One elsewhere cannot be asked: its files go after a
    day.
    """
    removed = 0
    entries: list[os.DirEntry[str]] = []
    with contextlib.suppress(OutputError):
        entries = _scan(folder)
    for entry in entries:
        with contextlib.suppress(OSError):
            if (name := _TEMPORARY.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                dead = name[1] == _here() and not _is_alive(int(name[2]))
                if dead or time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY:
                    os.unlink(entry.path)
                    removed += 1
    return removed


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


@contextmanager
def claim(
    folder: str, part: str = "", *, wait: bool = False, on_wait: Callable[[str], None] = lambda owner: None
) -> Iterator[bool]:
    """Hold the right to write to an output folder; a process that dies gives it back.

    A run that does everything excludes all others; shards exclude it, themselves, and shards of another
    count.

    Args:
        folder: the output folder; must exist.
        part: of a shard, such as `2-of-8`; "" for everything.
        wait: wait for the others instead of raising.
        on_wait: called with the owner, in words, before waiting.

    Yields:
        Whether this file system can lock. If it cannot, nothing is held.

    Raises:
        FolderInUse: somebody else holds it.
        OutputError: there is no right to write there.
    """
    from filelock import FileLock  # not at the top: `--help` reaches this module

    stem = f".run-{part}" if part else ".run"
    lock = FileLock(os.path.join(folder, stem + ".lock"))
    owner_path = os.path.join(folder, stem + ".owner")
    told = False
    while True:
        try:
            holder = _blocker(folder, lock, part)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in (
                errno.EACCES,
                errno.EPERM,
                errno.EROFS,
                errno.ENOSPC,
                errno.ENOENT,
            ):
                raise translate(error, lock.lock_file, 0) from error
            yield False
            return
        if holder is None:
            break
        if not wait:
            raise FolderInUse(
                f"{folder}: {holder} is writing here",
                hint="wait for it with --wait, choose another -o, or share the work with --shard I/N",
            )
        if not told:
            on_wait(holder)
            told = True
        time.sleep(_LOOK)
    try:
        write_json(
            owner_path,
            {"pid": os.getpid(), "host": platform.node(), "started": time.strftime("%Y-%m-%d %H:%M:%S")},
        )
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(owner_path)
        lock.release()


def _blocker(folder: str, lock: Any, part: str) -> str | None:
    """Take the lock and return None, or name who is in the way. Two who try at once may both be refused,
    never both let in.
    """
    from filelock import FileLock, Timeout

    try:
        lock.acquire(timeout=_LOOK)
    except Timeout:
        return _owner(lock.lock_file)
    try:
        count = part.rpartition("-")[2]
        for entry in _scan(folder):
            name = _LOCK.fullmatch(entry.name)
            if name is None or entry.path == lock.lock_file or (part and name[1] == count):
                continue
            try:
                with FileLock(entry.path).acquire(timeout=_LOOK):
                    pass
            except Timeout:
                lock.release()
                return _owner(entry.path)
    except BaseException:
        lock.release()
        raise
    return None


def _owner(lock_file: str) -> str:
    """Who holds a lock, in words."""
    who = "another run"
    if name := re.search(r"\.run-([0-9]+)-of-([0-9]+)\.lock$", lock_file):
        who = f"shard {name[1]}/{name[2]} of another run"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(lock_file.removesuffix(".lock") + ".owner", encoding="ascii") as file:
            owner = json.load(file)
        who += f" (process {owner['pid']} on {owner['host']}, since {owner['started']})"
    return who


def _open_temporary(folder: str) -> tuple[str, int]:
    """Make a file that no other thread, process or machine makes; its name tells `clean_leftovers` whose it
    is.
    """
    path = os.path.join(folder, f".ub-{_here()}-{os.getpid()}-{secrets.token_hex(4)}.part")
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


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"{folder} cannot be listed: {error.strerror or error}", hint=_ELSEWHERE) from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in circles
        return False


@functools.cache
def _here() -> str:
    """Identify the machine and the container: a process number means nothing outside."""
    place = platform.node()
    with contextlib.suppress(OSError):
        place += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # asking would end the process; age decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's
    return True
