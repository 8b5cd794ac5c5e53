"""Draw the picture at the top of the README: photo, mask, overlay and cutout of three sample scenes.

python -m scripts.make_demo -o docs/images/demo.jpg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import unet_batch
from unet_batch.inference import postprocess
from unet_batch.media import render
from unet_batch.media.images import encode_jpeg
from unet_batch.scenes import draw
from unet_batch.types import Item

SCENES = (2, 1, 5)
HEIGHT, GAP = 200, 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--scenes", type=int, nargs="+", default=SCENES)
    options = parser.parse_args()
    rows = []
    with unet_batch.load() as segmenter:
        for seed in options.scenes:
            photo = draw(seed, (640, 960))[0]
            prediction = segmenter.infer([segmenter.frame(Item("scene", "scene"), photo, photo.shape[:2])])[0]
            probability = postprocess.probability(prediction.map, prediction.frame.placement)
            mask = segmenter.mask(prediction)
            cutout = render.on_checkerboard(render.cutout(photo, probability))
            overlay = render.overlay(photo, mask, segmenter.spec.classes)
            rows.append(render.side_by_side([photo, mask, overlay, cutout], HEIGHT, GAP))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    sheet = np.concatenate([part for row in rows for part in (row, gap)][:-1])
    Path(options.output).write_bytes(encode_jpeg(sheet, 88))


if __name__ == "__main__":
    main()
