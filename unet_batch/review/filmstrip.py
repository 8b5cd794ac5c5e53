"""What the page shows of a clip: its timeline, and some frames with their masks."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ItemError
from unet_batch.files import archives, naming, remote
from unet_batch.files.atomic import write_atomic
from unet_batch.media import video
from unet_batch.media.images import thumbnails
from unet_batch.review.packs import Entry, Task, Thumbnails
from unet_batch.review.thumbnails import BOX, GONE, Look, digest, regions, shares

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

FRAMES = 12
"""Frames that are shown of a clip."""
POINTS = 600
"""Points of a line of its plot at most: each is the mean over as many frames."""
LARGE = (360, 480)
"""Height and width that these fit into. Browsers play few of the formats that a clip may have."""
_FIGURES = ("components", "confidence", "entropy", "unsure", "unlike")  # columns of a timeline, beside areas
_ROUNDING = 0.002  # seconds: Matroska's times are milliseconds

Row = dict[str, str]


def look_at_clip(task: Task, look: Look, folder: str) -> tuple[Entry, Thumbnails]:
    """Make the thumbnails of a clip, its plot and its frames, and find its figures.

    Args:
        task: the clip.
        look: of masks.
        folder: for the file of its plot and frames, `NAME.js`.

    Raises:
        OutputError: that file cannot be written.
    """
    entry = Entry(task.key, task.source, task.files, task.stamp, is_clip=True)
    entry.clip = hashlib.sha256(task.key.encode()).hexdigest()[:16]
    path = look.path(task.files["timeline"]) if "timeline" in task.files else ""
    timeline, chosen = read_timeline(path)
    readable = not naming.is_live(task.source) and not archives.archive_of(task.source)
    if not (readable and archives.exists(task.source)):
        readable, entry.note = False, GONE
        entry.lacks = "" if naming.is_live(task.source) else "source"
    frames, poster = [], Thumbnails(b"", b"")
    try:
        for number, row in enumerate(chosen):
            photo = _photo(task.source, row) if readable else None
            mask = _mask(look.path(task.files["mask"]), row, look) if "mask" in task.files else None
            frames.append(_encode(photo, mask, LARGE, look))
            if number == len(chosen) // 2:
                poster = _encode(photo, mask, BOX, look)
            shown = mask if mask is not None else photo
            if shown is not None:
                entry.values |= {"height": shown.shape[0], "width": shown.shape[1]}
    except (ItemError, OSError) as error:
        entry.note = entry.note or str(error)
    finally:
        remote.release(task.source)
    if timeline:
        areas = {name: _mean(timeline.get(f"area_{name}")) for name in look.classes.names}
        entry.values |= shares({name: area for name, area in areas.items() if area is not None}, look.classes)
        entry.values |= {name: _mean(timeline.get(name)) for name in _FIGURES}
    strip = [
        {"seconds": float(row["seconds"]), "index": int(row["frame"]), "thumbnails": json.loads(frame.line())}
        for row, frame in zip(chosen, frames, strict=False)
    ]
    values = json.dumps({"columns": timeline, "frames": strip})
    write_atomic(
        os.path.join(folder, entry.clip + ".js"),
        f'unetReport.clip("{entry.clip}",{values})\n'.encode("ascii"),
    )
    entry.digest = digest(b"".join(frame.mask for frame in frames))
    return entry, poster


def read_timeline(path: str) -> tuple[dict[str, list[float | None]], list[Row]]:
    """Read the timeline of a clip, a row at a time: two hours have 200,000.

    Returns:
        Its columns, of when and of figures, as means over equal runs of frames, None where nothing is known;
        and the rows of FRAMES frames, evenly spread. Both empty where the file cannot be read.
    """
    try:
        count = sum(1 for _ in _rows(path))
        if not count:
            return {}, []
        per_point = -(-count // POINTS)
        places = sorted({(2 * number + 1) * count // (2 * FRAMES) for number in range(FRAMES)})
        chosen = [row for index, row in enumerate(_rows(path)) if index in places]
        first = next(_rows(path))
        chosen = [row | {"after": str(float(row["seconds"]) - float(first["seconds"]))} for row in chosen]
        names = [name for name in first if name in ("seconds", *_FIGURES) or name.startswith("area_")]
        columns: dict[str, list[float | None]] = {name: [] for name in names}
        rows = _rows(path)
        while batch := list(islice(rows, per_point)):
            for name in names:
                known = [float(row[name]) for row in batch if row[name]]
                columns[name].append(round(sum(known) / len(known), 6) if known else None)
        return columns, chosen
    except (OSError, ValueError, KeyError, csv.Error):
        return {}, []


def _rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _photo(path: str, row: Row) -> Pixels | None:
    """A frame of the source; None where the file ends before."""
    with video.Reader(path) as reader:
        return next((reader.rgb(decoded) for decoded in reader.frames(start=int(row["pts"]))), None)


def _mask(path: str, row: Row, look: Look) -> Pixels | None:
    """The mask of a frame; None where the file ends before."""
    with video.Reader(path) as reader:
        seconds = Fraction(max(0.0, float(row["after"]) - _ROUNDING))
        tick = int((reader.clip.start + seconds) / reader.clip.time_base)
        for decoded in reader.frames(start=tick):
            stored: Any = decoded.frame.to_ndarray()  # grey: no conversion that could touch an id
            return regions(np.asarray(stored), look.classes)
    return None


def _encode(photo: Pixels | None, mask: Pixels | None, box: Size, look: Look) -> Thumbnails:
    def fit(pixels: Pixels) -> Size:
        return thumbnails.fit((pixels.shape[0], pixels.shape[1]), box)

    return Thumbnails(
        b"" if photo is None else thumbnails.encode_photo_thumbnail(photo, fit(photo)),
        b"" if mask is None else thumbnails.encode_mask_thumbnail(mask, fit(mask), look.classes),
    )


def _mean(values: list[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return sum(known) / len(known) if known else None
