"""What is done with a backend or a program, whatever they are: tests do it without a GPU."""

from __future__ import annotations

import gc
import hashlib
import importlib
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine import proof
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.cuda_memory import CudaMemory, Resource
from unet_batch.inference.backends.streaming import Program

if TYPE_CHECKING:
    from unet_batch.types import Pixels

THREADS = 3
# Held memory comes in pieces: some versions of PyCUDA clear no more than 4 GB at once.
_PIECE = 2**31
LEAST_PIECE = 2**21


def repeated(reference: Reference, count: int) -> tuple[Pixels, Pixels]:
    """As many pictures and maps as are wanted."""
    order = np.arange(count) % len(reference.pictures)
    return reference.pictures[order], reference.maps[order]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and all rounds."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def fill_buffers(backend: Backend, pictures: Iterable[Pixels]) -> list[Pixels]:
    """Pictures in buffers of the backend."""
    buffers = []
    for picture in pictures:
        buffer = backend.buffer()
        buffer[:] = picture
        buffers.append(buffer)
    return buffers


def in_threads(count: int, work: Callable[[int], None]) -> float:
    """Seconds until `count` threads have done `work(number)`; the first exception of one is raised here."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - begun


# Are the masks right, and always the same? ------------------------------------------------------------------


def exercise(backend: Backend, reference: Reference, rounds: int = 5) -> dict[str, Any]:
    """Masks of an open backend against PyTorch's, and against its own in other batches, buffers and threads.

    `ragged` holds, by batch size, whether the maps are equal to the byte; `digest` tells whether two backends
    agree.
    """
    full = backend.batch_size
    pictures, truth = repeated(reference, max(2 * full + full // 2, len(reference.pictures)))
    with backend.thread():
        maps = proof.run_in_batches(lambda part: backend.infer(list(part)), pictures, full)
        sizes = sorted({size for size in (1, 2, 3, full // 2, full - 1, full) if 1 <= size <= full})
        few = min(len(pictures), full + 1)
        ragged = {}
        for size in sizes:
            again = proof.run_in_batches(lambda part: backend.infer(list(part)), pictures[:few], size)
            ragged[str(size)] = bool(np.array_equal(again, maps[:few]))
        own = np.array_equal(backend.infer(fill_buffers(backend, pictures[:full])), maps[:full])
    different = [0] * THREADS

    def work(number: int) -> None:
        with backend.thread():
            for turn in range(rounds):
                for start in range(0, len(pictures), full):
                    # Each thread in an order of its own, so that maps that went astray are not equal by
                    # chance.
                    chosen = np.roll(np.arange(len(pictures)), -(7 * number + turn))[start : start + full]
                    found = backend.infer(fill_buffers(backend, pictures[chosen]))
                    different[number] += int((found != maps[chosen]).any(axis=(1, 2)).sum())

    in_threads(THREADS, work)
    return {
        "batch": full,
        "parity": proof.as_dict(proof.compare(maps, truth, backend.spec)),
        "digest": hashlib.sha256(maps.tobytes()).hexdigest()[:16],
        "ragged": ragged,
        "own_buffers_equal": bool(own),
        "threads": THREADS,
        "different_in_threads": sum(different),
        "notes": list(backend.notes),
    }


def problems(entry: dict[str, Any], least_dice: float) -> list[str]:
    """What is wrong with the result of `exercise`, a few words each."""
    found = []
    if not entry["parity"]["dice"] >= least_dice:
        found.append(f"Dice {entry['parity']['dice']:.5f} is below {least_dice}")
    if uneven := [size for size, equal in entry["ragged"].items() if not equal]:
        found.append(f"batches of {', '.join(uneven)} give other bytes")
    if not entry["own_buffers_equal"]:
        found.append("pictures in the backend's own buffers give other bytes")
    if entry["different_in_threads"]:
        found.append(f"{entry['different_in_threads']} maps differ with {entry['threads']} threads")
    return found


@contextmanager
def count_launches(memory: CudaMemory) -> Iterator[list[int]]:
    """Count launches of CUDA graphs, as the list's only number: notes would not prove that there are any."""
    count, launch = [0], memory.launch

    def counting(graph: Resource, stream: Resource) -> None:
        count[0] += 1
        launch(graph, stream)

    memory.launch = counting  # type: ignore[method-assign]
    try:
        yield count
    finally:
        del memory.launch  # the instance's own; the class's is there again


# Speed ------------------------------------------------------------------------------------------------------


def hammer(backend: Backend, pictures: Pixels, batches: int, threads: int = THREADS) -> float:
    """Seconds for `batches` full batches from several threads, out of buffers of the backend."""
    ready = [fill_buffers(backend, pictures) for _ in range(threads)]

    def work(number: int) -> None:
        with backend.thread():
            for _ in range(batches // threads + (number < batches % threads)):
                backend.infer(ready[number])

    return in_threads(threads, work)


def pipelined(
    backend: Backend, reference: Reference, rounds: int, batches: int, threads: int = THREADS
) -> dict[str, Any]:
    """Throughput of `Backend.infer` with copies overlapped."""
    pictures, _ = repeated(reference, backend.batch_size)
    hammer(backend, pictures, max(threads, batches // 5), threads)
    seconds = [hammer(backend, pictures, batches, threads) for _ in range(rounds)]
    return rates(seconds, batches, backend.batch_size) | {
        "threads": threads,
        "clock": "wall",
        "notes": list(backend.notes),
    }


def rates(seconds: Sequence[float], batches: int, batch: int) -> dict[str, Any]:
    """Images a second and milliseconds a batch, of rounds of `batches`."""
    return {
        "batch": batch,
        "batches_a_round": batches,
        "images_per_s": spread([batches * batch / second for second in seconds]),
        "ms_per_batch": spread([1000 * second / batches for second in seconds]),
    }


def gpu_seconds(
    memory: CudaMemory, stream: Resource, work: Callable[[], object], count: int
) -> tuple[float, str]:
    """Seconds for `count` times `work` in a stream, and the clock: GPU time between events if possible."""
    start = end = None
    if memory.name == "pycuda":
        cuda = importlib.import_module("pycuda.driver")
        start, end = cuda.Event(), cuda.Event()  # those of `CudaMemory` keep no time
    elif memory.name == "torch":
        torch = importlib.import_module("torch")
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun = time.perf_counter()
    if start is not None:
        start.record(stream.raw)
    for _ in range(count):
        work()
    if end is not None:
        end.record(stream.raw)
    memory.synchronize(stream)
    wall = time.perf_counter() - begun
    if start is None or end is None:
        return wall, "wall"
    milliseconds = end.time_since(start) if memory.name == "pycuda" else start.elapsed_time(end)
    return float(milliseconds) / 1000, "events"


def engine_only(
    memory: CudaMemory,
    program: Program,
    shape: tuple[int, int, int],
    reference: Reference,
    batch: int,
    rounds: int,
    batches: int,
) -> dict[str, Any]:
    """The network alone: batches queued back to back in one stream, without copies.

    `graph` was captured after the first run, as the streaming executor does it, `graph_late` after many: an
    engine that compiles better kernels in the background would show there.
    """
    height, width, _ = shape
    with memory.current(), ExitStack() as undo:

        def keep(resource: Resource) -> Resource:
            undo.callback(memory.free, resource)
            return resource

        source = keep(memory.device(batch * math.prod(shape)))
        maps = keep(memory.device(batch * height * width))
        stream = keep(memory.stream())
        # Real pictures: zeros would need less power, and let the GPU run faster than it does.
        memory.upload(source, 0, np.ascontiguousarray(repeated(reference, batch)[0]), stream)
        execution = program.prepare(batch, source, maps)
        undo.callback(execution.close)
        undo.callback(memory.synchronize, stream)

        def enqueue() -> None:
            execution.enqueue(stream)

        found: dict[str, Any] = {}

        def measure(name: str, work: Callable[[], object]) -> None:
            gpu_seconds(memory, stream, work, max(1, batches // 5))
            timed = [gpu_seconds(memory, stream, work, batches) for _ in range(rounds)]
            found[name] = rates([seconds for seconds, _ in timed], batches, batch) | {"clock": timed[0][1]}

        def measure_graph(name: str) -> None:
            try:
                graph = keep(memory.capture(stream, enqueue))
            except BackendError as error:
                found[name] = {"reason": error.message}
                return
            measure(name, lambda: memory.launch(graph, stream))

        enqueue()
        memory.synchronize(stream)
        measure_graph("graph")
        measure("plain", enqueue)
        measure_graph("graph_late")
        memory.synchronize(stream)
    return found


# Memory -----------------------------------------------------------------------------------------------------


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not tell."""
    try:
        psutil = importlib.import_module("psutil")
        return int(psutil.Process().memory_info().rss)
    except ImportError:
        pass
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return None


def free_bytes(memory: CudaMemory) -> int:
    """Of GPU memory, after what Python and PyTorch keep for later was given back."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with memory.current():
        return memory.free_memory()[0]


def growth(backend: Backend, memory: CudaMemory, reference: Reference, batches: int) -> list[dict[str, Any]]:
    """Memory of an open backend after the first tenth of the batches, after half and at the end."""
    pictures, _ = repeated(reference, backend.batch_size)
    points, done = [], 0
    for goal in (max(THREADS, batches // 10), batches // 2, batches):
        hammer(backend, pictures, goal - done)
        done = goal
        points.append({"batches": done, "resident": resident(), "gpu_free": free_bytes(memory)})
    return points


@contextmanager
def hold_memory(memory: CudaMemory, nbytes: int, least: int = LEAST_PIECE) -> Iterator[int]:
    """Take GPU memory away from everybody else, down to pieces of `least` bytes; yields how much."""
    pieces: list[Resource] = []
    left, piece = nbytes, _PIECE
    try:
        while left >= least and piece >= least:
            try:
                with memory.current():
                    pieces.append(memory.device(min(piece, left)))
                left -= pieces[-1].nbytes
            except DeviceOutOfMemory:
                piece //= 2
        yield nbytes - left
    finally:
        with memory.current():
            for resource in pieces:
                memory.free(resource)


def starve(
    make: Callable[[], Backend],
    memory: CudaMemory,
    reference: Reference,
    shares: Sequence[float] = (0.9, 0.6, 0.3),
    least: int = LEAST_PIECE,
) -> dict[str, Any]:
    """Open a backend and run a batch while only a share of the memory it needs is free, and once more after.

    Args:
        make: a new backend at its full batch size.
        memory: with which the rest is held.
        reference: pictures and what comes out of PyTorch.
        shares: of the memory it took the first time.
        least: bytes of the smallest piece that is held, see `hold_memory`.
    """

    def attempt() -> dict[str, Any]:
        backend = make()
        asked = backend.batch_size
        pictures, truth = repeated(reference, asked)
        try:
            with backend, backend.thread():
                # Opening may have made batches smaller; the pictures stay as many.
                maps = proof.run_in_batches(
                    lambda part: backend.infer(list(part)), pictures, backend.batch_size
                )
                parity = proof.compare(maps, truth, backend.spec)
                left = free_bytes_now(memory)
        except BackendError as error:
            kind = type(error).__name__
            return {
                "asked": asked,
                "refused": error.message,
                "kind": kind,
                "hint": error.hint,
                "notes": list(backend.notes),
            }
        return {
            "asked": asked,
            "batch": backend.batch_size,
            "notes": list(backend.notes),
            "dice": parity.dice,
            "digest": hashlib.sha256(maps.tobytes()).hexdigest()[:16],
            "gpu_free_while_open": left,
        }

    attempt()  # loads kernels, which stay
    before = free_bytes(memory)
    alone = attempt()
    if "refused" in alone:
        raise BackendError(f"it does not even fit a GPU with {before:,} bytes free: {alone['refused']}")
    needed = before - alone["gpu_free_while_open"]
    result: dict[str, Any] = {"free_before": before, "needed": needed, "alone": alone, "starved": []}
    for share in shares:
        with hold_memory(memory, free_bytes(memory) - int(share * needed), least) as taken:
            result["starved"].append({"share": share, "held": taken} | attempt())
    result["after"] = attempt()
    result["free_after"] = free_bytes(memory)
    return result


def free_bytes_now(memory: CudaMemory) -> int:
    """Of GPU memory, with what PyTorch keeps for later counted as taken."""
    with memory.current():
        return memory.free_memory()[0]
