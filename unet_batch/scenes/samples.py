"""Writes drawn photos and their masks to a folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from unet_batch.errors import OutputError
from unet_batch.scenes.compose import draw

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

_QUALITY = 92
_STRIDE = 1_000_003  # scenes of one series; a prime, so that the series of neighbouring seeds do not overlap soon


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

    Scene i is `draw(seed * 1_000_003 + i, size)`: the same seed and size give the same bytes, and a larger `count` continues
    the same series. Files of those names are replaced, others are left alone.

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
    for each in (photos, masks) if with_masks else (photos,):
        _make(each)
    written = []
    for index in range(count):
        photo, mask = draw(scene_seed(seed, index), size)
        path = os.path.join(photos, f"scene_{index:04d}.jpg")
        _write(path, _encoded(".jpg", np.ascontiguousarray(photo[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]))
        if with_masks:
            _write(os.path.join(masks, f"scene_{index:04d}.png"), _encoded(".png", mask, []))
        written.append(path)
        if progress is not None:
            progress(index + 1)
    return written


def _make(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder}: {error.strerror or error}",
            hint="Name a folder that you may write to and where no file is in the way.",
        ) from error


def _encoded(suffix: str, pixels: Pixels, options: list[int]) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, options)
    if not ok:
        raise RuntimeError(f"OpenCV cannot encode {suffix}")
    return data.tobytes()


def _write(path: str, data: bytes) -> None:
    """Writes a file so that it is there in full or not at all."""
    unfinished = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Check that the disk has room, that you may write to the folder, and that no folder has the file's name.",
        ) from error
    finally:
        if os.path.lexists(unfinished):
            os.unlink(unfinished)
