"""Processes of this machine with a `Session` each, spoken with through pipes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from unet_batch.inference.segmenter import Segmenter
from unet_batch.pipeline import cpu_count
from unet_batch.processes.process import Worker
from unet_batch.run.crew import Device
from unet_batch.run.plan import RunPlan
from unet_batch.run.records import OutputRecipe
from unet_batch.run.session import Order, Session, Told

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Request

T = TypeVar("T")

_OPEN, _CALL, _BEGIN, _EXCHANGE = (f"{__name__}:{name}" for name in ("_open", "_call", "_begin", "_exchange"))
_SESSION = 0  # under which number a process keeps it


class PipeLink:
    """A link (see `crew`) to a process of this machine, which is started anew as often as `start` is called.

    Args:
        cores: that it may use, as `os.sched_setaffinity` takes them; none for all.
    """

    def __init__(self, cores: Sequence[int] = ()) -> None:
        self._cores = tuple(cores)
        self._worker: Worker | None = None

    @property
    def pid(self) -> int:
        """The process as the system knows it; 0 if it does not run."""
        return 0 if self._worker is None else self._worker.pid

    def start(self, open_segmenter: Callable[[], Segmenter]) -> None:
        self.end()
        self._worker = Worker((_EXCHANGE,), shared=False, keep=0)
        self._ask(_OPEN, (self._cores, open_segmenter))

    def call(self, function: Callable[[Segmenter], T]) -> T:
        found: T = self._ask(_CALL, function)
        return found

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        self._ask(_BEGIN, (plan, recipe))

    def exchange(self, order: Order) -> Told:
        told: Told = self._ask(_EXCHANGE, order)
        return told

    def abort(self) -> None:
        if self._worker is not None:
            self._worker.abort()

    def end(self) -> None:
        if self._worker is not None:
            self._worker.end()

    def _ask(self, function: str, value: object) -> Any:
        assert self._worker is not None, "not started"
        answer, _ = self._worker.ask(function.encode(), pickle.dumps(value), (), None)
        return pickle.loads(answer)


def local_devices(
    names: Sequence[str], requests: Sequence[Request], open_segmenter: Callable[..., Segmenter]
) -> list[Device]:
    """A device (see `crew`) of this machine for each name, such as `cuda:1`; a name may be there twice.

    Args:
        requests: the models, with no `build`.
        open_segmenter: gives a segmenter, given requests; can be pickled.
    """
    devices = []
    for number, (name, cores) in enumerate(zip(names, shares_of_cores(len(names)), strict=True), 1):
        own = [replace(request, device=name) for request in requests]
        label = name if name.startswith("cuda") else f"{name} {number}"
        devices.append(Device(label, partial(open_segmenter, *own), PipeLink(cores)))
    return devices


def shares_of_cores(count: int) -> list[tuple[int, ...]]:
    """The cores of this process, dealt out to so many: each has as many threads as it has cores.

    None where the system does not pin processes, or where there are fewer cores than shares.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) < count or cpu_count() < len(cores):  # a quota is not of certain cores
        return [()] * count
    return [tuple(cores[len(cores) * n // count : len(cores) * (n + 1) // count]) for n in range(count)]


# In the process ---------------------------------------------------------------------------------------------


def _open(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[memoryview]]:
    cores, open_segmenter = pickle.loads(request)
    if cores:
        os.sched_setaffinity(0, cores)
    kept[_SESSION] = Session(open_segmenter)
    return pickle.dumps(None), []


def _call(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[memoryview]]:
    return pickle.dumps(pickle.loads(request)(kept[_SESSION].segmenter)), []


def _begin(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[memoryview]]:
    kept[_SESSION].begin(*pickle.loads(request))
    return pickle.dumps(None), []


def _exchange(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[memoryview]]:
    return pickle.dumps(kept[_SESSION].exchange(pickle.loads(request))), []
