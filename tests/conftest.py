"""What several tests need. Imports no torch: the modules that work without it are tested without it, too."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import shared
from unet_batch.engine.onnx_model import OnnxRunner

# How long an example takes tells of the machine's other work, too; a test that hangs has a limit of its own.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).resolve().parents[1]

# Without bytecode, each process of this run compiles all tests anew (10 s), and each interpreter that one
# starts the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Several processes of pytest share the cores between them: the libraries read this when they are loaded, here
# and in the processes that tests start. Threads that fight over a core wait for each other at every layer.
SHARE = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", str(SHARE))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for processes, servers and clocks."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Collect from another place in each process: in a fresh clone each compiles a part of them for all.

    pytest's rewriting of assertions takes 15 s of processor time for all files.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        files = sorted(str(path) for folder in config.args for path in Path(folder).rglob("test_*.py"))
        number, count = (
            int(os.environ[f"PYTEST_XDIST_WORKER{name}"].removeprefix("gw")) for name in ("", "_COUNT")
        )
        first = len(files) * number // count
        config.args = files[first:] + files[:first]


def pytest_collection_finish() -> None:
    """See `collect_garbage_once`: what the tests import is there by now."""
    gc.collect()
    gc.freeze()
    # ONNX Runtime reads no variable, and its threads burn the time in which they wait: 1.4 times the work
    OnnxRunner.__init__.__kwdefaults__["threads"] = SHARE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: a process that comes to the end of its list takes from another's.

    Those of a file stay in its order. See `pytest_configure` for why the files need one.
    """
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path))


@pytest.fixture(scope="module", autouse=True)
def collect_garbage_once() -> Iterator[None]:
    """What a module leaves behind, such as the packages it has imported, is not searched for garbage again.

    A collection takes half a second in a process that has seen PyTorch's exporter, and some tests ask for
    dozens.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all processes of this run, see `tests.helpers.shared`."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in that of the run
        folder = folder.parent
    (folder / "shared").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(shared.FOLDER, str(folder / "shared"))
        yield


@pytest.fixture
def one_core() -> Iterator[None]:
    """Keeps threads on one core, for tests of thousands of tiny items in which nothing else is tested.

    Threads that hand Python's lock from core to core take up to twice the processor time for these. Not for
    tests that use `Forked`, whose server would stay on that core.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    os.sched_setaffinity(0, {sorted(before)[number % len(before)]})  # those that are started from now on
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """Fails a test that leaves a thread behind, daemon or not."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real pictures: `UNET_BATCH_DATA`, else `../shared/data`."""
    folder = Path(os.environ.get("UNET_BATCH_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "carvana").is_dir():
        pytest.skip(f"no real data in {folder}: set UNET_BATCH_DATA")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A checkpoint of one class on disk."""
    from tests.helpers.tiny import tiny_model, tiny_spec
    from unet_batch.model import checkpoint

    spec = tiny_spec()
    path = str(tmp_path / "tiny.safetensors")
    checkpoint.save(path, tiny_model(spec), spec)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, which fills up for real."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("needs the mount program")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
