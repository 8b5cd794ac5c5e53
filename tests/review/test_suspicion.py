"""Reasons to look at something first."""

from __future__ import annotations

from typing import Any

import numpy as np

from unet_batch.review.suspicion import REASONS, Figures, deviation, judge

NAMES = ("share", "share car", "largest", "components", "confidence", "unlike")


def judged(*rows: dict[str, float | None], usual: int = 100) -> list[tuple[set[str], float]]:
    """The reasons and weights of rows that stand among so many usual ones."""
    random = np.random.default_rng(0)
    figures = Figures(NAMES)
    for row in rows:
        figures.add(
            {"share": 0.2, "share car": 0.2, "largest": 0.2, "components": 1, "confidence": 0.98, **row}
        )
    for _ in range(usual):
        area = float(random.normal(0.2, 0.02))
        figures.add(
            {"share": area, "share car": area, "largest": area, "components": int(random.integers(1, 4))}
            | {"confidence": float(random.normal(0.98, 0.003)), "unlike": 0.5}
        )
    bits, weights = judge(figures)
    return [
        ({reason.name for place, reason in enumerate(REASONS) if bits[row] >> place & 1}, float(weights[row]))
        for row in range(len(rows) + usual)
    ]


def test_what_is_usual_is_not_suspicious() -> None:
    assert sum(bool(reasons) for reasons, _ in judged(usual=300)) <= 2


def test_each_reason_is_found_by_itself() -> None:
    nothing: dict[str, Any] = {"share": 0.0, "share car": 0.0, "largest": 0.0, "components": 0}
    found = judged(
        nothing,
        {"share": 1.0, "share car": 1.0, "largest": 1.0},
        {"confidence": 0.7},
        {"share": 0.8, "share car": 0.8, "largest": 0.8},
        {"components": 300},
        {"unlike": 1.5},
    )
    assert [reasons for reasons, _ in found[:6]] == [{reason.name} for reason in REASONS]
    assert all(weight > 0 for _, weight in found[:6])
    assert all(weight == 0 for reasons, weight in found if not reasons)


def test_two_reasons_weigh_more_than_one() -> None:
    one, two = judged({"unlike": 1.5}, {"unlike": 1.5, "components": 300})[:2]
    assert two[1] > one[1]


def test_what_many_have_in_common_is_no_exception() -> None:
    empty: dict[str, Any] = {"share": 0.0, "share car": 0.0, "largest": 0.0, "components": 0}
    assert judged(*[empty] * 10)[0][0] == {"empty"}
    assert judged(*[empty] * 80)[0][0] == set()


def test_a_few_items_and_unknown_figures_are_judged_without_a_warning() -> None:
    assert judged({"confidence": None, "unlike": None, "components": None}, usual=0) == [(set(), 0.0)]
    figures = Figures(())
    assert judge(figures)[0].shape == (0,)


def test_a_deviation_is_one_of_the_median_and_none_without_a_crowd() -> None:
    values = np.array([1.0] * 20 + [np.nan, 3.0])
    found = deviation(values, least=0.5)
    assert found[-1] == 4
    assert found[-2] == 0
    assert found[0] == 0
    assert not deviation(values[-5:], least=0.5).any()
