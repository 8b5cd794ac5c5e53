"""Clips through `segment`, with a model whose right answer is known: the brightness of each pixel."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import shutil
import signal
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import psutil
import pytest

from tests.helpers.clips import segment_clip
from tests.helpers.footage import (
    TURNS,
    Footage,
    Found,
    Sound,
    look_at,
    only_sound,
    repeat,
    rgb_frames,
    scene,
    spoil_packets,
)
from tests.helpers.processes import Forked, has_lines, killed
from tests.helpers.systems import needs_full_device, needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import BackendError, OutputError, UsageError, VideoError
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.ensemble import Ensemble
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import images, video
from unet_batch.media.video import CODECS, Reader
from unet_batch.run.clip import ClipResult, segment
from unet_batch.run.journal import Journal
from unet_batch.run.layout import ClipLayout
from unet_batch.run.observe import Stop
from unet_batch.run.options import Position, VideoOptions
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Item

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

MILLISECOND = Fraction(1, 1000)
LOSSLESS = {"qp": "0", "crf": "0"}
KINDS = ("mask", "overlay")


def work(
    path: str,
    out: Path,
    *,
    kinds: tuple[str, ...] = KINDS,
    fingerprint: str = "one",
    backend: Backend | None = None,
    stop_at: int | None = None,
    tear_at: int | None = None,
    key: str = "clip",
    view: ViewOptions | None = None,
    **options: Any,
) -> ClipResult:
    """Segment a clip; stop after so many frames, or raise KeyboardInterrupt."""
    stop = Stop()

    def on_frame(done: int, total: int | None) -> None:
        if tear_at is not None and done >= tear_at:
            raise KeyboardInterrupt
        if stop_at is not None and done >= stop_at:
            stop()

    what = VideoOptions(**options)
    layout = ClipLayout(str(out), kinds, CODECS[what.codec])
    with Segmenter(backend or FakeBackend(), workers=2, view=view) as segmenter:
        return segment(Item(path, key), segmenter, layout, what, fingerprint, on_frame, stop)


in_parts = partial(work, part_frames=10)


def masks(path: str) -> list[np.ndarray]:
    with av.open(path) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def right_masks(path: str) -> list[np.ndarray]:
    """What the fake model says of a clip that is not larger than its network's input."""
    with Reader(path) as reader:
        return [
            np.where(np.asarray(reader.rgb(shot).mean(2) + 0.5, np.uint8) >= 128, 255, 0).astype(np.uint8)
            for shot in reader.frames()
        ]


def files(folder: Path) -> list[str]:
    return (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if folder.exists()
        else []
    )


def timeline(result: ClipResult) -> list[dict[str, str]]:
    with open(result.files["timeline"][0], encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The contract: what comes out fits what went in, whatever that was.

VARIABLE = (0, 40, 90, 100, 180, 260, 261, 400, 480, 500)
MADE = {
    "25 a second": Footage(),
    "29.97 a second": Footage(rate=Fraction(30000, 1001)),
    "variable": Footage(times=VARIABLE, base=MILLISECOND),
    "variable, fine clock": Footage(times=[tick * 37 for tick in VARIABLE], base=Fraction(1, 90000)),
    **{turn: Footage(turn=turn) for turn in TURNS if turn != "upright"},
    "sound": Footage(sounds=(Sound(),)),
    "two languages": Footage(sounds=(Sound(), Sound(language="fra", frequency=880, layout="stereo"))),
    "surround": Footage(sounds=(Sound(layout="5.1", codec="ac3"),)),
    "opus": Footage(name="opus.mkv", base=MILLISECOND, sounds=(Sound(codec="libopus"),)),
    "late sound": Footage(sounds=(Sound(start=Fraction(2, 25)),)),
    "late picture": Footage(start=Fraction(1, 2), base=Fraction(1, 12800), sounds=(Sound(end=Fraction(1)),)),
    "late picture, odd ticks": Footage(
        start=Fraction(4567, 90000), base=Fraction(1, 90000), sounds=(Sound(),)
    ),
    "B-frames": Footage(frames=20, options={"preset": "medium", "bf": "3"}, sounds=(Sound(),)),
    "odd size": Footage(size=(33, 47), format="yuv444p"),
    "anamorphic": Footage(aspect=Fraction(4, 3)),
    "anamorphic, turned": Footage(aspect=Fraction(4, 3), turn="turned 90"),
    "10 bits": Footage(
        codec="libx265", format="yuv420p10le", size=(64, 96), options={"x265-params": "log-level=none"}
    ),
    "12 bits": Footage(name="p.mov", codec="prores_ks", format="yuva444p10le"),
    "transparent": Footage(name="a.webm", codec="libvpx-vp9", format="yuva420p", base=MILLISECOND),
    "transparent PNG": Footage(name="q.mov", codec="png", format="rgba"),
    "grey": Footage(name="g.mkv", codec="ffv1", format="gray", base=MILLISECOND),
    "full range": Footage(look=(1, 2, 1, 1)),
    "no duration": Footage(
        name="l.webm", codec="libvpx-vp9", base=MILLISECOND, live=True, sounds=(Sound(codec="libopus"),)
    ),
    "one frame": Footage(frames=1),
    "two pictures": Footage(videos=2, sounds=(Sound(),)),
    "cover": Footage(cover=True, sounds=(Sound(),)),
    "interlaced": Footage(
        name="i.ts", codec="mpeg2video", options={"flags": "+ildct+ilme"}, sounds=(Sound(codec="mp2"),)
    ),
    "late clock": Footage(
        name="late.ts",
        frames=20,
        start=Fraction(50_000),
        base=Fraction(1, 90_000),
        sounds=(Sound(start=Fraction(50_000), end=Fraction(250_004, 5)),),
    ),
    "QuickTime": Footage(
        name="m.mov", codec="mjpeg", format="yuvj420p", look=(5, 2, 2, 2), sounds=(Sound(codec="pcm_s16le"),)
    ),
}


def since(found: Found, origin: Fraction) -> Found:
    others = [
        (kind, language, [(time - origin, data) for time, data in packets])
        for kind, language, packets in found.others
    ]
    return replace(found, times=[time - origin for time in found.times], others=others)


def fits(source: str, result: ClipResult, exactly: bool = True) -> tuple[Found, Found]:
    """Check that the overlay has the times, the shape and the sound of its source, and the mask the times and
    the shape.
    """
    found, made = look_at(source), look_at(result.files["overlay"][0])
    with Reader(source) as reader:
        clip = reader.clip
    if source.endswith(".ts"):  # its clock begins anywhere, ours at 0
        origin = min([*found.times, *(time for _, _, packets in found.others for time, _ in packets)])
        found = since(found, origin)
    near = Fraction(0) if exactly else MILLISECOND / 2
    # Sound keeps its clock from MP4 to MP4; of 1/90000 seconds or milliseconds it is rounded to a sample.
    heard_near = near or (Fraction(0) if source.endswith((".mp4", ".mov")) else Fraction(1, 44100) / 2)
    assert result.complete
    assert result.frames == len(found.times) == len(made.times)
    assert max(abs(one - other) for one, other in zip(made.times, found.times, strict=True)) <= near
    assert made.size == clip.size
    assert made.aspect == (clip.aspect if exactly else 1)
    if found.duration is not None and made.duration is not None:
        assert made.duration == found.duration
    mask = look_at(result.files["mask"][0])
    assert mask.size == clip.size
    assert (
        max(abs(one - other) for one, other in zip(mask.times, found.times, strict=True)) <= MILLISECOND / 2
    )
    sounds = [[other for other in one.others if other[0].startswith("audio")] for one in (found, made)]
    assert [language or "und" for _, language, _ in sounds[0]] == [
        language or "und" for _, language, _ in sounds[1]
    ]
    for (codec, _, heard), (coded, _, kept) in zip(*sounds, strict=True):
        if coded != codec:
            note = f"{codec} was coded anew as AAC: not every player knows it in MP4"
            assert (coded, note in result.notes) == ("audio aac", True)
            for edge in (0, -1):
                assert abs(heard[edge][0] - kept[edge][0]) < Fraction(1, 20)
            continue
        heard = heard if exactly else [packet for packet in heard if packet[0] >= 0]
        # ADTS headers, which MP4 has no use for
        bare = [data[7:] if data[:2] == b"\xff\xf1" else data for _, data in heard]
        assert [data for _, data in kept] == bare
        assert (
            max((abs(one - other) for (one, _), (other, _) in zip(kept, heard, strict=True)), default=0)
            <= heard_near
        )
    rows = timeline(result)
    assert [int(row["pts"]) * clip.time_base - clip.origin for row in rows] == found.times
    assert [float(row["seconds"]) for row in rows] == pytest.approx(
        [float(time) for time in found.times], abs=1e-6
    )
    return found, made


ANEW = "was coded anew as AAC: not every player knows it in MP4"
NOTES = {
    "two pictures": ["video h264 was left out: of the videos in a file the default one is segmented"],
    "cover": ["the cover picture (video mjpeg) was left out"],
    "opus": [f"audio opus {ANEW}"],
    "no duration": [f"audio opus {ANEW}"],
    "interlaced": [f"audio mp2 {ANEW}"],
    "QuickTime": [f"audio pcm_s16le {ANEW}"],
}


@pytest.mark.parametrize("name", MADE)
def test_the_overlay_fits_its_source(tmp_path: Path, name: str) -> None:
    footage = MADE[name]
    path = footage.make(tmp_path)
    result = work(path, tmp_path / "out")
    _, made = fits(path, result)
    if not footage.name.endswith(".ts"):
        assert made.times == footage.seconds
    assert files(tmp_path / "out") == ["masks/clip.mkv", "overlays/clip.mp4", "timelines/clip.csv"]
    assert result.notes == NOTES.get(name, [])
    if footage.size == (32, 48):
        for mask, right in zip(masks(result.files["mask"][0]), right_masks(path), strict=True):
            assert np.array_equal(mask, right)
    if footage.size[0] % 2 == 0:
        assert made.format == ("yuvj420p" if made.marks[1] == 2 else "yuv420p"), "what browsers play"


@pytest.mark.parametrize("codec", ["ffv1", "prores", "vp9", "h265"])
@pytest.mark.parametrize(
    "name", ["sound", "variable", "late picture", "two languages", "turned 90", "anamorphic"]
)
def test_the_overlay_fits_its_source_in_every_container(tmp_path: Path, name: str, codec: str) -> None:
    path = replace(MADE[name], size=(64, 96)).make(tmp_path)
    fits(path, work(path, tmp_path / "out", codec=codec), exactly=codec != "ffv1")


DATA = (
    "bt2020_10bit.mp4",
    "discard_first_keyframe.mp4",
    "fire2.mp4",
    "nasa_13013.mp4",
    "nasa_13013_rotated.mp4",
    "no_duration.webm",
    "testsrc2_odd_height_and_width_444.mp4",
    "transparent.webm",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("car-detection.mp4", "goldeneye-vfr-drop3.mp4", "solidWhiteRight.mp4")
    ),
)


@pytest.mark.parametrize("name", DATA)
def test_the_overlay_fits_its_source_in_real_clips(tmp_path: Path, data: Path, name: str) -> None:
    path = data / "videos" / name
    if not path.is_file():
        pytest.skip(f"no clips in {path.parent}")
    # What is judged does not depend on the quality, and to encode for viewing takes half as long again
    result = work(str(path), tmp_path / "out", quality=45)
    found, made = fits(str(path), result)
    assert not any("damaged" in note or "cut short" in note for note in result.notes)
    assert made.chapters == found.chapters
    with Reader(str(path)) as reader:
        look = reader.clip.color
    with Reader(result.files["overlay"][0]) as reader:
        assert reader.clip.color == look


def test_an_empty_clip_of_the_data_is_named(tmp_path: Path, data: Path) -> None:
    path = data / "videos" / "result.webm"
    if not path.is_file():
        pytest.skip(f"no clips in {path.parent}")
    with pytest.raises(VideoError, match="empty"):
        work(str(path), tmp_path / "out")


@pytest.mark.parametrize("turn", TURNS)
def test_masks_of_a_turned_clip_are_those_of_its_upright_twin(tmp_path: Path, turn: str) -> None:
    results = []
    for one in ("upright", turn):
        path = Footage(name=f"{one}.mp4", turn=one, format="yuv444p", options=LOSSLESS, size=(32, 40)).make(
            tmp_path
        )
        results.append(work(path, tmp_path / one))
    twin, turned = (masks(result.files["mask"][0]) for result in results)
    assert all(np.array_equal(one, other) for one, other in zip(twin, turned, strict=True))
    assert [row["area_class0"] for row in timeline(results[0])] == [
        row["area_class0"] for row in timeline(results[1])
    ]
    assert 0.05 < np.mean(twin) / 255 < 0.5


def test_sound_that_the_container_does_not_hold_is_coded_anew_and_said_so(tmp_path: Path) -> None:
    track = Sound(codec="pcm_alaw", end=Fraction(2, 5), start=Fraction(1, 25))
    path = Footage(name="n.mov", sounds=(track,)).make(tmp_path)
    result = work(path, tmp_path / "out")
    assert result.notes == [f"audio pcm_alaw {ANEW}"]
    with av.open(result.files["overlay"][0]) as container:
        frames = list(container.decode(audio=0))
        first = frames[0].pts * frames[0].time_base
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    assert abs(first + Fraction(int(loud[0]), 48000) - Fraction(1, 25)) < Fraction(1, 100)
    assert abs(int(loud[-1] - loud[0]) / 48000 - 0.36) < 0.03
    crossings = np.count_nonzero(np.diff(np.signbit(samples[loud[0] : loud[-1]])))
    assert abs(crossings / 2 / ((loud[-1] - loud[0]) / 48000) - 440) < 10


def test_subtitles_chapters_and_metadata_are_carried_over(tmp_path: Path) -> None:
    footage = Footage(
        subtitles="mov_text",
        sounds=(Sound(language="fra"),),
        chapters=((0, 200, "arrival"), (200, 400, "departure")),
        metadata={"title": "A drive", "artist": "Somebody", "creation_time": "2024-05-06T07:08:09.000000Z"},
    )
    path = footage.make(tmp_path)
    result = work(path, tmp_path / "out")
    found, made = look_at(path), look_at(result.files["overlay"][0])
    assert result.notes == []
    assert (
        made.chapters
        == found.chapters
        == [(0, Fraction(1, 5), "arrival"), (Fraction(1, 5), Fraction(2, 5), "departure")]
    )
    assert {key: made.metadata.get(key) for key in footage.metadata} == dict(footage.metadata)
    shown = [
        [packet for kind, _, packets in one.others if kind.startswith("subtitle") for packet in packets]
        for one in (found, made)
    ]
    assert [data for _, data in shown[0]].count(b"\0\x03one") == 1
    assert [one for one in shown[1] if len(one[1]) > 2] == [one for one in shown[0] if len(one[1]) > 2]
    kept = look_at(work(path, tmp_path / "mkv", codec="ffv1").files["overlay"][0])
    assert kept.metadata["title"] == "A drive"
    assert [title for _, _, title in kept.chapters] == ["arrival", "departure"]


def test_what_the_container_does_not_hold_is_left_out_and_said_so(tmp_path: Path) -> None:
    path = Footage(name="s.mkv", base=MILLISECOND, subtitles="subrip").make(tmp_path)
    result = work(path, tmp_path / "out")
    assert result.notes == ["subtitle subrip was left out: the container does not hold it"]
    assert work(path, tmp_path / "mkv", codec="ffv1").notes == []


def test_damaged_sound_and_sound_that_goes_back_in_time_stop_nothing(tmp_path: Path) -> None:
    path = Footage(name="part.ts", frames=8, sounds=(Sound(),)).make(tmp_path)
    both = tmp_path / "both.ts"
    both.write_bytes(2 * Path(path).read_bytes())
    result = work(str(both), tmp_path / "out")
    assert result.frames == 16
    times = look_at(result.files["overlay"][0]).times
    assert times == sorted(set(times))
    assert any("go back in time" in note for note in result.notes)
    spoilt = spoil_packets(Footage(sounds=(Sound(),)).make(tmp_path), tmp_path / "bad.mp4", (3, 4), stream=1)
    assert work(spoilt, tmp_path / "other").frames == 10


def test_frames_that_do_not_decode_are_counted_and_shift_nothing(tmp_path: Path) -> None:
    footage = Footage(
        name="f.mkv",
        codec="ffv1",
        format="yuv444p",
        frames=20,
        base=MILLISECOND,
        options={"slicecrc": "1", "g": "1"},
    )
    path = spoil_packets(footage.make(tmp_path), tmp_path / "bad.mkv", (4, 5, 11))
    result = work(path, tmp_path / "out")
    right = [time for index, time in enumerate(footage.seconds) if index not in (4, 5, 11)]
    assert (result.frames, result.damaged) == (17, 3)
    assert result.notes[0] == "3 damaged packets left out"
    assert look_at(result.files["overlay"][0]).times == right
    assert [Fraction(row["seconds"]) for row in timeline(result)] == right


def test_frames_are_written_as_pictures(tmp_path: Path) -> None:
    path = Footage(frames=6).make(tmp_path)
    result = work(path, tmp_path / "out", kinds=("frames",))
    assert [os.path.basename(file) for file in result.files["frames"]] == [
        f"{index:06d}.png" for index in range(6)
    ]
    for file, right in zip(result.files["frames"], right_masks(path), strict=True):
        assert np.array_equal(images.read(file).pixels[..., 0], right)
    assert files(tmp_path / "out") == [
        *(f"frames/clip/{index:06d}.png" for index in range(6)),
        "timelines/clip.csv",
    ]


def test_frames_seen_in_tiles_keep_every_pixel(tmp_path: Path) -> None:
    path = Footage(size=(90, 122), format="yuv444p").make(tmp_path)  # three tiles by four
    result = work(path, tmp_path / "out", kinds=("mask",), view=ViewOptions("tile"))
    for mask, right in zip(masks(result.files["mask"][0]), right_masks(path), strict=True):
        np.testing.assert_array_equal(mask, right)
    steadied = work(path, tmp_path / "steady", kinds=("mask",), view=ViewOptions("tile"), smooth=0.2)
    assert steadied.complete


@pytest.mark.parametrize("smooth", [0, 0.2])
def test_frames_go_through_each_member_of_an_ensemble(tmp_path: Path, smooth: float) -> None:
    path = Footage(size=(32, 48), frames=4, format="yuv444p", options=LOSSLESS).make(tmp_path)
    ensemble = Ensemble([FakeBackend(), FakeBackend(fake_spec((64, 96)))])
    found, alone = (
        work(path, tmp_path / name, kinds=("mask",), backend=backend, smooth=smooth)
        for name, backend in (("both", ensemble), ("one", None))
    )
    assert found.complete
    for mask, right in zip(masks(found.files["mask"][0]), masks(alone.files["mask"][0]), strict=True):
        assert (mask != right).mean() < 0.02


def test_the_timeline_says_what_the_masks_show(tmp_path: Path) -> None:
    path = Footage(format="yuv444p", options=LOSSLESS).make(tmp_path)
    result = work(path, tmp_path / "out")
    for row, mask in zip(timeline(result), masks(result.files["mask"][0]), strict=True):
        assert float(row["area_class0"]) == pytest.approx(np.mean(mask) / 255, abs=1e-6)
        assert row["components"] == "1"
        assert 0.5 <= float(row["confidence"]) <= 1
    with Segmenter(
        FakeBackend(fake_spec(classes=3), answer=lambda batch: (batch[..., 0] > 128).astype(np.uint8) * 2)
    ) as segmenter:
        layout = ClipLayout(str(tmp_path / "ids"), KINDS, CODECS["h264"])
        result = segment(Item(path, "clip"), segmenter, layout, VideoOptions(smooth=0.2), "one")
    row = timeline(result)[0]
    assert float(row["area_class0"]) + float(row["area_class2"]) == pytest.approx(1, abs=1e-5)
    assert (float(row["area_class1"]), row["confidence"]) == (0, "")
    assert set(np.unique(masks(result.files["mask"][0])[0])) == {0, 2}


# Range and pace.


def cut(
    footage: Footage, path: str, out: Path, first: int, last: int, /, *, every: int = 1, **options: Any
) -> ClipResult:
    """Segment a range, and check that what comes out are the frames from `first` up to `last` of the source,
    from time 0 on.
    """
    result = work(path, out, every=every, **options)
    times = footage.seconds[first:last:every]
    made = look_at(result.files["overlay"][0])
    assert made.times == [time - times[0] for time in times]
    assert [Fraction(row["seconds"]) for row in timeline(result)] == times, (
        "the timeline keeps the source's clock"
    )
    right = right_masks(path)[first:last:every]
    assert all(
        np.array_equal(one, other) for one, other in zip(masks(result.files["mask"][0]), right, strict=True)
    )
    return result


@pytest.mark.parametrize(
    ("options", "first", "end"),
    [
        ({"start": Position(seconds=Fraction(1, 5))}, 5, 40),
        ({"start": Position(seconds=Fraction(21, 100))}, 6, 40),
        ({"start": Position(frame=7)}, 7, 40),
        ({"end": Position(seconds=Fraction(4, 5))}, 0, 20),
        ({"end": Position(frame=9)}, 0, 9),
        ({"start": Position(frame=7), "end": Position(frame=19)}, 7, 19),
        ({"start": Position(seconds=Fraction(2, 5)), "end": Position(seconds=Fraction(99))}, 10, 40),
        ({"start": Position(seconds=Fraction(2, 5)), "end": Position(frame=9)}, 10, 19),
        ({"max_frames": 5}, 0, 5),
        ({"max_frames": 500}, 0, 40),
        ({"start": Position(frame=33), "max_frames": 5, "every": 2}, 33, 40),
        ({"start": Position(seconds=Fraction(1, 5)), "max_frames": 4, "every": 3}, 5, 16),
    ],
    ids=str,
)
def test_a_range_is_read_and_time_begins_at_zero(
    tmp_path: Path, options: dict[str, Any], first: int, end: int
) -> None:
    track = Sound(end=Fraction(8, 5))
    footage = Footage(
        frames=40,
        base=Fraction(1, 12800),
        sounds=(track,),
        options={"g": "8"},
        chapters=((0, 600, "a"), (600, 1600, "b")),
    )
    path = footage.make(tmp_path)
    if options.get("end") == Position(frame=9) and "start" in options:
        end = 19  # frames are counted from the beginning of what is read
    result = cut(footage, path, tmp_path / "out", first, end, **options)
    found, made = look_at(path), look_at(result.files["overlay"][0])
    begin = footage.seconds[first]
    taken = footage.seconds[first : end : options.get("every", 1)]
    stop = min(taken[-1] + Fraction(options.get("every", 1), 25), Fraction(8, 5))
    heard, kept = (
        next(packets for kind, _, packets in one.others if kind == "audio aac") for one in (found, made)
    )
    length = Fraction(1024, 48000)
    right = [(time - begin, data) for time, data in heard if time + length > begin and time < stop]
    assert [data for _, data in kept] == [data for _, data in right]
    assert max(abs(one - other) for (one, _), (other, _) in zip(kept, right, strict=True)) <= Fraction(
        1, 48000
    )
    for start, finish, title in made.chapters:
        source = {"a": (Fraction(0), Fraction(3, 5)), "b": (Fraction(3, 5), Fraction(8, 5))}[title]
        assert abs(start - max(Fraction(0), source[0] - begin)) <= MILLISECOND
        assert abs(finish - (min(stop, source[1]) - begin)) <= MILLISECOND
    assert made.duration == stop - begin


def test_a_range_in_matroska_begins_at_zero_as_well(tmp_path: Path) -> None:
    footage = Footage(frames=40, base=Fraction(1, 12800), sounds=(Sound(end=Fraction(8, 5)),))
    path = footage.make(tmp_path)
    result = cut(
        footage,
        path,
        tmp_path / "out",
        10,
        30,
        codec="ffv1",
        start=Position(frame=10),
        end=Position(frame=30),
    )
    (_, _, kept) = look_at(result.files["overlay"][0]).others[0]
    (_, _, heard) = look_at(path).others[0]
    first = next(time for time, data in heard if data == kept[0][1])
    assert abs(kept[0][0] - (first - Fraction(2, 5))) <= MILLISECOND


@pytest.mark.parametrize("every", [2, 3, 7])
def test_every_nth_frame_keeps_its_time_and_is_shown_until_the_next(tmp_path: Path, every: int) -> None:
    footage = Footage(frames=20, base=Fraction(1, 12800), sounds=(Sound(end=Fraction(4, 5)),))
    path = footage.make(tmp_path)
    result = cut(footage, path, tmp_path / "out", 0, 20, every=every)
    found, made = look_at(path), look_at(result.files["overlay"][0])
    assert made.duration == found.duration == Fraction(4, 5)
    assert made.others == found.others


@pytest.mark.parametrize(
    "options",
    [
        {"start": Position(seconds=Fraction(9))},
        {"start": Position(frame=10)},
        {"start": Position(frame=5), "end": Position(frame=5)},
        {"start": Position(frame=6), "end": Position(frame=5)},
        {"end": Position(seconds=Fraction(0))},
    ],
    ids=str,
)
def test_an_empty_range_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    path = Footage().make(tmp_path)
    with pytest.raises(VideoError, match="no frame lies in the range") as caught:
        work(path, tmp_path / "out", **options)
    assert "--start" in caught.value.hint
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"max_frames": 0},
        {"smooth": -1.0},
        {"smooth": float("nan")},
        {"quality": 99},
        {"codec": "ffv1", "quality": 3},
    ],
    ids=str,
)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        VideoOptions(**options)


# Interruptions.


def same(one: ClipResult, other: ClipResult) -> None:
    """Two runs ended with the same files: masks to the byte, timestamps, timeline, pictures in their order.

    An overlay that was interrupted has key frames where the other has none: its pictures are nearly equal.
    """
    assert one.complete
    assert other.complete
    assert (one.frames, one.damaged, one.notes) == (other.frames, other.damaged, other.notes)
    for kind in KINDS:
        first, second = (result.files[kind][0] for result in (one, other))
        assert look_at(first) == look_at(second)
        if kind == "mask":
            assert Path(first).read_bytes() == Path(second).read_bytes()
        shots, others = rgb_frames(first), rgb_frames(second)
        assert len(shots) == len(others)
        for index, shot in enumerate(shots):
            if kind == "mask":
                assert np.array_equal(shot, others[index])
                continue
            near = [
                np.abs(shot.astype(int) - others[number]).mean()
                for number in range(max(0, index - 1), min(len(others), index + 2))
            ]
            assert np.abs(shot.astype(int) - others[index]).mean() == min(near) < 8
    assert timeline(one) == timeline(other)


@pytest.fixture
def long_clip(tmp_path: Path) -> str:
    """Not smaller: x264 decides by memory it never set (mbtree) where pictures are narrower than eight blocks
    of 16.
    """
    return Footage(
        frames=47,
        size=(64, 128),
        times=[40 * i + i % 3 for i in range(47)],
        base=MILLISECOND,
        sounds=(Sound(end=Fraction(2)),),
    ).make(tmp_path)


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize("stops", [(1,), (10,), (11,), (25,), (46,), (47,), (3, 14, 15, 33)], ids=str)
def test_a_stopped_run_goes_on_and_ends_equal(
    tmp_path: Path, long_clip: str, stops: tuple[int, ...], smooth: float
) -> None:
    whole = in_parts(long_clip, tmp_path / "whole", smooth=smooth)
    for stop in stops:
        part = in_parts(long_clip, tmp_path / "out", smooth=smooth, stop_at=stop)
        if part.complete:  # what was in flight reached the end
            break
        assert part.frames >= stop, "what is done is kept"
        assert part.files == {}
        assert not files(tmp_path / "out") or all(
            name.startswith("unfinished/clip/") for name in files(tmp_path / "out")
        )
    else:
        rest = in_parts(long_clip, tmp_path / "out", smooth=smooth)
        assert rest.resumed == part.frames
        part = rest
    same(whole, part)
    assert not (tmp_path / "out/unfinished").exists()


def test_a_stopped_run_goes_on_where_the_range_and_pace_say(tmp_path: Path, long_clip: str) -> None:
    options = {"start": Position(frame=3), "end": Position(frame=45), "every": 2}
    whole = in_parts(long_clip, tmp_path / "whole", **options)
    stopped = in_parts(long_clip, tmp_path / "out", stop_at=11, **options)
    assert stopped.frames >= 11
    rest = in_parts(long_clip, tmp_path / "out", **options)
    assert rest.resumed == (0 if stopped.complete else stopped.frames)
    same(whole, rest)
    options = {"start": Position(seconds=Fraction(1, 3)), "max_frames": 25}
    whole = in_parts(long_clip, tmp_path / "whole2", **options)
    in_parts(long_clip, tmp_path / "out2", stop_at=11, **options)
    same(whole, in_parts(long_clip, tmp_path / "out2", **options))


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_wherever_and_however_a_run_ends_the_next_one_goes_on(
    tmp_path: Path, long_clip: str, seed: int, smooth: float
) -> None:
    """Stopped, or torn off by an exception, at any frames, with parts of any length."""
    random = np.random.default_rng(seed)
    whole = work(long_clip, tmp_path / "whole", smooth=smooth, kinds=(*KINDS, "frames"))
    done, out = 0, tmp_path / "out"
    while done < 47:
        options = {
            "smooth": smooth,
            "kinds": (*KINDS, "frames"),
            "part_seconds": float(random.choice([0, 0.02, 10])),
        }
        at = int(random.integers(done + 1, done + 20))
        if random.integers(2):
            result = work(long_clip, out, stop_at=at, **options)
            assert result.complete or result.frames >= at
        else:
            with pytest.raises(KeyboardInterrupt):
                work(long_clip, out, tear_at=min(at, 47), **options)
            result = work(long_clip, out, stop_at=1, **options)
            assert result.complete or options["part_seconds"] or result.resumed >= at
        assert result.resumed >= done
        done = result.frames
    result = result if result.complete else work(long_clip, out, smooth=smooth, kinds=(*KINDS, "frames"))
    same(whole, result)
    for one, other in zip(whole.files["frames"], result.files["frames"], strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_a_part_ends_after_some_seconds_of_work(
    tmp_path: Path, long_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slow network 300 frames are minutes: what a kill may cost is bounded by time."""
    clock = SimpleNamespace(monotonic=partial(next, iter(range(1000))))
    monkeypatch.setattr("unet_batch.run.clip.time", clock)

    def parts(out: Path) -> list[int]:
        return [part["frames"] for part in json.loads(next(out.rglob("journal.json")).read_text())["parts"]]

    with pytest.raises(KeyboardInterrupt):
        work(long_clip, tmp_path / "a", tear_at=20, part_seconds=3)  # a second for each frame
    assert set(parts(tmp_path / "a")) == {3}
    assert sum(parts(tmp_path / "a")) >= 18
    with pytest.raises(KeyboardInterrupt):
        work(long_clip, tmp_path / "b", tear_at=20, part_seconds=100, part_frames=4)
    assert set(parts(tmp_path / "b")) == {4}


def test_parts_of_earlier_releases_are_gone_on_with(tmp_path: Path) -> None:
    """They had 300 frames each; what the journal says of them is the same."""
    path = Footage(frames=320, size=(64, 128)).make(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        work(path, out, tear_at=310, part_seconds=1000)
    journal = out / "unfinished/clip/journal.json"
    found = json.loads(journal.read_text())
    [part] = found["parts"]
    names = {"overlay": "overlay-00000.mp4", "mask": "mask-00000.mkv", "timeline": "timeline-00000.csv"}
    sizes = {kind: [name, (journal.parent / name).stat().st_size] for kind, name in names.items()}
    assert found["fingerprint"] == "one, 300"
    assert part.pop("files") == sizes
    last = [299, 299 * 512]
    assert part == {"frames": 300, "last": last, "damaged": 0, "timed": True, "notes": []}
    rest = work(path, out)
    assert rest.resumed == 300
    same(work(path, tmp_path / "whole"), rest)


def test_parts_of_another_fingerprint_are_made_anew(tmp_path: Path, long_clip: str) -> None:
    in_parts(long_clip, tmp_path / "out", stop_at=21, smooth=0.3)
    assert files(tmp_path / "out/unfinished")
    other = in_parts(long_clip, tmp_path / "out", fingerprint="two")
    assert other.resumed == 0
    same(in_parts(long_clip, tmp_path / "whole"), other)


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize(
    "what", ["part", "first part", "journal", "foreign journal", "timeline", "state", "whole folder"]
)
def test_what_was_torn_in_between_is_made_anew(
    tmp_path: Path, long_clip: str, what: str, smooth: float
) -> None:
    whole = in_parts(long_clip, tmp_path / "whole", smooth=smooth)
    assert in_parts(long_clip, tmp_path / "out", smooth=smooth, stop_at=25).frames >= 25
    folder = tmp_path / "out/unfinished/clip"
    torn = {
        "part": folder / "overlay-00001.mp4",
        "first part": folder / "mask-00000.mkv",
        "journal": folder / "journal.json",
        "timeline": folder / "timeline-00001.csv",
        "state": next(iter(folder.glob("state-*")), folder / "no state"),
    }
    if what == "whole folder":
        shutil.rmtree(folder)
    elif what == "foreign journal":
        (folder / "journal.json").write_text('{"fingerprint": "one, 10", "parts": [{"files": 3}]}')
    elif torn[what].exists():
        torn[what].write_bytes(torn[what].read_bytes()[:-7])
    same(whole, in_parts(long_clip, tmp_path / "out", smooth=smooth))


def test_damage_is_counted_once_however_often_a_run_is_stopped(tmp_path: Path) -> None:
    footage = Footage(name="m.mp4", codec="mpeg4", frames=45, size=(64, 128), options={"g": "16"})
    path = spoil_packets(footage.make(tmp_path), tmp_path / "bad.mp4", (5, 9, 18, 26, 43))
    whole = in_parts(path, tmp_path / "whole")
    assert whole.damaged == 5
    for stop in (3, 12, 22):
        result = in_parts(path, tmp_path / "out", stop_at=stop)
    same(whole, result if result.complete else in_parts(path, tmp_path / "out"))


def test_frames_without_a_time_are_the_same_after_an_interruption(tmp_path: Path) -> None:
    path = Footage(
        name="h.avi", frames=45, size=(64, 128), options={"preset": "medium", "bf": "2", "g": "8"}
    ).make(tmp_path)
    both = tmp_path / "both.ts"  # the clock begins anew: from there on times follow from those before
    both.write_bytes(
        2
        * Path(
            Footage(name="part.ts", frames=35, size=(64, 128), options={"g": "8"}).make(tmp_path)
        ).read_bytes()
    )
    times = [0, 40, 40, *(40 * index for index in range(1, 43))]  # thrice the same: all that follow are late
    footage = Footage(
        name="thrice.mkv",
        codec="ffv1",
        format="yuv444p",
        times=times,
        frames=45,
        base=MILLISECOND,
        size=(64, 128),
    )
    for name, one, stop in (("avi", path, 22), ("ts", str(both), 42), ("mkv", footage.make(tmp_path), 22)):
        whole = in_parts(one, tmp_path / name / "whole")
        assert in_parts(one, tmp_path / name / "out", stop_at=stop).frames >= stop
        same(whole, in_parts(one, tmp_path / name / "out"))


def test_a_clip_does_not_touch_the_parts_of_one_below_it(tmp_path: Path, long_clip: str) -> None:
    """`a.mp4` beside a folder `a` with `b.mp4`: keys `a` and `a/b`."""
    below = in_parts(long_clip, tmp_path / "out", key="a/b", stop_at=21)
    in_parts(long_clip, tmp_path / "out", key="a")
    rest = in_parts(long_clip, tmp_path / "out", key="a/b")
    assert rest.resumed == below.frames > 0


@pytest.mark.slow
@needs_posix
def test_a_killed_run_leaves_what_plays_and_ends_equal(tmp_path: Path) -> None:
    path = Footage(frames=600, size=(64, 128), sounds=(Sound(end=Fraction(24)),)).make(tmp_path)
    out = tmp_path / "out"
    random = np.random.default_rng(5)
    seen: dict[Path, tuple[int, int]] = {}
    for number in range(10):
        said = tmp_path / f"said-{number}.txt"
        said.touch()
        frames, seconds = int(random.integers(1, 60)), float(random.uniform(0, 0.02))
        death = (killed, partial(has_lines, said, frames), seconds)
        child = Forked(*death, segment_clip, path, str(out), 0.3, 10, output=said)
        assert child.wait(PATIENCE) == -signal.SIGKILL
        journal = out / "unfinished/clip/journal.json"
        for part in json.loads(journal.read_text())["parts"] if journal.exists() else []:
            for kind in KINDS:
                file = journal.parent / part["files"][kind][0]
                state = (file.stat().st_size, file.stat().st_mtime_ns)
                if seen.get(file) != state:  # which plays as it did before
                    assert len(look_at(str(file)).times) == part["frames"]
                seen[file] = state
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        layout = ClipLayout(str(out), KINDS, CODECS["h264"])
        result = segment(
            Item(path, "clip"), segmenter, layout, VideoOptions(smooth=0.3, part_frames=10), "one"
        )
    same(in_parts(path, tmp_path / "whole", smooth=0.3), result)
    assert not (out / "unfinished").exists()


# What goes wrong.


def bad_files(folder: Path) -> dict[str, str]:
    made = {}
    good = Path(Footage(name="good.mp4", frames=50).make(folder)).read_bytes()
    for name, data in (("empty", b""), ("text", b"Not a video.\n" * 99), ("cut", good[: len(good) // 2])):
        (folder / f"{name}.mp4").write_bytes(data)
        made[name] = str(folder / f"{name}.mp4")
    made["sound"] = only_sound(folder / "sound.mp4")
    made["cover"] = only_sound(folder / "cover.mp4", cover=True)
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to(folder / "nowhere.mp4")
    return made | {name: str(folder / f"{name}.mp4") for name in ("folder", "link", "absent")}


def test_a_bad_file_is_one_named_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, path in bad_files(tmp_path / "in").items():
        with pytest.raises(VideoError) as caught:
            work(path, tmp_path / "out")
        assert path in caught.value.message, name
        assert caught.value.hint, name
        assert not (tmp_path / "out").exists(), name


def test_a_clip_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = Footage(size=(64, 96)).make(tmp_path)
    with (
        Segmenter(FakeBackend(), max_pixels=1000) as segmenter,
        pytest.raises(VideoError, match="at most 1,000"),
    ):
        segment(
            Item(path, "clip"),
            segmenter,
            ClipLayout(str(tmp_path / "out"), KINDS, CODECS["h264"]),
            VideoOptions(),
            "one",
        )


def test_a_backend_that_fails_keeps_what_is_done(tmp_path: Path, long_clip: str) -> None:
    seen = [0]

    def answer(pictures: np.ndarray) -> np.ndarray:
        seen[0] += len(pictures)
        if seen[0] > 45:
            raise BackendError("fake: the device fell off the bus")
        return pictures[..., 0].copy()

    def run(out: Path, answer: Any) -> ClipResult:
        return in_parts(long_clip, out, backend=FakeBackend(answer=answer, batch_size=1))

    with pytest.raises(BackendError, match="fell off"):
        run(tmp_path / "out", answer)
    assert all(name.startswith("unfinished/clip/") for name in files(tmp_path / "out"))
    rest = run(tmp_path / "out", lambda pictures: pictures[..., 0].copy())
    assert rest.resumed % 10 == 0
    same(run(tmp_path / "whole", lambda pictures: pictures[..., 0].copy()), rest)
    seen[0] = 1000
    with pytest.raises(BackendError):
        run(tmp_path / "early", answer)
    assert files(tmp_path / "early") == []
    assert not (tmp_path / "early/unfinished").exists()


@needs_full_device
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_is_named_and_the_run_goes_on_later(
    tmp_path: Path, long_clip: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.file

    def full(self: Any, what: str, part: int, suffix: str) -> str:
        path = real(self, what, part, suffix)
        if (what, part) == (kind, 2):
            with_full = Path(path)
            with_full.unlink(missing_ok=True)
            with_full.symlink_to("/dev/full")
        return path

    monkeypatch.setattr(Journal, "file", full)
    with pytest.raises(OutputError, match="disk is full") as caught:
        in_parts(long_clip, tmp_path / "out")
    assert "free some space" in caught.value.hint
    monkeypatch.undo()
    for link in (tmp_path / "out").rglob(f"{kind}-00002.*"):
        link.unlink()
    rest = in_parts(long_clip, tmp_path / "out")
    assert rest.resumed in (0, 10, 20)
    same(in_parts(long_clip, tmp_path / "whole"), rest)


def test_a_disk_that_fills_as_the_parts_are_put_together_costs_no_part(
    tmp_path: Path, long_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, *args: Any, **options: Any) -> list[str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(video, "assemble", full)
        with pytest.raises(OutputError, match="disk is full"):
            in_parts(long_clip, tmp_path / "out")
    assert all(name.startswith("unfinished/clip/") for name in files(tmp_path / "out"))
    rest = in_parts(long_clip, tmp_path / "out", smooth=0.0)
    assert rest.resumed == 47
    same(in_parts(long_clip, tmp_path / "whole"), rest)


@pytest.mark.parametrize("smooth", [0.0, 0.3])
def test_an_output_folder_that_vanishes_is_named(tmp_path: Path, long_clip: str, smooth: float) -> None:
    out = tmp_path / "out"
    stops: list[int] = []

    def on_frame(done: int, total: int | None) -> None:
        if done == 15:
            while out.exists():  # others write to it
                shutil.rmtree(out, ignore_errors=True)
            stops.append(done)

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        layout = ClipLayout(str(out), KINDS, CODECS["h264"])
        with pytest.raises(OutputError):
            segment(
                Item(long_clip, "clip"),
                segmenter,
                layout,
                VideoOptions(smooth=smooth, part_frames=10),
                "one",
                on_frame,
            )
    assert stops
    same(in_parts(long_clip, tmp_path / "whole", smooth=smooth), in_parts(long_clip, out, smooth=smooth))


def test_an_output_folder_without_rights_is_named(tmp_path: Path) -> None:
    path = Footage().make(tmp_path)
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(OutputError):
        work(path, tmp_path / "out")


def test_an_encoder_that_refuses_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = Footage().make(tmp_path)
    broken = replace(CODECS["h264"], options={"preset": "no such preset"})
    with Segmenter(FakeBackend()) as segmenter, pytest.raises(VideoError, match="cannot be encoded"):
        segment(
            Item(path, "clip"),
            segmenter,
            ClipLayout(str(tmp_path / "out"), KINDS, broken),
            VideoOptions(),
            "one",
        )
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("broken", ["suffix", "size"])
def test_what_fails_as_a_file_is_closed_is_found_before_the_first_frame(tmp_path: Path, broken: str) -> None:
    """An encoder or a container that refuses costs no hour of work."""
    seen = []

    def answer(pictures: np.ndarray) -> np.ndarray:
        seen.append(len(pictures))
        return pictures[..., 0].copy()

    path = Footage(size=(33, 47), format="yuv444p").make(tmp_path)
    codec = replace(CODECS["vp9"], suffix=".mov") if broken == "suffix" else CODECS["h264"]
    codec = replace(codec, formats=("yuv420p", "yuv420p")) if broken == "size" else codec
    layout = ClipLayout(str(tmp_path / "out"), KINDS, codec)
    with Segmenter(FakeBackend(answer=answer)) as segmenter, pytest.raises(VideoError, match="cannot be"):
        segment(Item(path, "clip"), segmenter, layout, VideoOptions(), "one")
    assert not seen
    assert files(tmp_path / "out") == []


def test_the_first_interrupt_leaves_whole_parts(tmp_path: Path, long_clip: str) -> None:
    def on_frame(done: int, total: int | None) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        layout = ClipLayout(str(tmp_path / "out"), KINDS, CODECS["h264"])
        with pytest.raises(KeyboardInterrupt):
            segment(Item(long_clip, "clip"), segmenter, layout, VideoOptions(part_frames=10), "one", on_frame)
    same(in_parts(long_clip, tmp_path / "whole"), in_parts(long_clip, tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(("frames", "smooth"), [(4_000, 0.0), (3_500, 0.3)])
def test_memory_stays_flat(tmp_path: Path, frames: int, smooth: float) -> None:
    """Two hours at 30 frames a second are 216,000 frames: 450 bytes kept of each would be 97 MB.

    Here are tiny ones; the first 1,500 fill all pools, but for 150 bytes a frame.
    """
    pictures = [scene(index, (32, 48)) for index in range(10)] * 50
    path = repeat(Footage(frames=500, pictures=pictures).make(tmp_path), frames // 500)
    process, sizes = psutil.Process(), {}

    def on_frame(done: int, total: int | None) -> None:
        if done % 500 == 0:
            gc.collect()
            sizes[done] = process.memory_info().rss

    with Segmenter(FakeBackend(batch_size=16), workers=1) as segmenter:
        layout = ClipLayout(str(tmp_path / "out"), KINDS, CODECS["h264"])
        result = segment(Item(path, "clip"), segmenter, layout, VideoOptions(smooth=smooth), "one", on_frame)
    assert result.frames == frames
    grown = max(size for done, size in sizes.items() if done > 1500) - sizes[1500]
    limit = 450 * (frames - 1500)
    assert grown < limit, f"{grown / 2**20:.1f} MiB more than after 1,500 frames, at most {limit / 2**20:.1f}"
