"""Parts are concatenated into a file that players know, or the error is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.clips import (
    assemble_whole,
    boxes,
    copy_clip,
    seconds,
)
from tests.helpers.footage import Footage, Sound
from tests.helpers.systems import needs_full_device
from unet_batch.errors import OutputError, VideoError
from unet_batch.media.video import CODECS, Reader, assemble

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_the_index_comes_first(tmp_path: Path) -> None:
    """So that a browser plays before it has loaded everything."""
    target, _ = copy_clip(Footage(sounds=(Sound(),)).make(tmp_path), tmp_path / "out")
    names = boxes(target)
    assert names.index("moov") < names.index("mdat")
    assert "moof" not in names


def test_h265_has_the_name_that_every_player_knows(tmp_path: Path) -> None:
    target, _ = copy_clip(Footage(size=(64, 96)).make(tmp_path), tmp_path / "out", CODECS["h265"])
    assert b"hvc1" in Path(target).read_bytes()
    assert len(seconds(target)) == 10


@needs_full_device
def test_a_disk_that_fills_while_the_parts_are_put_together_is_named(tmp_path: Path) -> None:
    path = Footage(frames=40, size=(128, 192), sounds=(Sound(),)).make(tmp_path)
    target = tmp_path / "whole.mp4"
    target.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="disk is full"):
        assemble_whole(path, str(target))


def test_parts_that_do_not_fit_the_record_are_named(tmp_path: Path) -> None:
    path = Footage().make(tmp_path)
    with Reader(path) as reader:
        times = [(decoded.pts, decoded.duration) for decoded in reader.frames()]
        for wrong, word in ((times[:-1], "more"), ([*times, (99, 1)], "fewer")):
            with pytest.raises(VideoError, match=f"{word} frames than were recorded"):
                assemble(str(tmp_path / "out.mp4"), [path], wrong, reader.clip, sound=True)
        Path(path).write_bytes(b"")
        with pytest.raises(VideoError, match="empty"):
            assemble(str(tmp_path / "out.mp4"), [path], times, reader.clip, sound=True)
