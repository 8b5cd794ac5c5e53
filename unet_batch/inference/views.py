"""How the network sees a picture: whole, as letterboxed or stretched, or in tiles; once, or turned as well.

A view decides where a picture lies in what the network is shown (`place`), and makes the map of that from
as many runs of the network as it takes (`infer`). What it hands on has the one form that everything behind
knows: a map, and the placement that brings it back to the picture. Seen in tiles, both are of the picture's
scaled size, as if the network's input had been so large. Each member of an ensemble sees the picture in its
own way; their maps are brought to the place of the largest of them, and averaged there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from unet_batch.errors import UsageError
from unet_batch.inference import postprocess
from unet_batch.inference.backends.ensemble import average
from unet_batch.media import geometry
from unet_batch.media.images import AUTO, Range, trained_range
from unet_batch.media.tiling import OVERLAP, Mosaic, Tiling

if TYPE_CHECKING:
    from unet_batch.inference.backends.base import Backend
    from unet_batch.types import Channels, ModelSpec, Pixels, Placement, Size

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
        value_range: which values of a picture are black and white, as `images.Range.parse` takes it; None
            takes that of the model's training, or "auto". Not for clips.

    Raises:
        UsageError: one is out of range.
    """

    fit: Fit = "letterbox"
    overlap: float = OVERLAP
    scale: float | None = None
    tta: Turns = "none"
    refine: bool = False
    value_range: str | None = None

    def __post_init__(self) -> None:
        for value, known, name in ((self.fit, FITS, "fit"), (self.tta, TURNS, "tta")):
            if value not in known:
                raise UsageError(f"{name} {value!r}: one of {', '.join(known)} expected")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"overlap {self.overlap}: 0 to 0.9 expected, as a share of the tile's side")
        if self.scale is not None and not 0 < self.scale <= 16:
            raise UsageError(f"scale {self.scale}: above 0 and up to 16 expected")
        _ = self.range

    @property
    def range(self) -> Range:
        """Which values of a picture are black and white."""
        return AUTO if self.value_range is None else Range.parse(self.value_range)

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
        if self.range != AUTO:
            facts["range"] = str(self.range)
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
        if self.range != AUTO:
            parts.append(f"range {self.range}")
        return ", ".join(parts)


class View:
    """How a backend sees pictures; may be used by several threads at once.

    Args:
        backend: that runs the network, or the networks of an ensemble.
        options: what was chosen.

    Attributes:
        options: the same, with the range that was taken where none was chosen.
        members: how each member of an ensemble sees pictures; one, where it is none.
        domains: what each of them has seen, if all of them say so.
        placer: `place`, and what goes with it, without the backend: for other processes, too.

    Raises:
        UsageError: quarter turns of an input that is not square, edges of class ids to be refined, or members
            that were trained in other ranges.
    """

    def __init__(self, backend: Backend, options: ViewOptions | None = None) -> None:
        self.backend, self.options = backend, options or ViewOptions()
        if self.options.refine and backend.spec.output == "class_ids":
            raise UsageError(
                f"refine moves the edge of one probability; {backend.spec.name} says ids of "
                f"{len(backend.spec.classes.names)} classes"
            )
        self.members = tuple(Sight(member, self.options) for member in backend.members)
        first, *others = self.members
        for sight in others:
            if sight.options.range != first.options.range:  # a picture is decoded once
                raise UsageError(
                    f"{first.backend.spec.name} was trained in the range {first.options.range}, "
                    f"{sight.backend.spec.name} in {sight.options.range}: pictures are read in one",
                    hint="choose it: --range",
                )
        self.options = replace(self.options, value_range=first.options.value_range)
        alike = all(sight.placer == first.placer for sight in others)
        self._sights = (Sight(backend, first.options),) if alike else self.members  # one batch for all
        self.placer = Placer(tuple(sight.placer for sight in self._sights))
        domains = [member.spec.domain for member in backend.members]
        self.domains = tuple(each for each in domains if each is not None)
        if len(self.domains) < len(domains):
            self.domains = ()

    def facts(self) -> dict[str, Any]:
        """What of it decides pixels, as `ViewOptions.facts`; scales that differ between members in a list."""
        facts, scales = self.members[0].options.facts(), [sight.options.scale for sight in self.members]
        return facts | ({"scale": scales} if len(set(scales)) > 1 else {})

    @property
    def assumed(self) -> tuple[str, ...]:
        """Why the scales of tiles were taken that nobody chose."""
        return tuple(dict.fromkeys(sight.assumed for sight in self.members if sight.assumed))

    @property
    def tiling(self) -> Tiling | None:
        """How pictures are cut into tiles; None where they are not, or members cut them in other ways."""
        return self._sights[0].placer.tiling if len(self._sights) == 1 else None

    def place(self, size: Size) -> Placement:
        """Where a picture of (height, width) pixels lies in what the network is shown."""
        return self.placer(size)

    def at_least(self) -> Size | None:
        """To which size pictures may be reduced when they are decoded; None: not at all."""
        if self.options.fit == "tile":
            return None
        heights, widths = zip(*(member.input_size for member in self.backend.members), strict=True)
        return geometry.OVERSAMPLING * max(heights), geometry.OVERSAMPLING * max(widths)

    def buffers(self, size: Size) -> tuple[Pixels, ...]:
        """Where `Placer.show` puts a picture of (height, width) pixels: uint8 (H, W, 3), uninitialised."""
        places = self.placer.each(size)
        shown = dict(zip(reversed(places), reversed(self._sights), strict=True))
        return tuple(shown[place].buffer(place) for place in dict.fromkeys(places))

    def infer(self, pictures: Sequence[tuple[Pixels, ...]], sizes: Sequence[Size]) -> Sequence[Pixels]:
        """Maps of a batch of pictures, uint8 (H, W) each, where `place` says.

        Args:
            pictures: what `Placer.show` made of them.
            sizes: (height, width) of each.

        Raises:
            BackendError: see `Backend.infer`.
        """
        if len(self._sights) == 1:
            return self._sights[0].infer([shown for [shown] in pictures])
        places = [self.placer.each(size) for size in sizes]
        found = []
        for number, sight in enumerate(self._sights):
            which = [list(dict.fromkeys(each)).index(each[number]) for each in places]
            found.append(sight.infer([shown[at] for shown, at in zip(pictures, which, strict=True)]))
        return [self._merge(*each) for each in zip(zip(*found, strict=True), places, strict=True)]

    def _merge(self, maps: Sequence[Pixels], places: Sequence[Placement]) -> Pixels:
        to = largest(places)
        spec = self.backend.spec
        return average([_bring(map, at, to, spec) for map, at in zip(maps, places, strict=True)], spec)

    def infer_tiles(self, tiles: Sequence[Pixels]) -> Sequence[Pixels]:
        """Maps of tiles of `tiling`, uint8 (H, W) each, at most a batch.

        Raises:
            BackendError: see `Backend.infer`.
        """
        [sight] = self._sights
        return sight.infer_turned(tiles)


class Sight:
    """How one network sees pictures.

    Args:
        backend: that runs it.
        options: what was chosen.

    Attributes:
        options: the same, with the scale and the range that were taken where none was chosen.
        assumed: why these were taken; "" where they were chosen, and of the range that says nothing.

    Raises:
        UsageError: quarter turns of an input that is not square.
    """

    def __init__(self, backend: Backend, options: ViewOptions) -> None:
        self.backend, self.options, self.assumed = backend, options, ""
        if options.fit == "tile" and options.scale is None:
            scale, self.assumed = trained_scale(backend.spec)
            self.options = replace(options, scale=scale)
        if options.value_range is None:
            value_range, why = trained_range(backend.spec.training)
            self.options = replace(self.options, value_range=str(value_range))
            self.assumed = "; ".join(filter(None, (self.assumed, why)))
        height, width = backend.input_size
        if options.tta == "d4" and height != width:
            raise UsageError(
                f"tta d4 turns pictures by 90 degrees, and the network's input is {height}x{width}",
                hint="take a square --size, or --tta flips",
            )
        self.placer = NetworkPlacer(backend.input_size, self.options)

    def buffer(self, placement: Placement) -> Pixels:
        """Where a picture is placed: uint8 (H, W, channels), uninitialised."""
        if self.placer.tiling is None:
            return self.backend.buffer()
        return np.empty((*placement.network, self.backend.spec.in_channels), np.uint8)

    def infer(self, tensors: Sequence[Pixels]) -> Sequence[Pixels]:
        """Maps of what `buffer` held, uint8 (H, W) each.

        Raises:
            BackendError: see `Backend.infer`.
        """
        tiling, ids = self.placer.tiling, self.backend.spec.output == "class_ids"
        if tiling is None:
            return self.infer_turned(tensors)
        sizes = [(tensor.shape[0], tensor.shape[1]) for tensor in tensors]
        fillings = [_Filling(Mosaic(tiling.grid(size), ids=ids)) for size in sizes]
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
        turns = _TURNS[self.options.tta]
        if len(turns) == 1:
            return list(self.backend.infer(tensors))
        found = [self.backend.infer([self._turn(tensor, *turn) for tensor in tensors]) for turn in turns]
        back = [
            [_turn_back(map, *turn) for turn, map in zip(turns, maps, strict=True)]
            for maps in zip(*found, strict=True)
        ]
        return [average(maps, self.backend.spec) for maps in back]

    def _turn(self, tensor: Pixels, quarter: int, mirror: bool) -> Pixels:
        out = self.backend.buffer()
        np.copyto(out, np.rot90(tensor[:, ::-1] if mirror else tensor, quarter))
        return out


@dataclass(frozen=True)
class NetworkPlacer:
    """Where pictures lie in what one network is shown.

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

    def __call__(self, size: Size, covered: Size | None = None) -> Placement:
        """The placement of a picture of (height, width) pixels; `covered` as for `geometry.place`."""
        network = self.network if (tiling := self.tiling) is None else tiling.scaled(size)
        return geometry.place(size, network, stretch=self.options.fit != "letterbox", covered=covered)


@dataclass(frozen=True)
class Placer:
    """Where pictures lie in what each network is shown, and where in the map of all.

    Attributes:
        networks: those of an ensemble; one alone, or several that see pictures alike, are one.
    """

    networks: tuple[NetworkPlacer, ...]

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Placer:
        """Make it of what `asdict` gave, and JSON brought to another process."""
        return cls(
            tuple(
                NetworkPlacer((each["network"][0], each["network"][1]), ViewOptions(**each["options"]))
                for each in values["networks"]
            )
        )

    def __call__(self, size: Size) -> Placement:
        """The placement of the map of a picture of (height, width) pixels."""
        return largest(self.each(size))

    def each(self, size: Size) -> tuple[Placement, ...]:
        """A placement for each network: all show the same part of the picture."""
        alone = tuple(place(size) for place in self.networks)
        if len(alone) == 1:
            return alone
        covered = min(each.covered for each in alone)  # of the smallest step, which divides the others
        return tuple(place(size, covered) for place in self.networks)

    def show(
        self, pixels: Pixels, size: Size, out: Sequence[Pixels | None] | None = None
    ) -> tuple[Pixels, ...]:
        """Place a picture wherever it is seen; where it lies alike in two inputs, once.

        Args:
            pixels: RGB uint8 (h, w, 3), the picture, as `geometry.to_network` takes it.
            size: (height, width) of the picture.
            out: what `View.buffers` gave; None makes new arrays.

        Returns:
            RGB uint8 (H, W, 3) each.
        """
        places = dict.fromkeys(self.each(size))
        buffers = [None] * len(places) if out is None else out
        return tuple(
            geometry.to_network(pixels, place, buffer) for place, buffer in zip(places, buffers, strict=True)
        )


def largest(placements: Iterable[Placement]) -> Placement:
    """The placement that shows the picture largest."""
    return max(placements, key=lambda each: (each.content[0] * each.content[1], each.content))


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


def choose_channels(spec: ModelSpec, given: Channels | None) -> Channels | None:
    """Which bands of a picture a model takes: the given ones, or its own; None for what a person sees.

    Raises:
        UsageError: it takes another number of them.
    """
    if given is None:
        return spec.channels
    wanted = ",".join(map(str, given))
    if len(given) != spec.in_channels or min(given) < 1:
        raise UsageError(
            f"--channels {wanted}: {spec.name} takes {spec.in_channels} bands, counted from 1",
            hint="name as many, in the order of its training",
        )
    return given


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


def _bring(map: Pixels, at: Placement, to: Placement, spec: ModelSpec) -> Pixels:
    """Bring a map to where the picture lies in another input, as if that were the picture."""
    if at == to:
        return map
    out = np.zeros(to.network, np.uint8)
    there = replace(at, source=to.content, covered=to.content)
    if spec.output == "class_ids":
        content = postprocess.class_ids(map, there, len(spec.classes.names))
    else:
        content = postprocess.probability(map, there)
    geometry.content_of(out, to)[:] = content
    return out


def _turn_back(map: Pixels, quarter: int, mirror: bool) -> Pixels:
    upright: Pixels = np.rot90(map, -quarter)
    return upright[:, ::-1] if mirror else upright
