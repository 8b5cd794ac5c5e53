"""One training step: the network, its optimizer and its moving average, and how a batch changes them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unet_batch.errors import TrainingError
from unet_batch.model import checkpoint, pretrained
from unet_batch.model.architectures import build_network
from unet_batch.model.encoder_unet import EncoderUNet
from unet_batch.model.network import SegmentationNetwork, widen_first
from unet_batch.training import losses
from unet_batch.training.options import Options
from unet_batch.training.plan import TrainingPlan
from unet_batch.training.planar import with_planar_gradients
from unet_batch.training.ranks import Ranks
from unet_batch.training.samples import Batch
from unet_batch.training.state import Progress

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class TrainState:
    """The network and everything that a step changes with it.

    Attributes:
        plan: of the training.
        ranks: this process among others.
        model: the weights that the optimizer changes.
        ema: exponential moving average of these weights; it is validated and written.
        network: `model` as it is called in a step: normalised input, mixed precision, several processes.
        optimizer: AdamW.
        scaler: scales gradients in fp16; does nothing otherwise.
        class_weights: float32 (classes,) for the cross-entropy; None for equal ones.
        progress: steps, epochs and their figures so far.
    """

    plan: TrainingPlan
    ranks: Ranks
    model: SegmentationNetwork
    ema: SegmentationNetwork
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    class_weights: Tensor | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def state_file(self) -> str:
        """Where it is saved for --resume."""
        return os.path.join(self.plan.folder, "state.safetensors")

    @cached_property
    def averaged(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors of the moving average, each with the one that it follows.

        Both are changed in place only, so they need not be collected at each step.
        """
        return list(zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True))

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.plan.steps * self.plan.options.epochs


def build_state(plan: TrainingPlan, ranks: Ranks) -> TrainState:
    """Build network, moving average and optimizer, with the weights of `init` or random ones by the seed."""
    options, device = plan.options, plan.device
    torch.manual_seed(options.seed)
    model = build_network(plan.spec)
    if plan.init:
        start = checkpoint.load(plan.init).model.state_dict()
        start |= widen_first(start, model.in_channels)
        if plan.new_head:
            start = {name: value for name, value in start.items() if not name.startswith("head.")}
        model.load_state_dict(start, strict=not plan.new_head)
    elif plan.encoder_weights:
        assert isinstance(model, EncoderUNet)
        weights = pretrained.read_encoder(plan.encoder_weights, plan.spec.encoder, model.in_channels)
        model.encoder.load_state_dict(weights.tensors)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if ranks.count > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    if device.type == "cpu" and plan.precision == "fp32":
        with_planar_gradients(model)
    groups = _parameter_groups(model, options)
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, fused=device.type in ("cpu", "cuda"))
    network: nn.Module = MixedPrecision(model, plan)
    if ranks.count > 1:
        network = nn.parallel.DistributedDataParallel(network)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    return TrainState(plan, ranks, model, ema, network, optimizer, scaler)


def _parameter_groups(model: SegmentationNetwork, options: Options) -> list[dict[str, Any]]:
    """Parameters by their weight decay and their share of the learning rate, `lr_scale`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for matrices in (True, False):
        for name, parameter in model.named_parameters():
            if (parameter.dim() > 1) == matrices:
                scale = options.encoder_lr if name.startswith("encoder.") else 1.0
                decay = options.weight_decay if matrices else 0.0
                groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), members in groups.items()
    ]


class MixedPrecision(nn.Module):
    """Pictures 0..1 to logits: normalised, the body in the plan's precision, the head in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: SegmentationNetwork, plan: TrainingPlan) -> None:
        super().__init__()
        self.model = model
        self.dtype, self.device_type = _DTYPES[plan.precision], plan.device.type
        for name, value in (("mean", plan.spec.mean), ("std", plan.spec.std)):
            self.register_buffer(name, torch.tensor(value, device=plan.device).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """float32 (N, channels, H, W), 0..1 -> float32 logits (N, classes, H, W)."""
        x = (pictures - self.mean) / self.std
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.model.features(x)
        return self.model.upsample(self.model.head(features.float()), *pictures.shape[-2:])


def train_step(state: TrainState, batch: Batch) -> Tensor:
    """Change the weights by one batch; returns the loss, detached."""
    plan, progress, scaler = state.plan, state.progress, state.scaler
    for group in state.optimizer.param_groups:
        group["lr"] = plan.lr * group["lr_scale"] * lr_factor(progress.step, state.total_steps)
    logits = state.network(batch.pictures)
    loss = losses.segmentation_loss(logits, batch.targets, state.class_weights, plan.options.dice)
    state.optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(state.model.parameters(), plan.options.clip)
    before = scaler.get_scale() if scaler.is_enabled() else 1.0
    scaler.step(state.optimizer)
    scaler.update()
    progress.updates += not scaler.is_enabled() or scaler.get_scale() >= before
    if state.ranks.count > 1 and plan.device.type != "cuda":  # there SyncBatchNorm keeps them equal
        state.ranks.average([buffer for buffer in state.model.buffers() if buffer.is_floating_point()])
    _update_ema(state.averaged, progress.step, state.total_steps)
    return loss.detach()


def lr_factor(step: int, steps: int) -> float:
    """Factor of the learning rate at a step of `steps`: linear warm-up, then a cosine down to 0.001."""
    warm_up = min(200, steps // 10 + 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _update_ema(averaged: Sequence[tuple[Tensor, Tensor]], step: int, steps: int) -> None:
    """Move the average towards the weights; it spans a tenth of the training at most."""
    weight = max(1 / min(500, max(10, steps // 10)), 10 / (step + 11))
    with torch.no_grad():
        for old, new in averaged:
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:
                old.copy_(new)


# Around the steps -------------------------------------------------------------------------------------------


@contextmanager
def explain_out_of_memory(plan: TrainingPlan, ranks: Ranks) -> Iterator[None]:
    """Turn a lack of memory into a TrainingError that says which options need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU it is a RuntimeError like any other.
        known = any(text in str(error) for text in ("out of memory", "allocate memory", "not enough memory"))
        if not known and not isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise
        height, width = plan.training_size
        raise TrainingError(
            f"{plan.device}: its memory does not hold a batch of {plan.batch_size // ranks.count} at "
            f"{height}x{width}",
            hint=f"--batch-size {max(ranks.count, plan.batch_size // 2)}, a smaller --size or --crop, or "
            f"narrower --widths",
        ) from error


@contextmanager
def deterministic_if_asked(plan: TrainingPlan) -> Iterator[None]:
    """Choose a GPU's kernels: the fastest ones, or with --deterministic those that add in a fixed order."""
    if plan.device.type != "cuda":  # a CPU's kernels always add in the same order
        yield
        return
    if not plan.options.deterministic:
        # All batches have one shape: the search for the fastest kernels pays
        torch.backends.cudnn.benchmark = True
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = False  # an earlier training in this process may have left it on
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
