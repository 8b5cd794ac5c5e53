"""Read and write clips with the code under test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import video
from unet_batch.media.video import CODECS, Codec, Reader, Writer, assemble
from unet_batch.run.clip import segment
from unet_batch.run.layout import ClipLayout
from unet_batch.run.options import VideoOptions
from unet_batch.testing import FakeBackend
from unet_batch.types import Item

MILLISECOND = Fraction(1, 1000)
LOSSLESS = {"qp": "0", "crf": "0"}  # options of encoders


def seconds(path: str) -> list[Fraction]:
    """When the frames of a file are shown, as the code under test says."""
    with Reader(path) as reader:
        return [decoded.pts * reader.clip.time_base for decoded in reader.frames()]


def rgb(path: str) -> list[np.ndarray]:
    """All frames of a file as displayed, RGB uint8 (h, w, 3)."""
    with Reader(path) as reader:
        return [reader.rgb(frame) for frame in reader.frames()]


def copy_clip(
    path: str,
    folder: Path,
    codec: Codec = CODECS["h264"],
    *,
    part: int = 4,
    span: bool = False,
    pictures: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
    **ticks: Any,
) -> tuple[str, list[str]]:
    """Read a clip and write it in parts: what `clips.segment` does, without a model."""
    folder.mkdir(exist_ok=True)
    parts: list[str] = []
    times: list[tuple[int, int]] = []
    with Reader(path) as reader:
        clip = reader.clip
        writer: Writer | None = None
        for frame in reader.frames(**ticks):
            if frame.index % part == 0:
                if writer is not None:
                    writer.close()
                parts.append(str(folder / f"{frame.index}{codec.suffix}"))
                writer = Writer(parts[-1], codec, clip)
            assert writer is not None
            writer.write(
                video.make_frame(pictures(reader.rgb(frame)), writer.format, writer.color), frame.pts
            )
            times.append((frame.pts, frame.duration))
        assert writer is not None
        writer.close()
        target = str(folder / "whole.part")
        cut = (times[0][0], times[-1][0] + times[-1][1]) if span else None
        return target, assemble(target, parts, times, clip, sound=True, span=cut)


def assemble_whole(path: str, target: str) -> tuple[str, list[str]]:
    """Assemble a file of which the whole clip is the only part."""
    with Reader(path) as reader:
        times = [(frame.pts, frame.duration) for frame in reader.frames()]
        return target, assemble(target, [path], times, reader.clip, sound=False)


def colours(size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Blocks of all kinds of colours."""
    blocks = np.random.default_rng(7).integers(0, 256, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    blocks[0, :8] = [[a, b, c] for a in (0, 255) for b in (0, 255) for c in (0, 255)]
    return blocks.repeat(8, 0).repeat(8, 1)


def write_frame(path: Path, frame: av.VideoFrame, color: Sequence[int], codec: str = "ffv1") -> str:
    """Write a clip of one frame, marked with (matrix, range, primaries, transfer)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = color
        frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = color
        container.mux(stream.encode(frame) + stream.encode(None))
    return str(path)


def boxes(path: str) -> list[str]:
    """The names of an MP4 file's outermost boxes, in order."""
    data, names, at = Path(path).read_bytes(), [], 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        names.append(name)
        if size < 8:
            break
        at += size
    return names


def segment_clip(path: str, out: str, smooth: float, part_frames: int) -> None:
    """Segment a clip with a fake network, for `Forked`; prints a line for each frame."""

    def say(done: int, total: int | None) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        layout = ClipLayout(out, ("mask", "overlay"), CODECS["h264"])
        options = VideoOptions(smooth=smooth, part_frames=part_frames)
        segment(Item(path, "clip"), segmenter, layout, options, "one", say)
