"""Components of a mask that comes in bands have the figures of those of the whole."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.media import measure
from unet_batch.media.measure_bands import BandMeasurer, Finished


def in_bands(ids: np.ndarray, cuts: list[int], classes: list[int], *maps: np.ndarray) -> list[Finished]:
    measurer, edges = BandMeasurer(classes, len(maps)), [0, *cuts, len(ids)]
    found = [
        measurer.add(ids[top:bottom], *(map[top:bottom] for map in maps)) for top, bottom in pairwise(edges)
    ]
    return [*found, measurer.finish()]


def table(classes: np.ndarray, found: measure.Regions, sums: np.ndarray) -> np.ndarray:
    """A row for each component."""
    return np.column_stack(
        [
            classes,
            found.pixels,
            found.boxes,
            found.centroids,
            found.orientations,
            found.axes,
            found.perimeters,
            sums.T,
        ]
    )


def whole(ids: np.ndarray, classes: list[int], *maps: np.ndarray) -> np.ndarray:
    """The same of all of it at once, in the order of the last rows and the left ends."""
    objects = measure.find_objects(ids, classes)
    found = measure.measure_regions(objects.labels)
    sums = [measure.sum_of(objects.labels, map, len(objects.classes)) for map in maps]
    rows = table(objects.classes, found, np.array(sums).reshape(len(maps), len(objects.classes)))
    kinds = np.array([classes.index(each) for each in objects.classes])
    left, top, _, height = found.boxes.T
    return rows[np.lexsort((kinds, top, left, top + height))]


def pictures(seed: int, classes: int) -> np.ndarray:
    """Ids: specks, blobs or mazes, some of them with a row or a column of one class through all."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    noise = rng.random((height, width, classes)).astype(np.float32)
    if (blur := rng.uniform(0, 3)) > 0.5:
        noise = cv2.GaussianBlur(noise, (0, 0), blur).reshape(noise.shape)
    ids = np.argmax(noise, 2).astype(np.uint8)
    if seed % 3 == 0:
        ids[:, rng.integers(width)] = rng.integers(classes)
    return np.asarray(ids, np.uint8)


@given(st.integers(0, 2**16), st.integers(2, 4), st.lists(st.integers(0, 40), max_size=40), st.booleans())
def test_figures_are_those_of_the_whole(seed: int, count: int, cuts: list[int], backgrounds: bool) -> None:
    ids = pictures(seed, count)
    classes = list(range(count))[0 if backgrounds else 1 :]
    maps = np.random.default_rng(seed).integers(0, 256, (2, *ids.shape)).astype(np.uint8)
    cuts = sorted({cut for cut in cuts if 0 < cut < len(ids)})
    found = in_bands(ids, cuts, classes, *maps)
    rows = np.concatenate([table(each.classes, each.regions, each.sums) for each in found])
    expected = whole(ids, classes, *maps)
    assert rows.shape == expected.shape
    exact = [0, 1, 2, 3, 4, 5, 12, 13]  # class, pixels, box, sums
    np.testing.assert_array_equal(rows[:, exact], expected[:, exact])
    np.testing.assert_allclose(rows, expected, rtol=1e-9, atol=1e-9)


def spiral(side: int) -> np.ndarray:
    """One line that winds inwards, two pixels apart from itself."""
    ids = np.zeros((side, side), np.uint8)
    for ring in range(0, side // 2, 4):
        cv2.rectangle(ids, (ring, ring), (side - 1 - ring, side - 1 - ring), 1)
        ids[ring + 1 : ring + 4, ring] = 0
        ids[ring + 4, ring : ring + 5] = 1
    return ids


@pytest.mark.parametrize("step", [1, 2, 7])
def test_what_winds_over_all_bands_is_one_thing(step: int) -> None:
    ids = spiral(60)
    found = in_bands(ids, list(range(step, 60, step)), [1])
    rows = np.concatenate([table(each.classes, each.regions, each.sums) for each in found])
    np.testing.assert_allclose(rows, whole(ids, [1]), rtol=1e-9)
    assert [len(each.classes) for each in found] == [0] * (len(found) - 1) + [1]


def test_combs_that_meet_far_below_and_far_above() -> None:
    ids = np.zeros((30, 81), np.uint8)
    ids[:, ::2] = 1
    assert len(whole(ids, [1])) == 41
    for joint, before in ((29, 0), (0, 0), (15, 0)):
        comb = ids.copy()
        comb[joint] = 1
        found = in_bands(comb, list(range(1, 30)), [1])
        assert [len(each.classes) for each in found] == [before] * 30 + [1]
        assert found[-1].regions.pixels.tolist() == [np.count_nonzero(comb)]


def test_what_is_finished_is_handed_out_at_once_and_forgotten() -> None:
    """A hundred thousand objects in 10 MB of pixels; no band has more than 2,000 of them."""
    tile = np.zeros((10, 10), np.uint8)
    cv2.circle(tile, (4, 4), 3, 1, -1)
    band = np.tile(tile, (10, 200))
    measurer = BandMeasurer([1], 1)
    tracemalloc.start()
    try:
        counts = [len(measurer.add(band, band).classes) for _ in range(50)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counts.append(len(measurer.finish().classes))
    assert sum(counts) == 100_000
    assert max(counts) <= 2000
    assert counts[-1] <= 200
    assert peak < 20e6


def test_sums_stay_true_far_from_the_corner() -> None:
    """Squares of what 40,000 rows are counted by would leave nothing of a speck's shape."""
    speck = np.zeros((12, 9), np.uint8)
    cv2.ellipse(speck, (4, 6), (3, 5), 20, 0, 360, 1, -1)
    measurer = BandMeasurer([1])
    for _ in range(100):
        measurer.add(np.zeros((400, 9), np.uint8))
    measurer.add(speck)
    found, here = measurer.finish().regions, measure.measure_regions(measure.find_objects(speck, [1]).labels)
    np.testing.assert_allclose(found.axes, here.axes, rtol=1e-9)
    np.testing.assert_allclose(found.centroids, here.centroids + np.array([0, 40_000]), rtol=1e-12)


def test_a_component_of_billions_of_pixels_has_the_figures_of_a_rectangle() -> None:
    piece = measure.pieces_of(np.ones((1, 1000), np.int32))
    tall = measure.Pieces(np.tile(piece.boxes, (1, 2)), np.tile(piece.sums, (1, 2)))
    for doubling in range(24):  # rows below rows
        boxes = tall.boxes + np.array([[0, 0], [0, 2**doubling], [0, 0], [0, 2**doubling]])
        one = measure.Pieces(boxes, tall.sums).joined(np.zeros(2, np.int64), 1)
        tall = measure.Pieces(np.tile(one.boxes, (1, 2)), np.tile(one.sums, (1, 2)))
    found = one.regions(np.zeros(1))
    assert found.pixels.tolist() == [2**24 * 1000]
    np.testing.assert_allclose(
        found.axes[0], [4 * np.sqrt((4.0**24 - 1) / 12), 4 * np.sqrt((1e6 - 1) / 12)], rtol=1e-9
    )


def test_nothing_has_no_components() -> None:
    measurer = BandMeasurer([1])
    assert len(measurer.finish().classes) == 0
    assert [len(each.classes) for each in in_bands(np.zeros((9, 5), np.uint8), [3], [1])] == [0, 0, 0]
