"""The first signal lets a command finish, a second ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.helpers.waiting import PATIENCE
from unet_batch.cli.signals import finish_first

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals between processes")

SCRIPT = """
import os, signal, sys
from unet_batch.cli.signals import finish_first
names = []
with finish_first(names.append, "finishing", again=(signal.SIGINT,)):
    for name in sys.argv[1:]:
        os.kill(os.getpid(), signal.Signals[name])
    print(",".join(names))
"""


def run(*names: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)  # type: ignore[call-overload,no-any-return]


def test_the_first_is_only_noted() -> None:
    done = run("SIGTERM")
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "\nfinishing\n")


def test_live_bars_do_not_cover_the_notice() -> None:
    """Two bars are drawn anew from one line above the cursor."""
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", SCRIPT, "SIGTERM"],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        timeout=PATIENCE,
    )
    assert os.read(main, 100).replace(b"\r", b"") == b"\nfinishing\n\n"
    os.close(main)
    os.close(terminal)


def test_a_second_quits_at_once() -> None:
    done = run("SIGTERM", "SIGINT")
    assert (done.returncode, done.stdout) == (130, "")


def test_what_a_launcher_repeats_does_not() -> None:
    done = run("SIGINT", "SIGTERM", "SIGTERM")
    assert (done.returncode, done.stdout) == (0, "SIGINT\n")


def test_what_is_ignored_stays_so() -> None:
    done = run("SIGINT", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "\n")


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with finish_first(lambda name: None, ""):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_set_none() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with finish_first(lambda name: None, ""):
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
