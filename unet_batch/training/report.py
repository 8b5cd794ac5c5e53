"""What a training leaves beside its model: curves while it runs; a sheet of pictures, figures and the model card at its end.

| file                         | what                                                                       |
|------------------------------|----------------------------------------------------------------------------|
| `cars.safetensors`           | the model, with all of this in its description                             |
| `cars.md`                    | the model card                                                             |
| `cars.training/metrics.jsonl`| a record of each epoch                                                     |
| `cars.training/curves.png`   | loss and Dice or IoU, epoch by epoch                                       |
| `cars.training/sheet.jpg`    | image, truth, prediction, error: the best, middle and worst of validation  |
| `cars.training/results.json` | figures with their intervals                                               |
| `cars.training/state.safetensors` | what --resume needs; may be deleted when the training is over         |
"""

from __future__ import annotations

import dataclasses
import io
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import filelock
import numpy as np

from unet_batch.errors import TrainingError, UsageError
from unet_batch.model import checkpoint
from unet_batch.sinks import make_folder, write_atomic, write_json
from unet_batch.training.loop import Outcome, judged_by
from unet_batch.training.plan import Plan
from unet_batch.training.ranks import Ranks
from unet_batch.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

_SHOWN = 4  # pictures of each kind on the sheet


@contextmanager
def locked(plan: Plan, ranks: Ranks) -> Iterator[None]:
    """Keep a second training from the same files.

    Raises:
        UsageError: one is running.
    """
    if not ranks.leads:
        yield
        return
    make_folder(plan.folder)
    lock = filelock.FileLock(os.path.join(plan.folder, "lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UsageError(f"{plan.folder}: another training writes here", hint="wait for it, or choose another -o") from error
    try:
        yield
    finally:
        lock.release()


class Curves:
    """Draws the curves anew after each epoch, and hands the records to TensorBoard if asked.

    Args:
        plan: of the training.
        tensorboard: whether to write for TensorBoard, too.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, plan: Plan, tensorboard: bool = False) -> None:
        self.plan = plan
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError("TensorBoard is not installed", hint="pip install tensorboard") from error
            self._board = SummaryWriter(os.path.join(plan.folder, "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board is not None:
            self._board.close()

    def add(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the last of the epochs."""
        record = history[-1]
        write_atomic(os.path.join(self.plan.folder, "curves.png"), draw_curves(self.plan, history))
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("epoch", "step", "best"):
                    self._board.add_scalar(key.replace("val_", "validation/"), value, record["step"])
            self._board.flush()


def draw_curves(plan: Plan, history: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss on the left, the figure that decides on the right, the kept epoch marked; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    blue, orange, grey = "#2a5db0", "#d9722e", "#666666"
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(10, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 30 else ""
    left.plot(epochs, [record["loss"] for record in history], color=blue, marker=marker, ms=3, label="training")
    left.plot(epochs, [record["val_loss"] for record in history], color=orange, marker=marker, ms=3, label="validation")
    left.set_yscale("log")
    for numbers in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        numbers(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    left.set_title("loss", loc="left", fontsize=11)
    left.legend(frameon=False)
    key = judged_by(plan)
    values = [record[key] for record in history]
    right.plot(epochs, values, color=orange, marker=marker, ms=3)
    kept = len(values) - 1 if plan.options.keep == "last" else int(np.nanargmax(values))
    right.plot(epochs[kept], values[kept], marker="o", ms=8, mfc="none", mec=grey, mew=1.5)
    what = "Dice" if key == "val_dice" else "mean IoU"
    right.set_title(f"validation {what}, kept: {values[kept]:.4f} of epoch {epochs[kept]}", loc="left", fontsize=11)
    low = min(values)
    right.set_ylim(max(0, low - 0.1 * (max(values) - low) - 0.002), None)
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


# The end -------------------------------------------------------------------------------------------------------------------


def finish(plan: Plan, outcome: Outcome, progress: Callable[[str, float], None] = lambda stage, share: None) -> Evaluation:
    """Judge the model that was written as `run` would use it, and write sheet, figures and card.

    Args:
        plan: of the training.
        outcome: how it ended.
        progress: hears of each stage and its share.

    Raises:
        TrainingError: not one validation picture could be judged.
        OutputError: a file cannot be written.
    """
    with unet_batch.load(plan.output, device=plan.device.type) as segmenter:
        total = len(plan.val)
        found = evaluate(
            plan.dataset, plan.val, segmenter, progress=lambda done: progress(f"judging {total:,} pictures", done / total)
        )
        if not found.photo:
            raise TrainingError(f"none of {total:,} validation pictures could be judged: {found.failures[0].message}")
        rows = [comparison(plan.dataset, pair, segmenter, caption) for pair, caption in _chosen(plan, found)]
    write_atomic(os.path.join(plan.folder, "sheet.jpg"), comparison_sheet(rows, plan.dataset.classes))
    facts = _facts(plan, outcome, found)
    loaded = checkpoint.load(plan.output)
    checkpoint.save(plan.output, loaded.model, dataclasses.replace(loaded.spec, training=facts))
    write_json(os.path.join(plan.folder, "results.json"), facts)
    write_atomic(plan.card, card(plan, outcome, found).encode())
    return found
