"""How far the mean of a few values tells that of all: intervals that hold whatever the values are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEPS = 1000  # of the grid of means that are tried
_BOLDNESS = 0.95  # no bet may lose more than this share of what there is


def mean_interval(values: Sequence[float], total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of the mean of values from 0 to 1, of which some were drawn at random.

    By betting (Waudby-Smith and Ramdas, JRSS B 2024): against each mean that all could have, one value after
    the other, money is laid on the values being above, or below; a mean at which it would grow beyond
    2 / (1 - confidence) is not the true one. It assumes nothing of how the values are spread, and uses that
    they are alike where they are. Student's t and the bootstrap are narrower, and wrong where a few values
    are much worse than the rest: a draw that holds none of those knows nothing of them.

    Args:
        values: those drawn, at least one, in an order that knows nothing of them.
        total: of how many they were drawn.
        confidence: that the bounds hold the mean of all.
    """
    drawn = np.random.default_rng(0).permutation(np.asarray(values, np.float64))
    count = len(drawn)
    seen = np.arange(1, count + 1)
    means = (0.5 + np.cumsum(drawn)) / (seen + 1)
    variances = (0.25 + np.cumsum((drawn - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variances[:-1]])  # a bet knows only what came before it
    limit = math.log(2 / (1 - confidence))
    stake = np.sqrt(2 * limit / (count * before))[:, None]
    grid = np.linspace(0, 1, _STEPS + 1)
    gain = drawn[:, None] - grid
    above = np.log1p(np.minimum(stake, _BOLDNESS / np.maximum(grid, 1e-9)) * gain)
    below = np.log1p(-np.minimum(stake, _BOLDNESS / np.maximum(1 - grid, 1e-9)) * gain)
    most = np.maximum(np.cumsum(above, 0).max(0), np.cumsum(below, 0).max(0))
    mean = float(drawn.mean())
    left = grid[most < limit]
    low, high = (float(left[0]), float(left[-1])) if len(left) else (mean, mean)
    # The values that were not drawn are at least 0 and at most 1.
    known, rest = mean * count / total, (total - count) / total
    low, high = max(low - 1 / _STEPS, known), min(high + 1 / _STEPS, known + rest)
    return min(low, mean), max(high, mean)
