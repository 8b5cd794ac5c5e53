"""Folders that sources have in common: what their names are relative to, and where results go."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from unet_batch.files import archives, remote
from unet_batch.files.naming import assign_folder_names, each_key
from unet_batch.types import Item


def common_folder(folders: Collection[str]) -> str:
    """The folder that all of these are or lie in; "" if there is none but the top of a file system."""
    if any(map(remote.is_remote, folders)):  # commonpath would take the two slashes for one
        each = [folder.split("/") for folder in folders]
        steps = list(itertools.takewhile(lambda these: len(set(these)) == 1, zip(*each, strict=False)))
        return "/".join(step for step, *_ in steps) if len(steps) > 2 else ""
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # drives of Windows
        return ""
    return common if common in folders or os.path.dirname(common) != common else ""


def outermost(folders: Iterable[str]) -> tuple[str, ...]:
    """Those of the folders that lie in none of the others."""
    found: list[str] = []
    for folder in sorted(folders, key=lambda folder: folder.replace(os.sep, "/").split("/")):
        if not found or not is_below(folder, found[-1]):
            found.append(folder)
    return tuple(found)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it; both absolute."""
    separator = "/" if remote.is_remote(folder) else os.sep
    return path == folder or path.startswith(folder if folder.endswith(separator) else folder + separator)


def source_path(root: str, source: str) -> str:
    """The path of a source, given its `/`-separated name below a root."""
    return f"{root}/{source}" if remote.is_remote(root) else os.path.join(root, *source.split("/"))


def relative_names(paths: Iterable[str], folders: Sequence[str]) -> Iterator[str]:
    """Name files that have no common folder: each name begins with that of one of `folders`."""
    prefixes = {top: f"{name}/" for top, name in assign_folder_names(folders).items()}
    for path in paths:
        folder, last = os.path.split(path)
        steps: list[str] = []
        while folder not in prefixes:
            folder, step = os.path.split(folder)
            steps.append(step)
        prefix = prefixes[folder]
        for step in reversed(steps):
            folder, prefix = os.path.join(folder, step), f"{prefix}{step}/"
            prefixes[folder] = prefix
        yield prefix + last


def name_below(folder: str, path: str) -> str:
    """The `/`-separated name of a path below a folder; both absolute."""
    return path[len(folder if folder.endswith(os.sep) else folder + os.sep) :].replace(os.sep, "/")


def name_items(
    paths: Collection[str], addresses: Mapping[str, str], root: str, folders: Sequence[str]
) -> list[Item]:
    """The items of sources, in no order.

    Args:
        paths: of the sources.
        addresses: of cameras and streams, by their names.
        root, folders: as `Sources` has them.
    """
    if root and not addresses and not remote.is_http(root):  # of a million names none is held twice
        start = len(root if root.endswith(os.sep) else root + os.sep)
        named = each_key(paths, lambda path: path[start:].replace(os.sep, "/"))
        items = list(itertools.starmap(Item, named))
    else:
        names = (name_below(root, path) for path in paths) if root else relative_names(paths, folders)
        if remote.is_http(root):
            names = map(remote.file_name, names)
        found = {**dict(zip(names, paths, strict=True)), **addresses}
        items = [Item(path, key) for (_, path), key in each_key(found.items(), itemgetter(0))]
    return items


def default_output(root: str, *, is_named: bool, cwd: str) -> str:
    """Say where results go: near the sources, and never outside the current folder if they lie inside.

    A folder gets `NAME-segmented` beside it, and so does an archive. Files, patterns and several folders get
    `segmented` in their common folder, or in the current one if that is further in. Those of addresses stay
    on this machine: in the current folder.

    Args:
        root: of the sources.
        is_named: `root` itself was named, not only what lies in it.
        cwd: the current folder.
    """
    if remote.is_remote(root):
        return os.path.join(cwd, f"{os.path.basename(root)}-segmented" if is_named else "segmented")
    if archive := archives.archive_of(root):
        return os.path.splitext(archive)[0] + "-segmented"
    if not root or is_below(os.path.realpath(cwd), os.path.realpath(root)):
        return os.path.join(cwd, "segmented")
    # Beside the top of a disk there is nothing, or another disk.
    return root + "-segmented" if is_named and not os.path.ismount(root) else os.path.join(root, "segmented")
