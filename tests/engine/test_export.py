"""The exported graph computes what PyTorch computes, in the types that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from tests.helpers.engines import confident, overflowing, overflowing_encoder, remember_exports
from unet_batch.engine import export, onnx_model, proof
from unet_batch.engine.compiler import CompilerOptions, Profile, compile_plan
from unet_batch.engine.flavours import Flavour
from unet_batch.engine.onnx_model import OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendError, BackendUnavailable, CheckpointError, UsageError
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.model.graph import Graph

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
    assert [c.layer for c in found.values()] == [*confident().model.convolutions(), ""]
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
    assert trace(confident()).data == export.export(confident()).data, "of which one may be another process's"


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


ENCODER_SIZE = (128, 192)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return confident(size=ENCODER_SIZE, encoder="efficientnet-lite0")


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint) -> onnx_model.OnnxModel:
    return export.export(checkpoint)


@pytest.fixture(scope="module")
def any_size() -> onnx_model.OnnxModel:
    checkpoint = confident(3, size=ENCODER_SIZE, encoder="efficientnet-lite0")
    return export.export(checkpoint, any_size=True, opset=17, precision="fp32")


class TestEncoder:
    """A U-Net on an encoder: depthwise convolutions, ReLU6, two kinds of Resize."""

    def test_onnx_runtime_agrees_with_pytorch(
        self, checkpoint: Checkpoint, graph: onnx_model.OnnxModel
    ) -> None:
        shown = pictures(5, ENCODER_SIZE)
        maps = OnnxRunner(graph.data)(shown)
        parity = proof.compare(maps, export.reference_maps(checkpoint, shown), checkpoint.spec)
        assert parity.dice >= proof.MIN_DICE["fp16"]
        assert 0.02 < parity.foreground < 0.98, "the test needs maps that are not flat"

    def test_nothing_that_a_tensorrt_cannot_read(self, graph: onnx_model.OnnxModel) -> None:
        """Constant scales of Resize, in modes that all releases since 8.0 have; constant bounds of Clip."""
        proto = onnx.load_model_from_string(graph.data)
        operators = {node.op_type for node in proto.graph.node}
        assert not operators & {"BatchNormalization", "ConvTranspose", "HardSwish", "Pad", "Shape", "Gather"}
        weights = {weight.name: weight for weight in proto.graph.initializer}
        resizes = [node for node in proto.graph.node if node.op_type == "Resize"]
        modes = []
        for node in resizes:
            values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            modes.append((values["mode"], values["coordinate_transformation_mode"]))
            _, roi, scales, *sizes = node.input
            assert (roi, sizes) == ("", [])
            assert onnx.numpy_helper.to_array(weights[scales]).tolist() == [1, 1, 2, 2]
            assert values["mode"] == b"linear" or values["nearest_mode"] == b"floor"
        assert modes == [(b"nearest", b"asymmetric")] * 4 + [(b"linear", b"half_pixel")]
        for node in proto.graph.node:
            if node.op_type == "Clip":
                assert [float(onnx.numpy_helper.to_array(weights[name])) for name in node.input[1:]] == [0, 6]
        assert len([node for node in proto.graph.node if node.op_type == "Clip"]) == 32

    def test_logits_are_enlarged_in_float32(self, graph: onnx_model.OnnxModel) -> None:
        proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph.data))
        types = {info.name: info.type.tensor_type.elem_type for info in proto.graph.value_info}
        kinds = [types[node.output[0]] for node in proto.graph.node if node.op_type == "Resize"]
        assert kinds == [onnx.TensorProto.FLOAT16] * 4 + [onnx.TensorProto.FLOAT]

    def test_work_of_depthwise_convolutions_is_counted_by_group(
        self, checkpoint: Checkpoint, graph: onnx_model.OnnxModel
    ) -> None:
        """As PyTorch counts it: a depthwise convolution does 1/channels of the work of a full one."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            checkpoint.model(torch.zeros(1, 3, *ENCODER_SIZE))
        found = graph.convolutions
        assert sum(c.flops for c in found.values()) == counter.get_total_flops()
        assert [c.layer for c in found.values()] == [*checkpoint.model.convolutions(), ""]
        kept = {"", *checkpoint.model.sensitive()}  # "" is the head
        assert [c.precision for c in found.values()] == [
            "fp32" if c.layer in kept else "fp16" for c in found.values()
        ]
        depthwise = next(c for c in found.values() if c.layer == "encoder.stages.1.0.layers.3")
        assert depthwise.flops == 2 * 96 * 9 * (ENCODER_SIZE[0] // 4) * (ENCODER_SIZE[1] // 4)

    def test_nothing_is_there_to_be_replaced(self, graph: onnx_model.OnnxModel) -> None:
        other = onnx_model.replace_transposed(graph)
        before, after = map(onnx.load_model_from_string, (graph.data, other.data))
        assert list(after.graph.node) == list(before.graph.node)
        assert other.convolutions == graph.convolutions

    def test_any_size_in_the_opset_of_old_tensorrt(self, any_size: onnx_model.OnnxModel) -> None:
        """Without a subgraph of shapes: the size of each Resize follows from its input."""
        checkpoint = confident(3, size=ENCODER_SIZE, encoder="efficientnet-lite0")
        assert (any_size.size, any_size.opset, any_size.ir_version) == (None, 17, 8)
        proto = onnx.load_model_from_string(any_size.data)
        assert not {node.op_type for node in proto.graph.node} & {"Shape", "Gather", "Pad", "ArgMax"}
        run = OnnxRunner(any_size.data)
        for size in (ENCODER_SIZE, (64, 32), (32, 160)):
            maps = run(pictures(2, size))
            exact = Graph(checkpoint.model, checkpoint.spec)(torch.from_numpy(pictures(2, size))).numpy()
            assert proof.compare(maps, exact, checkpoint.spec).dice > 0.9999

    def test_tensorrt_rtx_builds_it_for_a_range_of_sizes_and_batches(
        self, any_size: onnx_model.OnnxModel
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
        profile = Profile((1, 2, 4), ((32, 32), ENCODER_SIZE, (256, 384)))
        compiled = compile_plan(
            Flavour("tensorrt-rtx"), any_size.data, profile, CompilerOptions(precision="fp32")
        )
        assert compiled.precisions.keys() == any_size.convolutions.keys()

    def test_a_size_that_the_stride_does_not_divide(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(UsageError, match="heights and widths that 32 divides") as caught:
            export.export(checkpoint, size=(160, 240))
        assert caught.value.hint == "use --size 160x256"

    @pytest.mark.slow
    def test_overflow_is_found_where_blocks_add_to_what_they_were_given(self) -> None:
        checkpoint, layers = overflowing_encoder(confident(size=(64, 96), encoder="efficientnet-lite0"))
        shown = pictures(1, (64, 96))
        reference = Reference(shown, export.reference_maps(checkpoint, shown))
        assert export.offenders(checkpoint, reference, "fp16") == layers
        kept = Graph(checkpoint.model, checkpoint.spec, torch.float16, float32=layers).eval()
        with torch.inference_mode():
            maps = kept(torch.from_numpy(shown)).numpy()
        assert proof.compare(maps, reference.maps, checkpoint.spec).dice > 0.998


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
