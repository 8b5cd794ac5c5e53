"""ONNX to a TensorRT plan: the only code that drives a builder."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unet_batch import gpu
from unet_batch.engine.flavours import Flavour
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.types import Size

HARDWARE_COMPAT = ("none", "ampere+", "same-cc")
_COMPAT_MEMBERS = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}
_DTYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Profile:
    """The shapes an engine takes, as TensorRT's optimization profile: smallest, best and largest.

    Attributes:
        batch: pictures, (min, opt, max); kernels are tuned for the second.
        size: (height, width) of the pictures, (min, opt, max).
    """

    batch: tuple[int, int, int]
    size: tuple[Size, Size, Size]

    def __post_init__(self) -> None:
        low, best, high = self.batch
        if not 1 <= low <= best <= high:
            raise UsageError(
                f"batch {low},{best},{high}: smallest, best and largest expected, in this order, from 1"
            )
        for axis in (0, 1):
            low, best, high = (size[axis] for size in self.size)
            if not 1 <= low <= best <= high:
                shown = ",".join(f"{height}x{width}" for height, width in self.size)
                raise UsageError(f"size {shown}: smallest, best and largest expected, in this order")

    def __str__(self) -> str:
        batch = (
            f"{self.batch[0]}"
            if len(set(self.batch)) == 1
            else "{}..{} (best {})".format(*_as_range(self.batch))
        )
        sizes = [f"{height}x{width}" for height, width in self.size]
        return f"batch {batch}, " + (
            sizes[0] if len(set(sizes)) == 1 else "{}..{} (best {})".format(*_as_range(sizes))
        )

    def holds(self, size: Size) -> bool:
        """Whether pictures of this size lie inside."""
        return all(self.size[0][axis] <= size[axis] <= self.size[2][axis] for axis in (0, 1))


@dataclass(frozen=True)
class CompilerOptions:
    """How to compile.

    Attributes:
        precision: `int8`, `fp16`, `bf16` or `fp32`: what the graph asks for; 8.6 needs to be told.
        workspace: most bytes of scratch memory a kernel may take; None leaves it to TensorRT.
        opt_level: 0 (quick build) to 5 (best kernels); None leaves TensorRT's own.
        hardware_compat: one of `HARDWARE_COMPAT`.
        float32: names of convolutions in the graph that stay float32; 8.6 needs to be told.
    """

    precision: str = "fp16"
    workspace: int | None = None
    opt_level: int | None = None
    hardware_compat: str = "none"
    float32: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """A plan, and what the builder made of the graph.

    Attributes:
        plan: the serialized engine, nothing added.
        precisions: of each convolution by its name in the ONNX graph; empty where only the plan can tell
            (8.6).
        seconds: that the build took.
    """

    plan: bytes
    precisions: Mapping[str, str]
    seconds: float


class NoKernel(BackendError):
    """TensorRT has no kernel for transposed convolutions; see `onnx_model.replace_transposed`."""


def check_can_build(flavour: Flavour) -> None:
    """Raise BackendUnavailable where a flavour cannot build on this machine."""
    if flavour.needs_gpu_to_build and (reason := gpu.missing()):
        raise BackendUnavailable(
            f"{flavour.name} {flavour.version} times its kernels on a GPU to build an engine: {reason}",
            hint="build on the machine that will run it; --builder tensorrt-rtx and --onnx-only need no GPU",
        )


def compile_plan(
    flavour: Flavour,
    onnx: bytes,
    profile: Profile,
    options: CompilerOptions,
    *,
    timing_cache: bytes | None = None,
    keep_timings: Callable[[bytes], None] = lambda timings: None,
    progress: Callable[[float], None] = lambda share: None,
) -> Compiled:
    """Compile a graph.

    Args:
        flavour: what compiles.
        onnx: the graph as bytes.
        profile: shapes of its input.
        options: how.
        timing_cache: of an earlier build by the same version; a stale one is ignored by TensorRT.
        keep_timings: called with the new timing cache, also where the build fails or is stopped; not
            where the flavour keeps none.
        progress: called with the share that is done, 0..1; what it raises stops the build and is raised here.

    Raises:
        BackendUnavailable: this machine cannot build with this flavour.
        NoKernel: TensorRT cannot build it for want of a kernel for transposed convolutions.
        BackendError: TensorRT cannot parse the graph or build it; the message is TensorRT's.
    """
    check_can_build(flavour)
    if options.precision == "bf16" and not flavour.strongly_typed:
        raise UsageError(f"{flavour} knows no bf16", hint="use --precision fp16")
    trt = flavour.module
    begun = time.perf_counter()
    flavour.errors.clear()
    builder = trt.Builder(flavour.logger)
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, flavour.logger)
    if not parser.parse(onnx):
        found = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        reasons = "; ".join(found) or flavour.take_errors()
        raise BackendError(f"{flavour.name} {flavour.version} cannot read the ONNX graph: {reasons[:500]}")
    config = builder.create_builder_config()
    _configure(flavour, config, options)
    cache = _set_timing_cache(flavour, config, timing_cache)
    picture = network.get_input(0)
    shapes = [
        (count, *size, picture.shape[3]) for count, size in zip(profile.batch, profile.size, strict=True)
    ]
    optimization = builder.create_optimization_profile()
    optimization.set_shape(picture.name, *shapes)
    if config.add_optimization_profile(optimization) < 0:
        raise BackendError(f"{flavour.name} refuses the profile {profile}: {flavour.take_errors()}")
    if not flavour.strongly_typed and options.precision != "fp32":
        _lower_precision(trt, network, config, options)
    with _catch_interrupts() as pressed:

        def step(share: float) -> None:
            if pressed:
                raise KeyboardInterrupt
            progress(share)

        monitor = flavour.progress_monitor(step)
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if cache is not None and (timings := cache.serialize()) is not None:  # None hides no failed build
        keep_timings(bytes(timings))
    if pressed:
        raise KeyboardInterrupt
    if monitor is not None and monitor.stopped_by is not None:
        raise monitor.stopped_by
    if plan is None:
        lacking = _lacks_deconvolution(trt, network, flavour.errors)
        raise (NoKernel if lacking else BackendError)(
            f"{flavour.name} {flavour.version} cannot build the engine: {flavour.take_errors()}",
            hint="not every version has bf16 for every layer; try --precision fp16"
            if options.precision == "bf16"
            else "",
        )
    precisions = _precisions(trt, network) if flavour.strongly_typed else {}
    return Compiled(bytes(plan), precisions, time.perf_counter() - begun)


@contextmanager
def _catch_interrupts() -> Iterator[list[int]]:
    """Yields a list that fills when Ctrl-C is pressed.

    TensorRT calls Python for every line of its log, and its bindings swallow what is raised there: an
    interrupt would be lost.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def _configure(flavour: Flavour, config: Any, options: CompilerOptions) -> None:
    trt = flavour.module
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.precision == "fp32":  # who asks for float32 does not want its mantissa cut to ten bits
        config.clear_flag(trt.BuilderFlag.TF32)
    # A U-Net is a chain: streams of its own would only add events, and make CUDA graphs harder to capture.
    config.max_aux_streams = 0
    # Names and formats of layers in the plan, so that their precision can be read from it.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # 8.6 lets one context use a profile unless asked, later releases any number; 10.10 gives memory back for
    # small batches.
    for feature in ("PROFILE_SHARING_0806", "RUNTIME_ACTIVATION_RESIZE_10_10"):
        if (member := getattr(trt.PreviewFeature, feature, None)) is not None:
            config.set_preview_feature(member, True)
    # TensorRT's own kernels: cuDNN and cuBLAS, which 8.6 would use as well, may be missing
    if not flavour.strongly_typed:
        own = trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS
        config.set_tactic_sources(sum(1 << int(source) for source in own))
    if options.hardware_compat == "none":
        return
    level = getattr(
        getattr(trt, "HardwareCompatibilityLevel", None), _COMPAT_MEMBERS[options.hardware_compat], None
    )
    if flavour.name == "tensorrt-rtx" or level is None:
        why = (
            "its engines run on every RTX generation anyway"
            if flavour.name == "tensorrt-rtx"
            else "needs a newer version"
        )
        raise UsageError(
            f"--hardware-compat {options.hardware_compat}: not in {flavour.name} {flavour.version} ({why})",
            hint="leave --hardware-compat out",
        )
    config.hardware_compatibility_level = level


def _set_timing_cache(flavour: Flavour, config: Any, data: bytes | None) -> Any | None:
    # In TensorRT-RTX the calls exist, do nothing and warn.
    if data is None or flavour.name == "tensorrt-rtx":
        return None
    cache = config.create_timing_cache(data)
    if not config.set_timing_cache(cache, False):
        flavour.errors.clear()
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _lower_precision(trt: Any, network: Any, config: Any, options: CompilerOptions) -> None:
    """Weak typing (8.6): the convolutions of the body in half, the head and all behind it in float32.

    INT8 is in the graph, and needs no more than to be allowed.
    """
    config.set_flag(getattr(trt.BuilderFlag, options.precision.upper()))
    if options.precision == "int8":
        return
    lower = trt.DataType.HALF if options.precision == "fp16" else trt.DataType.BF16
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    layers = _layers(network)
    head = max(index for index, layer in enumerate(layers) if _is_convolution(trt, layer))
    for index, layer in enumerate(layers):
        if index < head and _is_convolution(trt, layer):
            layer.precision = trt.DataType.FLOAT if layer.name in options.float32 else lower
        elif index == head or (
            index > head
            and layer.type in (trt.LayerType.RESIZE, trt.LayerType.ACTIVATION, trt.LayerType.ELEMENTWISE)
        ):
            layer.precision = trt.DataType.FLOAT


def _lacks_deconvolution(trt: Any, network: Any, errors: Iterable[str]) -> bool:
    """Whether TensorRT says that it cannot compute a transposed convolution, or a region that may hold one.

    8.6 to 10: `Could not find any implementation for node X.`, where X is a name, several, or the first and
    last of a region, `{ForeignNode[A...B]}`. Bfloat16 in 10 and RTX: `Could not infer output types for
    operation: 627: deconv: ...`.
    """
    names = [layer.name for layer in _layers(network) if layer.type == trt.LayerType.DECONVOLUTION]
    lacking = " ".join(error for error in errors if re.search(_NO_KERNEL, error, re.IGNORECASE))
    words = "|".join(["deconv", *map(re.escape, names)])
    return bool(names) and re.search(rf"ForeignNode\[|(?<!\w)({words})(?!\w)", lacking) is not None


_NO_KERNEL = "any implementation for node|could not infer output types"


def _precisions(trt: Any, network: Any) -> dict[str, str]:
    """The precision each convolution of a strongly typed network computes in: that of its input.

    It is INT8 where its weights are dequantized.
    """
    layers = _layers(network)
    dequantized = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    found = {}
    for layer in layers:
        if _is_convolution(trt, layer):
            kind = layer.get_input(0).dtype.name
            weights = layer.get_input(1) if layer.num_inputs > 1 else None
            is_int8 = weights is not None and weights.name in dequantized
            found[layer.name] = "int8" if is_int8 else _DTYPES.get(kind, kind.lower())
    return found


def _is_convolution(trt: Any, layer: Any) -> bool:
    return layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _as_range(values: Any) -> tuple[Any, Any, Any]:
    low, best, high = values
    return low, high, best
