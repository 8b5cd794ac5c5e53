"""Items that several devices share: who has which, and what comes back from one that has died.

An item is in the queue, or out with one device. What was out with a process that died is suspect, and handed
out one by one: so the item that ends a process is found.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from threading import Condition
from typing import TYPE_CHECKING, Any

from unet_batch.pipeline import StageStats
from unet_batch.run.report import add_stats
from unet_batch.types import Item

if TYPE_CHECKING:
    from unet_batch.run.session import Told

_LOOK = 0.2  # seconds between two looks at whether there is more to do


class Seat:
    """What is known of a device.

    Attributes:
        out: what is out with it, by key.
        wanted: how many items more it should have.
        done, failed: items of which it has told that.
        deaths: how often its process died.
        in_a_row: failures of the device itself, with no success between.
        dropped: why it is left out; "" while it is not.
        is_up: its process has opened a segmenter, and not died since.
        stages: what each stage has done.
        cpu: seconds of processor time.
    """

    def __init__(self, name: str, dropped: str = "", *, is_up: bool = False) -> None:
        self.name, self.is_up = name, is_up
        self.out: dict[str, Item] = {}
        self.wanted = 1
        self.done = self.failed = self.deaths = 0
        self.in_a_row = 0  # failures of the device itself, with no success between
        self.dropped = dropped
        self._before: dict[str, StageStats] = {}  # of processes that have died
        self._cpu_before = 0.0
        self.stages: dict[str, StageStats] = {}
        self.cpu = 0.0

    def note(self, told: Told) -> None:
        """Take note of figures."""
        self.wanted = told.wanted
        self.stages = {name: replace(stats) for name, stats in self._before.items()}
        for stats in told.stages:
            add_stats(self.stages.setdefault(stats.name, StageStats(stats.name, stats.workers)), stats)
        self.cpu = self._cpu_before + told.cpu

    def as_dict(self) -> dict[str, Any]:
        """For reports: values that JSON can hold."""
        network = self.stages.get("infer")
        return {
            "name": self.name,
            "done": self.done,
            "failed": self.failed,
            "died": self.deaths,
            "busy": round(network.busy, 3) if network is not None else 0.0,
            "streams": network.workers if network is not None else 1,
            **({"left_out": self.dropped} if self.dropped else {}),
        }

    def note_death(self) -> None:
        """Its process is gone."""
        self.is_up, self.wanted = False, 1
        self.deaths += 1
        self.in_a_row += 1
        self._before, self._cpu_before = self.stages, self.cpu


class SharedQueue:
    """Items that nobody has yet; used by all threads.

    Args:
        items: in the order in which they are handed out.
        one_by_one: a device gets the next when it is through with the last.
    """

    def __init__(self, items: Sequence[Item], *, one_by_one: bool) -> None:
        self._items = deque(items)
        self._suspects: deque[Item] = deque()  # were out with a process that died
        self._deaths: Counter[str] = Counter()
        self._refused: set[tuple[str, str]] = set()  # key and device
        self._changed = Condition()
        self._out = 0
        self._one_by_one = one_by_one
        self.closed = False

    @property
    def left(self) -> int:
        """How many nobody has."""
        return len(self._items) + len(self._suspects)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to hand out, and will be nothing."""
        return self.closed or not (self._out or self._items or self._suspects)

    def take(self, seat: Seat, seats: int) -> tuple[Item, ...] | None:
        """Items for a device, perhaps none; None when there will be no more. Waits while there is nothing.

        Args:
            seat: the device.
            seats: how many share what is left.
        """
        with self._changed:
            while not self.closed:
                taken: list[Item] = []
                if self._suspects and not seat.out:
                    taken.append(self._suspects.popleft())
                elif not self._is_alone(seat):
                    most = min(seat.wanted, -(-len(self._items) // seats))
                    if self._one_by_one:
                        most = min(1 - len(seat.out), most)
                    taken += self._pick(seat, most)
                if taken or seat.out:
                    seat.out.update((item.key, item) for item in taken)
                    self._out += len(taken)
                    return tuple(taken)
                if self.is_over:
                    break
                self._changed.wait(_LOOK)
            self._changed.notify_all()
            return () if seat.out else None

    def _is_alone(self, seat: Seat) -> bool:
        """Whether a device has an item that nothing else may be beside."""
        return any(key in self._deaths for key in seat.out)

    def _pick(self, seat: Seat, most: int) -> list[Item]:
        """Up to so many items that the device has not failed for."""
        taken: list[Item] = []
        passed: list[Item] = []
        while self._items and len(taken) < most:
            item = self._items.popleft()
            refused = (item.key, seat.name) in self._refused
            (passed if refused else taken).append(item)
        self._items.extendleft(reversed(passed))
        return taken

    def settle(self, seat: Seat, key: str) -> None:
        """It is known what became of an item."""
        with self._changed:
            if seat.out.pop(key, None) is not None:
                self._out -= 1
                self._changed.notify_all()

    def refuse(self, seat: Seat, key: str) -> bool:
        """A device failed for an item; returns whether another one is to try it, which happens once."""
        with self._changed:
            if any(known == key for known, _ in self._refused) or key not in seat.out:
                return False
            self._refused.add((key, seat.name))
            self._items.appendleft(seat.out.pop(key))
            self._out -= 1
            self._changed.notify_all()
            return True

    def forgive(self) -> None:
        """A device is left out: what others have failed for, they may have to try again."""
        with self._changed:
            self._refused.clear()
            self._changed.notify_all()

    def take_back(self, seat: Seat, *, suspect: bool) -> list[Item]:
        """What was out with a device comes back; returns what has ended a process for the second time."""
        twice: list[Item] = []
        with self._changed:
            for item in seat.out.values():
                if not suspect:
                    self._items.appendleft(item)
                    continue
                self._deaths[item.key] += 1
                if self._deaths[item.key] > 1:
                    twice.append(item)
                else:
                    self._suspects.append(item)
            self._out -= len(seat.out)
            seat.out.clear()
            self._changed.notify_all()
        return twice
