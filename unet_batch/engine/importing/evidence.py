"""What the nodes of a foreign graph tell of its picture and its values: the first operators, and the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.engine.importing.graph import ForeignGraph

# What moves values about, and leaves them as they are (resizing: within their range).
_MOVES = (
    *("Cast", "Identity", "Dropout", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten"),
    *("Slice", "Gather", "Resize", "Upsample", "DepthToSpace"),
)


@dataclass(frozen=True, eq=False)
class Entrance:
    """What happens to the picture before the first operator that is no arithmetic by constants.

    Attributes:
        scale, shift: the picture times one plus the other, by channel or one for all.
        mean, deviation: statistics of the BatchNorm that meets the picture first; None where none does.
        is_transposed: channels are brought from the end to the front.
        channels: that the first convolution takes; None where none follows.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    mean: NDArray[np.float64] | None
    deviation: NDArray[np.float64] | None
    is_transposed: bool
    channels: int | None

    @property
    def subtracted(self) -> NDArray[np.float64] | None:
        """What is taken from the picture before it is scaled, by channel; None where it comes in as it is."""
        if np.allclose(self.scale, 1, rtol=1e-6) and np.allclose(self.shift, 0):
            return None
        return np.asarray(-self.shift / self.scale)


def enter(graph: ForeignGraph) -> Entrance:
    """Follow the picture to the first operator that is no arithmetic by constants."""
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in graph.proto.graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.proto.graph.node:
        for each in dict.fromkeys(node.input):
            if node.op_type != "Shape":
                users.setdefault(each, []).append(node)

    def constants(node: Any) -> list[NDArray[np.float64]]:
        names = [each for each in node.input if each in weights]
        return [numpy_helper.to_array(weights[each]).astype(np.float64).squeeze() for each in names]

    scale, shift = np.array(1.0), np.array(0.0)
    current, is_transposed, channels = graph.input, False, None
    mean = deviation = None
    while len(nodes := users.get(current, [])) == 1:
        node = nodes[0]
        values = constants(node)
        if node.op_type == "Conv":
            if node.input[1] in weights:
                group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
                channels = int(weights[node.input[1]].dims[1] * group)
            break
        if node.op_type == "BatchNormalization" and len(values) == 4:
            mean, deviation = values[2], np.sqrt(values[3])
            channels = len(np.atleast_1d(mean))
            break
        if node.op_type == "Transpose":
            perm = next((helper.get_attribute_value(entry) for entry in node.attribute), None)
            is_transposed = perm == [0, 3, 1, 2]
        elif node.op_type in ("Add", "Sub", "Mul", "Div"):
            if len(values) != 1:
                break
            value = values[0] if values[0].ndim < 2 else values[0].mean()  # a mean of its own for each pixel
            if node.op_type in ("Sub", "Div") and node.input[0] != current:
                break
            if node.op_type in ("Mul", "Div"):
                factor = value if node.op_type == "Mul" else 1 / value
                scale, shift = scale * factor, shift * factor
            else:
                shift = shift + (value if node.op_type == "Add" else -value)
        elif node.op_type not in ("Cast", "Identity", "Pad"):
            break
        current = node.output[0]
    return Entrance(scale, shift, mean, deviation, is_transposed, channels)


def last_operator(graph: ForeignGraph, output: str) -> Any:
    """The node whose values an output holds, moved about at most; None where it is the picture itself."""
    made = {name: node for node in graph.proto.graph.node for name in node.output}
    node = made.get(output)
    while node is not None and node.op_type in _MOVES:
        node = made.get(node.input[0])
    return node
