"""What is carried over of a source beside the picture: timecode, sound without names of channels, data."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.helpers.clips import copy_clip
from tests.helpers.footage import Footage, Sound, look_at
from unet_batch.media.video import CODECS, Reader, assembling, rehearse
from unet_batch.media.video.carrying import shift_timecode

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

NTSC = Fraction(30000, 1001)
MADE_ANEW = "was coded anew as AAC: not every player knows it in MP4"


def timecodes(path: str) -> set[str]:
    """Of the tracks that a player reads a timecode from."""
    with av.open(path) as container:
        return {stream.metadata["timecode"] for stream in container.streams if "timecode" in stream.metadata}


def heard(path: str) -> tuple[str, float, float, float]:
    """Layout of the sound of a file, the seconds it is loud for, its pitch in hertz, and its level (RMS)."""
    with av.open(path) as container:
        [stream] = container.streams.audio
        layout, rate = stream.layout.name, stream.sample_rate
        # PyAV reads beyond the planes of eight channels, so that they are packed first
        packed = av.AudioResampler("flt", layout, rate)
        frames = [even for frame in container.decode(stream) for even in packed.resample(frame)]
    count = frames[0].layout.nb_channels
    samples = np.concatenate([frame.to_ndarray()[0].reshape(-1, count)[:, 0] for frame in frames])
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    assert len(loud)
    voiced = samples[loud[0] : loud[-1]]
    seconds = len(voiced) / rate
    pitch = float(np.abs(np.fft.rfft(voiced)).argmax() / seconds)
    return layout, seconds, pitch, float(np.sqrt(np.mean(voiced**2)))


@pytest.mark.parametrize(
    ("code", "frames", "rate", "right"),
    [
        ("01:00:00:00", 30, Fraction(25), "01:00:01:05"),
        ("00:00:59;29", 1, NTSC, "00:01:00;02"),
        ("00:09:59;29", 1, NTSC, "00:10:00;00"),
        ("00:00:59.29", 1, NTSC, "00:01:00;02"),
        ("00:00:59:29", 1, NTSC, "00:01:00:00"),
        ("00:00:59;59", 1, 2 * NTSC, "00:01:00;04"),
        ("23:59:59:24", 1, Fraction(25), "00:00:00:00"),
        ("23:59:59;29", 1, NTSC, "00:00:00;00"),
        ("10:00:00:00", 0, Fraction(24000, 1001), "10:00:00:00"),
    ],
)
def test_a_timecode_counts_on(code: str, frames: int, rate: Fraction, right: str) -> None:
    assert shift_timecode(code, frames, rate) == right


@given(some.integers(0, 3_000_000), some.integers(0, 3_000_000), some.sampled_from([NTSC, 2 * NTSC]))
def test_counting_on_in_two_steps_is_counting_on_in_one(first: int, second: int, rate: Fraction) -> None:
    once = shift_timecode("00:00:00;00", first + second, rate)
    assert shift_timecode(shift_timecode("00:00:00;00", first, rate), second, rate) == once
    # Dropped numbers keep the clock by the time that has passed, but for 86 ms a day
    hours, minutes, rest = once.split(":")
    seconds, frame = rest.split(";")
    clock = (int(hours) * 60 + int(minutes)) * 60 + int(seconds) + int(frame) / round(rate)
    drift = (clock - float((first + second) / rate)) % 86400
    assert min(drift, 86400 - drift) < 0.3


@pytest.mark.parametrize("code", ["", "noon", "01:00:00:25", "01:60:00:00", "00:00:10;00", "-1:00:00:00"])
def test_what_is_no_timecode_of_the_clip_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="no timecode"):
        shift_timecode(code, 0, Fraction(25))


@pytest.mark.parametrize("codec", ["h264", "prores", "ffv1"])
@pytest.mark.parametrize(
    ("name", "rate", "code"),
    [
        ("c.mp4", Fraction(30), "01:00:00:00"),
        ("c.mov", NTSC, "01:00:00;02"),
        ("c.mov", NTSC, "01:00:00:02"),
        ("c.mxf", Fraction(25), "09:59:50:00"),
        ("c.mkv", Fraction(24), "10:00:00:12"),
        ("c.avi", Fraction(25), "00:59:59:24"),
    ],
)
def test_a_timecode_is_kept_and_counts_frames(
    tmp_path: Path, name: str, rate: Fraction, code: str, codec: str
) -> None:
    """Of a clip whose clock ticks thousands of times a second, and whose timecode counts frames."""
    footage = Footage(
        name,
        codec={"c.mxf": "mpeg2video", "c.avi": "mpeg4"}.get(name, "libx264"),
        rate=rate,
        base={"c.mxf": None, "c.avi": None, "c.mkv": Fraction(1, 1000)}.get(name, 1 / (512 * rate)),
        metadata={"timecode": code},
        size=(64, 96),
    )
    target, notes = copy_clip(footage.make(tmp_path), tmp_path / "out", CODECS[codec])
    assert notes == []
    if codec == "ffv1":
        with av.open(target) as container:
            assert {**container.streams.video[0].metadata, **container.metadata}["TIMECODE"] == code
    else:
        assert timecodes(target) == {code}
        with av.open(target) as container:
            assert container.streams.video[0].average_rate == pytest.approx(rate, rel=0.01)
            assert [stream.type for stream in container.streams] == ["video", "data"]


def test_raw_dv_has_the_rate_of_its_frames_and_not_of_its_clock(tmp_path: Path) -> None:
    """FFmpeg says that it has 60,000 frames a second, which no timecode could count."""
    sound = Sound("pcm_s16le", layout="stereo", end=Fraction(2, 5))
    footage = Footage("c.dv", codec="dvvideo", size=(576, 720), sounds=(sound,), look=(5, 1, 5, 1))
    path = footage.make(tmp_path)
    with Reader(path) as reader:
        assert (reader.clip.rate, reader.clip.frames) == (25, 10)
    target, notes = copy_clip(path, tmp_path / "out")
    assert notes == [f"audio pcm_s16le {MADE_ANEW}"]
    assert timecodes(target) == {"00:00:00:00"}


def test_a_timecode_is_that_of_the_first_frame_that_is_taken(tmp_path: Path) -> None:
    path = Footage(rate=Fraction(25), frames=20, metadata={"timecode": "01:00:00:20"}).make(tmp_path)
    with Reader(path) as reader:
        start = round(Fraction(10, 25) / reader.clip.time_base)
    target, notes = copy_clip(path, tmp_path / "out", span=True, start=start)
    assert (timecodes(target), notes) == ({"01:00:01:05"}, [])


@pytest.mark.parametrize("codec", ["h264", "prores"])
def test_a_timecode_that_does_not_fit_is_left_out_and_the_clip_is_done(tmp_path: Path, codec: str) -> None:
    for code in ("01:00:00:45", "half past nine"):
        footage = Footage("c.mkv", base=Fraction(1, 1000), sounds=(Sound(),), metadata={"timecode": code})
        target, notes = copy_clip(footage.make(tmp_path), tmp_path / "out", CODECS[codec])
        assert notes == [f"timecode {code} was left out: it does not fit the frames"]
        assert timecodes(target) == set()
        assert heard(target)[2] == pytest.approx(440, abs=10)


@pytest.mark.parametrize(
    "layout", ["mono", "2 channels", "4 channels", "6 channels", "8 channels", "16 channels"]
)
@pytest.mark.parametrize("codec", ["h264", "prores", "ffv1"])
@pytest.mark.parametrize("name", ["c.avi", "c.mkv", "c.mov", "c.nut"])
def test_sound_whose_channels_have_no_names_is_kept(
    tmp_path: Path, name: str, layout: str, codec: str
) -> None:
    coded = "mpeg4" if name in ("c.avi", "c.nut") else "libx264"
    sound = Sound(codec="pcm_s16le", layout=layout)
    path = Footage(name, codec=coded, size=(64, 96), sounds=(sound,)).make(tmp_path)
    target, notes = copy_clip(path, tmp_path / "out", CODECS[codec])
    found, seconds, pitch, level = heard(target)
    assert seconds == pytest.approx(0.5, abs=0.05)
    assert pitch == pytest.approx(440, abs=10)
    assert level == pytest.approx(8000 / 2**15 / 2**0.5, rel=0.1)
    channels = int(layout.split()[0]) if layout != "mono" else 1
    names = {4: "taken for 4.0", 6: "taken for 5.1", 8: "taken for 7.1", 16: "the first two are kept"}
    guess = f"its {channels} channels have no names: {names.get(channels)}"
    if codec == "h264":
        assert notes == [f"audio pcm_s16le {MADE_ANEW}" + (f"; {guess}" if channels > 2 else "")]
        assert found == {1: "mono", 2: "stereo", 4: "4.0", 6: "5.1", 8: "7.1", 16: "stereo"}[channels]
    else:
        assert notes == ([f"audio pcm_s16le: {guess}"] if 2 < channels <= 8 else [])
        assert found in {1: ("mono", "1 channels"), 2: ("stereo", "2 channels")}.get(channels, (found,))


def test_sound_in_avi_whose_times_are_told_to_a_packet_is_coded_anew(tmp_path: Path) -> None:
    for layout in ("mono", "stereo"):
        sound = Sound(codec="mp2", end=Fraction(4, 5), layout=layout)
        path = Footage("c.avi", codec="mpeg4", frames=20, sounds=(sound,)).make(tmp_path)
        target, notes = copy_clip(path, tmp_path / "out")
        assert notes == [f"audio mp2 {MADE_ANEW}"]
        found, seconds, pitch, _ = heard(target)
        assert found == layout
        assert seconds == pytest.approx(0.8, abs=0.05)
        assert pitch == pytest.approx(440, abs=10)


def test_sound_that_changes_its_channels_on_the_way_is_coded_anew(tmp_path: Path) -> None:
    """As broadcasts do between a film in 5.1 and its advertisements."""
    parts = [
        Path(
            Footage(
                f"{layout}.ts",
                frames=20,
                start=start,
                base=Fraction(1, 90_000),
                sounds=(Sound("mp2", layout=layout, start=start, end=start + Fraction(4, 5)),),
            ).make(tmp_path)
        )
        for layout, start in (("mono", Fraction(1)), ("stereo", Fraction(9, 5)))
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    target, notes = copy_clip(str(both), tmp_path / "out")
    assert f"audio mp2 {MADE_ANEW}" in notes
    _, seconds, pitch, _ = heard(target)
    assert seconds == pytest.approx(1.6, abs=0.1)
    assert pitch == pytest.approx(440, abs=15)


@pytest.mark.parametrize("codec", ["flac", "libopus", "mp2", "pcm_s24le", "ac3", "libmp3lame"])
def test_mp4_gets_the_sound_that_every_player_knows(tmp_path: Path, codec: str) -> None:
    path = Footage("c.mkv", base=Fraction(1, 1000), sounds=(Sound(codec, layout="stereo"),)).make(tmp_path)
    target, notes = copy_clip(path, tmp_path / "out")
    with av.open(target) as container:
        name = container.streams.audio[0].codec_context.codec.canonical_name
    kept = {"ac3": "ac3", "libmp3lame": "mp3"}
    assert name == kept.get(codec, "aac")
    assert bool(notes) == (codec not in kept)
    assert heard(target)[2] == pytest.approx(440, abs=10)


def test_data_that_the_container_does_not_hold_is_left_out_and_said_so(tmp_path: Path) -> None:
    source, path = Footage("c.ts", sounds=(Sound(),)).make(tmp_path), str(tmp_path / "klv.ts")
    with av.open(source) as container, av.open(path, "w", format="mpegts") as out:
        copies = {one.index: out.add_stream_from_template(one) for one in container.streams}
        data = out.add_data_stream("klv")
        for number, packet in enumerate(container.demux()):
            if packet.size:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
            if packet.size and number % 5 == 0:
                more = av.Packet(b"\x06\x0e\x2b\x34" + bytes(20))
                more.stream, more.pts, more.dts = data, packet.pts, packet.dts
                more.time_base = packet.time_base
                out.mux(more)
    target, notes = copy_clip(path, tmp_path / "out")
    assert [note for note in notes if note.startswith("data")], notes
    assert heard(target)[2] == pytest.approx(440, abs=10)


def add_stream(source: str, path: str, codec: str, **options: Any) -> str:
    """Copy a clip and add a stream of data to it, a packet for each frame."""
    with av.open(source) as container, av.open(path, "w") as out:
        copies = {one.index: out.add_stream_from_template(one) for one in container.streams}
        data: Any = out.add_data_stream(codec)
        data.time_base = Fraction(1, 1000)
        if chapters := options.get("chapters"):
            out.set_chapters(chapters)
        for packet in container.demux():
            if not packet.size or packet.pts is None:
                continue
            is_frame, at = packet.stream.type == "video", round(packet.pts * packet.time_base * 1000)
            packet.stream = copies[packet.stream.index]
            out.mux(packet)
            if is_frame:
                more = av.Packet(b"DEVC" + bytes(28))
                more.stream, more.time_base, more.duration = data, Fraction(1, 1000), 40
                more.pts = more.dts = at
                out.mux(more)
    return path


@pytest.mark.parametrize("chapters", [False, True])
def test_what_an_action_camera_records_beside_the_picture_is_kept(tmp_path: Path, chapters: bool) -> None:
    """Its track of data has the codec of the track that MP4 writes its chapters in."""
    half = Fraction(1, 5)
    base = {"id": 0, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
    path = add_stream(
        Footage(sounds=(Sound(),)).make(tmp_path),
        str(tmp_path / "gopro.mp4"),
        "bin_data",
        chapters=[base] if chapters else None,
    )
    target, notes = copy_clip(path, tmp_path / "out")
    made = look_at(target)
    assert notes == []
    assert [(time, data) for kind, _, packets in made.others if kind == "data" for time, data in packets] == [
        (Fraction(index, 25), b"DEVC" + bytes(28)) for index in range(10)
    ]
    assert made.chapters == ([(Fraction(0), half, "one")] if chapters else [])
    _, notes = copy_clip(path, tmp_path / "mkv", CODECS["ffv1"])
    assert notes == ["data bin_data was left out: the container does not hold it"]


def test_fonts_are_kept_where_the_container_holds_them(tmp_path: Path) -> None:
    source, path = Footage("c.mkv", base=Fraction(1, 1000)).make(tmp_path), str(tmp_path / "font.mkv")
    with av.open(source) as container, av.open(path, "w") as out:
        copy = out.add_stream_from_template(container.streams.video[0])
        out.add_attachment("font.ttf", "application/x-truetype-font", b"glyphs")
        for packet in container.demux():
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    for codec, left in (("h264", True), ("ffv1", False)):
        target, notes = copy_clip(path, tmp_path / codec, CODECS[codec])
        assert bool(notes) == left
        with av.open(target) as container:
            assert [stream.type for stream in container.streams] == [
                "video",
                *([] if left else ["attachment"]),
            ]


def test_a_packet_that_is_refused_on_the_way_costs_no_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first packets do not show is found as the file is written: then all of them are tried."""
    path = Footage(frames=50, sounds=(Sound(end=Fraction(2)),)).make(tmp_path)
    shift = assembling._shift

    def spoil(packet: Any, begin: Fraction) -> None:
        shift(packet, begin)
        if packet.stream.type == "audio" and packet.dts > 48000:
            packet.pts = packet.dts - 100  # shown before it is decoded: no muxer takes it

    monkeypatch.setattr(assembling, "_shift", spoil)
    monkeypatch.setattr(assembling, "_TRIED", 20)
    target, notes = copy_clip(path, tmp_path / "out")
    assert notes == ["audio aac was coded anew as AAC: the container does not hold it"]
    assert heard(target)[1] == pytest.approx(2, abs=0.1)


def test_a_rehearsal_says_what_will_be_left_out_and_leaves_nothing(tmp_path: Path) -> None:
    path = Footage("c.mkv", base=Fraction(1, 1000), sounds=(Sound("libopus"),), subtitles="subrip").make(
        tmp_path
    )
    with Reader(path) as reader:
        notes = rehearse(str(tmp_path / "trial"), CODECS["h264"], reader.clip, sound=True)
    _, later = copy_clip(path, tmp_path / "out")
    assert (
        notes
        == later
        == [
            f"audio opus {MADE_ANEW}",
            "subtitle subrip was left out: the container does not hold it",
        ]
    )
    assert [file.name for file in tmp_path.iterdir() if "trial" in file.name] == []
