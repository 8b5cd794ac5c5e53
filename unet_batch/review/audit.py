"""How good a whole run is, told from a few of its items that a person has looked at.

`draw` puts the items in the order of how unsure the network was of them, parts them into as many equal
strata as are to be drawn, and takes one of each at random: every item has the same chance, and hard ones
come as often as they are. What a person has to look at goes into a folder. `read` takes the answers, and says
what they tell of all, with an interval that holds however the accuracies are spread (`interval`).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ImageError, UsageError
from unet_batch.evaluation import metrics
from unet_batch.files import archives, remote
from unet_batch.files.atomic import make_folder, translate, write_atomic, write_json
from unet_batch.media import images, render
from unet_batch.review.certainty import can_tell, unsure_share
from unet_batch.review.interval import mean_interval
from unet_batch.run.masks import LabelTable, read_ids
from unet_batch.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.run.finished import FinishedItem, FinishedRun

MARKS, CORRECTED = "marks.csv", "corrected"
_FACTS = "audit.json"
_GOOD, _BAD = ("good", "g", "yes", "y", "1", "ok"), ("bad", "b", "no", "n", "0", "fix")


@dataclass(frozen=True)
class Drawn:
    """What `draw` has put into a folder.

    Attributes:
        folder: where.
        keys: of the items, in the order of their rows in `marks.csv`.
        total: of how many they were drawn.
        by_certainty: whether strata are of certainty; else they are of neighbours in the order of names.
    """

    folder: str
    keys: tuple[str, ...]
    total: int
    by_certainty: bool


@dataclass(frozen=True)
class Audit:
    """What the answers tell.

    Attributes:
        drawn, total: items drawn, and of how many.
        answered: of them, those marked or corrected.
        good: share marked good, and its interval; None without marks.
        dice: mean Dice of the run's masks against the corrected ones, one that was marked good counting as 1;
            None where nothing was corrected.
        unknown: marked bad, and not corrected: they are not in `dice`, which is None then.
    """

    drawn: int
    total: int
    answered: int
    good: tuple[float, float, float] | None
    dice: tuple[float, float, float] | None
    unknown: int


def default_folder(run: FinishedRun) -> str:
    """`OUT-audit`, beside the output folder, or in the current one of a bucket."""
    return f"{run.name}-audit" if remote.is_remote(run.folder) else f"{run.folder}-audit"


def is_drawn(folder: str) -> bool:
    """Whether a folder holds an audit."""
    return os.path.isfile(os.path.join(folder, _FACTS))


def draw(
    run: FinishedRun,
    folder: str,
    count: int = 40,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Drawn:
    """Draw items, and put what a person has to look at into a folder.

    The same run, count and seed give the same items. `audit.json` is written last: a folder without it is
    drawn anew.

    Args:
        run: which items.
        folder: for `photos/`, `overlays/`, `masks/` and `marks.csv`.
        count: how many; no more than there are.
        seed: of the draw.
        progress: hears how many items were looked at.

    Raises:
        UsageError: the run has no masks of pictures, or the folder holds other things.
        OutputError: it cannot be written.
    """
    folder = os.path.abspath(folder)
    _check_free(folder)
    keys, by_certainty, total = _choose(run, count, seed, progress)
    if not keys:
        raise UsageError(f"{run.folder} holds no masks of pictures", hint="run again with --save mask")
    chosen = set(keys)
    for item in run.items():
        if item.key in chosen:
            _show(run, item, folder)
    make_folder(os.path.join(folder, CORRECTED))
    rows = "".join(f'"{key.replace(chr(34), chr(34) * 2)}",,\n' for key in keys)
    head = "item,mark,note\n"
    write_atomic(os.path.join(folder, MARKS), (head + rows).encode("utf-8", "surrogateescape"))
    facts = {"unet_batch_audit": __version__, "run": run.folder, "seed": seed, "total": total}
    write_json(os.path.join(folder, _FACTS), {**facts, "by_certainty": by_certainty, "items": keys})
    return Drawn(folder, tuple(keys), total, by_certainty)


def read(run: FinishedRun, folder: str) -> Audit:
    """Read the answers.

    Raises:
        UsageError: a mark is neither good nor bad, or the folder is damaged.
        ImageError: a corrected mask cannot be read, or is not as large as the picture.
    """
    folder = os.path.abspath(folder)
    drawn = _load(folder)
    marks = _read_marks(os.path.join(folder, MARKS), drawn.keys)
    table = LabelTable.of(run.classes)
    good: list[float] = []
    dice: list[float] = []
    unknown = corrections = 0
    for key in drawn.keys:
        mark = marks.get(key)
        corrected = os.path.join(folder, CORRECTED, *key.split("/")) + ".png"
        if os.path.isfile(corrected):
            corrections += 1
            own = read_ids(os.path.join(folder, "masks", *key.split("/")) + ".png", table)
            dice.append(
                dice_of(own, _corrected(corrected, table, own), run.classes.names, run.classes.background)
            )
            mark = dice[-1] == 1.0 if mark is None else mark
        elif mark:
            dice.append(1.0)
        elif mark is not None:
            unknown += 1
        if mark is not None:
            good.append(float(mark))
    return Audit(
        len(drawn.keys),
        drawn.total,
        len(good),
        _figure(good, drawn.total) if marks else None,
        _figure(dice, drawn.total) if corrections and not unknown else None,
        unknown,
    )


def dice_of(found: NDArray[Any], truth: NDArray[Any], names: Sequence[str], background: int | None) -> float:
    """Mean Dice of the classes that are in either mask, the background left out; 1 where none is."""
    counts = metrics.count(found.astype(np.uint8), truth.astype(np.uint8), max(2, len(names)))
    _, scores = metrics.score_each([counts])
    ids = [1] if len(names) == 1 else [id for id in range(len(names)) if id != background]
    values = scores["dice"][0, ids]
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 1.0


def strata(values: Sequence[float], count: int, random: np.random.Generator) -> list[int]:
    """Places of `count` values, one of each of as many equal strata in the order of the values."""
    order = np.argsort(np.asarray(values, np.float64), kind="stable")
    ends = np.linspace(0, len(order), min(count, len(order)) + 1)
    # Strata end between values: where the number does not divide, one belongs to two by its parts.
    places = np.minimum(
        (ends[:-1] + random.random(len(ends) - 1) * np.diff(ends)).astype(int), len(order) - 1
    )
    for at in range(1, len(places)):  # and is drawn for one of them only
        places[at] = max(places[at], places[at - 1] + 1)
    for at in range(len(places) - 1, -1, -1):
        places[at] = min(places[at], len(order) - len(places) + at)
    return [int(place) for place in order[places]]


def _choose(
    run: FinishedRun, count: int, seed: int, progress: Callable[[int], None]
) -> tuple[list[str], bool, int]:
    """The keys of what is drawn, whether by certainty, and of how many."""
    by_certainty = can_tell(run)
    values = array("f")
    for item in run.items():
        if _is_picture(item):
            share = None
            if by_certainty:
                with suppress(ImageError):
                    share = unsure_share(item)
            values.append(float(len(values)) if not by_certainty else 2.0 if share is None else share)
        progress(len(values))
    places = set(strata(values, count, np.random.default_rng(seed))) if len(values) else set()
    pictures = (item.key for item in run.items() if _is_picture(item))
    return [key for place, key in enumerate(pictures) if place in places], by_certainty, len(values)


def _is_picture(item: FinishedItem) -> bool:
    return not item.is_clip and item.files.get("mask", "").lower().endswith(".png")


def _show(run: FinishedRun, item: FinishedItem, folder: str) -> None:
    """Put mask, photo and overlay of an item into the folder; a photo that is gone is left out."""
    steps = item.key.split("/")
    mask = os.path.join(folder, "masks", *steps) + ".png"
    _copy(item.files["mask"], mask)
    if not archives.exists(item.source):
        return
    photo = os.path.join(folder, "photos", *steps) + os.path.splitext(item.source)[1]
    _copy(item.source, photo)
    with suppress(ImageError):
        pixels = render.visible(images.read(photo).pixels)
        ids = read_ids(mask, LabelTable.of(run.classes))
        if pixels.shape[:2] == ids.shape and pixels.shape[2] == 3:
            regions = ids.astype(np.uint8) * np.uint8(255 if len(run.classes.names) == 1 else 1)
            drawn = images.encode_jpeg(render.overlay(pixels, regions, run.classes))
            write_atomic(os.path.join(folder, "overlays", *steps) + ".jpg", drawn)


def _copy(source: str, path: str) -> None:
    make_folder(os.path.dirname(path))
    try:
        with archives.open_file(source) as file, open(path, "wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    except (OSError, ValueError) as error:
        raise translate(error, path, 0) from error


def _corrected(path: str, table: LabelTable, own: NDArray[Any]) -> NDArray[Any]:
    ids = read_ids(path, table)
    if ids.shape != own.shape:
        raise ImageError(
            f"{path}: {ids.shape[0]}x{ids.shape[1]}, the run's mask {own.shape[0]}x{own.shape[1]} "
            "(height x width)",
            hint="save the corrected mask at its own size",
        )
    return ids


def _load(folder: str) -> Drawn:
    path = os.path.join(folder, _FACTS)
    try:
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
        return Drawn(folder, tuple(facts["items"]), int(facts["total"]), bool(facts["by_certainty"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error!r}", hint="draw again, into another folder: -o FOLDER"
        ) from error


def _read_marks(path: str, keys: Sequence[str]) -> dict[str, bool]:
    """Good or bad, of the items that were marked.

    Raises:
        UsageError: a mark is neither, or the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            text = file.read()
        # Spreadsheets of many countries save with semicolons.
        first = text.partition("\n")[0]
        rows = list(csv.DictReader(text.splitlines(), delimiter=";" if ";" in first else ","))
    except (OSError, csv.Error) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", hint="restore its columns item,mark,note"
        ) from error
    marks: dict[str, bool] = {}
    known = set(keys)
    for number, row in enumerate(rows, 2):
        mark, key = (row.get("mark") or "").strip().lower(), row.get("item") or ""
        if not mark:
            continue
        if mark not in (*_GOOD, *_BAD) or key not in known:
            raise UsageError(
                f"{path}, line {number}: {key!r} is marked {mark!r}",
                hint="good, bad or nothing expected as marks, of the items that were drawn",
            )
        marks[key] = mark in _GOOD
    return marks


def _figure(values: Sequence[float], total: int) -> tuple[float, float, float] | None:
    if not values:
        return None
    return float(np.mean(values)), *mean_interval(values, total)


def _check_free(folder: str) -> None:
    try:
        there = set(os.listdir(folder)) - {"photos", "masks", "overlays", CORRECTED, MARKS}
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate(error, folder, 0) from error
    if there:
        raise UsageError(f"{folder} holds other files", hint="choose another folder with -o")
