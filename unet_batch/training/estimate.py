"""What a training will take, estimated before it starts: memory, and time from a few steps on noise."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from unet_batch.training.plan import TrainingPlan
from unet_batch.training.ranks import Ranks
from unet_batch.training.samples import OVERSAMPLING, Batch, memory_budget
from unet_batch.training.step import build_state, explain_out_of_memory, train_step


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes and time in seconds.

    Attributes:
        weights_bytes: weights, gradients, AdamW's two moments and the averaged weights.
        activation_bytes: what a batch keeps for the backward pass.
        samples_bytes: all samples decoded.
        cached: share of the samples that stays in memory (0..1); the rest is decoded again each epoch.
        step_seconds: of one step.
        epoch_seconds: of one epoch with its validation.
    """

    weights_bytes: int
    activation_bytes: int
    samples_bytes: int
    cached: float
    step_seconds: float
    epoch_seconds: float


def estimate(plan: TrainingPlan) -> Estimate:
    """Estimate memory and time of a training by timing a few steps of it.

    Raises:
        TrainingError: the memory does not hold a batch.
    """
    height, width = plan.spec.input_size
    # Channels, and coverage with how far it is known, or ids
    bytes_each = plan.spec.in_channels + (2 if len(plan.spec.classes.names) == 1 else 1)
    stored = height * width * bytes_each * (OVERSAMPLING**2 * len(plan.train) + len(plan.val))
    seconds = seconds_per_step(plan)
    # A validation picture costs a third of a training picture: it has no backward pass.
    validation_steps = len(plan.val) * plan.windows / plan.batch_size / 3
    return Estimate(
        weights_bytes=plan.weights_bytes,
        activation_bytes=plan.batch_size * plan.activation_bytes,
        samples_bytes=stored,
        cached=min(stored, memory_budget()) / stored,
        step_seconds=seconds,
        epoch_seconds=seconds * (plan.steps + validation_steps),
    )


def seconds_per_step(plan: TrainingPlan, steps: int = 3) -> float:
    """Time a few steps on noise, without loading pictures; the median in seconds."""
    state = build_state(plan, Ranks())
    height, width = plan.training_size
    names = plan.spec.classes.names
    pictures = torch.rand(plan.batch_size, plan.spec.in_channels, height, width)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    shape = (plan.batch_size, 2, height, width) if len(names) == 1 else (plan.batch_size, height, width)
    targets = torch.ones(shape) if len(names) == 1 else torch.zeros(shape, dtype=torch.int64)
    batch = Batch(pictures.to(plan.device), targets.to(plan.device), ())
    state.model.train()
    taken = []
    with explain_out_of_memory(plan, Ranks()):
        for _ in range(steps + 1):
            begun = time.monotonic()
            train_step(state, batch).item()  # waits for the GPU
            taken.append(time.monotonic() - begun)
    return float(np.median(taken[1:]))  # the first one warms up
