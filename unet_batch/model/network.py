"""What every network here has in common: features of a picture, and a 1x1 head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST = ("down.0.0.weight", "encoder.stem.0.weight", "stem.0.weight")
"""The first convolution: of a classic U-Net, of one on an encoder, and of that encoder."""


class SegmentationNetwork(nn.Module):
    """Features of a picture, and a 1x1 convolution that makes one logit of each class from them.

    A subclass sets `head` and says how `features` are computed; training, export and every backend need
    nothing else of it.

    Attributes:
        in_channels: channels of the input picture.
        out_channels: channels of the output: 1 for one class against background, else one for each class.
        encoder_name: of the encoder with weights of its own, see `ModelSpec.encoder`; "" for none.
        widths: channels of the levels that lead back to full resolution, finest first.
        head: 1x1 convolution from features to logits.
        stride: height and width are padded to a multiple of this inside `features`.
        reduction: features and logits of the head lie at 1/reduction of the picture's resolution; `upsample`
            brings the logits back.
    """

    in_channels: int
    out_channels: int
    encoder_name: str = ""
    widths: tuple[int, ...]
    head: nn.Conv2d
    stride: int
    reduction: ClassVar[int] = 1

    def encode_decode(self, x: Tensor) -> Tensor:
        """Features of pictures whose sides `stride` divides: (N, in, H, W) -> (N, C, H/r, W/r)."""
        raise NotImplementedError

    def convolutions(self) -> list[str]:
        """Names of the convolutions before the head, in the order they run."""
        raise NotImplementedError

    def sensitive(self) -> list[str]:
        """Names of the convolutions that compute in float32 where the others do in 16 bits."""
        return []

    def stored_exactly(self) -> list[str]:
        """Names of the convolutions whose weights files hold as float32, the others' as float16."""
        return self.sensitive()

    def features(self, x: Tensor) -> Tensor:
        """Features of the picture as it is padded: (N, in, H, W) -> (N, C, ~H/r, ~W/r), any H and W.

        Sizes that `stride` does not divide are padded at the right and bottom by repeating the last row and
        column: zeros would look like a black border to the network. `upsample` takes the padding away.
        """
        height, width = x.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return self.encode_decode(x)

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Logits of the head at the picture's own size: (N, C, ~H/r, ~W/r) -> (N, C, height, width)."""
        if self.reduction > 1:
            logits = F.interpolate(logits, scale_factor=self.reduction, mode="bilinear", align_corners=False)
        return logits[..., :height, :width] if height % self.stride or width % self.stride else logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised pictures: (N, in_channels, H, W) -> (N, out_channels, H, W), any H and W."""
        return self.upsample(self.head(self.features(x)), *x.shape[-2:])

    def merge_background(self, foreground: int) -> None:
        """Turn two outputs, background and one class, into the logit of that class's probability.

        A softmax over two logits is the sigmoid of their difference, which a 1x1 convolution computes too.

        Args:
            foreground: the output of the class, 0 or 1; the other one is the background.
        """
        self.head = output_difference(self.head, foreground)
        self.out_channels = 1


def output_difference(head: nn.Conv2d, output: int) -> nn.Conv2d:
    """Make a head of one output from one of two: this output minus the other."""
    difference = nn.Conv2d(head.in_channels, 1, 1)
    with torch.no_grad():
        for made, given in zip(difference.parameters(), head.parameters(), strict=True):
            made.copy_(given[output : output + 1] - given[1 - output : 2 - output])
    return difference.requires_grad_(False)


def widen_first(weights: Mapping[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """The weights of a network's first convolution for another number of channels; {} where it has as many.

    Each starts from the mean of the filters, scaled so that a grey picture makes the features it made before.
    """
    name = next(name for name in FIRST if name in weights)
    first, before = weights[name], weights[name].shape[1]
    if before == in_channels:
        return {}
    return {name: first.mean(1, keepdim=True).repeat(1, in_channels, 1, 1) * (before / in_channels)}
