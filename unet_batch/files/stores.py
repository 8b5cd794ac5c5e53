"""Folders that are one picture, by their names and what must be in them: OME-Zarr, called `NAME.zarr`."""

from __future__ import annotations

import os
from collections.abc import Iterator

SUFFIX = ".zarr"
_MARKS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


def is_store(path: str) -> bool:
    """Whether a path is such a folder; one that only has the name is a folder as any other."""
    if not path.lower().endswith(SUFFIX) or not os.path.isdir(path):
        return False
    return any(os.path.isfile(os.path.join(path, name)) for name in _MARKS)


def files_of(path: str) -> Iterator[os.DirEntry[str]]:
    """All files below it, in the order of their names. Raises OSError where it cannot be listed."""
    with os.scandir(path) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from files_of(entry.path)
        else:
            yield entry


def contents(path: str) -> Iterator[str]:
    """The files that hold what a source holds: those in the folder, or itself. Raises as `files_of`."""
    if is_store(path):
        yield from (entry.path for entry in files_of(path))
    else:
        yield path


def measure_store(path: str) -> tuple[int, int]:
    """Bytes of all files together, and the time of the youngest in nanoseconds. Raises as `files_of`."""
    size = youngest = 0
    for entry in files_of(path):
        facts = entry.stat()
        size, youngest = size + facts.st_size, max(youngest, facts.st_mtime_ns)
    return size, youngest


def has_version_3(path: str) -> bool:
    """Whether it is of the third version of zarr, as OME-Zarr 0.5 is."""
    return os.path.isfile(os.path.join(path, "zarr.json"))


def read_head(path: str, name: str, size: int) -> tuple[bytes, int] | None:
    """The first bytes of a file in it, by its `/`-separated name, and how many it has; None without it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(os.path.join(path, *name.split("/")), "rb") as file:
            return file.read(size), os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
