"""Measure models on pictures that were kept out of training, and how long a picture takes.

    python -m scripts.eval_models [MODEL[@HxW] ...] [--json FILE] [--plot FILE]

MODEL is a bundled name or a checkpoint, at its own size or at another one; the default is all bundled ones.
The pictures are twelve cars of the studio, street photos (`test_*`), drawn scenes, and pictures without a
car. They go through the same code as `unet-batch evaluate`: masks as `run` would write them, and the
network's own map. Milliseconds are of the network alone, on this machine. Exits with 1 if a bundled model is
worse than its card promises.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import unet_batch
from scripts import carvana
from scripts.training_sets import without_cars
from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.find import find_dataset
from unet_batch.evaluation.evaluate import evaluate
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.segmenter import Segmenter
from unet_batch.model import zoo
from unet_batch.scenes import write_samples

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

SCENE_SEED, SCENES = 2, 50  # training draws with seed 1, the demo with seed 0
# Dice at the photos' own size, and of the scenes.
PROMISED = {"default": (0.991, 0.97), "fast": (0.987, 0.97), "fine": (0.991, 0.97), "classic": (0.989, 0.97)}


def milliseconds(
    models: Sequence[tuple[str, Size | None]], rounds: int = 9, pictures: int = 8
) -> list[float]:
    """Of each network, a picture, with all its streams busy. They take turns; the median of the rounds."""

    def work(backend: Backend, picture: Pixels) -> None:
        with backend.thread():
            for _ in range(pictures):
                backend.infer([picture])

    taken: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        backends = [stack.enter_context(unet_batch.load(model, size=size)).backend for model, size in models]
        for _ in range(rounds + 1):
            for backend, times in zip(backends, taken, strict=True):
                picture = np.random.default_rng(0).integers(0, 256, (*backend.input_size, 3), dtype=np.uint8)
                with ThreadPoolExecutor(backend.streams) as threads:
                    begun = time.perf_counter()
                    for task in [threads.submit(work, backend, picture) for _ in range(backend.streams)]:
                        task.result()
                    times.append((time.perf_counter() - begun) / (pictures * backend.streams))
    return [round(1000 * statistics.median(times[1:]), 1) for times in taken]


Pictures = tuple[Dataset, list[Pair]]


def marked(segmenter: Segmenter, paths: Sequence[Path]) -> dict[str, float]:
    """The mean share of the pixels that are marked, of each kind of picture; 0..1."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for path, result in zip(paths, segmenter.stream(map(str, paths)), strict=True):
        if result.mask is None:
            raise SystemExit(f"{path}: {result.error}")
        shares[path.parts[-3]].append(float((result.mask > 0).mean()))
    return {kind: statistics.mean(values) for kind, values in shares.items()}


def measure(
    model: str, size: Size | None, photos: Pictures, streets: Pictures, scenes: Dataset, none: Sequence[Path]
) -> dict[str, Any]:
    """The figures of one model at one size."""
    with unet_batch.load(model, size=size) as segmenter:
        found, drawn = evaluate(*photos, segmenter), evaluate(scenes, scenes.pairs, segmenter)
        street = evaluate(*streets, segmenter)
        failures = [*found.failures, *drawn.failures, *street.failures]
        if failures or found.network is None:
            raise SystemExit(f"{model}: {failures[0].message if failures else 'no figures'}")
        worst, dice = found.ranked()[0]
        row = {
            "model": Path(model).stem,
            "size": "x".join(map(str, segmenter.backend.input_size)),
            "encoder": segmenter.spec.encoder,
            "widths": ",".join(map(str, segmenter.spec.widths)),
            "backend": f"{segmenter.backend.name} {segmenter.backend.precision}",
            "worst": {"key": worst, "dice": dice},
            "scenes_dice": drawn.photo.mean("dice", per_picture=True),
            "street_dice": street.photo.mean("dice", per_picture=True),
            "street_interval": street.photo.intervals["dice_per_picture"],
            "street_worst": [{"key": key, "dice": value} for key, value in street.ranked()[:5]],
            "marked": marked(segmenter, none),
        }
        for where, part in (("network", found.network), ("photo", found.photo)):
            row[f"{where}_dice"] = part.mean("dice", per_picture=True)
            row[f"{where}_accuracy"] = part.scores.accuracy
            row[f"{where}_intervals"] = {
                name: part.intervals[name] for name in ("dice_per_picture", "accuracy")
            }
    return row


def plot(rows: list[dict[str, Any]]) -> bytes:
    """Dice against milliseconds, a line for each network over its sizes; a PNG.

    Photos of streets are on the left, of the studio on the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    sides = figure.subplots(ncols=2)
    _draw(sides[0], rows, "street_dice", "94 photos of streets, yards, showrooms")
    _draw(sides[1], rows, "photo_dice", "192 photos of a studio")
    for axes in sides:
        axes.set_xscale("log")
        axes.set_xticks(
            [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000) if _within(tick, rows)]
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.16, y=0.12)
        axes.grid(color="#e3e3e3", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"milliseconds a picture, the network alone ({rows[0]['backend']})", fontsize=10)
    sides[0].set_ylabel("Dice at the photos' own size")
    sides[1].legend(frameon=False, fontsize=9, loc="lower right")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw(axes: Any, rows: list[dict[str, Any]], measure: str, title: str) -> None:
    """A line for each network."""
    from matplotlib.patheffects import withStroke

    axes.set_title(title, fontsize=10)
    networks = sorted({(row["encoder"], *map(int, row["widths"].split(","))) for row in rows})
    for index, (encoder, *widths) in enumerate(networks):
        points = [row for row in rows if (row["encoder"], row["widths"]) == (encoder, _join(widths))]
        points.sort(key=lambda row: float(row["milliseconds"]))
        colour = ("#2a5db0", "#d9722e", "#2f8f5b", "#8a4fbf", "#666666")[index % 5]
        label = f"on {encoder}" if encoder else f"plain, widths {widths[0]} to {widths[-1]}"
        x, y = [row["milliseconds"] for row in points], [row[measure] for row in points]
        axes.plot(x, y, color=colour, marker="o", lw=1.2, label=label)
        for row in points:
            halo = [withStroke(linewidth=3, foreground="white")]  # a line may pass below
            axes.annotate(
                f"{row['model']}\n{row['size']}",
                (row["milliseconds"], row[measure]),
                xytext=(0, -8),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7.5,
                path_effects=halo,
            )


def _at_size(text: str) -> tuple[str, Size | None]:
    """MODEL, or MODEL@HxW."""
    model, at, size = text.rpartition("@")
    if not at:
        return text, None
    height, width = map(int, size.split("x"))
    return model, (height, width)


def _join(widths: Sequence[object]) -> str:
    return ",".join(map(str, widths))


def _within(tick: float, rows: list[dict[str, Any]]) -> bool:
    taken = [row["milliseconds"] for row in rows]
    return bool(min(taken) / 1.5 <= tick <= max(taken) * 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(zoo.BUNDLED))
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--plot", help="draw Dice against milliseconds here, a PNG")
    options = parser.parse_args()
    models = [_at_size(model) for model in options.models]

    dataset = find_dataset(str(carvana.data_folder() / "carvana"))
    held_out = {photo.image.stem for photo in carvana.split(carvana.photos())[1]}
    photos = dataset, [pair for pair in dataset.pairs if pair.key in held_out]
    wild = find_dataset(str(carvana.data_folder() / "cars_wild"), group_by="^(.+)$")
    streets = wild, [pair for pair in wild.pairs if pair.key.startswith("test_")]
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as folder:
        write_samples(folder, SCENES, seed=SCENE_SEED)
        scenes = find_dataset(folder)
        none = without_cars(Path(folder) / "crops", carvana.data_folder(), is_test=True)
        for (model, size), taken in zip(models, milliseconds(models), strict=True):
            row = measure(model, size, photos, streets, scenes, none) | {"milliseconds": taken}
            rows.append(row)
            print(
                f"{row['model']:<15} {row['size']:>8}  {taken:6.1f} ms"
                f"  network {row['network_dice']:.4f} {100 * row['network_accuracy']:.2f} %"
                f"  photo {row['photo_dice']:.4f} {100 * row['photo_accuracy']:.2f} %"
                f"  scenes {row['scenes_dice']:.4f}  worst {row['worst']['dice']:.4f} {row['worst']['key']}\n"
                f"{'':<15} streets {row['street_dice']:.4f} ({row['street_interval'][0]:.4f} to "
                f"{row['street_interval'][1]:.4f}), worst {row['street_worst'][0]['dice']:.4f}"
                f"  marked without a car: "
                + ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in row["marked"].items()),
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
