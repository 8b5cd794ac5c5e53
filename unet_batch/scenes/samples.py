"""Writes drawn photos and their masks to a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from unet_batch.files.atomic import write_atomic
from unet_batch.media import images
from unet_batch.pipeline import Pipeline, Stage, cpu_count
from unet_batch.scenes.compose import draw

if TYPE_CHECKING:
    from unet_batch.types import Size

_QUALITY = 92
# Scenes of one series; a prime, so that the series of neighbouring seeds do not overlap soon
_STRIDE = 1_000_003


def scene_seed(seed: int, index: int) -> int:
    """Seed for `draw` of scene `index` of the series `seed`: `seed * 1_000_003 + index`."""
    return seed * _STRIDE + index


def write_samples(
    folder: str,
    count: int,
    size: Size = (640, 960),
    seed: int = 0,
    with_masks: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes `photos/scene_0000.jpg`, ... and `masks/scene_0000.png`, ... into a folder.

    Scene i is `draw(seed * 1_000_003 + i, size)`: the same seed and size give the same bytes, and a larger
    `count` continues the same series. Files of those names are replaced, others are left alone.

    Args:
        folder: where to; made if it does not exist.
        count: how many scenes.
        size: (height, width) of each, in pixels.
        seed: which series; at least 0.
        with_masks: whether to write the masks (0 and 255) too.
        progress: called with the number of scenes done, after each.

    Returns:
        The paths of the photos.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    photos, masks = os.path.join(folder, "photos"), os.path.join(folder, "masks")

    def scene(index: int) -> str:
        photo, mask = draw(scene_seed(seed, index), size)
        path = os.path.join(photos, f"scene_{index:04d}.jpg")
        write_atomic(path, images.encode_jpeg(photo, _QUALITY))
        if with_masks:
            write_atomic(os.path.join(masks, f"scene_{index:04d}.png"), images.encode_mask(mask))
        return path

    written = []
    workers = cpu_count()
    stages = [Stage("draw", scene, workers)]
    with Pipeline[int, str](range(count), stages, in_flight=2 * workers) as paths:
        for path in paths:
            written.append(path)
            if progress is not None:
                progress(len(written))
    return written
