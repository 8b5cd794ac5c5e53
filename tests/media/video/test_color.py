"""Colours of clips are right, and come back as they were."""

from __future__ import annotations

from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from tests.helpers.clips import (
    colours,
    copy_clip,
    rgb,
    write_frame,
)
from tests.helpers.footage import Footage
from unet_batch.media.video import CODECS, ColorInfo, Reader

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


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


@pytest.mark.parametrize("span", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", KR_KB, ids=["709", "601-625", "601-525", "2020"])
def test_colours_are_right_and_come_back(tmp_path: Path, matrix: int, span: int) -> None:
    """Right by the formulas, and within two levels of the source after RGB and a lossless codec."""
    picture = colours()
    planes = yuv(picture, matrix, span)
    path = write_frame(
        tmp_path / "source.mkv", av.VideoFrame.from_ndarray(planes, "yuv444p"), (matrix, span, 1, 1)
    )
    assert np.abs(rgb(path)[0].astype(int) - picture).max() <= 3, (
        "8 bits of Y'CbCr know RGB to about 2 levels"
    )
    target, _ = copy_clip(path, tmp_path / "out", CODECS["ffv1"])
    with av.open(target) as container:
        (frame,) = container.decode(video=0)
        assert (int(frame.colorspace), int(frame.color_range)) == (matrix, span)
        back = frame.to_ndarray().astype(int)
    assert np.abs(back - planes).max() <= 2


@pytest.mark.parametrize("span", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6, 9], ids=["709", "601", "2020"])
def test_subsampled_colours_come_back_as_they_were_shown(tmp_path: Path, matrix: int, span: int) -> None:
    """4:2:0, written as 4:4:4, is shown within two levels; so is luma, where no colour is clipped."""
    grid = np.mgrid[0:48, 0:64]
    picture = np.stack([64 + grid[0] * 2, 80 + grid[1] * 2, 200 - grid[0] - grid[1]], -1).astype(np.uint8)
    planes = yuv(picture, matrix, span)
    halves = [plane.reshape(24, 2, 32, 2).mean((1, 3)).round().astype(np.uint8) for plane in planes[1:]]
    stacked = np.concatenate([planes[0].reshape(-1), *(half.reshape(-1) for half in halves)]).reshape(72, 64)
    path = write_frame(
        tmp_path / "source.mkv", av.VideoFrame.from_ndarray(stacked, "yuv420p"), (matrix, span, 1, 1)
    )
    assert np.abs(rgb(path)[0].astype(int) - picture).max() <= 5
    target, _ = copy_clip(path, tmp_path / "out", CODECS["ffv1"])
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
    path = write_frame(tmp_path / "grey.mkv", av.VideoFrame.from_ndarray(ramp, "gray"), (2, 0, 2, 2))
    seen = rgb(path)[0]
    assert (seen[..., 0] == seen[..., 1]).all()
    target, _ = copy_clip(path, tmp_path / "out", CODECS["ffv1"])
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
    path = write_frame(
        tmp_path / "source.mkv",
        av.VideoFrame.from_ndarray(yuv(picture, marks[0], marks[1]), "yuv444p"),
        marks,
    )
    with Reader(path) as reader:
        assert reader.clip.color == ColorInfo(*marks)
    target, _ = copy_clip(path, tmp_path / "out", CODECS[name])
    # ProRes has no mark for full range, and is limited
    right = marks if name != "prores" else (marks[0], 1, *marks[2:])
    with Reader(target) as reader:
        assert reader.clip.color == ColorInfo(*right)
        (frame,) = reader.frames()
        seen = reader.rgb(frame)
    centres = np.s_[3::8, 3::8]  # between the blocks codecs blur
    assert np.abs(seen[centres].astype(int) - picture[centres]).mean() < 25, "not of another matrix or range"
    assert np.abs(seen[centres].astype(int).mean() - picture[centres].mean()) < 4
