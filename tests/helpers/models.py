"""Models that exist only as a description."""

from __future__ import annotations

from unet_batch.model.checkpoint import CheckpointFile
from unet_batch.testing import fake_spec


def fake_file(sha256: str = "0") -> CheckpointFile:
    """The file that a `FakeBackend` might have been made from, for recipes and reports."""
    return CheckpointFile("/models/fake.safetensors", fake_spec(), sha256, 0)
