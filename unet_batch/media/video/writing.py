"""Encode frames into a video file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np

from unet_batch.errors import VideoError
from unet_batch.files.atomic import translate
from unet_batch.media.video.kinds import (
    FULL,
    SWS,
    Clip,
    Codec,
    ColorInfo,
    output_color,
    pixel_format,
    reason,
)
from unet_batch.media.video.swscale import EXACT, reformatter

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

_LONGEST = 300  # frames between two key frames, whatever a file says of its rate


class Writer:
    """Encodes frames into a video file.

    Args:
        path: the file; its suffix is the codec's.
        codec: from `CODECS`, or `MASKS`.
        clip: whose time base, rate, aspect and colours are taken.
        quality: in the codec's own measure; None takes its default.
        threads: of the encoder.
        fragments: write MP4 so that it plays up to its last two seconds even if it is never closed. Such a
            file cannot say that its sound begins before its picture, as AAC does.

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
        self.path, self.codec, self.color = path, codec, output_color(clip, codec)
        height, width = clip.size
        self.format = pixel_format(codec, clip.size)
        self._first: int | None = None
        self._ended = False
        self._base = clip.time_base
        self._sound: deque[Packet[Any]] = deque()
        self._step = max(1, round(1 / ((clip.rate or 25) * clip.time_base)))
        with translate_errors(path):
            flags = "frag_keyframe+empty_moov+default_base_moof" if fragments else "faststart"
            # FFmpeg would keep the last 32 KiB back, which are minutes of a mask.
            self._container = open_output(path, {"movflags": flags, "flush_packets": "1"})
            try:
                rate = clip.rate or Fraction(25)
                option, default, _, _ = codec.quality
                options = {
                    **codec.options,
                    **({option: str(default if quality is None else quality)} if option else {}),
                }
                stream = self._container.add_stream(codec.encoder, rate=rate, options=options)
                assert isinstance(stream, av.VideoStream)
                stream.width, stream.height, stream.pix_fmt = width, height, self.format
                context = stream.codec_context
                context.time_base = stream.time_base = clip.time_base
                context.sample_aspect_ratio = clip.aspect
                context.max_b_frames = 0
                context.thread_count = threads
                if "g" not in options:
                    # Seeking lands within two seconds
                    context.gop_size = max(1, min(round(2 * rate), _LONGEST))
                if self.format == "gray":
                    context.color_range = FULL
                else:
                    context.colorspace, context.color_range = self.color.matrix, self.color.range
                    context.color_primaries, context.color_trc = self.color.primaries, self.color.transfer
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
        """Add an audio track; to be called before the first frame is written.

        Args:
            samples: int16 (n, channels), 1 or 2 channels, from the time of the first frame on.
            rate: samples a second.
        """
        with translate_errors(self.path):
            layout = "stereo" if samples.shape[1] == 2 else "mono"
            stream = self._container.add_stream("aac", rate=rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.pts = rate, 0
            assert isinstance(stream, av.AudioStream)
            self._sound = deque([*stream.encode(frame), *stream.encode(None)])

    def write(self, frame: VideoFrame, pts: int) -> None:
        """Encode a frame made by `make_frame`, shown at `pts` in ticks of the clip's time base.

        Raises:
            OutputError, VideoError: as above.
        """
        self._first = pts if self._first is None else self._first
        frame.pts, frame.time_base = pts - self._first, self._base
        with translate_errors(self.path):
            try:
                while (
                    self._sound
                    and (self._sound[0].dts or 0) * self._sound[0].time_base <= frame.pts * self._base
                ):
                    self._container.mux(self._sound.popleft())
                self._mux(self._stream.encode(frame))
            except BaseException:
                # Whoever writes to a file whose header could not be written crashes FFmpeg
                self._ended = True
                raise

    def _mux(self, packets: Sequence[Packet[Any]]) -> None:
        """Write packets of the video."""
        for packet in packets:
            packet.duration = packet.duration or self._step  # or the last one would be shown for no time
            self._container.mux(packet)

    def close(self) -> None:
        """Flush the encoder and finish the file; after an error, close it only."""
        with translate_errors(self.path):
            try:
                if self._first is not None and not self._ended:
                    self._ended = True
                    self._mux(self._stream.encode(None))
                    self._container.mux(list(self._sound))
            finally:
                self._container.close()


def encoder_problem(codec: Codec) -> str:
    """Why an encoder cannot be used on this machine, found by encoding a frame; "" if it can."""
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
        return reason(error)
    return ""


def make_frame(pixels: Pixels, format: str, color: ColorInfo) -> VideoFrame:
    """Convert RGB (h, w, 3), RGBA (h, w, 4) or grey (h, w), uint8, to a frame of a pixel format.

    Releases the GIL.
    """
    if pixels.ndim == 2:
        grey = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "gray")
        grey.color_range = FULL
        return grey
    order = "rgba" if pixels.shape[2] == 4 else "rgb24"
    rgb = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), order)
    # Of no meaning for RGB, but handed on to the result: PyAV 17 takes no BT.2020 from `dst_colorspace`
    rgb.colorspace = SWS[color.matrix]
    frame = reformatter().reformat(
        rgb,
        format=format,
        dst_colorspace=SWS[color.matrix],
        src_color_range=FULL,
        dst_color_range=color.range,
        interpolation=EXACT,
        threads=1,
    )
    frame.colorspace, frame.color_range = color.matrix, color.range
    frame.color_primaries, frame.color_trc = color.primaries, color.transfer
    return frame


_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def open_output(path: str, options: Mapping[str, str], suffix: str = "") -> OutputContainer:
    """Create a file; its suffix, or the one given, decides the container."""
    suffix = suffix or os.path.splitext(path)[1]
    return av.open(path, "w", format=_FORMATS[suffix], container_options=dict(options))


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Turn what FFmpeg raises while a file is written into OutputError or VideoError."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise translate(error, path, 0) from error
        raise VideoError(f"{path}: cannot be encoded: {reason(error)}", hint="try another --codec") from error
    except OSError as error:
        raise translate(error, path, 0) from error
