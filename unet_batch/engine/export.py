"""Checkpoint to typed ONNX: uint8 pictures in, uint8 maps out, the body in half precision.

Precision is in the types of the graph, because TensorRT 11 takes it from nowhere else: BatchNorm is folded in
float32, then the body is halved; normalisation, head and sigmoid stay float32. Exported from the same module
that PyTorch runs (`model.graph`), so that there is one definition of the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unet_batch.engine.importing.graph import prepare, require_onnx
from unet_batch.engine.importing.guess import draw_pictures
from unet_batch.engine.importing.importer import check_target, make, write
from unet_batch.engine.onnx_model import (
    GRAPH_VERSION,
    INPUT,
    KEY,
    OUTPUT,
    OnnxModel,
    OnnxRunner,
    check_size,
    parse,
)
from unet_batch.engine.proof import MIN_DICE, compare
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.model import spec as spec_json
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.model.graph import Graph
from unet_batch.types import Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.engine.importing.importer import Imported
    from unet_batch.engine.importing.settings import Settings
    from unet_batch.engine.proof import Reference
    from unet_batch.types import Pixels

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# 17 is the newest that TensorRT 8.6 reads; convolutions have bfloat16 only since 22.
OPSETS = (17, 22)
DEFAULT_OPSET = {"fp32": 18, "fp16": 18, "bf16": 22}
# IR version of the file: 8 is the newest that TensorRT 8.6 reads.
_IR = {17: 8}
_MAX_BYTES = 2**31 - 1  # of a protobuf message


def export(
    checkpoint: Checkpoint,
    *,
    precision: str = "fp16",
    size: Size | None = None,
    any_size: bool = False,
    opset: int | None = None,
    float32: Sequence[str] = (),
) -> OnnxModel:
    """Export a model for a free batch size.

    Args:
        checkpoint: the model.
        precision: of the body: `fp16`, `bf16` or `fp32`.
        size: (height, width) of the input; None takes the model's own.
        any_size: leave height and width free; `size` is then only what the graph is traced with.
        opset: of the standard operators; None takes the default of the precision.
        float32: names of convolutions that stay float32 beside those that always do, see
            `SegmentationNetwork`.

    Raises:
        UsageError: an unknown precision or opset, or a size that the network's levels do not divide.
        BackendUnavailable: onnx or onnxscript is not installed.
        BackendError: the graph cannot be exported, or is larger than the 2 GB that a file of this kind may
            have.
    """
    if precision not in DTYPES:
        raise UsageError(f"precision {precision!r} is not known", hint=f"choose from: {', '.join(DTYPES)}")
    opset = opset or DEFAULT_OPSET[precision]
    lowest = 22 if precision == "bf16" else OPSETS[0]
    if not lowest <= opset <= OPSETS[1]:
        raise UsageError(f"opset {opset}: {lowest} to {OPSETS[1]} expected for {precision}")
    size = size or checkpoint.spec.input_size
    check_size(size, checkpoint.spec)
    if precision != "fp32":
        kept = {*float32, *checkpoint.model.sensitive()}
        float32 = [name for name in checkpoint.model.convolutions() if name in kept]
    graph = Graph(checkpoint.model, checkpoint.spec, DTYPES[precision], float32=float32).eval()
    proto = _trace(
        graph, size, checkpoint.spec.in_channels, checkpoint.model.stride if any_size else None, opset
    )
    proto.ir_version = _IR.get(opset, proto.ir_version)
    _tidy(proto)
    facts = {
        "spec": json.loads(spec_json.dumps(checkpoint.spec)),
        "source_sha256": checkpoint.sha256,
        "precision": precision,
        "float32": list(float32),
        "layers": checkpoint.model.convolutions(),
        "graph": GRAPH_VERSION,
    }
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(facts, sort_keys=True)
    import onnx

    if proto.ByteSize() > _MAX_BYTES:
        raise BackendError(
            f"the graph has {proto.ByteSize():,} bytes; an ONNX file holds up to {_MAX_BYTES:,}"
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # onnx's ValidationError and InferenceError share no base
        raise BackendError(
            f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    return parse(proto.SerializeToString())


def reference_maps(
    checkpoint: Checkpoint, pictures: Pixels, progress: Callable[[int], None] = lambda done: None
) -> Pixels:
    """What PyTorch computes in float32: uint8 (N, H, W, C) -> uint8 (N, H, W)."""
    graph = Graph(checkpoint.model, checkpoint.spec).eval()
    maps = []
    with torch.inference_mode():
        for number in range(len(pictures)):
            maps.append(graph(torch.from_numpy(pictures[number : number + 1])).numpy())
            progress(number + 1)
    return np.concatenate(maps)


def offenders(checkpoint: Checkpoint, reference: Reference, precision: str) -> tuple[str, ...]:
    """Convolutions that half precision breaks: halved alone, each takes the masks below the limit.

    Values beyond 65,504 are what breaks one in float16; the layer that makes them and the layer that takes
    them are both found.
    """
    few = reference.pictures[:4]
    names = checkpoint.model.convolutions()
    found = []
    always = checkpoint.model.sensitive()
    for name in names:
        if name in always:
            continue
        rest = [other for other in names if other != name]
        graph = Graph(checkpoint.model, checkpoint.spec, DTYPES[precision], float32=rest).eval()
        with torch.inference_mode():
            maps = graph(torch.from_numpy(few)).numpy()
        if not compare(maps, reference.maps[: len(few)], checkpoint.spec).dice >= MIN_DICE[precision]:
            found.append(name)
    return tuple(found)


def export_module(module: nn.Module, target: str, size: Size, given: Settings) -> Imported:
    """Write any network of PyTorch as a graph of ours, after its masks were found equal to PyTorch's.

    Args:
        module: takes a batch of pictures (N, C, H, W) as its only argument; it is run in evaluation mode.
        target: the file to write, `.onnx`; must not exist.
        size: (height, width) of the input.
        given: what a person says of it; the scaling of the pictures is asked for, never guessed.

    Raises:
        UsageError: nobody says how pictures are scaled, or what is given does not fit.
        CheckpointError: it gives no map, or computes something else as ONNX.
        OutputError: the target exists or cannot be written.
        BackendUnavailable: onnx, onnxscript or onnxruntime is not installed.
        BackendError: PyTorch cannot export it.
    """
    check_target(target)
    require_onnx()
    was_training = module.training
    try:
        proto = _trace_module(module.eval(), size)
        data = proto.SerializeToString()
        graph = prepare(target, proto, hashlib.sha256(data))
        made = make(graph, replace(given, layout=given.layout or "nchw"))
        if any(choice.option == "range" and choice.is_guess for choice in made.choices):
            raise UsageError(
                f"{target}: nothing in the network says how its pictures are scaled",
                hint="give it: mean=(0, 0, 0), std=(1, 1, 1) where it was trained on pixels of 0 to 1",
            )
        pictures = draw_pictures(2, made.recipe.size, made.recipe.channels)
        maps = [made.recipe.finish(_run(module, made, picture), size) for picture in pictures]
    finally:
        module.train(was_training)
    parity = compare(OnnxRunner(made.model.data)(pictures[:1]), np.stack(maps[:1]), made.model.spec)
    parity.check("fp32", target)
    return write(target, made)


def _trace_module(module: nn.Module, size: Size) -> Any:
    """The onnx.ModelProto of a network, of any batch where PyTorch's exporter can."""
    first = next(module.parameters(), torch.zeros(()))
    channels = next((each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)), 3)
    example = torch.zeros((2, channels, *size), dtype=first.dtype, device=first.device)
    try:
        return _convert(module, example, {0: torch.export.Dim("n", min=1, max=65536)}, DEFAULT_OPSET["fp32"])
    except BackendError:  # some networks hold their batch's size as a constant
        return _convert(module, example[:1], None, DEFAULT_OPSET["fp32"])


def _run(module: nn.Module, made: Imported, picture: Pixels) -> NDArray[Any]:
    """What PyTorch itself computes for a picture, of the output that was taken."""
    first = next(module.parameters(), torch.zeros(()))
    with torch.inference_mode():
        x = torch.from_numpy(made.recipe.prepare(picture)).to(first.device, first.dtype)
        outputs, _ = torch.utils._pytree.tree_flatten(module(x))
    index = made.graph.outputs.index(made.recipe.output)
    return np.asarray(outputs[index].float().cpu())


def _trace(graph: Graph, size: Size, channels: int, stride: int | None, opset: int) -> Any:
    dims: dict[int, Any] = {0: torch.export.Dim("n", min=1, max=65536)}
    if stride is not None:
        dims |= {
            1: stride * torch.export.Dim("h", min=1, max=1024),
            2: stride * torch.export.Dim("w", min=1, max=1024),
        }
    for layer in graph.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = False  # on an encoder, tracing takes 1.3 times as long in place, 1.5 for any size
    # A batch of one would be taken for a constant.
    pictures = torch.zeros((2, *size, channels), dtype=torch.uint8)
    return _convert(graph, pictures, dims, opset, input_names=[INPUT], output_names=[OUTPUT])


def _convert(
    module: nn.Module, example: torch.Tensor, dims: dict[int, Any] | None, opset: int, **names: list[str]
) -> Any:
    """The onnx.ModelProto of a network that takes one tensor.

    Args:
        module: in evaluation mode.
        example: what it is traced with.
        dims: axes that are left free; None leaves none.
        opset: of the standard operators.
        names: of inputs and outputs; else the exporter's.
    """
    for name in ("onnx", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise BackendUnavailable(
                f"{name} is not installed", hint='pip install "unet-batch[onnx]"'
            ) from error
    with _silence():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(dims,) if dims is not None else None,
                verbose=False,
                **names,  # type: ignore[arg-type]
            )
        except torch.onnx.OnnxExporterError as error:
            raise BackendError(
                f"PyTorch {torch.__version__} cannot export the network: {str(error)[:300]}"
            ) from error
    assert program is not None
    proto = program.model_proto
    converted = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if converted != opset:
        raise BackendError(f"PyTorch {torch.__version__} exported opset {converted}, {opset} was asked for")
    return proto


def _tidy(proto: Any) -> None:
    """Leave out the exporter's notes: stack traces with this machine's paths, on every node and tensor."""
    del proto.metadata_props[:]
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporter's warnings and logs about its own doing; its errors still come out."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(nowhere):
            try:
                yield
            finally:
                logger.setLevel(level)
