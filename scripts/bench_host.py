"""Measure what the pipeline itself allows from file to file: the GPU is simulated, all else is real.

    python -m scripts.bench_host [TREE ...] [--photos 200] [--rounds 5] [--save mask,overlay] [--isolate]
                                 [--size 160x240]

Each TREE is a checkout of this project (default: this one). They take turns, forwards and backwards, so that
a change is compared with what was there before it, on the same machine at the same time. Pictures are
Carvana's, or with `--samples` drawn ones of 1280x1918. `--tiny` draws them at 64x96: there next to everything
is Python and its lock, so the processor time of the process that holds the backend is what the lock costs a
picture.

The GPU sleeps as long as an H100 is expected to take for the bundled model: a batch of 32 in 1.4 ms (22,000
pictures a second), one batch at a time, beside copies of 0.15 ms in and 0.05 ms out. Its masks are ellipses
with soft edges, about as large as a car.

Pictures a second for each core are the pictures over the processor seconds of all processes: what else runs
on the machine hardly disturbs that. What is written stays until the end: for five seconds after files were
deleted, ext4 searches up to a millisecond for the inode of a new one. `TMPDIR` says where that is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import psutil

COMPUTE, UPLOAD, DOWNLOAD = 1.4e-3, 0.15e-3, 0.05e-3
BATCH, STREAMS = 32, 3
HERE = Path(__file__).resolve().parents[1]


def simulated_gpu(size: tuple[int, int]) -> Any:
    """A backend that sleeps, and answers with an ellipse that the picture moves a little."""
    from unet_batch.inference.backends.base import Backend
    from unet_batch.testing import fake_spec

    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    ellipse = np.clip(128 + 900 * (1 - (x / 0.7) ** 2 - (y / 0.6) ** 2), 0, 255).astype(np.uint8)
    maps = np.stack([np.roll(ellipse, shift, axis=1) for shift in range(-8, 8)])

    class SimulatedGpu(Backend):
        name, precision, reason = "simulated-gpu", "fp16", "a measurement of everything else"

        def __init__(self) -> None:
            self.spec = fake_spec(size)
            self.batch_size, self.streams = BATCH, STREAMS
            self._engine = Lock()

        def _open(self) -> None:
            pass

        def _infer(self, pictures: Sequence[Any]) -> Any:
            time.sleep(UPLOAD)
            with self._engine:
                time.sleep(COMPUTE)
            time.sleep(DOWNLOAD)
            middle = size[0] // 2, size[1] // 2, 0
            return maps[[int(picture[middle]) % len(maps) for picture in pictures]]

        def _close(self) -> None:
            pass

    return SimulatedGpu()


def processor_seconds() -> tuple[float, float]:
    """Of this process, and of those that it started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    own, *others = (each.user + each.system for each in times)
    return own, sum(others)


def measure(options: argparse.Namespace) -> None:
    """Print a line of JSON for each round; runs in a process of its own, which imports the tree measured."""
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.execute import execute
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare

    out = tempfile.mkdtemp(dir=os.path.dirname(options.measure))
    height, width = map(int, options.size.split("x"))
    with Segmenter(simulated_gpu((height, width)), isolate=options.isolate) as segmenter:
        for number in range(options.rounds + 1):
            folder = os.path.join(out, str(number))  # replacing files would take longer than writing them
            plan = prepare(RunOptions((options.measure,), folder, save=tuple(options.save.split(","))))
            own, others = processor_seconds()
            report = execute(plan, segmenter)
            own, others = (now - then for now, then in zip(processor_seconds(), (own, others), strict=True))
            assert report.done == len(plan.todo), report.failures
            if number:  # the first one warms up
                stages = {stage.name: 1e3 * stage.cpu / report.done for stage in report.stages}
                batches = next(stage.batches for stage in report.stages if stage.name == "infer")
                found = {
                    "rate": report.done / report.seconds,
                    "ms": 1e3 * (own + others) / report.done,
                    "own_ms": 1e3 * own / report.done,
                    "batch": report.done / batches,
                    "stages": stages,
                }
                print(json.dumps(found), flush=True)


def run_tree(tree: Path, options: argparse.Namespace, pictures: str) -> list[dict[str, Any]]:
    """One round of a tree, in a process of its own."""
    command = [sys.executable, os.fspath(Path(__file__).resolve()), "--measure", pictures, "--rounds", "1"]
    command += ["--save", options.save, "--size", options.size]
    command += ["--isolate"] if options.isolate else []
    environment = {**os.environ, "PYTHONPATH": os.fspath(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def gather(folder: str, options: argparse.Namespace) -> None:
    """Put the pictures into a folder: links to Carvana's, or drawn ones, each several times."""
    if options.tiny or options.samples:
        from unet_batch.scenes import write_samples

        size = (64, 96) if options.tiny else (1280, 1918)
        drawn = f"{folder}.drawn"
        sources = [Path(p) for p in write_samples(drawn, min(options.photos, 32), size, 5, with_masks=False)]
    else:
        from scripts import carvana

        sources = [photo.image for photo in carvana.photos()]
    os.makedirs(folder)
    for number in range(options.photos):
        source = sources[number % len(sources)].resolve()
        os.symlink(source, os.path.join(folder, f"{number:05}{source.suffix}"))
        source.read_bytes()  # into the page cache


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, default=[HERE], help="checkouts to compare")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", default="mask", help="kinds of output, with commas")
    parser.add_argument("--size", default="160x240", help="of the network's input")
    parser.add_argument("--samples", action="store_true", help="drawn photos instead of Carvana's")
    parser.add_argument("--tiny", action="store_true", help="drawn photos of 64x96")
    parser.add_argument("--isolate", action="store_true", help="in processes of their own")
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options)
    if min(options.photos, options.rounds) < 1:
        parser.error("--photos and --rounds are at least 1")
    trees = [tree.resolve() for tree in options.trees]
    for tree in trees:
        if not (tree / "unet_batch").is_dir():
            parser.error(f"{tree}: not a checkout of this project")
    found: dict[Path, list[dict[str, Any]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory() as folder:
        pictures = os.path.join(folder, "pictures")
        gather(pictures, options)
        for number in range(options.rounds):
            for tree in trees if number % 2 == 0 else trees[::-1]:
                found[tree] += run_tree(tree, options, pictures)
    print(f"{options.photos} pictures, {options.rounds} rounds, saving {options.save}; medians")
    for tree in trees:
        rounds = found[tree]
        ms, own, rate, batch = (
            statistics.median(each[key] for each in rounds) for key in ("ms", "own_ms", "rate", "batch")
        )
        stages = {
            name: statistics.median(each["stages"].get(name, 0.0) for each in rounds)
            for name in rounds[0]["stages"]
        }
        times = statistics.median(
            first["ms"] / each["ms"] for first, each in zip(found[trees[0]], rounds, strict=True)
        )
        print(
            f"{tree}: {1e3 / ms:.1f} pictures/s for each core ({times:.2f} times the first), {rate:.1f}/s in "
            f"all;\n  {ms:.2f} ms of processor time, {own:.2f} of it in the process of the backend; batches "
            f"of {batch:.1f}; " + ", ".join(f"{name} {value:.2f}" for name, value in stages.items())
        )
    if options.json:
        Path(options.json).write_text(
            json.dumps({os.fspath(tree): rounds for tree, rounds in found.items()}, indent=1) + "\n"
        )
    return None


if __name__ == "__main__":
    main()
