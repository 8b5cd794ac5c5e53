"""The contract of what holds CUDA's buffers, streams, events and graphs: what `streaming` needs, no more.

Whoever allocates something frees it. All work in the device's primary context, which TensorRT uses, too; it
is kept until the process ends, as PyTorch does, so that memory can be freed at any time and from any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_batch.types import Pixels


@dataclass(eq=False)
class Resource:
    """Something that belongs to CUDA, until `CudaMemory.free`.

    Attributes:
        raw: the library's own object; of page-locked memory a uint8 array (nbytes,). None once freed.
        address: where memory begins, or a stream's handle, as CUDA's C interface takes them; else 0.
        nbytes: the size of memory; else 0.
    """

    raw: Any
    address: int = 0
    nbytes: int = 0


class CudaMemory(ABC):
    """One GPU, for several threads at once. All but `current` must be called inside `current()`."""

    name: str  # of the library, as in `PROVIDERS`

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make the GPU the thread's own; may be nested.

        Raises:
            DeviceOutOfMemory, BackendError: in place of CUDA's own errors inside.
        """

    @abstractmethod
    def host(self, nbytes: int) -> Resource:
        """Page-locked memory, which copies to and from the GPU need to be asynchronous."""

    @abstractmethod
    def device(self, nbytes: int) -> Resource:
        """Memory of the GPU, zeroed."""

    @abstractmethod
    def stream(self) -> Resource:
        """A queue of work that no other stream waits for, nor it for them."""

    @abstractmethod
    def event(self) -> Resource:
        """A mark in a stream. Waiting for it blocks the thread and uses no processor time."""

    def free(self, resource: Resource) -> None:
        """Give something back that no work on the GPU uses any more; nothing happens the second time."""
        resource.raw = None  # the libraries free what nobody holds

    @abstractmethod
    def upload(self, target: Resource, offset: int, source: Pixels, stream: Resource) -> None:
        """Queue a copy of a C-contiguous array to the GPU, `offset` bytes into `target`.

        `source` must stay as it is until the copy is done.
        """

    @abstractmethod
    def download(self, target: Resource, source: Resource, nbytes: int, stream: Resource) -> None:
        """Queue a copy of the first bytes of GPU memory to the beginning of page-locked memory."""

    @abstractmethod
    def record(self, event: Resource, stream: Resource) -> None:
        """Mark what was queued so far; an earlier mark of the event is forgotten."""

    @abstractmethod
    def wait(self, stream: Resource, event: Resource) -> None:
        """Let what is queued from now on begin after the event's mark; one without a mark delays nothing."""

    def synchronize(self, resource: Resource) -> None:
        """Wait for the event's mark or for all work of the stream; releases the interpreter lock."""
        resource.raw.synchronize()

    @abstractmethod
    def free_memory(self) -> tuple[int, int]:
        """Bytes of GPU memory: free, and in all."""

    @abstractmethod
    def capture(self, stream: Resource, enqueue: Callable[[], None]) -> Resource:
        """A CUDA graph of what `enqueue` queues in the stream; nothing of it runs now.

        Nothing else may be queued in the stream meanwhile. `enqueue` must have run before with the same
        addresses and shapes.

        Raises:
            BackendError: there are no graphs here, or not of this; the stream is as before.
        """

    @abstractmethod
    def launch(self, graph: Resource, stream: Resource) -> None:
        """Queue all the work of a graph at once."""


def one_line(error: Exception) -> str:
    """What a library says, on one line and not too long."""
    return " ".join(str(error).split())[:300]
