"""Augmentation: image and mask moved together, colour changed in the image alone.

What happens to a sample is drawn from (seed, epoch, its number in the dataset) and from nothing else: not
from the batch it is in, the process that loads it or the samples before it. So a resumed training, and one on
several processes, sees the same samples. The arithmetic is kornia's, on whole batches and on the device that
trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import kornia.enhance
import kornia.filters
import kornia.geometry.transform
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_batch.datasets.encoding import VOID
from unet_batch.media.geometry import PAD_VALUE

if TYPE_CHECKING:
    from unet_batch.types import Size


@dataclass(frozen=True)
class Preset:
    """How far samples are changed; all deviations are of normal distributions around "not at all".

    Attributes:
        move: share of the samples that are zoomed, turned or shifted; the rest look as they will at run time.
        zoom, aspect: deviation of the logarithm of the scale, and of the ratio of height to width.
        turn: deviation in degrees.
        shift: deviation as a share of the height and width.
        colour: share of the samples whose brightness, contrast, saturation and tint change.
        tone: how far these change; 1: brightness by 8 % of full scale, contrast by a quarter, saturation by
            half.
        blur, noise: shares of the samples.
        bend: deviation as a share of the shorter side, of points four to a side; what lies between them
            follows smoothly.
    """

    move: float = 0.0
    zoom: float = 0.0
    aspect: float = 0.0
    turn: float = 0.0
    shift: float = 0.0
    colour: float = 0.0
    tone: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    bend: float = 0.0


PRESETS = {
    "none": Preset(),
    "light": Preset(
        move=0.7, zoom=0.05, aspect=0.015, turn=1.0, shift=0.015, colour=0.7, tone=1.0, blur=0.05, noise=0.1
    ),
    "strong": Preset(
        move=0.9, zoom=0.25, aspect=0.07, turn=6.0, shift=0.1, colour=0.8, tone=1.8, blur=0.15, noise=0.25
    ),
    # For slices under a microscope: no side is up, staining and exposure differ, tissue bends, by ten of 512
    # pixels as in the paper of the U-Net (Ronneberger and others, 2015, section 3.1). The magnification stays
    # about the same.
    "elastic": Preset(
        move=0.9,
        zoom=0.1,
        aspect=0.05,
        turn=20.0,
        shift=0.05,
        colour=0.8,
        tone=1.5,
        blur=0.15,
        noise=0.25,
        bend=0.02,
    ),
}
FLIPS = ("none", "horizontal", "any")
"""`any`: also upside down and by quarter turns, as suits what has no up: slides, aerial photos."""


@dataclass(frozen=True, eq=False)
class Change:
    """What is done to one sample.

    Attributes:
        matrix: float64 (2, 3), from pixels of the stored sample to pixels of the network's input, or of a
            window of it (x, y).
        gain: of each channel; contrast and tint.
        lift: added to the pixels, as a share of full scale.
        saturation: 1 leaves colours alone.
        blur: deviation of a Gaussian in pixels; 0 for none.
        noise: deviation as a share of full scale; 0 for none.
        seed: of the noise.
        bend: float32 (2, 4, 4), how far beside itself (x, y; pixels of the network's input) each point of a
            lattice over the input looks, before the matrix is undone; None for no bending.
    """

    matrix: np.ndarray
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lift: float = 0.0
    saturation: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0
    bend: np.ndarray | None = None


def draw(
    preset: Preset, flip: str, stored: Size, network: Size, key: Sequence[int], *, crop: Size | None = None
) -> Change:
    """Decide what to do with one sample.

    Args:
        preset: how far to go.
        flip: one of FLIPS.
        stored, network: size of the sample as it is kept, and of the network's input.
        key: integers that the draw depends on, such as (seed, epoch, number).
        crop: size of a window of the network's input, at most as large; where it lies is drawn too. `apply`
            is given this size then. None for the whole.
    """
    random = np.random.default_rng(tuple(key))
    zoom = aspect = 1.0
    angle, shift = 0.0, np.zeros(2)
    mirror = flip != "none" and random.random() < 0.5
    quarter = int(random.integers(4)) if flip == "any" else 0
    if random.random() < preset.move:
        zoom = math.exp(random.normal(0, preset.zoom))
        aspect = math.exp(random.normal(0, preset.aspect))
        angle = math.radians(random.normal(0, preset.turn))
        shift = random.normal(0, preset.shift, 2) * network[::-1]
    scale = np.diag([network[1] / stored[1], network[0] / stored[0]])
    turned = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), quarter)
    if quarter % 2:  # what is wide becomes tall: it is stretched into the same place
        turned = np.diag(network[::-1]) @ turned @ np.diag([1 / network[1], 1 / network[0]])
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = (
        np.diag([zoom * aspect, zoom / aspect])
        @ rotation
        @ turned
        @ np.diag([-1.0 if mirror else 1.0, 1.0])
        @ scale
    )
    # Pixel centres lie at +0.5: the middle of the stored sample goes to the middle of the input, plus the
    # shift.
    middle, target = (np.array([size[1] / 2 - 0.5, size[0] / 2 - 0.5]) for size in (stored, network))
    matrix = np.hstack([linear, (target + shift - linear @ middle)[:, None]])
    gain, lift, saturation = (1.0, 1.0, 1.0), 0.0, 1.0
    if random.random() < preset.colour:
        tone = preset.tone
        contrast = random.uniform(1 - 0.25 * tone, 1 + 0.3 * tone)
        red, green, blue = contrast * random.uniform(1 - 0.08 * tone, 1 + 0.08 * tone, 3)
        gain, lift = (red, green, blue), random.uniform(-0.08 * tone, 0.08 * tone)
        saturation = random.uniform(1 - 0.5 * tone, 1 + 0.5 * tone)
    blurred, noisy = random.random() < preset.blur, random.random() < preset.noise
    change = Change(
        matrix,
        gain,
        lift,
        saturation,
        blur=random.uniform(0.4, 1.2) if blurred else 0.0,
        noise=random.uniform(0.004, 0.03) if noisy else 0.0,
        seed=int(random.integers(2**62)),
        bend=random.normal(0, preset.bend * min(crop or network), (2, 4, 4)).astype(np.float32)
        if preset.bend
        else None,
    )
    if crop is not None:  # drawn last: all else is as it would be without
        top, left = random.integers(np.subtract(network, crop) + 1)
        change.matrix[:, 2] -= left, top
    return change


def apply(
    pictures: Tensor, targets: Tensor, known: Tensor, changes: Sequence[Change], size: Size
) -> tuple[Tensor, Tensor]:
    """Carry out one change for each sample.

    Args:
        pictures: uint8 (N, h, w, 3), RGB.
        targets: uint8 (N, h, w): ids with VOID, or, where `known` says so, coverage 0..255 of the only class.
        known: uint8 (N, h, w), 255 where the target counts; empty for targets that are ids.
        changes: N of them.
        size: (H, W) of the result: the network's, or that of the window of it.

    Returns:
        float32 pictures (N, 3, H, W), 0..1, channels_last, PAD_VALUE outside of the stored sample; and the
        targets: int64 ids (N, H, W) with VOID outside, or float32 (N, 2, H, W), coverage 0..1 and how far it
        is known, 0 outside.
    """
    device = pictures.device
    matrix = torch.from_numpy(np.array([change.matrix for change in changes], np.float32)).to(device)
    places = _bent(changes, size, device)

    def warp(values: Tensor, outside: float, mode: str = "bilinear") -> Tensor:
        # kornia pads with zeros; so zero is made to be what shall lie outside.
        moved: Tensor
        if places is None:
            moved = kornia.geometry.transform.warp_affine(
                values - outside, matrix, size, mode=mode, padding_mode="zeros", align_corners=True
            )
        else:
            moved = kornia.geometry.transform.remap(
                values - outside,
                *places,
                mode=mode,
                padding_mode="zeros",
                align_corners=True,
                normalized_coordinates=False,
            )
        return moved + outside

    x = warp(pictures.permute(0, 3, 1, 2).float(), PAD_VALUE) / 255
    if known.numel():
        covered, seen = (warp(torch.stack((targets, known), 1).float(), 0.0) / 255).unbind(1)
        # Of what is known of a pixel: what lies beyond the edge of it is not background.
        y = torch.stack(((covered / seen.clamp(min=1e-6)).clamp(max=1), seen), 1)
    else:
        y = warp(targets[:, None].float(), VOID, "nearest")[:, 0].round().long()
    return _recolour(x, changes).contiguous(memory_format=torch.channels_last), y


def _bent(changes: Sequence[Change], size: Size, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Where in the stored sample each pixel of the input comes from, x and y as float32 (N, H, W); None if
    nothing is bent.
    """
    if all(change.bend is None for change in changes):
        return None
    flat = np.zeros((2, 4, 4), np.float32)
    lattice = np.array([flat if change.bend is None else change.bend for change in changes])
    beside = F.interpolate(torch.from_numpy(lattice).to(device), size, mode="bicubic", align_corners=True)
    rows, columns = (torch.arange(length, dtype=torch.float32, device=device) for length in size)
    x, y = columns + beside[:, 0], rows[:, None] + beside[:, 1]
    # Inverted in float64 on the CPU: the same on every device.
    whole = np.array([np.vstack([change.matrix, (0, 0, 1)]) for change in changes])
    undone = torch.from_numpy(np.linalg.inv(whole).astype(np.float32)).to(device)[:, :2, :, None, None]
    return tuple(undone[:, row, 0] * x + undone[:, row, 1] * y + undone[:, row, 2] for row in (0, 1))  # type: ignore[return-value]


def _recolour(x: Tensor, changes: Sequence[Change]) -> Tensor:
    """Colour, blur and noise, each for the samples that have it; float (N, 3, H, W), 0..1."""
    device = x.device

    def some(values: Sequence[bool]) -> Tensor:
        return torch.tensor([index for index, value in enumerate(values) if value], device=device)

    coloured = [change for change in changes if change.saturation != 1]
    if coloured:
        which = some([change.saturation != 1 for change in changes])
        gain = torch.tensor([change.gain for change in coloured], dtype=torch.float32, device=device).view(
            -1, 3, 1, 1
        )
        lift = torch.tensor([change.lift for change in coloured], dtype=torch.float32, device=device)
        saturation = torch.tensor(
            [change.saturation for change in coloured], dtype=torch.float32, device=device
        )
        part = kornia.enhance.adjust_brightness(x[which] * gain, lift)
        x = x.index_copy(0, which, kornia.enhance.adjust_saturation_with_gray_subtraction(part, saturation))
    if blurred := [change.blur for change in changes if change.blur]:
        which = some([change.blur > 0 for change in changes])
        sigma = torch.tensor(blurred, dtype=torch.float32, device=device)[:, None].repeat(1, 2)
        x = x.index_copy(0, which, kornia.filters.gaussian_blur2d(x[which], (7, 7), sigma, "replicate"))
    if noisy := [change for change in changes if change.noise]:
        which = some([change.noise > 0 for change in changes])
        grain = [  # drawn on the CPU: the same on every device
            change.noise * torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(change.seed))
            for change in noisy
        ]
        x = x.index_copy(0, which, (x[which] + torch.stack(grain).to(device)).clamp(0, 1))
    return x
