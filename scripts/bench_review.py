"""What a large run costs who looks at it: `labels`, `report`, `audit` and `diff`, by the number of items.

    python -m scripts.bench_review                              # 25,000 and 100,000 items
    python -m scripts.bench_review --items 1000 --keep DIR      # keeps the folders, to look at

Draws a few hundred small photos and masks, links them under as many names as asked for, beside a manifest as
a run would have left it, and calls each command in a process of its own. Prints processor time for a thousand
items, also of a second report in which nothing is new, and the peak of memory. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from scripts.bench_report import DRAWN, make_run

SIZE = (48, 72)
_CHILD = """
import json, os, sys
from unet_batch.cli import main
try:
    main(sys.argv[2:])
finally:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    with open(sys.argv[1], "w") as file:
        json.dump([sum(os.times()[:2]), peak / 1024], file)
"""


def measure(*command: str) -> tuple[float, float]:
    """Seconds of the processor that a command takes, and MB at its peak."""
    with tempfile.NamedTemporaryFile(suffix=".json") as said:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, said.name, *command], capture_output=True, text=True
        )
        if done.returncode not in (0, 1):  # 1: the drawn run says that one picture has failed
            raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
        seconds, peak = json.load(said)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[25_000, 100_000])
    parser.add_argument("--keep", type=Path, help="make the folders here, and leave them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.items:
            top = (arguments.keep or Path(temporary)) / str(count)
            # In another process: what is held here would be told as the peak of those that come after
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                runs = [
                    str(pool.submit(make_run, top / name, count, drawn, size=SIZE).result())
                    for name, drawn in (("a", DRAWN), ("b", DRAWN - 1))
                ]
            commands = {
                "labels coco": ("labels", runs[0], "--format", "coco", "-q"),
                "labels cvat polygons": ("labels", runs[0], "--format", "cvat", "--polygons", "-q"),
                "report": ("report", runs[0], "-q"),
                "report again": ("report", runs[0], "-q"),
                "audit": ("audit", runs[0]),
                "diff": ("diff", *runs, "--csv", os.path.join(top, "diff.csv")),
            }
            for name, command in commands.items():
                seconds, peak = measure(*command)
                each = {"items": count, "command": name, "seconds_per_1000": round(1000 * seconds / count, 3)}
                print(json.dumps({**each, "seconds": round(seconds, 1), "peak_mb": round(peak)}), flush=True)


if __name__ == "__main__":
    main()
