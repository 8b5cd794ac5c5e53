"""What every inference backend promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.errors import BackendError
from unet_batch.types import ModelSpec, Size

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.types import Pixels


class Backend(ABC):
    """Runs batches of pictures through one model.

    A backend is opened once, used by up to `streams` threads at the same time, and closed once; it is its own context manager:

        with TorchBackend(checkpoint) as backend:
            maps = backend.infer(pictures)

    Buffers: `infer` only reads the pictures it is given, and only until it returns; the caller may reuse them from then on. The
    maps it returns belong to the caller and are never written again.

    The maps of a picture do not depend on the batch it was in, so that a run that was cut short and resumed writes the same
    bytes as one that was not.

    Attributes:
        name: e.g. `torch-cpu`.
        precision: of the network's body: `fp32`, `bf16` or `fp16`.
        reason: why this backend and this precision were chosen, in a few words for people.
        spec: of the model it runs.
        batch_size: how many pictures one call takes at the most.
        streams: how many concurrent calls of `infer` pay off.
    """

    name: str
    precision: str
    reason: str
    spec: ModelSpec
    batch_size: int = 1
    streams: int = 1

    _is_open = False

    @property
    def input_size(self) -> Size:
        """(height, width) of the pictures that `infer` takes."""
        return self.spec.input_size

    def __enter__(self) -> Self:
        if self._is_open:
            raise BackendError(f"{self.name}: opened twice")
        self._open()
        self._is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_open = False
        self._close()

    def infer(self, pictures: Pixels) -> Pixels:
        """Maps of a batch: uint8 (N, H, W, C) -> uint8 (N, H, W), with (H, W) = `input_size` and 1 <= N <= `batch_size`.

        Raises:
            BackendError: not open, a wrong shape or dtype, or the device failed.
        """
        if not self._is_open:
            raise BackendError(f"{self.name}: infer() outside the `with` block")
        expected = (*self.input_size, self.spec.in_channels)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != expected or not 1 <= len(pictures) <= self.batch_size:
            got = f"{pictures.dtype} {pictures.shape}"
            raise BackendError(f"{self.name}: 1 to {self.batch_size} pictures of uint8 {expected} expected, got {got}")
        return self._infer(pictures)

    def thread(self) -> AbstractContextManager[object]:
        """Entered by every thread around its calls of `infer`, and left in the same thread."""
        return nullcontext()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _infer(self, pictures: Pixels) -> Pixels: ...

    @abstractmethod
    def _close(self) -> None: ...
