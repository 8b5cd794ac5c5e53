"""Files that arrive: taken once they have come to rest, once each, under the guarantees of a run."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.footage import Footage
from tests.helpers.observers import observing
from tests.helpers.processes import Forked, one_thread
from tests.helpers.runs import half_bright, write
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE, until
from unet_batch.errors import SourceError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run import watch as watch_module
from unet_batch.run.observe import Observer, Stop
from unet_batch.run.options import RunOptions
from unet_batch.run.report import RunReport
from unet_batch.run.watch import Arrivals, Watched, look, watch
from unet_batch.testing import FakeBackend
from unet_batch.types import Item

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@contextmanager
def watching(folder: Path, **options: Any) -> Iterator[list[RunReport]]:
    """Watches in a thread; yields the reports of the batches so far."""
    stop, batches, outcome = Stop(), [], []

    def work() -> None:
        own = RunOptions((str(folder),), str(folder.parent / "out"), **options)
        with Segmenter(FakeBackend(), workers=1) as segmenter:
            observer = observing(batch=batches.append)
            outcome.append(watch(own, segmenter, observer, stop, 0.15, 0.05))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield batches
    finally:
        stop()
        thread.join()
    assert isinstance(outcome[0], Watched)
    assert outcome[0].done == sum(report.done for report in batches)


def test_files_are_segmented_as_they_arrive(tmp_path: Path) -> None:
    folder, out = tmp_path / "incoming", tmp_path / "out"
    folder.mkdir()
    with watching(folder) as batches:
        time.sleep(0.2)
        assert not out.exists()
        write(folder / "a.png", half_bright())
        until((out / "masks/a.png").exists)
        (folder / "sub").mkdir()
        write(folder / "sub/b.png", half_bright())
        Footage("c.mp4", frames=4).make(folder)
        (folder / "broken.jpg").write_bytes(b"no picture")
        until(lambda: sum(report.done + report.failed for report in batches) == 4)
        assert (out / "masks/sub/b.png").exists()
        assert (out / "masks/c.mkv").exists()
        assert sum(report.failed for report in batches) == 1
        done = len(batches)
        time.sleep(0.6)  # nothing new: nothing is done, and what failed is left alone
        assert len(batches) == done
        write(folder / "a.png", half_bright(32, 48))  # replaced by another
        until(lambda: sum(report.done for report in batches) == 4)


def test_a_file_that_grows_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: who writes may be kept waiting longer than files are."""
    now = [0.0]
    monkeypatch.setattr("unet_batch.run.watch.time", SimpleNamespace(monotonic=lambda: now[0]))
    folder, out = tmp_path / "incoming", tmp_path / "out"
    folder.mkdir()
    write(tmp_path / "whole.png", half_bright(200, 300))
    data = (tmp_path / "whole.png").read_bytes()
    with watching(folder) as batches:
        with (folder / "a.png").open("wb") as file:
            for start in range(0, len(data), max(1, len(data) // 8)):
                file.write(data[start : start + max(1, len(data) // 8)])
                file.flush()
                now[0] += 0.08
                time.sleep(0.08)
        until(lambda: now.append(now.pop() + 0.01) or batches)
        assert (out / "masks/a.png").exists()
        assert [(report.done, report.failed) for report in batches] == [(1, 0)]


def test_what_is_done_already_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    write(folder / "a.png", half_bright())
    with watching(folder) as batches:
        until(lambda: batches)
    with watching(folder) as batches:
        time.sleep(0.8)
        assert not batches
        write(folder / "b.png", half_bright())
        until(lambda: batches)
        assert (batches[0].done, batches[0].skipped) == (1, 0)


def test_failures_of_all_batches_stay_until_their_file_succeeds(tmp_path: Path) -> None:
    folder, errors = tmp_path / "incoming", tmp_path / "out/errors.jsonl"
    folder.mkdir()

    def listed() -> list[str]:
        return [os.path.basename(json.loads(line)["path"]) for line in errors.read_text().splitlines()]

    def have(done: int, failed: int) -> bool:
        return (sum(each.done for each in batches), sum(each.failed for each in batches)) == (done, failed)

    with watching(folder) as batches:
        (folder / "bad.png").write_bytes(b"no picture")
        until(lambda: have(0, 1))
        write(folder / "a.png", half_bright())
        until(lambda: have(1, 1))
        assert listed() == ["bad.png"], "the next batch went well"
        (folder / "worse.png").write_bytes(b"no picture either")
        until(lambda: have(1, 2))
        assert listed() == ["bad.png", "worse.png"]
        assert batches[-1].failed_before == 1
        write(folder / "bad.png", half_bright())
        until(lambda: have(2, 2))
        assert listed() == ["worse.png"]
        (folder / "worse.png").unlink()
        write(folder / "b.png", half_bright())
        until(lambda: have(3, 2))
        assert not errors.exists()


def test_the_end_counts_what_still_fails(tmp_path: Path) -> None:
    folder, stop, batches = tmp_path / "incoming", Stop(), []
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no picture")

    def batch(report: RunReport) -> None:
        batches.append(report)
        if len(batches) == 1:
            write(folder / "bad.png", half_bright())
        else:
            stop()

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        options = RunOptions((str(folder),), str(tmp_path / "out"))
        total = watch(options, segmenter, observing(batch=batch), stop, 0.05, 0.02)
    assert (total.done, total.failed) == (1, 0)
    assert [report.failed for report in batches] == [1, 0]


def test_a_folder_that_is_empty_does_not_keep_another_waiting(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a/1.png", half_bright())
    stop, out = Stop(), tmp_path / "out"

    def batch(report: RunReport) -> None:
        if (out / "masks/b/2.png").exists():
            stop()
        write(tmp_path / "b/2.png", half_bright())

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        options = RunOptions((str(tmp_path / "a"), str(tmp_path / "b")), str(out))
        total = watch(options, segmenter, observing(batch=batch), stop, 0.05, 0.02)
    assert total.done == 2
    assert (out / "masks/a/1.png").exists(), "under the same name as once both hold something"


def test_the_output_folder_is_known_before_a_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "incoming").mkdir()
    assert look(RunOptions((str(tmp_path / "incoming"),))).outputs.folder == str(
        tmp_path / "incoming-segmented"
    )
    monkeypatch.chdir(tmp_path / "incoming")
    assert look(RunOptions((".",))).outputs.folder == str(tmp_path / "incoming/segmented")
    assert not (tmp_path / "incoming/segmented").exists()
    (tmp_path / "incoming/run.json").write_text('{"unet_batch": "1"}')
    with pytest.raises(SourceError, match="hold outputs"):
        look(RunOptions((".",)))


@pytest.mark.parametrize("kind", ["file", "nothing"])
def test_only_folders_can_be_watched(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "a.png"
    if kind == "file":
        source.write_bytes(b"")
    with Segmenter(FakeBackend()) as segmenter, pytest.raises(SourceError, match=r"a\.png") as caught:
        watch(RunOptions((str(source),)), segmenter, settle=0, poll=0)
    assert "folder" in caught.value.hint


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["grow", "remove", "look"])), max_size=40))
def test_a_file_is_given_once_as_it_is_and_only_at_rest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    arrivals, now = Arrivals(2.0), 0.0
    touched: dict[str, float] = {}
    given_as: dict[str, set[int]] = {}
    looked: dict[str, float] = {}  # since when the file has been seen as it is
    for number, action in steps:
        path = folder / str(number)
        now += 1
        if action == "grow":
            with path.open("ab") as file:
                file.write(b"x")
            touched[str(path)] = now
            looked.pop(str(path), None)
        elif action == "remove":
            path.unlink(missing_ok=True)
            given_as.pop(str(path), None)
            looked.pop(str(path), None)
        else:
            items = [Item(str(each), each.name) for each in sorted(folder.iterdir())]
            for item in items:
                looked.setdefault(item.path, now)
            ready = {item.path for item in arrivals.look(items, now)}
            for item in items:
                size = os.path.getsize(item.path)
                rested = now - looked[item.path] >= 2.0
                already = size in given_as.get(item.path, set())
                assert (item.path in ready) == (rested and not already)
                if item.path in ready:
                    given_as.setdefault(item.path, set()).add(size)


@needs_posix
def test_the_command_ends_well_on_ctrl_c(tmp_path: Path, tiny: str) -> None:
    folder = tmp_path / "incoming"
    write(folder / "a.png", half_bright())
    said = tmp_path / "said.txt"
    out = tmp_path / "out"
    command = ("watch", str(folder), "-o", str(out), "-m", tiny, "--settle", "0.1", "--report")
    process = Forked(one_thread, *command, output=said, errors=said)
    try:
        until((out / "report.html").exists)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        process.kill()
    output = said.read_text()
    assert process.returncode == 0, output
    assert "1 done" in output
    assert output.count("report.html") == 1, output
    assert "1 item" in output
    assert re.search(rf"^output    {re.escape(str(tmp_path))}.out · mask, stats$", output, re.MULTILINE), (
        output
    )
    assert "Traceback" not in output


def test_tables_are_true_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_JOINING_SHARE", 1e-9)  # after the first time it would be too much
    folder, out = tmp_path / "incoming", tmp_path / "out"
    write(folder / "a.png", half_bright())

    def rows() -> int:
        return len((out / "stats.csv").read_text().splitlines()) - 1

    with watching(folder, save=("mask", "stats")) as batches:
        until(lambda: len(batches) == 1)
        assert rows() == 1
        write(folder / "b.png", half_bright())
        until(lambda: len(batches) == 2)
        assert rows() == 1
    assert rows() == 2


def test_what_is_made_of_the_folder_is_true_when_it_ends_and_made_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stop, made = tmp_path / "incoming", Stop(), list[int]()
    write(folder / "0.png", half_bright())
    monkeypatch.setattr(watch_module, "_REFRESH_PAUSE", 1e9)

    def refresh() -> bool:
        made.append(len(list((tmp_path / "out/masks").iterdir())))
        return len(made) > 1  # the first time it fails

    def batch(report: RunReport) -> None:
        done = len(list((tmp_path / "out/masks").iterdir()))
        if done == 4:
            stop()
        write(folder / f"{done}.png", half_bright())

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        options = RunOptions((str(folder),), str(tmp_path / "out"))
        watch(options, segmenter, observing(batch=batch), stop, 0.0, 0.01, refresh)
        assert made == [1, 4]
        stop, made = Stop(), list[int]()
        watch(options, segmenter, Observer(), stop, 0.0, 0.01, lambda: stop() or refresh())
    assert made == [5, 5], "the one that failed is made again at the end"


def test_nothing_is_made_of_a_folder_in_which_nothing_is(tmp_path: Path) -> None:
    folder, stop = tmp_path / "incoming", Stop()
    folder.mkdir()
    stop()
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        options = RunOptions((str(folder),), str(tmp_path / "out"))
        watch(options, segmenter, stop=stop, refresh=lambda: pytest.fail("there is nothing to show"))
