"""Measure a model on the cars that were kept out of training, and on sample scenes it has not seen.

    python scripts/eval_default.py [-m MODEL.safetensors] [--json FILE]

The pictures go through the same code as `unet-batch run`, one class "car" against background:

* at the network's size: the network's own map against the true mask's coverage, cut at one half;
* at the photo's own size: the mask that `run` would write against the true mask, decoded at reduced scale as `run` does;
* sample scenes of a series that neither training nor the demo draws from.

Dice and accuracy are means over pictures. Exits with 1 if a figure is below what the model card promises.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import carvana
import cv2

import unet_batch
from unet_batch.model import checkpoint, zoo
from unet_batch.scenes import write_samples

SCENE_SEED = 2  # training draws with seed 1, the demo with seed 0
SCENES = 50
PROMISED = {
    "160x240 dice": 0.990,
    "160x240 accuracy": 0.995,
    "1280x1918 dice": 0.985,
    "scenes dice": 0.97,
}


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two boolean masks; 1 where both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--record", action="store_true", help="also write the figures into the model's own description")
    options = parser.parse_args()

    training, held_out = carvana.split(carvana.photos())
    assert not {photo.car for photo in training} & {photo.car for photo in held_out}
    small: list[tuple[float, float]] = []
    full: list[tuple[float, float]] = []
    scenes: list[float] = []
    with unet_batch.load(options.model) as segmenter, tempfile.TemporaryDirectory() as folder:
        height, width = segmenter.backend.input_size
        results = segmenter.stream(photo.image for photo in held_out)
        for photo, result in zip(held_out, results, strict=True):
            if result.mask is None or result.prediction is None:
                raise SystemExit(str(result.error))
            truth = carvana.read_mask(photo.mask)
            at_network = cv2.resize(truth, (width, height), interpolation=cv2.INTER_AREA) >= 128
            found = result.prediction.map >= 128
            small.append((dice(found, at_network), float((found == at_network).mean())))
            full.append((dice(result.mask > 0, truth > 0), float(((result.mask > 0) == (truth > 0)).mean())))
        photos = write_samples(folder, SCENES, seed=SCENE_SEED)
        for result in segmenter.stream(photos):
            if result.mask is None:
                raise SystemExit(str(result.error))
            truth = cv2.imread(result.path.replace("/photos/", "/masks/").replace(".jpg", ".png"), cv2.IMREAD_GRAYSCALE)
            scenes.append(dice(result.mask > 0, truth > 0))
        backend = f"{segmenter.backend.name} {segmenter.backend.precision}"

    cars = len({photo.car for photo in held_out})
    figures = {
        "160x240 dice": float(np.mean([d for d, _ in small])),
        "160x240 accuracy": float(np.mean([a for _, a in small])),
        "1280x1918 dice": float(np.mean([d for d, _ in full])),
        "1280x1918 accuracy": float(np.mean([a for _, a in full])),
        "scenes dice": float(np.mean(scenes)),
        "worst photo dice": min(d for d, _ in full),
        "worst scene dice": min(scenes),
    }
    print(f"{backend}, {len(held_out)} photos of {cars} cars kept out of training, {SCENES} unseen scenes")
    missed = False
    for name, value in figures.items():
        promised = PROMISED.get(name)
        missed |= promised is not None and value < promised
        print(f"{name:<20} {value:.4f}" + (f"  (at least {promised})" if promised else ""))
    if options.json:
        Path(options.json).write_text(
            json.dumps({"photos": len(held_out), "cars": cars, "backend": backend, **figures}, indent=2)
        )
    if options.record:
        loaded = checkpoint.load(zoo.resolve(options.model))
        metrics = {name: round(value, 4) for name, value in figures.items()}
        training_facts = {**loaded.spec.training, "metrics": metrics, "held_out_photos": len(held_out)}
        checkpoint.save(loaded.path, loaded.model, replace(loaded.spec, training=training_facts))
    raise SystemExit(int(missed))


if __name__ == "__main__":
    main()
