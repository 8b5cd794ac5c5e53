"""The Carvana photos as arrays, and the split by car that every figure in this project is measured on.

The photos are not part of the project (Kaggle's "Carvana Image Masking" rules: non-commercial, academic).
Expected below the data folder: `carvana/images/<car>_<view>.jpg` and `carvana/masks/<car>_<view>_mask.gif`.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HELD_OUT_CARS = 12
SPLIT_SEED = 7


@dataclass(frozen=True)
class Photo:
    """One photo and its mask, as paths."""

    car: str
    view: str
    image: Path
    mask: Path


def data_folder() -> Path:
    """`UNET_BATCH_DATA`, else `../shared/data` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("UNET_BATCH_DATA", default))


def photos(folder: Path | None = None) -> list[Photo]:
    """All photos, in the order of their names."""
    root = (folder or data_folder()) / "carvana"
    found = []
    for image in sorted((root / "images").glob("*.jpg")):
        car, view = image.stem.split("_")
        found.append(Photo(car, view, image, root / "masks" / f"{image.stem}_mask.gif"))
    if not found:
        raise SystemExit(f"no Carvana photos below {root}: set UNET_BATCH_DATA")
    return found


def split(all_photos: list[Photo]) -> tuple[list[Photo], list[Photo]]:
    """(training, held out): whole cars are held out, so that training sees no view of a tested car."""
    cars = sorted({photo.car for photo in all_photos})
    held_out = set(random.Random(SPLIT_SEED).sample(cars, HELD_OUT_CARS))
    return (
        [photo for photo in all_photos if photo.car not in held_out],
        [photo for photo in all_photos if photo.car in held_out],
    )


def read_rgb(path: str | Path) -> np.ndarray:
    """A photo as OpenCV decodes it, uint8 (H, W, 3), RGB."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{path} cannot be read")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> np.ndarray:
    """uint8 (h, w), 0 or 255."""
    with Image.open(path) as file:
        return (
            np.asarray(file.convert("L") if file.mode != "P" else file, dtype=np.uint8)
            .astype(bool)
            .astype(np.uint8)
            * 255
        )


def load(items: list[Photo], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (N, h, w, 3) and coverage uint8 (N, h, w): 255 = the pixel lies wholly in the car."""
    height, width = size
    pictures = np.empty((len(items), height, width, 3), np.uint8)
    coverage = np.empty((len(items), height, width), np.uint8)

    def one(index: int) -> None:
        pixels = read_rgb(items[index].image)
        cv2.resize(pixels, (width, height), dst=pictures[index], interpolation=cv2.INTER_AREA)
        cv2.resize(
            read_mask(items[index].mask), (width, height), dst=coverage[index], interpolation=cv2.INTER_AREA
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(len(items))))
    return pictures, coverage
