"""Pictures that are read in bands as if memory did not hold them."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from unet_batch.files.outputs import OutputTree
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media.images import tiff_bands
from unet_batch.run import giant
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Item

TILES = ViewOptions(fit="tile")
TILE = (32, 48)


def read_all_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is held by memory, and bands are a row of blocks."""
    monkeypatch.setattr(giant, "MEMORY", 0)
    monkeypatch.setattr(giant, "_WRITTEN_AT_ONCE", 500)
    monkeypatch.setattr(tiff_bands, "_BAND", 1)


def smooth_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of all levels, in three colours."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4).reshape(height, width, 3)
    return np.asarray((blurred - blurred.min()) * (255 / max(1e-9, np.ptp(blurred))), np.uint8)


def save(path: Path, picture: np.ndarray, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults = {"tile": (32, 32), "compression": "deflate", "metadata": None}
    tifffile.imwrite(path, picture, photometric="rgb", **{**defaults, **options})
    return str(path)


def fake(classes: int = 1) -> FakeBackend:
    def levels(pictures: np.ndarray) -> np.ndarray:
        return np.asarray(pictures[..., 0].astype(int) * classes // 256, np.uint8)

    return FakeBackend(fake_spec(TILE, classes), levels if classes > 1 else None, batch_size=3)


def peak_of_segmenting(path: str, size: tuple[int, int], outputs: OutputTree) -> int:
    """Bytes that Python and NumPy hold at the most while a picture is segmented in bands."""
    backend = FakeBackend(fake_spec((128, 128)), lambda tiles: tiles[..., 0].copy())
    with Segmenter(backend, view=TILES, workers=1) as segmenter:
        tracemalloc.start()
        try:
            assert giant.segment(Item(path, "x"), size, segmenter, outputs).complete
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def segment_slowly(folder: str, out: str, save: tuple[str, ...] = ("mask",)) -> None:
    """A run with a network that answers once in a while, in a process of its own."""

    def answer(pictures: np.ndarray) -> np.ndarray:
        time.sleep(0.2)
        return np.asarray(pictures[..., 0])

    giant.MEMORY = 0
    with Segmenter(FakeBackend(fake_spec(TILE), answer), view=TILES) as segmenter:
        execute(prepare(RunOptions((folder,), out, save=save)), segmenter)
