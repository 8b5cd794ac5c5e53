"""One clip: from a video to its masks, its overlay and its timeline, in parts that a killed run leaves behind
whole.

    decode ──▶ convert ──▶ infer ──▶ (smooth) ──▶ render ──▶ encode overlay ──▶ encode mask ──▶ record
    Reader     RGB, place   batches   in order     in threads   in order, each with its own threads

Outputs are encoded in parts of `PART` frames, below `OUT/unfinished/<key>/`. A part is closed in all outputs,
then recorded in `journal.json`; a killed run loses what came after the last record, and the next one decodes
from there. At the end the parts are put together without coding anything anew, the sound is copied beside
them, and the folder goes. Each part begins with a key frame and depends on no other, so the final file has
the same frames and timestamps however often it was interrupted.

A long room, in three parts: what can be asked for and what comes of it; where outputs go and what encodes
them; the stages, which share one clip's state and so stay together.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch import gpu
from unet_batch.errors import UsageError, VideoError
from unet_batch.files import naming
from unet_batch.files.atomic import make_folder, replacing, write_atomic
from unet_batch.files.outputs import CLIP_KINDS
from unet_batch.inference import postprocess
from unet_batch.inference.segmenter import PIXEL_BUDGET, Segmenter
from unet_batch.inference.smoothing import Smoother
from unet_batch.media import geometry, images, render, video
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Pipeline, Stage, StageStats
from unet_batch.run.journal import Journal, as_csv
from unet_batch.types import Frame, Item, Prediction

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

PART = 300
"""Frames of a part: ten seconds of most clips, and what a killed run does again at most."""

UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Position:
    """A place in a clip: seconds from its beginning, or a number of frames."""

    seconds: Fraction | None = None
    frame: int | None = None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `90` or `90.5` (seconds), `1:30` or `0:01:30.25` (hours, minutes, seconds), or `2250f`
        (frames).

        Raises:
            UsageError: it is none of these.
        """
        if match := re.fullmatch(r"(\d{1,12})f", text):
            return cls(frame=int(match[1]))
        match = re.fullmatch(
            r"(?:(?:(\d{1,6}):)?([0-5]?\d):(?=[0-5]?\d(?:\.|$)))?(\d{1,9}(?:\.\d{1,9})?)", text
        )
        if match is None:
            raise UsageError(
                f"{text!r} is no place in a clip",
                hint="90.5, 1:30, 0:01:30.25, or 2250f for a number of frames",
            )
        hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
        return cls(3600 * hours + 60 * minutes + seconds)


@dataclass(frozen=True)
class VideoOptions:
    """What to read of clips, and how to write them; see `unet-batch run --help`.

    Attributes:
        codec: of overlays, a name of `video.CODECS`.
        quality: in the codec's own measure; None takes its default.
        start, end: the range to read; the output then begins at time 0.
        every: take one frame of so many.
        max_frames: stop after so many frames taken.
        smooth: time constant in seconds of the mean over time; 0 takes each frame by itself.
        hardware: device that decodes, "cuda"; None for the processor.
        latest: of a live source, drop the frames that there is no time for.
    """

    codec: str = "h264"
    quality: int | None = None
    start: Position | None = None
    end: Position | None = None
    every: int = 1
    max_frames: int | None = None
    smooth: float = 0.0
    hardware: str | None = None
    latest: bool = False

    def names(self, kinds: Sequence[str]) -> tuple[str, ...]:
        """The outputs by names that tell what decides their contents: the timeline first, then those of
        `kinds` in order.
        """
        place = {"start": self.start, "end": self.end}
        facts = {
            name: f"{at.frame}f" if at.frame is not None else str(at.seconds)
            for name, at in place.items()
            if at is not None
        }
        facts |= {"every": str(self.every)} if self.every > 1 else {}
        facts |= {"max": str(self.max_frames)} if self.max_frames is not None else {}
        facts |= {"smooth": f"{self.smooth:g}"} if self.smooth else {}
        read = "".join(f" {name}={value}" for name, value in facts.items())
        coded = f" {self.codec}" + (f" quality={self.quality}" if self.quality is not None else "")
        wanted = ("timeline", *(kind for kind in Layout.KINDS if kind in kinds))
        return tuple("clip " + kind + (coded if kind == "overlay" else "") + read for kind in wanted)

    def __post_init__(self) -> None:
        if self.quality is not None:
            option, _, lowest, highest = video.CODECS[self.codec].quality
            if not option:
                raise UsageError(
                    f"--quality {self.quality}: {self.codec} is lossless",
                    hint="leave it out, or take --codec h264",
                )
            if not lowest <= self.quality <= highest:
                raise UsageError(f"--quality {self.quality}: {self.codec} takes {lowest} to {highest}")
        if self.every < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise UsageError(f"--every {self.every}, --max-frames {self.max_frames}: 1 or more expected")
        if not self.smooth >= 0:
            raise UsageError(f"--smooth {self.smooth}: seconds, 0 or more expected")


@dataclass
class ClipResult:
    """What became of a clip.

    Attributes:
        frames: done, of which `resumed` were there from an earlier run.
        damaged: packets that did not decode.
        notes: what else a person should know.
        files: the outputs of each kind, absolute paths; empty while the clip is not finished.
        complete: the end was reached; if not, the next run goes on.
        stages: work of each stage.
    """

    frames: int = 0
    resumed: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = False
    stages: list[StageStats] = field(default_factory=list)


class Layout:
    """Where the outputs of clips go.

    Args:
        folder: the output folder.
        kinds: what is wanted: any of "mask", "overlay", "frames".
        codec: of overlays.
    """

    KINDS = CLIP_KINDS

    def __init__(self, folder: str, kinds: Sequence[str], codec: video.Codec) -> None:
        self.folder = folder
        self.kinds = tuple(kind for kind in self.KINDS if kind in kinds)
        self.codec = codec

    def path(self, kind: str, key: str) -> str:
        """The file of a kind; for "frames" the folder."""
        steps = key.split("/")
        name, suffix = {
            "mask": ("masks", video.MASKS.suffix),
            "overlay": ("overlays", self.codec.suffix),
            "frames": ("frames", ""),
            "timeline": ("timelines", ".csv"),
        }[kind]
        return os.path.join(self.folder, name, *steps) + suffix

    def unfinished(self, key: str) -> str:
        """The folder of a clip's parts."""
        return os.path.join(self.folder, UNFINISHED, *key.split("/"))

    def codec_of(self, kind: str) -> video.Codec:
        """How an output is encoded."""
        return video.MASKS if kind == "mask" else self.codec


def choose_encoder(name: str) -> tuple[video.Codec, str]:
    """The encoder for a codec of `--codec`, and why.

    Raises:
        UsageError: it was asked for by its own name and does not work here.
    """
    codec = video.CODECS[name]
    if name == "h264":
        graphics = video.CODECS["h264_nvenc"]
        why_not = gpu.missing() or video.encoder_problem(graphics)
        return (codec, f"no NVENC: {why_not}") if why_not else (graphics, "the GPU has NVENC")
    if problem := video.encoder_problem(codec):
        raise UsageError(
            f"--codec {name}: {codec.encoder} does not work here: {problem}", hint="take --codec h264"
        )
    return codec, "as asked"


def segment(
    item: Item,
    segmenter: Segmenter,
    layout: Layout,
    options: VideoOptions,
    fingerprint: str,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> ClipResult:
    """Segment a clip, going on where an earlier run was interrupted.

    Args:
        item: the clip.
        segmenter: open.
        layout: where the outputs go.
        options: what to read and how to write.
        fingerprint: of all that decides the outputs' contents; parts made with another are made anew.
        on_frame: called in this thread with the number of frames done, and how many there may be.
        on_start: given a function that makes it stop early, as if killed, but at once and in good order; a
            live source then has reached its end. Safe in a signal handler.

    Raises:
        VideoError: the clip cannot be opened, nothing of it decodes, or it cannot be encoded.
        BackendError: inference failed.
        OutputError: an output cannot be written.
    """
    with _reader(item.path, options, segmenter.max_pixels) as reader:
        work = _Work(item, segmenter, layout, options, fingerprint, reader)
        result = work.run(on_frame, on_start)
        if result.complete:
            work.finish(result)
    return result


def _reader(path: str, options: VideoOptions, max_pixels: int) -> video.Reader:
    if not naming.is_live(path):
        return video.Reader(path, hardware=options.hardware, max_pixels=max_pixels)
    if wrong := [name for name in ("start", "end") if getattr(options, name) is not None]:
        raise UsageError(
            f"{naming.shown(path)}: a live source has no --{wrong[0]}", hint="--max-frames ends it, or Ctrl-C"
        )
    return video.LiveReader(path, latest=options.latest)


@dataclass(eq=False)
class _Moment:
    """A frame on its way through the stages; what is no longer needed is dropped.

    Attributes:
        index: among the frames of the range read, from 0.
        number: among the frames taken, from 0, over all runs.
        part: the part it belongs to; `last` if it fills it.
        pts, duration: in ticks.
        damaged: packets that did not decode, from where this run began to here.
        row: its line of the timeline.
        state: of the smoother after it, if it fills its part.
    """

    index: int
    number: int
    part: int
    last: bool
    pts: int
    duration: int
    damaged: int
    shot: video.DecodedFrame | None
    frame: Frame | None = None
    prediction: Prediction | None = None
    outputs: dict[str, VideoFrame] = field(default_factory=dict)
    row: tuple[Any, ...] = ()
    state: dict[str, NDArray[Any]] = field(default_factory=dict)

    def weight(self) -> int:
        """Bytes of pixels it holds."""
        total = sum(plane.buffer_size for frame in self.outputs.values() for plane in frame.planes)
        if self.shot is not None:
            total += sum(plane.buffer_size for plane in self.shot.frame.planes)
        if self.frame is not None:
            total += self.frame.tensor.nbytes + (
                self.frame.pixels.nbytes if self.frame.pixels is not None else 0
            )
        return total


class _Work:
    """The stages of one clip, and what they share."""

    def __init__(
        self,
        item: Item,
        segmenter: Segmenter,
        layout: Layout,
        options: VideoOptions,
        fingerprint: str,
        reader: video.Reader,
    ) -> None:
        self.item, self.segmenter, self.layout, self.options, self.reader = (
            item,
            segmenter,
            layout,
            options,
            reader,
        )
        self.clip, self.classes = reader.clip, segmenter.spec.classes
        self.videos = tuple(kind for kind in layout.kinds if kind != "frames")
        self.smoother = Smoother(options.smooth, len(self.classes.names)) if options.smooth else None
        self.journal = Journal(
            layout.unfinished(item.key), f"{fingerprint}, {PART}", stateful=self.smoother is not None
        )
        if self.smoother is not None:
            self.smoother.resume(self.journal.state())
        self.damaged_before = self.journal.damaged
        self.exhausted = isinstance(reader, video.LiveReader)  # which has ended whenever it is told to
        self.writers: dict[str, video.Writer] = {}
        self.moments_of_part: list[_Moment] = []

    def run(
        self, on_frame: Callable[[int, int | None], None], on_start: Callable[[Callable[[], None]], None]
    ) -> ClipResult:
        """Segment what is left, up to the end or until told to stop."""
        segmenter, journal = self.segmenter, self.journal
        backend, workers = segmenter.backend, segmenter.workers
        batch = backend.batch_size
        stages: list[Stage[Any, Any]] = [
            Stage("convert", self.convert, workers),
            Stage("infer", self.infer, backend.streams, batch, enter=backend.thread),
            *([Stage("smooth", self.smooth, ordered=True)] if self.smoother else []),
            Stage("render", self.render, workers),
            *(Stage(f"encode {kind}", partial(self.encode, kind), ordered=True) for kind in self.videos),
            Stage("record", self.record, ordered=True),
        ]
        result = ClipResult(frames=journal.frames, resumed=journal.frames)
        total = self.expected()
        try:
            with (
                single_threaded_cv2(),
                Pipeline[_Moment, _Moment](
                    self.source(),
                    stages,
                    in_flight=2 * (batch * backend.streams + 2 * workers + len(self.videos)),
                    weigh=_Moment.weight,
                    budget=PIXEL_BUDGET,
                    describe=lambda moment: f"{self.item.path}, frame {moment.index}",
                ) as moments,
            ):
                on_start(moments.stop)
                try:
                    for moment in moments:
                        result.frames = moment.number + 1
                        on_frame(result.frames, total)
                finally:
                    result.stages = moments.stats
            self.close_part()
        except BaseException:
            for writer in self.writers.values():  # what is in them plays, but is not counted
                with suppress(Exception):
                    writer.close()
            if not journal.parts:
                journal.discard(self.layout.folder)
            raise
        result.frames, result.damaged = journal.frames, journal.damaged
        result.notes = self.notes()
        if result.damaged:
            result.notes.insert(
                0, f"{result.damaged} damaged {'packet' if result.damaged == 1 else 'packets'} left out"
            )
        result.complete = self.exhausted
        if not result.frames:
            journal.discard(self.layout.folder)
        if result.complete and not result.frames:
            raise VideoError(
                f"{self.item.path}: no frame lies in the range asked for",
                hint="look at --start, --end and --every",
            )
        return result

    def expected(self) -> int | None:
        """How many frames will be taken; a guess, for the progress."""
        clip, options = self.clip, self.options
        if clip.frames is None:
            return options.max_frames
        rate = clip.rate or Fraction(25)

        def frame(position: Position | None, default: int) -> int:
            if position is None:
                return default
            return position.frame if position.frame is not None else round((position.seconds or 0) * rate)

        within = max(0, min(clip.frames, frame(options.end, clip.frames)) - frame(options.start, 0))
        taken = -(-within // options.every)
        return taken if options.max_frames is None else min(taken, options.max_frames)

    # The source, in a thread of its own.

    def source(self) -> Iterator[_Moment]:
        """The frames to take, from where the journal ends."""
        yield from self.moments()
        self.exhausted = True

    def moments(self) -> Iterator[_Moment]:
        options, clip, journal = self.options, self.clip, self.journal
        start, end = _ticks(options.start, clip), _ticks(options.end, clip)
        first = (options.start.frame or 0) if options.start is not None else 0
        stop = options.end.frame if options.end is not None else None
        taken = journal.frames
        index = 0 if journal.last is None else journal.last[0] + 1
        if taken == options.max_frames:
            return
        begin = start if journal.last is None else journal.last[1] + 1
        for shot in self.reader.frames(begin, end, seek=journal.timed):
            if stop is not None and index >= stop:
                return
            if index >= first and (index - first) % options.every == 0:
                part, place = divmod(taken, PART)
                yield _Moment(
                    index, taken, part, place == PART - 1, shot.pts, shot.duration, shot.damaged, shot
                )
                taken += 1
                if taken == options.max_frames:
                    return
            index += 1

    # The stages.

    def convert(self, moment: _Moment) -> _Moment:
        assert moment.shot is not None
        pixels = self.reader.rgb(moment.shot)
        moment.shot = None
        moment.frame = self.segmenter.frame(
            self.item, pixels, self.clip.size, keep_pixels="overlay" in self.videos
        )
        return moment

    def infer(self, moments: Sequence[_Moment]) -> list[_Moment]:
        frames = [moment.frame for moment in moments if moment.frame is not None]
        for moment, prediction in zip(moments, self.segmenter.infer(frames), strict=True):
            moment.prediction = prediction
        return list(moments)

    def smooth(self, moment: _Moment) -> _Moment:
        prediction = moment.prediction
        assert self.smoother is not None
        assert prediction is not None
        steady = self.smoother(prediction.frame.tensor, prediction.map, moment.pts * self.clip.time_base)
        moment.prediction = Prediction(prediction.frame, steady)
        if moment.last:
            moment.state = self.smoother.state()
        return moment

    def render(self, moment: _Moment) -> _Moment:
        prediction = moment.prediction
        assert prediction is not None
        mask = self.segmenter.mask(prediction)
        moment.row = self.measure(moment, prediction, mask)
        for kind in self.videos:
            pixels: Pixels = mask
            if kind == "overlay":
                assert prediction.frame.pixels is not None
                pixels = render.overlay(prediction.frame.pixels, mask, self.classes)
            codec = self.layout.codec_of(kind)
            look = video.output_color(self.clip, codec)
            moment.outputs[kind] = video.make_frame(pixels, video.pixel_format(codec, self.clip.size), look)
        if "frames" in self.layout.kinds:
            write_atomic(self.frame_file(moment.index), images.encode_mask(mask))
        moment.frame = moment.prediction = None
        return moment

    def encode(self, kind: str, moment: _Moment) -> _Moment:
        writer = self.writers.get(kind)
        if writer is None:
            make_folder(self.journal.folder)
            quality = self.options.quality if kind == "overlay" else None
            path = self.journal.file(kind, moment.part, self.layout.codec_of(kind).suffix)
            writer = self.writers[kind] = video.Writer(
                path, self.layout.codec_of(kind), self.clip, quality=quality
            )
        writer.write(moment.outputs.pop(kind), moment.pts)
        if moment.last:
            del self.writers[kind]
            writer.close()
        return moment

    def record(self, moment: _Moment) -> _Moment:
        """The last stage: here a frame has passed all the others, and so have those before it."""
        self.moments_of_part.append(moment)
        if moment.last:
            self.record_part(moment.state, moment.damaged)
            moment.state = {}
        return moment

    # Parts.

    def close_part(self) -> None:
        """Close what the last part has. It counts if the end was reached: parts of other lengths would be
        coded otherwise.
        """
        for kind in list(self.writers):
            self.writers.pop(kind).close()
        if self.moments_of_part and self.exhausted:
            self.record_part(self.smoother.state() if self.smoother is not None else {}, self.reader.damaged)

    def record_part(self, state: dict[str, NDArray[Any]], damaged: int) -> None:
        moments, self.moments_of_part = self.moments_of_part, []
        part, last = moments[-1].part, moments[-1]
        files = {
            kind: self.journal.file(kind, part, self.layout.codec_of(kind).suffix) for kind in self.videos
        }
        facts = {
            "frames": len(moments),
            "last": [last.index, last.pts],
            "damaged": self.damaged_before + damaged,
            "timed": self.reader.timed,
            "notes": self.notes(),
        }
        self.journal.record(part, facts, [moment.row for moment in moments], files, state)

    def notes(self) -> list[str]:
        """What was strange in this run and the earlier ones."""
        return list(dict.fromkeys([*self.journal.notes, *self.reader.notes]))

    def finish(self, result: ClipResult) -> None:
        """Put the parts together, under the names of the outputs."""
        options, journal, key = self.options, self.journal, self.item.key
        indices, at, duration = array("q"), array("q"), 0
        for line in journal.lines():
            index, pts, ticks, _ = line.split(",", 3)
            indices.append(int(index))
            at.append(int(pts))
            duration = int(ticks)
        times = self.shown(at, duration)
        cut = options.start is not None or options.end is not None or options.max_frames is not None
        for kind in self.videos:
            path = self.layout.path(kind, key)
            with replacing(path) as temporary:
                result.notes += video.assemble(
                    temporary,
                    journal.paths(kind),
                    times,
                    self.clip,
                    sound=kind == "overlay",
                    span=(times[0][0], sum(times[-1])) if cut else None,
                )
            result.files[kind] = [path]
        header = ("frame", "pts", "duration", "seconds", *(f"area_{name}" for name in self.classes.names))
        path = self.layout.path("timeline", key)
        heading = as_csv([(*header, "components", "confidence")])
        write_atomic(path, b"".join(line.encode() for line in chain([heading], journal.lines())))
        result.files["timeline"] = [path]
        if "frames" in self.layout.kinds:
            result.files["frames"] = [self.frame_file(index) for index in indices]
        journal.discard(self.layout.folder)

    def shown(self, at: Sequence[int], duration: int) -> list[tuple[int, int]]:
        """(pts, duration) of frames shown at these ticks: each until the next one, the last one until the end
        of its clip.

        Files tell how long to the next frame in the order of decoding, which is another one with B-frames at
        a variable rate.

        Args:
            at: ticks, increasing.
            duration: of the last one as its file tells it; 0 if it does not.
        """
        options, clip = self.options, self.clip
        duration = duration * options.every or (at[-1] - at[-2] if len(at) > 1 else 1)
        if clip.duration is not None:
            left = math.floor((clip.start + clip.duration) / clip.time_base) - at[-1]
            if left < 2 * duration and options.end is None and options.max_frames is None:
                duration = left
            duration = max(1, min(duration, left))
        return [(one, then - one) for one, then in pairwise([*at, at[-1] + duration])]

    def frame_file(self, index: int) -> str:
        return os.path.join(self.layout.path("frames", self.item.key), f"{index:06d}.png")

    def measure(self, moment: _Moment, prediction: Prediction, mask: Pixels) -> tuple[Any, ...]:
        """A line of the timeline: when, how much of the picture each class covers, in how many regions, how
        sure.
        """
        seconds = float(moment.pts * self.clip.time_base - self.clip.origin)
        content = geometry.content_of(prediction.map, prediction.frame.placement)
        if self.segmenter.spec.output == "probability":
            areas = [cv2.countNonZero(mask) / mask.size]
            regions = [np.greater_equal(content, postprocess.cut(self.segmenter.threshold))]
            confidence = f"{float(np.maximum(content, 255 - content).mean()) / 255:.4f}"
        else:
            names = self.classes.names
            areas = list(np.bincount(mask.reshape(-1), minlength=len(names)) / mask.size)
            regions = [content == id for id, name in enumerate(names) if name.lower() != "background"]
            confidence = ""  # ids say nothing of it
        components = sum(cv2.connectedComponents(region.astype(np.uint8))[0] - 1 for region in regions)
        shares = (f"{area:.6f}" for area in areas)
        return (moment.index, moment.pts, moment.duration, f"{seconds:.6f}", *shares, components, confidence)


def _ticks(position: Position | None, clip: video.Clip) -> int | None:
    """A place given in seconds as a tick, rounded up; None where frames are counted."""
    if position is None or position.seconds is None:
        return None
    return math.ceil((clip.start + position.seconds) / clip.time_base)
