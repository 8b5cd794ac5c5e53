"""Waiting for what is to happen, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 200.0
"""Seconds after which what has not happened never will. What does happen keeps nobody waiting so long."""


def until(happened: Callable[[], object], pause: float = 0.005) -> None:
    """Return once something is true, looked at every few milliseconds.

    Raises:
        AssertionError: it has not become true.
    """
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
