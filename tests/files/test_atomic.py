"""Writing results: whole files or none, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.disk import dead_process, fail_with, names
from tests.helpers.systems import needs_full_device, needs_permissions, needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import OutputError
from unet_batch.files import atomic, sources
from unet_batch.files.atomic import LineLog, new_folder, write_atomic, write_json
from unet_batch.files.outputs import OutputTree


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.png"
    for data in (b"one", b"", b"three" * 100_000):
        write_atomic(str(path), data, sync=not data)
        assert path.read_bytes() == data
        assert names(path.parent) == ["c.png"]


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomic("a.png", b"x")
    write_atomic("b/a.png", b"x")
    assert names(tmp_path) == ["a.png", "b"]


@needs_posix
def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(str(tmp_path / "a.png"), b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()]
)
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, step, fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        write_atomic(str(path), b"new", sync=True)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


def test_nothing_stands_under_the_name_before_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], bytes]] = []
    real = os.replace

    def replace(source: str, target: str) -> None:
        seen.append((names(tmp_path), Path(source).read_bytes()))
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    write_atomic(str(tmp_path / "a.png"), b"x" * 300_000)
    ((there, data),) = seen
    assert len(there) == 1
    assert atomic._TEMPORARY.fullmatch(there[0])
    assert len(there[0]) <= 64  # whatever the key
    assert data == b"x" * 300_000


def test_a_killed_process_leaves_no_half_file_and_its_leftovers_go(tmp_path: Path) -> None:
    program = (
        "import os, sys; from unet_batch.files import atomic\n"
        "atomic.os.replace = lambda a, b: os._exit(9)\n"
        "atomic.write_atomic(sys.argv[1] + '/masks/a/b.png', b'half')"
    )
    root = str(Path(atomic.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, timeout=PATIENCE, check=False
    )
    assert done.returncode == 9
    (left,) = names(tmp_path / "masks/a")
    assert atomic._TEMPORARY.fullmatch(left)
    tree = OutputTree(str(tmp_path), ["mask"])
    assert tree.clean_leftovers() == 1
    assert names(tmp_path / "masks/a") == []


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with new_folder(str(path)) as temporary:
        write_atomic(os.path.join(temporary, "c", "d"), b"x")
        assert not path.exists()
    assert (names(tmp_path / "a"), (path / "c" / "d").read_bytes()) == (["b"], b"x")
    with suppress(KeyError), new_folder(str(tmp_path / "e")) as temporary:
        write_atomic(os.path.join(temporary, "f"), b"x")
        raise KeyError
    with pytest.raises(FileExistsError), new_folder(str(path)) as temporary:
        write_atomic(os.path.join(temporary, "f"), b"x")
    assert (names(tmp_path), names(path)) == (["a"], ["c"])


def test_what_a_killed_process_left_of_a_new_folder_goes_with_the_next(tmp_path: Path) -> None:
    left = [f".ub-{atomic.host_id()}-{pid}-00000000.half" for pid in (dead_process(), os.getpid())]
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with new_folder(str(tmp_path / "a")):
        pass
    assert names(tmp_path) == [left[1], "a"]


def test_readers_never_see_half(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    whole = {bytes([value]) * 200_000 for value in range(3)}
    write_atomic(str(path), min(whole))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for data in whole:
                write_atomic(str(path), data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(path.read_bytes() in whole for _ in range(100))
    finally:
        stop.set()
        thread.join()


# Folders


def test_eight_threads_write_into_new_folders(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number % 7}/{number % 5}/{number % 3}/{number}.png" for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: write_atomic(str(path), str(path).encode()), paths))
    assert all(path.read_bytes() == str(path).encode() for path in paths)
    assert sum(len(files) for _, _, files in os.walk(tmp_path)) == len(paths)


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.png"
    write_atomic(str(path), b"1")
    shutil.rmtree(tmp_path / "a")
    write_atomic(str(path), b"2")
    assert path.read_bytes() == b"2"


def test_a_folder_that_vanishes_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace
    calls = []

    def replace(source: str, target: str) -> None:
        calls.append(source)
        if len(calls) == 1:
            shutil.rmtree(tmp_path / "a")
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    write_atomic(str(tmp_path / "a/b.png"), b"x")
    assert names(tmp_path / "a") == ["b.png"]
    assert len(calls) == 2


def test_a_folder_that_keeps_vanishing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "replace", fail_with(errno.ENOENT))
    monkeypatch.setattr(atomic.time, "sleep", lambda _: None)
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(str(tmp_path / "a.png"), b"x")
    assert names(tmp_path) == []


# Errors


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        (errno.ENOSPC, r"the disk is full: 1,234 bytes to write, [\d,]+ free", "free some space"),
        (errno.EDQUOT, "your disk quota is used up: 1,234 bytes to write", "free some space"),
        (errno.EROFS, "the disk is read-only", "-o"),
        (errno.EACCES, "no right to write in", "permissions"),
        (errno.EPERM, "no right to write in", "permissions"),
        (errno.EIO, os.strerror(errno.EIO), "-o"),
    ],
)
@pytest.mark.parametrize("step", ["open", "replace", "fsync"])
def test_errors_name_the_file_the_reason_and_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, message: str, hint: str
) -> None:
    path = tmp_path / "a.png"
    if os.name == "nt":
        monkeypatch.setattr(atomic.time, "sleep", lambda _: None)
    monkeypatch.setattr(atomic.os, step, fail_with(code))
    with pytest.raises(OutputError, match=message) as info:
        write_atomic(str(path), bytes(1234), sync=True)
    monkeypatch.undo()
    assert str(path) in info.value.message
    assert hint in info.value.hint
    assert names(tmp_path) == []


def test_a_system_that_takes_a_file_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, data = os.write, bytes(range(256)) * 10
    monkeypatch.setattr(atomic.os, "write", lambda file, left: real(file, left[:1000]))
    write_atomic(str(tmp_path / "a.png"), data)
    assert (tmp_path / "a.png").read_bytes() == data


def test_temporary_names_differ_between_threads(tmp_path: Path) -> None:
    def make(_: int) -> str:
        path, descriptor = atomic.open_temporary(str(tmp_path))
        os.close(descriptor)
        return os.path.basename(path)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(make, range(200)))
    assert len(found) == 200
    assert all(map(atomic._TEMPORARY.fullmatch, found))


@needs_full_device
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        atomic, "open_temporary", lambda _: (str(tmp_path / "x.part"), os.open("/dev/full", os.O_WRONLY))
    )
    for size in (10, 1_000_000):  # found out when closing, and when writing
        with pytest.raises(OutputError, match="the disk is full"):
            write_atomic(str(tmp_path / "a.png"), bytes(size))


def test_a_full_disk_for_real(small_disk: Path) -> None:
    write_atomic(str(small_disk / "masks/a.png"), bytes(20_000))
    with pytest.raises(OutputError, match=r"the disk is full: 100,000 bytes to write, [\d,]+ free"):
        write_atomic(str(small_disk / "masks/b.png"), bytes(100_000))
    with pytest.raises(OutputError, match="the disk is full"):
        write_atomic(str(small_disk / "masks/a.png"), bytes(60_000))
    assert (small_disk / "masks/a.png").read_bytes() == bytes(20_000)
    assert names(small_disk / "masks") == ["a.png"]
    (small_disk / "fill").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OutputError, match="the disk is full: 1 bytes"):
        OutputTree(str(small_disk), ["mask"]).prepare()
    assert names(small_disk) == ["fill", "masks"]


@needs_posix
def test_files_and_folders_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "masks").write_bytes(b"")
    with pytest.raises(OutputError, match=f"{tmp_path}/masks is in the way: it is not a folder"):
        write_atomic(str(tmp_path / "masks/lot/a.png"), b"x")
    with pytest.raises(OutputError, match=f"{tmp_path}/masks is in the way: it is not a folder"):
        write_atomic(str(tmp_path / "masks/a.png"), b"x")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(OutputError, match="a folder of this name is in the way"):
        write_atomic(str(tmp_path / "b.png"), b"x")
    assert names(tmp_path) == ["b.png", "masks"]


@needs_posix
def test_a_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the name is too long .*the longest part 304"):
        write_atomic(str(tmp_path / ("n" * 300 + ".png")), b"x")
    with pytest.raises(OutputError, match="the name is too long"):
        write_atomic(str(tmp_path) + "/folder" * 800 + "/a.png", b"x")
    assert names(tmp_path) == []


def test_an_impossible_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="null byte"):
        write_atomic(f"{tmp_path}/a\0.png", b"x")


@needs_permissions
def test_permissions_for_real(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match=f"no right to write in {tmp_path}"):
            write_atomic(str(tmp_path / "a.png"), b"x")
        with pytest.raises(OutputError, match=f"no right to write in {tmp_path}"):
            OutputTree(str(tmp_path / "out"), ["mask"]).prepare()
        with pytest.raises(OutputError, match=f"no right to write in {tmp_path}"):
            OutputTree(str(tmp_path), ["mask"]).prepare()
    finally:
        tmp_path.chmod(0o755)


# JSON


def test_json_keeps_its_order_and_marks_the_folder(tmp_path: Path) -> None:
    write_json(str(tmp_path / "run.json"), {"unet_batch": "1.0", "b": ["\udce9", "\u00e9"], "a": None})
    raw = (tmp_path / "run.json").read_bytes()
    assert list(json.loads(raw)) == ["unet_batch", "b", "a"]
    assert raw.isascii()
    assert raw.endswith(b"}\n")
    assert b"".join(raw[:64].split()).startswith(sources.MARKER)
    with pytest.raises(ValueError, match="JSON"):
        write_json(str(tmp_path / "run.json"), float("nan"))
    assert (tmp_path / "run.json").read_bytes() == raw


# Lines


@needs_full_device
def test_a_line_on_a_full_disk() -> None:
    log = LineLog.__new__(LineLog)
    log.path, log._file = "/dev/full", None
    with pytest.raises(OutputError, match=r"/dev/full cannot be written: the disk is full"):
        log.write({"path": "x"})
    log.close()


def test_lines_are_there_at_once_and_replace_those_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text("old\n")
    log = LineLog(str(path))
    assert not path.exists(), "no line, no file"
    log.write({"path": "a\udcff\n", "n": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"path": "a\udcff\n", "n": 1}]
    log.write(2)
    log.close()
    assert path.read_text().splitlines()[1:] == ["2"]


@pytest.mark.parametrize("wanted", [[], [0], [2], [0, 1, 2]], ids=str)
def test_lines_that_are_kept_stay_before_those_that_are_added(tmp_path: Path, wanted: list[int]) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text('"a"\n"b"\n"c"\n"torn')
    log = LineLog(str(path), lambda number, value: value == "abc"[number] and number in wanted)
    kept = ["abc"[number] for number in wanted]
    assert (log.count, path.exists()) == (len(wanted), bool(wanted))
    log.write("new")
    log.prune(lambda number, value: True)
    log.write("newer")
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, "new", "newer"]
    assert log.count == len(wanted) + 2
    assert names(tmp_path) == ["errors.jsonl"]


def test_each_line_is_looked_at_once_and_a_file_of_which_all_stays_is_left_alone(tmp_path: Path) -> None:
    path, looked = tmp_path / "errors.jsonl", list[int]()
    path.write_text('"a"\n"b"\n"c"\n')
    before, first = path.stat(), 0

    def keep(number: int, value: object) -> bool:
        looked.append(number)
        return number >= first

    log = LineLog(str(path), keep)
    assert (looked, log.count, path.stat()) == ([0, 1, 2], 3, before)
    first = 1
    log.prune(keep)
    assert (looked, path.read_text()) == ([0, 1, 2, 0, 1, 2], '"b"\n"c"\n')


def test_lines_stay_as_they_were_where_the_new_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text('"a"\n"b"\n')
    log = LineLog(str(path), lambda number, value: True)
    monkeypatch.setattr(atomic.os, "replace", fail_with(errno.ENOSPC))
    with pytest.raises(OutputError, match="the disk is full"):
        log.prune(lambda number, value: number > 0)
    assert path.read_text() == '"a"\n"b"\n'
    assert names(tmp_path) == ["errors.jsonl"]


def test_a_folder_in_place_of_the_lines(tmp_path: Path) -> None:
    (tmp_path / "errors.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"errors\.jsonl cannot be written"):
        LineLog(str(tmp_path / "errors.jsonl"))


# The output folder
