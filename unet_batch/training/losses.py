"""What a training makes smaller: cross-entropy, pixel by pixel, plus soft Dice, region by region. Void counts
in neither.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_batch.datasets.encoding import VOID


def loss_of(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, dice: Literal["batch", "picture"] = "batch"
) -> Tensor:
    """Cross-entropy plus 1 - soft Dice, as one number.

    Args:
        logits: float32 (N, C, H, W).
        target: for C = 1 float32 (N, 2, H, W), how much of each pixel the class covers, and how far that is
            known, both 0..1: pixels at edges learn their share. Else int64 ids (N, H, W), VOID where nothing
            is known.
        weights: of the classes in the cross-entropy, float32 (C,); None for equal ones.
        dice: of a class over the whole batch, or the mean of the pictures': there one with few pixels of it
            counts as much as one with many.
    """
    over = (0, 1, 2) if dice == "batch" else (1, 2)
    if logits.shape[1] == 1:
        return _one(logits[:, 0], target[:, 0], target[:, 1], over)
    return _several(logits, target, weights, over)


def _one(logits: Tensor, coverage: Tensor, known: Tensor, over: tuple[int, ...]) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, coverage, reduction="none")
    entropy = (entropy * known).sum() / known.sum().clamp(min=1)
    probability, coverage = logits.sigmoid() * known, coverage * known
    # The smaller of both, where the product would do for masks without shares: it drives a pixel that is
    # covered by 0.9 to 1. The 1 keeps regions without the class finite, and gives them a gradient.
    overlap = 2 * torch.minimum(probability, coverage).sum(over) + 1
    return entropy + 1 - (overlap / (probability.sum(over) + coverage.sum(over) + 1)).mean()


def _several(logits: Tensor, ids: Tensor, weights: Tensor | None, over: tuple[int, ...]) -> Tensor:
    classes = logits.shape[1]
    known = ids != VOID
    entropy = F.cross_entropy(logits, ids, weights, ignore_index=VOID, reduction="sum")
    pixels = known.sum() if weights is None else weights[ids[known]].sum()
    probability = (logits.softmax(1) * known[:, None]).movedim(1, -1)
    truth = ids[..., None] == torch.arange(classes, device=ids.device)  # a byte, where F.one_hot takes eight
    overlap = 2 * (probability * truth).sum(over) + 1
    size = truth.sum(over)
    total = probability.sum(over) + size + 1
    present = size > 0  # a class that batch or picture lacks has no region to fit
    dice = torch.where(present, overlap / total, 0).sum() / present.sum().clamp(min=1)
    return entropy / pixels.clamp(min=1) + 1 - dice


def class_weights(shares: list[float]) -> Tensor:
    """Weights for classes that make up these shares of the pixels: the rarer, the heavier, by the square
    root.

    Inverse shares themselves would let a class of 0.1 % outweigh the rest, and be painted everywhere. Mean 1
    over all pixels; no weight exceeds ten; classes that never occur weigh nothing.
    """
    share = torch.tensor(shares, dtype=torch.float32)
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0)
    return (weights / (weights * share).sum().clamp(min=1e-12)).clamp(max=10)
