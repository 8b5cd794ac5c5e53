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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.split import choose_parts
from unet_batch.errors import ImageError, UsageError
from unet_batch.inference.backends.torch import pick_device, pick_precision
from unet_batch.media import images
from unet_batch.model import checkpoint, pretrained, zoo
from unet_batch.model.architectures import build_network
from unet_batch.model.checkpoint import ModelFile
from unet_batch.model.efficientnet import STRIDE
from unet_batch.model.encoder_unet import DECODER_WIDTHS
from unet_batch.model.network import SegmentationNetwork
from unet_batch.model.spec import inherit_terms
from unet_batch.model.unet import DEFAULT_WIDTHS
from unet_batch.training.options import Options
from unet_batch.training.start import choose_channels, choose_encoder_weights, spread
from unet_batch.types import ModelSpec

if TYPE_CHECKING:
    from unet_batch.types import Size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's photos, the field's habit
_AREA = 256 * 256  # pixels of the network's input where nobody says
_LOOKED_AT = 64  # pictures whose shape that choice rests on


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything that a training will do.

    Attributes:
        output: the model to write, absolute.
        options: as they were given.
        dataset: where pictures and masks come from.
        train, val: the pictures of each part.
        spec: of the model; its `training` holds no more than the channels that were chosen.
        lr: learning rate.
        batch_size: samples in a step, over all processes.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16", and why in `reasons`.
        init, init_sha256: the file to start from and what it holds, or "".
        new_head: whether the last layer of `init` is replaced.
        encoder_weights, encoder_sha256: the file the encoder starts from and what it holds, or "".
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
    encoder_weights: str = ""
    encoder_sha256: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def training_size(self) -> Size:
        """(height, width) of what a step sees of a picture: the network's input, or a window of it."""
        return self.options.crop or self.spec.input_size

    @property
    def samples(self) -> int:
        """Samples of an epoch: the training pictures, each as often as windows cover it and weights say."""
        return sum(len(members) * whole + part for members, whole, part in self.shares)

    @property
    def windows(self) -> int:
        """How many windows cover a picture; 1 where all of it is seen at once."""
        return _windows(self.spec.input_size, self.training_size)

    @cached_property
    def shares(self) -> tuple[tuple[range, int, int], ...]:
        """How an epoch draws from each dataset.

        Returns:
            For each dataset the numbers of its pairs in `train`, how often all of them are seen, and how many
            of them once more.
        """
        return _share_out(self.dataset, self.train, self.options, self.windows)

    @property
    def sample_name(self) -> str:
        """What a person calls the samples: "images", or "windows of 256x256"."""
        return "images" if self.options.crop is None else "windows of {}x{}".format(*self.options.crop)

    @property
    def steps(self) -> int:
        """Steps of an epoch; samples that do not fill a batch wait for the next epoch's order."""
        return self.samples // self.batch_size

    def is_plain(self, epoch: int) -> bool:
        """Whether an epoch, from 0, is one of the last ones: without augmentation but for flips."""
        return epoch >= self.options.epochs - self.options.plain_epochs

    @property
    def validation_lists(self) -> dict[str, list[str]]:
        """Keys of the validation images by the file that lists them: of all, and of each of several datasets.

        Those of a dataset are its own keys, since `evaluate` is given one of them at a time.
        """
        lists = {"val.txt": [pair.key for pair in self.val]}
        for name in self.dataset.parts:
            own = [pair.key[len(name) + 1 :] for pair in self.val if pair.key.startswith(f"{name}/")]
            if own:
                lists[f"val-{name}.txt"] = own
        return lists

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
        # The lists count by what they name; a GPU may have another number; terms change no weights
        for key in ("device", "train_list", "val_list", "encoder_weights", "terms"):
            del chosen[key]
        # What says nothing is not there, as in trainings that began before it could be said
        for key in ("paste", "plain_epochs"):
            chosen[key] = chosen[key] or None
        if not self.spec.encoder:
            chosen["encoder_lr"] = None
        chosen["channels"] = self.spec.channels
        chosen["encoder"] = self.spec.encoder or None
        chosen["encoder_weights"] = self.encoder_sha256 or None
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
        CheckpointError: the file of `init` cannot be read, or that of the encoder is not its weights.
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
    encoder, widths, why_start = _choose_network(options, start)
    weights, why_weights = choose_encoder_weights(options, encoder, start)
    _check_sources(dataset, options)
    new_head, why_head = _choose_head(dataset.classes.names, start)
    options, why_range = options.with_range_of(start.spec.training if start else {})
    size, why_size = _choose_size(train, options, start, bool(encoder))
    channels, in_channels, why_channels = choose_channels(dataset, options, start, encoder)
    dataset = dataclasses.replace(dataset, channels=channels)
    stride = STRIDE if encoder else 2 ** (len(widths) - 1)
    shares = _share_out(dataset, train, options, _windows(size, options.crop or size))
    samples = sum(len(members) * whole + part for members, whole, part in shares)
    batch_size = _choose_batch_size(samples, size, stride, options, processes)
    device = pick_device(options.device)
    precision, why_precision = _choose_precision(device, options)
    terms = inherit_terms(options.terms, start.spec if start else None)
    kept = f" of {start.spec.name}, kept" if start and not options.terms.strip() else ""
    why_terms = f"terms{kept}: {terms}" if terms else ""
    why_shares = _describe_shares(dataset, shares, val, options)
    reasons = (*(why_parts, *why_shares, why_start, why_weights, *why_channels), why_head)
    reasons += (why_size, why_range, why_precision, why_terms)
    return TrainingPlan(
        output=os.path.abspath(output),
        options=options,
        dataset=dataset,
        train=train,
        val=val,
        spec=ModelSpec(
            name=os.path.splitext(os.path.basename(output))[0],
            widths=widths,
            in_channels=in_channels,
            input_size=size,
            mean=spread(start.spec.mean if start else pretrained.MEAN if encoder else MEAN, in_channels),
            std=spread(start.spec.std if start else pretrained.STD if encoder else STD, in_channels),
            classes=dataset.classes,
            output="probability" if len(dataset.classes.names) == 1 else "class_ids",
            architecture="encoder-unet" if encoder else "unet",
            encoder=encoder,
            terms=terms,
            training={"channels": list(channels)} if channels else {},
        ),
        lr=options.lr,
        batch_size=batch_size,
        device=device,
        precision=precision,
        init=start.path if start else "",
        init_sha256=start.sha256 if start else "",
        new_head=new_head,
        encoder_weights=weights,
        # Read now: a wrong file is not to be found out once all pairs are checked
        encoder_sha256=pretrained.read_encoder(weights, encoder).sha256 if weights else "",
        reasons=tuple(filter(None, reasons)),
    )


# The choices, each with its reason, or "" where there is nothing to say ------------------------------------


def _windows(whole: Size, window: Size) -> int:
    """How many windows cover the whole."""
    return math.prod(-(-side // part) for side, part in zip(whole, window, strict=True))


def _identify_init(options: Options, output: str) -> ModelFile | None:
    """Read what the checkpoint of `init` says of itself; None without one."""
    if not options.init:
        return None
    start = checkpoint.identify(zoo.resolve(options.init))
    if os.path.exists(output) and os.path.samefile(start.path, output):
        raise UsageError(f"{output}: is where the training starts from", hint="write to another file with -o")
    return start


def _choose_network(options: Options, start: ModelFile | None) -> tuple[str, tuple[int, ...], str]:
    """Encoder, or "", and widths: as asked for, but those of `init` where there is one."""
    if start is None:
        encoder = options.encoder or ""
        widths = options.widths or (DECODER_WIDTHS if encoder else DEFAULT_WIDTHS)
        if encoder and len(widths) != len(DECODER_WIDTHS):
            raise UsageError(
                f"{len(widths)} widths, the decoder behind {encoder} has {len(DECODER_WIDTHS)} levels",
                hint=f"--widths {_join(DECODER_WIDTHS)}, or another four",
            )
        return encoder, widths, ""
    known = start.spec
    widths = options.widths or known.widths
    if known.widths != widths:
        raise UsageError(
            f"{options.init} has widths {_join(known.widths)}, asked for are {_join(widths)}",
            hint="leave out --widths, or train without --init",
        )
    if options.encoder not in (None, known.encoder):
        raise UsageError(
            f"{options.init} is a {known.network}, asked for is the encoder {options.encoder}",
            hint="leave out --encoder, or train without --init",
        )
    return known.encoder, widths, f"starts from {known.name}, sha256 {start.sha256[:12]}"


def _check_sources(dataset: Dataset, options: Options) -> None:
    """Refuse options that do not fit the datasets."""
    if options.weights is not None and len(options.weights) != max(1, len(dataset.parts)):
        raise UsageError(
            f"{len(options.weights)} weights for {max(1, len(dataset.parts))} datasets",
            hint="--weights takes a number for each dataset, in their order",
        )
    if options.paste and len(dataset.classes.names) > 1:
        raise UsageError(
            f"pasting with {len(dataset.classes.names)} classes: which of them is the object?",
            hint="leave out --paste, or train one class",
        )


def _choose_head(names: Sequence[str], start: ModelFile | None) -> tuple[bool, str]:
    """Whether the last layer of `init` is replaced, since it knows other classes."""
    if start is None:
        return False, ""
    known = start.spec.classes.names
    # A class that nobody has named may be the one that is known.
    unnamed = len(names) == len(known) == 1 and "foreground" in (*names, *known)
    if names == known or unnamed:
        return False, ""
    return True, f"new head, for {_abbreviate(names)} instead of {_abbreviate(known)}"


def _choose_size(
    train: Sequence[Pair], options: Options, start: ModelFile | None, encoded: bool
) -> tuple[Size, str]:
    """Height and width of the network's input: asked for, that of `init`, or one of the pictures' shape."""
    if options.size:
        size, why = options.size, ""
    elif start is not None:
        size, why = start.spec.input_size, ""
    else:
        size, why = _typical_size(train, STRIDE if encoded else 16)
    crop = options.crop or size
    if crop[0] > size[0] or crop[1] > size[1]:
        raise UsageError(
            f"windows of {crop[0]}x{crop[1]} do not fit into the network's {size[0]}x{size[1]}",
            hint="a smaller --crop, or a larger --size",
        )
    return size, why


def _share_out(
    dataset: Dataset, train: Sequence[Pair], options: Options, windows: int
) -> tuple[tuple[range, int, int], ...]:
    """What an epoch draws from each dataset, see `TrainingPlan.shares`.

    Raises:
        UsageError: nothing from one of them.
    """
    shares, begin = [], 0
    weights = options.weights or (1.0,) * len(dataset.parts or ("",))
    for name, weight in zip(dataset.parts or ("",), weights, strict=True):
        count = sum(pair.key.startswith(f"{name}/") for pair in train) if name else len(train)
        times = weight * windows
        whole = int(times)
        part = round((times - whole) * count)
        if count and not whole and not part:
            raise UsageError(
                f"weight {weight:g} leaves nothing of the {count:,} training pictures of "
                f"{name or dataset.name}",
                hint="a larger number of --weights, or leave out the dataset",
            )
        shares.append((range(begin, begin + count), whole, part))
        begin += count
    return tuple(shares)


def _describe_shares(
    dataset: Dataset, shares: Sequence[tuple[range, int, int]], val: Sequence[Pair], options: Options
) -> list[str]:
    """Say of each of several datasets what an epoch sees of it, and what validates."""
    weights = options.weights or (1.0,) * len(dataset.parts)
    return [
        f"{name}: {len(members):,} pictures train, at weight {weight:g}, "
        f"{sum(pair.key.startswith(f'{name}/') for pair in val):,} validate"
        for name, weight, (members, _, _) in zip(dataset.parts, weights, shares, strict=False)
    ]


def _choose_batch_size(samples: int, size: Size, stride: int, options: Options, processes: int) -> int:
    """Samples in a step: as asked for, but not more than there are; each process needs as many."""
    crop = options.crop or size
    batch_size = min(options.batch_size, samples)
    if samples < processes:
        raise UsageError(
            f"{samples} samples in an epoch are too few for {processes} processes",
            hint="start fewer of them",
        )
    if batch_size % processes:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {processes} processes",
            hint=f"--batch-size {max(1, batch_size // processes) * processes}",
        )
    if batch_size == processes and max(crop) <= stride:
        raise UsageError(
            f"{crop[0]}x{crop[1]} at a stride of {stride}, one picture at a time, leaves BatchNorm one "
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


def _typical_size(pairs: Sequence[Pair], multiple: int) -> tuple[Size, str]:
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
    height, width = (
        max(32, round(side / multiple) * multiple) for side in ((area / ratio) ** 0.5, (area * ratio) ** 0.5)
    )
    size = height, width
    return (
        size,
        f"{size[0]}x{size[1]}: of the pictures' shape (the median is {ratio:.2f} times as wide as high)",
    )


def _abbreviate(names: Sequence[str]) -> str:
    """At most four of these, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
