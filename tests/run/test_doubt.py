"""Pictures unlike what the model learned from are told, counted and measured."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.footage import Footage
from tests.helpers.runs import half_bright, segment, write
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import domain
from unet_batch.model import checkpoint, zoo
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import ModelSpec

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_thread_is_left")]


def knowing_halves() -> ModelSpec:
    """A model that has seen pictures of which one half is bright."""
    rng = np.random.default_rng(0)
    seen = [half_bright() // 2 + rng.integers(0, 20, (64, 96, 3)).astype(np.uint8) for _ in range(40)]
    as_shown = [cv2.resize(picture, (48, 32), interpolation=cv2.INTER_AREA) for picture in seen]
    figures = [domain.describe(picture) for picture in as_shown]
    return replace(fake_spec(), domain=domain.learn(figures[:30], figures[30:]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    like = half_bright() // 2 + rng.integers(0, 20, (64, 96, 3)).astype(np.uint8)
    write(tmp_path / "photos/like.png", like)
    write(tmp_path / "photos/unlike.png", rng.integers(0, 256, (64, 96, 3)).astype(np.uint8))
    return tmp_path / "photos"


@pytest.mark.parametrize("isolate", [False, True])
def test_what_is_unlike_is_told(photos: Path, tmp_path: Path, isolate: bool) -> None:
    plan = prepare(RunOptions((str(photos),), str(tmp_path / "out"), save=("mask", "stats")))
    with Segmenter(FakeBackend(knowing_halves()), workers=1, isolate=isolate) as segmenter:
        report = execute(plan, segmenter)
    [note] = report.file_notes
    assert (note.note, note.files, note.examples) == (domain.UNLIKE, 1, [str(photos / "unlike.png")])
    assert report.unlike == json.loads((tmp_path / "out/run.json").read_text())["unlike"] == 1
    with (tmp_path / "out/stats.csv").open() as file:
        like, unlike = (float(row["unlike"]) for row in csv.DictReader(file))
    assert like < 1.2 < unlike


def test_a_model_that_does_not_know_says_nothing(photos: Path, tmp_path: Path) -> None:
    report, _ = segment(photos, output=tmp_path / "out", save=("stats",))
    assert (report.unlike, report.file_notes) == (0, [])


def test_frames_of_a_clip(tmp_path: Path) -> None:
    path = Footage(frames=4, size=(64, 96)).make(tmp_path)
    backend = FakeBackend(knowing_halves())
    report, _ = segment(Path(path), output=tmp_path / "out", backend=backend)
    with (tmp_path / "out/timelines/clip.csv").open() as file:
        far = sum(float(row["unlike"]) > 1 for row in csv.DictReader(file))
    assert far == 4
    assert "4 frames " + domain.UNLIKE in report.clips[0]["notes"]


def test_a_result_says_it_too(photos: Path) -> None:
    with Segmenter(FakeBackend(knowing_halves()), workers=1) as segmenter:
        assert domain.UNLIKE in segmenter.predict(photos / "unlike.png").notes
        assert segmenter.predict(photos / "like.png").stats()[0].unlike is not None


def test_classic_knows_its_studio_and_nothing_else(data: Path) -> None:
    from scripts import carvana
    from scripts.set_domains import describe

    spec = checkpoint.identify(zoo.resolve("classic")).spec
    known, size = spec.domain, spec.input_size
    assert known is not None

    def beyond(paths: list[Path]) -> float:
        return float(np.mean([domain.distance(known, describe(path, size)) > 1 for path in paths]))

    _, kept = carvana.split(carvana.photos(data))
    assert beyond([photo.image for photo in kept[1::2]]) <= 0.02
    for kind in ("camvid", "dsb2018", "isbi2012"):
        assert beyond(sorted((data / kind / "images").iterdir())[::8]) >= 0.8
