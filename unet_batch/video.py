"""Video files to frames and back: the only room that knows PyAV.

What a `Reader` gives is RGB uint8 as a person sees the clip: rotated and mirrored as its display matrix says, its matrix and
range of colours undone, more than 8 bits rounded to 8, transparency laid over white as for pictures. What says nothing of its
matrix is taken as BT.709 from 720 lines on, else as BT.601, as players do. HDR stays as it is coded: nothing is tone-mapped,
and what is written carries the marks of its source, so that both look alike.

Timestamps are integers in the time base of the source, never seconds in floating point. What is written has no B-frames: in the
order of decoding as in that of showing, so that a file can be put together from parts without a timestamp being invented. MP4
and QuickTime keep the time base; Matroska, which FFV1 needs, rounds to milliseconds.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from heapq import merge
from math import lcm
from typing import TYPE_CHECKING, Any, cast

import av
import av.error
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from unet_batch.errors import VideoError
from unet_batch.sinks import translate

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.container.core import Chapter
    from av.packet import Packet
    from av.sidedata.sidedata import SideData
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Size

_NAMES = "mp4 m4v mov qt mkv webm avi mpg mpeg m2v ts mts m2ts wmv asf flv f4v 3gp 3g2 ogv mxf vob divx dv y4m ivf nut"
EXTENSIONS = frozenset(_NAMES.split())
"""Extensions of the files that are taken for clips, lower case, without the dot."""
# What such files are. FFmpeg goes by the contents: a playlist or a list of files, whatever its name, would make it open others.
_CONTAINERS = "mov,matroska,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,mxf,dv,yuv4mpegpipe,ivf,nut"

_709, _601, _RGB = 1, 5, 0  # AVCOL_SPC_*, the numbers of ITU-T H.273
_LIMITED, _FULL = 1, 2  # AVCOL_RANGE_*
# What swscale calls them: BT.601 has two numbers, and BT.2020 two ways of which it knows one.
_SWS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
# swscale's quick way from YUV to RGB is off by 3 levels on average and does not come back: 10 ms instead of 1 ms for 1080p buy
# 0.4 levels, and at most 2 after the way back.
_EXACT = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
_LONGEST = 300  # frames between two key frames, whatever a file says of its rate
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_DAMAGED = "the file is damaged or not a video: restore it from its source, or leave it out"


@dataclass(frozen=True)
class Codec:
    """How a kind of video is written.

    Attributes:
        encoder: name in FFmpeg.
        suffix: of the file; decides the container.
        formats: pixel formats of even sides, and of odd ones, which 4:2:0 and 4:2:2 do not have.
        quality: name of the option that sets the quality, its default and its range; "" if there is none.
        options: fixed ones.
        limited: it has no mark for full range.
    """

    encoder: str
    suffix: str
    formats: tuple[str, str]
    quality: tuple[str, int, int, int] = ("", 0, 0, 0)
    options: Mapping[str, str] = field(default_factory=dict)
    limited: bool = False


CODECS: Mapping[str, Codec] = {
    "h264": Codec("libx264", ".mp4", ("yuv420p", "yuv444p"), ("crf", 20, 0, 51), {"preset": "veryfast"}),
    "h264_nvenc": Codec("h264_nvenc", ".mp4", ("yuv420p", "yuv444p"), ("cq", 22, 0, 51), {"preset": "p4", "rc": "vbr"}),
    "h265": Codec(
        "libx265",
        ".mp4",
        ("yuv420p", "yuv444p"),
        ("crf", 24, 0, 51),
        {"preset": "veryfast", "x265-params": "log-level=none:bframes=0"},
    ),
    "vp9": Codec(
        "libvpx-vp9",
        ".mp4",
        ("yuv420p", "yuv444p"),
        ("crf", 30, 0, 63),
        {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
    ),
    "ffv1": Codec("ffv1", ".mkv", ("yuv444p", "yuv444p"), options={"level": "3", "g": "1", "slicecrc": "1"}),
    "prores": Codec("prores_ks", ".mov", ("yuv422p10le", "yuv444p10le"), ("profile", 3, 0, 5), limited=True),
}
MASKS = Codec("ffv1", ".mkv", ("gray", "gray"), options=CODECS["ffv1"].options)
"""Masks are lossless: FFV1 in Matroska, 8-bit grey."""


@dataclass(frozen=True)
class Look:
    """How the samples of a clip become colours; numbers as in ITU-T H.273.

    Attributes:
        matrix: 1 BT.709, 5 or 6 BT.601, 9 BT.2020, 0 RGB; what is unspecified has been decided.
        range: 1 limited (16..235), 2 full.
        primaries, transfer: as marked in the source, 2 if not.
    """

    matrix: int
    range: int
    primaries: int
    transfer: int


@dataclass(frozen=True)
class Clip:
    """What a file says of its video.

    Attributes:
        path: the file; "" where there is nothing to open again.
        size: (height, width) in pixels as displayed, after rotation.
        rate: frames a second, on average; None if the file does not say.
        time_base: seconds of one tick of its timestamps.
        start: seconds at which the clip begins.
        duration: seconds of the video alone; None if the file does not say.
        frames: how many, by the file's own account or by rate and duration, of the whole file if need be; None if unknown.
        aspect: width of a displayed pixel over its height.
        turned: (transposed, mirrored left to right, mirrored top to bottom), in this order, from stored to displayed.
        look: its colours.
        codec: what it is coded in.
        depth: bits of a sample.
        others: the streams beside the video: "audio aac", "subtitle mov_text", ...
        origin: seconds at which the clock of its file begins: of broadcast formats anywhere, which would be hours of nothing
            in front of what is written; of others 0.
    """

    path: str
    size: Size
    rate: Fraction | None
    time_base: Fraction
    start: Fraction
    duration: Fraction | None
    frames: int | None
    aspect: Fraction
    turned: tuple[bool, bool, bool]
    look: Look
    codec: str
    depth: int
    others: tuple[str, ...]
    origin: Fraction = Fraction(0)


@dataclass(frozen=True, eq=False)
class Shot:
    """A decoded frame, not yet converted.

    Attributes:
        index: its number in what is read, from 0.
        pts: when it is shown, in ticks of the clip's time base.
        duration: for how long, in ticks; 0 if unknown.
        damaged: packets that did not decode, of those that came between the beginning of what is read and this frame.
        frame: PyAV's frame.
    """

    index: int
    pts: int
    duration: int
    damaged: int
    frame: VideoFrame


def is_clip(name: str) -> bool:
    """Tell from its extension whether a file is a video."""
    return os.path.splitext(name)[1][1:].lower() in EXTENSIONS


# Reading.


class Reader:
    """A video, open until `close`. It is read once, by one thread.

    Args:
        path: a file.
        hardware: decode on a device that FFmpeg knows, such as "cuda"; None on the processor.
        max_pixels: largest height x width of a clip that is decoded; None sets no limit.

    Attributes:
        clip: what the file says.
        damaged: packets so far that did not decode; their frames are missing, the others keep their times.
        timed: every frame so far had a time of its own; if not, times depend on where decoding began.
        notes: what else was strange, in words.

    Raises:
        VideoError: no such file, not a video, no video stream in it, too large, or none of its frames decodes.
    """

    def __init__(self, path: str, *, hardware: str | None = None, max_pixels: int | None = None) -> None:
        self.path = path
        self.damaged = 0
        self.timed = True
        self.notes: list[str] = []
        self._hardware = hardware
        self._max_pixels = max_pixels
        self._open()
        try:
            self._decoding = self._decoded()
            first = next(self._decoding, None)
            if first is None:
                raise VideoError(f"{path}: no frame of its video decodes ({self.damaged} damaged packets)", hint=_DAMAGED)
            self._first: VideoFrame | None = first
            self._stored = first.width, first.height
            self.clip = _describe(path, self._container, self._stream, first)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._container.close()

    def shots(self, start: int | None = None, end: int | None = None, *, seek: bool = True) -> Iterator[Shot]:
        """Decode frame after frame, in the order they are shown.

        Args:
            start: leave out what is shown before, in ticks of the clip's time base.
            end: leave out what is shown from here on.
            seek: begin to decode close to `start`; else at the beginning, which takes longer.
        """
        count, last, before = 0, None, self.damaged
        for frame in self._from(start if seek else None):
            pts = frame.pts
            if pts is None or (last is not None and pts <= last):
                # Encoders take no two frames at one time, and a frame is not dropped for its clock.
                pts = 0 if last is None else last + self._step
                self.timed = False
                self._note("some frames have no time of their own: they were set behind the ones before them")
            last = pts
            if start is not None and pts < start:
                self.damaged = before  # what is missing before the range is not missed
                continue
            if end is not None and pts >= end:
                return
            if frame.is_corrupt:
                self._note("some frames are damaged: parts of their pictures may be wrong")
            if (frame.width, frame.height) != self._stored:
                self._note("the size changes on the way: later frames are fitted to the first one's size")
            yield Shot(count, pts, int(frame.duration or 0), self.damaged - before, frame)
            count += 1
        self._check_end(last)

    def rgb(self, shot: Shot) -> Pixels:
        """The frame as displayed: RGB uint8 (height, width, 3). May be called from many threads; releases the GIL."""
        alpha = any(component.is_alpha for component in shot.frame.format.components)
        look = self.clip.look
        converted = _reformatter().reformat(
            shot.frame,
            *self._stored,
            "rgba" if alpha else "rgb24",
            src_colorspace=_SWS.get(look.matrix),
            src_color_range=look.range,
            dst_color_range=_FULL,
            interpolation=_EXACT,
            threads=1,
        )
        pixels = cast("Pixels", converted.to_ndarray())
        return upright(_over_white(pixels) if alpha else pixels, self.clip.turned)

    @property
    def _step(self) -> int:
        """Ticks between two frames, on average."""
        rate, base = self._stream.average_rate, self._stream.time_base
        return max(1, round(1 / (rate * base))) if rate and base else 1

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _open(self, *, threads: str = "AUTO") -> None:
        accelerator = None
        if self._hardware:
            from av.codec.hwaccel import HWAccel

            accelerator = HWAccel(self._hardware, allow_software_fallback=False)
        self._container = _opened(self.path, accelerator)
        try:
            self._stream = _video_stream(self.path, self._container)
            context = self._stream.codec_context
            if self._max_pixels is not None and context.width * context.height > self._max_pixels:
                raise VideoError(
                    f"{self.path}: {context.width} x {context.height} pixels, at most {self._max_pixels:,} are decoded",
                    hint="raise --max-pixels if you trust the file",
                )
        except BaseException:
            self._container.close()
            raise
        self._stream.thread_type = threads
        # FFmpeg's own VP8 and VP9 decoders leave the alpha plane out.
        name = context.name
        self._own: Any = None
        if self._stream.metadata.get("alpha_mode") == "1" and name in ("vp8", "vp9"):
            self._own = av.CodecContext.create("libvpx-vp9" if name == "vp9" else "libvpx", "r")
        self._loses_rest = threads == "AUTO" and self._own is None

    def _packets(self) -> Iterator[Packet[Any] | None]:
        """Packets of the video from where the container stands; then None, which asks the decoder for what it still has."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            self._note(f"the file cannot be read to its end: {_reason(error)}")
        yield None

    def _decoded(self) -> Iterator[VideoFrame]:
        """Frames from where the container stands; what does not decode is counted."""
        decode = self._own.decode if self._own else self._stream.codec_context.decode
        owed, latest, before = 0, None, self.damaged
        for packet in self._packets():
            before = self.damaged
            frames: list[VideoFrame] = []
            try:
                frames = decode(packet)
            except av.error.EOFError:
                pass
            except av.error.FFmpegError:
                self.damaged += 1
            if self._container.format.name == "avi":  # knows when a frame is decoded, not when it is shown
                for frame in frames:
                    self.timed = self.timed and frame.pts == frame.dts
                    frame.pts = frame.dts
            owed += (packet is not None and not packet.is_discard) - len(frames) - (self.damaged - before)
            if frames and frames[-1].pts is not None:
                latest = frames[-1].pts if latest is None else max(latest, frames[-1].pts)
            yield from frames
        if owed > 0 and latest is not None and self._loses_rest:
            # A decoder of several threads is some frames behind. If one of them is damaged, those after it are lost as it is
            # emptied, without an error: they are decoded once more, by a single thread.
            self.damaged = before
            yield from self._rest(latest)

    def _rest(self, latest: int) -> Iterator[VideoFrame]:
        """Frames after that of a time."""
        before = self.damaged
        self.close()
        self._open(threads="SLICE")
        with suppress(av.error.FFmpegError):
            self._container.seek(latest, stream=self._stream, backward=True)
        for frame in self._decoded():
            if frame.pts is None or frame.pts <= latest:
                self.damaged = before
            else:
                yield frame

    def _from(self, start: int | None) -> Iterator[VideoFrame]:
        """Frames that contain all from `start` on; earlier ones may come first."""
        first, self._first = self._first, None
        if first is not None and start is not None and first.pts is not None and first.pts < start:
            seen = self.damaged
            with suppress(av.error.FFmpegError):
                self._container.seek(start, stream=self._stream, backward=True)
                if self._own:
                    self._own.flush_buffers()
                self._decoding = self._decoded()
                found = next(self._decoding, None)
                if found is not None and found.key_frame and found.pts is not None and found.pts <= start:
                    yield found
                    yield from self._decoding
                    return
            # An index that leads astray: from the beginning, then.
            self.close()
            self.damaged = seen
            self._open()
            self._decoding, first = self._decoded(), None
        if first is not None:
            yield first
        yield from self._decoding

    def _check_end(self, last: int | None) -> None:
        promised, base = self.clip.duration, self.clip.time_base
        if last is None or promised is None:
            return
        seconds = (last + self._step) * base - self.clip.start
        if promised - seconds > max(Fraction(1, 2), 3 * self._step * base):
            self._note(
                f"the video ends after {float(seconds):.2f} s, {float(promised):.2f} s are promised: the file is cut short"
            )


class LiveReader(Reader):
    """A camera or a stream on the network, which ends when it is told to, or when it stays away.

    Where the connection breaks it is made anew, after 1, 2, 4, ... seconds; the time that passed stays a gap in the timestamps.

    Args:
        source: an URL that FFmpeg opens, or `webcam:0`.
        patience: seconds after which a source that is away has ended.
        latest: drop frames that nobody has time for, instead of making the source wait.

    Attributes:
        dropped: frames so far that nobody had time for.
        reconnected: how often the connection was made anew.

    Raises:
        VideoError: the source cannot be opened, or is no video.
    """

    def __init__(self, source: str, *, patience: float = 60.0, latest: bool = False) -> None:
        self.patience, self.latest = patience, latest
        self.dropped = self.reconnected = 0
        self._ended = threading.Event()
        super().__init__(source)
        self.clip = replace(self.clip, path="", start=Fraction(0), duration=None, frames=None)

    def close(self) -> None:
        """Release the source."""
        self._ended.set()
        super().close()

    def shots(self, start: int | None = None, end: int | None = None, *, seek: bool = True) -> Iterator[Shot]:
        """Frame after frame until the iterator is closed; the arguments mean nothing here."""
        count, last, shift, seen = 0, -1, None, 0.0
        source = self._newest() if self.latest else self._unending()
        try:
            for frame, connection in source:
                now = time.monotonic()
                if shift is None or connection != shift[0]:
                    # A new connection has a clock of its own: it goes on where the old one stopped, plus the time between.
                    gap = 0 if shift is None else max(1, round((now - seen) / self.clip.time_base))
                    shift = connection, last + max(gap, 1) - (frame.pts or 0)
                pts = max(last + 1, (frame.pts if frame.pts is not None else last - shift[1] + self._step) + shift[1])
                last, seen = pts, now
                yield Shot(count, pts, 0, self.damaged, frame)
                count += 1
        finally:
            source.close()
            if self.reconnected:
                self._note(f"the connection broke and was made anew {self.reconnected} times")
            if self.dropped:
                self._note(f"{self.dropped:,} frames were dropped: there was no time for them, as asked")

    def _open(self, *, threads: str = "SLICE") -> None:
        self._container = _opened_live(self.path)
        self._stream = _video_stream(self.path, self._container)
        self._stream.thread_type = threads  # threads by frame would hold frames back
        self._own, self._loses_rest = None, False
        self._finite = bool(self._container.duration)  # a file on a server

    def _unending(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Frames with the number of the connection they came by."""
        first, self._first = self._first, None
        if first is not None:
            yield first, 0
        while True:
            for frame in self._decoding:
                yield frame, self.reconnected
            if self._finite or not self._reconnect():
                return

    def _reconnect(self) -> bool:
        pause, until = 1.0, time.monotonic() + self.patience
        while not self._ended.is_set() and time.monotonic() < until:
            with suppress(VideoError):
                self._container.close()
                self._open()
                self._decoding = self._decoded()
                self.reconnected += 1
                return True
            self._ended.wait(min(pause, self.patience))
            pause = min(2 * pause, 30.0)
        self._note(f"the source stayed away for {self.patience:g} s: taken for its end")
        return False

    def _newest(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """The same, read in a thread of its own, which keeps the newest frame only."""
        box: deque[tuple[VideoFrame, int]] = deque(maxlen=1)
        arrived, over = threading.Semaphore(0), threading.Event()

        def read() -> None:
            try:
                for pair in self._unending():
                    self.dropped += len(box)
                    box.append(pair)
                    arrived.release()
                    if over.is_set():
                        return
            finally:
                over.set()
                arrived.release()

        thread = threading.Thread(target=read, name="live", daemon=False)
        thread.start()
        try:
            while True:
                arrived.acquire()
                with suppress(IndexError):
                    yield box.popleft()
                    continue
                if over.is_set():
                    return
        finally:
            over.set()
            self._ended.set()
            thread.join()


_LIVE = re.compile(r"(rtsps?|rtmps?|rtp|srt|udp|tcp|mms|https?)://|webcam:\d{1,3}$", re.IGNORECASE)


def is_live(source: str) -> bool:
    """Tell a camera or an URL from the name of a file."""
    return bool(_LIVE.match(source))


def live_name(source: str) -> str | None:
    """What the outputs of a camera or an address are called: where it is, without its password, and when; None for a file."""
    if not is_live(source):
        return None
    place = re.sub(r"^[^:]*://(?:[^/@]*@)?", "", source.partition("?")[0])
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", place).strip("-.") + time.strftime("-%Y%m%d-%H%M%S") + ".live"


def _opened_live(source: str) -> InputContainer:
    options, form, name = {}, None, source
    if source.lower().startswith("webcam:"):
        number = source.partition(":")[2]
        form, name = {
            "linux": ("v4l2", f"/dev/video{number}"),
            "darwin": ("avfoundation", number),
            "win32": ("dshow", f"video={number}"),
        }.get(sys.platform, ("v4l2", f"/dev/video{number}"))
    elif source.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # over UDP pictures arrive in shreds
    try:
        return av.open(name, "r", format=form, options=options, metadata_errors="replace", timeout=(10.0, 10.0))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{source}: cannot be opened: {_reason(error)}", hint="check the address, or that the camera is connected and free"
        ) from error


def new_clip(size: Size, rate: Fraction) -> Clip:
    """The description of a clip to be made: square pixels, BT.709, limited range; a tick is a 1/1000 of a frame's time.

    Args:
        size: (height, width).
        rate: frames a second.
    """
    look = Look(_709, _LIMITED, _709, _709)
    upright = (False, False, False)
    return Clip("", size, rate, 1 / (1000 * rate), Fraction(0), None, None, Fraction(1), upright, look, "", 8, ())


def upright(pixels: Pixels, turned: tuple[bool, bool, bool]) -> Pixels:
    """Turn a picture: (transposed, then mirrored left to right, then top to bottom); a C-contiguous (h, w, c) or (h, w)."""
    transposed, left_right, top_bottom = turned
    if transposed:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    if left_right or top_bottom:
        pixels = cv2.flip(pixels, -1 if left_right and top_bottom else int(left_right))  # type: ignore[assignment]
    return np.ascontiguousarray(pixels)


def _opened(path: str, accelerator: Any = None) -> InputContainer:
    try:
        if os.path.isfile(path) and not os.path.getsize(path):
            raise VideoError(f"{path}: the file is empty", hint=_DAMAGED)
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        return av.open(path, "r", options=options, hwaccel=accelerator, metadata_errors="replace")
    except RuntimeError as error:
        if accelerator is None:
            raise
        raise VideoError(f"{path}: cannot be decoded by the device: {error}", hint="decode on the processor") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be opened as a video: {_reason(error)}", hint=_DAMAGED) from error


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    pictures = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kinds = ", ".join(_name(stream) for stream in container.streams) or "no streams at all"
        raise VideoError(f"{path}: there is no video in it, only {kinds}", hint="leave it out")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
    if stream.codec_context is None:
        raise VideoError(f"{path}: its video is in a format that this FFmpeg does not know", hint="convert it to H.264")
    return stream


def _describe(path: str, container: InputContainer, stream: VideoStream, first: VideoFrame) -> Clip:
    base = stream.time_base or Fraction(1, 1000)
    rate = stream.average_rate or stream.guessed_rate
    length = Fraction(container.duration, av.time_base) if container.duration else None
    alone = length if len(container.streams) == 1 else None  # of several streams, the longest makes a file's duration
    duration = stream.duration * base if stream.duration else alone
    length = duration or length
    turned = _turned(first)
    transposed = turned[0]
    aspect = stream.sample_aspect_ratio or Fraction(1)
    frames = stream.frames or (round(length * rate) if length and rate else None)
    return Clip(
        path=path,
        size=(first.width, first.height) if transposed else (first.height, first.width),
        rate=rate,
        time_base=base,
        start=(first.pts or 0) * base,
        duration=duration,
        frames=frames,
        aspect=1 / aspect if transposed else aspect,
        turned=turned,
        look=_look(first),
        codec=stream.codec_context.name,
        depth=max(component.bits for component in first.format.components),
        others=tuple(_name(other) for other in container.streams if other.index != stream.index),
        origin=_origin(container),
    )


def _origin(container: InputContainer) -> Fraction:
    if container.format.name not in ("mpegts", "mpeg"):
        return Fraction(0)
    starts = [one.start_time * one.time_base for one in container.streams if one.start_time is not None and one.time_base]
    return min(starts, default=Fraction(0))


def _name(stream: Stream) -> str:
    codec = stream.codec_context.name if stream.codec_context is not None else ""
    return f"{stream.type} {codec}".strip()


def _turned(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """What the display matrix asks for, in quarter turns; anything between is not done."""
    sides = cast("Iterable[SideData]", frame.side_data)  # declared as a mapping, which iterates over its values
    data = next((side for side in sides if side.type == SideDataType.DISPLAYMATRIX), None)
    if data is None:
        return False, False, False
    # Stored (p, q) is displayed at (a p + c q, b p + d q), x to the right and y down.
    a, b, _, c, d, *_ = np.frombuffer(bytes(data)[:36], "<i4").tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _look(frame: VideoFrame) -> Look:
    matrix, span = int(frame.colorspace), int(frame.color_range)
    if frame.format.is_rgb:
        matrix, span = _RGB, _FULL
    elif matrix not in _SWS:
        matrix = _709 if frame.width >= 1280 or frame.height > 576 else _601
    if span not in (_LIMITED, _FULL):
        span = _FULL if frame.format.name.startswith("yuvj") else _LIMITED
    return Look(matrix, span, int(frame.color_primaries), int(frame.color_trc))


def _over_white(rgba: Pixels) -> Pixels:
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed: Pixels = ((rgba[..., :3] * alpha + np.uint16(255) * (255 - alpha) + 127) // 255).astype(np.uint8)
    return mixed


_threads = threading.local()


def _reformatter() -> VideoReformatter:
    """swscale's state is set up once for each thread; for each frame it would cost 8 ms."""
    if not hasattr(_threads, "reformatter"):
        _threads.reformatter = VideoReformatter()
    found: VideoReformatter = _threads.reformatter
    return found


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# Writing.


class Writer:
    """Encodes pictures into a file.

    Args:
        path: the file; its suffix is the codec's.
        codec: from `CODECS`, or `MASKS`.
        clip: whose time base, rate, aspect and colours are taken.
        quality: in the codec's own measure; None takes its default.
        threads: of the encoder.
        fragments: write MP4 so that it plays up to its last two seconds even if it is never closed. Such a file cannot say
            that its sound begins before its picture, as AAC does.

    Raises:
        OutputError: the file cannot be written.
        VideoError: the encoder refuses.
    """

    def __init__(
        self,
        path: str,
        codec: Codec,
        clip: Clip,
        *,
        quality: int | None = None,
        threads: int = 0,
        fragments: bool = True,
    ) -> None:
        self.path, self.codec, self.look = path, codec, written_look(clip, codec)
        height, width = clip.size
        self.format = pixel_format(codec, clip.size)
        self._first: int | None = None
        self._ended = False
        self._base = clip.time_base
        self._sound: deque[Packet[Any]] = deque()
        self._step = max(1, round(1 / ((clip.rate or 25) * clip.time_base)))
        with _writing(path):
            flags = "frag_keyframe+empty_moov+default_base_moof" if fragments else "faststart"
            # FFmpeg would keep the last 32 KiB back, which are minutes of a mask.
            self._container = _created(path, {"movflags": flags, "flush_packets": "1"})
            try:
                rate = clip.rate or Fraction(25)
                option, default, _, _ = codec.quality
                options = {**codec.options, **({option: str(default if quality is None else quality)} if option else {})}
                stream = self._container.add_stream(codec.encoder, rate=rate, options=options)
                assert isinstance(stream, av.VideoStream)
                stream.width, stream.height, stream.pix_fmt = width, height, self.format
                context = stream.codec_context
                context.time_base = stream.time_base = clip.time_base
                context.sample_aspect_ratio = clip.aspect
                context.max_b_frames = 0
                context.thread_count = threads
                if "g" not in options:
                    context.gop_size = max(1, min(round(2 * rate), _LONGEST))  # seeking lands within two seconds
                if self.format == "gray":
                    context.color_range = _FULL
                else:
                    context.colorspace, context.color_range = self.look.matrix, self.look.range
                    context.color_primaries, context.color_trc = self.look.primaries, self.look.transfer
                context.open()
            except BaseException:
                self._container.close()
                raise
        self._stream = stream

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_sound(self, samples: NDArray[np.int16], rate: int) -> None:
        """Give the clip a sound, before its first frame.

        Args:
            samples: int16 (n, channels), 1 or 2 channels, from the time of the first frame on.
            rate: samples a second.
        """
        with _writing(self.path):
            layout = "stereo" if samples.shape[1] == 2 else "mono"
            stream = self._container.add_stream("aac", rate=rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.pts = rate, 0
            assert isinstance(stream, av.AudioStream)
            self._sound = deque([*stream.encode(frame), *stream.encode(None)])

    def write(self, frame: VideoFrame, pts: int) -> None:
        """Encode a prepared frame, shown at `pts` in ticks of the clip's time base.

        Raises:
            OutputError, VideoError: as above.
        """
        self._first = pts if self._first is None else self._first
        frame.pts, frame.time_base = pts - self._first, self._base
        with _writing(self.path):
            try:
                while self._sound and (self._sound[0].dts or 0) * self._sound[0].time_base <= frame.pts * self._base:
                    self._container.mux(self._sound.popleft())
                self._mux(self._stream.encode(frame))
            except BaseException:
                self._ended = True  # whoever writes to a file whose header could not be written crashes FFmpeg
                raise

    def _mux(self, packets: Sequence[Packet[Any]]) -> None:
        for packet in packets:
            packet.duration = packet.duration or self._step  # or the last one would be shown for no time
            self._container.mux(packet)

    def close(self) -> None:
        """Encode what is left and finish the file; what failed before is only closed."""
        with _writing(self.path):
            try:
                if self._first is not None and not self._ended:
                    self._ended = True
                    self._mux(self._stream.encode(None))
                    self._container.mux(list(self._sound))
            finally:
                self._container.close()


def encoder_problem(codec: Codec) -> str:
    """Why an encoder cannot be used on this machine; "" if it can. It is asked to encode a frame."""
    try:
        context = av.CodecContext.create(codec.encoder, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height, context.pix_fmt = 256, 256, codec.formats[0]
        context.time_base, context.options = Fraction(1, 25), dict(codec.options)
        frame = av.VideoFrame(256, 256, codec.formats[0])
        frame.pts = 0
        context.encode(frame)
        context.encode(None)
    except (av.error.FFmpegError, ValueError) as error:
        return _reason(error)
    return ""


def pixel_format(codec: Codec, size: Size) -> str:
    """FFmpeg's name of how samples are stored in pictures of (height, width)."""
    return codec.formats[bool(size[0] % 2 or size[1] % 2)]


def prepared(pixels: Pixels, format: str, look: Look) -> VideoFrame:
    """Convert RGB uint8 (h, w, 3) or grey uint8 (h, w) to a frame of a pixel format; releases the GIL."""
    if pixels.ndim == 2:
        grey = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "gray")
        grey.color_range = _FULL
        return grey
    rgb = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), "rgb24")
    frame = _reformatter().reformat(
        rgb,
        format=format,
        dst_colorspace=_SWS[look.matrix],
        src_color_range=_FULL,
        dst_color_range=look.range,
        interpolation=_EXACT,
        threads=1,
    )
    frame.colorspace, frame.color_range = look.matrix, look.range
    frame.color_primaries, frame.color_trc = look.primaries, look.transfer
    return frame


def written_look(clip: Clip, codec: Codec) -> Look:
    """The marks of what is written for a clip: its own; RGB becomes limited YUV, and so does all that a codec cannot mark."""
    look = clip.look
    if look.matrix == _RGB:
        return Look(_709 if clip.size[0] > 576 else _601, _LIMITED, look.primaries, look.transfer)
    return replace(look, range=_LIMITED) if codec.limited else look


def assemble(
    path: str,
    parts: Sequence[str],
    times: Iterable[tuple[int, int]],
    clip: Clip,
    *,
    sound: bool,
    span: tuple[int, int] | None = None,
) -> list[str]:
    """Put parts together, without coding anything anew, with the sound, subtitles, chapters and metadata of their source.

    Args:
        path: the file to write, under whatever name; its container is that of the parts.
        parts: files of a `Writer`, in order.
        times: (pts, duration) of each frame of the parts, in ticks of the clip's time base.
        clip: the source.
        sound: take along the other streams of the source.
        span: (begin, end) of what was read of the source, in ticks, if it was not the whole: the other streams are cut alike,
            and time begins anew at 0.

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
        source = stack.enter_context(_opened(clip.path)) if clip.path else None
        sample = stack.enter_context(_opened(parts[0]))
        with _writing(path):
            # Where a track does not begin at 0, MP4 says so in ticks of its own clock: milliseconds, unless told.
            bases = [base, *(one.time_base for one in (source.streams if source else ()) if one.time_base)]
            clock = lcm(*(one.denominator for one in bases))
            options = {"movflags": "faststart", "movie_timescale": str(clock if clock < 2**31 else base.denominator)}
            out = _created(path, options, suffix)
            try:
                video = out.add_stream_from_template(sample.streams.video[0])
                video.time_base = base
                video.codec_context.sample_aspect_ratio = clip.aspect
                if video.codec_context.name in ("hevc", "libx265"):
                    video.codec_context.codec_tag = "hvc1"  # QuickTime and Safari know it by no other name
                if suffix == ".mkv" and sound and clip.aspect != 1:
                    notes.append(
                        f"pixels are {clip.aspect} times as wide as high: Matroska files of this program do not say so"
                    )
                streams = [_video_packets(parts, times, video, base, begin)]
                if source is not None:
                    kept = _carry_over(source, out, video, _video_stream(clip.path, source), sound, begin * base, end, notes)
                    if kept:
                        streams.append(_other_packets(source, kept, begin * base, end, notes, negative=suffix != ".mkv"))
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
                    notes.append(f"{_name(stream)} was coded anew as AAC: the container does not hold it")
        if copy is None:
            # MP4 writes its chapters as a stream of text, too; those are carried over as chapters.
            if stream.type != "data" or not source.chapters():
                notes.append(f"{_name(stream)} was left out: the container does not hold it")
            continue
        copy.stream.metadata.update(_metadata(stream))
        copy.stream.disposition = stream.disposition
        kept[stream.index] = copy
    if chapters := [_within(chapter, begin, end) for chapter in source.chapters()]:
        out.set_chapters([chapter for chapter in chapters if chapter is not None])
    return kept


def _metadata(owner: Any) -> dict[str, str]:
    technical = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "rotate", "alpha_mode"}
    return {key: value for key, value in owner.metadata.items() if key.lower() not in technical}


def _within(chapter: Chapter, begin: Fraction, end: Fraction | None) -> Chapter | None:
    """A chapter as it is in a range of the source; None if it lies outside."""
    base = chapter["time_base"] or Fraction(1)
    first = round(begin / base)
    last = chapter["end"] if end is None else round(end / base)
    start, stop = max(chapter["start"], first) - first, min(chapter["end"], last) - first
    return {**chapter, "start": start, "end": stop} if start < stop else None


def _holds(format: str, stream: Stream) -> bool:
    """Tell by trying whether a container takes a stream as it is: some say so only as they write their header."""
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
        with _opened(part) as container:
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    continue
                timed = next(clock, None)
                if timed is None:
                    raise VideoError(f"{part} holds more frames than were recorded", hint="run again with --overwrite")
                packet.stream, packet.time_base = stream, base
                packet.pts = packet.dts = timed[0] - begin
                packet.duration = timed[1]
                yield packet.pts * base, packet
    if next(clock, None) is not None:
        raise VideoError(f"{parts[-1]} holds fewer frames than were recorded", hint="run again with --overwrite")


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

    Sound begins some milliseconds before the picture: a coder needs a run-up. Unless times may be negative, it is left out, as
    all the rest would be shifted otherwise.
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
                note = f"{_name(packet.stream)}: packets that go back in time were left out"
                notes += [note] if note not in notes else []
                continue
            latest[index] = at
            packet.stream = copy.stream
            yield due, packet
    except av.error.FFmpegError as error:
        notes.append(f"sound and subtitles end early: the file cannot be read to its end: {_reason(error)}")
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


_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


def _created(path: str, options: Mapping[str, str], suffix: str = "") -> OutputContainer:
    suffix = suffix or os.path.splitext(path)[1]
    return av.open(path, "w", format=_FORMATS[suffix], container_options=dict(options))


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """What FFmpeg says of a file that is written, in our words."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise translate(error, path, 0) from error
        raise VideoError(f"{path}: cannot be encoded: {_reason(error)}", hint="try another --codec") from error
    except OSError as error:
        raise translate(error, path, 0) from error
