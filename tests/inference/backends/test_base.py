"""How many pictures a CPU computes at the same time."""

from __future__ import annotations

import pytest

from unet_batch.inference.backends import base

MIB = 2**20


@pytest.mark.parametrize(
    ("free", "streams", "note"),
    [
        (None, 8, ""),
        (800 * MIB, 8, ""),
        (799 * MIB, 7, "a picture takes about 100 MiB, and 799 MiB are free: 7 of 8 streams are used"),
        (100 * MIB, 1, "1 of 8 streams are used"),
        (
            99 * MIB,
            1,
            "and 99 MiB are free: it may run out of memory; close other programs, or use a smaller",
        ),
    ],
)
def test_as_many_streams_as_the_memory_holds_pictures(
    monkeypatch: pytest.MonkeyPatch, free: int | None, streams: int, note: str
) -> None:
    monkeypatch.setattr(base, "cpu_count", lambda: 8)
    monkeypatch.setattr(base, "free_memory", lambda: free)
    notes: list[str] = []
    assert base.streams_for(100 * MIB, notes) == streams
    assert bool(notes) == bool(note)
    assert note in "".join(notes)


def test_of_a_picture_that_nobody_measured_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of an earlier release do not say."""
    monkeypatch.setattr(base, "cpu_count", lambda: 2)
    monkeypatch.setattr(base, "free_memory", lambda: 0)
    notes: list[str] = []
    assert base.streams_for(0, notes) == 2
    assert notes == []
