"""Draws the wheels of a car and the openings that they stand in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unet_batch.scenes.shapes import ellipse, ramp

if TYPE_CHECKING:
    from unet_batch.scenes.canvas import Canvas
    from unet_batch.scenes.car import Car
    from unet_batch.scenes.light import Light
    from unet_batch.scenes.shapes import Floats, Path


def draw_wheel_house(canvas: Canvas, car: Car, x: float) -> None:
    """Draws the dark opening around the axle at (x, radius)."""
    r = car.radius
    canvas.put(ellipse(x, r, r * 1.165), (0, 0, 0), opacity=0.3, blur=0.012)
    canvas.put(ellipse(x, r, r * 1.14), (0.012, 0.012, 0.014))


def draw_wheel(canvas: Canvas, car: Car, light: Light, x: float, turned: float) -> None:
    """Draws tyre, rim, brake and hub around the axle at (x, radius), turned by an angle in radians."""
    r = car.radius

    def tyre(u: Floats, v: Floats) -> Floats:
        level = 0.045 + 0.035 * np.clip(v / np.float32(2 * r), 0, 1) * np.float32(light.power)
        return np.stack([level, level, level * 1.04], axis=-1)

    rim = r * (1 - car.profile)
    # A tyre is flat where it stands.
    rubber = ellipse(x, r, r, points=96)
    rubber[:, 1] = np.maximum(rubber[:, 1], 0.012 * r)
    canvas.put(rubber, tyre, new=True)
    for share, opacity in ((0.93, 0.10), (0.5 * (1 + rim / r), 0.05)):
        canvas.put(
            [ellipse(x, r, r * share), ellipse(x, r, r * share - 0.010)], (1.0, 1.0, 1.0), opacity=opacity
        )

    def metal(u: Floats, v: Floats) -> Floats:
        level = (
            np.float32(car.rim)
            * (0.62 + 0.42 * np.clip((v - r + rim) / np.float32(2 * rim), 0, 1))
            * np.float32(light.power)
        )
        return np.stack([level, level, level * 1.02], axis=-1)

    canvas.put(ellipse(x, r, rim), (0.03, 0.03, 0.032))
    canvas.put([ellipse(x, r, rim * 0.66), ellipse(x, r, rim * 0.30)], (0.22, 0.215, 0.21))
    canvas.put([ellipse(x, r, rim), ellipse(x, r, rim * 0.915)], metal)
    canvas.put([ellipse(x, r, rim * 0.925), ellipse(x, r, rim * 0.895)], (0, 0, 0), opacity=0.45)
    pairs = (-0.62, 0.62) if car.twin else (0.0,)
    half = min(0.62, 2.0 / car.spokes) * (0.5 if car.twin else 0.62)
    girth = half * (0.36 if car.twin else 0.62)
    angles = turned + np.arange(car.spokes) * (2 * np.pi / car.spokes)
    spokes = [_spoke(x, r, rim, angle, half * offset, girth) for angle in angles for offset in pairs]
    for spoke in spokes:
        canvas.put(spoke - (0.0, 0.016 * r), (0, 0, 0), opacity=0.55)
    for spoke in spokes:
        canvas.put(spoke, metal)
    canvas.put(ellipse(x, r, rim * 0.24), metal)
    canvas.put(ellipse(x, r, rim * 0.13), (0.09, 0.09, 0.1))
    canvas.put(ellipse(x, r + 0.01 * r, rim * 0.06), (0.5, 0.5, 0.52))
    # The arch throws its shadow on the upper part of the wheel.
    found = canvas.cover([ellipse(x, r, r * 1.13)])
    if found is not None:
        house, inside = found
        canvas.mix(house, inside * np.float32(0.55) * ramp(canvas.y[house], 1.45 * r, 2.1 * r), (0, 0, 0))


def _spoke(x: float, r: float, rim: float, angle: float, offset: float, half: float) -> Path:
    """One spoke from hub to rim, wider at the rim."""
    reach, root = rim * 0.95, rim * 0.16
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = [
        along * root + across * (offset * 0.35 + half * 0.8) * root,
        along * reach + across * (offset + half * 0.55) * reach,
        along * reach + across * (offset - half * 0.55) * reach,
        along * root + across * (offset * 0.35 - half * 0.8) * root,
    ]
    spoke: Path = np.array(corners) + np.array([x, r])
    return spoke
