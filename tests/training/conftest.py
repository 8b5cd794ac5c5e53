"""A dataset that a tiny network learns in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

SIZE = (40, 56)


def write_shapes(folder: Path, count: int, *, classes: int = 1, per_group: int = 2, seed: int = 0) -> Path:
    """Bright discs, and with several classes dark squares, on noise: images/<group>_<n>.png and masks of ids
    (one: 0/255).
    """
    random = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    height, width = SIZE
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


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in 12 groups, one class."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 24)


@pytest.fixture(scope="session")
def two_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in 12 groups, three ids."""
    return write_shapes(tmp_path_factory.mktemp("kinds"), 24, classes=2)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Layers this small take longer to share between cores than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
