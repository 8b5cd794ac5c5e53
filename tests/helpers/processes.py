"""Processes forked from a server that has imported everything they need.

Starting an interpreter that imports torch takes seconds, and tests that start hundreds would spend their time
there. They are real processes all the same: with output, an exit code and memory of their own, and killed for
real.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.waiting import PATIENCE, until

PRELOADED = (
    "tests.helpers.runs",
    "unet_batch.cli",
    "unet_batch.cli.screen",
    "unet_batch.inference.backends.torch",
    "unet_batch.run.execute",
    "unet_batch.training.loop",
    "unet_batch.training.report",
    "unet_batch.testing",
    "kornia.augmentation",
    # 3 s of processor time and 1: the first optimizer and the first curves of a training import them
    "torch._dynamo",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "tests.helpers.frozen",  # the last one
)


class Forked:
    """A process that runs `program(*arguments)`, with the methods of `subprocess.Popen` that tests use.

    Args:
        program: a function at the top of a module; its exit code is 0, or that of the `SystemExit` it raises.
        arguments: for it.
        output, errors: files that stdout and stderr are added to; None throws them away.
        cwd: the folder to run in; None takes this process's, as it takes its environment.
    """

    def __init__(
        self,
        program: Callable[..., object],
        *arguments: Any,
        output: Path | None = None,
        errors: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        # Windows does not fork: there, a fresh interpreter each time
        context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        streams = [str(path or os.devnull) for path in (output, errors)]
        surroundings = (dict(os.environ), str(cwd or Path.cwd()), streams)
        self._output, self._errors = output, errors
        self._process = context.Process(target=_run, args=(program, arguments, *surroundings))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal if one ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has written to `output` and `errors`, once it has ended; "" where these are None.

        Raises:
            TimeoutError: it has not ended after so many seconds.
        """
        if self.wait(timeout) is None:
            raise TimeoutError(f"still running after {timeout:g} s")
        out, errors = (path.read_text() if path else "" for path in (self._output, self._errors))
        return out, errors

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code once it has ended; None if it has not after so many seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()


def _run(
    program: Callable[..., object],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    cwd: str,
    streams: list[str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    # The real descriptors: libraries write there, too.
    for descriptor, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    program(*arguments)


def command_line(*arguments: str) -> None:
    """`unet-batch` with these arguments."""
    from unet_batch.cli import main

    main(list(arguments), prog_name="unet-batch")


def one_thread(*arguments: str) -> None:
    """`unet-batch` with these arguments, its arithmetic on one thread."""
    import torch

    torch.set_num_threads(1)
    command_line(*arguments)


def run_together(folder: Path, *arguments: str) -> list[str]:
    """Run `unet-batch` in two processes that train together as under torchrun, but forked.

    torchrun's three interpreters each import PyTorch, which takes longer than a small training.

    Args:
        folder: for what they write to stdout and stderr.
        arguments: of the command.

    Returns:
        What each of them printed.
    """
    port = _free_port()
    errors, outputs = folder / "errors.txt", [folder / f"printed-{rank}.txt" for rank in range(2)]
    for path in outputs:
        path.unlink(missing_ok=True)
    processes = [
        Forked(one_of_two, rank, port, *arguments, output=output, errors=errors)
        for rank, output in enumerate(outputs)
    ]
    try:
        assert [process.wait(PATIENCE) for process in processes] == [0, 0], errors.read_text()
    finally:  # one whose partner has died waits for it
        for process in processes:
            process.kill()
    return [output.read_text() for output in outputs]


def _free_port() -> int:
    """A port that is free, and none of those that the system gives to connections."""
    while True:
        port = random.Random(os.urandom(8)).randrange(15_000, 30_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def one_of_two(rank: int, port: int, *arguments: str) -> None:
    """`one_thread` with what torchrun tells those that it starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    one_thread(*arguments)


def killed(
    happened: Callable[[], bool], seconds: float, program: Callable[..., object], *arguments: Any
) -> None:
    """A program that is killed so many seconds after something has happened.

    It does so to itself: on a busy machine, another process could be too late.
    """

    def kill() -> None:
        until(happened, 0.001)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    program(*arguments)


def has_lines(path: Path, number: int) -> bool:
    """Whether a file has so many lines."""
    return path.exists() and path.read_bytes().count(b"\n") >= number


def has_files(folder: Path, number: int) -> bool:
    """Whether there are so many PNG files in a folder."""
    return sum(1 for _ in folder.glob("*.png")) >= number


def is_newer(path: Path, before: int) -> bool:
    """Whether a file was written after a time in nanoseconds."""
    return path.exists() and path.stat().st_mtime_ns > before


def is_running(pid: int) -> bool:
    """Whether a process, of whomever, is still at work."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_the_background(*arguments: str) -> None:
    """`unet-batch` with these arguments, as a shell without job control starts it after `&`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command_line(*arguments)


def with_nothing_installed(program: Callable[..., object], *arguments: str) -> None:
    """A program to whose `doctor` no library is installed: to import each takes half a minute."""
    from unet_batch.doctor import checks, libraries

    checks.probe = lambda module: libraries.Library()
    program(*arguments)


def without_reader(*arguments: str) -> None:
    """`unet-batch` with these arguments, its stdout a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of the process
    command_line(*arguments)
