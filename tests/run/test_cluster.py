"""Runs that the workers of a Ray cluster share: what they leave is what one process leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.clusters import lose_a_node
from tests.helpers.crews import brightness, open_fake
from tests.helpers.processes import Forked
from tests.helpers.runs import done_lines, many, tree
from tests.helpers.systems import needs_posix
from unet_batch.errors import OutputError, SourceError
from unet_batch.inference.backends.select import Request
from unet_batch.inference.segmenter import open_segmenter
from unet_batch.model import checkpoint
from unet_batch.run.cluster import Shipment, check_sight, places, proof_of
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
    with open_fake(brightness) as segmenter:
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


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 16), st.booleans()), max_size=8), st.booleans())
def test_places_share_machines_out(machines: list[tuple[int, int, bool]], on_gpus: bool) -> None:
    nodes = [
        {
            "NodeID": str(number),
            "NodeManagerHostname": "host",
            "Alive": alive,
            "Resources": {"memory": 1e9} | ({"CPU": float(cpus)} if cpus else {}) | {"GPU": float(gpus)},
        }
        for number, (cpus, gpus, alive) in enumerate(machines)
    ]
    found = places(nodes, on_gpus=on_gpus)
    for number, (cpus, gpus, alive) in enumerate(machines):
        here = [place for place in found if place.node == str(number)]
        assert len(here) == (0 if not alive else gpus if on_gpus else min(1, cpus))
        assert sum(place.gpus for place in here) == (gpus * alive if on_gpus else 0)
        assert sum(place.cpus for place in here) <= cpus
        assert [(place.number, place.count) for place in here] == [(n, len(here)) for n in range(len(here))]


def test_a_model_reaches_a_machine_that_does_not_have_its_file(tiny: str) -> None:
    shipment = Shipment(open_segmenter, (Request(checkpoint.identify(tiny), device="cpu"),))
    contents = shipment.contents()
    Path(tiny).unlink()
    for _ in range(2):  # the second process of a machine finds the file there
        with pickle.loads(pickle.dumps(shipment))(*contents) as segmenter:
            assert segmenter.describe_model()["path"] == tiny
            assert str(tiny) in str(segmenter.describe()["passed_over"])
            assert "unet-batch-models" not in str(segmenter.describe())


@pytest.mark.skipif(sys.platform == "win32", reason="temporary folders of Windows are one user's own")
def test_models_are_not_read_from_a_folder_in_which_others_may_write(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    shared = tmp_path / "temporary" / f"unet-batch-models-{os.getuid()}"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    shipment = Shipment(open_segmenter, (Request(checkpoint.identify(tiny), device="cpu"),))
    shipment(*shipment.contents()).close()
    (own,) = (each for each in shared.parent.iterdir() if each != shared)
    assert not list(shared.iterdir())
    assert own.stat().st_mode & 0o077 == 0
    assert [path.read_bytes() for path in own.glob("*/*")] == shipment.contents()


def test_a_machine_that_does_not_see_the_folders_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_batch.run.cluster._SIGHT", 0.0)
    photos, out = many(tmp_path / "photos", 2), tmp_path / "out"
    plan = prepare(RunOptions((str(photos),), str(out)))
    assert proof_of(plan) is None, "no run holds the folder"
    out.mkdir()
    (out / ".run.owner").write_text("this run")
    proof = proof_of(plan)
    check_sight(plan, proof)
    for there in ("another one", None):
        (out / ".run.owner").unlink()
        if there is not None:
            (out / ".run.owner").write_text(there)
        with pytest.raises(OutputError, match="is not the output folder of this run"):
            check_sight(plan, proof)
    elsewhere: Any = replace(plan.sources, folders=(str(tmp_path / "nowhere"),))
    with pytest.raises(SourceError, match="nowhere is not there on"):
        check_sight(replace(plan, sources=elsewhere), None)
