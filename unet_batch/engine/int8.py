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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine.flavours import install_line
from unet_batch.engine.onnx_model import INPUT, KEY, OnnxModel, OnnxRunner, parse
from unet_batch.engine.proof import MIN_DICE, MIN_WORST, Parity, Reference, compare
from unet_batch.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from unet_batch.engine.pictures import Calibration

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
    from nncf.quantization import advanced_parameters as advanced

    proto = onnx.load_model_from_string(graph.data)
    kept = _kept_names(proto, graph)
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
        run = OnnxRunner(_finish(model).SerializeToString())
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
                advanced_quantization_parameters=advanced.AdvancedQuantizationParameters(
                    overflow_fix=advanced.OverflowFix.ENABLE if on_cpu else advanced.OverflowFix.DISABLE,
                    backend_params={"compress_weights": on_cpu},
                ),
                advanced_accuracy_restorer_parameters=advanced.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=ROUNDS, ranking_subset_size=_RANKED_ON, num_ranking_workers=1
                ),
            )
        except Exception as error:  # NNCF's and ONNX Runtime's share no base
            if not type(error).__module__.startswith(("nncf", "onnx")):
                raise
            what = f"NNCF {nncf.__version__} cannot quantize the graph"
            raise BackendError(f"{what}: {_line(error)}") from error
    return _describe(_finish(quantized), graph, calibration)


def loss(parity: Parity) -> float:
    """How much of the loss that INT8 is allowed masks have: 1 is the limit, pooled or of the worst."""
    pooled = (1 - parity.dice) / (1 - MIN_DICE[NAME])
    return max(pooled, (1 - parity.worst) / (1 - MIN_WORST[NAME]))


def _kept_names(proto: Any, graph: OnnxModel) -> list[str]:
    """Nodes that stay in float32: what lies before the first convolutions and behind the last, and others."""
    convolutions = [node for node in proto.graph.node if node.op_type in _CONVOLUTIONS]
    below = _reached(proto.graph.node, convolutions)
    above = _reached(list(reversed(proto.graph.node)), convolutions, upwards=True)
    dense = {
        node.name
        for node in convolutions
        if node.op_type == "Conv"
        and node.name in above
        and all(entry.i == 1 for entry in node.attribute if entry.name == "group")
        and not (node.name in graph.convolutions and graph.convolutions[node.name].is_head)
    }
    inside = (below & above) - {node.name for node in convolutions}
    return [node.name for node in proto.graph.node if node.name not in dense | inside]


def _reached(nodes: Sequence[Any], convolutions: Sequence[Any], *, upwards: bool = False) -> set[str]:
    """Names of the nodes below some convolution, or above one; nodes are given in the order of the way."""
    starts = {node.name for node in convolutions}
    tensors: set[str] = set()
    found = set()
    for node in nodes:
        came, goes = (node.output, node.input) if upwards else (node.input, node.output)
        if tensors & set(came):
            found.add(node.name)
        if node.name in found or node.name in starts:
            tensors |= set(goes)
    return found


def _finish(model: Any) -> Any:
    """A copy whose activations are all signed, as TensorRT wants them: NNCF takes 0..255 behind a ReLU."""
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
        done.add(node.input[2])
        if zero.data_type != onnx.TensorProto.UINT8:
            continue
        scales, zeros = onnx.numpy_helper.to_array(scale), onnx.numpy_helper.to_array(zero)
        if zeros.any():
            raise BackendError(f"{node.name}: a zero point of {zeros.max()}, and TensorRT takes 0 only")
        scale.CopyFrom(onnx.numpy_helper.from_array(scales * np.float32(255 / 127), scale.name))
        zero.CopyFrom(onnx.numpy_helper.from_array(zeros.astype(np.int8), zero.name))
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
