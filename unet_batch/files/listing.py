"""What lies below an address: a tree of folders, listed many at once, or some branches of it alone."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from unet_batch.files import remote
from unet_batch.files.branches import Branches
from unet_batch.files.naming import shown

T = TypeVar("T")


def below(url: str, branches: Branches | None = None) -> Iterator[str]:
    """The addresses of the files below a folder, in any order; their sizes are known from then on.

    Args:
        url: of the folder.
        branches: which folders below it are looked into; all without it, and always over HTTP.

    Raises:
        OSError: it cannot be listed.
    """
    if remote.is_http(url):
        yield from _linked(url)
        return
    for name, info in find(url, branches):
        if not name.endswith("/"):  # else an object that stands for an empty folder
            address = f"{url}/{name}"
            remote.remember(address, info)
            yield address


def find(url: str, branches: Branches | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of the files below a folder, relative to it, and what fsspec knows of each.

    A thousand names take a request, and the next thousand have to wait for it: so `AHEAD` folders are listed
    at once, as soon as there are so many.

    Raises:
        OSError: it cannot be listed.
    """
    branches = branches or Branches(depth=0)
    level, depth = [""], 0
    pool = ThreadPoolExecutor(remote.AHEAD, "list")
    try:
        while level and (len(level) < remote.AHEAD or branches.depth is None or depth < branches.depth):
            folders: list[str] = []
            for files, more in _in_turn(pool, functools.partial(_list_folder, url), level):
                yield from files
                folders += more
            depth += 1
            level = list(branches.narrow(folders, depth, lambda name: name))
        for start, found in _in_turn(pool, functools.partial(_find_all, url), level):
            while found:  # what is taken over is let go: s3fs has 650 bytes for a name
                name, info = found.popitem()
                yield name[start:], info
    finally:
        pool.shutdown(cancel_futures=True)


def _in_turn(pool: ThreadPoolExecutor, ask: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """Ask for each, remote.AHEAD at once: as many answers are held, and no more."""
    waiting: deque[Future[T]] = deque()
    for name in names:
        waiting.append(pool.submit(ask, name))
        if len(waiting) > remote.AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _list_folder(url: str, folder: str) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The files of a folder below an address, and the folders in it, by their names below the address.

    A folder whose name is empty, or . or .., cannot be asked for: beside one, all files below are its own.
    """

    def list_all(system: Any, address: str) -> tuple[int, list[dict[str, Any]]]:
        start = len(str(system._strip_protocol(address)).rstrip("/")) + 1
        try:
            return start, system.ls(f"{address}/{folder}".rstrip("/") + "/", detail=True)
        except FileNotFoundError as error:
            if remote.is_of_bucket(error):
                raise
            return start, []

    start, found = remote.attempt(url, list_all)
    files: list[tuple[str, dict[str, Any]]] = []
    folders: list[str] = []
    for info in found:
        name = info["name"][start:]
        if info["type"] != "directory":
            files += [(name, info)] if name else []
        elif (name := name.rstrip("/")) == folder or name.rpartition("/")[2] in (os.curdir, os.pardir):
            start, below = _find_all(url, folder)
            return [(name[start:], info) for name, info in below.items()], []
        else:
            folders.append(name)
    return files, folders


def _find_all(url: str, folder: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """What fsspec knows of all files below a folder of an address, and where their names below it begin."""

    def find_all(system: Any, address: str) -> tuple[int, dict[str, dict[str, Any]]]:
        start = len(str(system._strip_protocol(address)).rstrip("/")) + 1
        return start, system.find(f"{address}/{folder}".rstrip("/") + "/", detail=True)

    return remote.attempt(url, find_all)


def _linked(url: str) -> Iterator[str]:
    """Files that the page of a folder links to, and the pages of folders below it."""
    pages, seen = [f"{url}/"], {f"{url}/"}
    while pages:
        page = pages.pop()
        for info in remote.attempt(page, lambda system, address: system.ls(address, detail=True)):
            name = remote.quoted(shown(str(info["name"]).partition("?")[0]))
            if name in seen or not name.startswith(page):  # columns to sort by, and the way up
                continue
            seen.add(name)
            if name.endswith("/"):
                pages.append(name)
            else:
                yield name
