"""Pictures and masks for tests: noise with stripes, and shapes that a tiny network learns in seconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from unet_batch.datasets.dataset import Dataset

SIZE = (24, 32)
SHAPES_SIZE = (40, 56)


def photo(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, **options: object) -> Path:
    """Save a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def ids(*values: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Vertical stripes of these values."""
    return np.repeat(np.resize(np.array(values), size[1])[None], size[0], 0)


def mask(path: Path, values: np.ndarray, dtype: type = np.uint8) -> Path:
    """Save a mask of these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(dtype)).save(path)
    return path


def reason(dataset: Dataset, words: str) -> bool:
    """Whether one of the dataset's reasons holds these words."""
    return any(words in reason for reason in dataset.reasons)


def write_shapes(folder: Path, count: int, *, classes: int = 1, per_group: int = 2, seed: int = 0) -> Path:
    """Bright discs, and with several classes dark squares, on noise: images/<group>_<n>.png and masks of ids
    (one: 0/255).
    """
    random = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    height, width = SHAPES_SIZE
    for index in range(count):
        picture = random.integers(90, 140, (height, width, 3), dtype=np.uint8)
        ids = np.zeros((height, width), np.uint8)
        centre = (int(random.integers(12, width - 12)), int(random.integers(12, height - 12)))
        cv2.circle(picture, centre, 9, tuple(map(int, random.integers(190, 255, 3))), -1)
        cv2.circle(ids, centre, 9, 1, -1)
        if classes > 1:
            corner = (int(random.integers(0, width - 12)), int(random.integers(0, height - 12)))
            cv2.rectangle(picture, corner, (corner[0] + 10, corner[1] + 10), (20, 20, 60), -1)
            cv2.rectangle(ids, corner, (corner[0] + 10, corner[1] + 10), 2, -1)
        name = f"set{index // per_group:02}_{index % per_group}.png"
        cv2.imwrite(str(folder / "images" / name), picture[..., ::-1])
        cv2.imwrite(str(folder / "masks" / name), ids if classes > 1 else ids * 255)
    return folder
