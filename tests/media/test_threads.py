"""OpenCV beside threads of our own."""

from __future__ import annotations

import cv2
import pytest

from unet_batch.media.threads import single_threaded_cv2


def test_cv2_gets_its_threads_back_also_after_an_error() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)  # a number that nothing else would leave behind
    try:
        with single_threaded_cv2():
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 3
        with pytest.raises(KeyError), single_threaded_cv2():
            raise KeyError
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
