"""What a model says of what it has seen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from unet_batch.errors import CheckpointError
from unet_batch.model import spec as spec_json
from unet_batch.testing import fake_spec
from unet_batch.types import Domain

SEEN = Domain((0.5, -1.25), ((1.5,), (0.25, 3.0)), 1.2, 40, 8)


def test_what_was_seen_comes_back() -> None:
    spec = replace(fake_spec(), domain=SEEN)
    again = spec_json.loads(spec_json.dumps(spec))
    assert again.domain == SEEN
    assert again == fake_spec(), "it decides no mask"


def test_files_of_before_say_nothing() -> None:
    text = spec_json.dumps(fake_spec())
    assert "domain" not in json.loads(text)
    assert spec_json.loads(text).domain is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": [0.5]},
        {"mean": [0.5, "x"]},
        {"mean": [0.0] * 300, "whitening": [[0.0] * (at + 1) for at in range(300)]},
        {"whitening": [[1.0, 2.0], [3.0]]},
        {"limit": 0},
        {"limit": float("inf")},
        {"pictures": -1},
        {"validated": None},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    data = json.loads(spec_json.dumps(replace(fake_spec(), domain=SEEN)))
    data["domain"] |= wrong
    with pytest.raises(CheckpointError, match="not valid"):
        spec_json.loads(json.dumps(data))
