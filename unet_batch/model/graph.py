"""The network for inference: uint8 pictures in, uint8 maps out, with normalisation and sigmoid inside.

Every backend computes this graph, whether PyTorch executes it or an export of it was compiled: one byte a
pixel and channel goes in, one byte a pixel comes out, and no caller needs to know about normalisation.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet_batch.model.network import SegmentationNetwork, output_difference
from unet_batch.types import ModelSpec


class Graph(nn.Module):
    """A network prepared for inference.

    The body runs in `dtype`; normalisation, head and sigmoid stay float32, because a rounding error there is
    a rounding error of the result, and they cost nothing.

    Args:
        model: the network; left untouched.
        spec: its normalisation.
        dtype: of the body: float32, bfloat16 or float16.
        float32: names of convolutions in the body that stay float32 beside the `sensitive` ones, see
            `SegmentationNetwork`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: SegmentationNetwork,
        spec: ModelSpec,
        dtype: torch.dtype = torch.float32,
        *,
        float32: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.dtype = dtype
        body = fold_batchnorm(model)
        self.head = output_difference(body.head, 1) if body.out_channels == 2 else body.head
        body.head = nn.Identity()  # type: ignore[assignment]
        # Wrapped from the float32 weights: what half precision has rounded, no float32 brings back.
        float32 = {*float32, *model.sensitive()} if dtype != torch.float32 else float32
        for name in model.convolutions() if float32 else ():
            parent, _, last = name.rpartition(".")
            in_dtype = _InDtype(body.get_submodule(name), torch.float32 if name in float32 else dtype)
            setattr(body.get_submodule(parent), last, in_dtype)
        self.body = body if float32 else body.to(dtype)
        self.register_buffer("mean", torch.tensor(spec.mean).mul(255).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(spec.std).mul(255).reciprocal().view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N, H, W, C) -> uint8 (N, H, W): round(255 p) for one class, class ids for several."""
        # A permuted NHWC tensor *is* channels_last in memory: no copy, and the layout the convolutions are
        # fastest in.
        x = (pictures.float().permute(0, 3, 1, 2) - self.mean) * self.scale
        logits: Tensor = self.head(self.body.features(x.to(self.dtype)).float())
        logits = self.body.upsample(logits, *x.shape[-2:])
        if self.body.out_channels == 1:
            return (logits.squeeze(1).sigmoid() * 255 + 0.5).to(torch.uint8)
        # No argmax: TensorRT turns it into a TopK, which is slow on maps. Ids are floats until the last cast,
        # because TensorRT 8.6 makes uint8 from floats only.
        if self.body.out_channels == 2:
            return (logits.squeeze(1) > 0).float().to(torch.uint8)
        best = torch.maximum(logits[:, :1], logits[:, 1:2])
        ids = torch.where(logits[:, 1:2] > logits[:, :1], 1.0, 0.0)
        for k in range(2, self.body.out_channels):
            candidate = logits[:, k : k + 1]
            ids = torch.where(candidate > best, float(k), ids)
            best = torch.maximum(best, candidate)
        return ids.squeeze(1).to(torch.uint8)


class _InDtype(nn.Module):
    """A layer that computes in a dtype of its own, whatever it is given."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.to(self.dtype))
        return result


def fold_batchnorm(model: SegmentationNetwork) -> SegmentationNetwork:
    """Copy a model, with its BatchNorm layers folded into the convolutions before them, in float32."""
    folded = copy.deepcopy(model).float().eval()
    for block in folded.modules():
        if isinstance(block, nn.Sequential):
            for index, (conv, norm) in enumerate(pairwise(block)):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    block[index], block[index + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded
