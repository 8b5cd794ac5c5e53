"""Draw as one picture: a dataset's images beside their masks, predictions beside the true masks or alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.datasets.encoding import VOID
from unet_batch.errors import ImageError
from unet_batch.media import images, render

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.datasets.check import Report
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.types import ClassTable, Colour, Pixels, Size

_HEIGHT, _WIDTH, _CAPTION, _GAP, _COLUMNS = 150, 220, 22, 12, 3
_PANEL, _BETWEEN = (280, 320), 6  # the largest panel of a comparison, and what is between two
_LEGEND = 24  # height of one of its lines
_GREY, _INK = (90, 90, 90), (40, 40, 40)
# Far apart for colour-blind eyes, too, and on grey.
_MISSED, _INVENTED, _CONFUSED, _UNKNOWN = (235, 90, 0), (0, 100, 235), (150, 30, 160), (150, 150, 150)


def contact_sheet(
    dataset: Dataset, report: Report, count: int = 24, value_range: images.Range = images.AUTO
) -> bytes:
    """Draw up to `count` pairs as a JPEG, image and overlay: some of each finding, in red, then others."""
    reasons = _choose_suspicious(report, count)
    calm = [pair for pair in dataset.pairs if pair.key not in reasons]
    wanted = min(len(calm), count - len(reasons))
    pairs = {pair.key: pair for pair in dataset.pairs}
    chosen = [pairs[key] for key in reasons] + [calm[index * len(calm) // wanted] for index in range(wanted)]
    cells = [_draw_cell(dataset, pair, reasons.get(pair.key, ""), value_range) for pair in chosen]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % min(_COLUMNS, len(cells)))
    rows = [np.hstack(cells[start : start + _COLUMNS]) for start in range(0, len(cells), _COLUMNS)]
    return images.encode_jpeg(np.pad(np.vstack(rows), ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255))


def _choose_suspicious(report: Report, count: int) -> dict[str, str]:
    """Choose pairs by their findings, the first of every kind, then the second; kind of finding by key."""
    queues = [
        (finding.kind, list(dict.fromkeys(finding.keys))) for finding in report.findings if finding.keys
    ]
    reasons: dict[str, str] = {}
    for turn in range(max((len(keys) for _, keys in queues), default=0)):
        for kind, keys in queues:
            if len(reasons) == count:
                return reasons
            if turn < len(keys):
                reasons.setdefault(keys[turn], kind)
    return reasons


def _draw_cell(dataset: Dataset, pair: Pair, reason: str, value_range: images.Range) -> Pixels:
    """Draw image and overlay, or image and mask where their sizes differ, above a caption."""
    picture = mask = None
    try:
        picture = dataset.read_picture(pair, (_HEIGHT, _WIDTH), value_range)
        picture = replace(picture, pixels=render.visible(picture.pixels))
        mask = dataset.masks.decode(pair.mask).ids
    except ImageError:
        pass  # the report says so; its place stays grey
    left = right = np.full((_HEIGHT, _WIDTH, 3), 225, np.uint8)
    if picture is not None:
        left = _fit(picture.pixels)
    if mask is not None:
        fits = picture is not None and picture.size == mask.shape
        under = picture.pixels if picture is not None and fits else np.full((*mask.shape, 3), 235, np.uint8)
        right = _fit(under, mask, dataset.classes)
    cell = np.full((_HEIGHT + _CAPTION + _GAP, 2 * _WIDTH + 4 + _GAP, 3), 255, np.uint8)
    cell[:_HEIGHT, :_WIDTH] = left
    cell[:_HEIGHT, _WIDTH + 4 : 2 * _WIDTH + 4] = right
    text = _to_ascii(_shorten(pair.key, 30))
    for part, at, colour in ((text, 2, (60, 60, 60)), (reason, 2 + _WIDTH + 4, (200, 30, 20))):
        cv2.putText(cell, part, (at, _HEIGHT + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return cell


def _fit(pixels: Pixels, mask: Pixels | None = None, classes: ClassTable | None = None) -> Pixels:
    """Resize pixels into a cell, on light grey, and draw the mask over them, so that contours stay lines."""
    height, width = pixels.shape[:2] if mask is None else mask.shape
    scale = min(_HEIGHT / height, _WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cast(
        "Pixels", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    )
    if mask is not None and classes is not None:
        ids = cast("Pixels", cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
        regions = (ids == 1).astype(np.uint8) * 255 if len(classes.names) == 1 else ids
        small = render.overlay(small, regions, classes)
    out = np.full((_HEIGHT, _WIDTH, 3), 240, np.uint8)
    top, left = (_HEIGHT - small.shape[0]) // 2, (_WIDTH - small.shape[1]) // 2
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out


# Comparisons ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Comparison:
    """A picture with its true mask and one that was found.

    Attributes:
        key: what the row is called.
        caption: a few words on it, such as its Dice.
        pixels: RGB uint8 (h, w, 3), the whole picture at any scale; None where there is none.
        truth: ids, uint8 (height, width), VOID where nothing is known.
        found: ids, uint8 (height, width).
    """

    key: str
    caption: str
    pixels: Pixels | None
    truth: Pixels
    found: Pixels


def comparison_sheet(
    rows: Sequence[Comparison], classes: ClassTable, sides: tuple[str, str] | None = None
) -> bytes:
    """Draw picture, truth, prediction and error of each row, as a JPEG.

    Args:
        rows: at least one; 100 make a sheet of some 30,000 lines, and a JPEG holds 65,535.
        classes: of one name: ids are 0 and 1.
        sides: what truth and prediction are called where neither is more true than the other.
    """
    titles = ("picture", *(sides or ("truth", "prediction")), "difference" if sides else "error")
    drawn = [_draw_panels(row, classes) for row in rows]
    width = max(panels[0].shape[1] for panels in drawn)
    full = len(titles) * (width + _BETWEEN) - _BETWEEN
    lines = [_draw_text_line([(title, None, _INK) for title in titles], full, width + _BETWEEN)]
    for row, panels in zip(rows, drawn, strict=True):
        lines += [
            *_draw_row(panels, width, full),
            _draw_text_line([(_shorten(row.key, 60), None, _GREY), (row.caption, None, _INK)], full),
        ]
    lines.append(np.full((_GAP, full, 3), 255, np.uint8))
    lines += _draw_legend(rows, classes, full, sides)
    sheet = np.pad(np.vstack(lines), ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
    return images.encode_jpeg(sheet)


@dataclass(frozen=True, eq=False)
class Preview:
    """A picture with masks that were found in it in several ways.

    Attributes:
        key: what the row is called.
        pixels: RGB uint8 (h, w, 3).
        found: ids of each way, uint8 (h, w).
    """

    key: str
    pixels: Pixels
    found: Sequence[Pixels]


def preview_sheet(ways: Sequence[str], rows: Sequence[Preview], classes: ClassTable) -> bytes:
    """Draw pictures beside their masks in each way, as a JPEG; `ways` are the titles of the latter."""
    drawn = []
    for row in rows:
        height, width = row.pixels.shape[:2]
        scale = min(_PANEL[0] / height, _PANEL[1] / width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        photo = _resize(row.pixels, size)
        drawn.append([photo, *(_draw_mask(photo, ids, classes) for ids in row.found)])
    width = max(panels[0].shape[1] for panels in drawn)
    titles = ["picture", *ways]
    full = len(titles) * (width + _BETWEEN) - _BETWEEN
    lines = [_draw_text_line([(title, None, _INK) for title in titles], full, width + _BETWEEN)]
    for row, panels in zip(rows, drawn, strict=True):
        lines += [
            *_draw_row(panels, width, full),
            _draw_text_line([(_shorten(row.key, 60), None, _GREY)], full),
        ]
    sheet = np.pad(np.vstack(lines), ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
    return images.encode_jpeg(sheet)


def _draw_row(panels: Sequence[Pixels], width: int, full: int) -> list[Pixels]:
    """Draw panels side by side, `width` apart, below a gap."""
    line = np.full((panels[0].shape[0], full, 3), 255, np.uint8)
    for place, panel in enumerate(panels):
        left = place * (width + _BETWEEN)
        line[:, left : left + panel.shape[1]] = panel
    return [np.full((_BETWEEN, full, 3), 255, np.uint8), line]


def _draw_mask(photo: Pixels, ids: Pixels, classes: ClassTable) -> Pixels:
    """Draw a mask of any size over a photo."""
    small = cast("Pixels", cv2.resize(ids, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST))
    regions = (small == 1).astype(np.uint8) * 255 if len(classes.names) == 1 else small
    return render.overlay(photo, regions, classes)


def _draw_panels(row: Comparison, classes: ClassTable) -> list[Pixels]:
    """Draw the four panels of a row, RGB, all of one size."""
    height, width = row.truth.shape
    scale = min(_PANEL[0] / height, _PANEL[1] / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    blank: Pixels = np.full((*size, 3), 235, np.uint8)
    photo = blank if row.pixels is None else _resize(row.pixels, size)
    masks = [_draw_mask(photo, ids, classes) for ids in (row.truth, row.found)]
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None] * np.float32(0.35) + np.float32(255 * 0.65)
    error = np.repeat(grey, 3, axis=2)
    for wrong, colour in _find_errors(row.truth, row.found, classes):
        share = _resize(wrong.astype(np.uint8) * np.uint8(255), size)[..., None] / np.float32(255)
        # So that thin errors can be seen
        error += np.minimum(1, 2.5 * share) * (np.array(colour, np.float32) - error)
    return [photo, *masks, error.round().astype(np.uint8)]


def _find_errors(truth: Pixels, found: Pixels, classes: ClassTable) -> list[tuple[NDArray[np.bool_], Colour]]:
    """Find where a mask is wrong, with the colour of each kind of error, in the order of the legend."""
    unknown = truth == VOID
    wrong = (truth != found) & ~unknown
    ground = _background_id(classes)
    missed, invented = wrong & (found == ground), wrong & (truth == ground)
    return [
        (missed, _MISSED),
        (invented, _INVENTED),
        (wrong & ~missed & ~invented, _CONFUSED),
        (unknown, _UNKNOWN),
    ]


def _background_id(classes: ClassTable) -> int:
    """The id of the background; VOID where no class is called so."""
    if len(classes.names) == 1:
        return 0
    return VOID if classes.background is None else classes.background


def _draw_legend(
    rows: Sequence[Comparison], classes: ClassTable, width: int, sides: tuple[str, str] | None
) -> list[Pixels]:
    """Draw the lines that say what the colours mean, of those that can occur."""
    ground, several = _background_id(classes), len(classes.names) > 1
    what, missed, invented = "error:", "missed", "invented"
    if sides:
        what, missed, invented = "difference:", f"in {sides[0]} only", f"in {sides[1]} only"
    entries: list[tuple[str, Colour | None, Colour]] = [(what, None, _INK)]
    if ground != VOID:
        entries += [(missed, _MISSED, _INK), (invented, _INVENTED, _INK)]
    if several:
        entries.append(("another class", _CONFUSED, _INK))
    if any((row.truth == VOID).any() for row in rows):
        entries.append(("not judged (void)", _UNKNOWN, _INK))
    if several:
        entries.append(("   classes:", None, _INK))
    shown = [
        (name, colour, _INK)
        for id, (name, colour) in enumerate(zip(*_legend_classes(classes), strict=True))
        if id != ground
    ]
    lines, left = [], 0
    line: list[tuple[str, Colour | None, Colour]] = []
    for entry in [*entries, *shown]:
        need = _entry_width(entry)
        if line and left + need > width:
            lines.append(_draw_text_line(line, width))
            line, left = [], 0
        line.append(entry)
        left += need
    return [*lines, _draw_text_line(line, width)]


def _legend_classes(classes: ClassTable) -> tuple[Sequence[str], Sequence[Colour]]:
    return (
        ([_shorten(name, 24) for name in classes.names], classes.colours)
        if len(classes.names) > 1
        else ((), ())
    )


def _entry_width(entry: tuple[str, Colour | None, Colour]) -> int:
    text, colour, _ = entry
    return (
        int(cv2.getTextSize(_to_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0])
        + (20 if colour else 0)
        + 18
    )


def _draw_text_line(
    entries: Sequence[tuple[str, Colour | None, Colour]], width: int, step: int = 0
) -> Pixels:
    """Draw words in a row, a coloured square before those that have one; `step` pixels apart if given."""
    line: Pixels = np.full((_LEGEND, width, 3), 255, np.uint8)
    left = 0
    for number, (text, square, ink) in enumerate(entries):
        at = number * step if step else left
        left += _entry_width((text, square, ink))
        if square:
            cv2.rectangle(line, (at, 6), (at + 13, 19), square, cv2.FILLED)
            at += 20
        cv2.putText(line, _to_ascii(text), (at, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, ink, 1, cv2.LINE_AA)
    return line


def _resize(pixels: Pixels, size: Size) -> Pixels:
    smaller = size[0] <= pixels.shape[0] and size[1] <= pixels.shape[1]
    return cast(
        "Pixels",
        cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST),
    )


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2 - 2]}...{text[-(length // 2 - 1) :]}"


def _to_ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()  # the letters that cv2 can draw
