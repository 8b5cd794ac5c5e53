"""Small segmentation networks in ONNX as other programs write them, made node by node without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = (32, 48)


class Net:
    """A graph that grows by one node at a time.

    Args:
        shape: of the input; None is free, text is a name.
        dtype: of input and weights.
        opset: of the operators.
        seed: of the weights.
    """

    def __init__(
        self,
        shape: Sequence[int | str | None] = (1, 3, *SIZE),
        *,
        dtype: int = TensorProto.FLOAT,
        opset: int = 17,
        seed: int = 0,
        input: str = "input",
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.inputs = [helper.make_tensor_value_info(input, dtype, list(shape))]
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.last = input
        self.float: Any = np.float16 if dtype == TensorProto.FLOAT16 else np.float32

    def weight(self, values: Any, dtype: Any = None) -> str:
        """A constant tensor."""
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype or self.float), name))
        return name

    def add(self, operator: str, *inputs: str, at: str = "", name: str = "", **attributes: Any) -> Net:
        """Append a node behind the last one, or behind `at`."""
        output = name or f"{operator}_{len(self.nodes)}:0"
        self.nodes.append(helper.make_node(operator, [at or self.last, *inputs], [output], **attributes))
        self.last = output
        return self

    def conv(self, channels_in: int, channels_out: int, kernel: int = 3, **attributes: Any) -> Net:
        """A convolution that blurs: regions, not speckles."""
        values = self.rng.normal(size=(channels_out, channels_in, 1, 1)) / channels_in
        values = np.repeat(np.repeat(values, kernel, 2), kernel, 3) / kernel**2
        values += self.rng.normal(size=values.shape) * 0.1 / values[0].size
        pad = kernel // 2
        return self.add("Conv", self.weight(values), pads=[pad] * 4, **attributes)

    def body(self, classes: int = 1, channels: int = 3, stride: int = 1, gain: float = 40.0) -> Net:
        """Two layers whose answers are sure of themselves, at 1/stride of the size, around zero."""
        self.conv(channels, 6, strides=[stride, stride]).add("Tanh").conv(6, classes, 1)
        centre = self.add("GlobalAveragePool").last
        before = self.nodes[-1].input[0]
        return self.add("Sub", centre, at=before).add("Mul", self.weight(gain))

    def model(self, *outputs: str, dtype: int | None = None, ir: int = 8) -> Any:
        """The onnx.ModelProto; of the last tensor without names."""
        kind = dtype or (TensorProto.FLOAT16 if self.float is np.float16 else TensorProto.FLOAT)
        made = [helper.make_tensor_value_info(name, kind, None) for name in outputs or (self.last,)]
        graph = helper.make_graph(self.nodes, "net", self.inputs, made, self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir, producer_name="tests"
        )

    def save(self, path: Path, *outputs: str, dtype: int | None = None, **settings: Any) -> str:
        """Write it; `settings` are those of `onnx.save`."""
        onnx.save(self.model(*outputs, dtype=dtype), str(path), **settings)
        return str(path)
