"""What a person may choose of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from unet_batch.errors import UsageError
from unet_batch.media.images import AUTO, Range, trained_range
from unet_batch.model.spec import ENCODERS, MAX_BAND, MAX_CHANNELS, MAX_LEVELS, MAX_SIDE, MAX_WIDTH
from unet_batch.training.augment import FLIPS, PRESETS

if TYPE_CHECKING:
    from unet_batch.types import Channels, Size


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may choose; None leaves it to the plan.

    Attributes:
        size: (height, width) of the network's input.
        channels: bands of each picture that the network takes, from 1, in this order; None takes those of
            `init` or, where pictures are more than grey or colour, all that they have.
        value_range: which values of a picture are black and white, as `images.Range.parse` takes it; None for
            that of `init`, or "auto".
        crop: (height, width) of windows of it to train on, as many of each picture as cover it; None for all
            of it at once.
        widths: channels of each level, finest first; with an encoder, of the decoder's.
        encoder: one of `model.spec.ENCODERS` as the contracting path; None for the classic U-Net, or for that
            of `init`.
        encoder_weights: a file to start the encoder from, "none" for random weights; None for the published
            ones.
        encoder_lr: learning rate of the encoder, as a factor of `lr`: its weights are good already.
        epochs: passes over the training pictures.
        batch_size: samples in a step, over all processes.
        lr: learning rate after warm-up, from which it falls to nearly nothing along a cosine.
        seed: random seed of weights, order and augmentation; the split does not depend on it.
        init: a checkpoint, or the name of a bundled model, to start from.
        train_list, val_list: files that name the pictures of each part, see `read_split`.
        val_fraction: share of the pictures kept for validation where no list names them.
        augment: one of augment.PRESETS.
        flip: one of augment.FLIPS.
        paste: share of the samples that get the object of another sample pasted in, at another size and
            place; one class only.
        plain_epochs: the last ones are without augmentation but for flips.
        weights: of each dataset, where there are several: how often an epoch sees each of its pictures.
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
        terms: of the data, for `ModelSpec.terms`; those of `init` are kept beside them.
    """

    size: Size | None = None
    channels: Channels | None = None
    crop: Size | None = None
    value_range: str | None = None
    widths: tuple[int, ...] | None = None
    encoder: str | None = None
    encoder_weights: str | None = None
    encoder_lr: float = 0.3
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
    paste: float = 0.0
    plain_epochs: int = 0
    weights: tuple[float, ...] | None = None
    dice: Literal["batch", "picture"] = "batch"
    class_weights: Literal["auto", "none"] = "auto"
    keep: Literal["best", "last"] = "best"
    patience: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    device: str | None = None
    precision: str | None = None
    deterministic: bool = False
    terms: str = ""

    def __post_init__(self) -> None:
        if self.value_range is not None:
            Range.parse(self.value_range)
        wrong = {
            # What no checkpoint may hold would be found out only once it is trained.
            "size": self.size is not None and not 1 <= min(self.size) <= max(self.size) <= MAX_SIDE,
            "crop": self.crop is not None and min(self.crop) < 1,
            "channels": self.channels is not None
            and not (
                len(self.channels) <= MAX_CHANNELS
                and 1 <= min(self.channels) <= max(self.channels) <= MAX_BAND
            ),
            "widths": self.widths is not None
            and not (
                1 <= len(self.widths) <= MAX_LEVELS and 1 <= min(self.widths) <= max(self.widths) <= MAX_WIDTH
            ),
            "encoder": self.encoder not in (None, *ENCODERS),
            "encoder_lr": not 0 < self.encoder_lr <= 1,
            "paste": not 0 <= self.paste <= 1,
            "weights": self.weights is not None and not 0 < min(self.weights) <= max(self.weights) <= 100,
            "epochs": self.epochs < 1,
            "plain_epochs": not 0 <= self.plain_epochs <= self.epochs,
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

    @property
    def range(self) -> Range:
        """Which values of a picture are black and white."""
        return AUTO if self.value_range is None else Range.parse(self.value_range)

    @property
    def range_fact(self) -> dict[str, str]:
        """What a model's spec says of its range, as `images.trained_range` takes it; nothing of "auto"."""
        return {} if self.range == AUTO else {"range": str(self.range)}

    def with_range_of(self, training: Mapping[str, Any]) -> tuple[Options, str]:
        """The options with their range settled, None for "auto"; and where it comes from, unless asked for.

        Args:
            training: what the spec of `init` says of its own; empty without one.
        """
        value_range, why = (self.range, "") if self.value_range is not None else trained_range(training)
        return replace(self, value_range=None if value_range == AUTO else str(value_range)), why
