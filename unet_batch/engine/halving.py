"""Halve an imported graph: convolutions, and what hands on their results, in float16; all else in float32.

A graph that came in float32 was trained in it, and nobody says what of it half precision breaks. So only
what is known to be harmless is halved: operators with constant weights, and behind them those that choose,
move, add or scale. What sums over areas, divides or has an exponential stays as it is, and so does all that
was composed around the network. What then still goes wrong shows in the proof, and the layers that cause it
stay in float32, too.

ONNX Runtime has few kernels for float16 on a CPU: it computes in float32 and drops the casts between, so that
10^6 comes through a convolution in float16 unharmed (1.31). Proofs run an imitation therefore: operators in
float32, each of their results rounded as float16 rounds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine import onnx_model
from unet_batch.engine.onnx_model import KEY, OnnxModel, OnnxRunner
from unet_batch.engine.proof import MIN_DICE, Reference, compare

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT, _FLOAT16 = 1, 10  # onnx.TensorProto.DataType
_LARGEST = 65504.0  # of float16
_OURS = "unet_batch/"  # nodes that were composed around the network
_CAST = f"{_OURS}cast/"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Which of their inputs are values: the others are shapes, places and scales, which keep their types.
_FIRST = (0,)
_CARRIERS = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Concat", "Clip", "PRelu"), range(99)),
    **dict.fromkeys(("Relu", "LeakyRelu", "MaxPool", "Resize", "Upsample", "Identity", "Dropout"), _FIRST),
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand"), _FIRST),
    **dict.fromkeys(("Slice", "Split", "DepthToSpace", "SpaceToDepth"), _FIRST),
    "Pad": (0, 2),
}


def halve(model: OnnxModel, float32: Sequence[str] = (), *, imitated: bool = False) -> OnnxModel:
    """The same network with its convolutions in float16.

    Args:
        model: an imported graph in float32.
        float32: names of layers that stay as they are.
        imitated: make the graph that computes the same in float32, for a proof.
    """
    import onnx

    proto = onnx.load_model_from_string(model.data)
    graph = proto.graph
    _fold_norms(graph)
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    layers = zip_longest(convolutions, model.facts["layers"])  # a head has no layer's name
    halving = _Halving(
        graph, {node.name for node, layer in layers if layer is None or layer in float32}, imitated
    )
    nodes = halving.run()
    weights = [*graph.initializer, *halving.made_weights]
    used = {output.name for output in graph.output} | set(_names_used(nodes))
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(node for node in nodes if node.output[0] in used or not node.name.startswith(_CAST))
    graph.initializer.extend(weight for weight in weights if weight.name in used)
    facts = {**model.facts, "precision": "fp16", "float32": list(float32)}
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    entry.value = json.dumps(facts, sort_keys=True)
    return onnx_model.parse(proto.SerializeToString())


def offenders(model: OnnxModel, reference: Reference) -> tuple[str, ...]:
    """Layers that half precision breaks: halved alone, each takes the masks below the limit."""
    few, names = reference.pictures[:4], [str(name) for name in model.facts["layers"]]
    found = []
    for name in names:
        run = OnnxRunner(halve(model, [other for other in names if other != name], imitated=True).data)
        maps = np.concatenate([run(picture[None]) for picture in few])
        if not compare(maps, reference.maps[: len(few)], model.spec).dice >= MIN_DICE["fp16"]:
            found.append(name)
    return tuple(found)


class _Halving:
    """Goes through the nodes in their order, and knows of each tensor what it is in float16.

    Args:
        graph: an onnx.GraphProto; its nodes are changed.
        kept: names of nodes that stay in float32.
        imitated: see `halve`.
    """

    def __init__(self, graph: Any, kept: set[str], imitated: bool) -> None:
        self.graph, self.kept, self.imitated = graph, kept, imitated
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.halves: dict[str, str] = {}  # names of float32 tensors to those of the same in float16
        self.computed: set[str] = set()  # tensors that are computed in float16
        self.made_weights: list[Any] = []
        self.nodes: list[Any] = []

    def run(self) -> list[Any]:
        """The nodes, with casts where the precision changes; some of these lead nowhere."""
        for node in self.graph.node:
            values = self._values(node)
            for index in values:
                node.input[index] = self._half_of(node.input[index])
            self.nodes.append(node)
            for index in range(len(node.output) if node.op_type == "Split" else 1) if values else ():
                name = node.output[index]
                self.computed.add(name)
                node.output[index] = f"{name}/half"
                if self.imitated:
                    self._round(f"{name}/half", name)
                    self.halves[name] = name
                else:
                    self.halves[name] = f"{name}/half"
                    self._cast(self.halves[name], name, _FLOAT)
        return self.nodes

    def _values(self, node: Any) -> list[int]:
        """Which inputs of a node become float16; none of one that stays in float32."""
        if node.domain not in ("", "ai.onnx") or node.name in self.kept or node.name.startswith(_OURS):
            return []
        indices = [index for index, name in enumerate(node.input) if name]
        if node.op_type in _WEIGHTED:
            is_whole = all(self._fits(name) for name in node.input[1:] if name) and len(indices) > 1
            return indices if is_whole and node.input[0] not in self.weights else []
        indices = [index for index in indices if index in _CARRIERS.get(node.op_type, ())]
        names = [node.input[index] for index in indices]
        is_half = all(name in self.computed or self._fits(name) for name in names)
        return indices if is_half and self.computed.intersection(names) else []

    def _fits(self, name: str) -> bool:
        """Whether a tensor is a weight in float32 that float16 holds."""
        values = self._weight(name)
        return values is not None and bool(np.abs(values).max(initial=0) <= _LARGEST)

    def _weight(self, name: str) -> NDArray[np.float32] | None:
        from onnx import numpy_helper

        weight = self.weights.get(name)
        if weight is None or weight.data_type != _FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(weight))

    def _half_of(self, name: str) -> str:
        from onnx import numpy_helper

        if name not in self.halves:
            half = self.halves[name] = f"{name}/half"
            values = self._weight(name)
            if values is not None:
                rounded = values.astype(np.float16)
                rounded = rounded.astype(np.float32) if self.imitated else rounded
                self.made_weights.append(numpy_helper.from_array(rounded, half))
            elif self.imitated:
                self._round(name, half)
            else:
                self._cast(name, half, _FLOAT16)
        return self.halves[name]

    def _round(self, source: str, target: str) -> None:
        self._cast(source, f"{target}/rounded", _FLOAT16)
        self._cast(f"{target}/rounded", target, _FLOAT)

    def _cast(self, source: str, target: str, to: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{_CAST}{target}", to=to))


def _fold_norms(graph: Any) -> None:
    """Fold each BatchNorm into the convolution before it, in float32, where nothing else uses its result."""
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    uses = list(_names_used(graph.node)) + [output.name for output in graph.output]
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    folded = []
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if before is None or uses.count(node.input[0]) > 1 or len(node.output) > 1:
            continue
        names = [*before.input[1:], *node.input[1:]]
        if not all(name in weights for name in names) or uses.count(before.input[1]) > 1:
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(weights[name]).astype(np.float64) for name in node.input[1:]
        )
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        kernel = numpy_helper.to_array(weights[before.input[1]])
        bias = numpy_helper.to_array(weights[before.input[2]]) if len(before.input) > 2 else 0.0
        for name, values in (
            (before.input[1], kernel * factor.reshape(-1, 1, 1, 1)),
            (f"{before.output[0]}/bias", (bias - mean) * factor + shift),
        ):
            if name not in weights:
                weights[name] = graph.initializer.add()
            weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
        before.input[:] = [*before.input[:2], f"{before.output[0]}/bias"]
        before.output[0] = node.output[0]
        folded.append(node)
    for node in folded:
        graph.node.remove(node)


def _names_used(nodes: Any) -> Iterator[str]:
    """The inputs of nodes, those inside of branches and loops, too."""
    for node in nodes:
        yield from node.input
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _names_used(entry.g.node)
                yield from (output.name for output in entry.g.output)
