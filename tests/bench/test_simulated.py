"""A device that only sleeps: as long as one of so many pictures a second takes, and not a moment less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.bench import Clock
from tests.helpers.models import fake_file
from unet_batch.bench import simulated
from unet_batch.bench.simulated import SimulatedDevice, open_simulated
from unet_batch.inference.backends.select import CHOICES, Request
from unet_batch.testing import fake_spec


def batch(count: int) -> np.ndarray:
    return np.zeros((count, 32, 48, 3), np.uint8)


@given(st.lists(st.tuples(st.integers(1, 32), st.floats(0, 3)), min_size=1, max_size=8), st.floats(1, 1e5))
def test_a_picture_takes_its_time_and_a_pause_is_not_made_up_for(
    calls: list[tuple[int, float]], rate: float
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch, SimulatedDevice(fake_spec(), rate, batch_size=32) as device:
        patch.setattr(simulated, "time", clock)
        for count, pause in calls:
            clock.sleep(pause)
            device.infer(batch(count))
    assert clock.now == pytest.approx(sum(pause + count / rate for count, pause in calls))


def test_batches_that_come_at_the_same_moment_are_done_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    clock = Clock()
    monkeypatch.setattr(simulated, "time", clock)
    monkeypatch.setattr(clock, "sleep", slept.append)  # by each in its own thread: the clock stands still
    with SimulatedDevice(fake_spec(), 100, batch_size=8) as device:
        for count in (8, 4, 8):
            device.infer(batch(count))
    assert slept == pytest.approx([0.08, 0.12, 0.20])


@pytest.mark.parametrize(("rate", "size"), [(0.01, 1), (99, 1), (500, 5), (5000, 32), (1e6, 32)])
def test_a_batch_is_what_a_hundredth_of_a_second_does(rate: float, size: int) -> None:
    assert SimulatedDevice(fake_spec(), rate).batch_size == size
    assert SimulatedDevice(fake_spec(), rate, batch_size=7).batch_size == 7


@pytest.mark.parametrize(("classes", "values"), [(1, {0, 255}), (3, {0, 1})])
def test_it_answers_with_an_object_that_has_an_outline(classes: int, values: set[int]) -> None:
    with SimulatedDevice(fake_spec(classes=classes), 1e6, size=(64, 96)) as device:
        maps = device.infer(np.zeros((3, 64, 96, 3), np.uint8))
        maps[0] = 7  # the caller's own
        assert (device.infer(np.zeros((1, 64, 96, 3), np.uint8)) != 7).any()
    assert maps.shape == (3, 64, 96)
    assert values <= set(np.unique(maps[1]))
    assert 0.2 < (maps[1] == max(values)).mean() < 0.5
    assert classes == 1 or set(np.unique(maps[1])) == values


def test_no_run_can_choose_it() -> None:
    assert SimulatedDevice.name not in CHOICES


def test_it_takes_the_place_of_a_model_of_which_nothing_is_read() -> None:
    with open_simulated(1e6, Request(fake_file(), size=(64, 96), batch_size=3)) as segmenter:
        found = segmenter.describe()
        mask = segmenter(np.zeros((40, 60, 3), np.uint8))
    assert (found["name"], found["rate"], found["input_size"]) == ("simulated", 1e6, [64, 96])
    assert (found["batch_size"], mask.shape) == (3, (40, 60))
