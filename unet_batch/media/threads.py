"""How many threads OpenCV may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def single_threaded_cv2() -> Iterator[None]:
    """Keep OpenCV to the calling thread; its own threads would fight for cores that workers fill already."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
