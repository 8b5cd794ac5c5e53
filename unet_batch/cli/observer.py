"""What `run` and `watch` do while a run goes on: progress on the screen, events in a log, signals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from unet_batch.cli.progress import RunProgress
from unet_batch.cli.signals import finish_first
from unet_batch.cli.text import printable
from unet_batch.errors import OutputError
from unet_batch.run.observe import Observer, Stop

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.cli.screen import Screen
    from unet_batch.run.plan import RunPlan
    from unet_batch.run.report import RunReport
    from unet_batch.types import Failure, Item

_NOTICE = "stopping  what has begun is finished; again to quit now"


class RunObserver(Observer):
    """Shows a run on a screen, logs its events, and lets signals stop it; used as a context manager.

    Args:
        screen: where to.
        log_json: file for the events, `-` for stdout; None logs nothing.

    Raises:
        OutputError: the file cannot be opened.
    """

    def __init__(self, screen: Screen, log_json: str | None) -> None:
        self.screen, self.stop = screen, Stop()
        self._progress = RunProgress(screen)
        self._log = None if log_json is None else EventLog(log_json, screen)
        self._signals = ExitStack()
        self._is_listening = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signals.close()
        self._progress.close()
        if self._log is not None:
            self._log.close()

    def listen(self) -> None:
        """Handle signals from now on: the first one finishes what has begun."""
        if not self._is_listening:
            self._is_listening = True
            self._signals.enter_context(finish_first(self.stop, _NOTICE))

    def start(self, plan: RunPlan) -> None:
        """Show how much is left, and begin to handle signals."""
        self._progress.start(plan)
        self.listen()

    def wait(self, owner: str) -> None:
        """Say that another run writes to the folder."""
        self.screen.line("waiting", f"{owner} is writing to this folder")

    def outcome(self, item: Item, failure: Failure | None) -> None:
        """Count an item that has ended."""
        self._progress.advance(item, failure)

    def note(self, item: Item, notes: Sequence[str]) -> None:
        """Tell what people should know of an item that is done."""
        self._progress.note(item, notes)

    def frame(self, item: Item, done: int, total: int | None) -> None:
        """A frame of a clip has ended."""
        self._progress.frame(item, done, total)

    def batch(self, report: RunReport) -> None:
        """`watch` has done what had arrived."""
        self.screen.batch(report)

    @property
    def wants_events(self) -> bool:
        """Whether there is a log."""
        return self._log is not None

    def event(self, event: Mapping[str, object]) -> None:
        """Something happened that the log wants to know."""
        if self._log is not None:
            self._log.write(event)


class EventLog:
    """Appends events to a file, a line of JSON each; one that cannot be written any more ends no run.

    Of stdout `cli.command` sees to that, whatever is written there.

    Args:
        target: the file; `-` for stdout.
        screen: where to say that no more can be written.

    Raises:
        OutputError: the file cannot be opened.
    """

    def __init__(self, target: str, screen: Screen) -> None:
        self.target, self.screen = target, screen
        self._is_broken = False
        try:
            self._stream: TextIO = sys.stdout if target == "-" else open(target, "a", encoding="ascii")  # noqa: SIM115 - closed by close
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"{target} cannot be written: {reason}", hint="choose another file for --log-json"
            ) from error

    def write(self, event: Mapping[str, object]) -> None:
        """Add an event."""
        if self._is_broken:
            return
        try:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
        except OSError as error:
            self._is_broken = True
            # What is still buffered must not fail again when the stream is closed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self.screen.warn(f"no more events in {printable(self.target)}: {error.strerror or error}", "")

    def close(self) -> None:
        """Close the file; stdout stays open."""
        if self._stream is not sys.stdout:
            self._stream.close()
