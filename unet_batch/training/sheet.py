"""One picture that shows a dataset: images beside their masks, what is suspicious first."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch import images, render
from unet_batch.errors import ImageError

if TYPE_CHECKING:
    from unet_batch.training.check import Report
    from unet_batch.training.dataset import Dataset, Pair
    from unet_batch.types import ClassTable, Pixels

_HEIGHT, _WIDTH, _CAPTION, _GAP, _COLUMNS = 150, 220, 22, 12, 3


def contact_sheet(dataset: Dataset, report: Report, count: int = 24) -> bytes:
    """Draw up to `count` pairs, image and overlay, as a JPEG: some of each finding, named in red, then a spread of others."""
    reasons = _suspicious(report, count)
    calm = [pair for pair in dataset.pairs if pair.key not in reasons]
    wanted = min(len(calm), count - len(reasons))
    pairs = {pair.key: pair for pair in dataset.pairs}
    chosen = [pairs[key] for key in reasons] + [calm[index * len(calm) // wanted] for index in range(wanted)]
    cells = [_cell(dataset, pair, reasons.get(pair.key, "")) for pair in chosen]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % min(_COLUMNS, len(cells)))
    rows = [np.hstack(cells[start : start + _COLUMNS]) for start in range(0, len(cells), _COLUMNS)]
    return images.encode_jpeg(np.pad(np.vstack(rows), ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255))


def _suspicious(report: Report, count: int) -> dict[str, str]:
    """Key -> kind of finding: in turn the first pair of every kind, then the second, and so on."""
    queues = [(finding.kind, list(dict.fromkeys(finding.keys))) for finding in report.findings if finding.keys]
    reasons: dict[str, str] = {}
    for turn in range(max((len(keys) for _, keys in queues), default=0)):
        for kind, keys in queues:
            if len(reasons) == count:
                return reasons
            if turn < len(keys):
                reasons.setdefault(keys[turn], kind)
    return reasons


def _cell(dataset: Dataset, pair: Pair, reason: str) -> Pixels:
    """Image and overlay, or image and mask where they do not fit on each other, above a caption."""
    picture = mask = None
    try:
        picture = images.read(pair.image, at_least=(_HEIGHT, _WIDTH))
        mask = dataset.encoding.decode(pair.mask)[0]
    except ImageError:
        pass  # the report says so; its place stays grey
    left = right = np.full((_HEIGHT, _WIDTH, 3), 225, np.uint8)
    if picture is not None:
        left = _fitted(picture.pixels)
    if mask is not None:
        fits = picture is not None and picture.size == mask.shape
        under = picture.pixels if picture is not None and fits else np.full((*mask.shape, 3), 235, np.uint8)
        right = _fitted(under, mask, dataset.classes)
    cell = np.full((_HEIGHT + _CAPTION + _GAP, 2 * _WIDTH + 4 + _GAP, 3), 255, np.uint8)
    cell[:_HEIGHT, :_WIDTH] = left
    cell[:_HEIGHT, _WIDTH + 4 : 2 * _WIDTH + 4] = right
    caption = pair.key if len(pair.key) <= 30 else f"{pair.key[:14]}...{pair.key[-13:]}"
    text = caption.encode("ascii", "replace").decode()  # the letters that cv2 can draw
    for part, at, colour in ((text, 2, (60, 60, 60)), (reason, 2 + _WIDTH + 4, (200, 30, 20))):
        cv2.putText(cell, part, (at, _HEIGHT + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return cell


def _fitted(pixels: Pixels, mask: Pixels | None = None, classes: ClassTable | None = None) -> Pixels:
    """Shrunk into a place of the sheet, on light grey, with the mask over it; shrunk first, so that contours stay lines."""
    height, width = pixels.shape[:2] if mask is None else mask.shape
    scale = min(_HEIGHT / height, _WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cast("Pixels", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
    if mask is not None and classes is not None:
        ids = cast("Pixels", cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
        regions = (ids == 1).astype(np.uint8) * 255 if len(classes.names) == 1 else ids
        small = render.overlay(small, regions, classes)
    out = np.full((_HEIGHT, _WIDTH, 3), 240, np.uint8)
    top, left = (_HEIGHT - small.shape[0]) // 2, (_WIDTH - small.shape[1]) // 2
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out
