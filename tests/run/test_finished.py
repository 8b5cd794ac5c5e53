"""What is in an output folder, read from the records of runs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from tests.helpers.models import fake_file
from tests.helpers.runs import half_bright, write
from unet_batch.errors import ManifestError, UsageError
from unet_batch.files.outputs import Style
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.execute import execute
from unet_batch.run.finished import FinishedRun
from unet_batch.run.manifest import Manifest
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.shard import Shard
from unet_batch.testing import FakeBackend


def run(source: Path, out: Path, **options: object) -> None:
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(prepare(RunOptions((str(source),), str(out), **options)), segmenter)  # type: ignore[arg-type]


def test_items_come_in_the_order_of_their_keys_with_sources_and_files(tmp_path: Path) -> None:
    names = ("b.png", "a/z.png", "a b.png", "a/y.png", "ä.png")
    for name in names:
        write(tmp_path / "in" / name, half_bright())
    (tmp_path / "in" / "torn.jpg").write_bytes(b"no picture")
    run(tmp_path / "in", tmp_path / "out", save=("mask", "prob"))
    with FinishedRun(str(tmp_path / "out")) as finished:
        items = list(finished.items())
        assert [item.key for item in items] == ["a/y", "a/z", "a b", "b", "ä"]
        sources = [str(tmp_path / "in" / f"{item.key}.png") for item in items]
        assert [item.source for item in items] == sources
        assert all(
            Path(item.files["mask"]).is_file() and Path(item.files["prob"]).is_file() for item in items
        )
        assert [Path(failure.path).name for failure in finished.failures()] == ["torn.jpg"]
        assert finished.classes.names == fake_file().spec.classes.names
        assert finished.classes.colours == fake_file().spec.classes.colours
        assert (finished.save, finished.done, finished.left) == (("mask", "prob"), 5, 1)


def test_files_are_known_by_their_kind_however_they_are_drawn(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", half_bright())
    style = Style(background="white", cutout_format="webp", crop=True)
    run(tmp_path / "in", tmp_path / "out", save=("mask", "cutout", "background"), style=style)
    with FinishedRun(str(tmp_path / "out")) as finished:
        [item] = finished.items()
    assert {*item.files} == {"mask", "cutout", "background"}
    assert item.files["cutout"].endswith("a.webp")


def test_shards_are_read_before_they_are_merged(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / "in" / f"{number}.png", half_bright())
    for number in (1, 2):
        run(tmp_path / "in", tmp_path / "out", shard=Shard(number, 2))
    with FinishedRun(str(tmp_path / "out")) as finished:
        assert [item.key for item in finished.items()] == ["0", "1", "2", "3", "4", "5"]
        assert finished.save == ("mask",)


def test_the_last_line_of_a_key_counts_as_for_a_run(tmp_path: Path) -> None:
    def line(key: str, status: str, at: float) -> str:
        return json.dumps({"v": 1, "key": key, "status": status, "root": "/r", "at": at}) + "\n"

    (tmp_path / "manifest-1-of-2.jsonl").write_text(line("a", "done", 9) + line("b", "done", 1))
    (tmp_path / "manifest.jsonl").write_text(
        line("a", "failed", 5) + line("b", "done", 2) + line("b", "void", 3) + "torn\n" + line("c", "done", 4)
    )
    expected = sorted(
        key for key, record in Manifest(str(tmp_path)).records.items() if record.status == "done"
    )
    with FinishedRun(str(tmp_path)) as finished:
        assert [item.key for item in finished.items()] == expected == ["a", "c"]


def test_what_is_held_does_not_grow_with_the_items(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.jsonl", "w") as file:
        for number in range(20_000):
            source = {"source": f"{number}.jpg", "size": 1, "mtime_ns": 1}
            outputs = {"mask": [[f"masks/{number}.png", 3]]}
            values = {"v": 1, "key": f"{number}", "status": "done", **source, "outputs": outputs}
            file.write(json.dumps({**values, "root": "/in", "at": 1.0}) + "\n")
    tracemalloc.start()
    try:
        with FinishedRun(str(tmp_path)) as finished:
            assert sum(1 for _ in finished.items()) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_without_records_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no manifest"):
        FinishedRun(str(tmp_path))
    (tmp_path / "manifest.jsonl").write_text("\n")
    with FinishedRun(str(tmp_path)) as finished, pytest.raises(ManifestError, match=r"run\.json"):
        _ = finished.report
