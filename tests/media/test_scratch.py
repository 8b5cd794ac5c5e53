"""Memory that is lent: the same again for a thread and purpose, and nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from unet_batch.media import scratch as module
from unet_batch.media.scratch import scratch


def test_a_thread_gets_the_same_memory_again_for_a_purpose() -> None:
    first = scratch("a", (30, 50), np.uint16)
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((30, 50), np.uint16, True)
    assert np.shares_memory(first, scratch("a", (10, 20), np.uint8))
    assert not np.shares_memory(first, scratch("b", (30, 50), np.uint16))


def test_it_grows() -> None:
    small, large = scratch("grows", (3, 5), np.uint8), scratch("grows", (300, 500), np.uint8)
    assert large.shape == (300, 500)
    assert not np.shares_memory(small, large)
    assert np.shares_memory(large, scratch("grows", (3, 5), np.uint8))


def test_threads_share_nothing() -> None:
    both = Barrier(2)

    def fill(value: int) -> bool:
        own = scratch("shared", (200, 200), np.uint8)
        both.wait()
        own[:] = value
        both.wait()
        return bool((own == value).all())

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(fill, (1, 2)))


def test_what_is_larger_than_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = scratch("large", (100,), np.uint8)
    monkeypatch.setattr(module, "LARGEST", 99)
    fresh = scratch("large", (100,), np.uint8)
    assert not np.shares_memory(kept, fresh)
    assert not np.shares_memory(fresh, scratch("large", (100,), np.uint8))
    assert np.shares_memory(kept, scratch("large", (99,), np.uint8))
