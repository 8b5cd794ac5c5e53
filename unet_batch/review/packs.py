"""Packs of thumbnails: a hundred items a file, kept while their items stay as they are.

    report/packs/NAME.js       the thumbnails of a pack, one item a line, for the page
    report/packs/NAME.json     what is known of its items, for the next report: written last, and so vouches

Packs part the items in the order of their keys. A report goes through both in that order: a pack whose items
are all unchanged stays; of one that has changed, what is unchanged is taken over; so a report that was killed
goes on, one of a run that was resumed costs what is new, and no list grows with the items.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from unet_batch.files.atomic import remove, scan, write_atomic

SIZE = 100
"""Items of a pack."""
VERSION = 1
"""Of what is in a pack: raise it, and all are made anew."""

Stamp = list[list[Any]]


@dataclass(frozen=True)
class Task:
    """An item that the page shows.

    Attributes:
        key: of the item, `/`-separated.
        source: path or address.
        files: its outputs, relative to the output folder and `/`-separated, by kind.
        stamp: size and time of each: equal stamps mean equal contents.
        is_clip: it is a video.
    """

    key: str
    source: str
    files: dict[str, str]
    stamp: Stamp
    is_clip: bool = False


@dataclass
class Entry:
    """What is known of an item.

    Attributes:
        key, source, files, stamp, is_clip: as those of its task.
        values: its figures by the names of columns; None where one is not known.
        digest: of its mask, eight hexadecimal digits: marks belong to a mask, not to a name.
        clip: name of the file with the frames of a clip; "" for a picture.
        note: why something cannot be shown; "" if all can.
        lacks: "source" where the thumbnail of the source is wanting and may come another time.
    """

    key: str
    source: str
    files: dict[str, str]
    stamp: Stamp
    is_clip: bool = False
    values: dict[str, float | None] = field(default_factory=dict)
    digest: str = ""
    clip: str = ""
    note: str = ""
    lacks: str = ""


@dataclass(frozen=True)
class Thumbnails:
    """The pictures of an item: a JPEG of the source and a PNG of its mask, b"" where there is none."""

    photo: bytes
    mask: bytes

    def line(self) -> str:
        """As they stand in a pack."""
        return json.dumps([base64.b64encode(data).decode("ascii") for data in (self.photo, self.mask)])


class PackStore:
    """The packs of a report.

    Args:
        folder: `report/packs`; need not exist.
        look: of what decides how thumbnails look, such as the colours of the classes; packs of another are
            not used.

    Raises:
        OutputError: here and everywhere: a file cannot be written or removed, or the folder not be listed.
    """

    def __init__(self, folder: str, look: str) -> None:
        self.folder = folder
        self.look = f"{VERSION} {look}"
        found = []
        for entry in scan(folder):
            name, suffix = os.path.splitext(entry.name)
            if suffix == ".json" and (entries := self.entries(name)):
                found.append((entries[0].key.split("/"), name))
        self._old = sorted(found)

    def entries(self, name: str) -> list[Entry]:
        """What a pack says of its items; [] where it is gone, damaged, or looks otherwise."""
        try:
            with open(self._path(name, ".json"), encoding="ascii") as file:
                values = json.load(file)
            if values["look"] != self.look or not os.path.exists(self._path(name, ".js")):
                return []
            return [Entry(**each) for each in values["items"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def ranges(self, tasks: Iterable[Task]) -> Iterator[tuple[str, list[Task]]]:
        """Part tasks, sorted by the components of their keys, into packs to be.

        Yields:
            The name of the pack that was there for this range of keys ("" without one), and up to SIZE tasks.
        """
        at, chunk = 0, list[Task]()
        for task in tasks:
            steps, then = task.key.split("/"), at
            while then + 1 < len(self._old) and self._old[then + 1][0] <= steps:
                then += 1
            if chunk and (then != at or len(chunk) == SIZE):
                yield self._old[at][1] if self._old else "", chunk
                chunk = []
            at = then
            chunk.append(task)
        if chunk:
            yield self._old[at][1] if self._old else "", chunk

    def lines(self, name: str) -> Iterator[str]:
        """The lines of the thumbnails of a pack, in the order of its entries."""
        with suppress(OSError), open(self._path(name, ".js"), encoding="ascii") as file:
            next(file, None)
            for line in file:
                if line.startswith("["):
                    yield line.rstrip("\n").removesuffix(",")

    def write(self, entries: Sequence[Entry], lines: Sequence[str]) -> str:
        """Write a new pack; return its name."""
        name = secrets.token_hex(6)
        body = ",\n".join(lines)
        write_atomic(self._path(name, ".js"), f'unetReport.pack("{name}",[\n{body}\n])\n'.encode("ascii"))
        values = {"look": self.look, "items": [asdict(entry) for entry in entries]}
        write_atomic(self._path(name, ".json"), json.dumps(values).encode("ascii"))
        return name

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove all packs but these."""
        kept = set(names)
        remove(
            entry.path
            for entry in scan(self.folder)
            if entry.name.endswith((".js", ".json")) and os.path.splitext(entry.name)[0] not in kept
        )

    def _path(self, name: str, suffix: str) -> str:
        return os.path.join(self.folder, name + suffix)


def is_current(entry: Entry, task: Task) -> bool:
    """Whether what a pack holds of an item is what would be made now."""
    return (entry.key, entry.source, entry.stamp) == (task.key, task.source, task.stamp)
