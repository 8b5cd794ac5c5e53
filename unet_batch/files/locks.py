"""Locks on output folders: one run at a time, or the shards of one run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unet_batch.errors import FolderInUse
from unet_batch.files.atomic import scan, translate, write_json

_LOCK = re.compile(r"\.run(?:-[0-9]+-of-([0-9]+))?\.lock")
_LOOK = 0.5  # seconds; whoever only looks whether a lock is free holds it for some microseconds
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOENT)


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
            if isinstance(error, OSError) and error.errno in _UNWRITABLE:
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
    """Take the lock and return None, or name who holds it. Two at once: never both get it, perhaps none."""
    from filelock import FileLock, Timeout

    try:
        lock.acquire(timeout=_LOOK)
    except Timeout:
        return _owner(lock.lock_file)
    try:
        count = part.rpartition("-")[2]
        for entry in scan(folder):
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
