"""Small public stand-ins for tests of code that uses unet-batch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import RLock, get_ident, local
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.cuda_memory import CudaMemory, Resource
from unet_batch.types import ClassTable, ModelSpec, Size

if TYPE_CHECKING:
    from unet_batch.types import Pixels


def fake_spec(input_size: Size = (32, 48), classes: int = 1) -> ModelSpec:
    """A spec without a model."""
    return ModelSpec(
        name="fake",
        widths=(4, 8),
        in_channels=3,
        input_size=input_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        classes=ClassTable(
            tuple(f"class{i}" for i in range(classes)), tuple((40 * i % 256, 90, 200) for i in range(classes))
        ),
        output="probability" if classes == 1 else "class_ids",
    )


class FakeBackend(Backend):
    """Answers with the brightness of each pixel, so that the right answer is known without a model.

    Args:
        spec: what it claims to run.
        answer: replaces the brightness: uint8 (N, H, W, C) -> uint8 (N, H, W). May raise, to test failures.
        batch_size, streams: as in `Backend`.
    """

    name = "fake"
    precision = "fp32"
    reason = "asked for in a test"

    def __init__(
        self,
        spec: ModelSpec | None = None,
        answer: Callable[[Pixels], Pixels] | None = None,
        *,
        batch_size: int = 4,
        streams: int = 1,
    ) -> None:
        self.spec = spec or fake_spec()
        self.answer = answer or _brightness
        self.batch_size = batch_size
        self.streams = streams
        self.batches: list[int] = []

    def _open(self) -> None:
        self.batches.clear()

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        self.batches.append(len(pictures))
        return self.answer(np.asarray(pictures))

    def _close(self) -> None:
        pass


def _brightness(pictures: Pixels) -> Pixels:
    mean = pictures.mean(axis=3)
    return np.asarray(mean + 0.5, np.uint8)


class HostMemory(CudaMemory):
    """A GPU's memory that is the computer's own, for tests of what runs on a GPU.

    Work is only queued. It runs when somebody waits for it, and then no more of it than the events make
    necessary: a `wait` or `synchronize` that is missing shows as wrong bytes, not now and then but always.
    Misuse is an `AssertionError`. `fail` makes a call fail as CUDA's do.

    Args:
        capacity: bytes of device memory; None sets no limit.
        graphs: False refuses to capture.

    Attributes:
        alive: what was allocated and not freed: `host`, `device`, `stream`, `event` or `graph`.
        allocations: how many there were, of all kinds.
        launches: how many graphs were launched.
        calls: how often each method was called since the last `fail`.
    """

    name = "host"

    def __init__(self, capacity: int | None = None, *, graphs: bool = True) -> None:
        self.capacity = capacity
        self.graphs = graphs
        self.alive: dict[Resource, str] = {}
        self.allocations = 0
        self.launches = 0
        self.calls: Counter[str] = Counter()
        self._failures: dict[tuple[str, int], BaseException] = {}
        self._handles = count(1)
        self._lock = RLock()
        self._thread = local()
        self._capturing: dict[Resource, int] = {}  # stream: the thread that may queue in it
        self._freed: list[Any] = []  # so that one who still looks at it sees the pattern, and does not crash

    @property
    def used(self) -> int:
        """Bytes of device memory that are allocated."""
        return sum(resource.nbytes for resource, kind in self.alive.copy().items() if kind == "device")

    @property
    def pending(self) -> int:
        """Pieces of work that were queued and did not run."""
        return sum(len(resource.raw) for resource, kind in self.alive.copy().items() if kind == "stream")

    def queue(self, stream: Resource, work: Callable[[], object], *resources: Resource) -> None:
        """Queue anything in a stream: what launching a kernel is elsewhere.

        Args:
            stream: where.
            work: called once, when somebody waits for it.
            resources: what it uses; they must still be there when it runs.
        """
        self._use(stream, *resources)
        assert self._capturing.get(stream, get_ident()) == get_ident(), "another thread captures this stream"

        def run() -> None:
            self._use(*resources)
            work()

        stream.raw.append(run)

    def fail(self, method: str, call: int, error: BaseException | type[BaseException]) -> None:
        """Let one call fail: the `call`-th of a method from now on, counted from 1.

        `free` fails after it freed, as CUDA may report there what failed long before. All others fail before
        they did anything.

        Args:
            method: e.g. `upload`; anything else that calls `attempt`, too.
            call: which.
            error: raised by it. A `BackendError` comes as CUDA's errors come: in its place something else is
                raised, which `current` translates.
        """
        self.calls.clear()
        self._failures = {(method, call): error() if isinstance(error, type) else error}

    def attempt(self, method: str) -> None:
        """Count a call, and raise what `fail` asked for."""
        with self._lock:
            self.calls[method] += 1
            error = self._failures.pop((method, self.calls[method]), None)
        if isinstance(error, BackendError):
            raise _CudaError(error)
        if error is not None:
            raise error

    @contextmanager
    def current(self) -> Iterator[None]:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        try:
            yield
        except _CudaError as error:
            raise error.meaning from error
        finally:
            self._thread.depth -= 1

    def host(self, nbytes: int) -> Resource:
        self.attempt("host")
        return self._keep("host", np.full(nbytes, 0xAA, np.uint8))

    def device(self, nbytes: int) -> Resource:
        self.attempt("device")
        with self._lock:
            if self.capacity is not None and self.used + nbytes > self.capacity:
                raise _CudaError(
                    DeviceOutOfMemory(
                        f"{nbytes} bytes wanted, {self.capacity - self.used} of {self.capacity} are free"
                    )
                )
            return self._keep("device", np.zeros(nbytes, np.uint8))

    def stream(self) -> Resource:
        self.attempt("stream")
        return self._keep("stream", deque())

    def event(self) -> Resource:
        self.attempt("event")
        return self._keep("event", [])

    def free(self, resource: Resource) -> None:
        if resource.raw is None:
            return
        self._use(resource)
        assert not (isinstance(resource.raw, deque) and resource.raw), "a stream was freed with work in it"
        if self.alive.pop(resource) in ("host", "device"):
            resource.raw.fill(0xDD)
            self._freed.append(resource.raw)
        super().free(resource)
        self.attempt("free")

    def upload(self, target: Resource, offset: int, source: Pixels, stream: Resource) -> None:
        assert source.flags.c_contiguous, "not one piece of memory"
        assert 0 <= offset <= target.nbytes - source.nbytes, (
            f"{source.nbytes} bytes at {offset} of {target.nbytes}"
        )
        self.attempt("upload")
        self.queue(
            stream, lambda: np.copyto(target.raw[offset : offset + source.nbytes], source.reshape(-1)), target
        )

    def download(self, target: Resource, source: Resource, nbytes: int, stream: Resource) -> None:
        assert nbytes <= min(target.nbytes, source.nbytes), (
            f"{nbytes} bytes, from {source.nbytes} to {target.nbytes}"
        )
        self.attempt("download")
        self.queue(stream, lambda: np.copyto(target.raw[:nbytes], source.raw[:nbytes]), target, source)

    def record(self, event: Resource, stream: Resource) -> None:
        self.attempt("record")
        mark = _Mark(stream.raw)
        self.queue(stream, mark.pass_by, event)
        event.raw[:] = [mark]

    def wait(self, stream: Resource, event: Resource) -> None:
        self.attempt("wait")
        marks = tuple(event.raw)
        self.queue(stream, lambda: [mark.reach() for mark in marks], event)

    def synchronize(self, resource: Resource) -> None:
        self._use(resource)
        assert resource not in self._capturing, "a stream that is being captured cannot be waited for"
        self.attempt("synchronize")
        with self._lock:
            if isinstance(resource.raw, deque):
                while resource.raw:
                    resource.raw.popleft()()
            for mark in tuple(resource.raw):
                mark.reach()

    def free_memory(self) -> tuple[int, int]:
        self._use()
        self.attempt("free_memory")
        total = 2**40 if self.capacity is None else self.capacity
        return total - self.used, total

    def capture(self, stream: Resource, enqueue: Callable[[], None]) -> Resource:
        self._use(stream)
        if not self.graphs:
            raise BackendError("no CUDA graphs: refused in a test")
        with self.current():
            self.attempt("capture")
            before, stream.raw = stream.raw, deque()
            self._capturing[stream] = get_ident()
            try:
                enqueue()
                return self._keep("graph", tuple(stream.raw))
            finally:
                stream.raw = before
                del self._capturing[stream]

    def launch(self, graph: Resource, stream: Resource) -> None:
        self.attempt("launch")
        self.launches += 1
        for work in graph.raw:
            self.queue(stream, work, graph)

    def _use(self, *resources: Resource) -> None:
        assert getattr(self._thread, "depth", 0), "called outside `current()`"
        for resource in resources:
            assert resource in self.alive, "used after it was freed"

    def _keep(self, kind: str, raw: Any) -> Resource:
        self._use()
        resource = Resource(raw)
        if isinstance(raw, np.ndarray):
            resource.address, resource.nbytes = raw.ctypes.data, raw.nbytes
        elif kind == "stream":
            resource.address = next(self._handles)
        with self._lock:
            self.allocations += 1
            self.alive[resource] = kind
        return resource


class _CudaError(RuntimeError):
    """What a library raises for CUDA's errors, a RuntimeError as PyTorch's, and the error that it becomes."""

    def __init__(self, meaning: BackendError) -> None:
        super().__init__(meaning.message)
        self.meaning = meaning


class _Mark:
    """A place in a queue of work."""

    def __init__(self, queue: deque[Callable[[], object]]) -> None:
        self._queue = queue
        self._passed = False

    def pass_by(self) -> None:
        self._passed = True

    def reach(self) -> None:
        """Run what comes before it."""
        while not self._passed:
            self._queue.popleft()()
