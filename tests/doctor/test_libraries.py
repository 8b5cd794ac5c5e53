"""Libraries of our own making, each in a process of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from unet_batch.doctor import libraries
from unet_batch.doctor.libraries import PACKAGES, Library, probe


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Library]:
    def write(source: str) -> Library:
        (tmp_path / "tensorrt.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return probe("tensorrt")

    return write


def test_one_that_works(tensorrt: Callable[[str], Library]) -> None:
    source = "import sys\n__version__ = '10.1'\nprint('hello', flush=True)\nprint('ouch', file=sys.stderr)"
    assert tensorrt(source) == Library("10.1")


@pytest.mark.parametrize(
    "error",
    ["RuntimeError('no CUDA\\nand more')", "SystemExit('no CUDA')", "KeyboardInterrupt('no CUDA')"],
)
def test_one_that_raises(tensorrt: Callable[[str], Library], error: str) -> None:
    found = tensorrt(f"raise {error}")
    assert found.problem == f"{error.partition('(')[0]}: no CUDA"
    assert found.version


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_one_that_kills_its_process(tensorrt: Callable[[str], Library]) -> None:
    assert tensorrt("import os\nos.kill(os.getpid(), 9)").problem == "its import kills the process: SIGKILL"
    assert tensorrt("import os\nos._exit(3)").problem == "its import kills the process: exit code 3"


def test_one_that_hangs(tensorrt: Callable[[str], Library], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "SECONDS", 1.0)
    assert tensorrt("import time\ntime.sleep(60)").problem == "its import had not ended after 1 s"


def test_one_that_is_not_there() -> None:
    assert probe("no_such_library.part") == Library()


def test_the_current_folder_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simplejpeg.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert probe("simplejpeg").works


def test_each_extra_that_installs_something_is_looked_at() -> None:
    """Whoever asks why Parquet or a bucket does not work finds its line."""
    named = {extra for _, extra in PACKAGES.values()} | {""}
    lines = metadata.metadata("unet-batch").get_all("Requires-Dist") or []
    extras = {match[1] for line in lines if (match := re.search(r"extra == ['\"]([a-z0-9-]+)", line))}
    assert extras - {"docs", "test"} <= named
