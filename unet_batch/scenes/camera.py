"""What the camera adds: uneven light, a vignette, a soft lens, sensor noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from unet_batch.scenes.shapes import noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.scenes.car import Rgb
    from unet_batch.scenes.shapes import Floats
    from unet_batch.types import Size

_TILE = 512  # noise repeats after so many pixels, which nobody sees, and which keeps it cheap
_STRIP = 512  # rows developed at once: bounds the memory that a very large picture takes


@dataclass(frozen=True)
class Lens:
    """How one photo was taken.

    Attributes:
        blur: standard deviation of the lens's softness, in pixels of a picture 960 wide.
        grain: standard deviation of the noise, of 0..255.
        vignette: how much darker the corners are, 0..1.
        uneven: strength of slow changes of brightness over the picture.
        balance: factors of red, green and blue.
        exposure: factor of the brightness.
    """

    blur: float
    grain: float
    vignette: float
    uneven: float
    balance: Rgb
    exposure: float


def roll(rng: np.random.Generator) -> Lens:
    """A random lens and sensor."""
    warm = float(rng.normal(0, 0.018))
    return Lens(
        blur=float(rng.uniform(0.2, 0.8)),
        grain=float(rng.uniform(0.8, 3.2)),
        vignette=float(rng.uniform(0.02, 0.20)),
        uneven=float(rng.uniform(0.01, 0.06)),
        balance=(1 + warm, 1.0, 1 - warm),
        exposure=float(rng.uniform(0.93, 1.05)),
    )


def softness(lens: Lens, size: Size) -> float:
    """Standard deviation of the lens's blur in a picture of `size`, in pixels; 0 where it would not show."""
    # A larger picture of the same scene is also a sharper one.
    sigma = lens.blur * float(np.sqrt(max(size) / 960))
    return sigma if sigma > 0.3 else 0.0


def grain(lens: Lens, rng: np.random.Generator) -> Floats:
    """A tile of the sensor's noise, float32 (512, 512, 3), of 0..255."""
    tile = rng.standard_normal((_TILE, _TILE, 3), dtype=np.float32)
    tile += tile.mean(axis=2, keepdims=True) * 1.2  # luminance noise is stronger than colour noise
    tile *= np.float32(lens.grain * 0.65)
    return tile


def develop(picture: Floats, lens: Lens, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turns RGB float32 (h, w, 3), 0..1, which is overwritten, into a photo, RGB uint8 of the same size."""
    height, width = picture.shape[:2]
    sigma = softness(lens, (height, width))
    if sigma:
        cv2.GaussianBlur(picture, (0, 0), sigma, dst=picture)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    uneven = cv2.resize(
        noise(rng, (24, 24), (2, 2), 2), (width, 1 if height == 1 else height), interpolation=cv2.INTER_CUBIC
    )
    bright = (np.array(lens.balance, np.float32) * np.float32(255 * lens.exposure))[None, None]
    tile = grain(lens, rng)
    photo = np.empty((height, width, 3), np.uint8)
    across = np.arange(width) % _TILE
    for top in range(0, height, _STRIP):
        rows = slice(top, min(top + _STRIP, height))
        gain = (1 - np.float32(lens.vignette * 0.5) * (x**2 + y[rows] ** 2)) * (
            1 + np.float32(lens.uneven) * (uneven[rows] - 0.5) * 2
        )
        strip = picture[rows]
        strip *= gain[..., None]
        strip *= bright
        strip += tile[np.arange(rows.start, rows.stop) % _TILE][:, across]
        photo[rows] = cv2.convertScaleAbs(np.clip(strip, 0, 255))
    return photo
