"""What other views of a photo, edges moved to its own, and several models are worth: Dice, edges, time.

    python -m scripts.eval_views [MODEL ...] [--photos N] [--data DIR] [--train]

On Carvana photos of cars that no bundled model was trained on, masks at the photos' own size. A model such as
`default+fast` is the mean of these. Edges: boundary F1 within three pixels, where `evaluate` allows 0.75 % of
the diagonal: 17. Both are means of photos. Milliseconds are of the processor, one thread, from the decoded
photo to its mask, medians.
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
from unet_batch.evaluation import metrics
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions

TOLERANCE = 3  # pixels of 1280x1918
MODELS = ("default+fast", "default+fine", "default", "fast")
VIEWS = {
    "as it is": ViewOptions(),
    "--refine": ViewOptions(refine=True),
    "--tta horizontal": ViewOptions(tta="horizontal"),
    "--tta horizontal --refine": ViewOptions(tta="horizontal", refine=True),
    "--tta flips": ViewOptions(tta="flips"),
    "--tta d4": ViewOptions(tta="d4"),
    "--fit tile --scale 0.5": ViewOptions("tile", scale=0.5),
    "--fit stretch": ViewOptions("stretch"),
}
OF_ENSEMBLES = list(VIEWS)[:4]


def judge(segmenter: Segmenter, photos: list[carvana.Photo]) -> tuple[float, float, float]:
    """Mean Dice, mean boundary F1 and median milliseconds."""
    counts, seconds = [], []
    for photo in photos:
        with Image.open(photo.image) as file:
            picture = np.asarray(file.convert("RGB"))
        truth = (carvana.read_mask(photo.mask) > 0).view(np.uint8)
        begun = time.process_time()
        found = segmenter(picture)
        seconds.append(time.process_time() - begun)
        counts.append(metrics.count((found > 0).view(np.uint8), truth, 2, reach=TOLERANCE))
    _, figures = metrics.score_each(counts)
    dice, edges = (float(figures[name][:, 1].mean()) for name in ("dice", "boundary_f1"))
    return dice, edges, 1000 * float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
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
        members = model.split("+")
        for name in OF_ENSEMBLES if len(members) > 1 else VIEWS:
            view, size, said = VIEWS[name], None, name
            if view.tta == "d4":  # turned by 90 degrees, a picture has to fit as well
                with unet_batch.load(model) as segmenter:
                    side = max(segmenter.spec.input_size)
                size, said = (side, side), f"{name} --size {side}x{side}"
            with unet_batch.load(
                members,
                workers=1,
                size=size,
                fit=view.fit,
                overlap=view.overlap,
                scale=view.scale,
                tta=view.tta,
                refine=view.refine,
            ) as segmenter:
                dice, edges, milliseconds = judge(segmenter, photos)
            print(f"| {model} | {said} | {dice:.4f} | {edges:.4f} | {milliseconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
