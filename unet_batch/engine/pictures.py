"""Pictures to prove an engine on: the user's own, else drawn scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unet_batch import scenes
from unet_batch.errors import UnetBatchError, UsageError
from unet_batch.files.sources import collect
from unet_batch.media import geometry, images
from unet_batch.types import ModelSpec, Placement, Size

if TYPE_CHECKING:
    from unet_batch.types import Pixels

# Pictures of the proof when nobody gives any: drawn scenes, which the bundled model knows.
SCENES = 16
FIRST_SCENE = 3_000_000  # far from the seeds of training, tests and demonstrations
MAX_PROOF_PICTURES = 100


class Photo(NamedTuple):
    """A picture of the user's at the network's size, RGB uint8 (H, W, 3), and how it was placed in it."""

    path: str
    pixels: Pixels
    placement: Placement


def proof_pictures(paths: Sequence[str], spec: ModelSpec, size: Size) -> tuple[Pixels, str]:
    """Pictures to prove an engine on, uint8 (N, H, W, 3), and a sentence about files that could not be read.

    Args:
        paths: sources as `run` takes them, of which up to a hundred are read, spread evenly; none draws
            scenes.
        spec: of the model.
        size: (height, width) of its input.

    Raises:
        SourceError: a source holds no pictures.
        UsageError: the model does not take RGB, or no picture can be read.
    """
    if spec.in_channels != 3:
        raise UsageError(f"{spec.name} takes {spec.in_channels} channels, pictures are read as RGB (3)")
    if not paths:
        # Twice the network's size, as photos are larger than what the network sees.
        at = (min(1024, max(128, 2 * size[0])), min(1536, max(192, 2 * size[1])))
        drawn = [scenes.draw(FIRST_SCENE + number, at)[0] for number in range(SCENES)]
        return np.stack([geometry.to_network(photo, geometry.place(at, size)) for photo in drawn]), ""
    photos, note = read_photos(paths, size, MAX_PROOF_PICTURES, "proof pictures")
    return np.stack([photo.pixels for photo in photos]), note


def read_photos(paths: Sequence[str], size: Size, most: int, what: str) -> tuple[list[Photo], str]:
    """Up to `most` pictures of these sources, spread evenly, and a sentence about those that cannot be read.

    Args:
        paths: sources as `run` takes them.
        size: (height, width) of the network's input.
        most: how many to read.
        what: they are called in errors.

    Raises:
        SourceError: a source holds no pictures.
        UsageError: no picture can be read.
    """
    items = collect(paths, is_picture=images.is_supported).items
    chosen = [items[round(number)] for number in np.linspace(0, len(items) - 1, min(len(items), most))]
    photos, failures = [], []
    for item in chosen:
        try:
            picture = images.read(item.path)
            placement = geometry.place(picture.size, size)
            photos.append(Photo(item.path, geometry.to_network(picture.pixels, placement), placement))
        except UnetBatchError as error:
            failures.append(error.message)
    if not photos:
        raise UsageError(f"none of the {len(chosen)} {what} can be read, for example: {failures[0]}")
    if not failures:
        return photos, ""
    return photos, f"{len(failures)} of {len(chosen)} {what} cannot be read, for example: {failures[0]}"
