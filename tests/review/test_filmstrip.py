"""Clips on the page: their timelines, and some of their frames."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.footage import Footage
from tests.helpers.models import fake_file
from unet_batch.inference.segmenter import Segmenter
from unet_batch.review.filmstrip import FRAMES, POINTS, read_timeline
from unet_batch.review.report import write_report
from unet_batch.run.execute import execute
from unet_batch.run.options import Position, RunOptions, VideoOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend


def segment(clip: Path, out: Path, video: VideoOptions) -> None:
    plan = prepare(RunOptions((str(clip),), str(out), ("mask",), video=video))
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        assert execute(plan, segmenter).status == "done"


def strip_of(out: Path) -> dict[str, Any]:
    [path] = (out / "report/clips").iterdir()
    values: dict[str, Any] = json.loads(path.read_text().split(",", 1)[1].rstrip(")\n"))
    return values


def decode(data: str, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.array(image.convert(mode))


@pytest.mark.parametrize("start", [None, 20])
def test_frames_and_their_masks_belong_together(tmp_path: Path, start: int | None) -> None:
    Footage("a.mp4", frames=40).make(tmp_path)
    video = VideoOptions(start=None if start is None else Position(frame=start))
    segment(tmp_path / "a.mp4", tmp_path / "out", video)
    made = write_report(str(tmp_path / "out"))
    assert (made.items, made.gone) == (1, 0)
    strip = strip_of(tmp_path / "out")
    assert len(strip["frames"]) == FRAMES
    assert len(strip["columns"]["seconds"]) == 40 - (start or 0)
    for frame in strip["frames"]:
        photo, mask = (
            decode(data, mode) for data, mode in zip(frame["thumbnails"], ("L", "RGBA"), strict=True)
        )
        assert photo.shape == mask.shape[:2]
        bright, marked = photo > 127, mask[..., 3] > 127
        assert np.abs(np.argwhere(bright).mean(0) - np.argwhere(marked).mean(0)).max() < 1
    middles = [
        np.argwhere(decode(frame["thumbnails"][1], "RGBA")[..., 3]).mean(0) for frame in strip["frames"]
    ]
    assert len({tuple(middle) for middle in middles}) > FRAMES // 2, "the box moves"


def test_a_clip_that_is_gone_shows_its_masks(tmp_path: Path) -> None:
    Footage("a.mp4", frames=5).make(tmp_path)
    segment(tmp_path / "a.mp4", tmp_path / "out", VideoOptions())
    (tmp_path / "a.mp4").unlink()
    assert write_report(str(tmp_path / "out")).gone == 1
    frames = strip_of(tmp_path / "out")["frames"]
    assert all(not photo and mask for photo, mask in (frame["thumbnails"] for frame in frames))


def test_long_timelines_become_means_and_damaged_ones_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{number},{number * 512},512,{number / 25:.6f},{number % 2},3," for number in range(6000)]
    path.write_text("\n".join(["frame,pts,duration,seconds,area_car,components,confidence", *rows]) + "\n")
    columns, chosen = read_timeline(str(path))
    assert len(columns["seconds"]) == POINTS
    assert set(columns["area_car"]) == {0.5}
    assert set(columns["confidence"]) == {None}
    assert [int(row["frame"]) for row in chosen] == [250 + 500 * number for number in range(FRAMES)]
    path.write_text("frame,pts\nx")
    assert read_timeline(str(path)) == ({}, [])
    assert read_timeline(str(tmp_path / "absent.csv")) == ({}, [])
