"""What is written can be read and played, also where it breaks off."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import av
import av.error
import numpy as np
import pytest

from tests.helpers.clips import (
    MILLISECOND,
    copy_clip,
    rgb,
    seconds,
)
from tests.helpers.footage import Footage, Sound, look_at, scene
from tests.helpers.systems import needs_full_device
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import OutputError, VideoError
from unet_batch.media import video
from unet_batch.media.video import CODECS, MASKS, Reader, Writer, assemble

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

QUICK = {"h264": 30, "vp9": 50}


@pytest.mark.parametrize("size", [(64, 96), (65, 97)], ids=["even", "odd"])
@pytest.mark.parametrize("name", [name for name in CODECS if name != "h264_nvenc"])
def test_every_codec_reads_back(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    times = [0, 40, 80, 81, 200, 240, 1000, 1040, 1080]
    format = "yuv420p" if size[0] % 2 == 0 else "yuv444p"
    path = Footage(size=size, times=times, base=MILLISECOND, frames=9, format=format).make(tmp_path)
    target, notes = copy_clip(path, tmp_path / "out", CODECS[name])
    found = look_at(target)
    assert notes == []
    assert found.size == size
    assert found.times == [tick * MILLISECOND for tick in times]
    assert (
        found.format
        == {"h264": ("yuv420p", "yuv444p"), "ffv1": ("yuv444p",) * 2}.get(name, CODECS[name].formats)[
            size[0] % 2
        ]
    )
    for index, seen in enumerate(rgb(target)):
        assert np.abs(seen.astype(int) - scene(index, size)).mean() < 12, index


def test_masks_are_written_exactly(tmp_path: Path) -> None:
    path = Footage(size=(33, 47), format="yuv444p").make(tmp_path)
    target, _ = copy_clip(path, tmp_path / "out", MASKS, pictures=lambda picture: picture[..., 1])
    with av.open(target) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert all(
        np.array_equal(frame, picture[..., 1]) for frame, picture in zip(frames, rgb(path), strict=True)
    )


@pytest.mark.parametrize("name", ["h264", "ffv1", "vp9", "prores"])
def test_parts_play_without_being_closed(tmp_path: Path, name: str) -> None:
    codec, noise = CODECS[name], np.random.default_rng(0).integers(0, 256, (128, 192, 3)).astype(np.uint8)
    part, torn = str(tmp_path / f"part{codec.suffix}"), str(tmp_path / f"torn{codec.suffix}")
    with Writer(
        part,
        codec,
        replace(video.new_clip((128, 192), Fraction(25)), rate=Fraction(5)),
        quality=QUICK.get(name),
    ) as writer:
        for index in range(60):
            writer.write(
                video.make_frame(np.roll(noise, index, 1), writer.format, writer.color), 1000 * index
            )
        shutil.copy(part, torn)
    assert 20 <= len(seconds(torn)) <= 60
    assert len(seconds(part)) == 60


def test_a_rate_that_is_nonsense_does_no_harm(tmp_path: Path) -> None:
    """Some cameras write 90,000 frames a second into the header; the times are right."""
    footage = Footage(name="fast.mkv", frames=3, times=[0, 40, 80], base=MILLISECOND, rate=Fraction(90000))
    path = footage.make(tmp_path)
    with Reader(path) as reader:
        clip = replace(reader.clip, rate=Fraction(90000))
        writer = Writer(str(tmp_path / "part.mp4"), CODECS["h264"], clip)
        frames = list(reader.frames())
        for decoded in frames:
            writer.write(video.make_frame(reader.rgb(decoded), writer.format, writer.color), decoded.pts)
        writer.close()
        target = str(tmp_path / "whole.mp4")
        assemble(
            target,
            [str(tmp_path / "part.mp4")],
            [(decoded.pts, decoded.duration) for decoded in frames],
            clip,
            sound=True,
        )
    assert look_at(target).times == [0, Fraction(1, 25), Fraction(2, 25)]
    for rate in (None, Fraction(1, 1000)):
        writer = Writer(str(tmp_path / "other.mp4"), CODECS["h264"], replace(clip, rate=rate))
        writer.close()


def test_an_encoder_that_refuses_is_named(tmp_path: Path) -> None:
    with Reader(Footage().make(tmp_path)) as reader:
        broken = replace(CODECS["h264"], options={"preset": "no such preset"})
        with pytest.raises(VideoError, match=r"part\.mp4: cannot be encoded") as caught:
            Writer(str(tmp_path / "part.mp4"), broken, reader.clip)
        assert "--codec" in caught.value.hint


@needs_full_device
@pytest.mark.parametrize("name", ["h264", "ffv1", "prores"])
def test_a_full_disk_is_named(tmp_path: Path, name: str) -> None:
    codec = CODECS[name]
    target = tmp_path / f"part{codec.suffix}"
    target.symlink_to("/dev/full")
    path = Footage(frames=40, size=(128, 192)).make(tmp_path)

    def write() -> None:
        with Reader(path) as reader:
            writer = Writer(str(target), codec, reader.clip)
            try:
                for decoded in reader.frames():
                    writer.write(
                        video.make_frame(reader.rgb(decoded), writer.format, writer.color), decoded.pts
                    )
            finally:
                writer.close()

    with pytest.raises(OutputError, match="disk is full") as caught:
        write()
    assert "free some space" in caught.value.hint


PAGE = """<!doctype html><meta charset="utf-8"><body><script>
const found = {}, video = document.createElement("video");
const say = () => fetch("/found", {method: "POST", body: JSON.stringify(found)});
video.muted = true;
video.onerror = () => { found.error = video.error.message || String(video.error.code); say(); };
video.onloadedmetadata = () => {
  Object.assign(found, {width: video.videoWidth, height: video.videoHeight, duration: video.duration});
  video.currentTime = video.duration / 2;
};
video.onseeked = function draw() {
  found.time = video.currentTime;
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  found.red = Array.from(data.filter((_, index) => index % 4 === 0));
  // On a busy machine, the frame may not be there yet, and a canvas is black.
  if (found.red.some(value => value)) say(); else setTimeout(draw, 20);
};
video.src = "SOURCE";
video.load();
</script>"""


def in_a_browser(path: str, folder: Path) -> dict[str, Any]:
    """What Chromium says of a clip: its size, duration, and the red of the picture in its middle."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
    )
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    page = PAGE.replace(
        "SOURCE", "data:video/mp4;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    ).encode()
    answers: SimpleQueue[bytes] = SimpleQueue()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page if self.path == "/" else b"")

        def do_POST(self) -> None:
            answers.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        with subprocess.Popen(
            [*command, f"--user-data-dir={folder / 'profile'}", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as child:
            try:
                found: dict[str, Any] = json.loads(answers.get(timeout=PATIENCE))
            finally:
                child.kill()
                server.shutdown()
                thread.join()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("turn", ["upright", "turned 90", "mirrored", "transposed"])
def test_what_is_written_plays_in_a_browser_as_the_source_does(tmp_path: Path, turn: str) -> None:
    """The browser has its own opinion of what turned and mirrored mean: it sees the source as we do."""
    size = (96, 160)
    footage = Footage(frames=30, size=size, turn=turn, look=(1, 1, 1, 1), sounds=(Sound(end=Fraction(6, 5)),))
    path = footage.make(tmp_path)
    target, _ = copy_clip(path, tmp_path / "out")
    middle = rgb(path)[15][..., 0].astype(int)
    for one in (target, path):
        found = in_a_browser(one, tmp_path)
        assert "error" not in found, found
        assert (found["height"], found["width"]) == size
        assert found["duration"] == pytest.approx(1.2, abs=0.03)
        assert found["time"] == pytest.approx(0.6, abs=0.03)
        assert np.abs(np.array(found["red"]).reshape(size) - middle).mean() < 12, one
