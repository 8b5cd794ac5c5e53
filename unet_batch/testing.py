"""Small public stand-ins for tests of code that uses unet-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.backends.base import Backend
from unet_batch.types import ClassTable, ModelSpec, Size

if TYPE_CHECKING:
    from unet_batch.types import Pixels


def fake_spec(input_size: Size = (32, 48), classes: int = 1) -> ModelSpec:
    """A spec without a model."""
    return ModelSpec(
        name="fake",
        widths=(4, 8),
        in_channels=3,
        input_size=input_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        classes=ClassTable(tuple(f"class{i}" for i in range(classes)), tuple((40 * i % 256, 90, 200) for i in range(classes))),
        output="probability" if classes == 1 else "class_ids",
    )


class FakeBackend(Backend):
    """Answers with the brightness of each pixel, so that the right answer is known without a model.

    Args:
        spec: what it claims to run.
        answer: replaces the brightness: uint8 (N, H, W, C) -> uint8 (N, H, W). May raise, to test failures.
        batch_size, streams: as in `Backend`.
    """

    name = "fake"
    precision = "fp32"
    reason = "asked for in a test"

    def __init__(
        self,
        spec: ModelSpec | None = None,
        answer: Callable[[Pixels], Pixels] | None = None,
        *,
        batch_size: int = 4,
        streams: int = 1,
    ) -> None:
        self.spec = spec or fake_spec()
        self.answer = answer or _brightness
        self.batch_size = batch_size
        self.streams = streams
        self.batches: list[int] = []

    def _open(self) -> None:
        self.batches.clear()

    def _infer(self, pictures: Pixels) -> Pixels:
        self.batches.append(len(pictures))
        return self.answer(pictures)

    def _close(self) -> None:
        pass


def _brightness(pictures: Pixels) -> Pixels:
    mean = pictures.mean(axis=3)
    return np.asarray(mean + 0.5, np.uint8)
