"""The sections of `scripts.gpu_check` on photos: their masks, and decoding them elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scripts import carvana
from scripts.gpu_check import decoding, pytorch, sections
from tests.helpers.engines import confident
from unet_batch import gpu
from unet_batch.errors import ImageError
from unet_batch.inference.backends.torch import TorchBackend
from unet_batch.media import images
from unet_batch.testing import FakeBackend


def nothing() -> None:
    """A `save`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("photos"))
    data: dict[str, Any] = {}
    pytorch.photos(data, nothing, path, drawn=2, items=3, size=[96, 144])
    assert (data["drawn"], data["items"], data["size"]) == (2, 3, [96, 144])
    return path


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what is drawn: real photos may be anywhere."""
    monkeypatch.setenv("UNET_BATCH_DATA", str(tmp_path))
    assert carvana.data_folder() == tmp_path


def test_masks_of_photos_are_compared_with_those_of_the_processor(folder: str) -> None:
    loaded, items = confident(), pytorch._items(folder)
    found, wrong = pytorch._compare_masks(lambda: TorchBackend(loaded, "cpu"), loaded, items, 2)
    assert (found["photos"], found["real"]) == (2, False)
    assert found["dice"] > 0.99  # bfloat16 where the processor has it
    assert wrong == [] or found["dice"] < pytorch.LEAST_DICE
    other = FakeBackend(
        loaded.spec, lambda pictures: np.full(pictures.shape[:3], 255, np.uint8), batch_size=1
    )
    found, wrong = pytorch._compare_masks(lambda: other, loaded, items, 2)
    assert wrong == [f"fake fp32: Dice {found['dice']:.5f}, 0.999 expected"]


def test_without_photos_a_section_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(sections.Skip, match="no photos were drawn"):
        decoding.photo_decoding({}, nothing, str(tmp_path), photos=2, compared=1, rounds=1, device="cpu")
    with pytest.raises(sections.Skip, match="no photos were drawn"):
        pytorch.masks({}, nothing, [], "m", str(tmp_path), "e", [], photos=1, device="cpu")


def library(off: int = 0, lenient: bool = False) -> Any:
    """A stand-in for nvImageCodec's module: our decoder, `off` by so many levels, perhaps blind to damage."""

    class Decoder:
        def __init__(self, device_id: int, backends: list[Any], options: str) -> None:
            assert (device_id, backends, options) == (-9, ["CPU"], ":fancy_upsampling=1")

        def decode(self, streams: list[bytes]) -> list[Any]:
            return [self.one(stream) for stream in streams]

        def one(self, stream: bytes) -> Any:
            try:
                pixels = images.read_bytes(stream).pixels
            except ImageError:
                if not lenient:
                    return None
                pixels = np.zeros((96, 144, 3), np.uint8)
            return SimpleNamespace(cpu=lambda: np.clip(pixels.astype(int) + off, 0, 255).astype(np.uint8))

    return SimpleNamespace(
        Decoder=Decoder,
        CodeStream=bytes,
        CPU_ONLY="CPU",
        Backend=lambda kind: kind,
        NVIMGCODEC_DEVICE_CPU_ONLY=-9,
    )


def decode(monkeypatch: pytest.MonkeyPatch, folder: str, module: Any) -> dict[str, Any]:
    monkeypatch.setattr(sections, "present", lambda name: True)
    monkeypatch.setattr(gpu, "driver", lambda: None)
    monkeypatch.setattr(decoding.importlib, "import_module", lambda name: module)
    data: dict[str, Any] = {}
    decoding.photo_decoding(data, nothing, folder, photos=3, compared=2, rounds=2, device="cpu")
    return data


def test_another_decoder_is_timed_beside_ours_and_its_pixels_compared(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    data = decode(monkeypatch, folder, library(off=2))
    whole, reduced, other = data["decoders"]
    assert [whole["decoder"], reduced["decoder"]] == ["ours, whole", "ours, reduced as `run` does"]
    assert all(len(entry["photos_per_s"]["rounds"]) == 2 for entry in data["decoders"])
    assert (other["compared"], other["largest"]) == (2, 2)
    assert 0.9 < other["beyond_one"] <= 1


@pytest.mark.parametrize(("lenient", "said"), [(False, "refused"), (True, "decoded")])
def test_what_becomes_of_damaged_photos_is_told(
    monkeypatch: pytest.MonkeyPatch, folder: str, lenient: bool, said: str
) -> None:
    damaged = decode(monkeypatch, folder, library(lenient=lenient))["damaged"]
    cut = next(each for each in damaged if each["file"] == "cut in the middle")
    assert (cut["theirs"], "damaged" in cut["ours"]) == (said, True)
    assert len(damaged) == 4


def test_where_the_library_is_absent_our_own_figures_are_kept(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr(sections, "present", lambda name: False)
    data: dict[str, Any] = {}
    with pytest.raises(
        sections.Skip, match=r"^nvidia\.nvimgcodec is not installed: pip install nvidia-nvimgcodec"
    ):
        decoding.photo_decoding(data, nothing, folder, photos=2, compared=1, rounds=1, device="cuda")
    assert len(data["decoders"]) == 2
