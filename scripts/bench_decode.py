"""How long pictures take to decode, in milliseconds of processor time, beside Pillow.

    python -m scripts.bench_decode                     # the tree it lies in
    python -m scripts.bench_decode ../other .          # two trees in turn, and their ratio
    python -m scripts.bench_decode --size 640x960 --rounds 9

A drawn photo is stored in several formats. Every figure is the median over `--rounds` fresh processes, each
of which takes the median of some repetitions; trees and Pillow take turns, so that all meet the same load.
A dash stands where a tree cannot read a file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms

from unet_batch.scenes import draw

ROOT = Path(__file__).resolve().parents[1]
READ = """
import json, statistics, sys, time
sizes = {}
if sys.argv[1] == "pillow":
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = None
    def read(path, at_least=None):
        image = Image.open(path)
        if at_least:
            image.draft("RGB", at_least[::-1])
        return image.convert("RGB")
else:
    from unet_batch.media.images import read
seconds = {}
for path in sys.argv[3:]:
    small = (320, 480) if "reduced" in path else None
    try:
        read(path, at_least=small)
        times = []
        for _ in range(int(sys.argv[2])):
            begun = time.process_time()
            read(path, at_least=small)
            times.append(time.process_time() - begun)
        seconds[path] = statistics.median(times)
    except Exception:
        pass
print(json.dumps(seconds))
"""


def store(folder: Path, height: int, width: int) -> list[Path]:
    """A photo of (height, width) in every format, with some noise, as cameras have it."""
    noise = np.random.default_rng(1).normal(0, 3, (height, width, 3))
    rgb = (draw(1, (height, width))[0] + noise).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(rgb)
    # A profile of other primaries: those of sRGB, with red and green exchanged
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    moved = bytearray(profile)
    red, green = (moved.index(tag) for tag in (b"rXYZ", b"gXYZ"))
    moved[red : red + 4], moved[green : green + 4] = b"gXYZ", b"rXYZ"
    image.save(folder / "photo.jpg", quality=92)
    image.save(folder / "photo, reduced.jpg", quality=92)
    image.save(folder / "photo, other primaries.jpg", quality=92, icc_profile=bytes(moved))
    image.save(folder / "photo.png", compress_level=1)
    image.save(folder / "photo.webp", quality=90)
    for name in ("none", "lzw", "deflate", "jpeg"):
        tifffile.imwrite(
            folder / f"photo, {name}.tif", rgb, photometric="rgb", compression=name, rowsperstrip=64
        )
    deep = rgb.astype(np.uint16) * np.uint16(257)
    cv2.imwrite(str(folder / "photo, 16 bits.png"), deep[..., ::-1])
    return sorted(folder.iterdir())


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, default=[ROOT], help="checkouts to compare")
    parser.add_argument("--size", default="3648x5472", help="height x width of the photo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    for tree in options.trees:
        if not (tree / "unet_batch").is_dir():  # Python would quietly take the installed one
            parser.error(f"{tree} is no checkout")
    height, width = map(int, options.size.split("x"))
    columns = ["pillow", *(str(tree.resolve()) for tree in options.trees)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in store(Path(folder), height, width)]
        found: dict[str, list[dict[str, float]]] = {column: [] for column in columns}
        for _ in range(options.rounds):
            for column in columns:
                environment = {**os.environ, "PYTHONPATH": "" if column == "pillow" else column}
                command = [sys.executable, "-c", READ, column, str(options.repeat), *paths]
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True, check=True
                )
                found[column].append(json.loads(done.stdout))
    print(
        f"{f'{height}x{width}, ms':32}{'Pillow':>9}"
        + "".join(f"{tree.resolve().name:>9}" for tree in options.trees)
    )
    for path in paths:
        rows = [[one[path] for one in found[column] if path in one] for column in columns]
        medians = [1000 * statistics.median(row) if row else None for row in rows]
        cells = "".join(f"{'-':>9}" if value is None else f"{value:9.1f}" for value in medians)
        ratio = f"  x{medians[-1] / medians[-2]:.2f}" if medians[-1] and medians[-2] else ""
        print(f"{Path(path).name:32}{cells}{ratio}")


if __name__ == "__main__":
    main()
