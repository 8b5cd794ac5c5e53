"""OpenVINO on CPUs: engines from `engine.store`. Imports no PyTorch.

Every stream is one thread of OpenVINO's that runs whole pictures by itself, as PyTorch's backend does it;
pictures of a batch go one by one. An engine that was never run on such a CPU is proven before its first use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.engine import proof
from unet_batch.engine.store import Engine
from unet_batch.errors import BackendError, UsageError
from unet_batch.inference.backends.base import Backend, streams_for
from unet_batch.inference.backends.proving import basename, complete_proof
from unet_batch.pipeline import cpu_count

if TYPE_CHECKING:
    from unet_batch.engine.openvino import LoadedEngine, OpenVino
    from unet_batch.engine.proof import Parity, Reference
    from unet_batch.types import Pixels, Size


class OpenVinoBackend(Backend):
    """Runs an engine.

    Args:
        library: that will load it.
        engine: as found by `engine.store`.
        size: (height, width) of the input, inside the engine's profile; None takes the profile's best.
        batch_size: None takes 1.
        reason: why this backend was chosen.

    Raises:
        UsageError: the size lies outside the profile.
    """

    def __init__(
        self,
        library: OpenVino,
        engine: Engine,
        *,
        size: Size | None = None,
        batch_size: int | None = None,
        reason: str = "",
    ) -> None:
        profile = engine.sidecar.recipe.profile
        self.library = library
        self.engine = engine
        self.spec = engine.sidecar.spec
        self.input_size = size or profile.size[1]
        if not profile.holds(self.input_size):
            height, width = self.input_size
            raise UsageError(f"{engine.path} takes {profile}, not {height}x{width}", hint=engine.rebuild)
        self.name = library.name
        self.precision = engine.sidecar.recipe.precision
        self.batch_size = batch_size or 1
        self.streams = cpu_count()
        self.reason = "; ".join(part for part in (reason, str(library), basename(engine.path)) if part)
        self._loaded: LoadedEngine | None = None

    def _open(self) -> None:
        height, width = self.engine.sidecar.recipe.profile.size[1]
        scale = math.prod(self.input_size) / (height * width)
        self.streams = streams_for(
            round(scale * self.engine.sidecar.built.get("picture_bytes", 0)), self.notes
        )
        loaded = self.library.load(self.engine.read_plan(), self.input_size, self.precision, self.streams)
        self._complete_proof(loaded)
        self._loaded = loaded

    def _complete_proof(self, loaded: LoadedEngine) -> None:
        """See `proving.complete_proof`; a batch is its pictures, one by one."""
        best = self.engine.sidecar.recipe.profile.size[1]

        def run(reference: Reference, batches: tuple[int, ...]) -> Mapping[str, Parity]:
            proven = loaded
            if self.input_size != best:
                proven = self.library.load(self.engine.read_plan(), best, self.precision, 1)
            return proof.prove(lambda batch: proven.batch, reference, self.spec, batches)

        name = self.library.cpu.name
        self.engine = complete_proof(self.engine, name, self.input_size, 1, run, self.notes)

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        loaded = self._loaded
        if loaded is None:
            raise BackendError(f"{self.name}: closed while it ran")
        return np.stack([loaded(picture[None]) for picture in pictures])

    def _close(self) -> None:
        self._loaded = None
