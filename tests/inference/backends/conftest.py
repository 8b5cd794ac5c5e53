"""CUDA without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.helpers.cuda_driver import FakeDriver
from unet_batch.inference.backends import cuda_driver


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], FakeDriver]]:
    """Installs a cuda-bindings of our own when it is called, in place of one that may be there."""
    caches = cuda_driver._driver, cuda_driver._bound_context

    def install() -> FakeDriver:
        for cache in caches:
            cache.cache_clear()
        fake = FakeDriver()
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)  # type: ignore[arg-type]
        utils = SimpleNamespace(get_cuda_native_handle=int)
        monkeypatch.setitem(sys.modules, "cuda.bindings.utils", utils)  # type: ignore[arg-type]
        return fake

    yield install
    for cache in caches:
        cache.cache_clear()
