"""What other views of a photo, and edges moved to its own, are worth: Dice, edges and milliseconds.

    python -m scripts.eval_views [MODEL ...] [--photos N] [--data DIR] [--train]

On Carvana photos of cars that no bundled model was trained on, masks at the photos' own size. Edges: boundary
F1 (Csurka and others, 2013), the mean of precision and recall of mask edges that lie within three pixels of
the true ones, where `evaluate` allows 0.75 % of the diagonal: 17. Milliseconds are of the processor, one
thread, from the decoded photo to its mask, medians.
`--train` takes photos of the other cars, to choose by.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import unet_batch
from scripts import carvana
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import View, ViewOptions

TOLERANCE = 3  # pixels of 1280x1918
VIEWS = {
    "as it is": ViewOptions(),
    "--refine": ViewOptions(refine=True),
    "--tta horizontal": ViewOptions(tta="horizontal"),
    "--tta flips": ViewOptions(tta="flips"),
    "--tta horizontal --refine": ViewOptions(tta="horizontal", refine=True),
    "--fit tile --scale 0.5": ViewOptions("tile", scale=0.5),
    "--fit stretch": ViewOptions("stretch"),
}


def edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask, bool (h, w), that have a neighbour outside of it: uint8 (h, w)."""
    values = mask.astype(np.uint8)
    return values - cv2.erode(values, np.ones((3, 3), np.uint8))


def boundary_f1(found: np.ndarray, truth: np.ndarray) -> float:
    """Of masks, bool (h, w)."""
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TOLERANCE + 1, 2 * TOLERANCE + 1))
    edges = edge(found), edge(truth)
    precision, recall = (
        (one & cv2.dilate(other, near)).sum() / max(1, one.sum()) for one, other in (edges, edges[::-1])
    )
    return float(2 * precision * recall / max(1e-9, precision + recall))


def judge(segmenter: Segmenter, photos: list[carvana.Photo]) -> tuple[float, float, float]:
    """Mean Dice, mean boundary F1 and median milliseconds."""
    dice, edges, seconds = [], [], []
    for photo in photos:
        with Image.open(photo.image) as file:
            picture = np.asarray(file.convert("RGB"))
        with Image.open(photo.mask) as file:
            truth = np.asarray(file) > 0
        begun = time.process_time()
        found = segmenter(picture) > 0
        seconds.append(time.process_time() - begun)
        dice.append(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))
        edges.append(boundary_f1(found, truth))
    return float(np.mean(dice)), float(np.mean(edges)), 1000 * float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["default"])
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--data", type=Path, default=carvana.data_folder())
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photos = carvana.split(carvana.photos(options.data))[0 if options.train else 1]
    photos = random.Random(5).sample(photos, min(options.photos, len(photos)))
    print(
        f"{len(photos)} photos\n\n| model | | Dice | boundary F1 | ms of processor |\n|---|---|---|---|---|"
    )
    for model in options.models:
        with unet_batch.load(model, workers=1) as segmenter:
            for name, view in VIEWS.items():
                segmenter.view = View(segmenter.backend, view)
                dice, edges, milliseconds = judge(segmenter, photos)
                print(f"| {model} | {name} | {dice:.4f} | {edges:.4f} | {milliseconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
