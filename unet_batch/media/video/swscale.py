"""Convert frames between pixel formats with FFmpeg's swscale."""

from __future__ import annotations

import threading

from av.video.reformatter import VideoReformatter

# Numbers: PyAV has names for them since 18, which needs Python 3.11.
EXACT = 0x2 | 0x40000 | 0x2000  # SWS_BILINEAR, SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT

_threads = threading.local()


def reformatter() -> VideoReformatter:
    """The swscale context of this thread; to set one up for each frame would cost 8 ms."""
    if not hasattr(_threads, "reformatter"):
        _threads.reformatter = VideoReformatter()
    found: VideoReformatter = _threads.reformatter
    return found
