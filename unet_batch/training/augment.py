"""Augmentation: image and mask moved together, colour changed in the image alone.

What happens to a sample is drawn from (seed, epoch, its number in the dataset) and from nothing else: not
from the batch it is in, the process that loads it or the samples before it. So a resumed training, and one on
several processes, sees the same samples. The arithmetic is kornia's, on whole batches and on the device that
trains.
"""

from __future__ import annotations

import dataclasses
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
    """How far samples are transformed; all deviations are of normal distributions around "not at all".

    Attributes:
        p_geometric: share of the samples that are zoomed, rotated or shifted; the rest look as they will at
            run time.
        zoom, aspect: deviation of the logarithm of the scale, and of the ratio of height to width.
        rotation: deviation in degrees.
        translation: deviation as a share of the height and width.
        p_colour: share of the samples whose brightness, contrast, saturation and tint change.
        colour_strength: how far these change; 1: brightness by 8 % of full scale, contrast by a quarter,
            saturation by half.
        p_hue: share of the samples whose colours turn, by any angle: red things become green ones.
        p_blur, p_noise: shares of the samples that get them.
        elastic: deviation as a share of the shorter side, of the displacements of points four to a side; what
            lies between them follows smoothly.
    """

    p_geometric: float = 0.0
    zoom: float = 0.0
    aspect: float = 0.0
    rotation: float = 0.0
    translation: float = 0.0
    p_colour: float = 0.0
    colour_strength: float = 0.0
    p_hue: float = 0.0
    p_blur: float = 0.0
    p_noise: float = 0.0
    elastic: float = 0.0


PRESETS = {
    "none": Preset(),
    "light": Preset(
        p_geometric=0.7,
        zoom=0.05,
        aspect=0.015,
        rotation=1.0,
        translation=0.015,
        p_colour=0.7,
        colour_strength=1.0,
        p_blur=0.05,
        p_noise=0.1,
    ),
    "strong": Preset(
        p_geometric=0.9,
        zoom=0.25,
        aspect=0.07,
        rotation=6.0,
        translation=0.1,
        p_colour=0.8,
        colour_strength=1.8,
        p_hue=0.15,
        p_blur=0.15,
        p_noise=0.25,
    ),
    # For slices under a microscope: no side is up, staining and exposure differ, tissue bends, by ten of 512
    # pixels as in the paper of the U-Net (Ronneberger and others, 2015, section 3.1). The magnification stays
    # about the same.
    "elastic": Preset(
        p_geometric=0.9,
        zoom=0.1,
        aspect=0.05,
        rotation=20.0,
        translation=0.05,
        p_colour=0.8,
        colour_strength=1.5,
        p_blur=0.15,
        p_noise=0.25,
        elastic=0.02,
    ),
}
FLIPS = ("none", "horizontal", "any")
"""`any`: also upside down and by quarter turns, as suits what has no up: slides, aerial photos."""


@dataclass(frozen=True, eq=False)
class Transform:
    """The random transform of one sample.

    Attributes:
        matrix: float64 (2, 3), from pixels of the stored sample to pixels of the network's input, or of a
            window of it (x, y).
        gain: of each channel; contrast and tint. () leaves them alone.
        brightness: added to the pixels, as a share of full scale.
        saturation: 1 leaves colours alone; of three channels only.
        hue: of three channels only: by how many radians colours turn, -pi to pi.
        blur: deviation of a Gaussian in pixels; 0 for none.
        noise: deviation as a share of full scale; 0 for none.
        seed: of the noise.
        displacement: float32 (2, 4, 4), of the points of a lattice over the input: by how many pixels (x, y)
            of the network's input each is sampled beside itself, before the matrix is undone; None for an
            affine transform.
    """

    matrix: np.ndarray
    gain: tuple[float, ...] = ()
    brightness: float = 0.0
    saturation: float = 1.0
    hue: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0
    displacement: np.ndarray | None = None


def draw(
    preset: Preset,
    flip: str,
    stored: Size,
    network: Size,
    key: Sequence[int],
    *,
    crop: Size | None = None,
    channels: int = 3,
) -> Transform:
    """Draw the random transform of one sample.

    Args:
        preset: how far to go.
        flip: one of FLIPS.
        stored, network: size of the sample as it is kept, and of the network's input.
        key: integers that the draw depends on, such as (seed, epoch, number).
        crop: size of a window of the network's input, at most as large; where it lies is drawn too. `apply`
            is given this size then. None for the whole.
        channels: of the picture.
    """
    random = np.random.default_rng(tuple(key))
    zoom = aspect = 1.0
    angle, shift = 0.0, np.zeros(2)
    mirror = flip != "none" and random.random() < 0.5
    quarter = int(random.integers(4)) if flip == "any" else 0
    if random.random() < preset.p_geometric:
        zoom = math.exp(random.normal(0, preset.zoom))
        aspect = math.exp(random.normal(0, preset.aspect))
        angle = math.radians(random.normal(0, preset.rotation))
        shift = random.normal(0, preset.translation, 2) * network[::-1]
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
    gain, brightness, saturation = tuple[float, ...](), 0.0, 1.0
    if random.random() < preset.p_colour:
        strength = preset.colour_strength
        contrast = random.uniform(1 - 0.25 * strength, 1 + 0.3 * strength)
        gain = tuple(contrast * random.uniform(1 - 0.08 * strength, 1 + 0.08 * strength, channels))
        brightness = random.uniform(-0.08 * strength, 0.08 * strength)
        saturation = random.uniform(1 - 0.5 * strength, 1 + 0.5 * strength)
    blurred, noisy = random.random() < preset.p_blur, random.random() < preset.p_noise
    transform = Transform(
        matrix,
        gain,
        brightness,
        saturation,
        blur=random.uniform(0.4, 1.2) if blurred else 0.0,
        noise=random.uniform(0.004, 0.03) if noisy else 0.0,
        seed=int(random.integers(2**62)),
        displacement=random.normal(0, preset.elastic * min(crop or network), (2, 4, 4)).astype(np.float32)
        if preset.elastic
        else None,
        hue=random.uniform(-math.pi, math.pi) if random.random() < preset.p_hue else 0.0,
    )
    if crop is not None:  # drawn last: all else is as it would be without
        top, left = random.integers(np.subtract(network, crop) + 1)
        transform.matrix[:, 2] -= left, top
    return transform


@dataclass(frozen=True, eq=False)
class Paste:
    """The object of another sample, pasted into a sample.

    Attributes:
        number: of the picture whose object it is.
        transform: from that picture to the sample it is pasted into.
    """

    number: int
    transform: Transform


PASTED = Preset(
    p_geometric=1.0,
    zoom=0.35,
    aspect=0.05,
    rotation=5.0,
    translation=0.2,
    p_colour=0.8,
    colour_strength=1.5,
    p_hue=0.4,
    p_blur=0.3,
)
_PASTED_SCALE = 0.6  # about which sizes vary: objects fill most of the pictures they come from


def draw_paste(
    share: float,
    pictures: int,
    stored: Size,
    network: Size,
    key: Sequence[int],
    crop: Size | None = None,
    channels: int = 3,
) -> Paste | None:
    """Draw what is pasted into a sample, or None for `1 - share` of them; see `draw`."""
    random = np.random.default_rng(tuple(key))
    if random.random() >= share:
        return None
    number = int(random.integers(pictures))
    transform = draw(PASTED, "horizontal", stored, network, (*key, 2), crop=crop, channels=channels)
    middle = np.array([side / 2 - 0.5 for side in (stored[1], stored[0])])
    shrunk = transform.matrix.copy()
    shrunk[:, :2] *= _PASTED_SCALE
    shrunk[:, 2] += (transform.matrix - shrunk)[:, :2] @ middle  # about the picture's middle, which stays
    return Paste(number, dataclasses.replace(transform, matrix=shrunk))


def paste(
    pictures: Tensor, targets: Tensor, others: Tensor, other_targets: Tensor, places: Sequence[int]
) -> None:
    """Paste objects of one class into the samples of a batch, in place.

    Args:
        pictures, targets: of the batch, as `apply` gives them for one class.
        others, other_targets: what holds the objects, as `apply` gives it.
        places: the sample of the batch that each goes into.
    """
    which = torch.tensor(places, device=pictures.device)
    covered = (other_targets[:, 0] * other_targets[:, 1])[:, None]
    pictures[which] = torch.lerp(pictures[which], others, covered)
    # All that was pasted is the class, and known to be.
    targets[which] = torch.lerp(targets[which], torch.ones_like(other_targets), covered)


def apply(
    pictures: Tensor, targets: Tensor, known: Tensor, transforms: Sequence[Transform], size: Size
) -> tuple[Tensor, Tensor]:
    """Transform a batch: pictures and targets together, colours of the pictures alone.

    Args:
        pictures: uint8 (N, h, w, channels).
        targets: uint8 (N, h, w): ids with VOID, or, where `known` says so, coverage 0..255 of the only class.
        known: uint8 (N, h, w), 255 where the target counts; empty for targets that are ids.
        transforms: one for each sample.
        size: (H, W) of the result: the network's, or that of the window of it.

    Returns:
        float32 pictures (N, channels, H, W), 0..1, channels_last, PAD_VALUE outside of the stored sample; and
        the targets: int64 ids (N, H, W) with VOID outside, or float32 (N, 2, H, W), coverage 0..1 and how far
        it is known, 0 outside.
    """
    device = pictures.device
    matrix = torch.from_numpy(np.array([transform.matrix for transform in transforms], np.float32)).to(device)
    places = _sampling_grid(transforms, size, device)

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
    return _apply_colour(x, transforms).contiguous(memory_format=torch.channels_last), y


def _sampling_grid(
    transforms: Sequence[Transform], size: Size, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Compute where each pixel of the input comes from in the stored sample, if there are displacements.

    Returns:
        x and y, float32 (N, H, W); None where all transforms are affine.
    """
    if all(transform.displacement is None for transform in transforms):
        return None
    flat = np.zeros((2, 4, 4), np.float32)
    lattice = np.array(
        [flat if transform.displacement is None else transform.displacement for transform in transforms]
    )
    beside = F.interpolate(torch.from_numpy(lattice).to(device), size, mode="bicubic", align_corners=True)
    rows, columns = (torch.arange(length, dtype=torch.float32, device=device) for length in size)
    x, y = columns + beside[:, 0], rows[:, None] + beside[:, 1]
    # Inverted in float64 on the CPU: the same on every device.
    whole = np.array([np.vstack([transform.matrix, (0, 0, 1)]) for transform in transforms])
    undone = torch.from_numpy(np.linalg.inv(whole).astype(np.float32)).to(device)[:, :2, :, None, None]
    return tuple(undone[:, row, 0] * x + undone[:, row, 1] * y + undone[:, row, 2] for row in (0, 1))  # type: ignore[return-value]


def _apply_colour(x: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Colour, blur and noise, each for the samples that have it; float (N, channels, H, W), 0..1."""
    device = x.device

    def some(values: Sequence[bool]) -> Tensor:
        return torch.tensor([index for index, value in enumerate(values) if value], device=device)

    is_colour = x.shape[1] == 3
    coloured = [transform for transform in transforms if transform.gain]
    if coloured:
        which = some([bool(transform.gain) for transform in transforms])
        gain = torch.tensor(
            [transform.gain for transform in coloured], dtype=torch.float32, device=device
        ).view(len(coloured), -1, 1, 1)
        brightness = torch.tensor(
            [transform.brightness for transform in coloured], dtype=torch.float32, device=device
        )
        saturation = torch.tensor(
            [transform.saturation for transform in coloured], dtype=torch.float32, device=device
        )
        part = kornia.enhance.adjust_brightness(x[which] * gain, brightness)
        if is_colour:
            part = kornia.enhance.adjust_saturation_with_gray_subtraction(part, saturation)
        x = x.index_copy(0, which, part)
    if is_colour and (turned := [transform.hue for transform in transforms if transform.hue]):
        which = some([transform.hue != 0 for transform in transforms])
        hue = torch.tensor(turned, dtype=torch.float32, device=device)
        x = x.index_copy(0, which, kornia.enhance.adjust_hue(x[which], hue))
    if blurred := [transform.blur for transform in transforms if transform.blur]:
        which = some([transform.blur > 0 for transform in transforms])
        sigma = torch.tensor(blurred, dtype=torch.float32, device=device)[:, None].repeat(1, 2)
        x = x.index_copy(0, which, kornia.filters.gaussian_blur2d(x[which], (7, 7), sigma, "replicate"))
    if noisy := [transform for transform in transforms if transform.noise]:
        which = some([transform.noise > 0 for transform in transforms])
        grain = [  # drawn on the CPU: the same on every device
            transform.noise
            * torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(transform.seed))
            for transform in noisy
        ]
        x = x.index_copy(0, which, (x[which] + torch.stack(grain).to(device)).clamp(0, 1))
    return x
