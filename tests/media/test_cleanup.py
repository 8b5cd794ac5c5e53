"""Masks are cleaned of what is asked for, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from unet_batch.errors import UsageError
from unet_batch.media.cleanup import NONE, Cleanup, settle
from unet_batch.media.render import class_table
from unet_batch.types import ClassTable

ONE = ClassTable(("car",), ((255, 0, 0),))
SEVERAL = class_table(["background", "car", "road"])
GROUNDLESS = class_table(["car", "road", "sky"])
EVERYTHING = Cleanup((), "5", "all", largest=True)
EIGHT = np.ones((3, 3))

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
masks = arrays(np.bool_, sizes).map(lambda mask: mask.astype(np.uint8) * 255)
ids = arrays(np.uint8, sizes, elements=st.integers(0, 2))
areas = st.one_of(st.just(""), st.integers(1, 20).map(str), st.sampled_from(["5%", "0.7%", "30%"]))
cleanups = st.builds(
    Cleanup,
    st.sampled_from([(), ("car",)]),
    areas,
    st.one_of(areas, st.just("all")),
    st.booleans(),
)


def components(region: np.ndarray) -> list[int]:
    """Areas of the 8-connected components."""
    labels, count = ndimage.label(region, EIGHT)
    return [int(np.count_nonzero(labels == label)) for label in range(1, count + 1)]


@given(masks, cleanups)
@settings(max_examples=80, deadline=None)
def test_of_one_class(mask: np.ndarray, cleanup: Cleanup) -> None:
    before, kept = mask.copy(), cleanup(mask, ONE)
    assert (mask == before).all()
    assert set(np.unique(kept)) <= {0, 255}
    assert np.array_equal(cleanup(kept, ONE), kept), "twice is once"
    assert len(components(kept)) <= len(components(mask)), "no component is added"
    assert not cleanup.largest or len(components(kept)) <= 1


@pytest.mark.parametrize("table", [SEVERAL, GROUNDLESS])
@given(found=ids, cleanup=cleanups)
@settings(max_examples=80, deadline=None)
def test_of_several_classes(table: ClassTable, found: np.ndarray, cleanup: Cleanup) -> None:
    kept = cleanup(found, table)
    nothing = 0 if table is SEVERAL else NONE
    assert np.array_equal(cleanup(kept, table), kept), "twice is once"
    for id, name in enumerate(table.names):
        if id == nothing:
            continue
        if cleanup.classes and name not in cleanup.classes:
            assert not (kept == id).any()
        assert len(components(kept == id)) <= len(components(found == id))
    changed = kept != found
    dropped = changed & (kept == nothing)
    filled = changed & (kept != nothing)
    assert (dropped | filled | ~changed).all(), "no class turns into another, but where it was dropped"


@given(masks, st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_min_area_is_exact(mask: np.ndarray, least: int) -> None:
    kept = Cleanup(min_area=str(least))(mask, ONE)
    labels, count = ndimage.label(mask, EIGHT)
    for label in range(1, count + 1):
        region = labels == label
        assert (kept[region] == (255 if np.count_nonzero(region) >= least else 0)).all()
    assert not kept[mask == 0].any()


@given(masks)
@settings(max_examples=50, deadline=None)
def test_holes_are_those_of_scipy(mask: np.ndarray) -> None:
    assert np.array_equal(Cleanup(fill_holes="all")(mask, ONE) > 0, ndimage.binary_fill_holes(mask))


def test_a_share_is_of_the_picture() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[10:20, 10:20] = 255  # one per cent
    mask[50:60, 50:59] = 255
    kept = Cleanup(min_area="1%")(mask, ONE)
    assert kept[10:20, 10:20].all()
    assert not kept[50:].any()
    mask[12:16, 12:16] = 0
    assert not Cleanup(fill_holes="0.15%")(mask, ONE)[14, 14]
    assert Cleanup(fill_holes="0.16%")(mask, ONE)[14, 14]


def test_a_hole_with_another_object_in_it_stays() -> None:
    found = np.zeros((9, 9), np.uint8)
    found[1:8, 1:8] = 1
    found[3:6, 3:6] = 0
    found[4, 4] = 2
    assert np.array_equal(Cleanup(fill_holes="all")(found, SEVERAL), found)
    filled = Cleanup(fill_holes="all", min_area="2")(found, SEVERAL)
    assert (filled[1:8, 1:8] == 1).all(), "but for one that is dropped"


def test_the_largest_of_each_class() -> None:
    found = np.array([[1, 1, 0, 2, 0, 1], [0, 0, 0, 2, 0, 1], [2, 0, 0, 2, 0, 1]], np.uint8)
    expected = np.array([[0, 0, 0, 2, 0, 1], [0, 0, 0, 2, 0, 1], [0, 0, 0, 2, 0, 1]], np.uint8)
    assert np.array_equal(Cleanup(largest=True)(found, SEVERAL), expected)


@pytest.mark.parametrize("text", ["-3", "0", "1.5", "abc", "5 %%", "0%", "all"])
def test_what_is_no_area(text: str) -> None:
    with pytest.raises(UsageError, match=r"--min-area .*no area"):
        Cleanup(min_area=text)
    if text != "all":
        with pytest.raises(UsageError, match="--fill-holes"):
            Cleanup(fill_holes=text)


def test_classes_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="cars has no class bus") as info:
        Cleanup(("car", "bus")).check(SEVERAL, "cars")
    assert "background, car, road" in info.value.hint
    many = ClassTable(tuple(map(str, range(1, 257))), ((1, 1, 1),) * 256)
    with pytest.raises(UsageError, match="256 classes and no background"):
        Cleanup(min_area="5").check(many, "many")
    Cleanup().check(many, "many")
    EVERYTHING.check(ONE, "cars")
    EVERYTHING.check(GROUNDLESS, "streets")


@given(arrays(np.uint8, sizes), st.data())
@settings(max_examples=50, deadline=None)
def test_opacity_follows_the_mask(alpha: np.ndarray, data: st.DataObject) -> None:
    raw = np.where(alpha >= 128, np.uint8(255), np.uint8(0))
    cleaned = data.draw(arrays(np.bool_, alpha.shape)).astype(np.uint8) * 255
    settled = settle(alpha, raw, cleaned)
    assert np.array_equal(settled >= 128, cleaned > 0)
    assert np.array_equal(settle(alpha, raw, raw), alpha)


def test_the_halo_of_what_is_gone_is_gone() -> None:
    alpha = np.zeros((20, 40), np.uint8)
    for left, right in ((2, 12), (22, 32)):
        alpha[4:16, left:right] = 60
        alpha[6:14, left + 2 : right - 2] = 255
    raw = np.where(alpha >= 128, np.uint8(255), np.uint8(0))
    cleaned = raw.copy()
    cleaned[:, 20:] = 0
    settled = settle(alpha, raw, cleaned)
    assert not settled[:, 20:].any()
    assert np.array_equal(settled[:, :20], alpha[:, :20])
