"""The mean over time: what stays, how fast it follows, where it begins anew."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.inference.smoothing import Smoother

SIZE = (18, 32)
DARK, BRIGHT = np.full((*SIZE, 3), 30, np.uint8), np.full((*SIZE, 3), 220, np.uint8)
random_maps = st.builds(
    lambda seed: np.random.default_rng(seed).integers(0, 256, SIZE).astype(np.uint8), st.integers(0, 2**31)
)
gaps = st.fractions(Fraction(1, 1000), 2, max_denominator=90_000)


def flat(value: int) -> np.ndarray:
    return np.full(SIZE, value, np.uint8)


@given(random_maps, st.floats(0.01, 10), st.lists(gaps, min_size=1, max_size=10), st.sampled_from([1, 3]))
def test_what_does_not_change_stays(
    map: np.ndarray, seconds: float, steps: list[Fraction], classes: int
) -> None:
    smoother, time = Smoother(seconds, classes), Fraction(0)
    map = map if classes == 1 else map % classes
    for step in steps:
        assert np.array_equal(smoother(DARK, map, time), map)
        time += step


@given(st.lists(st.tuples(random_maps, gaps), min_size=1, max_size=8), st.floats(0.05, 5))
def test_the_mean_lies_between_what_was_seen(
    frames: list[tuple[np.ndarray, Fraction]], seconds: float
) -> None:
    smoother, time, seen = Smoother(seconds, 1), Fraction(0), []
    for map, step in frames:
        seen.append(map)
        steady = smoother(DARK, map, time)
        assert (steady >= np.min(seen, 0)).all()
        assert (steady <= np.max(seen, 0)).all()
        assert (steady.dtype, steady.shape) == (np.uint8, SIZE)
        time += step


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(25), Fraction(30000, 1001), Fraction(120)])
def test_the_time_constant_does_not_depend_on_the_frame_rate(rate: Fraction) -> None:
    """A step is followed to 1 - 1/e within the time constant."""
    smoother = Smoother(0.5, 1)
    smoother(DARK, flat(0), Fraction(0))
    index = 1
    while index / rate < Fraction(1, 2):
        smoother(DARK, flat(200), index / rate)
        index += 1
    steady = smoother(DARK, flat(200), Fraction(1, 2))
    assert abs(int(steady[0, 0]) - 200 * (1 - math.exp(-1))) <= 1


@settings(max_examples=30)
@given(st.lists(gaps, min_size=1, max_size=12))
def test_a_step_is_followed_alike_however_time_is_divided(steps: list[Fraction]) -> None:
    smoother, time = Smoother(1.0, 1), Fraction(0)
    smoother(DARK, flat(250), time)
    for step in steps:
        time += step
        steady = smoother(DARK, flat(0), time)
    assert abs(int(steady[0, 0]) - 250 * math.exp(-float(time))) <= 1


def test_what_came_just_before_counts_more_than_what_came_long_ago() -> None:
    answers = []
    for gap in (Fraction(1, 100), Fraction(1, 10), Fraction(1), Fraction(100)):
        smoother = Smoother(0.3, 1)
        smoother(DARK, flat(255), Fraction(0))
        answers.append(int(smoother(DARK, flat(0), gap)[0, 0]))
    assert answers == sorted(answers, reverse=True)
    assert answers[0] > 240
    assert answers[-1] == 0


def test_nothing_survives_a_cut() -> None:
    smoother = Smoother(1.0, 1)
    for index in range(5):
        smoother(DARK, flat(255), Fraction(index, 25))
    assert (smoother(BRIGHT, flat(10), Fraction(5, 25)) == 10).all()
    noisy = np.clip(
        BRIGHT.astype(int) + np.random.default_rng(0).integers(-5, 6, BRIGHT.shape), 0, 255
    ).astype(np.uint8)
    assert smoother(noisy, flat(200), Fraction(6, 25)).max() < 100, "noise is no cut"


def test_what_moves_is_not_dragged_along() -> None:
    """Where the picture changed the new answer stands; elsewhere the mean."""
    smoother, picture = Smoother(1.0, 1), DARK.copy()
    smoother(DARK, flat(0), Fraction(0))
    picture[:, 16:] = 220
    steady = smoother(picture, flat(200), Fraction(1, 25))
    assert (steady[:, 19:] == 200).all()
    assert (steady[:, :13] < 20).all()


def test_ids_are_those_that_prevail() -> None:
    """A class that flickers for a frame does not show; one that stays does, and no third one appears in
    between.
    """
    smoother, ids = Smoother(0.2, 4), []
    for index, id in enumerate([1, 1, 1, 3, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]):
        ids.append(int(smoother(DARK, flat(id), Fraction(index, 25))[0, 0]))
    assert ids[:6] == [1] * 6
    assert ids[-1] == 3
    assert set(ids) == {1, 3}


@given(st.data(), st.sampled_from([1, 3]), st.integers(1, 9))
def test_it_goes_on_from_its_state(data: Any, classes: int, stop: int) -> None:
    """Interrupted anywhere, the answers are the same to the byte."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    frames = [
        (
            np.clip(DARK + random.integers(0, 60), 0, 255).astype(np.uint8),
            random.integers(0, classes if classes > 1 else 256, SIZE),
        )
        for _ in range(10)
    ]
    times = [Fraction(1001 * index, 30000) for index in range(10)]

    def answers(smoother: Smoother, first: int, last: int) -> list[bytes]:
        return [
            smoother(*(part.astype(np.uint8) for part in frames[i]), times[i]).tobytes()
            for i in range(first, last)
        ]

    whole = answers(Smoother(0.3, classes), 0, 10)
    before = Smoother(0.3, classes)
    parts = answers(before, 0, stop)
    state = before.state()
    kept = {name: array.copy() for name, array in state.items()}
    after = Smoother(0.3, classes)
    after.resume(state)
    assert parts + answers(after, stop, 10) == whole
    answers(before, stop, 10)
    assert all(np.array_equal(state[name], kept[name]) for name in kept), (
        "a state is not written to afterwards"
    )


def test_a_smoother_that_saw_nothing_has_no_state() -> None:
    smoother = Smoother(1.0, 1)
    assert smoother.state() == {}
    smoother.resume({})
    assert smoother(DARK, flat(7), Fraction(0))[0, 0] == 7


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_constant_is_above_zero(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Smoother(seconds, 1)


def test_times_beyond_64_bits_survive_the_state() -> None:
    """A clock of nanoseconds that began in 1970."""
    smoother = Smoother(1.0, 1)
    time = Fraction(1_700_000_000_123_456_789 * 10**6 + 1, 10**15)
    smoother(DARK, flat(255), time)
    other = Smoother(1.0, 1)
    buffer = io.BytesIO()
    np.savez(buffer, **smoother.state())  # as the journal keeps it
    buffer.seek(0)
    other.resume(dict(np.load(buffer, allow_pickle=False)))
    later = time + Fraction(1, 2)
    assert np.array_equal(smoother(DARK, flat(0), later), other(DARK, flat(0), later))


def test_frames_of_one_channel_are_steadied_as_those_of_three() -> None:
    grey, colour = Smoother(0.2, 1), Smoother(0.2, 1)
    for number, (picture, level) in enumerate([(DARK, 0), (DARK, 200), (BRIGHT, 100)]):
        time = Fraction(number, 25)
        found = grey(picture[..., :1], flat(level), time)
        assert np.array_equal(found, colour(picture, flat(level), time))
