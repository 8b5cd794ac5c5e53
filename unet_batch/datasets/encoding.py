"""Decode mask files: what their values mean, from classes.toml or from the values themselves.

classes.toml lies beside the folders of images and masks. `id` (the class's place in the file, unless given)
and `color` are what masks hold; which of the two, the masks show.

    void = 255                  # ignored in training; also [254, 255], or colours such as [[0, 0, 0]]
    [[class]]
    name = "road"
    color = [128, 64, 128]
    id = 3

One class alone is the foreground: 1 or 255 in the masks unless it has an id or a color, and 0 (black) is the
background. Of a palette mask the index counts, never its colour.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import cv2
import numpy as np

from unet_batch.errors import ImageError, UsageError
from unet_batch.media import images
from unet_batch.media.render import palette
from unet_batch.types import ClassTable, Colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

VOID = 255
"""The id of pixels of no class."""
SOFT = "anti-aliased masks"
NO_PIXELS = "objects without pixels"
"""Kinds of remarks on a mask that can be used."""
_SAMPLE = 256  # masks that a guess rests on
_STRAY = 254  # stands for values that have no meaning


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A mask as it was read.

    Attributes:
        ids: uint8 (H, W), VOID where void.
        unexpected: what has no meaning, in words; such a mask can be looked at, not used. Else "".
        remark: kind (SOFT or NO_PIXELS) and details of what a person should know; else two empty strings.
    """

    ids: Pixels
    unexpected: str = ""
    remark: tuple[str, str] = ("", "")


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
        table: id, or VOID, by stored value; a colour is the number 0xRRGGBB.
        threshold: of two-valued masks, the value from which others count as the class, as blurred edges need;
            else None.
    """

    lists_images: ClassVar[bool] = False

    kind: Literal["grey", "colour"]
    table: Mapping[int, int]
    threshold: int | None = None

    @property
    def void(self) -> bool:
        """Whether some value stands for no class."""
        return VOID in self.table.values()

    @cached_property
    def lut(self) -> Pixels:
        """uint8 id by stored value, _STRAY where there is none: 64 kB, for colours 16 MB."""
        lut = np.full(1 << (24 if self.kind == "colour" else 16), _STRAY, np.uint8)
        lut[list(self.table)] = list(self.table.values())
        return lut

    def decode(self, mask: str) -> Mask:
        """Read a mask file.

        Raises:
            ImageError: it cannot be read, or is coloured where the others hold ids.
        """
        values, kind = _read_values(mask)
        if kind == "colour" and self.kind == "grey":
            raise ImageError(
                f"{mask}: is coloured, other masks hold ids", hint="save it as a grey PNG of ids"
            )
        if kind != "colour" and self.kind == "colour":
            values = np.minimum(values, 255).astype(np.int32) * 0x010101
        # cv2 looks bytes up four times as fast: 0.7 instead of 3.2 ms for 1280x1918.
        ids = (
            cast("Pixels", cv2.LUT(values, self.lut[:256])) if values.dtype == np.uint8 else self.lut[values]
        )
        unknown = ids == _STRAY
        if not unknown.any():
            return Mask(ids)
        stray = _count_values(values[unknown])
        if self.threshold is not None:
            ids[unknown] = values[unknown] >= self.threshold
        if self._has_soft_edges(stray, ids.size):
            return Mask(
                ids, remark=(SOFT, f"{sum(stray.values()):,} of {ids.size:,} pixels between 0 and 255")
            )
        return Mask(ids, self._describe(stray))

    def _has_soft_edges(self, stray: Mapping[int, int], pixels: int) -> bool:
        """Whether stray values are the soft edges of a mask of 0 and 255, and not ids among them."""
        if self.threshold is None or len(stray) < 3 or max(stray) < self.threshold:
            return False
        return sum(count for value, count in stray.items() if 16 <= value < 240) < 0.1 * pixels

    def _describe(self, stray: Mapping[int, int]) -> str:
        """`value 7 in 31 pixels, ...`: at most four, the commonest first."""
        common = sorted(stray.items(), key=lambda entry: (-entry[1], entry[0]))
        text = ", ".join(f"{_format_value(value, self.kind)} in {count:,}" for value, count in common[:4])
        more = f" and {len(common) - 4} more values" if len(common) > 4 else ""
        return f"unexpected {'colour' if self.kind == 'colour' else 'value'} {text} pixels{more}"


def _read_values(path: str) -> tuple[NDArray[Any], str]:
    """Read stored values (h, w) and their kind; colours as 0xRRGGBB, RGB that is grey as grey."""
    values, kind = images.read_ids(path)
    if kind != "colour":
        return values, kind
    red, green, blue = (values[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red, "grey"
    return red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue, kind


def _count_values(values: NDArray[Any]) -> dict[int, int]:
    """How often each value occurs."""
    if values.dtype.itemsize <= 2:  # no sorting: 4 instead of 33 ms for 1280x1918
        counts = np.bincount(values.ravel())
        found = np.flatnonzero(counts)
        return dict(zip(found.tolist(), counts[found].tolist(), strict=True))
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _format_value(value: int, kind: str) -> str:
    return f"[{value >> 16}, {value >> 8 & 255}, {value & 255}]" if kind == "colour" else str(value)


def infer_encoding(toml: str, masks: Sequence[str]) -> tuple[ClassTable, Encoding, str]:
    """Work out classes and encoding, and why, from classes.toml if there is one and from some masks.

    Raises:
        UsageError: classes.toml is wrong, or missing where the values cannot be guessed.
        ImageError: no mask can be read.
    """
    sample = masks[:: -(-len(masks) // _SAMPLE)]
    histograms: list[tuple[Counter[int], str]] = []

    def histogram(path: str) -> tuple[Counter[int], str] | ImageError:
        try:
            values, kind = _read_values(path)
        except ImageError as error:
            return error
        return Counter(_count_values(values)), kind

    failed = None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(histogram, sample):
            if isinstance(result, ImageError):
                failed = result
            else:
                histograms.append(result)
    if failed and not histograms:
        raise failed
    files, kinds = [values for values, _ in histograms], {kind for _, kind in histograms}
    basis = f"{len(histograms):,} of {len(masks):,} masks looked at"
    if os.path.exists(toml):
        classes, encoding, why = _from_toml(toml, files, kinds)
        return classes, encoding, f"{why} ({basis})"
    if "colour" in kinds:
        common = sum(
            (values for values, kind in histograms if kind == "colour"), Counter[int]()
        ).most_common()
        shown = ", ".join(_format_value(value, "colour") for value, _ in common[:8]) + ", ..." * (
            len(common) > 8
        )
        raise UsageError(
            f"{masks[0]}: masks hold {len(common):,} colours: {shown}", hint=f"name each of them in {toml}"
        )
    guess, why = _guess(files, "jpeg" in kinds)
    if guess is None:
        raise UsageError(
            f"{masks[0]}: masks hold {why}", hint=f"save masks as 8-bit ids, or name each value in {toml}"
        )
    count = max(id for id in guess.table.values() if id != VOID) + 1
    names = ("foreground",) if count <= 2 else tuple(f"class{id}" for id in range(count))
    return ClassTable(names, palette(len(names))), guess, f"{why} ({basis})"


def _guess(files: Sequence[Counter[int]], lossy: bool) -> tuple[Encoding | None, str]:
    """Guess the encoding of grey masks by the values of each; with the reason, for it or against any."""
    counts = sum(files, Counter[int]())
    values = set(counts)
    top = max(values - {VOID}, default=0)
    if values <= {0, 1}:
        return Encoding("grey", {0: 0, 1: 1}), "masks hold 0 and 1: one class, called foreground"
    if values <= {0, 255}:
        return Encoding("grey", {0: 0, 255: 1}, 128), "masks hold 0 and 255: one class, called foreground"
    if values == {0, 1, 255}:
        if any({1, 255} <= set(file) for file in files):
            return Encoding(
                "grey", {0: 0, 1: 1, 255: VOID}
            ), "masks hold 0, 1 and 255: one class, called foreground, and void"
        return Encoding(
            "grey", {0: 0, 1: 1, 255: 1}
        ), "some masks hold 0 and 1, others 0 and 255: one class, called foreground"
    extreme = (
        sum(count for value, count in counts.items() if value < 16 or 240 <= value < 256) / counts.total()
    )
    # Up to 20 ids and 255 would not be
    smooth = lossy or (len(values) > 4 and any(64 <= value < 192 for value in values))
    if extreme > 0.9 and 240 <= max(values) < 256 and smooth:
        soft = 1 - (counts[0] + counts[255]) / counts.total()
        edges = f"soft edges (JPEG or anti-aliasing, {soft:.1%} of the pixels)"
        why = f"masks hold 0 and 255 with {edges}: above 127 is foreground"
        return Encoding("grey", {0: 0, 255: 1}, 128), why
    if top >= _STRAY:
        return None, f"values up to {top:,}: numbers of objects, not of classes?"
    if top > 32 and len(values) < top / 4:
        return None, f"the values {', '.join(map(str, sorted(values)))}, too far apart to be ids"
    if sorted(map(len, files))[len(files) // 2] > 64:
        return None, f"{len(values)} different values: photos, or ids blurred by JPEG?"
    table, why = (
        {id: id for id in range(top + 1)},
        f"masks hold ids from 0 to {top}: {top + 1} classes without names",
    )
    return (
        (Encoding("grey", {**table, 255: VOID}), why + "; 255 is void")
        if VOID in values
        else (Encoding("grey", table), why)
    )


def _from_toml(
    path: str, files: Sequence[Counter[int]], kinds: Container[str]
) -> tuple[ClassTable, Encoding, str]:
    """Read classes.toml; the sample of masks only says whether they hold ids or colours."""
    colour = "colour" in kinds
    hint = (
        '[[class]] name = "road" color = [128, 64, 128] id = 3, each on a line of its own; void = 255 above '
        "them"
    )
    try:
        document = load_toml(path)
        entries = document["class"]
        names = tuple(str(entry["name"]) for entry in entries)
        colours = tuple(
            _colour(entry.get("color", chosen))
            for entry, chosen in zip(entries, palette(len(names)), strict=True)
        )
        key = "color" if colour else "id"
        stored = [
            _pack_rgb(entry["color"]) if colour else int(entry.get("id", place))
            for place, entry in enumerate(entries)
        ]
        listed = document.get("void", [])
        void = listed if isinstance(listed, list) else [listed]
        ignored = [
            _pack_rgb(value) if colour else int(value) for value in void if isinstance(value, list) == colour
        ]
        if not 0 < len(names) < _STRAY or not all(
            0 <= value < 1 << (24 if colour else 16) for value in stored + ignored
        ):
            raise ValueError("1 to 253 classes, ids from 0 to 65535")
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # Tomllib's own is a ValueError
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{path}: {reason}", hint=hint) from error
    if len({*stored, *ignored}) < len(stored) + len(ignored):
        raise UsageError(f"{path}: two classes, or a class and void, have the same {key}", hint=hint)
    kind: Literal["grey", "colour"] = "colour" if colour else "grey"
    why = f"{len(names)} class{'es' * (len(names) > 1)} from classes.toml; masks hold {key}s"
    classes, voids = ClassTable(names, colours), dict.fromkeys(ignored, VOID)
    if (one := classes.foreground) is not None:
        why += f": {names[one]} against {names[1 - one]}"
        return classes.only(one), Encoding(kind, {stored[1 - one]: 0, stored[one]: 1, **voids}), why
    if len(names) > 1:
        return classes, Encoding(kind, {value: id for id, value in enumerate(stored)} | voids), why
    if colour or "id" in entries[0]:
        return classes, Encoding(kind, {0: 0, stored[0]: 1, **voids}), why
    marked = [
        Counter({value: count for value, count in file.items() if value not in voids}) for file in files
    ]
    encoding, guess = _guess(marked, "jpeg" in kinds)
    if encoding is None or max(encoding.table.values()) > 1:
        raise UsageError(
            f"{path}: names one class, but {guess}",
            hint="name the other classes, or list their values as void",
        )
    return classes, Encoding("grey", {**encoding.table, **voids}, encoding.threshold), f"{why}: {guess}"


def load_toml(path: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML.
        UsageError: there is no parser, before Python 3.11 without tomli.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for name in ("tomllib", "tomli"):  # the first came with Python 3.11
        with suppress(ModuleNotFoundError):
            document: dict[str, Any] = importlib.import_module(name).loads(text)
            return document
    raise UsageError(f"{path}: needs Python 3.11 or the package tomli", hint="pip install tomli")


def _colour(value: Sequence[int]) -> Colour:
    if len(value) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        raise ValueError(f"{value!r} is not a colour: [red, green, blue], each 0 to 255, expected")
    return (value[0], value[1], value[2])


def _pack_rgb(value: Sequence[int]) -> int:
    red, green, blue = _colour(value)
    return red << 16 | green << 8 | blue
