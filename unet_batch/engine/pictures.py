"""Pictures to prove an engine on, and to calibrate INT8 with: the user's own, else drawn scenes."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

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
# Pictures that ranges of INT8 are taken from; where nobody gives any, so many scenes, none of a proof's.
MAX_CALIBRATION_PICTURES = 200
MIN_CALIBRATION_PICTURES = 16
CALIBRATION_SCENES = 64
FIRST_CALIBRATION_SCENE = FIRST_SCENE + 100_000
# Of a folder so many are held out for the proof, a fifth of it at most.
HELD_OUT = 32
_CALIBRATION_BYTES = 2**28  # all of them are in memory, at the network's size
_SEED = 1


class Photo(NamedTuple):
    """A picture of the user's at the network's size, uint8 (H, W, C), and how it was placed in it."""

    path: str
    pixels: Pixels
    placement: Placement


@dataclass(frozen=True, eq=False)
class Calibration:
    """Pictures that the ranges of INT8 are taken from.

    Attributes:
        pictures: at the network's size, uint8 (N, H, W, C).
        source: what they are, for people.
        held_out: files of the same sources that are not among them, to prove the engine on.
        note: a sentence about files that could not be read; may be empty.
    """

    pictures: Pixels
    source: str
    held_out: tuple[str, ...] = ()
    note: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of the pictures: another set makes another engine."""
        shape = repr(self.pictures.shape).encode()
        return hashlib.sha256(shape + self.pictures.tobytes()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pictures": len(self.pictures),
            "source": self.source,
            "sha256": self.sha256,
            "held_out": len(self.held_out),
        }


def calibration_pictures(
    paths: Sequence[str],
    proof_paths: Sequence[str],
    spec: ModelSpec,
    size: Size,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> Calibration:
    """Pictures to calibrate INT8 with: up to two hundred of these sources, drawn at random, always the same.

    Args:
        paths: sources as `run` takes them; none draws scenes.
        proof_paths: sources that the engine is proven on; their files are left out. Without any, files of
            `paths` are held out.
        spec: of the model.
        size: (height, width) of its input.
        progress: hears of each stage and its share.

    Raises:
        SourceError: a source holds no pictures.
        UsageError: too few pictures are left.
    """
    if not paths:
        seeds = range(FIRST_CALIBRATION_SCENE, FIRST_CALIBRATION_SCENE + CALIBRATION_SCENES)
        drawn = _draw(seeds, spec, size, lambda share: progress("draw scenes to calibrate INT8", share))
        return Calibration(drawn, f"{CALIBRATION_SCENES} drawn scenes")
    items = sorted(item.path for item in collect(paths, is_picture=images.is_supported).items)
    proofs = collect(proof_paths, is_picture=images.is_supported).items if proof_paths else ()
    taken = {os.path.realpath(item.path) for item in proofs}
    left = [path for path in items if os.path.realpath(path) not in taken]
    random.Random(_SEED).shuffle(left)
    held_out = () if proof_paths else tuple(left[: min(HELD_OUT, len(left) // 5)])
    most = min(MAX_CALIBRATION_PICTURES, max(1, _CALIBRATION_BYTES // (size[0] * size[1] * spec.in_channels)))
    chosen = left[len(held_out) :][:most]
    pixels, failures = [], []
    for number, path in enumerate(chosen):
        progress("read pictures to calibrate INT8", number / len(chosen))
        try:
            pixels.append(_read(path, spec, size).pixels)
        except UnetBatchError as error:
            failures.append(error.message)
    if len(pixels) < MIN_CALIBRATION_PICTURES:
        raise UsageError(
            f"{len(pixels)} pictures to calibrate INT8 with: {len(items)} were given, of which "
            f"{len(items) - len(left)} prove the engine, {len(held_out)} were held out to prove it, and "
            f"{len(failures)} cannot be read; {MIN_CALIBRATION_PICTURES} expected at least",
            hint="give more with --calibration-images: a hundred or two, like those that will be run",
        )
    return Calibration(
        np.stack(pixels),
        f"{len(pixels)} pictures",
        held_out,
        _tell(failures, len(chosen), "pictures to calibrate with"),
    )


def proof_pictures(paths: Sequence[str], spec: ModelSpec, size: Size) -> tuple[Pixels, str]:
    """Pictures to prove an engine on, uint8 (N, H, W, C), and a sentence about files that could not be read.

    Args:
        paths: sources as `run` takes them, of which up to a hundred are read, spread evenly; none draws
            scenes.
        spec: of the model.
        size: (height, width) of its input.

    Raises:
        SourceError: a source holds no pictures.
        UsageError: no picture can be read.
    """
    if not paths:
        return _draw(range(FIRST_SCENE, FIRST_SCENE + SCENES), spec, size), ""
    photos, note = read_photos(paths, spec, size, MAX_PROOF_PICTURES, "proof pictures")
    return np.stack([photo.pixels for photo in photos]), note


def read_photos(
    paths: Sequence[str], spec: ModelSpec, size: Size, most: int, what: str
) -> tuple[list[Photo], str]:
    """Up to `most` pictures of these sources, spread evenly, and a sentence about those that cannot be read.

    Args:
        paths: sources as `run` takes them.
        spec: of the model, which says what it takes of them.
        size: (height, width) of the network's input.
        most: how many to read.
        what: they are called in errors.
        value_range: which of their values are black and white.

    Raises:
        SourceError: a source holds no pictures.
        UsageError: no picture can be read.
    """
    items = collect(paths, is_picture=images.is_supported).items
    chosen = [items[round(number)] for number in np.linspace(0, len(items) - 1, min(len(items), most))]
    photos, failures = [], []
    for item in chosen:
        try:
            photos.append(_read(item.path, spec, size))
        except UnetBatchError as error:
            failures.append(error.message)
    if not photos:
        raise UsageError(f"none of the {len(chosen)} {what} can be read, for example: {failures[0]}")
    return photos, _tell(failures, len(chosen), what)


def _draw(
    seeds: Sequence[int], spec: ModelSpec, size: Size, progress: Callable[[float], None] = lambda share: None
) -> Pixels:
    """Drawn scenes at the network's size; of more than three channels red, green, blue, and these again."""
    # Twice the network's size, as photos are larger than what the network sees.
    at = (min(1024, max(128, 2 * size[0])), min(1536, max(192, 2 * size[1])))
    placement = geometry.place(at, size)
    drawn = []
    for number, seed in enumerate(seeds):
        progress(number / len(seeds))
        scene = scenes.draw(seed, at)[0]
        if spec.in_channels != 1:
            scene = np.ascontiguousarray(scene[..., np.arange(spec.in_channels) % 3])
        drawn.append(geometry.to_network(scene, placement, channels=spec.in_channels))
    return np.stack(drawn)


def _read(path: str, spec: ModelSpec, size: Size) -> Photo:
    """A picture at the network's size, as the model takes it. Raises UnetBatchError."""
    value_range, _ = images.trained_range(spec.training)
    picture = images.read(path, channels=spec.channels, value_range=value_range)
    placement = geometry.place(picture.size, size)
    pixels = geometry.to_network(picture.pixels, placement, channels=spec.in_channels)
    return Photo(path, pixels, placement)


def _tell(failures: Sequence[str], of: int, what: str) -> str:
    return f"{len(failures)} of {of} {what} cannot be read, for example: {failures[0]}" if failures else ""
