"""Open a video file, seek in it, and decode its frames to RGB."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import av.error
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from unet_batch.errors import VideoError
from unet_batch.files import archives
from unet_batch.files.naming import shown
from unet_batch.media.video.kinds import (
    BT601,
    BT709,
    CONTAINERS,
    DAMAGED,
    FULL,
    LIMITED,
    RGB,
    SWS,
    Clip,
    ColorInfo,
    DecodedFrame,
    is_foreign,
    reason,
)
from unet_batch.media.video.swscale import EXACT, reformatter

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.sidedata.sidedata import SideData
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from unet_batch.types import Pixels


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
        VideoError: no such file, not a video, no video stream in it, too large, or none of its frames
            decodes.
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
            self._decoding = self._decode()
            first = next(self._decoding, None)
            if first is None:
                raise VideoError(
                    f"{shown(path)}: no frame of its video decodes ({self.damaged} damaged packets)",
                    hint=DAMAGED,
                )
            self._first: VideoFrame | None = first
            self._stored_size = first.width, first.height
            self.clip = _describe(path, self._container, self._stream, first)
            self._promised_end = _promised_end(self.clip, self._container, self._stream)
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

    def frames(
        self, start: int | None = None, end: int | None = None, *, seek: bool = True
    ) -> Iterator[DecodedFrame]:
        """Decode frame after frame, in the order they are shown.

        Args:
            start: leave out what is shown before, in ticks of the clip's time base.
            end: leave out what is shown from here on.
            seek: begin to decode close to `start`; else at the beginning, which takes longer.
        """
        count, last, before = 0, None, self.damaged
        for frame in self._decode_from(start if seek else None):
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
            if (frame.width, frame.height) != self._stored_size:
                self._note("the size changes on the way: later frames are fitted to the first one's size")
            yield DecodedFrame(count, pts, int(frame.duration or 0), self.damaged - before, frame)
            count += 1
        self._check_end(last)

    def rgb(self, decoded: DecodedFrame) -> Pixels:
        """Convert a frame to RGB as displayed, uint8 (height, width, 3).

        May be called from many threads; releases the GIL.
        """
        alpha = any(component.is_alpha for component in decoded.frame.format.components)
        color = self.clip.color
        converted = reformatter().reformat(
            decoded.frame,
            *self._stored_size,
            "rgba" if alpha else "rgb24",
            src_colorspace=SWS.get(color.matrix),
            src_color_range=color.range,
            dst_color_range=FULL,
            interpolation=EXACT,
            threads=1,
        )
        pixels = cast("Pixels", converted.to_ndarray())
        return upright(_over_white(pixels) if alpha else pixels, self.clip.orientation)

    @property
    def _step(self) -> int:
        """Ticks between two frames, on average."""
        rate, base = _rate(self._stream), self._stream.time_base
        return max(1, round(1 / (rate * base))) if rate and base else 1

    def _note(self, text: str) -> None:
        """Note something strange, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _open(self, *, threads: str = "AUTO") -> None:
        """Open the file and its decoder; `threads` is FFmpeg's kind of threading."""
        accelerator = None
        if self._hardware:
            from av.codec.hwaccel import HWAccel

            accelerator = HWAccel(self._hardware, allow_software_fallback=False)
        self._container = open_input(self.path, accelerator)
        try:
            self._stream = video_stream(self.path, self._container)
            context = self._stream.codec_context
            if self._max_pixels is not None and context.width * context.height > self._max_pixels:
                raise VideoError(
                    f"{shown(self.path)}: {context.width} x {context.height} pixels, at most "
                    f"{self._max_pixels:,} are decoded",
                    hint="raise --max-pixels if you trust the file",
                )
        except BaseException:
            self._container.close()
            raise
        self._stream.thread_type = threads
        # FFmpeg's own VP8 and VP9 decoders leave the alpha plane out.
        name = context.name
        self._alpha_decoder: Any = None
        if self._stream.metadata.get("alpha_mode") == "1" and name in ("vp8", "vp9"):
            self._alpha_decoder = av.CodecContext.create("libvpx-vp9" if name == "vp9" else "libvpx", "r")
        self._loses_rest = threads == "AUTO" and self._alpha_decoder is None

    def _read_packets(self) -> Iterator[Packet[Any] | None]:
        """Yield the packets from the current position on; then None, which flushes the decoder."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            self._note(f"the file cannot be read to its end: {reason(error)}")
        yield None

    def _decode(self) -> Iterator[VideoFrame]:
        """Decode from the current position on, and count packets that do not decode."""
        decode = self._alpha_decoder.decode if self._alpha_decoder else self._stream.codec_context.decode
        owed, latest, known = 0, None, self.damaged
        for packet in self._read_packets():
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
                known = self.damaged
            yield from frames
        if owed > 0 and latest is not None and self._loses_rest:
            # A decoder of several threads is some frames behind. If one of them is damaged, those after it
            # are lost as it is emptied, without an error: they are decoded once more, by a single thread.
            self.damaged = known
            yield from self._decode_rest(latest)

    def _decode_rest(self, latest: int) -> Iterator[VideoFrame]:
        """Decode the frames after `latest` (in ticks) once more, by a single thread."""
        before = self.damaged
        self.close()
        self._open(threads="SLICE")
        with suppress(av.error.FFmpegError):
            self._container.seek(latest, stream=self._stream, backward=True)
        for frame in self._decode():
            if frame.pts is None or frame.pts <= latest:
                self.damaged = before
            else:
                yield frame

    def _decode_from(self, start: int | None) -> Iterator[VideoFrame]:
        """Decode all frames from `start` on (in ticks; None: all); earlier ones may come first."""
        first, self._first = self._first, None
        if first is not None and start is not None and first.pts is not None and first.pts < start:
            seen = self.damaged
            with suppress(av.error.FFmpegError):
                self._container.seek(start, stream=self._stream, backward=True)
                if self._alpha_decoder:
                    self._alpha_decoder.flush_buffers()
                self._decoding = self._decode()
                found = next(self._decoding, None)
                if found is not None and found.key_frame and found.pts is not None and found.pts <= start:
                    yield found
                    yield from self._decoding
                    return
            # An index that leads astray: from the beginning, then.
            self.close()
            self.damaged = seen
            self._open()
            self._decoding, first = self._decode(), None
        if first is not None:
            yield first
        yield from self._decoding

    def _check_end(self, last: int | None) -> None:
        """Note it if the last frame comes well before the end that the file promises."""
        promised, base, start = self._promised_end, self.clip.time_base, self.clip.start
        if last is None or promised is None:
            return
        end = (last + self._step) * base
        if promised - end > max(Fraction(1, 2), 3 * self._step * base):
            self._note(
                f"the video ends after {float(end - start):.2f} s, {float(promised - start):.2f} s are "
                f"promised: the file is cut short"
            )


def upright(pixels: Pixels, orientation: tuple[bool, bool, bool]) -> Pixels:
    """Turn stored pixels, (h, w, c) or (h, w), as `Clip.orientation` says; returns a C-contiguous array."""
    transposed, left_right, top_bottom = orientation
    if transposed:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    if left_right or top_bottom:
        pixels = cv2.flip(pixels, -1 if left_right and top_bottom else int(left_right))  # type: ignore[assignment]
    return np.ascontiguousarray(pixels)


def look(path: str) -> tuple[int | None, Fraction | None]:
    """Frames of a file and frames a second, as its header has them; None where it does not, or is damaged."""
    with suppress(VideoError), open_input(path) as container:
        return _length(container, video_stream(path, container))[1:]
    return None, None


def _length(
    container: InputContainer, stream: VideoStream
) -> tuple[Fraction | None, int | None, Fraction | None]:
    """Duration of the video alone in seconds, its frames and their rate, as far as the header tells."""
    rate = _rate(stream)
    length = Fraction(container.duration, av.time_base) if container.duration else None
    # Of several streams, the longest makes a file's duration
    alone = length if len(container.streams) == 1 else None
    own = stream.duration
    if container.format.name.startswith("matroska"):
        # Knows no durations of streams, although FFmpeg may show the file's in their place, and of the file
        # the second at which it ends
        own, alone = None, alone if container.start_time == 0 else None
    duration = own * stream.time_base if own and stream.time_base else alone
    length = duration or length
    return duration, stream.frames or (round(length * rate) if length and rate else None), rate


def _promised_end(clip: Clip, container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Second at which the last frame ends by the file's own account; None if it does not say."""
    if container.format.name == "avi" and stream.frames and clip.rate:
        return (
            clip.start + stream.frames / clip.rate
        )  # of a file without its index FFmpeg shortens the duration
    if not container.format.name.startswith("matroska"):
        return None if clip.duration is None else clip.start + clip.duration
    for key, value in stream.metadata.items():  # tags, which most writers put beside each track
        if key.startswith("DURATION") and (match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", value)):
            return 3600 * int(match[1]) + 60 * int(match[2]) + Fraction(match[3])
    if len(container.streams) > 1 or not container.duration:  # of the longest of them
        return None
    return Fraction(container.duration, av.time_base)


def _rate(stream: VideoStream) -> Fraction | None:
    """Frames a second, on average; raw DV says how many ticks there are instead."""
    average, base = stream.average_rate, stream.time_base
    if average and base and average * base == 1:
        return stream.guessed_rate or average
    return average or stream.guessed_rate


def open_input(path: str, accelerator: Any = None) -> InputContainer:
    """Open a video file, and nothing but the file itself; raise VideoError if that fails."""
    try:
        if os.path.isfile(local := archives.local_path(path)) and not os.path.getsize(local):
            raise VideoError(f"{path}: the file is empty", hint=DAMAGED)
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        return av.open(local, "r", options=options, hwaccel=accelerator, metadata_errors="replace")
    except (RuntimeError, av.error.FFmpegError, OSError, ValueError) as error:
        if accelerator is not None:
            raise VideoError(
                f"{path}: cannot be decoded by the GPU: {reason(error)}",
                hint="--decode cpu decodes on the processor",
            ) from error
        if isinstance(error, RuntimeError):  # nothing foreseen
            raise
        if is_foreign(path):
            raise VideoError(
                f"{path}: called like a video, but it holds something else", hint="leave it out"
            ) from error
        raise VideoError(f"{path}: cannot be opened as a video: {reason(error)}", hint=DAMAGED) from error


def video_stream(path: str, container: InputContainer) -> VideoStream:
    """Choose the video stream of a file; a cover picture is none. Raises VideoError if there is none."""
    pictures = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kinds = ", ".join(stream_name(stream) for stream in container.streams) or "no streams at all"
        raise VideoError(f"{shown(path)}: there is no video in it, only {kinds}", hint="leave it out")
    best = container.streams.best("video")
    stream = next(
        (stream for stream in streams if best is not None and stream.index == best.index), streams[0]
    )
    if stream.codec_context is None:
        raise VideoError(
            f"{shown(path)}: its video is in a format that this FFmpeg does not know",
            hint="convert it to H.264",
        )
    return stream


def _describe(path: str, container: InputContainer, stream: VideoStream, first: VideoFrame) -> Clip:
    """Gather what the container, its video stream and the first frame say."""
    base = stream.time_base or Fraction(1, 1000)
    duration, frames, rate = _length(container, stream)
    orientation = _orientation(first)
    transposed = orientation[0]
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return Clip(
        path=path,
        size=(first.width, first.height) if transposed else (first.height, first.width),
        rate=rate,
        time_base=base,
        start=(first.pts or 0) * base,
        duration=duration,
        frames=frames,
        aspect=1 / aspect if transposed else aspect,
        orientation=orientation,
        color=_color_info(first),
        codec=stream.codec_context.name,
        depth=max(component.bits for component in first.format.components),
        others=tuple(stream_name(other) for other in container.streams if other.index != stream.index),
        origin=_origin(container),
    )


def _origin(container: InputContainer) -> Fraction:
    """Second at which the clock of a broadcast format begins; 0 for others."""
    if container.format.name not in ("mpegts", "mpeg"):
        return Fraction(0)
    starts = [
        one.start_time * one.time_base
        for one in container.streams
        if one.start_time is not None and one.time_base
    ]
    return min(starts, default=Fraction(0))


def stream_name(stream: Stream) -> str:
    """Kind and codec of a stream: "audio aac"."""
    context = stream.codec_context
    codec = context.codec.canonical_name if context is not None else getattr(stream, "name", None)
    return f"{stream.type} {codec or ''}".strip()


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Read the display matrix as (transpose, mirror left to right, top to bottom): quarter turns only."""
    # Declared as a mapping, which iterates over its values
    sides = cast("Iterable[SideData]", frame.side_data)
    data = next((side for side in sides if side.type == SideDataType.DISPLAYMATRIX), None)
    if data is None:
        return False, False, False
    # Stored (p, q) is displayed at (a p + c q, b p + d q), x to the right and y down.
    a, b, _, c, d, *_ = np.frombuffer(bytes(data)[:36], "<i4").tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _color_info(frame: VideoFrame) -> ColorInfo:
    """Read the colours of a frame; what it does not say is decided as players do."""
    matrix, span = int(frame.colorspace), int(frame.color_range)
    if frame.format.is_rgb:
        matrix, span = RGB, FULL
    elif matrix not in SWS:
        matrix = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
    if span not in (LIMITED, FULL):
        span = FULL if frame.format.name.startswith("yuvj") else LIMITED
    return ColorInfo(matrix, span, int(frame.color_primaries), int(frame.color_trc))


def _over_white(rgba: Pixels) -> Pixels:
    """Composite RGBA over white."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed: Pixels = ((rgba[..., :3] * alpha + np.uint16(255) * (255 - alpha) + 127) // 255).astype(np.uint8)
    return mixed
