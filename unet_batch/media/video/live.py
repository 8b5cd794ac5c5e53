"""Read cameras and network streams: clips that do not end by themselves, and whose connection may break."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import av.error

from unet_batch.errors import VideoError
from unet_batch.files.naming import shown
from unet_batch.media.video.kinds import DecodedFrame, reason
from unet_batch.media.video.reading import Reader, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame


class LiveReader(Reader):
    """A camera or a network stream, which ends when it is closed, or when it stays away.

    Where the connection breaks it is made anew, after 1, 2, 4, ... seconds; the time that passed stays a gap
    in the timestamps.

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

    def frames(
        self, start: int | None = None, end: int | None = None, *, seek: bool = True
    ) -> Iterator[DecodedFrame]:
        """Decode frame after frame until the iterator is closed; the arguments are ignored."""
        count, last, shift, seen = 0, -1, None, 0.0
        source = self._decode_latest() if self.latest else self._decode_forever()
        try:
            for frame, connection in source:
                now = time.monotonic()
                if shift is None or connection != shift[0]:
                    # A new connection has a clock of its own: it goes on where the old one stopped, plus the
                    # time between.
                    gap = 0 if shift is None else max(1, round((now - seen) / self.clip.time_base))
                    shift = connection, last + max(gap, 1) - (frame.pts or 0)
                pts = last + self._step if frame.pts is None else frame.pts + shift[1]
                pts = max(last + 1, pts)
                last, seen = pts, now
                yield DecodedFrame(count, pts, 0, self.damaged, frame)
                count += 1
        finally:
            source.close()
            if self.reconnected:
                self._note(f"the connection broke and was made anew {self.reconnected} times")
            if self.dropped:
                self._note(f"{self.dropped:,} frames were dropped: there was no time for them, as asked")

    def _open(self, *, threads: str = "SLICE") -> None:
        """Connect to the source."""
        self._container = _open_live(self.path)
        self._stream = video_stream(self.path, self._container)
        self._stream.thread_type = threads  # threads by frame would hold frames back
        self._alpha_decoder, self._loses_rest = None, False
        self._finite = bool(self._container.duration)  # a file on a server

    def _decode_forever(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Yield frames, each with the number of its connection; connect again where one breaks."""
        first, self._first = self._first, None
        if first is not None:
            yield first, 0
        while True:
            for frame in self._decoding:
                yield frame, self.reconnected
            if self._finite or not self._reconnect():
                return

    def _reconnect(self) -> bool:
        """Try to open the source again until `patience` has passed; tell whether that succeeded."""
        pause, until = 1.0, time.monotonic() + self.patience
        while not self._ended.is_set() and time.monotonic() < until:
            with suppress(VideoError):
                self._container.close()
                self._open()
                self._decoding = self._decode()
                self.reconnected += 1
                return True
            self._ended.wait(min(pause, self.patience))
            pause = min(2 * pause, 30.0)
        self._note(f"the source stayed away for {self.patience:g} s: taken for its end")
        return False

    def _decode_latest(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Yield the same from a thread of its own, which keeps the newest frame only."""
        box: deque[tuple[VideoFrame, int]] = deque(maxlen=1)
        arrived, over = threading.Semaphore(0), threading.Event()

        def read() -> None:
            try:
                for pair in self._decode_forever():
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


def _open_live(source: str) -> InputContainer:
    """Open a camera or an URL; raise VideoError if that fails."""
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
        return av.open(
            name, "r", format=form, options=options, metadata_errors="replace", timeout=(10.0, 10.0)
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{shown(source)}: cannot be opened: {reason(error)}",
            hint="check the address, or that the camera is connected and free",
        ) from error
