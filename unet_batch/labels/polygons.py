"""Outlines of masks as polygons whose vertices are corners of pixels: exact, with all holes and parts.

Coordinates are (x, y) as everywhere in these formats, x to the right and y down, and pixel (0, 0) covers the
square from (0, 0) to (1, 1): whatever fills such a polygon by the centres of pixels gives the mask back, and
a line of one pixel is a rectangle. Every ring has what it bounds on its right, seen in its direction: outer
rings run clockwise on the screen, holes the other way.

`trace` gives rings with holes. Most formats know no holes: `thread` joins all rings of an object to a single
one by cuts that are walked there and back, each along a row of the mask, inside the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Ring = NDArray[Any]

_STRAIGHT = (0, 3, 5, 10, 12, 15)
_RISING, _FALLING = 6, 9  # two pixels that touch at their corners only, as / and as \


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What bounds a connected part of a mask.

    Attributes:
        object: number from 1 of the object it belongs to; parts that touch at a corner are of one object.
        outer: int64 (n, 2), vertices x, y; the last is joined with the first.
        holes: the same of each hole.
    """

    object: int
    outer: Ring
    holes: tuple[Ring, ...] = ()


def trace(mask: Mask, *, simple: bool = False) -> list[Outline]:
    """Trace the outlines of a mask.

    Args:
        mask: bool (height, width).
        simple: no ring touches itself, as geographic programs demand: pixels that touch at a corner only are
            parts of their own, and a hole that touches itself is two. Else there is one outline an object.

    Returns:
        From top to bottom by their first pixels.
    """
    loops = _loops(mask, simple=simple)
    if not loops:
        return []
    _, objects = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4) if simple else (0, objects)
    firsts = np.array([loop[:2] for loop in loops])
    step = np.sign(firsts[:, 1] - firsts[:, 0])
    inside = np.floor(firsts[:, 0] + step / 2 + _right(step) / 2).astype(int)
    numbers, owners = parts[inside[:, 1], inside[:, 0]], objects[inside[:, 1], inside[:, 0]]
    outers: dict[int, tuple[int, Ring]] = {}
    holes: dict[int, list[Ring]] = {}
    for loop, part, owner in zip(loops, numbers.tolist(), owners.tolist(), strict=True):
        if _area(loop) > 0:
            outers[part] = owner, loop
        else:
            holes.setdefault(part, []).append(loop)
    return [Outline(owner, outer, tuple(holes.get(part, ()))) for part, (owner, outer) in outers.items()]


def thread(mask: Mask, *, ends: Literal["corners", "centres"] = "corners") -> list[Ring]:
    """The outlines of a mask's objects, each a single ring, holes joined by cuts.

    Args:
        mask: bool (height, width).
        ends: where vertices lie. "corners" of pixels, for what is filled by the centres of pixels; "centres"
            of the outermost pixels, for what paints the outline as well (OpenCV, Pillow): a single pixel is
            three equal points.

    Returns:
        The ring of each object, (n, 2), x and y: int64, or float64 for centres.
    """
    starts = _run_starts(mask)
    found: list[Ring] = []
    for outline in trace(mask):
        rings = [outline.outer, *outline.holes]
        moved = [_inset(ring, mask) for ring in rings] if ends == "centres" else rings
        found.append(_thread(rings, moved, starts, ends == "centres"))
    return found


def simplify(ring: Ring, pixels: float) -> Ring:
    """A ring with fewer vertices, none of the old ones further than `pixels` from it; 0 leaves it alone."""
    if pixels <= 0:
        return ring
    fewer = cv2.approxPolyDP(ring.astype(np.float32), pixels, closed=True)[:, 0].astype(np.float64)
    return fewer if len(fewer) >= 3 else ring


def _loops(mask: Mask, *, simple: bool) -> list[Ring]:
    """All rings, each with the mask on its right.

    In each row of pixel corners, those where an outline turns are the ends of its horizontal edges, pair by
    pair from the left; in each column of its vertical ones. A corner where two outlines meet counts twice.
    """
    filled = np.pad(mask, 1).astype(np.uint8)
    around = filled[:-1, :-1] + 2 * filled[:-1, 1:] + 4 * filled[1:, :-1] + 8 * filled[1:, 1:]
    turns = ~np.isin(around, _STRAIGHT)
    ys, xs = np.nonzero(turns)
    kinds = around[turns]
    twice = (kinds == _RISING) | (kinds == _FALLING)
    corner = np.repeat(np.arange(len(ys)), 1 + twice)
    y, x, kind = ys[corner], xs[corner], kinds[corner]
    copy = np.zeros(len(corner), np.int8)
    copy[1:] = corner[1:] == corner[:-1]
    # The first copy ends the edge from the left: is it joined with the one from above, or below?
    upwards = kind == (_FALLING if simple else _RISING)
    columns = np.lexsort((np.where(upwards, copy, 1 - copy), y, x))
    vertical = np.empty(len(corner), np.int64)
    vertical[columns[::2]], vertical[columns[1::2]] = columns[1::2], columns[::2]
    ends, places = vertical.tolist(), corner.tolist()
    points = np.stack([x, y], 1).astype(np.int64)
    seen = bytearray(len(corner))
    loops = []
    for start in range(len(corner)):
        if seen[start]:
            continue
        path: list[int] = []
        node = start
        while True:
            other = node ^ 1
            path += (node, other)
            seen[node] = seen[other] = 1
            if (node := ends[other]) == start:
                break
        if not kind[start] & 8:  # what is below its highest edge is not in the mask
            path = [path[0], *path[:0:-1]]
        pieces = _split(path, places) if simple and twice.any() else [path]
        loops += [points[piece] for piece in pieces]
    return loops


def _split(path: list[int], places: list[int]) -> list[list[int]]:
    """Rings that touch themselves nowhere."""
    rings: list[list[int]] = []
    stack: list[int] = []
    height: dict[int, int] = {}
    for node in path:
        place = places[node]
        if place in height:
            cut = height[place]
            rings.append(stack[cut:])
            for gone in stack[cut + 1 :]:
                del height[places[gone]]
            del stack[cut + 1 :]
        else:
            height[place] = len(stack)
            stack.append(node)
    return [*rings, stack]


def _right(step: NDArray[Any]) -> NDArray[Any]:
    return np.stack([-step[..., 1], step[..., 0]], -1)


def _area(ring: Ring) -> float:
    """Twice the area; negative for a hole."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def _inset(ring: Ring, mask: Mask) -> Ring:
    """A ring through the centres of the pixels inside it: its edges moved by half a pixel.

    One point for each corner, or two where the way goes on in a pixel that only touches there.
    """
    after = np.sign(np.roll(ring, -1, 0) - ring)
    before = np.roll(after, 1, 0)
    point = ring + (_right(before) + _right(after)) / 2
    x, y = np.floor(point).astype(int).T
    outside = ~mask[y, x]
    first = ring - before / 2 + _right(before) / 2
    second = ring + after / 2 + _right(after) / 2
    both = np.stack([np.where(outside[:, None], first, point), np.where(outside[:, None], second, point)], 1)
    return both.reshape(-1, 2)


def _run_starts(mask: Mask) -> NDArray[np.int32]:
    """Of each pixel, the column where the run of pixels of the mask that it lies in begins."""
    columns = np.arange(mask.shape[1], dtype=np.int32)
    begins = np.where(mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1], columns, np.int32(0))
    return np.maximum.accumulate(begins, axis=1)


def _thread(rings: Sequence[Ring], moved: Sequence[Ring], starts: NDArray[np.int32], centres: bool) -> Ring:
    """Join the rings of an object.

    Args:
        rings: the outer one, and its holes, by corners.
        moved: what is to be joined: themselves, or the two points that each vertex became.
        starts: as from `_run_starts`.
        centres: which of the two.
    """
    if len(rings) == 1:
        return _tidy(moved[0]) if centres else moved[0]
    per = 2 if centres else 1  # points a vertex
    half = 0.5 if centres else 0.0
    # The vertical edges that have the object at their right: where cuts from holes may end.
    ring_of, edge_of, left, top = (
        np.concatenate(parts) for parts in zip(*map(_rising, rings, range(len(rings))), strict=True)
    )
    order = np.lexsort((top, left))
    left, top = left[order], top[order]
    span = int(top.max()) + 2
    codes = left * span + top
    cuts: list[list[tuple[int, float, int, NDArray[Any]]]] = [[] for _ in rings]
    anchors: list[tuple[int, NDArray[Any]]] = [(0, moved[0][0])]
    for hole in range(1, len(rings)):
        ring = rings[hole]
        down = np.flatnonzero(np.roll(ring[:, 1], -1) > ring[:, 1])  # its left edges, downwards
        edge = int(down[np.argmin(ring[down, 0])])
        x, y = ring[edge].tolist()
        begin = int(starts[y, x - 1])
        at = int(order[np.searchsorted(codes, begin * span + min(y, span - 1), side="right") - 1])
        cuts[ring_of[at]].append((int(edge_of[at]), -y, hole, np.array([begin + half, y + half])))
        anchors.append((edge, np.array([x - half, y + half])))
    for each in cuts:
        each.sort(key=lambda cut: cut[:2])
    return _tidy(np.array(_walk(moved, per, cuts, anchors)))


def _tidy(ring: Ring) -> Ring:
    """A ring without points that repeat the one before, but for the three that a ring needs."""
    kept = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    return kept if len(kept) >= 3 else np.concatenate([kept, ring[:1], ring[:1], ring[:1]])[:3]


def _rising(ring: Ring, number: int) -> tuple[NDArray[Any], ...]:
    """The edges of a ring that lead upwards: its number, theirs, their column and upper end."""
    after = np.roll(ring, -1, 0)
    up = np.flatnonzero(after[:, 1] < ring[:, 1])
    return np.full(len(up), number), up, ring[up, 0], after[up, 1]


def _walk(
    moved: Sequence[Ring],
    per: int,
    cuts: Sequence[Sequence[tuple[int, float, int, NDArray[Any]]]],
    anchors: Sequence[tuple[int, NDArray[Any]]],
) -> list[NDArray[Any]]:
    """All points in the order of one walk: along the outer ring, at each cut into the hole and back."""

    def steps(number: int) -> list[Any]:
        """The points of a ring from its anchor on, and the numbers of holes with where their cuts begin."""
        points, (edge, anchor) = moved[number], anchors[number]
        count = len(points) // per
        found: list[Any] = [] if number == 0 else [anchor]
        begin = 0 if number == 0 else edge + 1
        at: dict[int, list[tuple[int, NDArray[Any]]]] = {}
        for place, _, hole, point in cuts[number]:
            at.setdefault(place, []).append((hole, point))
        for index in range(begin, begin + count):
            place = index % count
            found.extend(points[place * per : (place + 1) * per])
            found.extend(at.get(place, ()))
        return found if number == 0 else [*found, anchor]

    walk: list[NDArray[Any]] = []
    stack: list[Any] = [iter(steps(0))]
    while stack:
        for step in stack[-1]:
            if isinstance(step, tuple):
                hole, point = step
                walk.append(point)
                stack.append(iter([*steps(hole), point]))
                break
            walk.append(step)
        else:
            stack.pop()
    return walk
