"""Clips are read as a file says and as a person sees them, or fail with a reason."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest

from tests.helpers.clips import (
    LOSSLESS,
    MILLISECOND,
    assemble_whole,
    boxes,
    copy_clip,
    rgb,
    seconds,
    write_frame,
)
from tests.helpers.footage import TURNS, Footage, Sound, only_sound, scene, spoil_packets
from unet_batch.errors import VideoError
from unet_batch.media.video import Reader, reading

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.mark.parametrize("turn", TURNS)
def test_a_clip_is_seen_as_a_person_sees_it(tmp_path: Path, turn: str) -> None:
    path = Footage(turn=turn, format="yuv444p", options=LOSSLESS, size=(32, 48)).make(tmp_path)
    with Reader(path) as reader:
        assert reader.clip.size == (32, 48)
        for frame in reader.frames():
            picture = reader.rgb(frame)
            assert picture.flags.c_contiguous
            assert np.abs(picture.astype(int) - scene(frame.index, (32, 48))).max() <= 3


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
        whole = [(decoded.pts, reader.rgb(decoded)) for decoded in reader.frames()]
        assert not reader.timed
    with Reader(path) as reader:
        rest = [(decoded.pts, reader.rgb(decoded)) for decoded in reader.frames(whole[17][0] + 1, seek=False)]
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
        whole = [(decoded.pts, decoded.duration, reader.rgb(decoded)) for decoded in reader.frames()]
    assert len(whole) == footage.frames
    for begin in (1, 11, 12, 13, 25, footage.frames - 1):
        with Reader(path) as reader:
            rest = [
                (decoded.pts, decoded.duration, reader.rgb(decoded))
                for decoded in reader.frames(whole[begin][0])
            ]
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
        times = [decoded.pts * reader.clip.time_base for decoded in reader.frames()]
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
        frames = list(reader.frames(400))
        assert [decoded.pts for decoded in frames][:5] == [400, 440, 480, 520, 600]
        assert (frames[0].damaged, frames[3].damaged, frames[4].damaged, reader.damaged) == (0, 0, 1, 1)


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
        pictures = [reader.rgb(decoded) for decoded in reader.frames()]
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
    path = write_frame(tmp_path / "ramp.mkv", frame, (1, 1, 1, 1))
    with Reader(path) as reader:
        assert reader.clip.depth == 10
        (decoded,) = reader.frames()
        picture = reader.rgb(decoded).astype(int)
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
        copy_clip(path, tmp_path / str(number))
        with suppress(VideoError):
            Reader(str(tmp_path / "bad.mp4"))
        with Reader(path) as reader:
            next(reader.frames(60))
    assert count() == before


@pytest.mark.parametrize(
    "footage",
    [
        Footage("one.mkv", frames=1, sounds=(Sound(end=Fraction(5)),)),
        Footage("two.mkv", frames=2, sounds=(Sound(end=Fraction(5)),)),
        Footage("late.mkv", start=Fraction(4), options={"bf": "0"}),
        Footage("late-one.mkv", frames=1, start=Fraction(4)),
        Footage("both.mkv", start=Fraction(4), options={"bf": "0"}, sounds=(Sound(end=Fraction(9)),)),
    ],
    ids=lambda footage: footage.name,
)
def test_the_length_of_a_matroska_file_is_no_promise_of_its_video(tmp_path: Path, footage: Footage) -> None:
    """Its header says when the last of all tracks ends, counted from 0 and not from the first frame."""
    with Reader(footage.make(tmp_path)) as reader:
        assert len(list(reader.frames())) == footage.frames
        assert reader.notes == []


@pytest.mark.parametrize("sounds", [0, 1])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(4)], ids=str)
def test_a_matroska_file_that_is_cut_short(tmp_path: Path, start: Fraction, sounds: int) -> None:
    tracks = sounds * (Sound(start=start, end=start + 3),)
    clip = Footage("clip.mkv", frames=60, start=start, sounds=tracks, options={"bf": "0"})
    path = clip.make(tmp_path)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with Reader(path) as reader:
        assert 0 < len(list(reader.frames())) < 45
        assert any("cut short" in note for note in reader.notes), reader.notes


@pytest.mark.parametrize("sounds", [0, 1])
def test_an_avi_file_that_is_cut_short(tmp_path: Path, sounds: int) -> None:
    tracks = sounds * (Sound("pcm_s16le", end=Fraction(2), layout="stereo"),)
    path = Footage("clip.avi", codec="mpeg4", frames=60, size=(240, 320), sounds=tracks).make(tmp_path)
    with Reader(path) as reader:
        assert (len(list(reader.frames())), reader.notes) == (60, [])
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with Reader(path) as reader:
        assert 0 < len(list(reader.frames())) < 45
        assert any("cut short" in note for note in reader.notes), reader.notes
