"""An observer of runs that calls functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unet_batch.run.observe import Observer


def observing(**methods: Callable[..., Any]) -> Observer:
    """An observer with these in place of its methods: `observing(outcome=lambda item, failure: ...)`."""
    observer = Observer()
    assert all(hasattr(observer, name) for name in methods)
    vars(observer).update(methods)
    return observer
