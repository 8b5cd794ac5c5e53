"""Build the network that a ModelSpec describes."""

from __future__ import annotations

from unet_batch.errors import CheckpointError
from unet_batch.model.encoder_unet import EncoderUNet
from unet_batch.model.network import SegmentationNetwork
from unet_batch.model.unet import UNet
from unet_batch.types import ModelSpec


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
