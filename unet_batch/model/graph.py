"""The network as it is run: uint8 pictures in, uint8 maps out, everything between baked in.

Every backend computes this graph, whether PyTorch executes it or an export of it was compiled: one byte a pixel and channel
goes in, one byte a pixel comes out, and no caller needs to know about normalisation.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet_batch.model.unet import DoubleConv, UNet
from unet_batch.types import ModelSpec


class Graph(nn.Module):
    """A U-Net prepared for inference.

    The body runs in `dtype`; normalisation, head and sigmoid stay float32, because a rounding error there is a rounding
    error of the result, and they cost nothing.

    Args:
        model: the network; left untouched.
        spec: its normalisation.
        dtype: of the body: float32, bfloat16 or float16.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, model: UNet, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.body = fold_batchnorm(model).to(dtype)
        self.head = self.body.head.float()
        self.register_buffer("mean", torch.tensor(spec.mean).mul(255).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(spec.std).mul(255).reciprocal().view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N, H, W, C) -> uint8 (N, H, W): round(255 p) for one class, class ids for several."""
        # A permuted NHWC tensor *is* channels_last in memory: no copy, and the layout the convolutions are fastest in.
        x = (pictures.float().permute(0, 3, 1, 2) - self.mean) * self.scale
        logits: Tensor = self.head(self.body.features(x.to(self.dtype)).float())
        if logits.shape[1] > 1:
            return logits.argmax(dim=1).to(torch.uint8)
        return (logits[:, 0].sigmoid() * 255 + 0.5).to(torch.uint8)


def fold_batchnorm(model: UNet) -> UNet:
    """A copy whose BatchNorm layers are folded into the convolutions before them, computed in float32."""
    folded = copy.deepcopy(model).float().eval()
    for block in folded.modules():
        if isinstance(block, DoubleConv):
            for index in (0, 3):
                conv, norm = block[index], block[index + 1]
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                block[index], block[index + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded
