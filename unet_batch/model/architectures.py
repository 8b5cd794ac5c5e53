"""Build the network that a ModelSpec describes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unet_batch.errors import CheckpointError
from unet_batch.model.encoder_unet import EncoderUNet
from unet_batch.model.network import SegmentationNetwork
from unet_batch.model.unet import UNet
from unet_batch.types import ModelSpec, Size


def build_network(spec: ModelSpec) -> SegmentationNetwork:
    """The network of a spec, with random weights.

    Raises:
        CheckpointError: it describes an imported graph, of which there is no network in PyTorch.
    """
    if spec.architecture == "onnx":
        raise CheckpointError(
            f"{spec.name} is an imported ONNX graph: there is no PyTorch network of it",
            hint="name the .onnx file itself; training starts from checkpoints (.safetensors) only",
        )
    classes = len(spec.classes.names)
    if spec.architecture == "encoder-unet":
        return EncoderUNet(spec.in_channels, classes, spec.widths, spec.encoder)
    return UNet(spec.in_channels, classes, spec.widths)


def count_flops(spec: ModelSpec, size: Size) -> int:
    """FLOPs of all convolutions for one picture, a multiplication and its addition counted as two.

    Args:
        spec: of the network.
        size: (height, width) of its input.
    """
    found = 0

    def add(layer: nn.Module, taken: tuple[Tensor], made: Tensor) -> None:
        nonlocal found
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        # Each weight meets each position of the smaller of input and output once
        grid = made if isinstance(layer, nn.Conv2d) else taken[0]
        found += 2 * layer.weight.numel() * grid.shape[-2] * grid.shape[-1]

    with torch.device("meta"):  # shapes only: nothing is computed
        network = build_network(spec).eval()
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.register_forward_hook(add)
        network(torch.zeros(1, spec.in_channels, *size))
    return found
