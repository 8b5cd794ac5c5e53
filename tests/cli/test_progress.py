"""The time that is left over all pictures and clips is estimated from what took how long so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.footage import Footage
from unet_batch.cli.progress import RunProgress, TimeLeft
from unet_batch.cli.screen import Screen
from unet_batch.run.options import RunOptions, VideoOptions
from unet_batch.run.plan import prepare
from unet_batch.types import Item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def start(folder: Path, **options: Any) -> tuple[TimeLeft, dict[str, Item]]:
    patience = options.pop("patience", 1.0)
    plan = prepare(RunOptions((str(folder),), save=("mask",), **options))
    return TimeLeft(plan, patience), {item.key: item for item in plan.todo}


def test_pictures_and_clips_are_one_number(tmp_path: Path, clock: list[float]) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    Footage("a.mp4", frames=10).make(tmp_path)
    Footage("b.mp4", frames=30).make(tmp_path)
    left, items = start(tmp_path)
    assert str(left) == "", "nothing has been measured"
    clock[0] = 2.0
    left.advance(items["1"])
    assert left.seconds == 2 + 40 * 2, "a frame is expected to take as long as a picture"
    clock[0] = 4.0
    left.advance(items["2"])
    clock[0] = 5.0
    left.frame(items["a"], 2, 10)
    left.frame(items["a"], 3, 10)
    assert left.seconds == (7 + 30) * 1 / 2
    assert str(left) == "18.5 s left"
    clock[0] = 9.0
    left.advance(items["a"])
    clock[0] = 14.0
    for done in range(11, 19):  # ten frames were there from an earlier run
        left.frame(items["b"], done, 30)
    assert left.seconds == 12 * 10 / 10
    left.advance(items["b"])
    assert left.seconds == 0


def test_clips_whose_headers_are_not_read_have_as_many_frames_a_byte(
    tmp_path: Path, clock: list[float]
) -> None:
    whole = Path(Footage("a.mp4", frames=10).make(tmp_path))
    (tmp_path / "b.mp4").write_bytes(3 * whole.read_bytes())
    (tmp_path / "c.mp4").write_bytes(b"\0" * 2 * whole.stat().st_size)  # whose header tells nothing
    left, _ = start(tmp_path)
    assert left.frames == {"a": 10, "b": 10, "c": 10}
    (tmp_path / "c.mp4").unlink()
    left, items = start(tmp_path, patience=-1.0)
    assert left.frames == {"a": None, "b": None}
    clock[0] = 1.0
    left.frame(items["a"], 1, 10)
    assert str(left) == "", "of one clip nobody knows how long it is"


def test_what_is_not_taken_of_a_clip_is_not_counted(tmp_path: Path, clock: list[float]) -> None:
    for name in ("a.mp4", "b.mp4"):
        Footage(name, frames=12).make(tmp_path)
    left, items = start(tmp_path, video=VideoOptions(every=3))
    clock[0] = 2.0
    left.frame(items["a"], 1, 4)
    assert left.seconds == (3 + 4) * 2


def test_a_camera_has_no_end(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / "1.png").touch()
    plan = prepare(RunOptions((str(tmp_path), "rtsp://camera/1"), save=("mask",), output="out"))
    left = TimeLeft(plan)
    clock[0] = 1.0
    left.advance(plan.todo[0])
    assert str(left) == ""


def test_the_speed_of_the_pictures_goes_when_a_clip_begins(tmp_path: Path) -> None:
    for name in ("1.png", "2.mp4", "3.mp4"):
        (tmp_path / name).touch()
    progress = RunProgress(Screen(quiet=False, verbose=False, to_stderr=False))
    progress.start(prepare(RunOptions((str(tmp_path),), save=("mask",), output="out")))
    progress.live = True
    first, second = progress.bar.tasks
    picture, clip, _ = (
        Item(str(tmp_path / name), name, name != "1.png") for name in ("1.png", "2.mp4", "3.mp4")
    )
    progress.advance(picture, None)
    assert first.fields["speed"].endswith("/s")
    progress.frame(clip, 1, 10)
    assert first.fields["speed"] == ""
    assert second.fields["speed"].endswith(" frames/s")
