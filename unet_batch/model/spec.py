"""Convert a ModelSpec to JSON text and back, with every field checked.

The text travels in the metadata of a checkpoint and of everything made from it, so that no file needs another
one beside it to be understood. Reading it needs neither torch nor numpy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from unet_batch.errors import CheckpointError
from unet_batch.types import ClassTable, Domain, ModelSpec

MAX_LEVELS = 8
MAX_WIDTH = 4096
MAX_SIDE = 16384
MAX_CHANNELS = 64
MAX_FIGURES = 256
MAX_BAND = 65535  # as many as a TIFF can hold
ENCODERS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
DECODER_LEVELS = 4
_FROM = "; started from "
MAX_CLASSES = 255  # ids are uint8, and the last one stays free for "void"


def dumps(spec: ModelSpec) -> str:
    """The spec as JSON text; `loads(dumps(spec)) == spec`."""
    values = dataclasses.asdict(spec)
    if spec.domain is None:
        del values["domain"]
    return json.dumps(values, sort_keys=True, allow_nan=False)


def loads(text: str) -> ModelSpec:
    """The spec from JSON text.

    Raises:
        CheckpointError: not JSON, a field is missing, or a value is out of bounds; the message names the
            field.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError(f"expected an object, got {type(data).__name__}")
        return _from_dict(data)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"the model's description is not valid: {reason}") from error


def as_one_class(spec: ModelSpec) -> ModelSpec:
    """Describe a model of a background and one class by the probability of that class; others as they are.

    Of two classes the larger output wins, so that the probability is cut at one half.
    """
    if (one := spec.classes.foreground) is None:
        return spec
    return dataclasses.replace(spec, classes=spec.classes.only(one), threshold=0.5, output="probability")


def inherit_terms(own: str, start: ModelSpec | None) -> str:
    """Terms of a model that is trained from another: its data's own, and all that the other one has.

    Args:
        own: terms of the data it is trained on; "" where nobody says.
        start: of the model it begins as; None where it begins from noise.
    """
    own = " ".join(own.split())
    if start is None:
        return own
    if own in ("", start.terms.partition(_FROM)[0]):  # nothing new, or the next phase of the same training
        return start.terms
    return " ".join(f"{own}{_FROM}{start.name}: {start.terms or 'its terms are not known'}".split())


def _from_dict(data: Mapping[str, Any]) -> ModelSpec:
    in_channels = _integer(data["in_channels"], "in_channels", 1, MAX_CHANNELS)
    widths = tuple(_integer(width, "widths", 1, MAX_WIDTH) for width in data["widths"])
    architecture, encoder = _network(data, len(widths))
    height, width = (_integer(side, "input_size", 1, MAX_SIDE) for side in data["input_size"])
    names = tuple(str(name) for name in data["classes"]["names"])
    colours = tuple(
        tuple(_integer(part, "colours", 0, 255) for part in colour) for colour in data["classes"]["colours"]
    )
    if (
        not 1 <= len(names) <= MAX_CLASSES
        or len(colours) != len(names)
        or any(len(colour) != 3 for colour in colours)
    ):
        raise ValueError(
            f"classes: {len(names)} names and {len(colours)} colours; one RGB colour for each of 1 to "
            f"{MAX_CLASSES}"
        )
    output = "probability" if len(names) == 1 else "class_ids"
    if data["output"] != output:
        raise ValueError(f"output: {len(names)} class(es) mean {output!r}, got {data['output']!r}")
    mean, std = (tuple(_number(value, key) for value in data[key]) for key in ("mean", "std"))
    if len(mean) != in_channels or len(std) != in_channels or min(std) <= 0:
        raise ValueError(f"mean and std: {in_channels} values each, std above 0, got {mean} and {std}")
    threshold = _number(data["threshold"], "threshold")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: above 0 and up to 1 expected, got {threshold}")
    if not isinstance(data["training"], dict):
        raise TypeError("training: an object expected")
    if (channels := data["training"].get("channels")) is not None and (
        not isinstance(channels, list)
        or len([_integer(band, "channels", 1, MAX_BAND) for band in channels]) != in_channels
    ):
        raise ValueError(f"channels: {in_channels} numbers of bands expected, got {channels!r}")
    return ModelSpec(
        name=str(data["name"]),
        widths=widths,
        in_channels=in_channels,
        input_size=(height, width),
        mean=mean,
        std=std,
        classes=ClassTable(names, tuple((red, green, blue) for red, green, blue in colours)),
        threshold=threshold,
        output="probability" if len(names) == 1 else "class_ids",
        training=data["training"],
        architecture=architecture,
        encoder=encoder,
        terms=_terms(data),
        domain=_domain(data),
    )


def _network(data: Mapping[str, Any], levels: int) -> tuple[Literal["unet", "encoder-unet", "onnx"], str]:
    """Architecture and encoder, which files before 0.3.0 do not name: they hold classic U-Nets."""
    architecture, encoder = data.get("architecture", "unet"), data.get("encoder", "")
    if architecture == "onnx" and levels:
        raise ValueError(f"widths: none expected of an imported graph, got {levels}")
    if architecture != "onnx" and not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"widths: 1 to {MAX_LEVELS} levels expected, got {levels}")
    if architecture in ("unet", "onnx"):
        if encoder != "":
            what = "a 'unet'" if architecture == "unet" else "an imported graph"
            raise ValueError(f"encoder: none expected of {what}, got {encoder!r}")
        return architecture, ""
    if architecture != "encoder-unet":
        raise ValueError(f"architecture: 'unet', 'encoder-unet' or 'onnx' expected, got {architecture!r}")
    if encoder not in ENCODERS:
        raise ValueError(f"encoder: one of {', '.join(ENCODERS)} expected, got {encoder!r}")
    if levels != DECODER_LEVELS:
        raise ValueError(f"widths: {DECODER_LEVELS} levels of the decoder expected, got {levels}")
    return "encoder-unet", encoder


def _domain(data: Mapping[str, Any]) -> Domain | None:
    """What it has seen, which files before 0.3.0 do not say."""
    if (found := data.get("domain")) is None:
        return None
    mean = tuple(_number(value, "domain") for value in found["mean"])
    whitening = tuple(tuple(_number(value, "domain") for value in row) for row in found["whitening"])
    if len(mean) > MAX_FIGURES or [len(row) for row in whitening] != list(range(1, len(mean) + 1)):
        raise ValueError(f"domain: a lower triangle of {len(mean)} rows expected")
    limit = _number(found["limit"], "domain")
    if limit <= 0:
        raise ValueError(f"domain: a limit above 0 expected, got {limit}")
    pictures, validated = (_integer(found[key], "domain", 0, 2**53) for key in ("pictures", "validated"))
    return Domain(mean, whitening, limit, pictures, validated)


def _terms(data: Mapping[str, Any]) -> str:
    """The terms, which files before 0.3.0 do not name."""
    terms = data.get("terms", "")
    if not isinstance(terms, str) or len(terms.splitlines()) > 1:
        raise ValueError(f"terms: one line of text expected, got {terms!r}")
    return terms


def _integer(value: object, field: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{field}: a whole number from {low} to {high} expected, got {value!r}")
    return value


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{field}: a finite number expected, got {value!r}")
    return float(value)
