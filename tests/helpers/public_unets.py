"""State dicts as public U-Nets save them, made from the names and shapes of their tensors alone."""

from __future__ import annotations

import torch
from torch import Tensor

from unet_batch.model.layouts import LAYOUTS
from unet_batch.model.unet import UNet

State = dict[str, Tensor]
ARCHS = ("milesial", "plain")
WIDTHS = (4, 6, 8)


def blocks(arch: str, levels: int) -> tuple[list[str], list[tuple[str, str]], str]:
    """Names of the blocks going down, of (upsampling, block) going up, and of the head."""
    if arch == "milesial":
        down = ["inc.double_conv"] + [f"down{k}.maxpool_conv.1.double_conv" for k in range(1, levels)]
        return down, [(f"up{k}.up", f"up{k}.conv.double_conv") for k in range(1, levels)], "outc.conv"
    down = [f"downs.{k}.conv" for k in range(levels - 1)] + ["bottleneck.conv"]
    return down, [(f"ups.{k}", f"ups.{k + 1}.conv") for k in range(0, 2 * levels - 2, 2)], "final_conv"


def source(
    arch: str, classes: int = 1, *, biased: bool = False, channels: int = 3, widths: tuple[int, ...] = WIDTHS
) -> State:
    """Random weights, with BatchNorm as training leaves it."""
    torch.manual_seed(0)
    state: State = {}

    def double(name: str, inner: int, outer: int) -> None:
        for conv, norm, taken in ((0, 1, inner), (3, 4, outer)):
            state[f"{name}.{conv}.weight"] = torch.randn(outer, taken, 3, 3) * (2 / (9 * taken)) ** 0.5
            if biased:
                state[f"{name}.{conv}.bias"] = torch.randn(outer)
            state[f"{name}.{norm}.weight"] = torch.rand(outer) + 0.5
            state[f"{name}.{norm}.bias"] = torch.randn(outer) * 0.2
            state[f"{name}.{norm}.running_mean"] = torch.randn(outer) * 0.3
            state[f"{name}.{norm}.running_var"] = torch.rand(outer) + 0.5
            state[f"{name}.{norm}.num_batches_tracked"] = torch.tensor(7)

    down, up, head = blocks(arch, len(widths))
    for name, inner, outer in zip(down, (channels, *widths), widths, strict=False):
        double(name, inner, outer)
    for (upsampling, merge), inner, outer in zip(up, widths[:0:-1], widths[-2::-1], strict=True):
        state[f"{upsampling}.weight"] = torch.randn(inner, outer, 2, 2) * 0.4
        state[f"{upsampling}.bias"] = torch.randn(outer) * 0.2
        double(merge, 2 * outer, outer)
    state[f"{head}.weight"], state[f"{head}.bias"] = (
        torch.randn(classes, widths[0], 1, 1),
        torch.randn(classes),
    )
    return state


def with_background(model: UNet, arch: str, *, reverse: bool = False) -> State:
    """A network of one class as its authors might have trained it: with an output for the background, too.

    Args:
        model: of one class.
        arch: whose names the tensors get.
        reverse: the class comes first.
    """
    torch.manual_seed(0)
    state: State = {}
    for ours, theirs in LAYOUTS[arch].names(len(model.widths)).items():
        for name, tensor in model.get_submodule(ours).state_dict().items():
            state[f"{theirs}.{name}"] = tensor.clone()
    for part in ("weight", "bias"):
        name = f"{blocks(arch, len(model.widths))[2]}.{part}"
        ground = torch.randn_like(state[name])
        pair = (ground + state[name], ground) if reverse else (ground, ground + state[name])
        state[name] = torch.cat(pair)
    return state
