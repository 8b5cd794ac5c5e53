"""Plan a training before it begins: every choice with its reason.

A `TrainingPlan` is complete: the loop reads nothing else. So it can be shown (`--dry-run`), compared with
that of an interrupted training, and written into the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.split import choose_parts
from unet_batch.errors import ImageError, UsageError
from unet_batch.inference.backends.torch import pick_device, pick_precision
from unet_batch.media import images
from unet_batch.model import checkpoint, zoo
from unet_batch.model.architectures import build_network
from unet_batch.model.checkpoint import CheckpointFile
from unet_batch.model.network import SegmentationNetwork
from unet_batch.model.spec import MAX_LEVELS, MAX_SIDE, MAX_WIDTH
from unet_batch.model.unet import DEFAULT_WIDTHS
from unet_batch.training.augment import FLIPS, PRESETS
from unet_batch.types import ModelSpec

if TYPE_CHECKING:
    from unet_batch.types import Size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's photos, the field's habit
_AREA = 256 * 256  # pixels of the network's input where nobody says
_LOOKED_AT = 64  # pictures whose shape that choice rests on


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may choose; None leaves it to the plan.

    Attributes:
        size: (height, width) of the network's input.
        crop: (height, width) of windows of it to train on, as many of each picture as cover it; None for all
            of it at once.
        widths: channels of each level, finest first.
        epochs: passes over the training pictures.
        batch_size: samples in a step, over all processes.
        lr: learning rate after warm-up, from which it falls to nearly nothing along a cosine.
        seed: random seed of weights, order and augmentation; the split does not depend on it.
        init: a checkpoint, or the name of a bundled model, to start from.
        train_list, val_list: files that name the pictures of each part, see `read_split`.
        val_fraction: share of the pictures kept for validation where no list names them.
        augment: one of augment.PRESETS.
        flip: one of augment.FLIPS.
        dice: "batch" or "picture": what the Dice term is computed over; see `losses.segmentation_loss`.
        class_weights: "auto" makes rare classes count more where there are several; "none" does not.
        keep: "best" keeps the epoch that validates best, "last" the last one.
        patience: epochs without improvement after which training stops; 0 for never.
        weight_decay: of AdamW, on convolution weights.
        clip: norm that gradients, of all weights together, are clipped to.
        device: "cpu", "cuda", "cuda:1", "mps".
        precision: compute precision, "fp32", "bf16" or "fp16"; weights and sums stay float32.
        deterministic: the same weights from the same seed on a GPU too, at some cost; a CPU always repeats
            itself.
    """

    size: Size | None = None
    crop: Size | None = None
    widths: tuple[int, ...] | None = None
    epochs: int = 40
    batch_size: int = 16
    lr: float = 1e-3
    seed: int = 0
    init: str | None = None
    train_list: str | None = None
    val_list: str | None = None
    val_fraction: float = 0.2
    augment: str = "light"
    flip: str = "horizontal"
    dice: Literal["batch", "picture"] = "batch"
    class_weights: Literal["auto", "none"] = "auto"
    keep: Literal["best", "last"] = "best"
    patience: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    device: str | None = None
    precision: str | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        wrong = {
            # What no checkpoint may hold would be found out only once it is trained.
            "size": self.size is not None and not 1 <= min(self.size) <= max(self.size) <= MAX_SIDE,
            "crop": self.crop is not None and min(self.crop) < 1,
            "widths": self.widths is not None
            and not (
                1 <= len(self.widths) <= MAX_LEVELS and 1 <= min(self.widths) <= max(self.widths) <= MAX_WIDTH
            ),
            "epochs": self.epochs < 1,
            "batch_size": self.batch_size < 1,
            "lr": not 0 < self.lr < 10,
            "seed": self.seed < 0,
            "val_fraction": not 0 < self.val_fraction < 1,
            "augment": self.augment not in PRESETS,
            "flip": self.flip not in FLIPS,
            "dice": self.dice not in ("batch", "picture"),
            "class_weights": self.class_weights not in ("auto", "none"),
            "keep": self.keep not in ("best", "last"),
            "patience": self.patience < 0,
            "weight_decay": not 0 <= self.weight_decay < math.inf,
            "clip": not self.clip > 0,
            "precision": self.precision not in (None, "fp32", "bf16", "fp16"),
        }
        for name, bad in wrong.items():
            if bad:
                raise UsageError(
                    f"{name} {getattr(self, name)!r}: out of range",
                    hint="unet-batch train --help says what fits",
                )


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything that a training will do.

    Attributes:
        output: the model to write, absolute.
        options: as they were given.
        dataset: where pictures and masks come from.
        train, val: the pictures of each part.
        spec: of the model, its `training` still empty.
        lr: learning rate.
        batch_size: samples in a step, over all processes.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16", and why in `reasons`.
        init, init_sha256: the file to start from and what it holds, or "".
        new_head: whether the last layer of `init` is replaced.
        reasons: a sentence for each automatic choice.
    """

    output: str
    options: Options
    dataset: Dataset = field(repr=False)
    train: tuple[Pair, ...] = field(repr=False)
    val: tuple[Pair, ...] = field(repr=False)
    spec: ModelSpec
    lr: float
    batch_size: int
    device: torch.device
    precision: str
    init: str = ""
    init_sha256: str = ""
    new_head: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def training_size(self) -> Size:
        """(height, width) of what a step sees of a picture: the network's input, or a window of it."""
        return self.options.crop or self.spec.input_size

    @property
    def samples(self) -> int:
        """Samples of an epoch: the training pictures, each as often as it takes windows to cover it."""
        return len(self.train) * _windows(self.spec.input_size, self.training_size)

    @property
    def sample_name(self) -> str:
        """What a person calls the samples: "images", or "windows of 256x256"."""
        return "images" if self.options.crop is None else "windows of {}x{}".format(*self.options.crop)

    @property
    def steps(self) -> int:
        """Steps of an epoch; samples that do not fill a batch wait for the next epoch's order."""
        return self.samples // self.batch_size

    @property
    def folder(self) -> str:
        """Where everything but the model and its card goes: `cars.training/` beside `cars.safetensors`."""
        return os.path.splitext(self.output)[0] + ".training"

    @property
    def card(self) -> str:
        """The model card: `cars.md`."""
        return os.path.splitext(self.output)[0] + ".md"

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a training and its resumption."""
        digest = hashlib.sha256()
        for part, pairs in (("train", self.train), ("val", self.val)):
            for pair in pairs:
                # The mask of a COCO dataset is named "FILE.json: NAME".
                mask = pair.mask if os.path.exists(pair.mask) else pair.mask.partition(".json: ")[0] + ".json"
                sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in (pair.image, mask)]
                digest.update(f"{part}\0{pair.key}\0{pair.group}\0{sizes}\n".encode("utf-8", "surrogatepass"))
        chosen = dataclasses.asdict(self.options)
        # The lists count by what they name; a GPU may have another number
        for key in ("device", "train_list", "val_list"):
            del chosen[key]
        chosen |= {
            "size": self.spec.input_size,
            "widths": self.spec.widths,
            "lr": self.lr,
            "precision": self.precision,
        }
        chosen["init"] = self.init_sha256
        # What the values of masks mean; the JSON of COCO is among the files above.
        table = getattr(self.dataset.masks, "table", {})
        chosen["mask_values"] = {str(value): id for value, id in sorted(table.items())}
        if getattr(self.dataset.masks, "by_look", False):
            chosen["mask_values"]["white"] = 1
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()},
            "classes": list(self.spec.classes.names),
            "pictures": digest.hexdigest(),
        }

    @cached_property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self._meta_model().parameters())

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights, gradients, AdamW's two moments and the averaged weights, in float32."""
        return 5 * 4 * self.parameters

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes that one sample keeps for the backward pass, counted in a run without data."""
        kept: dict[int, int] = {}  # by storage: what one layer makes and the next one reads is there once

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        height, width = self.training_size
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._meta_model()(torch.empty(1, self.spec.in_channels, height, width, device="meta"))
        return sum(kept.values()) // (1 if self.precision == "fp32" else 2)

    def _meta_model(self) -> SegmentationNetwork:
        with torch.device("meta"):
            return build_network(self.spec)


def make_plan(dataset: Dataset, output: str, options: Options, *, processes: int = 1) -> TrainingPlan:
    """Decide everything.

    Args:
        dataset: what `find_dataset` found.
        output: the model to write.
        options: what was asked for.
        processes: how many train together.

    Raises:
        SplitError: the pictures cannot be parted: a single group, a group in both parts, an empty part.
        UsageError: the options cannot be carried out with this dataset, or with `init`.
        CheckpointError: the file of `init` cannot be read.
        BackendUnavailable: the device does not exist.
    """
    if not output.endswith(".safetensors"):
        raise UsageError(f"{output}: a model is a .safetensors file", hint=f"-o {output}.safetensors")
    parts, why_parts = choose_parts(
        dataset.pairs,
        train_list=options.train_list,
        val_list=options.val_list,
        fraction=options.val_fraction,
    )
    train, val = parts["training"], parts["validation"]
    start = _identify_init(options, output)
    widths, why_start = _choose_widths(options, start)
    new_head, why_head = _choose_head(dataset.classes.names, start)
    size, why_size = _choose_size(train, options, start)
    batch_size = _choose_batch_size(len(train), size, len(widths), options, processes)
    device = pick_device(options.device)
    precision, why_precision = _choose_precision(device, options)
    reasons = (why_parts, why_start, why_head, why_size, why_precision)
    return TrainingPlan(
        output=os.path.abspath(output),
        options=options,
        dataset=dataset,
        train=train,
        val=val,
        spec=ModelSpec(
            name=os.path.splitext(os.path.basename(output))[0],
            widths=widths,
            in_channels=3,
            input_size=size,
            mean=start.spec.mean if start else MEAN,
            std=start.spec.std if start else STD,
            classes=dataset.classes,
            output="probability" if len(dataset.classes.names) == 1 else "class_ids",
        ),
        lr=options.lr,
        batch_size=batch_size,
        device=device,
        precision=precision,
        init=start.path if start else "",
        init_sha256=start.sha256 if start else "",
        new_head=new_head,
        reasons=tuple(filter(None, reasons)),
    )


# The choices, each with its reason, or "" where there is nothing to say ------------------------------------


def _windows(whole: Size, window: Size) -> int:
    """How many windows cover the whole."""
    return math.prod(-(-side // part) for side, part in zip(whole, window, strict=True))


def _identify_init(options: Options, output: str) -> CheckpointFile | None:
    """Read what the checkpoint of `init` says of itself; None without one."""
    if not options.init:
        return None
    start = checkpoint.identify(zoo.resolve(options.init))
    if os.path.exists(output) and os.path.samefile(start.path, output):
        raise UsageError(f"{output}: is where the training starts from", hint="write to another file with -o")
    return start


def _choose_widths(options: Options, start: CheckpointFile | None) -> tuple[tuple[int, ...], str]:
    if start is None:
        return options.widths or DEFAULT_WIDTHS, ""
    widths = options.widths or start.spec.widths
    if start.spec.widths != widths or start.spec.in_channels != 3:
        raise UsageError(
            f"{options.init} has widths {_join(start.spec.widths)}, asked for are {_join(widths)}",
            hint="leave out --widths, or train without --init",
        )
    return widths, f"starts from {start.spec.name}, sha256 {start.sha256[:12]}"


def _choose_head(names: Sequence[str], start: CheckpointFile | None) -> tuple[bool, str]:
    """Whether the last layer of `init` is replaced, since it knows other classes."""
    if start is None:
        return False, ""
    known = start.spec.classes.names
    # A class that nobody has named may be the one that is known.
    unnamed = len(names) == len(known) == 1 and "foreground" in (*names, *known)
    if names == known or unnamed:
        return False, ""
    return True, f"new head, for {_abbreviate(names)} instead of {_abbreviate(known)}"


def _choose_size(train: Sequence[Pair], options: Options, start: CheckpointFile | None) -> tuple[Size, str]:
    """Height and width of the network's input: asked for, that of `init`, or one of the pictures' shape."""
    if options.size:
        size, why = options.size, ""
    elif start is not None:
        size, why = start.spec.input_size, ""
    else:
        size, why = _typical_size(train)
    crop = options.crop or size
    if crop[0] > size[0] or crop[1] > size[1]:
        raise UsageError(
            f"windows of {crop[0]}x{crop[1]} do not fit into the network's {size[0]}x{size[1]}",
            hint="a smaller --crop, or a larger --size",
        )
    return size, why


def _choose_batch_size(pictures: int, size: Size, levels: int, options: Options, processes: int) -> int:
    """Samples in a step: as asked for, but not more than there are; each process needs as many."""
    crop = options.crop or size
    samples = pictures * _windows(size, crop)
    batch_size = min(options.batch_size, samples)
    if samples < processes:
        raise UsageError(
            f"{pictures} training pictures are too few for {processes} processes",
            hint="start fewer of them",
        )
    if batch_size % processes:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {processes} processes",
            hint=f"--batch-size {max(1, batch_size // processes) * processes}",
        )
    if batch_size == processes and max(crop) <= 2 ** (levels - 1):
        raise UsageError(
            f"{crop[0]}x{crop[1]} at {levels} levels, one picture at a time, leaves BatchNorm one "
            f"value a channel",
            hint="a larger --size, --crop or --batch-size, or fewer --widths",
        )
    return batch_size


def _choose_precision(device: torch.device, options: Options) -> tuple[str, str]:
    """What was asked for, else bfloat16 where a GPU computes it, else what inference would take."""
    if options.precision == "fp16" and device.type == "cpu":
        raise UsageError(
            "fp16 on a CPU: gradients vanish, and nothing is faster", hint="--precision bf16 or fp32"
        )
    if options.precision:
        return options.precision, f"{options.precision}: asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "bf16: float32's range, so that losses need no scaling"
    return pick_precision(device)


def _typical_size(pairs: Sequence[Pair]) -> tuple[Size, str]:
    """Find a size of the pictures' shape, from the headers of some of them."""
    ratios, largest = [], (1, 1)
    for pair in pairs[:: -(-len(pairs) // _LOOKED_AT)]:
        try:
            height, width = images.read(pair.image, at_least=(1, 1)).size
        except ImageError:
            continue  # the check of the dataset names it
        ratios.append(width / height)
        largest = max(largest, (height, width), key=lambda size: size[0] * size[1])
    ratio = float(np.median(ratios)) if ratios else 1.0
    area = min(_AREA, largest[0] * largest[1])
    size = max(32, round((area / ratio) ** 0.5 / 16) * 16), max(32, round((area * ratio) ** 0.5 / 16) * 16)
    return (
        size,
        f"{size[0]}x{size[1]}: of the pictures' shape (the median is {ratio:.2f} times as wide as high)",
    )


def _abbreviate(names: Sequence[str]) -> str:
    """At most four of these, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
