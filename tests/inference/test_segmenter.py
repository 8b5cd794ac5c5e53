"""The Python interface."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

import unet_batch
from unet_batch.errors import (
    BackendUnavailable,
    CheckpointError,
    DecoderCrashed,
    ImageError,
    ImageTooLarge,
    OutputError,
    RunError,
    UsageError,
)
from unet_batch.inference import segmenter as segmenter_module
from unet_batch.inference.backends.select import Request, Selection, Step
from unet_batch.inference.segmenter import Segmenter, concerns_one_item, open_segmenter
from unet_batch.media import isolation
from unet_batch.model import checkpoint
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Item, Prediction

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:] = 255
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    return path


def test_a_path_and_an_array_give_the_same_mask(photo: Path) -> None:
    with Segmenter(FakeBackend()) as segmenter:
        from_path = segmenter(photo)
        from_array = segmenter(np.array(Image.open(photo)))
    assert from_path.shape == (64, 96)
    assert from_path.dtype == np.uint8
    assert set(np.unique(from_path)) == {0, 255}
    assert np.array_equal(from_path, from_array)


def test_a_grey_array_and_a_view_are_pictures_too(photo: Path) -> None:
    array = np.array(Image.open(photo))
    with Segmenter(FakeBackend()) as segmenter:
        assert np.array_equal(segmenter(array[:, :, 0]), segmenter(array))
        assert np.array_equal(segmenter(array[:, ::-1]), segmenter(array)[:, ::-1])


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((9, 9, 5), np.uint8), "one picture at a time"),
        (np.zeros((0, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros(4, np.uint8), "one picture at a time"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros((3, 8, 8), np.uint8), "x.transpose(1, 2, 0)"),
        (np.zeros((4, 4), np.uint16), "x.astype('uint8')"),
    ],
)
def test_what_is_not_a_picture_is_refused(array: np.ndarray, hint: str) -> None:
    with (
        Segmenter(FakeBackend()) as segmenter,
        pytest.raises(ImageError, match="uint8 \\(height, width, 3\\) in RGB order") as caught,
    ):
        segmenter(array)
    assert hint in caught.value.hint


def test_threshold(photo: Path) -> None:
    Image.fromarray(np.full((64, 96, 3), 100, np.uint8)).save(photo)  # probability 100 / 255 = 0.39
    with Segmenter(FakeBackend(), threshold=0.39) as segmenter:
        assert segmenter(photo).all()
    with Segmenter(FakeBackend(), threshold=0.4) as segmenter:
        assert not segmenter(photo).any()
    with Segmenter(FakeBackend(fake_spec())) as segmenter:
        assert segmenter.threshold == 0.5


@pytest.mark.parametrize("bad", [{"threshold": 0}, {"threshold": 1.5}, {"workers": 0}, {"max_pixels": 0}])
def test_arguments_out_of_range(bad: dict[str, int]) -> None:
    backend = FakeBackend()
    with pytest.raises(UsageError, match="expected"):
        Segmenter(backend, **bad)
    with backend:  # it was not left open
        pass


@pytest.mark.parametrize("bad", [{"threshold": 0}, {"workers": 0}])
def test_a_backend_that_was_open_is_closed_where_it_is_refused(bad: dict[str, int]) -> None:
    backend = FakeBackend()
    backend.open()
    with pytest.raises(UsageError, match="expected"):
        Segmenter(backend, **bad)
    assert not backend.is_open


def test_a_backend_may_be_open_already(photo: Path) -> None:
    backend = FakeBackend()
    backend.open()
    with Segmenter(backend) as segmenter:
        assert segmenter(photo).shape == (64, 96)
    assert not backend.is_open


def test_knows_its_model_and_why_its_backend_was_chosen(tiny: str, photo: Path) -> None:
    file = checkpoint.identify(tiny)
    with open_segmenter(Request(file, "torch", "cpu"), threshold=0.25, workers=2) as segmenter:
        assert segmenter.models == (file,)
        assert segmenter.passed_over == ()
        assert segmenter(photo).shape == (64, 96)
    assert not segmenter.backend.is_open
    assert Segmenter(FakeBackend()).models == ()


def test_describes_what_runs_for_reports() -> None:
    step = Step("tensorrt", "no NVIDIA driver", "install it")
    with Segmenter(FakeBackend(), passed_over=[step], threshold=0.25, workers=2) as segmenter:
        described = segmenter.describe()
        assert described == {
            **segmenter.backend.describe(),
            "passed_over": [{"name": "tensorrt", "reason": "no NVIDIA driver", "fix": "install it"}],
            "workers": 2,
            "threshold": 0.25,
        }


@pytest.mark.parametrize("bad", [{"threshold": 0}, {"workers": 0}])
def test_a_refusal_leaves_no_backend_open(
    tiny: str, bad: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend()
    monkeypatch.setattr(segmenter_module, "select", lambda request: Selection(backend.open()))
    with pytest.raises(UsageError, match="expected"):
        open_segmenter(Request(checkpoint.identify(tiny)), **bad)
    assert not backend.is_open


def test_pictures_are_decoded_into_the_backends_buffers(photo: Path) -> None:
    given: list[np.ndarray] = []
    inferred: list[np.ndarray] = []

    class Buffers(FakeBackend):
        def buffer(self) -> np.ndarray:
            given.append(super().buffer())
            return given[-1]

        def _infer(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
            inferred.extend(pictures)
            return super()._infer(pictures)

    with Segmenter(Buffers(batch_size=3)) as segmenter:
        assert len(list(segmenter.stream([photo] * 10))) == 10
    assert len(given) == 10
    assert {id(picture) for picture in given} == {id(picture) for picture in inferred}


def test_other_channels_than_the_model_takes_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"--channels 4,1: fake takes 3 bands, counted from 1"):
        Segmenter(FakeBackend(), channels=(4, 1))
    with pytest.raises(UsageError, match="counted from 1"):
        Segmenter(FakeBackend(), channels=(0, 1, 2))


def test_a_failure_on_opening_closes_nothing_it_did_not_open() -> None:
    class Broken(FakeBackend):
        def _open(self) -> None:
            raise BackendUnavailable("no")

    with pytest.raises(BackendUnavailable):
        Segmenter(Broken())


def test_stream_keeps_the_order_and_reports_failures(tmp_path: Path) -> None:
    paths: list[Path] = []
    for index in range(20):
        path = tmp_path / f"{index}.png"
        if index == 7:
            path.write_bytes(b"")
        else:
            cv2.imwrite(str(path), np.full((10 + index, 15, 3), 10 * index, np.uint8))
        paths.append(path)
    with Segmenter(FakeBackend(streams=2), workers=3) as segmenter:
        results = list(segmenter.stream(paths))
    assert [result.path for result in results] == [str(path) for path in paths]
    for index, result in enumerate(results):
        if index == 7:
            assert result.mask is None
            assert isinstance(result.error, ImageError)
            with pytest.raises(UsageError, match="there is no probability"):
                _ = result.probability
        else:
            assert result.error is None
            assert result.mask is not None
            assert result.mask.shape == result.probability.shape == (10 + index, 15)
            assert abs(int(result.probability[0, 0]) - 10 * index) <= 1


def test_stream_can_be_left_early(photo: Path) -> None:
    before = set(threading.enumerate())
    with Segmenter(FakeBackend()) as segmenter:
        stream = segmenter.stream([photo] * 100)
        next(stream)
        stream.close()
    assert set(threading.enumerate()) <= before


def test_cv2_gets_its_threads_back(photo: Path) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)  # a number that nothing else would leave behind
    try:
        with Segmenter(FakeBackend()) as segmenter:
            for _ in segmenter.stream([photo]):
                assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_pictures_in_flight_are_bounded_by_their_pixels(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are weighed by what they hold, results by their masks, too."""
    weights: list[int] = []
    real = segmenter_module._weigh

    def weigh(value: object) -> int:
        weights.append(real(value))
        return weights[-1]

    monkeypatch.setattr(segmenter_module, "_weigh", weigh)
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        list(segmenter.stream([photo]))
    tensor, map = 32 * 48 * 3, 32 * 48
    assert weights == [0, tensor, map, map + 64 * 96]


def test_what_the_network_saw_is_let_go_before_anything_is_drawn(photo: Path) -> None:
    """A GPU copies from page-locked memory, of which there is less than what is in flight."""
    buffers: list[weakref.ref[np.ndarray]] = []

    class Backend(FakeBackend):
        def buffer(self) -> np.ndarray:
            buffers.append(weakref.ref(made := super().buffer()))
            return made

    def draw(prediction: Prediction) -> Item:
        alive.append(sum(buffer() is not None for buffer in buffers))
        return prediction.item

    alive: list[int] = []
    with (
        Segmenter(Backend(batch_size=1), workers=1) as segmenter,
        segmenter.pipeline([Item(str(photo))], [("draw", draw)], keep_pixels=True) as results,
    ):
        assert [item.path for item in results] == [str(photo)]
    assert alive == [0]


def test_limit_of_pixels(photo: Path) -> None:
    for isolate in (False, True):
        with Segmenter(FakeBackend(), max_pixels=64 * 96 - 1, isolate=isolate) as segmenter:
            with pytest.raises(ImageTooLarge, match=r"64x96 .* the limit is 6,143"):
                segmenter(photo)
            assert isinstance(next(segmenter.stream([photo])).error, ImageTooLarge)
        with Segmenter(FakeBackend(), max_pixels=64 * 96, isolate=isolate) as segmenter:
            assert segmenter(photo).shape == (64, 96)


def test_isolated_decoding_survives_a_crash(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "READER", "tests.helpers.readers:obey")
    crash = tmp_path / "crash.jpg"
    crash.write_text("segfault\n")
    paths = [photo] * 6 + [crash] + [photo] * 5
    with Segmenter(FakeBackend()) as segmenter:
        right = segmenter(photo)
    with Segmenter(FakeBackend(), workers=2, isolate=True) as segmenter:
        results = list(segmenter.stream(paths))
        with pytest.raises(DecoderCrashed, match="SIGSEGV"):
            segmenter(crash)
    assert [result.path for result in results] == [str(path) for path in paths]
    for result in results:
        if result.path == str(crash):
            assert isinstance(result.error, DecoderCrashed)
        else:
            assert result.mask is not None
            assert np.array_equal(result.mask, right)
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [command for command in commands if "processes.serve" in command]


def test_decoders_that_cannot_start_end_the_run(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each picture of a hundred thousand would fail for the same reason."""
    monkeypatch.setattr(isolation, "READER", "nowhere:read")
    with (
        Segmenter(FakeBackend(), workers=2, isolate=True) as segmenter,
        pytest.raises(RunError, match="cannot start a worker"),
    ):
        list(segmenter.stream([photo] * 50))


def test_load_takes_a_path(tiny: str, photo: Path) -> None:
    with unet_batch.load(tiny, device="cpu") as segmenter:
        assert segmenter.spec.name == "tiny"
        assert segmenter(photo).shape == (64, 96)


def test_the_terms_of_a_model_can_be_asked() -> None:
    with Segmenter(FakeBackend(replace(fake_spec(), terms="CC0"))) as segmenter:
        assert segmenter.terms == "CC0"


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model file"):
        unet_batch.load(str(tmp_path / "none.safetensors"))


def test_importing_the_package_is_free() -> None:
    heavy = {"torch", "numpy", "cv2", "av", "PIL", "rich"}
    code = f"import sys, unet_batch; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_promised_is_there() -> None:
    for name in unet_batch.__all__:
        assert getattr(unet_batch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unet_batch.nothing


@pytest.mark.parametrize(
    ("error", "isolated"),
    [
        (ImageError("damaged"), True),
        (ValueError("nobody foresaw it"), True),
        (MemoryError(), True),
        (OutputError("the disk is full"), False),
        (RunError("no decoder can be started"), False),
        (UsageError("contradicts itself"), False),
        (CheckpointError("damaged"), False),
    ],
)
def test_only_what_concerns_one_picture_is_isolated(error: Exception, isolated: bool) -> None:
    assert concerns_one_item(error) is isolated
