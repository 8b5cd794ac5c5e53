"""What a build makes of what was asked for: precision, calibration, key; whether that is there already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unet_batch.engine import int8, store
from unet_batch.engine.sidecar import EngineRecipe
from unet_batch.errors import BackendUnavailable, CheckpointError, UsageError

if TYPE_CHECKING:
    from unet_batch.build.builders import Builder
    from unet_batch.build.compose import BuildOptions, Progress
    from unet_batch.engine.compiler import Profile
    from unet_batch.engine.pictures import Calibration
    from unet_batch.engine.source import Source
    from unet_batch.engine.store import Engine
    from unet_batch.types import ModelSpec


def default_precision(source: Source, builder: Builder | None) -> str:
    """That of a graph where the builder takes it from there, else the builder's own."""
    told = builder is not None and builder.takes_float32
    if source.onnx is not None and (not told or source.onnx.precision == int8.NAME):
        return source.onnx.precision
    return "fp16" if builder is None else builder.precision


def calibrate(
    options: BuildOptions, precision: str, source: Source, progress: Progress
) -> Calibration | None:
    """Pictures to quantize a graph with; None where it is not to be quantized, or is already.

    Raises:
        UsageError: pictures are given and not wanted, or wanted and not given, or too few.
    """
    if precision != int8.NAME or (source.onnx is not None and source.onnx.precision == precision):
        if options.calibration_images:
            is_there = "the graph is calibrated already" if precision == int8.NAME else f"it is {precision}"
            raise UsageError(
                f"--calibration-images: {is_there}, and INT8 alone is calibrated", hint="leave it out"
            )
        return None
    if not options.calibration_images and not source.is_bundled:
        raise UsageError(
            f"{options.model}: INT8 takes its ranges from pictures like those that will be run, and none are "
            "given; drawn scenes know the bundled models' cars only",
            hint="--calibration-images ./photos: a hundred or two",
        )
    from unet_batch.engine.pictures import calibration_pictures

    size = options.size[1] if options.size else source.spec.input_size
    given = options.calibration_images, options.proof_images
    return calibration_pictures(*given, source.spec, size, progress)


def make_recipe(
    options: BuildOptions,
    precision: str,
    source: Source,
    profile: Profile,
    builder: Builder,
    calibration: Calibration | None,
) -> EngineRecipe:
    """All that decides what an engine is."""
    sha256 = calibration.sha256 if calibration is not None else ""
    if source.onnx is not None and source.onnx.precision == precision == int8.NAME:
        sha256 = str(source.onnx.facts["calibration"]["sha256"])
    given = {
        "opt_level": options.opt_level,
        "workspace": options.workspace,
        "hardware_compat": None if options.hardware_compat == "none" else options.hardware_compat,
        "opset": options.opset,
    }
    return EngineRecipe(
        source_sha256=source.sha256,
        precision=precision,
        profile=profile,
        flavour=builder.name,
        version=builder.version,
        target=builder.target,
        options={name: value for name, value in given.items() if value is not None},
        calibration=sha256,
    )


def find_engine(folder: str, recipe: EngineRecipe, spec: ModelSpec) -> Engine | None:
    """The engine of this very recipe, if it is whole."""
    try:
        engine = store.load(os.path.join(folder, recipe.stem(spec) + ".plan"))
        sidecar = engine.sidecar
        if sidecar.recipe.key != recipe.key or sidecar.spec.output != spec.output or sidecar.refused:
            return None
        engine.read_plan()
        engine.read_reference()
    except (CheckpointError, BackendUnavailable):
        return None
    return engine
