"""The networks that are measured: their checkpoints and their ONNX graphs."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Sequence

# Name: (classes, widths) of a network with random weights; None is the one that comes with the package.
MODELS: dict[str, tuple[int, tuple[int, ...]] | None] = {
    "bundled": None,
    "31m": (1, (64, 128, 256, 512, 1024)),
    "4class": (4, (16, 32, 64, 128, 256)),
}
SIZE = (160, 240)
# Precision and opset of what strongly typed builders take, and of what TensorRT 8.6 takes
TYPED, WEAK = ("fp16", 18), ("fp32", 17)
SPEC_NAMES = {"default": "bundled"}  # what the bundled model calls itself


def checkpoint_path(model: str, folder: str) -> str:
    from unet_batch.model import zoo

    return zoo.resolve(None) if MODELS[model] is None else os.path.join(folder, f"{model}.safetensors")


def write_checkpoint(model: str, folder: str) -> str:
    """The model's checkpoint; of those with random weights it is made."""
    path, network = checkpoint_path(model, folder), MODELS[model]
    if network is not None and not os.path.exists(path):
        from tests.helpers.engines import confident
        from unet_batch.model import checkpoint

        made = confident(*network, SIZE)
        checkpoint.save(path, made.model, dataclasses.replace(made.spec, name=model))
    return path


def export(
    folder: str, models: Sequence[str], forms: Sequence[tuple[str, int | None]], say: Callable[[str], None]
) -> None:
    """Write `.onnx` and `.npz` of the models: `forms` are pairs of precision and opset."""
    from unet_batch.build import BuildOptions, build_engine

    os.makedirs(folder, exist_ok=True)
    for model in models:
        path = write_checkpoint(model, folder)
        for precision, opset in forms:
            # A batch of 1 only, so that the comparison with ONNX Runtime takes seconds: larger ones are
            # proven on the GPU.
            options = BuildOptions(
                path, folder, batch=(1, 1, 1), precision=precision, opset=opset, onnx_only=True
            )
            say(f"{model}: {build_engine(options).onnx}")


def graphs(folder: str) -> dict[str, dict[str, str]]:
    """The ONNX files of a folder: model -> precision -> path."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.onnx"))):
        name, _, rest = os.path.basename(path).partition(f"-{SIZE[0]}x{SIZE[1]}-")
        if rest:
            found.setdefault(SPEC_NAMES.get(name, name), {})[rest.partition("-")[0].removesuffix(".onnx")] = (
                path
            )
    return found


def flops_of(model: str, models: str) -> int | None:
    """Of all convolutions for one picture, counted in the ONNX graph; None where there is none."""
    from unet_batch.engine import onnx_model

    paths = graphs(models).get(model, {})
    if not paths:
        return None
    return sum(c.flops for c in onnx_model.read(next(iter(paths.values()))).convolutions.values())
