"""Compose a graph of ours around a foreign one: uint8 pictures in, uint8 maps out.

Only operators are used that mean the same in every opset since 11; a foreign graph keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine.importing.recipe import LUMA, Recipe
from unet_batch.engine.onnx_model import INPUT, OUTPUT, PADDED, STRIDE
from unet_batch.types import Size

if TYPE_CHECKING:
    from unet_batch.engine.importing.graph import ForeignGraph

_OURS = "unet_batch/"  # what our nodes and tensors are called
_SIDES = f"{_OURS}sides"  # height and width of the pictures
_PADDED = f"{_OURS}padded_sides"


class _Part:
    """Nodes in a row, with their constants, as a model of their own."""

    def __init__(self, name: str) -> None:
        self.name = f"{_OURS}{name}"
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, values: Any, dtype: type, name: str = "") -> str:
        """Name of a constant."""
        from onnx import numpy_helper

        name = name or f"{self.name}/constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node; the name of its output."""
        from onnx import helper

        output = name or f"{self.name}/{operator}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, list(inputs), [output], name=f"{output}_node", **attributes)
        )
        return output

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], like: Any) -> Any:
        """The part as an onnx.ModelProto in the operators and file format of another."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "part", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)


def compose(found: ForeignGraph, recipe: Recipe, *, batch: int | None, reshape: bool = False) -> Any:
    """The onnx.ModelProto that computes maps of pictures.

    Args:
        found: the graph.
        recipe: what is done around it.
        batch: pictures in a call; None leaves it free.
        reshape: let each Reshape to a batch of one keep the batch it is given.
    """
    from onnx import compose as onnx_compose
    from onnx import utils

    middle, picture, output = _free(found, recipe, batch, reshape=reshape)
    before, behind = _before(found, recipe, batch, middle), _behind(recipe, batch, middle, output)
    sides = [(name, name) for name in _passed(recipe)]
    joined = onnx_compose.merge_models(before, middle, io_map=[(f"{_OURS}x", picture)])
    joined = onnx_compose.merge_models(joined, behind, io_map=[(output, f"{_OURS}y"), *sides])
    imports = {entry.domain: entry.version for entry in joined.opset_import}
    del joined.opset_import[:], joined.graph.value_info[:]
    for domain, version in imports.items():
        entry = joined.opset_import.add()
        entry.domain, entry.version = domain, version
    # What leads to other outputs of the network goes; branches may use what their node does not name.
    branches = any(entry.HasField("g") for node in joined.graph.node for entry in node.attribute)
    if len(found.outputs) > 1 and not branches:
        joined = utils.Extractor(joined).extract_model([INPUT], [OUTPUT])
    joined.ir_version = middle.ir_version
    joined.graph.name = "unet_batch"
    return joined


def _passed(recipe: Recipe) -> tuple[str, ...]:
    """Sizes that the part behind the network needs of the part before it."""
    needed = [_SIDES] if recipe.is_resized or recipe.stride > 1 else []
    return (*needed, *([_PADDED] if recipe.is_resized and recipe.stride > 1 else []))


def _sides_of(recipe: Recipe) -> tuple[str, str] | Size:
    """Height and width in the shape of pictures and maps."""
    return ("h", "w") if recipe.is_free else recipe.size


def _free(found: ForeignGraph, recipe: Recipe, batch: int | None, *, reshape: bool) -> tuple[Any, str, str]:
    """The foreign graph with its sizes as they shall be, and the names of its picture and its output."""
    from onnx import compose as onnx_compose
    from onnx import helper

    proto = type(found.proto)()
    proto.CopyFrom(found.proto)
    graph = proto.graph
    dtype = next(each.type.tensor_type.elem_type for each in graph.output if each.name == recipe.output)
    del graph.output[:]
    rank = 3 if recipe.output_layout == "nhw" else 4
    graph.output.append(helper.make_tensor_value_info(recipe.output, dtype, [None] * rank))
    dims = graph.input[0].type.tensor_type.shape.dim
    sides = (1, 2) if recipe.layout == "nhwc" else (2, 3)
    dims[0].Clear()
    if batch is not None:
        dims[0].dim_value = batch
    else:
        dims[0].dim_param = "n"
    for axis, side, name in zip(sides, recipe.size, ("h", "w"), strict=True):
        dims[axis].Clear()
        if recipe.is_free:
            dims[axis].dim_param = name
        else:
            dims[axis].dim_value = side
    if reshape:
        _free_reshapes(graph)
    taken = {*(name for node in graph.node for name in (*node.input, *node.output)), graph.input[0].name}
    picture, output = graph.input[0].name, recipe.output
    if taken & {INPUT, OUTPUT} or any(name.startswith(_OURS) for name in taken):
        prefix = "network/"
        proto = onnx_compose.add_prefix(proto, prefix, rename_nodes=False)
        picture, output = prefix + picture, prefix + output
    return proto, picture, output


def _free_reshapes(graph: Any) -> None:
    """Let each Reshape to a batch of one keep the batch it is given."""
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in weights:
            continue
        shape = numpy_helper.to_array(weights[node.input[1]]).copy()
        if len(shape) < 2 or shape[0] != 1:
            continue
        shape[0] = 0  # as many as come in, which `allowzero` would take for none
        del node.attribute[:]
        name = f"{node.input[1]}_of_any_batch"
        if name not in weights:
            weights[name] = numpy_helper.from_array(shape, name)
            graph.initializer.append(weights[name])
        node.input[1] = name


def _before(found: ForeignGraph, recipe: Recipe, batch: int | None, like: Any) -> Any:
    """Pictures to what the network takes."""
    from onnx import TensorProto, helper

    part = _Part("before")
    x = part.add("Cast", INPUT, to=TensorProto.FLOAT)  # first of all: TensorRT rejects a Transpose of uint8
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    if mean.any():
        x = part.add("Sub", x, part.constant(mean * 255, np.float32))
    if (scale := 1 / (255 * std)).any() and not np.allclose(scale, 1, rtol=1e-12, atol=0):
        x = part.add("Mul", x, part.constant(scale, np.float32))
    if recipe.colour == "bgr":
        x = part.add("Gather", x, part.constant([2, 1, 0], np.int64), axis=3)
    elif recipe.colour == "grey":
        x = part.add("MatMul", x, part.constant([[share] for share in LUMA], np.float32))
    outputs = []
    if passed := _passed(recipe):
        shape = part.add("Shape", INPUT)
        sides = part.add("Gather", shape, part.constant([1, 2], np.int64), axis=0, name=_SIDES)
        if recipe.stride > 1:
            stride = part.constant([recipe.stride], np.int64, STRIDE)
            missing = part.add("Mod", part.add("Neg", sides), stride)
            pads = part.add(
                "Concat",
                part.constant([0, 0, 0, 0, 0], np.int64),
                missing,
                part.constant([0], np.int64),
                axis=0,
            )
            x = part.add("Pad", x, pads, name=PADDED, mode="edge")
            if recipe.is_resized:
                part.add("Add", sides, missing, name=_PADDED)
        outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in passed]
    if recipe.layout == "nchw":
        x = part.add("Transpose", x, perm=[0, 3, 1, 2])
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(found.dtype))
    part.add("Cast", x, to=wanted, name=f"{_OURS}x")
    pictures = helper.make_tensor_value_info(
        INPUT, TensorProto.UINT8, [batch or "n", *_sides_of(recipe), recipe.channels]
    )
    result = helper.make_tensor_value_info(f"{_OURS}x", wanted, [None] * 4)
    return part.model([pictures], [result, *outputs], like)


def _behind(recipe: Recipe, batch: int | None, like: Any, output: str) -> Any:
    """What the network gives, to maps."""
    from onnx import TensorProto, helper

    part = _Part("behind")
    y = part.add("Cast", f"{_OURS}y", to=TensorProto.FLOAT)
    if recipe.output_layout == "nhwc":
        y = part.add("Transpose", y, perm=[0, 3, 1, 2])
    elif recipe.output_layout == "nhw":
        shape = part.add("Shape", y)
        first = part.add("Gather", shape, part.constant([0], np.int64), axis=0)
        rest = part.add("Gather", shape, part.constant([1, 2], np.int64), axis=0)
        y = part.add("Reshape", y, part.add("Concat", first, part.constant([1], np.int64), rest, axis=0))
    is_pair = recipe.activation == "softmax" and recipe.channels_out == 2
    if recipe.activation != "ids" and recipe.channel is not None:
        if is_pair:  # a softmax of two is the sigmoid of their difference
            ones = [part.constant([index], np.int64) for index in (recipe.channel, 1 - recipe.channel)]
            y = part.add("Sub", *(part.add("Gather", y, index, axis=1) for index in ones))
        else:
            if recipe.activation == "softmax":  # over the last axis: means the same in every opset
                y = part.add("Softmax", part.add("Transpose", y, perm=[0, 2, 3, 1]), axis=3)
                y = part.add("Transpose", y, perm=[0, 3, 1, 2])
            if recipe.channels_out > 1:
                y = part.add("Gather", y, part.constant([recipe.channel], np.int64), axis=1)
    y = _fit(part, y, recipe)
    if recipe.activation != "ids" and recipe.channel is None:
        y = part.add("Cast", part.add("ArgMax", y, axis=1, keepdims=0), to=TensorProto.FLOAT)
    else:
        if recipe.activation != "ids":
            if recipe.activation == "sigmoid" or is_pair:
                y = part.add("Sigmoid", y)
            else:  # a softmax of ours keeps its range; resizing another's may leave it by a rounding error
                y = part.add("Max", y, part.constant(0, np.float32))
                y = part.add("Min", y, part.constant(1, np.float32))
            y = part.add(
                "Add", part.add("Mul", y, part.constant(255, np.float32)), part.constant(0.5, np.float32)
            )
        elif recipe.channel is not None:
            same = part.add("Equal", y, part.constant(recipe.channel, np.float32))
            y = part.add("Mul", part.add("Cast", same, to=TensorProto.FLOAT), part.constant(255, np.float32))
        y = part.add("Gather", y, part.constant(0, np.int64), axis=1)
    # From floats: TensorRT 8.6 makes uint8 of nothing else.
    part.add("Cast", y, to=TensorProto.UINT8, name=OUTPUT)
    given = next(entry for entry in like.graph.output if entry.name == output)
    rank = len(given.type.tensor_type.shape.dim)
    inputs = [helper.make_tensor_value_info(f"{_OURS}y", given.type.tensor_type.elem_type, [None] * rank)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in _passed(recipe)]
    maps = helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, [batch or "n", *_sides_of(recipe)])
    return part.model(inputs, [maps], like)


def _fit(part: _Part, y: str, recipe: Recipe) -> str:
    """Resize to the picture's size, and cut off what was padded."""
    if recipe.is_resized:
        channels = part.add("Gather", part.add("Shape", y), part.constant([0, 1], np.int64), axis=0)
        sides = _PADDED if recipe.stride > 1 else _SIDES
        sizes = part.add("Concat", channels, sides, axis=0)
        mode = (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            if recipe.activation == "ids"
            else {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        )
        none = part.constant([], np.float32)
        y = part.add("Resize", y, none, none, sizes, **mode)
    if recipe.stride > 1:
        axes, zeros = part.constant([2, 3], np.int64), part.constant([0, 0], np.int64)
        y = part.add("Slice", y, zeros, _SIDES, axes)
    return y
