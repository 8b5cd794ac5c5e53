"""What a manifest tells of an item: its source as it was read, its outputs, and the recipe that made them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from sys import intern
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unet_batch.errors import OutputError
from unet_batch.files import archives, stores

if TYPE_CHECKING:
    from unet_batch.files.branches import Branches
    from unet_batch.files.outputs import OutputTree
    from unet_batch.files.staging import RemoteFolder

VERSION = 1
_STATUSES = ("done", "failed", "void")
# How a whole file of this format ends. One that does and has another size was not cut short: somebody has
# worked on it.
_ENDINGS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}

_TELLS_SIZES = os.name == "nt"  # a listing does
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one for each line

State = Literal["done", "touched", "edited", "new", "changed", "lost", "more", "failed", "void", "other"]
"""What is known of an item.

Nothing to do: `done`; `touched`: the source's time changed, its contents did not; `edited`: somebody replaced
an output by another whole file, which is theirs. To do: `new`; `changed`: the source is not the one that was
read; `lost`: an output is gone or cut short; `more`: of a kind that was not made; `failed` last time; `void`:
an `--overwrite` was not finished; `other`: made with another recipe.
"""
FINISHED: tuple[State, ...] = ("done", "touched", "edited")

Files = tuple[tuple[str, int], ...]
"""Outputs of one kind: (file, bytes); files are relative to the output folder and `/`-separated."""


@dataclass(frozen=True)
class OutputRecipe:
    """What decides the pixels of the outputs.

    Attributes:
        facts: as JSON; equal facts mean equal pixels.
        label: the same for people, e.g. `cars (sha256 0a1b2c3d), threshold 0.5, 160x240`.
    """

    facts: Mapping[str, Any]
    label: str

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]


class Identity(NamedTuple):
    """A source as it was when it was read.

    Attributes:
        source: its path relative to the sources' root, `/`-separated: the root may be mounted elsewhere
            tomorrow.
        size: in bytes.
        mtime_ns: when it was last written.
        sha256: of its contents, in hexadecimal; "" if not asked for.
    """

    source: str
    size: int
    mtime_ns: int
    sha256: str = ""

    @classmethod
    def of(cls, path: str, source: str) -> Identity | None:
        """Look at a file; None if it cannot be looked at."""
        try:
            return cls(source, *archives.stat(path))
        except (OSError, ValueError):
            return None

    def is_of(self, other: Identity) -> bool:
        """Whether both are the same, contents not compared."""
        return self[:3] == other[:3]


class Record(NamedTuple):
    """What became of an item: a line of the manifest.

    A tuple, as 100,000 frozen dataclasses take a second to make.

    Attributes:
        key: of the item.
        status: `done`, `failed`, or `void`: what was known before no longer counts.
        identity: of its source; None where that could not be looked at.
        recipe: digest of the recipe.
        outputs: the files of each kind.
        maker: backend and precision, for people: equal within parity, so no part of the recipe.
        root: absolute root of the sources: tells a picture that was changed from another of the same name.
        error: what failed, for people.
        at: Unix time; orders the lines of different files.
    """

    key: str
    status: Literal["done", "failed", "void"]
    identity: Identity | None = None
    recipe: str = ""
    outputs: Mapping[str, Files] = MappingProxyType({})
    maker: str = ""
    root: str = ""
    error: str = ""
    at: float = 0.0

    def line(self) -> bytes:
        """The record as it stands in the file."""
        values: dict[str, Any] = {"v": VERSION, "key": self.key, "status": self.status}
        if self.identity is not None:
            identity = self.identity
            values |= {"source": identity.source, "size": identity.size, "mtime_ns": identity.mtime_ns}
            values |= {"sha256": identity.sha256} if identity.sha256 else {}
        for name in ("recipe", "outputs", "maker", "root", "error"):
            if value := getattr(self, name):
                values[name] = value
        return json_line({**values, "at": self.at})

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Record | None:
        """The record of a line; None if anything in it is not what it should be."""
        get = values.get
        try:
            key, status, at = values["key"], values["status"], get("at", 0.0)
            # The same words stand in every line
            recipe, maker, root = intern(get("recipe", "")), intern(get("maker", "")), intern(get("root", ""))
            error, source, digest = get("error", ""), get("source"), get("sha256", "")
            "".join((key, error, digest, "" if source is None else source))  # only of strings
            identity = None
            if source is not None:
                size, mtime = values["size"], values["mtime_ns"]
                if not (isinstance(size, int) and isinstance(mtime, int)):
                    return None
                identity = Identity(source, size, mtime, digest)
            if status not in _STATUSES or not isinstance(at, (int, float)):
                return None
            outputs = {intern(kind): _files(files) for kind, files in get("outputs", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        return cls(key, status, identity, recipe, outputs, maker, root, error, at)


def _files(found: Iterable[tuple[Any, Any]]) -> Files:
    return tuple([(file, size) for file, size in found if isinstance(file, str) and isinstance(size, int)])


class Listing:
    """Sizes of the files in an output folder. Each folder below it is listed once, when first asked for.

    On Windows that tells the sizes as well; elsewhere each costs a look at the file, of those asked for only,
    and names are all that is held: an entry of a listing keeps what its look has found, a kilobyte of it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._top = os.path.join(folder, "")
        self._folders: dict[str, dict[str, os.DirEntry[str] | None]] = {}

    def size(self, file: str) -> int | None:
        """Bytes of a file of the folder, its path relative and `/`-separated; None if there is none.

        Nothing outside the folder is looked at.

        Raises:
            OutputError: its folder cannot be listed.
        """
        folder, _, name = file.rpartition("/")
        entries = self._folders.get(folder)
        if entries is None:
            entries = self._folders[folder] = self._list(folder)
        if name not in entries:
            return None
        entry = entries[name]
        try:
            facts = os.stat(self._top + file) if entry is None else entry.stat()
        except OSError:  # removed just now, or a link in circles
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None

    def holds(self, folder: str) -> bool:
        """Whether there is such a folder just below, with anything in it.

        Raises:
            OutputError: it cannot be listed.
        """
        return bool(self._list(folder))

    def is_whole(self, file: str) -> bool:
        """Whether a file ends as its format does; False of a format not known here."""
        ending = _ENDINGS.get(os.path.splitext(file)[1].lower())
        if ending is None:
            return False
        with suppress(OSError), open(os.path.join(self.folder, *file.split("/")), "rb") as data:
            data.seek(-len(ending), os.SEEK_END)
            return data.read() == ending
        return False

    def _list(self, folder: str) -> dict[str, os.DirEntry[str] | None]:
        steps = folder.split("/") if folder else []
        if (
            os.path.isabs(folder)
            or os.path.splitdrive(folder)[0]
            or not {"", os.curdir, os.pardir}.isdisjoint(steps)
        ):
            return {}
        path = os.path.join(self.folder, *steps)
        try:
            with os.scandir(path) as entries:
                return {entry.name: entry if _TELLS_SIZES else None for entry in entries}
        except (FileNotFoundError, NotADirectoryError, ValueError):
            # ValueError: a name that no file can have
            return {}
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(
                f"{path} cannot be listed: {reason}", hint="choose another output folder with -o"
            ) from error


class RemoteListing(Listing):
    """The same of an address: each folder just below it is listed once, with all that it holds.

    Args:
        store: the folder behind the address.
        branches: of each folder just below it, what is looked into; everything without it.
    """

    def __init__(self, store: RemoteFolder, branches: Branches | None = None) -> None:
        super().__init__(store.folder)
        self.store, self._branches = store, branches
        self._sizes: dict[str, dict[str, int]] = {}

    def size(self, file: str) -> int | None:
        """Bytes of a file, as `Listing.size`."""
        return self._in(file.partition("/")[0]).get(file)

    def holds(self, folder: str) -> bool:
        """As `Listing.holds`."""
        return bool(self._in(folder))

    def _in(self, folder: str) -> dict[str, int]:
        if folder not in self._sizes:
            self._sizes[folder] = self.store.sizes(folder, self._branches)
        return self._sizes[folder]

    def is_whole(self, file: str) -> bool:
        """Whether a file ends as its format does; False of a format not known here."""
        ending = _ENDINGS.get(os.path.splitext(file)[1].lower())
        return ending is not None and self.store.tail(file, len(ending)) == ending


def list_outputs(outputs: OutputTree, branches: Branches | None = None) -> Listing:
    """The sizes of what is in an output folder.

    Args:
        outputs: where.
        branches: of a bucket, what is asked for; everything without it.
    """
    return Listing(outputs.folder) if outputs.store is None else RemoteListing(outputs.store, branches)


def sha256_of(path: str) -> str:
    """SHA-256 of a file's contents in hexadecimal; "" if it cannot be read."""
    digest = hashlib.sha256()
    try:
        for name in stores.contents(path):
            with archives.open_file(name) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()


def json_line(values: Mapping[str, Any]) -> bytes:
    """A line of the manifest."""
    return _to_json(values).encode("ascii") + b"\n"
