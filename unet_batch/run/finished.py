"""What is in an output folder: its items with their sources and files, read from what runs have recorded.

    with FinishedRun(folder) as run:
        for item in run.items():                    # in the order of their keys
            item.key, item.source, item.files.get("mask")

Nothing is written, and what is held does not grow with the items.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from unet_batch.errors import ManifestError, UsageError
from unet_batch.files import archives, listing, remote
from unet_batch.files.lists import read_list
from unet_batch.files.patterns import MAGIC, Pattern
from unet_batch.files.roots import source_path
from unet_batch.run import report as reports
from unet_batch.run.manifest import Manifest
from unet_batch.run.ordered import OrderedRecords
from unet_batch.run.records import Record
from unet_batch.types import ClassTable, Failure

if TYPE_CHECKING:
    from typing_extensions import Self

_REPORT = re.compile(r"run(?:-[0-9]+-of-[0-9]+)?\.json")
_ERRORS = re.compile(r"errors(?:-[0-9]+-of-[0-9]+)?\.jsonl")


class FinishedItem(NamedTuple):
    """An item whose outputs a run has made.

    Attributes:
        key: its name in the output folder: `lot/a` of `masks/lot/a.png`.
        source: path or address of the picture or clip; it may be gone since.
        files: path or address by kind of output (`files.outputs.KINDS`, "timeline" of a clip); where a kind
            has many files, as the frames of a clip, the folder they lie in.
        is_clip: it is a video.
        name: the source's name below the folder that its run was given, `/`-separated.
    """

    key: str
    source: str
    files: Mapping[str, str] = MappingProxyType({})
    is_clip: bool = False
    name: str = ""


class Selection:
    """Some of the items, by the paths of their sources; the sources themselves need not exist any more.

    Args:
        names: of files, folders with all below, patterns, and `@lists` of them, as `run` takes them; none
            for every item.

    Attributes:
        names: what was named, absolute, patterns apart.

    Raises:
        SourceError: a list cannot be read.
    """

    def __init__(self, names: Sequence[str]) -> None:
        entries = [
            entry for name in names for entry in (read_list(name[1:]) if name.startswith("@") else [name])
        ]
        entries = [
            remote.normalize(name) if remote.is_remote(name) else os.path.abspath(name) for name in entries
        ]
        is_pattern = {name for name in entries if MAGIC.search(name) and not archives.exists(name)}
        self.names = frozenset(entries) - is_pattern
        self._patterns = [Pattern(_steps(name)) for name in is_pattern]
        self._used: set[str] = set()

    @property
    def unused(self) -> frozenset[str]:
        """The names that took no item by now."""
        return self.names - self._used

    def takes(self, source: str) -> bool:
        """Whether an item of this source is one of them."""
        if not self.names and not self._patterns:
            return True
        place, above = source, ""
        while place and place != above:
            if place in self.names:
                self._used.add(place)
                return True
            place, above = (
                place.rpartition("/")[0] if remote.is_remote(place) else os.path.dirname(place),
                place,
            )
        return any(pattern.matches(_steps(source)) for pattern in self._patterns)


class FinishedRun:
    """An output folder, read.

    Args:
        folder: the output folder, or its address. Its run may still go on: then what is done by now.

    Attributes:
        folder: absolute, or the address.
        name: its last component, for titles.
        done: items with outputs.

    Raises:
        UsageError: no run has recorded anything there.
        ManifestError: here and from all methods: what it recorded cannot be read.
        OutputError: a bucket cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self._state = folder
        if remote.is_remote(folder):
            from unet_batch.files.staging import RemoteFolder

            store = RemoteFolder(remote.normalize(folder))
            store.fetch()
            self.folder, self._state = store.url, store.folder
        else:
            self.folder = self._state = os.path.abspath(folder)
        self.name = os.path.basename(self.folder)
        if not Manifest.is_in(self._state):
            raise UsageError(
                f"{folder} holds no outputs of a run: there is no manifest",
                hint="name the folder that `run -o` has written",
            )
        self._records = OrderedRecords(self._state)
        self.done = self._records.done

    def close(self) -> None:
        """Let go of the records."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @cached_property
    def report(self) -> Mapping[str, Any]:
        """The run's own report, as `run.json` has it; of shards that are not merged yet that of the first.

        Raises:
            ManifestError: there is none that can be read.
        """
        for name in self._names(_REPORT):
            report = self._load(name)
            if report is not None and "model" in report:
                return report
        raise ManifestError(
            f"{self.folder}: run.json, which tells what the run was, cannot be read",
            hint="run again: what is done stays done, and run.json is written anew",
        )

    @property
    def save(self) -> tuple[str, ...]:
        """The kinds of outputs that the last run was asked for."""
        return tuple(self.report.get("save", ()))

    @cached_property
    def classes(self) -> ClassTable:
        """Names and colours of the classes: of a single one masks are 0/255, of several they hold ids."""
        model = self.report["model"]
        try:
            names = tuple(map(str, model["classes"]))
            colours = model.get("colours")
            if colours is None or len(colours) != len(names):  # up to 0.2.0 they were not recorded
                from unet_batch.media.render import palette

                colours = palette(len(names))
            return ClassTable(names, tuple((int(red), int(green), int(blue)) for red, green, blue in colours))
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{self.folder}: run.json does not tell the classes: {error!r}") from error

    @property
    def left(self) -> int:
        """How many items of the last run are not done: failed, or not yet tried."""
        report = self.report
        try:
            ended = report["skipped"] + report["done"]
            return max(0, int(report["found"]) - int(ended)) if report["status"] != "running" else 0
        except (KeyError, TypeError, ValueError):
            return 0

    def items(self) -> Iterator[FinishedItem]:
        """Those that are done, in the order of their keys' components."""
        return map(self._item, self._records)

    def failures(self) -> Iterator[Failure]:
        """What failed and was not done since, as the lists of failures have it."""
        for name in self._names(_ERRORS):
            with suppress(OSError, ValueError), archives.open_file(self._join(name)) as lines:
                for line in lines:
                    with suppress(ValueError, TypeError, RecursionError):
                        yield Failure(**json.loads(line))

    def path(self, file: str) -> str:
        """Path or address of a file of the folder, given its `/`-separated name in it."""
        return source_path(self.folder, file)

    def _item(self, record: Record) -> FinishedItem:
        files: dict[str, str] = {}
        is_clip = False
        for kind, outputs in record.outputs.items():
            is_clip = is_clip or kind.startswith("clip ")
            # How it was read, coded or drawn is part of the name.
            name = kind.removeprefix("clip ").partition(" ")[0]
            if outputs:
                first = outputs[0][0]
                files[name] = self.path(first if len(outputs) == 1 else first.rpartition("/")[0])
        source = record.identity.source if record.identity is not None else ""
        return FinishedItem(record.key, source_path(record.root, source), files, is_clip, source)

    def _names(self, pattern: re.Pattern[str]) -> list[str]:
        """Files of the folder of such a name; the one of a run that did everything first."""
        if remote.is_remote(self.folder):
            found = [url.rpartition("/")[2] for url in listing.below(self.folder)]
        else:
            found = os.listdir(self.folder)
        return sorted(filter(pattern.fullmatch, found), key=lambda name: (len(name), name))

    def _join(self, name: str) -> str:
        return f"{self.folder}/{name}" if remote.is_remote(self.folder) else os.path.join(self.folder, name)

    def _load(self, name: str) -> dict[str, Any] | None:
        if not remote.is_remote(self.folder):
            return reports.load_report(self._join(name))
        with suppress(OSError, ValueError, RecursionError), archives.open_file(self._join(name)) as file:
            data = json.load(file)
            return data if isinstance(data, dict) else None
        return None


def _steps(path: str) -> list[str]:
    return [step for step in path.replace(os.sep, "/").split("/") if step]
