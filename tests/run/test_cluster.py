"""Runs that the workers of a Ray cluster share: what they leave is what one process leaves."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.helpers.clusters import lose_a_node
from tests.helpers.crews import open_fake
from tests.helpers.processes import Forked
from tests.helpers.runs import done_lines, many, tree
from tests.helpers.systems import needs_posix
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


@pytest.mark.slow
@needs_posix
@needs_ray
@pytest.mark.timeout(900)
def test_a_node_that_is_lost_and_one_that_comes_cost_no_item(tmp_path: Path) -> None:
    photos, one, out = many(tmp_path / "photos", 2000), tmp_path / "one", tmp_path / "out"
    with open_fake() as segmenter:
        execute(prepare(RunOptions((str(photos),), str(one))), segmenter)
    errors = tmp_path / "errors.txt"
    child = Forked(lose_a_node, str(photos), str(out), str(tmp_path), errors=errors, output=errors)
    assert child.wait(800) == 0, errors.read_text()[-3000:]
    assert tree(out) == tree(one)
    assert set(done_lines(out).values()) == {1}, "no item is done again once that is on record"
    devices = json.loads((out / "run.json").read_text())["devices"]
    assert len(devices) == 3
    assert [device["done"] > 0 for device in devices] == [True] * 3
    [lost] = [device for device in devices if "left_out" in device]
    assert lost["left_out"].endswith("is gone from the cluster")
