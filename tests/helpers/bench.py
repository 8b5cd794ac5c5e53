"""Backends of known speed for `unet_batch.bench`, and a clock that only they move."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from unet_batch.bench import measure
from unet_batch.bench.compare import Entry
from unet_batch.bench.measure import Round, Subject
from unet_batch.bench.simulated import SimulatedDevice
from unet_batch.errors import BackendUnavailable
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import images
from unet_batch.pipeline import StageStats
from unet_batch.testing import FakeBackend, fake_spec

_STAGES = ("source", "decode", "infer", "render", "write")


class Clock:
    """Stands in for the module `time`: it shows what `sleep` has added up to."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def write_photos(folder: Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        path = folder / f"{number}.jpg"
        path.write_bytes(images.encode_jpeg(pixels))
        paths.append(str(path))
    return paths


def sleeping(sleep: Any, seconds: list[float], **settings: Any) -> FakeBackend:
    """A backend whose calls take so long, in turn."""
    calls = iter(range(10**9))

    def answer(pictures: Any) -> Any:
        sleep(seconds[next(calls) % len(seconds)])
        return np.zeros(pictures.shape[:3], np.uint8)

    return FakeBackend(answer=answer, **{"batch_size": 1, **settings})


class FakeChild:
    """A `compare.Child` in this process: auto and torch are the same, openvino runs, all others are missing.

    What is to be simulated is called by its rate.

    Attributes:
        opened: the backends asked for, over all; `closed` those that were closed.
        fail: raised by every measurement from this number on.
    """

    opened: list[str]
    closed: list[str]
    fail: dict[int, BaseException]
    taken: int

    names: ClassVar = {"auto": "torch-cpu", "torch": "torch-cpu", "openvino": "openvino"}

    @classmethod
    def reset(cls) -> None:
        cls.opened, cls.closed, cls.fail, cls.taken = [], [], {}, 0

    def __init__(self, asked: dict[str, Any]) -> None:
        name, rate = asked["backend"], asked["rate"]
        self.asked = ", ".join([name if rate is None else f"{rate:g}/s", *asked["devices"]])
        type(self).opened.append(self.asked)
        if rate is None and name not in self.names:
            raise BackendUnavailable(f"{name} is missing in a test", hint=f"install {name}")
        backend: Backend
        if rate is None:
            backend = FakeBackend(batch_size=1)
            backend.name = self.names[name]
        else:
            backend = SimulatedDevice(fake_spec(), rate, batch_size=1)
        self.segmenter = Segmenter(backend, workers=1)
        self.subject = Subject(self.segmenter, asked["photos"], asked["folder"])
        self.facts = {
            **self.segmenter.describe(),
            "subject_notes": self.subject.notes,
            "photos": self.subject.photos,
            "flops": 2_000_000_000 if rate is None else None,
            "peak": None,
        }

    def measure(self, level: str, seconds: float) -> Round:
        kind = type(self)
        kind.taken += 1
        if error := kind.fail.get(kind.taken):
            raise error
        return self.subject.measure(level, seconds)

    def close(self) -> None:
        type(self).closed.append(self.asked)
        self.segmenter.close()


def one_round(pictures: int, seconds: float, **values: Any) -> Round:
    return Round(pictures, seconds, values.pop("cpu", seconds), values.pop("latencies", [seconds]), **values)


def entry(backend: str = "torch-cpu", model: str = "tiny", rate: float | None = None, **values: Any) -> Entry:
    """An entry without rounds; of a simulated device if there is a rate."""
    facts: dict[str, Any] = {
        "name": backend if rate is None else "simulated",
        "precision": "fp32" if rate is None else "none",
        "reason": "as asked",
        "input_size": [32, 48],
        "batch_size": 1,
        "streams": 2,
        "notes": [],
        "subject_notes": [],
        **({} if rate is None else {"rate": rate}),
    }
    return Entry(model, facts, **values)


def staged(seconds: float, busy: dict[str, float], pictures: int = 10, **values: Any) -> Round:
    stages = [StageStats(name, 2, pictures, pictures, busy.get(name, 0.0), 0.0, 0.0) for name in _STAGES]
    return one_round(pictures, seconds, stages=stages, **values)


def filled(backend: str, *seconds: float, **values: Any) -> Entry:
    """An entry whose rounds of ten pictures took so long."""
    found = entry(backend, **values)
    for each in seconds:
        found.rounds["engine"].append(one_round(10, each))
        found.rounds["pipeline"].append(staged(each, {"infer": each}))
        found.rounds["files"].append(staged(each, {"infer": 1.6 * each, "decode": 0.2 * each}))
    return found
