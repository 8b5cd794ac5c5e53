"""A worker as its owner sees it: start it, ask it, see how it ended."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from typing import IO, TYPE_CHECKING

from unet_batch import errors
from unet_batch.errors import UnetBatchError
from unet_batch.processes.channel import ANSWER, READY, REQUEST, Channel

if TYPE_CHECKING:
    from typing_extensions import Buffer

TIMED_OUT = -signal.SIGALRM if hasattr(signal, "SIGALRM") else None
"""Exit code of a worker that took longer than it may; see `serve.limit_time`."""

# Of NumPy: or it starts threads for all cores, in each worker. Of glibc: blocks of megabytes are kept for the
# next picture: mapped anew each time, they took a quarter of what a 1280x1918 photo takes.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}

# Of malloc.h; https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _NEVER = -1, -4, -1

# Modules are looked for where the owner finds them, not in the current folder, which may be a stranger's:
# `-c` puts it first, so nothing but `sys`, which is built in, is imported before. The alarm ends a start that
# hangs.
_CODE = """
import sys
sys.path[:] = {path!r}
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if hasattr(signal, "alarm"):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.alarm(120)
from unet_batch.processes.serve import serve
serve({functions!r}, {shared!r}, {lifeline!r})
"""


def keep_memory() -> None:
    """Let this process keep all memory that it frees; does nothing without glibc.

    glibc gives blocks of megabytes back at once, and the system clears them again for whatever is next: in a
    training a tenth of the processor time of a step (docs/log/2026-11-28.md).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)


class Died(Exception):
    """A worker has ended over a request, twice unless it took too long.

    Attributes:
        code: its exit code; minus the signal if there was one.
        said: the last line of its stderr.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(code, said)
        self.code = code
        self.said = said

    @property
    def how(self) -> str:
        """How it ended: "crashed (SIGSEGV)"."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        with suppress(ValueError):
            return f"crashed ({signal.Signals(-self.code).name})"
        return f"crashed (signal {-self.code})"

    @property
    def was_killed(self) -> bool:
        """Whether it was killed by SIGKILL, as the system does when memory runs out."""
        return hasattr(signal, "SIGKILL") and self.code == -signal.SIGKILL


class Worker:
    """One process, used by one thread at a time. Raises Died or OSError if it does not start.

    Args:
        functions, shared, keep: as in `Workers`.
        environment: variables beside the owner's.
    """

    def __init__(
        self,
        functions: Sequence[str],
        shared: bool,
        keep: int,
        environment: Mapping[str, str] = _ENVIRONMENT,
    ) -> None:
        self._keep = keep
        self._environment = environment
        self.forgotten: deque[int] = deque()  # numbers that it need not keep
        self._stderr = _anonymous_file()
        self._file = _anonymous_file() if shared else None
        self._lifeline: int | None = None
        try:
            self._process = self._spawn(functions)
        except BaseException:
            self._close_files()
            raise
        requests, answers = self._pipes()
        self._channel = Channel(
            answers.fileno(), requests.fileno(), None if self._file is None else self._file.fileno()
        )
        try:
            if self._channel.read(len(READY)) != READY:
                raise self._death()
        except EOFError:
            raise self._death() from None
        except BaseException:
            self._kill()
            raise

    def _spawn(self, functions: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a fresh interpreter that runs `serve`."""
        file = None if self._file is None else self._file.fileno()
        theirs = None
        if sys.platform == "linux":
            theirs, self._lifeline = os.pipe()
            theirs = _away_from_standard(theirs)
        path = [entry for entry in sys.path if isinstance(entry, str)]
        code = _CODE.format(path=path, functions=tuple(functions), shared=file, lifeline=theirs)
        try:
            return subprocess.Popen(
                # The names of files must mean the same
                [sys.executable, "-X", f"utf8={sys.flags.utf8_mode}", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                pass_fds=[fd for fd in (file, theirs) if fd is not None],
                # Out of reach of the terminal's Ctrl-C even before it can be ignored.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                env={**os.environ, **self._environment},
            )
        finally:
            if theirs is not None:
                os.close(theirs)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """The process as the system knows it."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked anything more."""
        return self._process.returncode is None

    def ask(
        self,
        function: bytes,
        request: bytes,
        data: Sequence[Buffer],
        receive: Callable[[bytes], Sequence[memoryview]] | None,
    ) -> tuple[bytes, float]:
        """Ask for something: the answer, and the processor seconds it took; raise what it raised, or Died."""
        try:
            views = [memoryview(part).cast("B") for part in data]
            forgotten = b"".join(
                [self.forgotten.popleft().to_bytes(8, "little") for _ in range(len(self.forgotten))]
            )
            sizes = len(function), len(forgotten), len(request), sum(map(len, views))
            message = b"".join((REQUEST.pack(*sizes), function, forgotten, request))
            self._channel.send(message, self._channel.lay(views))
            failed, length, size, cpu = ANSWER.unpack(self._channel.read(ANSWER.size))
            answer = self._channel.read(length)
            if not failed:
                views = list(receive(answer)) if receive is not None else []
                if sum(map(len, views)) != size:
                    raise RuntimeError(f"{size} bytes came from a worker, which are not those expected")
                self._channel.read_data(views)
        except EOFError:
            raise self._death() from None
        except BaseException:  # also Ctrl-C: an answer that comes late would be taken for the next request's
            self._kill()
            raise
        if self._file is not None and max(size, sizes[-1]) > self._keep:
            os.ftruncate(self._file.fileno(), 0)
        if failed:
            raise _read_error(answer)
        return answer, cpu

    def _death(self) -> Died:
        """Collect the exit code and the last line of stderr of a process that has closed its pipes."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._stderr.seek(0)
        lines = self._stderr.read(100_000).decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        self._kill()
        return Died(self._process.returncode, "".join(filter(str.isprintable, said))[:200])

    def abort(self) -> None:
        """Kill the process, from any thread: who is asking it hears that it has died."""
        self._process.kill()

    def end(self) -> None:
        """End an idle process; harmless if it has ended already."""
        with suppress(OSError):
            self._pipes()[0].close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._kill()

    def _kill(self) -> None:
        """Kill the process if it is alive, and close all files."""
        if self.alive:
            self._process.kill()
            self._process.wait()
        self._close_files(*self._pipes())

    def _close_files(self, *files: IO[bytes]) -> None:
        """Close files, whatever state they are in."""
        for file in (*files, self._stderr, self._file):
            if file is not None:
                with suppress(OSError):  # what it held for a process that is gone
                    file.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def _anonymous_file() -> FileIO:
    """Create a file without a name; in memory, where the system can do that."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):
            return FileIO(_away_from_standard(os.memfd_create("unet-batch")), "r+")
    return tempfile.TemporaryFile(buffering=0)


def _away_from_standard(descriptor: int) -> int:
    """Move a descriptor that is 0, 1 or 2 where a caller has closed its own: a worker's own go there."""
    if descriptor > 2:
        return descriptor
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def _read_error(answer: bytes) -> Exception:
    """The error that a worker has answered with."""
    kind, message, hint, number = json.loads(answer)
    if kind == "OSError":
        return OSError(number, message)
    if not (isinstance(found := vars(errors).get(kind), type) and issubclass(found, UnetBatchError)):
        return RuntimeError(message)
    error = found(message, hint=hint)
    if number:  # tells whether another try may help
        error.__cause__ = OSError(number, os.strerror(number))
    return error
