"""Ctrl-C and SIGTERM: the first lets a command finish what it has begun, a second ends it now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

INTERRUPTS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
"""Signals of a person or a batch system that wants an end."""
HANGUP: tuple[int, ...] = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()
"""The signal of a lost terminal, where there is one."""


@contextmanager
def finish_first(
    stop: Callable[[str], object],
    notice: str,
    *,
    numbers: Collection[int] = INTERRUPTS,
    again: Collection[int] = INTERRUPTS,
) -> Iterator[None]:
    """While this is open, the first signal calls `stop` with its name, and a second quits at once.

    What is ignored stays so: a shell starts its background jobs without Ctrl-C, `nohup` without SIGHUP.

    Args:
        stop: asks for an end; safe in a signal handler.
        notice: a line for the person who has sent the first; "" where another process says it.
        numbers: the signals to handle.
        again: those of them that quit as a second one; launchers repeat theirs, people do not.
    """
    stopping = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal stopping
        if stopping:
            if number in again:
                quit_now(number)
            return
        stopping = True
        stop(signal.Signals(number).name)
        if not notice:
            return
        # Not through a stream: the signal may have struck while this thread was writing to it.
        # Of two live bars the next drawing covers the line above them, so that one is empty.
        with suppress(OSError):  # a full disk must not turn a wish into a failure
            os.write(2, f"\n{notice}\n{chr(10) if os.isatty(2) else ''}".encode())

    # Python sets handlers in the main thread only; elsewhere whoever runs it has its own.
    own = numbers if threading.current_thread() is threading.main_thread() else ()
    before = {
        number: handler for number in own if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quit_now(number: int) -> None:
    """End the process as a shell expects after this signal; files are only ever renamed into place whole."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # the cursor that a bar has hidden
    os._exit(128 + number)
