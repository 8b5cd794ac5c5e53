"""The files beside a trained model: curves while it trains; sheet, figures and model card at its end.

| file                         | what                                                                       |
|------------------------------|----------------------------------------------------------------------------|
| `cars.safetensors`           | the model, with all of this in its description                             |
| `cars.md`                    | the model card                                                             |
| `cars.training/metrics.jsonl`| a record of each epoch                                                     |
| `cars.training/curves.png`   | loss and Dice or IoU, epoch by epoch                                       |
| `cars.training/sheet.jpg`    | image, truth, prediction, error: the best, middle and worst of validation  |
| `cars.training/val.txt`      | names of the validation images, for `unet-batch evaluate --split`          |
| `cars.training/val-studio.txt` | those of one of several datasets, as it calls them                      |
| `cars.training/results.json` | figures with their intervals                                               |
| `cars.training/state.safetensors` | what --resume needs; may be deleted when the training is over         |
"""

from __future__ import annotations

import dataclasses
import io
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import torch

import unet_batch
from unet_batch.datasets.sheet import comparison_sheet
from unet_batch.errors import ImageError, OutputError, TrainingError, UsageError
from unet_batch.evaluation.evaluate import Evaluation, comparison, evaluate
from unet_batch.evaluation.metrics import FEW_GROUPS, label
from unet_batch.files.atomic import make_folder, write_atomic, write_json
from unet_batch.media import geometry, images
from unet_batch.model import checkpoint
from unet_batch.training.loop import Outcome, kept_epoch, monitored_metric
from unet_batch.training.plan import TrainingPlan
from unet_batch.training.ranks import Ranks
from unet_batch.training.seen import domain_of
from unet_batch.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.types import ModelSpec

_DRAWING_SHARE = 0.05  # of the time, at most, goes into drawings between the first and the last
_LOOKED_AT = 64  # pictures whose scale is written down
_SHOWN = 4  # pictures of each kind on the sheet


@contextmanager
def lock_folder(plan: TrainingPlan, ranks: Ranks) -> Iterator[None]:
    """Lock the folder of a training against a second one.

    Raises:
        UsageError: one is running.
        OutputError: this file system cannot lock, or there is no right to.
    """
    if not ranks.is_main:
        yield
        return
    make_folder(plan.folder)
    lock = filelock.FileLock(os.path.join(plan.folder, "lock"), timeout=0)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, filelock.Timeout):
            raise OutputError(
                f"{lock.lock_file} cannot be locked: {error}", hint="choose another -o"
            ) from error
        raise UsageError(
            f"{plan.folder}: another training writes here", hint="wait for it, or choose another -o"
        ) from error
    try:
        yield
    finally:
        lock.release()


class Curves:
    """Draws the curves as the training goes on, and hands the records to TensorBoard if asked.

    A drawing takes a quarter of a second, as long as an epoch of a small dataset: it is left for later while
    the one before it is fresh, and made up for when the training ends.

    Args:
        plan: of the training.
        tensorboard: whether to write for TensorBoard, too.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, plan: TrainingPlan, tensorboard: bool = False) -> None:
        self.plan = plan
        self._pending: Sequence[dict[str, Any]] = ()
        self._due = 0.0
        self._writer: Any = None  # the class
        self._board: Any = None  # one of it, from the first epoch on: the folder is cleared before
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError(
                    "TensorBoard is not installed", hint='pip install "unet-batch[tensorboard]"'
                ) from error
            self._writer = SummaryWriter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()
        if error is None:
            self._draw()

    def add(self, history: Sequence[dict[str, Any]]) -> None:
        """Draw the curves with the last epoch, unless that has to wait, and log it to TensorBoard."""
        record, self._pending = history[-1], history
        if time.monotonic() >= self._due:
            self._draw()
        if self._writer is not None:
            self._board = self._board or self._writer(os.path.join(self.plan.folder, "tensorboard"))
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("epoch", "step"):
                    self._board.add_scalar(key.replace("val_", "validation/"), value, record["step"])
            self._board.flush()

    def _draw(self) -> None:
        if self._pending:
            begun = time.monotonic()
            write_atomic(os.path.join(self.plan.folder, "curves.png"), draw_curves(self.plan, self._pending))
            self._pending, ended = (), time.monotonic()
            self._due = ended + (ended - begun) / _DRAWING_SHARE


def draw_curves(plan: TrainingPlan, history: Sequence[dict[str, Any]]) -> bytes:
    """Draw loss (left) and the monitored metric (right), with the kept epoch marked, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    blue, orange, grey = "#2a5db0", "#d9722e", "#666666"
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(10, 3.8), dpi=120)
    FigureCanvasAgg(figure)
    # Margins as wide as any labels need: to find them out, everything would be drawn twice
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.07, "right": 0.985, "bottom": 0.13, "top": 0.86, "wspace": 0.15}
    )
    marker = "o" if len(epochs) < 30 else ""
    left.plot(
        epochs, [record["loss"] for record in history], color=blue, marker=marker, ms=3, label="training"
    )
    left.plot(
        epochs,
        [record["val_loss"] for record in history],
        color=orange,
        marker=marker,
        ms=3,
        label="validation",
    )
    left.set_yscale("log")
    for numbers in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        numbers(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    left.set_title("loss", loc="left", fontsize=10)
    left.legend(frameon=False)
    key = monitored_metric(plan)
    values = [np.nan if record[key] is None else record[key] for record in history]
    right.plot(epochs, values, color=orange, marker=marker, ms=3)
    kept = kept_epoch(plan, history) - 1
    right.plot(epochs[kept], values[kept], marker="o", ms=8, mfc="none", mec=grey, mew=1.5)
    classes = len(plan.spec.classes.names)
    what = label("dice_per_picture" if key == "val_dice" else "iou", classes)
    right.set_title(
        f"validation {what}, kept: {values[kept]:.4f} of epoch {epochs[kept]}", loc="left", fontsize=10
    )
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(plan.options.epochs, len(epochs)) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e3e3e3", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(plan.spec.name, fontsize=12, x=0.01, ha="left")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


# The end ----------------------------------------------------------------------------------------------------


def finish(
    plan: TrainingPlan, outcome: Outcome, progress: Callable[[str, float], None] = lambda stage, share: None
) -> Evaluation:
    """Evaluate the written model as `run` would use it, and write sheet, figures and model card.

    Args:
        plan: of the training.
        outcome: how it ended.
        progress: hears of each stage and its share.

    Raises:
        TrainingError: not one validation picture could be judged.
        OutputError: a file cannot be written.
    """
    total = len(plan.val)
    with unet_batch.load(plan.output, backend="torch", device=str(plan.device)) as segmenter:
        found = evaluate(
            plan.dataset,
            plan.val,
            segmenter,
            progress=lambda done: progress(f"judging {total:,} images", done / total),
        )
        if not found.photo.counts:
            raise TrainingError(
                f"none of {total:,} validation images could be judged: {found.failures[0].message}"
            )
        pairs = {pair.key: pair for pair in plan.val}
        rows = [
            comparison(plan.dataset, pairs[key], segmenter, caption)
            for key, caption in pick_examples(found.ranked())
        ]
        backend = f"{segmenter.backend.name} {segmenter.backend.precision}"
    if rows:
        write_atomic(os.path.join(plan.folder, "sheet.jpg"), comparison_sheet(rows, plan.dataset.classes))
    facts = _training_facts(plan, outcome, found, backend)
    loaded = checkpoint.load(plan.output)
    progress("looking at what was learned from", 1.0)
    size, how = plan.spec.input_size, (plan.options.range, plan.spec.in_channels)
    seen = domain_of(plan.dataset, plan.train, plan.val, size, *how)
    spec = dataclasses.replace(loaded.spec, training=facts, domain=seen)
    checkpoint.save(plan.output, loaded.model, spec)
    write_json(os.path.join(plan.folder, "results.json"), {**facts, "evaluation": found.as_dict()})
    write_atomic(plan.card, model_card(plan, outcome, found, bool(rows)).encode())
    return found


def headline(found: Evaluation) -> list[tuple[str, str, str]]:
    """The main figures at each size: where, the figures with their intervals, and over what."""
    rows = []
    for which, part, size in (("photo", found.photo, None), ("network", found.network, found.size)):
        if part is None:
            continue
        one = len(part.judged) == 1
        key = "dice_per_picture" if one else "iou"
        value = part.mean("dice", per_picture=True) if one else part.mean("iou")
        name = label(key, len(part.judged))
        shown = f"{name} {_with_interval(value, part.intervals.get(key), 4)}"
        accuracy = (
            f"accuracy {_with_interval(100 * part.scores.accuracy, part.intervals.get('accuracy'), 2, 100)} %"
        )
        place = (
            "at the images' own size"
            if which == "photo"
            else f"at the network's {size[0]}x{size[1]}"
            if size
            else ""
        )
        rows.append((place, f"{shown}, {accuracy}", f"{len(part.counts):,} images of {part.groups:,} groups"))
    return rows


def model_card(plan: TrainingPlan, outcome: Outcome, found: Evaluation, sheet: bool = True) -> str:
    """Write the model card as Markdown: what was trained, on what, how good it is, and how reliably so."""
    spec, options, folder = plan.spec, plan.options, os.path.basename(plan.folder)
    height, width = spec.input_size
    names = spec.classes.names
    task = (
        f"{names[0]} against everything else"
        if len(names) == 1
        else f"{len(names)} classes: {', '.join(names)}"
    )
    kept = f"epoch {outcome.best} of {len(outcome.history)}"
    lines = [
        f"# Model card: `{spec.name}`",
        "",
        "| | |",
        "|---|---|",
        f"| task | {task} |",
        f"| network | {spec.network}, {plan.parameters / 1e6:.2f} M parameters |",
        f"| input | {_input(spec)}, {height}x{width} (height x width), letterboxed |",
        f"| training | {kept}, {_duration(outcome.seconds)} on {plan.device.type} in {plan.precision}; "
        f"{outcome.ended} |",
        f"| versions | unet-batch {__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()} |",
        "",
        "## Results",
        "",
        "On validation images, which took no part in training; 95 % intervals, by drawing whole groups anew.",
        "",
        "| | | over |",
        "|---|---|---|",
        *(f"| {place} | {text} | {over} |" for place, text, over in headline(found)),
        "",
        *_class_table(found),
    ]
    for caveat in _caveats(found, kept if options.keep == "best" or options.patience else ""):
        lines += [caveat, ""]
    lines += [f"![Curves]({folder}/curves.png)", ""]
    if sheet:
        lines += [f"![Best, middle and worst validation images]({folder}/sheet.jpg)", ""]
    lines += ["## Data", "", f"`{plan.dataset.name}`:", ""]
    lines += [f"* {reason}" for reason in (*plan.dataset.reasons, *plan.reasons)]
    lines += [
        "",
        "## Options",
        "",
        f"* {options.epochs} epochs of {plan.steps:,} steps, {plan.batch_size} {plan.sample_name} each; "
        f"seed {options.seed}",
        f"* learning rate {plan.lr:g}, warmed up, then falling along a cosine; loss with the Dice of each "
        f"{options.dice}",
        *_further_options(plan),
        f"* augmentation {options.augment}, flips {options.flip}; class weights {options.class_weights}; "
        f"keep {options.keep}",
        f"* AdamW, weight decay {options.weight_decay:g}, gradients clipped at {options.clip:g}; averaged "
        f"weights",
        "",
        "## Limits",
        "",
        "The figures hold for images like those it was trained on. Nothing is known of others.",
        "",
    ]
    return "\n".join(lines)


def _input(spec: ModelSpec) -> str:
    """What it takes of a picture."""
    if spec.channels is None:
        return "RGB" if spec.in_channels == 3 else "luminance"
    return f"channels {', '.join(map(str, spec.channels))}"


def _further_options(plan: TrainingPlan) -> Iterator[str]:
    """Lines of the card for what few trainings ask for."""
    options = plan.options
    if plan.spec.encoder:
        yield f"* encoder at {options.encoder_lr:g} of the learning rate"
    if options.weights is not None:
        names = plan.dataset.parts or (plan.dataset.name,)
        each = (f"{name} {weight:g}" for name, weight in zip(names, options.weights, strict=True))
        yield f"* weights of the datasets: {', '.join(each)}"
    if options.paste:
        yield f"* objects of other images pasted into {options.paste:.0%} of the samples"
    if options.plain_epochs:
        yield f"* last epochs without augmentation but for flips: {options.plain_epochs}"


def _caveats(found: Evaluation, chosen: str) -> Iterator[str]:
    """Say what limits the figures; `chosen` is the epoch that the same images chose, or ""."""
    if found.failures:
        yield f"{len(found.failures)} images could not be judged, such as {found.failures[0].message}"
    groups = found.photo.groups
    if groups < 2:
        yield (
            "All validation images are of one group: how far the figures would vary with another one cannot "
            "be told."
        )
    elif groups < FEW_GROUPS:
        yield f"The intervals rest on {groups} groups: they are rough, and rather too narrow."
    if chosen:
        yield (
            f"The same images chose {chosen}, so these figures flatter a little; `unet-batch evaluate` on "
            f"others does not."
        )


def _class_table(found: Evaluation) -> list[str]:
    """A table of the classes over all pixels, at the images' own size; nothing for one class."""
    part = found.photo
    if len(part.judged) == 1:
        return []
    keys = ("iou", "dice", "precision", "recall", "boundary_f1")
    table = [
        "| class, over all pixels | IoU | Dice | precision | recall | boundary F1 |",
        "|---|---|---|---|---|---|",
    ]
    for id in part.judged:
        values = (part.scores.pooled[key][id] for key in keys)
        table.append(
            f"| {part.names[id]} | " + " | ".join("-" if np.isnan(v) else f"{v:.3f}" for v in values) + " |"
        )
    table.append("| **mean** | " + " | ".join(f"**{part.mean(key):.3f}**" for key in keys) + " |")
    return [*table, ""]


def pick_examples(ranked: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Pick the best, middle and worst images, best first, with captions; of few images all, none twice.

    Args:
        ranked: keys with their Dice, worst first.
    """
    ranked = ranked[::-1]
    each = min(_SHOWN, -(-len(ranked) // 3))
    last = max(each, len(ranked) - each)
    between = ranked[each:last]
    start = max(0, (len(between) - each) // 2)
    parts = (("best", ranked[:each]), ("middle", between[start : start + each]), ("worst", ranked[last:]))
    return [(key, f"{name}, Dice {dice:.4f}") for name, entries in parts for key, dice in entries]


def _scales(plan: TrainingPlan) -> list[float]:
    """Network pixels for one of a picture, along a side: the least, the median and the most of some pictures.

    What `run --fit tile` cuts pictures at, where nobody says another. Empty where none can be read.
    """
    found = []
    for pair in plan.train[:: -(-len(plan.train) // _LOOKED_AT)]:
        with suppress(ImageError):  # of one that went away since
            placement = geometry.place(images.read(pair.image, at_least=(1, 1)).size, plan.spec.input_size)
            found.append(max(placement.content[axis] / placement.source[axis] for axis in (0, 1)))
    return [round(float(value), 4) for value in np.quantile(found, (0, 0.5, 1))] if found else []


def _training_facts(plan: TrainingPlan, outcome: Outcome, found: Evaluation, backend: str) -> dict[str, Any]:
    """Collect what the checkpoint says of its own training."""
    metrics: dict[str, Any] = {"backend": backend}
    for part in (found.network, found.photo):
        if part is None:
            continue
        where = "photo" if part is found.photo else "network"
        metrics[where] = {
            "dice": _number(part.mean("dice", per_picture=True)),
            "iou": _number(part.mean("iou")),
            "accuracy": _number(part.scores.accuracy),
            "images": len(part.counts),
            "groups": part.groups,
            "intervals": {
                name: list(map(_number, ends)) for name, ends in part.intervals.items() if " " not in name
            },
        }
    return {
        **plan.spec.training,
        "data": plan.dataset.name,
        "reasons": [*plan.dataset.reasons, *plan.reasons],
        "datasets": {
            name: [sum(pair.key.startswith(f"{name}/") for pair in part) for part in (plan.train, plan.val)]
            for name in plan.dataset.parts
        },
        "scales": _scales(plan),
        **plan.options.range_fact,
        "train_images": len(plan.train),
        "val_images": len(plan.val),
        "epoch": outcome.best,
        "epochs": len(outcome.history),
        "ended": outcome.ended,
        "seconds": round(outcome.seconds, 1),
        "options": {key: value for key, value in plan.fingerprint.items() if key != "pictures"},
        "images_sha256": plan.fingerprint["pictures"],
        "metrics": metrics,
        "versions": {
            "unet-batch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _with_interval(value: float, ends: tuple[float, float] | None, digits: int, factor: float = 1.0) -> str:
    text = "unknown" if np.isnan(value) else f"{value:.{digits}f}"
    ends = None if np.isnan(value) else ends
    return f"{text} ({factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f})" if ends else text


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} hours"
        if seconds >= 5400
        else f"{seconds / 60:.0f} minutes"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )
