"""Ray clusters of several nodes on this machine, and runs on them, for processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.helpers.crews import brightness, open_fake
from tests.helpers.observers import observing
from tests.helpers.processes import command_line
from tests.helpers.waiting import until
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.cluster import RayLink, places
from unet_batch.run.crew import Crew, Device
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare

# Deaths are noticed within a second or two, not within half a minute
_CHECKS = {
    "health_check_period_ms": 500,
    "health_check_initial_delay_ms": 500,
    "health_check_failure_threshold": 2,
}
_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def in_turn(folder: str, pictures: np.ndarray) -> np.ndarray:
    """The brightness, after 2 ms for each picture; once a node is lost, not before another one has come."""
    while (Path(folder) / "lost").exists() and not (Path(folder) / "come").exists():
        time.sleep(0.01)
    time.sleep(0.002 * len(pictures))
    return brightness(pictures)


def open_in_turn(folder: str) -> Segmenter:
    if (Path(folder) / "lost").exists():
        (Path(folder) / "come").touch()
    return open_fake(partial(in_turn, folder))


class LocalCluster:
    """A Ray cluster of nodes of this machine, with one CPU each."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={**_NODE, "_system_config": _CHECKS}, shutdown_at_exit=False
        )
        self.address: str = self._cluster.address

    def add(self) -> Any:
        """One node more."""
        return self._cluster.add_node(**_NODE, wait=False)

    def lose(self, node: Any) -> None:
        """End all processes of a node at once, as a power cut does."""
        for process in self._processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> list[int]:
        """End all; returns the processes that are left."""
        processes = psutil.Process().children(recursive=True)
        self._cluster.shutdown()
        _, alive = psutil.wait_procs(processes, 60)
        return [process.pid for process in alive]

    def _processes(self, node: Any) -> list[psutil.Process]:
        [raylet] = node.all_processes["raylet"]
        found = psutil.Process(raylet.process.pid)
        return [*found.children(recursive=True), found]


def lose_a_node(photos: str, out: str, folder: str) -> None:
    """A run on two nodes, one of which is lost in the middle, and another one comes; notes in a folder."""
    import ray

    cluster = LocalCluster()
    try:
        second = cluster.add()
        ray.init(address=cluster.address, log_to_driver=False)
        known: set[str] = set()

        def arrivals() -> list[Device]:
            found = [place for place in places(ray.nodes(), on_gpus=False) if place.node not in known]
            known.update(place.node for place in found)
            return [Device(place.node, partial(open_in_turn, folder), RayLink(place, ())) for place in found]

        heard: list[str] = []

        def hear(key: str) -> None:
            heard.append(key)
            if len(heard) == 600:
                (Path(folder) / "lost").touch()
                cluster.lose(second)
                cluster.add()

        plan = prepare(RunOptions((photos,), out))
        observer = observing(outcome=lambda item, failure: hear(item.key))
        _until_there(2)
        with Crew(arrivals(), arrivals) as crew:
            report = execute(plan, crew, observer)
        assert len(heard) == len(set(heard)), "told of twice"
    finally:
        ray.shutdown()
        left = cluster.close()
    assert not left, f"processes {left} are left"
    sys.exit(report.exit_code)


def _until_there(count: int) -> None:
    import ray

    until(lambda: sum(node["Alive"] for node in ray.nodes()) == count, 0.1)


def killed_in_a_cluster(out: str, pids: str, *arguments: str) -> None:
    """`unet-batch`, which kills itself once some are on record, with the processes below it in a file."""
    manifest = Path(out) / "manifest.jsonl"

    def kill() -> None:
        until(lambda: manifest.exists() and manifest.read_bytes().count(b'"done"') >= 5, 0.001)
        below = [process.pid for process in psutil.Process().children(recursive=True)]
        Path(pids).write_text(" ".join(map(str, below)))
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    command_line(*arguments)


def stopped_as_a_cluster_starts(pids: str, *arguments: str) -> None:
    """`unet-batch`, which sends itself SIGTERM once Ray has begun to start, with its processes in a file."""

    def stop() -> None:
        until(lambda: any(process.name() == "gcs_server" for process in psutil.Process().children()), 0.01)
        below = [process.pid for process in psutil.Process().children(recursive=True)]
        Path(pids).write_text(" ".join(map(str, below)))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    command_line(*arguments)
