"""The composition root of a build: export, prove, compile, prove, install.

Nothing is installed that was not proven: the share of half precision is counted, and masks are compared with
those in float32, by the plan itself where this machine can run it, else by its ONNX graph.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unet_batch import gpu
from unet_batch.build import builders
from unet_batch.build.builders import Builder, Job, UnprovenEngine, find_builder
from unet_batch.build.recipe import calibrate, default_precision, find_engine, make_recipe
from unet_batch.engine import int8, onnx_model, openvino, proof, store, triton
from unet_batch.engine.compiler import HARDWARE_COMPAT, CompilerOptions, NoKernel, Profile
from unet_batch.engine.onnx_model import OnnxModel, OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.engine.sidecar import EngineRecipe, Sidecar, file_name
from unet_batch.engine.source import Source
from unet_batch.engine.store import Engine
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.files.atomic import make_folder, write_atomic
from unet_batch.types import Size
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.engine.pictures import Calibration
    from unet_batch.types import Pixels

_FLOAT32 = "leave --precision out: engines in the graph's own float32, of any builder, compute the same masks"
DEFAULT_BATCH = (1, 32, 32)  # of a graph that nothing compiles here
# ONNX Runtime on a CPU holds all activations of a batch: so many pixels in a batch are enough to prove it.
_ONNX_PIXELS = 64 * 160 * 240


@dataclass(frozen=True)
class BuildOptions:
    """What to build; see `unet-batch build-engine --help`.

    Attributes:
        model: a checkpoint, or an ONNX graph of this program (then PyTorch is not needed).
        engines_dir: where it goes.
        size: (height, width), smallest, best and largest; None takes the model's own for all three.
        batch: smallest, best and largest; None takes the builder's own.
        precision: None takes the graph's own, of a checkpoint the builder's.
        opset: of the graph; None takes the default of the precision.
        builder: one of `builders.CHOICES`.
        workspace: most bytes of scratch memory; None leaves it to TensorRT.
        opt_level: 0..5; None leaves it to TensorRT.
        hardware_compat: see `CompilerOptions`.
        timing_cache: file that makes later builds faster; None keeps one in `engines_dir`.
        onnx_only: stop after the graph.
        force: build even if a fitting engine is there.
        proof_images: pictures to prove it on, as sources of `run`; none holds some of `calibration_images`
            out, or draws scenes.
        calibration_images: pictures that the ranges of INT8 are taken from; for a bundled model none draws
            scenes.
        triton: model repository of Triton Inference Server that gets what was built; None writes none.
    """

    model: str
    engines_dir: str = "engines"
    size: tuple[Size, Size, Size] | None = None
    batch: tuple[int, int, int] | None = None
    precision: str | None = None
    opset: int | None = None
    builder: str = "auto"
    workspace: int | None = None
    opt_level: int | None = None
    hardware_compat: str = "none"
    timing_cache: str | None = None
    onnx_only: bool = False
    force: bool = False
    proof_images: tuple[str, ...] = ()
    calibration_images: tuple[str, ...] = ()
    triton: str | None = None


@dataclass(frozen=True)
class Built:
    """What came out.

    Attributes:
        onnx: path of the graph; None where an engine was there already.
        engine: None where only the graph was asked for, or nothing is installed that builds engines.
        was_there: the engine existed and fits.
        proofs: parity of the graph, by what ran it.
        shares: of the graph's arithmetic in the precision asked for.
        notes: sentences for people.
        missing: why there is no engine though one was asked for, and `fix` the command that helps.
        triton: folder of the version in the model repository; None where none was asked for, or `missing`.
    """

    onnx: str | None = None
    engine: Engine | None = None
    was_there: bool = False
    proofs: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    missing: str = ""
    fix: str = ""
    triton: str | None = None


Progress = Callable[[str, float], None]


def build_engine(options: BuildOptions, progress: Progress = lambda stage, share: None) -> Built:
    """Build, prove and install an engine.

    Args:
        options: what to build.
        progress: called with the name of the stage and the share of it that is done, 0..1.

    Raises:
        UsageError: an option is out of range.
        CheckpointError: the model cannot be read.
        BackendUnavailable: the builder that was asked for cannot build here.
        BackendError: the graph or the engine failed to build, or failed its proof.
        OutputError: the folder cannot be written.
    """
    built = _find_or_build(options, progress)
    if options.triton is None or built.missing:
        return built
    if built.engine is not None:
        servable = triton.from_engine(built.engine)
    else:
        assert built.onnx is not None
        servable = triton.from_graph(onnx_model.read(built.onnx), (options.batch or DEFAULT_BATCH)[2])
    return replace(built, triton=triton.publish(options.triton, servable))


def _find_or_build(options: BuildOptions, progress: Progress) -> Built:
    for what, value, known in (
        ("precision", options.precision, (None, *proof.MIN_DICE)),
        ("builder", options.builder, builders.CHOICES),
        ("hardware_compat", options.hardware_compat, HARDWARE_COMPAT),
    ):
        if value not in known:
            raise UsageError(
                f"{what} {value!r} is not known", hint=f"choose from: {', '.join(filter(None, known))}"
            )
    source = Source(options.model)
    size = options.size or (source.spec.input_size,) * 3
    for each in size:
        onnx_model.check_size(each, source.spec)
    builder, missing = (None, None) if options.onnx_only else find_builder(options.builder)
    batch = DEFAULT_BATCH if builder is None else builder.batch
    if source.onnx is not None and source.onnx.batch is not None:
        batch = (source.onnx.batch,) * 3
    profile = Profile(options.batch or batch, size)
    precision = options.precision or default_precision(source, builder)
    if builder is not None:
        builder.check(precision, profile)
    if options.triton is not None:
        triton.check(options.triton, None if builder is None else builder.name, profile)
    is_float = source.onnx is None or source.onnx.precision == "fp32"
    if builder is not None and builder.takes_float32 and not is_float and precision != int8.NAME:
        assert source.onnx is not None
        raise UsageError(
            f"{options.model}: a graph in {source.onnx.precision}, {builder} takes one in float32",
            hint="export it again: unet-batch build-engine CHECKPOINT --onnx-only --precision fp32",
        )
    calibration = calibrate(options, precision, source, progress)
    recipe = None
    if builder is not None:
        recipe = make_recipe(options, precision, source, profile, builder, calibration)
    if recipe and not options.force and (engine := find_engine(options.engines_dir, recipe, source.spec)):
        return Built(engine=engine, was_there=True)

    def report_waiting() -> None:
        progress("another process builds this; waiting", 0)

    stem = recipe.stem(source.spec) if recipe else f"{file_name(source.spec)}-{source.sha256[:8]}"
    with store.lock_build(options.engines_dir, stem, report_waiting) as waited:
        if recipe and waited and (engine := find_engine(options.engines_dir, recipe, source.spec)):
            return Built(engine=engine, was_there=True)
        build = _Build(options, precision, source, profile, builder, recipe, progress, calibration)
        built = build.run_and_repair()
    return built if missing is None else replace(built, missing=missing.message, fix=missing.hint)


class _Imprecise(BackendError):
    """Parity fell below the limit: a second build may help."""


@dataclass(frozen=True)
class _Evidence:
    """What proves a graph or a plan.

    Attributes:
        shares: of the arithmetic in the precision asked for, as JSON.
        proofs: parity with float32 by what ran, as JSON.
    """

    shares: tuple[Mapping[str, Any], ...] = ()
    proofs: Mapping[str, Any] = field(default_factory=dict)

    def __add__(self, other: _Evidence) -> _Evidence:
        return _Evidence((*self.shares, *other.shares), {**self.proofs, **other.proofs})


class _Build:
    """One build: the graph, its proof, the plan, its proof. `notes` collects remarks of all attempts."""

    def __init__(
        self,
        options: BuildOptions,
        precision: str,
        source: Source,
        profile: Profile,
        builder: Builder | None,
        recipe: EngineRecipe | None,
        progress: Progress,
        calibration: Calibration | None,
    ) -> None:
        self.options = options
        self.precision = precision
        self.source = source
        self.profile = profile
        self.builder = builder
        self.recipe = recipe
        self.progress = progress
        self.calibration = calibration
        self.notes = [calibration.note] if calibration is not None and calibration.note else []
        self.replaced: dict[str, str] = {}

    @property
    def weak(self) -> bool:
        """The graph is float32, and the builder is told the precision."""
        return self.builder is not None and self.builder.takes_float32 and self.precision != int8.NAME

    @cached_property
    def reference(self) -> Reference:
        """Pictures and their float32 maps; made when first asked for."""
        held_out = self.calibration.held_out if self.calibration is not None else ()
        reference, notes = self.source.make_reference(
            self.options.proof_images or held_out, self.profile.size[1], self.progress
        )
        self.notes.extend(notes)
        return reference

    def run_and_repair(self) -> Built:
        """Build; again with layers in float32 that half precision breaks, or without what has no kernel."""
        kept: Sequence[str] = ()
        precision = self.precision
        while True:
            try:
                return self.run(kept)
            except _Imprecise as failed:
                mixed = kept or precision == int8.NAME  # which has kept what it can
                if mixed or (self.builder is not None and not self.builder.can_mix):
                    raise
                self.progress("look for the layers that lose precision", 0)
                if not (kept := self.source.offenders(self.reference, precision)):
                    if self.source.onnx is None or self.source.onnx.precision == precision:
                        raise
                    raise failed.with_hint(_FLOAT32) from failed
                self.notes.append(f"{precision} breaks {', '.join(kept)}: kept in float32 ({failed})")
            except NoKernel as error:
                if self.replaced:
                    raise
                self.replaced = {"transposed": onnx_model.REPLACEMENT}
                self.notes.append(
                    f"transposed convolutions are built as {onnx_model.REPLACEMENT}: {error.message}"
                )

    def run(self, kept: Sequence[str]) -> Built:
        """Build with some layers kept in float32; the graph alone where nothing compiles it.

        Raises:
            _Imprecise: masks differ too much from float32's.
            NoKernel: there is none for transposed convolutions.
        """
        graph = self.export(kept)
        evidence = self.prove_graph(graph)
        onnx_path = self.write_onnx(graph)
        engine = None
        if self.builder is not None and self.recipe is not None:
            engine, evidence = self.build(self.builder, self.recipe, graph, kept, evidence)
        notes = tuple(dict.fromkeys(self.notes))  # attempts may say the same
        return Built(onnx_path, engine, proofs=evidence.proofs, shares=evidence.shares, notes=notes)

    def build(
        self,
        builder: Builder,
        recipe: EngineRecipe,
        graph: OnnxModel,
        kept: Sequence[str],
        evidence: _Evidence,
    ) -> tuple[Engine, _Evidence]:
        """Compile the graph, prove the engine and install it; with all that proves it."""
        options = CompilerOptions(
            self.precision,
            self.options.workspace,
            self.options.opt_level,
            self.options.hardware_compat,
            float32=tuple(name for name, found in graph.convolutions.items() if found.layer in kept),
        )
        compiled = builder.compile(
            Job(
                graph,
                self.profile,
                options,
                self.options.engines_dir,
                self.options.timing_cache,
                lambda share: self.progress(f"build with {builder}", share),
            )
        )
        self.notes.extend(builder.notes)
        if compiled.precisions:
            evidence += self._count(graph, compiled.precisions, "network")
        sidecar = Sidecar(
            spec=self.source.spec,
            recipe=recipe,
            plan_sha256=onnx_model.sha256(compiled.plan),
            plan_bytes=len(compiled.plan),
            float32=graph.float32,
            shares=(),
            proofs={},
            verified_on_gpu=False,
            built={
                **_describe_build(compiled.seconds),
                "picture_bytes": onnx_model.picture_bytes(graph, self.profile.size[1]),
                **self.replaced,
                **({"calibration": graph.facts["calibration"]} if self.precision == int8.NAME else {}),
            },
        )
        ran = self.prove_plan(builder, compiled.plan, sidecar, graph)
        evidence += ran or _Evidence()
        sidecar = replace(
            sidecar,
            shares=evidence.shares,
            proofs=evidence.proofs,
            verified_on_gpu=ran is not None and not recipe.on_cpu,
        )
        return store.install(self.options.engines_dir, sidecar, compiled.plan, self.reference), evidence

    def export(self, kept: Sequence[str]) -> OnnxModel:
        """The graph: exported, or the one that the build starts from."""
        self.progress("export to ONNX", 0)
        low, best, high = self.profile.size
        newest = self.builder.max_opset if self.builder else None
        opset = self.options.opset or newest
        if self.source.onnx is None and opset is not None and newest is not None and opset > newest:
            raise UsageError(
                f"opset {opset}: {self.builder} reads up to {newest}", hint=f"use --opset {newest}"
            )
        precision = "fp32" if self.weak or self.calibration is not None else self.precision
        graph = self.source.export(precision, best, any_size=low != high, opset=opset, float32=kept)
        if graph.size is not None and self.profile.size != (graph.size,) * 3:
            height, width = graph.size
            raise UsageError(
                f"{self.source.path} takes {height}x{width} only", hint=f"use --size {height}x{width}"
            )
        graph = onnx_model.replace_transposed(graph) if self.replaced else graph
        if self.calibration is None:
            return graph
        on_cpu = self.recipe is not None and self.recipe.on_cpu
        return int8.quantize(graph, self.calibration, self.reference, on_cpu=on_cpu, progress=self.progress)

    def prove_graph(self, graph: OnnxModel) -> _Evidence:
        """Count the graph's precision, and compare its masks with float32's, as far as ONNX Runtime can."""
        evidence = _Evidence()
        if not self.weak:
            precisions = {name: found.precision for name, found in graph.convolutions.items()}
            evidence = self._count(graph, precisions, "onnx")
        if graph is self.source.onnx and self.reference.made_by != "PyTorch":  # but by ONNX Runtime, of it
            return evidence
        try:
            runner = OnnxRunner(self.source.provable(graph))
        except BackendUnavailable as error:
            self.notes.append(f"the graph was not compared with {self.reference.made_by}: {error.message}")
            return evidence
        height, width = self.profile.size[1]
        most = max(2, _ONNX_PIXELS // (height * width))
        batches = [min(batch, most) for batch in (1, *self.profile.batch[1:])]
        total = sum(
            batch + batch // 2 if batch > 1 else len(self.reference.pictures)
            for batch in dict.fromkeys(batches)
        )
        done = 0

        def infer(pictures: Pixels) -> Pixels:
            nonlocal done
            maps = runner(pictures)
            done += len(pictures)
            self.progress(f"compare ONNX with {self.reference.made_by}", min(1.0, done / total))
            return maps

        parities = proof.prove(lambda batch: infer, self.reference, self.source.spec, batches)
        return evidence + self._judge(f"onnxruntime {runner.version}", parities)

    def write_onnx(self, graph: OnnxModel) -> str:
        """Write the graph, and beside it the reference, to build and prove it without PyTorch; its path."""
        if self.source.onnx is not None and self.source.onnx.precision == graph.precision:
            return self.source.path
        height, width = self.profile.size[1]
        free = "" if graph.size else "-any"
        newest = None if self.builder is None else self.builder.max_opset
        opset = f"-opset{graph.opset}" if self.options.opset or newest else ""
        calibrated = f"-{self.calibration.sha256[:8]}" if self.calibration is not None else ""
        if calibrated and self.recipe is not None and self.recipe.on_cpu:
            calibrated += "-cpu"
        kind = f"{height}x{width}{free}-{graph.precision}{opset}-{self.source.sha256[:8]}{calibrated}"
        path = os.path.join(self.options.engines_dir, f"{file_name(self.source.spec)}-{kind}.onnx")
        if self.replaced:  # what is there is the graph that any TensorRT can be given
            return path
        make_folder(self.options.engines_dir)
        write_atomic(os.path.splitext(path)[0] + ".npz", store.pack(self.reference))
        write_atomic(path, graph.data, sync=True)
        return path

    def prove_plan(
        self, builder: Builder, plan: bytes, sidecar: Sidecar, graph: OnnxModel
    ) -> _Evidence | None:
        """Run the plan and compare its masks with float32's; None where it cannot be run here."""
        self.progress(f"compare the plan with {self.reference.made_by}", 0)
        try:
            ran = builder.prove(plan, sidecar, self.reference, graph)
        except UnprovenEngine:
            raise
        except BackendUnavailable as error:
            self.notes.append(f"the plan was not run here ({error.message})")
            return None
        self.notes.extend(ran.notes)
        return _Evidence(shares=tuple(ran.shares)) + self._judge(ran.device, ran.parities)

    def _count(self, graph: OnnxModel, precisions: Mapping[str, str], where: str) -> _Evidence:
        """Count the arithmetic in the precision asked for. Raises BackendError if it is too little."""
        counted = proof.share(graph.convolutions, self.precision, graph.float32, precisions, where)
        counted.check()
        return _Evidence(shares=(proof.as_dict(counted),))

    def _judge(self, name: str, parities: Mapping[str, proof.Parity]) -> _Evidence:
        """Check parity at each batch size. Raises _Imprecise below the limit."""
        for batch, parity in parities.items():
            try:
                parity.check(self.precision, f"{name}, {batch}")
            except BackendError as error:
                raise _Imprecise(error.message, hint=error.hint) from error
        return _Evidence(proofs={name: {batch: proof.as_dict(each) for batch, each in parities.items()}})


def _describe_build(seconds: float) -> dict[str, Any]:
    found = gpu.driver()
    return {
        "at": time.time(),
        "seconds": round(seconds, 3),
        "unet_batch": __version__,
        "gpu": found.gpus[0].name if found is not None and found.gpus else None,
        "driver_cuda": "{}.{}".format(*found.cuda) if found is not None else None,
    }


def build_for_run(
    model: str, engines_dir: str, size: Size | None, batch_size: int | None, flavour: str, progress: Progress
) -> Built:
    """Build the engine that a run with these options looks for.

    Args:
        model: path of a checkpoint or graph.
        engines_dir: where it goes.
        size: (height, width) of the network's input; None takes the model's own.
        batch_size: most pictures in one pass; None takes the default.
        flavour: `tensorrt`, `tensorrt-rtx` or `openvino`.
        progress: hears of each stage and its share.

    Raises:
        UnetBatchError: as from `build_engine`.
    """
    sizes = None if size is None else (size, size, size)
    batch = None if batch_size is None or flavour == openvino.NAME else (1, batch_size, batch_size)
    return build_engine(BuildOptions(model, engines_dir, sizes, batch, builder=flavour), progress)
