"""The layouts of public U-Nets that can be imported: how they name their layers, and the networks themselves.

`milesial` is https://github.com/milesial/Pytorch-UNet with transposed convolutions, `plain` that of the
tutorials that keep `downs`, `ups`, `bottleneck` and `final_conv`. A new layout is a row of LAYOUTS.

Weights of other libraries are known by name only, so that people are told what to do with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from unet_batch.types import Size


def _milesial_names(levels: int) -> dict[str, str]:
    """Our names of layers to milesial's."""
    names = {"down.0": "inc.double_conv", "head": "outc.conv"}
    for k in range(1, levels):
        names[f"down.{k}"] = f"down{k}.maxpool_conv.1.double_conv"
        names[f"up.{k - 1}"] = f"up{k}.up"
        names[f"merge.{k - 1}"] = f"up{k}.conv.double_conv"
    return names


def _plain_names(levels: int) -> dict[str, str]:
    """Our names of layers to the tutorials'."""
    names = {f"down.{levels - 1}": "bottleneck.conv", "head": "final_conv"}
    for k in range(levels - 1):
        names[f"down.{k}"] = f"downs.{k}.conv"
        names[f"up.{k}"] = f"ups.{2 * k}"
        names[f"merge.{k}"] = f"ups.{2 * k + 1}.conv"
    return names


def _double(in_channels: int, out_channels: int, biased: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=biased),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class _Named(nn.Module):
    """A layer one name further down, as the source keeps it."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(self.name)(x)
        return result


class _Milesial(nn.Module):
    """Under milesial's names; without its padding, which does nothing at multiples of the stride."""

    def __init__(self, in_channels: int, classes: int, widths: Sequence[int], biased: bool) -> None:
        super().__init__()
        self.inc = _Named("double_conv", _double(in_channels, widths[0], biased))
        for k, (fine, coarse) in enumerate(pairwise(widths), 1):
            block = _Named("double_conv", _double(fine, coarse, biased))
            self.add_module(f"down{k}", _Named("maxpool_conv", nn.Sequential(nn.MaxPool2d(2), block)))
        self.steps = range(1, len(widths))
        for k, (coarse, fine) in enumerate(pairwise(reversed(widths)), 1):
            up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
            merge = _Named("double_conv", _double(2 * fine, fine, biased))
            self.add_module(f"up{k}", nn.ModuleDict({"up": up, "conv": merge}))
        self.outc = _Named("conv", nn.Conv2d(widths[0], classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.inc(x)]
        for k in self.steps:
            skips.append(self.get_submodule(f"down{k}")(skips[-1]))
        x = skips.pop()
        for k in self.steps:
            x = torch.cat((skips.pop(), self.get_submodule(f"up{k}.up")(x)), dim=1)
            x = self.get_submodule(f"up{k}.conv")(x)
        result: Tensor = self.outc(x)
        return result


class _Plain(nn.Module):
    """Under the tutorials' names; without their resizing of skips, which multiples of the stride need not."""

    def __init__(self, in_channels: int, classes: int, widths: Sequence[int], biased: bool) -> None:
        super().__init__()
        steps = list(pairwise((in_channels, *widths)))
        self.downs = nn.ModuleList(_Named("conv", _double(*step, biased)) for step in steps[:-1])
        self.bottleneck = _Named("conv", _double(*steps[-1], biased))
        self.ups = nn.ModuleList()
        for coarse, fine in pairwise(reversed(widths)):
            self.ups.append(nn.ConvTranspose2d(coarse, fine, 2, stride=2))
            self.ups.append(_Named("conv", _double(2 * fine, fine, biased)))
        self.final_conv = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            skips.append(down(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for k in range(0, len(self.ups), 2):
            x = self.ups[k + 1](torch.cat((skips.pop(), self.ups[k](x)), dim=1))
        result: Tensor = self.final_conv(x)
        return result


@dataclass(frozen=True)
class Layout:
    """How a source names its layers.

    Attributes:
        names: number of levels -> our names of layers to theirs.
        level: matches the names of each level but one.
        network: the source's network under its own names: (in_channels, classes, widths, biased).
        size: what its authors feed it with.
    """

    names: Callable[[int], dict[str, str]]
    level: re.Pattern[str]
    network: Callable[[int, int, Sequence[int], bool], nn.Module]
    size: Size

    @property
    def mark(self) -> str:
        """The tensor that such a network is known by: the weight of its first convolution."""
        return f"{self.names(2)['down.0']}.0.weight"


LAYOUTS = {
    # Carvana's 1280x1918 at milesial's usual half, made a multiple of 16.
    "milesial": Layout(_milesial_names, re.compile(r"down(\d+)\."), _Milesial, (640, 960)),
    "plain": Layout(_plain_names, re.compile(r"downs\.(\d+)\."), _Plain, (160, 240)),
}

# What else people have weights of, by names that all occur in them; tensors of two dimensions are called
# `NAME:2`.
_LIBRARIES = (
    ("a network of segmentation_models.pytorch", (r"encoder\.", r"segmentation_head\.0\.weight")),
    ("a network of mmsegmentation or transformers", (r"(encoder|backbone)\.", r"decode_head\.")),
    (
        "a segmentation network of torchvision",
        (r"backbone\.", r"classifier\.(\d|low_classifier|high_classifier)\."),
    ),
    (
        "a classifier of whole pictures (timm, torchvision)",
        (r"(head\.)?(fc|classifier|head)(\.\d)?\.weight:2$",),
    ),
)


def recognise_library(tensors: Mapping[str, Tensor]) -> str:
    """Whose network these are the weights of, with an article; empty where no library is known by them."""
    names = [f"{name}:2" if tensor.dim() == 2 else name for name, tensor in tensors.items()]
    return next(
        (
            what
            for what, marks in _LIBRARIES
            if all(any(re.search(rf"(?:^|\.){mark}", name) for name in names) for mark in marks)
        ),
        "",
    )
