"""Steadier masks of a clip: an exponential mean of the network's maps over time, begun anew at each cut.

A network looks at one frame at a time, and where it is unsure its masks flicker. What came just before is a second opinion; how
much it counts depends on the time between two frames, not on their number, so that a clip looks the same at any frame rate.
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

# Two frames whose thumbnails differ by more levels than this on average belong to two shots. Measured: cuts 34, 49 and 72;
# within shots of traffic at most 17, in a shaking hand at 10 frames a second 31: there the mean begins anew too often, no harm.
CUT = 25.0
_THUMBNAIL = (32, 18)


class Smoother:
    """Remembers the maps so far; frames must come in order.

    Args:
        seconds: time constant: what lies so far back counts 1/e = 37 %.
        classes: of the model; 1 means maps of a probability, more mean maps of ids.
    """

    def __init__(self, seconds: float, classes: int) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds={seconds} must be above 0")
        self.seconds, self.classes = seconds, classes
        self.cuts = 0
        self._mean: NDArray[np.float32] | None = None  # (H, W), or (classes, H, W) shares of the ids
        self._thumbnail: NDArray[np.float32] | None = None
        self._time = Fraction(0)

    def __call__(self, tensor: Pixels, map: Pixels, time: Fraction) -> Pixels:
        """Take in a frame.

        Args:
            tensor: RGB uint8 (H, W, 3), what the network saw.
            map: uint8 (H, W), what it answered.
            time: of the frame in seconds.

        Returns:
            uint8 (H, W): the smoothed map; the map itself after a cut.
        """
        thumbnail = cv2.resize(tensor, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        now = self._as_shares(map)
        if self._mean is None or self._thumbnail is None or self._mean.shape != now.shape:
            self._mean = now
        elif float(np.abs(thumbnail - self._thumbnail).mean()) > CUT:
            self.cuts += 1
            self._mean = now
        else:
            past = np.float32(math.exp(-float(time - self._time) / self.seconds))
            self._mean = past * self._mean + (1 - past) * now
        self._thumbnail, self._time = thumbnail, time
        if self.classes == 1:
            return cast("Pixels", np.rint(self._mean).astype(np.uint8))
        return cast("Pixels", self._mean.argmax(axis=0).astype(np.uint8))

    def state(self) -> dict[str, NDArray[Any]]:
        """What a later `Smoother` needs to go on from here; none of the arrays is written to afterwards."""
        if self._mean is None or self._thumbnail is None:
            return {}
        time = np.array([self._time.numerator, self._time.denominator])
        return {"mean": self._mean, "thumbnail": self._thumbnail, "time": time}

    def resume(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        if state:
            self._mean, self._thumbnail = state["mean"], state["thumbnail"]
            self._time = Fraction(int(state["time"][0]), int(state["time"][1]))

    def _as_shares(self, map: Pixels) -> NDArray[np.float32]:
        if self.classes == 1:
            return map.astype(np.float32)
        return (map == np.arange(self.classes, dtype=np.uint8)[:, None, None]).astype(np.float32)
