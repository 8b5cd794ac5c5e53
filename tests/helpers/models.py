"""Models that exist only as a description."""

from __future__ import annotations

from unet_batch.model.checkpoint import ModelFile
from unet_batch.testing import fake_spec


def fake_file(sha256: str = "0") -> ModelFile:
    """The file that a `FakeBackend` might have been made from, for recipes and reports."""
    return ModelFile("/models/fake.safetensors", fake_spec(), sha256, 0)
