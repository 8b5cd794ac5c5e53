"""Video files to frames and back: the only room that knows PyAV.

What a `Reader` gives is RGB uint8 as a person sees the clip: rotated and mirrored as its display matrix says,
its matrix and range of colours undone, more than 8 bits rounded to 8, transparency laid over white as for
pictures. What says nothing of its matrix is taken as BT.709 from 720 lines on, else as BT.601, as players do.
HDR stays as it is coded: nothing is tone-mapped, and what is written carries the marks of its source, so that
both look alike.

Timestamps are integers in the time base of the source, never seconds in floating point. What is written has
no B-frames: in the order of decoding as in that of showing, so that a file can be put together from parts
without a timestamp being invented. MP4 and QuickTime keep the time base; Matroska, which FFV1 needs, rounds
to milliseconds.
"""

from __future__ import annotations

from unet_batch.media.video.assembling import assemble
from unet_batch.media.video.kinds import (
    CODECS,
    EXTENSIONS,
    MASKS,
    Clip,
    Codec,
    Look,
    Shot,
    is_clip,
    new_clip,
    pixel_format,
    written_look,
)
from unet_batch.media.video.live import LiveReader
from unet_batch.media.video.reading import Reader, upright
from unet_batch.media.video.writing import Writer, encoder_problem, prepared

__all__ = [
    "CODECS",
    "EXTENSIONS",
    "MASKS",
    "Clip",
    "Codec",
    "LiveReader",
    "Look",
    "Reader",
    "Shot",
    "Writer",
    "assemble",
    "encoder_problem",
    "is_clip",
    "new_clip",
    "pixel_format",
    "prepared",
    "upright",
    "written_look",
]
