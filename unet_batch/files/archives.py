"""Files in ZIP and tar archives, under paths as if the archive were a folder: `/data/photos.zip/a/b.jpg`.

`stat`, `open_file` and `is_folder` take such paths and all others, addresses too (`remote`). Nothing is
unpacked: a member is read into memory when it is opened. The table of contents is read once for each archive,
and again when its file has changed.

Compressed tar archives are not taken: they can be read only from the front, so that each member would
cost all those before it.
"""

from __future__ import annotations

import os
import re
import stat as modes
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO, NamedTuple

from unet_batch.files import listing, remote, stores
from unet_batch.files.branches import Branches

LARGEST = 2 * 2**30
"""Bytes of the largest member that is read: it is held in memory, and a small file may claim to hold more."""
_SUFFIXES = (".zip", ".tar")
_COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_INSIDE = re.compile(r"\.(?:zip|tar)(?=[/\\])", re.IGNORECASE)
# What an address, a member of an archive, or a store has in its path; hardly any file has
_UNLIKE_FILES = re.compile(rf"://|{_INSIDE.pattern}|{re.escape(stores.SUFFIX)}$", re.IGNORECASE)
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Stat(NamedTuple):
    """What identifies the contents of a file.

    Attributes:
        size: in bytes.
        mtime_ns: when it was last written; of a member of a ZIP its checksum, as times in there have no zone
            and two seconds; of an address a number of its version.
    """

    size: int
    mtime_ns: int


class _Member(NamedTuple):
    """A file in an archive: what identifies it, and where it is, as the archive's own library has it."""

    stat: Stat
    place: zipfile.ZipInfo | int


class _Archive(ABC):
    """An archive: its files by their names, `/`-separated; several threads may read at once."""

    members: Mapping[str, _Member]

    @abstractmethod
    def read(self, member: _Member, size: int = -1) -> bytes:
        """The contents, or so many bytes of their beginning. Raises OSError, or one of _DAMAGE."""


class _Zip(_Archive):
    def __init__(self, path: str) -> None:
        self._file = zipfile.ZipFile(path)
        members = ((info, _clean(info.filename)) for info in self._file.infolist() if not info.is_dir())
        self.members = {name: _Member(Stat(info.file_size, info.CRC), info) for info, name in members if name}

    def read(self, member: _Member, size: int = -1) -> bytes:
        assert isinstance(member.place, zipfile.ZipInfo)
        with self._file.open(member.place) as file:
            return file.read(size)


class _Tar(_Archive):
    def __init__(self, path: str) -> None:
        self._path = path
        with tarfile.open(path, "r:") as file:
            members = ((info, _clean(info.name)) for info in file if info.isreg() and not info.issparse())
            self.members = {
                name: _Member(Stat(info.size, round(info.mtime * 1e9)), info.offset_data)
                for info, name in members
                if name
            }

    def read(self, member: _Member, size: int = -1) -> bytes:
        assert isinstance(member.place, int)
        size = member.stat.size if size < 0 else min(size, member.stat.size)
        with open(self._path, "rb") as file:
            file.seek(member.place)
            data = file.read(size)
        if len(data) < size:
            raise EOFError("the archive ends early")
        return data


def archive_of(path: str) -> str:
    """The archive that a path is, or leads into, by its name; "" for all else."""
    if remote.is_remote(path):
        return ""
    if (found := _split(path)) is not None:
        return found[0]
    return path if path.lower().endswith(_SUFFIXES) and os.path.isfile(path) else ""


def is_compressed(path: str) -> bool:
    """Whether a file is called like a tar archive that can be read only from the front."""
    return path.lower().endswith(_COMPRESSED)


def below(path: str, branches: Branches | None = None) -> Iterator[str]:
    """The paths of the files in an archive, below a folder in one, or below an address.

    Directories, links, and names that lead out of the archive are left out.

    Args:
        path: of the archive or folder, or the address.
        branches: of an address, which folders are looked into; all without it.

    Raises:
        OSError: it cannot be read, or is damaged.
    """
    if remote.is_remote(path):
        yield from listing.below(path, branches)
        return
    archive, inside = _split(path) or (path, "")
    for name in _contents(archive).members:
        if not inside or name.startswith(f"{inside}/"):
            yield os.path.join(archive, *name.split("/"))


def stat(path: str) -> Stat:
    """What identifies a file.

    Raises:
        OSError, ValueError: it cannot be looked at.
    """
    if _UNLIKE_FILES.search(path):
        if remote.is_remote(path):
            return Stat(*remote.stat(path))
        if found := _split(path):
            return _find(path, *found).stat
        if stores.is_store(path):
            return Stat(*stores.measure_store(path))
    facts = os.stat(path)
    return Stat(facts.st_size, facts.st_mtime_ns)


def stat_each(paths: Iterable[str]) -> Iterator[tuple[int, int] | None]:
    """What `stat` tells of each file; None of one that cannot be looked at.

    Quicker for the files of a folder, one behind the other: its name is read once.
    """
    folder, is_plain = "", False
    for path in paths:
        above, _, name = path.rpartition(os.sep)
        if above != folder:
            folder, is_plain = above, bool(above) and not _UNLIKE_FILES.search(above + os.sep)
        found: tuple[int, int] | None = None
        try:  # contextlib.suppress would take as long as all else here
            if is_plain and name[-len(stores.SUFFIX) :].lower() != stores.SUFFIX:
                facts = os.stat(path)
                found = facts.st_size, facts.st_mtime_ns
            else:
                found = stat(path)
        except (OSError, ValueError):
            pass
        yield found


def open_file(path: str) -> BinaryIO:
    """Open a file for reading: a regular one, one of an address, or a member of an archive, in memory.

    Raises:
        OSError, ValueError: it cannot be opened, is damaged, or too large to be held.
    """
    if remote.is_remote(path):
        return remote.open_file(path)
    if (found := _split(path)) is None:
        return open(path, "rb")
    archive, name = found
    member = _find(path, archive, name)
    if member.stat.size > LARGEST:
        raise OSError(f"{member.stat.size:,} bytes in an archive, which would be held in memory: unpack it")
    try:
        return BytesIO(_contents(archive).read(member))
    except _DAMAGE as error:
        raise OSError(f"damaged in its archive, or encrypted: {error}") from error


def open_regular(path: str, at_once: int) -> BinaryIO | None:
    """Open a file as `open_file` does; None where there is something else. Raises as `open_file`.

    Args:
        path: of the file.
        at_once: one of up to so many bytes is read into memory: three calls of the system, each without
            Python's lock, which another thread may have afterwards. A file object makes ten.
    """
    if remote.is_remote(path) or _split(path) is not None:
        return open_file(path)
    facts = os.stat(path)
    if not modes.S_ISREG(facts.st_mode):  # a named pipe would wait for ever
        return None
    if not 0 < facts.st_size <= at_once:  # a size of 0 may be no more than that it is not known
        return open(path, "rb")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        data = os.read(descriptor, facts.st_size + 1)  # with that one it has grown since
        while len(data) != facts.st_size and (more := os.read(descriptor, at_once)):
            data += more
    finally:
        os.close(descriptor)
    return BytesIO(data)


def read_head(path: str, size: int) -> bytes:
    """The first bytes of a file, of a member of an archive without the rest of it. Raises as `open_file`."""
    if (found := _split(path)) is None:
        if not is_regular(path):  # a named pipe would wait for ever
            raise OSError("not a regular file")
        with open(path, "rb") as file:
            return file.read(size)
    try:
        return _contents(found[0]).read(_find(path, *found), size)
    except _DAMAGE as error:
        raise OSError(f"damaged in its archive, or encrypted: {error}") from error


def local_path(path: str) -> str:
    """The file that a library opens by its name: the path itself, or the copy of an address.

    Raises:
        OSError: an address cannot be read.
    """
    return remote.local_path(path)


def exists(path: str) -> bool:
    """Whether there is such a file, be it a link that leads nowhere."""
    if remote.is_remote(path):
        return remote.exists(path)
    if _split(path) is None:
        return os.path.lexists(path)
    try:
        stat(path)
    except OSError:
        return False
    return True


def is_folder(path: str) -> bool:
    """Whether a path is a folder, an archive, or a folder in one."""
    if remote.is_remote(path):
        try:
            return remote.is_folder(path)
        except OSError:
            return False
    if _split(path) is None:
        return os.path.isdir(path) or archive_of(path) != ""
    try:
        return any(True for _ in below(path))
    except OSError:
        return False


def is_regular(path: str) -> bool:
    """Whether a path is a regular file, or a member of an archive. Raises OSError where it is not there."""
    return remote.is_remote(path) or _split(path) is not None or modes.S_ISREG(os.stat(path).st_mode)


def _find(path: str, archive: str, name: str) -> _Member:
    try:
        return _contents(archive).members[name]
    except KeyError:
        raise FileNotFoundError(2, f"no such file in {archive}", path) from None


def _split(path: str) -> tuple[str, str] | None:
    """The archive that a path leads into, and the name in it; None for a path of the file system's own."""
    for found in _INSIDE.finditer(path):
        archive = path[: found.end()]
        if os.path.isfile(archive):  # a folder may be called photos.zip
            return archive, path[found.end() + 1 :].replace(os.sep, "/")
    return None


_lock = threading.Lock()


def _contents(path: str) -> _Archive:
    facts = os.stat(path)
    with _lock:  # or every thread would read the table of contents
        return _read_contents(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(8)
def _read_contents(path: str, size: int, mtime_ns: int) -> _Archive:
    try:
        return _Zip(path) if path.lower().endswith(".zip") else _Tar(path)
    except _DAMAGE as error:
        raise OSError(f"not an archive, or damaged: {error}") from error


def _clean(name: str) -> str:
    """A member's name without what stands for the archive itself; "" where it leads out of it."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "" if ".." in parts else "/".join(parts)
