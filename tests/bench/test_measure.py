"""One model on one backend at three levels, against backends whose speed is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.bench import Clock, clock, sleeping, write_photos
from tests.helpers.crews import crew, slowly
from unet_batch.bench import measure
from unet_batch.bench.measure import LEVELS, Round, SharedSubject, Subject
from unet_batch.errors import BackendError, SourceError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.pipeline import bottleneck
from unet_batch.testing import FakeBackend

__all__ = ["clock"]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "work").mkdir()
    yield str(tmp_path / "work")
    assert not list((tmp_path / "work").iterdir()), "masks are left behind"


def test_the_engine_takes_what_its_calls_take(clock: Clock, photos: list[str], folder: str) -> None:
    with Segmenter(sleeping(clock.sleep, [0.010, 0.010, 0.010, 0.050])) as segmenter:
        subject = Subject(segmenter, photos, folder)
        subject._rates["engine"] = 50.0
        found = subject.measure("engine", 0.8)
    assert found.pictures == 40
    assert found.seconds == pytest.approx(0.8)
    assert np.percentile(found.latencies, 50) == pytest.approx(0.010)
    assert np.percentile(found.latencies, 95) == pytest.approx(0.050)


def test_as_many_pictures_as_fit_the_seconds(clock: Clock, photos: list[str], folder: str) -> None:
    with Segmenter(sleeping(clock.sleep, [0.010])) as segmenter:
        subject = Subject(segmenter, photos, folder)
        subject._run("engine", 0)
        assert subject.measure("engine", 1.0).pictures == 100
        assert subject.measure("engine", 1e-6).pictures == 2, "never none"


def test_a_call_of_the_engine_is_a_whole_batch(clock: Clock, photos: list[str], folder: str) -> None:
    backend = sleeping(clock.sleep, [0.1], batch_size=8)
    with Segmenter(backend) as segmenter:
        found = Subject(segmenter, photos, folder)._run("engine", 20)
    assert (found.pictures, len(found.latencies), set(backend.batches)) == (24, 3, {8})


def test_the_engine_alone_copies_and_decodes_nothing(photos: list[str], folder: str) -> None:
    seen = set()

    def answer(pictures: np.ndarray) -> np.ndarray:
        seen.add(pictures.shape[1:])
        return np.zeros(pictures.shape[:3], np.uint8)

    with Segmenter(FakeBackend(answer=answer, streams=2)) as segmenter:
        Subject(segmenter, photos, folder)._run("engine", 0)
    assert seen == {(32, 48, 3)}


@pytest.mark.parametrize("level", ["pipeline", "files"])
def test_the_bottleneck_is_the_stage_that_sleeps(
    level: str, photos: list[str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Segmenter(sleeping(time.sleep, [0.03]), workers=1) as segmenter:
        found = Subject(segmenter, photos, folder)._run(level, 8)
        assert bottleneck(found.stages).name == "infer"
        assert min(found.latencies) >= 0.03
        assert found.seconds >= 8 * 0.03
        decode = segmenter.decode

        def slow(*arguments: object, **settings: object) -> object:
            time.sleep(0.1)
            return decode(*arguments, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(segmenter, "decode", slow)
        assert bottleneck(Subject(segmenter, photos, folder)._run(level, 4).stages).name == "decode"


def test_files_are_decoded_and_masks_written(photos: list[str], folder: str) -> None:
    with Segmenter(FakeBackend()) as segmenter:
        found = Subject(segmenter, photos, folder)._run("files", 20)
    assert (found.pictures, found.failed, len(found.latencies)) == (20, 0, 20)
    assert [stage.name for stage in found.stages] == ["source", "decode", "infer", "render", "write"]


def test_a_damaged_photo_is_left_out_with_a_note(photos: list[str], folder: str) -> None:
    Path(photos[1]).write_bytes(b"no picture")
    with Segmenter(FakeBackend()) as segmenter:
        subject = Subject(segmenter, photos, folder)
        assert [level for level in LEVELS if subject._run(level, 4).failed] == []
    assert len(subject.notes) == 1
    assert photos[1] in subject.notes[0]


def test_photos_that_are_all_damaged_are_an_error(photos: list[str], folder: str) -> None:
    for photo in photos:
        Path(photo).write_bytes(b"no picture")
    with Segmenter(FakeBackend()) as segmenter, pytest.raises(SourceError, match="none of 3 pictures"):
        Subject(segmenter, photos, folder)


def test_pictures_that_fail_are_counted_and_what_they_said_is_kept(photos: list[str], folder: str) -> None:
    calls = iter(range(1000))

    def answer(pictures: np.ndarray) -> np.ndarray:
        if next(calls) % 2:
            raise BackendError("every other one")
        return np.zeros(pictures.shape[:3], np.uint8)

    with Segmenter(FakeBackend(answer=answer, batch_size=1), workers=1) as segmenter:
        found = Subject(segmenter, photos, folder)._run("pipeline", 10)
    assert (found.pictures, found.failed) == (5, 5)
    assert "every other one" in found.failures[0]


def test_masks_are_removed_where_a_run_ends_in_an_error(photos: list[str], folder: str) -> None:
    def answer(pictures: np.ndarray) -> np.ndarray:
        raise BackendError("the device is gone")

    with Segmenter(FakeBackend(answer=answer, batch_size=1)) as segmenter:
        subject = Subject(segmenter, photos, folder)
        with pytest.raises(BackendError, match="the device is gone"):
            subject._run("files", 40)


def test_a_round_comes_whole_through_json(photos: list[str], folder: str) -> None:
    import json
    from dataclasses import asdict

    with Segmenter(FakeBackend()) as segmenter:
        found = Subject(segmenter, photos, folder)._run("pipeline", 4)
    assert Round.from_dict(json.loads(json.dumps(asdict(found)))) == found


def test_memory_on_gpus_is_what_nvidia_smi_says_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '7, 100'\necho '42, 300'\necho '42, 200'\necho '9, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(measure.gpu, "missing", lambda: "")
    assert [measure.gpu_memory(each) for each in (42, 9, 8)] == [500 * 2**20, None, None]
    monkeypatch.setattr(measure.gpu, "missing", lambda: "no NVIDIA driver")
    assert measure.gpu_memory(42) is None


def test_the_peak_is_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "cpu_count", lambda: 1)
    one = measure.matrix_peak(64, 0.05)
    monkeypatch.setattr(measure, "cpu_count", lambda: 1000)
    assert measure.matrix_peak(64, 0.05) > 20 * one > 0


def test_several_processes_are_measured_together(photos: list[str], folder: str) -> None:
    with crew(slowly, slowly) as hands:
        subject = SharedSubject(hands, photos, folder)
        assert subject.measure("files", 0).pictures == 16, "two batches of four for each of two"
        subject._rate = 30.0
        found = subject.measure("files", 1.0)
    assert (found.pictures, found.failed) == (30, 0)
    assert {stage.name: stage.items for stage in found.stages}["infer"] == 30
    assert found.cpu > 0
    assert found.memory is None or found.memory > 3 * 30e6, "of three processes"
