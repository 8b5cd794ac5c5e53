"""Which folders of a tree are looked into, where several runs share the work: each lists its own only.

A tree is opened level by level. Once a level has enough folders for all to get a fair share, whole folders
are dealt, by their names: this run looks into its own branches, and what lies in the levels above everybody
sees. A tree that never has so many is looked through by everybody, and single files are dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from unet_batch.files.naming import folder_key, is_like_output

T = TypeVar("T")


class Branches:
    """The branches of a tree that one of several listings looks into.

    Args:
        takes: whether a branch is this run's, by its `naming.folder_key`, or an item, by its key.
        enough: folders of a level that are enough to deal them.
        depth: of the level whose folders are dealt, where that is known; 0 if none are.

    Attributes:
        depth: the same; 1 is just below the top. None as long as no level had enough.
        left_out: how many branches are listed by others alone.
    """

    def __init__(
        self,
        takes: Callable[[str], bool] = lambda branch: True,
        enough: int = 0,
        depth: int | None = None,
    ) -> None:
        self._takes, self._enough = takes, enough
        self.depth, self.left_out = depth, 0

    def narrow(self, level: Sequence[T], depth: int, name: Callable[[T], str]) -> Sequence[T]:
        """The folders of a level that are looked into.

        A folder that is called like an output is in any case, as it decides on the keys of files beside it.

        Args:
            level: all folders `depth` below the top that are known.
            depth: 1 just below the top.
            name: gives the `/`-separated name of one below the top.
        """
        if self.depth is None and len(level) >= self._enough:
            self.depth = depth
        if depth != self.depth:
            return level
        ours = [folder for folder in level if self._is_wanted(name(folder))]
        self.left_out += len(level) - len(ours)
        return ours

    def _is_wanted(self, name: str) -> bool:
        # The name itself: of outputs it may be no folder of many items, but the frames of a clip of that key.
        ours = self._takes(folder_key(name)) or self._takes(name)
        return ours or any(map(is_like_output, name.split("/")))
