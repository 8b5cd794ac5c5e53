"""Figures, sentences and files of a comparison, from rounds that are known."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.bench import entry, filled, one_round, staged
from unet_batch.bench import report
from unet_batch.bench.compare import Comparison, Entry, Skipped
from unet_batch.bench.measure import LEVELS
from unet_batch.pipeline import cpu_count


def test_percentiles_are_of_all_rounds() -> None:
    one = entry()
    one.rounds["engine"] = [
        one_round(50, 1.0, latencies=[0.010] * 50),
        one_round(50, 2.0, latencies=[0.010] * 40 + [0.5] * 10),
    ]
    found = report.figures(one, "engine", one)
    assert found is not None
    assert found.percentiles == pytest.approx([10, 500, 500])
    assert found.rate == pytest.approx(37.5), "the median of 50 and 25"
    assert found.cpu_ms == pytest.approx(30)


def test_busy_is_the_share_of_the_threads_time() -> None:
    one = filled("openvino", 2.0, 4.0)
    found = report.figures(one, "files", one)
    assert found is not None
    stages = {stage.name: stage for stage in found.stages}
    assert stages["infer"].busy == pytest.approx(0.8)
    assert stages["infer"].ms == pytest.approx(1000 * 1.6 * 6 / 20)
    assert (found.bottleneck, report.figures(one, "engine", one).bottleneck) == ("infer", "")  # type: ignore[union-attr]


def test_the_floor_of_a_cpu_is_its_processor_time_over_the_cores() -> None:
    one = entry("openvino")
    one.rounds["files"] = [staged(2.0, {"infer": 3.9}, cpu=1.5 * cpu_count())]
    assert report.figures(one, "files", one).floor == pytest.approx(0.75)  # type: ignore[union-attr]
    gpu = entry("torch-cuda")
    gpu.rounds["files"] = [staged(2.0, {"infer": 3.8}, cpu=0.1)]
    assert report.figures(gpu, "files", gpu).floor == pytest.approx(0.95)  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=6))
def test_the_median_of_the_ratios_lies_within_their_spread(pairs: list[tuple[float, float]]) -> None:
    found = report.ratio([one_round(10, a) for a, _ in pairs], [one_round(10, b) for _, b in pairs])
    assert found is not None
    assert found.low <= found.median <= found.high
    assert found.low == pytest.approx(min(b / a for a, b in pairs))


def test_a_round_that_has_no_partner_yet_does_not_count() -> None:
    found = report.ratio([one_round(10, 1.0)], [one_round(10, 2.0), one_round(10, 100.0)])
    assert found == report.Ratio(2.0, 2.0, 2.0)
    assert report.ratio([], [one_round(10, 2.0)]) is None


def test_the_share_of_the_peak_is_of_processor_time_on_a_cpu() -> None:
    one = entry("openvino", flops=2_000_000_000, peak=1e9 * 10 * cpu_count())
    one.rounds["engine"] = [one_round(10, 99.0, cpu=4.0)]
    assert report.peak_share(one) == pytest.approx(0.5)
    gpu = entry("torch-cuda", flops=2_000_000_000, peak=100e9)
    gpu.rounds["engine"] = [one_round(10, 1.0, cpu=99.0)]
    assert report.peak_share(gpu) == pytest.approx(0.2)
    assert report.peak_share(entry("openvino", peak=1e9)) is None


class TestAuto:
    def judged(self, *entries: Entry) -> list[str]:
        return report.judge_auto(Comparison(1.0, "photos", list(entries)))

    def test_that_takes_the_fastest(self) -> None:
        said = self.judged(filled("openvino", 1.0, 1.1, is_auto=True), filled("torch-cpu", 2.0, 2.0))
        assert said == ["auto takes openvino fp32, and none was faster in every round"]

    def test_that_takes_a_slower_one_is_told_with_the_ratio(self) -> None:
        [said] = self.judged(filled("openvino", 2.0, 3.0, is_auto=True), filled("torch-cpu", 1.0, 1.0))
        assert said == (
            "auto takes openvino fp32; torch-cpu fp32 was faster in every round, 2.50 (2.00 to 3.00) times "
            "end to end"
        )

    def test_one_that_was_faster_in_some_rounds_only_is_within_the_spread(self) -> None:
        [said] = self.judged(filled("openvino", 2.0, 1.0, is_auto=True), filled("torch-cpu", 1.0, 1.1))
        assert "none was faster" in said

    def test_models_are_judged_apart(self) -> None:
        said = self.judged(
            filled("openvino", 2.0, model="a", is_auto=True),
            filled("torch-cpu", 1.0, model="b", is_auto=True),
        )
        assert said == [
            "auto takes openvino fp32 for a, the only one that can run",
            "auto takes torch-cpu fp32 for b, the only one that can run",
        ]


def test_the_limit_names_the_slowest_stage_and_what_helps() -> None:
    slow, quick = filled("torch-cpu", 2.0), filled("openvino", 1.0)
    said = report.limits(Comparison(1.0, "photos", [slow, quick]))
    assert said[0].startswith("torch-cpu fp32: infer is the bottleneck, busy 80% of the time; quicker with ")
    assert "openvino fp32" in said[0]
    assert said[1].endswith("a smaller network (-m fast) or --size, or a GPU")
    slow.rounds["files"] = [staged(2.0, {"decode": 3.9})]
    assert "decode is the bottleneck, busy 98%" in report.limits(Comparison(1.0, "photos", [slow]))[0]


class TestSimulated:
    """That what is only simulated is said wherever something stands of it."""

    def compared(self) -> Comparison:
        alone = filled("", 1.0, 1.0, rate=100)
        shared = filled("", 0.5, 0.4, rate=100, devices="cpu:2")
        shared.facts["devices"] = 2
        return Comparison(1.0, "photos", [alone, shared])

    def test_how_much_of_the_device_is_used_and_that_several_processes_were_quicker(self) -> None:
        comparison = self.compared()
        comparison.entries[0].rounds["files"] = [staged(1.0, {"decode": 1.8})] * 2
        comparison.entries[1].rounds["files"] = [staged(0.5, {"write": 0.8})] * 2
        one, two = report.limits(comparison)
        assert one == (
            "simulated 100/s: decode is the bottleneck, busy 90% of the time, and the device does 10% of "
            "what it could; quicker with several processes (--devices cpu:2), or more cores, or smaller "
            "photos"
        )
        assert (
            "busy 80% of the time, and the device does 10% of what it could; quicker with a faster disk"
            in two
        )

    def test_a_device_that_is_used_up_is_the_limit(self) -> None:
        comparison = self.compared()
        comparison.entries[0].rounds["files"] = [staged(1.0, {"infer": 1.9}, pictures=99)]
        assert report.limits(comparison)[0].endswith("a faster device: all else keeps up with this one")

    def test_every_row_says_it(self) -> None:
        comparison = self.compared()
        assert report.notes(comparison)[0].startswith("simulated: a device that only sleeps")
        assert report.judge_auto(comparison) == []
        assert report.verdict(comparison).startswith("fastest: simulated 100/s, cpu:2, ")
        rows = [line for line in report.markdown(comparison).splitlines() if "tiny" in line]
        assert len(rows) == 8
        assert all(row.split("|")[2].strip().startswith("tiny, simulated") for row in rows[:6])
        assert all(row.startswith("| tiny, simulated") for row in rows[6:])
        entries = report.as_dict(comparison)["entries"]
        assert [(each["backend"]["name"], each["simulated"]) for each in entries] == [("simulated", 100)] * 2

    def test_backends_are_not(self) -> None:
        comparison = Comparison(1.0, "photos", [filled("openvino", 1.0)])
        assert report.as_dict(comparison)["entries"][0]["simulated"] is None
        assert "simulated" not in report.markdown(comparison)


def test_the_verdict_says_whether_it_holds_in_every_round() -> None:
    comparison = Comparison(1.0, "photos", [filled("openvino", 1.0, 1.0), filled("torch-cpu", 2.0, 2.0)])
    assert report.verdict(comparison) == (
        "fastest: openvino fp32, 10 pictures/s end to end, 2.00 (2.00 to 2.00) times torch-cpu fp32"
    )
    comparison.entries[1] = filled("torch-cpu", 0.9, 2.0)
    assert report.verdict(comparison).startswith("fastest, but not in every round: ")
    assert report.verdict(Comparison(1.0, "photos", [entry()])) == ""


def test_other_programs_are_told_of() -> None:
    busy = Comparison(1.0, "photos", [entry()], load=2.0 * cpu_count())
    assert "other programs" in report.notes(busy)[0]
    assert report.notes(Comparison(1.0, "photos", [entry()], load=0.0)) == []


ENTRY = {
    *(
        "model",
        "backend",
        "simulated",
        "auto",
        "devices",
        "gflop",
        "peak_share",
        "memory_bytes",
        "gpu_memory_bytes",
        "error",
    ),
    "levels",
}
LEVEL = {
    *("pictures_per_second", "rounds", "ms", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "failed", "ratio"),
    *("stages", "bottleneck", "floor_share"),
}


def test_json_has_the_same_keys_from_release_to_release() -> None:
    part = entry("torch-cuda")
    part.rounds["engine"].append(one_round(10, 1.0))
    comparison = Comparison(
        1.0,
        "4 photos",
        [filled("openvino", 1.0), part],
        [Skipped("tiny", "tensorrt", "no driver", "install it")],
    )
    document = json.loads(json.dumps(report.as_dict(comparison)))
    assert set(document) == {
        *("unet_batch", "machine", "photos", "seconds", "interrupted", "entries", "skipped", "verdict"),
        *("bottlenecks", "auto", "notes"),
    }
    assert [set(each) for each in document["entries"]] == [ENTRY, ENTRY]
    full, begun = document["entries"]
    assert [set(full["levels"][level]) for level in LEVELS] == [LEVEL] * 3
    assert (begun["levels"]["files"], begun["levels"]["engine"]["ratio"]["median"]) == (None, 1.0)
    assert set(full["levels"]["files"]["stages"][0]) == {"name", "workers", "busy", "ms", "cpu_ms"}
    assert document["skipped"] == [
        {"model": "tiny", "backend": "tensorrt", "reason": "no driver", "fix": "install it"}
    ]


def test_markdown_has_a_row_for_each_level_and_backend() -> None:
    comparison = Comparison(1.0, "4 photos", [filled("openvino", 1.0), filled("torch-cpu", 2.0)])
    lines = report.markdown(comparison).splitlines()
    rows = [line for line in lines if line.startswith(("| engine", "| pipeline", "| end"))]
    assert len(rows) == 6
    assert {line.count("|") for line in rows} == {10}
    assert "| 0.50 (0.50 to 0.50) |" in rows[1]
    assert any(line.startswith("* fastest: openvino") for line in lines)


def test_a_comparison_without_anything_measured_is_still_a_document() -> None:
    empty = Comparison(1.0, "4 photos", interrupted=True)
    assert report.as_dict(empty)["entries"] == []
    assert "4 photos" in report.markdown(empty)
