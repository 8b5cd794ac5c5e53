"""Imported graphs in half precision: what is halved, what stays, and that the masks stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.helpers.foreign import SIZE, Net
from unet_batch.build import BuildOptions, build_engine
from unet_batch.engine import halving, onnx_model, proof
from unet_batch.engine.halving import halve
from unet_batch.engine.importing.guess import draw_pictures
from unet_batch.engine.importing.importer import import_graph
from unet_batch.engine.importing.settings import Settings
from unet_batch.engine.onnx_model import OnnxModel, OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.engine.source import Source
from unet_batch.errors import BackendError, UsageError

UNIT = Settings(range="0..1")


def norm(net: Net, channels: int, deviation: float = 0.3) -> Net:
    """A BatchNorm whose statistics are neither 0 nor 1."""
    statistics = [np.linspace(0.8, 1.2, channels), np.linspace(-0.2, 0.2, channels)]
    statistics += [np.linspace(-0.1, 0.3, channels), np.full(channels, deviation**2)]
    return net.add("BatchNormalization", *(net.weight(each) for each in statistics))


def residual() -> Net:
    """Convolutions with BatchNorm, a skip that is added, pooling, and an enlarged map behind a sigmoid."""
    net = norm(Net().conv(3, 8), 8).add("Relu")
    skip = net.last
    norm(net.conv(8, 8), 8).add("Relu")
    net.add("Add", skip).add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).body(1, 8)
    net.add("Resize", "", net.weight([1, 1, 2, 2], np.float32), mode="linear")
    return net.add("Sigmoid")


def imported(folder: Path, net: Net, given: Settings = UNIT) -> OnnxModel:
    return import_graph(net.save(folder / "net.onnx"), str(folder / "mine.onnx"), given).model


def nodes_of(model: OnnxModel) -> Any:
    return onnx.load_model_from_string(model.data).graph.node


def compared(half: OnnxModel, whole: OnnxModel) -> proof.Parity:
    pictures = draw_pictures(4, SIZE, 3)
    maps = [np.concatenate([OnnxRunner(each.data)(x[None]) for x in pictures]) for each in (half, whole)]
    return proof.compare(maps[0], maps[1], whole.spec)


def test_convolutions_and_what_is_between_them_are_halved_and_the_masks_stay(tmp_path: Path) -> None:
    whole = imported(tmp_path, residual())
    half = halve(whole)
    assert {found.precision for found in half.convolutions.values()} == {"fp16"}
    assert half.precision == "fp16"
    nodes = nodes_of(half)
    assert not [node for node in nodes if node.op_type == "BatchNormalization"], "folded, in float32"
    casts = [node for node in nodes if node.op_type == "Cast" and node.name.startswith("unet_batch/cast/")]
    # Into the first convolution; out to the mean over the picture and back, and out to the sigmoid.
    assert len(casts) <= 6
    parity = compared(halve(whole, imitated=True), whole)
    assert 0.05 < parity.foreground < 0.95
    assert parity.dice >= proof.MIN_DICE["fp16"]
    assert OnnxRunner(half.data)(draw_pictures(2, SIZE, 3)).shape == (2, *SIZE), "any batch still"


def test_what_sums_or_has_an_exponential_stays_in_float32(tmp_path: Path) -> None:
    net = Net().conv(3, 8).add("Relu")
    inner = net.last
    net.add("GlobalAveragePool").conv(8, 8, 1).add("Sigmoid").add("Mul", inner).body(2, 8).add(
        "Softmax", axis=1
    )
    half = halve(imported(tmp_path, net))
    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(half.data)).graph
    types = {info.name: info.type.tensor_type.elem_type for info in inferred.value_info}
    for node in inferred.node:
        if node.op_type in ("GlobalAveragePool", "Sigmoid", "Softmax") or node.name.startswith(
            "unet_batch/b"
        ):
            assert TensorProto.FLOAT16 not in {types.get(name) for name in node.output}, node.name


def test_named_layers_stay_and_are_recorded(tmp_path: Path) -> None:
    whole = imported(tmp_path, residual())
    kept = whole.facts["layers"][1]
    half = halve(whole, [kept])
    assert half.float32 == (kept,)
    precisions = {found.layer: found.precision for found in half.convolutions.values()}
    assert [name for name, precision in precisions.items() if precision == "fp32"] == [kept]
    assert onnx_model.parse(half.data).float32 == (kept,)


def overflowing() -> Net:
    """Values of up to 10^6 between two convolutions."""
    net, identity = Net().conv(3, 6).add("Tanh"), np.eye(6).reshape(6, 6, 1, 1)
    for name, factor in (("first", 1e3), ("second", 1e3), ("third", 1e-6)):
        net.add("Conv", net.weight(identity * factor)).nodes[-1].name = name
    return net.body(1, 6)


def to_half(folder: Path) -> BuildOptions:
    """Halve `mine.onnx`, which takes no library that compiles."""
    options = {"precision": "fp16", "onnx_only": True, "batch": (1, 2, 2)}
    return BuildOptions(str(folder / "mine.onnx"), str(folder / "engines"), **options)  # type: ignore[arg-type]


def test_layers_that_overflow_are_found_and_kept(tmp_path: Path) -> None:
    whole = imported(tmp_path, overflowing())
    pictures = draw_pictures(2, SIZE, 3)
    reference = Reference(pictures, OnnxRunner(whole.data)(pictures), "ONNX Runtime")
    assert compared(halve(whole, imitated=True), whole).dice < 0.99
    kept = halving.offenders(whole, reference)
    assert set(kept) == {"second", "third"}, "the one that makes such values, and the one that takes them"
    assert compared(halve(whole, kept, imitated=True), whole).dice >= proof.MIN_DICE["fp16"]


def test_a_build_keeps_those_layers_and_writes_the_halved_graph(tmp_path: Path) -> None:
    imported(tmp_path, overflowing())
    built = build_engine(to_half(tmp_path))
    assert built.onnx is not None
    written = onnx_model.read(built.onnx)
    assert (written.precision, written.float32) == ("fp16", ("second", "third"))
    assert any("fp16 breaks second, third: kept in float32" in note for note in built.notes)
    (parities,) = built.proofs.values()
    assert all(parity["dice"] >= proof.MIN_DICE["fp16"] for parity in parities.values())


def test_where_no_layer_alone_is_at_fault_the_build_is_refused_with_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(tmp_path, overflowing())
    monkeypatch.setattr(halving, "offenders", lambda model, reference: ())
    with pytest.raises(BackendError, match="the masks differ from ONNX Runtime's in float32") as caught:
        build_engine(to_half(tmp_path))
    assert "leave --precision out" in caught.value.hint
    assert not list((tmp_path / "engines").glob("*.onnx"))


def test_a_weight_that_two_layers_share_and_one_in_a_branch_stay_right(tmp_path: Path) -> None:
    net = Net().conv(3, 3).add("Relu")
    shared = net.nodes[-2].input[1]
    net.add("Conv", shared, pads=[1] * 4)
    statistics = [net.weight(np.full(3, value)) for value in (1.5, 0.1, 0.2, 0.8)]
    net.add("BatchNormalization", *statistics).body(1, 3)
    whole = imported(tmp_path, net)
    half = halve(whole)
    assert [node.op_type for node in nodes_of(half)].count("BatchNormalization") == 1, (
        "the other one needs it"
    )
    assert compared(half, whole).dice >= proof.MIN_DICE["fp16"]


def test_folding_changes_nothing_in_float32(tmp_path: Path) -> None:
    whole = imported(tmp_path, residual())
    proto = onnx.load_model_from_string(whole.data)
    halving._fold_norms(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    pictures = draw_pictures(2, SIZE, 3)
    ours, theirs = (OnnxRunner(data)(pictures) for data in (proto.SerializeToString(), whole.data))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_source_halves_imported_graphs_and_refuses_bf16(tmp_path: Path) -> None:
    imported(tmp_path, residual())
    source = Source(str(tmp_path / "mine.onnx"))
    options = {"size": SIZE, "any_size": False, "opset": None, "float32": ()}
    assert source.export("fp32", **options) is source.onnx  # type: ignore[arg-type]
    assert source.export("fp16", **options).precision == "fp16"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="engines in fp32 and fp16, not in bf16"):
        source.export("bf16", **options)  # type: ignore[arg-type]


def test_numbers_of_weights_are_rounded_not_cut(tmp_path: Path) -> None:
    """NumPy's cast rounds to the nearest."""
    whole = imported(tmp_path, Net().body())
    weights = {
        each.name: numpy_helper.to_array(each)
        for each in onnx.load_model_from_string(whole.data).graph.initializer
    }
    for each in onnx.load_model_from_string(halve(whole).data).graph.initializer:
        if each.data_type == TensorProto.FLOAT16:
            exact = weights[each.name.removesuffix("/half")]
            assert np.abs(numpy_helper.to_array(each) - exact).max() <= 2**-11 * np.abs(exact).max()
