"""Small clips for tests, made with PyAV: every oddity of real footage that can be made, one at a time.

What is filmed is known: `scene` draws a bright box on a dark ground that moves from frame to frame and has no
symmetry, so that a frame that is missing, doubled, turned or mirrored shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

# How a picture is stored so that players show it upright: its display matrix {a, b, c, d}, and the array that
# has to be stored. By ISO 14496-12 a stored point (p, q) is shown at (a p + c q, b p + d q), x to the right,
# y down.
TURNS: Mapping[str, tuple[tuple[int, int, int, int], Any]] = {
    "upright": ((1, 0, 0, 1), lambda a: a),
    # What a phone held upright writes: shown clockwise
    "turned 90": ((0, 1, -1, 0), lambda a: np.rot90(a, 1)),
    "turned 180": ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
    "turned 270": ((0, -1, 1, 0), lambda a: np.rot90(a, -1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda a: np.rot90(a, 2).swapaxes(0, 1)),
}


@dataclass(frozen=True)
class Sound:
    """An audio track: a tone of `frequency` hertz, from `start` to `end` seconds."""

    codec: str = "aac"
    language: str = "eng"
    start: Fraction = Fraction(0)
    end: Fraction = Fraction(1, 2)
    frequency: int = 440
    layout: str = "mono"
    rate: int = 48000


@dataclass(frozen=True)
class Footage:
    """A clip to make.

    Attributes:
        name: of the file; its suffix decides the container.
        frames: how many; the pictures are `scene(0)`, ...
        size: (height, width) as shown.
        rate: frames a second.
        times: in ticks of `base` instead of a constant rate.
        base: seconds of a tick; None takes 1 / rate.
        start: seconds at which the first frame is shown.
        codec, format, options: of the video, in FFmpeg's words.
        look: (matrix, range, primaries, transfer) as marked, numbers of ITU-T H.273.
        aspect: width of a pixel over its height.
        turn: one of `TURNS`.
        sounds: audio tracks.
        subtitles: a codec of subtitles, two of which are shown.
        chapters, metadata: of the container.
        videos: how many video streams; the later ones are smaller.
        cover: with a picture of the album.
        live: written where nobody can go back, so that the container says no duration.
        pictures: RGB or RGBA instead of `scene`.
    """

    name: str = "clip.mp4"
    frames: int = 10
    size: tuple[int, int] = (32, 48)
    rate: Fraction = Fraction(25)
    times: Sequence[int] | None = None
    base: Fraction | None = None
    start: Fraction = Fraction(0)
    codec: str = "libx264"
    format: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)
    look: tuple[int, int, int, int] = (2, 0, 2, 2)
    aspect: Fraction = Fraction(1)
    turn: str = "upright"
    sounds: Sequence[Sound] = ()
    subtitles: str = ""
    chapters: Sequence[tuple[int, int, str]] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    videos: int = 1
    cover: bool = False
    live: bool = False
    pictures: Sequence[np.ndarray] | None = None

    @property
    def seconds(self) -> list[Fraction]:
        """When each frame is shown."""
        base = self.base or 1 / self.rate
        ticks = (
            self.times
            if self.times is not None
            else [round(index / self.rate / base) for index in range(self.frames)]
        )
        return [self.start + tick * base for tick in ticks]

    def make(self, folder: Path) -> str:
        """Write it, and return the file."""
        path = str(folder / self.name)
        with ExitStack() as stack:
            target: Any = path
            if self.live:
                target = _Pipe(stack.enter_context(open(path, "wb")))
            suffix = os.path.splitext(path)[1][1:]
            format = {"mkv": "matroska", "ts": "mpegts", "y4m": "yuv4mpegpipe"}.get(suffix, suffix)
            # An MP4 file says in this clock when its tracks begin, and takes milliseconds if not told.
            options = {"movie_timescale": str(self.base.denominator)} if self.base else {}
            container = stack.enter_context(av.open(target, "w", format=format, container_options=options))
            self._shoot(container)
        return path

    def _shoot(self, container: Any) -> None:
        height, width = self.size
        matrix, stored = TURNS[self.turn]
        if matrix[0] == 0:
            height, width = width, height
        streams = []
        for number in range(self.videos):
            codec = self.codec
            options = (
                {"preset": "ultrafast", "crf": "12", **self.options}
                if codec == "libx264"
                else dict(self.options)
            )
            stream = container.add_stream(codec, rate=self.rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width >> number, height >> number, self.format
            context = stream.codec_context
            context.time_base = stream.time_base = self.base or 1 / self.rate
            context.sample_aspect_ratio = self.aspect
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = self.look
            if matrix != (1, 0, 0, 1):
                a, b, c, d = (value << 16 for value in matrix)
                stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
            streams.append(stream)
        packets = []
        for track in self.sounds:
            packets += _sound(container, track)
        if self.subtitles:
            packets += _subtitles(container, self.subtitles)
        if self.cover:
            packets.append(_cover(container))
        container.metadata.update(self.metadata)
        if self.chapters:
            container.set_chapters(
                [
                    {
                        "id": id,
                        "start": start,
                        "end": end,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": title},
                    }
                    for id, (start, end, title) in enumerate(self.chapters)
                ]
            )
        base = self.base or 1 / self.rate
        for number, stream in enumerate(streams):
            for index, seconds in enumerate(self.seconds):
                picture = self.pictures[index] if self.pictures is not None else scene(index, self.size)
                frame = frame_of(np.ascontiguousarray(stored(picture)), self.format, self.look)
                if number:
                    frame = frame.reformat(width=stream.width, height=stream.height)
                frame.pts, frame.time_base = round(seconds / base), base
                frame.duration = 1 if self.times is None and self.base is None else 0
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
        container.start_encoding()


def scene(index: int, size: tuple[int, int]) -> np.ndarray:
    """Draw frame `index`, RGB uint8 (h, w, 3): a bright box that moves right, above a colour that changes."""
    height, width = size
    picture = np.full((height, width, 3), 24, np.uint8)
    left = 1 + index % max(1, width // 4)
    picture[height // 8 : height // 2, left : left + max(2, width // 3)] = 232
    picture[3 * height // 4 :, : width // 2] = (40 + 8 * (index % 10), 20, 60)
    return picture


def frame_of(picture: np.ndarray, format: str, look: tuple[int, int, int, int]) -> av.VideoFrame:
    """A frame for an encoder; its colours follow from `look`."""
    matrix, span, _, _ = look
    frame = av.VideoFrame.from_ndarray(picture, "rgba" if picture.shape[2] == 4 else "rgb24")
    sws = {1: 1, 9: 9}.get(matrix, 5)
    if not format.startswith(("rgb", "gbr", "bgr")):
        frame = frame.reformat(
            format=format,
            dst_colorspace=sws,
            src_color_range=2,
            dst_color_range=span or 1,
            interpolation=2 | 0x40000 | 0x2000,
            threads=1,  # or they are started for each frame
        )
    elif frame.format.name != format:
        frame = frame.reformat(format=format, threads=1)
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = look
    return frame


def only_sound(path: Path, *, cover: bool = False) -> str:
    """A file without video; perhaps with a picture of the album, which is a video stream and not one."""
    with av.open(str(path), "w") as container:
        packets = _sound(container, Sound())
        if cover:
            packets.insert(0, _cover(container))
        for packet in packets:
            container.mux(packet)
    return str(path)


def spoil(path: str, where: float, *, count: int = 400) -> str:
    """Overwrite bytes, as a bad disk does, from a share `where` of the file's length on."""
    data = bytearray(Path(path).read_bytes())
    begin = int(len(data) * where)
    data[begin : begin + count] = (
        np.random.default_rng(0).integers(0, 256, min(count, len(data) - begin)).astype(np.uint8).tobytes()
    )
    Path(path).write_bytes(data)
    return path


def spoil_packets(path: str, target: Path, spoilt: Sequence[int], stream: int = 0) -> str:
    """Copy a clip, with nonsense in the packets of these numbers: the container stays whole."""
    with av.open(path) as source, av.open(str(target), "w") as container:
        copies = {one.index: container.add_stream_from_template(one) for one in source.streams}
        count = -1
        for packet in source.demux():
            if not packet.size:
                continue
            if packet.stream.index == stream:
                count += 1
                if count in spoilt:
                    made = av.Packet(b"\xa5" * packet.size)
                    made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
                    made.duration, made.is_keyframe = packet.duration, packet.is_keyframe
                    made.stream = copies[packet.stream.index]
                    container.mux(made)
                    continue
            packet.stream = copies[packet.stream.index]
            container.mux(packet)
    return str(target)


def _sound(container: Any, track: Sound) -> list[av.Packet]:
    stream = container.add_stream(track.codec, rate=track.rate, layout=track.layout)
    stream.metadata["language"] = track.language
    channels = stream.codec_context.layout.nb_channels
    count = 1024
    packets = []
    total = int((track.end - track.start) * track.rate)
    for begin in range(0, total, count):
        clock = np.arange(begin, min(begin + count, total))
        wave = (8000 * np.sin(2 * np.pi * track.frequency * clock / track.rate)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], "s16", track.layout)
        frame.sample_rate = track.rate
        frame.time_base = Fraction(1, track.rate)
        frame.pts = begin + int(track.start * track.rate)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def _subtitles(container: Any, codec: str) -> list[av.Packet]:
    stream = container.add_stream(codec)
    stream.metadata["language"] = "fra"
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
    stream.codec_context.subtitle_header = b"[Script Info]\n\n[V4+ Styles]\n\n[Events]\n"
    packets = []
    for begin, text in ((40, b"one"), (200, b"two")):
        packet = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
        packet.pts = packet.dts = begin
        packet.duration, packet.time_base, packet.stream = 100, Fraction(1, 1000), stream
        packets.append(packet)
    return packets


def _cover(container: Any) -> av.Packet:
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 90, np.uint8), "rgb24").reformat(
        format="yuvj420p"
    )
    frame.pts, frame.time_base = 0, Fraction(1)
    packets = stream.encode(frame) + stream.encode(None)
    return packets[0]


class _Pipe:
    """A file that only takes bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)


# Looking at files, by other means than the code under test.


@dataclass(frozen=True)
class Found:
    """What a file holds: of the video its times and duration in seconds, size as stored, aspect and marks;
    and the rest.
    """

    times: list[Fraction]
    duration: Fraction | None
    size: tuple[int, int]
    aspect: Fraction
    marks: tuple[int, int, int, int]
    format: str
    others: list[tuple[str, str, list[tuple[Fraction, bytes]]]]
    chapters: list[tuple[Fraction, Fraction, str]]
    metadata: dict[str, str]


def look_at(path: str) -> Found:
    """Read a file as it is."""
    with av.open(path) as container:
        video = container.streams.best("video")
        assert isinstance(video, av.VideoStream)
        frames = list(container.decode(video))
        base = video.time_base
        times = [frame.pts * base for frame in frames]
        context = video.codec_context
        marks = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
        duration = video.duration * base if video.duration else None
        size = (context.height, context.width)
        aspect, format = video.sample_aspect_ratio or Fraction(1), context.pix_fmt or ""
        chapters = [
            (
                entry["start"] * entry["time_base"],
                entry["end"] * entry["time_base"],
                entry["metadata"].get("title", ""),
            )
            for entry in container.chapters()
        ]
        metadata = dict(container.metadata)
    return Found(times, duration, size, aspect, marks, format, list(_others(path)), chapters, metadata)


def _others(path: str) -> Iterator[tuple[str, str, list[tuple[Fraction, bytes]]]]:
    with av.open(path) as container:
        shown = container.streams.best("video").index
        packets: dict[int, list[tuple[Fraction, bytes]]] = {}
        names = {}
        for stream in container.streams:
            if stream.index != shown:
                codec = stream.codec_context.name if stream.codec_context is not None else ""
                names[stream.index] = (f"{stream.type} {codec}".strip(), stream.metadata.get("language", ""))
                packets[stream.index] = []
        for packet in container.demux():
            if packet.size and packet.stream.index in packets:
                when = packet.pts if packet.pts is not None else packet.dts or 0
                packets[packet.stream.index].append((when * packet.time_base, bytes(packet)))
        for index, (kind, language) in names.items():
            yield kind, language, packets[index]


def rgb_frames(path: str) -> list[np.ndarray]:
    """Decoded frames as they are stored, untouched: all planes in one array each."""
    with av.open(path) as container:
        return [frame.to_ndarray() for frame in container.decode(container.streams.video[0])]


def repeat(path: str, times: int) -> str:
    """A clip several times in a row, in a file beside it: its packets are copied, which takes no time."""
    stem, suffix = os.path.splitext(path)
    target = f"{stem}-{times}{suffix}"
    with av.open(path) as source, av.open(target, "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        length = stream.duration
        for turn in range(times):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.pts += turn * length
                    packet.dts += turn * length
                    packet.stream = copy
                    container.mux(packet)
    return target
