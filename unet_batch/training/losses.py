"""The training loss: cross-entropy plus soft Dice; void pixels are ignored.

A new loss is a function here and a branch of `segmentation_loss`, chosen by an option of `training.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_batch.datasets.encoding import VOID


def segmentation_loss(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, dice: Literal["batch", "picture"] = "batch"
) -> Tensor:
    """Cross-entropy plus 1 - soft Dice, as one number.

    Args:
        logits: float32 (N, C, H, W).
        target: for C = 1 float32 (N, 2, H, W), how much of each pixel the class covers, and how far that is
            known, both 0..1: pixels at edges learn their share. Else int64 ids (N, H, W), VOID where nothing
            is known.
        weights: of the classes in the cross-entropy, float32 (C,); None for equal ones.
        dice: "batch" computes the Dice of a class over the whole batch, "picture" the mean of the pictures':
            there one with few pixels of the class counts as much as one with many.
    """
    axes = (0, 1, 2) if dice == "batch" else (1, 2)
    if logits.shape[1] == 1:
        return _binary_loss(logits[:, 0], target[:, 0], target[:, 1], axes)
    return _multiclass_loss(logits, target, weights, axes)


def _binary_loss(logits: Tensor, coverage: Tensor, known: Tensor, axes: tuple[int, ...]) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, coverage, reduction="none")
    entropy = (entropy * known).sum() / known.sum().clamp(min=1)
    probability, coverage = logits.sigmoid() * known, coverage * known
    # The smaller of both: the product, which would do for masks without shares, drives a pixel covered by
    # 0.9 to 1. With O the overlap and T the total, a probability changes the quotient by (2 T - O) / T^2 >
    # 0 below its share and by -O / T^2 above, whatever the other pixels are: the best is the share itself,
    # as it is of the entropy, so that a probability can be a target, too. The 1 keeps regions without the
    # class finite, and gives them a gradient.
    overlap = 2 * torch.minimum(probability, coverage).sum(axes) + 1
    return entropy + 1 - (overlap / (probability.sum(axes) + coverage.sum(axes) + 1)).mean()


def _multiclass_loss(logits: Tensor, ids: Tensor, weights: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    classes = logits.shape[1]
    known = ids != VOID
    entropy = F.cross_entropy(logits, ids, weights, ignore_index=VOID, reduction="sum")
    pixels = known.sum() if weights is None else weights[ids[known]].sum()
    probability = (logits.softmax(1) * known[:, None]).movedim(1, -1)
    truth = ids[..., None] == torch.arange(classes, device=ids.device)  # a byte, where F.one_hot takes eight
    overlap = 2 * (probability * truth).sum(axes) + 1
    size = truth.sum(axes)
    total = probability.sum(axes) + size + 1
    present = size > 0  # a class that batch or picture lacks has no region to fit
    dice = torch.where(present, overlap / total, 0).sum() / present.sum().clamp(min=1)
    return entropy / pixels.clamp(min=1) + 1 - dice


def class_weights(frequencies: Sequence[float]) -> Tensor:
    """Weight classes by the inverse square root of their frequencies, float32 (classes,).

    Inverse frequencies themselves would let a class of 0.1 % outweigh the rest, and be painted everywhere.
    Mean 1 over all pixels; no weight exceeds ten; classes that never occur weigh nothing.
    """
    share = torch.tensor(frequencies, dtype=torch.float32)
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0)
    return (weights / (weights * share).sum().clamp(min=1e-12)).clamp(max=10)
