"""The training loop: epochs of steps, validation after each, and a state that resumes it exactly.

Everything random is drawn from (seed, epoch, number of the picture), so a step depends on the state before it
and on nothing else. On several processes (torchrun) each takes its share of every batch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from unet_batch.datasets.encoding import VOID
from unet_batch.errors import TrainingError
from unet_batch.evaluation import metrics
from unet_batch.files.atomic import clean_leftovers, make_folder, remove, write_atomic
from unet_batch.model import checkpoint
from unet_batch.model.network import SegmentationNetwork
from unet_batch.training import augment, losses
from unet_batch.training.plan import TrainingPlan
from unet_batch.training.ranks import Ranks
from unet_batch.training.samples import OVERSAMPLING, Batch, Samples, batches, memory_budget
from unet_batch.training.state import STATE, Progress, load_state, save_state
from unet_batch.training.step import (
    MixedPrecision,
    TrainState,
    build_state,
    deterministic_if_asked,
    explain_out_of_memory,
    lr_factor,
    train_step,
)
from unet_batch.version import __version__

_SAVE_SECONDS = 600.0  # at most so much is lost in an epoch that takes hours
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class StepReport:
    """Progress within an epoch.

    Attributes:
        epoch: from 1.
        step, steps: of the epoch: done, and in all.
        loss: mean of the epoch so far.
        speed: pictures a second.
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


def train(
    plan: TrainingPlan,
    *,
    class_frequencies: Sequence[float] = (),
    ranks: Ranks | None = None,
    resume: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[Sequence[dict[str, Any]]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train, and write the model whenever an epoch makes it better.

    Args:
        plan: what to do.
        class_frequencies: share of each class in the pixels (0..1), for their weights; empty for equal
            weights. A training that is resumed keeps its own.
        ranks: this process among others.
        resume: continue from the state that an interrupted training left; begin where there is none.
        on_step, on_epoch: called with the progress; the latter gets the records of all finished epochs.
        stop: asked after each step; True saves the state and ends.

    Raises:
        TrainingError: the loss is not finite, or the state to resume does not fit.
        ImageError: a file cannot be read, or a mask does not fit its picture.
        OutputError: model or state cannot be written.
    """
    ranks = ranks or Ranks()
    if plan.device.type == "cuda":
        torch.cuda.set_device(plan.device if plan.device.index is not None else torch.cuda.current_device())
    with deterministic_if_asked(plan):
        state = build_state(plan, ranks)
        state.progress.class_frequencies = list(class_frequencies)
        if resume and has_state(plan):
            state.progress = load_state(
                state.state_file, state.model, state.ema, state.optimizer, plan.fingerprint
            )
            if state.scaler.is_enabled():
                state.scaler.load_state_dict(state.progress.scaler)
            _restore_model(state)
        elif ranks.is_main:
            _clear_folder(state)
        if (
            len(plan.spec.classes.names) > 1
            and state.progress.class_frequencies
            and plan.options.class_weights == "auto"
        ):
            state.class_weights = losses.class_weights(state.progress.class_frequencies).to(plan.device)
        with explain_out_of_memory(plan, ranks):
            return _run_epochs(state, on_step, on_epoch, stop)


def has_state(plan: TrainingPlan) -> bool:
    """Whether a training has left something to go on with."""
    return os.path.exists(os.path.join(plan.folder, STATE))


def _clear_folder(state: TrainState) -> None:
    """Make the folder, and remove what an earlier training left there, but for its model.

    Where there is a model, the state is there from the beginning on: a training that is killed before its
    first epoch would else leave a model that --resume has no right to replace.
    """
    plan = state.plan
    make_folder(plan.folder)
    names = ("metrics.jsonl", "results.json", "curves.png", "sheet.jpg", *plan.validation_lists)
    remove([plan.card, *(os.path.join(plan.folder, name) for name in names)])
    shutil.rmtree(os.path.join(plan.folder, "tensorboard"), ignore_errors=True)
    clean_leftovers(plan.folder)
    for name, keys in plan.validation_lists.items():
        listed = "".join(f"{key}\n" for key in keys)
        write_atomic(os.path.join(plan.folder, name), listed.encode("utf-8", "surrogateescape"))
    if os.path.exists(plan.output):
        _save_state(state)
    else:
        remove([state.state_file])


def _save_state(state: TrainState) -> None:
    state.progress.scaler = state.scaler.state_dict()
    if state.ranks.is_main:
        save_state(
            state.state_file, state.model, state.ema, state.optimizer, state.progress, state.plan.fingerprint
        )


def _restore_model(state: TrainState) -> None:
    """Require that the model holds the epoch that the state says, and write it where the state still can.

    A training that was killed between both has a state at the end of an epoch, whose averaged weights are the
    model that is missing; later on they are not.

    Raises:
        TrainingError: it holds another, or is gone.
        CheckpointError: it is damaged.
    """
    plan, history = state.plan, state.progress.history
    clean_leftovers(plan.folder)
    if not history:
        return
    kept, before = kept_epoch(plan, history), kept_epoch(plan, history[:-1])
    there = os.path.exists(plan.output)
    if kept == len(history) and state.progress.step == kept * plan.steps:
        # Before the first epoch is over, what is there is what --overwrite was given for.
        holds = _epoch_of(plan) if there and before else before
        if holds == before:
            if state.ranks.is_main:
                _write_model(plan, state.ema, history)
            return
    hint = "--overwrite begins again"
    if not there:
        raise TrainingError(f"{plan.output}: is gone; it held the weights to keep", hint=hint)
    holds = _epoch_of(plan)
    if holds not in (kept, len(history) + 1):  # up to 0.2.0 the model was written before the state
        raise TrainingError(f"{plan.output}: holds epoch {holds}, the training kept epoch {kept}", hint=hint)


def _epoch_of(plan: TrainingPlan) -> object:
    """The epoch that the model says it holds."""
    return checkpoint.identify(plan.output).spec.training.get("epoch")


def _run_epochs(
    state: TrainState,
    on_step: Callable[[StepReport], None] | None,
    on_epoch: Callable[[Sequence[dict[str, Any]]], None] | None,
    stop: Callable[[], bool],
) -> Outcome:
    plan, ranks, progress, options = state.plan, state.ranks, state.progress, state.plan.options
    budget = memory_budget() // ranks.count
    scale = 1 if options.augment == "none" and options.flip != "any" else OVERSAMPLING
    size, how = plan.spec.input_size, (plan.options.range, plan.spec.in_channels)
    training = Samples(plan.dataset, plan.train, size, scale, budget * 4 // 5, *how)
    validation = Samples(plan.dataset, plan.val, size, 1, budget // 5, *how)
    begun = time.monotonic() - progress.seconds

    def save() -> None:
        progress.seconds = time.monotonic() - begun
        _save_state(state)

    ended = "all epochs"
    while len(progress.history) < options.epochs:
        if (
            options.patience
            and len(progress.history) - best_epoch(plan, progress.history) >= options.patience
        ):
            ended = "no improvement"
            break
        epoch_begun = time.monotonic()
        if not _train_epoch(state, training, on_step, stop, save):
            return Outcome(
                tuple(progress.history), kept_epoch(plan, progress.history), "interrupted", progress.seconds
            )
        counts, loss = validate(state, validation)
        _require_finite(plan, loss, progress)
        progress.history.append(
            epoch_record(state, counts, loss, time.monotonic() - epoch_begun, time.monotonic() - begun)
        )
        progress.loss = 0.0
        if ranks.is_main:
            lines = "".join(json.dumps(record) + "\n" for record in progress.history)
            write_atomic(os.path.join(plan.folder, "metrics.jsonl"), lines.encode())
        save()  # a training killed before repeats the epoch, one killed after it writes the model from it
        if ranks.is_main and kept_epoch(plan, progress.history) == len(progress.history):
            _write_model(plan, state.ema, progress.history)
        if ranks.is_main and on_epoch is not None:
            on_epoch(progress.history)
        if ranks.any(stop(), plan.device):
            ended = "interrupted"
            break
    ranks.barrier()
    return Outcome(tuple(progress.history), kept_epoch(plan, progress.history), ended, progress.seconds)


def _train_epoch(
    state: TrainState,
    samples: Samples,
    on_step: Callable[[StepReport], None] | None,
    stop: Callable[[], bool],
    save: Callable[[], None],
) -> bool:
    """Train the steps of the epoch that are left; returns False if it was stopped."""
    plan, ranks, progress = state.plan, state.ranks, state.progress
    epoch = len(progress.history)
    done = progress.step - epoch * plan.steps  # all of them, if it was stopped before its validation
    total = torch.tensor(progress.loss, dtype=torch.float64)
    if plan.device.type != "mps":  # which has no float64
        total = total.to(plan.device)
    saved = reported = begun = time.monotonic()
    state.model.train()
    if plan.is_plain(epoch):
        _hold_statistics(state.model)
    # Closed here, also where a step fails: its threads end, and cv2 gets its own back.
    with closing(training_batches(plan, ranks, samples, epoch, done)) as stream:
        for position, batch in enumerate(stream, done + 1):
            loss = train_step(state, batch)
            ranks.average([loss])
            total += loss.to(total.device)
            progress.step += 1
            now = time.monotonic()
            if (
                on_step is not None
                and ranks.is_main
                and (now - reported > _REPORT_SECONDS or position == plan.steps)
            ):
                reported = now
                speed = (position - done) * plan.batch_size / (now - begun)
                on_step(StepReport(epoch + 1, position, plan.steps, total.item() / position, speed))
            stopping = ranks.any(stop(), plan.device)
            if stopping or (ranks.is_main and now - saved > _SAVE_SECONDS):
                saved, progress.loss = now, _require_finite(plan, total.item(), progress)
                save()
            if stopping:
                return False
    progress.loss = _require_finite(plan, total.item(), progress)
    return True


def _hold_statistics(model: SegmentationNetwork) -> None:
    """Let BatchNorm use the statistics it has, as it will at run time.

    Those of a batch without augmentation may lack what all before it had: grey pictures that are no longer
    tinted leave channels that only see colour without any deviation to divide by (docs/log/2026-11-28.md).
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def epoch_order(plan: TrainingPlan, epoch: int) -> list[int]:
    """Numbers of the training samples in the order of an epoch.

    A number counts windows and repetitions too: the picture is the number modulo that of training pictures.
    """
    random = np.random.default_rng((plan.options.seed, epoch))
    pictures = len(plan.train)
    if len(plan.shares) == 1 and not plan.shares[0][2]:
        return [int(number) for number in random.permutation(plan.samples)]
    numbers = [
        repeat * pictures + member
        for members, whole, part in plan.shares
        for repeat in range(whole + 1)
        for member in (members if repeat < whole else sorted(random.permutation(members)[:part]))
    ]
    return [int(numbers[place]) for place in random.permutation(len(numbers))]


def training_batches(
    plan: TrainingPlan, ranks: Ranks, samples: Samples, epoch: int, done: int
) -> Generator[Batch, None, None]:
    """Load the batches of an epoch, or this process\'s share of each, from step `done` on."""
    options, preset = plan.options, augment.PRESETS[plan.options.augment]
    plain = plan.is_plain(epoch)
    if plain:
        preset = augment.PRESETS["none"]
    numbered = epoch_order(plan, epoch)
    whole = [
        numbered[step * plan.batch_size : (step + 1) * plan.batch_size] for step in range(done, plan.steps)
    ]

    channels = plan.spec.in_channels

    def transform(number: int) -> augment.Transform:
        key = (options.seed, epoch, number)
        return augment.draw(
            preset, options.flip, samples.stored, samples.size, key, crop=options.crop, channels=channels
        )

    def paste(number: int) -> augment.Paste | None:
        if plain or not options.paste:
            return None
        key = (options.seed, epoch, number, 1)
        return augment.draw_paste(
            options.paste, len(samples), samples.stored, samples.size, key, options.crop, channels
        )

    order = [ranks.share(numbers) for numbers in whole]
    return batches(samples, order, transform, plan.device, plan.training_size, paste)


def validate(state: TrainState, samples: Samples) -> tuple[list[metrics.Counts], float]:
    """Validate the averaged weights, at the network's size.

    Returns:
        The counts of every validation picture, and the mean loss.
    """
    plan, ranks = state.plan, state.ranks
    numbers = ranks.share(range(len(samples)))
    order = [numbers[start : start + plan.batch_size] for start in range(0, len(numbers), plan.batch_size)]
    still = augment.draw(augment.PRESETS["none"], "none", samples.stored, samples.size, (0,))
    network = MixedPrecision(state.ema, plan)
    ids = max(2, len(plan.spec.classes.names))
    counts: list[metrics.Counts] = []
    lost: list[float] = []
    with torch.inference_mode(), closing(batches(samples, order, lambda _: still, plan.device)) as stream:
        for batch in stream:
            logits = network(batch.pictures)
            loss = losses.segmentation_loss(logits, batch.targets, state.class_weights, plan.options.dice)
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


def epoch_record(
    state: TrainState, counts: Sequence[metrics.Counts], loss: float, seconds: float, since: float
) -> dict[str, Any]:
    """Make the record of an epoch: one line of metrics.jsonl."""
    plan, progress = state.plan, state.progress
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
        "lr": plan.lr * lr_factor(progress.step - 1, state.total_steps),
        "seconds": round(seconds, 1),
        "total_seconds": round(since, 1),
    }


def monitored_metric(plan: TrainingPlan) -> str:
    """The metric that decides which epoch is best: Dice of the only class, else the mean IoU."""
    return "val_dice" if len(plan.spec.classes.names) == 1 else "val_iou"


def kept_epoch(plan: TrainingPlan, history: Sequence[dict[str, Any]]) -> int:
    """The epoch, from 1, whose weights the model holds; 0 before the first."""
    return len(history) if plan.options.keep == "last" else best_epoch(plan, history)


def best_epoch(plan: TrainingPlan, history: Sequence[dict[str, Any]]) -> int:
    """The first epoch, from 1, with the best monitored metric; 0 before the first.

    Nothing to find and nothing found is perfect; if there never was anything to find, it is the last epoch.
    """
    figures = [record[monitored_metric(plan)] for record in history]
    if all(figure is None for figure in figures):
        return len(history)
    scores = [1.0 if figure is None else figure for figure in figures]
    return scores.index(max(scores)) + 1 if scores else 0


def _write_model(plan: TrainingPlan, ema: SegmentationNetwork, history: Sequence[dict[str, Any]]) -> None:
    """Write the averaged weights, with the epoch and its validation in the description."""
    training = {
        **plan.spec.training,
        "epoch": len(history),
        "epochs": plan.options.epochs,
        "seed": plan.options.seed,
        "pictures": len(plan.train),
        **plan.options.range_fact,
        "validation": {key: value for key, value in history[-1].items() if key.startswith("val_")},
        "versions": {
            "unet-batch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    # On the disk before the next state is, from which it could not be written any more.
    checkpoint.save(plan.output, ema, replace(plan.spec, training=training), sync=True)


def _require_finite(plan: TrainingPlan, loss: float, progress: Progress) -> float:
    """Return the loss, or raise TrainingError if it is not finite."""
    if not math.isfinite(loss):
        epoch, step = divmod(progress.step, plan.steps)
        when = f"in epoch {epoch + 1}, step {step:,}" if step else f"after epoch {epoch}"
        held = f"; {plan.output} holds epoch {kept_epoch(plan, progress.history)}" if progress.history else ""
        hint = f"--lr {plan.lr / 3:.1g}, or --precision fp32"
        raise TrainingError(f"the loss is {loss} {when}: the training diverged{held}", hint=hint)
    return loss
