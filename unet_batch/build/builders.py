"""What compiles graphs into engines, and runs these for their proof: TensorRT, and OpenVINO for CPUs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from unet_batch import gpu
from unet_batch.engine import openvino, proof
from unet_batch.engine.compiler import Compiled, CompilerOptions, Profile, check_can_build, compile_plan
from unet_batch.engine.flavours import NAMES as TENSORRT
from unet_batch.engine.flavours import Flavour, install_line
from unet_batch.engine.onnx_model import OnnxModel
from unet_batch.engine.openvino import OpenVino
from unet_batch.engine.proof import ProofRun, Reference
from unet_batch.engine.sidecar import Sidecar
from unet_batch.errors import BackendUnavailable, OutputError, UsageError
from unet_batch.files.atomic import write_atomic

NAMES = (*TENSORRT, openvino.NAME)
CHOICES = ("auto", *NAMES)


@dataclass(frozen=True)
class Job:
    """What is compiled, and how.

    Attributes:
        graph: the graph.
        profile: shapes of its input.
        options: of TensorRT's compiler.
        engines_dir: where the engine goes.
        timing_cache: file of kernel timings; None keeps one in `engines_dir`.
        progress: hears of the share that is done, 0..1.
    """

    graph: OnnxModel
    profile: Profile
    options: CompilerOptions
    engines_dir: str
    timing_cache: str | None
    progress: Callable[[float], None]


class Builder(ABC):
    """What builds engines and can run them for their proof.

    Attributes:
        name: `tensorrt`, `tensorrt-rtx` or `openvino`.
        version: of the library.
        target: the device that an engine will be for, `sm_90`; `any` where it is compiled when it is loaded.
        precision: of engines, where nobody asks for another.
        batch: smallest, best and largest, where nobody asks for another.
        takes_float32: the graph is float32, and the precision is told to the builder; INT8 is in the graph.
        can_mix: single layers can be kept in float32.
        max_opset: newest ONNX opset it is known to read; None where it reads all that are written here.
        notes: remarks on what it did.
    """

    name: str
    version: str
    target = "any"
    precision: str
    batch: tuple[int, int, int]
    takes_float32: bool
    can_mix = True
    max_opset: int | None = None

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def check(self, precision: str, profile: Profile) -> None:  # noqa: B027 - most take all
        """Raise UsageError for what it does not build."""

    @abstractmethod
    def compile(self, job: Job) -> Compiled:
        """Compile a graph; see `compile_plan` for what it raises."""

    @abstractmethod
    def prove(self, plan: bytes, sidecar: Sidecar, reference: Reference, graph: OnnxModel) -> ProofRun:
        """Run an engine that is not installed yet on the pictures of the reference.

        Raises:
            BackendUnavailable: it cannot be run on this machine.
            BackendError: it failed while running, or its precision is not the one asked for.
        """


class TensorRTBuilder(Builder):
    """TensorRT or TensorRT-RTX. Raises BackendUnavailable where it cannot build on this machine."""

    precision = "fp16"
    batch = (1, 32, 32)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.flavour = Flavour(name)
        check_can_build(self.flavour)
        self.name, self.version = self.flavour.name, self.flavour.version
        self.max_opset = self.flavour.max_opset
        self.takes_float32 = not self.flavour.strongly_typed
        found = gpu.driver()
        if self.flavour.needs_gpu_to_build and found is not None and found.gpus:
            self.target = found.gpus[0].sm

    def compile(self, job: Job) -> Compiled:
        """See `Builder`; what makes the next build faster is kept."""
        cache_path = job.timing_cache or os.path.join(
            job.engines_dir, f".timing-{self.name}-{self.version}-{self.target}.cache"
        )
        if job.timing_cache and self.name == "tensorrt-rtx":
            self.notes.append("tensorrt-rtx keeps no timing cache: it times nothing")

        def keep(timings: bytes) -> None:
            try:
                write_atomic(cache_path, timings)
            except OutputError as error:  # what it would save is no reason to lose what was built
                self.notes.append(f"the timing cache was not kept: {error.message}")

        return compile_plan(
            self.flavour,
            job.graph.data,
            job.profile,
            job.options,
            timing_cache=_read(cache_path),
            keep_timings=keep,
            progress=job.progress,
        )

    def prove(self, plan: bytes, sidecar: Sidecar, reference: Reference, graph: OnnxModel) -> ProofRun:
        """See `Builder`."""
        if reason := gpu.missing():
            raise BackendUnavailable(reason)
        from unet_batch.inference.backends.tensorrt import run_proof

        try:
            return run_proof(self.flavour, plan, sidecar, reference, graph.convolutions)
        except BackendUnavailable as error:
            if self.takes_float32:  # nothing else says whether 8.6 used half precision at all
                raise UnprovenEngine(error.message, hint=error.hint) from error
            raise


class UnprovenEngine(BackendUnavailable):
    """An engine that cannot be run here, and that nothing else can prove."""


class OpenVinoBuilder(Builder):
    """OpenVINO. Raises BackendUnavailable where it cannot be used on this machine."""

    name = openvino.NAME
    batch = (1, 1, 1)
    takes_float32 = True
    can_mix = False

    def __init__(self) -> None:
        super().__init__()
        self.library = OpenVino()
        self.version = self.library.version
        self.precision = "bf16" if self.library.cpu.has_bf16 else "fp32"

    def check(self, precision: str, profile: Profile) -> None:
        """See `Builder`."""
        if precision not in openvino.PRECISIONS:
            raise UsageError(
                f"precision {precision!r}: {self.name} computes in int8, bf16 or fp32",
                hint=f"leave --precision out: it is {self.precision} on this CPU",
            )
        able = {"int8": self.library.cpu.has_int8, "bf16": self.library.cpu.has_bf16}.get(precision, True)
        if not able:
            raise UsageError(
                f"{precision}: {self.library.cpu.name} does not execute it", hint="leave --precision out"
            )
        if profile.batch != self.batch:
            raise UsageError(
                f"batch {','.join(map(str, profile.batch))}: engines of {self.name} take one picture at "
                "a time, on each core",
                hint="leave --batch out",
            )

    def compile(self, job: Job) -> Compiled:
        """See `Builder`."""
        return self.library.compile(job.graph.data, job.profile)

    def prove(self, plan: bytes, sidecar: Sidecar, reference: Reference, graph: OnnxModel) -> ProofRun:
        """See `Builder`."""
        recipe = sidecar.recipe
        loaded = self.library.load(plan, recipe.profile.size[1], recipe.precision, 1)
        found = loaded.precisions(graph.convolutions)
        shares = []
        told = {*found, *(name for name, each in graph.convolutions.items() if each.layer in sidecar.float32)}
        if found and len(told) == len(graph.convolutions):
            counted = proof.share(graph.convolutions, recipe.precision, sidecar.float32, found, "engine")
            counted.check()
            shares.append(proof.as_dict(counted))
        parities = proof.prove(lambda batch: loaded.batch, reference, sidecar.spec, (1,))
        return ProofRun(self.library.cpu.name, parities, shares)


def open_builder(name: str) -> Builder:
    """The builder of one of `NAMES`. Raises BackendUnavailable where it cannot build on this machine."""
    return OpenVinoBuilder() if name == openvino.NAME else TensorRTBuilder(name)


def find_builder(name: str) -> tuple[Builder | None, BackendUnavailable | None]:
    """The builder; for `auto` the first that can build here, or None and what to install."""
    if name != "auto":
        return open_builder(name), None
    reasons = []
    for candidate in NAMES:
        try:
            return open_builder(candidate), None
        except BackendUnavailable as error:
            reasons.append(error.message)
    best = openvino.NAME if gpu.missing() else TENSORRT[0]
    return None, BackendUnavailable("no engine was built: " + "; ".join(reasons), hint=install_line(best))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
