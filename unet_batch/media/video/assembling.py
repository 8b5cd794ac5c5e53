"""Concatenate part files without re-encoding, and copy audio, subtitles and chapters from the source."""

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
from unet_batch.media.video.reading import open_input, stream_name, video_stream
from unet_batch.media.video.writing import open_output, translate_errors

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.container.core import Chapter
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream


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
    """Concatenate parts without re-encoding, and add audio, subtitles, chapters and metadata of the source.

    Args:
        path: the file to write, under whatever name; its container is that of the parts.
        parts: files of a `Writer`, in order.
        times: (pts, duration) of each frame of the parts, in ticks of the clip's time base.
        clip: the source.
        sound: copy the other streams of the source.
        span: (begin, end) of what was read of the source, in ticks, if it was not the whole: the other
            streams are cut alike, and time begins anew at 0.

    Returns:
        What could not be copied, or only by encoding it anew, in words.

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
        source = stack.enter_context(open_input(clip.path)) if clip.path else None
        first = stack.enter_context(open_input(parts[0]))
        with translate_errors(path):
            out = open_output(path, _container_options(base, source), suffix)
            try:
                video = out.add_stream_from_template(first.streams.video[0])
                _describe_video(video, clip)
                if suffix == ".mkv" and sound and clip.aspect != 1:
                    notes.append(
                        f"pixels are {clip.aspect} times as wide as high: Matroska files of this program do "
                        f"not say so"
                    )
                streams = [_video_packets(parts, times, video, base, begin)]
                if source is not None:
                    shown = video_stream(clip.path, source)
                    copies = _copy_streams(source, out, video, shown, sound, begin * base, end, notes)
                    if copies:
                        streams.append(
                            _other_packets(
                                source, copies, begin * base, end, notes, negative=suffix != ".mkv"
                            )
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


def _container_options(base: Fraction, source: InputContainer | None) -> dict[str, str]:
    """Options of the file that is written; those that its container does not have are ignored.

    Where a track does not begin at 0, MP4 says so in ticks of its own clock: milliseconds, unless told.
    """
    bases = [base, *(one.time_base for one in (source.streams if source else ()) if one.time_base)]
    clock = lcm(*(one.denominator for one in bases))
    return {
        "movflags": "faststart",
        "movie_timescale": str(clock if clock < 2**31 else base.denominator),
    }


def _describe_video(video: VideoStream, clip: Clip) -> None:
    """Set the time base, aspect and tag of the stream that is written for a clip."""
    video.time_base = clip.time_base
    video.codec_context.sample_aspect_ratio = clip.aspect
    if video.codec_context.name in ("hevc", "libx265"):
        video.codec_context.codec_tag = "hvc1"  # QuickTime and Safari know it by no other name


@dataclass(frozen=True)
class _Copy:
    """A stream of the output that is copied from the source; `encoder` if it is encoded anew."""

    stream: Any
    encoder: Any = None


def _copy_streams(
    source: InputContainer,
    out: OutputContainer,
    video: Stream,
    shown: Stream,
    sound: bool,
    begin: Fraction,
    end: Fraction | None,
    notes: list[str],
) -> dict[int, _Copy]:
    """Copy metadata and chapters; add each stream that `out` can hold, by its index in the source."""
    out.metadata.update(_metadata(source))
    video.metadata.update(_metadata(shown))
    copies: dict[int, _Copy] = {}
    for stream in source.streams if sound else ():
        if stream.index == shown.index:
            continue
        copy = None
        if stream.type in ("audio", "subtitle") and stream.codec_context is not None:
            if _can_hold(out.format.name, stream):
                copy = _Copy(out.add_stream_from_template(stream))
            elif stream.type == "audio":
                copy = _add_aac(out, cast("AudioStream", stream))
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
        copies[stream.index] = copy
    if chapters := [_cut_chapter(chapter, begin, end) for chapter in source.chapters()]:
        out.set_chapters([chapter for chapter in chapters if chapter is not None])
    return copies


def _metadata(owner: Any) -> dict[str, str]:
    """Metadata of a file or a stream, without what describes its encoding."""
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


def _cut_chapter(chapter: Chapter, begin: Fraction, end: Fraction | None) -> Chapter | None:
    """Shift and cut a chapter to a range of the source, in seconds; None if it lies outside."""
    base = chapter["time_base"] or Fraction(1)
    first = round(begin / base)
    last = chapter["end"] if end is None else round(end / base)
    start, stop = max(chapter["start"], first) - first, min(chapter["end"], last) - first
    return {**chapter, "start": start, "end": stop} if start < stop else None


def _can_hold(format: str, stream: Stream) -> bool:
    """Tell by trying whether a container holds a stream as it is: some refuse only as they write a header."""
    try:
        with av.open(io.BytesIO(), "w", format=format) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def _add_aac(out: OutputContainer, stream: AudioStream) -> _Copy | None:
    """Add a stream to `out` that takes the sound encoded as AAC; None if that is not to be had either."""
    context = stream.codec_context
    rate = min(_AAC_RATES, key=lambda rate: (abs(rate - context.sample_rate), rate))
    layout = _AAC_LAYOUTS.get(context.channels, "stereo")
    try:
        encoder = out.add_stream("aac", rate=rate, layout=layout)
        encoder.codec_context.open()
    except (ValueError, av.error.FFmpegError):
        return None
    return _Copy(encoder, encoder)


def _video_packets(
    parts: Sequence[str], times: Iterable[tuple[int, int]], stream: Stream, base: Fraction, begin: int
) -> Iterator[tuple[Fraction, Packet[Any]]]:
    """Yield the packets of all parts, timed as in the source, each with the second at which it is due."""
    clock = iter(times)
    for part in parts:
        with open_input(part) as container:
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    continue
                timed = next(clock, None)
                if timed is None:
                    raise VideoError(
                        f"{part} holds more frames than were recorded", hint="run again with --overwrite"
                    )
                # A frame that is shown for no time, as the last one would be, is left out by players of MP4
                own = round((packet.duration or 0) * packet.time_base / base)
                packet.stream, packet.time_base = stream, base
                packet.pts = packet.dts = timed[0] - begin
                packet.duration = timed[1] or own
                yield packet.pts * base, packet
    if next(clock, None) is not None:
        raise VideoError(
            f"{parts[-1]} holds fewer frames than were recorded", hint="run again with --overwrite"
        )


def _other_packets(
    source: InputContainer,
    copies: Mapping[int, _Copy],
    begin: Fraction,
    end: Fraction | None,
    notes: list[str],
    *,
    negative: bool,
) -> Iterator[tuple[Fraction, Packet[Any]]]:
    """Yield the packets of the other streams, each with the second at which it is due.

    Sound begins some milliseconds before the picture: an encoder needs a run-up. Unless times may be
    negative, it is left out, as all the rest would be shifted otherwise.
    """
    latest: dict[int, int] = {}
    due = Fraction(0)
    try:
        for packet in source.demux([source.streams[index] for index in copies]):
            index, copy = packet.stream.index, copies[packet.stream.index]
            if packet.dts is None:
                packet.dts = packet.pts
            # Without a time there is nothing to copy, but a decoder is flushed by such a packet
            if copy.encoder is None and (not packet.size or packet.dts is None):
                continue
            if packet.dts is not None:
                if not _overlaps(packet, begin, end):
                    continue
                due = packet.dts * packet.time_base - begin
            if copy.encoder is not None:
                for made in _reencode(packet, copy.encoder, begin):
                    yield due, made
                continue
            _shift(packet, begin)
            at = cast("int", packet.dts)
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
    # What the encoders still hold
    for copy in copies.values():
        if copy.encoder is not None:
            for made in copy.encoder.encode(None):
                yield due, made


def _overlaps(packet: Packet[Any], begin: Fraction, end: Fraction | None) -> bool:
    """Tell whether something of a packet is shown from `begin` to before `end`, in seconds."""
    if end is None:
        return True
    time = packet.dts if packet.pts is None else packet.pts
    shown = Fraction(cast("int", time)) * packet.time_base
    return shown < end and shown + (packet.duration or 0) * packet.time_base > begin


def _shift(packet: Packet[Any], begin: Fraction) -> None:
    """Move a packet `begin` seconds ahead; a subtitle that is shown already at 0 is cut to begin there."""
    ticks = round(begin / packet.time_base)
    packet.dts = at = cast("int", packet.dts) - ticks
    packet.pts = None if packet.pts is None else packet.pts - ticks
    if at < 0 and packet.stream.type == "subtitle":
        packet.duration = max(0, (packet.duration or 0) + at)
        packet.dts = packet.pts = 0


def _reencode(packet: Packet[Any], encoder: Any, begin: Fraction) -> Iterator[Packet[Any]]:
    """Decode a packet of sound and encode it anew; what does not decode is silence."""
    with suppress(av.error.FFmpegError):
        for frame in cast("list[AudioFrame]", packet.decode()):
            pts, base = frame.pts, frame.time_base
            frame.pts = pts - round(begin / base) if pts is not None and base else None
            yield from encoder.encode(frame)
