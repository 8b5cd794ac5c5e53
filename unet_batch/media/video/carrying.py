"""What a file that is written takes over of its source beside the picture: sound, subtitles, data, tags.

For each thing there are ways, the best first, the last of which leaves it out; `assembling` tries which of
them a container takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import av.error
import numpy as np

from unet_batch.media.video.reading import stream_name

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

COPY, ENCODE, LEAVE = "copy", "encode", "leave"
TIMECODE, CHAPTERS, METADATA = "timecode", "chapters", "metadata"

# What QuickTime and Safari play. Opus, Vorbis, FLAC, PCM and MP2 may be in MP4, and stay silent there in one
# player or the other.
_PLAYED = {
    ".mp4": frozenset({"aac", "alac", "mp3", "ac3", "eac3"}),
    ".mov": frozenset(
        {
            *("aac", "alac", "mp3", "ac3", "eac3", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8"),
            *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
            *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
        }
    ),
}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_OPUS_RATE = 48000
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_GAP = Fraction(1, 20)  # seconds; less is the jitter of a container
# What FFmpeg itself takes so many channels for
_AAC = "aac", "AAC"
_SOUND = {".webm": ("libopus", "Opus")}
"""What sound that is coded anew is coded in, by the file: FFmpeg's name and people's; elsewhere AAC."""
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


@dataclass(frozen=True)
class Way:
    """A way to carry something over: COPY, ENCODE or LEAVE, and what people should know of it."""

    how: str
    note: str = ""


def ways_of(source: InputContainer, shown: Stream, suffix: str, *, sound: bool) -> dict[int | str, list[Way]]:
    """How each thing of a source may be carried over, best way first, last without it.

    Args:
        source: open.
        shown: its stream that is segmented.
        suffix: of the file that is written.
        sound: carry the other streams over, too.

    Returns:
        The ways by the index of a stream, and by TIMECODE, CHAPTERS and METADATA.
    """
    ways: dict[int | str, list[Way]] = {}
    for stream in source.streams if sound else ():
        if stream.index != shown.index and not _is_described_elsewhere(stream, source):
            ways[stream.index] = _ways_of_stream(stream, suffix)
    if code := _timecode(source):
        ways[TIMECODE] = [Way(COPY), Way(LEAVE, f"timecode {code} was left out: it does not fit the frames")]
    if source.chapters():
        ways[CHAPTERS] = [Way(COPY), Way(LEAVE, "chapters were left out: the container does not hold them")]
    ways[METADATA] = [Way(COPY), Way(LEAVE, "metadata was left out: the container does not hold it")]
    return ways


def _ways_of_stream(stream: Stream, suffix: str) -> list[Way]:
    name, form = stream_name(stream), {".mp4": "MP4", ".mov": "QuickTime"}.get(suffix, "Matroska")
    codec = _SOUND.get(suffix, _AAC)[1]
    leave = Way(LEAVE, f"{name} was left out: the container does not hold it")
    if stream.type == "video":
        if stream.disposition & av.stream.Disposition.attached_pic:
            return [Way(LEAVE, f"the cover picture ({name}) was left out")]
        return [Way(LEAVE, f"{name} was left out: of the videos in a file the default one is segmented")]
    if not isinstance(stream, av.AudioStream):
        # Data that nobody has a name for means nothing without the file it was in
        return [Way(COPY), leave] if name != stream.type else [leave]
    if not stream.codec_context:  # a codec that this FFmpeg does not know
        return [leave]
    channels, taken = stream.codec_context.channels, ""
    if _is_unnamed(stream.codec_context.layout) and channels > 2:
        taken = f"its {channels} channels have no names: "
        taken += f"taken for {_LAYOUTS[channels]}" if channels in _LAYOUTS else "the first two are kept"
    and_taken = f"; {taken}" if taken else ""
    anew = f"{name} was coded anew as {codec}: "
    refused = Way(ENCODE, anew + "the container does not hold it" + and_taken)
    if suffix in _PLAYED and stream.codec_context.codec.canonical_name not in _PLAYED[suffix]:
        return [Way(ENCODE, anew + f"not every player knows it in {form}" + and_taken), leave]
    return [Way(COPY, f"{name}: {taken}" if channels in _LAYOUTS and taken else ""), refused, leave]


def _is_described_elsewhere(stream: Stream, source: InputContainer) -> bool:
    """Tell whether a stream of data is but the timecode or the chapters, which are carried over as such."""
    if stream.type != "data":
        return False
    if "timecode" in stream.metadata:
        return True
    # FFmpeg does not read the text of the chapters of MP4 as packets; before PyAV 18 it does not say so
    unread = getattr(stream, "discard", None)
    return bool(source.chapters()) and (unread is None or int(unread) == _DISCARD_ALL)


_DISCARD_ALL = 48  # AVDISCARD_ALL


# Tags.


def metadata_of(owner: Any) -> dict[str, str]:
    """Metadata of a file or a stream, without what describes its encoding."""
    technical = {
        *("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "rotate"),
        *("alpha_mode", "timecode"),
    }
    return {key: value for key, value in owner.metadata.items() if key.lower() not in technical}


def _timecode(source: InputContainer) -> str:
    """The timecode of a file's first frame, wherever the container keeps it; "" if it has none."""
    for owner in (source, *source.streams):
        for key, value in owner.metadata.items():
            if key.lower() == "timecode":
                return str(value)
    return ""


def timecode_of(source: InputContainer, elapsed: Fraction | int, rate: Fraction | None) -> str:
    """The timecode of a frame `elapsed` seconds after the first one of a file.

    Raises:
        ValueError: there is no such frame at this rate.
    """
    if rate is None:
        raise ValueError("no rate to count frames by")
    return shift_timecode(_timecode(source), round(elapsed * rate), rate)


def shift_timecode(code: str, frames: int, rate: Fraction) -> str:
    """Count a SMPTE timecode on; a `;` before the frames means that numbers are dropped (SMPTE ST 12-1).

    Of 30 frames a second two numbers are dropped at the beginning of each minute but every tenth, of 60 four,
    so that a clock of 29.97 does not fall behind.

    Args:
        code: "01:00:00:00", "01:00:00;00".
        frames: how many to add.
        rate: frames a second.

    Raises:
        ValueError: this is no timecode of a clip of such a rate.
    """
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2}):(\d{1,2})([:;.])(\d{1,3})", code.strip())
    if match is None:
        raise ValueError(f"{code!r} is no timecode")
    hours, minutes, seconds, frame = (int(match[group]) for group in (1, 2, 3, 5))
    second, drop = round(rate), match[4] != ":"
    if minutes > 59 or seconds > 59 or frame >= second or (drop and second % 30):
        raise ValueError(f"{code!r} is no timecode at {second} frames a second")
    dropped = second // 15 if drop else 0
    minute, ten = 60 * second - dropped, 600 * second - 9 * dropped
    passed = 60 * hours + minutes
    count = (60 * passed + seconds) * second + frame - dropped * (passed - passed // 10) + frames
    tens, rest = divmod(count % (144 * ten), ten)
    # Within ten minutes the first one drops nothing
    count = 600 * second * tens + rest + dropped * max(0, (rest - dropped) // minute)
    seconds, frame = divmod(count, second)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{clock}{';' if drop else ':'}{frame:02}"


# Sound.


@dataclass(frozen=True)
class Track:
    """A stream of the output that is carried over; `encoder` if it is encoded anew."""

    stream: Any
    encoder: SoundEncoder | None = None


def add_track(out: OutputContainer, stream: Stream, way: Way) -> Track:
    """Add a stream to `out` that takes what `stream` holds. Raises what PyAV raises if it cannot be."""
    if way.how == ENCODE:
        encoder = SoundEncoder(out, cast("AudioStream", stream))
        track = Track(encoder.stream, encoder)
    else:
        track = Track(out.add_stream_from_template(stream))
        context = track.stream.codec_context
        if stream.type == "audio" and _is_unnamed(context.layout):
            # MP4 and QuickTime describe PCM by its layout; AVI, DV and MXF say how many channels only
            context.layout = _LAYOUTS.get(context.channels, context.layout)
    track.stream.metadata.update(metadata_of(stream))
    track.stream.disposition = stream.disposition
    return track


class SoundEncoder:
    """Decodes packets of sound and encodes them as AAC; for WebM as Opus.

    Args:
        out: gets another stream, `stream`.
        source: the sound.
    """

    def __init__(self, out: OutputContainer, source: AudioStream) -> None:
        context = source.codec_context
        if _is_unnamed(context.layout) and context.channels in _LAYOUTS:
            context.layout = _LAYOUTS[context.channels]
        rate = min(_AAC_RATES, key=lambda rate: (abs(rate - context.sample_rate), rate))
        layout = _AAC_LAYOUTS.get(context.channels, "stereo")
        codec = _AAC[0]
        if out.format.name == "webm":
            codec, rate, layout = "libopus", _OPUS_RATE, "mono" if context.channels == 1 else "stereo"
        self.stream: Any = out.add_stream(codec, rate=rate, layout=layout)
        self.stream.codec_context.open()
        self._rate, self._layout = rate, layout
        self._resampler: Any = None
        self._form: Any = None
        self._due: Fraction | None = None  # second at which what comes next begins
        self._packets = 0
        self.name = stream_name(source)

    @property
    def is_silent(self) -> bool:
        """There was sound, and nothing of it could be decoded."""
        return self._packets > 0 and self._due is None

    def encode(self, packet: Packet[Any], begin: Fraction) -> Iterator[Packet[Any]]:
        """Encode a packet, `begin` seconds earlier; what does not decode is silence."""
        self._packets += bool(packet.size)
        frames: list[AudioFrame] = []
        with suppress(av.error.FFmpegError):
            frames = cast("list[AudioFrame]", packet.decode())
        for frame in frames:
            frame = _named(frame)
            self._set_time(frame, begin)
            for even in self._resample(frame):
                yield from self.stream.encode(even)

    def _set_time(self, frame: AudioFrame, begin: Fraction) -> None:
        """Let a frame follow the one before: only gaps are kept, as AVI and others tell times to a packet."""
        at = frame.pts * frame.time_base - begin if frame.pts is not None and frame.time_base else None
        if at is None or (self._due is not None and at < self._due + _GAP):
            at = self._due or Fraction(0)
        self._due = at + Fraction(frame.samples, frame.sample_rate)
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = round(at * frame.sample_rate)

    def flush(self) -> Iterator[Packet[Any]]:
        """Encode what is left."""
        for even in self._resample(None):
            yield from self.stream.encode(even)
        yield from self.stream.encode(None)

    def _resample(self, frame: AudioFrame | None) -> list[AudioFrame]:
        """In the encoder's form; broadcasts change from stereo to 5.1 and back on the way."""
        form = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        rest: list[AudioFrame] = []
        if self._resampler is not None and form != self._form:
            rest = self._resampler.resample(None)
            self._resampler = None
        if frame is None:
            return rest
        if self._resampler is None:
            self._form = form
            self._resampler = av.AudioResampler("fltp", self._layout, self._rate)
        return [*rest, *self._resampler.resample(frame)]


def _is_unnamed(layout: Any) -> bool:
    """Tell whether a layout says how many channels there are and not which."""
    return re.fullmatch(r"\d+ channels?.*", layout.name) is not None or not layout.name


def _named(frame: AudioFrame) -> AudioFrame:
    """A frame whose channels have names: where nobody knows so many, the first two, as stereo."""
    if not _is_unnamed(frame.layout):
        return frame
    count = frame.layout.nb_channels
    if frame.format.is_planar and count >= 8:
        raise ValueError("PyAV reads beyond the end of the planes of so many channels")
    samples: Any = frame.to_ndarray()
    if count not in _LAYOUTS:
        samples = samples[:2] if frame.format.is_planar else samples.reshape(-1, count)[:, :2].reshape(1, -1)
    layout = _LAYOUTS.get(count, "stereo")
    named = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), frame.format.name, layout)
    named.sample_rate, named.pts, named.time_base = frame.sample_rate, frame.pts, frame.time_base
    return named
