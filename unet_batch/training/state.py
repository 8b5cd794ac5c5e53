"""The saved state of a training, for --resume: one .safetensors file, written whole or not at all.

Tensors are the weights (`model.`), their exponential moving average (`mean.`) and AdamW's two moments
(`first.`, `second.`), all as the training holds them, unrounded; the rest is JSON in the file's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from unet_batch.errors import TrainingError
from unet_batch.files.atomic import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from unet_batch.model.network import SegmentationNetwork

VERSION = 1
STATE = "state.safetensors"
"""The file's name in the folder of a training."""


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        step: steps done, from the first epoch on.
        updates: steps that changed the weights; fewer where the scaled gradients of fp16 overflowed.
        loss: sum of the losses of the epoch that is running.
        seconds: spent so far, over all runs.
        scaler: state of the scale of fp16's gradients; empty for other precisions.
        class_frequencies: share of each class in the pixels (0..1), from which their weights follow.
        history: a record of each epoch that is over.
    """

    step: int = 0
    updates: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)
    class_frequencies: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def dumps(self) -> str:
        """As JSON text; class frequencies are called "shares" there."""
        data = asdict(self)
        return json.dumps({"shares": data.pop("class_frequencies"), **data})

    @classmethod
    def loads(cls, text: str) -> Progress:
        """Read what `dumps` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        data = json.loads(text)
        return cls(class_frequencies=data.pop("shares"), **data)


def save_state(
    path: str,
    model: SegmentationNetwork,
    ema: SegmentationNetwork,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    fingerprint: Mapping[str, Any],
) -> None:
    """Write the state.

    Raises:
        OutputError: it cannot be written; an earlier state is left as it was.
    """
    tensors = {
        f"{kind}.{name}": value
        for kind, each in (("model", model), ("mean", ema))
        for name, value in each.state_dict().items()
    }
    for name, parameter in model.named_parameters():
        if moments := optimizer.state.get(parameter):
            tensors[f"first.{name}"], tensors[f"second.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
    metadata = {
        "format": "unet-batch training state",
        "version": str(VERSION),
        "progress": progress.dumps(),
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }
    write_atomic(
        path,
        save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata),
        sync=True,
    )


def load_state(
    path: str,
    model: SegmentationNetwork,
    ema: SegmentationNetwork,
    optimizer: torch.optim.Optimizer,
    fingerprint: Mapping[str, Any],
) -> Progress:
    """Load a state into `model`, `ema` and `optimizer`.

    Raises:
        TrainingError: there is none, it is damaged, or it belongs to a training with other options or
            pictures.
    """
    if not os.path.exists(path):
        raise TrainingError(f"{path}: no training to resume", hint="leave out --resume to begin one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        version = metadata["version"]
        if version != str(VERSION):
            raise TrainingError(
                f"{path}: a state of version {version}, this program reads {VERSION}",
                hint="begin again with --overwrite",
            )
        then = json.loads(metadata["fingerprint"])
        progress = Progress.loads(metadata["progress"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: damaged, or not a training's state: {error}", hint="begin again with --overwrite"
        ) from error
    now = json.loads(json.dumps(fingerprint))
    if changed := [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]:
        what = ", ".join(
            key if key == "pictures" else f"{key} (then {then.get(key)!r}, now {now.get(key)!r})"
            for key in changed
        )
        raise TrainingError(
            f"{path}: another training: {what} changed",
            hint="give the same options and data, or begin again with --overwrite",
        )
    for kind, each in (("model", model), ("mean", ema)):
        each.load_state_dict(
            {name[len(kind) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{kind}.")}
        )
    state = {}
    places = {
        parameter: place
        for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    for name, parameter in model.named_parameters():
        if f"first.{name}" in tensors:
            # Laid out in memory like the weights: the fused AdamW goes through both byte by byte.
            kinds = {"exp_avg": "first", "exp_avg_sq": "second"}
            moments = {
                key: torch.empty_like(parameter).copy_(tensors[f"{kind}.{name}"])
                for key, kind in kinds.items()
            }
            state[places[parameter]] = {"step": torch.tensor(float(progress.updates)), **moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
