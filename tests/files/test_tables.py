"""Rows of tables as text, and the tables of pictures as that of a run."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.errors import OutputError, UsageError
from unet_batch.files import tables
from unet_batch.files.tables import ClassStats
from unet_batch.run.options import RunOptions

ROW = ClassStats(None, "car", 12, 0.25, 1, 2, 3, 4, 1, 0.9876543219, 0.01, 0.0, None, None, "")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def own_table(rows: list[ClassStats]) -> io.BytesIO:
    return io.BytesIO(tables.as_csv("stats", rows))


class FailingTable(io.BytesIO):
    """Of which a disk gives two lines."""

    def readline(self, size: int | None = -1) -> bytes:
        if self.tell() and self.getvalue()[: self.tell()].count(b"\n") > 2:
            raise OSError(5, "Input/output error")
        return super().readline(size)


def test_cells_are_numbers_of_seven_digits_or_empty() -> None:
    [row] = csv.DictReader(io.StringIO(tables.as_csv("stats", [ROW]).decode()))
    assert row["class"] == "car"
    assert row["confidence"] == "0.9876543"
    assert row["page"] == row["unlike"] == row["area"] == ""


@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.text()), max_size=6))
def test_names_of_any_kind_come_back(names: list[tuple[str, str, str]]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "stats.csv"
        own = [(source, key, own_table([replace(ROW, name=name)] * 2)) for source, key, name in names]
        joined = tables.join(str(path), "stats", own)
        assert (joined.rows, joined.pictures, joined.damaged) == (2 * len(names), len(names), 0)
        found = [(row["source"], row["key"], row["class"]) for row in read(path)]
    text = [tuple(part.encode("utf-8", "backslashreplace").decode() for part in each) for each in names]
    assert found == [each for each in text for _ in range(2)]


def test_what_is_no_table_is_counted_and_left_out(tmp_path: Path) -> None:
    torn = own_table([ROW, ROW]).getvalue()[:-5]
    own = [
        ("a", "a", own_table([ROW])),
        ("b", "b", None),
        ("c", "c", io.BytesIO(b"class,area\n")),
        ("d", "d", own_table([])),
        ("e", "e", io.BytesIO(torn)),
        ("f", "f", FailingTable(own_table([ROW, ROW, ROW]).getvalue())),
        ("g", "g", own_table([ROW])),
    ]
    joined = tables.join(str(tmp_path / "stats.csv"), "stats", own)
    assert (joined.rows, joined.pictures, joined.damaged) == (2, 3, 4)
    assert [row["key"] for row in read(tmp_path / "stats.csv")] == ["a", "g"]


def test_a_table_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "stats.csv"
    tables.join(str(path), "stats", [("a", "a", own_table([ROW]))])
    before = path.read_bytes()

    def torn() -> object:
        yield "b", "b", own_table([ROW])
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="disk is full"):
        tables.join(str(path), "stats", torn())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["stats.csv"]


def test_parquet_has_the_rows_of_csv_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet")
    monkeypatch.setattr(tables, "_ROWS", 5000)
    rows = [replace(ROW, pixels=number, area=None if number % 2 else 0.5) for number in range(20_000)]
    path = tmp_path / "stats.csv"
    tables.join(str(path), "stats", [('a, "b"\nc', "key", own_table(rows))])
    tables.to_parquet(str(tmp_path / "stats.parquet"), str(path), "stats")
    file = parquet.ParquetFile(tmp_path / "stats.parquet")
    assert file.num_row_groups > 1, "not all of it was held"
    found = file.read()
    assert found.column_names == list(read(path)[0])
    assert found.column("pixels").to_pylist() == list(range(20_000))
    assert found.column("area").to_pylist()[:2] == [0.5, None]
    assert set(found.column("source").to_pylist()) == {'a, "b"\nc'}
    assert found.column("unit").to_pylist()[0] == ""


def test_parquet_of_no_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet")
    tables.join(str(tmp_path / "objects.csv"), "objects", [])
    tables.to_parquet(str(tmp_path / "o.parquet"), str(tmp_path / "objects.csv"), "objects")
    assert parquet.read_table(tmp_path / "o.parquet").num_rows == 0


def test_parquet_is_asked_for_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no table is saved"):
        RunOptions(("x",), parquet=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow"):
        RunOptions(("x",), save=("stats",), parquet=True)
