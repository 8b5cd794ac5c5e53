"""`run --ray`: the workers of a Ray cluster share a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from tests.helpers.clusters import killed_in_a_cluster, stopped_as_a_cluster_starts
from tests.helpers.processes import Forked, command_line, is_running
from tests.helpers.runs import done_lines, many, tree
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE, until
from unet_batch.cli import main

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


def is_agent(pid: int) -> bool:
    """Whether a process is one of two that try for a minute to tell Ray of the end, which is gone itself."""
    with suppress(psutil.Error):
        return psutil.Process(pid).cmdline()[0] in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return False


@pytest.fixture(scope="session")
def gone_at_the_end() -> Iterator[list[psutil.Process]]:
    """Takes processes that must have ended when all tests have: nobody waits for them before."""
    found: list[psutil.Process] = []
    yield found
    _, left = psutil.wait_procs(found, PATIENCE)
    assert not left


@pytest.mark.slow
@needs_posix
@needs_ray
def test_a_killed_run_leaves_no_process_and_goes_on(
    tiny: str, tmp_path: Path, gone_at_the_end: list[psutil.Process]
) -> None:
    photos, one, out = many(tmp_path / "photos", 200), tmp_path / "one", tmp_path / "out"
    words = ("-m", tiny, "--device", "cpu")
    done = CliRunner().invoke(main, ["run", str(photos), "-o", str(one), *words])
    assert done.exit_code == 0, done.output
    pids, said, errors = (tmp_path / name for name in ("pids", "said", "errors"))
    on_ray = ("run", str(photos), "-o", str(out), *words, "--ray", "local", "--json")
    child = Forked(killed_in_a_cluster, str(out), str(pids), *on_ray, errors=errors)
    assert child.wait(PATIENCE) == -9, errors.read_text()
    workers = [int(word) for word in pids.read_text().split()]
    assert len(workers) > 2
    agents = {pid: psutil.Process(pid) for pid in filter(is_agent, workers)}
    until(lambda: not any(is_running(pid) for pid in workers if pid not in agents))  # they end with it
    gone_at_the_end += agents.values()

    child = Forked(command_line, *on_ray, output=said, errors=errors)
    assert child.wait(PATIENCE) == 0, errors.read_text()
    report = json.loads(said.read_text())
    assert report["done"] + report["states"]["done"] == 200
    assert 0 < report["done"] < 200
    assert [device["done"] for device in report["devices"]] == [report["done"]]
    assert report["model"]["path"] == tiny
    assert tree(out) == tree(one)
    assert set(done_lines(out).values()) == {1}


@pytest.mark.slow
@needs_posix
@needs_ray
def test_sigterm_while_ray_starts_ends_it_well(tiny: str, tmp_path: Path) -> None:
    photos, out = many(tmp_path / "photos", 2), tmp_path / "out"
    pids, errors = tmp_path / "pids", tmp_path / "errors"
    on_ray = ("run", str(photos), "-o", str(out), "-m", tiny, "--device", "cpu", "--ray", "local")
    child = Forked(stopped_as_a_cluster_starts, str(pids), *on_ray, errors=errors)
    assert child.wait(PATIENCE) == 143, errors.read_text()
    assert "Traceback" not in errors.read_text()
    assert not out.exists()
    workers = [int(word) for word in pids.read_text().split()]
    until(lambda: not any(map(is_running, workers)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "cpu:2"], "--ray local contradicts --devices cpu:2"),
        (["--build"], "--ray local contradicts --build"),
        ([], 'pip install "unet-batch[ray]"'),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], message: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    photos = many(tmp_path / "photos", 2)
    arguments = ["run", str(photos), "-o", str(tmp_path / "out"), "-m", tiny, "--ray", "local", *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n      ", "")
    assert not (tmp_path / "out").exists()


def test_one_picture_goes_through_a_pipe(tiny: str) -> None:
    done = CliRunner().invoke(main, ["run", "-", "-o", "-", "-m", tiny, "--ray", "local"])
    assert done.exit_code == 2
    assert "--ray local: one picture goes through a pipe" in done.output
