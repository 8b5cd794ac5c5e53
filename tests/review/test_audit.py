"""How good a run is, from a few of its items."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.command import unet_batch
from tests.helpers.models import fake_file
from tests.helpers.runs import write
from unet_batch.errors import ImageError, UsageError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.review.audit import draw, read, strata
from unet_batch.review.interval import mean_interval
from unet_batch.run.execute import execute
from unet_batch.run.finished import FinishedRun
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Twelve pictures, each as bright as its number, with probabilities."""
    for number in range(12):
        picture = np.full((32, 48, 3), 20 * number, np.uint8)
        picture[:, : 2 * number] = 255
        write(tmp_path / "in" / f"{number:02}.png", picture)
    plan = prepare(RunOptions((str(tmp_path / "in"),), str(tmp_path / "out"), save=("mask", "prob")))
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(plan, segmenter)
    return tmp_path / "out"


def mark(folder: Path, marks: dict[str, str]) -> None:
    with open(folder / "marks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "marks.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ("item", "mark", "note"))
        writer.writeheader()
        writer.writerows({**row, "mark": marks.get(row["item"], "")} for row in rows)


def accuracies(kind: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dice and unsureness of the 3,000 items of a run."""
    count = 3000
    if kind == "fine":
        dice = random.beta(60, 1, count)
    elif kind == "some fail":  # 4 % of them altogether
        dice = np.where(random.random(count) < 0.04, random.beta(1, 8, count), random.beta(80, 1, count))
    elif kind == "two kinds":
        dice = np.where(random.random(count) < 0.3, random.beta(5, 5, count), random.beta(40, 1, count))
    else:  # good and bad
        dice = (random.random(count) < 0.9).astype(float)
    if kind == "blind":  # Student's t covers the truth in 84 of 100 of these
        return accuracies("some fail", random)[0], random.random(count)
    return dice, 1 - dice + random.normal(0, 0.3, count)  # unsureness tells a little


@pytest.mark.parametrize("kind", ["fine", "some fail", "two kinds", "marks", "blind"])
def test_the_interval_covers_the_truth(kind: str) -> None:
    covered, widths = 0, []
    for seed in range(100):
        random = np.random.default_rng(seed)
        dice, unsure = accuracies(kind, random)
        drawn = dice[strata(unsure.tolist(), 40, random)]
        low, high = mean_interval(drawn.tolist(), len(dice))
        covered += bool(low <= dice.mean() <= high)
        widths.append(high - low)
    assert covered >= 93
    assert np.mean(widths) < 0.3


@given(st.integers(1, 60), st.integers(0, 300), st.integers(0, 9))
@settings(deadline=None)
def test_one_of_each_stratum_is_drawn(count: int, total: int, seed: int) -> None:
    values = np.random.default_rng(seed + 100).random(total)
    places = strata(values.tolist(), count, np.random.default_rng(seed)) if total else []
    assert len(places) == len(set(places)) == min(count, total)
    ranks = np.argsort(np.argsort(values))[places] if total else np.array([])
    assert all(np.diff(ranks) > 0)
    assert all(
        abs(rank - at * total / len(places)) <= total / len(places) + 1 for at, rank in enumerate(ranks)
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 200))
@settings(deadline=None, max_examples=50)
def test_an_interval_holds_its_mean_and_is_exact_of_all(values: list[float], more: int) -> None:
    low, high = mean_interval(values, len(values) + more)
    mean = float(np.mean(values))
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1 + 1e-9
    if not more:
        assert low == pytest.approx(mean)
        assert high == pytest.approx(mean)


def test_each_item_is_drawn_equally_often() -> None:
    times = np.zeros(10)
    for seed in range(3000):
        times[strata(list(range(10)), 4, np.random.default_rng(seed))] += 1
    assert np.abs(times / 3000 - 0.4).max() < 0.08


def test_the_same_seed_draws_the_same_items(out: Path, tmp_path: Path) -> None:
    with FinishedRun(str(out)) as run:
        first = draw(run, str(tmp_path / "one"), 4, seed=3)
        second = draw(run, str(tmp_path / "two"), 4, seed=3)
        others = [draw(run, str(tmp_path / f"s{seed}"), 4, seed=seed).keys for seed in range(4, 7)]
    assert first.keys == second.keys
    assert (len(first.keys), first.total, first.by_certainty) == (4, 12, True)
    assert any(keys != first.keys for keys in others)
    for key in first.keys:
        for file in (f"masks/{key}.png", f"overlays/{key}.jpg", f"photos/{key}.png"):
            assert (tmp_path / "one" / file).is_file()


def test_marks_tell_the_share_of_good_items(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    with FinishedRun(str(out)) as run:
        keys = draw(run, str(folder), 4).keys
        assert read(run, str(folder)).answered == 0
        mark(folder, dict(zip(keys, ("good", "BAD", "g", ""), strict=True)))
        result = read(run, str(folder))
        assert (result.answered, result.unknown, result.dice) == (3, 1, None)
        assert result.good is not None
        assert result.good[0] == pytest.approx(2 / 3)
        mark(folder, {keys[0]: "perhaps"})
        with pytest.raises(UsageError, match=r"line 2.*perhaps"):
            read(run, str(folder))


def test_corrected_masks_tell_dice(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    with FinishedRun(str(out)) as run:
        keys = draw(run, str(folder), 12).keys
        key = next(key for key in keys if np.array(Image.open(folder / "masks" / f"{key}.png")).any())
        mask = np.array(Image.open(folder / "masks" / f"{key}.png"))
        half = mask.copy()
        half[:16] = 0
        Image.fromarray(half).save(folder / "corrected" / f"{key}.png")
        mark(folder, dict.fromkeys([each for each in keys if each != key], "good"))
        result = read(run, str(folder))
        expected = 2 * (half > 0).sum() / ((half > 0).sum() + (mask > 0).sum())
        assert result.dice is not None
        assert result.dice == pytest.approx(((11 + expected) / 12,) * 3)  # all were looked at
        Image.fromarray(half[:5]).save(folder / "corrected" / f"{key}.png")
        with pytest.raises(ImageError, match="5x48"):
            read(run, str(folder))


def test_answers_are_never_drawn_over(out: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    with FinishedRun(str(out)) as run:
        with pytest.raises(UsageError, match="other files"):
            draw(run, str(tmp_path / "mine"))
        draw(run, str(tmp_path / "audit"), 3)
        with pytest.raises(UsageError, match="other files"):
            draw(run, str(tmp_path / "audit"), 3)


def test_the_command_draws_and_then_reads(out: Path) -> None:
    drawn = unet_batch("audit", str(out), "-n", "5")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert "5 of 12" in drawn.stdout
    folder = Path(f"{out}-audit")
    mark(folder, dict.fromkeys(json.loads((folder / "audit.json").read_text())["items"], "good"))
    told = unet_batch("audit", str(out))
    assert told.returncode == 0
    assert "100.0%" in told.stdout
    assert "95 % confidence" in told.stdout
