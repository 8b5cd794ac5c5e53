"""A device that only sleeps, in the place of a backend: what all else allows, whatever computes the network.

It is none of the backends that `select` knows, so that no run can take it: what it answers means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.streaming import SLOTS
from unet_batch.inference.segmenter import Segmenter

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Request
    from unet_batch.types import ModelSpec, Pixels, Size

_MOST = 32  # pictures in a batch
_BATCH_SECONDS = 0.01  # that one takes at the most: a slow device is no reason to measure for minutes


class SimulatedDevice(Backend):
    """Takes as long as a device of so many pictures a second, and answers with an ellipse, always the same.

    Batches of all streams come one after the other, as on a GPU: while one is computed, the next can be made
    ready, so that it is never idle where there is enough to do.

    Args:
        spec: of the model whose place it takes.
        rate: pictures a second, above 0.
        size: (height, width) of its input; None takes the model's own.
        batch_size: None takes what lasts a hundredth of a second, 32 at the most.
    """

    name = "simulated"
    precision = "none"
    reason = "asked for"
    streams = SLOTS

    def __init__(
        self, spec: ModelSpec, rate: float, *, size: Size | None = None, batch_size: int | None = None
    ) -> None:
        self.spec, self.rate = spec, rate
        self.input_size = size or spec.input_size
        self.batch_size = batch_size or max(1, min(_MOST, int(_BATCH_SECONDS * rate)))
        self._clock, self._free = Lock(), 0.0  # from when on it has nothing to do
        ellipse = _ellipse(self.input_size)
        self._map = ellipse if spec.output == "probability" else (ellipse > 127).astype(np.uint8)

    def describe(self) -> dict[str, Any]:
        """As of any backend, and its `rate`."""
        return {**super().describe(), "rate": self.rate}

    def _open(self) -> None:
        self._free = 0.0

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        with self._clock:
            done = self._free = max(time.perf_counter(), self._free) + len(pictures) / self.rate
        time.sleep(max(0.0, done - time.perf_counter()))
        return np.repeat(self._map[np.newaxis], len(pictures), axis=0)

    def _close(self) -> None:
        pass


def _ellipse(size: Size) -> Pixels:
    """Most of a picture, with soft edges: an outline to smooth and to encode, as objects have."""
    y, x = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    ellipse: Pixels = np.clip(128 + 900 * (1 - (x / 0.7) ** 2 - (y / 0.6) ** 2), 0, 255).astype(np.uint8)
    return ellipse


def open_simulated(rate: float, request: Request) -> Segmenter:
    """As `open_segmenter`, with a `SimulatedDevice` for the model; its weights are not read."""
    device = SimulatedDevice(request.model.spec, rate, size=request.size, batch_size=request.batch_size)
    return Segmenter(device, model=request.model)
