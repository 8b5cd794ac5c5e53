"""Measure how close a clip with overlay comes to its floor.

    python -m scripts.bench_video [CLIP ...] [--rounds 3] [--smooth SECONDS]

Without clips: car-detection.mp4 of the data folder, if there, and 60 seconds of 1080x1920 as `unet-batch
sample --video` draws them. The floor is what is left when nothing waits: the seconds of the network alone for
as many frames, plus the processor seconds of all else (decoder, conversions, encoders and their own threads)
divided by the cores. Start-up is left out, a short run warms up, figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from scripts import carvana
from unet_batch.bench.measure import engine_alone
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.torch import TorchBackend
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import video
from unet_batch.model import checkpoint, zoo
from unet_batch.pipeline import bottleneck, cpu_count
from unet_batch.run import clip as clips
from unet_batch.run.layout import ClipLayout
from unet_batch.run.options import VideoOptions
from unet_batch.scenes import write_clip
from unet_batch.types import Item


def one_round(
    segmenter: Segmenter, path: str, out: str, options: VideoOptions
) -> tuple[clips.ClipResult, float, float]:
    """(what became of it, wall seconds, processor seconds of all but the network) of one run."""
    layout = ClipLayout(out, ("mask", "overlay"), video.CODECS[options.codec])
    begun, cpu = time.perf_counter(), time.process_time()
    result = clips.segment(Item(path, "clip"), segmenter, layout, options, "bench")
    wall, total = time.perf_counter() - begun, time.process_time() - cpu
    network = next(stage.cpu for stage in result.stages if stage.name == "infer")
    return result, wall, total - network


def network_alone(backend: Backend, frames: int) -> float:
    """Seconds of the network for so many frames, with as many threads as a run gives it."""
    found = engine_alone(backend, frames)
    return found.seconds * frames / found.pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="length of the drawn clip")
    parser.add_argument("--smooth", type=float, default=0.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Segmenter(TorchBackend(checkpoint.load(zoo.resolve("classic")))) as segmenter,
    ):
        paths = list(options.clips)
        if not paths:
            real = carvana.data_folder() / "videos" / "car-detection.mp4"
            paths = [str(real)] if real.is_file() else []
            paths.append(write_clip(folder, options.seconds, (1080, 1920)))
        what = VideoOptions(smooth=options.smooth)
        one_round(segmenter, paths[0], folder, VideoOptions(max_frames=50))
        for path in paths:
            walls, floors = [], []
            for _ in range(options.rounds):
                result, wall, others = one_round(segmenter, path, folder, what)
                network = network_alone(segmenter.backend, result.frames)
                walls.append(wall)
                floors.append(network + others / cpu_count())
                print(
                    f"  {Path(path).name}: {wall:.2f} s, network alone {network:.2f} s, the rest "
                    f"{others:.2f} processor s; "
                    + ", ".join(
                        f"{stage.name} {stage.busy / stage.workers / wall:.0%}" for stage in result.stages
                    ),
                    flush=True,
                )
            ratio = statistics.median(a / b for a, b in zip(walls, floors, strict=True))
            print(
                f"{Path(path).name}: {result.frames} frames, {result.frames / statistics.median(walls):.1f} "
                f"frames/s, "
                f"wall/floor {ratio:.3f}, bottleneck {bottleneck(result.stages).name}",
                flush=True,
            )


if __name__ == "__main__":
    main()
