"""Backends side by side: who is opened, in whose turn, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.bench import Clock, FakeChild, clock, entry, one_round, sleeping, write_photos
from unet_batch.bench import report
from unet_batch.bench.compare import Comparison, Wanted, alternate, flops_of, opened
from unet_batch.bench.measure import LEVELS, Round, Subject
from unet_batch.errors import BackendError, BackendUnavailable
from unet_batch.inference.segmenter import Segmenter
from unet_batch.model import checkpoint, zoo

__all__ = ["clock"]


class Scripted:
    """Answers with rounds of its own, and writes down when it was asked."""

    def __init__(self, name: str, log: list[str], fail_at: int = 10**9) -> None:
        self.name, self.log, self.left = name, log, fail_at

    def measure(self, level: str, seconds: float) -> Round:
        self.log.append(f"{self.name} {level}")
        self.left -= 1
        if self.left < 0:
            raise BackendError("it burned down")
        return one_round(10, 1.0)


def test_all_take_turns_at_every_level_in_every_round() -> None:
    log: list[str] = []
    alternate([(entry(), Scripted("a", log)), (entry(), Scripted("b", log))], 2, 1.0)
    assert log == [f"{name} {level}" for _ in range(2) for level in LEVELS for name in "ab"]


def test_one_that_fails_is_left_alone_and_the_others_go_on() -> None:
    log: list[str] = []
    bad, good = entry(), entry()
    alternate([(bad, Scripted("bad", log, fail_at=1)), (good, Scripted("good", log))], 2, 1.0)
    assert log.count("bad pipeline") == 1
    assert "bad files" not in log
    assert (bad.error, len(bad.rounds["engine"]), len(good.rounds["files"])) == ("it burned down", 1, 2)


def test_one_that_takes_twice_as_long_has_half_the_speed(clock: Clock, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    with (
        Segmenter(sleeping(clock.sleep, [0.010])) as one,
        Segmenter(sleeping(clock.sleep, [0.020])) as other,
    ):
        entries = entry(), entry()
        subjects = [Subject(each, photos, str(tmp_path)) for each in (one, other)]
        for subject in subjects:
            subject._run("engine", 0)
        for level in LEVELS[1:]:  # which have clocks of their own
            for each in entries:
                each.rounds[level] = [one_round(1, 1.0)] * 3
        for _ in range(3):
            for each, subject in zip(entries, subjects, strict=True):
                each.rounds["engine"].append(subject.measure("engine", 0.5))
    found = report.figures(entries[1], "engine", entries[0])
    assert found is not None
    assert found.ratio is not None
    assert found.ratio.low <= 0.5 + 1e-9
    assert found.ratio.high >= 0.5 - 1e-9
    assert found.ratio.median == pytest.approx(0.5)


@pytest.fixture
def wanted(tmp_path: Path) -> Iterator[Wanted]:
    FakeChild.reset()
    file = checkpoint.identify(zoo.resolve("fast"))
    photos = write_photos(tmp_path / "photos")
    yield Wanted([("fast", file)], (), {"engines_dir": str(tmp_path)}, photos, str(tmp_path))
    assert len(FakeChild.closed) >= len([each for each in FakeChild.opened if each in FakeChild.names])


def test_all_that_can_run_are_opened_and_the_others_told_with_their_reasons(wanted: Wanted) -> None:
    comparison = Comparison(1.0, "photos", peak=1e9)
    with opened(wanted, comparison, open_child=FakeChild) as found:  # type: ignore[arg-type]
        assert [each.backend for each, _ in found] == ["torch-cpu fp32", "openvino fp32"]
    assert [(each.backend, each.reason, each.fix) for each in comparison.skipped] == [
        (name, f"{name} is missing in a test", f"install {name}")
        for name in ("tensorrt", "tensorrt-rtx", "onnxruntime")
    ]


def test_the_process_that_auto_has_opened_is_the_one_that_is_measured(wanted: Wanted) -> None:
    comparison = Comparison(1.0, "photos")
    with opened(wanted, comparison, open_child=FakeChild) as found:  # type: ignore[arg-type]
        assert [each.is_auto for each, _ in found] == [True, False]
    assert "torch" not in FakeChild.opened
    assert comparison.auto == {"fast": "torch-cpu fp32"}


def test_what_auto_takes_is_told_where_it_is_not_measured(wanted: Wanted) -> None:
    comparison = Comparison(1.0, "photos")
    asked = Wanted(wanted.models, ("openvino",), wanted.settings, wanted.photos, wanted.folder)
    with opened(asked, comparison, open_child=FakeChild) as found:  # type: ignore[arg-type]
        assert FakeChild.closed == ["auto"], "it holds memory that nobody needs"
        assert [each.backend for each, _ in found] == ["openvino fp32"]
    assert report.judge_auto(comparison) == ["auto takes torch-cpu fp32, which was not measured"]


def test_a_backend_asked_for_by_name_that_cannot_run_is_an_error(wanted: Wanted) -> None:
    asked = Wanted(wanted.models, ("torch", "tensorrt"), wanted.settings, wanted.photos, wanted.folder)
    with pytest.raises(BackendUnavailable, match="tensorrt is missing"):  # noqa: SIM117
        with opened(asked, Comparison(1.0, "photos"), open_child=FakeChild):  # type: ignore[arg-type]
            pass


def test_several_processes_are_measured_as_a_whole_beside_one(wanted: Wanted) -> None:
    log: list[str] = []
    alone, shared = entry(), entry(devices="cpu:2")
    alternate([(alone, Scripted("one", log)), (shared, Scripted("two", log))], 1, 1.0)
    assert log == ["one engine", "one pipeline", "one files", "two files"]

    devices = {"cpu:2": ("cpu", "cpu"), "cpu:3": ("cpu",) * 3}
    asked = Wanted(wanted.models, ("openvino",), wanted.settings, wanted.photos, wanted.folder, devices)
    with opened(asked, Comparison(1.0, "photos"), open_child=FakeChild) as found:  # type: ignore[arg-type]
        assert [each.backend for each, _ in found] == [
            "openvino fp32",
            "openvino fp32, cpu:2",
            "openvino fp32, cpu:3",
        ]
    assert FakeChild.opened == ["auto", "openvino", "openvino, cpu, cpu", "openvino, cpu, cpu, cpu"]


def test_a_simulated_device_takes_the_place_of_all_backends(wanted: Wanted) -> None:
    devices = {"cpu:2": ("cpu", "cpu"), "0,1": ("cuda:0", "cuda:1")}
    asked = replace(wanted, simulate=(5000.0, 0.5), devices=devices)
    comparison = Comparison(1.0, "photos", peak=1e9)
    with opened(asked, comparison, open_child=FakeChild) as found:  # type: ignore[arg-type]
        names = [each.backend for each, _ in found]
    assert names == [
        *("simulated 5000/s", "simulated 0.5/s"),
        *("simulated 5000/s, cpu:2", "simulated 0.5/s, cpu:2"),
        *("simulated 5000/s, 0,1", "simulated 0.5/s, 0,1"),
    ]
    assert FakeChild.opened[:4] == ["5000/s", "0.5/s", "5000/s, cpu, cpu", "0.5/s, cpu, cpu"]
    assert (comparison.skipped, comparison.auto) == ([], {})
    assert [(each.peak, each.on_cpu) for each in comparison.entries] == [(None, False)] * 6


def test_devices_that_no_backend_runs_on_are_an_error(wanted: Wanted) -> None:
    devices = {"0,1": ("cuda:0", "cuda:1")}
    asked = Wanted(wanted.models, ("openvino",), wanted.settings, wanted.photos, wanted.folder, devices)
    with pytest.raises(BackendUnavailable, match="--devices 0,1: none of the backends"):  # noqa: SIM117
        with opened(asked, Comparison(1.0, "photos"), open_child=FakeChild):  # type: ignore[arg-type]
            pass


def test_what_one_process_has_counted_holds_for_all(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(asked: dict[str, Any]) -> FakeChild:
        made = FakeChild(asked)
        if asked["backend"] == "openvino":
            made.facts["flops"] = None
        return made

    comparison = Comparison(1.0, "photos", peak=1e9)
    with opened(wanted, comparison, open_child=child) as found:  # type: ignore[arg-type]
        assert [(each.flops, each.peak) for each, _ in found] == [(2_000_000_000, 1e9)] * 2


def test_nothing_is_counted_where_no_graph_lies(wanted: Wanted, tmp_path: Path) -> None:
    [(_, file)] = wanted.models
    assert flops_of(file, (256, 352), str(tmp_path)) is None
    (tmp_path / f"fast-256x352-fp32-{file.sha256[:8]}.onnx").write_bytes(b"damaged")
    assert flops_of(file, (256, 352), str(tmp_path)) is None
