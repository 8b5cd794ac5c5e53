"""Probabilities, masks and ids at the picture's size."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.inference import postprocess
from unet_batch.media import geometry
from unet_batch.types import Placement

NETWORK = (32, 48)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
SIZE = st.tuples(st.integers(1, 150), st.integers(1, 150))
THRESHOLD = st.floats(0, 1, exclude_min=True)


def soft_map(seed: int = 0, shape: tuple[int, int] = NETWORK) -> np.ndarray:
    """Blobs with soft edges that reach 0 and 255."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=shape), (0, 0), 2)
    map = np.rint(np.clip(127.5 + 400 * noise, 0, 255)).astype(np.uint8)
    map.flags.writeable = False
    return map


def id_map(seed: int = 0, classes: int = 5, shape: tuple[int, int] = NETWORK) -> np.ndarray:
    random = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(random.normal(size=shape), (0, 0), 1.5) for _ in range(classes)]
    map = np.argmax(layers, axis=0).astype(np.uint8)
    map.flags.writeable = False
    return map


def filling(size: tuple[int, int], network: tuple[int, int] = NETWORK) -> Placement:
    """A placement without padding, whatever the aspect."""
    return Placement(size, network, 0, 0, network, size)


def thresholds() -> list[float]:
    exact = [value / 255 for value in range(1, 256)]
    beside = [math.nextafter(value, way) for value in exact for way in (0.0, 1.0)]
    return [*exact, *beside, *np.linspace(1e-6, 1, 501).tolist(), 5e-324, 1e-9, 0.5, 0.999999, 1.0]


def test_cut_is_the_first_byte_that_reaches_the_threshold():
    for threshold in thresholds():
        first = next(value for value in range(256) if value / 255 >= threshold)
        assert postprocess.cut(threshold) == first, threshold
    assert postprocess.cut(0.5) == 128


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_cut_refuses_what_is_no_threshold(threshold):
    with pytest.raises(ValueError, match="threshold"):
        postprocess.cut(threshold)


def test_mask_over_all_bytes():
    for threshold in thresholds():
        assert np.array_equal(
            postprocess.mask(BYTES, threshold), np.where(threshold <= BYTES / 255, 255, 0)
        ), threshold


def test_what_is_made_of_one_map_is_left_alone_by_the_next():
    makers = (
        lambda map, at: postprocess.mask_from_map(map, at, 0.5),
        postprocess.probability,
        postprocess.probability16,
        lambda map, at: postprocess.class_ids(map & 1, at, 2),
        lambda map, at: postprocess.class_ids(map % 5, at, 5),
    )
    for make in makers:
        for size in ((1280, 1918), (200, 301), (90, 130)):
            placement = geometry.place(size, NETWORK)
            first = make(soft_map(1), placement)
            kept = first.copy()
            make(soft_map(2), placement)
            make(soft_map(3), geometry.place((2000, 3000), NETWORK))
            assert np.array_equal(first, kept)


def test_mask_from_map_over_all_bytes():
    placement = filling((16, 16), (16, 16))
    for threshold in thresholds():
        assert np.array_equal(
            postprocess.mask_from_map(BYTES, placement, threshold), postprocess.mask(BYTES, threshold)
        )


@settings(deadline=None, max_examples=100)
@given(SIZE, THRESHOLD, st.integers(0, 20))
def test_mask_from_map_is_the_mask_of_the_probability(size, threshold, seed):
    map, placement = soft_map(seed), geometry.place(size, NETWORK)
    mask = postprocess.mask_from_map(map, placement, threshold)
    assert mask.dtype == np.uint8
    assert mask.shape == size
    assert np.array_equal(mask, postprocess.mask(postprocess.probability(map, placement), threshold))


@settings(deadline=None, max_examples=150)
@given(st.data(), SIZE, THRESHOLD, st.integers(0, 20))
def test_a_small_object_is_masked_as_in_the_whole_map(data, size, threshold, seed):
    """Wherever it lies, and whatever the ratio of the sizes: only its surroundings are enlarged."""
    rows, columns = (
        slice(*sorted(data.draw(st.tuples(st.integers(0, side), st.integers(0, side))))) for side in NETWORK
    )
    map, placement = np.full(NETWORK, postprocess.cut(threshold) - 1, np.uint8), geometry.place(size, NETWORK)
    map[rows, columns] = soft_map(seed)[rows, columns]
    out = np.zeros((size[0], size[1] + 1), np.uint8)
    out[:, 0] = 7
    mask = postprocess.mask_from_map(map, placement, threshold, out[:, 1:])
    assert np.shares_memory(mask, out)
    assert np.array_equal(mask, postprocess.mask(postprocess.probability(map, placement), threshold))
    assert (out[:, 0] == 7).all()


def test_a_small_object_is_masked_as_in_the_whole_map_that_is_shrunk():
    """Half of the rows would be shrunk in other steps: 18 are halved before they become 4, 9 are not."""
    map, placement = np.zeros((18, 36), np.uint8), filling((4, 8), (18, 36))
    map[:6, :12] = np.random.default_rng(0).integers(0, 256, (6, 12))
    for threshold in np.linspace(0.02, 0.6, 60):
        mask = postprocess.mask_from_map(map, placement, threshold)
        assert np.array_equal(mask, postprocess.mask(postprocess.probability(map, placement), threshold))


@settings(deadline=None, max_examples=60)
@given(SIZE, st.integers(0, 20))
def test_probabilities_agree(size, seed):
    map, placement = soft_map(seed), geometry.place(size, NETWORK)
    wide, narrow = postprocess.probability16(map, placement), postprocess.probability(map, placement)
    assert wide.dtype == np.uint16
    assert narrow.dtype == np.uint8
    assert wide.shape == narrow.shape == size
    assert np.array_equal(narrow, (wide.astype(int) + 128) // 257)


def test_probabilities_are_exact_where_nothing_is_resized_or_varies():
    placement = filling((16, 16), (16, 16))
    assert np.array_equal(postprocess.probability16(BYTES, placement), BYTES.astype(int) * 257)
    assert np.array_equal(postprocess.probability(BYTES, placement), BYTES)
    for value in range(256):
        map = np.full((4, 6), value, np.uint8)
        assert (postprocess.probability(map, filling((13, 17), (4, 6))) == value).all()


def test_masks_of_nothing_and_of_everything():
    placement = geometry.place((70, 90), NETWORK)
    assert not postprocess.mask_from_map(np.zeros(NETWORK, np.uint8), placement, 0.01).any()
    assert (postprocess.mask_from_map(np.full(NETWORK, 255, np.uint8), placement, 1.0) == 255).all()


def test_padding_does_not_leak_into_the_mask():
    placement = geometry.place((20, 90), NETWORK)
    map = np.full(NETWORK, 255, np.uint8)
    geometry.content_of(map, placement)[:] = 0
    assert not postprocess.probability16(map, placement).any()


@settings(deadline=None, max_examples=60)
@given(SIZE, st.integers(0, 20), st.integers(1, 6))
def test_class_ids_have_the_size_and_only_ids_of_the_map(size, seed, classes):
    map, placement = id_map(seed, classes), geometry.place(size, NETWORK)
    ids = postprocess.class_ids(map, placement, classes)
    assert ids.dtype == np.uint8
    assert ids.shape == size
    assert set(np.unique(ids)) <= set(np.unique(geometry.content_of(map, placement)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.integers(2, 7), st.sampled_from([3, 5, 7]))
def test_class_ids_keep_the_centre_of_every_pixel(seed, classes, factor):
    # Noise without blobs: single pixels and hairlines everywhere.
    map = np.random.default_rng(seed).integers(0, classes, (12, 17), dtype=np.uint8)
    ids = postprocess.class_ids(map, filling((12 * factor, 17 * factor), (12, 17)), classes)
    assert np.array_equal(ids[factor // 2 :: factor, factor // 2 :: factor], map)


def test_class_ids_without_a_resize_are_the_ids():
    map, placement = id_map(), filling(NETWORK)
    ids = postprocess.class_ids(map, placement, 5)
    assert np.array_equal(ids, map)
    assert not np.shares_memory(ids, map)


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(33, 150), st.integers(49, 150)), st.integers(0, 20), st.sampled_from([0, 1]))
def test_class_ids_do_not_lean_to_a_side(size, seed, axis):
    map = id_map(seed, 4)
    ids = postprocess.class_ids(map, filling(size), 4)
    flipped = postprocess.class_ids(np.ascontiguousarray(np.flip(map, axis)), filling(size), 4)
    # Interpolation weights round differently from the two ends: pixels on an edge may differ, no more.
    assert (np.flip(ids, axis) != flipped).mean() < 0.002


@pytest.mark.parametrize("third", [0, 2])  # two classes present, and three: different ways to the same answer
def test_class_ids_give_ties_to_the_lower_id(third):
    for left, right in ((0, 1), (1, 0)):
        map = np.repeat(np.array([[left, right]], np.uint8), 12, axis=0)
        map[9:] = third
        ids = postprocess.class_ids(map, filling((36, 5), (12, 2)), 3)
        assert (ids[:15] == [left, left, 0, right, right]).all()


def test_class_ids_smooth_slanted_edges():
    rows, columns = np.ogrid[:64, :96]
    small = (rows * 3 > columns + 40).astype(np.uint8)
    rows, columns = np.ogrid[:512, :768]
    true = (rows + 0.5) / 8 * 3 - 1.5 > (columns + 0.5) / 8 - 0.5 + 40
    placement = filling((512, 768), (64, 96))
    smooth = postprocess.class_ids(small, placement, 2)
    squares = cv2.resize(small, (768, 512), interpolation=cv2.INTER_NEAREST)
    # Squares are fair to this edge on average, so what is left is the height of the stairs.
    shift = [np.diff(np.argmax(ids, axis=0)[20:-20].astype(int)) for ids in (smooth, squares)]
    assert np.abs(shift[0]).max() <= 2
    assert np.abs(shift[1]).max() == 8
    assert (smooth != true).mean() < 0.02


def test_class_ids_keep_a_hairline():
    map = np.zeros(NETWORK, np.uint8)
    cv2.line(map, (5, 4), (40, 28), 1, 1)
    ids = postprocess.class_ids(map, filling((320, 480)), 2)
    assert cv2.connectedComponents(ids)[0] == 2  # the background and one line


def test_class_ids_refuse_ids_beyond_the_classes_but_not_in_the_padding():
    placement = geometry.place((20, 90), NETWORK)
    map = np.full(NETWORK, 7, np.uint8)
    geometry.content_of(map, placement)[:] = 1
    assert (postprocess.class_ids(map, placement, 2) == 1).all()
    with pytest.raises(ValueError, match="2 classes holds the id 7"):
        postprocess.class_ids(map, filling((50, 50)), 2)


def test_threads_do_not_disturb_one_another():
    placement = geometry.place((300, 450), NETWORK)
    jobs = [(soft_map(seed), id_map(seed)) for seed in range(8)]

    def run(job):
        return postprocess.mask_from_map(job[0], placement, 0.5), postprocess.class_ids(job[1], placement, 5)

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, jobs * 4))
    for number, results in enumerate(together):
        assert all(np.array_equal(a, b) for a, b in zip(results, alone[number % 8], strict=True))


@settings(max_examples=60)
@given(
    st.integers(1, 140),
    st.integers(1, 140),
    st.sampled_from([1.0, 0.8, 0.5, 0.3, 0.25, 0.1]),
    st.sampled_from([None, 1, 2, 3, 6]),
    st.integers(1, 30),
)
def test_a_map_that_comes_in_rows_gives_what_the_whole_gives(
    height: int, width: int, scale: float, classes: int | None, rows: int
) -> None:
    network = (max(1, round(height * scale)), max(1, round(width * scale)))
    placement = geometry.place((height, width), network, stretch=True)
    seed = np.random.default_rng(height * width)
    map = seed.integers(0, classes or 256, network, np.uint8)
    taker = postprocess.MapRows(placement, classes)
    parts = [taker.add(map[top : top + rows]) for top in range(0, network[0], rows)]
    found = np.concatenate([part for part in parts if part is not None])
    if classes is None:
        whole = postprocess.probability16(map, placement).astype(int)
        assert np.abs(found.astype(int) - whole).max() <= 3
    else:
        whole = postprocess.class_ids(map, placement, classes)
        # Where two classes have the same share, up to rounding, either may win
        assert (found == whole).mean() >= (1 if scale in (1.0, 0.5, 0.25) else 0.98)


def test_rows_with_an_id_that_no_class_has_are_refused() -> None:
    taker = postprocess.MapRows(geometry.place((8, 8), (8, 8)), 3)
    with pytest.raises(ValueError, match="a map of 3 classes holds the id 3"):
        taker.add(np.full((2, 8), 3, np.uint8))
