"""The drawn scenes: repeatable, well framed, and with masks that lie exactly on the car."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.errors import OutputError
from unet_batch.scenes import draw, write_samples
from unet_batch.scenes import samples as samples_module
from unet_batch.scenes.backdrop import Road, Studio
from unet_batch.scenes.compose import plan, render
from unet_batch.scenes.shapes import ellipse, smooth, stroke

SMALL = (96, 144)


def dice(seed):
    """The scene that `draw(seed)` draws, as `render` rolls it."""
    return plan(np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0]))


def test_same_seed_gives_the_same_bytes():
    state = np.random.get_state()[1].copy()
    photo, mask = draw(5, SMALL)
    again, mask_again = draw(5, SMALL)
    assert photo.tobytes() == again.tobytes()
    assert mask.tobytes() == mask_again.tobytes()
    assert (np.random.get_state()[1] == state).all(), "the global generator was used"


def test_different_seeds_give_different_scenes():
    photos = {draw(seed, SMALL)[0].tobytes() for seed in range(8)}
    masks = {draw(seed, SMALL)[1].tobytes() for seed in range(8)}
    assert len(photos) == 8
    assert len(masks) == 8


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), height=st.integers(64, 200), width=st.integers(64, 200))
def test_any_size_holds_one_car(seed, height, width):
    photo, mask = draw(seed, (height, width))
    assert photo.shape == (height, width, 3)
    assert photo.dtype == np.uint8
    assert mask.shape == (height, width)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    if 0.5 <= width / height <= 2:
        assert 0.05 <= (mask > 0).mean() <= 0.70
    _, _, stats, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    assert areas.max() >= 0.99 * areas.sum()
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert not edge.any(), "the car is cut off"


@pytest.mark.parametrize("size", [(64, 64), (300, 120), (120, 420)])
def test_extreme_shapes_compose(size):
    photo, mask = draw(3, size)
    assert photo.shape[:2] == mask.shape == size
    assert mask.any()


@pytest.mark.parametrize("size", [(63, 100), (100, 10)])
def test_too_small_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        draw(0, size)


@pytest.mark.parametrize("seed", range(7))
def test_mask_is_where_the_car_changes_the_picture(seed):
    size = (240, 360)
    photo, mask = draw(seed, size)
    empty, cover = render(seed, size, with_car=False)
    assert ((cover >= 0.5) == (mask > 0)).all()
    difference = np.abs(photo.astype(int) - empty.astype(int)).max(axis=2)
    # Outside of the mask, but for the pixel or two over which the lens blurs the edge, nothing knows of the
    # car ...
    near = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
    assert (difference[~near] == 0).all()
    # ... and inside, the car hides what was there. Glass and paint may match the backdrop by chance, but not
    # by the thousand.
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
    assert (difference[inner] > 6).mean() > 0.90


@pytest.mark.parametrize("seed", range(4))
def test_edge_of_the_mask_is_the_edge_in_the_picture(seed):
    """A mask moved by two pixels in any direction fits the change that the car makes worse."""
    size = (240, 360)
    photo, mask = draw(seed, size)
    empty, _ = render(seed, size, with_car=False)
    changed = np.abs(photo.astype(int) - empty.astype(int)).max(axis=2) > 12

    def misfit(rows, columns):
        return ((np.roll(mask, (rows, columns), (0, 1)) > 0) != changed).sum()

    assert all(misfit(0, 0) < misfit(*by) for by in ((2, 0), (-2, 0), (0, 2), (0, -2)))


def test_one_seed_shows_one_scene_at_every_size():
    large = draw(11, (320, 480))[1]
    small = draw(11, (160, 240))[1]
    reduced = cv2.resize(large, (240, 160), interpolation=cv2.INTER_AREA) >= 128
    assert (reduced != (small > 0)).mean() < 0.01


def test_the_dice_reach_every_kind_of_scene():
    scenes = [dice(seed) for seed in range(300)]
    assert {scene.car.style.name for scene in scenes} >= {
        "sedan",
        "coupe",
        "hatchback",
        "estate",
        "suv",
        "van",
        "pickup",
    }
    assert {type(scene.place) for scene in scenes} == {Studio, Road}
    assert {scene.flip for scene in scenes} == {False, True}
    assert all(abs(scene.tilt) <= 2 for scene in scenes)
    assert any(
        isinstance(s.place, Studio) and min(s.place.wall) > 0.8 and min(s.car.paint) > 0.8 for s in scenes
    )
    assert any(
        isinstance(s.place, Road) and s.place.asphalt < 0.25 and max(s.car.paint) < 0.06 for s in scenes
    )


def test_shapes_stay_inside_their_control_polygon():
    square = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    curve = smooth(square)
    assert curve.min() >= 0
    assert curve.max() <= 1
    assert np.allclose(smooth([(*p, 0.0) for p in square]).round(9).min(axis=0), 0)
    assert np.allclose(np.hypot(*ellipse(0, 0, 2).T), 2)
    pen = stroke(np.array([(0.0, 0.0), (1.0, 0.0)]), 0.2)
    assert np.allclose(sorted(set(pen[:, 1].round(6))), [-0.1, 0.1])


def contents(folder):
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb") as file:
                found[os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")] = file.read()
    return found


def test_write_samples_writes_a_series(tmp_path):
    done = []
    paths = write_samples(str(tmp_path / "a"), 2, SMALL, seed=7, progress=done.append)
    assert done == [1, 2]
    assert [os.path.basename(path) for path in paths] == ["scene_0000.jpg", "scene_0001.jpg"]
    first = contents(tmp_path / "a")
    assert set(first) == {
        f"{kind}_{i:04d}.{end}".replace("_", "/scene_", 1)
        for i in (0, 1)
        for kind, end in (("photos", "jpg"), ("masks", "png"))
    }

    photo, mask = draw(7 * 1_000_003 + 1, SMALL)
    written = cv2.imread(str(tmp_path / "a" / "masks" / "scene_0001.png"), cv2.IMREAD_UNCHANGED)
    assert (written == mask).all()
    image = cv2.cvtColor(cv2.imread(paths[1]), cv2.COLOR_BGR2RGB)
    assert np.abs(image.astype(int) - photo.astype(int)).mean() < 4

    write_samples(str(tmp_path / "b"), 3, SMALL, seed=7)
    more = contents(tmp_path / "b")
    assert len(more) == 6
    assert all(more[name] == data for name, data in first.items())


def test_write_samples_without_masks(tmp_path):
    write_samples(str(tmp_path), 1, SMALL, with_masks=False)
    assert set(contents(tmp_path)) == {"photos/scene_0000.jpg"}


def test_write_samples_over_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out") as caught:
        write_samples(str(tmp_path / "out"), 1, SMALL)
    assert caught.value.hint
    assert (tmp_path / "out").read_text() == "mine"


def test_write_samples_over_a_folder_in_place_of_a_photo(tmp_path):
    (tmp_path / "photos" / "scene_0000.jpg").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"scene_0000\.jpg"):
        write_samples(str(tmp_path), 1, SMALL)
    assert os.listdir(tmp_path / "photos") == ["scene_0000.jpg"], "an unfinished file was left behind"


def test_write_samples_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples_module.os, "replace", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        write_samples(str(tmp_path), 1, SMALL)
    assert "free some space" in caught.value.hint
    assert os.listdir(tmp_path / "photos") == []
