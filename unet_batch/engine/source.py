"""A model's file: a checkpoint, or a graph; what engines are built from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.engine import onnx_model, proof
from unet_batch.engine.onnx_model import OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendUnavailable, CheckpointError, UsageError
from unet_batch.model import checkpoint, foreign, zoo

if TYPE_CHECKING:
    from unet_batch.engine.onnx_model import OnnxModel
    from unet_batch.model.checkpoint import Checkpoint, ModelFile
    from unet_batch.types import Size


def is_graph(path: str) -> bool:
    """Whether a model's file is an ONNX graph, by its name or its first bytes."""
    try:
        found = foreign.recognise(path)
    except OSError:  # whoever reads it says so better
        found = None
    return path.lower().endswith(".onnx") or (found is not None and found.is_onnx)


def identify(path: str) -> ModelFile:
    """Read what a model's file says of itself, checkpoint or graph, without its weights and PyTorch.

    Raises:
        CheckpointError: it cannot be read, or is of another kind.
        BackendUnavailable: reading a graph needs onnx.
    """
    return onnx_model.identify(path) if is_graph(path) else checkpoint.identify(path)


class Source:
    """A checkpoint or a graph, by its path.

    Attributes:
        onnx: the graph; None for a checkpoint.
        spec: of the model.
        sha256: of the checkpoint.

    Raises:
        CheckpointError: it cannot be read.
        BackendUnavailable: reading a graph needs onnx.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.onnx: OnnxModel | None = None
        file = identify(path)
        self.spec, self.sha256 = file.spec, file.sha256
        if file.is_graph:
            self.onnx = onnx_model.read(path)

    @property
    def is_bundled(self) -> bool:
        """Whether it is a bundled model, or a graph of one."""
        bundled = (checkpoint.identify(zoo.resolve(name)).sha256 for name in zoo.BUNDLED)
        return self.sha256 in bundled

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The network with its weights. Raises BackendUnavailable where PyTorch is missing."""
        try:
            loaded = checkpoint.load(self.path)
        except (ImportError, OSError) as error:
            hint = (
                "pip install torch, or build from an .onnx graph exported elsewhere: build-engine --onnx-only"
            )
            raise BackendUnavailable(f"exporting {self.path} needs PyTorch: {error}", hint=hint) from error
        if loaded.sha256 != self.sha256:
            raise CheckpointError(f"{self.path}: changed while it was read", hint="run the command again")
        return loaded

    def export(
        self, precision: str, size: Size, *, any_size: bool, opset: int | None, float32: Sequence[str]
    ) -> OnnxModel:
        """The graph; see `engine.export.export`. One that is there already is taken as it is, or halved."""
        if self.onnx is not None:
            if precision == "bf16" and self.onnx.precision != "bf16" and self.spec.architecture == "onnx":
                raise UsageError(
                    f"{self.path}: of an imported graph in {self.onnx.precision} there are engines in fp32 "
                    "and fp16, not in bf16",
                    hint="leave --precision out, or use --precision fp16",
                )
            if not self._can_halve(precision):
                return self.onnx
            from unet_batch.engine import halving

            return halving.halve(self.onnx, float32)
        loaded = self.checkpoint  # first of all: it says so where PyTorch is missing
        from unet_batch.engine import export

        return export.export(
            loaded, precision=precision, size=size, any_size=any_size, opset=opset, float32=float32
        )

    def _can_halve(self, precision: str) -> bool:
        """Whether this is an imported graph, asked for in half precision; checkpoints are exported in it."""
        kind = (self.spec.architecture, self.onnx and self.onnx.precision, precision)
        return kind == ("onnx", "fp32", "fp16")

    def provable(self, graph: OnnxModel) -> bytes:
        """What ONNX Runtime runs to prove a graph that `export` gave: of a halved one an imitation."""
        if self.onnx is None or not self._can_halve(graph.precision):
            return graph.data
        from unet_batch.engine import halving

        return halving.halve(self.onnx, graph.float32, imitated=True).data

    def offenders(self, reference: Reference, precision: str) -> tuple[str, ...]:
        """Layers that half precision breaks; none of a graph that was exported, in one precision."""
        if self.onnx is not None:
            if not self._can_halve(precision):
                return ()
            from unet_batch.engine import halving

            return halving.offenders(self.onnx, reference)
        from unet_batch.engine import export

        return export.offenders(self.checkpoint, reference, precision)

    def make_reference(
        self, proof_images: Sequence[str], size: Size, progress: Callable[[str, float], None]
    ) -> tuple[Reference, list[str]]:
        """Pictures, their float32 maps, and remarks.

        PyTorch computes the maps of a checkpoint. A graph brings what PyTorch computed before; where it does
        not, or where other pictures are given, ONNX Runtime computes them, of a graph in float32.

        Args:
            proof_images: sources of pictures; none draws scenes.
            size: (height, width) of the network's input.
            progress: called with what computes and the share of the maps that is done, 0..1.

        Raises:
            BackendUnavailable: PyTorch, or ONNX Runtime for a graph, is missing.
            UsageError: see `proof_pictures`.
        """
        beside, notes = os.path.splitext(self.path)[0] + ".npz", list[str]()
        brings = self.onnx is not None and (self.onnx.precision != "fp32" or os.path.isfile(beside))
        if brings and not proof_images:
            from unet_batch.engine import store

            reference = store.unpack(beside)
        else:
            reference, note = self._compute_reference(proof_images, size, progress)
            notes += [note] if note else []
        itself = proof.compare(reference.maps, reference.maps, self.spec)
        if itself.is_weak:
            notes.append(
                f"the proof is weak: {itself.foreground:.1%} of its pictures' pixels are foreground to this "
                "model; give pictures of your own with --proof-images"
            )
        return reference, notes

    def _compute_reference(
        self, proof_images: Sequence[str], size: Size, progress: Callable[[str, float], None]
    ) -> tuple[Reference, str]:
        # First of all: it says so where PyTorch or ONNX Runtime is missing
        loaded, runner = (self.checkpoint, None) if self.onnx is None else (None, self._float32_runner())
        # Imported here: a graph that brings its maps is built where no decoder is installed.
        from unet_batch.engine.pictures import proof_pictures

        pictures, note = proof_pictures(proof_images, self.spec, size)
        if loaded is not None:
            from unet_batch.engine import export

            made_by = "PyTorch"
            maps = export.reference_maps(
                loaded, pictures, lambda done: progress("PyTorch in float32", done / len(pictures))
            )
        else:
            assert runner is not None
            made_by, single = "ONNX Runtime", []
            for number, picture in enumerate(pictures):
                single.append(runner(picture[None]))
                progress("ONNX Runtime in float32", (number + 1) / len(pictures))
            maps = np.concatenate(single)
        return Reference(pictures, maps, made_by), note

    def _float32_runner(self) -> OnnxRunner:
        assert self.onnx is not None
        if self.onnx.precision != "fp32":
            raise UsageError(
                f"{self.path}: a graph in {self.onnx.precision} cannot tell what its masks are in float32",
                hint=f"leave --proof-images out and keep the .npz beside it, or {onnx_model.EXPORT}",
            )
        return OnnxRunner(self.onnx.data)
