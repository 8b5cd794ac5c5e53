"""The pictures that tests of `images` share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def odd() -> Path:
    folder = Path(os.environ.get("UNET_BATCH_DATA", ROOT.parent / "shared" / "data")) / "awkward"
    if not folder.is_dir():
        pytest.skip(f"no odd pictures in {folder}: set UNET_BATCH_DATA")
    return folder


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """403x317, neither side a multiple of 8: soft gradients, hard edges, some noise."""
    y, x = np.mgrid[:317, :403]
    rgb = np.stack([x * 255 / 402, y * 255 / 316, 127 + 90 * np.sin(x / 23) * np.cos(y / 17)], axis=-1)
    rgb[60:140, 90:200] = (250, 20, 40)
    rgb[200:290, 250:380] = (10, 200, 30)
    rgb += np.random.default_rng(3).normal(0, 4, rgb.shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))
