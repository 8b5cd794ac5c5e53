"""Foreign ONNX graphs: read, tidied, and run in ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine.onnx_model import KEY
from unet_batch.errors import BackendUnavailable, CheckpointError, UsageError
from unet_batch.model import foreign

if TYPE_CHECKING:
    from numpy.typing import NDArray

Dims = tuple[int | None, ...]

OLDEST_OPSET = 7  # of which ONNX Runtime promises to know the operators
# Resize and Pad take the sizes of a moment since then; before, sizes stand in the graph.
COMPOSED_OPSET = 11
CONVERTED_OPSET = 17  # what older ones become: the newest that TensorRT 8.6 reads
_IR = 8  # the file format of that opset; inputs need not repeat the weights since 4
_MAX_BYTES = 2**31 - 1  # of a protobuf message
_DTYPES = {1: "float32", 2: "uint8", 10: "float16", 11: "float64"}
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True, eq=False)
class ForeignGraph:
    """A graph that takes one picture.

    Attributes:
        path: the file.
        proto: the onnx.ModelProto, with its weights, constants as initializers, every node named.
        sha256: over the file's bytes and all weights that lie in files beside it, in hexadecimal.
        opset: that it came in.
        input: name of the picture.
        dims: of the picture, None where the graph leaves it free.
        dtype: of the picture, NumPy's name.
        outputs: names.
        notes: what was changed, for people.
    """

    path: str
    proto: Any
    sha256: str
    opset: int
    input: str
    dims: Dims
    dtype: str
    outputs: tuple[str, ...]
    notes: tuple[str, ...]

    def runner(self, extra: Sequence[str] = ()) -> Runner:
        """The graph, ready to run, with further tensors inside it as outputs."""
        proto = self.proto
        if extra:
            proto = _copy(proto)
            for name in extra:
                proto.graph.output.add().name = name
        return Runner(self.path, proto)


class Runner:
    """Runs a graph of any inputs and outputs in ONNX Runtime, on the CPU.

    Raises:
        CheckpointError: ONNX Runtime refuses the graph; operators that it does not know are named.
    """

    def __init__(self, path: str, proto: Any) -> None:
        runtime: Any = __import__("onnxruntime")  # it has no types
        self.path = path
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others use the cores, too
        try:
            data = proto.SerializeToString()
        except Exception as error:  # google.protobuf's EncodeError, a ValueError since version 4
            raise CheckpointError(f"{path}: {_TOO_LARGE}") from error
        try:
            self._session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no public base
            if unknown := _unknown_operators(proto):
                raise CheckpointError(
                    f"{path}: needs operators that ONNX Runtime does not know: {', '.join(unknown)}",
                    hint="export it again with operators of the ONNX standard alone",
                ) from error
            raise CheckpointError(
                f"{path}: ONNX Runtime {runtime.__version__} refuses the graph: {_line(error)}"
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises CheckpointError where the graph fails on this input."""
        try:
            values = self._session.run(self._outputs, {self._session.get_inputs()[0].name: x})
        except Exception as error:  # its exceptions have no public base
            raise CheckpointError(
                f"{self.path}: ONNX Runtime fails on {'x'.join(map(str, x.shape))}: {_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))


_TOO_LARGE = "has more than 2 GB with its weights, which no single ONNX file can hold"


def require_onnx() -> None:
    """Raise BackendUnavailable where the packages that graphs are composed and run with are not installed."""
    try:
        for name in ("onnx", "onnxruntime"):
            __import__(name)
    except ImportError as error:
        raise BackendUnavailable(
            f"{error.name} is not installed", hint='pip install "unet-batch[onnx]"'
        ) from error


def read(path: str) -> ForeignGraph:
    """Read a graph of another program, with the weights that lie beside it.

    Raises:
        CheckpointError: missing, damaged, no ONNX graph, or none that takes one picture.
        UsageError: it is a graph of ours already.
        BackendUnavailable: onnx is not installed.
    """
    require_onnx()
    import onnx

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    found = foreign.recognise(path)
    if found is not None and not found.is_onnx:
        what = found.what.partition(",")[0]
        raise CheckpointError(f"{path}: {what}, not an ONNX graph", hint=found.fix)
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError has no base of ours to catch
        raise CheckpointError(
            f"{path}: not an ONNX graph, or a damaged one ({len(data):,} bytes)",
            hint="copy or download it again",
        ) from error
    return prepare(path, proto, hashlib.sha256(data))


def prepare(path: str, proto: Any, digest: Any) -> ForeignGraph:
    """Tidy a graph that was read or made, and find its picture; `digest` is of its bytes so far."""
    if any(entry.key == KEY for entry in proto.metadata_props):
        raise UsageError(
            f"{path}: is a graph of unet-batch already", hint=f"use it: unet-batch run ./photos -m {path}"
        )
    if not proto.graph.node:
        raise CheckpointError(f"{path}: not an ONNX graph, or an empty one", hint="copy or download it again")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise CheckpointError(
            f"{path}: operators of ONNX opset {opset}; ONNX Runtime knows those since {OLDEST_OPSET}",
            hint="export it again with a newer opset, 17 for example",
        )
    _load_external(path, proto, digest)
    proto = _tidy(proto)
    name, dims, dtype = _picture(path, proto)
    if dims[0] not in (None, 1):  # tried with one picture, and with any number when it is composed
        batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
        batch.Clear()
        batch.dim_param = "n"
    found = ForeignGraph(
        path=path,
        proto=proto,
        sha256=digest.hexdigest(),
        opset=opset,
        input=name,
        dims=dims,
        dtype=dtype,
        outputs=tuple(output.name for output in proto.graph.output),
        notes=(),
    )
    return _modernise(found) if opset < COMPOSED_OPSET else found


def shape_text(dims: Sequence[int | None]) -> str:
    """`1x3x?x?`."""
    return "x".join("?" if dim is None else str(dim) for dim in dims)


def _load_external(path: str, proto: Any, digest: Any) -> None:
    """Read the weights that lie in files beside the graph."""
    from onnx import external_data_helper

    apart = [weight for weight in proto.graph.initializer if external_data_helper.uses_external_data(weight)]
    if not apart:
        return
    places = {entry.value for weight in apart for entry in weight.external_data if entry.key == "location"}
    try:
        external_data_helper.load_external_data_for_model(proto, os.path.dirname(os.path.abspath(path)))
    except Exception as error:  # OSError, ValueError, or onnx's ValidationError
        names = ", ".join(sorted(places))
        raise CheckpointError(
            f"{path}: its weights lie in {names}, which cannot be read: {_line(error)}",
            hint=f"put {names} beside {os.path.basename(path)}",
        ) from error
    for weight in apart:
        digest.update(weight.raw_data)


def _tidy(proto: Any) -> Any:
    """The same graph: functions inlined, constants among the weights, all nodes named, no notes."""
    import onnx

    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    proto.ir_version = max(proto.ir_version, _IR)
    del proto.metadata_props[:]
    graph = proto.graph
    weights = {weight.name for weight in graph.initializer}
    nodes, names = [], {node.name for node in graph.node}
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant" and [entry.name for entry in node.attribute] == ["value"]:
            weight = graph.initializer.add()
            weight.CopyFrom(node.attribute[0].t)
            weight.name = node.output[0]
            continue
        if not node.name:
            node.name = f"{node.op_type}_{index}"
            while node.name in names:
                node.name += "_"
            names.add(node.name)
        nodes.append(_copy(node))
    inputs = [_copy(entry) for entry in graph.input if entry.name not in weights]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")  # an exporter's stack traces, with paths of its machine
        if isinstance(part, (onnx.NodeProto, onnx.ValueInfoProto, onnx.TensorProto, onnx.GraphProto)):
            part.ClearField("metadata_props")
    return proto


def _picture(path: str, proto: Any) -> tuple[str, Dims, str]:
    """Name, dimensions and dtype of the one input."""
    inputs = list(proto.graph.input)
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs) or "none"
        raise CheckpointError(
            f"{path}: takes {len(inputs)} inputs ({names}), one picture is expected",
            hint="export the network with the picture as its only input, the others as constants",
        )
    tensor = inputs[0].type.tensor_type
    dims: Dims = tuple(dim.dim_value or None for dim in tensor.shape.dim)
    if len(dims) != 4:
        raise CheckpointError(
            f"{path}: its input {inputs[0].name} has the shape {shape_text(dims) or 'of nothing stated'}; "
            "a batch of pictures has four dimensions"
        )
    if tensor.elem_type not in _DTYPES:
        kind = inputs[0].type.tensor_type.elem_type
        raise CheckpointError(
            f"{path}: its input {inputs[0].name} is of ONNX type {kind}; float32, float16, float64 or uint8 "
            "is expected"
        )
    return inputs[0].name, dims, _DTYPES[tensor.elem_type]


def _modernise(found: ForeignGraph) -> ForeignGraph:
    """The graph in newer operators, if it then computes the same; else as it is, with a note."""
    from onnx import version_converter

    shape = [dim or other for dim, other in zip(found.dims, (1, 3, 128, 192), strict=True)]
    x = np.random.default_rng(0).random(shape, np.float32).astype(found.dtype)
    before = found.runner()(x)
    try:
        proto = _tidy(version_converter.convert_version(found.proto, CONVERTED_OPSET))
        for node in proto.graph.node:
            # The converter gives Resize its default of today. Upsample, and Resize of opset 10, are the
            # oldest way: measured on a DeepLab of opset 8, values differ by 0.85 without this, by 0 with it.
            if node.op_type == "Resize":
                _set_attribute(node, "coordinate_transformation_mode", "asymmetric")
                _set_attribute(node, "nearest_mode", "floor")
        after = Runner(found.path, proto)(x)
        equal = all(np.allclose(after[name], values, rtol=1e-3, atol=1e-4) for name, values in before.items())
    except (CheckpointError, RuntimeError, ValueError, KeyError, TypeError):
        equal = False  # the converter's own errors are RuntimeErrors
    if not equal:
        return replace(found, notes=(f"stays in opset {found.opset}: in newer operators it computes else",))
    return replace(
        found,
        proto=proto,
        notes=(f"opset {found.opset} became {CONVERTED_OPSET}, which computes the same",),
    )


def _set_attribute(node: Any, name: str, value: str) -> None:
    from onnx import helper

    kept = [_copy(entry) for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _unknown_operators(proto: Any) -> list[str]:
    """Operators that are neither in the ONNX standard nor ONNX Runtime's own."""
    import onnx

    return sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)
            for node in _nodes(proto.graph)
            if node.domain not in _KNOWN_DOMAINS
            or (node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type))
        }
    )


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches and loops too."""
    for node in graph.node:
        yield node
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _nodes(entry.g)


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
