"""Files put together from parts, with what else their source holds."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from math import lcm
from typing import TYPE_CHECKING, Any, cast

import av
import av.error

from unet_batch.errors import VideoError
from unet_batch.media.video.kinds import Clip, reason
from unet_batch.media.video.reading import opened, stream_name, video_stream
from unet_batch.media.video.writing import created, writing

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.container.core import Chapter
    from av.packet import Packet
    from av.stream import Stream


_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def assemble(
    path: str,
    parts: Sequence[str],
    times: Iterable[tuple[int, int]],
    clip: Clip,
    *,
    sound: bool,
    span: tuple[int, int] | None = None,
) -> list[str]:
    """Put parts together, without coding anything anew, with the sound, subtitles, chapters and metadata of
    their source.

    Args:
        path: the file to write, under whatever name; its container is that of the parts.
        parts: files of a `Writer`, in order.
        times: (pts, duration) of each frame of the parts, in ticks of the clip's time base.
        clip: the source.
        sound: take along the other streams of the source.
        span: (begin, end) of what was read of the source, in ticks, if it was not the whole: the other
            streams are cut alike, and time begins anew at 0.

    Returns:
        What could not be taken along, or only by coding it anew, in words.

    Raises:
        OutputError: the file cannot be written.
        VideoError: a part or the source cannot be read any more.
    """
    notes: list[str] = []
    suffix = os.path.splitext(parts[0])[1]
    base = clip.time_base
    begin = round(clip.origin / base) if span is None else span[0]
    end = None if span is None else span[1] * base
    with ExitStack() as stack:
        source = stack.enter_context(opened(clip.path)) if clip.path else None
        sample = stack.enter_context(opened(parts[0]))
        with writing(path):
            # Where a track does not begin at 0, MP4 says so in ticks of its own clock: milliseconds, unless
            # told.
            bases = [base, *(one.time_base for one in (source.streams if source else ()) if one.time_base)]
            clock = lcm(*(one.denominator for one in bases))
            options = {
                "movflags": "faststart",
                "movie_timescale": str(clock if clock < 2**31 else base.denominator),
            }
            out = created(path, options, suffix)
            try:
                video = out.add_stream_from_template(sample.streams.video[0])
                video.time_base = base
                video.codec_context.sample_aspect_ratio = clip.aspect
                if video.codec_context.name in ("hevc", "libx265"):
                    video.codec_context.codec_tag = "hvc1"  # QuickTime and Safari know it by no other name
                if suffix == ".mkv" and sound and clip.aspect != 1:
                    notes.append(
                        f"pixels are {clip.aspect} times as wide as high: Matroska files of this program do "
                        f"not say so"
                    )
                streams = [_video_packets(parts, times, video, base, begin)]
                if source is not None:
                    kept = _carry_over(
                        source, out, video, video_stream(clip.path, source), sound, begin * base, end, notes
                    )
                    if kept:
                        streams.append(
                            _other_packets(source, kept, begin * base, end, notes, negative=suffix != ".mkv")
                        )
                elif sound and (left := [kind for kind in clip.others if not kind.startswith("video")]):
                    notes.append(f"{', '.join(left)} of a live source was left out")
                for _, packet in merge(*streams, key=lambda timed: timed[0]):
                    out.mux(packet)
            except BaseException:
                with suppress(Exception):
                    out.close()
                raise
            out.close()
    return notes


@dataclass(frozen=True)
class _Copy:
    """A stream on its way into another file; `coder` is there if it has to be coded anew."""

    stream: Any
    coder: Any = None


def _carry_over(
    source: InputContainer,
    out: OutputContainer,
    video: Stream,
    shown: Stream,
    sound: bool,
    begin: Fraction,
    end: Fraction | None,
    notes: list[str],
) -> dict[int, _Copy]:
    """Metadata, chapters, and a stream in `out` for each that it can hold, by its index in the source."""
    out.metadata.update(_metadata(source))
    video.metadata.update(_metadata(shown))
    kept: dict[int, _Copy] = {}
    for stream in source.streams if sound else ():
        if stream.index == shown.index:
            continue
        copy = None
        if stream.type in ("audio", "subtitle") and stream.codec_context is not None:
            if _holds(out.format.name, stream):
                copy = _Copy(out.add_stream_from_template(stream))
            elif stream.type == "audio":
                copy = _anew(out, cast("AudioStream", stream))
                if copy is not None:
                    notes.append(
                        f"{stream_name(stream)} was coded anew as AAC: the container does not hold it"
                    )
        if copy is None:
            # MP4 writes its chapters as a stream of text, too; those are carried over as chapters.
            if stream.type != "data" or not source.chapters():
                notes.append(f"{stream_name(stream)} was left out: the container does not hold it")
            continue
        copy.stream.metadata.update(_metadata(stream))
        copy.stream.disposition = stream.disposition
        kept[stream.index] = copy
    if chapters := [_within(chapter, begin, end) for chapter in source.chapters()]:
        out.set_chapters([chapter for chapter in chapters if chapter is not None])
    return kept


def _metadata(owner: Any) -> dict[str, str]:
    technical = {
        "major_brand",
        "minor_version",
        "compatible_brands",
        "encoder",
        "duration",
        "rotate",
        "alpha_mode",
    }
    return {key: value for key, value in owner.metadata.items() if key.lower() not in technical}


def _within(chapter: Chapter, begin: Fraction, end: Fraction | None) -> Chapter | None:
    """A chapter as it is in a range of the source; None if it lies outside."""
    base = chapter["time_base"] or Fraction(1)
    first = round(begin / base)
    last = chapter["end"] if end is None else round(end / base)
    start, stop = max(chapter["start"], first) - first, min(chapter["end"], last) - first
    return {**chapter, "start": start, "end": stop} if start < stop else None


def _holds(format: str, stream: Stream) -> bool:
    """Tell by trying whether a container takes a stream as it is: some say so only as they write their
    header.
    """
    try:
        with av.open(io.BytesIO(), "w", format=format) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def _anew(out: OutputContainer, stream: AudioStream) -> _Copy | None:
    """A stream in `out` that takes the sound coded as AAC; None if that is not to be had either."""
    context = stream.codec_context
    rate = min(_AAC_RATES, key=lambda rate: (abs(rate - context.sample_rate), rate))
    layout = _AAC_LAYOUTS.get(context.channels, "stereo")
    try:
        coder = out.add_stream("aac", rate=rate, layout=layout)
        coder.codec_context.open()
    except (ValueError, av.error.FFmpegError):
        return None
    return _Copy(coder, coder)


def _video_packets(
    parts: Sequence[str], times: Iterable[tuple[int, int]], stream: Stream, base: Fraction, begin: int
) -> Iterator[tuple[Fraction, Packet[Any]]]:
    clock = iter(times)
    for part in parts:
        with opened(part) as container:
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    continue
                timed = next(clock, None)
                if timed is None:
                    raise VideoError(
                        f"{part} holds more frames than were recorded", hint="run again with --overwrite"
                    )
                packet.stream, packet.time_base = stream, base
                packet.pts = packet.dts = timed[0] - begin
                packet.duration = timed[1]
                yield packet.pts * base, packet
    if next(clock, None) is not None:
        raise VideoError(
            f"{parts[-1]} holds fewer frames than were recorded", hint="run again with --overwrite"
        )


def _other_packets(
    source: InputContainer,
    kept: Mapping[int, _Copy],
    begin: Fraction,
    end: Fraction | None,
    notes: list[str],
    *,
    negative: bool,
) -> Iterator[tuple[Fraction, Packet[Any]]]:
    """Packets of the other streams, each with the second at which it is due.

    Sound begins some milliseconds before the picture: a coder needs a run-up. Unless times may be negative,
    it is left out, as all the rest would be shifted otherwise.
    """
    latest: dict[int, int] = {}
    due = Fraction(0)
    try:
        for packet in source.demux([source.streams[index] for index in kept]):
            index, base = packet.stream.index, packet.time_base
            copy = kept[index]
            if packet.dts is None:
                packet.dts = packet.pts
            if copy.coder is None and (not packet.size or packet.dts is None):
                continue
            if packet.dts is not None:
                shown = Fraction(packet.dts if packet.pts is None else packet.pts) * base
                if end is not None and (shown + (packet.duration or 0) * base <= begin or shown >= end):
                    continue
                due = packet.dts * base - begin
            if copy.coder is not None:
                for made in _coded_anew(packet, copy.coder, begin):
                    yield due, made
                continue
            shift = round(begin / base)
            at = cast("int", packet.dts) - shift
            packet.dts, packet.pts = at, None if packet.pts is None else packet.pts - shift
            if at < 0 and packet.stream.type == "subtitle":  # shown already when the range begins
                packet.duration = max(0, (packet.duration or 0) + at)
                packet.dts = packet.pts = at = 0
            if at < 0 and not negative:
                continue
            if at <= latest.get(index, at - 1):
                note = f"{stream_name(packet.stream)}: packets that go back in time were left out"
                notes += [note] if note not in notes else []
                continue
            latest[index] = at
            packet.stream = copy.stream
            yield due, packet
    except av.error.FFmpegError as error:
        notes.append(f"sound and subtitles end early: the file cannot be read to its end: {reason(error)}")
    for copy in kept.values():
        if copy.coder is not None:
            for made in copy.coder.encode(None):
                yield due, made


def _coded_anew(packet: Packet[Any], coder: Any, begin: Fraction) -> Iterator[Packet[Any]]:
    """What does not decode is silence."""
    with suppress(av.error.FFmpegError):
        for frame in cast("list[AudioFrame]", packet.decode()):
            pts, base = frame.pts, frame.time_base
            frame.pts = pts - round(begin / base) if pts is not None and base else None
            yield from coder.encode(frame)
