"""What `scripts.bench_host` refuses, before it measures anything."""

from __future__ import annotations

import sys

import pytest

from scripts import bench_host


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--photos and --rounds are at least 1"),
        (["--photos", "0"], "--photos and --rounds are at least 1"),
        (["/nowhere"], "/nowhere: not a checkout of this project"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_host", *arguments])
    with pytest.raises(SystemExit) as ended:
        bench_host.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
