"""What `run --smooth` does to masks: how much they flicker, and how right they stay.

    python -m scripts.eval_smooth [--seconds 24] [--noise 12]

Flicker is the share of a mask's pixels that appear or vanish from one frame to the next, cuts left out; of a
drawn clip, whose exact masks are known, what the car's own motion accounts for is given too, and Dice against
them. Noise (levels) makes the drawn clip as unsteady as footage at night. Of car-detection.mp4 there is no
truth: only its flicker is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scripts import carvana
from unet_batch.inference import postprocess
from unet_batch.inference.backends.torch import TorchBackend
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.smoothing import Smoother
from unet_batch.media import video
from unet_batch.model import checkpoint, zoo
from unet_batch.scenes.drive import drive
from unet_batch.types import Item, Prediction

if TYPE_CHECKING:
    from unet_batch.types import Pixels

SECONDS = (0.0, 0.1, 0.2, 0.4, 1.0)


def drawn(seconds: float, noise: float) -> Iterator[tuple[Fraction, Pixels, Pixels | None]]:
    """(time, picture, exact mask) of a drawn clip at 25 frames a second."""
    dice = np.random.default_rng(0)
    for index, (picture, mask) in enumerate(drive(7, (540, 960), round(25 * seconds), Fraction(25))):
        noisy = picture + dice.normal(0, noise, picture.shape) if noise else picture
        yield Fraction(index, 25), np.clip(noisy, 0, 255).astype(np.uint8), mask


def footage(path: Path) -> Iterator[tuple[Fraction, Pixels, Pixels | None]]:
    """(time, picture, nothing) of a file."""
    with video.Reader(str(path)) as reader:
        for frame in reader.frames():
            yield frame.pts * reader.clip.time_base, reader.rgb(frame), None


def flicker(masks: list[Pixels]) -> float:
    """Mean share of a mask's pixels that change from frame to frame; cuts, where over half do, left out."""
    shares = [
        float(np.count_nonzero(a != b)) / float(np.count_nonzero(a | b))
        for a, b in pairwise(masks)
        if (a | b).any()
    ]
    return float(np.mean([share for share in shares if share < 0.5]))


def report(name: str, frames: Iterator[tuple[Fraction, Pixels, Pixels | None]], segmenter: Segmenter) -> None:
    seen: list[tuple[Fraction, Pixels, Prediction, Pixels | None]] = []
    for time, picture, truth in frames:
        frame = segmenter.frame(Item("", ""), picture, picture.shape[:2])
        seen += [(time, frame.network_input, segmenter.infer([frame])[0], truth)]
    truths = [truth for *_, truth in seen if truth is not None]
    print(f"{name}: {len(seen)} frames" + (f", the car's own motion {flicker(truths):.4f}" if truths else ""))
    for seconds in SECONDS:
        smoother = Smoother(seconds, 1) if seconds else None
        masks, hits, total = [], 0, 0
        for time, tensor, prediction, truth in seen:
            map = prediction.map if smoother is None else smoother(tensor, prediction.map, time)
            mask = postprocess.mask_from_map(map, prediction.frame.placement, segmenter.threshold)
            masks.append(mask)
            if truth is not None:
                hits += 2 * np.count_nonzero(mask & truth)
                total += np.count_nonzero(mask) + np.count_nonzero(truth)
        dice = f", Dice {hits / total:.4f}" if total else ""
        print(f"  --smooth {seconds:<4}: flicker {flicker(masks):.4f}{dice}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=24)
    parser.add_argument("--noise", type=float, default=12)
    options = parser.parse_args()
    with Segmenter(TorchBackend(checkpoint.load(zoo.resolve("classic")))) as segmenter:
        for noise in (0.0, options.noise):
            report(f"drawn, noise of {noise:g} levels", drawn(options.seconds, noise), segmenter)
        real = carvana.data_folder() / "videos" / "car-detection.mp4"
        if real.is_file():
            report(real.name, footage(real), segmenter)


if __name__ == "__main__":
    main()
