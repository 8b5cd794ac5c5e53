"""Decode mask files: how they spell ids, and what stands for none.

What the values of a dataset's masks mean is found out in `guess.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import cv2
import numpy as np

from unet_batch.errors import ImageError
from unet_batch.media import images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.media.images import StoredMask
    from unet_batch.types import Pixels

VOID = 255
"""The id of pixels of no class."""
SOFT = "anti-aliased masks"
NO_PIXELS = "objects without pixels"
"""Kinds of remarks on a mask that can be used."""
HALF = 128
"""Of the levels 0 to 255 the first that counts as the class."""
DARK, LIGHT = 16, 240
"""Levels below the first are called black, from the second on white."""
STRAY = 254
"""Stands for values that have no meaning; ids are below."""


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A mask as it was read.

    Attributes:
        ids: uint8 (H, W), VOID where void.
        unexpected: what has no meaning, in words; such a mask can be looked at, not used. Else "".
        remark: kind (SOFT or NO_PIXELS) and details of what a person should know; else two empty strings.
        levels: of a probability of one class, what the file says, uint8 (H, W) of 0 to 255, of which `ids`
            are the cut at half; None of a mask of ids.
    """

    ids: Pixels
    unexpected: str = ""
    remark: tuple[str, str] = ("", "")
    levels: Pixels | None = None


class Masks(Protocol):
    """Where the masks of a dataset come from.

    Attributes:
        lists_images: whether this also says which pictures count, so that others may lie beside them.
    """

    lists_images: ClassVar[bool]

    @property
    def void(self) -> bool:
        """Whether masks may hold pixels of no class."""
        ...

    def decode(self, mask: str) -> Mask:
        """Read one; `mask` is that of a `Pair`. Safe to call from many threads.

        Raises:
            ImageError: it cannot be read; the message begins with `mask`.
        """
        ...


@dataclass(frozen=True)
class Encoding:
    """How mask files spell ids.

    Attributes:
        kind: "grey" for values (palette indices among them), "colour" for RGB.
        table: id, or VOID, by stored value; a colour is the number 0xRRGGBB. Empty where nobody knows.
        between: what values between 0 and the highest of their type are, which count as the class from its
            half on: "edges", a few blurred ones of two-valued masks; "probability", all of them, and `table`
            holds void alone; or "nothing": no such value has a meaning.
        by_look: whether palettes show black and white only, so that white is 1 at any index.
    """

    lists_images: ClassVar[bool] = False

    kind: Literal["grey", "colour"]
    table: Mapping[int, int]
    between: Literal["nothing", "edges", "probability"] = "nothing"
    by_look: bool = False

    @property
    def void(self) -> bool:
        """Whether some value stands for no class."""
        return VOID in self.table.values()

    @cached_property
    def lut(self) -> Pixels:
        """uint8 id by stored value, STRAY where there is none: 64 kB, for colours 16 MB."""
        lut = np.full(1 << (24 if self.kind == "colour" else 16), STRAY, np.uint8)
        lut[list(self.table)] = list(self.table.values())
        return lut

    def decode(self, mask: str) -> Mask:
        """Read a mask file.

        Raises:
            ImageError: it cannot be read, or is coloured where the others hold ids.
        """
        stored = read_values(mask)
        if stored.kind == "colour" and self.kind == "grey":
            what = "probabilities" if self.between == "probability" else "ids"
            raise ImageError(
                f"{mask}: is coloured, other masks hold {what}", hint=f"save it as a grey PNG of {what}"
            )
        if self.between == "probability":
            return self._decode_probability(stored)
        values = stored.values
        if self.kind == "colour":
            values = _as_colours(stored)
        elif stored.kind == "index" and self.by_look:
            look = black_and_white(stored)
            if look is None:
                return Mask(np.zeros(values.shape, np.uint8), "a palette of more than black and white")
            values = look[values]
        elif self.between == "edges" and (stored.full != 255 or values.dtype != np.uint8):
            values = self._as_levels(stored)
        if values.dtype.kind == "f":
            return Mask(np.zeros(values.shape, np.uint8), _describe_range(values, stored.full))
        # cv2 looks bytes up four times as fast: 0.7 instead of 3.2 ms for 1280x1918.
        ids = (
            cast("Pixels", cv2.LUT(values, self.lut[:256])) if values.dtype == np.uint8 else self.lut[values]
        )
        unknown = ids == STRAY
        if not unknown.any():
            return Mask(ids)
        if self.between == "edges" and values.dtype == np.uint8:
            ids[unknown] = values[unknown] >= HALF
        stray = count_values(values[unknown])
        wide = stored.values.dtype != np.uint8  # whose levels are no ids
        if self.between == "edges" and _has_soft_edges(stray, values, 1 if wide else 3):
            return Mask(
                ids, remark=(SOFT, f"{sum(stray.values()):,} of {ids.size:,} pixels between 0 and 255")
            )
        if self.between == "edges" and stored.full > 255:
            return Mask(ids, _describe_range(stored.values, stored.full))
        return Mask(ids, self._describe(stray))

    def _decode_probability(self, stored: StoredMask) -> Mask:
        """Levels from 0 to the highest value of the type, and which of them are void as they are stored."""
        values, full = stored.values, stored.full
        why = "a palette, where a probability is grey" if stored.kind == "index" else ""
        if not full:
            why = f"values from {values.min():,} to {values.max():,} of a type without a highest one"
        if why:
            return Mask(np.zeros(values.shape, np.uint8), why)
        levels = values if values.dtype == np.uint8 and full == 255 else to_levels(values, full)
        ids = np.greater_equal(levels, HALF).view(np.uint8)
        if self.table:
            ids[np.isin(values, list(self.table))] = VOID
        return Mask(ids, levels=levels)

    def _as_levels(self, stored: StoredMask) -> NDArray[Any]:
        """Values of another type than bytes as 0..255 of its range, where that is what they are."""
        values, full = stored.values, stored.full
        if not full:
            return values
        if values.dtype.kind == "u" and full > 1:
            found = set(count_values(values))
            if found <= self.table.keys():  # a mask of bytes that was saved as 16 bits
                return values
            if full < 255 and not found <= {0, full}:  # few bits: ids
                return values
        if 2 * float(values.max(initial=0)) < full:  # nothing would be found: of another range?
            return values
        return to_levels(values, full)

    def _describe(self, stray: Mapping[int, int]) -> str:
        """`value 7 in 31 pixels, ...`: at most four, the commonest first."""
        common = sorted(stray.items(), key=lambda entry: (-entry[1], entry[0]))
        text = ", ".join(f"{format_value(value, self.kind)} in {count:,}" for value, count in common[:4])
        more = f" and {len(common) - 4} more values" if len(common) > 4 else ""
        return f"unexpected {'colour' if self.kind == 'colour' else 'value'} {text} pixels{more}"


def to_levels(values: NDArray[Any], full: int) -> Pixels:
    """Scale 0..full to uint8 0..255, so that half of one is half of the other."""
    return np.rint(values * (255 / full)).astype(np.uint8)


def black_and_white(stored: StoredMask) -> Pixels | None:
    """Which places of a palette are white, uint8 (256,) of 0 and 1; None where it shows more than both.

    Only places that the mask uses are looked at; two shades of black, or of white, may be two ids.
    """
    palette = stored.palette if stored.palette is not None else np.empty((0, 3), np.uint8)
    used = np.flatnonzero(np.bincount(stored.values.ravel(), minlength=256))
    if used.size and used.max() >= len(palette):
        return None
    colours = palette[used]
    dark, light = (colours < DARK).all(1), (colours >= LIGHT).all(1)
    shades = [len(np.unique(colours[side], axis=0)) for side in (dark, light)]
    if not (dark | light).all() or max(shades) > 1:
        return None
    look = np.zeros(256, np.uint8)
    look[used] = light
    return look


def _has_soft_edges(stray: Mapping[int, int], levels: NDArray[Any], least: int) -> bool:
    """Whether stray levels, `least` or more, are the soft edges of a mask of 0 and 255, and no ids."""
    if levels.dtype != np.uint8 or len(stray) < least or max(stray) < HALF:
        return False
    return sum(count for level, count in stray.items() if DARK <= level < LIGHT) < 0.1 * levels.size


def _describe_range(values: NDArray[Any], full: int) -> str:
    """Say which values of a large type have no meaning."""
    low, high = float(values.min()), float(values.max())
    why = ": nothing reaches half" if 2 * high < full else ""
    return f"values from {low:.6g} to {high:.6g}, where its type goes to {full:,}{why}"


def read_values(path: str) -> StoredMask:
    """Read stored values (h, w); colours as 0xRRGGBB, RGB that is grey as grey."""
    stored = images.read_ids(path)
    if stored.kind != "colour":
        return stored
    red, green, blue = (stored.values[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return replace(stored, values=red, kind="grey")
    return replace(stored, values=_pack(stored.values))


def _pack(colours: Pixels) -> NDArray[np.int32]:
    """RGB (..., 3) as numbers 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _as_colours(stored: StoredMask) -> NDArray[Any]:
    """A mask among coloured ones as 0xRRGGBB: of a palette its colours, of grey the grey."""
    if stored.kind == "colour":
        return stored.values
    if stored.kind == "index" and stored.palette is not None:
        table = np.zeros((256, 3), np.uint8)
        table[: len(stored.palette)] = stored.palette
        return np.asarray(_pack(table)[stored.values])
    levels = stored.values if stored.full == 255 else to_levels(stored.values, stored.full or 255)
    return np.asarray(levels.astype(np.int32) * 0x010101)


def shown_colours(stored: StoredMask, values: Iterable[float]) -> frozenset[int] | None:
    """The colours in a viewer, as 0xRRGGBB, of the values of a mask; None where its type is silent."""
    if stored.kind == "jpeg" or not stored.full:
        return None
    return frozenset(_as_colours(replace(stored, values=np.array(list(values)))).tolist())


def count_values(values: NDArray[Any]) -> dict[int, int]:
    """How often each value occurs."""
    if values.dtype.itemsize <= 2:  # no sorting: 4 instead of 33 ms for 1280x1918
        counts = np.bincount(values.ravel())
        found = np.flatnonzero(counts)
        return dict(zip(found.tolist(), counts[found].tolist(), strict=True))
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def format_value(value: int, kind: str) -> str:
    return f"[{value >> 16}, {value >> 8 & 255}, {value & 255}]" if kind == "colour" else str(value)
