"""The sections of `scripts.gpu_check` on video, with the processor's codecs, on a small clip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.gpu_check import clips
from scripts.gpu_check.sections import Skip
from unet_batch import gpu
from unet_batch.errors import BackendError, VideoError
from unet_batch.media import video
from unet_batch.testing import FakeBackend, fake_spec


def nothing() -> None:
    """A `save`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Half a second of 96x128, three times in a row: 36 frames."""
    path = str(tmp_path_factory.mktemp("clips"))
    data: dict[str, Any] = {}
    clips.clip_drawn(data, nothing, path, seconds=0.48, copies=3, size=[96, 128])
    assert data["frames"] == 36
    return path


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver decodes nothing."""
    real = video.Reader

    def reader(path: str, *, hardware: str | None = None, **options: Any) -> video.Reader:
        if hardware is not None:
            raise VideoError(f"{path}: no such device")
        return real(path, **options)

    monkeypatch.setattr(video, "Reader", reader)


def test_the_clip_is_as_long_as_its_copies(folder: str) -> None:
    with video.Reader(clips._clip(folder)) as reader:
        shots = list(reader.frames())
        assert [shot.pts * reader.clip.time_base * 25 for shot in shots] == list(range(36))
        np.testing.assert_array_equal(reader.rgb(shots[5]), reader.rgb(shots[5 + 12]))
        assert reader.notes == []


def test_without_a_clip_a_section_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="no clip was drawn"):
        clips.clip_encoding({}, nothing, str(tmp_path), codecs=("h264",), frames=5, rounds=1)


def test_decoders_are_compared(folder: str) -> None:
    data: dict[str, Any] = {}
    clips.clip_decoding(data, nothing, folder, hardware=None, rounds=2, compared=7)
    assert data["compared"] == {"frames": 7, "other_times": 0, "largest": 0, "mean": 0.0}
    assert [(entry["frames"], entry["damaged"], entry["format"]) for entry in data["decoders"]] == [
        (36, 0, "yuv420p")
    ] * 2
    assert len(data["decoders"][1]["frames_per_s"]["rounds"]) == 2


def test_a_device_that_does_not_decode_is_a_skip_that_says_why(folder: str, no_device: None) -> None:
    data: dict[str, Any] = {}
    with pytest.raises(Skip, match=r"^cuda does not decode here: no such device$"):
        clips.clip_decoding(data, nothing, folder, hardware="cuda", rounds=1, compared=7)
    assert data["decoders"][1]["reason"] == "cuda does not decode here: no such device"
    assert data["decoders"][0]["frames"] == 36


def test_a_clip_that_nobody_decodes_is_no_skip(folder: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    with pytest.raises(VideoError):
        clips.clip_decoding({}, nothing, str(tmp_path), hardware="cuda", rounds=1, compared=7)


def off_by(levels: int) -> Any:
    def rgb(self: video.Reader, shot: video.DecodedFrame, real: Any = video.Reader.rgb) -> Any:
        return np.clip(real(self, shot).astype(np.int16) + levels * getattr(self, "odd", 0), 0, 255).astype(
            np.uint8
        )

    return rgb


@pytest.mark.parametrize(("levels", "wrong"), [(2, False), (9, True)])
def test_other_pictures_are_found(
    folder: str, monkeypatch: pytest.MonkeyPatch, levels: int, wrong: bool
) -> None:
    real = clips._open

    def opened(path: str, hardware: str | None) -> video.Reader:
        reader = real(path, None)
        setattr(reader, "odd", int(hardware is not None))  # noqa: B010 - mypy knows no such attribute
        return reader

    monkeypatch.setattr(clips, "_open", opened)
    monkeypatch.setattr(video.Reader, "rgb", off_by(levels))
    data: dict[str, Any] = {}
    if wrong:
        with pytest.raises(BackendError, match="pictures differ by up to 9 levels, 2 are allowed"):
            clips.clip_decoding(data, nothing, folder, hardware="cuda", rounds=1, compared=3)
    else:
        clips.clip_decoding(data, nothing, folder, hardware="cuda", rounds=1, compared=3)
    assert data["compared"]["largest"] == levels


def test_lost_frames_are_found(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = clips._decode
    monkeypatch.setattr(
        clips, "_decode", lambda path, hardware: (real(path, None)[0] - (hardware is not None), 0, 1.0)
    )
    monkeypatch.setattr(clips, "_open", lambda path, hardware: video.Reader(path))
    with pytest.raises(BackendError, match="cuda: 35 frames, 0 damaged"):
        clips.clip_decoding({}, nothing, folder, hardware="cuda", rounds=1, compared=3)


def test_encoders_are_compared_and_read_back(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        video, "encoder_problem", lambda codec: "no NVENC" if codec.encoder == "h264_nvenc" else ""
    )
    data: dict[str, Any] = {}
    clips.clip_encoding(data, nothing, folder, codecs=("h264", "h264_nvenc", "ffv1"), frames=10, rounds=2)
    lossy, missing, lossless = data["encoders"]
    assert missing == {
        "codec": "h264_nvenc",
        "encoder": "h264_nvenc",
        "reason": "h264_nvenc does not work here: no NVENC",
    }
    for entry in (lossy, lossless):
        assert (entry["frames"], entry["read_back"], entry["other_times"]) == (10, 10, 0)
    assert 0 < lossless["mean"] < lossy["mean"] < clips._CODED


def test_an_encoder_that_spoils_pictures_is_found(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = video.make_frame
    monkeypatch.setattr(video, "make_frame", lambda pixels, *more: real(255 - pixels, *more))
    with pytest.raises(BackendError, match=r"h264: pictures are off by \d+\.\d levels"):
        clips.clip_encoding({}, nothing, folder, codecs=("h264",), frames=5, rounds=1)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBackend]:
    """Instead of the best one."""
    found = FakeBackend(fake_spec((32, 48)), batch_size=4)
    monkeypatch.setattr(clips, "_best", lambda engines, device: (found.open(), ["tensorrt: not here"]))
    yield found
    assert not found.is_open


def test_a_clip_goes_through_every_decoder_and_encoder(
    folder: str, backend: FakeBackend, no_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        video, "encoder_problem", lambda codec: "no NVENC" if codec.encoder == "h264_nvenc" else ""
    )
    data: dict[str, Any] = {}
    ways = {"decoders": (None, "cuda"), "codecs": ("h264", "h264_nvenc")}
    clips.clip_run(data, nothing, folder, engines="none", device="cpu", rounds=1, **ways)
    done, *left = data["ways"]
    assert (done["decoder"], done["codec"], done["frames"], done["problems"]) == ("processor", "h264", 36, [])
    assert done["frames_per_s"]["median"] > 0
    assert done["bottleneck"] in {stage["name"] for stage in done["stages"]}
    assert [(entry["decoder"], entry["reason"].rpartition(": ")[2]) for entry in left] == [
        ("processor", "no NVENC"),
        ("cuda", "no such device"),
        ("cuda", "no such device"),
    ]
    assert data["passed"] == ["tensorrt: not here"]


def test_an_overlay_that_is_not_in_time_is_found() -> None:
    assert clips._late("overlay", [0.0, 0.04], [0.0, 0.04], exact=True) == []
    assert clips._late("mask", [0.0, 0.04], [0.0, 0.0405], exact=False) == []
    assert clips._late("overlay", [0.0, 0.04], [0.0, 0.0405], exact=True) == [
        "overlay: a frame is 0.500 ms off"
    ]
    assert clips._late("mask", [0.0, 0.04], [0.0], exact=False) == ["mask: 1 frames of 2"]


def test_the_best_backend_names_what_was_passed_over(tmp_path: Path) -> None:
    backend, passed = clips._best(str(tmp_path), "cpu")
    backend.close()
    assert backend.name == "torch-cpu"
    assert [reason.partition(": ")[0] for reason in passed] == ["openvino"]


def test_without_a_gpu_no_clip_is_run(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "missing", lambda: "no NVIDIA driver")
    with pytest.raises(Skip, match="no GPU can be used: no NVIDIA driver"):
        clips.clip_run({}, nothing, folder, "none", None, (None,), ("h264",), 1)
