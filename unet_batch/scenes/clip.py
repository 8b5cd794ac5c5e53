"""Writes a drawn clip, with sound, and the video of its masks."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from unet_batch.files.atomic import make_folder
from unet_batch.media import video
from unet_batch.scenes.drive import drive, sound

if TYPE_CHECKING:
    from unet_batch.types import Size

_SAMPLES = 48_000  # of sound, a second


def write_clip(
    folder: str,
    seconds: float,
    size: Size = (720, 1280),
    rate: Fraction = Fraction(25),
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Writes `videos/drive.mp4` (H.264, stereo) and `video-masks/drive.mkv` (FFV1 grey, 0 and 255).

    Frame i is what `drive` draws for the seed, whatever the length: a longer clip continues a shorter one.

    Args:
        folder: where to; made if it does not exist.
        seconds: length, rounded to whole frames.
        size: (height, width) in pixels.
        rate: frames a second.
        seed: which clip; at least 0.
        progress: called with the number of frames done, after each.

    Returns:
        The path of the clip.

    Raises:
        OutputError: the folder cannot be made or written.
        VideoError: a frame cannot be encoded.
    """
    frames = max(1, round(seconds * rate))
    clip = video.new_clip(size, rate)
    shown, masks = (
        os.path.join(folder, "videos", "drive.mp4"),
        os.path.join(folder, "video-masks", "drive.mkv"),
    )
    for path in (shown, masks):
        make_folder(os.path.dirname(path))
    with (
        video.Writer(shown, video.CODECS["h264"], clip, fragments=False) as writer,
        video.Writer(masks, video.MASKS, clip) as exact,
    ):
        writer.add_sound(sound(seed, frames / rate, _SAMPLES), _SAMPLES)
        for index, (picture, mask) in enumerate(drive(seed, size, frames, rate)):
            for file, pixels in ((writer, picture), (exact, mask)):
                frame = video.make_frame(pixels, file.format, file.color)
                file.write(frame, round(index / (rate * clip.time_base)))
            if progress is not None:
                progress(index + 1)
    return shown
