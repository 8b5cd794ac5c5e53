"""The composition root of `unet-batch build-engine`: checkpoint -> ONNX -> plan, proven before it is
installed.

    built = build_engine(BuildOptions(model="cars.safetensors", engines_dir="engines"))

Nothing is installed that was not proven: the share of half precision is counted, and masks are compared with
those of PyTorch in float32, by the plan itself where a GPU can run it, else by its ONNX graph.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unet_batch import gpu
from unet_batch.engine import onnx_model, proof, store
from unet_batch.engine.compiler import (
    HARDWARE_COMPAT,
    CompilerOptions,
    Profile,
    check_can_build,
    compile_plan,
)
from unet_batch.engine.flavours import NAMES, Flavour, install_line
from unet_batch.engine.onnx_model import GRAPH_VERSION, OnnxModel, OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.engine.store import Engine, Recipe, Sidecar
from unet_batch.errors import BackendError, BackendUnavailable, CheckpointError, OutputError, UsageError
from unet_batch.files.atomic import make_folder, write_atomic
from unet_batch.model import checkpoint
from unet_batch.model.checkpoint import CheckpointFile
from unet_batch.types import ModelSpec, Size
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.model.checkpoint import Checkpoint
    from unet_batch.types import Pixels

BUILDERS = ("auto", *NAMES)
DEFAULT_BATCH = (1, 32, 32)
# ONNX Runtime on a CPU holds all activations of a batch: so many pixels in a batch are enough to prove it.
_ONNX_PIXELS = 64 * 160 * 240


@dataclass(frozen=True)
class BuildOptions:
    """What to build; see `unet-batch build-engine --help`.

    Attributes:
        model: a checkpoint, or an ONNX graph that this program exported (then PyTorch is not needed).
        engines_dir: where it goes.
        size: (height, width), smallest, best and largest; None takes the model's own for all three.
        batch: smallest, best and largest.
        precision, opset: of the graph; opset None takes the default.
        builder: one of `BUILDERS`.
        workspace: most bytes of scratch memory; None leaves it to TensorRT.
        opt_level: 0..5; None leaves it to TensorRT.
        hardware_compat: see `CompilerOptions`.
        timing_cache: file that makes later builds faster; None keeps one in `engines_dir`.
        onnx_only: stop after the graph.
        force: build even if a fitting engine is there.
        proof_images: pictures to prove it on, as sources of `run`; none draws scenes.
    """

    model: str
    engines_dir: str = "engines"
    size: tuple[Size, Size, Size] | None = None
    batch: tuple[int, int, int] = DEFAULT_BATCH
    precision: str = "fp16"
    opset: int | None = None
    builder: str = "auto"
    workspace: int | None = None
    opt_level: int | None = None
    hardware_compat: str = "none"
    timing_cache: str | None = None
    onnx_only: bool = False
    force: bool = False
    proof_images: tuple[str, ...] = ()


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
    """

    onnx: str | None = None
    engine: Engine | None = None
    was_there: bool = False
    proofs: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    missing: str = ""
    fix: str = ""


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
    for what, value, known in (
        ("precision", options.precision, tuple(proof.MIN_DICE)),
        ("builder", options.builder, BUILDERS),
        ("hardware_compat", options.hardware_compat, HARDWARE_COMPAT),
    ):
        if value not in known:
            raise UsageError(f"{what} {value!r} is not known", hint=f"choose from: {', '.join(known)}")
    source = _Source(options.model)
    size = options.size or (source.spec.input_size,) * 3
    profile = Profile(options.batch, size)
    for each in size:
        onnx_model.check_size(each, source.spec)
    if source.onnx is not None and options.proof_images:
        raise UsageError(
            f"{options.model} is an ONNX graph: PyTorch's masks of other pictures need the checkpoint",
            hint="leave --proof-images out, or build from the checkpoint",
        )
    flavour, missing = (None, None) if options.onnx_only else _builder(options.builder)
    recipe = None if flavour is None else _recipe(options, source, profile, flavour)
    if recipe and not options.force and (engine := _existing(options.engines_dir, recipe, source.spec)):
        return Built(engine=engine, was_there=True)

    def waiting() -> None:
        progress("another process builds this; waiting", 0)

    stem = recipe.stem(source.spec) if recipe else f"{store.file_name(source.spec)}-{source.sha256[:8]}"
    with store.building(options.engines_dir, stem, waiting) as waited:
        if recipe and waited and (engine := _existing(options.engines_dir, recipe, source.spec)):
            return Built(engine=engine, was_there=True)
        work = _Work(options, source, profile, flavour, recipe, progress)
        try:
            built = work.build(())
        except _Imprecise as failed:
            kept = work.offenders()
            if not kept:
                raise failed.error from None
            work.notes.append(
                f"{options.precision} breaks {', '.join(kept)}: kept in float32 ({failed.error.message})"
            )
            try:
                built = work.build(kept)
            except _Imprecise as again:
                raise again.error from None
    return built if missing is None else replace(built, missing=missing.message, fix=missing.hint)


class _Imprecise(Exception):
    """Parity fell below the limit: a second build may help."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(error.message)
        self.error = error


class _Source:
    """What is built from: a checkpoint, or a graph that was exported from one elsewhere."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.onnx: OnnxModel | None = None
        self.file: CheckpointFile | None = None
        self._checkpoint: Checkpoint | None = None
        if path.lower().endswith(".onnx"):
            self.onnx = onnx_model.read(path)
            self.spec, self.sha256 = self.onnx.spec, self.onnx.source_sha256
        else:
            self.file = checkpoint.identify(path)
            self.spec, self.sha256 = self.file.spec, self.file.sha256

    @property
    def checkpoint(self) -> Checkpoint:
        if self._checkpoint is None:
            try:
                self._checkpoint = checkpoint.load(self.path)
            except (ImportError, OSError) as error:
                hint = "pip install torch, or build from an .onnx graph exported elsewhere: build-engine --onnx-only"
                raise BackendUnavailable(
                    f"exporting {self.path} needs PyTorch: {error}", hint=hint
                ) from error
            if self._checkpoint.sha256 != self.sha256:
                raise CheckpointError(f"{self.path}: changed while it was read", hint="run the command again")
        return self._checkpoint


class _Work:
    """One build: the graph, its proof, the plan, its proof."""

    def __init__(
        self,
        options: BuildOptions,
        source: _Source,
        profile: Profile,
        flavour: Flavour | None,
        recipe: Recipe | None,
        progress: Progress,
    ) -> None:
        self.options = options
        self.source = source
        self.profile = profile
        self.flavour = flavour
        self.recipe = recipe
        self.progress = progress
        self.notes: list[str] = []
        self.proofs: dict[str, Any] = {}
        self.shares: list[Mapping[str, Any]] = []
        self.graph: OnnxModel
        self._reference: Reference | None = None

    @property
    def weak(self) -> bool:
        """TensorRT 8.6 takes a float32 graph and is told to use half."""
        return self.flavour is not None and not self.flavour.strongly_typed

    def build(self, kept: Sequence[str]) -> Built:
        """All of it; the graph alone where nothing compiles it."""
        options, flavour, recipe = self.options, self.flavour, self.recipe
        self.export(kept)
        onnx_path = self.write_onnx()
        if flavour is None or recipe is None:
            return Built(onnx=onnx_path, proofs=self.proofs, shares=self.shares, notes=self.notes)
        cache_path = options.timing_cache or os.path.join(
            options.engines_dir, f".timing-{recipe.flavour}-{recipe.version}-{recipe.target}.cache"
        )
        compiler = CompilerOptions(
            options.precision,
            options.workspace,
            options.opt_level,
            options.hardware_compat,
            float32=tuple(name for name, found in self.graph.convolutions.items() if found.layer in kept),
        )
        if options.timing_cache and flavour.name == "tensorrt-rtx":
            self.notes.append("tensorrt-rtx keeps no timing cache: it times nothing")
        compiled = compile_plan(
            flavour,
            self.graph.data,
            self.profile,
            compiler,
            timing_cache=_read(cache_path),
            progress=lambda share: self.progress(f"build with {flavour.name} {flavour.version}", share),
        )
        if compiled.timing_cache:
            try:
                write_atomic(cache_path, compiled.timing_cache)
            except OutputError as error:  # what it would save is no reason to lose what was built
                self.notes.append(f"the timing cache was not kept: {error.message}")
        if compiled.precisions:
            self._count(compiled.precisions, "network")
        sidecar = Sidecar(
            spec=self.source.spec,
            recipe=recipe,
            plan_sha256=onnx_model.sha256(compiled.plan),
            plan_bytes=len(compiled.plan),
            float32=self.graph.float32,
            shares=(),
            proofs={},
            verified_on_gpu=False,
            built=_circumstances(compiled.seconds),
        )
        verified = self._prove_plan(compiled.plan, sidecar)
        sidecar = replace(sidecar, shares=tuple(self.shares), proofs=self.proofs, verified_on_gpu=verified)
        engine = store.install(options.engines_dir, sidecar, compiled.plan, self.reference)
        return Built(onnx=onnx_path, engine=engine, proofs=self.proofs, shares=self.shares, notes=self.notes)

    def export(self, kept: Sequence[str]) -> None:
        """Make the graph, count its precision, and compare it with PyTorch."""
        self.proofs.clear()
        self.shares.clear()
        self.progress("export to ONNX", 0)
        self.graph = self.source.onnx or self._export(kept)
        if self.graph.size is not None and self.profile.size != (self.graph.size,) * 3:
            height, width = self.graph.size
            raise UsageError(
                f"{self.source.path} takes {height}x{width} only", hint=f"use --size {height}x{width}"
            )
        if not self.weak:
            self._count({name: found.precision for name, found in self.graph.convolutions.items()}, "onnx")
        try:
            runner = OnnxRunner(self.graph.data)
        except BackendUnavailable as error:
            self.notes.append(f"the graph was not compared with PyTorch: {error.message}")
            return
        height, width = self.profile.size[1]
        most = max(2, _ONNX_PIXELS // (height * width))
        batches = [min(batch, most) for batch in (1, *self.profile.batch[1:])]
        done = 0

        def infer(pictures: Pixels) -> Pixels:
            nonlocal done
            maps = runner(pictures)
            done += len(pictures)
            self.progress("compare ONNX with PyTorch", min(1.0, done / total))
            return maps

        total = sum(
            batch + batch // 2 if batch > 1 else len(self.reference.pictures)
            for batch in dict.fromkeys(batches)
        )
        parities = proof.prove(lambda batch: infer, self.reference, self.source.spec, batches)
        self._judge(f"onnxruntime {runner.version}", parities)

    def write_onnx(self) -> str:
        """Write the graph, and beside it the reference, with which it can be built and proven without
        PyTorch.
        """
        if self.source.onnx is not None:
            return self.source.path
        height, width = self.profile.size[1]
        free = "" if self.graph.size else "-any"
        opset = f"-opset{self.graph.opset}" if self.options.opset or self.weak else ""
        kind = f"{height}x{width}{free}-{self.graph.precision}{opset}-{self.source.sha256[:8]}"
        path = os.path.join(self.options.engines_dir, f"{store.file_name(self.source.spec)}-{kind}.onnx")
        make_folder(self.options.engines_dir)
        write_atomic(os.path.splitext(path)[0] + ".npz", store.pack(self.reference))
        write_atomic(path, self.graph.data, sync=True)
        return path

    def offenders(self) -> tuple[str, ...]:
        """Layers that half precision breaks; none for a graph that came without its weights."""
        if self.source.onnx is not None:
            return ()
        from unet_batch.engine import export

        self.progress("look for the layers that lose precision", 0)
        return export.offenders(self.source.checkpoint, self.reference, self.options.precision)

    @property
    def reference(self) -> Reference:
        """Pictures and PyTorch's float32 maps of them."""
        if self._reference is None:
            if self.source.onnx is not None:
                self._reference = store.unpack(os.path.splitext(self.source.path)[0] + ".npz")
            else:
                loaded = self.source.checkpoint  # first of all: it says so where PyTorch is missing
                # Imported here: a graph brings its own pictures, and is built where no decoder and no PyTorch
                # are installed.
                from unet_batch.engine import export
                from unet_batch.engine.pictures import proof_pictures

                pictures, note = proof_pictures(
                    self.options.proof_images, self.source.spec, self.profile.size[1]
                )
                count = len(pictures)
                maps = export.reference_maps(
                    loaded, pictures, lambda done: self.progress("PyTorch in float32", done / count)
                )
                self._reference = Reference(pictures, maps)
                self.notes.extend([note] if note else [])
            itself = proof.compare(self._reference.maps, self._reference.maps, self.source.spec)
            if itself.is_weak:
                self.notes.append(
                    f"the proof is weak: {itself.foreground:.1%} of its pictures' pixels are foreground to "
                    f"this model; "
                    "give pictures of your own with --proof-images"
                )
        return self._reference

    def _export(self, kept: Sequence[str]) -> OnnxModel:
        loaded = self.source.checkpoint  # first of all: it says so where PyTorch is missing
        from unet_batch.engine import export

        low, best, high = self.profile.size
        precision = "fp32" if self.weak else self.options.precision
        newest = self.flavour.max_opset if self.flavour is not None else None
        opset = self.options.opset or newest
        if opset is not None and newest is not None and opset > newest:
            raise UsageError(
                f"opset {opset}: {self.flavour} reads up to {newest}", hint=f"use --opset {newest}"
            )
        return export.export(
            loaded, precision=precision, size=best, any_size=low != high, opset=opset, float32=kept
        )

    def _count(self, precisions: Mapping[str, str], where: str) -> None:
        counted = proof.share(
            self.graph.convolutions, self.options.precision, self.graph.float32, precisions, where
        )
        counted.check()
        self.shares.append(proof.as_dict(counted))

    def _judge(self, name: str, parities: Mapping[str, proof.Parity]) -> None:
        self.proofs[name] = {batch: proof.as_dict(parity) for batch, parity in parities.items()}
        for batch, parity in parities.items():
            try:
                parity.check(self.options.precision, f"{name}, {batch}")
            except BackendError as error:
                raise _Imprecise(error) from error

    def _prove_plan(self, plan: bytes, sidecar: Sidecar) -> bool:
        """Run the plan; whether it could be. Raises when it could and its masks are wrong."""
        if reason := gpu.missing():
            self.notes.append(f"the plan was not run here ({reason})")
            return False
        from unet_batch.inference.backends.tensorrt import execute_proof

        assert self.flavour is not None
        self.progress("compare the plan with PyTorch", 0)
        try:
            ran = execute_proof(self.flavour, plan, sidecar, self.reference, self.graph.convolutions)
        except BackendUnavailable as error:
            if self.weak:  # nothing else says whether 8.6 used half precision at all
                raise
            self.notes.append(f"the plan was not run here ({error.message})")
            return False
        self.shares.extend(ran.shares)
        self.notes.extend(ran.notes)
        self._judge(ran.gpu, ran.parities)
        return True


def _builder(name: str) -> tuple[Flavour | None, BackendUnavailable | None]:
    """The flavour that builds; for `auto` None, and what to install, where none can."""
    if name != "auto":
        flavour = Flavour(name)
        check_can_build(flavour)
        return flavour, None
    reasons = []
    for candidate in NAMES:
        try:
            return _builder(candidate)
        except BackendUnavailable as error:
            reasons.append(error.message)
    best = NAMES[1] if gpu.missing() else NAMES[0]
    return None, BackendUnavailable("no engine was built: " + "; ".join(reasons), hint=install_line(best))


def _recipe(options: BuildOptions, source: _Source, profile: Profile, flavour: Flavour) -> Recipe:
    given = {
        "opt_level": options.opt_level,
        "workspace": options.workspace,
        "hardware_compat": None if options.hardware_compat == "none" else options.hardware_compat,
        "opset": options.opset,
    }
    if source.onnx is not None and source.onnx.facts["graph"] != GRAPH_VERSION:
        raise CheckpointError(
            f"{source.path}: version {source.onnx.facts['graph']} of the network's graph, this program "
            f"makes {GRAPH_VERSION}",
            hint="export it again: unet-batch build-engine CHECKPOINT --onnx-only",
        )
    found = gpu.driver()
    target = found.gpus[0].sm if flavour.needs_gpu_to_build and found is not None and found.gpus else "any"
    return Recipe(
        source_sha256=source.sha256,
        precision=options.precision,
        profile=profile,
        flavour=flavour.name,
        version=flavour.version,
        target=target,
        options={name: value for name, value in given.items() if value is not None},
    )


def _existing(folder: str, recipe: Recipe, spec: ModelSpec) -> Engine | None:
    """The engine of this very recipe, if it is whole."""
    try:
        engine = store.load(os.path.join(folder, recipe.stem(spec) + ".plan"))
        if engine.sidecar.recipe.key != recipe.key or engine.sidecar.refused:
            return None
        engine.read_plan()
        engine.read_reference()
    except (CheckpointError, BackendUnavailable):
        return None
    return engine


def _circumstances(seconds: float) -> dict[str, Any]:
    found = gpu.driver()
    return {
        "at": time.time(),
        "seconds": round(seconds, 3),
        "unet_batch": __version__,
        "gpu": found.gpus[0].name if found is not None and found.gpus else None,
        "driver_cuda": "{}.{}".format(*found.cuda) if found is not None else None,
    }


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def build_for_run(
    model: str, engines_dir: str, size: Size | None, batch_size: int | None, flavour: str, progress: Progress
) -> Built:
    """Build the engine that a run with these options looks for.

    Args:
        model: path of a checkpoint.
        engines_dir: where it goes.
        size: (height, width) of the network's input; None takes the model's own.
        batch_size: most pictures in one pass; None takes the default.
        flavour: `tensorrt` or `tensorrt-rtx`.
        progress: hears of each stage and its share.

    Raises:
        UnetBatchError: as from `build_engine`.
    """
    sizes = None if size is None else (size, size, size)
    batch = DEFAULT_BATCH if batch_size is None else (1, batch_size, batch_size)
    return build_engine(BuildOptions(model, engines_dir, sizes, batch, builder=flavour), progress)
