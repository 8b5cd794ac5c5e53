"""Foreign graphs of every kind become graphs of ours whose masks are the original's own.

What the original computes is worked out here, apart from the program: preprocessing and postprocessing in
NumPy, the foreign file itself in ONNX Runtime.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.helpers.foreign import SIZE, Net
from unet_batch import scenes
from unet_batch.engine import onnx_model, proof
from unet_batch.engine.importing import compose
from unet_batch.engine.importing.importer import Imported, import_graph
from unet_batch.engine.importing.settings import Settings
from unet_batch.engine.onnx_model import OnnxRunner
from unet_batch.errors import CheckpointError, OutputError, UnetBatchError, UsageError
from unet_batch.media import geometry, images

Array = Any
NAMES = ("side0", *(f"d{number}" for number in range(1, 7)))
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@functools.cache
def pictures(size: tuple[int, int] = SIZE, count: int = 3) -> Array:
    at = (max(64, size[0]), max(96, size[1]))
    photos = [scenes.draw(70 + number, at)[0] for number in range(count)]
    return np.stack([geometry.to_network(photo, geometry.place(at, size)) for photo in photos])


# What is done before the network ----------------------------------------------------------------------------


def nchw(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def imagenet(x: Array) -> Array:
    return nchw((x.astype(np.float32) / 255 - MEAN) / STD)


def unit(x: Array) -> Array:
    return nchw(x.astype(np.float32) / 255)


def levels(x: Array) -> Array:
    return nchw(x.astype(np.float32))


# What is done behind it -------------------------------------------------------------------------------------


def sigmoid(y: Array) -> Array:
    return np.exp(-np.logaddexp(0, -y[:, 0].astype(np.float64)))


def plain(y: Array) -> Array:
    return y[:, 0]


def second_of_two(y: Array) -> Array:
    weights = np.exp(y - y.max(1, keepdims=True))
    return weights[:, 1] / weights.sum(1)


def largest(y: Array) -> Array:
    return y.argmax(1)


def enlarged(finish: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """First brought to the picture's size, as PyTorch does it."""

    def run(y: Array) -> Array:
        return finish(
            torch.nn.functional.interpolate(torch.from_numpy(y).float(), SIZE, mode="bilinear").numpy()
        )

    return run


# The graphs -------------------------------------------------------------------------------------------------


def u2net() -> Net:
    """Seven maps, a coarse one first."""
    net = Net().body(gain=9)
    logits = net.last
    net.add("AveragePool", kernel_shape=[4, 4], strides=[4, 4], at=logits).add("Sigmoid", name="side0")
    for number in range(1, 7):
        net.add("Mul", net.weight(1 + number / 4), at=logits).add("Sigmoid", name=f"d{number}")
    return net


def unpadded_unet(shape: tuple[Any, ...] = ("n", 3, "h", "w")) -> Net:
    """Two levels down and up, with a skip: heights and widths that 4 does not divide fail."""
    net = Net(shape).conv(3, 6).add("Tanh")
    skip = net.last
    net.conv(6, 6, strides=[2, 2]).add("Tanh").conv(6, 6, strides=[2, 2]).add("Tanh")
    scales = net.weight([1, 1, 4, 4], np.float32)
    net.add("Resize", net.weight([], np.float32), scales, mode="nearest")
    net.add("Concat", skip, axis=1).body(1, 12)
    return net.add("Sigmoid")


def channels_last(shape: Sequence[int | None]) -> Net:
    return Net(shape).add("Transpose", perm=[0, 3, 1, 2]).body()


def self_normalising() -> Net:
    net = Net()
    net.add("Sub", net.weight((MEAN * 255).reshape(1, 3, 1, 1)))
    return net.add("Div", net.weight((STD * 255).reshape(1, 3, 1, 1))).body()


def norm_first() -> Net:
    """BatchNorm of the pictures themselves, as trained on bytes."""
    net = Net()
    statistics = [net.weight(v) for v in ([1, 1, 1], [0, 0, 0], [110, 118, 125], [4000, 4100, 4200])]
    return net.add("BatchNormalization", *statistics).body()


def squeezed() -> Net:
    """Reshape to a batch of one, as exporters write a squeeze-and-excitation block."""
    net = Net().conv(3, 6).add("Tanh")
    before = net.last
    net.add("GlobalAveragePool").add("Reshape", net.weight([1, 6], np.int64))
    net.add("Reshape", net.weight([1, 6, 1, 1], np.int64))
    return net.add("Mul", before).body(1, 6)


def bound_to_one() -> Net:
    """Mixes the pictures of a batch."""
    net = Net()
    net.add("ReduceMean", axes=[0], keepdims=1).add("Mul", net.weight(0.3))
    return net.add("Add", net.inputs[0].name).body()


def old(opset: int) -> Net:
    """With Upsample, which opset 10 replaced."""
    net = Net(opset=opset).body(stride=2)
    if opset < 9:
        return net.add("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="linear")
    return net.add("Upsample", net.weight([1, 1, 2, 2], np.float32), mode="linear")


@dataclass
class Kind:
    """A graph, what has to be said of it, and what it computes."""

    net: Callable[[], Net]
    prepare: Callable[[Array], Array]
    finish: Callable[[Array], Array]
    given: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    dtype: int | None = None
    names: tuple[str, ...] = ()
    batch: int | None = None


def argmax(keepdims: int, dtype: int) -> Callable[[], Net]:
    return lambda: Net().body(4).add("ArgMax", axis=1, keepdims=keepdims).add("Cast", to=dtype)


FOUR = ("road", "car", "sky", "tree")
KINDS: dict[str, Kind] = {
    "one channel of logits": Kind(lambda: Net().body(), imagenet, sigmoid),
    "one channel of probabilities": Kind(
        lambda: Net().body().add("Sigmoid"), unit, plain, {"range": "0..1"}
    ),
    "channels last": Kind(
        lambda: channels_last((1, *SIZE, 3)).add("Transpose", perm=[0, 2, 3, 1]),
        lambda x: x.astype(np.float32) / 127.5 - 1,
        lambda y: sigmoid(y.transpose(0, 3, 1, 2)),
        {"range": "-1..1"},
    ),
    "channels last, all free": Kind(
        lambda: channels_last((None,) * 4),
        lambda x: x.astype(np.float32),
        sigmoid,
        {"range": "0..255", "size": SIZE},
    ),
    "a batch that is a word": Kind(lambda: Net(("None", 3, *SIZE)).body(2), imagenet, second_of_two),
    "two channels of softmax": Kind(
        lambda: Net().body(2).add("Softmax", axis=1), imagenet, lambda y: y[:, 1]
    ),
    "two channels, the first one the object": Kind(
        lambda: Net().body(2),
        imagenet,
        lambda y: second_of_two(y[:, ::-1]),
        {"classes": ("cat", "background")},
    ),
    "two classes and no background": Kind(
        lambda: Net().body(2), imagenet, largest, {"classes": ("cat", "dog")}
    ),
    "all dimensions free": Kind(
        lambda: Net((None, 3, None, None)).body().add("Sigmoid"), imagenet, plain, {"size": SIZE}
    ),
    "seven maps": Kind(
        u2net, imagenet, plain, output="d1", names=NAMES
    ),
    "another of seven maps": Kind(
        u2net, imagenet, plain, {"map": "d4"}, "d4", names=NAMES
    ),
    "four channels": Kind(lambda: Net().body(4), imagenet, largest),
    "one channel of four": Kind(
        lambda: Net().body(4),
        imagenet,
        lambda y: (np.exp(y) / np.exp(y).sum(1, keepdims=True))[:, 2],
        {"channel": 2, "classes": FOUR},
    ),
    "ids, NHW int64": Kind(argmax(0, TensorProto.INT64), imagenet, lambda y: y, dtype=TensorProto.INT64),
    "ids, N1HW int32": Kind(
        argmax(1, TensorProto.INT32), imagenet, lambda y: y[:, 0], {"classes": FOUR}, dtype=TensorProto.INT32
    ),
    "yes or no": Kind(
        lambda: greater(),
        imagenet,
        lambda y: y[:, 0].astype(np.float32),
        dtype=TensorProto.BOOL,
    ),
    "a quarter of the size": Kind(lambda: Net().body(stride=4), imagenet, enlarged(sigmoid)),
    "four channels at half the size": Kind(lambda: Net().body(4, stride=2), imagenet, enlarged(largest)),
    "twice the size": Kind(
        lambda: finer(), imagenet, enlarged(sigmoid)
    ),
    "normalises itself": Kind(self_normalising, levels, sigmoid),
    "begins with BatchNorm": Kind(norm_first, levels, sigmoid),
    "bytes": Kind(
        lambda: Net(dtype=TensorProto.UINT8).add("Cast", to=TensorProto.FLOAT).body(), nchw, sigmoid
    ),
    "blue first": Kind(
        lambda: Net().body(),
        lambda x: imagenet_of_bgr(x),
        sigmoid,
        {"colour": "bgr", "range": "imagenet"},
    ),
    "a mean and deviation of its own": Kind(
        lambda: Net().body(),
        lambda x: nchw((x.astype(np.float32) - np.float32([120, 110, 100])) / np.float32([60, 61, 62])),
        sigmoid,
        {"range": "0..255", "mean": (120.0, 110.0, 100.0), "std": (60.0, 61.0, 62.0)},
    ),
    "one channel in": Kind(
        lambda: Net((1, 1, *SIZE)).body(1, 1),
        lambda x: (x.astype(np.float32) / 255 @ np.float32([0.299, 0.587, 0.114]))[:, None],
        sigmoid,
        {"range": "0..1"},
    ),
    "half precision": Kind(
        lambda: Net(dtype=TensorProto.FLOAT16).body(gain=9).add("Sigmoid"),
        lambda x: imagenet(x).astype(np.float16),
        lambda y: plain(y).astype(np.float32),
    ),
    "a batch of one in a Reshape": Kind(squeezed, imagenet, sigmoid),
    "a batch of four": Kind(lambda: Net((4, 3, *SIZE)).body(), imagenet, sigmoid),
    "a batch of one that has to stay": Kind(bound_to_one, imagenet, sigmoid, batch=1),
    "opset 8": Kind(lambda: old(8), imagenet, sigmoid),
    "opset 9": Kind(lambda: old(9), imagenet, sigmoid),
    "opset 7": Kind(lambda: Net(opset=7).body().add("Sigmoid"), imagenet, plain),
    "opset 12": Kind(
        lambda: Net(opset=12).body(3), imagenet,
        lambda y: (np.exp(y) / np.exp(y).sum(1, keepdims=True))[:, 1], {"channel": 1},
    ),
    "opset 23": Kind(lambda: Net(opset=23).body(2), imagenet, second_of_two),
    "names of ours": Kind(
        lambda: Net(input="pictures").body().add("Sigmoid", name="maps"), imagenet, plain
    ),
}  # fmt: skip


def greater() -> Net:
    net = Net().body()
    return net.add("Greater", net.weight(0))


def finer() -> Net:
    net = Net().body()
    scales = net.weight([1, 1, 2, 2], np.float32)
    return net.add("Resize", net.weight([], np.float32), scales, mode="linear")


def imagenet_of_bgr(x: Array) -> Array:
    return nchw(((x.astype(np.float32) / 255 - MEAN) / STD)[..., ::-1])


def original(path: str, x: Array, output: str = "") -> Array:
    """What the file itself gives for pictures, one at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batch = session.get_inputs()[0].shape[0]
    batch = batch if isinstance(batch, int) else 1
    padded = np.concatenate([x, *[x[:1]] * (-len(x) % batch)])
    runs = [
        session.run([output] if output else None, {name: padded[k : k + batch]})[0]
        for k in range(0, len(padded), batch)
    ]
    return np.concatenate(runs)[: len(x)]


def dice(a: Array, b: Array) -> float:
    """Pooled over all pixels, the mean over the ids that occur."""
    ids = [k for k in np.unique(np.concatenate([a.ravel(), b.ravel()])) if k or a.max() > 1]
    return float(np.mean([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in ids]))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_original_networks(kind: str, tmp_path: Path) -> None:
    case = KINDS[kind]
    path = case.net().save(tmp_path / "net.onnx", *case.names, dtype=case.dtype)
    made = import_graph(path, str(tmp_path / "mine.onnx"), Settings(**case.given))
    x = pictures()
    truth = case.finish(original(path, case.prepare(x), case.output))
    run = OnnxRunner((tmp_path / "mine.onnx").read_bytes())
    maps = run(x) if case.batch is None else np.concatenate([run(x[k : k + 1]) for k in range(len(x))])
    assert (maps.dtype, maps.shape) == (np.uint8, (3, *SIZE))
    assert made.model.batch == case.batch
    assert made.model.precision == ("fp16" if kind == "half precision" else "fp32")
    assert {c.precision for c in made.model.convolutions.values()} == {made.model.precision}
    if made.model.spec.output == "probability":
        assert np.abs(maps / 255 - truth).max() <= 1.5 / 255
        maps, truth = (maps >= 128).astype(int), (truth >= 127.5 / 255).astype(int)
    assert 0.02 < (truth == 0).mean() < 0.98, "the test needs maps that are not flat"
    assert dice(maps, truth) >= 0.9999


def test_what_a_graph_says_of_itself_comes_back(tmp_path: Path) -> None:
    path = KINDS["four channels"].net().save(tmp_path / "net.onnx")
    made = import_graph(path, str(tmp_path / "mine.onnx"), Settings(classes=FOUR, terms="MIT"))
    model = onnx_model.read(made.path)
    spec = model.spec
    assert (spec.architecture, spec.widths, spec.encoder) == ("onnx", (), "")
    assert (spec.name, spec.input_size, spec.terms) == ("net", SIZE, "MIT")
    assert spec.classes.names == FOUR
    assert spec.output == "class_ids"
    assert model.precision == "fp32"
    text = json.dumps(model.facts["spec"], sort_keys=True)
    file = hashlib.sha256((tmp_path / "net.onnx").read_bytes()).digest()
    assert model.source_sha256 == hashlib.sha256(file + text.encode()).hexdigest()
    assert spec.training["imported"]["guessed"] == ["colour", "range"]


def test_two_imports_of_one_file_with_other_options_are_other_models(tmp_path: Path) -> None:
    path = KINDS["one channel of logits"].net().save(tmp_path / "net.onnx")
    first, again, other = (
        import_graph(path, str(tmp_path / f"{name}.onnx"), Settings(name="n", range=name))
        for name in ("0..1", "0..255", "-1..1")
    )
    found = {made.model.source_sha256 for made in (first, again, other)}
    assert len(found) == 3
    same = import_graph(path, str(tmp_path / "same.onnx"), Settings(name="n", range="0..1"))
    assert same.model.data == first.model.data


def test_weights_beside_the_graph_come_along(tmp_path: Path) -> None:
    net = KINDS["one channel of logits"].net()
    where = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}
    path = net.save(tmp_path / "net.onnx", **where)
    assert (tmp_path / "net.data").stat().st_size > 0
    whole = import_graph(path, str(tmp_path / "whole.onnx"), Settings())
    x = pictures()
    truth = sigmoid(original(path, imagenet(x)))
    assert np.abs(OnnxRunner(whole.model.data)(x) / 255 - truth).max() <= 1.5 / 255
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    changed = import_graph(path, str(tmp_path / "changed.onnx"), Settings())
    assert changed.model.source_sha256 != whole.model.source_sha256, "other weights are another model"


@pytest.fixture(scope="module")
def unpadded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Imported]:
    folder = tmp_path_factory.mktemp("unpadded")
    path = unpadded_unet().save(folder / "net.onnx")
    return path, import_graph(path, str(folder / "mine.onnx"), Settings(size=(36, 50)))


def test_a_stride_is_found(unpadded: tuple[str, Imported]) -> None:
    _, made = unpadded
    assert made.recipe.stride == 4
    assert made.model.size is None
    assert made.model.spec.stride == 1, "what is missing to it is padded inside"
    assert (
        "padded to multiples of 4 inside" in {choice.option: choice.reason for choice in made.choices}["size"]
    )


@settings(max_examples=15)
@given(st.integers(9, 41), st.integers(9, 53))
def test_any_size_is_padded_by_its_last_row_and_column(
    unpadded: tuple[str, Imported], height: int, width: int
) -> None:
    path, made = unpadded
    x = pictures((41, 53))[:1, :height, :width]
    padded = np.pad(x, ((0, 0), (0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
    truth = original(path, imagenet(padded))[:, 0, :height, :width]
    maps = OnnxRunner(made.model.data)(x)
    assert maps.shape == (1, height, width)
    assert np.abs(maps / 255 - truth).max() <= 1.5 / 255


def test_work_is_counted_at_the_padded_size(unpadded: tuple[str, Imported]) -> None:
    _, made = unpadded
    counted = made.model.convolutions
    pixels = 36 * 52
    assert [c.flops for c in counted.values()] == [
        2 * 9 * weights * pixels // share for weights, share in ((18, 1), (36, 4), (36, 16), (72, 1))
    ] + [2 * 6 * pixels]
    assert not any(c.is_head for c in counted.values())
    assert [c.layer for c in counted.values()] == list(counted)
    assert {c.precision for c in counted.values()} == {"fp32"}


def test_a_graph_without_convolutions_is_a_graph(tmp_path: Path) -> None:
    net = Net((None, 3, None, None))
    net.add("ReduceMean", axes=[1], keepdims=1).add("Sub", net.weight(0.5)).add("Mul", net.weight(20))
    made = import_graph(
        net.add("Sigmoid").save(tmp_path / "net.onnx"),
        str(tmp_path / "mine.onnx"),
        Settings(range="0..1", size=SIZE),
    )
    assert made.model.convolutions == {}
    assert made.recipe.stride == 1
    share = proof.share({}, "fp32", (), {}, "onnx")
    share.check()


def test_only_the_arithmetic_of_the_chosen_map_stays(tmp_path: Path) -> None:
    net = Net().body()
    first = net.last
    net.conv(1, 4).add("Sigmoid", name="unused")
    path = net.add("Sigmoid", at=first, name="map").save(tmp_path / "net.onnx", "map", "unused")
    made = import_graph(path, str(tmp_path / "mine.onnx"), Settings())
    assert made.recipe.output == "map"
    assert len(made.model.convolutions) == 2


def test_nothing_of_the_machine_that_exported_it_stays(tmp_path: Path) -> None:
    model = Net().body().model()
    model.graph.node[0].doc_string = 'File "/home/somebody/train.py", line 7'
    entry = model.graph.node[1].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", "/home/somebody/net.py"
    onnx.save(model, str(tmp_path / "net.onnx"))
    made = import_graph(str(tmp_path / "net.onnx"), str(tmp_path / "mine.onnx"), Settings())
    assert b"somebody" not in made.model.data


def test_weights_named_as_inputs_are_no_pictures(tmp_path: Path) -> None:
    """Files of IR 3 name all weights among the inputs."""
    model = Net(opset=7).body().model(ir=3)
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, str(tmp_path / "net.onnx"))
    made = import_graph(str(tmp_path / "net.onnx"), str(tmp_path / "mine.onnx"), Settings())
    assert [entry.name for entry in onnx.load_model_from_string(made.model.data).graph.input] == ["pictures"]


def test_the_file_beside_a_graph_says_what_options_do_not(tmp_path: Path) -> None:
    path = KINDS["four channels"].net().save(tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(
        'range = "0..255"\nmean = [120, 110, 100]\nstd = [60, 61, 62]\nclasses = ["a", "b", "c", "d"]\n'
        'name = "roads"\n'
    )
    spec = import_graph(path, str(tmp_path / "mine.onnx"), Settings(name="streets")).model.spec
    assert spec.name == "streets"
    assert spec.classes.names == ("a", "b", "c", "d")
    np.testing.assert_allclose(np.multiply(spec.mean, 255), [120, 110, 100])


# What cannot be used ----------------------------------------------------------------------------------------


def two_inputs() -> Any:
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("points", TensorProto.FLOAT, [1, 2]))
    return net.body().model()


def classifier() -> Any:
    net = Net().body()
    return net.add("GlobalAveragePool").add("Flatten").model()


def of_another_domain() -> Any:
    net = Net().body()
    net.add("Sparkle", domain="my.own")
    model = net.model()
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    return model


def unknown_classes() -> Any:
    net = (
        Net().body(4).add("Sigmoid").add("ReduceMax", axes=[1], keepdims=1).add("Cast", to=TensorProto.INT64)
    )
    return net.model(dtype=TensorProto.INT64)


def nothing_at_all() -> Any:
    return Net((None, None, None, None)).add("Sigmoid").model()


def not_finite() -> Any:
    net = Net().body()
    return net.add("Div", net.weight(0)).add("Relu").model()


UNFIT: dict[str, tuple[Callable[[], Any], dict[str, Any], str, str]] = {
    "cut off": (
        lambda: Net().body().model().SerializeToString()[:-9], {}, "a damaged one", "download it again",
    ),
    "a text": (
        lambda: b"weights of my network, by e-mail", {}, "a text file, not an ONNX graph", "the weights",
    ),
    "an old opset": (lambda: Net(opset=6).body().model(), {}, "ONNX opset 6", "newer opset"),
    "two inputs": (two_inputs, {}, r"takes 2 inputs \(input, points\)", "only input"),
    "three dimensions": (lambda: Net((3, *SIZE)).add("Relu").model(), {}, "shape 3x32x48", ""),
    "words": (lambda: Net(dtype=TensorProto.STRING).add("Identity").model(), {}, "ONNX type 8", ""),
    "a classifier": (classifier, {}, "gives no map of a picture of 32x48: Flatten_7:0 1x1", "each place"),
    "an operator nobody knows": (
        of_another_domain, {}, "operators that ONNX Runtime does not know: my.own.Sparkle", "standard",
    ),
    "channels nowhere": (
        nothing_at_all, {}, r"\?x\?x\?x\?, which does not tell", "--layout nchw or --layout nhwc",
    ),
    "classes nowhere": (
        unknown_classes, {}, "gives ids, .* how many classes", "--classes background,cat,dog",
    ),
    "values that are not finite": (not_finite, {}, "not finite", "--range"),
    "another size": (
        lambda: Net().body().model(), {"size": (64, 64)}, "32x48 only, 64x64 is asked", "--size",
    ),
    "no such map": (lambda: Net().body().model(), {"map": "d9"}, "no output 'd9'", "it has: Mul_"),
    "too many names": (lambda: Net().body(3).model(), {"classes": FOUR}, "4 names for 3 classes", "all 3"),
    "two names for one class": (
        lambda: Net().body().model(), {"classes": ("a", "b")}, "2 names, and one", "cat",
    ),
    "no such channel": (lambda: Net().body(3).model(), {"channel": 3}, "channel 3 of 3", "0 to 2"),
    "means of other channels": (
        lambda: Net((1, 5, *SIZE)).body(1, 5).model(), {"range": "imagenet"}, "takes 5 channels",
        "0.5,0.5,0.5,0.5,0.5",
    ),
    "no size that works": (
        lambda: Net((1, 3, "h", 48)).body().model(), {}, r"its input is 1x3x\?x48", "--size HxW",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_used_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    make, options, message, hint = UNFIT[kind]
    model = make()
    path = tmp_path / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(UnetBatchError, match=message) as caught:
        import_graph(str(path), str(tmp_path / "mine.onnx"), Settings(**options))
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint
    assert not (tmp_path / "mine.onnx").exists()


def test_weights_that_are_not_beside_it_are_named(tmp_path: Path) -> None:
    where = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}
    path = Net().body().save(tmp_path / "net.onnx", **where)
    (tmp_path / "net.data").unlink()
    with pytest.raises(CheckpointError, match=r"net\.onnx: its weights lie in net\.data") as caught:
        import_graph(path, str(tmp_path / "mine.onnx"), Settings())
    assert caught.value.hint == "put net.data beside net.onnx"


def test_a_graph_of_ours_needs_no_import(tmp_path: Path) -> None:
    path = Net().body().save(tmp_path / "net.onnx")
    made = import_graph(path, str(tmp_path / "mine.onnx"), Settings())
    with pytest.raises(UsageError, match="is a graph of unet-batch already"):
        import_graph(made.path, str(tmp_path / "again.onnx"), Settings())
    with pytest.raises(OutputError, match="exists already"):
        import_graph(path, made.path, Settings())
    with pytest.raises(UsageError, match=r"graphs are \.onnx files"):
        import_graph(path, str(tmp_path / "mine.safetensors"), Settings())


def test_a_composition_that_computes_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Net().body().save(tmp_path / "net.onnx")
    monkeypatch.setattr(compose, "LUMA", (0, 0, 1))
    gray = Net((1, 1, *SIZE)).body(1, 1).save(tmp_path / "grey.onnx")
    import_graph(path, str(tmp_path / "fine.onnx"), Settings())
    with pytest.raises(CheckpointError, match="it does not compute what it did: masks differ"):
        import_graph(gray, str(tmp_path / "mine.onnx"), Settings())
    assert not (tmp_path / "mine.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": "0..2"}, "range '0..2' is not known"),
        ({"range": "imagenet", "mean": (0.5,)}, "brings a mean and a deviation of its own"),
        ({"mean": (123.0, 116.0, 103.0)}, "up to 123, where pixels count from 0 to 1"),
        ({"std": (0.0,)}, "deviations are above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layuot = 'nchw'", "'layuot' is not known"),
        ("size = '32'", "size '32': height and width"),
        ("channel = 'two'", "channel 'two': a whole number"),
        ("mean = 0.5", "mean 0.5: a list"),
        ("range = '0..2'", "range '0..2' is not known"),
        ("mean = [", "cannot be read"),
    ],
)
def test_a_settings_file_that_cannot_be_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = Net().body().save(tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        import_graph(path, str(tmp_path / "mine.onnx"), Settings())
    assert caught.value.message.startswith(str(tmp_path / "net.toml"))


# Real ones --------------------------------------------------------------------------------------------------

SINET_MEAN = np.float32([132.35703, 115.69884, 107.304565])  # red first
SINET_STD = np.float32([68.29726, 65.1337, 63.97182])
REAL: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array], dict[str, Any]]] = {
    "portrait_prismanet_256": (unit, plain, {"range": "0..1"}),
    "portrait_sinet_320": (
        lambda x: nchw(((x - SINET_MEAN) / SINET_STD / 255)[..., ::-1]),
        lambda y: y[:, 1],
        {
            "range": "0..1", "colour": "bgr",
            "mean": tuple(map(float, SINET_MEAN / 255)), "std": tuple(map(float, SINET_STD)),
        },
    ),
    "person_deeplab_513": (
        lambda x: nchw(x.astype(np.float32) / 127.5 - 1), second_of_two, {"range": "-1..1"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_public_networks_find_people(name: str, data: Path, tmp_path: Path) -> None:
    path = data / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    prepare, finish, given = REAL[name]
    made = import_graph(str(path), str(tmp_path / "mine.onnx"), Settings(**given))
    size = made.model.spec.input_size
    photos = [images.read(str(photo)) for photo in sorted((data / "people").rglob("*.jpg"))[:2]]
    x = np.stack([geometry.to_network(photo.pixels, geometry.place(photo.size, size)) for photo in photos])
    maps = OnnxRunner(made.model.data)(x)
    truth = finish(original(str(path), prepare(x)))
    assert dice((maps >= 128).astype(int), (truth >= 127.5 / 255).astype(int)) >= 0.9999
    assert 0.05 < (maps >= 128).mean() < 0.6
