"""Concatenate part files without re-encoding, and carry audio, subtitles, chapters and tags over.

What a container holds is found out by trying: `rehearse` encodes one frame and assembles it with the first
packets of the source before the clip is begun, `assemble` does so again before it writes the whole. Some
muxers refuse a stream only as they close a file, after an hour of encoding.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from heapq import merge
from itertools import islice
from math import lcm
from typing import TYPE_CHECKING, Any, cast

import av
import av.error
import numpy as np

from unet_batch.errors import VideoError
from unet_batch.media.video.carrying import (
    CHAPTERS,
    LEAVE,
    METADATA,
    TIMECODE,
    Track,
    Way,
    add_track,
    metadata_of,
    timecode_of,
    ways_of,
)
from unet_batch.media.video.kinds import Clip, Codec, reason
from unet_batch.media.video.reading import open_input, stream_name, video_stream
from unet_batch.media.video.writing import Writer, make_frame, open_output, translate_errors

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.container.core import Chapter
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

MATROSKA = (".mkv", ".webm")
"""Suffixes of its files; WebM is Matroska with fewer codecs."""
# Of the source, for a trial: some seconds of sound. 200 packets of ProRes 4K would be a gigabyte.
_TRIED = 200
_TRIED_BYTES = 32 << 20


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
    assembly = _Assembly(parts, times, clip, sound=sound, span=span)
    with translate_errors(path):
        # A packet in the middle may still be refused: then all of them are tried, and in the end none copied.
        for packets in (_TRIED, None):
            plan = assembly.plan(path, packets)
            try:
                return assembly.write(path, plan)
            except _REFUSALS as error:
                _raise_unless_refusal(error)
        return assembly.write(path, assembly.plan(path, 0))


def rehearse(path: str, codec: Codec, clip: Clip, *, sound: bool, quality: int | None = None) -> list[str]:
    """Encode a grey frame and assemble it with the first packets of the source; leaves no file.

    Args:
        path: a file that may be written, without suffix.
        codec, quality: as for `Writer`.
        clip, sound: as for `assemble`.

    Returns:
        What `assemble` would return as far as the first packets tell.

    Raises:
        OutputError: no file can be written.
        VideoError: the encoder or the container refuses the clip.
    """
    part, whole = path + codec.suffix, f"{path}-whole{codec.suffix}"
    first = round(clip.start / clip.time_base)
    try:
        with Writer(part, codec, clip, quality=quality) as writer:
            channels = () if writer.format == "gray" else (4,) if writer.format.startswith("yuva") else (3,)
            grey = np.full((*clip.size, *channels), 128, np.uint8)
            writer.write(make_frame(grey, writer.format, writer.color), first)
        assembly = _Assembly([part], [(first, 1)], clip, sound=sound)
        with translate_errors(whole):
            return assembly.write(whole, assembly.plan(whole, _TRIED), packets=_TRIED)
    finally:
        for file in (part, whole):
            with suppress(OSError):
                os.unlink(file)


_Timed = Iterator[tuple[Fraction, "Packet[Any]"]]
_REFUSALS = (av.error.FFmpegError, ValueError, TypeError, NotImplementedError)


def _raise_unless_refusal(error: Exception) -> None:
    """Raise an error again that is the disk's; muxers may answer -1, which is EPERM."""
    if isinstance(error, OSError) and error.errno != errno.EPERM:
        raise error


class _Assembly:
    """What a file is assembled from; the arguments are those of `assemble`."""

    def __init__(
        self,
        parts: Sequence[str],
        times: Iterable[tuple[int, int]],
        clip: Clip,
        *,
        sound: bool,
        span: tuple[int, int] | None = None,
    ) -> None:
        self.parts, self.times, self.clip, self.sound, self.span = parts, list(times), clip, sound, span
        self.suffix = os.path.splitext(parts[0])[1]
        base = clip.time_base
        self.first = round(clip.origin / base) if span is None else span[0]
        self.begin = self.first * base
        self.end = None if span is None else span[1] * base

    def plan(self, path: str, packets: int | None) -> dict[int | str, Way]:
        """Choose how each thing of the source is carried over, by trying.

        Args:
            path: the file to write to.
            packets: of the source to try; None for all, 0 carries nothing over.
        """
        if not self.clip.path:
            return {}
        with open_input(self.clip.path) as source:
            ways = ways_of(source, video_stream(self.clip.path, source), self.suffix, sound=self.sound)
        if packets == 0:
            return {what: possible[-1] for what, possible in ways.items()}
        plan = {what: possible[0] for what, possible in ways.items()}
        if self._takes(path, plan, packets):
            return plan
        plan = {}
        for what, possible in ways.items():
            # The last is to leave it out
            plan[what] = next(
                way for way in possible if way.how == LEAVE or self._takes(path, {**plan, what: way}, packets)
            )
        return plan

    def _takes(self, path: str, plan: Mapping[int | str, Way], packets: int | None) -> bool:
        """Tell whether a file of one frame, and of some packets beside it, can be written and closed."""
        try:
            self.write(path, plan, frames=1, packets=packets)
        except _REFUSALS as error:
            _raise_unless_refusal(error)
            return False
        return True

    def write(
        self,
        path: str,
        plan: Mapping[int | str, Way],
        *,
        frames: int | None = None,
        packets: int | None = None,
    ) -> list[str]:
        """Write the file as planned: so many frames and packets of the source, or all; returns the notes."""
        notes = [way.note for way in plan.values() if way.note]
        with ExitStack() as stack:
            source = stack.enter_context(open_input(self.clip.path)) if self.clip.path else None
            first = stack.enter_context(open_input(self.parts[0]))
            out = open_output(path, _container_options(self.clip.time_base, source), self.suffix)
            try:
                video = out.add_stream_from_template(first.streams.video[0])
                _describe_video(video, self.clip)
                if alpha := first.streams.video[0].metadata.get("alpha_mode"):  # else nobody looks for it
                    video.metadata["alpha_mode"] = alpha
                streams: list[_Timed] = [islice(self._video_packets(video), frames)]
                if source is not None:
                    self._add_tags(source, out, video, plan)
                    tracks = {
                        what: add_track(out, source.streams[what], way)
                        for what, way in plan.items()
                        if isinstance(what, int) and way.how != LEAVE
                    }
                    if tracks:
                        streams.append(self._other_packets(source, tracks, packets, notes))
                notes += self._shortcomings()
                for _, packet in merge(*streams, key=lambda timed: timed[0]):
                    out.mux(packet)
            except BaseException:
                with suppress(Exception):
                    out.close()
                raise
            out.close()
        return notes

    def _shortcomings(self) -> list[str]:
        """What no plan could help."""
        notes, clip = [], self.clip
        if self.suffix in MATROSKA and self.sound and clip.aspect != 1:
            notes.append(
                f"pixels are {clip.aspect} times as wide as high: Matroska files of this program do not say "
                f"so"
            )
        left = [kind for kind in clip.others if not kind.startswith("video")]
        if left and not clip.path and self.sound:
            notes.append(f"{', '.join(left)} of a live source was left out")
        return notes

    def _add_tags(
        self,
        source: InputContainer,
        out: OutputContainer,
        video: VideoStream,
        plan: Mapping[int | str, Way],
    ) -> None:
        """Copy timecode, metadata and chapters, as far as planned."""

        def planned(what: str) -> bool:
            return what in plan and plan[what].how != LEAVE

        shown = video_stream(self.clip.path, source)
        if planned(METADATA):
            out.metadata.update(metadata_of(source))
            video.metadata.update(metadata_of(shown))
        if planned(TIMECODE):
            elapsed = 0 if self.span is None else self.begin - self.clip.start
            video.metadata["timecode"] = timecode_of(source, elapsed, self.clip.rate)
        if planned(CHAPTERS):
            chapters = [_cut_chapter(chapter, self.begin, self.end) for chapter in source.chapters()]
            out.set_chapters([chapter for chapter in chapters if chapter is not None])

    def _video_packets(self, stream: Stream) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Yield the packets of all parts, timed as in the source, each with the second at which it is due."""
        clock, base = iter(self.times), self.clip.time_base
        for part in self.parts:
            with open_input(part) as container:
                for packet in container.demux(container.streams.video[0]):
                    if not packet.size:
                        continue
                    timed = next(clock, None)
                    if timed is None:
                        raise VideoError(
                            f"{part} holds more frames than were recorded", hint="run again with --overwrite"
                        )
                    # A frame shown for no time, as the last one would be, is left out by players of MP4
                    own = round((packet.duration or 0) * packet.time_base / base)
                    packet.stream, packet.time_base = stream, base
                    packet.pts = packet.dts = timed[0] - self.first
                    packet.duration = timed[1] or own
                    yield packet.pts * base, packet
        if next(clock, None) is not None:
            raise VideoError(
                f"{self.parts[-1]} holds fewer frames than were recorded", hint="run again with --overwrite"
            )

    def _other_packets(
        self, source: InputContainer, tracks: Mapping[int, Track], packets: int | None, notes: list[str]
    ) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Yield the packets of the other streams, each with the second at which it is due.

        Sound begins some milliseconds before the picture: an encoder needs a run-up. Matroska has no negative
        times, and all the rest would be shifted: there it is left out.
        """
        latest: dict[int, int] = {}
        due = Fraction(0)
        # With the video among them a trial ends even where sound is rare
        read = [source.streams[index] for index in tracks] if packets is None else list(source.streams)
        for packet in _read_packets(source, read, packets, notes):
            index, track = packet.stream.index, tracks.get(packet.stream.index)
            if track is None:
                continue
            if packet.dts is None:
                packet.dts = packet.pts
            # Without a time there is nothing to copy, but a decoder is flushed by such a packet
            if track.encoder is None and (not packet.size or packet.dts is None):
                continue
            if packet.dts is not None:
                if not _overlaps(packet, self.begin, self.end):
                    continue
                due = packet.dts * packet.time_base - self.begin
            if track.encoder is not None:
                for made in track.encoder.encode(packet, self.begin):
                    yield due, made
                continue
            _shift(packet, self.begin)
            at = cast("int", packet.dts)
            if at < 0 and self.suffix in MATROSKA:
                continue
            if at <= latest.get(index, at - 1):
                note = f"{stream_name(packet.stream)}: packets that go back in time were left out"
                notes += [note] if note not in notes else []
                continue
            latest[index] = at
            packet.stream = track.stream
            yield due, packet
        for track in tracks.values():
            if track.encoder is not None:
                for made in track.encoder.flush():
                    yield due, made
                if track.encoder.is_silent:
                    notes.append(f"{track.encoder.name}: nothing of it decodes")


def _read_packets(
    source: InputContainer, streams: Sequence[Stream], packets: int | None, notes: list[str]
) -> Iterator[Packet[Any]]:
    """Yield the packets of some streams, in a trial the first ones; a file that breaks off is noted."""
    size = 0
    try:
        for packet in islice(source.demux(streams), packets):
            yield packet
            size += packet.size
            if packets is not None and size > _TRIED_BYTES:
                return
    except av.error.FFmpegError as error:
        notes.append(f"sound and subtitles end early: the file cannot be read to its end: {reason(error)}")


def _container_options(base: Fraction, source: InputContainer | None) -> dict[str, str]:
    """Options of the file that is written; those that its container does not have are ignored.

    Where a track does not begin at 0, MP4 says so in ticks of its own clock: milliseconds, unless told.
    """
    bases = [base, *(one.time_base for one in (source.streams if source else ()) if one.time_base)]
    clock = lcm(*(one.denominator for one in bases))
    return {
        "fflags": "+bitexact",  # else Matroska files hold random numbers, and no two are the same to the byte
        "movflags": "faststart",
        "movie_timescale": str(clock if clock < 2**31 else base.denominator),
    }


def _describe_video(video: VideoStream, clip: Clip) -> None:
    """Set the time base, aspect and tag of the stream that is written for a clip."""
    video.time_base = clip.time_base
    if clip.rate is not None:
        video.codec_context.framerate = clip.rate  # else a timecode would count ticks
    video.codec_context.sample_aspect_ratio = clip.aspect
    if video.codec_context.name in ("hevc", "libx265"):
        video.codec_context.codec_tag = "hvc1"  # QuickTime and Safari know it by no other name


def _cut_chapter(chapter: Chapter, begin: Fraction, end: Fraction | None) -> Chapter | None:
    """Shift and cut a chapter to a range of the source, in seconds; None if it lies outside."""
    base = chapter["time_base"] or Fraction(1)
    first = round(begin / base)
    last = chapter["end"] if end is None else round(end / base)
    start, stop = max(chapter["start"], first) - first, min(chapter["end"], last) - first
    return {**chapter, "start": start, "end": stop} if start < stop else None


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
