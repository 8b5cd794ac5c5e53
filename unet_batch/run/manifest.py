"""What is done: one line for each finished item, so that the next run does just what is left.

    manifest = Manifest(folder)                     # what all earlier runs in this folder wrote
    manifest.state(key, identity, recipe.digest, kinds, Listing(folder))
    with manifest.writing(recipe):
        manifest.record(Record(...))                # after the outputs stand under their own names

`OUT/manifest.jsonl` is only ever appended to; a shard has a file of its own, `manifest-2-of-8.jsonl`, and all
are read. A line says what became of a key, and the last line of a key counts. Other lines name the recipes in
words.

Safety. A line is one `write` to a descriptor in append mode, so no two lines mix, and a killed process loses
none. A power cut can tear what was written in the last `sync_seconds`: lines that do not parse are counted
and ignored, and their items done again. The outputs themselves are not forced to the disk: their sizes stand
in the lines, and are compared before they count.

A picture has one file for each kind of output, a clip may have many: nothing here knows which.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from unet_batch.errors import ManifestError, OutputError
from unet_batch.files.atomic import translate
from unet_batch.run.records import (
    VERSION,
    Identity,
    Listing,
    OutputRecipe,
    Record,
    State,
    json_line,
)

DEALT = "folders_dealt"
"""Of the line that names a recipe: at which depth folders were dealt to the shard; absent where none were."""
_FILE = re.compile(r"manifest(?:-([1-9][0-9]{0,4})-of-([1-9][0-9]{0,4}))?\.jsonl")
_LARGE = 1 << 18  # bytes, of some thousand lines
_decode = json.JSONDecoder().raw_decode
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # some network file systems


class Share(NamedTuple):
    """What of all records matters to a shard: of ten million it holds its own.

    Attributes:
        ours: whether an item of a key is the shard's; None: all are.
        recipe: digest of what it makes: records of another recipe matter, whosever they are.
        others: parts whose manifests need not be read, see `dealing.others_alone`.
    """

    ours: Callable[[str], bool] | None = None
    recipe: str = ""
    others: Collection[str] = ()

    def takes(self, record: Record) -> bool:
        """Whether a record is of an item of the shard's."""
        return self.ours is None or self.ours(record.key)


class Manifest:
    """What earlier runs recorded in an output folder, and the file that this one adds to.

    Args:
        folder: the output folder; need not exist.
        part: of a shard, such as `2-of-8`; "" for a run that does everything.
        depth: at which folders were dealt to the shard, for others to know.
        share: what of all that matters; everything by default.

    Attributes:
        sync_seconds: between two times that lines are forced to the disk: a power cut costs at most so much
            work; an fsync in that time costs less than 1 % of it.
        path: the file that this run writes.
        records: the last record of each key, from earlier runs.
        recipes: label of each recipe, by digest.
        damaged: how many lines could not be read.
        bytes: of all these files, as they were read.
        is_as_read: nothing was recorded of an item since.
        is_mixed: items of other shards were made by another recipe, and are among the records.
        is_new: whether no run has ever written the outputs that this one may write: nobody vouches for what
            is there.

    Raises:
        ManifestError: a newer version of this program has written it, or it cannot be read.
    """

    sync_seconds = 5.0

    def __init__(self, folder: str, part: str = "", depth: int = 0, share: Share | None = None) -> None:
        self.folder, self.depth = folder, depth
        self._share = share or Share()
        self.path = manifest_path(folder, part)
        self.records: dict[str, Record] = {}
        self.recipes: dict[str, str] = {}
        self.damaged = self.bytes = 0
        self.is_as_read, self.is_mixed = True, False
        self._descriptor: int | None = None
        self._presence = Presence(self.path)
        self._torn = False  # the file does not end with a line feed
        self._synced = 0.0
        self.is_new = True
        self._read_all(part)
        if self.is_mixed:  # then it matters which line of a key is the last, whosever it is
            self._share = Share()
            self.records, self.damaged, self.bytes = {}, 0, 0
            self._read_all(part)

    def _read_all(self, part: str) -> None:
        own = os.path.basename(self.path)
        others = [name for name in manifest_names(self.folder) if name != own]
        theirs = {f"manifest-{other}.jsonl" for other in self._share.others}
        for name in (*(name for name in others if name not in theirs), own):
            written = self._read(os.path.join(self.folder, name))
            # The other shards of this run write only what is theirs.
            sibling = bool(part) and name in others and name.endswith(f"-of-{part.rpartition('-')[2]}.jsonl")
            self.is_new = self.is_new and (sibling or not written)

    @staticmethod
    def is_in(folder: str) -> bool:
        """Whether a run has recorded anything in a folder."""
        with suppress(OutputError):
            return any(_FILE.fullmatch(name) for name in _names(folder))
        return False

    def state(
        self,
        key: str,
        identity: Identity | None,
        recipe: str,
        kinds: Iterable[str],
        listing: Listing,
        contents: Callable[[], str] | None = None,
    ) -> State:
        """Compare an item with its last record.

        Args:
            key: of the item.
            identity: of its source as it is now.
            recipe: digest of the recipe it is wanted with.
            kinds: of the outputs that are wanted.
            listing: of the output folder.
            contents: gives the sha256 of the source; asked only where its time alone has changed.
        """
        record = self.records.get(key)
        if record is None:
            return "new"
        if record.status != "done":
            return "void" if record.status == "void" else "failed"
        if record.recipe != recipe:
            return "other" if self.is_there(record, listing) else "lost"
        touched = False
        if identity is None or record.identity is None:
            return "changed"
        if not identity.is_of(record.identity):
            before, now = record.identity, identity
            known = (
                contents is not None
                and before.sha256
                and (before.source, before.size) == (now.source, now.size)
            )
            touched = bool(known and contents is not None and contents() == before.sha256)
            if not touched:
                return "changed"
        edited, size_of = False, listing.size
        for kind in kinds:
            files = record.outputs.get(kind)
            if files is None:
                return "more"
            for file, size in files:
                found = size_of(file)
                if found != size:
                    if not found or not listing.is_whole(file):
                        return "lost"
                    edited = True
        return "edited" if edited else "touched" if touched else "done"

    def is_there(self, record: Record, listing: Listing) -> bool:
        """Whether any output of a record still exists."""
        return any(listing.size(file) is not None for files in record.outputs.values() for file, _ in files)

    def made_otherwise(self, recipe: str, listing: Listing) -> Counter[str]:
        """How many items have outputs in the folder that another recipe made, by its label."""
        others = (
            record for record in self.records.values() if record.status == "done" and record.recipe != recipe
        )
        return Counter(
            self.recipes.get(record.recipe, record.recipe)
            for record in others
            if self.is_there(record, listing)
        )

    def keep(self, keys: Iterable[str]) -> None:
        """Forget the records of all keys but these: 100,000 take 100 MB. What is written does not change."""
        self.records = {key: self.records[key] for key in keys if key in self.records}

    # Writing.

    @contextmanager
    def writing(self, recipe: OutputRecipe) -> Iterator[None]:
        """Open the file for `record`, and see to it that its lines reach the disk.

        Raises:
            OutputError: here and in `record`: it cannot be written, or vanished meanwhile.
        """
        try:
            self._open()
            self._synced = time.monotonic()
            self._append(recipe_line(recipe.digest, recipe.label, self.depth))
            yield
            self.sync()
        finally:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)

    def record(self, *records: Record) -> None:
        """Add lines in one write, from any thread.

        Outputs that the same source and recipe gave before stay on record, except those written anew.

        Raises:
            OutputError: the file cannot be written, or vanished meanwhile.
        """
        lines = []
        for record in records:
            before = self.records.get(record.key)
            outputs = record.outputs
            if (
                before is not None
                and before.status == record.status == "done"
                and before.recipe == record.recipe
            ):
                same = (
                    before.identity is not None
                    and record.identity is not None
                    and record.identity.is_of(before.identity)
                )
                written = {file for files in outputs.values() for file, _ in files}
                kept = {
                    kind: files
                    for kind, files in before.outputs.items()
                    if written.isdisjoint(file for file, _ in files)
                }
                outputs = {**kept, **outputs} if same else outputs
            lines.append(record._replace(outputs=outputs, at=_now()).line())
        if lines:
            self.is_as_read = False
            self._append(b"".join(lines))
            if time.monotonic() - self._synced > self.sync_seconds:
                self.sync()

    def check(self) -> None:
        """See whether the file is still there. If not, the folder was removed or its disk is gone.

        Raises:
            OutputError: it is not.
        """
        self._presence.check()

    def sync(self) -> None:
        """Wait until the lines are on the disk.

        Raises:
            OutputError: the disk refused some.
        """
        self._synced = time.monotonic()
        try:
            if self._descriptor is not None:
                os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise translate(error, self.path, 0) from error

    def _open(self) -> None:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.path, flags, 0o666)
            self._presence = Presence(self.path)
            self._presence.check()
            if os.fstat(self._descriptor).st_size:
                os.lseek(self._descriptor, -1, os.SEEK_END)
                self._torn = os.read(self._descriptor, 1) != b"\n"
        except OSError as error:
            raise translate(error, self.path, 0) from error

    def _append(self, data: bytes) -> None:
        if self._descriptor is None:
            raise RuntimeError("a manifest is written inside `with manifest.writing(...)` only")
        self.check()
        left = memoryview(b"\n" + data if self._torn else data)
        self._torn = False
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]  # in pieces only where the disk is filling up
        except OSError as error:
            self._torn = True
            raise translate(error, self.path, len(data)) from error

    def _read(self, path: str) -> bool:
        """Take in a file; return whether it holds anything."""
        found: dict[str, Record] = {}
        try:
            with open(path, "rb") as file:
                parse = parser_for(os.fstat(file.fileno()).st_size)
                for line in file:
                    if (record := parse(line)) is not None:
                        self._take(record, found)
                    else:  # zeros: where data were to be when the power went
                        self._read_line(path, line.strip(b"\0\n"), found)
                size = file.tell()
                self.bytes += size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ManifestError(
                f"{path} cannot be read: {error.strerror or error}",
                hint="choose another output folder with -o",
            ) from error
        if not self.records:
            self.records = found
            return size > 0
        for key, record in found.items():
            before = self.records.get(key)
            if before is None or before.at <= record.at:
                self.records[key] = record
        return size > 0

    def _read_line(self, path: str, line: bytes, found: dict[str, Record]) -> None:
        if not line:
            return
        values = parse_line(line)
        check_version(path, values)
        if values is not None and "made_with" in values:
            self.recipes[str(values.get("recipe"))] = str(values["made_with"])
        elif values is not None and (record := Record.parse(values)) is not None:
            self._take(record, found)
        else:
            self.damaged += 1

    def _take(self, record: Record, found: dict[str, Record]) -> None:
        if self._share.takes(record):
            found[record.key] = record
        else:
            other = record.status == "done" and record.recipe != self._share.recipe
            self.is_mixed = self.is_mixed or other


class Presence:
    """Sees whether a folder is still there, by its manifest: a removed one must not come back half empty.

    Args:
        path: of the manifest.
        optional: it may be missing from the beginning, as where a folder stands for an address.
    """

    def __init__(self, path: str, *, optional: bool = False) -> None:
        self._path, self._optional = path, optional
        self._there: tuple[int, int] | None = None

    def check(self) -> None:
        """Compare it with what the first call has found; from any thread.

        Raises:
            OutputError: it is not there, or another file is.
        """
        with suppress(OSError):
            found = os.stat(self._path)
            if self._there is None:
                self._there = found.st_dev, found.st_ino
            if (found.st_dev, found.st_ino) == self._there:
                return
        if self._there is None and self._optional:
            return
        folder, name = os.path.split(self._path)
        raise OutputError(
            f"{folder} vanished while the run wrote to it: {name} is gone",
            hint="reconnect its disk, or choose another output folder with -o",
        )


def manifest_path(folder: str, part: str) -> str:
    """The manifest that a shard, such as `2-of-8`, or a run that does everything ("") adds to."""
    return os.path.join(folder, f"manifest-{part}.jsonl" if part else "manifest.jsonl")


def check_version(path: str, values: Mapping[str, Any] | None) -> None:
    """See that a line is of a version that is known here.

    Raises:
        ManifestError: a newer version of this program has written it.
    """
    if values is not None and isinstance(version := values.get("v"), int) and version > VERSION:
        raise ManifestError(
            f"{path}: written by a newer version of unet-batch (manifest version {version}, this one "
            f"knows {VERSION})",
            hint="update unet-batch, or choose another output folder with -o",
        )


def recipe_line(digest: str, label: str, depth: int = 0) -> bytes:
    """The line that names a recipe in words.

    Args:
        digest, label: of the recipe.
        depth: at which folders were dealt to the shard that writes it.
    """
    dealt = {DEALT: depth} if depth else {}
    return json_line({"v": VERSION, "recipe": digest, "made_with": label, **dealt, "at": _now()})


def manifest_bytes(folder: str) -> int:
    """Bytes of all manifests of a folder: they only grow, so that equal bytes are the same records."""
    return sum(os.path.getsize(os.path.join(folder, name)) for name in manifest_names(folder))


def manifest_names(folder: str) -> list[str]:
    """The manifests in a folder, those of shards first."""
    return sorted(name for name in _names(folder) if _FILE.fullmatch(name))


def shard_parts(folder: str) -> list[str]:
    """The parts, such as `2-of-8`, of the shards that have left a manifest in a folder."""
    found = [match for name in _names(folder) if (match := _FILE.fullmatch(name)) and match[1]]
    return [
        f"{match[1]}-of-{match[2]}"
        for match in sorted(found, key=lambda match: (int(match[2]), int(match[1])))
    ]


def _names(folder: str) -> Sequence[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be listed: {error.strerror or error}",
            hint="choose another output folder with -o",
        ) from error


def parser_for(size: int) -> Callable[[bytes], Record | None]:
    """What reads lines of a manifest of so many bytes; it gives None of those that it leaves to others."""
    if size >= _LARGE:
        with suppress(ImportError):  # without msgspec it takes longer
            from unet_batch.run.lines import parse_usual

            return parse_usual
    return lambda line: None


def _now() -> float:
    return round(time.time(), 3)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The values of a line of a manifest; None of one that is damaged."""
    try:
        text = line.decode("ascii")
        values, end = _decode(text)  # json.loads looks for white space, which nothing of ours writes
        if end < len(text):
            values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
