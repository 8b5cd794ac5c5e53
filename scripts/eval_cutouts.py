"""How much of the old background is left in the colours of a cutout's edge.

    python -m scripts.eval_cutouts [--photos N] [--data DIR]

Cars of Carvana's training photos, their own colours continued beyond their edge, are laid over streets and
over plain green with an edge three pixels soft; what `own_colours` makes of that is compared with the car
itself. Levels of 255, mean over what is between 5 and 95 % car, weighted by that; and milliseconds of the
processor for a cutout.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from scripts import carvana
from unet_batch.media import render
from unet_batch.media.refine import own_colours

GREEN = (60, 200, 40)


def continued(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The colours of the object, RGB float32 (h, w, 3), also some way beyond its edge."""
    inside = cv2.erode(mask, np.ones((7, 7)))
    around = cv2.dilate(mask, np.ones((31, 31))) - inside
    return np.asarray(cv2.inpaint(picture, around, 3, cv2.INPAINT_TELEA), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--data", type=Path, default=carvana.data_folder())
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = random.Random(3).sample(carvana.split(carvana.photos(options.data))[0], options.photos)
    streets = sorted((options.data / "camvid" / "images").iterdir())
    left: dict[str, list[tuple[float, float]]] = {"street": [], "green": []}
    seconds: list[float] = []
    for photo, street in zip(photos, streets, strict=False):
        with Image.open(photo.image) as file, Image.open(photo.mask) as drawn:
            picture, mask = np.asarray(file.convert("RGB")), (np.asarray(drawn) > 0).astype(np.uint8)
        own = continued(picture, mask)
        share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)
        alpha, edge = np.rint(255 * share).astype(np.uint8), (share > 0.05) & (share < 0.95)
        with Image.open(street) as file:
            behind = np.asarray(file.convert("RGB").resize(picture.shape[1::-1]))
        for name, colours in (("street", behind), ("green", np.full_like(picture, GREEN))):
            part = share[..., None]
            seen = np.rint(part * own + (1 - part) * colours).astype(np.uint8)
            errors = (
                float(np.average(np.abs(found - own).mean(2)[edge], weights=share[edge]))
                for found in (seen.astype(np.float32), own_colours(seen, alpha).astype(np.float32))
            )
            left[name].append((next(errors), next(errors)))
            begun = time.process_time()
            render.cutout(seen, alpha)
            seconds.append(time.process_time() - begun)
    for name, pairs in left.items():
        before, after = np.mean(pairs, 0)
        print(f"over {name}: {before:.1f} levels as it is, {after:.1f} with colours of its own")
    print(f"{1000 * float(np.median(seconds)):.0f} ms for a cutout of {mask.shape[0]}x{mask.shape[1]}")


if __name__ == "__main__":
    main()
