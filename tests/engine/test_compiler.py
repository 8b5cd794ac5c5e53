"""What TensorRT's own words say; builds themselves are in `test_build`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unet_batch.engine.compiler import CompilerOptions, _lacks_deconvolution, _lower_precision

TRT = SimpleNamespace(LayerType=SimpleNamespace(DECONVOLUTION="deconvolution"))
LAYERS = [("node_conv2d", "convolution"), ("node_up", "deconvolution"), ("node_up_1", "deconvolution")]
RELU = "Could not find any implementation for node node_conv2d + node_relu."


def network(layers: list[tuple[str, str]]) -> SimpleNamespace:
    return SimpleNamespace(
        num_layers=len(layers),
        get_layer=lambda index: SimpleNamespace(name=layers[index][0], type=layers[index][1]),
    )


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        ("10: Could not find any implementation for node node_up.", True),
        (
            "10: [optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find any "
            "implementation for node node_up_1 + node_cat.)",
            True,
        ),
        ("Could not find any implementation for node {ForeignNode[node_conv2d...node_relu]}.", True),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([type.cpp:186: infer_type] Could not "
            "infer output types for operation: 627: deconv: convolution_before_bias- | relu_5-(bf16[8,12])",
            True,
        ),
        (RELU, False),
        ("Could not find any implementation for node node_up_12.", False),
        ("4: [network.cpp::validate] node_up: the weights have another shape", False),
        ("", False),
    ],
)
def test_a_transposed_convolution_without_a_kernel_is_told_from_other_errors(error: str, lacks: bool) -> None:
    assert _lacks_deconvolution(TRT, network(LAYERS), ["9: Skipping tactic 0x0", error]) == lacks
    assert not _lacks_deconvolution(TRT, network(LAYERS[:1]), [error]), "they are replaced already"


def test_what_follows_the_head_of_a_weakly_typed_network_stays_float32() -> None:
    """8.6 takes float32 graphs: told to use half, it would enlarge rounded logits."""
    kinds = {"CONVOLUTION", "DECONVOLUTION", "RESIZE", "ACTIVATION", "ELEMENTWISE", "SHUFFLE"}
    trt = SimpleNamespace(
        LayerType=SimpleNamespace(**{kind: kind for kind in kinds}),
        DataType=SimpleNamespace(HALF="half", FLOAT="float"),
        BuilderFlag=SimpleNamespace(FP16="fp16", OBEY_PRECISION_CONSTRAINTS="obey"),
    )
    rows = [
        ("conv", "CONVOLUTION", "half"),
        ("kept", "CONVOLUTION", "float"),
        ("relu6", "ACTIVATION", None),
        ("nearest", "RESIZE", None),
        ("merge", "CONVOLUTION", "half"),
        ("head", "CONVOLUTION", "float"),
        ("bilinear", "RESIZE", "float"),
        ("squeeze", "SHUFFLE", None),
        ("sigmoid", "ACTIVATION", "float"),
        ("times 255", "ELEMENTWISE", "float"),
    ]
    layers = [SimpleNamespace(name=name, type=kind, precision=None) for name, kind, _ in rows]
    network, flags = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__), list[str]()
    _lower_precision(
        trt, network, SimpleNamespace(set_flag=flags.append), CompilerOptions("fp16", float32=("kept",))
    )
    assert [(layer.name, layer.type, layer.precision) for layer in layers] == rows
    assert flags == ["fp16", "obey"]
