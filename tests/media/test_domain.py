"""How far pictures are from those that a model learned from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.media import domain, geometry
from unet_batch.types import Domain


def soft(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A smooth picture in warm colours."""
    rng = np.random.default_rng(seed)
    coarse = (rng.random((4, 5, 3)) * (120, 80, 40) + (100, 60, 20)).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def grainy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8)


def learned(count: int = 60) -> Domain:
    pictures = [domain.describe(soft(seed)) for seed in range(count)]
    found = domain.learn(pictures, [domain.describe(soft(seed)) for seed in range(1000, 1040)])
    assert found is not None
    return found


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]), st.integers(0, 255))
def test_any_picture_has_figures(height: int, width: int, channels: int, value: int) -> None:
    figures = domain.describe(np.full((height, width, channels), value, np.uint8))
    assert figures.shape == (19,)
    assert np.isfinite(figures).all()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]), st.lists(st.integers(1, 299)))
def test_in_bands_a_picture_is_as_unlike_as_at_once(
    height: int, width: int, channels: int, cuts: list[int]
) -> None:
    picture = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    describer = domain.BandDescriber((height, width))
    for band in np.split(picture, sorted({cut for cut in cuts if cut < height})):
        describer.add(band)
    known = Domain((0.0,) * 19, tuple((0.0,) * at + (1.0,) for at in range(19)), 1.0, 20, 20)
    expected = domain.distance(known, domain.describe(picture))
    assert describer.unlike([known]) == pytest.approx(expected, rel=1e-9)
    assert describer.unlike([]) is None


def test_grey_is_grey_in_one_channel_or_three() -> None:
    grey = grainy(1)[..., :1]
    assert np.allclose(domain.describe(grey), domain.describe(np.repeat(grey, 3, 2)))


def test_pictures_of_the_same_kind_are_within_and_others_beyond() -> None:
    known = learned()
    assert (
        np.mean([domain.distance(known, domain.describe(soft(seed))) > 1 for seed in range(500, 700)]) < 0.1
    )
    assert all(domain.distance(known, domain.describe(grainy(seed))) > 1.5 for seed in range(20))


def test_the_limit_holds_all_but_two_of_a_hundred() -> None:
    trained = [domain.describe(soft(seed)) for seed in range(60)]
    validated = [domain.describe(soft(seed)) for seed in range(1000, 1200)]
    found = domain.learn(trained, validated)
    assert found is not None
    assert (found.pictures, found.validated) == (60, 200)
    assert sum(domain.distance(found, each) > 1 + 1e-4 for each in validated) <= 4


def test_the_size_of_the_network_hardly_matters() -> None:
    known = learned()
    for seed in range(5):
        small, large = (domain.describe(soft(seed, size)) for size in ((96, 128), (192, 256)))
        assert domain.distance(known, small) == pytest.approx(domain.distance(known, large), rel=0.1)


def test_nothing_is_said_where_little_is_known() -> None:
    figures = [domain.describe(soft(seed)) for seed in range(domain.LEAST)]
    assert domain.learn(figures[:-1], figures) is None
    assert domain.learn(figures, []) is None
    assert domain.learn(figures, figures[:1]) is not None
    assert domain.learn(figures, figures) == domain.learn(figures, figures), "the same again"
    placement = geometry.place((48, 64), (48, 64))
    assert domain.unlike((), (soft(1),), placement) is None
    assert domain.unlike((learned(),), (np.zeros((48, 64, 4), np.uint8),), placement) is None


def test_padding_is_no_part_of_a_picture() -> None:
    known, size = learned(), (48, 64)
    placement = geometry.place(size, (96, 64))
    tensor = geometry.to_network(soft(7), placement)
    there = domain.unlike((known,), (tensor,), placement)
    assert there == domain.distance(known, domain.describe(soft(7)))
    tensor[: placement.top] = 255
    assert domain.unlike((known,), (tensor,), placement) == there


def test_of_several_models_the_nearest_counts() -> None:
    known, placement = learned(), geometry.place((48, 64), (48, 64))
    far = Domain(tuple(value + 9 for value in known.mean), known.whitening, known.limit, 20, 1)
    alone = domain.unlike((known,), (soft(3),), placement)
    assert domain.unlike((far, known), (soft(3),), placement) == alone
    assert domain.notes_on(alone) == ()
    assert domain.notes_on(domain.unlike((far,), (soft(3),), placement)) == (domain.UNLIKE,)
