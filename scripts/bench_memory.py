"""Watch the resident memory of one long run.

    python scripts/bench_memory.py [--photos 2000] [--save mask,overlay]

Runs the bundled model over the Carvana photos, each under as many names as it takes to reach the number, and prints the memory
every few hundred photos, its growth after photo 300, and its peak. Exits with 1 above 50 MB of growth or 1.5 GB of peak.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import carvana

import unet_batch
from unet_batch.run import RunOptions, execute, prepare
from unet_batch.types import Item

SETTLED = 300
MAX_GROWTH, MAX_PEAK = 50e6, 1.5e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--save", default="mask,overlay")
    options = parser.parse_args()
    photos = carvana.photos()
    process = psutil.Process()
    resident: list[int] = []

    def advance(item: Item, failure: object) -> None:
        resident.append(process.memory_info().rss)
        if len(resident) % 250 == 0 or len(resident) == SETTLED:
            print(f"photo {len(resident):5}: {resident[-1] / 1e6:7.1f} MB", flush=True)

    with tempfile.TemporaryDirectory() as folder, unet_batch.load() as segmenter:
        for index in range(options.photos):
            photo = photos[index % len(photos)]
            os.symlink(photo.image, os.path.join(folder, f"{index:05}.jpg"))
        with tempfile.TemporaryDirectory() as out:
            plan = prepare(RunOptions((folder,), out, tuple(options.save.split(","))))
            report = execute(plan, segmenter, {}, advance)
    growth = max(resident[SETTLED:]) - resident[SETTLED - 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{report.done} done, {report.failed} failed, saving {options.save}, {report.images_per_second:.1f} photos/s")
    print(f"growth after photo {SETTLED}: {growth / 1e6:.1f} MB (at most {MAX_GROWTH / 1e6:.0f})")
    print(f"peak: {peak / 1e6:.0f} MB (at most {MAX_PEAK / 1e6:.0f})")
    raise SystemExit(int(growth > MAX_GROWTH or peak > MAX_PEAK or report.failed > 0))


if __name__ == "__main__":
    main()
