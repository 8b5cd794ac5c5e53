"""The training itself: steps, validation after each epoch, and a state from which it can be taken up to the
bit.

Everything random is drawn from (seed, epoch, number of the picture), so a step depends on the state before it
and on nothing else. On several processes (torchrun) each takes its share of every batch.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_batch.datasets.encoding import VOID
from unet_batch.errors import TrainingError
from unet_batch.evaluation import metrics
from unet_batch.files.atomic import clean_leftovers, make_folder, remove, write_atomic
from unet_batch.model import checkpoint
from unet_batch.model.unet import UNet
from unet_batch.training import augment, losses, state
from unet_batch.training.plan import Plan
from unet_batch.training.ranks import Ranks
from unet_batch.training.samples import OVERSAMPLING, Batch, Samples, batches, memory_budget
from unet_batch.version import __version__

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAVE_SECONDS = 600.0  # at most so much is lost in an epoch that takes hours
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class StepReport:
    """Where the training is: epoch from 1, steps of it that are done and in all, mean loss so far, pictures a
    second.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    speed: float


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        history: a record of each epoch.
        best: the epoch, from 1, whose weights the model holds.
        ended: "all epochs", "no improvement" or "interrupted".
        seconds: over all runs.
    """

    history: tuple[dict[str, Any], ...]
    best: int
    ended: str
    seconds: float


@dataclass(eq=False)
class _Trainee:
    """The network and all that changes with it."""

    plan: Plan
    ranks: Ranks
    model: UNet
    mean: UNet
    network: nn.Module  # `model` as it is called in a step
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    weights: Tensor | None = None  # of the classes
    progress: state.Progress = field(default_factory=state.Progress)

    @property
    def state_file(self) -> str:
        return os.path.join(self.plan.folder, "state.safetensors")


def train(
    plan: Plan,
    *,
    shares: Sequence[float] = (),
    ranks: Ranks | None = None,
    resume: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[Sequence[dict[str, Any]]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train, and write the model whenever an epoch makes it better.

    Args:
        plan: what to do.
        shares: of the classes in the pixels, for their weights; empty for equal weights. A training that is
            taken up keeps its.
        ranks: this process among others.
        resume: take up the state that an interrupted training left.
        on_step, on_epoch: hear of the progress; the latter gets the records of all epochs that are over.
        stop: asked after each step; True saves the state and ends.

    Raises:
        TrainingError: the loss is not finite, or the state to resume does not fit.
        ImageError: a file cannot be read, or a mask does not fit its picture.
        OutputError: model or state cannot be written.
    """
    ranks = ranks or Ranks()
    if plan.device.type == "cuda":
        torch.cuda.set_device(plan.device if plan.device.index is not None else torch.cuda.current_device())
    with _deterministic(plan):
        trainee = _prepare(plan, ranks)
        trainee.progress.shares = list(shares)
        if resume:
            trainee.progress = state.load(
                trainee.state_file, trainee.model, trainee.mean, trainee.optimizer, plan.fingerprint
            )
            if trainee.scaler.is_enabled():
                trainee.scaler.load_state_dict(trainee.progress.scaler)
            _require_kept(plan, trainee.progress)
        elif ranks.leads:
            _begin(plan)
        if (
            len(plan.spec.classes.names) > 1
            and trainee.progress.shares
            and plan.options.class_weights == "auto"
        ):
            trainee.weights = losses.class_weights(trainee.progress.shares).to(plan.device)
        with _memory(plan, ranks):
            return _run(trainee, on_step, on_epoch, stop)


def _begin(plan: Plan) -> None:
    """Make the folder, without what an earlier training left there: nothing may be taken up from it, or said
    of it.
    """
    make_folder(plan.folder)
    names = ("state.safetensors", "metrics.jsonl", "results.json", "curves.png", "sheet.jpg", "val.txt")
    remove([plan.card, *(os.path.join(plan.folder, name) for name in names)])
    shutil.rmtree(os.path.join(plan.folder, "tensorboard"), ignore_errors=True)
    clean_leftovers(plan.folder)
    listed = "".join(f"{pair.key}\n" for pair in plan.val)
    write_atomic(os.path.join(plan.folder, "val.txt"), listed.encode("utf-8", "surrogateescape"))


def _require_kept(plan: Plan, progress: state.Progress) -> None:
    """The model beside a state holds the epoch that the state says, or the one that will be done again.

    Raises:
        TrainingError: it does not, or is gone.
        CheckpointError: it is damaged.
    """
    clean_leftovers(plan.folder)
    if not progress.history:
        return
    hint = "--overwrite begins again"
    if not os.path.exists(plan.output):
        raise TrainingError(f"{plan.output}: is gone; it held the weights to keep", hint=hint)
    holds, kept = (
        checkpoint.identify(plan.output).spec.training.get("epoch"),
        kept_epoch(plan, progress.history),
    )
    if holds not in (kept, len(progress.history) + 1):
        raise TrainingError(f"{plan.output}: holds epoch {holds}, the training kept epoch {kept}", hint=hint)


@contextmanager
def _memory(plan: Plan, ranks: Ranks) -> Iterator[None]:
    """Say what helps where the memory does not suffice."""
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


def _prepare(plan: Plan, ranks: Ranks) -> _Trainee:
    options, device = plan.options, plan.device
    torch.manual_seed(options.seed)
    model = UNet(plan.spec.in_channels, len(plan.spec.classes.names), plan.spec.widths)
    if plan.init:
        start = checkpoint.load(plan.init).model.state_dict()
        if plan.new_head:
            start = {name: value for name, value in start.items() if not name.startswith("head.")}
        model.load_state_dict(start, strict=not plan.new_head)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if ranks.count > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    mean = copy.deepcopy(model).requires_grad_(False).eval()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, fused=device.type in ("cpu", "cuda"))
    network: nn.Module = _Mixed(model, plan)
    if ranks.count > 1:
        network = nn.parallel.DistributedDataParallel(network)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    return _Trainee(plan, ranks, model, mean, network, optimizer, scaler)


class _Mixed(nn.Module):
    """Pictures 0..1 to logits: normalised, the body in the plan's precision, the head in float32."""

    middle: Tensor
    spread: Tensor

    def __init__(self, model: UNet, plan: Plan) -> None:
        super().__init__()
        self.model = model
        self.dtype, self.device_type = _DTYPES[plan.precision], plan.device.type
        for name, value in (("middle", plan.spec.mean), ("spread", plan.spec.std)):
            self.register_buffer(name, torch.tensor(value, device=plan.device).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures - self.middle) / self.spread
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.model.features(x)
        logits: Tensor = self.model.head(features.float())
        return logits


def _run(
    trainee: _Trainee,
    on_step: Callable[[StepReport], None] | None,
    on_epoch: Callable[[Sequence[dict[str, Any]]], None] | None,
    stop: Callable[[], bool],
) -> Outcome:
    plan, ranks, progress, options = trainee.plan, trainee.ranks, trainee.progress, trainee.plan.options
    budget = memory_budget() // ranks.count
    scale = 1 if options.augment == "none" and options.flip != "any" else OVERSAMPLING
    training = Samples(plan.dataset, plan.train, plan.spec.input_size, scale, budget * 4 // 5)
    validation = Samples(plan.dataset, plan.val, plan.spec.input_size, 1, budget // 5)
    begun = time.monotonic() - progress.seconds

    def save() -> None:
        progress.seconds = time.monotonic() - begun
        progress.scaler = trainee.scaler.state_dict()
        if ranks.leads:
            state.save(
                trainee.state_file, trainee.model, trainee.mean, trainee.optimizer, progress, plan.fingerprint
            )

    ended = "all epochs"
    while len(progress.history) < options.epochs:
        if (
            options.patience
            and len(progress.history) - best_epoch(plan, progress.history) >= options.patience
        ):
            ended = "no improvement"
            break
        epoch_begun = time.monotonic()
        if not _epoch(trainee, training, on_step, stop, save):
            return Outcome(
                tuple(progress.history), kept_epoch(plan, progress.history), "interrupted", progress.seconds
            )
        counts, loss = _validate(trainee, validation)
        _finite(plan, loss, progress)
        progress.history.append(
            _record(trainee, counts, loss, time.monotonic() - epoch_begun, time.monotonic() - begun)
        )
        progress.loss = 0.0
        if ranks.leads:
            if options.keep == "last" or best_epoch(plan, progress.history) == len(progress.history):
                _write_model(plan, trainee.mean, progress.history)
            lines = "".join(json.dumps(record) + "\n" for record in progress.history)
            write_atomic(os.path.join(plan.folder, "metrics.jsonl"), lines.encode())
        save()  # last: a training killed before repeats the epoch, and writes the same files again
        if ranks.leads and on_epoch is not None:
            on_epoch(progress.history)
        if ranks.any(stop(), plan.device):
            ended = "interrupted"
            break
    ranks.wait()
    return Outcome(tuple(progress.history), kept_epoch(plan, progress.history), ended, progress.seconds)


def _epoch(
    trainee: _Trainee,
    samples: Samples,
    on_step: Callable[[StepReport], None] | None,
    stop: Callable[[], bool],
    save: Callable[[], None],
) -> bool:
    """What is left of the epoch; False if it was stopped."""
    plan, ranks, progress = trainee.plan, trainee.ranks, trainee.progress
    epoch = len(progress.history)
    done = progress.step - epoch * plan.steps  # all of them, if it was stopped before its validation
    total = torch.tensor(progress.loss, dtype=torch.float64)
    if plan.device.type != "mps":  # which has no float64
        total = total.to(plan.device)
    saved = reported = begun = time.monotonic()
    trainee.model.train()
    # Closed here, also where a step fails: its threads end, and cv2 gets its own back.
    with closing(_training_batches(plan, ranks, samples, epoch, done)) as stream:
        for position, batch in enumerate(stream, done + 1):
            loss = _step(trainee, batch)
            ranks.average([loss])
            total += loss.to(total.device)
            progress.step += 1
            now = time.monotonic()
            if (
                on_step is not None
                and ranks.leads
                and (now - reported > _REPORT_SECONDS or position == plan.steps)
            ):
                reported = now
                speed = (position - done) * plan.batch_size / (now - begun)
                on_step(StepReport(epoch + 1, position, plan.steps, total.item() / position, speed))
            stopping = ranks.any(stop(), plan.device)
            if stopping or (ranks.leads and now - saved > _SAVE_SECONDS):
                saved, progress.loss = now, _finite(plan, total.item(), progress)
                save()
            if stopping:
                return False
    progress.loss = _finite(plan, total.item(), progress)
    return True


def epoch_order(plan: Plan, epoch: int) -> list[int]:
    """Numbers of the training samples in the order of an epoch, counted from 0."""
    return [
        int(number) for number in np.random.default_rng((plan.options.seed, epoch)).permutation(plan.samples)
    ]


def _training_batches(
    plan: Plan, ranks: Ranks, samples: Samples, epoch: int, done: int
) -> Generator[Batch, None, None]:
    options, preset = plan.options, augment.PRESETS[plan.options.augment]
    order = epoch_order(plan, epoch)
    whole = [order[step * plan.batch_size : (step + 1) * plan.batch_size] for step in range(done, plan.steps)]

    def change(number: int) -> augment.Change:
        key = (options.seed, epoch, number)
        return augment.draw(preset, options.flip, samples.stored, samples.size, key, crop=options.crop)

    return batches(
        samples, [ranks.share(numbers) for numbers in whole], change, plan.device, plan.training_size
    )


def _step(trainee: _Trainee, batch: Batch) -> Tensor:
    """One change of the weights; the loss, detached."""
    plan, progress, scaler = trainee.plan, trainee.progress, trainee.scaler
    for group in trainee.optimizer.param_groups:
        group["lr"] = plan.lr * rate(progress.step, plan.steps * plan.options.epochs)
    loss = losses.loss_of(trainee.network(batch.pictures), batch.targets, trainee.weights, plan.options.dice)
    trainee.optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(trainee.optimizer)
    nn.utils.clip_grad_norm_(trainee.model.parameters(), plan.options.clip)
    before = scaler.get_scale() if scaler.is_enabled() else 1.0
    scaler.step(trainee.optimizer)
    scaler.update()
    progress.updates += not scaler.is_enabled() or scaler.get_scale() >= before
    if plan.device.type != "cuda":  # there SyncBatchNorm keeps them equal
        trainee.ranks.average([buffer for buffer in trainee.model.buffers() if buffer.is_floating_point()])
    _average(trainee.mean, trainee.model, progress.step, plan.steps * plan.options.epochs)
    return loss.detach()


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step of `steps`: a linear warm-up, then a cosine down to a
    thousandth.
    """
    warm_up = min(200, steps // 10 + 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _average(mean: UNet, model: UNet, step: int, steps: int) -> None:
    """Exponential mean of the weights, over a tenth of the training at most: steadier than the last
    step's.
    """
    weight = max(1 / min(500, max(10, steps // 10)), 10 / (step + 11))
    with torch.no_grad():
        for old, new in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:
                old.copy_(new)


def _validate(trainee: _Trainee, samples: Samples) -> tuple[list[metrics.Counts], float]:
    """Counts of every validation picture at the network's size, and the mean loss, both of the averaged
    weights.
    """
    plan, ranks = trainee.plan, trainee.ranks
    numbers = ranks.share(range(len(samples)))
    order = [numbers[start : start + plan.batch_size] for start in range(0, len(numbers), plan.batch_size)]
    still = augment.draw(augment.PRESETS["none"], "none", samples.stored, samples.size, (0,))
    network = _Mixed(trainee.mean, plan)
    ids = max(2, len(plan.spec.classes.names))
    counts: list[metrics.Counts] = []
    lost: list[float] = []
    with torch.inference_mode(), closing(batches(samples, order, lambda _: still, plan.device)) as stream:
        for batch in stream:
            logits = network(batch.pictures)
            loss = losses.loss_of(logits, batch.targets, trainee.weights, plan.options.dice)
            lost += [loss.item()] * len(batch.numbers)
            if logits.shape[1] == 1:
                found = (logits[:, 0] > 0).long()
                truth = torch.where(batch.targets[:, 1] >= 0.5, (batch.targets[:, 0] >= 0.5).long(), VOID)
            else:
                found, truth = logits.argmax(1), batch.targets
            for number, one, other in zip(batch.numbers, found.cpu(), truth.cpu(), strict=True):
                known = other != VOID
                confusion = torch.bincount(ids * other[known] + one[known], minlength=ids * ids).view(
                    ids, ids
                )
                pair = samples.pairs[number]
                counts.append(
                    metrics.Counts(pair.key, pair.group, confusion.numpy(), np.zeros((ids, 4), np.int64))
                )
    return ranks.gather(counts), float(np.mean(ranks.gather(lost)))


def _record(
    trainee: _Trainee, counts: Sequence[metrics.Counts], loss: float, seconds: float, since: float
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    plan, progress = trainee.plan, trainee.progress
    found = metrics.scores(counts)
    one = len(plan.spec.classes.names) == 1
    ids = (1,) if one else range(len(plan.spec.classes.names))
    dice, iou = (found.mean(key, ids, per_picture=one) for key in ("dice", "iou"))
    return {
        "epoch": len(progress.history) + 1,
        "step": progress.step,
        "loss": progress.loss / plan.steps,
        "val_loss": loss,
        "val_dice": None if math.isnan(dice) else dice,
        "val_iou": None if math.isnan(iou) else iou,
        "val_accuracy": None if math.isnan(found.accuracy) else found.accuracy,
        "lr": plan.lr * rate(progress.step - 1, plan.steps * plan.options.epochs),
        "seconds": round(seconds, 1),
        "total_seconds": round(since, 1),
    }


def seconds_per_step(plan: Plan, steps: int = 3) -> float:
    """Time a few steps on noise, apart from loading; the median. For an estimate before the training."""
    trainee = _prepare(plan, Ranks())
    height, width = plan.training_size
    names = plan.spec.classes.names
    pictures = torch.rand(plan.batch_size, 3, height, width).contiguous(memory_format=torch.channels_last)
    shape = (plan.batch_size, 2, height, width) if len(names) == 1 else (plan.batch_size, height, width)
    targets = torch.ones(shape) if len(names) == 1 else torch.zeros(shape, dtype=torch.int64)
    batch = Batch(pictures.to(plan.device), targets.to(plan.device), ())
    trainee.model.train()
    taken = []
    with _memory(plan, Ranks()):
        for _ in range(steps + 1):
            begun = time.monotonic()
            _step(trainee, batch).item()  # waits for the GPU
            taken.append(time.monotonic() - begun)
    return float(np.median(taken[1:]))  # the first one warms up


def judged_by(plan: Plan) -> str:
    """The figure that decides which epoch is best: Dice of the only class, else the mean IoU."""
    return "val_dice" if len(plan.spec.classes.names) == 1 else "val_iou"


def kept_epoch(plan: Plan, history: Sequence[dict[str, Any]]) -> int:
    """The epoch, from 1, whose weights the model holds; 0 before the first."""
    return len(history) if plan.options.keep == "last" else best_epoch(plan, history)


def best_epoch(plan: Plan, history: Sequence[dict[str, Any]]) -> int:
    """The first epoch, from 1, with the best figure; 0 before the first. Nothing to find and nothing found is
    perfect, but if there never was anything to find, the last epoch is as good as any.
    """
    figures = [record[judged_by(plan)] for record in history]
    if all(figure is None for figure in figures):
        return len(history)
    scores = [1.0 if figure is None else figure for figure in figures]
    return scores.index(max(scores)) + 1 if scores else 0


def _write_model(plan: Plan, mean: UNet, history: Sequence[dict[str, Any]]) -> None:
    training = {
        "epoch": len(history),
        "epochs": plan.options.epochs,
        "seed": plan.options.seed,
        "pictures": len(plan.train),
        "validation": {key: value for key, value in history[-1].items() if key.startswith("val_")},
        "versions": {
            "unet-batch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    # On the disk before the state that rests on it is.
    checkpoint.save(plan.output, mean, replace(plan.spec, training=training), sync=True)


def _finite(plan: Plan, loss: float, progress: state.Progress) -> float:
    if not math.isfinite(loss):
        epoch, step = divmod(progress.step, plan.steps)
        when = f"in epoch {epoch + 1}, step {step:,}" if step else f"after epoch {epoch}"
        held = f"; {plan.output} holds epoch {kept_epoch(plan, progress.history)}" if progress.history else ""
        hint = f"--lr {plan.lr / 3:.1g}, or --precision fp32"
        raise TrainingError(f"the loss is {loss} {when}: the training diverged{held}", hint=hint)
    return loss


@contextmanager
def _deterministic(plan: Plan) -> Iterator[None]:
    """A GPU's fastest kernels add in any order; a CPU's do not."""
    if plan.device.type != "cuda":
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
