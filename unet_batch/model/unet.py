"""The U-Net.

The U-Net of Ronneberger, Fischer and Brox (2015, https://arxiv.org/abs/1505.04597) in the form the field has
settled on: padded 3x3 convolutions with BatchNorm, so that the output is as large as the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_batch.model.network import SegmentationNetwork

DEFAULT_WIDTHS = (32, 64, 128, 256, 512)


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by BatchNorm and ReLU: (N, in, H, W) -> (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            # The BatchNorm that follows has its own offset: a bias here would do nothing.
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNet(SegmentationNetwork):
    """Contracting path, expanding path with skip connections, 1x1 head.

    Args:
        in_channels: channels of the input picture.
        out_channels: channels of the output: 1 for one class against background, else one for each class.
        widths: channels of each level, finest first; its length is the depth. Each level below the first
            works at half the resolution of the one above. `(64, 128, 256, 512, 1024)` is the network of the
            paper's size, 31.04 M parameters.

    Raises:
        ValueError: a width or a channel count below 1, or no level at all.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, widths: Sequence[int] = DEFAULT_WIDTHS
    ) -> None:
        super().__init__()
        if not widths or min(in_channels, out_channels, *widths) < 1:
            raise ValueError(
                f"channels must be 1 or more, got in={in_channels}, out={out_channels}, "
                f"widths={tuple(widths)}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.widths = tuple(widths)
        self.stride = 2 ** (len(self.widths) - 1)
        self.down = nn.ModuleList()
        channels = in_channels
        for width in widths:
            self.down.append(DoubleConv(channels, width))
            channels = width
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for width in reversed(self.widths[:-1]):
            self.up.append(nn.ConvTranspose2d(channels, width, 2, stride=2))
            self.merge.append(DoubleConv(2 * width, width))
            channels = width
        self.head = nn.Conv2d(channels, out_channels, 1)

    def encode_decode(self, x: Tensor) -> Tensor:
        """Features at full resolution: (N, in_channels, H, W) -> (N, widths[0], H, W)."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                skips.append(x)
                x = F.max_pool2d(x, 2)
            x = block(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), dim=1))
        return x

    def convolutions(self) -> list[str]:
        """Names of the convolutions before the head: `down.0.0`, ..., `up.0`, `merge.0.0`, ..."""
        down = [f"down.{level}.{index}" for level in range(len(self.down)) for index in (0, 3)]
        return down + [
            name for k in range(len(self.up)) for name in (f"up.{k}", f"merge.{k}.0", f"merge.{k}.3")
        ]
