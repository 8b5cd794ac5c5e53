"""Steady the masks of a clip: average the network's answers over time where the picture stays as it is.

A network looks at one frame at a time, and where it is unsure its masks flicker. What it said just before is
a second opinion, but only of the same thing: a mean over time alone drags every moving edge behind itself
(Dice of a drawn car driving past at 0.2 s: 0.986 without, 0.927 with such a mean, 0.985 with this one). So
what came before counts for as much as the picture at this place resembles the frame before, and nothing of it
survives a cut. How much it counts depends on the time between two frames, not on their number: a clip looks
the same at any frame rate.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

# Levels by which a place may differ from the frame before and still count for 37 %, and the pixels around
# that are taken together, which noise cancels out in. 3 steadies half as much; with 10, or with 9 pixels,
# edges begin to drag.
CHANGE = 6.0
_AROUND = (5, 5)


class Smoother:
    """Remembers the maps so far; frames must come in order.

    Args:
        seconds: time constant: where nothing changes, what lies so far back counts 1/e = 37 %.
        classes: of the model; 1 means maps of a probability, more mean maps of ids.
    """

    def __init__(self, seconds: float, classes: int) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds={seconds} must be above 0")
        self.seconds, self.classes = seconds, classes
        self._mean: NDArray[np.float32] | None = None  # (H, W), or (classes, H, W) shares of the ids
        self._before: Pixels | None = None
        self._time = Fraction(0)

    def __call__(self, tensor: Pixels, map: Pixels, time: Fraction) -> Pixels:
        """Take in a frame.

        Args:
            tensor: uint8 (H, W, channels), what the network saw; kept until the next frame.
            map: uint8 (H, W), what it answered.
            time: of the frame in seconds.

        Returns:
            uint8 (H, W): the smoothed map.
        """
        now = self._as_shares(map)
        if self._mean is None or self._before is None:
            self._mean = now
        else:
            change = cv2.blur(tensor.astype(np.float32) - self._before, _AROUND).reshape(tensor.shape)
            change = np.abs(change).max(axis=2) / CHANGE
            past = np.exp(-change * change) * np.float32(math.exp(-float(time - self._time) / self.seconds))
            self._mean = past * self._mean + (1 - past) * now
        self._before, self._time = tensor, time
        if self.classes == 1:
            return cast("Pixels", np.rint(self._mean).astype(np.uint8))
        return cast("Pixels", self._mean.argmax(axis=0).astype(np.uint8))

    def state(self) -> dict[str, NDArray[Any]]:
        """What a later `Smoother` needs to go on from here; none of the arrays is written to afterwards."""
        if self._mean is None or self._before is None:
            return {}
        # May be too large for 64 bits
        time = np.array([str(self._time.numerator), str(self._time.denominator)])
        return {"mean": self._mean, "before": self._before, "time": time}

    def resume(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        if state:
            self._mean, self._before = state["mean"], state["before"]
            self._time = Fraction(int(state["time"][0]), int(state["time"][1]))

    def _as_shares(self, map: Pixels) -> NDArray[np.float32]:
        if self.classes == 1:
            return map.astype(np.float32)
        return np.equal(map, np.arange(self.classes, dtype=np.uint8)[:, None, None]).astype(np.float32)
