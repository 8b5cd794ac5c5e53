"""Shards to which whole folders are dealt: each lists and reads what is its own alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec import register_implementation

from scripts import bench_scale
from tests.helpers.models import fake_file
from tests.helpers.runs import files, write
from tests.helpers.systems import needs_links
from unet_batch.errors import ManifestError
from unet_batch.files import remote
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run import dealing
from unet_batch.run import shard as shards
from unet_batch.run.execute import execute
from unet_batch.run.manifest import DEALT, Manifest
from unet_batch.run.merge import merge
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare, resume
from unet_batch.run.records import OutputRecipe
from unet_batch.run.report import RunReport
from unet_batch.run.shard import Shard
from unet_batch.testing import FakeBackend

FAKE = fake_file()


@pytest.fixture(autouse=True)
def few_folders_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "FOLDERS", 2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(24):
        picture = np.full((8, 12, 3), 200, np.uint8)
        picture[: 1 + number % 8] = 0
        write(tmp_path / "photos" / f"{number % 8}" / f"{number:02}.png", picture)
    write(tmp_path / "photos" / "top.png", picture)
    return tmp_path / "photos"


def run(folder: Path, out: Path, number: int = 0, count: int = 3, **options: Any) -> RunReport:
    shard = Shard(number, count) if number else None
    threshold = options.pop("threshold", None)
    plan = prepare(RunOptions((str(folder),), str(out), shard=shard, **options))
    with Segmenter(FakeBackend(), model=FAKE, workers=2, threshold=threshold) as segmenter:
        return execute(plan, segmenter)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder) if "/" in name}


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the manifests that are read from now on."""
    names: list[str] = []
    real = Manifest._read

    def read(self: Manifest, path: str) -> bool:
        names.append(os.path.basename(path))
        return real(self, path)

    monkeypatch.setattr(Manifest, "_read", read)
    return names


def header(out: Path, part: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((out / f"manifest-{part}.jsonl").read_text().splitlines()[0])
    return line


def test_shards_are_one_run_and_read_their_own_manifests(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    single = run(photos, whole)
    reports = [run(photos, out, number) for number in (1, 2, 3)]
    assert sum(report.done for report in reports) == single.done == 25
    assert outputs(out) == outputs(whole)
    assert [header(out, f"{number}-of-3")[DEALT] for number in (1, 2, 3)] == [1] * 3
    names = read_by(monkeypatch)
    again = [run(photos, out, number) for number in (1, 2, 3)]
    assert sum(report.skipped for report in again) == 25
    assert names == [f"manifest-{number}-of-3.jsonl" for number in (1, 2, 3)]
    merged = merge(str(out))
    assert (merged.found, merged.skipped, merged.failed, merged.notes) == (25, 25, 0, ())
    assert outputs(out) == outputs(whole)
    assert run(photos, out).states == {"done": 25}


def test_what_a_shard_of_another_count_did_is_not_done_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2, 3):
        run(photos, out, number)
    later = [run(photos, out, number, count=2) for number in (1, 2)]
    assert sum(report.skipped for report in later) == 25
    assert sum(report.done for report in later) == 0


def test_of_other_items_no_records_are_held(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    plan = prepare(RunOptions((str(photos),), str(out), shard=Shard(2, 3)))
    held: list[int] = []
    real = Manifest.made_otherwise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Manifest,
            "made_otherwise",
            lambda self, *arguments: (held.append(len(self.records)), real(self, *arguments))[1],
        )
        plan = resume(plan, bench_scale.recipe_in(str(out)))
    assert held == [len(plan.items)]
    assert 0 < len(plan.items) < 25
    assert plan.states == {"done": len(plan.items)}


def test_another_model_is_noticed_by_every_shard(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2, 3):
        run(photos, out, number)
    run(photos, out, 2, threshold=0.25, overwrite=True)
    for number in (1, 3):
        with pytest.raises(ManifestError, match="holds outputs of"):
            run(photos, out, number)
    # The whole folder is made anew, and then it is one again.
    for number in (1, 3):
        run(photos, out, number, threshold=0.25, overwrite=True)
    assert all(run(photos, out, number, threshold=0.25).done == 0 for number in (1, 2, 3))


def test_the_first_shard_decides_how_folders_are_dealt(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, 1)
    for number in range(8, 30):  # by now there would be enough one level further down
        write(photos / "0" / f"{number}" / "a.png", np.zeros((8, 12, 3), np.uint8))
    for folder in range(4, 8):  # and too few here
        for path in (photos / f"{folder}").iterdir():
            path.rename(photos / "0" / path.name)
        (photos / f"{folder}").rmdir()
    reports = [run(photos, out, number) for number in (1, 2, 3)]
    assert {header(out, f"{number}-of-3")[DEALT] for number in (1, 2, 3)} == {1}
    assert sum(report.found for report in reports) == 25 + 22


def test_shards_that_saw_different_folders_are_told_of(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, 1)
    run(photos, out, 2)
    path = out / "manifest-3-of-3.jsonl"  # one that began at the same time, with other folders before it
    line = {**header(out, "2-of-3"), DEALT: 2}
    path.write_text(json.dumps(line) + "\n")
    run(photos, out, 3)
    assert merge(str(out)).notes[-1].startswith("shards have seen different folders")


def test_manifests_of_earlier_releases_are_gone_on_with(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "FOLDERS", 10**6)  # they dealt single items
        before = [run(photos, out, number) for number in (1, 2)]
    assert DEALT not in header(out, "1-of-3")
    reports = [run(photos, out, number) for number in (1, 2, 3)]
    assert [report.done for report in reports] == [0, 0, 25 - sum(report.done for report in before)]
    assert merge(str(out)).found == 25


@needs_links
def test_what_leads_nowhere_is_told_by_one(photos: Path, tmp_path: Path) -> None:
    for name in ("5/folder", "6/folder", "folder"):  # a folder, perhaps: below dealt ones, and above
        (photos / name).symlink_to(tmp_path / "gone")
    for _ in range(2):
        reports = [run(photos, tmp_path / "out", number) for number in (1, 2, 3)]
        assert sum(report.unreadable for report in reports) == 3
    merged = merge(str(tmp_path / "out"))
    assert (merged.unreadable, merged.failed) == (3, 3)
    assert len((tmp_path / "out" / "errors.jsonl").read_text().splitlines()) == 3


def test_a_shard_of_a_million_names_lists_and_holds_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "FOLDERS", 4)
    register_implementation("names", bench_scale.Names, clobber=True)
    remote._connect.cache_clear()
    monkeypatch.setattr(bench_scale.Names, "told", 0)
    shard = Shard(3, 200)
    plan = prepare(RunOptions(("names://bucket/1000000/",), str(tmp_path / "out"), shard=shard))
    plan = resume(plan, OutputRecipe({}, "none"))
    folders = sum(shard.takes_folder(f"{folder:05}") for folder in range(1000))
    assert 1 < folders < 12
    assert len(plan.todo) == 1000 * folders
    assert bench_scale.Names.told == 1000 + 1000 * folders
    remote._versions.clear()


def test_an_end_that_cannot_be_read_is_no_end() -> None:
    line = b'{"v":1,"recipe":"x","made_with":"model","folders_dealt":2,"at":5.0}\n'
    assert dealing.Ends.parse(line, line) == (2, 5.0, ("x", "x"))
    for first in (b"", b"\0\0\n", b'{"v":1,"key":"a"}\n', line.replace(b"2", b'"2"'), line[:20]):
        assert dealing.Ends.parse(first, line).depth == -1
    assert dealing.Ends.parse(line, line + line[:30]).recipes == ("x", "")
    assert dealing.known_depth({"1-of-2": dealing.Ends.parse(b"", b"")}) is None


def test_the_earliest_manifest_says_how_folders_are_dealt() -> None:
    early, late = dealing.Ends(2, 5.0, ("x", "x")), dealing.Ends(1, 6.0, ("x", "x"))
    assert dealing.known_depth({"1-of-2": late, "2-of-2": early}) == 2
    assert dealing.differ([early, late])
    assert not dealing.differ([early, dealing.Ends(-1, 0.0, ("", ""))])
    ends = {"1-of-3": early, "2-of-3": early, "3-of-3": late}
    assert dealing.others_alone(ends, "1-of-3", 2, "x") == {"2-of-3"}
    assert dealing.others_alone(ends, "1-of-3", 2, "y") == frozenset()
