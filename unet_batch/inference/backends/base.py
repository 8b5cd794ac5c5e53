"""The contract of an inference backend: open, infer, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.pipeline import cpu_count
from unet_batch.types import ModelSpec, Size

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.types import Pixels


def free_memory(meminfo: str = "/proc/meminfo", group: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that this process may still fill, a container's limit counted; None where nothing tells."""
    free: int | None = None
    try:
        with open(meminfo, encoding="ascii") as file:
            free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        with open(f"{group}/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open(f"{group}/memory.current", encoding="ascii") as file:
            return max(0, min(free, limit - int(file.read())))
    except (OSError, ValueError, StopIteration):  # not Linux, an older control group, or "max": no limit
        return free


def streams_for(picture_bytes: int, notes: list[str]) -> int:
    """Streams on a CPU: one a core, or as many as the free memory holds pictures, which becomes a note."""
    cores, free = cpu_count(), free_memory()
    if free is None or picture_bytes * cores <= free:
        return cores
    streams = max(1, free // picture_bytes)
    needs = f"a picture takes about {picture_bytes / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free"
    notes.append(
        f"{needs}: {streams} of {cores} streams are used"
        if picture_bytes <= free
        else f"{needs}: it may run out of memory; close other programs, or use a smaller --size"
    )
    return streams


class Backend(ABC):
    """Runs batches of pictures through one model.

    `open` it, call `infer` from up to `streams` threads at the same time, `close` it; or use it as a context
    manager, which does both:

        with TorchBackend(checkpoint) as backend:
            maps = backend.infer(pictures)

    Buffers: `infer` only reads the pictures it is given, and only until it returns; the caller may reuse them
    from then on. The maps it returns belong to the caller and are never written again.

    The maps of a picture do not depend on the batch it was in, so that a run that was cut short and resumed
    writes the same bytes as one that was not.

    Out of memory: what does not fit is tried again in smaller pieces, and a note says so. `infer` still takes
    `batch_size`.

    Attributes:
        name: e.g. `torch-cpu`.
        precision: of the network's body: `fp32`, `bf16` or `fp16`.
        reason: why this backend and this precision were chosen, in a few words for people.
        spec: of the model it runs.
        batch_size: how many pictures one call takes at the most. Opening may lower it to what fits the GPU's
            memory.
        least_batch: the smallest batch worth trying when memory runs out.
        streams: how many concurrent calls of `infer` pay off.
    """

    name: str
    precision: str
    reason: str
    spec: ModelSpec
    batch_size: int = 1
    least_batch: int = 1
    streams: int = 1

    _is_open = False

    @cached_property
    def input_size(self) -> Size:
        """(height, width) that `infer` takes: the model's own, unless the backend sets another."""
        return self.spec.input_size

    @cached_property
    def notes(self) -> list[str]:
        """What people should know of this run: a sentence each, since the last opening."""
        return []

    @property
    def is_open(self) -> bool:
        """Whether it can be used now."""
        return self._is_open

    @property
    def members(self) -> tuple[Backend, ...]:
        """The backends of an ensemble; itself where it is none."""
        return (self,)

    def describe(self) -> dict[str, Any]:
        """What runs, and why, for reports: values that JSON can hold.

        `notes` is the list itself, so that a report written later holds what happens later, too.
        """
        return {
            "name": self.name,
            "reason": self.reason,
            "precision": self.precision,
            "input_size": list(self.input_size),
            "batch_size": self.batch_size,
            "streams": self.streams,
            "notes": self.notes,
        }

    def open(self) -> Self:
        """Load the model, and return the backend itself.

        Raises:
            BackendUnavailable: this machine cannot run it.
            BackendError: it is open already, or the device failed.
        """
        if self._is_open:
            raise BackendError(f"{self.name}: opened twice")
        self.notes.clear()
        self._open()
        self._lock = Lock()
        self._limit = self.batch_size  # of pictures that `_infer` is given at once
        self._is_open = True
        return self

    def close(self) -> None:
        """Release what `open` took; does nothing where it is not open."""
        if self._is_open:
            self._is_open = False
            self._close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, pictures: Sequence[Pixels]) -> Pixels:
        """Maps of a batch, from several threads at once.

        Args:
            pictures: 1 to `batch_size` arrays, each uint8 (H, W, C) and C-contiguous, with (H, W) =
                `input_size`; an array (N, H, W, C) is such a sequence, too. Fastest are those that `buffer`
                made.

        Returns:
            uint8 (N, H, W).

        Raises:
            BackendError: not open, a wrong number, shape or dtype, or the device failed.
            DeviceOutOfMemory: not even the smallest batch fits.
        """
        if not self._is_open:
            raise BackendError(f"{self.name}: infer() outside the `with` block")
        self._check(pictures)
        parts: list[Pixels] = []
        start = 0
        while start < len(pictures):
            limit = self._limit
            try:
                parts.append(self._infer(pictures[start : start + limit]))
                start += limit
            except DeviceOutOfMemory as error:
                self._halve(limit, error)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def buffer(self) -> Pixels:
        """Memory for one picture: uint8 (H, W, C), uninitialised, the caller's to keep and fill.

        A GPU copies straight from what its backend gives here. Safe to keep, also after the backend was
        closed.
        """
        return np.empty((*self.input_size, self.spec.in_channels), np.uint8)

    def thread(self) -> AbstractContextManager[object]:
        """Entered by every thread around its calls of `infer`, and left in the same thread."""
        return nullcontext()

    def _check(self, pictures: Sequence[Pixels]) -> None:
        expected = (*self.input_size, self.spec.in_channels)
        wrong = ""
        for picture in pictures:
            if picture.dtype != np.uint8 or picture.shape != expected:
                wrong = f", one of {picture.dtype} {picture.shape}"
            elif not picture.flags.c_contiguous:
                wrong = ", one not C-contiguous"
        if wrong or not 1 <= len(pictures) <= self.batch_size:
            got = f"{len(pictures)}{wrong}"
            raise BackendError(
                f"{self.name}: 1 to {self.batch_size} pictures of uint8 {expected} expected, got {got}"
            )

    def _halve(self, tried: int, error: DeviceOutOfMemory) -> None:
        """Halve the batches, once for all threads that failed at the same size, or raise at the least."""
        with self._lock:
            if self._limit == tried:
                self._limit = halve_batch(tried, self.least_batch, error, self.notes)
                self._resize(self._limit)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        """`infer` without its checks. What raises `DeviceOutOfMemory` is called again with fewer pictures."""

    def _resize(self, batch: int) -> None:  # noqa: B027 - most have nothing to do
        """Adapt to batches of at most `batch` from now on, but for calls that are on their way."""

    @abstractmethod
    def _close(self) -> None: ...


def halve_batch(batch: int, least: int, error: DeviceOutOfMemory, notes: list[str]) -> int:
    """Half the batch, for which there was no memory, with a note.

    Raises:
        DeviceOutOfMemory: half the batch is less than `least`.
    """
    smaller = batch // 2
    if smaller < least:
        hint = "close other programs that use the GPU, or choose a smaller input size"
        raise DeviceOutOfMemory(
            f"{error.message}, at a batch of {batch}, the smallest there is", hint=hint
        ) from error
    notes.append(f"out of GPU memory at a batch of {batch}: continuing with {smaller}")
    return smaller
