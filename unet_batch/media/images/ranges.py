"""Which stored numbers become black and white: numbers of any type to uint8, rounded once.

A microscope that writes 12 bits into 16 leaves most of these unused, and a scanner's Hounsfield units begin
below zero: what is dark and bright in a picture is not always what its type could hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np

from unet_batch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

    Parts = Callable[[], Iterable[tuple[NDArray[Any], NDArray[np.bool_] | None]]]
    """Gives a picture's values in parts, and which of them are invalid, anew each time it is called."""

PERCENTILES = (0.5, 99.5)
"""What `percentile` makes black and white: 1 value in 200 is darker, and 1 brighter."""

_AT_ONCE = 1 << 20  # numbers: 8 MB as float64
_LITTLE = 16  # a picture of more than 8 bits that uses no more than 1 in so many of its levels is told of
_UNUSED = "its {bits}-bit values use less than a sixteenth of their range: --range percentile shows all of it"


@dataclass(frozen=True)
class Range:
    """Which of a picture's values become 0 and 255; those between in proportion, those beyond clipped.

    Attributes:
        kind: "auto", what the table of `media.images` says: unsigned integers of up to 16 bits by their type,
            floats in 0..1 as they are, all others by their minimum and maximum; "dtype", all that the type
            can hold, and floats from 0 to 1; "percentile", PERCENTILES of the values of all bands together,
            or minimum and maximum where these are the same; "fixed", `ends`.
        ends: (low, high) of "fixed", in the file's own units.
    """

    kind: Literal["auto", "dtype", "percentile", "fixed"] = "auto"
    ends: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def parse(cls, text: str) -> Range:
        """`auto`, `dtype`, `percentile`, or two numbers: `-100,300`.

        Raises:
            UsageError: it is none of these.
        """
        if text in ("auto", "dtype", "percentile"):
            return cls(cast("Literal['auto', 'dtype', 'percentile']", text))
        try:
            low, high = map(float, text.split(","))
        except ValueError:
            low = high = math.nan
        if not (low < high and math.isfinite(high - low)):
            raise UsageError(
                f"range {text!r}: auto, dtype, percentile, or two numbers A,B with A below B expected",
                hint="for example 0,4095 for 12 bits, or -100,300",
            )
        return cls("fixed", (low, high))

    def __str__(self) -> str:
        """What `parse` takes."""
        return self.kind if self.kind != "fixed" else ",".join(map(_shortest, self.ends))

    def apply(self, values: NDArray[Any], bits: int = 0, invalid: NDArray[np.bool_] | None = None) -> Pixels:
        """Bring numbers to uint8.

        Args:
            values: (h, w) or (h, w, c), of any kind but complex numbers.
            bits: of integers, as their file declares them; 0 takes those of their type.
            invalid: bool as `values`: numbers that stand for no value, as those that are not finite do. They
                do not decide where black and white are, and become 0 where not all values are unsigned
                integers of 8 or 16 bits: an orthophoto's nodata of 255 is also the red of a roof.

        Returns:
            uint8 of the same shape; `values` itself where that is what they are. A picture of one value is 0,
            where its values decide.
        """
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        low, high = self._ends_of_type(values.dtype, bits) or self._ends_of_values(
            values.dtype, lambda: [(values, invalid)]
        )
        kind, small = values.dtype.kind, values.itemsize <= 2 and values.dtype.kind in "bui"
        if values.dtype == np.uint8 and (low, high) == (0, 255):
            return values
        if low >= high:
            return np.zeros(values.shape, np.uint8)
        if small:
            unsigned = np.dtype(f"u{values.itemsize}")
            every = np.arange(1 << 8 * values.itemsize, dtype=unsigned)
            table = _scale(every if kind == "b" else every.view(values.dtype), low, high)
            levels: Pixels = table[values.view(unsigned)]
            if invalid is not None and kind == "i":
                levels[invalid] = 0
            return levels
        out = np.zeros(values.shape, np.uint8)
        for rows in _rows(values):
            valid = _is_valid(values[rows], None if invalid is None else invalid[rows])
            np.copyto(out[rows], _scale(values[rows], low, high), where=valid)
        return out

    def settle(self, dtype: np.dtype[Any], bits: int, parts: Parts) -> Range:
        """The range whose ends all parts of a picture decide, so that each may be brought to uint8 alone.

        Args:
            dtype, bits: of the values; see `apply`.
            parts: gives them. Not called where the type decides; once for minimum and maximum, and once for
                each two bytes of a value for percentiles, which are exact: so many times the picture is read.

        Returns:
            A fixed one, or itself where the type decides.
        """
        if not self.looks_at_values(dtype, bits):
            return self
        return Range("fixed", self._ends_of_values(dtype, parts))

    def looks_at_values(self, dtype: np.dtype[Any], bits: int = 0) -> bool:
        """Whether more than the type of a picture's values decides what is black and white in it."""
        return self._ends_of_type(dtype, bits) is None

    def _ends_of_type(self, dtype: np.dtype[Any], bits: int) -> tuple[float, float] | None:
        bits = bits or (1 if dtype.kind == "b" else 8 * dtype.itemsize)
        if self.kind == "fixed":
            return self.ends
        if self.kind == "dtype" or (self.kind == "auto" and dtype.kind in "bu" and bits <= 16):
            half = float(1 << (bits - 1))
            return {"f": (0.0, 1.0), "i": (-half, half - 1)}.get(dtype.kind, (0.0, 2 * half - 1))
        return None

    def _ends_of_values(self, dtype: np.dtype[Any], parts: Parts) -> tuple[float, float]:
        if self.kind == "percentile":
            return _percentiles(dtype, parts)
        low, high = _extremes(parts)
        return (0.0, 1.0) if dtype.kind == "f" and low >= 0 and high <= 1 else (low, high)


AUTO = Range()
"""What is done where nobody says anything."""


def trained_range(training: Mapping[str, Any]) -> tuple[Range, str]:
    """The range in which a model was trained, by what its spec says of that; and why, unless it is `AUTO`."""
    trained = training.get("range")
    if trained is None:
        return AUTO, ""
    try:
        return Range.parse(str(trained)), f"range {trained}: that of its training"
    except UsageError:
        return AUTO, f"range auto: {trained!r}, in which the model was trained, is not known here"


def scale_channels(
    values: NDArray[Any], bits: int, invalid: NDArray[np.bool_] | None, ranges: Sequence[Range]
) -> Pixels:
    """Scale chosen channels (h, w, n) to uint8, each by itself: a channel is the same beside any others.

    Args:
        values, bits, invalid: as `Range.apply` takes them.
        ranges: of each channel.
    """
    levels = np.empty(values.shape, np.uint8)
    for number, value_range in enumerate(ranges):
        part = None if invalid is None else invalid[..., number]
        levels[..., number] = value_range.apply(np.ascontiguousarray(values[..., number]), bits, part)
    return levels


class Usage:
    """How much of the range of its type a picture uses, whose parts are added."""

    def __init__(self) -> None:
        self._low, self._high, self._full = math.inf, -math.inf, 0

    def add(self, values: NDArray[Any], full: int, invalid: NDArray[np.bool_] | None = None) -> None:
        """Take in values, of which their type can hold up to `full`; of signed and float nothing is said."""
        if values.dtype.kind == "u" and 255 < full < 65536:
            valid = values if invalid is None else values[~invalid]
            if valid.size:
                self._full = full
                self._low, self._high = min(self._low, int(valid.min())), max(self._high, int(valid.max()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know: that most of it is unused; nothing of a picture of one value."""
        if 0 < self._high - self._low < (self._full + 1) / _LITTLE:
            return (_UNUSED.format(bits=self._full.bit_length()),)
        return ()


def _shortest(number: float) -> str:
    """The shortest text that is read as the same number."""
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def _is_valid(values: NDArray[Any], invalid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = np.isfinite(values)
    return valid if invalid is None else valid & ~invalid


def _rows(values: NDArray[Any]) -> Iterator[slice]:
    """Rows of about `_AT_ONCE` numbers."""
    step = max(1, _AT_ONCE * len(values) // max(1, values.size))
    return (slice(top, top + step) for top in range(0, len(values), step))


def _valid(parts: Parts) -> Iterator[NDArray[Any]]:
    """The values that count, some at a time."""
    for values, invalid in parts():
        for rows in _rows(values):
            some, wrong = values[rows], None if invalid is None else invalid[rows]
            plain = wrong is None and values.dtype.kind != "f"
            found = some.reshape(-1) if plain else some[_is_valid(some, wrong)]
            if found.size:
                yield found


def _scale(values: NDArray[Any], low: float, high: float) -> Pixels:
    with np.errstate(all="ignore"):
        levels: Pixels = (
            np.rint((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        )
        return levels


def _extremes(parts: Parts) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for values in _valid(parts):
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high


def _percentiles(dtype: np.dtype[Any], parts: Parts) -> tuple[float, float]:
    """PERCENTILES of valid values: the smallest of which so many are not larger.

    By histograms of two bytes of the values at a time, the upper ones first: those of the next two are of
    the values that agree with the percentile so far. Memory is that of a part, whatever the picture's size.
    cv2 counts in a fifth of the time of `numpy.bincount`.
    """
    width, digit = 8 * dtype.itemsize, min(16, 8 * dtype.itemsize)
    found, ranks = [0, 0, 0, 0], list[int]()
    for shift in range(width - digit, -1, -digit):
        counts = {upper: np.zeros(1 << digit, np.int64) for upper in found}
        for values in _valid(parts):
            keys = _ordered(values)
            for upper, count in counts.items():
                same = keys if not ranks else keys[keys >> (shift + digit) == upper]
                count += _histogram((same >> shift if shift else same).astype(f"u{digit // 8}", copy=False))
        if not ranks:
            total = int(counts[0].sum())
            if not total:
                return 0.0, 0.0
            ranks = [1, *(max(1, math.ceil(total * share / 100)) for share in PERCENTILES), total]
        for place, upper in enumerate(found):
            ends = np.cumsum(counts[upper])
            lower = int(np.searchsorted(ends, ranks[place]))
            ranks[place] -= int(ends[lower] - counts[upper][lower])
            found[place] = upper << digit | lower
    least, low, high, most = _numbers(found, dtype)
    return (low, high) if low < high else (least, most)


def _histogram(values: NDArray[Any]) -> NDArray[np.int64]:
    """How often each number of 8 or 16 bits occurs: at most 2 ** 24 are counted exactly."""
    levels = 1 << 8 * values.itemsize
    if not values.size:
        return np.zeros(levels, np.int64)
    found = cv2.calcHist([np.ascontiguousarray(values)[None]], [0], None, [levels], [0, levels])
    counts: NDArray[np.int64] = found.reshape(-1).astype(np.int64)
    return counts


def _ordered(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the values."""
    keys: NDArray[Any] = values.view(f"u{values.itemsize}")
    sign = keys.dtype.type(1 << (8 * values.itemsize - 1))
    if values.dtype.kind == "i":
        keys = keys ^ sign
    if values.dtype.kind == "f":
        keys = np.where(keys & sign, ~keys, keys | sign)
    return keys


def _numbers(keys: list[int], dtype: np.dtype[Any]) -> list[float]:
    """The values of which `_ordered` has made these."""
    found = np.array(keys, f"u{dtype.itemsize}")
    sign = found.dtype.type(1 << (8 * dtype.itemsize - 1))
    if dtype.kind == "i":
        found = found ^ sign
    if dtype.kind == "f":
        found = np.where(found & sign, found ^ sign, ~found)
    return [float(value) for value in (found if dtype.kind == "b" else found.view(dtype))]
