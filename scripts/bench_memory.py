"""Watch the resident memory of one long run.

    python -m scripts.bench_memory [--photos 2000] [--save mask,overlay]
    python -m scripts.bench_memory --video 10 [--save mask,overlay]
    python -m scripts.bench_memory --giant 30000 [--model fast] [--save mask,stats,objects]

Runs the bundled model over the Carvana photos, each under as many names as it takes to reach the number, or
the model `fast` over a drawn clip of so many minutes at 360x640; prints the memory every few hundred
pictures, its growth after picture 300, and its peak. Exits with 1 above 50 MB of growth (a clip 100 MB) or
1.5 GB of peak.

The third draws a TIFF of so many pixels along each side, in tiles of JPEG, and segments it in tiles of
512x512 by a network that says what it sees, so that all that takes time is ours. Prints the processor time
for a million pixels, which should not depend on the side, less what a run of a picture of 64x64 takes; how
many pixels of tiles there are for one of the picture, to which a network's time is proportional; and the peak
of memory. Small ones are segmented up to seven times, and the median counts. With a model, it is that which
segments the tiles, and what a user waits for is measured. Exits with 1 above 2 GB.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import unet_batch
from scripts import carvana
from unet_batch.files.outputs import OutputTree
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.run import giant
from unet_batch.run.execute import execute
from unet_batch.run.observe import Observer
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec

SETTLED = 300
MAX_GIANT_PEAK = 2e9
ENOUGH = 20
"""Seconds after which a large picture is not segmented once more."""
_DRAW = """
import sys, numpy, tifffile
side, random = int(sys.argv[2]), numpy.random.default_rng(0)
texture = numpy.kron(random.integers(0, 60, (64, 64, 3)), numpy.ones((8, 8, 1), int))
count = -(-side // 512)
tiles = (
    (texture + 195 * (row * count + column) // count**2).astype("u1")
    for row in range(count) for column in range(count)
)
tifffile.imwrite(
    sys.argv[1] + "/giant.tif", tiles, shape=(side, side, 3), dtype="u1", tile=(512, 512),
    compression="jpeg", photometric="rgb", bigtiff=True,
)
"""
MAX_GROWTH, MAX_PEAK = 50e6, 1.5e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--video", type=float, metavar="MINUTES", help="a drawn clip instead of photos")
    parser.add_argument("--save", help="mask,overlay; of the TIFF mask alone")
    parser.add_argument("--giant", type=int, metavar="SIDE", help="one drawn TIFF instead of photos")
    parser.add_argument("--model", help="segments the drawn TIFF; a network that costs nothing without it")
    options = parser.parse_args()
    if options.giant:
        raise SystemExit(segment_giant(options.giant, options.model, options.save or "mask"))
    options.save = options.save or "mask,overlay"
    process = psutil.Process()
    resident: list[int] = []

    def advance(*_: object) -> None:
        resident.append(process.memory_info().rss)
        if len(resident) % (1500 if options.video else 250) == 0 or len(resident) == SETTLED:
            print(f"picture {len(resident):6}: {resident[-1] / 1e6:7.1f} MB", flush=True)

    with (
        tempfile.TemporaryDirectory() as folder,
        unet_batch.load("fast" if options.video else None) as segmenter,
    ):
        if options.video:  # drawn by another process: what that takes is not to be measured here
            code = (
                "import sys; from unet_batch.scenes import write_clip; "
                "write_clip(sys.argv[1], float(sys.argv[2]), (360, 640))"
            )
            subprocess.run(
                [sys.executable, "-c", code, folder, str(60 * options.video)],
                check=True,
                cwd=Path(__file__).parents[1],
            )
            source = os.path.join(folder, "videos")
        else:
            source, photos = folder, carvana.photos()
            for index in range(options.photos):
                photo = photos[index % len(photos)]
                os.symlink(photo.image, os.path.join(folder, f"{index:05}.jpg"))
        with tempfile.TemporaryDirectory() as out:
            plan = prepare(RunOptions((source,), out, tuple(options.save.split(","))))
            observer = Observer()
            vars(observer)["frame" if options.video else "outcome"] = advance
            report = execute(plan, segmenter, observer)
    most = MAX_GROWTH * (2 if options.video else 1)
    growth = max(resident[SETTLED:]) - resident[SETTLED - 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"{report.done} done, {report.failed} failed, saving {options.save}, "
        f"{len(resident) / report.seconds:.1f} pictures/s"
    )
    print(f"growth after picture {SETTLED}: {growth / 1e6:.1f} MB (at most {most / 1e6:.0f})")
    print(f"peak: {peak / 1e6:.0f} MB (at most {MAX_PEAK / 1e6:.0f})")
    raise SystemExit(int(growth > most or peak > MAX_PEAK or report.failed > 0))


def segment_giant(side: int, model: str | None, save: str) -> int:
    """Segment a picture that memory does not hold; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        source, out, small, first = (os.path.join(folder, name) for name in ("in", "out", "small", "first"))
        for name, length in ((source, side), (small, 64), (first, 2000)):
            os.mkdir(name)
            subprocess.run([sys.executable, "-c", _DRAW, name, str(length)], check=True)
        backend = FakeBackend(fake_spec((512, 512)), lambda tiles: tiles[..., 1].copy(), batch_size=8)
        giant.MEMORY = 0  # small ones, too, are read in bands: to compare them
        fake, kinds = Segmenter(backend, view=ViewOptions(fit="tile")), tuple(save.split(","))
        with unet_batch.load(model, fit="tile") if model else fake as segmenter:
            starts = []
            for number, name in enumerate((first, *[small] * 5)):  # imports and memory come with the first
                cpu = time.process_time()
                execute(prepare(RunOptions((name,), f"{out}-{number}", kinds)), segmenter)
                starts.append(time.process_time() - cpu)
            start = statistics.median(starts[1:])
            taken: list[tuple[float, float]] = []
            while not taken or (len(taken) < 7 and sum(wall for wall, _ in taken) < ENOUGH):
                begun, cpu = time.perf_counter(), time.process_time()
                plan = prepare(RunOptions((source,), f"{out}-again-{len(taken)}", kinds))
                report = execute(plan, segmenter)
                taken.append((time.perf_counter() - begun, time.process_time() - cpu))
            seconds, cpu = (statistics.median(each) for each in zip(*taken, strict=True))
            assert segmenter.view.tiling is not None
            tiles = len(segmenter.view.tiling.grid((side, side)))
        tree = OutputTree(f"{out}-again-0", kinds)
        paths = [f"{source}/giant.tif", *(tree.path(kind, "giant") for kind in kinds)]
        sizes = [f"{os.path.getsize(path) / 1e6:.1f}" for path in paths]
        tables = "".join(f", {facts['rows']:,} rows of {kind}" for kind, facts in report.tables.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{side}x{side}: {report.done} done; from {sizes[0]} to {' + '.join(sizes[1:])} MB{tables}")
    for stage in report.stages:
        print(f"  {stage.name:8} {stage.cpu:8.1f} s of processor time")
    print(f"{seconds:.1f} s; {cpu:.2f} s of processor time, of which {1e3 * start:.0f} ms to start")
    print(f"{1e9 * (cpu - start) / side**2:.1f} ms a megapixel without these")
    pixels = tiles * math.prod(segmenter.view.tiling.tile)
    print(f"{tiles:,} tiles, {pixels / side**2:.2f} of their pixels for one of the picture")
    print(f"peak: {peak / 1e6:.0f} MB (at most {MAX_GIANT_PEAK / 1e6:.0f})")
    return int(report.done != 1 or peak > MAX_GIANT_PEAK)


if __name__ == "__main__":
    main()
