"""Measure masks: how much of a picture each class takes, and what its components are like.

Components are pixels that touch, at corners too, as scikit-image's `label` has them; their figures are those
of its `regionprops`, computed for all of them at once from the runs of the rows.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.errors import UsageError
from unet_batch.media import geometry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from unet_batch.types import Metadata, Pixels

    Labels = NDArray[np.int32]
    Floats = NDArray[np.float64]

UNSURE = 0.8
"""A pixel is unsure if its probability lies so near to one half: from 0.1 to 0.9."""
PLACEHOLDERS = (1, 72, 96)
"""Pixels per inch that programs write where nobody knows: they are no resolution."""
MOST_OBJECTS = 65_535
"""That a label image of 16 bits can tell apart."""

_UNITS = ("nm", "um", "mm", "cm", "m", "km", "in", "ft")
_MODEL_TYPE, _LINEAR_UNITS, _PROJECTED = 1024, 3076, 1
_GEO_UNITS = {9001: "m", 9002: "ft"}
_PIXEL_SCALE, _GEO_KEYS = 33550, 34735


@dataclass(frozen=True)
class PixelSize:
    """What a pixel measures.

    Attributes:
        height, width: its sides.
        unit: of both; "" where nobody says.
    """

    height: float
    width: float
    unit: str = ""

    @classmethod
    def parse(cls, text: str) -> PixelSize:
        """Read `0.5um`, `0.25` or `0.5x0.25mm` (height x width).

        Raises:
            UsageError: it is none of these.
        """
        number = r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})"
        unit = "|".join((*_UNITS, "µm", "μm"))
        found = re.fullmatch(rf"\s*{number}(?:\s*[xX]\s*{number})?\s*({unit})?\s*", text)
        if found is None or min(sides := [float(found[1]), float(found[2] or found[1])]) <= 0:
            raise UsageError(
                f"{text!r} is no size of a pixel",
                hint=f"0.5um, 0.25, or 0.5x0.25mm (height x width); units: {', '.join(_UNITS)}",
            )
        return cls(sides[0], sides[1], (found[3] or "").replace("µ", "u").replace("μ", "u"))

    @classmethod
    def of(cls, metadata: Metadata) -> PixelSize | None:
        """What a picture's file says: metres or feet of a projected GeoTIFF, else millimetres by its dpi.

        Of microscopes, whose pixels measure less than a hundredth of that, micrometres.
        """
        geo = dict(metadata.geo)
        if _PIXEL_SCALE in geo:
            keys = geo.get(_GEO_KEYS, ())
            values = {keys[at]: keys[at + 3] for at in range(4, len(keys) - 3, 4) if keys[at + 1] == 0}
            unit = _GEO_UNITS.get(values.get(_LINEAR_UNITS, 0))
            if values.get(_MODEL_TYPE) != _PROJECTED or unit is None:
                return None  # degrees, of which areas mean nothing, or nobody knows
            across, down = (abs(float(side)) for side in geo[_PIXEL_SCALE][:2])
            return cls(down, across, unit) if min(down, across) > 0 else None
        if metadata.dpi is None or all(round(dots, 2) in PLACEHOLDERS for dots in metadata.dpi):
            return None
        across, down = (25.4 / dots for dots in metadata.dpi)
        if max(across, down) < 0.01:
            return cls(1000 * down, 1000 * across, "um")
        return cls(down, across, "mm")

    @property
    def area(self) -> float:
        """Of a pixel, in the square of the unit."""
        return self.height * self.width

    def __str__(self) -> str:
        """As `parse` reads it."""
        sides = f"{self.height:g}" if self.height == self.width else f"{self.height:g}x{self.width:g}"
        return sides + self.unit


@dataclass(frozen=True)
class Measuring:
    """What a person may choose of how masks are measured.

    Attributes:
        pixel_size: what a pixel measures; None takes what each picture's file says.
        watershed: split objects that touch by the watershed of their distance from the edge, with seeds that
            are so many pixels apart at least; None leaves them whole.

    Raises:
        UsageError: seeds are no pixel apart, or scikit-image is not installed.
    """

    pixel_size: PixelSize | None = None
    watershed: int | None = None

    def __post_init__(self) -> None:
        if self.watershed is None:
            return
        if self.watershed < 1:
            raise UsageError(f"watershed {self.watershed}: seeds are 1 pixel apart or more")
        try:
            import skimage  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "the watershed needs scikit-image, which is not installed",
                hint="pip install 'unet-batch[objects]'",
            ) from error

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> Measuring:
        """Make it of what `asdict` gave, and JSON brought to another process."""
        size = values["pixel_size"]
        return cls(None if size is None else PixelSize(**size), values["watershed"])

    def facts(self) -> dict[str, str | int]:
        """What of it decides the figures; nothing where nobody chose."""
        facts: dict[str, str | int] = {}
        if self.pixel_size is not None:
            facts["pixel_size"] = str(self.pixel_size)
        if self.watershed is not None:
            facts["watershed"] = self.watershed
        return facts

    def __str__(self) -> str:
        """What a person calls it; "" where nobody chose."""
        parts = [] if self.pixel_size is None else [f"pixels of {self.pixel_size}"]
        return ", ".join(parts + ([f"watershed {self.watershed}"] if self.watershed is not None else []))


@dataclass(frozen=True, eq=False)
class Objects:
    """The components of a mask.

    Attributes:
        labels: int32 (height, width): 0 where there is none, else the number of the component, from 1.
        classes: the class of each, in that order.
    """

    labels: Labels
    classes: NDArray[np.intp]


def find_objects(ids: Pixels, classes: Sequence[int], watershed: int | None = None) -> Objects:
    """Find the components of some classes, numbered by class, and within one from the top.

    Args:
        ids: uint8 (height, width), the class of every pixel.
        classes: whose components are wanted.
        watershed: as `Measuring` has it.
    """
    labels, found = np.zeros(ids.shape, np.int32), list[int]()
    for id in classes:
        where = (ids == id).view(np.uint8)
        left, top, width, height = cv2.boundingRect(where)
        if not width:
            continue
        box = slice(top, top + height), slice(left, left + width)
        part = np.ascontiguousarray(where[box])
        count, own = cv2.connectedComponents(part, connectivity=8, ltype=cv2.CV_32S)
        own, count = _split(part, own.astype(np.int32), count - 1, watershed)
        np.add(own, len(found), out=labels[box], where=own > 0)
        found += [id] * count
    return Objects(labels, np.array(found, np.intp))


def _split(mask: Pixels, labels: Labels, count: int, apart: int | None) -> tuple[Labels, int]:
    """Split components between the places that are farthest from their edges."""
    if apart is None or not count:
        return labels, count
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    seeds = peak_local_max(distance, min_distance=apart, labels=labels, exclude_border=False)
    seeds = seeds[np.lexsort((seeds[:, 1], seeds[:, 0]))]
    rest = np.setdiff1d(np.arange(1, count + 1), labels[tuple(seeds.T)])  # that touch no background
    if len(rest):
        flat = labels.ravel()
        firsts = np.array([int(np.argmax(flat == label)) for label in rest])
        seeds = np.concatenate([seeds, np.stack(np.unravel_index(firsts, labels.shape), 1)])
    markers = np.zeros(labels.shape, np.int32)
    markers[tuple(seeds.T)] = np.arange(1, len(seeds) + 1)
    return watershed(-distance, markers, mask=labels > 0).astype(np.int32), len(seeds)


@dataclass(frozen=True, eq=False)
class Regions:
    """Figures of the components 1, 2, ... of a label image, an array each; see `files.tables.ObjectStats`.

    Attributes:
        boxes: int64 (n, 4): left, top, width, height.
        centroids: float64 (n, 2): across, down.
        orientations: in radians.
        axes: float64 (n, 2): major, minor.
    """

    pixels: NDArray[np.int64]
    boxes: NDArray[np.int64]
    centroids: Floats
    orientations: Floats
    axes: Floats
    perimeters: Floats


@dataclass(frozen=True, eq=False)
class Pieces:
    """What adds up over the pixels of pieces of a picture, until it is that of whole components.

    Attributes:
        boxes: int64 (4, n): left, top, right, bottom of each; the last two are the first pixels beyond.
        sums: float64 (6 or more, n): pixels, x, y, x*x, y*y and x*y, counted from the left and the top of
            each box, so that no digit is lost (below 2**53 none is); then whatever else adds up.
    """

    boxes: NDArray[np.int64]
    sums: Floats

    def joined(self, numbers: NDArray[np.int64], count: int) -> Pieces:
        """Make larger pieces of them.

        Args:
            numbers: int64 (n,), of the larger one that each belongs to, from 0; none is left out.
            count: of larger ones.
        """
        if not count:
            return self
        order = np.argsort(numbers, kind="stable")
        groups = np.searchsorted(numbers[order], np.arange(count))
        left, top = np.minimum.reduceat(self.boxes[:2, order], groups, 1)
        right, bottom = np.maximum.reduceat(self.boxes[2:, order], groups, 1)
        across, down = (self.boxes[0] - left[numbers]), (self.boxes[1] - top[numbers])
        pixels, x, y, xx, yy, xy, *others = self.sums
        moved = (
            pixels,
            x + pixels * across,
            y + pixels * down,
            xx + across * (2 * x + pixels * across),
            yy + down * (2 * y + pixels * down),
            xy + across * y + down * (x + pixels * across),
            *others,
        )
        sums = np.stack([np.bincount(numbers, each, count) for each in moved])
        return Pieces(np.stack([left, top, right, bottom]), sums.astype(np.float64))

    def regions(self, perimeters: Floats) -> Regions:
        """Their figures, given their perimeters, float64 (n,)."""
        left, top, right, bottom = self.boxes
        pixels = self.sums[0]
        x, y, xx, yy, xy = self.sums[1:6] / pixels
        xx, yy, xy = xx - x * x, yy - y * y, xy - x * y
        mean, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        axes = 4 * np.sqrt(np.maximum(np.stack([mean + half, mean - half], 1), 0))
        equal = np.isclose(xx, yy, rtol=1e-12, atol=1e-12)
        diagonal = np.where(xy > 1e-12, math.pi / 4, -math.pi / 4)
        return Regions(
            pixels.astype(np.int64),
            np.stack([left, top, right - left, bottom - top], 1),
            np.stack([x + left, y + top], 1),
            np.where(equal, diagonal, 0.5 * np.arctan2(2 * xy, yy - xx)),
            axes,
            perimeters,
        )


def measure_regions(labels: Labels) -> Regions:
    """Measure components, as `skimage.measure.regionprops` does.

    Args:
        labels: int32 (height, width); holds every number from 1 to its largest.
    """
    pieces = pieces_of(labels)
    rows, columns, lengths = edges_of(labels)
    perimeters = np.bincount(labels[rows, columns] - 1, lengths, pieces.sums.shape[1])
    return pieces.regions(perimeters.astype(np.float64))


def pieces_of(labels: Labels) -> Pieces:
    """Add up the pixels of the components 1, 2, ... of such a label image."""
    first_x, first_y, width, height = cv2.boundingRect((labels > 0).view(np.uint8))
    if not width:
        return Pieces(np.zeros((4, 0), np.int64), np.zeros((6, 0)))
    labels = np.ascontiguousarray(labels[first_y : first_y + height, first_x : first_x + width])
    starts, lengths, numbers = _runs(labels)
    inside = numbers > 0
    starts, lengths, numbers = starts[inside], lengths[inside], numbers[inside] - 1
    top, left = np.divmod(starts, width)
    top, left = top + first_y, left + first_x
    one, two = lengths * (lengths - 1) // 2, lengths * (lengths - 1) * (2 * lengths - 1) // 6
    nothing = np.zeros(len(lengths), np.int64)  # of a run, y is 0
    sums = np.stack([lengths, one, nothing, two, nothing, nothing]).astype(np.float64)
    boxes = np.stack([left, top, left + lengths, top + 1])
    return Pieces(boxes, sums).joined(numbers, int(numbers.max()) + 1)


def _runs(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where the runs of equal numbers in the rows begin in the flattened picture, how long, and of what."""
    begins = np.ones(labels.shape, np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins).astype(np.int64)
    return starts, np.diff(starts, append=labels.size), labels.reshape(-1)[starts].astype(np.int64)


# Of a pixel of an edge, by 1 + 2 a + 10 b, with a neighbours beside it and b at its corners that are of the
# same edge: K. Benkrid, D. Crookes, Design and FPGA Implementation of a Perimeter Estimator, 2000.
_LENGTHS = np.zeros(50)
_LENGTHS[[5, 7, 15, 17, 25, 27]] = 1
_LENGTHS[[21, 33]] = math.sqrt(2)
_LENGTHS[[13, 23]] = (1 + math.sqrt(2)) / 2


def edges_of(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The pixels of the edges of components: rows, columns, and what each adds to the perimeter.

    Args:
        labels: whole numbers (height, width), 0 where there is no component. What is said of a row depends on
            the two above it and the two below.
    """
    first_x, first_y, width, height = cv2.boundingRect((labels > 0).view(np.uint8))
    labels = labels[first_y : first_y + height, first_x : first_x + width]
    around = np.pad(labels, 1)
    step = around.shape[1]
    beside, corners = (-step, -1, 1, step), (-step - 1, -step + 1, step - 1, step + 1)
    inner = np.ones(labels.shape, np.bool_)
    for below, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        there = around[below : below + labels.shape[0], right : right + labels.shape[1]]
        np.logical_and(inner, there == labels, out=inner)
    edge = np.zeros(around.shape, np.bool_)
    np.greater(labels, 0, out=edge[1:-1, 1:-1])
    edge[1:-1, 1:-1] &= ~inner
    is_edge, all_numbers = edge.reshape(-1), around.reshape(-1)
    places = np.flatnonzero(is_edge)
    numbers, value = all_numbers[places], np.ones(len(places), np.intp)
    for weight, shifts in ((2, beside), (10, corners)):
        for shift in shifts:
            other = places + shift
            value += weight * (is_edge[other] & (all_numbers[other] == numbers))
    rows, columns = np.divmod(places, step)
    return rows + (first_y - 1), columns + (first_x - 1), _LENGTHS[value]


def sum_of(labels: Labels, values: Pixels, count: int) -> Floats:
    """Sum of uint8 values (height, width) over each component, float64 (count,)."""
    if not count:
        return np.zeros(0)
    starts, _, numbers = _runs(labels)
    sums = np.add.reduceat(values.reshape(-1), starts, dtype=np.int64)
    inside = numbers > 0
    return np.bincount(numbers[inside] - 1, sums[inside], count).astype(np.float64)


_EXACT = 2**24  # up to which cv2 counts in whole numbers

_P = np.arange(256) / 255
with np.errstate(divide="ignore", invalid="ignore"):
    _ENTROPY = np.nan_to_num(-(_P * np.log2(_P) + (1 - _P) * np.log2(1 - _P)))
_CONFIDENCE, _IS_UNSURE = np.maximum(_P, 1 - _P), np.abs(_P - 0.5) <= UNSURE / 2


def certainty(map: Pixels) -> tuple[float, float, float]:
    """How sure a map is: the means of confidence and entropy, and the share of unsure pixels.

    Args:
        map: uint8, round(255 p); of one pixel at least.
    """
    return certainty_of(count_levels(map))


def count_levels(values: Pixels) -> NDArray[np.int64]:
    """How many uint8 values there are of each, int64 (256,): `numpy.bincount` widens all of them before."""
    flat = np.ascontiguousarray(values).reshape(-1, 1)
    found = np.zeros(256, np.int64)
    for first in range(0, len(flat), _EXACT):
        part = flat[first : first + _EXACT]
        found += cv2.calcHist([part], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    return found


def certainty_of(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """The same of how many pixels have each of the 256 levels, int64 (256,)."""
    shares = counts / counts.sum()
    return float(shares @ _CONFIDENCE), float(shares @ _ENTROPY), float(shares @ _IS_UNSURE)


def box_of(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box around what is True, of a pixel at least: left, top, width, height in pixels."""
    left, top, width, height = cv2.boundingRect(where.view(np.uint8))
    return left, top, width, height


def brightness(pixels: Pixels) -> Pixels:
    """What a person sees of RGB (height, width, 3) without its colours: uint8 (height, width)."""
    return geometry.luminance(pixels)[..., 0]


def count_components(where: NDArray[np.bool_]) -> int:
    """How many pieces the True pixels are, bool (height, width)."""
    return int(cv2.connectedComponents(where.view(np.uint8))[0]) - 1
