"""`scripts.bench_peers`: programs are compared by what they took, and only if they did the same work."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from scripts import bench_peers, peer_loops
from scripts.bench_peers import Contestant
from tests.helpers.bench import write_photos

STARTED = 'print(\'{"event": "start"}\', flush=True)\n'
SPIN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def program(code: str, **values: object) -> Contestant:
    return Contestant("a test", lambda listed, out: [sys.executable, "-c", code, listed, out], **values)  # type: ignore[arg-type]


def test_start_up_is_told_apart() -> None:
    found = program(SPIN.format(seconds=0.4) + STARTED + SPIN.format(seconds=0.6))
    found.run("", "")
    assert found.startup[0] >= 0.35
    assert 0.1 <= found.cpu[0] <= 0.35, "the second fifth of a second only"


def test_what_a_program_starts_counts_too() -> None:
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SPIN.format(seconds=0.3)!r}])\n"
    found = program(STARTED + child)
    found.run("", "")
    assert found.cpu[0] >= 0.3


def test_one_that_fails_takes_no_further_part_and_says_why() -> None:
    found = program("raise SystemExit('no such network')")
    assert not found.run("", "")
    assert found.missing == "ended with 1 no such network"
    assert found.cpu == []
    assert "| a test | not run: ended with 1 no such network |" in bench_peers.table([found], 1, 2)


def test_the_table_has_ratios_with_their_spread() -> None:
    slow, ours, theirs = program("", ours=True), program("", ours=True), program("")
    slow.cpu, slow.wall, slow.startup = [9.0] * 3, [9.0] * 3, [0.5]
    ours.cpu, ours.wall, ours.startup, ours.dice = [1.0, 2.0, 1.0], [1.0, 1.5, 1.0], [0.5], (1.0, 1.0)
    theirs.cpu, theirs.wall, theirs.startup, theirs.dice = (
        [3.0, 4.0, 4.0],
        [2.0, 3.0, 3.0],
        [0.5],
        (0.99, 0.9),
    )
    rows = bench_peers.table([slow, ours, theirs], 10, 2).splitlines()
    assert rows[3].startswith("| a test | 100 | 1 | 10.00 | 1 | 2.00 |")
    assert "| 400 | 3.00 (2.00 to 4.00) | 3.33 | 2.00 (2.00 to 3.00) |" in rows[4]
    assert rows[4].endswith("| 0.9900, 0.9000 |")


def test_masks_are_compared_at_the_photos_size(tmp_path: Path) -> None:
    photos = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for folder, values in (("ours", (255, 255)), ("same", (255, 255)), ("half", (255, 0))):
        (tmp_path / folder).mkdir()
        for name, value in zip("ab", values, strict=True):
            mask = np.full((4, 6), 255, np.uint8)
            mask[:2] = value
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), mask)
    ours = str(tmp_path / "ours")
    assert bench_peers.dice(photos, ours, str(tmp_path / "same")) == (1.0, 1.0)
    pooled, worst = bench_peers.dice(photos, ours, str(tmp_path / "half"))
    assert (pooled, worst) == (pytest.approx(72 / 84), pytest.approx(24 / 36))
    cv2.imwrite(str(tmp_path / "half" / "a.png"), np.zeros((2, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"no mask of .*a\.jpg at its size"):
        bench_peers.dice(photos, ours, str(tmp_path / "half"))


def test_what_is_not_given_does_not_take_part(tmp_path: Path) -> None:
    assert bench_peers.milesial("", "", []).missing == "no --milesial and --milesial-weights"
    assert bench_peers.milesial(str(tmp_path), "a.pth", []).missing == f"no predict.py in {tmp_path}"
    (tmp_path / "predict.py").touch()
    found = bench_peers.milesial(str(tmp_path), "a.pth", ["x/a.jpg"])
    assert found.missing == ""
    assert found.command("", "out")[-2:] == ["--output", "out/a.png"]


@pytest.mark.parametrize("arguments", [["--photos", "0"], ["--rounds", "0"], ["--every", "0"]])
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_peers", *arguments])
    with pytest.raises(SystemExit):
        bench_peers.main()
    assert "are at least 1" in capsys.readouterr().err


def test_the_usual_loop_writes_masks_of_the_photos_size(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (tmp_path / "out").mkdir()
    peer_loops.LOOPS["usual"](tiny, photos, str(tmp_path / "out"))
    assert bench_peers.STARTED in capsys.readouterr().out
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((tmp_path / "out").iterdir())]
    assert [mask.shape for mask in masks if mask is not None] == [(40, 60), (40, 60)]
    assert {int(value) for mask in masks if mask is not None for value in np.unique(mask)} == {0, 255}


def test_openvino_with_a_queue_writes_a_mask_of_every_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a library that answers at once: is every photo read, asked and written, once?"""
    photos = write_photos(tmp_path / "photos", 9)
    (tmp_path / "out").mkdir()
    monkeypatch.setitem(sys.modules, "openvino", _OpenVino())
    monkeypatch.setattr(peer_loops, "_size", lambda graph: (8, 12))
    peer_loops.LOOPS["openvino"]("a.onnx", photos, str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n}.png" for n in range(9)]


class _OpenVino(ModuleType):
    """As much of OpenVINO as the loop uses."""

    def __init__(self) -> None:
        super().__init__("openvino")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **settings: _Answers()


class _Answers:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **settings: _Answers()

    def set_callback(self, done: Any) -> None:
        self.done = done

    def start_async(self, given: dict[int, np.ndarray], own: object) -> None:
        request = SimpleNamespace(get_output_tensor=lambda index: SimpleNamespace(data=given[0][..., 0]))
        self.done(request, own)
