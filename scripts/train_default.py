"""Train the bundled model: Carvana photos split by car, plus this project's own sample scenes.

    python scripts/train_default.py -o unet_batch/model/weights/default.safetensors

Two phases (`PHASES`): a long one with strong augmentation, at half the size at first, and a finish with mild augmentation and
smaller batches, which starts from the averaged weights. `--init FILE` skips the first. Deterministic by
seed up to the order of floating-point sums. About an hour and a half on two cores that execute bfloat16;
`scripts/eval_default.py` measures the result on the cars that were kept out.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import carvana

from unet_batch.geometry import PAD_VALUE
from unet_batch.model import checkpoint
from unet_batch.model.unet import UNet
from unet_batch.render import palette
from unet_batch.scenes.compose import draw
from unet_batch.scenes.samples import scene_seed
from unet_batch.types import ClassTable, ModelSpec

SIZE = (160, 240)
# Pictures are kept at twice the network's size, so that zooming and turning in augmentation never has to invent detail.
STORED = (320, 480)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED, SCENES = 3, 160
SCENE_SEED = 1  # the demo draws with seed 0, the evaluation with 2: no scene is in two sets


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one learning-rate schedule.

    Attributes:
        sizes: size of the samples, epoch by epoch.
        batch: samples in a step.
        rate: learning rate after warm-up; falls to nearly nothing along a cosine.
        strength: of augmentation, 1 = strong.
        decay: of the running mean of the weights.
    """

    sizes: tuple[tuple[int, int], ...]
    batch: int
    rate: float
    strength: float
    decay: float


PHASES = (
    # Half the size first: a quarter of the arithmetic teaches the coarse features just as well.
    Phase(6 * ((80, 120),) + 17 * (SIZE,), batch=16, rate=1.2e-3, strength=1.0, decay=0.995),
    # After the first phase Dice was lower on the training cars (0.987) than on the others (0.989): not learned enough.
    Phase(12 * (SIZE,), batch=8, rate=6e-4, strength=0.35, decay=0.998),
)


def load_scenes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample scenes at the stored size: pictures uint8 (N, h, w, 3), coverage uint8 (N, h, w)."""
    pictures = np.empty((count, *STORED, 3), np.uint8)
    coverage = np.empty((count, *STORED), np.uint8)
    for index in range(count):
        picture, mask = draw(scene_seed(SCENE_SEED, index), (2 * STORED[0], 2 * STORED[1]))
        pictures[index] = cv2.resize(picture, STORED[::-1], interpolation=cv2.INTER_AREA)
        coverage[index] = cv2.resize(mask, STORED[::-1], interpolation=cv2.INTER_AREA)
    return pictures, coverage


def augment(
    picture: np.ndarray, coverage: np.ndarray, size: tuple[int, int], strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One training sample of `size`; geometry is shared, colour touches the picture alone."""
    height, width = size
    # The whole picture at its own scale stays the commonest case: it is what every photo looks like at run time.
    zoom = 1.0 if rng.random() < 0.3 else float(np.exp(rng.normal(0.0, 0.13 * strength)))
    aspect = float(np.exp(rng.normal(0.0, 0.04 * strength)))
    angle = math.radians(float(rng.normal(0.0, 3.0 * strength))) if rng.random() < 0.5 else 0.0
    shift = rng.normal(0.0, 0.04 * strength, 2) * (width, height) if rng.random() < 0.5 else np.zeros(2)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    scale_x, scale_y = width / STORED[1] * zoom * aspect, height / STORED[0] * zoom / aspect
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos * scale_x * flip, -sin * scale_y], [sin * scale_x * flip, cos * scale_y]])
    # Pixel centres lie at +0.5: the middle of the stored picture goes to the middle of the sample.
    centre_in = np.array([STORED[1] / 2 - 0.5, STORED[0] / 2 - 0.5])
    centre_out = np.array([width / 2 - 0.5, height / 2 - 0.5]) + shift
    matrix = np.hstack([linear, (centre_out - linear @ centre_in)[:, None]])
    pad = (PAD_VALUE,) * 3
    # Bilinear sampling at half scale and whole offsets is the 2x2 mean, the same as area resampling at run time.
    sample = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=pad)
    target = cv2.warpAffine(coverage, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    values = sample.astype(np.float32)
    if rng.random() < 0.7:
        values = values * rng.uniform(0.75, 1.3) + rng.uniform(-20, 20)
        grey = values.mean(axis=2, keepdims=True)
        values = grey + (values - grey) * rng.uniform(0.5, 1.5)
        values = values * rng.uniform(0.92, 1.08, 3)
    if rng.random() < 0.15 * strength:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.25 * strength:
        values = values + rng.normal(0, rng.uniform(1, 8), values.shape)
    return np.clip(values + 0.5, 0, 255).astype(np.uint8), target


def batches(
    data: tuple[np.ndarray, np.ndarray], phase: Phase, epoch: int, seed: tuple[int, ...], pool: ThreadPoolExecutor
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch, shuffled: normalised float (B, 3, H, W) and coverage 0..1 float (B, 1, H, W)."""
    pictures, coverage = data
    order = np.random.default_rng((*seed, epoch)).permutation(len(pictures))
    mean, std = (torch.tensor(value).mul(255).view(1, 3, 1, 1) for value in (MEAN, STD))

    def one(index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((*seed, epoch, int(index)))
        return augment(pictures[index], coverage[index], phase.sizes[epoch], phase.strength, rng)

    for start in range(0, len(order) - phase.batch + 1, phase.batch):
        samples = list(pool.map(one, order[start : start + phase.batch]))
        x = torch.from_numpy(np.stack([sample for sample, _ in samples])).permute(0, 3, 1, 2).float()
        y = torch.from_numpy(np.stack([target for _, target in samples]))[:, None].float() / 255
        yield ((x - mean) / std).contiguous(memory_format=torch.channels_last), y


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against coverage (so that edge pixels learn their share) plus soft Dice."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum() + 1
    return F.binary_cross_entropy_with_logits(logits, target) + 1 - overlap / ((probability + target).sum() + 1)


def average(shadow: UNet, model: UNet, decay: float) -> None:
    """Exponential mean of the weights: steadier than the last step's."""
    with torch.no_grad():
        for old, new in zip(shadow.state_dict().values(), model.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


def train(
    model: UNet, data: tuple[np.ndarray, np.ndarray], phase: Phase, seed: tuple[int, ...], done: Callable[[UNet], None]
) -> UNet:
    """Train through one phase; returns the averaged model, which `done` is given after every epoch too."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shadow = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.rate)
    steps = len(phase.sizes) * (len(data[0]) // phase.batch)
    warm_up = min(100, steps // 10 + 1)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) + 1e-3

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    step = 0
    with ThreadPoolExecutor(2) as pool:
        for epoch in range(len(phase.sizes)):
            model.train()
            begun, losses = time.time(), []
            for x, y in batches(data, phase, epoch, seed, pool):
                with torch.autocast("cpu", torch.bfloat16):
                    features = model.features(x)
                loss = loss_of(model.head(features.float()), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                step += 1
                average(shadow, model, min(phase.decay, step / (step + 10)))
                losses.append(loss.item())
            row = {"epoch": epoch + 1, "loss": round(sum(losses) / len(losses), 5), "seconds": round(time.time() - begun)}
            print(json.dumps(row), flush=True)
            done(shadow)
    return shadow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--init", help="a checkpoint to start the last phase from")
    options = parser.parse_args()

    cv2.setNumThreads(1)
    torch.manual_seed(SEED)
    training, held_out = carvana.split(carvana.photos())
    started = time.time()
    photos, scenes = carvana.load(training, STORED), load_scenes(SCENES)
    data = np.concatenate((photos[0], scenes[0])), np.concatenate((photos[1], scenes[1]))
    seconds = time.time() - started
    print(f"{len(training)} photos, {len(held_out)} held out, {SCENES} scenes, {seconds:.0f} s to load", flush=True)

    def save(model: UNet) -> None:
        spec = ModelSpec(
            name="default",
            widths=model.widths,
            in_channels=3,
            input_size=SIZE,
            mean=MEAN,
            std=STD,
            classes=ClassTable(("car",), palette(1)),
            training={
                "data": f"Carvana: {len(training)} photos of {len({photo.car for photo in training})} cars",
                "scenes": SCENES,
                "held_out_cars": sorted({photo.car for photo in held_out}),
                "phases": [dataclasses.asdict(phase) for phase in PHASES],
                "seed": SEED,
                "script": "scripts/train_default.py",
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )
        checkpoint.save(options.output, model, spec)

    model = checkpoint.load(options.init).model.requires_grad_(True) if options.init else UNet()
    for number in range(1 if options.init else 0, len(PHASES)):
        # The first phase draws with the bare seed.
        model = train(model, data, PHASES[number], (SEED, number) if number else (SEED,), save)


if __name__ == "__main__":
    main()
