"""`prepare` and `execute` on clips, alone and among pictures."""

from __future__ import annotations

import dataclasses
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.footage import Footage
from tests.helpers.observers import observing
from unet_batch.errors import BackendError, OutputError, UsageError
from unet_batch.files.outputs import UNFINISHED
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media.video import CODECS, encoder_problem
from unet_batch.run import clip as clips
from unet_batch.run.execute import execute
from unet_batch.run.manifest import Manifest
from unet_batch.run.merge import merge
from unet_batch.run.observe import Stop
from unet_batch.run.options import Position, RunOptions, VideoOptions
from unet_batch.run.plan import prepare, resume
from unet_batch.run.recipe import recipe_of
from unet_batch.run.report import RunReport
from unet_batch.run.shard import Shard
from unet_batch.testing import FakeBackend
from unet_batch.types import Item, Prediction

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two clips, one picture, and a text that is called like a clip."""
    folder = tmp_path / "trip"
    (folder / "sub").mkdir(parents=True)
    Footage("a.mp4", frames=12).make(folder)
    Footage("b.mkv", frames=5).make(folder / "sub")
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(folder / "a.png")
    (folder / "notes.mov").write_text("not a clip")
    return folder


def segment(
    *sources: Path,
    backend: FakeBackend | None = None,
    stop: Stop | None = None,
    on_frame: Any = lambda item, done, total: None,
    **options: Any,
) -> RunReport:
    options.setdefault("save", ("mask", "overlay"))
    plan = prepare(RunOptions(tuple(map(str, sources)), **options))
    with Segmenter(backend or FakeBackend(), workers=2) as segmenter:
        return execute(plan, segmenter, observing(frame=on_frame), stop)


def files(folder: Path) -> dict[str, bytes]:
    """What a person sees, but for what tells of time."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.parent != folder}


def test_clips_beside_pictures(mixed: Path) -> None:
    report = segment(mixed)
    out = mixed.parent / "trip-segmented"
    assert sorted(files(out)) == [
        *("masks/a.mp4.mkv", "masks/a.png.png", "masks/sub/b.mkv"),
        *("overlays/a.mp4.mp4", "overlays/a.png.jpg", "overlays/sub/b.mp4"),
        *("timelines/a.mp4.csv", "timelines/sub/b.csv"),
    ]
    assert (report.status, report.found, report.done, report.failed, report.frames) == (
        "failures",
        4,
        3,
        1,
        17,
    )
    assert [(os.path.basename(clip["path"]), clip["frames"]) for clip in report.clips] == [
        ("a.mp4", 12),
        ("b.mkv", 5),
    ]
    [failure] = report.failures
    assert (failure.stage, failure.error) == ("clip", "VideoError")
    assert failure.path == str(mixed / "notes.mov")
    assert failure.hint
    assert report.encoder["name"] == "libx264"
    assert "NVENC" in report.encoder["reason"]
    assert report.floor_seconds > 0
    saved = json.loads((out / "run.json").read_text())
    assert saved["frames"] == 17
    assert not (out / UNFINISHED).exists()


def test_a_second_run_does_what_is_left(mixed: Path) -> None:
    segment(mixed)
    out = mixed.parent / "trip-segmented"
    before = files(out)
    report = segment(mixed)
    assert (report.done, report.skipped, report.failed) == (0, 3, 1)  # what failed is tried again
    assert files(out) == before
    (out / "overlays/a.mp4.mp4").unlink()
    with (out / "masks/sub/b.mkv").open("r+b") as file:
        file.truncate(100)
    report = segment(mixed)
    assert (report.done, report.skipped, report.states["lost"]) == (2, 1, 2)
    assert files(out).keys() == before.keys()
    os.utime(mixed / "a.mp4", (1, 1))
    assert segment(mixed).states["changed"] == 1


@pytest.mark.parametrize(
    "change",
    [
        *(
            VideoOptions(codec="vp9"),
            VideoOptions(quality=30),
            VideoOptions(smooth=0.2),
            VideoOptions(every=2),
        ),
        *(
            VideoOptions(start=Position(Fraction(1, 10))),
            VideoOptions(end=Position(frame=4)),
            VideoOptions(max_frames=3),
        ),
    ],
)
def test_other_options_make_a_clip_anew_but_no_picture(mixed: Path, change: VideoOptions) -> None:
    (mixed / "notes.mov").unlink()
    segment(mixed)
    report = segment(mixed, video=change)
    assert (report.done, report.skipped, report.states) == (2, 1, {"more": 2, "done": 1})
    assert segment(mixed, video=change).skipped == 3


def test_another_output_is_added(mixed: Path) -> None:
    (mixed / "notes.mov").unlink()
    segment(mixed, save=("mask",))
    out = mixed.parent / "trip-segmented"
    assert "overlays/a.mp4.mp4" not in files(out)
    report = segment(mixed, save=("mask", "overlay", "frames"))
    assert report.done == 3
    frames = [name for name in files(out) if name.startswith("frames/a.mp4/")]
    assert sorted(frames) == [f"frames/a.mp4/{index:06d}.png" for index in range(12)]
    (out / "frames/a.mp4/000003.png").unlink()
    assert segment(mixed, save=("mask", "overlay", "frames")).states["lost"] == 1


@pytest.mark.parametrize(
    ("names", "save", "message"),
    [
        (("a.mp4",), ("palette", "prob"), "none of it can be made of a clip"),
        (("a.png",), ("frames",), "none of it can be made of a picture"),
        (("a.png", "a.mp4"), ("palette",), "of a clip; the sources hold 1"),
    ],
)
def test_outputs_that_cannot_be_made_are_refused(mixed: Path, names: Any, save: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        segment(*(mixed / name for name in names), save=save, output=str(mixed.parent / "out"))
    assert "add mask" in caught.value.hint


def test_stopped_within_a_clip_the_next_run_goes_on(mixed: Path) -> None:
    (mixed / "notes.mov").unlink()
    Footage("a.mp4", frames=150).make(mixed)
    stop, short = Stop(), VideoOptions(part_frames=4)

    def on_frame(item: Item, done: int, total: int | None) -> None:
        assert total in (150, 5)
        if item.key == "a.mp4" and done == 3:
            stop("SIGTERM")

    report = segment(mixed, stop=stop, on_frame=on_frame, video=short)
    assert (report.status, report.exit_code, report.left) == ("interrupted", 143, 2)
    assert (report.done, report.clips[0]["complete"]) == (1, False)
    done = report.clips[0]["frames"]
    assert 3 <= done < 150
    out = mixed.parent / "trip-segmented"
    assert list((out / UNFINISHED / "a.mp4").glob("mask-*.mkv"))
    report = segment(mixed, video=short)
    assert (report.status, report.done, report.clips[0]["resumed"]) == ("done", 2, done)
    once = mixed.parent / "once"
    segment(mixed, output=str(once), video=short)
    resumed, clean = files(out), files(once)
    assert resumed["timelines/a.mp4.csv"] == clean["timelines/a.mp4.csv"]
    assert resumed.keys() == clean.keys()


def test_a_failing_network_costs_the_clip(mixed: Path) -> None:
    calls = []

    def answer(pictures: np.ndarray) -> np.ndarray:
        calls.append(len(pictures))
        if len(calls) > 2:
            raise BackendError("the device is gone")
        return pictures[..., 0]

    report = segment(mixed / "a.mp4", mixed / "sub", backend=FakeBackend(answer=answer, batch_size=1))
    assert (report.failed, report.status) == (2, "failures")
    assert {failure.message for failure in report.failures} == {"the device is gone"}


@pytest.mark.parametrize("smooth", [0, 0.2])
def test_what_the_network_saw_is_let_go_before_a_frame_is_drawn(
    mixed: Path, smooth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = Segmenter.result, []

    def result(self: Segmenter, prediction: Prediction, *style: Any) -> Any:
        drawn.append(prediction.frame.tensors)
        return real(self, prediction, *style)

    monkeypatch.setattr(Segmenter, "result", result)
    segment(mixed / "sub", video=VideoOptions(smooth=smooth))
    assert drawn == [()] * 5


def test_errors_limit_clips_too(mixed: Path) -> None:
    for name in ("0.mp4", "1.mp4"):
        (mixed / name).write_bytes(b"")
    report = segment(mixed, max_errors=2)
    assert (report.status, report.failed, report.left) == ("stopped", 2, 3)


def test_a_bug_in_a_clip_is_a_failure_that_says_so(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(clips, "segment", broken)
    report = segment(mixed / "a.mp4")
    assert report.failures[0].message.endswith("a.mp4: ZeroDivisionError: oh")
    assert "report" in report.failures[0].hint


def test_a_folder_that_vanishes_after_the_last_frame_is_named(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", clips.segment

    def pulled(*args: Any, **options: Any) -> Any:
        result = whole(*args, **options)
        out.rename(tmp_path / "unplugged")
        return result

    monkeypatch.setattr(clips, "segment", pulled)
    with pytest.raises(OutputError, match="vanished while the run wrote to it"):
        segment(mixed / "a.mp4", output=str(out))


def test_the_names_of_outputs_tell_what_decides_them() -> None:
    assert VideoOptions().names(("overlay", "prob", "mask")) == (
        "clip timeline",
        "clip mask",
        "clip overlay h264",
    )
    options = VideoOptions("vp9", 31, Position(Fraction(3, 2)), Position(frame=90), 2, 30, 0.25)
    assert options.names(("overlay",)) == (
        "clip timeline start=3/2 end=90f every=2 max=30 smooth=0.25",
        "clip overlay vp9 quality=31 start=3/2 end=90f every=2 max=30 smooth=0.25",
    )
    # Whatever is added to the options has to change the names, or be listed here.
    assert {field.name for field in dataclasses.fields(VideoOptions)} == {
        *("codec", "quality", "start", "end", "every", "max_frames", "smooth"),
        *("hardware", "latest"),  # change nothing of a file's frames
        *("part_frames", "part_seconds"),  # the same frames, in parts of another length
    }


def test_a_dry_run_names_the_outputs_of_a_clip(mixed: Path) -> None:
    plan = prepare(RunOptions((str(mixed / "a.mp4"),), save=("mask", "frames")))
    with Segmenter(FakeBackend()) as segmenter:
        plan = resume(plan, recipe_of(segmenter))
    out = plan.outputs.folder
    assert plan.paths(plan.todo[0]) == [
        os.path.join(out, *parts) for parts in (("masks", "a.mkv"), ("frames", "a"), ("timelines", "a.csv"))
    ]
    assert not os.path.exists(out)


def test_shards_share_the_clips_and_are_joined(mixed: Path) -> None:
    (mixed / "notes.mov").unlink()
    reports = [segment(mixed, shard=Shard(number, 3)) for number in (1, 2, 3)]
    assert sum(report.done for report in reports) == 3
    joined = merge(str(mixed.parent / "trip-segmented"))
    assert (joined.done, joined.frames, joined.status) == (3, 17, "done")
    assert {os.path.basename(clip["path"]) for clip in joined.clips} == {"a.mp4", "b.mkv"}
    assert joined.encoder["name"] == "libx264"
    assert segment(mixed).skipped == 3


def test_touched_clips_are_not_made_anew_where_contents_count(mixed: Path) -> None:
    segment(mixed / "a.mp4", hash_sources=True)
    os.utime(mixed / "a.mp4", (1, 1))
    report = segment(mixed / "a.mp4", hash_sources=True)
    assert (report.done, report.skipped, report.states) == (0, 1, {"touched": 1})


def test_an_encoder_that_does_not_work_is_told_before_the_pictures(mixed: Path) -> None:
    if not encoder_problem(CODECS["h264_nvenc"]):
        pytest.skip("NVENC works here")
    with pytest.raises(UsageError, match="h264_nvenc does not work here"):
        segment(mixed, video=VideoOptions(codec="h264_nvenc"))
    assert not list((mixed.parent / "trip-segmented").glob("masks/*"))


def test_what_is_replaced_is_not_promised_any_more(mixed: Path) -> None:
    """Both runs write masks/a.mkv; sizes alone might not tell them apart."""
    out = mixed.parent / "a-out"
    segment(mixed / "a.mp4", output=str(out), save=("mask",))
    segment(mixed / "a.mp4", output=str(out), save=("mask",), video=VideoOptions(max_frames=3))
    assert Manifest(str(out)).records["a"].outputs.keys() == {"clip timeline max=3", "clip mask max=3"}
    assert segment(mixed / "a.mp4", output=str(out), save=("mask",)).states == {"more": 1}


def test_files_that_are_only_called_like_videos_are_passed_over(tmp_path: Path) -> None:
    """TypeScript beside a photo; a stream of MPEG beside it is a clip."""
    folder = tmp_path / "site"
    (folder / "node_modules").mkdir(parents=True)
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(folder / "a.png")
    for name in ("index.ts", "module.mts", "node_modules/types.d.ts"):
        (folder / name).write_text("export const wheels: number = 4;\n")
    Footage("b.ts").make(folder)
    plan = prepare(RunOptions((str(folder),)))
    assert [item.key for item in plan.items] == ["a", "b"]
    assert plan.sources.ignored == {".ts": 2, ".mts": 1}
    report = segment(folder)
    assert (report.status, report.done, report.failed) == ("done", 2, 0)


def test_a_file_that_is_named_and_no_video_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "index.ts"
    path.write_text("export const wheels: number = 4;\n")
    [failure] = segment(path, output=str(tmp_path / "out")).failures
    assert failure.message == f"{path}: called like a video, but it holds something else"
    assert failure.hint == "leave it out"
