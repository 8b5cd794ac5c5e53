"""Look at some masks of a dataset: which values they hold, and how these look.

What the values mean is found out in `guess.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.datasets.encoding import (
    DARK,
    HALF,
    LIGHT,
    black_and_white,
    count_values,
    read_values,
    shown_colours,
    to_levels,
)
from unet_batch.errors import ImageError

if TYPE_CHECKING:
    from unet_batch.types import Pixels

_SAMPLE = 256  # masks that a guess rests on


@dataclass(frozen=True, eq=False)
class Looked:
    """What one mask holds.

    Attributes:
        path: the file.
        values: how often each occurs; a colour is the number 0xRRGGBB.
        kind, full: see `StoredMask`.
        look: of a palette that shows black and white only, which places are white, see `black_and_white`.
        white_is_zero: see `StoredMask`.
        shown: the colours that a viewer shows, as 0xRRGGBB; None where JPEG or an odd type leaves that open.
        flat: pixels of bytes, neither black nor white, whose neighbour to the right has the same value.
    """

    path: str
    values: Counter[int]
    kind: str
    full: int
    look: Pixels | None
    white_is_zero: str
    shown: frozenset[int] | None = None
    flat: int = 0

    def by_look(self) -> Looked:
        """The same, with white as 1 and black as 0, wherever the palette has them."""
        if self.look is None:
            return self
        seen = Counter[int]()
        for place, count in self.values.items():
            seen[int(self.look[place])] += count
        return replace(self, values=seen)

    def as_levels(self) -> Looked:
        """The same, with 0 to the highest that its type can hold as 0 to 255."""
        levels = to_levels(np.array(list(self.values), np.float64), self.full)
        scaled = Counter[int]()
        for level, count in zip(levels.tolist(), self.values.values(), strict=True):
            scaled[level] += count
        return replace(self, values=scaled)


@dataclass(frozen=True, eq=False)
class Sample:
    """Some masks, looked at to find out what all of them hold.

    Attributes:
        files: those that could be read.
        error: of one that could not; else None.
    """

    files: tuple[Looked, ...]
    error: ImageError | None

    @property
    def shows_black_and_white(self) -> bool:
        """Whether all palettes show black and white only, and both of them occur."""
        palettes = [file for file in self.files if file.kind == "index"]
        if any(file.look is None for file in palettes):
            return False
        return {0, 1} <= {value for file in palettes for value in file.by_look().values}

    @property
    def holds_probabilities(self) -> bool:
        """Whether these are probabilities of one class, each from 0 to the highest that its type can hold.

        Then somewhere half of it is reached. Of bytes that is not enough, they may be numbers of objects or
        of classes: these are few, or of one value from pixel to pixel.
        """
        levels, found = Counter[int](), set[float]()
        for file in self.files:
            if file.kind not in ("grey", "jpeg") or not file.full:
                return False
            levels += file.as_levels().values
            found.update(file.values)
        if max(levels, default=0) < HALF:
            return False
        if all(file.full not in (15, 255) for file in self.files):
            return True
        between = sum(count for level, count in levels.items() if DARK <= level < LIGHT)
        flat = sum(file.flat for file in self.files)
        return len(found) >= 16 and (between < 0.1 * levels.total() or flat < 0.5 * between)

    @property
    def hint_at_probabilities(self) -> str:
        """What to do if these are probabilities, as the end of a hint; "" if they cannot be."""
        hint = '; if these are probabilities of one class: values = "probability" in classes.toml'
        return hint if self.holds_probabilities else ""

    def by_look(self) -> Sample:
        """The same, each palette by its look."""
        return replace(self, files=tuple(file.by_look() for file in self.files))

    def remarks(self, by_look: bool) -> str:
        """What a viewer shows otherwise than it is read here, as the end of a sentence; "" if nothing."""
        white = Counter(file.white_is_zero for file in self.files)
        turned = sum(
            file.look is not None and any(file.look[place] != place for place in file.values)
            for file in self.files
        )
        said = ""
        if turned and by_look:
            said += f"; {turned:,} have their palette's white elsewhere than at 1, and white counts"
        if count := white["ignored"]:
            said += f"; {count:,} are TIFF to be shown with 0 as white, and their numbers count"
        if count := white["obeyed"]:
            said += f"; {count:,} are TIFF of bits to be shown with 0 as white, and are read so"
        return said


def look_at(masks: Sequence[str], count: int = _SAMPLE) -> Sample:
    """Read at most `count` of some masks, spread over all of them."""

    def look(path: str) -> Looked | ImageError:
        try:
            stored = read_values(path)
        except ImageError as error:
            return error
        shades = black_and_white(stored) if stored.kind == "index" else None
        values = Counter(count_values(stored.values))
        flat, left = 0, stored.values[:, :-1]
        if stored.full == 255 and left.dtype == np.uint8:
            flat = int(np.count_nonzero((left >= DARK) & (left < LIGHT) & (left == stored.values[:, 1:])))
        shown = shown_colours(stored, values)
        return Looked(path, values, stored.kind, stored.full, shades, stored.white_is_zero, shown, flat)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, masks[:: -(-len(masks) // count)]))
    errors = [each for each in found if isinstance(each, ImageError)]
    files = tuple(each for each in found if isinstance(each, Looked))
    return Sample(files, errors[-1] if errors else None)
