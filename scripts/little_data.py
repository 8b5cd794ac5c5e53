"""Train on 4, 16 and 64 pictures of lungs and of roads: from noise, from cars, from ImageNet's photos.

    python -m scripts.little_data [--work DIR] [--data DIR] [--plot FILE.png]

The network is the same, a U-Net on EfficientNet-Lite0 at 256x256, and so is the time: 160 steps of 4 each.
Fewer pictures are a part of more. Dice is the mean over the fifth that `train_models lungs` and `satellite`
keep out, too; 95 % intervals are over pictures, and so is that of the gain over noise, picture by picture.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np

import unet_batch
from scripts import carvana
from scripts.train_models import EACH, ENCODER, Trainings
from scripts.training_sets import one_in_five
from unet_batch.datasets.find import find_dataset
from unet_batch.evaluation.evaluate import evaluate

SUBJECTS = {"lungs": "lung", "satellite": "road"}
COUNTS = (4, 16, 64)
STARTS = {
    "noise": f"--encoder {ENCODER} --encoder-weights none --encoder-lr 1",  # which knows nothing to keep
    "cars": "--init default",
    "ImageNet": f"--encoder {ENCODER}",
}
EPOCHS, SAMPLES = 4, 160  # an epoch sees each picture so often that it has as many samples
OPTIONS = (
    f"--keep last --size 256x256 --batch-size 4 --lr 1e-3 --augment strong --epochs {EPOCHS} --plain-epochs 1"
)


class Figure(NamedTuple):
    """Mean Dice with its interval, and by how much it is better than from noise."""

    mean: float
    interval: tuple[float, float]
    gain: tuple[float, float]


def dice(model: Path, folder: Path) -> dict[str, float]:
    """Dice of each picture that is kept out."""
    dataset = find_dataset(str(folder), group_by="^(.+)$")
    names = set((folder / "val.txt").read_text().split())
    with unet_batch.load(str(model)) as segmenter:
        found = evaluate(dataset, [pair for pair in dataset.pairs if pair.key in names], segmenter)
    if found.failures:
        raise SystemExit(f"{model}: {found.failures[0].message}")
    return dict(found.ranked())


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(0).integers(len(values), size=(4000, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def train_all(train: Trainings, data: Path, name: str) -> dict[tuple[str, int], Path]:
    """The model of each start and number of pictures of one set."""
    folder = one_in_five(train.work, data, name, SUBJECTS[name])
    names = (folder / "train.txt").read_text().split()
    random.Random(7).shuffle(names)
    made = {}
    for count in COUNTS:
        (folder / f"train-{count}.txt").write_text("".join(f"{key}\n" for key in names[:count]))
        few = EACH.replace("train.txt", f"train-{count}.txt") + f" --weights {SAMPLES / count:g}"
        for start, options in STARTS.items():
            model = f"{name}-{count}-{start.lower()}"
            made[start, count] = train(model, folder, f"{few} {OPTIONS} {options}")
    return made


def judge(models: dict[tuple[str, int], Path], folder: Path) -> dict[tuple[str, int], Figure]:
    """The figures of the models of one set."""
    found = {key: dice(model, folder) for key, model in models.items()}
    keys = sorted(found[next(iter(found))])
    figures = {}
    for (start, count), each in found.items():
        values = np.array([each[key] for key in keys])
        noise = np.array([found["noise", count][key] for key in keys])
        figures[start, count] = Figure(values.mean(), interval(values), interval(values - noise))
    return figures


def plot(figures: dict[str, dict[tuple[str, int], Figure]]) -> bytes:
    """Dice over the number of pictures, a line for each start, side by side; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(8, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (name, found) in zip(drawing.subplots(1, len(figures)), figures.items(), strict=True):
        for index, (start, colour) in enumerate(zip(STARTS, ("#666666", "#d9722e", "#2a5db0"), strict=True)):
            points = [found[start, count] for count in COUNTS]
            x = [
                count * 1.06 ** (index - 1) for count in COUNTS
            ]  # side by side, so that bars can be told apart
            y = np.array([point.mean for point in points])
            bars = np.abs(np.array([point.interval for point in points]).T - y)
            axes.errorbar(
                x, y, bars, color=colour, marker="o", lw=1.2, ms=4, capsize=3, label=f"from {start}"
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
        axes.minorticks_off()
        axes.set_title(f"{name}: {SUBJECTS[name]}s", fontsize=10)
        axes.set_xlabel("pictures to learn from")
        axes.grid(color="#e3e3e3", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel("Dice of pictures kept out")
    drawing.axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    out = io.BytesIO()
    drawing.savefig(out, format="png")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/models"), help="where models are written")
    parser.add_argument("--data", type=Path, default=carvana.data_folder())
    parser.add_argument("--plot", type=Path, help="draw the table here")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the trainings")
    options = parser.parse_args()
    train = Trainings(options.work.resolve(), options.dry_run)
    models = {name: train_all(train, options.data, name) for name in SUBJECTS}
    if options.dry_run:
        return
    figures = {name: judge(found, train.work / name) for name, found in models.items()}
    print(f"{'':<10} {'pictures':>8} {'from':<9} {'Dice':<26} gain over noise")
    for name, found in figures.items():
        for (start, count), figure in found.items():
            low, high = figure.interval
            gain = "" if start == "noise" else f"{figure.gain[0]:+.3f} to {figure.gain[1]:+.3f}"
            print(f"{name:<10} {count:>8} {start:<9} {figure.mean:.3f} ({low:.3f} to {high:.3f})     {gain}")
    if options.plot:
        options.plot.write_bytes(plot(figures))


if __name__ == "__main__":
    main()
