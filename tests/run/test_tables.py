"""Tables of a run: those of its pictures, joined when it ends."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers.runs import files, half_bright, read, segment, write
from unet_batch.cli.summary import table_line
from unet_batch.files import tables as table_files
from unet_batch.files.tables import ClassStats
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media.measure import Measuring, PixelSize
from unet_batch.run import tables as joining
from unet_batch.run.execute import execute
from unet_batch.run.manifest import Manifest, manifest_bytes
from unet_batch.run.merge import merge
from unet_batch.run.options import PageRange, RunOptions
from unet_batch.run.ordered import OrderedRecords
from unet_batch.run.plan import prepare
from unet_batch.run.records import Identity, OutputRecipe, Record
from unet_batch.run.shard import Shard
from unet_batch.run.tables import write_tables
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_thread_is_left")]
SAVE = ("mask", "stats", "objects", "instances")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.png", "a.jpg", "sub/c.png"):
        write(folder / name, half_bright())
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_measured_of_a_picture(photos: Path, tmp_path: Path) -> None:
    report, _ = segment(photos, output=tmp_path / "out", save=SAVE)
    found = rows(tmp_path / "out/stats.csv")
    assert [row["key"] for row in found] == ["a", "b", "sub/c"]
    assert [row["source"] for row in found] == [
        str(photos / name) for name in ("a.jpg", "b.png", "sub/c.png")
    ]
    row = found[1]
    assert (row["class"], row["pixels"], row["share"], row["components"]) == ("class0", "3072", "0.5", "1")
    assert [row[side] for side in ("left", "top", "width", "height")] == ["48", "0", "48", "64"]
    assert (row["confidence"], row["entropy"], row["unsure"]) == ("1", "0", "0")
    assert (row["area"], row["unit"]) == ("", ""), "nobody says what a pixel measures"
    [thing] = [row for row in rows(tmp_path / "out/objects.csv") if row["key"] == "b"]
    assert (thing["id"], thing["x"], thing["y"], thing["intensity"]) == ("1", "71.5", "31.5", "255")
    assert read(tmp_path / "out/instances/b.png").tolist() == (half_bright()[..., 0] // 255).tolist()
    assert report.tables["stats"]["rows"] == report.tables["objects"]["rows"] == 3
    assert table_line("stats", report.tables["stats"]) == ("stats.csv", "3 rows of 3 pictures")
    assert json.loads((tmp_path / "out/run.json").read_text())["tables"] == report.tables


def test_of_several_classes_ids_say_nothing_of_how_sure(photos: Path, tmp_path: Path) -> None:
    backend = FakeBackend(fake_spec(classes=3), lambda pictures: (pictures[..., 0] // 100).astype(np.uint8))
    segment(photos / "b.png", output=tmp_path / "out", save=("stats", "objects"), backend=backend)
    found = rows(tmp_path / "out/stats.csv")
    assert [(row["class"], row["pixels"]) for row in found] == [
        ("class0", "3072"),
        ("class1", "0"),
        ("class2", "3072"),
    ]
    assert {row["confidence"] + row["unsure"] for row in found} == {""}
    assert found[1]["left"] == "", "what is nowhere has no box"
    assert [row["class"] for row in rows(tmp_path / "out/objects.csv")] == ["class0", "class2"]


def test_nothing_to_do_rewrites_nothing_and_what_is_new_comes_in(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out, save=SAVE)
    before = {name: (out / name).stat().st_mtime_ns for name in ("stats.csv", "objects.csv")}
    for _ in range(2):  # the manifest grows by a line each time
        report, _ = segment(photos, output=out, save=SAVE)
        assert {name: (out / name).stat().st_mtime_ns for name in before} == before
        assert report.tables["stats"]["rows"] == 3
    write(photos / "aa.png", half_bright())
    (photos / "broken.png").write_bytes(b"no picture")
    report, _ = segment(photos, output=out)  # not asked for, but a table that is there stays true
    assert (report.done, report.failed) == (1, 1)
    assert [row["key"] for row in rows(out / "stats.csv")] == ["a", "b", "sub/c"], (
        "no table of its own was made"
    )
    report, _ = segment(photos, output=out, save=SAVE)
    assert [row["key"] for row in rows(out / "stats.csv")] == ["a", "aa", "b", "sub/c"]
    write(photos / "b.png", np.zeros((64, 96, 3), np.uint8))
    segment(photos, output=out)
    assert [row["key"] for row in rows(out / "stats.csv")] == ["a", "aa", "sub/c"], (
        "what it says is of another picture"
    )


def test_a_table_that_vanished_comes_back(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out, save=("stats",))
    before = (out / "stats.csv").read_bytes()
    (out / "stats.csv").unlink()
    report, _ = segment(photos, output=out, save=("stats",))
    assert report.done == 0
    assert (out / "stats.csv").read_bytes() == before


def test_a_picture_whose_table_was_changed_is_counted(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out, save=("mask", "stats"))
    (out / "stats/a.csv").write_text("mine")
    write(photos / "d.png", half_bright())
    report, _ = segment(photos / "d.png", photos, output=out, save=("mask",))
    assert report.tables["stats"]["damaged"] == 1
    assert any("stats.csv lacks 1 pictures" in note for note in report.notes)


def test_parquet_beside_it_and_gone_when_it_would_be_untrue(photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet")
    out = tmp_path / "out"
    segment(photos, output=out, save=("stats",), parquet=True)
    assert parquet.read_table(out / "stats.parquet").column("key").to_pylist() == ["a", "b", "sub/c"]
    write(photos / "d.png", half_bright())
    segment(photos, output=out, save=("stats",))
    assert not (out / "stats.parquet").exists()
    report, _ = segment(photos, output=out, save=("stats",), parquet=True)
    assert report.tables["stats"]["files"] == ["stats.csv", "stats.parquet"]
    assert parquet.read_table(out / "stats.parquet").num_rows == 4


def test_shards_are_joined_when_they_are_merged(photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    segment(photos, output=whole, save=SAVE)
    for number in (1, 2):
        segment(photos, output=out, save=SAVE, shard=Shard(number, 2))
        assert not (out / "stats.csv").exists()
    report = merge(str(out))
    assert report.tables["objects"]["rows"] == 3
    for name in ("stats.csv", "objects.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    before = (out / "stats.csv").stat().st_mtime_ns
    report, _ = segment(photos, output=out, save=SAVE)
    assert report.done == 0
    assert (out / "stats.csv").stat().st_mtime_ns == before, "the run after knows the merged table"


def test_pages_of_a_stack_have_their_numbers(tmp_path: Path) -> None:
    stack = np.stack([half_bright()[..., 0] * (number > 0) for number in range(3)]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    save = ("stats", "objects", "instances")
    segment(tmp_path / "stack.tif", output=tmp_path / "out", save=save, pages=PageRange())
    found = rows(tmp_path / "out/stats.csv")
    assert [(row["page"], row["pixels"]) for row in found] == [("1", "0"), ("2", "3072"), ("3", "3072")]
    assert [row["page"] for row in rows(tmp_path / "out/objects.csv")] == ["2", "3"]
    assert tifffile.imread(tmp_path / "out/instances/stack.tif").shape == (3, 64, 96)
    assert "stats/stack.csv" in files(tmp_path / "out")


@pytest.mark.parametrize("isolate", [False, True])
def test_areas_in_units(tmp_path: Path, isolate: bool) -> None:
    write(tmp_path / "scan.png", half_bright(), dpi=(254, 254))
    for name, measuring in (("own", Measuring()), ("given", Measuring(PixelSize(0.5, 2, "um")))):
        plan = prepare(RunOptions((str(tmp_path / "scan.png"),), str(tmp_path / name), save=("stats",)))
        with Segmenter(FakeBackend(), workers=1, measuring=measuring, isolate=isolate) as segmenter:
            assert execute(plan, segmenter).done == 1
    [own], [given] = rows(tmp_path / "own/stats.csv"), rows(tmp_path / "given/stats.csv")
    assert float(own["area"]) == pytest.approx(3072 * 0.1 * 0.1, rel=1e-3)
    assert own["unit"] == "mm"
    assert (given["area"], given["unit"]) == ("3072", "um")


def test_what_has_no_value_is_no_part_of_the_share(tmp_path: Path) -> None:
    picture = half_bright()[..., 0].astype(np.float32) / 255
    picture[:32] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", picture)
    segment(tmp_path / "a.tif", output=tmp_path / "out", save=("stats", "objects"))
    [row] = rows(tmp_path / "out/stats.csv")
    assert (row["pixels"], row["share"], row["top"], row["height"]) == (str(32 * 48), "0.5", "32", "32")


def fill(folder: Path, count: int) -> int:
    """An output folder of so many pictures, each with a table of two rows."""
    own = ClassStats(None, "car", 12, 0.25, 1, 2, 3, 4, 1, 0.98, 0.01, 0.0, None, None, "")
    data = table_files.as_csv("stats", [own, own])
    (folder / "stats").mkdir(parents=True)
    manifest = Manifest(str(folder))
    with manifest.writing(OutputRecipe({}, "none")):
        for number in reversed(range(count)):
            name = f"{number:06d}"
            (folder / f"stats/{name}.csv").write_bytes(data)
            identity = Identity(f"{name}.jpg", 1, 1)
            outputs: dict[str, Any] = {"stats": ((f"stats/{name}.csv", len(data)),)}
            manifest.record(Record(name, "done", identity, "r", outputs, root="/photos"))
    return manifest_bytes(str(folder))


def test_memory_does_not_grow_with_the_rows_of_a_picture(tmp_path: Path) -> None:
    now = fill(tmp_path, 2)
    table = (tmp_path / "stats/000000.csv").read_bytes()
    row = table.split(b"\n")[1] + b"\n"
    (tmp_path / "stats/000000.csv").write_bytes(table + 60_000 * row)  # 3 MB
    (tmp_path / "stats/000001.csv").write_bytes(table + row.replace(b"car", b'"a\nb"'))
    tracemalloc.start()
    found = write_tables(str(tmp_path), ("stats",), {}, now, parquet=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["stats"]["rows"] == 60_005
    assert rows(tmp_path / "stats.csv")[-1]["class"] == "a\nb"
    assert peak < 1e6


def test_of_a_server_large_tables_are_asked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Store:
        def contents(self, files: list[str]) -> list[bytes | None]:
            asked.append(len(files))
            return [None if "000004" in file else (tmp_path / file).read_bytes() for file in files]

        def upload(self, files: list[str]) -> None:
            assert files == ["stats.csv"]

        def discard(self, files: list[str]) -> None:
            assert files == ["stats.parquet"]

    now, store = fill(tmp_path, 7), Store()
    size = (tmp_path / "stats/000000.csv").stat().st_size
    monkeypatch.setattr(joining, "_AT_ONCE", 5)
    monkeypatch.setattr(joining, "_BYTES", 2 * size)
    found = write_tables(str(tmp_path), ("stats",), {}, now, parquet=False, store=store)  # type: ignore[arg-type]
    assert asked == [2, 2, 1, 2]
    assert (found["stats"]["rows"], found["stats"]["damaged"]) == (12, 1)
    monkeypatch.setattr(joining, "_BYTES", 1)
    write_tables(str(tmp_path), ("stats",), {}, now, parquet=False, store=store)  # type: ignore[arg-type]
    assert asked[4:] == [1] * 7


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    peaks = []
    for count in (600, 3000):
        now = fill(tmp_path / str(count), count)
        tracemalloc.start()
        found = write_tables(str(tmp_path / str(count)), ("stats",), {}, now, parquet=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["stats"]["rows"] == 2 * count
    assert peaks[1] < peaks[0] + 100_000, peaks


def test_of_each_key_the_last_line_counts(tmp_path: Path) -> None:
    manifest = Manifest(str(tmp_path))
    with manifest.writing(OutputRecipe({}, "none")):
        manifest.record(Record("b", "done", root="1"), Record("a/x", "done"), Record("a-x", "done"))
        manifest.record(Record("b", "done", root="2"), Record("a-x", "failed"), Record("a", "done"))
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"v":1,"key":"torn')
    with OrderedRecords(str(tmp_path)) as records:
        assert [(each.key, each.root) for each in records] == [("a", ""), ("a/x", ""), ("b", "2")]
        assert records.done == 3
