"""How shards have dealt the items of a folder, and which of their manifests another shard need not read.

A manifest of a shard is the segment of the items that were dealt to it. So that of a thousand shards each
reads its own alone, only both ends of the others are looked at: the first line tells how items were dealt,
the last one the recipe of what was done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from unet_batch.errors import OutputError
from unet_batch.files.outputs import OutputTree
from unet_batch.files.staging import UPLOADS, RemoteFolder
from unet_batch.run.manifest import DEALT, parse_line, shard_parts

ENDS = 1 << 16
"""Bytes of an end of a manifest that are looked at; longer lines, of clips with many files, are not read."""


class Ends(NamedTuple):
    """Both ends of a manifest.

    Attributes:
        depth: at which its shard was dealt folders; 0 if single items, -1 where that cannot be read.
        since: Unix time of the first line.
        recipes: of the first and of the last line; "" where one cannot be read.
    """

    depth: int
    since: float
    recipes: tuple[str, str]

    @classmethod
    def parse(cls, first: bytes, last: bytes) -> Ends:
        """Read them.

        Args:
            first, last: bytes from the beginning and up to the end of the file, `ENDS` or less.
        """
        head = parse_line(first.partition(b"\n")[0]) or {}
        tail = parse_line(last.rstrip(b"\n").rpartition(b"\n")[2]) or {}
        depth, since = head.get(DEALT, 0), head.get("at")
        recipes = str(head.get("recipe", "")), str(tail.get("recipe", ""))
        if "made_with" not in head or not isinstance(depth, int) or not isinstance(since, (int, float)):
            return cls(-1, 0.0, recipes)
        return cls(depth, since, recipes)


def ends_of(outputs: OutputTree, count: int) -> dict[str, Ends]:
    """The ends of the manifests that so many shards have left in an output folder, by part: `2-of-8`.

    Raises:
        OutputError: the folder cannot be listed.
    """
    if (store := outputs.store) is not None:
        manifests = {
            stem: files for stem, files in store.manifests().items() if stem.endswith(f"-of-{count}")
        }
        with ThreadPoolExecutor(UPLOADS) as pool:
            read = pool.map(partial(_ends_there, store), manifests.values())
            return {stem.removeprefix("manifest-"): ends for stem, ends in zip(manifests, read, strict=True)}
    return ends_here(outputs.folder, count)


def ends_here(folder: str, count: int) -> dict[str, Ends]:
    """The same of a folder on this machine."""
    ends: dict[str, Ends] = {}
    for part in shard_parts(folder):
        if part.endswith(f"-of-{count}"):
            with (
                suppress(OSError),
                open(os.path.join(folder, f"manifest-{part}.jsonl"), "rb") as file,
            ):
                first = file.read(ENDS)
                file.seek(max(0, file.seek(0, os.SEEK_END) - ENDS))
                ends[part] = Ends.parse(first, file.read())
    return ends


def _ends_there(store: RemoteFolder, files: Sequence[str]) -> Ends:
    """The ends of a manifest in a bucket; what has none is read whole, and that tells why."""
    with suppress(OutputError):
        return Ends.parse(store.head(files[0], ENDS), store.tail(files[-1], ENDS))
    return Ends.parse(b"", b"")


def known_depth(ends: Mapping[str, Ends]) -> int | None:
    """At which depth the first shard that recorded anything was dealt folders; None without one."""
    read = [each for each in ends.values() if each.depth >= 0]
    return min(read, key=lambda each: each.since).depth if read else None


def others_alone(ends: Mapping[str, Ends], part: str, depth: int, recipe: str) -> frozenset[str]:
    """The parts whose manifests hold nothing that is of use to a shard, and nothing of another recipe.

    Args:
        ends: of all manifests of these shards.
        part: of the shard.
        depth: at which folders are dealt to it.
        recipe: digest of its recipe.
    """
    return frozenset(
        other
        for other, each in ends.items()
        if other != part and each.depth == depth and each.recipes == (recipe, recipe)
    )


def differ(ends: Iterable[Ends]) -> bool:
    """Whether shards were dealt items in different ways, as they saw different folders."""
    return len({each.depth for each in ends if each.depth >= 0}) > 1
