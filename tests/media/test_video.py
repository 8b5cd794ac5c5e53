"""Reading and writing of clips: what a file says, what a person sees, and that nothing of it is lost on the
way out.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
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

from tests.helpers.footage import TURNS, Footage, Sound, look_at, only_sound, scene, spoil_packets
from unet_batch.errors import OutputError, VideoError
from unet_batch.media import video
from unet_batch.media.video import CODECS, MASKS, Codec, ColorInfo, Reader, Writer, assemble, reading

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_thread_is_left")]

MILLISECOND = Fraction(1, 1000)
LOSSLESS = {"qp": "0", "crf": "0"}


def seconds(path: str) -> list[Fraction]:
    """When the frames of a file are shown, as the code under test says."""
    with Reader(path) as reader:
        return [shot.pts * reader.clip.time_base for shot in reader.frames()]


def rgb(path: str) -> list[np.ndarray]:
    with Reader(path) as reader:
        return [reader.rgb(shot) for shot in reader.frames()]


def copied(
    path: str,
    folder: Path,
    codec: Codec = CODECS["h264"],
    *,
    part: int = 4,
    span: bool = False,
    pictures: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
    **ticks: Any,
) -> tuple[str, list[str]]:
    """Read a clip and write it in parts: what `clips.segment` does, without a model."""
    folder.mkdir(exist_ok=True)
    parts: list[str] = []
    times: list[tuple[int, int]] = []
    with Reader(path) as reader:
        clip = reader.clip
        writer: Writer | None = None
        for shot in reader.frames(**ticks):
            if shot.index % part == 0:
                if writer is not None:
                    writer.close()
                parts.append(str(folder / f"{shot.index}{codec.suffix}"))
                writer = Writer(parts[-1], codec, clip)
            assert writer is not None
            writer.write(video.make_frame(pictures(reader.rgb(shot)), writer.format, writer.color), shot.pts)
            times.append((shot.pts, shot.duration))
        assert writer is not None
        writer.close()
        target = str(folder / "whole.part")
        cut = (times[0][0], times[-1][0] + times[-1][1]) if span else None
        return target, assemble(target, parts, times, clip, sound=True, span=cut)


# Reading.


@pytest.mark.parametrize("turn", TURNS)
def test_a_clip_is_seen_as_a_person_sees_it(tmp_path: Path, turn: str) -> None:
    path = Footage(turn=turn, format="yuv444p", options=LOSSLESS, size=(32, 48)).make(tmp_path)
    with Reader(path) as reader:
        assert reader.clip.size == (32, 48)
        for shot in reader.frames():
            picture = reader.rgb(shot)
            assert picture.flags.c_contiguous
            assert np.abs(picture.astype(int) - scene(shot.index, (32, 48))).max() <= 3


def test_aspect_turns_with_the_picture(tmp_path: Path) -> None:
    for turn, aspect in (
        ("upright", Fraction(4, 3)),
        ("turned 180", Fraction(4, 3)),
        ("turned 90", Fraction(3, 4)),
    ):
        with Reader(Footage(name=f"{turn}.mp4", turn=turn, aspect=Fraction(4, 3)).make(tmp_path)) as reader:
            assert reader.clip.aspect == aspect


@pytest.mark.parametrize(
    "footage",
    [
        Footage(name="avi.avi", codec="mpeg4", frames=20, options={"bf": "2", "g": "6"}),
        Footage(name="h264.avi", frames=20, options={"preset": "medium", "bf": "2"}),
    ],
    ids=lambda footage: footage.name,
)
def test_frames_without_a_time_are_kept_in_order(tmp_path: Path, footage: Footage) -> None:
    """AVI knows when a frame is decoded, not when it is shown."""
    path = footage.make(tmp_path)
    times = seconds(path)
    assert len(times) == 20
    assert times == sorted(set(times))
    assert times[-1] - times[0] == Fraction(19, 25)


def test_a_resumed_reader_sees_the_same_times_where_frames_have_none(tmp_path: Path) -> None:
    path = Footage(name="h264.avi", frames=30, options={"preset": "medium", "bf": "2", "g": "8"}).make(
        tmp_path
    )
    with Reader(path) as reader:
        whole = [(shot.pts, reader.rgb(shot)) for shot in reader.frames()]
        assert not reader.timed
    with Reader(path) as reader:
        rest = [(shot.pts, reader.rgb(shot)) for shot in reader.frames(whole[17][0] + 1, seek=False)]
    assert [pts for pts, _ in rest] == [pts for pts, _ in whole[18:]]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(rest, whole[18:], strict=True))


SEEKABLE = [
    Footage(name="gop.mp4", frames=60, options={"preset": "medium", "bf": "3", "g": "12"}),
    Footage(
        name="open.mp4",
        frames=60,
        options={"preset": "medium", "bf": "3", "g": "12", "x264-params": "open-gop=1"},
    ),
    Footage(
        name="refresh.mp4",
        frames=60,
        options={"preset": "medium", "g": "12", "x264-params": "intra-refresh=1"},
    ),
    Footage(name="one.mkv", frames=60, base=MILLISECOND, options={"g": "12"}),
    Footage(name="stream.ts", frames=60, codec="mpeg2video", options={"bf": "2", "g": "12"}),
    Footage(name="stream264.ts", frames=60, options={"preset": "medium", "bf": "2", "g": "12"}),
    Footage(name="vp9.webm", frames=60, codec="libvpx-vp9", base=MILLISECOND, options={"g": "12"}),
    Footage(
        name="alpha.webm",
        frames=30,
        codec="libvpx-vp9",
        format="yuva420p",
        base=MILLISECOND,
        options={"g": "12"},
    ),
    Footage(
        name="live.webm", frames=30, codec="libvpx-vp9", base=MILLISECOND, live=True, options={"g": "12"}
    ),
    Footage(
        name="hevc.mp4",
        frames=60,
        codec="libx265",
        size=(64, 96),
        options={"x265-params": "log-level=none:keyint=12"},
    ),
]


@pytest.mark.parametrize("footage", SEEKABLE, ids=lambda footage: footage.name)
def test_reading_from_anywhere_gives_the_same_frames(tmp_path: Path, footage: Footage) -> None:
    path = footage.make(tmp_path)
    with Reader(path) as reader:
        whole = [(shot.pts, shot.duration, reader.rgb(shot)) for shot in reader.frames()]
    assert len(whole) == footage.frames
    for begin in (1, 11, 12, 13, 25, footage.frames - 1):
        with Reader(path) as reader:
            rest = [(shot.pts, shot.duration, reader.rgb(shot)) for shot in reader.frames(whole[begin][0])]
        assert [one[:2] for one in rest] == [one[:2] for one in whole[begin:]], begin
        assert all(
            np.array_equal(one[2], other[2]) for one, other in zip(rest, whole[begin:], strict=True)
        ), begin


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("spoilt", [(0,), (5,), (5, 6), (22,), (22, 23), (20, 22)], ids=str)
@pytest.mark.parametrize(
    "footage",
    [
        Footage(
            name="f.mkv",
            codec="ffv1",
            format="yuv444p",
            frames=24,
            base=MILLISECOND,
            options={"level": "3", "slicecrc": "1", "g": "1"},
        ),
        Footage(name="n.mov", codec="png", format="rgb24", frames=24),
        Footage(name="p.mov", codec="prores_ks", format="yuv422p10le", frames=24),
    ],
    ids=lambda footage: footage.codec,
)
def test_frames_that_do_not_decode_are_counted_and_shift_nothing(
    tmp_path: Path, footage: Footage, spoilt: Sequence[int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also among the last frames, which a decoder of several threads loses with the damaged one."""
    path = spoil_packets(footage.make(tmp_path), tmp_path / f"bad-{footage.name}", spoilt)
    opened = reading.video_stream

    def several(path: str, container: Any) -> Any:
        stream = opened(path, container)
        stream.codec_context.thread_count = threads
        return stream

    monkeypatch.setattr(reading, "video_stream", several)
    with Reader(path) as reader:
        times = [shot.pts * reader.clip.time_base for shot in reader.frames()]
        damaged = reader.damaged
    assert times == [time for index, time in enumerate(footage.seconds) if index not in spoilt]
    assert damaged == len(spoilt)


def test_damage_before_the_range_is_not_missed(tmp_path: Path) -> None:
    footage = Footage(
        name="f.mkv",
        codec="ffv1",
        format="yuv444p",
        frames=24,
        base=MILLISECOND,
        options={"slicecrc": "1", "g": "1"},
    )
    path = spoil_packets(footage.make(tmp_path), tmp_path / "bad.mkv", (3, 7, 14))
    with Reader(path) as reader:
        shots = list(reader.frames(400))
        assert [shot.pts for shot in shots][:5] == [400, 440, 480, 520, 600]
        assert (shots[0].damaged, shots[3].damaged, shots[4].damaged, reader.damaged) == (0, 0, 1, 1)


def test_a_picture_that_is_wrong_in_part_is_said_so(tmp_path: Path) -> None:
    path = Footage(name="m.ts", codec="mpeg2video", frames=24, options={"g": "6"}).make(tmp_path)
    bad = spoil_packets(path, tmp_path / "bad.ts", (8,))
    with Reader(bad) as reader:
        assert len(list(reader.frames())) >= 23
        assert any("damaged" in note for note in reader.notes)


def test_a_size_that_changes_on_the_way_is_fitted(tmp_path: Path) -> None:
    small, large = (
        Footage(name=f"{size[0]}.ts", size=size, frames=6).make(tmp_path) for size in ((32, 48), (64, 96))
    )
    both = tmp_path / "both.ts"
    both.write_bytes(Path(small).read_bytes() + Path(large).read_bytes())
    with Reader(str(both)) as reader:
        pictures = [reader.rgb(shot) for shot in reader.frames()]
        assert len(pictures) == 12
        assert {picture.shape for picture in pictures} == {(32, 48, 3)}
        assert any("size changes" in note for note in reader.notes)
    assert np.abs(pictures[6].astype(int) - scene(0, (32, 48))).mean() < 12


def test_times_that_jump_back_go_on(tmp_path: Path) -> None:
    """A dash-cam's file of two recordings: the clock begins anew."""
    part = Footage(name="part.ts", frames=8).make(tmp_path)
    both = tmp_path / "both.ts"
    both.write_bytes(2 * Path(part).read_bytes())
    times = seconds(str(both))
    assert len(times) == 16
    assert times == sorted(set(times))


def test_times_before_zero_are_kept(tmp_path: Path) -> None:
    path = Footage(name="n.nut", times=[-80, -40, 0, 40], base=MILLISECOND, frames=4).make(tmp_path)
    times = seconds(path)
    assert [time - times[0] for time in times] == [0, Fraction(1, 25), Fraction(2, 25), Fraction(3, 25)]


def test_more_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(64, 940, 512).round().astype(np.uint16)[None], 32, 0)
    frame = av.VideoFrame(512, 32, "yuv444p10le")
    for plane, values in zip(
        frame.planes, (ramp, np.full_like(ramp, 512), np.full_like(ramp, 512)), strict=True
    ):
        plane.update(np.pad(values, ((0, 0), (0, plane.line_size // 2 - 512))).tobytes())
    path = film(tmp_path / "ramp.mkv", frame, (1, 1, 1, 1))
    with Reader(path) as reader:
        assert reader.clip.depth == 10
        (shot,) = reader.frames()
        picture = reader.rgb(shot).astype(int)
    right = np.clip((ramp.astype(float) - 64) / 876 * 255, 0, 255)
    assert np.abs(picture - right[..., None]).max() <= 1.01
    assert np.ptp(picture, axis=0).max() == 0, "no pattern is laid over it"


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    picture = np.zeros((32, 48, 4), np.uint8)
    picture[:, :24] = (200, 40, 40, 255)
    picture[:, 24:, 3] = 128
    for name, codec, format in (
        ("q.mov", "png", "rgba"),
        ("p.mov", "prores_ks", "yuva444p10le"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
    ):
        path = Footage(
            name=name,
            codec=codec,
            format=format,
            frames=2,
            pictures=[picture] * 2,
            base=MILLISECOND,
            times=[0, 40],
        )
        seen = rgb(path.make(tmp_path))[0].astype(int)
        assert np.abs(seen[4:-4, 4:20] - (200, 40, 40)).max() <= 12, name
        assert np.abs(seen[4:-4, 28:-4] - 127).max() <= 12, name


def test_the_end_that_is_missing_is_told(tmp_path: Path) -> None:
    path = Footage(frames=100, options={"g": "10"}, size=(64, 96)).make(tmp_path)
    moved = str(tmp_path / "faststart.mp4")
    _, _ = assemble_whole(path, moved)
    data = Path(moved).read_bytes()
    assert boxes(moved)[:2] == ["ftyp", "moov"]
    Path(moved).write_bytes(data[: len(data) * 2 // 3])
    with Reader(moved) as reader:
        count = len(list(reader.frames()))
        assert 20 < count < 90
        assert any("cut short" in note for note in reader.notes), reader.notes


def assemble_whole(path: str, target: str) -> tuple[str, list[str]]:
    with Reader(path) as reader:
        times = [(shot.pts, shot.duration) for shot in reader.frames()]
        return target, assemble(target, [path], times, reader.clip, sound=False)


@pytest.mark.parametrize("seconds", [Fraction(3)])
def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path: Path, seconds: Fraction) -> None:
    for name in ("long.mkv", "long.mp4"):
        path = Footage(name=name, base=MILLISECOND, sounds=(Sound(end=seconds),)).make(tmp_path)
        with Reader(path) as reader:
            assert len(list(reader.frames())) == 10
            assert reader.notes == []


def test_a_file_that_breaks_off_midway_gives_what_it_has(tmp_path: Path) -> None:
    path = Footage(name="y.y4m", codec="wrapped_avframe", frames=12).make(tmp_path)
    data = Path(path).read_bytes()
    cut = len(data) * 7 // 12
    where = data.index(b"FRAME", cut)
    Path(path).write_bytes(data[:where] + b"NOISE" + data[where + 5 :])
    with Reader(path) as reader:
        assert 6 <= len(list(reader.frames())) <= 8
        assert any("cannot be read to its end" in note for note in reader.notes)


@pytest.mark.parametrize(
    "what",
    [
        "empty",
        "text",
        "no moov",
        "sound",
        "cover",
        "folder",
        "link",
        "absent",
        "rights",
        "no frame",
        "nonsense",
    ],
)
def test_a_bad_file_is_one_named_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.mp4"
    if what == "empty":
        path.touch()
    elif what == "text":
        path.write_text("Not a video at all.\n" * 50)
    elif what == "no moov":
        made = Path(Footage(frames=50).make(tmp_path)).read_bytes()
        path.write_bytes(made[: len(made) // 2])
    elif what in ("sound", "cover"):
        only_sound(path, cover=what == "cover")
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(tmp_path / "nothing.mp4")
    elif what == "rights":
        Footage(name="x.mp4").make(tmp_path)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    elif what == "no frame":
        Footage(name="x.mp4", frames=0).make(tmp_path)
    elif what == "nonsense":
        path = tmp_path / "x.mkv"
        made_path = Footage(
            name="ok.mkv", codec="ffv1", format="yuv444p", options={"slicecrc": "1", "g": "1"}
        ).make(tmp_path)
        spoil_packets(made_path, path, range(10))
    with pytest.raises(VideoError, match=r"x\.m") as caught:
        Reader(str(path))
    assert caught.value.hint
    assert str(path) in caught.value.message


def test_a_clip_larger_than_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = Footage(size=(64, 96)).make(tmp_path)
    with pytest.raises(VideoError, match="96 x 64 pixels, at most 6,143") as caught:
        Reader(path, max_pixels=64 * 96 - 1)
    assert "max-pixels" in caught.value.hint
    Reader(path, max_pixels=64 * 96).close()


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n",
    ],
    ids=["concat", "playlist"],
)
def test_no_file_makes_another_one_open(tmp_path: Path, text: str) -> None:
    Footage(name="other.mp4").make(tmp_path)
    Footage(name="other.ts").make(tmp_path)
    for name in ("list.mp4", "list.ts"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(VideoError):
            Reader(str(path))


def test_files_are_closed(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc/self/fd: open files cannot be counted")
    path = Footage(frames=4, sounds=(Sound(),)).make(tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"text" * 99)

    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for number in range(3):
        copied(path, tmp_path / str(number))
        with suppress(VideoError):
            Reader(str(tmp_path / "bad.mp4"))
        with Reader(path) as reader:
            next(reader.frames(60))
    assert count() == before


# Colour.

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def yuv(picture: np.ndarray, matrix: int, span: int) -> np.ndarray:
    """RGB uint8 (h, w, 3) to Y'CbCr uint8 (3, h, w), by the formulas of ITU-T H.273."""
    red, green, blue = (picture[..., channel] / 255 for channel in range(3))
    kr, kb = KR_KB[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    planes = (
        (219 * luma + 16, 224 * cb + 128, 224 * cr + 128)
        if span == 1
        else (255 * luma, 255 * cb + 128, 255 * cr + 128)
    )
    return np.clip(np.rint(np.stack(planes)), 0, 255).astype(np.uint8)


def colours(size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Blocks of all kinds of colours."""
    blocks = np.random.default_rng(7).integers(0, 256, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    blocks[0, :8] = [[a, b, c] for a in (0, 255) for b in (0, 255) for c in (0, 255)]
    return blocks.repeat(8, 0).repeat(8, 1)


def film(path: Path, frame: av.VideoFrame, look: Sequence[int], codec: str = "ffv1") -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = look
        frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = look
        container.mux(stream.encode(frame) + stream.encode(None))
    return str(path)


@pytest.mark.parametrize("span", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", KR_KB, ids=["709", "601-625", "601-525", "2020"])
def test_colours_are_right_and_come_back(tmp_path: Path, matrix: int, span: int) -> None:
    """Right by the formulas, and after a way through RGB and a lossless codec within two levels of the
    source.
    """
    picture = colours()
    planes = yuv(picture, matrix, span)
    path = film(tmp_path / "source.mkv", av.VideoFrame.from_ndarray(planes, "yuv444p"), (matrix, span, 1, 1))
    assert np.abs(rgb(path)[0].astype(int) - picture).max() <= 3, (
        "8 bits of Y'CbCr know RGB to about 2 levels"
    )
    target, _ = copied(path, tmp_path / "out", CODECS["ffv1"])
    with av.open(target) as container:
        (frame,) = container.decode(video=0)
        assert (int(frame.colorspace), int(frame.color_range)) == (matrix, span)
        back = frame.to_ndarray().astype(int)
    assert np.abs(back - planes).max() <= 2


@pytest.mark.parametrize("span", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6, 9], ids=["709", "601", "2020"])
def test_subsampled_colours_come_back_as_they_were_shown(tmp_path: Path, matrix: int, span: int) -> None:
    """4:2:0 is written as 4:4:4. What a person sees differs by at most two levels; luma as well, where no
    colour is clipped.
    """
    grid = np.mgrid[0:48, 0:64]
    picture = np.stack([64 + grid[0] * 2, 80 + grid[1] * 2, 200 - grid[0] - grid[1]], -1).astype(np.uint8)
    planes = yuv(picture, matrix, span)
    halves = [plane.reshape(24, 2, 32, 2).mean((1, 3)).round().astype(np.uint8) for plane in planes[1:]]
    stacked = np.concatenate([planes[0].reshape(-1), *(half.reshape(-1) for half in halves)]).reshape(72, 64)
    path = film(tmp_path / "source.mkv", av.VideoFrame.from_ndarray(stacked, "yuv420p"), (matrix, span, 1, 1))
    assert np.abs(rgb(path)[0].astype(int) - picture).max() <= 5
    target, _ = copied(path, tmp_path / "out", CODECS["ffv1"])
    assert np.abs(rgb(target)[0].astype(int) - rgb(path)[0]).max() <= 2
    with av.open(target) as container:
        (frame,) = container.decode(video=0)
        assert np.abs(frame.to_ndarray()[0].astype(int) - planes[0]).max() <= 2


def test_what_says_nothing_is_taken_as_players_do(tmp_path: Path) -> None:
    for size, matrix in (((576, 720), 5), ((720, 1280), 1)):
        with Reader(Footage(name=f"{size[0]}.mp4", size=size, frames=1).make(tmp_path)) as reader:
            assert (reader.clip.color.matrix, reader.clip.color.range) == (matrix, 1)


def test_grey_has_the_range_of_its_stream(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(16, 236, dtype=np.uint8)[None], 32, 0)
    path = film(tmp_path / "grey.mkv", av.VideoFrame.from_ndarray(ramp, "gray"), (2, 0, 2, 2))
    seen = rgb(path)[0]
    assert (seen[..., 0] == seen[..., 1]).all()
    target, _ = copied(path, tmp_path / "out", CODECS["ffv1"])
    assert np.abs(rgb(target)[0].astype(int) - seen).max() <= 2


MARKS = {
    "709": (1, 1, 1, 1),
    "709 full": (1, 2, 1, 1),
    "601-525": (6, 1, 6, 6),
    "601-625": (5, 1, 5, 6),
    "2020 PQ": (9, 1, 9, 16),
    "2020 HLG": (9, 1, 9, 18),
    "709 sRGB": (1, 1, 1, 13),
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("name", [name for name in CODECS if name != "h264_nvenc"])
def test_each_codec_carries_the_marks_of_the_source(
    tmp_path: Path, name: str, marks: tuple[int, int, int, int]
) -> None:
    picture = colours((64, 96))
    path = film(
        tmp_path / "source.mkv",
        av.VideoFrame.from_ndarray(yuv(picture, marks[0], marks[1]), "yuv444p"),
        marks,
    )
    with Reader(path) as reader:
        assert reader.clip.color == ColorInfo(*marks)
    target, _ = copied(path, tmp_path / "out", CODECS[name])
    # ProRes has no mark for full range, and is limited
    right = marks if name != "prores" else (marks[0], 1, *marks[2:])
    with Reader(target) as reader:
        assert reader.clip.color == ColorInfo(*right)
        (shot,) = reader.frames()
        seen = reader.rgb(shot)
    centres = np.s_[3::8, 3::8]  # between the blocks codecs blur
    assert np.abs(seen[centres].astype(int) - picture[centres]).mean() < 25, "not of another matrix or range"
    assert np.abs(seen[centres].astype(int).mean() - picture[centres].mean()) < 4


# Writing.


@pytest.mark.parametrize("size", [(64, 96), (65, 97)], ids=["even", "odd"])
@pytest.mark.parametrize("name", [name for name in CODECS if name != "h264_nvenc"])
def test_every_codec_reads_back(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    times = [0, 40, 80, 81, 200, 240, 1000, 1040, 1080]
    format = "yuv420p" if size[0] % 2 == 0 else "yuv444p"
    path = Footage(size=size, times=times, base=MILLISECOND, frames=9, format=format).make(tmp_path)
    target, notes = copied(path, tmp_path / "out", CODECS[name])
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
    target, _ = copied(path, tmp_path / "out", MASKS, pictures=lambda picture: picture[..., 1])
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


QUICK = {"h264": 30, "vp9": 50}


def boxes(path: str) -> list[str]:
    """The names of an MP4 file's outermost boxes, in order."""
    data, names, at = Path(path).read_bytes(), [], 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        names.append(name)
        if size < 8:
            break
        at += size
    return names


def test_the_index_comes_first(tmp_path: Path) -> None:
    """So that a browser plays before it has loaded everything."""
    target, _ = copied(Footage(sounds=(Sound(),)).make(tmp_path), tmp_path / "out")
    names = boxes(target)
    assert names.index("moov") < names.index("mdat")
    assert "moof" not in names


def test_h265_has_the_name_that_every_player_knows(tmp_path: Path) -> None:
    target, _ = copied(Footage(size=(64, 96)).make(tmp_path), tmp_path / "out", CODECS["h265"])
    assert b"hvc1" in Path(target).read_bytes()
    assert len(seconds(target)) == 10


def test_a_rate_that_is_nonsense_does_no_harm(tmp_path: Path) -> None:
    """Some cameras write 90,000 frames a second into the header; the times are right."""
    footage = Footage(name="fast.mkv", frames=3, times=[0, 40, 80], base=MILLISECOND, rate=Fraction(90000))
    path = footage.make(tmp_path)
    with Reader(path) as reader:
        clip = replace(reader.clip, rate=Fraction(90000))
        writer = Writer(str(tmp_path / "part.mp4"), CODECS["h264"], clip)
        shots = list(reader.frames())
        for shot in shots:
            writer.write(video.make_frame(reader.rgb(shot), writer.format, writer.color), shot.pts)
        writer.close()
        target = str(tmp_path / "whole.mp4")
        assemble(
            target,
            [str(tmp_path / "part.mp4")],
            [(shot.pts, shot.duration) for shot in shots],
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
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
                for shot in reader.frames():
                    writer.write(video.make_frame(reader.rgb(shot), writer.format, writer.color), shot.pts)
            finally:
                writer.close()

    with pytest.raises(OutputError, match="disk is full") as caught:
        write()
    assert "free some space" in caught.value.hint


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_fills_while_the_parts_are_put_together_is_named(tmp_path: Path) -> None:
    path = Footage(frames=40, size=(128, 192), sounds=(Sound(),)).make(tmp_path)
    target = tmp_path / "whole.mp4"
    target.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="disk is full"):
        assemble_whole(path, str(target))


def test_parts_that_do_not_fit_the_record_are_named(tmp_path: Path) -> None:
    path = Footage().make(tmp_path)
    with Reader(path) as reader:
        times = [(shot.pts, shot.duration) for shot in reader.frames()]
        for wrong, word in ((times[:-1], "more"), ([*times, (99, 1)], "fewer")):
            with pytest.raises(VideoError, match=f"{word} frames than were recorded"):
                assemble(str(tmp_path / "out.mp4"), [path], wrong, reader.clip, sound=True)
        Path(path).write_bytes(b"")
        with pytest.raises(VideoError, match="empty"):
            assemble(str(tmp_path / "out.mp4"), [path], times, reader.clip, sound=True)


# In a browser.

PAGE = """<!doctype html><meta charset="utf-8"><body><script>
const found = {}, video = document.createElement("video");
const say = () => fetch("/found", {method: "POST", body: JSON.stringify(found)});
video.muted = true;
video.onerror = () => { found.error = video.error.message || String(video.error.code); say(); };
video.onloadedmetadata = () => {
  Object.assign(found, {width: video.videoWidth, height: video.videoHeight, duration: video.duration});
  video.currentTime = video.duration / 2;
};
video.onseeked = () => {
  found.time = video.currentTime;
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  found.red = Array.from(data.filter((_, index) => index % 4 === 0));
  say();
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
                found: dict[str, Any] = json.loads(answers.get(timeout=80))
            finally:
                child.kill()
                server.shutdown()
                thread.join()
    return found


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("turn", ["upright", "turned 90", "mirrored", "transposed"])
def test_what_is_written_plays_in_a_browser_as_the_source_does(tmp_path: Path, turn: str) -> None:
    """The browser has its own opinion of what turned and mirrored mean: it sees the source as we do."""
    size = (96, 160)
    footage = Footage(frames=30, size=size, turn=turn, look=(1, 1, 1, 1), sounds=(Sound(end=Fraction(6, 5)),))
    path = footage.make(tmp_path)
    target, _ = copied(path, tmp_path / "out")
    middle = rgb(path)[15][..., 0].astype(int)
    for one in (target, path):
        found = in_a_browser(one, tmp_path)
        assert "error" not in found, found
        assert (found["height"], found["width"]) == size
        assert found["duration"] == pytest.approx(1.2, abs=0.03)
        assert found["time"] == pytest.approx(0.6, abs=0.03)
        assert np.abs(np.array(found["red"]).reshape(size) - middle).mean() < 12, one
