"""Descriptions of clips, their colours and codecs, and the converter of pixel formats that all share."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

from unet_batch.files.naming import extension_of

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from unet_batch.types import Size


_NAMES = (
    "mp4 m4v mov qt mkv webm avi mpg mpeg m2v ts mts m2ts wmv asf flv f4v 3gp 3g2 ogv mxf vob divx dv y4m "
    "ivf nut"
)
EXTENSIONS = frozenset(_NAMES.split())
"""Extensions of the files that are taken for clips, lower case, without the dot."""
# FFmpeg's names of the containers that may be opened. It goes by the contents: a playlist or a list of files,
# whatever its name, would make it open others.
CONTAINERS = "mov,matroska,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,mxf,dv,yuv4mpegpipe,ivf,nut"

BT709, BT601, RGB = 1, 5, 0  # AVCOL_SPC_*, the numbers of ITU-T H.273
LIMITED, FULL = 1, 2  # AVCOL_RANGE_*
# swscale's numbers of these matrices: BT.601 has two, and of the two kinds of BT.2020 it knows one.
SWS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
# swscale's quick way from YUV to RGB is off by 3 levels on average and does not come back: 10 ms instead of 1
# ms for 1080p buy 0.4 levels, and at most 2 after the way back.
DAMAGED = "the file is damaged or not a video: restore it from its source, or leave it out"


@dataclass(frozen=True)
class Codec:
    """An encoder, with its container, pixel formats and options.

    Attributes:
        encoder: name in FFmpeg.
        suffix: of the file; decides the container.
        formats: pixel formats of even sides, and of odd ones, which 4:2:0 and 4:2:2 do not have.
        quality: name of the option that sets the quality, its default and its range; "" if there is none.
        options: fixed ones.
        limited: its files cannot be marked as full range.
    """

    encoder: str
    suffix: str
    formats: tuple[str, str]
    quality: tuple[str, int, int, int] = ("", 0, 0, 0)
    options: Mapping[str, str] = field(default_factory=dict)
    limited: bool = False


CODECS: Mapping[str, Codec] = {
    "h264": Codec("libx264", ".mp4", ("yuv420p", "yuv444p"), ("crf", 20, 0, 51), {"preset": "veryfast"}),
    "h264_nvenc": Codec(
        "h264_nvenc", ".mp4", ("yuv420p", "yuv444p"), ("cq", 22, 0, 51), {"preset": "p4", "rc": "vbr"}
    ),
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
_VP9_ALPHA = {**CODECS["vp9"].options, "auto-alt-ref": "0"}  # without which it refuses opacity
ALPHA: Mapping[str, Codec] = {
    "libvpx-vp9": Codec("libvpx-vp9", ".webm", ("yuva420p", "yuva420p"), CODECS["vp9"].quality, _VP9_ALPHA),
    "ffv1": Codec("ffv1", ".mkv", ("yuva444p", "yuva444p"), options=CODECS["ffv1"].options),
    "prores_ks": Codec(
        "prores_ks", ".mov", ("yuva444p10le", "yuva444p10le"), options={"profile": "4444"}, limited=True
    ),
}
"""Codecs that know opacity, by their encoders: VP9 in WebM for browsers, ProRes 4444 for editors."""
MASKS = Codec("ffv1", ".mkv", ("gray", "gray"), options=CODECS["ffv1"].options)
"""Masks are lossless: FFV1 in Matroska, 8-bit grey."""


@dataclass(frozen=True)
class ColorInfo:
    """How the samples of a clip are converted to colours; numbers as in ITU-T H.273.

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
    """Description of a video, from the header and the first frame of its file.

    Attributes:
        path: the file; "" where there is nothing to open again.
        size: (height, width) in pixels as displayed, after rotation.
        rate: frames a second, on average; None if the file does not say.
        time_base: seconds of one tick of its timestamps.
        start: seconds at which the clip begins.
        duration: seconds of the video alone; None if the file does not say.
        frames: how many, by the file's own account or by rate and duration, of the whole file if need be;
            None if unknown.
        aspect: width of a displayed pixel over its height.
        orientation: what turns stored pixels into displayed ones, in this order: (transpose, mirror left to
            right, mirror top to bottom).
        color: its colours.
        codec: what it is coded in.
        depth: bits of a sample.
        others: the streams beside the video: "audio aac", "subtitle mov_text", ...
        origin: seconds at which the clock of its file begins: of broadcast formats anywhere, which would be
            hours of nothing in front of what is written; of others 0.
    """

    path: str
    size: Size
    rate: Fraction | None
    time_base: Fraction
    start: Fraction
    duration: Fraction | None
    frames: int | None
    aspect: Fraction
    orientation: tuple[bool, bool, bool]
    color: ColorInfo
    codec: str
    depth: int
    others: tuple[str, ...]
    origin: Fraction = Fraction(0)


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """A decoded frame, not yet converted.

    Attributes:
        index: its number in what is read, from 0.
        pts: when it is shown, in ticks of the clip's time base.
        duration: for how long, in ticks; 0 if unknown.
        damaged: packets that did not decode, of those that came between the beginning of what is read and
            this frame.
        frame: PyAV's frame.
    """

    index: int
    pts: int
    duration: int
    damaged: int
    frame: VideoFrame


def is_clip(name: str) -> bool:
    """Tell from its extension whether a file is a video."""
    return extension_of(name) in EXTENSIONS


def is_foreign(path: str) -> bool:
    """Tell from its first bytes that a file is no video although it is called like one: TypeScript, sound.

    Only where a name has two meanings: whatever else is damaged must be a failure that somebody reads, and
    there may be a hundred thousand files to read a little of. An empty file is a copy that failed.
    """
    extension = os.path.splitext(path)[1][1:].lower()
    if extension not in _AMBIGUOUS and extension not in _MAY_BE_SOUND:
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if extension in _AMBIGUOUS and head and not _begins_as_video(head):
                return True
            if head.startswith(_EBML):
                return _is_sound_in_matroska(file)
            return _is_sound_in_mp4(file) if head[4:8] == b"ftyp" else _is_sound(head)
    except OSError:  # for whoever opens it to explain
        return False


_HEAD = 8192
_BOXES_READ = 1000
# TypeScript and Qt's translations are ts and mts, scripts of Squirrel nut; the others have several meanings
_AMBIGUOUS = frozenset(("ts", "mts", "m2ts", "nut", "asf", "dv", "ivf"))
_MAY_BE_SOUND = frozenset(
    ("mp4", "m4v", "mov", "qt", "f4v", "3gp", "3g2", "asf", "wmv", "ogv", "mkv", "webm")
)
_EBML = b"\x1aE\xdf\xa3"
_BEGINNINGS = (
    *(_EBML, b"RIFF", b"OggS", b"FLV", b"DKIF", b"YUV4MPEG2", b"nut/multimedia container"),
    *(b"\0\0\1\xba", b"\0\0\1\xb3", b"\0\0\1\xb0", b"\x06\x0e+4", b"\x1f\x07\0"),
)
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_OGG_VIDEO = (b"\x80theora", b"BBCD", b"OVP80", b"\1video")


def _begins_as_video(head: bytes) -> bool:
    """Whether a file begins as some container that FFmpeg goes by, whatever its name."""
    if head.startswith((*_BEGINNINGS, _ASF)) or head[4:8] in _BOXES:
        return True
    # MPEG transport streams: 0x47 each 188 bytes; 192 with the clock of Blu-ray, 204 with error correction. A
    # recording may begin in the midst of a packet.
    for size in (188, 192, 204):
        end = min(size, len(head) - 2 * size)
        first = head.find(b"\x47", 0, max(0, end))
        while first >= 0:
            if not head[first : first + 5 * size : size].strip(b"\x47"):
                return True
            first = head.find(b"\x47", first + 1, end)
    return False


def _is_sound(head: bytes) -> bool:
    """Whether a file of Windows Media or Ogg says at its beginning that it holds nothing but sound."""
    if head.startswith(_ASF):
        return int.from_bytes(head[16:24], "little") <= len(head) and _ASF_VIDEO not in head
    return head.startswith(b"OggS") and not any(mark in head for mark in _OGG_VIDEO)


def _is_sound_in_mp4(file: BinaryIO) -> bool:
    """Whether an MP4 or QuickTime file has tracks of sound only: its boxes are gone through, not read."""
    found, end, at = set(), file.seek(0, os.SEEK_END), 0
    for _ in range(_BOXES_READ):
        if at + 8 > end:
            break
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = int.from_bytes(file.read(8), "big"), 16
        if kind in (b"moov", b"trak", b"mdia"):
            if kind == b"moov":
                if at + size > end:  # cut off
                    return False
                end = at + size
            at += header  # what is in it comes next
            continue
        if kind == b"hdlr":
            found.add(file.read(12)[8:])
        if size < header:  # up to the end of the file, or nonsense
            break
        at += size
    return b"soun" in found and b"vide" not in found and at >= end


# Of Matroska (RFC 9559)
_SEGMENT, _TRACKS, _TRACK, _TRACK_TYPE = 0x18538067, 0x1654AE6B, 0xAE, 0x83
_VIDEO, _SOUND = 1, 2


def _is_sound_in_matroska(file: BinaryIO) -> bool:
    """Whether a Matroska or WebM file has tracks of sound only: its elements are gone through, not read."""
    found, end, at = set(), file.seek(0, os.SEEK_END), 0
    for _ in range(_BOXES_READ):
        if at >= end:
            break
        file.seek(at)
        head = file.read(12)
        # An identifier of 1 to 4 bytes and a size of 1 to 8: the leading zeros say of how many
        wide = 9 - head[0].bit_length()
        long = 9 - head[wide].bit_length() if wide < len(head) else 9
        header = wide + long
        if wide > 4 or long > 8 or header > len(head):
            return False
        kind = int.from_bytes(head[:wide], "big")
        size = int.from_bytes(head[wide:header], "big") & (1 << 7 * long) - 1
        at += header
        if kind in (_SEGMENT, _TRACKS, _TRACK):
            if kind == _TRACKS:
                if at + size > end:  # cut off
                    return False
                end = at + size
            continue  # what is in it comes next
        if kind == _TRACK_TYPE:
            file.seek(at)
            found.add(int.from_bytes(file.read(size if size < 8 else 8), "big"))
        at += size
    return _SOUND in found and _VIDEO not in found and at >= end


def new_clip(size: Size, rate: Fraction) -> Clip:
    """Describe a clip to be made: square pixels, BT.709, limited range, 1000 ticks a frame.

    Args:
        size: (height, width).
        rate: frames a second.
    """
    color = ColorInfo(BT709, LIMITED, BT709, BT709)
    as_stored = (False, False, False)
    return Clip(
        "", size, rate, 1 / (1000 * rate), Fraction(0), None, None, Fraction(1), as_stored, color, "", 8, ()
    )


def alpha_codec(codec: Codec) -> Codec:
    """What codes what is partly transparent, beside another codec: ProRes 4444 if that knows no opacity."""
    return ALPHA.get(codec.encoder, ALPHA["prores_ks"])


def pixel_format(codec: Codec, size: Size) -> str:
    """FFmpeg's name of the pixel format in which a codec stores frames of (height, width)."""
    return codec.formats[bool(size[0] % 2 or size[1] % 2)]


def output_color(clip: Clip, codec: Codec) -> ColorInfo:
    """Colours of what is written for a clip: its own; limited range for RGB, or where a codec demands it."""
    color = clip.color
    if color.matrix == RGB:
        return ColorInfo(BT709 if clip.size[0] > 576 else BT601, LIMITED, color.primaries, color.transfer)
    return replace(color, range=LIMITED) if codec.limited else color


def reason(error: Exception) -> str:
    """What FFmpeg or the system says of an error, without the path."""
    return getattr(error, "strerror", None) or str(error)
