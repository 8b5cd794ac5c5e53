"""What the page shows of an item: thumbnails of the photo and its mask, and figures."""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.errors import ImageError, ItemError
from unet_batch.files import archives, remote
from unet_batch.media import images
from unet_batch.media.images import thumbnails
from unet_batch.review.packs import Entry, Task, Thumbnails

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unet_batch.types import ClassTable, Pixels

BOX = (144, 192)
"""Height and width that a thumbnail fits into."""
_COUNTED = (512, 512)  # a mask is shrunk to fit into this before its pieces are counted
GONE = "the source is not where it was: its mask alone is shown"


@dataclass(frozen=True)
class Look:
    """How masks look.

    Attributes:
        folder: the output folder.
        classes: names and colours.
    """

    folder: str
    classes: ClassTable

    @property
    def digest(self) -> str:
        """Of all that decides the thumbnails of a mask."""
        return hashlib.sha256(repr((self.classes, BOX)).encode()).hexdigest()[:16]

    def path(self, file: str) -> str:
        """An output by its `/`-separated name below the folder."""
        return os.path.join(self.folder, *file.split("/"))


def look_at_picture(task: Task, look: Look) -> tuple[Entry, Thumbnails]:
    """Make the thumbnails of a picture, and find its figures.

    The figures are those of its table (`stats`) where there is one; else the area is measured on the mask,
    and pieces are counted on the mask shrunk to 512 pixels.
    """
    entry = Entry(task.key, task.source, task.files, task.stamp)
    photo = mask = b""
    pixels = _source_pixels(task, look, entry)
    if pixels is not None:
        photo = thumbnails.encode_photo_thumbnail(pixels, thumbnails.fit(_size(pixels), BOX))
    if "mask" in task.files:
        try:
            values = regions(images.read_ids(look.path(task.files["mask"])).values, look.classes)
        except ItemError as error:
            entry.note = error.message
        else:
            mask = thumbnails.encode_mask_thumbnail(values, thumbnails.fit(_size(values), BOX), look.classes)
            entry.values = measure(values, look.classes)
    entry.digest = digest(mask)
    if "stats" in task.files:
        entry.values |= read_stats(look.path(task.files["stats"]), look.classes)
    return entry, Thumbnails(photo, mask)


def _source_pixels(task: Task, look: Look, entry: Entry) -> Pixels | None:
    """The photo, small; of one that is gone an overlay, if it was saved."""
    try:
        if archives.exists(task.source):
            pixels = images.read(task.source, at_least=BOX).pixels
            return pixels if pixels.shape[2] == 3 else None
        entry.lacks, entry.note = "source", GONE
        if "overlay" in task.files:
            entry.note = "the source is not where it was: its overlay is shown"
            return images.read(look.path(task.files["overlay"]), at_least=BOX).pixels
    except (ItemError, OSError) as error:
        entry.lacks, entry.note = "source", str(error)
    finally:
        remote.release(task.source)
    return None


def regions(values: Pixels, classes: ClassTable) -> Pixels:
    """Stored numbers as masks are inside: 0 and 255 for one class, ids for several.

    Raises:
        ImageError: somebody has saved ids as colours.
    """
    if len(classes.names) == 1:
        plane = values if values.ndim == 2 else values.max(axis=2)
        return cast("Pixels", np.where(plane > 0, np.uint8(255), np.uint8(0)))
    if values.ndim != 2:
        raise ImageError("its mask holds colours, where ids are expected", hint="save it as 8-bit grey")
    return cast("Pixels", np.minimum(values, 255).astype(np.uint8))


def measure(mask: Pixels, classes: ClassTable) -> dict[str, float | None]:
    """Size, areas and pieces of a mask.

    Args:
        mask: as from `regions`.
        classes: their table.

    Returns:
        `height` and `width` in pixels; `share` of the picture that is marked (of several classes: that is no
        background, where there is one); `share NAME` of each of several classes, `largest` of these;
        `components` of all classes, 8-connected, on a mask of 512 pixels at most.
    """
    values: dict[str, float | None] = {"height": mask.shape[0], "width": mask.shape[1]}
    width_and_height = thumbnails.fit(_size(mask), _COUNTED)[::-1]
    small = cast("Pixels", cv2.resize(mask, width_and_height, interpolation=cv2.INTER_NEAREST))
    if len(classes.names) == 1:
        share = cv2.countNonZero(mask) / mask.size
        return values | {"share": share, "components": _pieces(small)}
    counts = np.bincount(mask.reshape(-1), minlength=len(classes.names))[: len(classes.names)] / mask.size
    named = {name: float(share) for name, share in zip(classes.names, counts, strict=True)}
    drawn = [id for id in range(len(classes.names)) if id != classes.background]
    values |= shares(named, classes)
    values["components"] = sum(_pieces(np.equal(small, id).view(np.uint8)) for id in drawn if counts[id])
    return values


def shares(areas: Mapping[str, float], classes: ClassTable) -> dict[str, float | None]:
    """Those columns of `measure` that are areas, given the share of each class."""
    if len(classes.names) == 1:
        return {"share": areas.get(classes.names[0])}
    drawn = [name for id, name in enumerate(classes.names) if id != classes.background]
    found: dict[str, float | None] = {f"share {name}": areas.get(name, 0.0) for name in drawn}
    if classes.background is not None:
        found["share"] = sum(areas.get(name, 0.0) for name in drawn)
    found["largest"] = max((areas.get(name, 0.0) for name in drawn), default=0.0)
    return found


def read_stats(path: str, classes: ClassTable) -> dict[str, float | None]:
    """The figures in the table of a picture: a row a class, for each page; {} if it is damaged."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return {}

    def known(name: str, among: Sequence[str]) -> list[float]:
        found = (_number(row, name) for row in rows if row.get("class") in among)
        return [value for value in found if value is not None]

    areas = {name: sum(each) / len(each) for name in classes.names if (each := known("share", [name]))}
    found: dict[str, float | None] = shares(areas, classes) if areas else {}
    drawn = [name for id, name in enumerate(classes.names) if id != classes.background]
    if components := known("components", drawn):
        found["components"] = sum(components)
    for name in ("confidence", "entropy", "unsure"):
        if values := known(name, drawn):
            found[name] = sum(values) / len(values)
    if unlike := known("unlike", classes.names):
        found["unlike"] = max(unlike)
    return found


def _number(row: Mapping[str, str | None], name: str) -> float | None:
    try:
        return float(row.get(name) or "")
    except ValueError:
        return None


def _pieces(region: Pixels) -> int:
    return int(cv2.connectedComponents(region, connectivity=8, ltype=cv2.CV_16U)[0]) - 1


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def digest(mask: bytes) -> str:
    """Eight hexadecimal digits of a mask's thumbnail; "" where there is none."""
    return hashlib.sha256(mask).hexdigest()[:8] if mask else ""
