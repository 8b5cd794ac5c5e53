"""What falls onto a car: the light of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unet_batch.scenes.car import Rgb


@dataclass(frozen=True)
class Light:
    """What a car reflects and what shows through its windows; colours RGB 0..1.

    Attributes:
        sky: colour of what is above (sky, or the lamps of a studio).
        ground: colour of what is below.
        behind: colour of what stands behind the car.
        horizon: how dark the band between sky and ground is in the paint, 0..1.
        power: brightness of the car as a whole.
    """

    sky: Rgb
    ground: Rgb
    behind: Rgb
    horizon: float
    power: float
