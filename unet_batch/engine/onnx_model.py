"""ONNX graphs of ours, exported or imported: their metadata, their arithmetic, and running them on a CPU."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import BackendError, BackendUnavailable, CheckpointError, UsageError
from unet_batch.model import foreign
from unet_batch.model import spec as spec_json
from unet_batch.model.checkpoint import ModelFile
from unet_batch.types import ModelSpec, Size

if TYPE_CHECKING:
    from unet_batch.types import Pixels

KEY = "unet_batch"  # of our entry in `metadata_props`: JSON
# Raise it when `export` or `model.graph` makes another graph of the same weights: engines of the old one are
# built again.
GRAPH_VERSION = 1
INPUT, OUTPUT = "pictures", "maps"
# Of an imported graph of any size: the pictures padded to multiples of a stride, and that stride.
PADDED, STRIDE = "unet_batch/padded", "unet_batch/stride"
# onnx.TensorProto.DataType, spelled out so that these names need no import of onnx.
_PRECISIONS = {1: "fp32", 3: "int8", 10: "fp16", 16: "bf16"}
_BYTES = {1: 4, 3: 1, 10: 2, 16: 2}
_VALUE_BYTES = {**_BYTES, 6: 4, 7: 8, 11: 8}  # whole numbers, and double precision, too
REPLACEMENT = "the equal 1x1 convolutions and DepthToSpace"
"""What `replace_transposed` puts in place of transposed convolutions."""
EXPORT_ANY = "unet-batch build-engine CHECKPOINT --onnx-only --size MIN,BEST,MAX"
EXPORT = "export it again: unet-batch build-engine CHECKPOINT --onnx-only"
_INSTALL = 'pip install "unet-batch[onnx]"'
_INSTALL_CUDA = "pip install --force-reinstall onnxruntime-gpu, or use --device cpu"


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A graph in memory.

    Attributes:
        data: the bytes of the file.
        spec: of the model.
        source_sha256: of the checkpoint it was exported from; of an imported graph, of its file and the spec.
        precision: that was asked for: `int8`, `fp16`, `bf16`, `fp32`.
        float32: names of the convolutions that were left in float32 on purpose, as `model.graph` calls them.
        opset: of the standard operators.
        ir_version: of the file.
        size: (height, width), or None where the graph takes any.
        batch: pictures in a call; None where the graph takes any number, as all but some imported ones do.
        convolutions: of each convolution by node name: work and precision. Of an imported graph, those whose
            shapes the graph tells.
        facts: all of our metadata, for reports.
    """

    data: bytes
    spec: ModelSpec
    source_sha256: str
    precision: str
    float32: tuple[str, ...]
    opset: int
    ir_version: int
    size: Size | None
    batch: int | None
    convolutions: Mapping[str, Convolution]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Convolution:
    """One convolution of a graph.

    Attributes:
        flops: for one picture, a multiplication and its addition counted as two.
        precision: it computes in.
        is_head: it is the last one, which stays float32 whatever is asked for; none is, of an imported graph.
        layer: its name in the network, as `model.graph.convolutions` gives them, or in the imported graph;
            empty for the head.
    """

    flops: int
    precision: str
    is_head: bool
    layer: str


def read(path: str) -> OnnxModel:
    """Read a graph that `unet-batch build-engine` or `unet-batch import` wrote.

    Raises:
        CheckpointError: missing, damaged, or not one of ours.
        BackendUnavailable: the onnx package is not installed.
    """
    with _name_file(path):
        return parse(_read_bytes(path))


def identify(path: str) -> ModelFile:
    """Read what a graph says of itself; its arithmetic is not looked at.

    Raises:
        CheckpointError: as from `read`; or it computes what this program makes no more.
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = _import("onnx")
    with _name_file(path):
        data = _read_bytes(path)
        with _explain_damage(data):
            model = onnx.load_model_from_string(data)
            facts, spec, size = _describe(model)
            sha256 = str(facts["source_sha256"])
            ranges = {name for node in model.graph.node if _is_range(node) for name in node.input[1:]}
            parameters = sum(
                math.prod(weight.dims)
                for weight in model.graph.initializer
                if weight.data_type in _BYTES and weight.name not in ranges
            )
        check_current(spec, facts)
    spec = replace(spec, input_size=size or spec.input_size)
    return ModelFile(os.path.abspath(path), spec, sha256, parameters, is_graph=True)


def parse(data: bytes) -> OnnxModel:
    """Parse the bytes of a graph. Raises what `read` does."""
    onnx = _import("onnx")
    with _explain_damage(data):
        model = onnx.load_model_from_string(data)
        facts, spec, size = _describe(model)
        convolutions = _convolutions(
            onnx, model, size or spec.input_size, facts["layers"], imported=spec.architecture == "onnx"
        )
        return OnnxModel(
            data=data,
            spec=spec,
            source_sha256=str(facts["source_sha256"]),
            precision=str(facts["precision"]),
            float32=tuple(map(str, facts["float32"])),
            opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
            ir_version=model.ir_version,
            size=size,
            batch=model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None,
            convolutions=convolutions,
            facts=facts,
        )


def check_current(spec: ModelSpec, facts: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a graph whose maps hold something else than those of today's graphs."""
    if spec.classes.foreground is not None:
        raise CheckpointError(
            "computes ids of a background and one class, for which this program makes one probability",
            hint=EXPORT,
        )
    if facts["graph"] != GRAPH_VERSION:
        raise CheckpointError(
            f"version {facts['graph']} of the network's graph, this program makes {GRAPH_VERSION}",
            hint=EXPORT,
        )


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}") from error


def _describe(model: Any) -> tuple[dict[str, Any], ModelSpec, Size | None]:
    """Our metadata, the spec in them, and the size of the input; None where it is free."""
    facts = json.loads(next((entry.value for entry in model.metadata_props if entry.key == KEY), "null"))
    if not isinstance(facts, dict):
        raise CheckpointError(
            "an ONNX graph, but not one of unet-batch: it carries no description of its model",
            hint=foreign.IMPORT_ONNX,
        )
    spec = spec_json.loads(json.dumps(facts["spec"]))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    size = (dims[1].dim_value, dims[2].dim_value) if dims[1].dim_value and dims[2].dim_value else None
    return facts, spec, size


@contextmanager
def _name_file(path: str) -> Iterator[None]:
    """Put the file's name before what is wrong with it, and what else it may be behind."""
    try:
        yield
    except CheckpointError as error:
        found = foreign.recognise(path) if os.path.isfile(path) else None
        if found is not None and not found.is_onnx:
            raise CheckpointError(f"{path}: {found.what}, not an ONNX graph", hint=found.fix) from error
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error


@contextmanager
def _explain_damage(data: bytes) -> Iterator[None]:
    """What goes wrong while a graph is parsed, as CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise CheckpointError(
            f"a damaged ONNX graph: {type(error).__name__}: {error}", hint=EXPORT
        ) from error
    except Exception as error:  # protobuf's DecodeError and onnx's InferenceError share no base with anything
        if isinstance(error, CheckpointError) or not type(error).__module__.startswith(("google.", "onnx")):
            raise
        raise CheckpointError(
            f"not an ONNX graph, or a damaged one ({len(data):,} bytes): {error}", hint=EXPORT
        ) from error


def check_size(size: Size, spec: ModelSpec) -> None:
    """Raise UsageError, with the nearest size that fits, for one that the network's levels do not divide."""
    stride = spec.stride
    height, width = size
    if height % stride or width % stride:
        fits = tuple(max(stride, round(side / stride) * stride) for side in size)
        raise UsageError(
            f"size {height}x{width}: an engine of this network takes heights and widths that {stride} "
            f"divides",
            hint=f"use --size {fits[0]}x{fits[1]}",
        )


def check_input(model: OnnxModel, size: Size) -> None:
    """Raise UsageError for a size that a graph does not take."""
    if model.size is None:
        check_size(size, model.spec)
    elif size != model.size:
        height, width = model.size
        raise UsageError(
            f"{model.spec.name}: the graph takes {height}x{width} only, not {size[0]}x{size[1]}",
            hint=f"leave --size out, or export one for any size: {EXPORT_ANY}",
        )


def picture_bytes(model: OnnxModel, size: Size | None = None) -> int:
    """Most bytes that the values between the layers of a graph take at once, for a picture of that size.

    An estimate: engines keep some of them longer, and compute others in place.
    """
    onnx = _import("onnx")
    proto = onnx.load_model_from_string(model.data)
    shaped = _infer_shapes(
        onnx, proto, size or model.size or model.spec.input_size, imported=model.spec.architecture == "onnx"
    )
    bytes_of = {}
    for info in (*shaped.graph.value_info, *shaped.graph.input, *shaped.graph.output):
        kind = info.type.tensor_type
        count = math.prod(dim.dim_value for dim in kind.shape.dim)  # 0 where a side is not known
        bytes_of[info.name] = count * _VALUE_BYTES.get(kind.elem_type, 1)
    last = {name: index for index, node in enumerate(shaped.graph.node) for name in node.input}
    alive = peak = bytes_of[INPUT]
    for index, node in enumerate(shaped.graph.node):
        alive += sum(bytes_of.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(bytes_of.get(name, 0) for name in set(node.input) if last[name] == index)
    return int(peak)


def replace_transposed(model: OnnxModel) -> OnnxModel:
    """The same function without transposed convolutions: each a 1x1 convolution and a DepthToSpace.

    A transposed convolution of 2x2 with a stride of 2 lets no two inputs meet in an output: it is four 1x1
    convolutions, whose results are interleaved. Names, work and precision of the convolutions stay.

    Raises:
        BackendError: one is of another kind.
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = _import("onnx")
    proto = onnx.load_model_from_string(model.data)
    weights = {weight.name: weight for weight in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        if node.op_type != "ConvTranspose":
            continue
        kernel, *biases = (weights[name] for name in node.input[1:])
        strides = next((list(entry.ints) for entry in node.attribute if entry.name == "strides"), [])
        if list(kernel.dims[2:]) != [2, 2] or strides != [2, 2]:
            raise BackendError(f"{node.name}: not a transposed convolution of 2x2 with a stride of 2")
        # Output channels become (row, column, channel), mode DCR: the channels of a pixel lie together, as
        # they do in the layouts that tensor cores read.
        _rearrange(kernel, lambda values: values.transpose(2, 3, 1, 0).reshape(-1, len(values), 1, 1))
        for bias in biases:
            _rearrange(bias, lambda values: np.tile(values, 4))
        output, deep = node.output[0], f"{node.output[0]}_deep"
        node.CopyFrom(onnx.helper.make_node("Conv", list(node.input), [deep], node.name))
        nodes.append(
            onnx.helper.make_node(
                "DepthToSpace", [deep], [output], f"{node.name}_space", blocksize=2, mode="DCR"
            )
        )
    graph = onnx.GraphProto()
    graph.CopyFrom(proto.graph)
    del graph.node[:], graph.value_info[:]  # the latter hold the shapes of before
    graph.node.extend(nodes)
    proto.graph.CopyFrom(graph)
    return parse(proto.SerializeToString())


def _rearrange(tensor: Any, change: Callable[[Any], Any]) -> None:
    """Move a tensor's values to other places, bit by bit the same; bfloat16 is no type of NumPy's."""
    bits = np.frombuffer(tensor.raw_data, f"u{_BYTES[tensor.data_type]}").reshape(tensor.dims)
    changed = change(bits)
    tensor.raw_data = changed.tobytes()
    del tensor.dims[:]
    tensor.dims.extend(changed.shape)


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def has_cuda() -> bool:
    """Whether the ONNX Runtime that is installed was built for NVIDIA GPUs."""
    return "CUDAExecutionProvider" in _import("onnxruntime").get_available_providers()


class OnnxRunner:
    """Runs a graph with ONNX Runtime: uint8 (N, H, W, C) -> uint8 (N, H, W), from several threads at once.

    Args:
        data: the bytes of the graph.
        threads: that share the work of one call; 1 leaves it to the thread that calls, None takes all cores.
        device: index of the NVIDIA GPU to run on; None runs on the CPU.

    Raises:
        BackendUnavailable: onnxruntime is not installed or cannot use the GPU, or does not execute this
            precision (bfloat16, mostly).
    """

    def __init__(self, data: bytes, *, threads: int | None = None, device: int | None = None) -> None:
        runtime = _import("onnxruntime")
        self.version = ".".join(runtime.__version__.split(".")[:2])
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.inter_op_num_threads = 1
        # INT8 as the graph spells it: what it fuses saturates on CPUs without VNNI (Dice 0.996, not 0.999)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.intra_op_num_threads = threads or 0
        cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
        if device is not None and not has_cuda():
            raise BackendUnavailable(
                f"ONNX Runtime {runtime.__version__} was built without CUDA", hint=_INSTALL_CUDA
            )
        providers = [cpu] if device is None else [(cuda, {"device_id": device}), cpu]
        try:
            self._session = runtime.InferenceSession(data, options, providers=providers)
        except Exception as error:  # its exceptions have no public base
            raise BackendUnavailable(
                f"ONNX Runtime {runtime.__version__} refuses the graph: {_line(error)}"
            ) from error
        # Where CUDA's libraries do not load, it takes the CPU and says so in its log only
        if device is not None and self._session.get_providers()[0] != cuda:
            raise BackendUnavailable(
                f"ONNX Runtime {runtime.__version__} cannot use the GPU: its CUDA libraries do not load",
                hint=_INSTALL_CUDA,
            )

    def __call__(self, pictures: Pixels) -> Pixels:
        """Raises BackendError when the run fails."""
        maps: Pixels = self.outputs(pictures, [OUTPUT])[0]
        return np.asarray(maps)

    def outputs(self, pictures: Pixels, names: Sequence[str]) -> list[Any]:
        """Several outputs of the graph, by name. Raises BackendError when the run fails."""
        try:
            found: list[Any] = self._session.run(names, {INPUT: pictures})
        except Exception as error:
            raise BackendError(f"ONNX Runtime: {_line(error)}") from error
        return found


def _convolutions(
    onnx: Any, model: Any, size: Size, layers: Sequence[str], *, imported: bool
) -> dict[str, Convolution]:
    """Work and precision of every convolution, from the types and shapes in the graph itself."""
    shaped = _infer_shapes(onnx, model, size, imported=imported)
    weights = {weight.name: weight for weight in shaped.graph.initializer}
    infos = [*shaped.graph.value_info, *shaped.graph.input, *shaped.graph.output]
    tensors = {info.name: info.type.tensor_type for info in infos}
    quantized = _quantized_weights(shaped.graph)
    nodes = [node for node in shaped.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    heads = 0 if imported else 1
    if len(nodes) != len(layers) + heads:
        raise ValueError(f"{len(nodes)} convolutions found, {len(layers)}{' and a head' * heads} expected")
    found = {}
    for index, node in enumerate(nodes):
        # Each weight meets each position of the smaller of input and output once.
        name = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        grid = [dim.dim_value for dim in tensors[name].shape.dim[2:]] if name in tensors else []
        kernel = quantized.get(node.input[1], node.input[1])
        if imported and not (kernel in weights and grid and all(grid)):
            continue  # weights that are computed, shapes that are known only when it runs
        weight = weights[kernel]
        flops = 2 * math.prod(weight.dims) * math.prod(grid)
        is_head = not imported and index == len(nodes) - 1
        precision = _PRECISIONS.get(weight.data_type, f"type {weight.data_type}")
        if node.input[1] in quantized:
            precision = "int8"
        found[node.name] = Convolution(flops, precision, is_head, "" if is_head else layers[index])
    return found


def _infer_shapes(onnx: Any, model: Any, size: Size, *, imported: bool) -> Any:
    """A copy of the onnx.ModelProto with the shapes and types of its values, for one picture of that size."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    del shaped.graph.value_info[:]  # may hold symbols where the size is free
    weights = {weight.name: weight for weight in shaped.graph.initializer}
    if STRIDE in weights:  # inference does not follow the arithmetic of what is padded
        stride = int(onnx.numpy_helper.to_array(weights[STRIDE])[0])
        size = size[0] + -size[0] % stride, size[1] + -size[1] % stride
        for node in shaped.graph.node:
            if PADDED in node.output:
                node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], [PADDED]))
    picture, maps = (
        shaped.graph.input[0].type.tensor_type.shape.dim,
        shaped.graph.output[0].type.tensor_type.shape.dim,
    )
    for dims, values in ((picture, (1, *size)), (maps, (1, *size))):
        for dim, value in zip(dims, values, strict=False):
            dim.dim_value = value
    # A foreign graph may hold operators and shapes that inference does not get through.
    return onnx.shape_inference.infer_shapes(shaped, strict_mode=not imported, data_prop=imported)


def _quantized_weights(graph: Any) -> dict[str, str]:
    """Of each weight that is quantized and dequantized on its way to a layer, the tensor that is stored."""
    stored: dict[str, str] = {}
    weights = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if _is_range(node) and (node.input[0] in weights or node.input[0] in stored):
            stored[node.output[0]] = stored.get(node.input[0], node.input[0])
    return stored


def _is_range(node: Any) -> bool:
    """Whether a node holds the range of an INT8 tensor: its inputs are the tensor, scale and zero point."""
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _import(name: str) -> Any:
    try:
        module = __import__(name)
        if name == "onnx":
            __import__("onnx.shape_inference")
        return module
    except ImportError as error:
        raise BackendUnavailable(f"{name} is not installed", hint=_INSTALL) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
