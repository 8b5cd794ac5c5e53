"""What a model has seen is written into its file without its weights being touched."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors.numpy import load as load_tensors

from scripts.set_terms import with_values
from unet_batch.model import checkpoint
from unet_batch.types import Domain

SEEN = Domain((0.5, -1.25), ((1.5,), (0.25, 3.0)), 1.2, 40, 8)


def test_only_the_header_changes(tiny: str) -> None:
    before, spec = Path(tiny).read_bytes(), checkpoint.identify(tiny).spec
    after = with_values(before, domain=asdict(SEEN))
    Path(tiny).write_bytes(after)
    found = checkpoint.load(tiny).spec
    assert (found, found.domain) == (spec, SEEN)
    assert {name: value.tobytes() for name, value in load_tensors(after).items()} == {
        name: value.tobytes() for name, value in load_tensors(before).items()
    }
    assert with_values(after, domain=asdict(SEEN)) == after
