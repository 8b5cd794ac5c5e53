"""The workers of a Ray cluster: which places it has, and how a `Session` there is spoken with.

    with joined("auto") as cluster, Crew(cluster.arrivals(), cluster.arrivals) as crew:
        report = execute(plan, crew)

Ray carries code and model to the machines, starts processes there, and notices when one is lost. What is
handed to whom, what is on record, and what becomes of what a lost one had is a `Crew`'s, as on one machine.
Nothing else imports Ray.

A place is a GPU of a machine with its share of the cores, or all cores of a machine without GPUs: one process
keeps a device busy. In a cluster with GPUs only these are places, as masks of a CPU may differ from theirs in
single pixels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import shlex
import signal
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from unet_batch.errors import BackendError, OutputError, RunError, SourceError, SourceVanished, UsageError
from unet_batch.files import archives, remote
from unet_batch.files.atomic import write_atomic
from unet_batch.inference.segmenter import Segmenter
from unet_batch.processes import Died
from unet_batch.run.crew import Device, Lost, Pending
from unet_batch.run.links import shares_of_cores
from unet_batch.run.plan import RunPlan
from unet_batch.run.records import OutputRecipe
from unet_batch.run.session import Order, Session, Told

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Request

T = TypeVar("T")

_MOMENT = 0.25  # seconds that starting is waited for at once
_SIGHT = 20.0  # seconds until a file of this machine is seen by another one
_STORE = 128 * 2**20  # bytes of Ray's store of objects on this machine, which holds the model


@dataclass(frozen=True)
class Place:
    """What one process is to have of a cluster.

    Attributes:
        node: the machine, as Ray knows it.
        host: its name.
        cpus, gpus: so many of it.
        number, count: which of how many places of this machine, from 0.
    """

    node: str
    host: str
    cpus: int
    gpus: int
    number: int = 0
    count: int = 1


def places(nodes: Iterable[Mapping[str, Any]], *, on_gpus: bool) -> list[Place]:
    """The places of machines as `ray.nodes` tells of them: of each GPU, or of each machine without regard to
    GPUs."""
    found = []
    for node in nodes:
        resources = node["Resources"] if node["Alive"] else {}
        cpus = int(resources.get("CPU", 0))
        count = int(resources.get("GPU", 0)) if on_gpus else min(1, cpus)
        place = (node["NodeID"], node["NodeManagerHostname"], cpus // max(1, count), int(on_gpus))
        found += [Place(*place, number, count) for number in range(count)]
    return found


class Cluster:
    """A cluster that this process has joined.

    Args:
        address: as the user gave it, for messages.
        requests: the models; their files are shipped to where they are opened.
        open_segmenter: gives a segmenter, given requests.
    """

    def __init__(
        self, address: str, requests: Sequence[Request], open_segmenter: Callable[..., Segmenter]
    ) -> None:
        import ray

        self._requests, self._open = tuple(requests), open_segmenter
        self._on_gpus = self._choose(address, ray.nodes())
        self._files = list(map(ray.put, Shipment(open_segmenter, self._requests).contents()))
        self._known: set[tuple[str, int]] = set()
        self._names: Counter[str] = Counter()

    def _choose(self, address: str, nodes: Sequence[Mapping[str, Any]]) -> bool:
        """Whether GPUs are used, or CPUs."""
        request = self._requests[0]
        if request.device not in (None, "cpu", "cuda"):
            raise UsageError(
                f"--ray {address} contradicts --device {request.device}",
                hint="Ray hands out the GPUs of each machine: --device cuda or cpu, or leave it out",
            )
        kinds = {"cpu": {False: "CPUs"}, "cuda": {True: "GPUs"}, None: {True: "GPUs", False: "CPUs"}}
        wanted = kinds["cuda" if request.require_gpu else request.device]
        for on_gpus in wanted:
            if places(nodes, on_gpus=on_gpus):
                return on_gpus
        machines = sum(bool(node["Alive"]) for node in nodes)
        raise RunError(
            f"--ray {address}: the cluster has {machines:,} machines, and no {' or '.join(wanted.values())}",
            hint="`ray status` tells what it has; `ray start --num-cpus N --num-gpus M` what a machine gives",
        )

    def arrivals(self) -> list[Device]:
        """The places that have come since this was last called."""
        import ray

        found = []
        for place in places(ray.nodes(), on_gpus=self._on_gpus):
            if (place.node, place.number) not in self._known:
                self._known.add((place.node, place.number))
                found.append(self._device(place))
        return found

    def _device(self, place: Place) -> Device:
        name = f"{place.host} GPU {place.number}" if place.gpus else place.host
        self._names[name] += 1
        if self._names[name] > 1:  # it was here before, or shares its name
            name += f" ({self._names[name]})"
        device = "cuda" if place.gpus else "cpu"
        requests = [replace(request, device=device) for request in self._requests]
        return Device(name, Shipment(self._open, tuple(requests)), RayLink(place, self._files))


@contextmanager
def joined(
    address: str, requests: Sequence[Request], open_segmenter: Callable[..., Segmenter]
) -> Iterator[Cluster]:
    """Join a cluster, or start one of this machine alone, where the address is `local`.

    Raises:
        UsageError: Ray is not installed.
        RunError: there is no cluster, or it has nothing to compute on.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked whether Ray may call home
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--ray {address}: Ray is not installed", hint='pip install "unet-batch[ray]"'
        ) from error
    how: dict[str, Any] = {"address": address, "runtime_env": {"py_modules": [_package()]}}
    if address == "local":
        how = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE}
    with nullcontext() if ray.is_initialized() else _connected(address, how):
        _silence()
        yield Cluster(address, requests, open_segmenter)


@contextmanager
def _connected(address: str, how: Mapping[str, Any]) -> Iterator[None]:
    """Have Ray connected to a cluster.

    It connects in a thread of its own: in the main one it takes SIGTERM for itself, and ends with 15, or is
    aborted. What it starts ends with that thread.
    """
    import ray

    with ThreadPoolExecutor(1, "ray") as pool:
        joining = pool.submit(ray.init, **how, logging_level=logging.ERROR, log_to_driver=False)
        try:
            try:
                joining.result()
            except Exception as error:  # of half a dozen kinds: of gRPC, of Python, of Ray
                reason = " ".join(str(error).split())[:200]
                raise RunError(
                    f"--ray {address}: no cluster can be joined there: {reason}",
                    hint="`ray status` tells of one on this machine; others are HOST:6379 or ray://HOST:10001",
                ) from error
            if threading.current_thread() is threading.main_thread():
                # Its library would print a stack trace first
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            yield
        finally:
            wait([joining])  # Ctrl-C does not
            ray.shutdown()


def _package() -> str:
    """The folder of this package: what runs here is what runs there, whatever is installed."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _silence() -> None:
    """Keep Ray from printing what happens to its machines to stdout, which may be JSON. Reports tell, too."""
    with suppress(ImportError, AttributeError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *args, **kwargs: None


class RayLink:
    """A link (see `crew`) to a process of a cluster.

    Args:
        place: where it is.
        files: contents of the files of the models, in Ray's store.
    """

    def __init__(self, place: Place, files: Sequence[Any]) -> None:
        self.place = place
        self._files = tuple(files)
        self._actor: Any = None
        self._opening: Any = None

    def start(self, open_segmenter: Callable[..., Segmenter]) -> None:
        import ray

        if self._actor is None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            self._check_alive()
            there = NodeAffinitySchedulingStrategy(self.place.node, soft=False)
            self._actor = (
                ray.remote(_Actor)
                .options(num_cpus=self.place.cpus, num_gpus=self.place.gpus, scheduling_strategy=there)
                .remote()
            )
            cores = self.place.number, self.place.count
            self._opening = self._actor.open.remote(cores, open_segmenter, *self._files)
        if not ray.wait([self._opening], timeout=_MOMENT)[0]:
            self._check_alive()
            raise Pending
        self._result(self._opening)

    def call(self, function: Callable[[Segmenter], T]) -> T:
        found: T = self._result(self._actor.call.remote(function))
        return found

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        self._result(self._actor.begin.remote(plan, recipe, proof_of(plan)))

    def exchange(self, order: Order) -> Told:
        told: Told = self._result(self._actor.exchange.remote(order))
        if any(isinstance(outcome.error, SourceVanished) for outcome in told.outcomes):
            told = told._replace(outcomes=tuple(map(self._doubt, told.outcomes)))
        return told

    def _doubt(self, outcome: Any) -> Any:
        """A file that is gone there may be here: then that machine does not see it."""
        path = outcome.item.path
        if not isinstance(outcome.error, SourceVanished) or not archives.exists(path):
            return outcome
        hint = "all machines must see the sources under the same path"
        error = BackendError(f"{path}: {self.place.host} does not see it", hint=hint)
        return replace(outcome, error=error)

    def abort(self) -> None:
        if (actor := self._actor) is not None:
            import ray

            ray.kill(actor)

    def end(self) -> None:
        self.abort()
        self._actor = self._opening = None

    def _result(self, reference: Any) -> Any:
        """What an actor answers; raise what it raised, Died or Lost."""
        import ray

        try:
            value, error = ray.get(reference)
        except ray.exceptions.RayError as error:
            self.end()
            self._check_alive()
            raise _death(error) from error
        if error is not None:
            raise error
        return value

    def _check_alive(self) -> None:
        import ray

        if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == self.place.node):
            self.end()
            raise Lost(f"{self.place.host} is gone from the cluster")


def _death(error: Exception) -> Died:
    """What Ray says of an actor that is gone, as of a process of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    killed = any("memory" in line and "kill" in line for line in lines)
    return Died(-9 if killed else 1, "".join(filter(str.isprintable, lines[-1] if lines else ""))[:200])


def proof_of(plan: RunPlan) -> tuple[str, bytes] | None:
    """A file of the output folder and what is in it, which no other folder has; None where there is none."""
    if plan.outputs.store is not None:
        return None
    stem = f".run-{plan.part}" if plan.part else ".run"
    path = os.path.join(plan.outputs.folder, stem + ".owner")
    with suppress(OSError), open(path, "rb") as file:
        return path, file.read()
    return None  # a file system without locks


# The files of models ----------------------------------------------------------------------------------------


def _paths(request: Request) -> list[str]:
    return [path for path in (request.model.path, request.model.shared) if path]


@dataclass(frozen=True)
class Shipment:
    """Opens a segmenter elsewhere, given the contents of the files of its models.

    Attributes:
        open: gives a segmenter, given requests.
        requests: the models, with the paths that they have where the run was started.
    """

    open: Callable[..., Segmenter]
    requests: tuple[Request, ...]

    def contents(self) -> list[bytes]:
        """What the call takes, read where the run was started."""
        found = []
        for path in (path for request in self.requests for path in _paths(request)):
            with open(path, "rb") as file:
                found.append(file.read())
        return found

    def __call__(self, *contents: bytes) -> Segmenter:
        left, requests = list(contents), []
        for request in self.requests:
            paths = _paths(request)
            data, left = left[: len(paths)], left[len(paths) :]
            path, shared = (*_unpack(paths, data), "")[:2]
            requests.append(replace(request, model=replace(request.model, path=path, shared=shared)))
        segmenter = self.open(*requests)
        # Reports tell of the files that people know
        segmenter.models = tuple(request.model for request in self.requests)
        for known, here in zip(self.requests, requests, strict=True):
            names = shlex.quote(here.model.path), shlex.quote(known.model.path)
            segmenter.passed_over = tuple(
                replace(step, fix=step.fix.replace(*names)) for step in segmenter.passed_over
            )
        return segmenter


def _unpack(paths: Sequence[str], contents: Sequence[bytes]) -> list[str]:
    """Write files that belong together to a folder of this machine, unless they are there: their paths."""
    digest = hashlib.sha256()
    for data in contents:
        digest.update(data)
    folder = os.path.join(_models_folder(), digest.hexdigest())
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = []
    for path, data in zip(paths, contents, strict=True):
        file = os.path.join(folder, os.path.basename(path))
        with suppress(OSError), open(file, "rb") as before:
            if before.read() == data:
                found.append(file)
                continue
        write_atomic(file, data)
        found.append(file)
    return found


def _models_folder() -> str:
    """Where this machine keeps the models that it was sent, for all processes of this user and no other."""
    if not hasattr(os, "getuid"):  # Windows: temporary folders are one user's own
        return os.path.join(tempfile.gettempdir(), "unet-batch-models")
    user = os.getuid()
    folder = os.path.join(tempfile.gettempdir(), f"unet-batch-models-{user}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    there = os.lstat(folder)
    # Whoever may write there could put another model in the place of one that was just compared
    if stat.S_ISDIR(there.st_mode) and there.st_uid == user and not there.st_mode & 0o022:
        return folder
    return tempfile.mkdtemp(prefix="unet-batch-models-")


# There ------------------------------------------------------------------------------------------------------


class _Actor:
    """A process of a cluster, with a session; answers with pairs of a value and an error."""

    def __init__(self) -> None:
        self._session: Session

    def open(
        self, cores: tuple[int, int], open_segmenter: Callable[..., Segmenter], *files: bytes
    ) -> tuple[None, BaseException | None]:
        """Open a segmenter, on a share of the cores: which, of how many."""
        number, count = cores
        if count > 1 and (own := shares_of_cores(count)[number]):
            os.sched_setaffinity(0, own)

        def work() -> None:
            self._session = Session(lambda: open_segmenter(*files))

        return _answer(work)

    def call(self, function: Callable[[Segmenter], T]) -> tuple[T | None, BaseException | None]:
        return _answer(lambda: function(self._session.segmenter))

    def begin(
        self, plan: RunPlan, recipe: OutputRecipe, proof: tuple[str, bytes] | None
    ) -> tuple[None, BaseException | None]:
        def work() -> None:
            check_sight(plan, proof)
            self._session.begin(plan, recipe)

        return _answer(work)

    def exchange(self, order: Order) -> tuple[Told | None, BaseException | None]:
        return _answer(lambda: self._session.exchange(order))


def _answer(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - whoever asks gets it
        try:
            pickle.dumps(error)
        except Exception:  # noqa: BLE001 - they may raise anything
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def check_sight(plan: RunPlan, proof: tuple[str, bytes] | None) -> None:
    """Raise OutputError or SourceError where this machine does not see the folders of a plan."""
    host, until = platform.node(), time.monotonic() + _SIGHT
    while proof is not None:
        path, wanted = proof
        with suppress(OSError), open(path, "rb") as file:
            if file.read() == wanted:
                break
        if time.monotonic() > until:
            raise OutputError(
                f"{plan.outputs.folder} on {host} is not the output folder of this run",
                hint="-o names a folder that all machines share under the same path, or a bucket: s3://...",
            )
        time.sleep(0.5)
    for folder in plan.sources.folders:
        if not remote.is_remote(folder) and not archives.exists(folder):
            raise SourceError(
                f"{folder} is not there on {host}",
                hint="all machines must see the sources under the same path; or name a bucket: s3://...",
            )
