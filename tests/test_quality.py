"""The bundled model is as good as its card says, and no shortcut of the run changes its masks.

`scripts.eval_models` measures all of it; here a part, small enough for every run of the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

import unet_batch
from scripts import carvana
from unet_batch import scenes
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import images
from unet_batch.model import checkpoint, zoo
from unet_batch.scenes import write_samples

UNSEEN = 77  # training draws scenes with seed 1, the demo with 0, scripts/eval_models.py with 2


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with unet_batch.load(device="cpu") as opened:
        yield opened


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def read_mask(path: Path | str) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file) > 0


def held_out(data: Path) -> list[tuple[Path, Path]]:
    """A photo and its mask of each car that was kept out of the models' training, from five sides in turn.

    Photos of one car are alike: more of each cost minutes, and say less than other cars would.
    """
    cars = sorted({photo.car for photo in carvana.split(carvana.photos(data))[1]})
    assert len(cars) == 12
    return [
        (data / f"carvana/images/{car}_{view}.jpg", data / f"carvana/masks/{car}_{view}_mask.gif")
        for car, view in zip(cars, itertools.cycle(("01", "03", "05", "08", "11")), strict=False)
    ]


@pytest.fixture(scope="module")
def car_masks(data: Path, segmenter: Segmenter) -> dict[str, np.ndarray]:
    """What the default model finds in them, by path."""
    found = {}
    for result in segmenter.stream(str(photo) for photo, _ in held_out(data)):
        assert result.mask is not None, result.error
        found[result.path] = result.mask > 0
    return found


def test_the_file_says_where_it_comes_from() -> None:
    spec = checkpoint.identify(zoo.resolve(None)).spec
    assert (spec.encoder, spec.input_size, spec.classes.names) == ("efficientnet-lite0", (448, 672), ("car",))
    spec = checkpoint.identify(zoo.resolve("classic")).spec
    assert (spec.encoder, spec.input_size, spec.classes.names) == ("", (160, 240), ("car",))
    assert spec.training["metrics"]["network"]["dice"] >= 0.9915
    assert spec.training["metrics"]["network"]["accuracy"] >= 0.9965
    assert spec.training["metrics"]["photo"]["dice"] >= 0.99


def test_cards_say_what_the_files_do() -> None:
    files = {name: Path(zoo.resolve(name)) for name in zoo.BUNDLED}
    for name, file in files.items():
        spec = checkpoint.identify(str(file)).spec
        assert spec.name == name
        # What a card promises is what the file says of itself.
        card, metrics = file.with_suffix(".md").read_text(), spec.training["metrics"]
        for where in ("network", "photo"):
            assert f"{metrics[where]['dice']:.4f}" in card, where
            assert f"{100 * metrics[where]['accuracy']:.2f} %" in card, where
        assert b"/home" not in file.read_bytes()[:20_000]
        assert b"/tmp" not in file.read_bytes()[:20_000]


@pytest.mark.parametrize("name", [name for name in zoo.BUNDLED if name != "default"])
def test_the_other_models_find_cars_kept_out_of_training(data: Path, name: str) -> None:
    pairs = held_out(data)
    with unet_batch.load(name, device="cpu") as segmenter:
        scores = [dice(segmenter(str(photo)) > 0, read_mask(mask)) for photo, mask in pairs]
    assert np.mean(scores) >= {"fast": 0.987, "fine": 0.991, "classic": 0.985}[name], scores


def test_unseen_scenes(segmenter: Segmenter, tmp_path: Path) -> None:
    photos = write_samples(str(tmp_path), 10, seed=UNSEEN)
    scores = []
    for result in segmenter.stream(photos):
        assert result.mask is not None, result.error
        truth = read_mask(result.path.replace("photos", "masks").replace(".jpg", ".png"))
        scores.append(dice(result.mask > 0, truth))
    assert np.mean(scores) >= 0.97, scores


def test_cars_kept_out_of_training(data: Path, car_masks: dict[str, np.ndarray]) -> None:
    scores = []
    for photo, mask in held_out(data):
        found, truth = car_masks[str(photo)], read_mask(mask)
        assert found.shape == truth.shape == (1280, 1918)
        scores.append(dice(found, truth))
    assert np.mean(scores) >= 0.985, scores


def test_street_photos_kept_out_of_training(data: Path, segmenter: Segmenter) -> None:
    """Every fifth of them; the models of studio cars flood hedges and houses there."""
    photos = sorted((data / "cars_wild" / "images").glob("test_*.jpg"))[::5]
    scores = {}
    for result in segmenter.stream(str(photo) for photo in photos):
        assert result.mask is not None, result.error
        truth = read_mask(data / "cars_wild" / "masks" / f"{Path(result.path).stem}.png")
        scores[Path(result.path).stem] = dice(result.mask > 0, truth)
    assert len(scores) == 19
    assert np.mean(list(scores.values())) >= 0.96, scores


def test_nothing_is_marked_where_no_car_is(data: Path, segmenter: Segmenter) -> None:
    for kind in ("dsb2018", "lungs", "satellite"):
        paths = sorted((data / kind / "images").iterdir())[:4]
        marked = [(segmenter(str(path)) > 0).mean() for path in paths]
        assert np.mean(marked) < 0.01, kind


def compare_with_full_decode(segmenter: Segmenter, reduced: dict[str, np.ndarray]) -> list[float]:
    """Dice of masks by path with those of the same photos decoded whole."""
    scores = []
    for path, mask in reduced.items():
        full = images.read(path)
        assert full.pixels.shape[:2] == full.size
        assert images.read(path, at_least=(320, 480)).pixels.shape[0] < full.size[0], (
            "the test needs a reduced decode"
        )
        scores.append(dice(mask, segmenter(full.pixels) > 0))
    return scores


def test_reduced_decoding_keeps_the_masks_of_drawn_photos(segmenter: Segmenter, tmp_path: Path) -> None:
    sizes = [(1280, 1918), (1920, 1280), (2560, 3840)]
    paths = [
        path
        for number, size in enumerate(sizes)
        for path in write_samples(str(tmp_path / str(number)), 1, size, UNSEEN, False)
    ]
    scores = compare_with_full_decode(segmenter, {path: segmenter(path) > 0 for path in paths})
    assert np.mean(scores) >= 0.9995, scores
    assert min(scores) >= 0.998, scores


def test_reduced_decoding_keeps_the_masks_of_real_photos(
    segmenter: Segmenter, car_masks: dict[str, np.ndarray]
) -> None:
    scores = compare_with_full_decode(segmenter, car_masks)
    assert min(scores) >= 0.999, scores


def test_a_portrait_photo_keeps_its_shape(segmenter: Segmenter, tmp_path: Path) -> None:
    """A car in the middle of a tall picture is found where it is: letterboxed, not squeezed."""
    (photo,) = write_samples(str(tmp_path), 1, (480, 720), UNSEEN)
    landscape = images.read(photo).pixels
    tall = cv2.copyMakeBorder(landscape, 300, 300, 0, 0, cv2.BORDER_REPLICATE)
    found = segmenter(tall)
    assert found.shape == (1080, 720)
    truth = np.zeros((1080, 720), bool)
    truth[300:780] = read_mask(tmp_path / "masks/scene_0000.png")
    assert dice(found > 0, truth) > 0.85, "squeezed to 160x240 it would be half as tall"


def test_a_photo_of_12_bits_in_16_has_the_mask_of_its_8_bits(tmp_path: Path, segmenter: Segmenter) -> None:
    photo, truth = scenes.draw(UNSEEN, (320, 480))
    deep = np.rint(photo.astype(np.float64) * (4095 / 255)).astype(np.uint16)
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(deep))

    def found(value_range: str) -> np.ndarray:
        view = ViewOptions(value_range=value_range)
        level = (
            Segmenter(segmenter.backend, view=view, workers=1).predict(str(tmp_path / "x.png")).probability
        )
        assert level is not None
        return level.astype(int)

    shallow = segmenter.predict(photo).probability
    assert shallow is not None
    assert np.abs(found("0,4095") - shallow).max() <= 1
    stretched = np.abs(found("percentile") - shallow)
    assert np.mean(stretched) < 3
    assert dice(found("percentile") >= 128, truth > 0) > 0.97
    assert np.mean(np.abs(found("auto") - shallow)) > 5 * np.mean(stretched), "nearly black"
