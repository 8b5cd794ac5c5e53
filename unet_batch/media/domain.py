"""How far a picture is from those that a model learned from, by how the network is shown it.

A picture becomes a few figures that all backends share, since they come before the network: brightness and
colour and how they vary over the picture, detail at three scales, the directions of edges. Those of the
training are a Gaussian; the distance of most validation pictures from its middle is the limit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.media import geometry
from unet_batch.types import Domain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Placement, Size

    Figures = NDArray[np.float64]

UNLIKE = "unlike what the model learned from"
"""The note of a picture beyond the limit."""
LEAST = 20
"""Training pictures without which nothing is said."""
WITHIN = 0.98
"""Share of the validation pictures that is within the limit."""

_SIDE, _CELLS, _DIRECTIONS = 64, 4, 6
_SHRINKAGE = 0.1  # of the covariance towards its diagonal, where pictures are plenty
_OPPONENT = np.array([[0.299, 0.587, 0.114], [1, -1, 0], [0.5, 0.5, -1]], np.float32)


def describe(content: Pixels) -> Figures:
    """The figures of a picture.

    Args:
        content: uint8 (h, w, 3) or (h, w, 1), what the network is shown of it, without padding.

    Returns:
        float64 (19,).
    """
    if content.shape[2] == 1:
        content = np.repeat(content, 3, 2)
    while min(content.shape[:2]) >= 2 * _SIDE:  # halves are quick: of 448x672, 0.5 ms for 2.0
        height, width = content.shape[0] // 2, content.shape[1] // 2
        even = content[: 2 * height, : 2 * width]
        content = cast("Pixels", cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
    small = cv2.resize(content, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    planes = cast("NDArray[np.float32]", cv2.transform(small, _OPPONENT))
    light = np.ascontiguousarray(planes[..., 0])
    cells = _by_cell(planes)
    spread = np.sqrt(np.maximum(_by_cell(light * light)[:, 0] - cells[:, 0] ** 2, 0))
    spread = np.log(spread + 0.01)
    red, green, blue = cv2.split(small)
    colour = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    detail, directions = list[float](), np.zeros(_DIRECTIONS)
    for scale in range(3):
        across, down = light[:-1, 1:] - light[:-1, :-1], light[1:, :-1] - light[:-1, :-1]
        strength, angle = cv2.cartToPolar(across, down)
        detail.append(math.log(float(strength.mean()) + 0.002))
        if scale == 0:
            bins = (angle.reshape(-1) * (_DIRECTIONS / math.pi)).astype(np.intp) % _DIRECTIONS
            found = np.bincount(bins, strength.reshape(-1), _DIRECTIONS)
            directions = np.sqrt(found / (found.sum() + 1e-6))
        half = _SIDE >> (scale + 1)
        light = cast("NDArray[np.float32]", cv2.resize(light, (half, half), interpolation=cv2.INTER_AREA))
    return np.concatenate(
        [
            cells.mean(0),
            np.log(cells.std(0) + 0.01),
            [spread.mean(), spread.std()],
            np.log([colour.mean() + 0.01, colour.std() + 0.01]),
            detail,
            directions,
        ],
        dtype=np.float64,
    )


class BandDescriber:
    """Says `unlike` of a picture whose rows come in bands.

    Args:
        size: (height, width) of what the network is shown of it.
    """

    def __init__(self, size: Size) -> None:
        self._odd: list[Pixels | None] = []  # a row for each halving that waits for the next one
        while min(size) >= 2 * _SIDE:
            size = (size[0] // 2, size[1] // 2)
            self._odd.append(None)
        self._small: list[Pixels] = []

    def add(self, rows: Pixels) -> None:
        """Take in the next rows, uint8 (n, width, channels)."""
        for step, odd in enumerate(self._odd):
            rows = rows if odd is None else np.concatenate([odd, rows])
            height, width = rows.shape[0] // 2, rows.shape[1] // 2
            self._odd[step] = rows[2 * height :].copy() if len(rows) % 2 else None
            if not height:
                return
            rows = geometry.resize(rows[: 2 * height, : 2 * width], (height, width), cv2.INTER_AREA)
        self._small.append(rows)

    def unlike(self, domains: Sequence[Domain]) -> float | None:
        """How far the picture lies from the nearest of some domains; None where there are none."""
        if not domains or self._small[0].shape[2] not in (1, 3):
            return None
        return _nearest(domains, np.concatenate(self._small))


def _by_cell(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of the cells of a coarse grid: (cells, channels)."""
    coarse = cv2.resize(values, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
    return cast("NDArray[np.float32]", coarse.reshape(_CELLS * _CELLS, -1))


def learn(trained: Sequence[Figures], validated: Sequence[Figures]) -> Domain | None:
    """What a model has seen, and how far pictures like it may lie.

    Args:
        trained: `describe` of the pictures that it learned from.
        validated: of some that it did not; the limit holds `WITHIN` of them.

    Returns:
        None where there are fewer than `LEAST` to learn from, or none to validate.
    """
    if len(trained) < LEAST or not validated:
        return None
    figures = np.stack(trained)
    count, size = figures.shape
    covariance, shrinkage = np.cov(figures.T), max(_SHRINKAGE, size / (count + size))
    covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance)) + 1e-4 * np.eye(size)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    rows = tuple(tuple(map(_short, row[: at + 1])) for at, row in enumerate(whitening))
    domain = Domain(tuple(map(_short, figures.mean(0))), rows, 1.0, count, len(validated))
    distances = [distance(domain, each) for each in validated]
    limit = float(np.quantile(distances, WITHIN, method="higher"))
    return Domain(domain.mean, rows, _short(limit), count, len(validated))


def distance(domain: Domain, figures: Figures) -> float:
    """How far a picture lies from the middle of a domain, 1 being its limit."""
    size = len(domain.mean)
    whitening = np.zeros((size, size))
    whitening[np.tril_indices(size)] = [value for row in domain.whitening for value in row]
    return float(np.linalg.norm((figures - domain.mean) @ whitening)) / math.sqrt(size) / domain.limit


def unlike(domains: Sequence[Domain], tensors: Sequence[Pixels], placement: Placement) -> float | None:
    """How far a picture lies from the nearest of some domains; None where there are none.

    Args:
        domains: of the models that see it.
        tensors: uint8 (H, W, channels), what they are shown.
        placement: where the picture lies in one of them.
    """
    for tensor in tensors:
        if domains and tensor.shape[:2] == placement.network and tensor.shape[2] in (1, 3):
            return _nearest(domains, geometry.content_of(tensor, placement))
    return None


def _nearest(domains: Sequence[Domain], content: Pixels) -> float:
    figures = describe(content)
    return min(distance(each, figures) for each in domains)


def notes_on(unlike: float | None) -> tuple[str, ...]:
    """What people should know of a picture so far away."""
    return () if unlike is None or unlike <= 1 else (UNLIKE,)


def _short(value: float) -> float:
    """Five digits, so that a model's description stays short."""
    return float(f"{value:.5g}")
