"""Import the weights of well-known public U-Nets as checkpoints of ours.

Two layouts are understood, see `layouts.py`, both with transposed convolutions. Both compute what our network
computes under other names, as long as the picture's sides are multiples of the stride: at other sizes each
pads at a place of its own.

Two outputs of which one is a background become one, the logit of the class's probability: a softmax over two
logits is the sigmoid of their difference.

Nothing is believed: a network under the source's names is built, and its logits are compared with ours.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unet_batch.errors import CheckpointError, OutputError, UsageError
from unet_batch.media.render import class_table
from unet_batch.model import checkpoint
from unet_batch.model import spec as spec_json
from unet_batch.model.layouts import LAYOUTS, recognise_library
from unet_batch.model.unet import UNet
from unet_batch.model.weights import first_names, read_weights
from unet_batch.types import ClassTable, ModelSpec, Size

# Largest difference of the logits, as a share of the largest logit: of the same weights in float32, and after
# the rounding to float16 that our checkpoints store. The first is rounding error only; a wrong name or order
# is off by tenths.
TOLERANCE = 1e-4
STORED_TOLERANCE = 2e-2

_EXPORT = 'unet_batch.export(network, "mine.onnx", ...): see docs/import.md, "Weights of another library"'
_CONVOLUTIONS = ("0", "3")
_BLOCK = tuple(
    [f"{index}.weight" for index in _CONVOLUTIONS]
    + [
        f"{index}.{part}"
        for index in ("1", "4")
        for part in ("weight", "bias", "running_mean", "running_var")
    ]
)


@dataclass(frozen=True)
class Imported:
    """What an import found and wrote.

    Attributes:
        path: of the checkpoint, absolute.
        arch: the layout that was recognised.
        spec: of the checkpoint.
        folded: whether the convolutions had biases, which are now in the BatchNorm after them.
        background: name of the background, where its output and that of the class became one; else "".
        notes: what was chosen from the file and what was left out.
        assumed: fields of the spec that no one gave and the file does not hold.
        difference: of the logits from the source's in float32, largest, as a share of the largest logit.
        stored_difference: the same for the weights as the checkpoint stores them.
    """

    path: str
    arch: str
    spec: ModelSpec
    folded: bool
    background: str
    notes: tuple[str, ...]
    assumed: tuple[str, ...]
    difference: float
    stored_difference: float


def import_weights(
    source: str,
    target: str,
    *,
    arch: str = "auto",
    size: Size | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    name: str = "",
    terms: str = "",
) -> Imported:
    """Write a state dict of another project as a checkpoint, after verifying that it computes the same.

    Args:
        source: a `.pth` of tensors (read without running what a pickle may hold) or a `.safetensors` file.
        target: the checkpoint to write, `.safetensors`; must not exist.
        arch: `milesial`, `plain`, or `auto` to go by the names of the tensors.
        size, classes, mean, std, name: fields of the spec that weights do not hold; see ModelSpec. What is
            left out is what the source's authors use on Carvana, and the file's name.
        terms: under which the model may be used; "" where that is not known.

    Raises:
        CheckpointError: the source is damaged, needs code to be read, or is no network that ours can be; or
            it is a `.pth` and PyTorch is older than 2.10.
        UsageError: a size that is no multiple of the stride, or names for another number of classes.
        OutputError: the target exists or cannot be written.
    """
    _check_target(target)
    weights = read_weights(source, [layout.mark for layout in LAYOUTS.values()])
    tensors, notes = weights.tensors, weights.notes
    arch = _recognise(source, tensors, arch)
    layout = LAYOUTS[arch]
    levels = 1 + len({match[1] for match in map(layout.level.match, tensors) if match})
    names = layout.names(levels)
    biased = f"{names['down.0']}.0.bias" in tensors
    _check_names(source, tensors, arch, names, biased)
    shape = (in_channels, outputs, widths) = _shape(source, tensors, names, levels)
    table = _class_table(source, outputs, classes)
    own = ModelSpec(
        name=name or os.path.splitext(os.path.basename(source))[0],
        widths=widths,
        in_channels=in_channels,
        input_size=size or layout.size,
        mean=tuple(mean) or (0.0,) * in_channels,
        std=tuple(std) or (1.0,) * in_channels,
        classes=table,
        output="probability" if outputs == 1 else "class_ids",
        terms=" ".join(terms.split()),
    )
    spec_json.loads(spec_json.dumps(own))  # bounds, before anything is built by it
    _require_multiples(own)
    reference = _load_into(source, lambda: layout.network(*shape, biased), tensors)
    model = _load_into(source, lambda: UNet(*shape), rename_tensors(tensors, names, biased))
    spec, original = spec_json.as_one_class(own), reference
    if (one := table.foreground) is not None:
        model.merge_background(one)
        original = _Difference(reference, one)
    difference = _compare(source, original, model, spec, TOLERANCE, "under our names")
    stored_difference = _compare(
        source, original, _round_to_float16(model), spec, STORED_TOLERANCE, "stored in float16"
    )
    differences = {"difference": difference, "stored_difference": stored_difference}
    facts = {"from": os.path.basename(source), "layout": arch, **differences}
    spec = replace(spec, training={"imported": facts})
    checkpoint.save(target, model, spec)
    given = {"size": size, "classes": classes, "mean": mean, "std": std}
    assumed = tuple(field for field, value in given.items() if not value)
    return Imported(
        path=os.path.abspath(target),
        arch=arch,
        spec=spec,
        folded=biased,
        background="" if one is None else table.names[1 - one],
        notes=notes,
        assumed=assumed,
        **differences,
    )


def _check_target(target: str) -> None:
    if not target.lower().endswith(".safetensors"):
        raise UsageError(
            f"{target}: checkpoints are .safetensors files", hint="end the output's name with .safetensors"
        )
    if os.path.exists(target):
        raise OutputError(f"{target} exists already", hint="remove it, or choose another name")


def _shape(
    path: str, tensors: Mapping[str, Tensor], names: Mapping[str, str], levels: int
) -> tuple[int, int, tuple[int, ...]]:
    """Read channels of the picture, outputs, and widths of a network off its tensors."""
    widths = tuple(len(tensors[f"{names[f'down.{level}']}.3.weight"]) for level in range(levels))
    in_channels = tensors[f"{names['down.0']}.0.weight"].shape[1]
    return in_channels, len(tensors[f"{names['head']}.weight"]), widths


class _Difference(nn.Module):
    """What one of two outputs of a network has over the other: (N, C, H, W) -> (N, 1, H, W)."""

    def __init__(self, network: nn.Module, output: int) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits[:, self.output : self.output + 1] - logits[:, 1 - self.output : 2 - self.output]


def _require_multiples(spec: ModelSpec) -> None:
    """Refuse a size at which the source pads, since it pads at another place than our network."""
    (height, width), levels = spec.input_size, len(spec.widths)
    stride = 2 ** (levels - 1)
    if height % stride or width % stride:
        raise UsageError(
            f"size {height}x{width}: both sides must be multiples of {stride} for {levels} levels, or the "
            f"masks would not be the source's at the border",
            hint="choose the multiples nearest to the size that the network was trained at (--size HxW)",
        )


def _expected(names: Mapping[str, str], biased: bool) -> list[str]:
    """Names of all tensors of a source whose convolutions have biases, or not."""
    biases = tuple(f"{index}.bias" for index in _CONVOLUTIONS) if biased else ()
    parts = {"down": _BLOCK + biases, "merge": _BLOCK + biases}
    return [
        f"{theirs}.{part}"
        for ours, theirs in names.items()
        for part in parts.get(ours.split(".")[0], ("weight", "bias"))
    ]


def _recognise(path: str, tensors: Mapping[str, Tensor], arch: str) -> str:
    if arch == "auto":
        marked = [name for name, layout in LAYOUTS.items() if layout.mark in tensors]
        if not marked and (library := recognise_library(tensors)):
            gives_none = library.startswith("a classifier")
            raise CheckpointError(
                f"{path}: the weights of {library}, which import-weights does not know",
                hint="it gives no map of a picture; name the weights of a segmentation network"
                if gives_none
                else f"build that network in Python with these weights, and {_EXPORT}",
            )
        if not marked:
            prefixes = {name.split(".")[0] for name in tensors}
            expected = {name: _expected(layout.names(5), False) for name, layout in LAYOUTS.items()}
            nearest = max(
                expected, key=lambda name: len(prefixes & {each.split(".")[0] for each in expected[name]})
            )
            raise CheckpointError(
                f"{path}: no U-Net that can be imported; its {len(tensors)} tensors begin with "
                f"{first_names(tensors)}",
                hint=f"the nearest is {nearest}, which begins with {first_names(expected[nearest])}; of any "
                f"other network: {_EXPORT}",
            )
        arch = marked[0]
    if arch == "milesial" and "up1.conv.double_conv.0.weight" in tensors and "up1.up.weight" not in tensors:
        raise CheckpointError(
            f"{path}: milesial's bilinear variant, which import-weights does not know: it upsamples in "
            "another way than our network",
            hint=f"build that network in Python with these weights, and {_EXPORT}",
        )
    return arch


def _check_names(
    path: str, tensors: Mapping[str, Tensor], arch: str, names: Mapping[str, str], biased: bool
) -> None:
    expected = _expected(names, biased)
    missing = [name for name in expected if name not in tensors]
    extra = sorted(tensors.keys() - set(expected))
    if missing or extra:
        lists = {"tensors missing": missing, "not part of it": extra}
        complaints = [f"{what}: {len(each)} ({first_names(each)})" for what, each in lists.items() if each]
        raise CheckpointError(
            f"{path}: not a {arch} U-Net; {', '.join(complaints)}",
            hint="a network with other layers than the original cannot be imported",
        )
    for name in expected:
        if name.endswith((".0.weight", ".3.weight", f"{names['head']}.weight")) and tensors[name].dim() != 4:
            raise CheckpointError(
                f"{path}: {name} has {tensors[name].dim()} dimensions, that of a 2D convolution has 4"
            )


def _class_table(path: str, count: int, names: Sequence[str]) -> ClassTable:
    if names and len(names) != count:
        raise UsageError(
            f"{path}: outputs: {count}, class names given: {len(names)}",
            hint="one name for each output, background included" if count > 1 else "one name",
        )
    if not names:  # both sources are best known for Carvana's cars
        names = {1: ("car",), 2: ("background", "car")}.get(
            count, tuple(f"class{index}" for index in range(count))
        )
    return class_table(names)


def rename_tensors(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], biased: bool
) -> dict[str, Tensor]:
    """Rename tensors to our names; biases before BatchNorm are folded into the mean that it subtracts."""
    renamed = {}
    for ours, theirs in names.items():
        for name, tensor in tensors.items():
            if name.startswith(f"{theirs}."):
                renamed[ours + name[len(theirs) :]] = tensor
        if biased and ours.startswith(("down.", "merge.")):
            for convolution, norm in (("0", "1"), ("3", "4")):
                bias = renamed.pop(f"{ours}.{convolution}.bias")
                renamed[f"{ours}.{norm}.running_mean"] = renamed[f"{ours}.{norm}.running_mean"] - bias
    return renamed


def _load_into(path: str, network: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> Any:
    """Build the network with these weights, in evaluation mode."""
    with torch.device("meta"):
        made = network()
    counters = {name: torch.tensor(0) for name in made.state_dict() if name.endswith(".num_batches_tracked")}
    try:
        made.load_state_dict({**counters, **tensors}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path}: its shapes are not those of a U-Net that can be imported: {reason}"
        ) from error
    return made.eval().requires_grad_(False)


def _round_to_float16(model: UNet) -> UNet:
    """Round the weights as `checkpoint.save` does."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.dim() > 1:
            parameter.copy_(parameter.half().float())
    return rounded


def _compare(
    path: str, reference: nn.Module, model: UNet, spec: ModelSpec, tolerance: float, what: str
) -> float:
    """Compare logits on noise of three shapes: their largest difference as a share of the largest logit."""
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    worst = 0.0
    for rows, columns in ((1, 1), (2, 3), (5, 4)):
        noise = torch.rand(
            1, spec.in_channels, rows * model.stride, columns * model.stride, generator=generator
        )
        with torch.inference_mode():
            theirs, ours = (network((noise - mean) / std) for network in (reference, model))
        # Written so that a value that is not finite fails, too.
        difference = float((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1e-30))
        if not difference < tolerance:
            raise CheckpointError(
                f"{path}: {what} the network says something else: its logits are off by {difference:.2g} of "
                f"the largest, "
                f"the limit is {tolerance:.2g}",
                hint="the file may come from a changed network, or from one that is not trained",
            )
        worst = max(worst, difference)
    return worst
