"""Figures against counts by hand, against torchmetrics, and the laws they obey."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from unet_batch.datasets.encoding import VOID
from unet_batch.errors import UsageError
from unet_batch.evaluation import objects
from unet_batch.evaluation.metrics import (
    BOUNDARY_TOLERANCE,
    LABELS,
    Counts,
    Scores,
    count,
    intervals,
    label,
    score_each,
    scores,
)


def interval(
    counts: list[Counts], figure: Callable[[Scores], float], samples: int = 1000
) -> tuple[float, float]:
    """The interval of one figure."""
    return intervals(counts, {"": figure}, samples=samples)[""]


def masks(
    seed: int, classes: int, pictures: int = 3, void: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(pictures):
        found, truth = random.integers(0, classes, (2, 12, 17)).astype(np.uint8)
        truth = np.where(random.random(truth.shape) < 0.7, found, truth).astype(np.uint8)
        if void:
            truth[random.random(truth.shape) < 0.1] = VOID
        made.append((found, truth))
    return made


def test_by_hand() -> None:
    truth = np.array([[1, 1, 0, VOID], [1, 0, 0, VOID]], np.uint8)
    found = np.array([[1, 0, 0, 1], [1, 1, 0, 0]], np.uint8)
    result = scores([count(found, truth, 2)])
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.pooled["dice"][1] == pytest.approx(2 * 2 / (3 + 3))
    assert result.pooled["iou"].tolist() == pytest.approx([2 / 4, 2 / 4])
    assert result.pooled["precision"][1] == pytest.approx(2 / 3)
    assert result.pooled["recall"][1] == pytest.approx(2 / 3)


def test_pooled_and_per_picture_differ() -> None:
    """A large picture that is right and a small object that is missed."""
    large, small = np.ones((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    truth = small.copy()
    truth[0, 0] = 1
    result = scores([count(large, large, 2), count(small, truth, 2)])
    assert result.pooled["dice"][1] == pytest.approx(2 * 100 / 201)
    assert result.per_picture["dice"][1] == pytest.approx((1 + 0) / 2)


def test_a_class_that_occurs_nowhere_has_no_figures() -> None:
    empty = np.zeros((4, 4), np.uint8)
    result = scores([count(empty, empty, 3)])
    assert np.isnan(result.pooled["dice"][1:]).all()
    assert np.isnan(result.per_picture["iou"][1:]).all()
    assert np.isnan(result.pooled["boundary_f1"][1:]).all()
    assert result.as_dict(["a", "b", "c"])["pooled"]["dice"] == {"a": 1.0, "b": None, "c": None}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_agrees_with_torchmetrics(seed: int, classes: int) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification", reason="needs torchmetrics")
    pairs = masks(seed, classes)
    result = scores([count(found, truth, classes) for found, truth in pairs])
    found = torch.from_numpy(np.stack([found for found, _ in pairs]).astype(np.int64))
    truth = torch.from_numpy(np.stack([truth for _, truth in pairs]).astype(np.int64))
    common = {"num_classes": classes, "ignore_index": VOID}
    for metric, theirs, options in (
        ("iou", functional.multiclass_jaccard_index, {"average": "none"}),
        ("dice", functional.multiclass_f1_score, {"average": "none"}),
        ("precision", functional.multiclass_precision, {"average": "none"}),
        ("recall", functional.multiclass_recall, {"average": "none"}),
    ):
        expected = theirs(found, truth, **common, **options).numpy()
        assert np.nan_to_num(result.pooled[metric]) == pytest.approx(expected, abs=1e-6), metric
    accuracy = functional.multiclass_accuracy(found, truth, **common, average="micro")
    assert result.accuracy == pytest.approx(float(accuracy), abs=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_laws(seed: int, classes: int) -> None:
    pairs = masks(seed, classes)
    result = scores([count(found, truth, classes) for found, truth in pairs])
    dice, iou = result.pooled["dice"], result.pooled["iou"]
    assert dice == pytest.approx(2 * iou / (1 + iou), nan_ok=True)
    perfect = scores(
        [count(np.where(truth == VOID, 0, truth).astype(np.uint8), truth, classes) for _, truth in pairs]
    )
    assert perfect.accuracy == 1
    assert np.nanmin(perfect.pooled["dice"]) == 1
    swapped = scores(
        [
            count(found, np.where(truth == VOID, found, truth).astype(np.uint8), classes)
            for found, truth in pairs
        ]
    )
    assert 0 <= swapped.accuracy <= 1


class TestBoundary:
    def square(self, at: int, size: int = 40) -> np.ndarray:
        mask = np.zeros((200, 200), np.uint8)
        mask[50 : 50 + size, at : at + size] = 1
        return mask

    def f1(self, found: np.ndarray, truth: np.ndarray) -> float:
        return float(scores([count(found, truth, 2)]).pooled["boundary_f1"][1])

    def test_within_the_tolerance_it_agrees(self) -> None:
        """0.75 % of a diagonal of 283 pixels are two pixels."""
        assert self.f1(self.square(50), self.square(50)) == 1
        assert self.f1(self.square(52), self.square(50)) == 1
        assert self.f1(self.square(53), self.square(50)) < 0.75

    def test_a_hole_costs_more_boundary_than_area(self) -> None:
        found = self.square(50)
        found[60:70, 60:70] = 0
        result = scores([count(found, self.square(50), 2)])
        assert result.pooled["dice"][1] > 0.96
        assert result.pooled["boundary_f1"][1] < 0.92

    def test_missing_altogether_is_zero_and_absent_is_nothing(self) -> None:
        empty = np.zeros((200, 200), np.uint8)
        assert self.f1(empty, self.square(50)) == 0
        assert np.isnan(self.f1(empty, empty))

    def test_the_pictures_own_border_is_no_boundary(self) -> None:
        whole = np.ones((50, 50), np.uint8)
        assert count(whole, whole, 2).boundary[1].tolist() == [0, 0, 0, 0]

    def test_boundaries_in_the_void_do_not_count(self) -> None:
        truth = self.square(50)
        truth[:, 80:] = VOID
        found = self.square(50)
        found[50:90, 90:120] = 1  # only where nothing is known
        assert self.f1(found, truth) == pytest.approx(1, abs=0.03)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.floats(0.005, 0.3), st.booleans())
    def test_is_what_measuring_every_distance_gives(self, seed: int, tolerance: float, void: bool) -> None:
        random = np.random.default_rng(seed)
        size = tuple(int(side) for side in random.integers(1, 60, 2))
        (found, truth), known = random.random((2, *size)) < random.random((2, 1, 1)), np.ones(size, bool)
        if void:
            known = random.random(size) < 0.9
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("unet_batch.evaluation.metrics.BOUNDARY_TOLERANCE", tolerance)
            counted = count(found.astype(np.uint8), np.where(known, truth, VOID).astype(np.uint8), 2).boundary
        limit = max(1.0, tolerance * float(np.hypot(*size))) ** 2 * (1 + 1e-9)
        for id in range(2):
            edges = []
            for mask in (found == id, truth == id):
                outside = np.pad(known & ~mask, 1)
                beside = [
                    np.roll(outside, (y, x), (0, 1))[1:-1, 1:-1] for y in (-1, 0, 1) for x in (-1, 0, 1)
                ]
                edges.append(np.argwhere(mask & known & np.any(beside, axis=0)))
            distances = ((edges[0][:, None] - edges[1][None]) ** 2).sum(-1)
            near = [int((distances.min(axis, initial=10**9) <= limit).sum()) for axis in (1, 0)]
            assert counted[id].tolist() == [len(edges[0]), near[0], len(edges[1]), near[1]]

    def test_a_reach_that_rounds_to_just_below_a_whole_number(self) -> None:
        """0.75 % of the diagonal of 240x320 are 3 pixels."""
        assert pytest.approx(3) == BOUNDARY_TOLERANCE * 400
        truth, found = np.zeros((2, 240, 320), np.uint8)
        truth[:, 100:] = found[:, 103:] = 1
        assert count(found, truth, 2).boundary[1].tolist() == [240, 240, 240, 240]


class TestInterval:
    def counts(self, groups: int, each: int, spread: float, seed: int = 0) -> list[Counts]:
        random = np.random.default_rng(seed)
        made = []
        for group in range(groups):
            right = int(np.clip(900 + spread * random.standard_normal(), 0, 1000))
            confusion = np.array([[right, 1000 - right], [1000 - right, right]])
            made += [
                Counts(f"{group}-{index}", str(group), confusion, np.zeros((2, 4), np.int64))
                for index in range(each)
            ]
        return made

    def test_holds_the_figure_and_narrows_with_more_groups(self) -> None:
        widths = {5: 0.0, 80: 0.0}
        for groups in widths:
            for seed in range(4):
                counts = self.counts(groups, 3, 20, seed)
                low, high = interval(counts, lambda found: found.accuracy, samples=200)
                assert low <= scores(counts).accuracy <= high
                widths[groups] += high - low
        assert widths[80] < widths[5] / 2, "a quarter is what sixteen times as many groups should give"

    def test_copies_of_a_picture_make_nothing_surer(self) -> None:
        """Ten photos of the same car are not ten cars."""
        few = interval(self.counts(8, 1, 20), lambda found: found.accuracy, samples=300)
        many = interval(self.counts(8, 10, 20), lambda found: found.accuracy, samples=300)
        assert many == pytest.approx(few)

    def test_covers_the_truth_about_as_often_as_it_says(self) -> None:
        hits = 0
        for seed in range(100):
            low, high = interval(self.counts(25, 1, 20, seed), lambda found: found.accuracy, samples=200)
            hits += low <= 0.9 <= high
        assert 85 <= hits <= 100

    def test_one_group_says_nothing_of_others(self) -> None:
        low, high = interval(self.counts(1, 5, 0), lambda found: found.accuracy)
        assert low == high

    def test_is_the_same_for_the_same_seed(self) -> None:
        counts = self.counts(6, 2, 30)
        assert interval(counts, lambda found: found.accuracy) == interval(
            counts, lambda found: found.accuracy
        )

    def test_is_that_of_pictures_drawn_group_by_group(self) -> None:
        counts = [
            count(*pair, 3, key=str(index), group=str(index % 5))
            for index, pair in enumerate(masks(1, 3, pictures=14))
        ]
        figures = {
            "accuracy": lambda found: found.accuracy,
            "iou": lambda found: found.pooled["iou"][2],
            "boundary": lambda found: found.pooled["boundary_f1"][0],
            "mean": lambda found: found.mean("dice", range(3), per_picture=True),
        }
        random = np.random.default_rng(0)
        drawn = []
        for draw in random.integers(0, 5, (40, 5)):
            found = scores([each for group in draw for each in counts if each.group == str(group)])
            drawn.append([figure(found) for figure in figures.values()])
        expected = np.quantile(drawn, [0.025, 0.975], axis=0).T
        for name, ends in zip(figures, expected, strict=True):
            assert intervals(counts, figures, samples=40)[name] == pytest.approx(tuple(ends))

    def test_a_class_that_few_pictures_show(self) -> None:
        """Samples without it say nothing of it; where none has it, there is no interval, and no warning."""
        empty, rare = np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8)
        counts = [
            count(rare if index < 2 else empty, rare if index < 2 else empty, 3, key=str(index))
            for index in range(9)
        ]
        found = intervals(
            counts, {str(id): lambda scored, id=id: scored.pooled["dice"][id] for id in range(3)}, samples=99
        )
        assert found["1"] == (1, 1)
        assert np.isnan(found["2"]).all()

    def test_ten_thousand_pictures_in_seconds(self) -> None:
        boundary = np.ones((4, 4), np.int64)
        counts = [
            Counts(str(index), "", np.eye(4, dtype=np.int64) * index, boundary) for index in range(10_000)
        ]
        figures = {str(id): lambda found, id=id: found.pooled["dice"][id % 4] for id in range(12)}
        assert intervals(counts, figures)["11"] == (1, 1)


class TestWithoutTheClass:
    """What is found in pictures that show nothing of it."""

    def found(self, *rows: int, size: int = 10) -> Counts:
        mask = np.zeros((size, 10), np.uint8)
        mask[: rows[0]] = 1
        return count(mask, np.zeros_like(mask), 2)

    def test_both_means_by_hand(self) -> None:
        """Five of ten rows, and one of a hundred."""
        full = np.ones((10, 10), np.uint8)
        result = scores([self.found(5), self.found(1, size=100), count(full, full, 2)]).without
        assert result["pictures"].tolist() == [1, 2]
        assert result["marked"][1] == pytest.approx(60 / 1100)
        assert result["marked_per_picture"][1] == pytest.approx((0.5 + 0.01) / 2)
        assert result["marked"][0] == 0

    def test_void_is_left_out(self) -> None:
        truth, found = np.zeros((2, 10, 10), np.uint8)
        truth[:5] = VOID
        found[3:6] = 1
        assert scores([count(found, truth, 2)]).without["marked"][1] == pytest.approx(10 / 50)
        nothing = np.full((4, 4), VOID, np.uint8)
        assert scores([count(nothing * 0, nothing, 2)]).without["pictures"][1] == 0

    def test_has_no_figure_where_each_picture_shows_it(self) -> None:
        full = np.ones((10, 10), np.uint8)
        result = scores([count(full, full, 2)]).without
        assert np.isnan(result["marked"][1])
        assert np.isnan(result["marked_per_picture"][1])


def test_a_figure_is_called_the_same_everywhere() -> None:
    assert label("iou", 1) == "IoU (all pixels)"
    assert label("iou", 11) == "mean IoU (all pixels)"
    assert label("dice_per_picture", 1) == label("dice_per_picture", 11) == "mean Dice per picture"


def test_every_figure_is_explained() -> None:
    text = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    for name in (*LABELS.values(), *objects.LABELS.values()):
        assert f"`{name}`" in text, name


def test_score_each() -> None:
    counts = [count(found, truth, 3) for found, truth in masks(0, 3)]
    accuracy, figures = score_each(counts)
    for row, each in enumerate(counts):
        alone = scores([each])
        assert accuracy[row] == alone.accuracy
        for metric, values in alone.pooled.items():
            assert figures[metric][row] == pytest.approx(values, nan_ok=True)
    assert score_each([])[1] == {}


def test_mean_leaves_out_what_has_no_figure() -> None:
    empty = np.zeros((4, 4), np.uint8)
    found = scores([count(empty, empty, 3)])
    assert found.mean("dice", range(3)) == 1
    assert np.isnan(found.mean("dice", (1, 2)))


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), r"a: masks of \(4, 4\) and \(4, 5\)"),
        (
            np.full((4, 4), 2, np.uint8),
            np.zeros((4, 4), np.uint8),
            "the found mask holds id 2, the classes are 0 to 1",
        ),
        (np.zeros((4, 4), np.uint8), np.full((4, 4), 7, np.uint8), "the true mask holds id 7"),
    ],
)
def test_what_cannot_be_compared_is_named(found: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        count(found, truth, 2, key="a")


def test_nothing_to_score() -> None:
    with pytest.raises(UsageError, match="nothing to score"):
        scores([])
