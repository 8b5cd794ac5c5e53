"""The models that come with the package."""

from __future__ import annotations

import os

from unet_batch.errors import CheckpointError

BUNDLED = ("default", "fast", "fine")
_WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")


def resolve(model: str | None) -> str:
    """Find a checkpoint's file: None is the bundled default, a bundled name its file, all else a path.

    Raises:
        CheckpointError: neither a bundled name nor an existing file.
    """
    name = model or BUNDLED[0]
    if name in BUNDLED:
        return os.path.join(_WEIGHTS, f"{name}.safetensors")
    if not os.path.exists(name):
        raise CheckpointError(f"{name}: no such model file", hint=f"bundled models: {', '.join(BUNDLED)}")
    return name
