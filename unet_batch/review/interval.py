"""How far the mean of a few values tells that of all: intervals that hold whatever the values are."""

from __future__ import annotations

import math


def mean_interval(mean: float, drawn: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of the mean of values from 0 to 1, of which some were drawn at random.

    Those of Hoeffding (1963, theorem 1): all means that are not too unlikely by the Kullback-Leibler
    divergence. It assumes nothing of how the values are spread, and holds where each was drawn from a stratum
    of its own and where none is put back. A bootstrap, or Student's t, would be narrower, and wrong where a
    few pictures are much worse than the rest: a draw that holds none of them knows nothing of them.

    Args:
        mean: of those drawn.
        drawn, total: how many were, of how many; at least one.
        confidence: that the bounds hold the mean of all.
    """
    limit = math.log(2 / (1 - confidence)) / drawn
    low, high = _root(mean, limit, 0.0), _root(mean, limit, 1.0)
    # The values that were not drawn are at least 0 and at most 1.
    known = mean * drawn / total
    return max(low, known), min(high, known + (total - drawn) / total)


def _root(mean: float, limit: float, end: float) -> float:
    """The mean between `mean` and `end` at which the divergence reaches the limit."""
    near, far = mean, end
    for _ in range(60):
        middle = (near + far) / 2
        if _divergence(mean, middle) > limit:
            far = middle
        else:
            near = middle
    return near


def _divergence(seen: float, true: float) -> float:
    """Kullback-Leibler divergence of two coins, in nats."""
    total = 0.0
    for one, other in ((seen, true), (1 - seen, 1 - true)):
        if one > 0:
            if other <= 0:
                return math.inf
            total += one * math.log(one / other)
    return total
