"""One model on one backend, measured at three levels; and the process it does that in.

*engine*: the backend alone, on pictures of the network's size that lie in its own buffers. *pipeline*:
decoded pictures in memory to maps, through the stages of `Segmenter.pipeline`. *files*: `unet-batch run` as
it is, from files to masks on disk.

Each backend is measured in a process of its own, so that memory is one backend's, and PyTorch is loaded only
where it is measured. The functions at the end are what such a process is asked for; see `processes`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch import gpu
from unet_batch.bench.simulated import open_simulated
from unet_batch.engine import source
from unet_batch.errors import ImageError, SourceError
from unet_batch.inference.backends.select import Request
from unet_batch.inference.segmenter import Segmenter, as_error, open_segmenter, source_of
from unet_batch.media import geometry, images
from unet_batch.pipeline import Failed, StageStats, cpu_count
from unet_batch.run.crew import Crew
from unet_batch.run.execute import execute
from unet_batch.run.links import local_devices
from unet_batch.run.observe import Observer
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.work import Task
from unet_batch.types import HasItem, Item, Prediction

if TYPE_CHECKING:
    from collections.abc import Callable

    from unet_batch.inference.backends.base import Backend
    from unet_batch.types import Failure, Pixels, Size

LEVELS = ("engine", "pipeline", "files")


@dataclass(frozen=True)
class Round:
    """One level, measured once.

    Attributes:
        pictures: that went through; `failed` did not.
        seconds: by the clock; `cpu` is the processor time in them, of all threads and processes.
        latencies: seconds of each call of the engine, which takes a batch; at the other levels of each
            picture from its turn to its result, waiting in between included.
        stages: what each stage did; none of the engine alone.
        failures: what was said of the first ones.
        memory, gpu_memory: bytes that the process has held at the most, and holds on GPUs; None where the
            system does not tell.
    """

    pictures: int
    seconds: float
    cpu: float
    latencies: Sequence[float]
    stages: Sequence[StageStats] = ()
    failed: int = 0
    failures: Sequence[str] = ()
    memory: int | None = None
    gpu_memory: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        """What `asdict` made of one, and JSON of that."""
        return cls(**{**values, "stages": [StageStats(**stage) for stage in values["stages"]]})


class Subject:
    """A segmenter to be measured.

    Args:
        segmenter: open; whoever opened it closes it.
        photos: files; those that cannot be decoded are left out, and noted.
        folder: where masks are written and removed again.

    Attributes:
        notes: what people should know.
        photos: those that can be decoded.

    Raises:
        SourceError: none of the photos can be decoded.
    """

    def __init__(self, segmenter: Segmenter, photos: Sequence[str], folder: str) -> None:
        self.segmenter = segmenter
        self.notes: list[str] = []
        self._folder = folder
        self.photos: list[str] = []
        self._pictures: list[Pixels] = []
        self._rates: dict[str, float] = {}
        height, width = segmenter.backend.input_size
        for photo in photos:
            at_least = geometry.OVERSAMPLING * height, geometry.OVERSAMPLING * width  # as a run decodes them
            try:
                picture = images.read(
                    photo,
                    at_least=at_least,
                    max_pixels=segmenter.max_pixels,
                    value_range=segmenter.view.options.range,
                    channels=segmenter.channels,
                )
            except ImageError as error:
                self.notes.append(f"left out: {error.message}")
                continue
            self.photos.append(photo)
            self._pictures.append(picture.pixels)
        if not self.photos:
            raise SourceError(f"none of {len(photos)} pictures can be decoded: {self.notes[0]}")

    def warm_up(self) -> None:
        """Run every level once, short: what is done once only is not measured, and how many fit is known."""
        for level in LEVELS:
            self._run(level, 0)

    def measure(self, level: str, seconds: float) -> Round:
        """Measure a level with as many pictures as took about so many seconds the last time."""
        return self._run(level, math.ceil(self._rates.get(level, 0.0) * seconds))

    def _run(self, level: str, count: int) -> Round:
        levels: dict[str, Callable[[int], Round]] = {
            "engine": self._measure_engine,
            "pipeline": self._measure_pipeline,
            "files": self._measure_files,
        }
        backend = self.segmenter.backend
        found = levels[level](max(count, 2 * backend.batch_size * backend.streams))
        self._rates[level] = found.pictures / max(1e-9, found.seconds)
        return dataclasses.replace(found, memory=peak_memory(), gpu_memory=gpu_memory(os.getpid()))

    def _measure_engine(self, count: int) -> Round:
        return engine_alone(self.segmenter.backend, count, self._pictures[0])

    def _measure_pipeline(self, count: int) -> Round:
        since: deque[float] = deque()
        taken: list[float] = []
        failures: list[str] = []

        def pictures() -> Iterator[HasItem]:
            for number in range(count):
                since.append(time.perf_counter())
                yield source_of(self._pictures[number % len(self._pictures)])

        begun, cpu = time.perf_counter(), time.process_time()
        nothing: Sequence[tuple[str, Callable[[Any], Prediction]]] = ()
        with self.segmenter.pipeline(pictures(), nothing) as results:
            for outcome in results:  # in the order of the source
                turn = since.popleft()
                if isinstance(outcome, Failed):
                    failures.append(as_error(outcome).message)
                else:
                    taken.append(time.perf_counter() - turn)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            stages = results.stats
        return Round(len(taken), seconds, cpu, taken, stages, len(failures), failures[:3])

    def _measure_files(self, count: int) -> Round:
        return _run_files(self.segmenter, self.photos, self._folder, count)


class SharedSubject:
    """`run --devices`: several processes, measured end to end alone.

    Args:
        crew: of processes that have started; whoever started them ends them.
        photos: files that can be decoded.
        folder: where masks are written and removed again.
    """

    def __init__(self, crew: Crew, photos: Sequence[str], folder: str) -> None:
        self.crew = crew
        self._photos, self._folder, self._rate = photos, folder, 0.0

    def measure(self, level: str, seconds: float) -> Round:
        """See `Subject.measure`; the first time a few for each process."""
        facts = self.crew.describe()
        least = 2 * facts["batch_size"] * facts["streams"] * facts["devices"]
        found = _run_files(self.crew, self._photos, self._folder, max(least, math.ceil(self._rate * seconds)))
        self._rate = found.pictures / max(1e-9, found.seconds)
        held = [peak_memory(), *(link.call(_peak_memory_of) for link in self.crew.links)]
        return dataclasses.replace(found, memory=None if None in held else sum(each or 0 for each in held))


def _peak_memory_of(segmenter: Segmenter) -> int | None:
    """Of the process that has it."""
    return peak_memory()


def _run_files(hands: Segmenter | Crew, photos: Sequence[str], folder: str, count: int) -> Round:
    """Segment so many files, the same again and again, by whoever does what `run` does."""
    out = tempfile.mkdtemp(dir=folder)
    try:
        plan = prepare(RunOptions(tuple(photos), out))
        items = tuple(
            dataclasses.replace(plan.items[number % len(plan.items)], key=f"{number:06}")
            for number in range(count)
        )
        observer, cpu = _Latencies(), time.process_time()
        report = execute(dataclasses.replace(plan, items=items, todo=items), hands, observer)
        cpu = (hands.cpu if isinstance(hands, Crew) else time.process_time()) - cpu
    finally:
        shutil.rmtree(out, ignore_errors=True)
    failures = [failure.message for failure in report.failures[:3]]
    return Round(report.done, report.seconds, cpu, observer.seconds, report.stages, report.failed, failures)


def engine_alone(backend: Backend, count: int, picture: Pixels | None = None) -> Round:
    """Run an open backend and nothing else, all its streams at once, each with whole batches.

    Args:
        backend: open.
        count: pictures at the least.
        picture: that all of them show, whatever its size; None shows noise.
    """
    calls = math.ceil(count / (backend.batch_size * backend.streams))
    if picture is None:
        picture = np.random.default_rng(0).integers(
            0, 256, (*backend.input_size, backend.spec.in_channels), np.uint8
        )
    filled = _resize(picture, backend.input_size)
    if filled.shape[2] > backend.spec.in_channels:
        filled = geometry.luminance(filled)
    batches = [[backend.buffer() for _ in range(backend.batch_size)] for _ in range(backend.streams)]
    for buffer in (buffer for batch in batches for buffer in batch):
        buffer[:] = filled

    def work(buffers: Sequence[Pixels]) -> list[float]:
        with backend.thread():
            return [_time(lambda: backend.infer(buffers)) for _ in range(calls)]

    with ThreadPoolExecutor(backend.streams) as threads:
        begun, cpu = time.perf_counter(), time.process_time()
        taken = [each for calls in threads.map(work, batches) for each in calls]
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return Round(len(taken) * backend.batch_size, seconds, cpu, taken)


def _resize(picture: Pixels, size: Size) -> Pixels:
    """The picture at another size, roughly."""
    (height, width), (rows, columns) = picture.shape[:2], (np.arange(side) for side in size)
    resized: Pixels = picture[rows * height // size[0]][:, columns * width // size[1]]
    return resized


class _Latencies(Observer):
    """Hears how long each picture was on its way."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def outcome(self, item: Item, failure: Failure | None) -> None:
        if failure is None and isinstance(item, Task):
            self.seconds.append(time.perf_counter() - item.since)


def _time(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def matrix_peak(side: int = 1024, seconds: float = 0.5) -> float:
    """FLOP/s of all cores: of the best of several float32 products in NumPy, by processor time.

    The clock would count what other programs do, too.
    """
    left, right = np.random.default_rng(0).random((2, side, side), np.float32)
    until, best = time.perf_counter() + seconds, math.inf
    while time.perf_counter() < until or best == math.inf:
        begun = time.process_time()
        left @ right
        best = min(best, time.process_time() - begun)
    return cpu_count() * 2 * side**3 / max(1e-9, best)


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not tell."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:  # not getrusage, which on Linux begins with the memory of whoever started it
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def gpu_memory(process: int) -> int | None:
    """Bytes that a process holds on NVIDIA GPUs, as nvidia-smi has it; None where it does not say."""
    if gpu.missing():
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = [line.split(",")[1].strip() for line in said.splitlines() if line.split(",")[0] == str(process)]
    return 2**20 * sum(map(int, found)) if found and all(each.isdigit() for each in found) else None


# What the process of a backend is asked for -----------------------------------------------------------------


def open_subject(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, Sequence[bytes]]:
    """Open a backend and warm it up; the answer says what it is. Or one for each of several devices.

    Or devices that only sleep, if there is a `rate`.
    """
    asked = json.loads(request)
    photos, folder, devices = asked.pop("photos"), asked.pop("folder"), asked.pop("devices")
    rate: float | None = asked.pop("rate")
    open_one = open_segmenter if rate is None else partial(open_simulated, rate)
    if asked["size"] is not None:
        asked["size"] = tuple(asked["size"])
    file = source.identify(asked.pop("model"))
    if devices:
        kept[1] = stack = ExitStack()  # of this process: it is left when that ends
        crew = stack.enter_context(Crew(local_devices(devices, [Request(file, **asked)], open_one)))
        kept[0] = shared = SharedSubject(crew, photos, folder)
        shared.measure("files", 0)
        return json.dumps({**crew.describe(), "subject_notes": [], "flops": None, "peak": None}).encode(), ()
    segmenter = open_one(Request(file, **asked))
    kept[0] = subject = Subject(segmenter, photos, folder)
    subject.warm_up()
    facts = {**segmenter.describe(), "subject_notes": subject.notes, "photos": subject.photos}
    facts |= {"flops": None, "peak": None}
    if segmenter.backend.name.startswith("torch"):
        from unet_batch.inference.backends import torch as backend
        from unet_batch.model.architectures import count_flops

        facts["flops"] = count_flops(segmenter.spec, segmenter.backend.input_size)
        if segmenter.backend.name == "torch-cuda":
            facts["peak"] = backend.matrix_peak()
    return json.dumps(facts).encode(), ()


def measure_level(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, Sequence[bytes]]:
    """Measure a level for some seconds; the answer is the round."""
    subject: Subject | SharedSubject = kept[0]
    return json.dumps(asdict(subject.measure(**json.loads(request)))).encode(), ()


FUNCTIONS = tuple(f"{__name__}:{each.__name__}" for each in (open_subject, measure_level))
