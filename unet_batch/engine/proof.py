"""Proof that an engine is what was asked for: precision in FLOPs, maps compared with float32's.

Those are PyTorch's of a checkpoint, and ONNX Runtime's of a graph that came alone.

Dice is pooled: over all pixels of all pictures, for each class, and then averaged over the classes that
occur. One pixel of a small object is then one pixel, and pictures without the class count neither way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine.onnx_model import Convolution
from unet_batch.errors import BackendError
from unet_batch.types import ModelSpec

if TYPE_CHECKING:
    from unet_batch.types import Pixels

Infer = Callable[["Pixels"], "Pixels"]
_HINTS = {
    "fp32": "",
    "fp16": "try --precision bf16 or fp32",
    "bf16": "try --precision fp32",
    "int8": "give --calibration-images, a hundred or two like those that will be run, or another --precision",
}

# Least share of the body's convolution FLOPs in the precision that was asked for.
MIN_SHARE = 0.99
# Least Dice between the masks and those in float32. What rounding alone costs: fp16 0.99999 with
# the bundled model, down to 0.9992 with random weights and four classes, some of them rare; a graph that is
# wrong stays below 0.99.
MIN_DICE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.999}
# Least Dice of the worst picture; INT8 may spoil one where it leaves the rest alone.
MIN_WORST = {"int8": 0.99}
# Largest difference of the probability where the masks are empty or full, so that Dice says nothing: what
# overflows gives 0.3.
MAX_OFF = {"fp32": 0.02, "fp16": 0.1, "bf16": 0.25, "int8": 0.25}


@dataclass(frozen=True)
class Share:
    """How much of the convolutions' arithmetic runs in the precision that was asked for.

    Attributes:
        asked: the precision.
        body: share of the FLOPs of all convolutions but the head and those kept in float32 on purpose.
        overall: share of the FLOPs of all convolutions.
        convolutions: how many there are, and `in_precision` how many of them run in it: fewer by count than
            by work.
        kept: names of the layers kept in float32 on purpose.
        source: what was counted: `onnx`, `network` or `engine`.
    """

    asked: str
    body: float
    overall: float
    convolutions: int
    in_precision: int
    kept: tuple[str, ...]
    source: str

    def check(self) -> None:
        """Raise BackendError if less than 99 % is what was asked for."""
        if self.body < MIN_SHARE:
            raise BackendError(
                f"asked for {self.asked}, but only {self.body:.1%} of the convolutions' arithmetic is "
                f"{self.asked} in the {self.source} ({self.in_precision} of {self.convolutions} "
                f"convolutions; {MIN_SHARE:.0%} expected)",
                hint="export the graph from the checkpoint with --precision " + self.asked,
            )


def share(
    convolutions: Mapping[str, Convolution],
    asked: str,
    kept: Iterable[str],
    precisions: Mapping[str, str],
    source: str,
) -> Share:
    """Count FLOPs.

    Args:
        convolutions: of the ONNX graph, by node name.
        asked: the precision.
        kept: layers kept in float32 on purpose.
        precisions: what each convolution really runs in, by node name; one that is missing counts as not in
            the precision.
        source: where `precisions` come from.
    """
    kept = tuple(kept)
    counted = [(c, precisions.get(name) == asked) for name, c in convolutions.items()]
    body = [(c.flops, fits) for c, fits in counted if not c.is_head and c.layer not in kept]
    everything = [(c.flops, fits) for c, fits in counted]
    # A graph without convolutions, as a foreign one may be, computes in float32, and proves nothing else.
    of_nothing = float(asked == "fp32")
    return Share(
        asked=asked,
        body=_weighted(body, of_nothing),
        overall=_weighted(everything, of_nothing),
        convolutions=len(everything),
        in_precision=sum(fits for _, fits in everything),
        kept=kept,
        source=source,
    )


def inspected_precisions(information: str, convolutions: Mapping[str, Convolution]) -> dict[str, str]:
    """Precision of each convolution in a built engine, from the JSON of TensorRT's engine inspector.

    A layer of the engine may hold several nodes of the graph: its name or metadata list them. What is said of
    a convolution first counts, and first of all what a layer with weights says. Convolutions that the
    inspector does not name one by one (a fused region may hide them) are left out, and so is a layer whose
    precision it does not tell.
    """
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        # An engine built without names, or a library that answers in another form
        return {}
    # Names only: the engine was built without detailed verbosity
    layers = [layer for layer in layers if isinstance(layer, dict)]
    found: dict[str, str] = {}
    for layer in sorted(layers, key=lambda layer: "Weights" not in layer):
        # `Reformatting CopyNode for Input Tensor 0 to conv_a + relu` converts what comes, often from float32
        if layer.get("LayerType") in _COPIES:
            continue
        names = set(re.split(r"[\s+,]+", str(layer.get("Name", ""))))
        names |= set(re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", ""))))
        if (kind := _layer_precision(layer)) is not None:
            found = dict.fromkeys(names & convolutions.keys(), kind) | found
    return found


def _layer_precision(layer: Mapping[str, Any]) -> str | None:
    """That of a layer's weights, else that of its inputs where they agree; None where it does not tell."""
    weights = layer.get("Weights")
    if isinstance(weights, dict) and (kind := _TYPES.get(str(weights.get("Type")).lower())) is not None:
        return kind
    # `Channel major FP16 format where channel % 8 == 0`, of some layers just `Half`; of an engine for several
    # batch sizes mostly `N/A due to dynamic shapes`.
    formats = " ".join(str(tensor.get("Format/Datatype", "")) for tensor in layer.get("Inputs", ())).lower()
    kinds = {_TYPES[word] for word in re.findall(r"\w+", formats) if word in _TYPES}
    return kinds.pop() if len(kinds) == 1 else None


_COPIES = ("Reformat", "NoOp")
# How TensorRT spells types: of weights, of tensors, of tensors in fused regions
_TYPES = {
    **dict.fromkeys(("half", "fp16"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("float", "fp32", "float32"), "fp32"),
    "int8": "int8",
}


@dataclass(frozen=True)
class Parity:
    """How far the maps are from those in float32.

    Attributes:
        pictures: compared.
        dice: between the masks, pooled.
        worst: lowest Dice of a single picture, of those in which any class occurs in both or one of the
            masks.
        pixels: share of the masks' pixels that differ.
        largest: largest difference of the probability, 0..1; None for class ids.
        foreground: share of the reference's pixels that are foreground (class ids: not class 0); 0 or 1
            proves little.
        reference: what computed the maps in float32.
    """

    pictures: int
    dice: float
    worst: float
    pixels: float
    largest: float | None
    foreground: float
    reference: str = "PyTorch"

    @property
    def is_weak(self) -> bool:
        """Whether the reference shows next to nothing, or nothing else."""
        return not 0.001 < self.foreground < 0.999

    def check(self, precision: str, what: str) -> None:
        """Raise BackendError below the limit."""
        if self.is_weak and self.largest is not None and not self.largest <= MAX_OFF[precision]:
            raise BackendError(
                f"{what}: the probability is off by {self.largest:.2f} from {self.reference}'s in float32, "
                f"at most {MAX_OFF[precision]} expected for {precision}; the masks say nothing, as "
                f"{self.foreground:.1%} of the pixels are foreground",
                hint="" if precision == "fp32" else "try --precision fp32, or other --proof-images",
            )
        worst = MIN_WORST.get(precision, 0.0)
        if not (self.dice >= MIN_DICE[precision] and self.worst >= worst):
            single = f" and {self.worst:.5f} in the worst one" if worst else ""
            raise BackendError(
                f"{what}: the masks differ from {self.reference}'s in float32: Dice {self.dice:.5f} over "
                f"{self.pictures} pictures{single}, at least {MIN_DICE[precision]}"
                f"{f' and {worst}' if worst else ''} expected for {precision}; "
                f"{self.pixels:.3%} of the pixels differ",
                hint=_HINTS[precision],
            )


@dataclass(frozen=True, eq=False)
class Reference:
    """Pictures that a proof is made on, and what the network computes of them in float32.

    Attributes:
        pictures: at the network's size, uint8 (N, H, W, C).
        maps: uint8 (N, H, W).
        made_by: what computed the maps: `PyTorch` or `ONNX Runtime`.
    """

    pictures: Pixels
    maps: Pixels
    made_by: str = "PyTorch"


@dataclass(frozen=True)
class ProofRun:
    """What running an engine showed.

    Attributes:
        device: name of the GPU or CPU that ran it.
        parities: by batch size.
        shares: of the arithmetic in the precision asked for, where the engine tells.
        notes: remarks.
    """

    device: str
    parities: Mapping[str, Parity]
    shares: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


def compare(maps: Pixels, reference: Pixels, spec: ModelSpec) -> Parity:
    """Compare maps of a batch, both uint8 (N, H, W)."""
    if maps.shape != reference.shape or maps.dtype != np.uint8:
        raise BackendError(f"maps of {maps.dtype} {maps.shape} came out, uint8 {reference.shape} expected")
    if spec.output == "probability":
        level = 255 * spec.threshold
        found, truth = (maps >= level)[..., None], (reference >= level)[..., None]
        largest: float | None = float(np.abs(maps.astype(np.int16) - reference).max(initial=0)) / 255
        different, foreground = found != truth, truth
    else:
        ids = np.arange(len(spec.classes.names), dtype=np.uint8)
        found, truth = maps[..., None] == ids, reference[..., None] == ids
        largest, different, foreground = None, maps != reference, reference != 0
    both = (found & truth).sum((1, 2)).astype(np.float64)  # (pictures, classes)
    either = found.sum((1, 2)) + truth.sum((1, 2))
    pooled = 2 * both.sum(0)[either.sum(0) > 0] / either.sum(0)[either.sum(0) > 0]
    single = 2 * both[either > 0] / either[either > 0]
    return Parity(
        pictures=len(maps),
        dice=float(pooled.mean()) if pooled.size else 1.0,
        worst=float(single.min()) if single.size else 1.0,
        pixels=float(different.mean()) if different.size else 0.0,
        largest=largest,
        foreground=float(foreground.mean()) if foreground.size else 0.0,
    )


def run_in_batches(infer: Infer, pictures: Pixels, batch: int) -> Pixels:
    """Maps of all pictures, `batch` at a time; the last batch may be smaller."""
    return np.concatenate(
        [infer(pictures[start : start + batch]) for start in range(0, len(pictures), batch)]
    )


def prove(
    infer_at: Callable[[int], Infer], reference: Reference, spec: ModelSpec, batches: Iterable[int]
) -> dict[str, Parity]:
    """Parity at several batch sizes: 1 over all pictures, others over one full batch and one ragged.

    Args:
        infer_at: gives the function that runs batches of up to a size.
        reference: is repeated where a batch is larger.
        spec: of the model.
        batches: sizes, as in the profile.
    """
    proven = {}
    for batch in dict.fromkeys(batches):
        ragged = batch // 2
        count = batch + ragged if batch > 1 else len(reference.pictures)
        order = np.arange(count) % len(reference.pictures)
        maps = run_in_batches(infer_at(batch), reference.pictures[order], batch)
        proven[f"batch {batch}" + (f" and {ragged}" if ragged else "")] = replace(
            compare(maps, reference.maps[order], spec), reference=reference.made_by
        )
    return proven


def as_dict(value: Share | Parity) -> dict[str, Any]:
    """For JSON."""
    return asdict(value)


def _weighted(parts: list[tuple[int, bool]], of_nothing: float) -> float:
    total = sum(flops for flops, _ in parts)
    return sum(flops for flops, fits in parts if fits) / total if total else of_nothing
