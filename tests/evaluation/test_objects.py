"""Figures of objects against counts by hand and by brute force, and what is kept of a picture."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from fractions import Fraction
from math import log
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unet_batch
from unet_batch.datasets.encoding import VOID
from unet_batch.datasets.find import find_dataset
from unet_batch.evaluation.evaluate import evaluate
from unet_batch.evaluation.objects import (
    FIGURES,
    LABELS,
    ObjectCounts,
    ObjectFigures,
    count,
    intervals,
    score_each,
    scores,
)

HUNDREDTHS = range(50, 100, 5)  # the thresholds


def canvas(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (12, 24)) -> np.ndarray:
    """1 inside boxes of (top, left, bottom, right)."""
    mask = np.zeros(size, np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def one(found: np.ndarray, truth: np.ndarray, **options: np.ndarray) -> dict[str, float]:
    """Every figure of one picture and the class 1; `TP` is at 0.5."""
    each = score_each([count(found, truth, (1,), **options)])
    return {name: float(values[0, 0]) for name, values in each.items()}


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Sets of pixels that are connected by their sides."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    parts = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            beside = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & left
            left -= beside
            edge += beside
        parts.append(part)
    return parts


def ellipses(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A few random shapes of 0 and 1, from specks to most of the picture."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(random.integers(0, 6)):
        centre = [int(random.integers(0, side)) for side in size[::-1]]
        axes = [int(reach) for reach in random.integers(0, 7, 2)]
        cv2.ellipse(mask, centre, axes, float(random.integers(180)), 0, 360, 1, -1)
    return mask


class TestByHand:
    def test_perfect_is_one_in_everything(self) -> None:
        truth = canvas((1, 1, 5, 5), (1, 7, 5, 11), (7, 1, 11, 20))
        found = one(truth, truth)
        assert (found["true"], found["found"]) == (3, 3)
        assert {name: found[name] for name in (*FIGURES, "info")} == pytest.approx(
            dict.fromkeys((*FIGURES, "info"), 1)
        )

    def test_nothing_there_and_nothing_found_has_no_figure(self) -> None:
        found = one(canvas(), canvas())
        assert (found["true"], found["found"]) == (0, 0)
        assert np.isnan([found[name] for name in (*FIGURES, "info")]).all()

    def test_all_missed_is_zero(self) -> None:
        found = one(canvas(), canvas((1, 1, 5, 5), (1, 7, 5, 11)))
        assert (found["true"], found["found"]) == (2, 0)
        assert [found[name] for name in ("ap", "ap50", "ap75", "pq", "rq")] == [0] * 5
        assert np.isnan(found["sq"]), "there is no TP whose IoU could be taken"
        # Each of 32 pixels alone against two objects of 16.
        assert found["rand"] == pytest.approx(2 * 32 / (32 + 2 * 16**2))
        assert found["info"] == pytest.approx(2 * log(2) / (log(32) + log(2)))

    def test_only_false_objects_is_zero_without_a_rand(self) -> None:
        found = one(canvas((1, 1, 5, 5)), canvas())
        assert (found["ap"], found["pq"]) == (0, 0)
        assert np.isnan([found["rand"], found["info"]]).all()

    def test_an_iou_of_eight_tenths_passes_six_thresholds(self) -> None:
        """0.5 to 0.75: 0.8 is not over 0.8."""
        found = one(canvas((0, 0, 10, 8)), canvas((0, 0, 10, 10)))
        assert [found[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([0.6, 1, 1])
        assert [found[name] for name in ("pq", "sq", "rq")] == pytest.approx([0.8, 0.8, 1])

    def test_an_iou_of_one_half_is_no_hit(self) -> None:
        """Else two halves of an object would both be one."""
        assert one(canvas((0, 0, 10, 5)), canvas((0, 0, 10, 10)))["ap50"] == 0
        assert one(canvas((0, 0, 10, 6)), canvas((0, 0, 10, 10)))["ap50"] == 1

    def test_one_right_one_false_one_missed(self) -> None:
        truth, found = canvas((1, 1, 5, 5), (1, 7, 5, 11)), canvas((1, 1, 5, 5), (7, 7, 11, 11))
        result = one(found, truth)
        assert result["ap"] == pytest.approx(1 / 3)
        assert result["pq"] == result["rq"] == pytest.approx(1 / (1 + 0.5 + 0.5))

    def test_merged(self) -> None:
        """Two cells with the gap between them found as one."""
        result = one(canvas((0, 0, 4, 9)), canvas((0, 0, 4, 4), (0, 5, 4, 9)))
        assert (result["true"], result["found"], result["ap50"], result["pq"]) == (2, 1, 0, 0)
        assert result["rand"] == pytest.approx(2 * (16**2 + 16**2) / (32**2 + 16**2 + 16**2))
        assert result["info"] == pytest.approx(0, abs=1e-12)

    def test_split(self) -> None:
        """One cell found as two, whose gap of two pixels is shared between them before pairs are counted."""
        result = one(canvas((0, 0, 4, 3), (0, 5, 4, 9)), canvas((0, 0, 4, 9)))
        assert (result["true"], result["found"], result["ap50"], result["pq"]) == (1, 2, 0, 0)
        pairs = 16**2 + 20**2
        assert result["rand"] == pytest.approx(2 * pairs / (pairs + 36**2))

    def test_objects_that_touch_at_corners_are_two(self) -> None:
        diagonal = canvas((0, 0, 4, 4), (4, 4, 8, 8))
        assert one(diagonal, diagonal)["true"] == 2

    def test_a_membrane_of_one_pixel_parts_two_cells_however_it_runs(self) -> None:
        cells = 1 - np.eye(12, 24, dtype=np.uint8)
        assert one(cells, cells)["true"] == 2

    @pytest.mark.parametrize("width", [1, 3, 7])
    def test_the_width_of_found_membranes_counts_in_no_rand(self, width: int) -> None:
        truth, found = np.ones((2, 21, 40), np.uint8)
        truth[10, :] = truth[:, 20] = 0
        found[10 - width // 2 : 11 + width // 2] = found[:, 20 - width // 2 : 21 + width // 2] = 0
        result = one(found, truth)
        assert (result["true"], result["found"]) == (4, 4)
        assert result["rand"] == result["info"] == pytest.approx(1)
        assert (result["sq"] == 1) == (width == 1)

    def test_a_picture_full_of_the_class(self) -> None:
        full = np.ones((12, 24), np.uint8)
        assert one(full, full)["rand"] == one(full, full)["pq"] == 1

    def test_each_class_has_its_own_objects(self) -> None:
        truth, found = canvas((1, 1, 5, 5)), canvas((1, 1, 5, 5))
        truth[6:10, 6:10] = 2
        result = scores([count(found, truth, (1, 2))])
        assert result.pooled["pq"].tolist() == [1, 0]
        assert result.mean("pq") == 0.5
        assert result.true.tolist() == [1, 1]
        assert result.found.tolist() == [1, 0]


class TestKnownObjects:
    def test_objects_that_touch_are_told_apart(self) -> None:
        numbers = canvas((0, 0, 8, 8)).astype(np.int32) * 3
        numbers[:, 8:16] = canvas((0, 8, 8, 16))[:, 8:16] * 7
        truth = (numbers > 0).astype(np.uint8)
        together = one(truth, truth, objects=numbers)
        assert (together["true"], together["found"], together["ap50"]) == (2, 1, 0)
        assert one(truth, truth)["ap50"] == 1, "a mask alone knows of one object"

    def test_an_object_in_two_pieces_is_one(self) -> None:
        truth = canvas((0, 0, 8, 8), (0, 9, 8, 12))
        result = one(truth, truth, objects=truth.astype(np.int32))
        assert (result["true"], result["found"], result["ap50"]) == (1, 2, 0.5)

    def test_objects_of_other_classes_do_not_count(self) -> None:
        truth = canvas((0, 0, 4, 4))
        truth[6:10, 6:10] = 2
        numbers = np.where(truth == 1, 1, np.where(truth == 2, 2, 0)).astype(np.int32)
        assert one(canvas((0, 0, 4, 4)), truth, objects=numbers)["pq"] == 1


class TestVoid:
    def test_counts_in_no_iou(self) -> None:
        truth = canvas((0, 0, 10, 10))
        truth[:, 10:] = VOID
        assert one(canvas((0, 0, 10, 14)), truth)["ap"] == 1

    def test_what_is_found_in_void_by_more_than_half_is_not_false(self) -> None:
        truth = canvas((0, 0, 4, 4))
        truth[:, 10:] = VOID
        inside, across, outside = (canvas((0, 0, 4, 4), (6, left, 10, left + 4)) for left in (12, 7, 5))
        assert [one(found, truth)["ap50"] for found in (inside, across, outside)] == [1, 0.5, 0.5]
        assert one(canvas((0, 0, 4, 4), (6, 9, 10, 13)), truth)["ap50"] == 1, "three of four columns"

    def test_all_void_has_no_figure(self) -> None:
        result = one(canvas((0, 0, 4, 4)), np.full((12, 24), VOID, np.uint8))
        assert (result["true"], result["found"]) == (0, 0)
        assert np.isnan(result["ap"])


class TestBruteForce:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.booleans())
    def test_ap_and_pq(self, seed: int, void: bool) -> None:
        random = np.random.default_rng(seed)
        size = tuple(int(side) for side in random.integers(1, 26, 2))
        truth, found = ellipses(seed, size), ellipses(seed + 1, size)
        if random.random() < 0.7:  # about the same
            found = np.roll(truth, random.integers(-1, 2, 2), (0, 1))
        if void:
            truth[random.random(size) < 0.1] = VOID
        known = {(int(row), int(column)) for row, column in np.argwhere(truth != VOID)}
        true, seen = components(truth == 1), components(found == 1)
        iou = [[Fraction(len(a & b & known), len(a | b & known)) for b in seen] for a in true]
        precision = []
        for threshold in HUNDREDTHS:
            hits = [(a, b) for a, row in enumerate(iou) for b, v in enumerate(row) if 100 * v > threshold]
            assert len({a for a, _ in hits}) == len({b for _, b in hits}) == len(hits), "nothing to assign"
            false = [
                b
                for b, part in enumerate(seen)
                if b not in {b for _, b in hits} and 2 * len(part & known) >= len(part)
            ]
            total = len(true) + len(false)
            precision.append(len(hits) / total if total else np.nan)
            if threshold == 50:
                quality = 2.0 * sum(iou[a][b] for a, b in hits)
                pq = quality / (total + len(hits)) if total else np.nan
        result = one(found, truth)
        assert result["true"] == len(true)
        assert result["ap"] == pytest.approx(np.mean(precision), nan_ok=True)
        assert (result["ap50"], result["ap75"]) == pytest.approx((precision[0], precision[5]), nan_ok=True)
        assert result["pq"] == pytest.approx(pq, nan_ok=True)
        assert result["sq"] * result["rq"] == pytest.approx(result["pq"], nan_ok=True) or result["pq"] == 0

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_rand_is_the_share_of_pairs_of_pixels(self, seed: int) -> None:
        """Of found objects that leave no pixel between them, so that nothing has to grow."""
        random = np.random.default_rng(seed)
        size = tuple(int(side) for side in random.integers(1, 9, 2))
        truth = (random.random(size) < 0.7).astype(np.uint8)
        found = np.ones(size, np.uint8)
        found[:, random.integers(size[1])] = 0  # a border, which lies outside the truth
        truth[found == 0] = 0
        labels = {pixel: n for n, part in enumerate(components(truth)) for pixel in part}
        others = {pixel: n for n, part in enumerate(components(found)) for pixel in part}
        both = ours = theirs = 0
        for one_pixel, other in itertools.product(labels, repeat=2):
            same, alike = labels[one_pixel] == labels[other], others[one_pixel] == others[other]
            both, ours, theirs = both + (same and alike), ours + alike, theirs + same
        result = one(found, truth)
        if not labels:
            assert np.isnan(result["rand"])
            return
        precision, recall = both / ours, both / theirs
        assert result["rand"] == pytest.approx(2 * precision * recall / (precision + recall))

        def entropy(values: list[object]) -> float:
            return -sum(n / len(values) * log(n / len(values)) for n in Counter(values).values())

        h_true, h_found = entropy(list(labels.values())), entropy([others[p] for p in labels])
        shared = h_true + h_found - entropy([(labels[p], others[p]) for p in labels])
        expected = 2 * shared / (h_true + h_found) if h_true + h_found > 0 else 1
        assert result["info"] == pytest.approx(expected, abs=1e-9)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_a_pixel_of_a_border_goes_to_the_nearest_object(self, seed: int) -> None:
        """OpenCV's distances with a mask of 5x5 are off by a few per cent."""
        from unet_batch.evaluation import objects

        mask = ellipses(seed, (20, 30))
        parts = components(mask)
        if not parts:
            return
        labels = np.zeros(mask.shape, np.int32)
        for number, part in enumerate(parts, 1):
            labels[tuple(np.array(list(part)).T)] = number
        grown = objects._grow(labels)
        assert np.array_equal(grown[labels > 0], labels[labels > 0])
        rows, columns = np.indices(mask.shape)
        to_each = [
            np.min([np.hypot(rows - row, columns - column) for row, column in part], axis=0) for part in parts
        ]
        taken = np.take_along_axis(np.array(to_each), grown[None] - 1, 0)[0]
        assert (taken <= 1.05 * np.min(to_each, axis=0)).all()


class TestManyPictures:
    def pictures(self, number: int, groups: int = 3) -> list[ObjectCounts]:
        made = []
        for index in range(number):
            truth = ellipses(index, (24, 30))
            found = np.roll(truth, index % 3, 1) if index % 2 else ellipses(index + 1000, (24, 30))
            made.append(count(found, truth, (1,), key=str(index), group=str(index % groups)))
        return made

    def test_pooled_and_per_picture_differ(self) -> None:
        many = canvas((0, 0, 4, 4), (0, 5, 4, 9), (0, 10, 4, 14))
        lone = canvas((6, 0, 10, 4))
        result = scores([count(many, many, (1,)), count(canvas(), lone, (1,))])
        assert result.pooled["ap"] == pytest.approx(3 / 4)
        assert result.per_picture["ap"] == pytest.approx(1 / 2)
        assert result.pooled["pq"] == pytest.approx(3 / 3.5)
        assert (result.true[0], result.found[0]) == (4, 3)

    def test_pictures_without_any_object_count_in_no_mean(self) -> None:
        truth = canvas((0, 0, 4, 4))
        result = scores([count(truth, truth, (1,)), count(canvas(), canvas(), (1,))])
        assert (
            result.per_picture["ap"][0],
            result.pooled["ap"][0],
            result.mean("info", per_picture=True),
        ) == (
            1,
            1,
            1,
        )

    def test_the_mean_of_pictures_is_that(self) -> None:
        counts = self.pictures(20)
        each, together = score_each(counts), scores(counts)
        for name, values in together.per_picture.items():
            assert values[0] == pytest.approx(np.nanmean(each[name])), name

    def test_intervals_are_those_of_whole_groups(self) -> None:
        counts = self.pictures(12)
        figures = {
            "ap": lambda found: found.mean("ap", per_picture=True),
            "pq": lambda found: found.mean("pq"),
        }
        random = np.random.default_rng(0)
        drawn = []
        for start in range(0, 1000, 64):
            for draw in random.integers(0, 3, (min(64, 1000 - start), 3)):
                sample = [each for group in draw for each in counts if each.group == str(group)]
                drawn.append([figure(scores(sample)) for figure in figures.values()])
        expected = np.quantile(drawn, [0.025, 0.975], axis=0).T
        for ends, wanted in zip(intervals(counts, figures).values(), expected, strict=True):
            assert ends == pytest.approx(tuple(wanted))

    def test_what_is_kept_of_a_picture_is_a_few_numbers(self) -> None:
        mask = ellipses(3, (600, 800))
        kept = count(mask, mask, (1, 2)).numbers
        assert kept.nbytes == 2 * 208
        assert kept.base is None, "or the picture would stay in memory"

    def test_many_pictures_take_little_memory(self) -> None:
        """A hundred thousand take 50 MB, and 250 while they are judged."""
        numbers, pictures = self.pictures(1)[0].numbers, 20_000
        tracemalloc.start()
        try:
            counts = [ObjectCounts("", str(index % 50), numbers.copy()) for index in range(pictures)]
            kept = tracemalloc.get_traced_memory()[0]
            figures = ObjectFigures(tuple(counts), ("nucleus",), annotated=False)
            assert set(figures.intervals) == set(LABELS)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert kept < 500 * pictures
        assert peak < 2500 * pictures


class TestFigures:
    def test_as_json(self) -> None:
        truth = canvas((1, 1, 5, 5))
        counts = [count(truth, truth, (1,), key=key, group=key) for key in "ab"]
        facts = ObjectFigures(tuple(counts), ("nucleus",), annotated=True).as_dict()
        assert facts["true_objects"] == "annotated"
        assert facts["connectivity"] == 4
        assert facts["true"] == {"nucleus": 2}
        assert isinstance(facts["true"]["nucleus"], int)
        assert facts["pooled"]["pq"] == {"nucleus": 1}
        assert facts["per_picture"]["info"] == {"nucleus": 1}
        assert facts["mean"]["ap_per_picture"] == facts["mean"]["ap"] == 1
        assert facts["intervals"]["pq"] == facts["intervals"]["rand_per_picture"] == [1, 1]

    def test_without_a_true_object_null(self) -> None:
        facts = ObjectFigures(
            (count(canvas(), canvas(), (1,), key="a"),), ("car",), annotated=False
        ).as_dict()
        assert facts["mean"]["pq"] is None
        assert facts["intervals"] == {}, "one group says nothing of others"


@pytest.mark.parametrize("name", ["dsb2018", "isbi2012"])
def test_on_real_cells(data: Path, name: str) -> None:
    """A model of cars finds none of them, eroded truth all; thinning makes up for what erosion took."""
    dataset = find_dataset(str(data / name))
    pairs = dataset.pairs[:3]
    with unet_batch.load("fast", device="cpu") as segmenter:
        cars = evaluate(dataset, pairs, segmenter, objects=True).objects
    assert cars is not None
    assert cars.names == ("car",)
    truths = [dataset.read_mask(pair) for pair in pairs]
    assert cars.scores.true[0] == sum(
        cv2.connectedComponents(truth, connectivity=4)[0] - 1 for truth in truths
    )
    assert cars.headline("ap") < 0.1
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    eroded = scores([count(cv2.erode(truth, cross), truth, (1,)) for truth in truths])
    assert eroded.mean("ap") < 0.95
    assert eroded.mean("rand") > 0.97
    perfect = scores([count(truth, truth, (1,)) for truth in truths])
    assert [perfect.mean(figure) for figure in FIGURES] == pytest.approx([1] * len(FIGURES))
