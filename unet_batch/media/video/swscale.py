"""Convert frames between pixel formats with FFmpeg's swscale."""

from __future__ import annotations

import threading

from av.video.reformatter import Interpolation, VideoReformatter

EXACT = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)

_threads = threading.local()


def reformatter() -> VideoReformatter:
    """The swscale context of this thread; to set one up for each frame would cost 8 ms."""
    if not hasattr(_threads, "reformatter"):
        _threads.reformatter = VideoReformatter()
    found: VideoReformatter = _threads.reformatter
    return found
