"""Understand a foreign graph: each choice with its reason, what is only a guess said to be one."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from unet_batch import scenes
from unet_batch.engine.importing.evidence import Entrance, enter, last_operator
from unet_batch.engine.importing.graph import COMPOSED_OPSET, ForeignGraph, shape_text
from unet_batch.engine.importing.recipe import Recipe
from unet_batch.engine.importing.settings import IMAGENET, Settings
from unet_batch.errors import CheckpointError, UsageError
from unet_batch.media import geometry
from unet_batch.model.spec import MAX_CLASSES
from unet_batch.types import BACKGROUND, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from unet_batch.types import Pixels

FIRST_SCENE = 4_000_000  # far from the seeds of training, tests, demonstrations and proofs
_STRIDES = (1, 2, 4, 8, 16, 32)
_BASE: Size = (128, 192)  # that free graphs are tried at: small, not square, and 64 divides it
_FREE_SIZE: Size = (512, 512)
_SLACK = 1e-3  # what rounding may add to a probability


@dataclass(frozen=True)
class Choice:
    """One thing that was decided.

    Attributes:
        option: that decides it, without dashes.
        value: as the option takes it.
        reason: why.
        is_guess: nothing in the graph says so.
    """

    option: str
    value: str
    reason: str
    is_guess: bool = False


class _Map(NamedTuple):
    """An output that is a map."""

    name: str
    layout: Literal["nchw", "nhwc", "nhw"]
    channels: int
    size: Size
    values: NDArray[np.generic]


def understand(graph: ForeignGraph, given: Settings) -> tuple[Recipe, tuple[Choice, ...]]:
    """Find out how a graph is used.

    Args:
        graph: a foreign graph.
        given: what a person says; it is taken at its word.

    Raises:
        CheckpointError: it cannot be used: it gives no map, or fails in ONNX Runtime.
        UsageError: what a person says does not fit; or nothing tells what has to be known, and the hint names
            the option that does.
    """
    return _Reader(graph, given).read()


def draw_pictures(count: int, size: Size, channels: int) -> Pixels:
    """Pictures to try a network on, uint8 (N, H, W, C): drawn scenes, their grey where C is not 3."""
    pictures = np.stack([_draw_scene(FIRST_SCENE + number, size) for number in range(count)])
    if channels == 3:
        return pictures
    return np.repeat(pictures.mean(axis=3, keepdims=True).astype(np.uint8), channels, axis=3)


@functools.lru_cache(maxsize=16)
def _draw_scene(seed: int, size: Size) -> Pixels:
    """A drawn scene at that size, RGB uint8 (H, W, 3), not to be written to."""
    at = (max(64, size[0]), max(96, size[1]))
    photo, _ = scenes.draw(seed, at)
    return geometry.to_network(photo, geometry.place(at, size))


class _Reader:
    """Goes from the input to the output, and collects the choices."""

    def __init__(self, graph: ForeignGraph, given: Settings) -> None:
        self.graph, self.given = graph, given
        self.path = graph.path
        self.choices: list[Choice] = []
        self.entrance: Entrance = enter(graph)
        self.run = graph.runner()
        self.example: NDArray[np.generic] = np.empty(0)  # a picture as the network takes it

    def read(self) -> tuple[Recipe, tuple[Choice, ...]]:
        """All of it."""
        layout = self._layout()
        colour, channels = self._colour(layout)
        mean, std = self._normalisation(channels, colour)
        height, width = (self.graph.dims[axis] for axis in ((2, 3) if layout == "nchw" else (1, 2)))
        is_free = height is None and width is None
        base = (height or _BASE[0], width or _BASE[1])
        draft = Recipe(
            layout, colour, channels, mean, std, self.graph.dtype, base, is_free, 1,
            "", "nchw", 1, "none", 0, False, ("",),
        )  # fmt: skip
        draft = self._size(draft, (height, width))
        maps = self._maps(draft, draw_pictures(1, draft.size, channels)[0])
        chosen = self._output(maps, draft.size)
        is_resized = chosen.size != draft.size
        stride = self._stride(draft, chosen) if draft.is_free else 1
        size = draft.size
        if draft.is_free:
            size = self._free_size(stride)
        elif is_resized and self._opset < COMPOSED_OPSET:
            raise CheckpointError(
                f"{self.path}: its map is {_sides(chosen.size)} for a picture of {_sides(size)}, and opset "
                f"{self._opset} cannot resize it",
                hint="export it again with opset 11 or newer",
            )
        activation, count = self._activation(chosen, draft)
        channel, names = self._classes(activation, count)
        recipe = Recipe(
            layout, colour, channels, mean, std, self.graph.dtype, size, draft.is_free, stride, chosen.name,
            chosen.layout, count, activation, channel, is_resized, names,
        )  # fmt: skip
        return recipe, tuple(self.choices)

    @property
    def _opset(self) -> int:
        return next(
            int(entry.version) for entry in self.graph.proto.opset_import if entry.domain in ("", "ai.onnx")
        )

    def _add(self, option: str, value: str, reason: str, *, guess: bool = False) -> None:
        self.choices.append(Choice(option, value, reason, guess))

    def _layout(self) -> Literal["nchw", "nhwc"]:
        dims, shape = self.graph.dims, f"its input is {shape_text(self.graph.dims)}"
        front, back = (dims[axis] is not None and dims[axis] in (1, 3, 4) for axis in (1, 3))
        if self.given.layout is not None:
            layout, reason = self.given.layout, "as given"
        elif front != back:
            layout, reason = ("nchw", shape) if front else ("nhwc", shape)
        elif self.entrance.is_transposed:
            layout, reason = "nhwc", "the graph brings the channels to the front itself"
        elif self.entrance.channels is not None and dims[1] in (None, self.entrance.channels):
            layout = "nchw"
            reason = f"the first layer takes {self.entrance.channels} channels, from the front"
        elif dims[1] is not None and (dims[2], dims[3]) == (None, None):
            layout, reason = "nchw", shape
        else:
            raise UsageError(
                f"{self.path}: {shape}, which does not tell where the channels are",
                hint="say it: --layout nchw or --layout nhwc",
            )
        self._add("layout", layout, reason)
        return cast('Literal["nchw", "nhwc"]', layout)

    def _colour(self, layout: str) -> tuple[Literal["rgb", "bgr", "grey", "other"], int]:
        """Order of the input's channels, and how many a picture has."""
        taken = self.graph.dims[1 if layout == "nchw" else 3] or self.entrance.channels or 3
        if taken == 1:
            self._add("colour", "grey", "it takes one channel: 0.299 red + 0.587 green + 0.114 blue")
            return "grey", 3
        if taken != 3:
            reason = f"it takes {taken} channels, as they come: the first {taken} bands of each picture"
            self._add("colour", "other", reason)
            return "other", taken
        if self.given.colour is not None:
            self._add("colour", self.given.colour, "as given")
            return ("bgr", 3) if self.given.colour == "bgr" else ("rgb", 3)
        own = self.entrance.subtracted
        if own is not None and own.size == 3:
            unit = 255 if own.max() > 2 else 1
            for colour, order in (("rgb", 1), ("bgr", -1)):
                if np.allclose(own / unit, IMAGENET[0][::order], atol=0.004):
                    self._add(
                        "colour",
                        colour,
                        f"the graph subtracts {_numbers(own)}: ImageNet's mean in this order",
                    )
                    return ("bgr", 3) if colour == "bgr" else ("rgb", 3)
        self._add("colour", "rgb", "what most networks take; OpenCV's and Caffe's take bgr", guess=True)
        return "rgb", 3

    def _normalisation(self, channels: int, colour: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std by channel, for pixels of 0..1."""
        found = self.given.normalisation
        if found is not None:
            value = self.given.range or "0..1"
            if self.given.mean or self.given.std:
                value += (
                    f" --mean {_numbers(self.given.mean or (0,))} --std {_numbers(self.given.std or (1,))}"
                )
            self._add("range", value, "as given")
        else:
            found = self._look_at_range(colour)
        if colour == "grey" and found == IMAGENET:
            found = ((0.449,), (0.226,))  # of all three channels
        mean, std = (values * channels if len(values) == 1 else values for values in found)
        if len(mean) != channels or len(std) != channels:
            raise UsageError(
                f"{self.path}: takes {channels} channels, mean and std have {max(map(len, (mean, std)))}",
                hint=f"give one for each channel: --range 0..1 --mean {','.join(['0.5'] * channels)}",
            )
        return mean, std

    def _look_at_range(self, colour: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The same where nobody says."""
        levels: tuple[tuple[float, ...], tuple[float, ...]] = (0.0,), (1 / 255,)
        entrance, own = self.entrance, self.entrance.subtracted
        if self.graph.dtype == "uint8":
            self._add("range", "0..255", "it takes bytes")
            return levels
        if own is not None:
            scale = float(np.abs(entrance.scale).max())
            done = f"the graph subtracts {_numbers(own)} and multiplies by {_numbers(entrance.scale)} itself"
            if float(np.abs(own).max()) > 2 or scale < 0.05:
                self._add("range", "0..255", f"{done}: made for pixels of 0 to 255")
                return levels
            self._add("range", "0..1", f"{done}: made for pixels of 0 to 1")
            return (0.0,), (1.0,)
        if entrance.mean is not None and entrance.deviation is not None:
            mean, deviation = float(entrance.mean.mean()), float(entrance.deviation.mean())
            seen = (
                f"in training the first BatchNorm saw a mean of {mean:.3g} and a deviation of {deviation:.3g}"
            )
            if mean > 10:
                self._add("range", "0..255", f"{seen}: pixels of 0 to 255")
                return levels
            if 0.15 < mean < 0.85 and deviation < 0.5:
                self._add("range", "0..1", f"{seen}: pixels of 0 to 1")
                return (0.0,), (1.0,)
        if colour == "other":  # of whose channels ImageNet knows no mean
            self._add("range", "0..1", "the graph does not say", guess=True)
            return (0.0,), (1.0,)
        self._add(
            "range", "imagenet",
            "the graph does not say: mean and deviation of ImageNet, as most encoders were trained with",
            guess=True,
        )  # fmt: skip
        return IMAGENET

    def _size(self, draft: Recipe, dims: tuple[int | None, int | None]) -> Recipe:
        """The draft at a size that the graph runs at."""
        given, size = self.given.size, draft.size
        if None not in dims:
            if given is not None and given != size:
                raise UsageError(
                    f"{self.path}: takes pictures of {_sides(size)} only, {_sides(given)} is asked for",
                    hint="leave --size out; for other sizes export it again with free sides",
                )
            self._add("size", _sides(size), "its input takes no other")
            return draft
        problem = ""
        if draft.is_free and self._opset >= COMPOSED_OPSET:
            try:
                self.run(draft.prepare(draw_pictures(1, size, draft.channels)[0]))
                return draft
            except CheckpointError as error:
                problem = f"free by its input, but {error.message.removeprefix(f'{self.path}: ')}"
        if given is None:
            raise UsageError(
                f"{self.path}: {problem or f'its input is {shape_text(self.graph.dims)}'}",
                hint="name a size that it takes, of the training if you know it: --size HxW",
            )
        self._add("size", _sides(given), "as given; no other")
        return replace(draft, size=given, is_free=False)

    def _free_size(self, stride: int) -> Size:
        pad = f"padded to multiples of {stride} inside" if stride > 1 else "no side needs padding"
        if self.given.size is not None:
            self._add("size", _sides(self.given.size), f"as given; the graph takes any, {pad}")
            return self.given.size
        size = _FREE_SIZE
        self._add("size", _sides(size), f"the graph takes any, {pad}", guess=True)
        return size

    def _maps(self, draft: Recipe, picture: Pixels) -> list[_Map]:
        """The outputs that are maps, in the graph's order."""
        self.example = draft.prepare(picture)
        outputs = self.run(self.example)
        size = (
            picture.shape[0] + -picture.shape[0] % draft.stride,
            picture.shape[1] + -picture.shape[1] % draft.stride,
        )
        found = [_as_map(name, values, size) for name, values in outputs.items()]
        maps = [each for each in found if each is not None]
        wanted = self.given.map
        if wanted is not None and wanted not in outputs:
            raise UsageError(f"{self.path}: has no output {wanted!r}", hint=f"it has: {', '.join(outputs)}")
        if not maps or (wanted is not None and wanted not in [each.name for each in maps]):
            shapes = ", ".join(f"{name} {shape_text(values.shape)}" for name, values in outputs.items())
            raise CheckpointError(
                f"{self.path}: gives no map of a picture of {size[0]}x{size[1]}: {shapes}",
                hint="a segmentation network gives a value, or an id, for each place of the picture",
            )
        return maps

    def _output(self, maps: Sequence[_Map], size: Size) -> _Map:
        if self.given.map is not None:
            chosen = next(each for each in maps if each.name == self.given.map)
            reason, guess = "as given", False
        else:
            full = [each for each in maps if each.size == size]
            chosen = full[0] if full else max(maps, key=lambda each: each.size)
            which = "of the picture's size" if full else "and the largest"
            others = ", ".join(each.name for each in maps if each is not chosen)
            reason = f"the first {which} of {len(maps)} maps, beside {others}" if others else "its only map"
            guess = len(maps) > 1
        if chosen.size != size:
            reason += f"; {_sides(chosen.size)} for {_sides(size)}, so it is resized"
        self._add("map", chosen.name, reason, guess=guess)
        return chosen

    def _stride(self, draft: Recipe, chosen: _Map) -> int:
        """The smallest stride at whose multiples the map is what it is at the size tried first."""
        for stride in _STRIDES:
            size = 64 + stride, 128 + stride
            try:
                outputs = self.run(draft.prepare(draw_pictures(1, size, draft.channels)[0]))
            except CheckpointError:
                continue
            found = _as_map(chosen.name, outputs[chosen.name], size)
            if found is not None and all(
                made * base == side * first
                for made, base, side, first in zip(found.size, draft.size, size, chosen.size, strict=True)
            ):
                return stride
        return 64

    def _activation(
        self, chosen: _Map, draft: Recipe
    ) -> tuple[Literal["sigmoid", "softmax", "none", "ids"], int]:
        """What is behind the values, and how many channels or classes there are."""
        last = last_operator(self.graph, chosen.name)
        operator = "" if last is None else str(last.op_type)
        given = self.given.activation
        kind = chosen.values.dtype.kind
        if operator == "ArgMax" or (kind in "iub" and given is None):
            return "ids", self._count_ids(last if operator == "ArgMax" else None, chosen)
        count = chosen.channels
        if given is not None:
            self._add("activation", given, "as given")
            return cast('Literal["sigmoid", "softmax", "none"]', given), count
        if operator in ("Sigmoid", "HardSigmoid", "Softmax"):
            self._add("activation", "none", f"the graph ends in {operator}: these are probabilities")
            return "none", count
        pictures = draw_pictures(2, draft.size, draft.channels)
        runs = [self.run(draft.prepare(picture))[chosen.name] for picture in pictures]
        low, high = min(float(run.min()) for run in runs), max(float(run.max()) for run in runs)
        if not np.isfinite([low, high]).all():
            raise CheckpointError(
                f"{self.path}: gives values that are not finite on a drawn picture",
                hint="where its input is scaled otherwise, say so: --range",
            )
        seen = f"values from {low:.3g} to {high:.3g} on drawn pictures"
        matters = count < 3 or self.given.channel is not None  # the largest of several is the same either way
        if low < -_SLACK or high > 1 + _SLACK:
            activation: Literal["sigmoid", "softmax"] = "sigmoid" if count == 1 else "softmax"
            # All positive: a ReLU behind logits, or 255 times a probability.
            self._add("activation", activation, f"{seen}: logits", guess=matters and low >= 0)
            return activation, count
        self._add("activation", "none", f"{seen}: probabilities", guess=matters)
        return "none", count

    def _count_ids(self, argmax: Any, chosen: _Map) -> int:
        """How many classes ids tell apart."""
        if argmax is not None:
            source = argmax.input[0]
            axis = next((entry.i for entry in argmax.attribute if entry.name == "axis"), 0)
            shape = self.graph.runner([source])(self.example)[source].shape
            self._add("activation", "ids", f"the graph ends in ArgMax, of {shape[axis]} channels")
            return int(shape[axis])
        if chosen.channels != 1:
            raise CheckpointError(
                f"{self.path}: {chosen.name} holds {chosen.channels} channels of {chosen.values.dtype}",
                hint="ids come in one channel; name another output with --map",
            )
        if chosen.values.dtype == np.bool_:
            self._add("activation", "ids", "it gives yes or no for each place")
            return 2
        if not self.given.classes:
            seen = np.unique(chosen.values)
            raise UsageError(
                f"{self.path}: gives ids, {seen.min()} to {seen.max()} on a drawn picture, and does not tell "
                "how many classes there are",
                hint="name them, in the order of the ids: --classes background,cat,dog",
            )
        self._add("activation", "ids", f"it gives whole numbers ({chosen.values.dtype})")
        return len(self.given.classes)

    def _classes(self, activation: str, count: int) -> tuple[int | None, tuple[str, ...]]:
        """Whose probability the map holds, None for ids, and the names of its classes."""
        names, channel = self.given.classes, self.given.channel
        if count > MAX_CLASSES:
            raise CheckpointError(f"{self.path}: {count} classes; a map of bytes holds {MAX_CLASSES}")
        if channel is not None:
            if not 0 <= channel < count:
                raise UsageError(
                    f"{self.path}: channel {channel} of {count}", hint=f"--channel takes 0 to {count - 1}"
                )
            if len(names) not in (0, 1, count):
                raise UsageError(
                    f"{self.path}: {len(names)} names for one channel", hint="name one class: --classes cat"
                )
            name = names[channel] if len(names) == count else (names or ("object",))[0]
            self._add("channel", str(channel), f"as given, of {count}: the probability of {name}")
            return channel, (name,)
        if count == 1:
            if len(names) > 1:
                raise UsageError(
                    f"{self.path}: {len(names)} names, and one class", hint="name one class: --classes cat"
                )
            self._add(
                "classes", (names or ("object",))[0], "one channel: the probability of it", guess=not names
            )
            return 0, names or ("object",)
        if count == 2 and len(names) < 2:
            name = (names or ("object",))[0]
            self._add(
                "channel",
                "1",
                f"of two, the first is most often the background: {name} is the second",
                guess=True,
            )
            return 1, (name,)
        if len(names) not in (0, count):
            raise UsageError(
                f"{self.path}: {len(names)} names for {count} classes",
                hint=f"name all {count}, background included",
            )
        if count == 2:
            grounds = [name.strip(" _-").lower() in BACKGROUND for name in names]
            if any(grounds) and not all(grounds):
                channel = grounds.index(False)
                self._add(
                    "channel", str(channel), f"{names[channel]}, beside {names[1 - channel]}: one probability"
                )
                return channel, (names[channel],)
        made = names or tuple(f"class{index}" for index in range(count))
        what = "as given" if names else f"{count} classes, whose names the graph does not say"
        self._add("classes", ",".join(made), what, guess=not names)
        return None, made


def _as_map(name: str, values: NDArray[np.generic], size: Size) -> _Map | None:
    """An output as a map of a picture of that size; None where it is none."""

    def fits(height: int, width: int) -> bool:
        return height > 1 and width > 1 and abs(height * size[1] - width * size[0]) <= max(size)

    shape = values.shape
    if len(shape) == 3 and shape[0] == 1 and fits(*shape[1:]):
        return _Map(name, "nhw", 1, (shape[1], shape[2]), values)
    if len(shape) != 4 or shape[0] != 1:
        return None
    front, back = fits(*shape[2:]), fits(*shape[1:3])
    if front and (not back or shape[1] <= shape[3]):
        return _Map(name, "nchw", shape[1], (shape[2], shape[3]), values)
    return _Map(name, "nhwc", shape[3], (shape[1], shape[2]), values) if back else None


def _sides(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> str:
    return ",".join(f"{float(value):.4g}" for value in np.atleast_1d(np.asarray(values)))
