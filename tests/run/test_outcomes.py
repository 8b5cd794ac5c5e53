"""What a run tells of its items.

`errors.jsonl`: what has failed in a folder and has not been done since, whatever was run in between. Notes:
what people should know of how files were read.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import fake_file
from tests.helpers.observers import observing
from tests.helpers.processes import Forked
from tests.helpers.runs import half_bright, segment, segment_folder, write
from tests.helpers.systems import needs_links, needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.cli import main
from unet_batch.cli.summary import closing
from unet_batch.files.atomic import LineLog
from unet_batch.inference import segmenter as segmenter_module
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.execute import execute
from unet_batch.run.merge import merge
from unet_batch.run.observe import Observer
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.report import LISTED_EXAMPLES, NOTE_KINDS, FileNote, RunReport, add_note
from unet_batch.run.shard import Shard
from unet_batch.testing import FakeBackend

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def listed(out: Path, name: str = "errors.jsonl") -> list[str]:
    """The names of the files that are listed, in the order of the lines."""
    if not (out / name).exists():
        return []
    return [os.path.basename(json.loads(line)["path"]) for line in (out / name).read_text().splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a/1.png", "b/2.png"):
        write(folder / name, half_bright())
    for name in ("a/bad.png", "b/worse.png"):
        (folder / name).write_bytes(b"no picture")
    return folder


def test_a_run_of_other_files_leaves_earlier_failures(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, _ = segment(photos, output=out)
    assert (listed(out), first.failed, first.failed_before) == (["bad.png", "worse.png"], 2, 0)

    write(photos / "c/3.png", half_bright())
    plan = prepare(RunOptions((str(photos),), str(out)))
    new = tuple(item for item in plan.items if item.key == "c/3")  # as `watch` hands them out
    with Segmenter(FakeBackend(), model=None, workers=1) as segmenter:
        report = execute(replace(plan, items=new, todo=new), segmenter)
    assert (listed(out), report.failed, report.failed_before) == (["bad.png", "worse.png"], 0, 2)
    assert report.exit_code == 0, "of this run nothing failed"
    assert "All done" not in closing(report)
    assert "for what failed before see " in closing(report)

    write(photos / "a/bad.png", half_bright())
    report, _ = segment(photos, output=out)
    assert (listed(out), report.done, report.failed, report.failed_before) == (["worse.png"], 1, 1, 0)


def test_a_failure_goes_when_its_file_has(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out)
    (photos / "a/bad.png").unlink()
    report, _ = segment(photos / "b", photos / "a", output=out)
    assert (listed(out), report.failed, report.failed_before) == (["worse.png"], 1, 0)


@needs_links
def test_a_folder_that_can_be_read_again_is_no_failure(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (photos / "disk").symlink_to(tmp_path / "away")
    report, _ = segment(photos, output=out)
    assert (report.failed, sorted(listed(out))) == (3, ["bad.png", "disk", "worse.png"])
    for _ in range(2):
        report, _ = segment(photos, output=out)
        assert (report.failed, sorted(listed(out))) == (3, ["bad.png", "disk", "worse.png"]), "once each"
    write(tmp_path / "away/x.png", half_bright())
    report, _ = segment(photos, output=out)
    assert (report.done, report.failed, listed(out)) == (1, 2, ["bad.png", "worse.png"])


@needs_posix
def test_a_run_that_is_killed_keeps_what_was_known(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def run() -> RunReport:
        plan = prepare(RunOptions((str(photos),), str(out)))
        with Segmenter(FakeBackend(), model=fake_file(), workers=1) as segmenter:
            return execute(plan, segmenter)

    run()
    for number in range(300):
        write(photos / f"0/{number}.png", half_bright(8, 12))
    process = Forked(segment_folder, str(photos), str(out), {})
    try:
        while not (out / "masks/0").exists():
            assert process.poll() is None
    finally:
        process.kill()
        process.wait(PATIENCE)
    assert set(listed(out)) == {"bad.png", "worse.png"}
    report = run()
    assert (report.failed, report.failed_before) == (2, 0)
    assert listed(out) == ["bad.png", "worse.png"], "once each"


def test_while_a_run_works_the_list_is_whole(photos: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    segment(photos, output=out)
    write(photos / "a/bad.png", half_bright())
    plan = prepare(RunOptions((str(photos),), str(out), overwrite=True))
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        execute(plan, segmenter, observing(outcome=lambda item, failure: seen.append(listed(out))))
    assert len(seen) == 4
    assert all(set(names) == {"bad.png", "worse.png"} for names in seen)
    assert listed(out) == ["worse.png"]


def test_interrupted_before_a_file_was_tried_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out)

    def interrupt(item: object, failure: object) -> None:
        raise KeyboardInterrupt

    plan = prepare(RunOptions((str(photos),), str(out)))
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        report = execute(plan, segmenter, observing(outcome=interrupt))
    assert report.status == "interrupted"
    assert sorted(listed(out)) == ["bad.png", "worse.png"]


@pytest.mark.parametrize("damage", ['{"path": "/x', "[]\n", "{}\n", '{"path": 3}\n', "nothing\n", "\xff\n"])
def test_lines_that_are_none_are_left_behind(photos: Path, tmp_path: Path, damage: str) -> None:
    """As a power cut or an editor leaves them."""
    out = tmp_path / "out"
    segment(photos, output=out)
    path = out / "errors.jsonl"
    path.write_bytes(path.read_bytes() + damage.encode("latin-1"))
    report, _ = segment(photos, output=out)
    assert (report.failed, listed(out)) == (2, ["bad.png", "worse.png"])


def test_shards_keep_their_own_and_a_merge_keeps_all(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/odd.png").write_bytes(b"no picture")
    segment(tmp_path / "other", output=out)  # listed, and of no shard below
    segment(photos, output=tmp_path / "whole")
    for _ in range(2):
        reports = [segment(photos, output=out, shard=Shard(number, 2))[0] for number in (1, 2)]
        assert [report.failed_before for report in reports] == [0, 0]
    assert listed(out) == ["odd.png"]
    merged = merge(str(out))
    assert (merged.failed, merged.failed_before) == (2, 1)
    assert sorted(listed(out)) == ["bad.png", "odd.png", "worse.png"]
    write(tmp_path / "other/odd.png", half_bright())
    segment(tmp_path / "other", output=out)
    assert listed(out) == ["bad.png", "worse.png"]


def test_a_merge_drops_what_a_shard_has_done(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out)
    write(photos / "a/bad.png", half_bright())
    for number in (1, 2):
        segment(photos, output=out, shard=Shard(number, 2))
    merged = merge(str(out))
    assert (merged.done, merged.failed, merged.failed_before, listed(out)) == (1, 1, 0, ["worse.png"])


def test_many_failures_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    with path.open("w") as file:
        for number in range(10_000):
            file.write(json.dumps({"path": f"/photos/{number}.jpg", "message": "x" * 100}) + "\n")
    tracemalloc.start()
    try:
        log = LineLog(str(path), lambda number, value: number % 2 == 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (log.count, len(path.read_text().splitlines())) == (5_000, 5_000)
    assert peak < 4e5, "the file is 1.4 MB"


# Notes


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that have something to tell of files called like it: `3-pages.png`."""
    real = segmenter_module.images.read

    def read(path: str, **options: Any) -> Any:
        picture, (first, _, what) = real(path, **options), Path(path).stem.partition("-")
        return replace(picture, notes=(f"{first} {what}: the first is read",)) if what else picture

    monkeypatch.setattr(segmenter_module.images, "read", read)


@pytest.fixture
def pages(tmp_path: Path, noted: None) -> Path:
    for name in ("2-pages", "12-pages", "7-pages", "5-frames", "plain"):
        write(tmp_path / f"pages/{name}.png", half_bright())
    return tmp_path / "pages"


def test_a_note_reaches_the_report_the_log_and_the_observer(pages: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    heard: dict[str, Sequence[str]] = {}
    plan = prepare(RunOptions((str(pages),), str(tmp_path / "out")))
    observer = observing(event=events.append, note=lambda item, notes: heard.update({item.key: notes}))
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        report = execute(plan, segmenter, observer)
    wanted = [
        {"note": "2-12 pages: the first is read", "files": 3, "examples": ["12-pages", "2-pages", "7-pages"]},
        {"note": "5 frames: the first is read", "files": 1, "examples": ["5-frames"]},
    ]
    stored = json.loads((tmp_path / "out/run.json").read_text())["file_notes"]
    for each in stored:
        each["examples"] = [Path(path).stem for path in each["examples"]]
    assert sorted(stored, key=lambda each: -each["files"]) == wanted
    assert [note.files for note in report.file_notes] == [each["files"] for each in stored]
    assert heard == {
        name: (f"{name.replace('-', ' ')}: the first is read",)
        for name in ("2-pages", "12-pages", "7-pages", "5-frames")
    }
    logged = {event["key"]: event.get("notes") for event in events if event["event"] == "item"}
    assert logged == {**{name: list(notes) for name, notes in heard.items()}, "plain": None}


def test_notes_of_shards_add_up(pages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole, _ = segment(pages, output=tmp_path / "whole")
    for number in (1, 2, 3):
        segment(pages, output=out, shard=Shard(number, 3))
    merged = merge(str(out))

    def figures(notes: list[FileNote]) -> list[tuple[str, int, list[str]]]:
        return sorted((note.note, note.files, sorted(note.examples)) for note in notes)

    assert figures(merged.file_notes) == figures(whole.file_notes)


@pytest.mark.parametrize("verbose", [False, True])
def test_people_read_notes(
    pages: Path, tmp_path: Path, tiny: str, verbose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "pages", "-o", "out", "-m", tiny, "--device", "cpu", *(["-v"] if verbose else [])]
    lines = CliRunner().invoke(main, command).stdout.splitlines()
    assert (
        "note      3 files: 2-12 pages: the first is read (pages/12-pages.png, pages/2-pages.png, "
        "pages/7-pages.png)" in lines
    )
    single = "note      pages/5-frames.png: 5 frames: the first is read"
    assert lines.count(single) == 1 + verbose, "with -v when it is done, and at the end"
    assert ("note      pages/2-pages.png: 2 pages: the first is read" in lines) == verbose
    lines = CliRunner().invoke(main, command).stdout.splitlines()
    assert not [line for line in lines if line.startswith("note")], "told of what was done now"


def test_ten_thousand_files_are_a_line_and_some_names() -> None:
    notes: dict[str, FileNote] = {}
    for number in range(10_000):
        add_note(notes, f"{number + 2} pages: the first is read", (f"{number}.tif",))
        add_note(notes, f"profile {number:x}-of-maker is not known", (f"{number}.jpg",))
    pages = next(iter(notes.values()))
    assert (pages.note, pages.files) == ("2-10001 pages: the first is read", 10_000)
    assert pages.examples == [f"{number}.tif" for number in range(LISTED_EXAMPLES)]
    assert len(notes) <= NOTE_KINDS + 1
    assert sum(note.files for note in notes.values()) == 20_000, "none is lost"


PHRASES = st.sampled_from(
    ["3 pages: the first", "12 pages: the first", "2-7 pages: the first", "Display P3", "2 (of 3) #", "#", ""]
)


@given(st.lists(PHRASES, max_size=12), st.integers(0, 12))
def test_counting_in_parts_is_counting_at_once(phrases: list[str], cut: int) -> None:
    def count(parts: Sequence[Sequence[str]]) -> list[FileNote]:
        merged: dict[str, FileNote] = {}
        for part in parts:
            found: dict[str, FileNote] = {}
            for phrase in part:
                add_note(found, phrase, (phrase,))
            for note in found.values():
                add_note(merged, note.note, note.examples, note.files)
        return list(merged.values())

    assert count([phrases[:cut], phrases[cut:]]) == count([phrases])
    if phrases:
        assert sum(note.files for note in count([phrases])) == len(phrases)
        assert all(note.note in phrases for note in count([phrases[:1]]))


def test_an_observer_that_does_not_listen_is_told_no_events() -> None:
    class Listening(Observer):
        def event(self, event: Any) -> None:
            """Do nothing, but be there."""

    assert not Observer().wants_events
    assert Listening().wants_events
    assert observing(event=print).wants_events
    assert not observing(outcome=print).wants_events
