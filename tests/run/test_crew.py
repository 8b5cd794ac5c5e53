"""Several processes that share a run: what they leave is what one leaves, whatever happens to them."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.crews import DEADLY, broken, crew, deadly, open_fake, pids, slowly
from tests.helpers.observers import observing
from tests.helpers.processes import Forked, is_running
from tests.helpers.runs import done_lines, half_bright, many, tree, write
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE, until
from unet_batch.errors import (
    BackendError,
    ImageError,
    OutputError,
    RunError,
    UnetBatchError,
    UsageError,
)
from unet_batch.files.outputs import Style
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.crew import Crew, Device, Lost, Pending
from unet_batch.run.execute import execute
from unet_batch.run.links import PipeLink
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange, RunOptions
from unet_batch.run.plan import RunPlan, prepare
from unet_batch.run.records import OutputRecipe
from unet_batch.run.report import RunReport
from unet_batch.run.session import Order, Told
from unet_batch.run.sharing import Seat, SharedQueue
from unet_batch.run.work import Outcome
from unet_batch.types import Item

pytestmark = [pytest.mark.usefixtures("no_thread_is_left"), needs_posix]


def run(
    source: Path,
    out: Path,
    hands: Crew | None = None,
    on_outcome: Callable[[str], None] = lambda key: None,
    stop: Stop | None = None,
    **options: Any,
) -> RunReport:
    plan = prepare(RunOptions((str(source),), str(out), **options))
    observer = observing(outcome=lambda item, failure: on_outcome(item.key))
    if hands is not None:
        return execute(plan, hands, observer, stop)
    with open_fake() as segmenter:
        return execute(plan, segmenter, observer, stop)


@pytest.fixture(scope="module")
def pair() -> Iterator[Crew]:
    """Two devices, for runs that leave them as they were."""
    with crew(slowly, slowly) as hands:
        yield hands


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many(tmp_path_factory.mktemp("photos"), 60)


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("one")
    assert run(photos, out, save=("mask", "overlay")).done == 60
    return tree(out)


def test_two_processes_leave_what_one_leaves(
    photos: Path, expected: dict[str, bytes], pair: Crew, tmp_path: Path
) -> None:
    heard: list[str] = []
    report = run(photos, tmp_path / "out", pair, heard.append, save=("mask", "overlay"))
    assert (report.status, report.done, report.failed) == ("done", 60, 0)
    assert tree(tmp_path / "out") == expected
    assert sorted(heard) == sorted(set(heard))
    assert len(heard) == 60
    assert [device["name"] for device in report.devices] == ["fake 1", "fake 2"]
    assert sum(device["done"] for device in report.devices) == 60
    assert all(device["done"] for device in report.devices), "both had work"
    stages = {stage.name: stage for stage in report.stages}
    assert stages["decode"].items == stages["write"].items == 60
    assert stages["infer"].workers == 2

    again = run(photos, tmp_path / "out", pair, save=("mask", "overlay"))
    assert (again.status, again.done, again.skipped) == ("done", 0, 60)


@pytest.mark.timeout(400)
def test_processes_killed_at_twenty_moments_cost_no_item(
    photos: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    random.seed(7)
    with crew(slowly, slowly) as hands:
        for moment in sorted(random.sample(range(60), 20)):
            out, heard = tmp_path / str(moment), list[str]()

            def kill(key: str, moment: int = moment, heard: list[str] = heard) -> None:
                heard.append(key)
                if len(heard) == 1 + moment:
                    # Killed at the end of the run before, it may be starting still
                    until(lambda: is_running(pids(hands)[moment % 2]))
                    os.kill(pids(hands)[moment % 2], signal.SIGKILL)

            report = run(photos, out, hands, kill, save=("mask", "overlay"))
            assert (report.status, report.done, report.failed) == ("done", 60, 0)
            assert tree(out) == expected
            assert set(done_lines(out).values()) == {1}, "no item is done again once that is on record"
            assert not list(out.rglob(".*.tmp")), "what the killed one had begun is tidied up"
            shutil.rmtree(out)


def segment_in_two(source: str, out: str) -> None:
    with crew(slowly, slowly) as hands:
        Path(out).mkdir(exist_ok=True)
        Path(out, "pids").write_text(" ".join(map(str, pids(hands))))
        report = run(Path(source), Path(out), hands, save=("mask", "overlay"))
    raise SystemExit(report.exit_code)


@pytest.mark.timeout(400)
def test_a_run_killed_at_twenty_moments_goes_on(
    photos: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    random.seed(8)
    out, deaths = tmp_path / "out", 0
    manifest = out / "manifest.jsonl"

    def recorded() -> int:
        return manifest.read_bytes().count(b'"done"') if manifest.exists() else 0

    for moment in sorted(random.sample(range(1, 58), 20)):
        child = Forked(segment_in_two, str(photos), str(out))
        until(lambda moment=moment, child=child: recorded() >= moment or child.returncode is not None)
        child.kill()
        child.wait(PATIENCE)
        deaths += child.returncode == -signal.SIGKILL
        workers = [int(word) for word in (out / "pids").read_text().split()]
        until(lambda workers=workers: not any(is_running(pid) for pid in workers))  # they end with it
    assert deaths == 20
    (out / "pids").unlink()
    report = run(photos, out, save=("mask", "overlay"))
    assert report.status == "done"
    assert tree(out) == expected
    assert set(done_lines(out).values()) == {1}


def test_what_ends_two_processes_fails_and_is_named(tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 20)
    write(photos / "1" / "deadly.png", np.full((32, 48, 3), DEADLY, np.uint8))
    with crew(deadly, deadly) as hands:
        report = run(photos, tmp_path / "out", hands)
    assert (report.status, report.done, report.failed) == ("failures", 20, 1)
    [failure] = report.failures
    assert failure.path.endswith("deadly.png")
    assert "the process that segmented it crashed (SIGSEGV) twice" in failure.message
    assert sum(device["died"] for device in report.devices) == 2


def test_a_device_that_fails_again_and_again_is_left_out(tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 40)
    with crew(broken, slowly) as hands:
        report = run(photos, tmp_path / "out", hands)
    assert (report.status, report.done, report.failed) == ("done", 40, 0)
    first, second = report.devices
    assert first["left_out"] == "the device fell off the bus"
    assert (first["done"], second["done"]) == (0, 40)


class Broken:
    """A link to a device that fails for eight pictures, and then cannot read a ninth."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def start(self, open_segmenter: Callable[[], Segmenter]) -> None: ...

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None: ...

    def call(self, function: Callable[[Segmenter], Any]) -> Any:
        with open_fake() as segmenter:
            return function(segmenter)

    def exchange(self, order: Order) -> Told:
        self.items += order.items
        errors: list[UnetBatchError] = []
        if len(self.items) >= 9:
            errors = [BackendError("the device fell off the bus")] * 8 + [ImageError("damaged")]
        told = [
            Outcome(item, stage="infer", error=error) for item, error in zip(self.items, errors, strict=False)
        ]
        self.items = self.items[len(told) :]
        return Told(tuple(told), (), 12, order.finish, None, (), 0.0)

    def abort(self) -> None: ...

    def end(self) -> None: ...


def test_a_device_is_left_out_for_what_it_failed_at(photos: Path, tmp_path: Path) -> None:
    devices = [
        Device("fake 1", partial(open_fake, slowly), Broken()),
        Device("fake 2", partial(open_fake, slowly), PipeLink()),
    ]
    with Crew(devices) as hands:
        report = run(photos, tmp_path / "out", hands)
    assert (report.done, report.failed) == (59, 1)
    assert report.devices[0]["left_out"] == "the device fell off the bus"


def test_the_last_device_that_fails_ends_the_run(tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 40)
    with crew(broken, broken) as hands, pytest.raises(BackendError, match="fell off the bus"):
        run(photos, tmp_path / "out", hands)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "aborted"


def open_once(opened: Path) -> Segmenter:
    if opened.exists():
        raise RunError("it is gone")
    opened.touch()
    return open_fake()


def test_a_process_that_cannot_be_started_again_is_left_out(photos: Path, tmp_path: Path) -> None:
    links = PipeLink(), PipeLink()
    devices = [
        Device(f"fake {number}", partial(open_once, tmp_path / str(number)), link)
        for number, link in enumerate(links, 1)
    ]
    heard: list[str] = []

    def kill(key: str) -> None:
        heard.append(key)
        if len(heard) == 5:
            os.kill(links[0].pid, signal.SIGKILL)

    with Crew(devices) as hands:
        report = run(photos, tmp_path / "out", hands, kill)
    assert (report.status, report.done) == ("done", 60)
    assert report.devices[0]["left_out"] == "fake 1: it is gone"


def test_a_stop_finishes_what_has_begun(
    photos: Path, expected: dict[str, bytes], pair: Crew, tmp_path: Path
) -> None:
    stop, heard, out = Stop(), list[str](), tmp_path / "out"

    def halt(key: str) -> None:
        heard.append(key)
        if len(heard) == 10:
            stop("SIGTERM")

    report = run(photos, out, pair, halt, stop, save=("mask", "overlay"))
    assert (report.status, report.exit_code) == ("interrupted", 143)
    assert 10 <= report.done < 60
    assert report.left == 60 - report.done
    assert len(done_lines(out)) == report.done
    report = run(photos, out, pair, save=("mask", "overlay"))
    assert report.skipped + report.done == 60
    assert tree(out) == expected


def test_one_failure_too_many_stops_all(pair: Crew, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 60)
    (photos / "0" / "000.png").write_bytes(b"no picture")
    report = run(photos, tmp_path / "out", pair, fail_fast=True)
    assert report.status == "stopped"
    assert report.failed == 1
    assert report.left > 0


def test_a_folder_that_vanishes_ends_the_run(photos: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "out", list[str]()

    def remove(key: str) -> None:
        heard.append(key)
        if len(heard) == 5:
            out.rename(tmp_path / "elsewhere")

    with crew(slowly, slowly) as hands:
        with pytest.raises(OutputError, match="vanished while the run wrote to it"):
            run(photos, out, hands, remove)
        assert not out.exists()


def test_a_full_disk_ends_the_run(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "1").write_text("in the way")  # as good as a full disk: nothing can be written below
    with crew(slowly, slowly) as hands, pytest.raises(OutputError, match="masks"):
        run(photos, out, hands)


def test_pictures_by_themselves_are_shared_too(pair: Crew, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        pages = np.stack([half_bright(32, 48)] * (2 + number % 3))
        tifffile.imwrite(photos / f"{number}.tif", pages, photometric="rgb")
    one, two = tmp_path / "one", tmp_path / "two"
    options: dict[str, Any] = {"pages": PageRange()}
    assert run(photos, one, **options).done == 6
    report = run(photos, two, pair, **options)
    assert report.done == 6
    assert tree(one) == tree(two)
    assert all(device["done"] for device in report.devices)


def test_outputs_that_cannot_be_made_are_refused_before_anything_is_written(
    photos: Path, pair: Crew, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="missing"):
        run(photos, tmp_path / "out", pair, save=("background",), style=Style(background="missing.jpg"))
    assert not (tmp_path / "out").exists()


def test_a_device_that_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "7").touch()
    hands = Crew([Device("fake 7", partial(open_once, tmp_path / "7"), PipeLink())])
    with pytest.raises(RunError, match="fake 7: it is gone"), hands:
        pass


class Late(PipeLink):
    """A device that others use for so many looks."""

    def __init__(self, looks: float) -> None:
        super().__init__()
        self.looks, self.is_there = looks, threading.Event()

    def start(self, open_segmenter: Callable[..., Segmenter]) -> None:
        if self.looks:
            self.looks -= 1
            self.is_there.wait(0.01)
            raise Pending
        super().start(open_segmenter)
        self.is_there.set()


class Patient(PipeLink):
    """A device that does not work before another one is there."""

    def __init__(self, is_there: threading.Event) -> None:
        super().__init__()
        self.is_there = is_there

    def exchange(self, order: Order) -> Told:
        assert self.is_there.wait(PATIENCE)
        return super().exchange(order)


class Leaving(PipeLink):
    """A device that is gone after so many exchanges."""

    left = 6

    def exchange(self, order: Order) -> Told:
        self.left -= 1
        if not self.left:
            self.end()
            raise Lost("it went away")
        return super().exchange(order)


def device(name: str, link: PipeLink) -> Device:
    return Device(name, open_fake, link)


def nothing() -> list[Device]:
    return []


@pytest.mark.parametrize("looks", [3, math.inf])
def test_a_device_that_others_use_is_waited_for_while_the_rest_goes_on(
    looks: float, photos: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    late = Late(looks)
    here = Patient(late.is_there) if looks == 3 else PipeLink()
    with Crew([device("here", here), device("late", late)], nothing) as hands:
        report = run(photos, tmp_path / "out", hands, save=("mask", "overlay"))
    assert (report.status, report.done, report.failed) == ("done", 60, 0)
    assert tree(tmp_path / "out") == expected
    assert ["left_out" in each for each in report.devices] == [False, False]
    assert bool(report.devices[1]["done"]) == (looks == 3)


def test_devices_are_lost_and_others_come(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    later = [[], [device("second", PipeLink())]]
    with Crew([device("first", Leaving())], lambda: later.pop() if later else []) as hands:
        report = run(photos, tmp_path / "out", hands, save=("mask", "overlay"))
        assert (report.status, report.done, report.failed) == ("done", 60, 0)
        assert tree(tmp_path / "out") == expected
        first, second = report.devices
        assert (first["left_out"], first["done"] + second["done"]) == ("it went away", 60)
        assert second["done"]
        again = run(photos, tmp_path / "out", hands, save=("mask", "overlay"))
        assert (again.done, again.skipped) == (0, 60)


def test_without_any_device_a_run_ends(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_batch.run.crew.PATIENCE", 0.0)
    with Crew([device("first", Leaving())], nothing) as hands, pytest.raises(RunError, match="all are gone"):
        run(photos, tmp_path / "out", hands)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "aborted"


class TestSharedQueue:
    """Whoever takes items, loses them or refuses them: each ends once."""

    @given(st.data())
    @settings(deadline=None, max_examples=200)
    def test_every_item_ends_once(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, 30))
        items = [Item(f"{n}.png", str(n)) for n in range(count)]
        one_by_one = data.draw(st.booleans())
        queue = SharedQueue(items, one_by_one=one_by_one)
        seats = [Seat(str(n)) for n in range(data.draw(st.integers(1, 3)))]
        ended: list[str] = []
        for seat in seats:
            seat.wanted = 4
        while len(ended) < count:
            seat = data.draw(st.sampled_from(seats))
            if not seat.out and not queue.left:
                continue
            taken = queue.take(seat, len(seats)) or ()
            assert not one_by_one or len(seat.out) <= 1
            assert len(taken) <= 4
            for key in list(seat.out):
                what = data.draw(st.sampled_from(["settle", "wait", "refuse", "die"]))
                if what == "settle":
                    queue.settle(seat, key)
                    ended.append(key)
                elif what == "refuse":
                    queue.refuse(seat, key)
                    queue.forgive()
                elif what == "die":
                    ended += [item.key for item in queue.take_back(seat, suspect=True)]
                    break
        assert sorted(ended) == sorted(item.key for item in items)
        assert all(queue.take(seat, len(seats)) is None for seat in seats)
