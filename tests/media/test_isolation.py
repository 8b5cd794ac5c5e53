"""Decoders in processes of their own: whatever one does, or is done to it, spoils only its own picture."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.helpers.waiting import PATIENCE, until
from unet_batch.errors import DecoderCrashed, ImageError, ImageTooLarge, RunError, UnetBatchError, UsageError
from unet_batch.media import images, isolation
from unet_batch.processes import Workers, process

pytestmark = [
    pytest.mark.usefixtures("no_thread_is_left", "no_process_is_left"),
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
]
ROOT = Path(__file__).resolve().parents[2]
OBEY = "tests.helpers.readers:obey"


def decoder_processes() -> list[psutil.Process]:
    """The decoders among this process's children, which other tests may have given it, too."""
    return [child for child in psutil.Process().children() if "processes.serve" in " ".join(child.cmdline())]


@pytest.fixture
def no_process_is_left() -> Any:
    yield
    assert decoder_processes() == []


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "good.jpg"
    y, x = np.mgrid[:240, :320]
    Image.fromarray(np.stack([x * 255 // 319, y * 255 // 239, (x + y) % 256], axis=-1).astype(np.uint8)).save(
        path
    )
    return str(path)


@pytest.fixture
def order(tmp_path: Path) -> Callable[[str], str]:
    """Makes a "picture" that tells the reader what to do."""

    def write(command: str) -> str:
        path = tmp_path / f"{command.replace(' ', '-')}.jpg"
        path.write_text(command + "\n")
        return str(path)

    return write


@contextmanager
def open_decoders(
    number: int, *, reader: str = isolation.READER, time_limit: float = isolation.TIME_LIMIT, **options: Any
) -> Iterator[isolation.Decoders]:
    with Workers(number, [isolation.DECODE, reader], **options) as workers:
        yield isolation.Decoders(workers, reader=reader, time_limit=time_limit)


def pid_of(decoders: isolation.Decoders, path: str) -> int:
    with pytest.raises(ImageError) as caught:
        decoders.read(path)
    return int(caught.value.message)


def await_end(pid: int) -> None:
    """Return once a process has ended, whether or not somebody has asked how."""

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    until(ended)


# The same as images.read ------------------------------------------------------------------------------------


def outcome(read: Callable[..., images.Picture], path: str, **options: Any) -> Any:
    try:
        found = read(path, **options)
    except UnetBatchError as error:
        return type(error), error.message, error.hint
    assert found.pixels.dtype == np.uint8
    assert found.pixels.flags.c_contiguous
    assert found.pixels.flags.writeable
    return found.size, found.pixels.shape, found.pixels.tobytes()


@pytest.mark.parametrize("shared", [True, False], ids=["file", "pipe"])
def test_pixels_and_errors_are_the_same(
    picture: str,
    tmp_path: Path,
    shared: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = ["ab.png", "café\n-ü.jpg", os.fsdecode(b"not\xffutf8.jpg"), "empty.jpg", "text.jpg", "cut.jpg"]
    paths = [str(tmp_path / name) for name in names]
    Image.fromarray(np.arange(3 * 5 * 7, dtype=np.uint8).reshape(5, 7, 3)).save(paths[0])
    whole = Path(picture).read_bytes()
    for path, data in zip(paths[1:], (whole, whole, b"", b"no picture", whole[:900]), strict=True):
        Path(path).write_bytes(data)
    options: list[dict[str, Any]] = [{}, {"at_least": (50, 70)}, {"max_pixels": 240 * 320 - 1}]
    with open_decoders(1, shared=shared, keep=100_000) as decoders:
        for path in [picture, *paths, str(tmp_path), str(tmp_path / "none.jpg"), "a\0b"]:
            for option in options:
                assert outcome(decoders.read, path, **option) == outcome(images.read, path, **option)
        with pytest.raises(ImageTooLarge):
            decoders.read(picture, max_pixels=10)
    assert capfd.readouterr() == ("", "")


def test_odd_files_are_the_same(data: Path) -> None:
    paths = sorted(str(path) for path in (data / "awkward").iterdir())
    with open_decoders(2) as decoders, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda path: outcome(decoders.read, path), paths))
    for path, result in zip(paths, found, strict=True):
        assert result == outcome(images.read, path), path


def test_what_the_system_says_of_a_file_arrives() -> None:
    """So that a caller can tell what is worth another try."""
    with (
        open_decoders(1, reader="tests.helpers.readers:refuse") as decoders,
        pytest.raises(ImageError) as caught,
    ):
        decoders.read("/mnt/a.jpg")
    assert (caught.value.message, caught.value.hint) == ("/mnt/a.jpg: cannot be read", "wait")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == 116


def test_an_error_nobody_foresaw(order: Callable[[str], str]) -> None:
    with open_decoders(1, reader=OBEY) as decoders:
        with pytest.raises(ImageError, match=r"raise-x\.jpg: KeyError: 'x'") as caught:
            decoders.read(order("raise x"))
        assert "report it" in caught.value.hint
        assert pid_of(decoders, order("pid")) == pid_of(decoders, order("pid"))  # it was no reason to end


def test_decoders_are_light(order: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    with open_decoders(1, reader=OBEY) as decoders:
        with pytest.raises(ImageError) as caught:
            decoders.read(order("modules"))
        pid = pid_of(decoders, order("pid"))
        assert psutil.Process(pid).num_threads() == 1
    assert {"numpy", "cv2"} <= set(caught.value.message.split())
    assert not {"torch", "rich", "click", "unet_batch.inference.segmenter"} & set(
        caught.value.message.split()
    )


def test_what_libraries_print_disturbs_nobody(
    order: Callable[[str], str], picture: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_decoders(1, reader=OBEY) as decoders:
        with pytest.raises(ImageError, match=r"noisy, stderr held 606006 bytes"):
            decoders.read(order("noise"))
        # Nothing of the picture before: it does not grow
        with pytest.raises(ImageError, match=r"quiet, stderr held 0 bytes"):
            decoders.read(order("quiet"))
        assert decoders.read(picture).size == (240, 320)
    assert capfd.readouterr() == ("", "")


def test_names_mean_the_same_in_utf8_mode(picture: str, tmp_path: Path) -> None:
    path = tmp_path / "é.jpg"
    path.write_bytes(Path(picture).read_bytes())
    script = (
        "import sys; from unet_batch.media import isolation; from unet_batch.processes import Workers\n"
        "with Workers(1, [isolation.DECODE]) as workers:\n"
        "    print(isolation.Decoders(workers).read(sys.argv[1]).size)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-X", "utf8=1", "-c", script, str(path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.stderr) == ("(240, 320)\n", "")


# Crashes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("segfault", r"its decoder crashed \(SIGSEGV\)$"),
        ("abort", r"its decoder crashed \(SIGABRT\): malloc\(\): corrupted top size$"),
        ("signal SIGBUS", r"its decoder crashed \(SIGBUS\)$"),
        ("signal SIGFPE", r"its decoder crashed \(SIGFPE\)$"),
        ("signal SIGKILL", r"its decoder was killed \(SIGKILL\), as the system does when memory runs out$"),
        ("exit 0", r"its decoder ended with exit code 0$"),
        ("exit 3", r"its decoder ended with exit code 3$"),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_a_crash_costs_one_picture(
    order: Callable[[str], str], picture: str, command: str, says: str, used: bool
) -> None:
    path = order(command)
    with open_decoders(1, reader=OBEY) as decoders:
        if used:
            decoders.read(picture)
        with pytest.raises(DecoderCrashed, match=says) as caught:
            decoders.read(path)
        assert caught.value.message.startswith(f"{path}: ")
        assert caught.value.hint
        assert decoders.read(picture).size == (240, 320)


def test_a_picture_is_not_blamed_for_another(order: Callable[[str], str], picture: str) -> None:
    """What crashes is the picture after the culprit: in a fresh process it decodes."""
    with open_decoders(1, reader=OBEY) as decoders:
        with pytest.raises(ImageError, match="damaged"):
            decoders.read(order("spoil"))
        assert decoders.read(picture).size == (240, 320)


def test_a_decoder_that_died_idle_is_nobodys_fault(order: Callable[[str], str], picture: str) -> None:
    with open_decoders(1, reader=OBEY) as decoders:
        for _ in range(3):
            pid = pid_of(decoders, order("pid"))
            os.kill(pid, signal.SIGKILL)
            await_end(pid)
            assert decoders.read(picture).size == (240, 320)


def test_time_limit(order: Callable[[str], str], picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, starts = subprocess.Popen, []
    monkeypatch.setattr(
        process.subprocess, "Popen", lambda *args, **options: starts.append(args) or real(*args, **options)
    )
    with open_decoders(1, reader=OBEY, time_limit=1.5) as decoders:
        decoders.read(picture)
        begun = time.monotonic()
        with pytest.raises(DecoderCrashed, match=r"hang\.jpg: not decoded within 1\.5 s"):
            decoders.read(order("hang"))
        assert time.monotonic() - begun > 1.4
        assert len(starts) == 1  # nobody waits twice
        pid = pid_of(decoders, order("pid"))
        time.sleep(1.6)  # the limit is one for decoding, not for waiting
        assert pid_of(decoders, order("pid")) == pid


def test_many_crashes_from_many_threads(order: Callable[[str], str], picture: str) -> None:
    rng = random.Random(5)
    paths = [picture] * 190 + [
        order("segfault"),
        order("exit 1"),
        order("abort"),
        order("signal SIGKILL"),
        order("spoil"),
    ] * 2
    rng.shuffle(paths)
    right = images.read(picture).pixels.tobytes()

    def crashed(path: str) -> bool:
        try:
            return decoders.read(path).pixels.tobytes() != right
        except DecoderCrashed as error:
            return error.message.startswith(f"{path}: ")
        except ImageError as error:
            return error.message.endswith("damaged")

    with open_decoders(3, reader=OBEY) as decoders, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(crashed, paths))
        assert len(decoder_processes()) <= 3
    assert found == [path != picture for path in paths]


# Starting and ending ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        ("tests.no_such_module:read", "No module named 'tests.no_such_module'"),
        ("unet_batch.media.images:no_such_function", "no_such_function"),
    ],
)
def test_a_decoder_that_cannot_start_is_said_once(picture: str, reader: str, says: str) -> None:
    with open_decoders(2, reader=reader) as decoders, pytest.raises(RunError, match=says) as caught:
        decoders.read(picture)
    assert "cannot start a worker process" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/true", "/bin/cat"])
def test_no_interpreter(picture: str, executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with (
        open_decoders(1) as decoders,
        pytest.raises(RunError, match=rf"cannot start a worker process \({executable}\): .+"),
    ):
        decoders.read(picture)


def test_a_start_that_fails_by_accident_is_tried_again(picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = subprocess.Popen, []

    def flaky(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr(process.subprocess, "Popen", flaky)
    with open_decoders(1) as decoders:
        assert decoders.read(picture).size == (240, 320)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "bad", [{"number": 0}, {"number": 1, "time_limit": 0}, {"number": 1, "time_limit": float("nan")}]
)
def test_arguments_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"), open_decoders(**bad):
        pass


def test_one_thread_needs_one_process(picture: str) -> None:
    with open_decoders(8) as decoders:
        assert decoder_processes() == []
        for _ in range(5):
            decoders.read(picture)
        assert len(decoder_processes()) == 1


def test_closed_decoders_read_nothing(order: Callable[[str], str], picture: str) -> None:
    workers = Workers(1, [isolation.DECODE, OBEY])
    decoders = isolation.Decoders(workers, reader=OBEY)
    with ThreadPoolExecutor(2) as pool:
        path = order("wait")
        at_work = pool.submit(decoders.read, path)
        until(lambda: not workers._unstarted)
        waiting = pool.submit(decoders.read, picture)
        time.sleep(0.1)
        workers.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(PATIENCE)
        Path(f"{path}.go on").touch()
        with pytest.raises(ImageError, match="waited"):  # what was at work is finished
            at_work.result(PATIENCE)
    with pytest.raises(RuntimeError, match="closed"):
        decoders.read(picture)
    workers.close()


def test_ctrl_c_and_sigterm_are_not_for_decoders(order: Callable[[str], str]) -> None:
    with open_decoders(1, reader=OBEY) as decoders, ThreadPoolExecutor(1) as pool:
        pid = pid_of(decoders, order("pid"))
        assert os.getsid(pid) == pid  # the terminal does not send it anything
        reading = pool.submit(pid_of, decoders, order("pid"))
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert reading.result(PATIENCE) == pid
        assert pid_of(decoders, order("pid")) == pid


def test_ctrl_c_while_waiting_leaves_no_stale_answer(order: Callable[[str], str], picture: str) -> None:
    with open_decoders(1, reader=OBEY) as decoders:
        pid = pid_of(decoders, order("pid"))
        slow = order("interrupt")
        with pytest.raises(KeyboardInterrupt):
            decoders.read(slow)
        await_end(pid)
        assert decoders.read(picture).size == (240, 320)


SCRIPT = """
import sys, threading
from unet_batch.media import isolation
from unet_batch.processes import Workers

reader = "tests.helpers.readers:obey"
decoders = isolation.Decoders(Workers(3, [isolation.DECODE, reader]), reader=reader)
for path in sys.argv[1:]:
    threading.Thread(target=decoders.read, args=(path,)).start()
"""


def test_decoders_do_not_outlive_their_owner(order: Callable[[str], str], tmp_path: Path) -> None:
    """A script without a `__main__` guard is killed while two decoders work: they end at once."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), order("sleep 100"), order("sleep 101")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as owner:
        family = psutil.Process(owner.pid)
        until(lambda: len(family.children()) == 2)
        time.sleep(0.6)
        children = [child.pid for child in family.children(recursive=True)]
        owner.kill()
    assert len(children) == 2
    for pid in children:
        await_end(pid)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
def test_300_pictures_leak_nothing(order: Callable[[str], str], picture: str, tmp_path: Path) -> None:
    def held() -> int:  # memory that processes share has a descriptor, too
        return len(os.listdir("/proc/self/fd"))

    before = held()
    with open_decoders(2, reader=OBEY) as decoders, ThreadPoolExecutor(2) as pool:
        list(pool.map(decoders.read, [picture] * 20))
        working = held()
        pids = [child.pid for child in decoder_processes()]
        theirs = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        list(pool.map(decoders.read, [picture] * 300))
        assert held() <= working
        assert [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids] == theirs
        decoders._time_limit = 0.3  # of those to be started
        for command in ("segfault", "exit 1", "hang") * 2:
            with pytest.raises(DecoderCrashed):
                decoders.read(order(command))
        assert held() <= working
    assert held() == before


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="pages of a memfd are counted")
@pytest.mark.parametrize("keep", [1_000_000, 10_000_000])
def test_a_huge_picture_gives_its_memory_back(keep: int, tmp_path: Path, picture: str) -> None:
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((1000, 1000, 3), np.uint8)).save(large)
    with open_decoders(1, keep=keep) as decoders:
        for path, kept in ((str(large), 0 if keep < 3_000_000 else 3_000_000), (picture, 240 * 320 * 3)):
            decoders.read(path)
            files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            sizes = [
                os.stat(file).st_size
                for file in files
                if os.path.islink(file) and os.readlink(file).startswith("/memfd:unet-batch")
            ]
            assert sorted(sizes) == [0, kept], "its stderr, and the pixels"


def test_formats_that_need_an_extra_are_decoded_there_too(tmp_path: Path) -> None:
    for package in ("rawpy", "pydicom", "zarr"):
        pytest.importorskip(package)
    from tests.helpers.dicom import save_dicom
    from tests.helpers.formats import dng

    values = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    (tmp_path / "a.dng").write_bytes(dng(np.full((64, 96), 9000, np.uint16)))
    save_dicom(tmp_path / "a.dcm", values)
    # An OME-Zarr of one plain chunk, written by hand: zarr's threads would stay in this process
    array = {"zarr_format": 2, "shape": [20, 30], "chunks": [20, 30], "dtype": "|u1", "order": "C"}
    array |= {"fill_value": 0, "compressor": None, "filters": None}
    about = {"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "0"}]}]}
    (tmp_path / "a.zarr" / "0").mkdir(parents=True)
    for name, facts in (("0/.zarray", array), (".zattrs", about), (".zgroup", {"zarr_format": 2})):
        (tmp_path / "a.zarr" / name).write_text(json.dumps(facts))
    (tmp_path / "a.zarr" / "0" / "0.0").write_bytes(values.tobytes())
    with open_decoders(1) as decoders:
        for name in ("a.dcm", "a.zarr"):
            np.testing.assert_array_equal(decoders.read(str(tmp_path / name)).pixels[..., 0], values)
        developed = decoders.read(str(tmp_path / "a.dng")).pixels
    np.testing.assert_array_equal(developed, images.read(str(tmp_path / "a.dng")).pixels)
