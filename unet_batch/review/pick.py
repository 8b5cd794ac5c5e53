"""What to label next: pictures that the network was least sure of, and that differ from each other."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from unet_batch.errors import ImageError, UsageError
from unet_batch.files import archives
from unet_batch.files.atomic import write_atomic
from unet_batch.media import images
from unet_batch.review.certainty import can_tell, unsure_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.run.finished import FinishedItem, FinishedRun

_POOL = 10  # candidates for each that is picked
_SIDE = 12  # of the thumbnails that are compared
_HEAD = "# unet-batch pick"


@dataclass(frozen=True)
class Picked:
    """A picture to label.

    Attributes:
        item: the picture.
        unsure: share of its pixels that the network was unsure of.
    """

    item: FinishedItem
    unsure: float


def pick(
    run: FinishedRun, count: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[Picked, ...]:
    """Choose pictures, the most unsure first.

    The ten times as many that the network was least sure of are candidates. Of these each next one is that
    with the largest product of how unsure it is and how far its thumbnail is from all before it.

    Args:
        run: whose pictures.
        count: how many.
        progress: hears how many items were looked at.

    Raises:
        UsageError: the run has saved nothing that tells how sure the network was.
    """
    if not can_tell(run):
        raise UsageError(
            f"{run.folder} does not tell how sure the network was: --save {','.join(run.save)}",
            hint="run again with --save mask,prob: only what is missing is made; models of several classes "
            "have no probabilities",
        )
    best: list[tuple[float, int, FinishedItem]] = []
    for number, item in enumerate(run.items(), 1):
        if not item.is_clip:
            with suppress(ImageError):  # what cannot be read has nothing to say
                if (share := unsure_share(item)) is not None:
                    entry = (share, -number, item)
                    (heapq.heappush if len(best) < _POOL * count else heapq.heappushpop)(best, entry)
        progress(number)
    if not best:
        raise UsageError(
            f"{run.folder}: nothing tells how sure the network was of any picture",
            hint="models of several classes have no probabilities",
        )
    candidates = [Picked(item, share) for share, _, item in sorted(best, reverse=True)]
    weights = np.array([each.unsure for each in candidates])
    chosen = _spread([_describe(each.item) for each in candidates], weights, count)
    return tuple(candidates[place] for place in sorted(chosen))


def write_list(path: str, picked: Sequence[Picked]) -> None:
    """Write the paths of pictures, one a line, as `run @list` takes them.

    Raises:
        UsageError: another file of this name is there.
        OutputError: it cannot be written.
    """
    with suppress(OSError), open(path, "rb") as file:
        if not file.read(len(_HEAD)).startswith(_HEAD.encode()):
            raise UsageError(f"{path} is another file", hint="choose another name with -o")
    lines = [f"{_HEAD}: the most unsure first", *(each.item.source for each in picked)]
    write_atomic(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def copy_pictures(folder: str, picked: Sequence[Picked]) -> None:
    """Copy pictures into a folder that is empty or not there.

    Raises:
        UsageError: something lies there.
        ImageError: a picture cannot be read.
        OutputError: it cannot be written.
    """
    if os.path.isdir(folder) and os.listdir(folder):
        raise UsageError(f"{folder} is not empty", hint="choose another folder with --copy")
    for each in picked:
        source = each.item.source
        try:
            with archives.open_file(source) as file:
                data = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ImageError(
                f"{source}: cannot be read: {reason}", hint="restore it, or leave --copy out"
            ) from error
        write_atomic(os.path.join(folder, *each.item.key.split("/")) + os.path.splitext(source)[1], data)


def _describe(item: FinishedItem) -> NDArray[np.float32]:
    """A thumbnail of the picture; of its mask or probabilities where the picture is gone."""
    for path in (item.source, *(item.files[kind] for kind in ("prob", "mask") if kind in item.files)):
        with suppress(ImageError):
            pixels = images.read(path, at_least=(_SIDE * 4, _SIDE * 4)).pixels[..., :3]
            small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            thumbnail: NDArray[np.float32] = small.reshape(-1).astype(np.float32) / np.float32(255)
            return thumbnail
    return np.zeros(_SIDE * _SIDE * 3, np.float32)


def _spread(points: Sequence[NDArray[np.float32]], weights: NDArray[np.float64], count: int) -> list[int]:
    """Places of points that are far from each other, by weight: k-center, greedy (Gonzalez, 1985)."""
    every = np.stack(points)
    chosen = [0]
    nearest = np.linalg.norm(every - every[0], axis=1)
    while len(chosen) < min(count, len(points)):
        score = nearest * weights
        score[chosen] = -1.0
        place = int(score.argmax())
        chosen.append(place)
        nearest = np.minimum(nearest, np.linalg.norm(every - every[place], axis=1))
    return chosen
