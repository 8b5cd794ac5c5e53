"""Tables of what was measured: rows, as CSV and Parquet, and how those of pictures become that of a run.

A picture's table is a CSV file of its own, an output like any other; that of a run has the same columns,
behind `source` and `key`. Text is UTF-8, numbers have seven digits, and what nobody can say is an empty cell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, BinaryIO

from unet_batch.errors import UsageError
from unet_batch.files.atomic import replacing, translate


@dataclass(frozen=True)
class ClassStats:
    """How much of a picture a class takes: a row of the table `stats`. None where nothing can be said.

    Attributes:
        page: of a picture of several, counted from 1.
        name: of the class.
        pixels: that belong to it.
        share: of the pixels that have a value, 0..1.
        left, top, width, height: the box around all of them, in pixels.
        components: how many pieces they are; of a background nobody counts.
        confidence: mean over the picture of the larger of p and 1 - p; of one class only, as the next two.
        entropy: mean over the picture of the entropy of p, in bits, 0..1.
        unsure: share of the picture in which p lies between 0.1 and 0.9.
        unlike: how far the picture is from what the model learned from; beyond 1 it is unlike that.
        area: in the square of `unit`.
        unit: of lengths; "" where nobody says.
    """

    page: int | None
    name: str
    pixels: int
    share: float
    left: int | None
    top: int | None
    width: int | None
    height: int | None
    components: int | None
    confidence: float | None
    entropy: float | None
    unsure: float | None
    unlike: float | None
    area: float | None
    unit: str


@dataclass(frozen=True)
class ObjectStats:
    """One component: a row of the table `objects`.

    Attributes:
        page: of a picture of several, counted from 1.
        id: its value in the label image, from 1.
        name: of its class.
        pixels: that belong to it.
        left, top, width, height: the box around it, in pixels.
        x, y: its centroid, in pixels from the middle of the first one, across and down.
        perimeter: in pixels, as `skimage.measure.perimeter` counts.
        orientation: of its longer axis, in degrees counter-clockwise from the vertical, -90..90.
        major_axis, minor_axis: of the ellipse with the same second moments, in pixels.
        intensity: mean brightness, 0..255, of the picture as a person sees it; None where nobody can say.
        confidence: mean probability of its class; None of a model of several.
        area: in the square of `unit`.
        unit: of lengths; "" where nobody says.
    """

    page: int | None
    id: int
    name: str
    pixels: int
    left: int
    top: int
    width: int
    height: int
    x: float
    y: float
    perimeter: float
    orientation: float
    major_axis: float
    minor_axis: float
    intensity: float | None
    confidence: float | None
    area: float | None
    unit: str


TABLES: Mapping[str, type[ClassStats] | type[ObjectStats]] = {"stats": ClassStats, "objects": ObjectStats}
"""The kinds of `files.outputs.KINDS` that are tables, and their rows."""

FIRST = ("source", "key")
"""Columns of the table of a run that a picture's own does not have."""

_TEXT = ("name", "unit")
_WHOLE = ("page", "id", "pixels", "left", "top", "width", "height", "components")
_ROWS = 50_000  # of Parquet that are held at once, a group


def columns(kind: str) -> tuple[str, ...]:
    """Names of the columns of a picture's table."""
    return tuple("class" if field.name == "name" else field.name for field in fields(TABLES[kind]))


def as_csv(kind: str, rows: Iterable[ClassStats | ObjectStats]) -> bytes:
    """The contents of a picture's table."""
    return _lines([columns(kind), *([_cell(value) for value in astuple(row)] for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    lines = io.StringIO()
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # which both are quoted then
        lines.write(text.getvalue()[:-2] + "\n")
    # Names of files may hold bytes that are no text
    return lines.getvalue().encode("utf-8", "backslashreplace")


class TableWriter:
    """A table whose rows come in parts: a context manager.

    Args:
        path: the file to write.
        kind: of `TABLES`.

    Raises:
        OSError: here and everywhere: it cannot be written.
    """

    def __init__(self, path: str, kind: str) -> None:
        self._file, self._heading = open(path, "wb"), _lines([columns(kind)])  # noqa: SIM115 - stays open
        self._file.write(self._heading)

    def write(self, table: bytes, dpi: object = None) -> None:
        """Add the rows of a table, as `as_csv` gives it."""
        self._file.write(table[len(self._heading) :])

    def finish(self) -> None:
        """All of it is written."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass
class Joined:
    """What became the table of a run.

    Attributes:
        rows: of it.
        pictures: that they are of.
        damaged: tables of pictures that could not be read; their rows are not there.
    """

    rows: int = 0
    pictures: int = 0
    damaged: int = 0


class _Unreadable(Exception):
    """A picture's table is none, or cannot be read to its end."""


def join(path: str, kind: str, tables: Iterable[tuple[str, str, BinaryIO | None]]) -> Joined:
    """Write the table of a run, whole or not at all; a row is held at a time.

    Args:
        path: the file to write.
        kind: of `TABLES`.
        tables: of each picture its source, its key, and its table; None where that cannot be opened.

    Raises:
        OutputError: it cannot be written.
    """
    joined, heading = Joined(), _lines([columns(kind)])
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(_lines([(*FIRST, *columns(kind))]))
        for source, key, table in tables:
            before, place, rows = _lines([(source, key)])[:-1] + b",", file.tell(), joined.rows
            try:
                for line in _records(table, heading):
                    file.write(before + line)
                    joined.rows += 1
                joined.pictures += 1
            except _Unreadable:  # all of it, or nothing
                file.seek(place)
                file.truncate()
                joined.rows, joined.damaged = rows, joined.damaged + 1
    return joined


def _records(table: BinaryIO | None, heading: bytes) -> Iterator[bytes]:
    """The rows of a table as its text has them; a quoted one may have several lines."""
    try:
        if table is None or table.read(len(heading)) != heading:
            raise _Unreadable
        while line := table.readline():
            while line.count(b'"') % 2 and (more := table.readline()):
                line += more
            if not line.endswith(b"\n"):
                raise _Unreadable
            yield line
    except OSError as error:
        raise _Unreadable from error


def check_parquet() -> None:
    """Raise UsageError if nothing can write Parquet."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--parquet needs pyarrow, which is not installed", hint="pip install 'unet-batch[parquet]'"
        ) from error


def to_parquet(path: str, source: str, kind: str) -> None:
    """Write the table of a run as Parquet, a group of rows at a time.

    Args:
        path: the file to write.
        source: the same as CSV.
        kind: of `TABLES`.

    Raises:
        OutputError: it cannot be written, or the CSV cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    def type_of(name: str) -> pa.DataType:
        if name in (*FIRST, "class", *_TEXT):
            return pa.string()
        return pa.int64() if name in _WHOLE else pa.float64()

    schema = pa.schema([(name, type_of(name)) for name in (*FIRST, *columns(kind))])
    try:
        with (
            replacing(path) as temporary,
            parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
            arrow_csv.open_csv(
                source,
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(column_types=schema, strings_can_be_null=False),
            ) as batches,
        ):
            held: list[pa.RecordBatch] = []
            for batch in batches:
                held.append(batch)
                if sum(each.num_rows for each in held) >= _ROWS:
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held.clear()
            writer.write_table(pa.Table.from_batches(held, schema))
    except pa.ArrowInvalid as error:
        raise translate(ValueError(str(error)), path, 0) from error
