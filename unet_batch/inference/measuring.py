"""From a mask to the rows of tables: how much each class takes, and what each object is like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.files.tables import ClassStats, ObjectStats
from unet_batch.inference import postprocess
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
    total = max(1, int(np.count_nonzero(known)))
    confidence = entropy = unsure = None
    if spec.output == "probability":
        content = geometry.content_of(prediction.map, frame.placement)
        if frame.missing is not None:
            content = content[~geometry.resize_flags(frame.missing, (content.shape[0], content.shape[1]))]
        if content.size:
            confidence, entropy, unsure = measure.certainty(content)
    pixel = measuring.pixel_size or measure.PixelSize.of(frame.metadata)
    rows = []
    for id, name in class_ids(spec).items():
        where = (ids == id) & known
        pixels = int(np.count_nonzero(where))
        left, top, width, height = measure.box_of(where) if pixels else (None, None, None, None)
        rows.append(
            ClassStats(
                page=None,
                name=name,
                pixels=pixels,
                share=pixels / total,
                left=left,
                top=top,
                width=width,
                height=height,
                components=None if id == _background(spec) else int(np.count_nonzero(objects.classes == id)),
                confidence=confidence,
                entropy=entropy,
                unsure=unsure,
                unlike=frame.unlike,
                area=None if pixel is None else pixels * pixel.area,
                unit="" if pixel is None else pixel.unit,
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
    intensity = measure.sum_of(objects.labels, measure.brightness(pixels), count) / found.pixels
    sure: list[float | None] = [None] * count
    if probability is not None:
        sure = list(measure.sum_of(objects.labels, probability, count) / found.pixels / 255)
    pixel = measuring.pixel_size or measure.PixelSize.of(prediction.frame.metadata)
    return [
        ObjectStats(
            page=None,
            id=at + 1,
            name=names[int(objects.classes[at])],
            pixels=int(found.pixels[at]),
            left=int(found.boxes[at, 0]),
            top=int(found.boxes[at, 1]),
            width=int(found.boxes[at, 2]),
            height=int(found.boxes[at, 3]),
            x=float(found.centroids[at, 0]),
            y=float(found.centroids[at, 1]),
            perimeter=float(found.perimeters[at]),
            orientation=math.degrees(found.orientations[at]),
            major_axis=float(found.axes[at, 0]),
            minor_axis=float(found.axes[at, 1]),
            intensity=float(intensity[at]),
            confidence=sure[at],
            area=None if pixel is None else int(found.pixels[at]) * pixel.area,
            unit="" if pixel is None else pixel.unit,
        )
        for at in range(count)
    ]


def frame_columns(spec: ModelSpec) -> tuple[str, ...]:
    """Names of what `frame_cells` gives."""
    areas = (f"area_{name}" for name in spec.classes.names)
    return (*areas, "components", "confidence", "entropy", "unsure", "unlike")


def frame_cells(
    spec: ModelSpec, prediction: Prediction, mask: Pixels, threshold: float, *, cleaned: bool = False
) -> tuple[str | int, ...]:
    """A frame of a clip in figures: how much each class covers, in how many regions of the map, how sure.

    Args:
        spec: of the model.
        prediction: of the frame.
        mask: uint8 (height, width) at the frame's own size.
        threshold: probability from which a pixel counts.
        cleaned: the mask is not all that the network said: regions are counted in it, not in the map.
    """
    content = geometry.content_of(prediction.map, prediction.frame.placement)
    if spec.output == "probability":
        areas = [np.count_nonzero(mask) / mask.size]
        regions = [np.greater_equal(content, postprocess.cut(threshold))]
        sure = [f"{value:.4f}" for value in measure.certainty(content)]
    else:
        count = len(spec.classes.names)
        areas = list(np.bincount(mask.reshape(-1), minlength=count)[:count] / mask.size)  # or `cleanup.NONE`
        regions = [content == id for id in range(count) if id != spec.classes.background]
        sure = [""] * 3  # ids say nothing of it
    if cleaned:
        ids = [255] if spec.output == "probability" else range(len(spec.classes.names))
        regions = [mask == id for id in ids if id != _background(spec)]
    components = sum(measure.count_components(region) for region in regions)
    unlike = prediction.frame.unlike
    return (*(f"{area:.6f}" for area in areas), components, *sure, "" if unlike is None else f"{unlike:.3f}")


def _background(spec: ModelSpec) -> int | None:
    return spec.classes.background if spec.output == "class_ids" else 0
