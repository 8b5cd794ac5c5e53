"""Measure `unet-batch run` against the loop that everyone writes, in one process, on the same photos.

    python -m scripts.bench_run [--photos 200] [--rounds 3] [--folder DIR]

The loop: cv2.imread, resize, float32 NCHW, eager PyTorch, sigmoid, resize back, threshold, cv2.imwrite, one
picture at a time, with torch's own number of threads. Both write masks at the photo's size. Start-up
(imports, loading weights, folding) is left out on both sides, and each side warms up first. Rounds alternate,
the figures are medians.

The floor of a run is what is left when nothing waits: the seconds of the engine alone for as many pictures,
plus the processor seconds of all other stages divided by the cores. `wall / floor` says how much of the run
is idle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from scripts import carvana
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.torch import TorchBackend
from unet_batch.inference.segmenter import Segmenter
from unet_batch.model import checkpoint, zoo
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.model.unet import UNet
from unet_batch.pipeline import cpu_count
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.report import RunReport
from unet_batch.scenes import write_samples


def naive_loop(loaded: Checkpoint, paths: list[str], out: str) -> float:
    """Seconds of the loop that everyone writes."""
    spec, model = loaded.spec, loaded.model
    height, width = spec.input_size
    mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    begun = time.perf_counter()
    with torch.no_grad():
        for path in paths:
            picture = carvana.read_rgb(path)
            small = cv2.resize(picture, (width, height))
            x = (
                torch.from_numpy(small).permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255 - mean
            ) / std
            probability = torch.sigmoid(model(x))[0, 0].numpy()
            full = cv2.resize(probability, (picture.shape[1], picture.shape[0]))
            cv2.imwrite(os.path.join(out, Path(path).stem + ".png"), (full > 0.5).astype(np.uint8) * 255)
    return time.perf_counter() - begun


def our_run(segmenter: Segmenter, paths: list[str], out: str) -> RunReport:
    """The report of one run."""
    plan = prepare(RunOptions(tuple(paths), out, overwrite=True))
    report = execute(plan, segmenter)
    assert report.done == len(paths), report.failures
    return report


def engine_only(backend: Backend, count: int) -> float:
    """Seconds of the backend alone for `count` pictures, with as many threads as a run gives it."""
    shape = (backend.batch_size, *backend.input_size, 3)
    pictures = list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    calls = [
        count // backend.batch_size // backend.streams + (i < count // backend.batch_size % backend.streams)
        for i in range(backend.streams)
    ]

    def work(number: int) -> None:
        with backend.thread():
            for _ in range(calls[number]):
                backend.infer(pictures)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(backend.streams)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def measure(name: str, loaded: Checkpoint, paths: list[str], rounds: int) -> dict[str, object]:
    """One model: the loop, the run and the engine in turn, `rounds` times."""
    cores = cpu_count()
    loop_s, run_s, engine_s, floors = [], [], [], []
    with tempfile.TemporaryDirectory() as out, Segmenter(TorchBackend(loaded)) as segmenter:
        naive_loop(loaded, paths[:5], out)
        our_run(segmenter, paths[:10], out)
        for _ in range(rounds):
            loop_s.append(naive_loop(loaded, paths, out))
            report = our_run(segmenter, paths, out)
            run_s.append(report.seconds)
            engine_s.append(engine_only(segmenter.backend, len(paths)))
            others = sum(stage.cpu for stage in report.stages if stage.name != "infer")
            floors.append(engine_s[-1] + others / cores)
        backend = f"{segmenter.backend.name} {segmenter.backend.precision}"
    count = len(paths)
    result = {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "backend": backend,
        "photos": count,
        "loop_images_per_s": count / statistics.median(loop_s),
        "run_images_per_s": count / statistics.median(run_s),
        "engine_images_per_s": count / statistics.median(engine_s),
        "speed_up": statistics.median(a / b for a, b in zip(loop_s, run_s, strict=True)),
        "wall_over_floor": statistics.median(a / b for a, b in zip(run_s, floors, strict=True)),
        "rounds": [
            [round(a, 2), round(b, 2), round(c, 2), round(d, 2)]
            for a, b, c, d in zip(loop_s, run_s, engine_s, floors, strict=True)
        ],
    }
    print(
        f"{name:<10} {backend}: loop {result['loop_images_per_s']:.1f}/s, run "
        f"{result['run_images_per_s']:.1f}/s, "
        f"speed-up {result['speed_up']:.2f}; engine alone {result['engine_images_per_s']:.1f}/s, "
        f"wall/floor {result['wall_over_floor']:.3f}; bottleneck {report.bottleneck}",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--samples", action="store_true", help="use drawn photos of 1280x1918 instead of Carvana's"
    )
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.samples:
            paths = write_samples(folder, options.photos, (1280, 1918), 5, with_masks=False)
        else:
            paths = [str(photo.image) for photo in carvana.photos()[: options.photos]]
        for path in paths:  # both sides find the files in the page cache
            Path(path).read_bytes()
        bundled = checkpoint.load(zoo.resolve("classic"))
        # The time does not depend on the values of the weights, so the large network need not be trained.
        torch.manual_seed(0)
        large = UNet(3, 1, (64, 128, 256, 512, 1024)).eval().requires_grad_(False)
        spec = type(bundled.spec)(**{**vars(bundled.spec), "name": "31M", "widths": large.widths})
        print(
            f"{len(paths)} photos, {options.rounds} rounds, torch {torch.__version__}, {platform.machine()}, "
            f"{cpu_count()} cores"
        )
        results = [
            measure("bundled", bundled, paths, options.rounds),
            measure("31M", Checkpoint(large, spec, "", ""), paths, options.rounds),
        ]
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
