"""The networks that are measured: their checkpoints, their ONNX graphs, and how fast a GPU could run them."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unet_batch.types import ModelSpec

# Name: what comes with the package, by its name there; or (classes, widths) of a network with random weights.
MODELS: dict[str, str | tuple[int, tuple[int, ...]]] = {
    "bundled": "classic",
    "default": "default",
    "31m": (1, (64, 128, 256, 512, 1024)),
    "4class": (4, (16, 32, 64, 128, 256)),
}
# For dry runs, which go through everything small.
TINY: dict[str, str | tuple[int, tuple[int, ...]]] = {"tiny": (4, (4, 8, 16))}
SIZE = (160, 240)
# Precision and opset of what strongly typed builders take, and of what TensorRT 8.6 takes
TYPED, WEAK = ("fp16", 18), ("fp32", 17)
# By what they call themselves
SPEC_NAMES = {name: model for model, name in MODELS.items() if isinstance(name, str)}


def is_trained(model: str) -> bool:
    """Whether it comes with the package."""
    return isinstance((MODELS | TINY)[model], str)


def checkpoint_path(model: str, folder: str) -> str:
    from unet_batch.model import zoo

    network = (MODELS | TINY)[model]
    return zoo.resolve(network) if isinstance(network, str) else os.path.join(folder, f"{model}.safetensors")


def write_checkpoint(model: str, folder: str) -> str:
    """The model's checkpoint; of those with random weights it is made."""
    path, network = checkpoint_path(model, folder), (MODELS | TINY)[model]
    if not isinstance(network, str) and not os.path.exists(path):
        from tests.helpers.engines import confident
        from unet_batch.model import checkpoint

        made = confident(*network, SIZE)
        checkpoint.save(path, made.model, dataclasses.replace(made.spec, name=model))
    return path


def export(
    folder: str, models: Sequence[str], forms: Sequence[tuple[str, int | None]], say: Callable[[str], None]
) -> None:
    """Write `.onnx` and `.npz` of the models: `forms` are pairs of precision and opset."""
    from unet_batch.build import BuildOptions, build_engine

    os.makedirs(folder, exist_ok=True)
    for model in models:
        path = write_checkpoint(model, folder)
        for precision, opset in forms:
            # A batch of 1 only, so that the comparison with ONNX Runtime takes seconds: larger ones are
            # proven on the GPU.
            options = BuildOptions(
                path, folder, batch=(1, 1, 1), precision=precision, opset=opset, onnx_only=True
            )
            say(f"{model}: {build_engine(options).onnx}")


def graphs(folder: str) -> dict[str, dict[str, str]]:
    """The ONNX files of a folder: model -> precision -> path."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.onnx"))):
        if match := re.fullmatch(r"(.+)-\d+x\d+-([a-z0-9]+)(-.*)?\.onnx", os.path.basename(path)):
            found.setdefault(SPEC_NAMES.get(match[1], match[1]), {})[match[2]] = path
    return found


# What a GPU can do ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceilings:
    """The two rates that no network exceeds.

    Attributes:
        flops: a second, 16 bit on tensor cores.
        bytes: a second, of the GPU's memory.
    """

    flops: float
    bytes: float


CEILINGS = {
    "NVIDIA H100 80GB HBM3": Ceilings(798e12, 3.0e12),
    "NVIDIA H200": Ceilings(790e12, 4.3e12),
}
"""By the driver's name of the GPU, as measured on such a one with PyTorch; of others nothing is known."""
_HALF = 2  # bytes of a value


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Attributes:
        flops: for one picture, a multiplication and its addition counted as two.
        bytes: read and written for one picture in 16 bit, each value once.
        weights: bytes that are read once for a batch.
    """

    flops: int
    bytes: int
    weights: int


def layers(spec: ModelSpec) -> list[Layer]:
    """The convolutions of a network at its own size; all else is taken as part of them, and free.

    The input is uint8. What is concatenated is written where it is read; pooling writes a quarter of that.
    """
    if spec.encoder:
        return _traced(spec)
    height, width = spec.input_size
    outputs = 1 if spec.output == "probability" else len(spec.classes.names)
    found: list[Layer] = []

    def add(level: int, taken: int, made: int, kernel: int, read: float, written: float) -> None:
        """A convolution of `taken` to `made` channels that reads and writes so many values a pixel."""
        area = (height >> level) * (width >> level)
        weights = taken * made * kernel**2
        # An up-convolution of 2x2 computes each output pixel with one of its four taps.
        work = weights // 4 if kernel == 2 else weights
        found.append(Layer(2 * work * area, round(_HALF * area * (read + written)), _HALF * weights))

    below = spec.in_channels
    for level, made in enumerate(spec.widths):
        add(level, below, made, 3, below / _HALF if level == 0 else below, made)
        pooled = made / 4 if level + 1 < len(spec.widths) else 0
        add(level, made, made, 3, made, made + pooled)
        below = made
    for level in reversed(range(len(spec.widths) - 1)):
        made = spec.widths[level]
        add(level, below, made, 2, below / 4, made)
        add(level, 2 * made, made, 3, 2 * made, made)
        add(level, made, made, 3, made, made)
        below = made
    add(0, below, outputs, 1, below, outputs)
    return found


def _traced(spec: ModelSpec) -> list[Layer]:
    """The same of a network on an encoder, from the shapes that PyTorch finds without computing anything."""
    import torch
    from torch import Tensor, nn

    from unet_batch.model.architectures import build_network

    found: list[Layer] = []

    def add(conv: nn.Module, taken: tuple[Tensor], made: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        read = taken[0].numel() // (1 if found else _HALF)
        work = made.numel() * conv.weight.numel() // conv.out_channels
        found.append(Layer(2 * work, _HALF * (read + made.numel()), _HALF * conv.weight.numel()))

    with torch.device("meta"):
        network = build_network(spec).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        network(torch.zeros(1, spec.in_channels, *spec.input_size))
    return found


def flops(spec: ModelSpec) -> int:
    """Of all convolutions for one picture."""
    return sum(layer.flops for layer in layers(spec))


def floor(spec: ModelSpec, batch: int, gpu: str | None) -> float | None:
    """Pictures a second that no program exceeds, layer by layer; None for a GPU that nobody measured."""
    ceilings = CEILINGS.get(gpu or "")
    if ceilings is None:
        return None
    seconds = (
        max(layer.flops / ceilings.flops, (layer.bytes + layer.weights / batch) / ceilings.bytes)
        for layer in layers(spec)
    )
    return 1 / sum(seconds)
