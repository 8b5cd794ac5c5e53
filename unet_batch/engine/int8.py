"""INT8: a float32 graph to one with quantized convolutions, by NNCF, calibrated on pictures.

What comes out is one ONNX graph with QuantizeLinear and DequantizeLinear in it, symmetric, weights per
channel, which OpenVINO, TensorRT and ONNX Runtime read alike. Between the first convolution and the last one
all is quantized but

* depthwise convolutions, 3 % of the FLOPs of `fast`;
* transposed ones, which OpenVINO computes in float32 on AVX2 whatever it is told;
* the last convolutions, whose rounding errors would be the masks';
* what NNCF's accuracy control gives back to float32, one layer a round, until the masks hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine.flavours import install_line
from unet_batch.engine.onnx_model import INPUT, KEY, OnnxModel, OnnxRunner, parse
from unet_batch.engine.proof import MIN_DICE, MIN_WORST, Parity, Reference, compare
from unet_batch.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from unet_batch.engine.pictures import Calibration
    from unet_batch.types import Pixels

NAME = "int8"
# Layers that accuracy control may give back, one a round, and pictures it ranks them on.
ROUNDS = 8
_RANKED_ON = 4
_VALIDATED_ON = 32
# Of the loss that is allowed, what the graph may take: the engine, which rounds elsewhere, gets the rest.
_LOSS = 0.8
# Least share of all FLOPs in INT8 for which it is worth its name.
MIN_SHARE = 0.5
_CONVOLUTIONS = ("Conv", "ConvTranspose")
# Of a channel's scale the share that its values decide; its weights decide the rest. Loss of Dice of `fast`,
# decoder in INT8, on photos of streets: 0.0018 without, 0.0010, 0.0005, 0.0005 at 0.3, 0.5, 0.7.
_SHARE = 0.7
# No channel is taken for smaller than that of the largest: those that are dark here may not be elsewhere.
_FLOOR = 1e-3
# Layers that stay in float32, by the network: see `_choose`.
_ENCODER = {"encoder-unet": "encoder."}


def quantize(
    graph: OnnxModel,
    calibration: Calibration,
    reference: Reference,
    *,
    on_cpu: bool,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> OnnxModel:
    """Quantize a graph's convolutions, and give layers back to float32 until its masks hold.

    Args:
        graph: in float32.
        calibration: pictures that ranges are taken from.
        reference: pictures, others than those, and their maps in float32.
        on_cpu: for processors: weights take half of their range, since the instructions of CPUs without VNNI
            add two products in 16 bits and saturate (docs/log/2026-11-28.md has figures of `fast`),
            and are stored as 8 bits. Else weights are stored in float32 and quantized in the graph, as every
            TensorRT reads them.
        progress: hears of each stage and its share.

    Returns:
        A graph whose precision is `int8`. Its masks may differ by too much all the same: it is to be proven.

    Raises:
        BackendUnavailable: NNCF is not installed.
        BackendError: NNCF cannot quantize it, or little would be left in INT8.
    """
    nncf = _import_nncf()
    import onnx

    proto = onnx.load_model_from_string(graph.data)
    dense, kept = _choose(proto, graph)
    kept += _equalize(proto, dense, calibration.pictures)
    few = slice(0, None, max(1, len(reference.pictures) // _VALIDATED_ON))
    pictures, maps = reference.pictures[few], reference.maps[few]
    say = _restoring_stdout(progress)
    calibrated, tried = 0, 0

    def feed(picture: Any) -> dict[str, Any]:
        nonlocal calibrated
        calibrated += 1
        say("calibrate INT8", min(1.0, calibrated / len(calibration.pictures)))
        return {INPUT: picture[None]}

    def judge(model: Any, numbers: Any) -> tuple[float, list[float]]:
        """How much of the loss that is allowed a graph leaves; of each picture its worst Dice."""
        nonlocal tried
        tried += 1
        say("compare INT8 with float32", min(1.0, tried / (len(graph.convolutions) + ROUNDS)))
        chosen = list(numbers)
        run = OnnxRunner(_finish(model, on_cpu=on_cpu).SerializeToString())
        found = np.concatenate([run(pictures[number : number + 1]) for number in chosen])
        each = [compare(found[[at]], maps[[number]], graph.spec).worst for at, number in enumerate(chosen)]
        return 1 - loss(compare(found, maps[chosen], graph.spec)), each

    with _silence():
        try:
            quantized = nncf.quantize_with_accuracy_control(
                proto,
                nncf.Dataset(calibration.pictures, feed),
                nncf.Dataset(range(len(pictures))),
                judge,
                max_drop=_LOSS,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(calibration.pictures),
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
                **_advanced(on_cpu=on_cpu),
            )
        except Exception as error:  # NNCF's and ONNX Runtime's share no base
            if not type(error).__module__.startswith(("nncf", "onnx")):
                raise
            what = f"NNCF {nncf.__version__} cannot quantize the graph"
            raise BackendError(f"{what}: {_line(error)}") from error
    return _describe(_finish(quantized, on_cpu=on_cpu), graph, calibration)


def _advanced(*, on_cpu: bool) -> dict[str, Any]:
    """What of NNCF is not as it is by default."""
    from nncf.quantization import advanced_parameters as advanced

    return {
        "advanced_quantization_parameters": advanced.AdvancedQuantizationParameters(
            # Its fast one spoils: loss of Dice of `fast` on streets 0.0025 with it, 0.0005 without
            disable_bias_correction=True,
            overflow_fix=advanced.OverflowFix.ENABLE if on_cpu else advanced.OverflowFix.DISABLE,
            backend_params={"compress_weights": on_cpu},
        ),
        "advanced_accuracy_restorer_parameters": advanced.AdvancedAccuracyRestorerParameters(
            max_num_iterations=ROUNDS, ranking_subset_size=_RANKED_ON, num_ranking_workers=1
        ),
    }


def loss(parity: Parity) -> float:
    """How much of the loss that INT8 is allowed masks have: 1 is the limit, pooled or of the worst."""
    pooled = (1 - parity.dice) / (1 - MIN_DICE[NAME])
    return max(pooled, (1 - parity.worst) / (1 - MIN_WORST[NAME]))


def _equalize(proto: Any, dense: Collection[str], pictures: Pixels) -> list[str]:
    """Bring the channels that enter quantized convolutions to like ranges, and the weights to the inverse.

    One scale holds for all channels of a tensor, and where skip and decoder meet, some reach 60 and others
    6. In float32 the graph computes what it did. Of `fast`, decoder in INT8, this took the loss of Dice from
    0.0018 to 0.0005 on streets (docs/log/2026-11-29.md).

    Args:
        proto: the graph in float32; it is changed.
        dense: names of those convolutions.
        pictures: to see the ranges on, uint8 (N, H, W, C).

    Returns:
        Names of the multiplications that were put in.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    uses = Counter(name for node in proto.graph.node for name in node.input)
    convolutions = [
        node
        for node in proto.graph.node
        if node.name in dense and node.input[1] in tensors and uses[node.input[1]] == 1
    ]
    largest = _channel_maxima(proto, sorted({node.input[0] for node in convolutions}), pictures)
    before: dict[str, Any] = {}
    for node in convolutions:
        weight = tensors[node.input[1]]
        values = onnx.numpy_helper.to_array(weight)
        reach = largest[node.input[0]]
        drive = np.abs(values).max((0, 2, 3))
        floor = [np.maximum(each, _FLOOR * each.max(initial=0) or 1) for each in (reach, drive)]
        scale = (floor[0] ** _SHARE / floor[1] ** (1 - _SHARE)).astype(np.float32)
        scale /= scale.mean()
        name = f"{node.name}/equalized"
        factor = onnx.numpy_helper.from_array(1 / scale[None, :, None, None], f"{name}/factor")
        proto.graph.initializer.append(factor)
        before[node.name] = onnx.helper.make_node("Mul", [node.input[0], factor.name], [name], name)
        node.input[0] = name
        weight.CopyFrom(onnx.numpy_helper.from_array(values * scale[None, :, None, None], weight.name))
    nodes = [each for node in proto.graph.node for each in (before.get(node.name), node) if each is not None]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return [node.name for node in before.values()]


def _channel_maxima(proto: Any, names: Sequence[str], pictures: Pixels) -> dict[str, Any]:
    """Of each tensor (N, C, H, W) the largest magnitude in each channel, over some of the pictures."""
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    for name in names:
        shown.graph.node.extend(
            [
                onnx.helper.make_node("Abs", [name], [f"{name}/magnitude"]),
                onnx.helper.make_node("GlobalMaxPool", [f"{name}/magnitude"], [f"{name}/largest"]),
            ]
        )
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"{name}/largest"))
    run = OnnxRunner(shown.SerializeToString())
    few = pictures[:: max(1, len(pictures) // _VALIDATED_ON)]
    outputs = [f"{name}/largest" for name in names]
    found = [run.outputs(picture[None], outputs) for picture in few]
    return {name: np.max([each[at] for each in found], (0, 1, 3, 4)) for at, name in enumerate(names)}


def _choose(proto: Any, graph: OnnxModel) -> tuple[set[str], list[str]]:
    """Names of the convolutions to quantize, and of the nodes that stay in float32.

    The latter are what lies before the first convolutions and behind the last, convolutions that are not
    dense, and an encoder of depthwise and 1x1 convolutions.
    """
    convolutions = [node for node in proto.graph.node if node.op_type in _CONVOLUTIONS]
    above = _above(proto.graph.node, convolutions)
    encoder = _ENCODER.get(graph.spec.architecture)

    def is_kept(name: str) -> bool:
        known = graph.convolutions.get(name)
        return known is not None and (known.is_head or bool(encoder and known.layer.startswith(encoder)))

    dense = {
        node.name
        for node in convolutions
        if node.op_type == "Conv"
        and node.name in above
        and all(entry.i == 1 for entry in node.attribute if entry.name == "group")
        and not is_kept(node.name)
    }
    return dense, [node.name for node in proto.graph.node if node.name not in dense]


def _above(nodes: Sequence[Any], convolutions: Sequence[Any]) -> set[str]:
    """Names of the nodes that some convolution comes after."""
    starts = {node.name for node in convolutions}
    tensors: set[str] = set()
    found = set()
    for node in reversed(nodes):
        if tensors & set(node.output):
            found.add(node.name)
        if node.name in found or node.name in starts:
            tensors |= set(node.input)
    return found


def _finish(model: Any, *, on_cpu: bool) -> Any:
    """A copy with its activations as they are to be spelled: unsigned for CPUs, else signed.

    NNCF takes 0..255 behind a ReLU, and -128..127 elsewhere. TensorRT takes signed ones alone, without a
    zero point. OpenVINO (2026.4.1) rounds signed ones behind a Concat to whole numbers, whatever their scale
    is: the same values in 0..255 around 128 are right (docs/log/2026-11-29.md).
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    del proto.graph.value_info[:]  # hold the types of before
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    done = set()
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[2] in done:
            continue
        scale, zero = (tensors[name] for name in node.input[1:3])
        done.add(zero.name)
        unsigned = zero.data_type == onnx.TensorProto.UINT8
        zeros = onnx.numpy_helper.to_array(zero)
        if unsigned and zeros.any():
            raise BackendError(f"{node.name}: a zero point of {zeros.max()}, and TensorRT takes 0 only")
        if node.input[0] in tensors or unsigned == on_cpu:
            continue
        if unsigned:
            wider = onnx.numpy_helper.to_array(scale) * np.float32(255 / 127)
            scale.CopyFrom(onnx.numpy_helper.from_array(wider, scale.name))
        moved = np.full_like(zeros, 128, np.uint8) if on_cpu else zeros.astype(np.int8)
        zero.CopyFrom(onnx.numpy_helper.from_array(moved, zero.name))
    return proto


def _describe(proto: Any, graph: OnnxModel, calibration: Calibration) -> OnnxModel:
    """Write our metadata into a graph. Raises BackendError where too little of it is INT8."""
    (entry,) = (entry for entry in proto.metadata_props if entry.key == KEY)
    facts = {**graph.facts, "precision": NAME, "calibration": calibration.as_dict()}
    entry.value = json.dumps({**facts, "float32": []}, sort_keys=True)
    found = parse(proto.SerializeToString()).convolutions.values()
    whole = sum(each.flops for each in found)
    done = sum(each.flops for each in found if each.precision == NAME)
    if not done >= MIN_SHARE * whole or not whole:
        raise BackendError(
            f"only {done / max(1, whole):.0%} of the convolutions' arithmetic can be int8, at least "
            f"{MIN_SHARE:.0%} expected: what is left are depthwise, transposed and last convolutions and "
            "layers that lose too much",
            hint="use --precision bf16, fp16 or fp32",
        )
    kept = [each.layer for each in found if each.precision != NAME and not each.is_head]
    entry.value = json.dumps({**facts, "float32": kept}, sort_keys=True)
    return parse(proto.SerializeToString())


def _import_nncf() -> Any:
    """NNCF, which would tell Google Analytics of each call if it found the package that does it."""
    if "nncf" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf
    except ImportError as error:
        raise BackendUnavailable(f"INT8 needs NNCF: {error}", hint=install_line(NAME)) from error
    return nncf


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep NNCF's bars, logs and warnings from the screen."""
    import logging

    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _restoring_stdout(progress: Callable[[str, float], None]) -> Callable[[str, float], None]:
    """Progress that is heard while `_silence` holds."""
    stdout = sys.stdout

    def say(stage: str, share: float) -> None:
        with contextlib.redirect_stdout(stdout):
            progress(stage, share)

    return say


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
