"""From a mask to the rows of tables: how much each class takes, and what each object is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unet_batch.files.tables import ClassStats, ObjectStats
from unet_batch.media import geometry, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.media.measure import Measuring, Objects
    from unet_batch.types import ModelSpec, Pixels, Prediction


def class_ids(spec: ModelSpec) -> dict[int, str]:
    """The classes by the ids that a mask has of them: the only one is 1."""
    return dict(enumerate(spec.classes.names, int(spec.output == "probability")))


def find_objects(
    spec: ModelSpec, ids: Pixels, missing: NDArray[np.bool_] | None, measuring: Measuring
) -> Objects:
    """Find the components of all classes but a background.

    Args:
        spec: of the model.
        ids: uint8 (height, width), the class of every pixel as `class_ids` has it.
        missing: bool (height, width), True where the picture has no value; None where it has one everywhere.
        measuring: how they are told apart.
    """
    if missing is not None:
        ids = np.where(missing, np.uint8(255), ids)  # more than there are classes
    return measure.find_objects(
        ids, [id for id in class_ids(spec) if id != _background(spec)], measuring.watershed
    )


def stats_of(
    spec: ModelSpec,
    prediction: Prediction,
    ids: Pixels,
    missing: NDArray[np.bool_] | None,
    objects: Objects,
    measuring: Measuring,
) -> list[ClassStats]:
    """How much of a picture each class takes; see `find_objects` for the arguments."""
    frame, known = prediction.frame, np.ones(ids.shape, np.bool_) if missing is None else ~missing
    total = max(1, np.count_nonzero(known))
    sure: tuple[float | None, ...] = (None, None, None)
    if spec.output == "probability":
        content = geometry.content_of(prediction.map, frame.placement)
        if frame.missing is not None:
            content = content[~geometry.resize_flags(frame.missing, (content.shape[0], content.shape[1]))]
        sure = measure.certainty(content) if content.size else sure
    pixel = measuring.pixel_size or measure.PixelSize.of(frame.metadata)
    rows = []
    for id, name in class_ids(spec).items():
        where = (ids == id) & known
        pixels, box = np.count_nonzero(where), measure.box_of(where)
        components = None if id == _background(spec) else np.count_nonzero(objects.classes == id)
        rows.append(
            ClassStats(
                None,
                name,
                pixels,
                pixels / total,
                *(box or (None, None, None, None)),
                components,
                *sure,
                frame.unlike,
                None if pixel is None else pixels * pixel.area,
                "" if pixel is None else pixel.unit,
            )
        )
    return rows


def objects_of(
    spec: ModelSpec,
    prediction: Prediction,
    objects: Objects,
    pixels: Pixels,
    probability: Pixels | None,
    measuring: Measuring,
) -> list[ObjectStats]:
    """What each object is like.

    Args:
        spec: of the model.
        prediction: of the picture.
        objects: of its mask.
        pixels: RGB uint8 (height, width, 3), the picture as a person sees it.
        probability: uint8 (height, width), round(255 p); None of a model of several classes.
        measuring: how they are measured.
    """
    names, count = class_ids(spec), len(objects.classes)
    found = measure.measure_regions(objects.labels)
    intensity = measure.mean_of(objects.labels, measure.brightness(pixels), count)
    confidence = [None] * count
    if probability is not None:
        confidence = (measure.mean_of(objects.labels, probability, count) / 255).tolist()
    pixel = measuring.pixel_size or measure.PixelSize.of(prediction.frame.metadata)
    areas = [None] * count if pixel is None else (found.pixels * pixel.area).tolist()
    columns = zip(
        range(1, count + 1),
        (names[id] for id in objects.classes.tolist()),
        found.pixels.tolist(),
        *found.boxes.T.tolist(),
        *found.centroids.T.tolist(),
        found.perimeters.tolist(),
        np.degrees(found.orientations).tolist(),
        *found.axes.T.tolist(),
        intensity.tolist(),
        confidence,
        areas,
        strict=True,
    )
    return [ObjectStats(None, *row, "" if pixel is None else pixel.unit) for row in columns]


def _background(spec: ModelSpec) -> int | None:
    return spec.classes.background if spec.output == "class_ids" else 0
