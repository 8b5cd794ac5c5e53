"""What a network starts from: weights of an encoder, and channels, where its start knows another number."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unet_batch.datasets.dataset import Dataset, natural_channels
from unet_batch.errors import UsageError
from unet_batch.model import pretrained
from unet_batch.model.checkpoint import ModelFile
from unet_batch.training.options import Options

if TYPE_CHECKING:
    from unet_batch.types import Channels


def choose_channels(
    dataset: Dataset, options: Options, start: ModelFile | None, encoder: str
) -> tuple[Channels | None, int, list[str]]:
    """Which bands of the pictures the network takes, or None; how many channels it has; and why."""
    known = start.spec if start else None
    if known and options.channels is None and (known.channels or known.in_channels != 3):
        return known.channels, known.in_channels, []
    channels, why = options.channels, "asked for"
    if channels is None:
        channels, why = natural_channels(dataset.pairs), "all that the pictures have"
    if channels is None:
        return None, 3, []
    count, reasons = len(channels), [f"channels {','.join(map(str, channels))}: {why}"]
    before = known.in_channels if known else 3
    if count != before and (known or encoder):
        reasons.append(
            f"the first convolution, made for {before} channels, starts for each of {count} from the mean of "
            f"its filters, times {before}/{count}"
        )
    return channels, count, reasons


def spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or deviations by channel: those that are known, or for another number their mean."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def choose_encoder_weights(options: Options, encoder: str, start: ModelFile | None) -> tuple[str, str]:
    """The file that the encoder starts from, or "" where `init` or nothing is."""
    if options.encoder_weights and (start is not None or not encoder):
        raise UsageError(
            "--encoder-weights start a new encoder", hint="give --encoder with them, and leave out --init"
        )
    if not encoder and options.encoder_lr != Options.encoder_lr:
        raise UsageError(
            f"--encoder-lr {options.encoder_lr:g}: this network has no encoder that knows anything",
            hint="leave it out, or give --encoder",
        )
    if not encoder or start is not None:
        return "", ""
    if options.encoder_weights == "none":
        return "", f"{encoder} starts from random weights: asked for"
    path = options.encoder_weights or pretrained.find_weights(encoder)
    return os.path.abspath(path), f"{encoder} starts from {os.path.basename(path)}"
