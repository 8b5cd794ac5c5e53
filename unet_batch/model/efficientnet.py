"""EfficientNet-Lite: an image classifier without its classifier, as the encoder of a U-Net.

EfficientNet (Tan and Le, 2019, https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and with
ReLU6 in place of Swish, as Google published it for phones: only layers that every compiler has kernels for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

STRIDE = 32


@dataclass(frozen=True)
class Variant:
    """One of the family.

    Attributes:
        width, depth: factors of the channels and of the repetitions of each stage.
    """

    width: float
    depth: float


VARIANTS = {
    "efficientnet-lite0": Variant(1.0, 1.0),
    "efficientnet-lite1": Variant(1.0, 1.1),
    "efficientnet-lite2": Variant(1.1, 1.2),
}

# Repetitions, kernel, stride, expansion, channels of each stage of lite0.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32  # neither the stem nor the repetitions of the first and last stage grow with the variant
_EPSILON = 1e-3  # of BatchNorm, as the published weights were trained


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection: (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        expand = conv_norm(in_channels, inner, 1) if expansion > 1 else []
        depthwise = conv_norm(inner, inner, kernel, stride, groups=inner)
        self.layers = nn.Sequential(*expand, *depthwise, *conv_norm(inner, out_channels, 1, activation=False))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x)
        return x + made if self.residual else made


class EfficientNetLite(nn.Module):
    """Features at strides 2, 4, 8, 16 and 32 of pictures whose sides 32 divides.

    Strides are padded by as much on the left as on the right. The published weights were trained with the
    other convention, which at sides of 32 k + 1 is the same one.

    Args:
        variant: a key of VARIANTS.
        in_channels: channels of the picture.

    Attributes:
        channels: of the features at each stride, finest first.
    """

    def __init__(self, variant: str, in_channels: int = 3) -> None:
        super().__init__()
        scale = VARIANTS[variant]
        self.stem = nn.Sequential(*conv_norm(in_channels, _STEM, 3, 2))
        self.stages = nn.ModuleList()
        channels = _STEM
        ends: list[int] = []
        for index, (repeats, kernel, stride, expansion, width) in enumerate(_STAGES):
            made = round_to_eight(width * scale.width)
            if 0 < index < len(_STAGES) - 1:
                repeats = math.ceil(repeats * scale.depth)
            first = InvertedResidual(channels, made, kernel, stride, expansion)
            others = (InvertedResidual(made, made, kernel, 1, expansion) for _ in range(repeats - 1))
            self.stages.append(nn.Sequential(first, *others))
            if stride == 2:
                ends.append(channels)
            channels = made
        self.channels = (*ends, channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> features (N, channels[k], H / 2**(k+1), W / 2**(k+1)), finest first."""
        x = self.stem(x)
        found: list[Tensor] = []
        for stage, (_, _, stride, _, _) in zip(self.stages, _STAGES, strict=True):
            if stride == 2:  # what was made so far at the finer stride is complete
                found.append(x)
            x = stage(x)
        return [*found, x]


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: bool = True,
) -> list[nn.Module]:
    """A convolution without bias, BatchNorm and, unless it is left out, ReLU6."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=_EPSILON),
    ]
    return [*layers, nn.ReLU6(inplace=True)] if activation else layers


def round_to_eight(channels: float) -> int:
    """The nearest multiple of 8, but not less than nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
