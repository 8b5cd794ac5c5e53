"""Decode video files and live streams to frames, and encode frames as video files.

What a `Reader` gives is RGB uint8 as a person sees the clip: rotated and mirrored as its display matrix says,
its matrix and range of colours undone, more than 8 bits rounded to 8, transparency laid over white as for
pictures. What says nothing of its matrix is taken as BT.709 from 720 lines on, else as BT.601, as players do.
HDR stays as it is coded: nothing is tone-mapped, and what is written carries the marks of its source, so that
both look alike.

Timestamps are integers in the time base of the source, never seconds in floating point. What is written has
no B-frames: frames are decoded in the order in which they are shown, so that a file can be concatenated from
parts without a timestamp being invented. MP4 and QuickTime keep the time base; Matroska, which FFV1 needs,
rounds to milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unet_batch.errors import RunError
from unet_batch.media.video.kinds import (
    CODECS,
    EXTENSIONS,
    MASKS,
    Clip,
    Codec,
    ColorInfo,
    DecodedFrame,
    alpha_codec,
    is_clip,
    is_foreign,
    new_clip,
    output_color,
    pixel_format,
)

if TYPE_CHECKING:
    from unet_batch.media.video.assembling import assemble, rehearse
    from unet_batch.media.video.live import LiveReader
    from unet_batch.media.video.reading import Reader, look, upright
    from unet_batch.media.video.writing import Writer, encoder_problem, make_frame

# What needs FFmpeg is imported on first use: a run over pictures alone does without it.
_MODULES = {
    "LiveReader": "live",
    "Reader": "reading",
    "Writer": "writing",
    "assemble": "assembling",
    "encoder_problem": "writing",
    "look": "reading",
    "make_frame": "writing",
    "rehearse": "assembling",
    "upright": "reading",
}

__all__ = [
    "CODECS",
    "EXTENSIONS",
    "MASKS",
    "Clip",
    "Codec",
    "ColorInfo",
    "DecodedFrame",
    "LiveReader",
    "Reader",
    "Writer",
    "alpha_codec",
    "assemble",
    "encoder_problem",
    "is_clip",
    "is_foreign",
    "look",
    "make_frame",
    "new_clip",
    "output_color",
    "pixel_format",
    "rehearse",
    "upright",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULES[name]}")
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "av":
            raise
        raise RunError(
            f"no clip can be read or written: PyAV does not load ({error})",
            hint="pip install av; or leave the clips out",
        ) from error
    return getattr(module, name)
