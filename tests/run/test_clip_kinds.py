"""What can be made of clips beside masks and overlays: all in parts, in time, and with the sound."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.footage import Footage, Sound, look_at
from tests.helpers.processes import Forked, has_lines, killed
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.files.outputs import Style
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media.cleanup import Cleanup
from unet_batch.media.video import CODECS, Reader, Writer, make_frame, new_clip
from unet_batch.run.clip import ClipResult, segment
from unet_batch.run.layout import ClipLayout
from unet_batch.run.observe import Stop
from unet_batch.run.options import RunOptions, VideoOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Item

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("no_thread_is_left")]

SIZE = (96, 128)
LOSSLESS = {"crf": "0", "preset": "ultrafast"}


def right_half(pictures: np.ndarray) -> np.ndarray:
    """Sure of the right half, not of the left one, with a soft edge between."""
    ramp = np.interp(np.arange(pictures.shape[2]), (60, 68), (0, 255)).astype(np.uint8)
    return np.broadcast_to(ramp, pictures.shape[:3]).copy()


def work(
    path: str,
    out: Path,
    *kinds: str,
    codec: str = "h264",
    stop_at: int | None = None,
    style: Style = Style(),  # noqa: B008 - it has no state
    cleanup: Cleanup = Cleanup(),  # noqa: B008
    answer: Callable[[np.ndarray], np.ndarray] = right_half,
    **options: object,
) -> ClipResult:
    stop = Stop()

    def on_frame(done: int, total: int | None) -> None:
        sys.stdout.write(f"{done}\n")  # for who waits to kill it
        sys.stdout.flush()
        if stop_at is not None and done >= stop_at:
            stop()

    what = VideoOptions(codec=codec, part_frames=4, **options)  # type: ignore[arg-type]
    layout = ClipLayout(str(out), kinds, CODECS[codec], style)
    backend = FakeBackend(fake_spec(SIZE), answer)
    with Segmenter(backend, workers=2, cleanup=cleanup) as segmenter:
        return segment(Item(path, "clip"), segmenter, layout, what, "one", on_frame, stop)


def decode(path: str) -> list[np.ndarray]:
    """RGBA of each frame, as FFmpeg decodes it: of VP9 by the decoder that knows of opacity."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name != "vp9":
            frames = list(container.decode(stream))
        else:
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            frames = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]  # type: ignore[union-attr]
    assert all("yuva" in frame.format.name for frame in frames)
    return [frame.to_ndarray(format="rgba") for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    sounds = (Sound(end=Fraction(1, 2)),)
    footage = Footage(size=SIZE, frames=10, format="yuv444p", options=LOSSLESS, sounds=sounds)
    return footage.make(tmp_path_factory.mktemp("clip"))


# The suffix, how far opacity may be from what it was, and the sound
ALPHA = {
    "h264": (".mov", 2, "aac"),
    "prores": (".mov", 2, "aac"),
    "vp9": (".webm", 12, "opus"),
    "ffv1": (".mkv", 2, "aac"),
}


class TestCutout:
    @pytest.mark.parametrize("codec", ALPHA)
    def test_opens_with_the_opacity_that_it_was_given(self, clip: str, tmp_path: Path, codec: str) -> None:
        suffix, tolerance, sound = ALPHA[codec]
        result = work(clip, tmp_path / "out", "mask", "cutout", codec=codec)
        [path] = result.files["cutout"]
        assert path.endswith(f"cutouts/clip{suffix}")
        with Segmenter(FakeBackend(fake_spec(SIZE), right_half)) as segmenter, Reader(clip) as reader:
            expected = [segmenter.predict(reader.rgb(frame)).cutout() for frame in reader.frames()]
        found = decode(path)
        assert len(found) == len(expected) == 10
        for shown, right in zip(found, expected, strict=True):
            assert np.abs(shown[..., 3].astype(int) - right[..., 3]).max() <= tolerance
            assert shown[..., 3].min() == 0
            assert shown[..., 3].max() == 255, "what is opaque is wholly so"
            inside = np.abs(shown[..., :3].astype(int) - right[..., :3])[:, 72:]
            assert inside.mean() <= 6
        made = look_at(path)
        assert made.times == look_at(clip).times
        assert [kind for kind, _, _ in made.others] == [f"audio {sound}"], result.notes

    def test_of_an_odd_size(self, tmp_path: Path) -> None:
        path = Footage(size=(33, 47), frames=3, format="yuv444p", options=LOSSLESS).make(tmp_path)
        for codec in ("prores", "vp9", "ffv1"):
            result = work(path, tmp_path / codec, "cutout", codec=codec)
            assert decode(result.files["cutout"][0])[0].shape == (33, 47, 4)

    def test_opus_is_copied_into_webm(self, tmp_path: Path) -> None:
        footage = Footage(
            name="o.mkv", size=SIZE, frames=10, base=Fraction(1, 1000), sounds=(Sound(codec="libopus"),)
        )
        result = work(footage.make(tmp_path), tmp_path / "out", "cutout", codec="vp9")
        assert [kind for kind, _, _ in look_at(result.files["cutout"][0]).others] == ["audio opus"]
        assert not any("anew" in note for note in result.notes)


def rgb_frames(path: str) -> list[np.ndarray]:
    with Reader(path) as reader:
        return [reader.rgb(frame) for frame in reader.frames()]


def largest_step(pixels: np.ndarray) -> int:
    return max(int(np.abs(np.diff(pixels.astype(int), axis=axis)).max()) for axis in (0, 1))


def test_what_is_hidden_in_a_clip_is_hidden(tmp_path: Path) -> None:
    path, codec = str(tmp_path / "noise.mkv"), CODECS["ffv1"]
    noise = np.random.default_rng(0).integers(0, 2, (*SIZE, 1)).repeat(3, axis=2).astype(np.uint8) * 255
    with Writer(path, codec, new_clip(SIZE, Fraction(25))) as writer:
        for number in range(3):
            writer.write(make_frame(noise, writer.format, writer.color), 1000 * number)
    result = work(path, tmp_path / "out", "blur", "pixelate", codec="ffv1")
    source = rgb_frames(path)
    for kind in ("blur", "pixelate"):
        for shown, before in zip(rgb_frames(result.files[kind][0]), source, strict=True):
            assert np.abs(shown[:, :20].astype(int) - before[:, :20]).max() <= 2, "the rest is as it was"
            hidden = shown[:, 72:].astype(int)
            if (
                kind == "blur"
            ):  # of 64 pixels: squares of 16, a deviation of 8; and what the colours' matrix rounds
                assert largest_step(hidden) <= 102 / 8 + 1 + 2
            else:
                squares = hidden[:, 8:].reshape(6, 16, 3, 16, 3)
                assert np.ptp(squares, axis=(1, 3)).max() <= 2


def test_background_contour_and_clean_masks(clip: str, tmp_path: Path) -> None:
    kinds = ("mask", "background", "contour", "overlay")
    result = work(clip, tmp_path / "out", *kinds, style=Style("#0000ff", crop=True))
    for frame in rgb_frames(result.files["background"][0]):
        assert frame.shape == (*SIZE, 3), "frames are not cropped"
        assert np.abs(frame[:, :40].astype(int) - (0, 0, 255)).max() <= 12
    source = rgb_frames(clip)
    for shown, before in zip(rgb_frames(result.files["contour"][0]), source, strict=True):
        far = np.r_[0:48, 84:128]
        assert np.abs(shown[:, far].astype(int) - before[:, far]).mean() <= 6
        assert np.abs(shown[:, 60:70].astype(int) - before[:, 60:70]).max() > 60
    assert look_at(result.files["contour"][0]).others

    cleaned = work(clip, tmp_path / "clean", "mask", cleanup=Cleanup(min_area="99%"))
    with av.open(cleaned.files["mask"][0]) as container:
        assert not any(frame.to_ndarray().any() for frame in container.decode(video=0))
    with open(cleaned.files["timeline"][0], newline="") as timeline:
        components = [row["components"] for row in csv.DictReader(timeline)]
    assert components == ["0"] * 10, "those of the mask"


@pytest.mark.parametrize("codec", ["prores", "vp9"])
def test_an_interrupted_clip_ends_as_the_same(tmp_path: Path, codec: str) -> None:
    clip = Footage(size=SIZE, frames=40).make(tmp_path)
    kinds = ("mask", "cutout", "blur")
    whole = work(clip, tmp_path / "whole", *kinds, codec=codec)
    assert not work(clip, tmp_path / "out", *kinds, codec=codec, stop_at=5).complete
    result = work(clip, tmp_path / "out", *kinds, codec=codec)
    assert result.complete
    assert result.resumed > 0
    assert not os.path.exists(tmp_path / "out/unfinished")
    first, second = (Path(found.files["mask"][0]).read_bytes() for found in (whole, result))
    assert first == second
    for kind in kinds[1:]:
        assert look_at(result.files[kind][0]).times == look_at(whole.files[kind][0]).times
    frames = zip(decode(whole.files["cutout"][0]), decode(result.files["cutout"][0]), strict=True)
    for one, other in frames:
        assert np.abs(one[..., 3].astype(int) - other[..., 3]).max() <= (0 if codec == "prores" else 24)


@needs_posix
@pytest.mark.parametrize("codec", ["prores", "vp9"])
def test_a_killed_clip_leaves_what_plays_and_ends_as_the_same(tmp_path: Path, codec: str) -> None:
    """Parts that the journal names are whole, whenever `kill -9` comes; the end is as if none had come."""
    clip, out = Footage(size=SIZE, frames=64).make(tmp_path), tmp_path / "out"
    kinds = ("mask", "cutout", "background", "blur", "pixelate")
    journal = out / "unfinished/clip/journal.json"
    most = 0
    for number, frames in enumerate((6, 14)):
        said = tmp_path / f"said-{number}.txt"
        death = (killed, partial(has_lines, said, frames), 0.005 * number)
        child = Forked(*death, partial(work, codec=codec), clip, out, *kinds, output=said)
        assert child.wait(PATIENCE) == -signal.SIGKILL
        parts = json.loads(journal.read_text())["parts"] if journal.exists() else []
        assert len(parts) >= most
        most = len(parts)
        for part in parts[-1:]:  # those before it were looked at
            for kind in kinds:
                name = part["files"][kind][0]
                assert len(look_at(str(journal.parent / name)).times) == part["frames"]
    assert most, "the kills came before a part was done"
    result, whole = (work(clip, folder, *kinds, codec=codec) for folder in (out, tmp_path / "whole"))
    assert result.resumed >= 4 * most
    assert not (out / "unfinished").exists()
    assert Path(result.files["mask"][0]).read_bytes() == Path(whole.files["mask"][0]).read_bytes()
    for kind in kinds[1:]:
        one, other = result.files[kind][0], whole.files[kind][0]
        assert look_at(one).times == look_at(other).times
        read = decode if kind == "cutout" else rgb_frames
        for shot, same in zip(read(one), read(other), strict=True):
            assert np.abs(shot.astype(int) - same).mean() < 4, kind


def test_how_it_is_drawn_is_part_of_its_name(clip: str, tmp_path: Path) -> None:
    def names(style: Style, **options: str) -> tuple[str, ...]:
        video = VideoOptions(**options)  # type: ignore[arg-type]
        plan = prepare(
            RunOptions((clip,), str(tmp_path), ("mask", "background", "cutout"), style, video=video)
        )
        return plan.kinds(plan.items[0])

    white, black = names(Style()), names(Style("black", "webp", crop=True))
    assert white == ("clip timeline", "clip mask", "clip cutout h264", "clip background white h264")
    assert set(white) ^ set(black) == {"clip background white h264", "clip background black h264"}
    assert "clip cutout vp9" in names(Style(), codec="vp9")
