"""Who hears of a run, and what stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this module before it may afford the others
    from unet_batch.run.plan import RunPlan
    from unet_batch.run.report import RunReport
    from unet_batch.types import Failure, Item


class Observer:
    """Hears what a run does. Nothing here does anything: override what you want to hear.

    All methods are called in the thread that called `execute` or `watch`; what they raise ends the run.
    """

    @property
    def wants_events(self) -> bool:
        """Whether `event` does anything: if not, none is made for each item."""
        return getattr(self.event, "__func__", None) is not Observer.event

    def start(self, plan: RunPlan) -> None:
        """The run begins, and it is known what is left to do; for each batch of a watch."""

    def wait(self, owner: str) -> None:
        """Another run, described by `owner`, holds the output folder, and this one begins to wait for it."""

    def outcome(self, item: Item, failure: Failure | None) -> None:
        """An item is done, or has failed. In the order of the plan, but what was tried again comes last."""

    def note(self, item: Item, notes: Sequence[str]) -> None:
        """People should know something of how an item that is done was read."""

    def frame(self, item: Item, done: int, total: int | None) -> None:
        """So many frames of a clip, or rows of a picture that is read in bands, are done.

        Of a total that may not be known.
        """

    def batch(self, report: RunReport) -> None:
        """A batch of a watch has ended, in which at least one item was tried."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Anything that belongs into a log, as values that JSON can hold; see `--log-json`."""


class Stop:
    """A wish that a run end soon. Calling it is safe in a signal handler and in any thread.

    Attributes:
        reason: name of the signal; "" while nobody has asked.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._halt: Callable[[], None] | None = None

    def __call__(self, reason: str = "SIGINT") -> None:
        """Read no more; what is in flight is finished."""
        self.reason = reason
        if self._halt is not None:
            self._halt()

    def watch(self, halt: Callable[[], None]) -> None:
        """Call this when asked to stop, or now if that has happened."""
        self._halt = halt
        if self.reason:
            halt()

    def sleep(self, seconds: float) -> None:
        """Wait, but not once asked to stop."""
        until = time.monotonic() + seconds
        while not self.reason and (left := until - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
