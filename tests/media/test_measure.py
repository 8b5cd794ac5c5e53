"""Figures of masks, beside scikit-image's."""

from __future__ import annotations

import math
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.errors import UsageError
from unet_batch.media import measure
from unet_batch.media.measure import Measuring, PixelSize
from unet_batch.types import Metadata

skimage = pytest.importorskip("skimage", reason="scikit-image judges")


def random_mask(seed: int) -> np.ndarray:
    """Blobs, specks or stripes of any share of the picture."""
    rng = np.random.default_rng(seed)
    noise = rng.random(tuple(rng.integers(1, 60, 2))).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.3, 4)))
    return (smooth > np.quantile(smooth, rng.uniform(0, 1))).astype(np.uint8)


def test_figures_are_those_of_regionprops_on_200_masks() -> None:
    from skimage.measure import label, regionprops

    for seed in range(200):
        mask = random_mask(seed)
        values = np.random.default_rng(seed).integers(0, 256, mask.shape).astype(np.uint8)
        objects = measure.find_objects(mask, [1])
        count = len(objects.classes)
        assert np.array_equal(objects.labels > 0, mask > 0)
        assert count == label(mask).max()
        found = measure.measure_regions(objects.labels)
        means = measure.sum_of(objects.labels, values, count) / found.pixels
        for at, region in enumerate(regionprops(objects.labels, values)):
            top, left, bottom, right = region.bbox
            assert found.pixels[at] == region.area
            assert found.boxes[at].tolist() == [left, top, right - left, bottom - top]
            assert found.centroids[at] == pytest.approx(region.centroid[::-1])
            assert found.perimeters[at] == pytest.approx(region.perimeter)
            axes = region.axis_major_length, region.axis_minor_length
            assert found.axes[at] == pytest.approx(axes, abs=1e-6)
            assert math.sin(found.orientations[at] - region.orientation) == pytest.approx(0, abs=1e-6)
            assert means[at] == pytest.approx(region.intensity_mean)
        assert count == at + 1 if count else found.pixels.size == 0


@given(st.integers(0, 2**16), st.integers(0, 40), st.integers(0, 40))
def test_figures_do_not_depend_on_where_an_object_lies(seed: int, down: int, across: int) -> None:
    mask = random_mask(seed)
    here = measure.measure_regions(measure.find_objects(mask, [1]).labels)
    moved = measure.measure_regions(measure.find_objects(np.pad(mask, ((down, 3), (across, 2))), [1]).labels)
    assert np.array_equal(here.pixels, moved.pixels)
    assert np.array_equal(here.boxes + np.array([across, down, 0, 0]), moved.boxes)
    assert np.allclose(here.centroids + np.array([across, down]), moved.centroids)
    assert np.array_equal(here.perimeters, moved.perimeters)
    assert np.array_equal(here.axes, moved.axes)


def test_objects_of_several_classes_touch_and_stay_apart() -> None:
    ids = np.zeros((20, 30), np.uint8)
    ids[2:8, 2:8], ids[2:8, 8:14], ids[12:15, 20:28] = 2, 1, 1
    objects = measure.find_objects(ids, [1, 2])
    assert objects.classes.tolist() == [1, 1, 2]
    assert [int(objects.labels[at]) for at in ((3, 10), (13, 25), (3, 3), (0, 0))] == [1, 2, 3, 0]
    found = measure.measure_regions(objects.labels)
    assert found.pixels.tolist() == [36, 24, 36]
    assert found.perimeters[0] == found.perimeters[2], "the neighbour is no part of it"


def two_discs(gap: int) -> np.ndarray:
    ids = np.zeros((60, 100), np.uint8)
    for x in (32, 32 + gap):
        cv2.circle(ids, (x, 30), 18, 1, -1)
    return ids


def test_the_watershed_splits_what_touches() -> None:
    ids = two_discs(32)
    whole, split = measure.find_objects(ids, [1]), measure.find_objects(ids, [1], watershed=10)
    assert len(whole.classes) == 1
    assert len(split.classes) == 2
    assert np.array_equal(split.labels > 0, ids > 0), "no pixel is lost"
    left, right = measure.measure_regions(split.labels).centroids
    assert left == pytest.approx((32, 30), abs=1.5)
    assert right == pytest.approx((64, 30), abs=1.5)
    assert len(measure.find_objects(two_discs(8), [1], watershed=10).classes) == 1, "one thing stays one"


def test_the_watershed_loses_no_component() -> None:
    ids = np.zeros((40, 60), np.uint8)
    ids[5, 5] = ids[5, 7] = 1  # specks nearer to each other than seeds
    ids[20:35, 20:50] = 1
    assert len(measure.find_objects(ids, [1], watershed=20).classes) >= 3
    everything = np.ones((16, 16), np.uint8)
    assert len(measure.find_objects(everything, [1], watershed=3).classes) == 1


@pytest.mark.parametrize("value", range(256))
def test_certainty_of_a_map_of_one_value(value: int) -> None:
    p = value / 255
    confidence, entropy, unsure = measure.certainty(np.full((3, 4), value, np.uint8))
    assert confidence == pytest.approx(max(p, 1 - p))
    bits = -sum(q * math.log2(q) for q in (p, 1 - p) if q)
    assert entropy == pytest.approx(bits)
    assert unsure == (0.1 <= p <= 0.9)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0.5um", PixelSize(0.5, 0.5, "um")),
        ("0.5 µm", PixelSize(0.5, 0.5, "um")),
        ("0.25", PixelSize(0.25, 0.25)),
        (".3x0.2mm", PixelSize(0.3, 0.2, "mm")),
    ],
)
def test_sizes_of_pixels_are_read(text: str, size: PixelSize) -> None:
    assert PixelSize.parse(text) == size
    assert PixelSize.parse(str(size)) == size


@pytest.mark.parametrize("text", ["", "um", "0", "0x1", "-1um", "1 parsec", "1x", "1e3"])
def test_what_is_no_size_of_a_pixel_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size of a pixel"):
        PixelSize.parse(text)


def geo(scale: tuple[float, float, float], *keys: tuple[int, int]) -> Metadata:
    directory = (1, 1, 0, len(keys), *(part for key, value in keys for part in (key, 0, 1, value)))
    return Metadata(geo=((33550, scale), (34735, directory)))


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        (Metadata(), None),
        (Metadata(dpi=(72.0, 72.0)), None),
        (Metadata(dpi=(254.0, 508.0)), PixelSize(0.05, 0.1, "mm")),
        (geo((0.5, 0.25, 0.0), (1024, 1), (3076, 9001)), PixelSize(0.25, 0.5, "m")),
        (geo((1e-5, 1e-5, 0.0), (1024, 2)), None),
        (geo((0.5, 0.5, 0.0), (1024, 1)), None),
    ],
)
def test_what_files_say_of_their_pixels(metadata: Metadata, size: PixelSize | None) -> None:
    found = PixelSize.of(metadata)
    if size is None:
        assert found is None
    else:
        assert found is not None
        assert (found.height, found.width) == pytest.approx((size.height, size.width))
        assert found.unit == size.unit


def test_the_watershed_is_asked_for_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="watershed 0"):
        Measuring(watershed=0)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UsageError, match="needs scikit-image"):
        Measuring(watershed=5)
    assert Measuring().facts() == {}
