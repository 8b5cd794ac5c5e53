"""Memory that the functions of one thread use again and again, for what they need only while they run.

A fresh array of megabytes is mapped anew by the kernel, page by page: for the 5 MB of a 1280x1918 map in 16
bit that took longer than the arithmetic on it. Each thread keeps at most a block of `LARGEST` bytes for each
purpose, until it ends.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

LARGEST = 64 * 2**20
"""Bytes of the largest array that is kept: a 30-megapixel picture in 16 bit. Larger ones are fresh."""

_thread = threading.local()


def scratch(purpose: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Lend an array of this thread, whatever it holds, until the same purpose is asked for again.

    Args:
        purpose: tells apart what is in use at the same time.
        shape: of the array, which is C-contiguous.
        dtype: of the array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > LARGEST:
        return np.empty(shape, dtype)
    block = vars(_thread).get(purpose)
    if block is None or block.size < size:
        block = vars(_thread)[purpose] = np.empty(size, np.uint8)
    lent: NDArray[Any] = block[:size].view(dtype).reshape(shape)
    return lent
