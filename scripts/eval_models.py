"""Measure models on pictures that were kept out of training: cars by car, drawn scenes, and how long a picture takes.

    python scripts/eval_models.py [MODEL ...] [--size HxW] [--json FILE] [--plot FILE]

MODEL is a bundled name or a checkpoint; the default is all bundled ones. The pictures go through the same code as
`unet-batch evaluate`: masks as `run` would write them, and the network's own map. Milliseconds are of the network alone, on
this machine. Exits with 1 if a bundled model is worse than its card promises.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import carvana

import unet_batch
from unet_batch.datasets.find import Dataset, Pair, find_dataset
from unet_batch.evaluation.evaluate import evaluate
from unet_batch.model import zoo
from unet_batch.scenes import write_samples
from unet_batch.segmenter import Segmenter

SCENE_SEED, SCENES = 2, 50  # training draws with seed 1, the demo with seed 0
# Dice at the photos' own size, and of the scenes.
PROMISED = {"default": (0.989, 0.97), "fast": (0.985, 0.95), "fine": (0.99, 0.95)}


def milliseconds(segmenter: Segmenter, rounds: int = 7) -> float:
    """Of the network, a picture, with all its streams busy; median of several."""
    backend = segmenter.backend
    picture = np.random.default_rng(0).integers(0, 256, (*backend.input_size, 3), dtype=np.uint8)
    taken = []
    with backend.thread():
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            backend.infer([picture])
            taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken[1:]) / backend.streams


def measure(model: str, size: tuple[int, int] | None, photos: tuple[Dataset, list[Pair]], scenes: Dataset) -> dict[str, Any]:
    """The figures of one model at one size."""
    with unet_batch.load(model, size=size) as segmenter:
        found, drawn = evaluate(*photos, segmenter), evaluate(scenes, scenes.pairs, segmenter)
        failures = [*found.failures, *drawn.failures]
        if failures or found.network is None:
            raise SystemExit(f"{model}: {failures[0].message if failures else 'no figures'}")
        worst, dice = found.ranked()[0]
        row = {
            "model": Path(model).stem,
            "size": "x".join(map(str, segmenter.backend.input_size)),
            "widths": ",".join(map(str, segmenter.spec.widths)),
            "milliseconds": round(milliseconds(segmenter), 1),
            "backend": f"{segmenter.backend.name} {segmenter.backend.precision}",
            "worst": {"key": worst, "dice": dice},
            "scenes_dice": drawn.photo.mean("dice", per_picture=True),
        }
        for where, part in (("network", found.network), ("photo", found.photo)):
            row[f"{where}_dice"] = part.mean("dice", per_picture=True)
            row[f"{where}_accuracy"] = part.scores.accuracy
            row[f"{where}_intervals"] = {name: part.intervals[name] for name in ("dice_per_picture", "accuracy")}
    return row


def plot(rows: list[dict[str, Any]]) -> bytes:
    """Dice against milliseconds, a line for each choice of widths over its sizes; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    all_widths = sorted({tuple(map(int, row["widths"].split(","))) for row in rows})
    for index, widths in enumerate(all_widths):
        points = [row for row in rows if row["widths"] == ",".join(map(str, widths))]
        points.sort(key=lambda row: float(row["milliseconds"]))
        colour = ("#2a5db0", "#d9722e", "#2f8f5b", "#8a4fbf", "#666666")[index % 5]
        x, y = [row["milliseconds"] for row in points], [row["photo_dice"] for row in points]
        axes.plot(x, y, color=colour, marker="o", lw=1.2, label=f"widths {widths[0]} to {widths[-1]}")
        for row in points:
            name = f"{row['model']}, {row['size']}" if row["model"] in zoo.BUNDLED else row["size"]
            axes.annotate(
                name, (row["milliseconds"], row["photo_dice"]), xytext=(7, -11), textcoords="offset points", fontsize=8.5
            )
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000) if _within(tick, rows)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.14, y=0.1)
    axes.set_xlabel(f"milliseconds a picture, the network alone ({rows[0]['backend']})")
    axes.set_ylabel("Dice at the photos' own size")
    axes.grid(color="#e3e3e3", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _within(tick: float, rows: list[dict[str, Any]]) -> bool:
    taken = [row["milliseconds"] for row in rows]
    return bool(min(taken) / 1.5 <= tick <= max(taken) * 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(zoo.BUNDLED))
    parser.add_argument("--size", action="append", help="also run at this size, HxW; may be given several times")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--plot", help="draw Dice against milliseconds here, a PNG")
    options = parser.parse_args()
    sizes = [None, *(tuple(map(int, size.split("x"))) for size in options.size or ())]

    dataset = find_dataset(str(carvana.data_folder() / "carvana"))
    held_out = {photo.image.stem for photo in carvana.split(carvana.photos())[1]}
    photos = dataset, [pair for pair in dataset.pairs if pair.key in held_out]
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as folder:
        write_samples(folder, SCENES, seed=SCENE_SEED)
        scenes = find_dataset(folder)
        for model in options.models:
            for size in sizes:
                row = measure(model, size, photos, scenes)
                rows.append(row)
                print(
                    f"{row['model']:<10} {row['size']:>8}  {row['milliseconds']:6.1f} ms"
                    f"  network {row['network_dice']:.4f} {100 * row['network_accuracy']:.2f} %"
                    f"  photo {row['photo_dice']:.4f} {100 * row['photo_accuracy']:.2f} %"
                    f"  scenes {row['scenes_dice']:.4f}  worst {row['worst']['dice']:.4f} {row['worst']['key']}",
                    flush=True,
                )
                if size is None and model in PROMISED:
                    missed |= row["photo_dice"] < PROMISED[model][0] or row["scenes_dice"] < PROMISED[model][1]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    if options.plot:
        Path(options.plot).write_bytes(plot(rows))
    raise SystemExit(int(missed))


if __name__ == "__main__":
    main()
