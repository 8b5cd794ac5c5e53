"""Processes to be killed for real, forked from a server that has imported everything they need.

Starting an interpreter that imports torch takes seconds; a test that kills fifty would spend its time there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = (
    "unet_batch.run.execute",
    "unet_batch.testing",
    "unet_batch.training.loop",
    "kornia.augmentation",
)


class Forked:
    """A process that runs `program(*arguments)`, with the methods of `subprocess.Popen` that tests use.

    Args:
        program: a function at the top of a module; its exit code is 0, or that of the `SystemExit` it raises.
        arguments: for it.
        errors: a file that stderr is added to; stdout goes nowhere.
    """

    def __init__(self, program: Callable[..., object], *arguments: Any, errors: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._process = context.Process(target=_run, args=(program, arguments, str(errors)))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, minus the signal if one ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code once it has ended."""
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.send_signal(signal.SIGKILL)


def _run(program: Callable[..., object], arguments: tuple[Any, ...], errors: str) -> None:
    # The real descriptors: libraries write there, too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    program(*arguments)


def command_line(*arguments: str) -> None:
    """`unet-batch` with these arguments, on one thread."""
    import torch

    from unet_batch.cli import main

    torch.set_num_threads(1)
    main(list(arguments))
