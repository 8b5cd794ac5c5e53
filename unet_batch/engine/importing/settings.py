"""What a person says of a foreign graph: options of `import`, or a TOML file beside it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unet_batch.datasets.guess import load_toml
from unet_batch.errors import UsageError
from unet_batch.model.spec import MAX_SIDE
from unet_batch.types import Size

RANGES = ("0..1", "0..255", "-1..1", "imagenet")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHOICES: Mapping[str, tuple[str, ...]] = {
    "layout": ("nchw", "nhwc"),
    "range": RANGES,
    "colour": ("rgb", "bgr"),
    "activation": ("sigmoid", "softmax", "none"),
}


@dataclass(frozen=True)
class Settings:
    """What is given; the rest is found in the graph, or guessed.

    Attributes:
        layout: where the channels of the input are: "nchw" or "nhwc".
        range: what the network takes pixels as: one of `RANGES`. With `mean` and `std`, what these count in:
            "0..1" or "0..255".
        mean, std: by channel, red first: the network takes (pixel - mean) / std.
        colour: order of the input's channels: "rgb" or "bgr".
        map: name of the output to take.
        channel: of the output, whose probability the map shall hold.
        activation: what the values need to become probabilities: "sigmoid", "softmax" or "none".
        size: (height, width) to use the network at, where it takes any.
        classes: names, in the order of the output's channels or ids.
        name: of the model.
        terms: under which it may be used.

    Raises:
        UsageError: a value that cannot be.
    """

    layout: str | None = None
    range: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    colour: str | None = None
    map: str | None = None
    channel: int | None = None
    activation: str | None = None
    size: Size | None = None
    classes: tuple[str, ...] = ()
    name: str = ""
    terms: str = ""

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            value = getattr(self, field)
            if value is not None and value not in choices:
                raise UsageError(f"{field} {value!r} is not known", hint=f"choose from: {', '.join(choices)}")
        if (self.mean or self.std) and self.range in ("-1..1", "imagenet"):
            raise UsageError(
                f"--range {self.range} brings a mean and a deviation of its own",
                hint="with --mean and --std, the range is 0..1 or 0..255: what they count in",
            )
        if max((*self.mean, *self.std), default=0) > 1 and self.range is None:
            raise UsageError(
                f"mean and std of up to {max(*self.mean, *self.std):g}, where pixels count from 0 to 1",
                hint="say what they count in: --range 0..255, or --range 0..1 if they are meant so",
            )
        if self.size is not None and not 0 < min(self.size) <= max(self.size) <= MAX_SIDE:
            raise UsageError(f"size {self.size[0]}x{self.size[1]}: sides of 1 to {MAX_SIDE} expected")
        if min(self.std, default=1) <= 0:
            raise UsageError(f"std {', '.join(map(str, self.std))}: deviations are above 0")

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std for pixels of 0..1, as given; one value where all channels have the same."""
        if self.range == "imagenet":
            return IMAGENET
        if self.range == "-1..1":
            return (0.5,), (0.5,)
        if self.range is None and not self.mean and not self.std:
            return None
        unit = 255.0 if self.range == "0..255" else 1.0
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        return tuple(value / unit for value in mean), tuple(value / unit for value in std)

    def over(self, other: Settings) -> Settings:
        """These, and the other's where these say nothing."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {name: value for name, value in mine.items() if value not in (None, (), "")}
        return dataclasses.replace(other, **given)


def beside(path: str) -> str | None:
    """The settings file of a graph: `model.toml` for `model.onnx`; None where there is none."""
    file = os.path.splitext(path)[0] + ".toml"
    return file if os.path.isfile(file) else None


def read(path: str) -> Settings:
    """Read a settings file.

    Raises:
        UsageError: it cannot be read, is not TOML, or holds a name or value that is none of `Settings`.
    """
    try:
        document = load_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    try:
        return Settings(**{name: _value(name, value) for name, value in document.items()})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}", hint=f"names are: {', '.join(_FIELDS)}") from error
    except UsageError as error:
        raise error.with_context(path) from error


_FIELDS = tuple(field.name for field in dataclasses.fields(Settings))


def _value(name: str, value: Any) -> Any:
    """A value of the file as `Settings` holds it."""
    if name not in _FIELDS:
        raise ValueError(f"{name!r} is not known")
    if name in ("mean", "std"):
        return tuple(float(each) for each in _list(name, value))
    if name == "classes":
        return tuple(str(each) for each in _list(name, value))
    if name == "size":
        match = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
        sides = [int(match[1]), int(match[2])] if match else value
        if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
            raise ValueError(f"size {value!r}: height and width expected, for example [320, 480]")
        return (sides[0], sides[1])
    if name == "channel":
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"channel {value!r}: a whole number expected")
        return value
    if not isinstance(value, str):
        raise ValueError(f"{name} {value!r}: text expected")
    return value


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} {value!r}: a list expected")
    return value
