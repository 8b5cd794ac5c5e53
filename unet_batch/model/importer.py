"""Import the weights of well-known public U-Nets as checkpoints of ours.

Two layouts are understood, see `layouts.py`, both with transposed convolutions. Both compute what our network
computes under other names, as long as the picture's sides are multiples of the stride: at other sizes each
pads at a place of its own.

Nothing is believed: a network under the source's names is built, and its logits are compared with ours.
"""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unet_batch.errors import CheckpointError, OutputError, UsageError
from unet_batch.media.render import palette
from unet_batch.model import checkpoint
from unet_batch.model import spec as spec_json
from unet_batch.model.layouts import LAYOUTS
from unet_batch.model.unet import UNet
from unet_batch.types import ClassTable, ModelSpec, Size

# Largest difference of the logits, as a share of the largest logit: of the same weights in float32, and after
# the rounding to float16 that our checkpoints store. The first is rounding error only; a wrong name or order
# is off by tenths.
TOLERANCE = 1e-4
STORED_TOLERANCE = 2e-2

_SAFE_TORCH = (2, 10)
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.")
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
        assumed: fields of the spec that no one gave and the file does not hold.
        difference: of the logits from the source's in float32, largest, as a share of the largest logit.
        stored_difference: the same for the weights as the checkpoint stores them.
    """

    path: str
    arch: str
    spec: ModelSpec
    folded: bool
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
) -> Imported:
    """Write a state dict of another project as a checkpoint, after verifying that it computes the same.

    Args:
        source: a `.pth` of tensors (read without running what a pickle may hold) or a `.safetensors` file.
        target: the checkpoint to write, `.safetensors`; must not exist.
        arch: `milesial`, `plain`, or `auto` to go by the names of the tensors.
        size, classes, mean, std, name: fields of the spec that weights do not hold; see ModelSpec. What is
            left out is what the source's authors use on Carvana, and the file's name.

    Raises:
        CheckpointError: the source is damaged, needs code to be read, or is no network that ours can be; or
            it is a `.pth` and PyTorch is older than 2.10.
        UsageError: a size that is no multiple of the stride, or names for another number of classes.
        OutputError: the target exists or cannot be written.
    """
    if not target.lower().endswith(".safetensors"):
        raise UsageError(
            f"{target}: checkpoints are .safetensors files", hint="end the output's name with .safetensors"
        )
    if os.path.exists(target):
        raise OutputError(f"{target} exists already", hint="remove it, or choose another name")
    tensors = _state_dict(source)
    arch = _recognise(source, tensors, arch)
    layout = LAYOUTS[arch]
    levels = 1 + len({match[1] for match in map(layout.level.match, tensors) if match})
    names = layout.names(levels)
    biased = f"{names['down.0']}.0.bias" in tensors
    _check_names(source, tensors, arch, names, biased)
    widths = tuple(len(tensors[f"{names[f'down.{level}']}.3.weight"]) for level in range(levels))
    in_channels = tensors[f"{names['down.0']}.0.weight"].shape[1]
    outputs = len(tensors[f"{names['head']}.weight"])
    if in_channels != 3:
        raise CheckpointError(f"{source}: takes {in_channels} channels, pictures are read as RGB (3)")
    table = _class_table(source, outputs, classes)
    spec = ModelSpec(
        name=name or os.path.splitext(os.path.basename(source))[0],
        widths=widths,
        in_channels=in_channels,
        input_size=size or layout.size,
        mean=tuple(mean) or (0.0,) * in_channels,
        std=tuple(std) or (1.0,) * in_channels,
        classes=table,
        output="probability" if outputs == 1 else "class_ids",
    )
    spec_json.loads(spec_json.dumps(spec))  # bounds, before anything is built by it
    _require_multiples(spec)
    reference = _load_into(source, lambda: layout.network(in_channels, outputs, widths, biased), tensors)
    model = _load_into(
        source, lambda: UNet(in_channels, outputs, widths), rename_tensors(tensors, names, biased)
    )
    difference = _compare(source, reference, model, spec, TOLERANCE, "under our names")
    stored_difference = _compare(
        source, reference, _round_to_float16(model), spec, STORED_TOLERANCE, "stored in float16"
    )
    facts = {
        "from": os.path.basename(source),
        "layout": arch,
        "difference": difference,
        "stored_difference": stored_difference,
    }
    spec = replace(spec, training={"imported": facts})
    checkpoint.save(target, model, spec)
    given = {"size": size, "classes": classes, "mean": mean, "std": std}
    assumed = tuple(field for field, value in given.items() if not value)
    return Imported(os.path.abspath(target), arch, spec, biased, assumed, difference, stored_difference)


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


def _state_dict(path: str) -> dict[str, Tensor]:
    """Read the tensors of a file, without wrappers, prefixes, and BatchNorm's batch counters."""
    found = _read(path)
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(
            f"{path}: holds no state dict but {type(found).__name__}",
            hint="save one with torch.save(model.state_dict(), 'weights.pth')",
        )
    # Grey values that milesial's training puts beside the weights.
    found = {str(name): value for name, value in found.items() if name != "mask_values"}
    while prefix := next((p for p in _PREFIXES if found and all(name.startswith(p) for name in found)), ""):
        found = {name[len(prefix) :]: value for name, value in found.items()}
    tensors = {name: value for name, value in found.items() if not name.endswith(".num_batches_tracked")}
    for name, value in tensors.items():
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or value.is_complex()
            or value.device.type != "cpu"
        ):
            raise CheckpointError(f"{path}: {name} is no ordinary tensor but {type(value).__name__}")
        tensors[name] = value.float()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite", hint="use an earlier file of the training"
            )
    return tensors


def _read(path: str) -> Any:
    """Read a file; of a pickle only tensors and plain containers."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if start[8:] == b"{":
        try:
            with safe_open(path, framework="pt") as tensors:
                metadata = tensors.metadata() or {}
                if metadata.get("format") != checkpoint.FORMAT:
                    return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise _damage_error(path, error) from error
        raise CheckpointError(
            f"{path}: a checkpoint of unet-batch already, nothing to import",
            hint=f"unet-batch run ./photos -m {path}",
        )
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        raise CheckpointError(
            f"{path}: not read with PyTorch {torch.__version__}: before {_SAFE_TORCH[0]}.{_SAFE_TORCH[1]}, "
            f"a .pth can corrupt "
            "the memory even where its code is not run (CVE-2026-24747)",
            hint="update PyTorch, or import a .safetensors file of the same weights",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols and TorchScript: what matters comes as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged pickle, torch lets out whatever its reader runs into
        text = " ".join(str(error).split())
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", text)
        if code or "TorchScript" in text:
            what = f"Python code ({code[1]})" if code else "a TorchScript program"
            raise CheckpointError(
                f"{path}: holds {what}, not only weights; reading it could run code hidden in it",
                hint="where you trust it, load it and save the weights alone: "
                "torch.save(model.state_dict(), 'weights.pth')",
            ) from error
        raise _damage_error(path, error) from error


def _damage_error(path: str, error: Exception) -> CheckpointError:
    reason = (
        " ".join(str(error).split())
        .rpartition("WeightsUnpickler error: ")[2]
        .partition(" Check the doc")[0][:100]
    )
    size, kind = os.path.getsize(path), type(error).__name__
    return CheckpointError(
        f"{path}: damaged, or not written by torch.save ({size:,} bytes): {kind} {reason}".rstrip(),
        hint="copy or download it again",
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
        marked = [
            name for name, layout in LAYOUTS.items() if f"{layout.names(2)['down.0']}.0.weight" in tensors
        ]
        if not marked:
            prefixes = {name.split(".")[0] for name in tensors}
            expected = {name: _expected(layout.names(5), False) for name, layout in LAYOUTS.items()}
            nearest = max(
                expected, key=lambda name: len(prefixes & {each.split(".")[0] for each in expected[name]})
            )
            raise CheckpointError(
                f"{path}: no U-Net that can be imported; its {len(tensors)} tensors begin with "
                f"{_first(tensors)}",
                hint=f"the nearest is {nearest}, which begins with {_first(expected[nearest])}",
            )
        arch = marked[0]
    if arch == "milesial" and "up1.conv.double_conv.0.weight" in tensors and "up1.up.weight" not in tensors:
        raise CheckpointError(
            f"{path}: milesial's bilinear variant is not supported yet; its variant with transposed "
            f"convolutions is",
            hint="train with UNet(..., bilinear=False): no transposed convolution of stride 2 computes the "
            "other upsampling",
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
        complaints = [f"{what}: {len(each)} ({_first(each)})" for what, each in lists.items() if each]
        raise CheckpointError(
            f"{path}: not a {arch} U-Net; {', '.join(complaints)}",
            hint="a network with other layers than the original cannot be imported",
        )
    for name in expected:
        if name.endswith((".0.weight", ".3.weight", f"{names['head']}.weight")) and tensors[name].dim() != 4:
            raise CheckpointError(
                f"{path}: {name} has {tensors[name].dim()} dimensions, that of a 2D convolution has 4"
            )


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


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
    if names[0].lower() == "background":
        return ClassTable(tuple(names), ((0, 0, 0), *palette(count - 1)))
    return ClassTable(tuple(names), palette(count))


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
