"""Curves, strokes and smooth noise: the geometry under cars and backdrops. No colours here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Path = NDArray[np.float64]  # (points, 2): x, y

Point = tuple[float, float] | tuple[float, float, float]


def smooth(points: Sequence[Point], steps: int = 10) -> Path:
    """A closed curve inside a control polygon, made of one quadratic Bézier arc per corner.

    Args:
        points: corners (x, y) or (x, y, cut); `cut` is the share of each adjacent edge that the arc replaces:
            0.5 (the default) is a quadratic B-spline, 0 a sharp corner. The curve never leaves the polygon's
            hull.
        steps: points per arc.
    """
    corner = np.array([p[:2] for p in points], dtype=np.float64)
    cut = np.array([p[2] if len(p) == 3 else 0.5 for p in points])[:, None]
    start = corner + cut * (np.roll(corner, 1, axis=0) - corner)
    end = corner + cut * (np.roll(corner, -1, axis=0) - corner)
    t = np.linspace(0, 1, steps)[None, :, None]
    arcs = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * corner[:, None] + t**2 * end[:, None]
    flat: Path = arcs.reshape(-1, 2)
    return flat


def ellipse(x: float, y: float, rx: float, ry: float | None = None, points: int = 64) -> Path:
    """An ellipse (a circle without `ry`) as a closed path."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + (rx if ry is None else ry) * np.sin(angle)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, cut: float = 0.0) -> Path:
    """A rectangle, with rounded corners where `cut` > 0 (see `smooth`)."""
    return smooth([(x0, y0, cut), (x1, y0, cut), (x1, y1, cut), (x0, y1, cut)], steps=6)


def stroke(line: Path, width: float) -> Path:
    """The outline of an open line drawn with a pen `width` wide."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width / 2)
    return np.concatenate([line + side, (line - side)[::-1]])


def line(points: Sequence[tuple[float, float]], steps: int = 16) -> Path:
    """An open smooth line that begins and ends at the first and the last point."""
    first, last = points[0], points[-1]
    return smooth([(*first, 0.0), *points[1:-1], (*last, 0.0)], steps)


def noise(
    rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int], octaves: int = 4
) -> Floats:
    """Cloudy noise, float32 `size`, about 0..1 with mean 0.5.

    Args:
        size: (height, width) in pixels.
        cells: (rows, columns) of the coarsest octave; each further octave has twice as many at half the
            strength.
    """
    total = np.zeros(size, np.float32)
    weight = 0.0
    for octave in range(octaves):
        shape = (cells[0] << octave, cells[1] << octave)
        # Drawn even where it is skipped: the series must not depend on size
        grid = rng.random(shape, dtype=np.float32)
        if octave and (shape[0] > 2 * size[0] or shape[1] > 2 * size[1]):
            continue
        total += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC) * np.float32(0.5**octave)
        weight += 0.5**octave
    total /= np.float32(weight)
    return total


def blur(picture: Floats, sigma: float) -> Floats:
    """Gaussian blur with a standard deviation in pixels."""
    return cast("Floats", cv2.GaussianBlur(picture, (0, 0), sigma))


def resized(picture: Floats, size: tuple[int, int], *, smaller: bool = False) -> Floats:
    """A picture at another size (height, width); `smaller` averages all pixels that fall into one."""
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cast("Floats", cv2.resize(picture, size[::-1], interpolation=how))


def ramp(value: Floats, low: float, high: float) -> Floats:
    """Smooth step: 0 below `low`, 1 above `high` (or the other way round where `low` > `high`)."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    result: Floats = t * t * (3 - 2 * t)
    return result
