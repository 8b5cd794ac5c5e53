"""How the network sees a picture: whole, as letterboxed or stretched, or in tiles; once, or turned as well.

A view decides where a picture lies in what the network is shown (`place`), and makes the map of that from
as many runs of the network as it takes (`infer`). What it hands on has the one form that everything behind
knows: a map, and the placement that brings it back to the picture. Seen in tiles, both are of the picture's
scaled size, as if the network's input had been so large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from unet_batch.errors import UsageError
from unet_batch.media import geometry
from unet_batch.media.tiling import OVERLAP, Mosaic, Tiling

if TYPE_CHECKING:
    from unet_batch.inference.backends.base import Backend
    from unet_batch.types import ModelSpec, Pixels, Placement, Size

Fit = Literal["letterbox", "stretch", "tile"]
Turns = Literal["none", "horizontal", "flips", "d4"]
FITS: tuple[Fit, ...] = get_args(Fit)
TURNS: tuple[Turns, ...] = get_args(Turns)

# Quarter turns to the left, and whether it is mirrored before.
_TURNS: dict[Turns, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "horizontal": ((0, False), (0, True)),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((quarter, mirror) for quarter in range(4) for mirror in (False, True)),
}


@dataclass(frozen=True)
class ViewOptions:
    """What a person may choose of how the network sees pictures, and what becomes of its map.

    Attributes:
        fit: "letterbox", the whole picture at its own aspect ratio; "stretch", the whole picture at the
            input's; "tile", in tiles of the input's size.
        overlap: of tiles: the share of their side that neighbours have in common, 0..0.9.
        scale: of tiles: pixels of the network for one of the picture, along each side; None takes that of the
            model's training, or 1.
        tta: what the network sees besides, to be averaged: nothing, the mirror image, all four flips, or all
            eight turns and flips.

    Raises:
        UsageError: one is out of range.
    """

    fit: Fit = "letterbox"
    overlap: float = OVERLAP
    scale: float | None = None
    tta: Turns = "none"
    refine: bool = False

    def __post_init__(self) -> None:
        for value, known, name in ((self.fit, FITS, "fit"), (self.tta, TURNS, "tta")):
            if value not in known:
                raise UsageError(f"{name} {value!r}: one of {', '.join(known)} expected")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"overlap {self.overlap}: 0 to 0.9 expected, as a share of the tile's side")
        if self.scale is not None and not 0 < self.scale <= 16:
            raise UsageError(f"scale {self.scale}: above 0 and up to 16 expected")

    def facts(self) -> dict[str, Any]:
        """What of it decides pixels; nothing where it is as it always was."""
        facts: dict[str, Any] = {}
        if self.fit != "letterbox":
            facts["fit"] = self.fit
        if self.fit == "tile":
            facts |= {"overlap": self.overlap, "scale": self.scale}
        if self.tta != "none":
            facts["tta"] = self.tta
        if self.refine:
            facts["refine"] = True
        return facts

    def __str__(self) -> str:
        """What a person calls it; "" where it is as it always was."""
        parts = []
        if self.fit == "stretch":
            parts.append("stretched")
        if self.fit == "tile":
            parts.append(f"in tiles that share {self.overlap:.0%}, at scale {self.scale or 1:g}")
        if self.tta != "none":
            parts.append(f"mean of {len(_TURNS[self.tta])} views ({self.tta})")
        if self.refine:
            parts.append("refined")
        return ", ".join(parts)


class View:
    """How a backend sees pictures; may be used by several threads at once.

    Attributes:
        tiling: how they are cut into tiles; None where they are not.

    Args:
        backend: that runs the network.
        options: what was chosen.

    Attributes:
        options: the same, with the scale that was taken where none was chosen.
        assumed: why that scale was taken; "" where it was chosen.

    Raises:
        UsageError: quarter turns of an input that is not square, or edges of class ids to be refined.
    """

    def __init__(self, backend: Backend, options: ViewOptions | None = None) -> None:
        self.backend, self.options, self.assumed = backend, options or ViewOptions(), ""
        if self.options.fit == "tile" and self.options.scale is None:
            scale, self.assumed = trained_scale(backend.spec)
            self.options = replace(self.options, scale=scale)
        height, width = backend.input_size
        if self.options.tta == "d4" and height != width:
            raise UsageError(
                f"tta d4 turns pictures by 90 degrees, and the network's input is {height}x{width}",
                hint="take a square --size, or --tta flips",
            )
        self._ids = backend.spec.output == "class_ids"
        if self.options.refine and self._ids:
            raise UsageError(
                f"refine moves the edge of one probability; {backend.spec.name} says ids of "
                f"{len(backend.spec.classes.names)} classes"
            )
        self._turns = _TURNS[self.options.tta]
        self.tiling = self.placer.tiling

    def place(self, size: Size) -> Placement:
        """Where a picture of (height, width) pixels lies in what the network is shown."""
        return self.placer(size)

    @property
    def placer(self) -> Placer:
        """`place` alone, without the backend, for other processes."""
        return Placer(self.backend.input_size, self.options)

    def at_least(self) -> Size | None:
        """To which size pictures may be reduced when they are decoded; None: not at all."""
        if self.tiling is not None:
            return None
        height, width = self.backend.input_size
        return geometry.OVERSAMPLING * height, geometry.OVERSAMPLING * width

    def buffer(self, placement: Placement) -> Pixels:
        """Where a picture is placed: uint8 (H, W, channels), uninitialised."""
        if self.tiling is None:
            return self.backend.buffer()
        return np.empty((*placement.network, self.backend.spec.in_channels), np.uint8)

    def infer(self, tensors: Sequence[Pixels]) -> Sequence[Pixels]:
        """Maps of what `buffer` held, uint8 (H, W) each.

        Raises:
            BackendError: see `Backend.infer`.
        """
        if self.tiling is None:
            return self.infer_turned(tensors)
        sizes = [(tensor.shape[0], tensor.shape[1]) for tensor in tensors]
        fillings = [_Filling(Mosaic(self.tiling.grid(size), ids=self._ids)) for size in sizes]
        tiles = (
            (tensor, filling, place)
            for tensor, filling in zip(tensors, fillings, strict=True)
            for place in filling.mosaic.grid
        )
        while batch := list(islice(tiles, self.backend.batch_size)):
            found = self.infer_turned([self._cut(*tile) for tile in batch])
            for (_, filling, _), map in zip(batch, found, strict=True):
                filling.add(map)
        return [filling.map for filling in fillings]

    def _cut(self, tensor: Pixels, filling: _Filling, place: tuple[int, int]) -> Pixels:
        out = self.backend.buffer()
        filling.mosaic.grid.cut(tensor, place, out)
        return out

    def infer_turned(self, tensors: Sequence[Pixels]) -> Sequence[Pixels]:
        """Maps of pictures or tiles of the network's own size, at most a batch: turned as was chosen.

        Raises:
            BackendError: see `Backend.infer`.
        """
        if len(self._turns) == 1:
            return list(self.backend.infer(tensors))
        found = [
            self.backend.infer([self._turn(tensor, *turn) for tensor in tensors]) for turn in self._turns
        ]
        back = [
            [_turn_back(map, *turn) for turn, map in zip(self._turns, maps, strict=True)]
            for maps in zip(*found, strict=True)
        ]
        return [self._average(maps) for maps in back]

    def _turn(self, tensor: Pixels, quarter: int, mirror: bool) -> Pixels:
        out = self.backend.buffer()
        np.copyto(out, np.rot90(tensor[:, ::-1] if mirror else tensor, quarter))
        return out

    def _average(self, maps: Sequence[Pixels]) -> Pixels:
        """The mean of probabilities; of ids the one that most have said, the first on a tie."""
        stacked = np.stack(maps)
        if not self._ids:
            total = stacked.sum(0, dtype=np.uint16)
            mean: Pixels = ((total + len(maps) // 2) // len(maps)).astype(np.uint8)
            return mean
        votes = np.stack([(stacked == map).sum(0, dtype=np.uint8) for map in stacked])
        return np.asarray(np.take_along_axis(stacked, votes.argmax(0)[None], 0)[0])


@dataclass(frozen=True)
class Placer:
    """Where pictures lie in what the network is shown.

    Attributes:
        network: (height, width) of the network's input.
        options: how it sees pictures.
    """

    network: Size
    options: ViewOptions

    @property
    def tiling(self) -> Tiling | None:
        """How pictures are cut into tiles; None where they are seen whole."""
        if self.options.fit != "tile":
            return None
        return Tiling(self.network, self.options.overlap, self.options.scale or 1.0)

    def __call__(self, size: Size) -> Placement:
        """The placement of a picture of (height, width) pixels."""
        if (tiling := self.tiling) is not None:
            return geometry.place(size, tiling.scaled(size), stretch=True)
        return geometry.place(size, self.network, stretch=self.options.fit == "stretch")


class _Filling:
    """A mosaic whose rows are put into a map, uint8 (H, W), as they are finished."""

    def __init__(self, mosaic: Mosaic) -> None:
        self.mosaic = mosaic
        self.map = np.empty(mosaic.grid.size, np.uint8)
        self._row = 0

    def add(self, tile: Pixels) -> None:
        """Take in the map of the next tile."""
        rows = self.mosaic.add(tile)
        self.map[self._row : self._row + len(rows)] = rows
        self._row += len(rows)


def trained_scale(spec: ModelSpec) -> tuple[float, str]:
    """The scale at which a model saw pictures when it was trained, and in a few words how that is known."""
    try:
        least, median, most = map(float, spec.training["scales"])
    except (KeyError, TypeError, ValueError):
        return 1.0, "scale 1: the model does not say at which it was trained; --scale gives another"
    if not 0 < median <= 16:
        return 1.0, f"scale 1: {median:g}, at which the model was trained, is out of range"
    seen = f"scale {median:g}: the median of its training"
    return median, seen if most <= 1.1 * least else f"{seen}, which saw pictures at {least:g} to {most:g}"


def _turn_back(map: Pixels, quarter: int, mirror: bool) -> Pixels:
    upright: Pixels = np.rot90(map, -quarter)
    return upright[:, ::-1] if mirror else upright
