"""The exported graph computes what PyTorch computes, in the types that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from tests.helpers.engines import confident, overflowing, remember_exports
from unet_batch.engine import export, onnx_model, proof
from unet_batch.engine.onnx_model import OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendError, BackendUnavailable, CheckpointError, UsageError
from unet_batch.model.graph import Graph, convolutions

trace = export.export


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch)
        yield


def pictures(count: int = 5, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Smooth random pictures: noise would put every pixel near the threshold."""
    torch.manual_seed(count)
    smooth = (
        torch.nn.functional.interpolate(torch.rand(count, 3, 4, 6), size, mode="bicubic").clamp(0, 1) * 255
    )
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_agrees_with_pytorch(classes: int, precision: str) -> None:
    checkpoint = confident(classes)
    graph = export.export(checkpoint, precision=precision)
    maps = OnnxRunner(graph.data)(pictures())
    parity = proof.compare(maps, export.reference_maps(checkpoint, pictures()), checkpoint.spec)
    assert parity.dice >= proof.MIN_DICE[precision]
    assert 0.02 < parity.foreground < 0.98, "the test needs maps that are not flat"
    assert graph.precision == precision
    assert (graph.opset, graph.size) == (18, (32, 48))


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_nothing_that_tensorrt_is_slow_or_unable_at(classes: int) -> None:
    proto = onnx.load_model_from_string(export.export(confident(classes)).data)
    operators = [node.op_type for node in proto.graph.node]
    assert operators[0] == "Cast", "TensorRT rejects a Transpose of uint8"
    assert not {"ArgMax", "TopK", "BatchNormalization", "Pad", "Shape", "Resize"}.intersection(operators)
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.output[0] == proto.graph.output[0].name:
            break
    else:
        pytest.fail("the last node casts to uint8")
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_half_is_in_the_types_and_the_head_is_not() -> None:
    found = export.export(confident()).convolutions
    assert [c.precision for c in found.values()] == ["fp16"] * (len(found) - 1) + ["fp32"]
    assert [c.layer for c in found.values()] == [*convolutions(confident().model), ""]
    assert [c.is_head for c in found.values()] == [False] * (len(found) - 1) + [True]


def test_work_is_counted_as_the_literature_does() -> None:
    """The U-Net of 31 M parameters needs 1.4701 MFLOP for each pixel, a multiplication and its addition
    counted as two.
    """
    graph = export.export(confident(2, (64, 128, 256, 512, 1024), (32, 48)))
    flops = sum(c.flops for c in graph.convolutions.values())
    assert flops / (32 * 48) == pytest.approx(1.4701e6, rel=0.0005)


def test_opset_17_is_what_old_tensorrt_reads() -> None:
    graph = export.export(confident(), precision="fp32", opset=17)
    assert (graph.opset, graph.ir_version) == (17, 8)
    proto = onnx.load_model_from_string(graph.data)
    onnx.checker.check_model(proto, full_check=True)


def test_any_size() -> None:
    checkpoint = confident()
    graph = export.export(checkpoint, any_size=True)
    assert graph.size is None
    run = OnnxRunner(graph.data)
    for size in ((32, 48), (64, 32), (16, 80)):
        maps = run(pictures(2, size))
        exact = Graph(checkpoint.model, checkpoint.spec)(torch.from_numpy(pictures(2, size))).numpy()
        assert proof.compare(maps, exact, checkpoint.spec).dice > 0.999


def test_the_graph_says_what_it_is_and_nothing_of_where_it_was_made() -> None:
    checkpoint = confident(3)
    graph = export.export(checkpoint)
    again = onnx_model.parse(graph.data)
    assert again.spec == checkpoint.spec
    assert again.source_sha256 == checkpoint.sha256
    text = str(onnx.load_model_from_string(graph.data))
    assert "site-packages" not in text
    assert ".py" not in text


def test_the_same_checkpoint_gives_the_same_bytes() -> None:
    assert trace(confident()).data == trace(confident()).data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision 'int8' is not known"),
        ({"opset": 16}, "17 to 22 expected for fp16"),
        ({"precision": "bf16", "opset": 18}, "22 to 22 expected for bf16"),
        ({"size": (30, 48)}, r"heights and widths that 4 divides"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_numbers(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export.export(confident(), **options)  # type: ignore[arg-type]
    if "size" in options:
        assert caught.value.hint == "use --size 32x48"


class TestOverflow:
    def test_both_layers_are_found_and_keeping_them_helps(self) -> None:
        checkpoint = overflowing(confident(size=(64, 96)))
        shown = pictures(5, (64, 96))
        reference = Reference(shown, export.reference_maps(checkpoint, shown))
        broken = OnnxRunner(export.export(checkpoint).data)(shown)
        assert proof.compare(broken, reference.maps, checkpoint.spec).dice < 0.9
        kept = export.offenders(checkpoint, reference, "fp16")
        assert kept == ("down.1.0", "down.1.3")
        graph = export.export(checkpoint, float32=kept)
        assert proof.compare(OnnxRunner(graph.data)(shown), reference.maps, checkpoint.spec).dice > 0.999
        assert {c.layer for c in graph.convolutions.values() if c.precision == "fp32"} == {"", *kept}

    def test_a_sound_network_has_none(self) -> None:
        checkpoint = confident(size=(64, 96))
        shown = pictures(5, (64, 96))
        reference = Reference(shown, export.reference_maps(checkpoint, shown))
        assert export.offenders(checkpoint, reference, "fp16") == ()


def test_convolutions_are_named_in_the_order_they_run() -> None:
    """Nodes of the graph and layers of the network are matched by it."""
    model = confident().model
    ran: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(torch.zeros(1, 3, 16, 16))
    assert [*convolutions(model), "head"] == ran


class TestReading:
    def test_a_foreign_graph(self) -> None:
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        info = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
        proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:]))
        with pytest.raises(CheckpointError, match="not one of unet-batch"):
            onnx_model.parse(proto.SerializeToString())

    @pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x0a" * 40])
    def test_not_a_graph(self, data: bytes) -> None:
        with pytest.raises(CheckpointError):
            onnx_model.parse(data)

    def test_cut_off(self) -> None:
        data = export.export(confident()).data
        with pytest.raises(CheckpointError):
            onnx_model.parse(data[: len(data) // 2])

    def test_missing(self, tmp_path: object) -> None:
        with pytest.raises(CheckpointError, match="no-such"):
            onnx_model.read(f"{tmp_path}/no-such.onnx")

    def test_a_wrong_input_is_an_error_of_ours(self) -> None:
        with pytest.raises(BackendError, match="ONNX Runtime"):
            OnnxRunner(export.export(confident()).data)(pictures(1, (16, 16)))

    def test_bfloat16_is_refused_by_onnx_runtime_in_a_sentence(self) -> None:
        with pytest.raises(BackendUnavailable, match=r"ONNX Runtime .* refuses the graph"):
            OnnxRunner(export.export(confident(), precision="bf16").data)


def test_a_checkpoint_that_does_not_take_rgb_still_exports() -> None:
    checkpoint = confident()
    assert export.export(replace(checkpoint, sha256="1" * 64)).source_sha256 == "1" * 64


class TestReplaceTransposed:
    """1x1 convolutions and DepthToSpace in place of transposed convolutions."""

    @pytest.mark.parametrize(("precision", "any_size"), [("fp32", False), ("fp16", True), ("bf16", False)])
    def test_names_work_and_precision_stay(self, precision: str, any_size: bool) -> None:
        graph = export.export(confident(), precision=precision, any_size=any_size)
        other = onnx_model.replace_transposed(graph)
        assert other.convolutions == graph.convolutions
        assert (other.facts, other.opset, other.ir_version) == (graph.facts, graph.opset, graph.ir_version)
        proto = onnx.load_model_from_string(other.data)
        onnx.checker.check_model(proto, full_check=True)
        operators = [node.op_type for node in proto.graph.node]
        assert "ConvTranspose" not in operators
        assert operators.count("DepthToSpace") == 2

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    @pytest.mark.parametrize("classes", [1, 3])
    def test_maps_are_the_same_to_the_bit(self, precision: str, classes: int) -> None:
        graph = export.export(confident(classes), precision=precision)
        maps = OnnxRunner(graph.data)(pictures())
        assert len(np.unique(maps)) > 2, "the test needs maps that are not flat"
        assert np.array_equal(OnnxRunner(onnx_model.replace_transposed(graph).data)(pictures()), maps)

    def test_another_kind_is_refused(self) -> None:
        graph = export.export(confident())
        proto = onnx.load_model_from_string(graph.data)
        node = next(node for node in proto.graph.node if node.op_type == "ConvTranspose")
        next(entry for entry in node.attribute if entry.name == "strides").ints[:] = [1, 1]
        with pytest.raises(BackendError, match="node_convolution: not a transposed convolution of 2x2"):
            onnx_model.replace_transposed(replace(graph, data=proto.SerializeToString()))
