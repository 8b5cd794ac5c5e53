"""Decode in separate processes, so that a picture that crashes its decoder fails alone.

    with Decoders(workers=4) as decoders:
        picture = decoders.read("photo.jpg")  # from any thread; same pixels, same errors as images.read

A decoder is a fresh interpreter that imports `images` and nothing heavier (no torch), started when it is
first needed. It decodes one picture at a time. Requests and answers are lines of JSON on its stdin and
stdout. Pixels come through an anonymous file that both sides hold open (a memfd; elsewhere an unlinked
temporary file; on Windows there is none, and they follow the answer on stdout): it has no name, so however
either side dies, nothing is left. It is written and read, not mapped: where a mapped file shrinks, its reader
crashes as well.

Not `multiprocessing`: its children run the caller's script again, which needs a guard against that; its
messages are pickles; its shared memory has names, which outlive a kill -9.

No sandbox: a decoder may do whatever its owner may. What is contained are crashes and hangs.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader, FileIO
from threading import Condition
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from unet_batch import errors
from unet_batch.errors import DecoderCrashed, ImageError, RunError, UnetBatchError, UsageError
from unet_batch.media.images import MAX_PIXELS, Picture
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.types import Pixels, Size

TIME_LIMIT = 120.0
"""Default limit of seconds for one picture."""

# Starting may fail by accident: a moment without memory, a signal to all processes of a job.
_STARTS = 3
_READY = b"ready\n"
_TIMED_OUT = -signal.SIGALRM if hasattr(signal, "SIGALRM") else None

# The alarm ends a start that hangs. Modules are looked for where the owner finds them, not in the current
# folder, which may be a stranger's.
_CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if hasattr(signal, "alarm"):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.alarm(120)
sys.path[:] = {path!r}
from unet_batch.media.isolation import _serve
_serve({reader!r}, {time_limit!r}, {shared!r})
"""


class Decoders:
    """A pool of decoder processes in place of `images.read`; a context manager that ends them.

    A decoder that dies is replaced. A picture is blamed for that only if its decoder was a fresh one: another
    one may have been spoiled by the picture before, or was killed for its neighbours' hunger for memory, so
    the picture is tried once more.

    Decoders ignore Ctrl-C and SIGTERM, which are their owner's business, and end as soon as they find it
    gone.

    Args:
        workers: the most processes; each holds 20 to 30 MB of its own beside its picture.
        time_limit: seconds for one picture. Windows enforces none.
        reader: what decodes, as "module:function" with the signature of `images.read`; for tests.
        shared: pixels come through a file that both sides hold open, not through a pipe.
        keep: bytes that this file keeps between pictures, as new pages would have to be cleared first; those
            of a huge picture are given back.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        workers: int,
        *,
        time_limit: float = TIME_LIMIT,
        reader: str = "unet_batch.media.images:read",
        shared: bool = os.name == "posix",
        keep: int = 64 * 2**20,
    ) -> None:
        if workers < 1 or not 0 < time_limit < 1e6:
            raise UsageError(
                f"{workers} decoders, {time_limit} s each picture: 1 or more, and above 0 s, expected"
            )
        self._workers = workers
        self._time_limit = time_limit
        self._reader = reader
        self._shared = shared
        self._keep = keep
        self._change = Condition()
        self._idle: list[_Decoder] = []
        self._busy = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, those at work after their picture; nothing can be read afterwards."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.end()

    def read(self, path: str, *, at_least: Size | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
        """Decode a picture file as `images.read` does.

        Safe to call from many threads, which wait for a decoder to be free.

        Raises:
            DecoderCrashed: the picture ended its decoder, or was not decoded within the time limit.
            ImageError, ImageTooLarge: as for `images.read`; of its causes, only the number of an `OSError`
                arrives.
            RunError: no decoder can be started.
        """
        with self._change:
            self._change.wait_for(lambda: self._closed or self._busy < self._workers)
            if self._closed:
                raise RuntimeError("these decoders are closed")
            self._busy += 1
            decoder = self._idle.pop() if self._idle else None
        try:
            while True:
                fresh = decoder is None
                decoder = decoder or self._start()
                try:
                    return decoder.read(path, at_least, max_pixels)
                except _Died as death:
                    decoder = None
                    if fresh or death.code == _TIMED_OUT:
                        raise _crash_error(path, death, self._time_limit) from None
        except MemoryError as error:
            raise ImageError(f"{path}: not enough memory to decode this picture") from error
        finally:
            with self._change:
                self._busy -= 1
                if decoder and decoder.alive and not self._closed:
                    self._idle.append(decoder)
                    decoder = None
                self._change.notify()
            if decoder:
                decoder.end()

    def _start(self) -> _Decoder:
        """Start a process; try again a few times, and raise RunError if none starts."""
        reason = ""
        for _ in range(_STARTS):
            try:
                return _Decoder(self._reader, self._time_limit, self._shared, self._keep)
            except _Died as death:
                reason = death.said or f"it {_describe_exit(death.code)}"
            except OSError as error:
                reason = str(error)
        raise RunError(
            f"cannot start a decoder process ({sys.executable}): {reason}", hint="decode without isolation"
        )


class _Died(Exception):
    """The process of a decoder has ended.

    Attributes:
        code: its exit code; minus the signal if there was one.
        said: the last line of its stderr.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(code, said)
        self.code = code
        self.said = said


class _Decoder:
    """One process, used by one thread at a time. Raises _Died or OSError if it does not start."""

    def __init__(self, reader: str, time_limit: float, shared: bool, keep: int) -> None:
        self._keep = keep
        self._stderr = _anonymous_file()
        self._shared = _anonymous_file() if shared else None
        try:
            self._process = self._spawn(reader, time_limit)
        except BaseException:
            self._close_files(self._stderr, self._shared)
            raise
        self._requests = cast("FileIO", self._process.stdin)
        self._answers = cast("BufferedReader", self._process.stdout)
        try:
            if self._answers.readline(100) != _READY:
                raise self._death()
        except BaseException:
            self._kill()
            raise

    def _spawn(self, reader: str, time_limit: float) -> subprocess.Popen[bytes]:
        """Start a fresh interpreter that runs `_serve`."""
        shared = None if self._shared is None else self._shared.fileno()
        path = [entry for entry in sys.path if isinstance(entry, str)]
        code = _CODE.format(path=path, reader=reader, time_limit=time_limit, shared=shared)
        return subprocess.Popen(
            # The names of files must mean the same
            [sys.executable, "-X", f"utf8={sys.flags.utf8_mode}", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=() if shared is None else (shared,),
            # Out of reach of the terminal's Ctrl-C even before it can be ignored.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            # Or NumPy starts threads for all cores, in each decoder.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    @property
    def alive(self) -> bool:
        """Whether it can decode another picture."""
        return self._process.returncode is None

    def read(self, path: str, at_least: Size | None, max_pixels: int) -> Picture:
        """Have the process decode a picture; raise what its reader raises, or _Died."""
        try:
            answer, arrays = self._ask({"path": path, "at_least": at_least, "max_pixels": max_pixels})
        except BaseException:  # also Ctrl-C: an answer that comes late would be taken for the next picture's
            self._kill()
            raise
        if arrays:
            height, width = answer["size"]
            exif, dpi = base64.b64decode(answer["exif"]), answer["dpi"]
            missing = arrays.get("missing")
            return Picture(
                arrays["pixels"],
                (height, width),
                missing=None if missing is None else missing.view(np.bool_),
                alpha=arrays.get("alpha"),
                metadata=Metadata(exif, (dpi[0], dpi[1]) if dpi else None),
                notes=tuple(answer["notes"]),
            )
        error: UnetBatchError = vars(errors)[answer["error"]](answer["message"], hint=answer["hint"])
        if number := answer["errno"]:  # tells whether another try may help
            raise error from OSError(number, os.strerror(number))
        raise error

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Pixels]]:
        """Send a request; return the answer and, unless it is an error, the arrays of the picture by name."""
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError as error:  # a broken pipe
            raise self._death() from error
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            return answer, {}
        arrays: dict[str, Pixels] = {
            name: np.empty(shape, np.uint8) for name, shape in answer["arrays"].items()
        }
        source: FileIO | BufferedReader = self._answers
        if self._shared is not None:
            source = self._shared
            source.seek(0)
        for array in arrays.values():
            view, at = array.data.cast("B"), 0
            while at < len(view):  # 2 GB at a time is the most that Linux reads
                if not (count := source.readinto(view[at:])):
                    raise self._death()
                at += count
        if self._shared is not None and sum(array.nbytes for array in arrays.values()) > self._keep:
            self._shared.truncate(0)
        return answer, arrays

    def _death(self) -> _Died:
        """Collect the exit code and the last line of stderr of a process that has closed its pipes."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._stderr.seek(0)
        lines = self._stderr.read(100_000).decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        self._kill()
        return _Died(self._process.returncode, "".join(filter(str.isprintable, said))[:200])

    def end(self) -> None:
        """End an idle process; harmless if it has ended already."""
        self._close_files(self._requests)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._kill()

    def _kill(self) -> None:
        """Kill the process if it is alive, and close all files."""
        if self.alive:
            self._process.kill()
            self._process.wait()
        self._close_files(self._requests, self._answers, self._stderr, self._shared)

    @staticmethod
    def _close_files(*files: FileIO | BufferedReader | None) -> None:
        """Close files, whatever state they are in."""
        for file in files:
            if file is not None:
                with suppress(OSError):  # what it held for a process that is gone
                    file.close()


def _anonymous_file() -> FileIO:
    """Create a file without a name; in memory, where the system can do that."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):
            return FileIO(os.memfd_create("unet-batch"), "r+")
    return tempfile.TemporaryFile(buffering=0)


def _describe_exit(code: int) -> str:
    """Say how a process ended: "crashed (SIGSEGV)"."""
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"crashed ({signal.Signals(-code).name})"
    return f"crashed (signal {-code})"


def _crash_error(path: str, death: _Died, time_limit: float) -> DecoderCrashed:
    """Make the error of a picture whose decoder has died."""
    hint = (
        "the file is damaged, or made to do harm: leave it out, or save it anew with the program that made it"
    )
    if death.code == _TIMED_OUT:
        return DecoderCrashed(f"{path}: not decoded within {time_limit:g} s", hint=hint)
    if hasattr(signal, "SIGKILL") and death.code == -signal.SIGKILL:
        return DecoderCrashed(
            f"{path}: its decoder was killed (SIGKILL), as the system does when memory runs out",
            hint="take fewer workers, or set a lower limit of pixels",
        )
    said = death.said and f": {death.said}"
    return DecoderCrashed(f"{path}: its decoder {_describe_exit(death.code)}{said}", hint=hint)


# In the decoder's process -----------------------------------------------------------------------------------


def _serve(reader: str, time_limit: float, shared: int | None) -> None:
    """Answer requests until the owner closes the pipe, or is gone."""
    # The libraries' stdout is our stderr: what they print must not be taken for an answer.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(ImportError):
        import resource

        # A thousand crashes would fill the disk with core files.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    module, _, name = reader.partition(":")
    read = getattr(importlib.import_module(module), name)
    cv2.setNumThreads(1)
    file = None if shared is None else FileIO(shared, "r+")
    _set_alarm(0)
    answers.write(_READY)
    answers.flush()
    for line in requests:
        # So stderr holds the words of this picture, and does not grow.
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
        _set_alarm(time_limit)
        answer, rest = _answer(read, json.loads(line), file)
        _set_alarm(0)  # before the owner must be waited for, who may have been stopped
        answers.write(json.dumps(answer).encode() + b"\n")
        for view in rest:
            answers.write(view)
        answers.flush()
        del rest
    os._exit(0)  # nothing is left to tidy up, and none of the libraries gets a chance to crash over it


def _set_alarm(seconds: float) -> None:
    """Have the kernel end this process after some seconds, whatever it does then; 0 cancels that."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer(
    read: Callable[..., Picture], request: dict[str, Any], file: FileIO | None
) -> tuple[dict[str, Any], list[memoryview]]:
    """Decode; return the answer and the bytes that follow it: pixels, where there is no file for them."""
    path, at_least = request["path"], request["at_least"]
    try:
        picture = read(path, at_least=at_least and tuple(at_least), max_pixels=request["max_pixels"])
        arrays = {
            name: np.ascontiguousarray(array).view(np.uint8)
            for name in ("pixels", "missing", "alpha")
            if (array := getattr(picture, name)) is not None
        }
        answer = {
            "arrays": {name: array.shape for name, array in arrays.items()},
            "size": picture.size,
            "exif": base64.b64encode(picture.metadata.exif).decode("ascii"),
            "dpi": picture.metadata.dpi,
            "notes": picture.notes,
        }
        views = [array.data.cast("B") for array in arrays.values()]
        if file is None:
            return answer, views
        try:
            file.seek(0)
            for view in views:
                while view:
                    view = view[file.write(view) :]
            file.truncate()  # a large picture before it leaves nothing
        except OSError as error:
            raise ImageError(f"{path}: no space to hand over its pixels: {error.strerror}") from error
    except UnetBatchError as error:
        return _failure(type(error).__name__, error.message, error.hint, error), []
    except Exception as error:  # noqa: BLE001 - the owner gets it, in the words of `segmenter.as_error`
        hint = "unexpected; please report it with the file"
        return _failure("ImageError", f"{path}: {type(error).__name__}: {error}", hint, error), []
    return answer, []


def _failure(kind: str, message: str, hint: str, error: BaseException) -> dict[str, Any]:
    """Make the answer that stands for an error, with the number of the OSError among its causes."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    return {"error": kind, "message": message, "hint": hint, "errno": cause and cause.errno}
