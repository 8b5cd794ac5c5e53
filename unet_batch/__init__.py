"""Batch segmentation with a U-Net.

    import unet_batch

    with unet_batch.load() as segmenter:
        mask = segmenter("car.jpg")                    # uint8 (height, width), 0 or 255
        segmenter.predict("car.jpg").save("out", ("mask", "overlay"))
        for result in segmenter.stream(paths):         # decoding, inference and masks overlap
            print(result.path, result.error or result.mask.mean())

Importing the package costs nothing: torch, numpy and cv2 are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unet_batch.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from unet_batch.errors import UnetBatchError
    from unet_batch.inference.result import Result
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.types import ClassTable, ModelSpec

_HOMES = {
    "ClassTable": "unet_batch.types",
    "ModelSpec": "unet_batch.types",
    "Result": "unet_batch.inference.result",
    "Segmenter": "unet_batch.inference.segmenter",
    "UnetBatchError": "unet_batch.errors",
}
__all__ = [
    "ClassTable",
    "ModelSpec",
    "Result",
    "Segmenter",
    "UnetBatchError",
    "__version__",
    "export",
    "load",
]


def load(
    model: str | Sequence[str] | None = None,
    *,
    backend: str = "auto",
    device: str | None = None,
    threshold: float | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    size: tuple[int, int] | None = None,
    engines_dir: str = "engines",
    require_gpu: bool = False,
    max_pixels: int | None = None,
    isolate: bool = False,
    fit: Literal["letterbox", "stretch", "tile"] = "letterbox",
    overlap: float = 0.25,
    scale: float | None = None,
    tta: Literal["none", "horizontal", "flips", "d4"] = "none",
    refine: bool = False,
    value_range: str | None = None,
    channels: tuple[int, ...] | None = None,
    pixel_size: str | None = None,
    watershed: int | None = None,
) -> Segmenter:
    """Load a model, ready to segment.

    Args:
        model: path of a checkpoint (`.safetensors`) or of a graph (`.onnx`), or the name of a bundled model;
            None takes the bundled default. Of several the maps are averaged.
        backend: `auto`, `tensorrt`, `tensorrt-rtx`, `torch`, `openvino` or `onnxruntime`; only `auto` falls
            back.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None chooses.
        threshold: probability from which a pixel counts as the class; None takes the model's own.
        batch_size: most pictures for one call of the network; None lets the backend choose.
        workers: threads for each of decoding and post-processing; None takes one for each core.
        size: (height, width) of the network's input; None takes the model's own.
        engines_dir: where engines of `unet-batch build-engine` are looked for.
        require_gpu: refuse to run on the CPU.
        max_pixels: refuse pictures with more; None takes 200 megapixels.
        isolate: decode files in processes of their own, so that one that crashes its decoder fails alone.
        fit: how a picture is shown to the network: whole ("letterbox"), whole and stretched, or in tiles of
            its input's size.
        overlap: share of a tile's side that it has in common with the next, 0 to 0.9.
        scale: size at which pictures are cut into tiles, as a share of their own; None takes that of the
            model's training, or 1.
        tta: average over the mirror image too ("horizontal"), over all four flips, or over these and quarter
            turns ("d4").
        refine: move the edges of masks to those of the picture; of one class.
        value_range: which values of a picture are black and white: "auto", "dtype", "percentile", or two
            numbers such as "0,4095"; None takes that of the model's training, or "auto".
        channels: bands of each picture to take, counted from 1, in the network's order; None takes the
            model's own.
        pixel_size: for areas in tables, "0.5um" or "0.5x0.25mm" (height x width); None takes the file's.
        watershed: split objects that touch, at seeds so many pixels apart or more; None leaves them whole.

    Raises:
        CheckpointError: the model cannot be read.
        BackendUnavailable: the backend or device that was asked for cannot be used.
        UsageError: an argument is out of range, or several models do not agree in their classes.
    """
    from unet_batch.engine import source
    from unet_batch.inference.backends.select import Request
    from unet_batch.inference.segmenter import open_segmenter
    from unet_batch.inference.views import ViewOptions
    from unet_batch.media.images import MAX_PIXELS
    from unet_batch.media.measure import Measuring, PixelSize
    from unet_batch.model import zoo

    pixel = None if pixel_size is None else PixelSize.parse(pixel_size)
    names = [model] if model is None or isinstance(model, str) else model
    files = [source.identify(zoo.resolve(name)) for name in names]
    return open_segmenter(
        *(Request(file, backend, device, batch_size, size, engines_dir, require_gpu) for file in files),
        threshold=threshold,
        workers=workers,
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
        isolate=isolate,
        view=ViewOptions(fit, overlap, scale, tta, refine, value_range),
        channels=channels,
        measuring=Measuring(pixel, watershed),
    )


def export(
    module: torch.nn.Module,
    path: str,
    *,
    size: tuple[int, int],
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    range: str | None = None,
    colour: str | None = None,
    channel: int | None = None,
    activation: str | None = None,
    name: str = "",
    terms: str = "",
) -> ModelSpec:
    """Write any PyTorch network that segments pictures as a model file, its masks proven equal.

    The file is used like a checkpoint: `unet_batch.load("mine.onnx")`, `unet-batch run -m mine.onnx`.

    Args:
        module: takes pictures (N, C, H, W) and gives a map for each; run in evaluation mode, left as it was.
        path: the file to write, `.onnx`; must not exist.
        size: (height, width) of the input.
        classes: names in the order of the output's channels or ids, background included; of a background and
            one class, or of one channel, the model gives the probability.
        mean, std: by channel, red first: it was trained on (pixel - mean) / std, for pixels of 0 to 1.
        range: instead of these `0..1`, `0..255`, `-1..1` or `imagenet`; with them, what they count in.
        colour: order of the input's channels, `rgb` or `bgr`; None takes rgb.
        channel: of the output, whose probability is wanted; None takes that of the class beside a background,
            and ids of several classes.
        activation: what makes probabilities of its values: `sigmoid`, `softmax` or `none`; None looks.
        name: of the model; "" takes the file's.
        terms: under which it may be used, on one line.

    Returns:
        What the model is now; `training["imported"]` holds what was found out, and what of it was guessed.

    Raises:
        UsageError: nothing says how pixels are scaled, or an argument does not fit the network.
        CheckpointError: the network gives no map, or ONNX Runtime computes something else.
        BackendUnavailable: the extra `onnx` is not installed.
        BackendError: PyTorch cannot export the network.
        OutputError: the file exists or cannot be written.
    """
    from unet_batch.engine.export import export_module
    from unet_batch.engine.importing.settings import Settings

    given = Settings(
        range=range,
        mean=tuple(mean),
        std=tuple(std),
        colour=colour,
        channel=channel,
        activation=activation,
        classes=tuple(classes),
        name=name,
        terms=terms,
    )
    return export_module(module, path, size, given).model.spec


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
