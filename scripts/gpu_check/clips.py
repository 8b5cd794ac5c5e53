"""The sections on video: the GPU's decoder and encoder, and whole clips through the best backend."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from scripts.gpu_check import measure
from scripts.gpu_check.sections import Data, Save, Skip
from unet_batch.errors import BackendError, BackendUnavailable, VideoError
from unet_batch.pipeline import cpu_count

if TYPE_CHECKING:
    from unet_batch.inference.backends.base import Backend
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.media.video import Clip, Codec, DecodedFrame, Reader
    from unet_batch.run.options import VideoOptions
    from unet_batch.types import Pixels

NEEDS = ("av", "torch", "simplejpeg", "PIL", "cv2", "safetensors")
# How far, of 255, a pixel may be from the processor's: decoders agree to the bit, conversions round
LEVELS = 2
_CODED = 6.0  # levels that a coded picture is off on average, at most; 1 to 3 is what both encoders give
_WHOLE = "clip.mp4"


# A clip -----------------------------------------------------------------------------------------------------


def clip_drawn(data: Data, save: Save, folder: str, seconds: float, copies: int, size: Sequence[int]) -> None:
    """Draw a clip and repeat it several times by copying its packets: drawing takes the longest."""
    from unet_batch.media import video
    from unet_batch.scenes import write_clip

    begun = time.perf_counter()
    part = write_clip(folder, seconds, (size[0], size[1]))
    with video.Reader(part) as reader:
        times = [(shot.pts, shot.duration) for shot in reader.frames()]
        clip = reader.clip
    length = times[-1][0] + times[-1][1] - times[0][0]
    repeated = [(pts + number * length, duration) for number in range(copies) for pts, duration in times]
    whole = os.path.join(folder, _WHOLE)
    notes = video.assemble(whole, [part] * copies, repeated, clip, sound=False)
    data |= {"size": list(size), "frames": len(repeated), "bytes": os.path.getsize(whole), "notes": notes}
    data["seconds"] = time.perf_counter() - begun


def _clip(folder: str) -> str:
    path = os.path.join(folder, _WHOLE)
    if not os.path.exists(path):
        raise Skip("no clip was drawn")
    return path


def _open(path: str, hardware: str | None) -> Reader:
    """Open a clip; skip where the processor can decode it and the device cannot."""
    from unet_batch.media import video

    try:
        return video.Reader(path, hardware=hardware)
    except VideoError as error:
        if hardware is None:
            raise
        video.Reader(path).close()
        raise Skip(f"{hardware} does not decode here: {error.message.removeprefix(f'{path}: ')}") from error


# Decoding ---------------------------------------------------------------------------------------------------


def clip_decoding(
    data: Data, save: Save, folder: str, hardware: str | None, rounds: int, compared: int
) -> None:
    """The GPU's decoder against the processor: frames a second, and the same pictures at the same times."""
    path = _clip(folder)
    data |= {"decoders": [], "cores": cpu_count()}
    wrong = []
    for name in (None, hardware):
        entry: Data = {"decoder": name or "processor"}
        data["decoders"].append(entry)
        try:
            with _open(path, name) as reader:
                first = next(reader.frames())
                entry |= {"codec": reader.clip.codec, "format": first.frame.format.name}
        except Skip as error:
            entry["reason"] = str(error)
            raise
        finally:
            save()
        found = [_decode(path, name) for _ in range(rounds)]
        entry |= {"frames": found[0][0], "damaged": max(damaged for _, damaged, _ in found)}
        entry["frames_per_s"] = measure.spread([frames / seconds for frames, _, seconds in found])
        save()
        if entry["frames"] != data["decoders"][0]["frames"] or entry["damaged"]:
            wrong.append(f"{entry['decoder']}: {entry['frames']} frames, {entry['damaged']} damaged packets")
    with _open(path, None) as one, _open(path, hardware) as other:
        data["compared"] = _compare(one, other, compared)
    if data["compared"]["other_times"]:
        wrong.append(f"{data['compared']['other_times']} frames have another time")
    if data["compared"]["largest"] > LEVELS:
        wrong.append(f"pictures differ by up to {data['compared']['largest']} levels, {LEVELS} are allowed")
    if wrong:
        raise BackendError("; ".join(wrong))


def _decode(path: str, hardware: str | None) -> tuple[int, int, float]:
    """(frames, damaged packets, seconds) of the whole clip, not converted."""
    begun = time.perf_counter()
    with _open(path, hardware) as reader:
        return sum(1 for _ in reader.frames()), reader.damaged, time.perf_counter() - begun


def _compare(one: Reader, other: Reader, count: int) -> Data:
    """How far the frames of two readers are apart."""
    import numpy as np

    found: Data = {"frames": 0, "other_times": 0, "largest": 0, "mean": 0.0}
    pairs: Iterator[tuple[DecodedFrame, DecodedFrame]] = itertools.islice(
        zip(one.frames(), other.frames(), strict=False), count
    )
    for first, second in pairs:
        difference = np.abs(one.rgb(first).astype(np.int16) - other.rgb(second))
        found["frames"] += 1
        found["other_times"] += first.pts != second.pts
        found["largest"] = max(found["largest"], int(difference.max()))
        found["mean"] += float(difference.mean())
    found["mean"] /= max(1, found["frames"])
    return found


# Encoding ---------------------------------------------------------------------------------------------------


def clip_encoding(
    data: Data, save: Save, folder: str, codecs: Sequence[str], frames: int, rounds: int
) -> None:
    """Encoders side by side on the same frames: speed, size, and what is read back."""
    from unet_batch.media import video

    path = _clip(folder)
    with video.Reader(path) as reader:
        clip = reader.clip
        pictures = [(shot.pts, reader.rgb(shot)) for shot in itertools.islice(reader.frames(), frames)]
    data["encoders"], wrong = [], []
    for name in codecs:
        codec = video.CODECS[name]
        entry: Data = {"codec": name, "encoder": codec.encoder}
        data["encoders"].append(entry)
        if problem := video.encoder_problem(codec):
            entry["reason"] = f"{codec.encoder} does not work here: {problem}"
            save()
            continue
        with tempfile.TemporaryDirectory(dir=folder) as out:
            target = os.path.join(out, f"coded{codec.suffix}")
            taken = [_encode(target, codec, clip, pictures) for _ in range(1 + rounds)][1:]
            entry |= {"frames": len(pictures), "bytes": os.path.getsize(target)}
            entry["frames_per_s"] = measure.spread([len(pictures) / seconds for seconds in taken])
            entry |= _read_back(target, clip, pictures)
        save()
        if entry["read_back"] != len(pictures) or entry["other_times"]:
            wrong.append(
                f"{name}: of {len(pictures)} frames {entry['read_back']} came back, {entry['other_times']} "
                f"at other times"
            )
        if not entry["mean"] <= _CODED:
            wrong.append(f"{name}: pictures are off by {entry['mean']:.1f} levels on average")
    if wrong:
        raise BackendError("; ".join(wrong))


def _encode(target: str, codec: Codec, clip: Clip, pictures: Sequence[tuple[int, Pixels]]) -> float:
    """Seconds of the encoder, conversion left out."""
    from unet_batch.media import video

    look = video.output_color(clip, codec)
    ready = [
        (pts, video.make_frame(picture, video.pixel_format(codec, clip.size), look))
        for pts, picture in pictures
    ]
    begun = time.perf_counter()
    with video.Writer(target, codec, clip) as writer:
        for pts, frame in ready:
            writer.write(frame, pts)
    return time.perf_counter() - begun


def _read_back(target: str, clip: Clip, pictures: Sequence[tuple[int, Pixels]]) -> Data:
    import numpy as np

    from unet_batch.media import video

    found: Data = {"read_back": 0, "other_times": 0, "mean": 0.0}
    origin = pictures[0][0]
    with video.Reader(target) as reader:
        base = reader.clip.time_base
        for shot in reader.frames():
            if found["read_back"] < len(pictures):
                pts, picture = pictures[found["read_back"]]
                # Matroska rounds to milliseconds.
                found["other_times"] += abs(shot.pts * base - (pts - origin) * clip.time_base) > Fraction(
                    1, 1000
                )
                found["mean"] += float(np.abs(reader.rgb(shot).astype(np.int16) - picture).mean()) / len(
                    pictures
                )
            found["read_back"] += 1
    return found


# From a clip to masks and an overlay ------------------------------------------------------------------------


def clip_run(
    data: Data,
    save: Save,
    folder: str,
    engines: str,
    device: str | None,
    decoders: Sequence[str | None],
    codecs: Sequence[str],
    rounds: int,
) -> None:
    """Masks and overlay through the best backend, each decoder and encoder; floor as in `bench_video`."""
    path = _clip(folder)
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.media import video
    from unet_batch.run.options import VideoOptions

    backend, passed = _best(engines, device)
    data |= {
        "passed": passed,
        "backend": backend.name,
        "precision": backend.precision,
        "batch": backend.batch_size,
    }
    data |= {"ways": [], "cores": cpu_count()}
    wrong = []
    with Segmenter(backend) as segmenter:
        data["workers"] = segmenter.workers
        for decoder, codec in itertools.product(decoders, codecs):
            entry: Data = {"decoder": decoder or "processor", "codec": codec}
            data["ways"].append(entry)
            try:
                _open(path, decoder).close()
            except Skip as error:
                entry["reason"] = str(error)
                continue
            if problem := video.encoder_problem(video.CODECS[codec]):
                entry["reason"] = f"{codec} does not work here: {problem}"
                continue
            entry |= _segment(segmenter, path, folder, VideoOptions(codec=codec, hardware=decoder), rounds)
            wrong += [f"{entry['decoder']}, {codec}: {each}" for each in entry["problems"]]
            save()
    if wrong:
        raise BackendError("; ".join(wrong))
    if not any("frames_per_s" in entry for entry in data["ways"]):
        raise Skip("; ".join(entry["reason"] for entry in data["ways"]))


def _best(engines: str, device: str | None) -> tuple[Backend, list[str]]:
    """An open backend for the bundled model, and why better ones were passed over."""
    from unet_batch.inference.backends.select import Request, select
    from unet_batch.model import checkpoint, zoo

    model = checkpoint.identify(zoo.resolve("classic"))
    try:
        found = select(Request(model, device=device, engines_dir=engines, require_gpu=device != "cpu"))
    except BackendUnavailable as error:
        raise Skip(error.message) from error
    return found.backend, [f"{step.name}: {step.reason}" for step in found.passed_over]


def _segment(segmenter: Segmenter, path: str, folder: str, options: VideoOptions, rounds: int) -> Data:
    """Rounds of one clip, the last one's outputs checked."""
    from scripts.bench_video import network_alone, one_round
    from unet_batch.media import video
    from unet_batch.pipeline import bottleneck
    from unet_batch.run.layout import ClipLayout
    from unet_batch.run.options import VideoOptions

    walls, ratios = [], []
    with tempfile.TemporaryDirectory(dir=folder) as out:
        one_round(
            segmenter,
            path,
            out,
            VideoOptions(codec=options.codec, hardware=options.hardware, max_frames=50),
        )
        for _ in range(rounds):
            result, wall, others = one_round(segmenter, path, out, options)
            floor = network_alone(segmenter.backend, result.frames) + others / cpu_count()
            walls.append(wall)
            ratios.append(wall / floor)
        layout = ClipLayout(out, ("mask", "overlay"), video.CODECS[options.codec])
        problems = (
            []
            if result.complete and not result.damaged
            else [f"complete {result.complete}, damaged {result.damaged}"]
        )
        wanted = _times(path)
        for kind in layout.kinds:
            problems += _late(kind, wanted, _times(layout.path(kind, "clip")), exact=kind != "mask")
    return {
        "frames": result.frames,
        "frames_per_s": measure.spread([result.frames / wall for wall in walls]),
        "wall_over_floor": measure.spread(ratios),
        "bottleneck": bottleneck(result.stages).name,
        "stages": [
            {"name": stage.name, "share": stage.busy / stage.workers / walls[-1], "workers": stage.workers}
            for stage in result.stages
        ],
        "notes": result.notes,
        "problems": problems,
    }


def _times(path: str) -> list[float]:
    """Seconds at which the frames of a clip are shown."""
    from unet_batch.media import video

    with video.Reader(path) as reader:
        return [float(shot.pts * reader.clip.time_base) for shot in reader.frames()]


def _late(kind: str, wanted: Sequence[float], found: Sequence[float], exact: bool) -> list[str]:
    """What is wrong with the times of an output; Matroska's masks are rounded to milliseconds."""
    if len(found) != len(wanted):
        return [f"{kind}: {len(found)} frames of {len(wanted)}"]
    worst = max(abs(one - other) for one, other in zip(wanted, found, strict=True))
    return [f"{kind}: a frame is {1000 * worst:.3f} ms off"] if worst > (1e-6 if exact else 0.001) else []


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (clip_drawn, clip_decoding, clip_encoding, clip_run)
}
