"""Terms are written into a checkpoint without its weights being touched."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from scripts import set_terms
from unet_batch.model import checkpoint
from unet_batch.model import spec as spec_json
from unet_batch.model.zoo import Bundled


def header(data: bytes) -> tuple[dict[str, object], bytes]:
    """The header of a safetensors file without the model's description, and all bytes behind it."""
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0, "tensors are aligned"
    entries = json.loads(data[8 : 8 + length])
    del entries["__metadata__"]["spec"]
    return entries, data[8 + length :]


@pytest.mark.parametrize("terms", ["", "CC0", "no licence stated (research use): ü"])
def test_only_the_terms_change(tiny: str, terms: str) -> None:
    spec = checkpoint.identify(tiny).spec
    older = json.loads(spec_json.dumps(spec))
    del older["terms"]
    with safe_open(tiny, framework="numpy") as file:
        metadata = {**(file.metadata() or {}), "spec": json.dumps(older)}
    before = save_tensors(load_tensors(Path(tiny).read_bytes()), metadata)
    with safe_open(tiny, framework="numpy") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 - not a mapping

    after = set_terms.with_terms(before, terms)

    assert header(after) == header(before)
    Path(tiny).write_bytes(after)
    assert checkpoint.load(tiny).spec == replace(spec, terms=terms)
    with safe_open(tiny, framework="numpy") as file:
        assert {name: file.get_tensor(name).tobytes() for name in file.keys()} == tensors  # noqa: SIM118
        as_trained = spec_json.dumps(replace(spec, terms=terms))
        assert (file.metadata() or {})["spec"] == as_trained
    assert set_terms.with_terms(after, terms) == after


def test_a_file_that_states_them_is_left_alone(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(set_terms.zoo, "BUNDLED", {"tiny": Bundled("tests", "CC0")})
    monkeypatch.setattr(set_terms.zoo, "WEIGHTS", os.path.dirname(tiny))
    monkeypatch.setattr("sys.argv", ["set_terms"])
    set_terms.main()
    assert checkpoint.identify(tiny).spec.terms == "CC0"
    inode = os.stat(tiny).st_ino
    set_terms.main()
    assert os.stat(tiny).st_ino == inode
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(" -> ")[1] == second.split(" -> ")[1]
