"""What manifests tell of the items that are done, ordered by their keys, in memory that does not grow."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unet_batch.errors import ManifestError
from unet_batch.run.manifest import check_version, manifest_names, parse_line, parser_for
from unet_batch.run.records import Record

if TYPE_CHECKING:
    from typing_extensions import Self

_TABLE = """
CREATE TABLE records (key BLOB PRIMARY KEY, part INTEGER, at REAL, done INTEGER, line BLOB) WITHOUT ROWID
"""
# The rule of `Manifest`: the last line of a file counts, and between files the latest.
_TAKE = """
INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
SET part = excluded.part, at = excluded.at, done = excluded.done, line = excluded.line
WHERE excluded.part = part OR excluded.at >= at
"""


class OrderedRecords:
    """The records of the items that are done, as they are now, in the order of their keys' components.

    The lines of the manifests are put in order in a temporary database, on disk once it is large.

    Args:
        folder: of the manifests.

    Attributes:
        done: how many there are.
        recipes: label of each recipe, by digest.

    Raises:
        ManifestError: a manifest cannot be read, or a newer version of this program has written it, or the
            temporary folder is full.
        OutputError: the folder cannot be listed.
    """

    def __init__(self, folder: str) -> None:
        self.recipes: dict[str, str] = {}
        self._records = sqlite3.connect("", check_same_thread=False)  # a temporary file, which SQLite removes
        try:
            self._records.execute(_TABLE)
            for part, name in enumerate(manifest_names(folder)):
                self._read(part, os.path.join(folder, name))
        except BaseException:
            self.close()
            raise
        [(count,)] = self._records.execute("SELECT count(*) FROM records WHERE done")
        self.done = int(count)

    def __iter__(self) -> Iterator[Record]:
        for (line,) in self._records.execute("SELECT line FROM records WHERE done ORDER BY key"):
            if (record := _record(line)) is not None:
                yield record

    def lines(self) -> Iterator[bytes]:
        """The last line of each key, whatever became of its item, in the same order."""
        for (line,) in self._records.execute("SELECT line FROM records ORDER BY key"):
            yield line.strip(b"\0\n") + b"\n"

    def close(self) -> None:
        """Let go of them."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _look_closer(self, path: str, line: bytes) -> Record | None:
        """Take in a line that names a recipe; the record of any other, None of a damaged one."""
        values = parse_line(line.strip(b"\0\n"))
        check_version(path, values)
        if values is not None and "made_with" in values:
            self.recipes[str(values.get("recipe"))] = str(values["made_with"])
            return None
        return Record.parse(values) if values is not None else None

    def _read(self, part: int, path: str) -> None:
        """Take in a manifest."""

        def lines() -> Iterator[tuple[bytes, int, float, int, bytes]]:
            with open(path, "rb") as file:
                parse = parser_for(os.fstat(file.fileno()).st_size)
                for line in file:
                    if (record := parse(line) or self._look_closer(path, line)) is not None:
                        yield (
                            _order(record.key),
                            part,
                            float(min(record.at, 1e300)),
                            record.status == "done",
                            line,
                        )

        try:
            with self._records:
                self._records.executemany(_TAKE, lines())
        except FileNotFoundError:  # merged just now
            pass
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ManifestError(
                f"{path} cannot be read: {reason}", hint="see to space in the temporary folder, $TMPDIR"
            ) from error


def _record(line: bytes) -> Record | None:
    values = parse_line(line.strip(b"\0\n"))
    return Record.parse(values) if values is not None else None


def _order(key: str) -> bytes:
    """A key as bytes that sort as its components do."""
    return key.replace("/", "\0").encode("utf-8", "surrogatepass")
