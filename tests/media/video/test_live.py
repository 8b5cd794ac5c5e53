"""Live sources: a server of our own sends MPEG-TS over TCP, breaks off, and comes back."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from unet_batch.errors import UsageError, VideoError
from unet_batch.files import naming
from unet_batch.files.sources import collect
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import video
from unet_batch.run import clip as clips
from unet_batch.testing import FakeBackend
from unet_batch.types import Item


def stream(frames: int, rate: int = 25) -> bytes:
    """A transport stream whose frame i is grey of 5 i."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as out:
        track = out.add_stream(
            "libx264", rate=rate, options={"tune": "zerolatency", "preset": "ultrafast", "g": "5"}
        )
        assert isinstance(track, av.VideoStream)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * index % 256, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return buffer.getvalue()


@contextmanager
def server(send: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Serves one connection after the other: `send` gets each with its number."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        number = 0
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    send(connection, number)
                    connection.shutdown(socket.SHUT_WR)
                number += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        listening.close()


def segmented(url: str, folder: Path, **options: object) -> clips.ClipResult:
    what = clips.VideoOptions(**options)  # type: ignore[arg-type]
    layout = clips.Layout(str(folder), ("mask", "overlay"), video.CODECS[what.codec])
    with Segmenter(FakeBackend()) as segmenter:
        return clips.segment(Item(url, "camera"), segmenter, layout, what, "f")


@pytest.mark.parametrize("name", ["rtsp://10.0.0.5/stream", "http://host/a.m3u8", "webcam:0", "SRT://h:9"])
def test_names_of_live_sources(name: str) -> None:
    assert naming.is_live(name)


@pytest.mark.parametrize(
    "name", ["clip.mp4", "webcam:front", "webcam:0.mp4", "a/rtsp://b", "file:///x.mp4", ""]
)
def test_other_names(name: str) -> None:
    assert not naming.is_live(name)


def test_a_name_for_the_outputs_of_an_address() -> None:
    name = naming.live_name("rtsp://admin:secret@10.0.0.5:554/cam/1?token=abc")
    assert name is not None
    assert re.fullmatch(r"10\.0\.0\.5-554-cam-1-\d{8}-\d{6}\.live", name)
    assert naming.live_name("clip.mp4") is None
    assert (naming.live_name("webcam:0") or "").startswith("webcam-0-2")


def test_reports_tell_no_passwords() -> None:
    assert naming.shown("rtsp://admin:secret@10.0.0.5:554/cam") == "rtsp://10.0.0.5:554/cam"
    assert naming.shown("photos/a@b.jpg") == "photos/a@b.jpg"
    with pytest.raises(VideoError) as caught:
        video.LiveReader("tcp://admin:secret@127.0.0.1:9")
    assert "secret" not in caught.value.message
    with pytest.raises(UsageError, match=r"^tcp://127\.0\.0\.1:9: a live source has no --start") as wrong:
        clips._reader(
            "tcp://admin:secret@127.0.0.1:9", clips.VideoOptions(start=clips.Position(frame=3)), 10**9
        )
    assert "secret" not in wrong.value.message
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as out:
        track = out.add_stream("mp2", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), "s16", "stereo")
        sound.sample_rate = 48000
        out.mux(track.encode(sound))
    with (
        server(lambda connection, number: connection.sendall(buffer.getvalue())) as url,
        pytest.raises(VideoError, match="no video") as silent,
    ):
        video.LiveReader(url.replace("//", "//admin:secret@"))
    assert "secret" not in silent.value.message


def test_an_address_beside_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    found = collect(
        [str(tmp_path), "rtsp://h/s"],
        is_picture=lambda name: name.endswith(".jpg"),
        live=lambda source: "s.live" if "://" in source else None,
    )
    assert found.items == (Item(str(tmp_path / "a.jpg"), "a"), Item("rtsp://h/s", "s"))
    alone = collect(["rtsp://h/s"], is_picture=bool, live=lambda source: "s.live", cwd=str(tmp_path))
    assert alone.items == (Item("rtsp://h/s", "s"),)
    assert alone.root == str(tmp_path / "live")


def test_a_connection_that_breaks_is_made_anew(tmp_path: Path) -> None:
    data = stream(30)
    with server(lambda connection, number: connection.sendall(data)) as url:
        result = segmented(url, tmp_path, max_frames=70)
    assert result.complete
    assert result.frames == 70
    assert "the connection broke and was made anew 2 times" in result.notes
    with video.Reader(result.files["overlay"][0]) as reader:
        times = [decoded.pts * reader.clip.time_base for decoded in reader.frames()]
    assert len(times) == 70
    gaps = np.diff([float(time) for time in times])
    assert (gaps > 0).all()
    assert np.isclose(gaps, 0.04, atol=0.002).sum() >= 65  # the clock goes on through both breaks


def test_a_source_that_stays_away_has_ended(tmp_path: Path) -> None:
    data = stream(20)

    def once(connection: socket.socket, number: int) -> None:
        if number == 0:
            connection.sendall(data)

    with server(once) as url, video.LiveReader(url, patience=1.5) as reader:
        assert len(list(reader.frames())) == 20
    assert any("stayed away for 1.5 s" in note for note in reader.notes)


def test_frames_are_dropped_only_when_asked(tmp_path: Path) -> None:
    data = stream(50)

    def once(connection: socket.socket, number: int) -> None:
        if number == 0:
            connection.sendall(data)

    seen = {}
    for latest in (False, True):
        with server(once) as url, video.LiveReader(url, patience=0.5, latest=latest) as reader:
            count = 0
            for _ in reader.frames():
                count += 1
                time.sleep(0.02)
            seen[latest] = count, reader.dropped
    assert seen[False] == (50, 0)
    assert seen[True][0] < 50
    assert sum(seen[True]) == 50


def test_stopping_ends_it_well(tmp_path: Path) -> None:
    data = stream(10)
    what = clips.VideoOptions()
    layout = clips.Layout(str(tmp_path), ("mask",), video.CODECS["h264"])
    stops: list[Callable[[], None]] = []

    def on_frame(done: int, total: int | None) -> None:
        if done == 25:
            stops[0]()

    with (
        server(lambda connection, number: connection.sendall(data)) as url,
        Segmenter(FakeBackend()) as segmenter,
    ):
        result = clips.segment(Item(url, "camera"), segmenter, layout, what, "f", on_frame, stops.append)
    assert result.complete
    assert result.frames >= 25
    with video.Reader(result.files["mask"][0]) as reader:
        assert len(list(reader.frames())) == result.frames


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(VideoError, match="cannot be opened") as caught:
        video.LiveReader(f"tcp://127.0.0.1:{port}")
    assert "address" in caught.value.hint


def test_a_live_source_has_no_beginning(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--start"):
        segmented("tcp://127.0.0.1:9", tmp_path, start=clips.Position(frame=3))
