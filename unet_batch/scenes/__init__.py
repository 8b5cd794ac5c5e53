"""Drawn photos of cars with exact masks, for demonstrations, tests and training without a data set.

`draw(seed)` is a pure function: the same seed and size give the same bytes. The seed picks the scene (car,
place, light, camera) and the size only frames it, so one seed shows the same car at every size.
"""

from __future__ import annotations

from unet_batch.scenes.clip import write_clip
from unet_batch.scenes.compose import draw
from unet_batch.scenes.samples import write_samples

__all__ = ["draw", "write_clip", "write_samples"]
