"""Build the network that a ModelSpec describes."""

from __future__ import annotations

from unet_batch.model.encoder_unet import EncoderUNet
from unet_batch.model.network import SegmentationNetwork
from unet_batch.model.unet import UNet
from unet_batch.types import ModelSpec


def build_network(spec: ModelSpec) -> SegmentationNetwork:
    """The network of a spec, with random weights."""
    classes = len(spec.classes.names)
    if spec.architecture == "encoder-unet":
        return EncoderUNet(spec.in_channels, classes, spec.widths, spec.encoder)
    return UNet(spec.in_channels, classes, spec.widths)
