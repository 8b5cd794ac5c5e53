"""How many pictures a CPU computes at the same time."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("max", "9", 4096), ("3000", "1000", 2000), ("900", "1000", 0), ("9999", "0", 4096)],
)
def test_free_memory_respects_a_containers_limit(tmp_path: Path, limit: str, used: str, free: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 4 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    assert base.free_memory(str(tmp_path / "meminfo"), str(tmp_path)) == free
    assert base.free_memory(str(tmp_path / "none"), str(tmp_path)) is None
