"""What to label next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command import unet_batch
from tests.helpers.models import fake_file
from tests.helpers.runs import write
from unet_batch.errors import UsageError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.review.certainty import unsure_share
from unet_batch.review.pick import copy_pictures, pick, write_list
from unet_batch.run.execute import execute
from unet_batch.run.finished import FinishedItem, FinishedRun
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend


def run(source: Path, out: Path, *save: str) -> None:
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(prepare(RunOptions((str(source),), str(out), save=save)), segmenter)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Black and white pictures, which the network is sure of; greys; and two greys that are nearly alike."""
    greys = {"black": 0, "white": 255, "grey": 128, "twin": 129, "dark": 60}
    for name, level in greys.items():
        write(tmp_path / "in" / f"{name}.png", np.full((32, 48, 3), level, np.uint8))
    run(tmp_path / "in", tmp_path / "out", "mask", "prob")
    return tmp_path / "out"


def test_unsure_pictures_come_and_no_two_alike(out: Path) -> None:
    with FinishedRun(str(out)) as finished:
        two = [each.item.key for each in pick(finished, 2)]
        every = pick(finished, 5)
    assert len(set(two) & {"grey", "twin"}) == 1
    assert [each.unsure for each in every] == sorted((each.unsure for each in every), reverse=True)
    assert {each.item.key for each in every[:3]} == {"grey", "twin", "dark"}


def test_the_list_is_one_that_run_takes(out: Path, tmp_path: Path) -> None:
    result = unet_batch("pick", str(out), "-n", "2", "--copy", tmp_path / "copies")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(list((tmp_path / "copies").iterdir())) == 2
    plan = prepare(RunOptions((f"@{out}-pick.txt",), str(tmp_path / "again")))
    assert len(plan.items) == 2
    unet_batch("pick", str(out), "-n", "3")  # its own list is replaced
    assert len(prepare(RunOptions((f"@{out}-pick.txt",), str(tmp_path / "again"))).items) == 3


def test_nothing_foreign_is_overwritten(out: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("words")
    with FinishedRun(str(out)) as finished:
        picked = pick(finished, 1)
    with pytest.raises(UsageError, match="another file"):
        write_list(str(tmp_path / "notes.txt"), picked)
    with pytest.raises(UsageError, match="not empty"):
        copy_pictures(str(tmp_path / "full"), picked)


def test_what_would_tell_is_named_where_nothing_does(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", np.zeros((32, 48, 3), np.uint8))
    run(tmp_path / "in", tmp_path / "out", "mask")
    with FinishedRun(str(tmp_path / "out")) as finished, pytest.raises(UsageError) as error:
        pick(finished, 1)
    assert "--save mask,prob" in error.value.hint


def test_statistics_tell_it_without_probabilities(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("class,pixels,unsure\ncar,3,0.25\ntree,4,\n")
    assert unsure_share(FinishedItem("s", "/s.jpg", {"stats": str(tmp_path / "s.csv")})) == 0.25
    assert unsure_share(FinishedItem("s", "/s.jpg")) is None
