"""Where the time to the first mask goes: imports, the model, the backend, the first inference.

    python -m scripts.bench_startup                     # the tree it lies in
    python -m scripts.bench_startup ../other .          # two trees in turn, and their ratio
    python -m scripts.bench_startup --imports 20        # the packages that take longest, by -X importtime

Every figure is the median over `--rounds` fresh processes; trees take turns, so that both meet the same load.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs in a process of its own: the steps of `unet_batch.load()` and of a first call, apart.
STEPS = """
import json, sys, time
steps, last = {}, time.perf_counter()
def done(name):
    global last
    now = time.perf_counter()
    steps[name], last = now - last, now
from unet_batch.inference.backends.select import Request, select
from unet_batch.inference.segmenter import Segmenter
from unet_batch.model import checkpoint, zoo
done("imports of the segmenter")
file = checkpoint.identify(zoo.resolve(None))
done("identify the model")
import unet_batch.inference.backends.torch
done("imports of the backend")
backend = select(Request(file, "torch", "cpu")).backend
done("load the model, open the backend")
segmenter = Segmenter(backend)
segmenter(sys.argv[1])
done("first mask")
segmenter(sys.argv[1])
done("second mask")
segmenter.close()
print(json.dumps(steps))
"""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)$", re.MULTILINE)


def measure(tree: Path, photo: Path, work: Path, imports: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each command and step, and of the imports of each package, in fresh processes."""
    python = [sys.executable, *(("-X", "importtime") if imports else ())]
    environment = {**os.environ, "PYTHONPATH": str(tree)}

    def run(*command: str) -> tuple[float, str, str]:
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True)
        return time.perf_counter() - begun, done.stdout, done.stderr

    seconds: dict[str, float] = {}
    packages: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory(dir=work) as output:
        module = ("-m", "unet_batch")
        seconds["unet-batch --help"] = run(sys.executable, *module, "--help")[0]
        seconds["unet-batch run --help"] = run(sys.executable, *module, "run", "--help")[0]
        wall, _, errors = run(*python, *module, "run", str(photo), "-o", output, "--device", "cpu")
        seconds["unet-batch run, one photo"] = wall
    for microseconds, name in _LINE.findall(errors):
        packages[name.partition(".")[0]] += int(microseconds) / 1e6
    seconds |= json.loads(run(sys.executable, "-c", STEPS, str(photo))[1])
    return seconds, dict(packages)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, default=[ROOT], help="checkouts to compare")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--imports", type=int, default=0, metavar="N", help="show the N slowest packages, too"
    )
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        script = "import sys; from unet_batch.scenes import draw; from unet_batch.media import images"
        script += "; open(sys.argv[1], 'wb').write(images.encode_jpeg(draw(1, (1280, 1918))[0]))"
        environment = {**os.environ, "PYTHONPATH": str(trees[0])}
        subprocess.run([sys.executable, "-c", script, str(photo)], env=environment, check=True)
        rounds: list[list[tuple[dict[str, float], dict[str, float]]]] = [[] for _ in trees]
        for number in range(options.rounds + 1):
            for tree, of_tree in zip(trees, rounds, strict=True):
                found = measure(tree, photo, Path(folder), bool(options.imports))
                if number:  # the first one fills the caches of files and of bytecode
                    of_tree.append(found)
    tables = [0, 1] if options.imports else [0]
    for table in tables:
        medians = [
            {
                name: statistics.median(one[table].get(name, 0.0) for one in of_tree)
                for name in of_tree[0][table]
            }
            for of_tree in rounds
        ]
        names = list(medians[-1])
        if table:
            names = sorted(names, key=lambda name: -medians[-1][name])[: options.imports]
            print()
        for name in names:
            values = [of_tree.get(name, 0.0) for of_tree in medians]
            ratio = f"  x{values[-1] / values[0]:.2f}" if len(values) > 1 and values[0] else ""
            print(f"{name:34}" + "".join(f"{value:9.3f} s" for value in values) + ratio)


if __name__ == "__main__":
    main()
