"""Files that are called like videos and are none are told by their first bytes; videos always are videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.footage import Footage, Sound, only_sound
from unet_batch.errors import VideoError
from unet_batch.media.video import EXTENSIONS, Reader, is_foreign

TYPESCRIPT = b"import { useState } from 'react';\n\nexport const Greeting = () => <b>GOOD MORNING</b>;\n"
FOREIGN = {
    "index.ts": TYPESCRIPT,
    "long.ts": 200 * TYPESCRIPT,
    "short.ts": b"export {}\n",
    "GGGG.ts": b"G" * 300 + 30 * TYPESCRIPT,
    "module.mts": TYPESCRIPT,
    "wide.ts": TYPESCRIPT.decode().encode("utf-16"),
    "french.ts": b'<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS version="2.1" language="fr_FR">\n',
    "script.nut": b"function main() { print(1) }\n",
    "config.asf": b"* STAF configuration\n",
    "noise.ts": np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_called_like_a_video_and_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FOREIGN[name])
    assert is_foreign(str(path))
    with pytest.raises(VideoError, match="called like a video, but it holds something else"):
        Reader(str(path))


SOUND = {
    "asf": ("asf", "wmav2"),
    "wmv": ("asf", "wmav2"),
    "ogv": ("ogg", "libopus"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "aac"),
    "f4v": ("mp4", "aac"),
    "qt": ("mov", "aac"),
}


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov", "3gp", *SOUND])
def test_a_file_of_sound_is_no_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"song.{suffix}"
    if suffix in SOUND:
        form, codec = SOUND[suffix]
        with av.open(str(path), "w", format=form) as container:
            stream = container.add_stream(codec, rate=48000, layout="stereo")
            stream.codec_context.bit_rate = 128_000
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 9600), np.int16), "s16", "stereo")
            frame.sample_rate = 48000
            container.mux([*stream.encode(frame), *stream.encode(None)])
    else:
        only_sound(path)
    assert is_foreign(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert suffix in ("asf", "wmv", "ogv") or not is_foreign(str(path)), "cut off before it says what it is"


@pytest.mark.parametrize("sounds", [(), (Sound(),), (Sound(), Sound())], ids=len)
@pytest.mark.parametrize("live", [False, True])
def test_a_matroska_file_with_a_track_of_video_is_a_video(
    tmp_path: Path, sounds: tuple[Sound, ...], live: bool
) -> None:
    path = Footage("clip.mkv", sounds=sounds, live=live).make(tmp_path)
    assert not is_foreign(path)
    for length in range(0, 1000, 7):  # as a copy that goes on
        with open(path, "r+b") as file:
            file.truncate(1000 - length)
        assert not is_foreign(path)


def test_noise_after_the_mark_of_matroska_is_a_clip_that_fails(tmp_path: Path) -> None:
    path, random = tmp_path / "a.mkv", np.random.default_rng(0)
    for length in (0, 1, 2, 5, 8, 13, 100, 10_000):
        for _ in range(20):
            path.write_bytes(b"\x1aE\xdf\xa3" + random.integers(0, 256, length, np.uint8).tobytes())
            assert not is_foreign(str(path))


VIDEOS: dict[str, Callable[[Path], str]] = {
    "mpegts": Footage("a.ts", sounds=(Sound("mp2"),)).make,
    "mp4": Footage("a.mp4", sounds=(Sound(),)).make,
    "mov": Footage("a.mov", sounds=(Sound(),)).make,
    "fragments": Footage("f.mp4", live=True, sounds=(Sound(),)).make,
    "avi": Footage("a.avi", codec="mpeg4").make,
    "nut": Footage("a.nut", codec="mpeg4").make,
    "asf": Footage("a.asf", codec="wmv2").make,
    "wmv": lambda folder: str(Path(Footage("a.asf", codec="wmv2").make(folder)).rename(folder / "b.wmv")),
    "mp4 called ts": lambda folder: str(Path(Footage().make(folder)).rename(folder / "b.ts")),
    "mkv called ts": lambda folder: str(Path(Footage("c.mkv").make(folder)).rename(folder / "b.mts")),
}


@pytest.mark.parametrize("what", [name for name in VIDEOS if name != "fragments"])
def test_a_video_is_one(tmp_path: Path, what: str) -> None:
    path = VIDEOS[what](tmp_path)
    assert not is_foreign(path)
    with Reader(path) as reader:
        assert len(list(reader.frames())) == 10


@pytest.mark.parametrize("size", [188, 192, 204])
@pytest.mark.parametrize("skipped", [0, 1, 100, 187])
def test_a_transport_stream_is_known_from_wherever_it_was_recorded(
    tmp_path: Path, size: int, skipped: int
) -> None:
    data = Path(Footage("a.ts", frames=30).make(tmp_path)).read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    longer = [bytes(4) + packet if size == 192 else packet + bytes(size - 188) for packet in packets]
    path = tmp_path / "b.m2ts"
    path.write_bytes(b"".join(longer)[skipped:])
    assert not is_foreign(str(path))


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_empty_and_absent_files_and_text_of_other_names_are_failures_that_somebody_reads(
    tmp_path: Path, extension: str
) -> None:
    path = tmp_path / f"a.{extension}"
    assert not is_foreign(str(path))
    path.touch()
    assert not is_foreign(str(path))
    path.write_bytes(b"<html>404 not found</html>")
    assert is_foreign(str(path)) == (extension in ("ts", "mts", "m2ts", "nut", "asf", "dv", "ivf"))


def test_damage_is_no_reason_to_pass_over_an_mp4(tmp_path: Path) -> None:
    data = Path(only_sound(tmp_path / "a.mp4")).read_bytes()
    path = tmp_path / "b.mp4"
    for length in range(0, len(data), 37):  # cut before the tracks are told, and later
        path.write_bytes(data[:length])
        assert not is_foreign(str(path)), length
    random = np.random.default_rng(1)
    video = bytearray(Path(Footage("c.mp4").make(tmp_path)).read_bytes())
    for _ in range(50):
        spoilt = bytearray(video)
        for at in random.integers(0, len(video), 20):
            spoilt[at] = int(random.integers(0, 256))
        path.write_bytes(bytes(spoilt))
        assert not is_foreign(str(path))
