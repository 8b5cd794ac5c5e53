"""Workers as their owner uses them; how decoders start and crash is tested in `media/test_isolation.py`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.waiting import PATIENCE, until
from unet_batch.errors import ImageTooLarge
from unet_batch.processes import Died, Kept, Workers

pytestmark = [
    pytest.mark.usefixtures("no_thread_is_left"),
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
]
ECHO, PID, KEEP, KEEP_AND_FAIL, LOOK, FAIL, DIE, DIE_ONCE = (
    f"tests.helpers.worker_functions:{name}"
    for name in ("echo", "pid", "keep", "keep_and_fail", "look", "fail", "die", "die_once")
)


def serving() -> list[psutil.Process]:
    """The workers among this process's children, which other tests may have given it, too."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "processes.serve" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("shared", [True, False], ids=["file", "pipe"])
def test_messages_of_every_size_arrive_whole(shared: bool) -> None:
    with Workers(1, [ECHO], shared=shared, keep=100_000) as workers:
        for size in (0, 1, 20_000, 3, 300_000, 70_000):
            request, data = os.urandom(size // 3), [os.urandom(size), os.urandom(size // 2)]
            found = bytearray(sum(map(len, data)))
            answer = workers.ask(
                ECHO, request, data, receive=lambda head, into=found: [memoryview(into)]
            ).head
            assert (answer, bytes(found)) == (request, b"".join(data))
        assert workers.cpu > 0


def test_a_module_of_the_current_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("signal", "os", "json", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if os.path.isabs(entry)])
    monkeypatch.chdir(tmp_path)
    with Workers(1, [ECHO]) as workers:
        assert workers.ask(ECHO, b"works", receive=lambda head: ()).head == b"works"


def test_the_file_gives_back_what_a_large_request_took() -> None:
    with Workers(1, [KEEP], keep=100_000) as workers:
        worker = workers.ask(KEEP, b"1", [bytes(300_000)]).worker
        assert worker._file is not None
        assert os.fstat(worker._file.fileno()).st_size == 0


def test_a_pipe_that_breaks_in_the_words_of_windows_is_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers(1, [PID]) as workers:
        pid = int(workers.ask(PID, b"").head)
        psutil.Process(pid).kill()
        write, refused = os.write, []

        def refuse(descriptor: int, data: bytes) -> int:
            if not refused:
                refused.append(descriptor)
                raise OSError(errno.EINVAL, "Invalid argument")
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", refuse)
        assert int(workers.ask(PID, b"").head) != pid
        assert (len(refused), workers.deaths) == (1, 1)


CLOSED = """
import os, sys
report = os.dup(1)
for descriptor in map(int, sys.argv[1]):
    os.close(descriptor)
from unet_batch.processes import Workers
with Workers(1, [sys.argv[2]]) as workers:
    found = bytearray(3)
    head = workers.ask(sys.argv[2], b"head", [b"abc"], receive=lambda head: [memoryview(found)]).head
os.write(report, head + found)
"""


@pytest.mark.parametrize("closed", ["0", "01", "12", "012"])
def test_an_owner_that_has_closed_its_standard_streams_has_workers(closed: str) -> None:
    command = [sys.executable, "-c", CLOSED, closed, ECHO]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    assert done.stdout == b"headabc"


def test_errors_arrive_as_what_they_are() -> None:
    with Workers(1, [FAIL]) as workers:
        with pytest.raises(ImageTooLarge) as ours:
            workers.ask(FAIL, b"ours")
        assert (ours.value.message, ours.value.hint) == ("a.jpg: large", "smaller")
        assert isinstance(ours.value.__cause__, OSError)
        assert ours.value.__cause__.errno == 5
        with pytest.raises(OSError, match="No space left") as system:
            workers.ask(FAIL, b"system")
        assert system.value.errno == 28
        with pytest.raises(RuntimeError, match="KeyError: 'x'"):
            workers.ask(FAIL, b"")
        assert workers.deaths == 0


def test_what_is_kept_is_found_where_it_is_and_forgotten_with_its_owner() -> None:
    with Workers(2, [KEEP, LOOK]) as workers:
        numbers = [workers.number() for _ in range(2)]
        one, two = (Kept(workers.ask(KEEP, b"%d" % number, [b"abc"]).worker, number) for number in numbers)
        both = [(number, b"abc") for number in numbers]
        assert workers.ask(LOOK, b"", kept=one).head == repr(both).encode()
        del one
        assert workers.ask(LOOK, b"", kept=two).head == repr(both[1:]).encode()


def test_nothing_is_kept_of_a_request_that_fails() -> None:
    with Workers(1, [KEEP, KEEP_AND_FAIL, LOOK]) as workers:
        kept = Kept(workers.ask(KEEP, b"1", [b"abc"]).worker, 1)
        for number in (b"1", b"2"):
            with pytest.raises(OSError, match="No space left"):
                workers.ask(KEEP_AND_FAIL, number, [b"def"])
        assert workers.ask(LOOK, b"", kept=kept).head == repr([(1, b"def")]).encode()


def test_who_asks_for_a_busy_worker_waits_for_it_and_others_take_the_next(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    with Workers(2, [PID, KEEP]) as workers, ThreadPoolExecutor(3) as pool:
        first = workers.ask(KEEP, b"7", [b""]).worker
        kept = Kept(first, 7)
        home = workers.ask(PID, b"", kept=kept).head
        slow = pool.submit(workers.ask, PID, os.fsencode(go_on), kept=kept)
        until(lambda: first not in workers._idle)
        wanting = pool.submit(workers.ask, PID, b"", kept=kept)
        anyone = pool.submit(workers.ask, PID, b"")
        assert anyone.result(PATIENCE).head != home
        go_on.touch()
        assert (slow.result(PATIENCE).head, wanting.result(PATIENCE).head) == (home, home)


def test_what_a_dead_worker_kept_is_asked_of_another(tmp_path: Path) -> None:
    with Workers(1, [PID, LOOK, KEEP]) as workers, ThreadPoolExecutor(2) as pool:
        worker = workers.ask(KEEP, b"3", [b"abc"]).worker
        kept = Kept(worker, 3)
        pid = int(workers.ask(PID, b"", kept=kept).head)
        slow = pool.submit(workers.ask, PID, os.fsencode(tmp_path / "never"), kept=kept)
        asked = tmp_path / "never.asked"
        until(asked.exists)
        looking = pool.submit(workers.ask, LOOK, b"", kept=kept)
        until(lambda: workers._waiting)
        asked.unlink()
        psutil.Process(pid).kill()
        # The second try of what was asked first waits, too: end it, so that the other's turn comes.
        until(asked.exists)
        [child] = [child for child in serving() if child.pid != pid]
        child.kill()
        with pytest.raises(Died):
            slow.result(PATIENCE)
        assert looking.result(PATIENCE).head == b"[]"


def test_a_worker_that_was_killed_costs_time_and_the_second_one_is_the_end_of_it(tmp_path: Path) -> None:
    with Workers(1, [DIE, DIE_ONCE]) as workers:
        assert workers.ask(DIE_ONCE, os.fsencode(tmp_path / "died")).head == b"alive"
        assert workers.deaths == 1
        with pytest.raises(Died) as caught:
            workers.ask(DIE, b"")
        assert caught.value.was_killed
        assert workers.deaths == 3
        assert workers.ask(DIE_ONCE, os.fsencode(tmp_path / "died")).head == b"alive"


def test_nobody_waits_for_ever_when_all_is_closed(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    workers = Workers(1, [PID])
    with ThreadPoolExecutor(3) as pool:
        worker = workers.ask(PID, b"").worker
        working = pool.submit(workers.ask, PID, os.fsencode(go_on))
        until(lambda: not workers._idle)
        waiting = [pool.submit(workers.ask, PID, b"", kept=kept) for kept in (None, Kept(worker, 1))]
        until(lambda: len(workers._waiting) == 2)
        workers.close()
        for each in waiting:
            with pytest.raises(RuntimeError, match="closed"):
                each.result(PATIENCE)
        go_on.touch()
        assert int(working.result(PATIENCE).head)
    assert not serving()
