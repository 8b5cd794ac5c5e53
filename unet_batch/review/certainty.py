"""How sure a network was of a picture, read from what its run has saved: statistics or probabilities."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.errors import ImageError
from unet_batch.files import archives
from unet_batch.media import images
from unet_batch.media.measure import UNSURE

if TYPE_CHECKING:
    from unet_batch.run.finished import FinishedItem, FinishedRun

KINDS = ("stats", "prob", "prob16")
"""Kinds of outputs that tell it, the quickest to read first."""


def can_tell(run: FinishedRun) -> bool:
    """Whether the run has saved what tells it."""
    return any(kind in run.save for kind in KINDS)


def unsure_share(item: FinishedItem) -> float | None:
    """Share of a picture's pixels that are unsure; None where nothing tells it.

    Raises:
        ImageError: a file cannot be read.
    """
    kind = next((kind for kind in KINDS if kind in item.files), None)
    if kind is None:
        return None
    path = item.files[kind]
    if kind == "stats":
        return _from_table(path)
    stored = images.read_ids(path)
    if stored.values.ndim != 2 or not stored.full:
        return None
    return float(np.mean(np.abs(stored.values / stored.full - 0.5) <= UNSURE / 2))


def _from_table(path: str) -> float | None:
    """The most that a row of a table of statistics says."""
    try:
        with archives.open_file(path) as file:
            rows = list(csv.DictReader(io.StringIO(file.read().decode("utf-8-sig"))))
        shares = [float(value) for row in rows if (value := row.get("unsure"))]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{path}: cannot be read: {reason}", hint="run again: what is lost is made anew"
        ) from error
    return max(shares, default=None)
