"""Glob patterns that a walk through folders follows, one component after the other."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence

MAGIC = re.compile(r"[*?\[]")
"""What makes a name a pattern."""


class Pattern:
    """A glob pattern, matched one component at a time, so that a walk turns back where nothing can match.

    A place is a number of components matched so far; because of `**`, a path can be at several.

    Args:
        parts: the components.

    Attributes:
        start, end: the places before the first and behind the last component.
        names_extension: it ends in an extension, such as `*.dat`, which is asked for then.

    Raises:
        re.error: it is not a pattern.
    """

    def __init__(self, parts: list[str]) -> None:
        flags = re.IGNORECASE if os.name == "nt" else 0
        self.tests = [
            None if part == "**" else re.compile(fnmatch.translate(part), flags).match for part in parts
        ]
        self.start, self.end = self._spread({0}), len(parts)
        extension = os.path.splitext(parts[-1])[1]
        # `*.dat` asks for just these files
        self.names_extension = bool(extension) and not MAGIC.search(extension)

    def step(self, places: frozenset[int], name: str) -> frozenset[int]:
        """The places behind a component of this name; none where nothing below it can match."""
        after: set[int] = set()
        for place in places:
            test = self.tests[place]
            if test is None:
                after.add(place)
            elif test(name):
                after.add(place + 1)
        return self._spread(after)

    def matches(self, steps: Sequence[str]) -> bool:
        """Whether the pattern is of a whole path, given its components, or of a folder on the way to it."""
        places = self.start
        for step in steps:
            if self.end in places:
                return True
            places = self.step(places, step)
        return self.end in places

    def _spread(self, places: set[int]) -> frozenset[int]:
        for place, test in enumerate(self.tests):
            if test is None and place in places:
                places.add(place + 1)  # `**` stands for no folder, too
        return frozenset(places)
