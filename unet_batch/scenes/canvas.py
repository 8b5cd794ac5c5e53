"""A transparent picture that is painted in metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from unet_batch.scenes.shapes import stroke

if TYPE_CHECKING:
    from unet_batch.scenes.car import Rgb
    from unet_batch.scenes.shapes import Floats, Path

    Shade = Callable[[Floats, Floats], Floats]  # (x, y) in metres, each (h, w) -> RGB (h, w, 3)
    Fill = Rgb | Shade

_BITS = 4  # fractional bits of the coordinates cv2 is given


class Canvas:
    """A transparent picture with a coordinate system in metres.

    Attributes:
        colour: RGB float32 (h, w, 3), premultiplied by `alpha`.
        alpha: coverage by the car, float32 (h, w), 0..1.
        x, y: where each pixel lies, in metres, float32 (h, w).
    """

    def __init__(self, size: tuple[int, int], matrix: Path) -> None:
        """Makes an empty canvas.

        Args:
            size: (height, width) in pixels.
            matrix: 3x3 float64, metres to pixels; (0, 0) is the first pixel's corner.
        """
        height, width = size
        self.colour = np.zeros((height, width, 3), np.float32)
        self.alpha = np.zeros(size, np.float32)
        self._matrix = matrix
        self.pixels_per_metre = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        back = np.linalg.inv(matrix).astype(np.float32)
        column = np.arange(width, dtype=np.float32)[None] + np.float32(0.5)
        row = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
        depth = back[2, 0] * column + back[2, 1] * row + back[2, 2]
        self.x: Floats = (back[0, 0] * column + back[0, 1] * row + back[0, 2]) / depth
        self.y: Floats = (back[1, 0] * column + back[1, 1] * row + back[1, 2]) / depth

    def cover(self, paths: Sequence[Path], blur: float = 0.0) -> tuple[tuple[slice, slice], Floats] | None:
        """Computes how much of each pixel the paths enclose (even-odd).

        Args:
            paths: closed, in metres.
            blur: standard deviation of a softened edge, in metres.

        Returns:
            The rows and columns they touch, and the share (0..1) of each pixel there; None if they lie
            outside the canvas.
        """
        placed = [self.to_pixels(path) for path in paths]
        sigma = blur * self.pixels_per_metre
        margin = 2 + int(3 * sigma)
        every = np.concatenate(placed)
        left, top = np.floor(every.min(axis=0)).astype(int) - margin
        right, bottom = np.ceil(every.max(axis=0)).astype(int) + margin
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, self.alpha.shape[1]), min(bottom, self.alpha.shape[0])
        if left >= right or top >= bottom:
            return None
        mask = np.zeros((bottom - top, right - left), np.uint8)
        # cv2 puts whole numbers at pixel centres.
        fixed = [
            np.round((path - (left + 0.5, top + 0.5)) * (1 << _BITS)).astype(np.int32) for path in placed
        ]
        cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, _BITS)
        share: Floats = mask.astype(np.float32) * np.float32(1 / 255)
        if sigma > 0.4:
            cv2.GaussianBlur(share, (0, 0), sigma, dst=share)
        return (slice(top, bottom), slice(left, right)), share

    def to_pixels(self, path: Path) -> Path:
        """A path in metres as pixels, float64 (points, 2)."""
        mapped = np.column_stack([path, np.ones(len(path))]) @ self._matrix.T
        flat: Path = mapped[:, :2] / mapped[:, 2:]
        return flat

    def put(
        self,
        paths: Path | Sequence[Path],
        fill: Fill,
        *,
        opacity: float = 1.0,
        blur: float = 0.0,
        new: bool = False,
    ) -> None:
        """Paints the area the paths enclose.

        Args:
            fill: a colour, or what gives one for every point.
            new: the part adds to the silhouette; otherwise it only shows where the car already is.
        """
        found = self.cover([paths] if isinstance(paths, np.ndarray) else paths, blur)
        if found is None:
            return
        area, share = found
        self.mix(area, share * np.float32(opacity), fill, new=new)

    def trace(self, path: Path, width: float, fill: Fill, *, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Draws a line over the car; one thinner than a pixel fades instead of growing to a pixel's width."""
        self.put(
            stroke(path, width),
            fill,
            opacity=opacity * min(1.0, width * self.pixels_per_metre / 1.5),
            blur=blur,
        )

    def mix(self, area: tuple[slice, slice], share: Floats, fill: Fill, *, new: bool = False) -> None:
        """Lays `fill` over an area of the canvas, `share` (0..1) of it per pixel (see `put`)."""
        alpha, colour = self.alpha[area], self.colour[area]
        value = fill(self.x[area], self.y[area]) if callable(fill) else np.array(fill, np.float32)
        if new:
            alpha += share * (1 - alpha)
            weight = share
        else:
            weight = share * alpha
        colour *= (1 - share)[..., None]
        colour += value * weight[..., None]
