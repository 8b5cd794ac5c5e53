"""A sheet of the user's pictures with the masks of an import, beside those of the guesses not taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unet_batch.datasets.sheet import Preview, preview_sheet
from unet_batch.engine.importing.importer import Imported, reference_maps
from unet_batch.engine.importing.recipe import Recipe
from unet_batch.engine.importing.settings import RANGES, Settings
from unet_batch.engine.pictures import read_photos
from unet_batch.files.atomic import write_atomic
from unet_batch.media import geometry, render

PICTURES = 6  # a sheet that a screen shows at once


def draw_check(made: Imported, sources: Sequence[str], target: str) -> str:
    """Write a sheet of up to six pictures with their masks, as a JPEG; returns a remark on unreadable files.

    Where the scaling or the order of colours was a guess, the masks of the others stand beside: the right one
    is seen at once.

    Args:
        made: the import.
        sources: pictures and folders, as `run` takes them.
        target: the file to write.

    Raises:
        SourceError: a source holds no pictures.
        UsageError: no picture can be read.
        OutputError: the sheet cannot be written.
    """
    recipe, spec = made.recipe, made.model.spec
    photos, note = read_photos(sources, spec, recipe.size, PICTURES, "pictures")
    ways = _ways(made)
    maps = {
        title: reference_maps(made.graph, way, [photo.pixels for photo in photos])
        for title, way in ways.items()
    }
    if spec.output == "probability":
        maps = {title: (values >= 255 * spec.threshold).astype(np.uint8) for title, values in maps.items()}
    rows = [
        Preview(
            os.path.basename(photo.path),
            render.visible(geometry.content_of(photo.pixels, photo.placement)),
            [geometry.content_of(values[number], photo.placement) for values in maps.values()],
        )
        for number, photo in enumerate(photos)
    ]
    write_atomic(target, preview_sheet(list(ways), rows, spec.classes))
    return note


def _ways(made: Imported) -> dict[str, Recipe]:
    """What was taken, and what else could have been where that was a guess, by option."""
    recipe, guessed = made.recipe, {choice.option for choice in made.choices if choice.is_guess}
    taken = {choice.option: choice.value for choice in made.choices}
    ways = {f"as imported: {taken['range']}" if "range" in guessed else "as imported": recipe}
    if "range" in guessed:
        for name in RANGES:
            if name != taken["range"]:
                normalisation = Settings(range=name).normalisation
                assert normalisation is not None
                mean, std = (
                    values * recipe.channels if len(values) == 1 else values for values in normalisation
                )
                ways[f"--range {name}"] = replace(recipe, mean=mean, std=std)
    if "colour" in guessed:
        ways["--colour bgr"] = replace(recipe, colour="bgr")
    return ways
