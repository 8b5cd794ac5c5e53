"""A U-Net whose contracting path is a pre-trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_batch.model.efficientnet import STRIDE, VARIANTS, EfficientNetLite
from unet_batch.model.network import SegmentationNetwork
from unet_batch.model.unet import DoubleConv

DECODER_WIDTHS = (32, 48, 64, 96)
_EARLY = ("encoder.stem.", "encoder.stages.0.", "encoder.stages.1.")  # down to a stride of 4


class EncoderUNet(SegmentationNetwork):
    """EfficientNet-Lite as the encoder, a decoder with skip connections to half resolution, 1x1 head.

    The decoder doubles the resolution by repeating pixels, which needs no weights and no kernel that some
    compiler lacks. The last doubling, to the picture's own resolution, is that of the logits, smoothly.

    Args:
        in_channels, out_channels: see `SegmentationNetwork`.
        widths: channels of the decoder at strides 2, 4, 8 and 16, finest first.
        encoder: a key of `efficientnet.VARIANTS`.

    Raises:
        ValueError: an encoder that does not exist, other than four widths, a width or channel count below 1.
    """

    reduction: ClassVar[int] = 2

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        widths: Sequence[int] = DECODER_WIDTHS,
        encoder: str = "efficientnet-lite0",
    ) -> None:
        super().__init__()
        if len(widths) != len(DECODER_WIDTHS) or min(in_channels, out_channels, *widths) < 1:
            raise ValueError(
                f"four widths and channels of 1 or more expected, got in={in_channels}, out={out_channels}, "
                f"widths={tuple(widths)}"
            )
        if encoder not in VARIANTS:
            raise ValueError(f"encoder {encoder!r}: expected one of {', '.join(VARIANTS)}")
        self.encoder_name = encoder
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.widths = tuple(widths)
        self.stride = STRIDE
        self.encoder = EfficientNetLite(encoder, in_channels)
        coarse_first = self.encoder.channels[::-1]
        into = (coarse_first[0], *reversed(self.widths[1:]))
        self.merge = nn.ModuleList(
            DoubleConv(below + skip, width)
            for below, skip, width in zip(into, coarse_first[1:], reversed(self.widths), strict=True)
        )
        self.head = nn.Conv2d(self.widths[0], out_channels, 1)

    def encode_decode(self, x: Tensor) -> Tensor:
        """Features at half resolution: (N, in_channels, H, W) -> (N, widths[0], H/2, W/2)."""
        *skips, x = self.encoder(x)
        for merge in self.merge:
            up = F.interpolate(x, scale_factor=2.0, mode="nearest")
            # Features of layers that stay float32 are joined as what the others compute in.
            x = merge(torch.cat((skips.pop().to(up.dtype), up), dim=1))
        return x

    def sensitive(self) -> list[str]:
        """Names of the encoder's convolutions down to a stride of 4.

        Of the published weights, BatchNorm folded, those of the first depthwise convolution reach 23, and
        terms much larger than their sum cancel out. With these layers, 7 % of the work, in float32, masks in
        float16 have Dice 0.9996 with those in float32, else 0.997 (docs/log/2026-11-28.md).
        """
        return [name for name in self.convolutions() if name.startswith(_EARLY)]

    def stored_exactly(self) -> list[str]:
        """Names of the convolutions down to a stride of 16, and of all depthwise ones.

        They hold a tenth of the weights. With these exact, the others as float16 moved the maps of a trained
        network by one of 255 levels at most; all as float16 by 21.
        """
        return [
            name
            for name in self.convolutions()
            if name.startswith((*_EARLY, "encoder.stages.2.", "encoder.stages.3."))
            or self.get_submodule(name).groups != 1
        ]

    def convolutions(self) -> list[str]:
        """Names of the convolutions before the head, encoder first."""
        return [
            name for name, module in self.named_modules() if isinstance(module, nn.Conv2d) and name != "head"
        ]
