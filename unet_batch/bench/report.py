"""What a comparison says: figures, sentences, JSON and Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unet_batch import gpu
from unet_batch.bench.compare import Comparison, Entry
from unet_batch.bench.measure import LEVELS, Round
from unet_batch.pipeline import StageStats, bottleneck, cpu_count
from unet_batch.version import __version__

TITLES = {"engine": "engine alone", "pipeline": "pipeline", "files": "end to end"}
PERCENTILES = (50, 95, 99)
_USED = 0.95
"""Share of a simulated device's rate from which that is the limit."""
# What to do about the stage that the others wait for.
_ADVICE = {
    "source": "list fewer files at once, or from a faster disk",
    "decode": "more cores, or smaller photos",
    "render": "more cores",
    "write": "a faster disk for the masks",
}


@dataclass(frozen=True)
class Ratio:
    """Speed over another's, round by round: the median, and from which to which it goes."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class StageFigures:
    """A stage: its threads, the share of the time that they were busy, milliseconds a picture, of work and of
    processor time of its own threads."""

    name: str
    workers: int
    busy: float
    ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Figures:
    """A level of an entry.

    Attributes:
        rate: pictures a second, the median of the rounds; `rates` has them all.
        percentiles: milliseconds that a picture takes, of `PERCENTILES`.
        cpu_ms: of the processor, for each picture.
        failed: pictures.
        ratio: of the speed to that of the first entry; None of the first itself.
        stages: in their order; none of the engine alone.
        bottleneck: name of the stage that was busiest.
        floor: of the time, what it would have taken had nothing waited; None of the engine alone.
    """

    rate: float
    rates: Sequence[float]
    percentiles: Sequence[float]
    cpu_ms: float
    failed: int
    ratio: Ratio | None
    stages: Sequence[StageFigures]
    bottleneck: str
    floor: float | None


def rate(found: Round) -> float:
    """Pictures a second."""
    return found.pictures / max(1e-9, found.seconds)


def ratio(ours: Sequence[Round], first: Sequence[Round]) -> Ratio | None:
    """Speed over the first one's in the same rounds; None before there is a round of both."""
    each = [rate(a) / max(1e-9, rate(b)) for a, b in zip(ours, first, strict=False)]
    return Ratio(statistics.median(each), min(each), max(each)) if each else None


def figures(entry: Entry, level: str, first: Entry) -> Figures | None:
    """What the rounds of a level come to; None before the first one."""
    rounds = entry.rounds[level]
    if not rounds:
        return None
    pictures, seconds = sum(each.pictures for each in rounds), sum(each.seconds for each in rounds)
    latencies = [1000 * value for each in rounds for value in each.latencies] or [0.0]
    stages, rates = _add_up(rounds), [rate(each) for each in rounds]
    cpu = sum(each.cpu for each in rounds)
    return Figures(
        statistics.median(rates),
        rates,
        [float(value) for value in np.percentile(latencies, PERCENTILES)],
        1000 * cpu / max(1, pictures),
        sum(each.failed for each in rounds),
        None if entry is first else ratio(rounds, first.rounds[level]),
        [
            StageFigures(
                stage.name,
                stage.workers,
                stage.busy / stage.workers / seconds,
                1000 * stage.busy / max(1, pictures),
                1000 * stage.cpu / max(1, pictures),
            )
            for stage in stages
        ],
        bottleneck(stages).name if stages else "",
        _floor(entry, stages, cpu) / seconds if stages else None,
    )


def _add_up(rounds: Sequence[Round]) -> list[StageStats]:
    """The stages of all rounds together."""
    total: dict[str, StageStats] = {}
    for stage in (stage for each in rounds for stage in each.stages):
        sums = total.setdefault(stage.name, StageStats(stage.name, stage.workers))
        for name in ("items", "batches", "busy", "cpu", "waiting"):
            setattr(sums, name, getattr(sums, name) + getattr(stage, name))
    return list(total.values())


def _floor(entry: Entry, stages: Sequence[StageStats], cpu: float) -> float:
    """Seconds if nothing ever waited: the GPU's, or the processor's over the cores, whichever is more."""
    infer = next(stage for stage in stages if stage.name == "infer")
    alone = 0.0 if entry.on_cpu else infer.busy / infer.workers
    return max(alone, cpu / cpu_count())


def gflop(entry: Entry) -> float | None:
    """Of one picture."""
    return None if entry.flops is None else entry.flops / 1e9


def peak_share(entry: Entry) -> float | None:
    """The engine's FLOPs a second over those of the fastest matrix product; None where either is unknown.

    Of a CPU both are for each second of processor time, or other programs would decide.
    """
    rounds = entry.rounds["engine"]
    if entry.flops is None or not entry.peak or not rounds:
        return None
    if entry.on_cpu:
        return (
            statistics.median(each.pictures / max(1e-9, each.cpu) for each in rounds)
            * entry.flops
            / (entry.peak / cpu_count())
        )
    return statistics.median(map(rate, rounds)) * entry.flops / entry.peak


def memory(entry: Entry) -> tuple[int | None, int | None]:
    """Bytes at the most: of the process, and on GPUs."""
    every = [each for rounds in entry.rounds.values() for each in rounds]
    host = [each.memory for each in every if each.memory is not None]
    on_gpu = [each.gpu_memory for each in every if each.gpu_memory is not None]
    return max(host, default=None), max(on_gpu, default=None)


def label(comparison: Comparison, entry: Entry) -> str:
    """`openvino fp32`, with the model where there are several."""
    several = len({each.model for each in comparison.entries}) > 1
    return f"{entry.model}, {entry.backend}" if several else entry.backend


# Sentences --------------------------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """Which is the fastest, at the highest level that was measured; "" before anything was."""
    level = next(
        (level for level in reversed(LEVELS) if any(each.rounds[level] for each in comparison.entries)), None
    )
    if level is None:
        return ""
    entries = [entry for entry in comparison.entries if entry.rounds[level]]
    speeds = {id(entry): statistics.median(map(rate, entry.rounds[level])) for entry in entries}
    best, *others = sorted(entries, key=lambda entry: -speeds[id(entry)])
    said = f"{label(comparison, best)}, {speeds[id(best)]:,.3g} pictures/s {TITLES[level]}"
    if not others:
        return said
    against = ratio(best.rounds[level], others[0].rounds[level])
    clear = against is not None and against.low > 1
    what = "fastest" if clear else "fastest, but not in every round"
    return f"{what}: {said}, {against} times {label(comparison, others[0])}"


def limits(comparison: Comparison) -> list[str]:
    """A sentence for each entry: what it waits for, and what to do about that."""
    said = []
    for entry in comparison.entries:
        found = figures(entry, "files", entry)
        if found is None:
            continue
        slowest = next(stage for stage in found.stages if stage.name == found.bottleneck)
        use = device_use(entry)
        share = "less than 1%" if use is not None and use < 0.01 else f"{use or 0:.0%}"
        device = "" if use is None else f", and the device does {share} of what it could"
        said.append(
            f"{label(comparison, entry)}: {slowest.name} is the bottleneck, busy {slowest.busy:.0%} of the "
            f"time{device}; quicker with {_advice(comparison, entry, slowest.name)}"
        )
    return said


def device_use(entry: Entry) -> float | None:
    """What simulated devices did, end to end, of what they can do, 0..1; None of a backend."""
    rounds = entry.rounds["files"]
    if entry.simulated is None or not rounds:
        return None
    can: float = entry.simulated * entry.facts.get("devices", 1)
    return statistics.median(map(rate, rounds)) / can


def _advice(comparison: Comparison, entry: Entry, stage: str) -> str:
    """What would make the slowest stage quicker."""
    if entry.simulated is not None and (device_use(entry) or 0) > _USED:
        return "a faster device: all else keeps up with this one"
    faster = _faster(comparison, entry)
    if stage != "infer" or entry.simulated is not None:
        more = _ADVICE.get(stage, "more cores")
        processes = next((each.devices for each in faster if each.devices), "")
        return f"several processes (--devices {processes}), or {more}" if processes else more
    network = "a smaller network (-m fast) or --size"
    if not entry.on_cpu:
        return f"{network}, a larger --batch-size, or an engine (build-engine)"
    if faster:
        return f"{faster[0].backend}, or {network}"
    if entry.facts["name"] == "openvino":
        return f"{network}, or a GPU"
    return f"an engine for CPUs (build-engine --builder openvino), {network}, or a GPU"


def _faster(comparison: Comparison, entry: Entry) -> list[Entry]:
    """Those of the same model, and the same simulated device, that were faster in every round; best first."""
    same = [
        each for each in comparison.entries if (each.model, each.simulated) == (entry.model, entry.simulated)
    ]
    found = [each for each in same if (r := ratio(each.rounds["files"], entry.rounds["files"])) and r.low > 1]
    return sorted(found, key=lambda each: -statistics.median(map(rate, each.rounds["files"])))


def judge_auto(comparison: Comparison) -> list[str]:
    """A sentence for each model: is what `auto` takes the fastest of those that were measured?"""
    said = []
    alone = [entry for entry in comparison.entries if not entry.devices and entry.simulated is None]
    models = list(dict.fromkeys(entry.model for entry in alone))
    for model in models:
        of = f" for {model}" if len(models) > 1 else ""
        entries = [entry for entry in alone if entry.model == model]
        chosen = next((entry for entry in entries if entry.is_auto), None)
        if chosen is None:
            what = comparison.auto.get(model)
            said.append(
                f"auto takes {what}{of}, which was not measured" if what else f"auto finds nothing{of}"
            )
            continue
        faster = []
        for entry in entries:
            level = "files" if entry.rounds["files"] and chosen.rounds["files"] else "engine"
            found = None if entry is chosen else ratio(entry.rounds[level], chosen.rounds[level])
            if found is not None and found.low > 1:
                faster.append(f"{entry.backend} was faster in every round, {found} times {TITLES[level]}")
        if faster:
            said.append(f"auto takes {chosen.backend}{of}; {'; '.join(faster)}")
        else:
            why = "and none was faster in every round" if len(entries) > 1 else "the only one that can run"
            said.append(f"auto takes {chosen.backend}{of}, {why}")
    return said


def notes(comparison: Comparison) -> list[str]:
    """What people should know: failures, photos that were left out, what the backends noted."""
    said: list[str] = []
    if comparison.load is not None and comparison.load > cpu_count() / 4:
        said.append(
            f"other programs made a load of {comparison.load:.1f} on {cpu_count()} cores when this began: "
            "the processor's milliseconds compare better than the clock's"
        )
    if any(entry.simulated is not None for entry in comparison.entries):
        said.append(
            "simulated: a device that only sleeps took the place of the network, all else was real; what it "
            "answered means nothing, and the masks are removed"
        )
    for entry in comparison.entries:
        name = label(comparison, entry)
        said += entry.facts["subject_notes"]
        said += [f"{name}: {note}" for note in entry.facts["notes"]]
        failed = [each for rounds in entry.rounds.values() for each in rounds if each.failed]
        if failed:
            count = sum(each.failed for each in failed)
            said.append(f"{name}: {count:,} pictures failed: {failed[0].failures[0]}")
        if entry.error:
            said.append(f"{name}: measured no further: {entry.error}")
    return list(dict.fromkeys(said))


def machine(comparison: Comparison) -> dict[str, Any]:
    """What it was measured on."""
    driver = gpu.driver()
    return {
        "cores": cpu_count(),
        "processor": _processor(),
        "gpus": [card.name for card in driver.gpus] if driver else [],
        "system": f"{platform.system()} {platform.machine()}",
        "load": comparison.load,
        "matrix_peak_gflops": None if comparison.peak is None else round(comparison.peak / 1e9, 1),
        "matrix_peak_of": "float32 products of 1024x1024 in NumPy, on all cores",
    }


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


# Files ------------------------------------------------------------------------------------------------------


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything, for `--json`."""
    return {
        "unet_batch": __version__,
        "machine": machine(comparison),
        "photos": comparison.photos,
        "seconds": comparison.seconds,
        "interrupted": comparison.interrupted,
        "entries": [_entry_as_dict(comparison, entry) for entry in comparison.entries],
        "skipped": [asdict(each) for each in comparison.skipped],
        "verdict": verdict(comparison),
        "bottlenecks": limits(comparison),
        "auto": judge_auto(comparison),
        "notes": notes(comparison),
    }


def _entry_as_dict(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    first, (host, on_gpu) = comparison.entries[0], memory(entry)
    names = ("name", "precision", "reason", "input_size", "batch_size", "streams")
    return {
        "model": entry.model,
        "backend": {name: entry.facts[name] for name in names},
        "simulated": entry.simulated,
        "auto": entry.is_auto,
        "devices": entry.devices or None,
        "gflop": gflop(entry),
        "peak_share": peak_share(entry),
        "memory_bytes": host,
        "gpu_memory_bytes": on_gpu,
        "error": entry.error,
        "levels": {
            level: _level_as_dict(found) if (found := figures(entry, level, first)) else None
            for level in LEVELS
        },
    }


def _level_as_dict(found: Figures) -> dict[str, Any]:
    return {
        "pictures_per_second": found.rate,
        "rounds": list(found.rates),
        "ms": 1000 / found.rate if found.rate else None,
        **{f"p{p}_ms": value for p, value in zip(PERCENTILES, found.percentiles, strict=True)},
        "cpu_ms": found.cpu_ms,
        "failed": found.failed,
        "ratio": None if found.ratio is None else asdict(found.ratio),
        "stages": [asdict(stage) for stage in found.stages],
        "bottleneck": found.bottleneck,
        "floor_share": found.floor,
    }


def markdown(comparison: Comparison) -> str:
    """The same as tables, for `--markdown`."""
    facts, first = machine(comparison), comparison.entries[0] if comparison.entries else None
    peak = f", {facts['matrix_peak_gflops']} GFLOP/s ({facts['matrix_peak_of']})" if comparison.peak else ""
    gpus = "".join(f", {name}" for name in facts["gpus"])
    lines = [
        f"unet-batch {__version__}: {facts['cores']} cores, {facts['processor']}{gpus}{peak}; "
        f"{comparison.photos}.",
        "",
        "| level | model, backend | pictures/s | ms, p50 | p95 | p99 | processor ms | ratio | stages: busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for level in LEVELS:
        for entry in comparison.entries:
            found = figures(entry, level, first) if first else None
            if found is None:
                continue
            stages = ", ".join(f"{s.name} {s.busy:.0%}" for s in found.stages if s.name != "source")
            percentiles = " | ".join(f"{value:.1f}" for value in found.percentiles)
            lines.append(
                f"| {TITLES[level]} | {entry.model}, {entry.backend}{', auto' if entry.is_auto else ''} | "
                f"{found.rate:.3g} | {percentiles} | {found.cpu_ms:.1f} | {found.ratio or 1} | {stages} |"
            )
    lines += ["", "| model, backend | input | GFLOP a picture | share of the peak | memory | on the GPU |"]
    lines += ["|---|---|---|---|---|---|"]
    for entry in comparison.entries:
        work, share, held = gflop(entry), peak_share(entry), memory(entry)
        lines.append(
            f"| {entry.model}, {entry.backend} | {entry.size[0]}x{entry.size[1]} | "
            f"{'' if work is None else f'{work:.1f}'} | {'' if share is None else f'{share:.0%}'} | "
            + " | ".join("" if count is None else f"{count / 1e6:,.0f} MB" for count in held)
            + " |"
        )
    said = [verdict(comparison), *judge_auto(comparison), *limits(comparison), *notes(comparison)]
    said += [f"not measured: {each.model} on {each.backend}: {each.reason}" for each in comparison.skipped]
    lines += ["", *(f"* {sentence}" for sentence in said if sentence)]
    return "\n".join(lines) + "\n"
