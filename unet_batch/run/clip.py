"""One clip: from a video to its masks, its overlay and its timeline, in parts that a killed run leaves whole.

    decode ──▶ convert ──▶ infer ──▶ order, smooth ──▶ render ──▶ encode overlay ──▶ encode mask ──▶ record
    Reader     RGB, place   batches   in order         in threads   in order, each with its own threads

Before the first frame the end is rehearsed: what an encoder or a container refuses is found out then.

Outputs are encoded in parts below `OUT/unfinished/<key>/`, of some hundred frames or what was done in some
seconds. A part is closed in all outputs, then recorded in `journal.json`; a stopped run closes the part it is
at, a killed one loses what came after the last record, and the next one decodes from there. At the end the
parts are put together without coding anything anew, the sound is copied beside them, and the folder goes.
Each part begins with a key frame and depends on no other, so the final file has the same frames and
timestamps, and the same masks to the byte, however often it was interrupted.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from unet_batch.errors import UsageError, VideoError
from unet_batch.files import naming
from unet_batch.files.atomic import make_folder, replacing, write_atomic
from unet_batch.files.outputs import KINDS
from unet_batch.inference.measuring import frame_cells, frame_columns
from unet_batch.inference.segmenter import PIXEL_BUDGET, Segmenter
from unet_batch.inference.smoothing import Smoother
from unet_batch.media import images, video
from unet_batch.media.domain import UNLIKE
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Pipeline, Stage, StageStats
from unet_batch.run.journal import Journal, as_csv
from unet_batch.run.layout import ClipLayout
from unet_batch.run.observe import Stop
from unet_batch.run.options import Position, VideoOptions
from unet_batch.types import Frame, Item, Prediction

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

    State = Mapping[str, NDArray[Any]]


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


def segment(
    item: Item,
    segmenter: Segmenter,
    layout: ClipLayout,
    options: VideoOptions,
    fingerprint: str,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
    stop: Stop | None = None,
) -> ClipResult:
    """Segment a clip, going on where an earlier run was interrupted.

    Args:
        item: the clip.
        segmenter: open.
        layout: where the outputs go.
        options: what to read and how to write.
        fingerprint: of all that decides the outputs' contents; parts made with another are made anew.
        on_frame: called in this thread with the number of frames done, and how many there may be.
        stop: makes it end early when called, as if killed, but at once and in good order; a live source then
            has reached its end.

    Raises:
        VideoError: the clip cannot be opened, nothing of it decodes, or it cannot be encoded.
        BackendError: inference failed.
        OutputError: an output cannot be written.
    """
    with _open_reader(item.path, options, segmenter.max_pixels) as reader:
        work = _ClipRun(item, segmenter, layout, options, fingerprint, reader)
        result = work.run(on_frame, stop or Stop())
        if result.complete:
            work.finish(result)
    return result


def _open_reader(path: str, options: VideoOptions, max_pixels: int) -> video.Reader:
    if not naming.is_live(path):
        return video.Reader(path, hardware=options.hardware, max_pixels=max_pixels)
    if wrong := [name for name in ("start", "end") if getattr(options, name) is not None]:
        raise UsageError(
            f"{naming.shown(path)}: a live source has no --{wrong[0]}", hint="--max-frames ends it, or Ctrl-C"
        )
    return video.LiveReader(path, latest=options.latest)


@dataclass(frozen=True)
class ClipFrame:
    """Which frame of its clip, and of its outputs, goes through the stages.

    Attributes:
        index: among the frames of the range read, from 0.
        number: among the frames taken, from 0, over all runs.
        pts, duration: in ticks.
        damaged: packets that did not decode, from where this run began to here.
        part: the part it belongs to, known once the network has seen it; `last` if it ends that part.
    """

    index: int
    number: int
    pts: int
    duration: int
    damaged: int
    part: int = -1
    last: bool = False


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A clip's frame as the decoder gave it."""

    at: ClipFrame
    decoded: video.DecodedFrame

    def weight(self) -> int:
        """Bytes of pixels it holds; likewise of the other stages' values."""
        return sum(plane.buffer_size for plane in self.decoded.frame.planes)


@dataclass(frozen=True, eq=False)
class _Converted:
    """A clip's frame, ready for the network."""

    at: ClipFrame
    frame: Frame

    def weight(self) -> int:
        held = (*self.frame.tensors, self.frame.pixels)
        return sum(array.nbytes for array in held if array is not None)


@dataclass(frozen=True, eq=False)
class _Predicted:
    """What the network said of a frame, and saw, for a smoother, whose `state` it is if it ends a part."""

    at: ClipFrame
    prediction: Prediction
    seen: Pixels | None = None
    state: State = field(default_factory=dict)

    def weight(self) -> int:
        held = (self.prediction.frame.pixels, self.prediction.map, self.seen)
        return sum(array.nbytes for array in held if array is not None)


@dataclass(frozen=True, eq=False)
class _Rendered:
    """A frame of each video output that is not encoded yet, and `row`, a line of the timeline."""

    at: ClipFrame
    outputs: Mapping[str, VideoFrame]
    row: tuple[Any, ...]
    state: State

    def weight(self) -> int:
        return sum(plane.buffer_size for frame in self.outputs.values() for plane in frame.planes)


_Value = _Decoded | _Converted | _Predicted | _Rendered


class _ClipRun:
    """The stages of one clip, and what they share."""

    def __init__(
        self,
        item: Item,
        segmenter: Segmenter,
        layout: ClipLayout,
        options: VideoOptions,
        fingerprint: str,
        reader: video.Reader,
    ) -> None:
        self.item, self.segmenter, self.layout, self.options = item, segmenter, layout, options
        self.reader = reader
        self.clip, self.classes = reader.clip, segmenter.spec.classes
        self.videos = tuple(kind for kind in layout.kinds if kind != "frames")
        self.smoother = Smoother(options.smooth, len(self.classes.names)) if options.smooth else None
        self.columns = ("frame", "pts", "duration", "seconds", *frame_columns(segmenter.spec))
        fingerprint = f"{fingerprint}, {options.part_frames}"
        folder = layout.unfinished(item.key)
        self.journal = Journal(folder, fingerprint, stateful=self.smoother is not None)
        if self.smoother is not None:
            self.smoother.resume(self.journal.state())
        self.damaged_before = self.journal.damaged
        self.part, self.place, self.begun = len(self.journal.parts), 0, time.monotonic()
        self.exhausted = isinstance(reader, video.LiveReader)  # which has ended whenever it is told to
        self.writers: dict[str, video.Writer] = {}
        self.rendered_of_part: list[_Rendered] = []

    def run(self, on_frame: Callable[[int, int | None], None], stop: Stop) -> ClipResult:
        """Segment what is left, up to the end or until told to stop."""
        segmenter, journal = self.segmenter, self.journal
        backend, workers = segmenter.backend, segmenter.workers
        batch = backend.batch_size
        stages: list[Stage[Any, Any]] = [
            Stage("convert", self.convert, workers),
            Stage("infer", self.infer, backend.streams, batch, enter=backend.thread),
            Stage("smooth" if self.smoother is not None else "order", self.order, ordered=True),
            Stage("render", self.render, workers),
            *(Stage(f"encode {kind}", partial(self.encode, kind), ordered=True) for kind in self.videos),
            Stage("record", self.record, ordered=True),
        ]
        result = ClipResult(frames=journal.frames, resumed=journal.frames)
        total = self.options.frames_of(self.clip.frames, self.clip.rate)
        try:
            self.rehearse()
            with (
                single_threaded_cv2(),
                Pipeline[_Value, _Rendered](
                    self.decode(),
                    stages,
                    in_flight=2 * (batch * backend.streams + 2 * workers + len(self.videos)),
                    weigh=lambda value: value.weight(),
                    budget=PIXEL_BUDGET,
                    describe=lambda value: f"{self.item.path}, frame {value.at.index}",
                ) as done,
            ):
                stop.watch(done.stop)
                try:
                    for rendered in done:
                        result.frames = rendered.at.number + 1
                        on_frame(result.frames, total)
                finally:
                    result.stages = done.stats
            self.close_part()
        except BaseException:
            for writer in self.writers.values():  # what is in them plays, but is not counted
                with suppress(Exception):
                    writer.close()
            if not journal.parts:
                journal.discard(self.layout.folder)
            raise
        result.frames, result.damaged = journal.frames, journal.damaged
        if self.exhausted:  # damage behind the last frame, too
            result.damaged = self.damaged_before + self.reader.damaged
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

    def rehearse(self) -> None:
        """Encode a frame and assemble it, so that what would fail in the end fails now."""
        for kind in self.videos:
            sound, quality = KINDS[kind].for_viewing, self.layout.quality_of(kind, self.options.quality)
            make_folder(self.journal.folder)
            path = os.path.join(self.journal.folder, f"rehearsal-{kind}")
            video.rehearse(path, self.layout.codec_of(kind), self.clip, sound=sound, quality=quality)

    # The source, in a thread of its own.

    def decode(self) -> Iterator[_Decoded]:
        """The frames to take, from where the journal ends."""
        yield from self.frames()
        self.exhausted = True

    def frames(self) -> Iterator[_Decoded]:
        options, clip, journal = self.options, self.clip, self.journal
        start, end = _ticks(options.start, clip), _ticks(options.end, clip)
        first = (options.start.frame or 0) if options.start is not None else 0
        stop = options.end.frame if options.end is not None else None
        taken = journal.frames
        index = 0 if journal.last is None else journal.last[0] + 1
        if taken == options.max_frames:
            return
        begin = start if journal.last is None else journal.last[1] + 1
        for frame in self.reader.frames(begin, end, seek=journal.timed):
            if stop is not None and index >= stop:
                return
            if index >= first and (index - first) % options.every == 0:
                yield _Decoded(ClipFrame(index, taken, frame.pts, frame.duration, frame.damaged), frame)
                taken += 1
                if taken == options.max_frames:
                    return
            index += 1

    # The stages.

    def convert(self, value: _Decoded) -> _Converted:
        pixels = self.reader.rgb(value.decoded)
        keep = any(KINDS[kind].needs_pixels for kind in self.videos)
        return _Converted(value.at, self.segmenter.frame(self.item, pixels, self.clip.size, keep_pixels=keep))

    def infer(self, values: Sequence[_Converted]) -> list[_Predicted]:
        predictions = self.segmenter.infer([value.frame for value in values])
        return [
            _Predicted(value.at, each, value.frame.network_input if self.smoother is not None else None)
            for value, each in zip(values, predictions, strict=True)
        ]

    def order(self, value: _Predicted) -> _Predicted:
        """Steady the map, and put the frame into a part: here, behind the slowest stage, and in order."""
        now, options, prediction, state = time.monotonic(), self.options, value.prediction, {}
        self.place += 1
        last = self.place == options.part_frames or now - self.begun >= options.part_seconds
        at = replace(value.at, part=self.part, last=last)
        if self.smoother is not None:
            assert value.seen is not None
            prediction = replace(prediction, map=self.smoother(value.seen, prediction.map, self.seconds(at)))
            state = self.smoother.state() if last else {}
        if last:
            self.part, self.place, self.begun = self.part + 1, 0, now
        return _Predicted(at, prediction, state=state)

    def render(self, value: _Predicted) -> _Rendered:
        at, prediction = value.at, value.prediction
        result = self.segmenter.result(prediction, self.layout.style)
        mask = result.draw("mask")
        outputs = {}
        for kind in self.videos:
            codec = self.layout.codec_of(kind)
            color = video.output_color(self.clip, codec)
            outputs[kind] = video.make_frame(
                result.draw(kind), video.pixel_format(codec, self.clip.size), color
            )
        if "frames" in self.layout.kinds:
            write_atomic(self.frame_file(at.index), images.encode_mask(mask))
        return _Rendered(at, outputs, self.measure(at, prediction, mask), value.state)

    def encode(self, kind: str, value: _Rendered) -> _Rendered:
        at, outputs = value.at, dict(value.outputs)
        writer = self.writers.get(kind)
        if writer is None:
            make_folder(self.journal.folder)
            codec, quality = self.layout.codec_of(kind), self.layout.quality_of(kind, self.options.quality)
            path = self.journal.file(kind, at.part, codec.suffix)
            writer = self.writers[kind] = video.Writer(path, codec, self.clip, quality=quality)
        writer.write(outputs.pop(kind), at.pts)
        if at.last:
            del self.writers[kind]
            writer.close()
        return replace(value, outputs=outputs)

    def record(self, value: _Rendered) -> _Rendered:
        """The last stage: here a frame has passed all the others, and so have those before it."""
        self.rendered_of_part.append(replace(value, state={}))
        if value.at.last:
            self.record_part(value.state, value.at.damaged)
        return value

    # Parts.

    def close_part(self) -> None:
        """Close the last part, which is shorter than the others."""
        for kind in list(self.writers):
            self.writers.pop(kind).close()
        if self.rendered_of_part:
            state = self.smoother.state() if self.smoother is not None else {}
            damaged = self.reader.damaged if self.exhausted else self.rendered_of_part[-1].at.damaged
            self.record_part(state, damaged)

    def record_part(self, state: State, damaged: int) -> None:
        frames, self.rendered_of_part = self.rendered_of_part, []
        last = frames[-1].at
        part = last.part
        files = {
            kind: self.journal.file(kind, part, self.layout.codec_of(kind).suffix) for kind in self.videos
        }
        facts = {
            "frames": len(frames),
            "last": [last.index, last.pts],
            "damaged": self.damaged_before + damaged,
            "timed": self.reader.timed,
            "notes": self.notes(),
        }
        self.journal.record(part, facts, [frame.row for frame in frames], files, state)

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
        times = self.display_times(at, duration)
        cut = options.start is not None or options.end is not None or options.max_frames is not None
        for kind in self.videos:
            path = self.layout.path(kind, key)
            with replacing(path) as temporary:
                result.notes += video.assemble(
                    temporary,
                    journal.paths(kind),
                    times,
                    self.clip,
                    sound=KINDS[kind].for_viewing,
                    span=(times[0][0], sum(times[-1])) if cut else None,
                )
            result.files[kind] = [path]
        path, heading = self.layout.path("timeline", key), as_csv([self.columns])
        # Parts that an earlier release has begun have fewer columns
        cells = len(self.columns)
        far = sum(_is_unlike(line) for line in journal.lines())
        if far:
            result.notes.append(f"{far:,} frames {UNLIKE}")
        lines = (f"{line[:-1]}{',' * (cells - 1 - line.count(','))}\n" for line in journal.lines())
        write_atomic(path, b"".join(line.encode() for line in chain([heading], lines)))
        result.files["timeline"] = [path]
        if "frames" in self.layout.kinds:
            result.files["frames"] = [self.frame_file(index) for index in indices]
        journal.discard(self.layout.folder)

    def display_times(self, at: Sequence[int], duration: int) -> list[tuple[int, int]]:
        """(pts, duration) of each frame: until the next one, the last one until the end of its clip.

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

    def seconds(self, at: ClipFrame) -> Fraction:
        return at.pts * self.clip.time_base

    def measure(self, at: ClipFrame, prediction: Prediction, mask: Pixels) -> tuple[Any, ...]:
        """A line of the timeline: when, how much each class covers, in how many regions, how sure."""
        seconds = float(self.seconds(at) - self.clip.origin)
        cleaned = bool(self.segmenter.cleanup.facts())
        cells = frame_cells(self.segmenter.spec, prediction, mask, self.segmenter.threshold, cleaned=cleaned)
        return (at.index, at.pts, at.duration, f"{seconds:.6f}", *cells)


def _is_unlike(line: str) -> bool:
    """Whether a line of a timeline, whose last cell says so, is of a frame beyond the limit."""
    last = line.rstrip("\n").rpartition(",")[2]
    return bool(last) and float(last) > 1


def _ticks(position: Position | None, clip: video.Clip) -> int | None:
    """A place given in seconds as a tick, rounded up; None where frames are counted."""
    if position is None or position.seconds is None:
        return None
    return math.ceil((clip.start + position.seconds) / clip.time_base)
