"""Watch the resident memory of one long run.

    python -m scripts.bench_memory [--photos 2000] [--save mask,overlay]
    python -m scripts.bench_memory --video 10 [--save mask,overlay]

Runs the bundled model over the Carvana photos, each under as many names as it takes to reach the number, or
the model `fast` over a drawn clip of so many minutes at 360x640; prints the memory every few hundred
pictures, its growth after picture 300, and its peak. Exits with 1 above 50 MB of growth (a clip 100 MB) or
1.5 GB of peak.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

import unet_batch
from scripts import carvana
from unet_batch.run.execute import execute
from unet_batch.run.observe import Observer
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare

SETTLED = 300
MAX_GROWTH, MAX_PEAK = 50e6, 1.5e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--video", type=float, metavar="MINUTES", help="a drawn clip instead of photos")
    parser.add_argument("--save", default="mask,overlay")
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
