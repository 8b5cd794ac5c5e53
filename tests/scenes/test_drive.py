"""Drawn clips: any frame alone, masks that lie exactly on the cars, and sound that goes where they go."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.scenes.compose import car_layer
from unet_batch.scenes.drive import SHOT_SECONDS, Shot, _Car, _plan, drive, sound

SMALL = (48, 80)
SIZE = (180, 320)
RATE = Fraction(25)
# Clips that begin with a single car
ALONE = [seed for seed in range(20) if len(_plan(seed, 0).cars) == 1][:4]
TWO = next(seed for seed in range(40) if len(_plan(seed, 0).cars) == 2)


def centroid(mask):
    rows, columns = np.nonzero(mask)
    return rows.mean(), columns.mean()


def inside(mask):
    return mask.any() and not (mask[:, 0].any() or mask[:, -1].any())


def test_any_frame_can_be_drawn_alone():
    state = np.random.get_state()[1].copy()
    clip = []
    for photo, mask in drive(3, SMALL, 9, Fraction(2), shot_seconds=Fraction(2)):
        clip.append((photo.copy(), mask.copy()))
        photo[:] = mask[:] = 99  # the arrays are the caller's
    assert len(clip) == 9
    for start in (8, 0, 5, 3):
        ((photo, mask),) = drive(3, SMALL, 1, Fraction(2), start=start, shot_seconds=Fraction(2))
        assert photo.tobytes() == clip[start][0].tobytes()
        assert mask.tobytes() == clip[start][1].tobytes()
    assert (np.random.get_state()[1] == state).all(), "the global generator was used"


def test_frames_are_drawn_when_they_are_asked_for():
    photo, _ = next(drive(0, SMALL, 10**9, RATE))
    assert photo.shape == (*SMALL, 3)
    assert list(drive(0, SMALL, 0, RATE)) == []


def test_clips_differ_by_seed():
    assert len({next(drive(seed, SMALL, 1, RATE, start=75))[0].tobytes() for seed in range(6)}) == 6


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    height=st.integers(16, 130),
    width=st.integers(16, 130),
    progress=st.floats(0, 1, exclude_max=True),
)
def test_any_size_can_be_drawn(seed, height, width, progress):
    photo, mask = Shot(seed, 0, (height, width)).draw(progress, 7)
    assert photo.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert photo.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("size", [(33, 47), (161, 90), (16, 16), (17, 301), (64, 65)])
def test_odd_small_and_portrait_pictures_show_the_car(size):
    shot = Shot(ALONE[0], 0, size)
    photo, mask = shot.draw(0.5, 0)
    assert photo.shape[:2] == mask.shape == size
    assert 0.02 < (mask > 0).mean() < 0.75


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, (15, 90), 1, RATE), "15x90"),
        ((0, (90, 10), 1, RATE), "90x10"),
        ((-1, SMALL, 1, RATE), "seed -1"),
        ((0, SMALL, -2, RATE), "-2 frames"),
        ((0, SMALL, 1, Fraction(0)), "0 frames per second"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(arguments, named):
    with pytest.raises(ValueError, match=named):
        drive(*arguments)


def test_shots_and_starts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="frame -1"):
        drive(0, SMALL, 1, RATE, start=-1)
    with pytest.raises(ValueError, match="shots of 0 s"):
        drive(0, SMALL, 1, RATE, shot_seconds=Fraction(0))


@pytest.mark.parametrize("seed", sorted({*range(6), TWO}))
@pytest.mark.parametrize("progress", [0.3, 0.57])
def test_mask_is_where_the_car_changes_the_picture(seed, progress):
    shot = Shot(seed, 0, SIZE)
    photo, mask = shot.draw(progress, 4)
    without, same = shot.draw(progress, 4, with_cars=False)
    assert (same == mask).all()
    difference = np.abs(photo.astype(int) - without.astype(int)).max(axis=2)
    near = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
    assert (difference[~near] == 0).all()
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8), borderValue=255) > 0
    assert (difference[inner] > 6).mean() > 0.9


@pytest.mark.parametrize("seed", sorted({*range(6), TWO}))
def test_mask_is_what_hides_half_of_the_backdrop(seed):
    """How much a pixel still changes with the backdrop is how much of it the car leaves free."""
    shot = Shot(seed, 0, SIZE)
    shown = {}
    for with_cars in (True, False):
        shot.empty[:] = 40
        dark, _ = shot.draw(0.37, 4, with_cars=with_cars)
        shot.empty[:] = 200
        light, mask = shot.draw(0.37, 4, with_cars=with_cars)
        shown[with_cars] = light.astype(float) - dark
    covered = (1 - shown[True] / np.maximum(shown[False], 1)).mean(axis=2) >= 0.5

    def misfit(rows, columns):
        moved = cv2.warpAffine(
            mask, np.float64([[1, 0, columns], [0, 1, rows]]), SIZE[::-1], borderMode=cv2.BORDER_REPLICATE
        )
        return ((moved > 0) != covered).sum()

    assert misfit(0, 0) < 0.01 * covered.sum()
    assert all(3 * misfit(0, 0) < misfit(*by) for by in ((1, 0), (-1, 0), (0, 1), (0, -1)))


@pytest.mark.parametrize("seed", ALONE)
def test_mask_is_the_one_of_a_still_car_in_that_place(seed, monkeypatch):
    """Layers moved by fractions of a pixel cover what the car covers when it is drawn there in one piece."""
    placed = []
    lay = Shot._lay

    def spy(self, photo, unseen, layer, column, row):
        placed.append((column, row))
        lay(self, photo, unseen, layer, column, row)

    monkeypatch.setattr(Shot, "_lay", spy)
    shot = Shot(seed, 0, SIZE)
    _, mask = shot.draw(0.503, 0)
    column, row = placed[1]  # the body's: the ground is laid first
    (each,), scale = shot._cars, shot._view.scale
    across = shot._plan.way * scale
    matrix = np.array([[across, 0, column - across * each.car.length / 2], [0, -scale, row], [0, 0, 1.0]])
    truth = car_layer(shot._plan.scene, SIZE, matrix)[1] >= 0.5
    overlap = (truth & (mask > 0)).sum() / (truth | (mask > 0)).sum()
    assert overlap > 0.985


@pytest.mark.parametrize("seed", range(8))
def test_cars_come_from_outside_and_leave(seed):
    masks = [mask for _, mask in drive(seed, SIZE, 60, Fraction(10))]
    assert not masks[0].any()
    assert (masks[-1] > 0).mean() < 0.02
    assert not masks[55][:, :: _plan(seed, 0).way][:, : SIZE[1] // 2].any(), "not on its way out"
    assert all(mask.any() for mask in masks[4:57:4])


@pytest.mark.parametrize("seed", ALONE)
def test_car_moves_evenly_and_its_body_bounces_a_little(seed):
    shot = Shot(seed, 0, SIZE)
    way = shot._plan.way
    masks = [shot.draw(k / 60, k)[1] for k in range(60)]
    front = [np.nonzero(mask.any(axis=0))[0][::way][-1] * way for mask in masks if mask.any()]
    assert (np.diff(front) >= 0).all()
    places = np.array([centroid(mask) for mask in masks if inside(mask)])
    assert len(places) >= 5
    steps = np.diff(places[:, 1]) * way
    assert steps.min() > 0
    assert steps.std() < 0.3
    assert 0.02 < np.ptp(places[:, 0]) < 2


@pytest.mark.parametrize("seed", ALONE)
def test_wheels_turn_with_the_distance(seed, monkeypatch):
    angles = []
    wheel = _Car.wheel

    def spy(self, angle):
        angles.append(angle)
        return wheel(self, angle)

    monkeypatch.setattr(_Car, "wheel", spy)
    shot = Shot(seed, 0, SIZE)
    masks = [shot.draw(progress, 0)[1] for progress in (0.48, 0.53)]
    driven = (centroid(masks[1])[1] - centroid(masks[0])[1]) * shot._plan.way / shot._view.scale
    for before, after in ((angles[0], angles[2]), (angles[1], angles[3])):
        # Turned forward: clockwise
        assert (before - after) * shot._cars[0].car.radius == pytest.approx(driven, rel=0.05)


def test_a_wheel_looks_the_same_after_a_spoke():
    vehicle = Shot(ALONE[0], 0, SIZE)._cars[0]
    assert vehicle.wheel(0.3) is vehicle.wheel(0.3 - vehicle.period)
    assert (vehicle.wheel(0.0).colour != vehicle.wheel(vehicle.period / 2).colour).any()


@pytest.mark.parametrize("seed", range(4))
def test_backdrop_stands_still_under_fresh_noise(seed):
    shot = Shot(seed, 0, SIZE)
    sky = slice(0, SIZE[0] // 4)
    frames = [shot.draw(k / 12, k)[0][sky].astype(int) for k in range(12)]
    assert len({frame.tobytes() for frame in frames}) == 12
    assert np.abs(np.mean(frames, axis=0) - shot.empty[sky]).mean() < 1.0
    assert max(np.abs(frame - shot.empty[sky]).mean() for frame in frames) < 5
    again, _ = shot.draw(3 / 12, 3)
    assert (again[sky] == frames[3]).all()


@pytest.mark.parametrize("seed", ALONE)
def test_shadow_moves_along(seed):
    shot = Shot(seed, 0, SIZE)
    for progress in (0.35, 0.5, 0.65):
        photo, mask = shot.draw(progress, 0, with_cars=False)
        darker = np.clip(shot.empty.astype(int) - photo, 0, 255).sum(axis=2) > 24
        assert darker.sum() > 50
        visible = np.nonzero(mask.any(axis=0))[0]
        assert abs(np.nonzero(darker)[1].mean() - visible.mean()) < 0.2 * (visible.max() - visible.min())


def test_picture_cuts_to_another_car_after_each_shot():
    clip = list(drive(5, SIZE, 22, Fraction(10), shot_seconds=Fraction(1)))
    photos = [photo.astype(int) for photo, _ in clip]
    change = [np.abs(b[:45] - a[:45]).mean() for a, b in pairwise(photos)]
    assert {index + 1 for index in np.argsort(change)[-2:]} == {10, 20}
    assert [index for index, (_, mask) in enumerate(clip) if not mask.any()] == [0, 10, 20]


def test_cuts_fall_on_time_at_broadcast_rates():
    rate = Fraction(30_000, 1001)  # frame 179 is at 5.97 s, 180 at 6.006 s
    before, after = (next(drive(1, SMALL, 1, rate, start=start))[0] for start in (179, 180))
    assert (before == Shot(1, 0, SMALL).draw(float(179 / rate / SHOT_SECONDS), 179)[0]).all()
    assert (after == Shot(1, 1, SMALL).draw(float(180 / rate / SHOT_SECONDS - 1), 180)[0]).all()


def loudness(part):
    return np.sqrt((part.astype(float) ** 2).mean(axis=0))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    seconds=st.fractions(0, 3, max_denominator=1001),
    rate=st.integers(4000, 48_000),
    shot=st.fractions(Fraction(1, 2), 7, max_denominator=50),
)
def test_sound_has_its_length_and_a_longer_one_continues_it(seed, seconds, rate, shot):
    heard = sound(seed, seconds, rate, shot_seconds=shot)
    assert heard.shape == (round(seconds * rate), 2)
    assert heard.dtype == np.int16
    longer = sound(seed, seconds + Fraction(1, 3), rate, shot_seconds=shot)
    assert (longer[: len(heard)] == heard).all()


@pytest.mark.parametrize("seed", range(6))
def test_sound_goes_where_the_car_goes(seed):
    heard = sound(seed, 12)
    assert heard.shape == (576_000, 2)
    for index in (0, 1):
        shot = heard[index * 288_000 : (index + 1) * 288_000]
        way = _plan(seed, index).way
        left, right = loudness(shot[: len(shot) // 3])[::way]
        assert left > 1.5 * right
        left, right = loudness(shot[-len(shot) // 3 :])[::way]
        assert right > 1.5 * left
        middle = loudness(shot[len(shot) * 4 // 9 : len(shot) * 5 // 9])
        assert max(middle) < 1.4 * min(middle)
        assert (
            min(middle)
            > 2 * max(loudness(shot[: len(shot) // 9]).max(), loudness(shot[-len(shot) // 9 :]).max()) / 2
        )
        assert np.abs(shot[[0, -1]]).max() < 100, "a click at the cut"
    assert 8_000 < np.abs(heard.astype(int)).max() < 32_767


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seconds": -1}, {"sample_rate": 0}, {"shot_seconds": Fraction(0)}]
)
def test_sound_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        sound(**{"seed": 0, "seconds": 1, **wrong})
