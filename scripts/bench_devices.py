"""How several processes share a run whose network only sleeps: is the interpreter's lock a limit?

    python -m scripts.bench_devices [--pictures 4000] [--rounds 5] [--devices 1,2]

Draws tiny pictures, and segments them with a device that does nothing but wait as long as one of 5,000
pictures a second would. Each round runs with each number of processes in turn; prints pictures a second of
each, and the median of the ratios to the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import cv2
import numpy as np

from unet_batch.inference.segmenter import Segmenter
from unet_batch.pipeline import cpu_count
from unet_batch.run.crew import Crew, Device
from unet_batch.run.execute import execute
from unet_batch.run.links import PipeLink, shares_of_cores
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend

if TYPE_CHECKING:
    from unet_batch.types import Pixels

RATE = 5000
"""Pictures a second of the device."""
_SIZE = 32, 48


def sleep(pictures: Pixels) -> Pixels:
    """What the device answers, once it has taken its time."""
    time.sleep(len(pictures) / RATE)
    answer: Pixels = pictures[..., 0]
    return answer


def open_sleeper() -> Segmenter:
    """A segmenter on that device, with one thread for each of decoding, rendering and writing."""
    return Segmenter(FakeBackend(answer=sleep, batch_size=16), workers=1)


def draw(folder: str, count: int) -> None:
    """Draw so many pictures, 1,000 to a folder."""
    picture = np.random.default_rng(0).integers(0, 256, (*_SIZE, 3)).astype("u1")
    data = cv2.imencode(".png", cv2.GaussianBlur(picture, (0, 0), 4))[1].tobytes()
    for number in range(count):
        below = os.path.join(folder, str(number // 1000))
        os.makedirs(below, exist_ok=True)
        with open(os.path.join(below, f"{number}.png"), "wb") as file:
            file.write(data)


def rate(source: str, devices: int, pictures: int) -> float:
    """Pictures a second of a run, in this process for 0 devices; the start apart."""
    with tempfile.TemporaryDirectory() as out:
        plan = prepare(RunOptions((source,), out))
        if devices == 0:
            with open_sleeper() as segmenter:
                report = execute(plan, segmenter)
        else:
            from scripts import bench_devices  # as another process can import it

            crew = [
                Device(f"fake {number}", bench_devices.open_sleeper, PipeLink(share))
                for number, share in enumerate(shares_of_cores(devices))
            ]
            with Crew(crew) as hands:
                report = execute(plan, hands)
        assert report.done == pictures, report.failures
        return report.images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", default="1,2", help="numbers of processes; 0 is this one")
    options = parser.parse_args()
    counts = [int(word) for word in options.devices.split(",")]
    found: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as source:
        draw(source, options.pictures)
        for _ in range(options.rounds):
            for count in counts:
                found[count].append(rate(source, count, options.pictures))
            print("   ".join(f"{count}: {found[count][-1]:7.0f}/s" for count in counts), flush=True)
    for count in counts:
        ratio = statistics.median(
            mine / first for mine, first in zip(found[count], found[counts[0]], strict=True)
        )
        print(f"{count}: median {statistics.median(found[count]):.0f}/s, {ratio:.2f} of the first")
    print(f"{cpu_count()} cores")


if __name__ == "__main__":
    main()
