"""From a mask to the rows of tables: how much each class takes, and what each object is like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.files.tables import ClassStats, ObjectStats
from unet_batch.inference import postprocess
from unet_batch.media import geometry, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from unet_batch.media.measure import Floats, Measuring, Objects, PixelSize, Regions
    from unet_batch.types import ModelSpec, Pixels, Prediction


def class_ids(spec: ModelSpec) -> dict[int, str]:
    """The classes by the ids that a mask has of them: the only one is 1."""
    return dict(enumerate(spec.classes.names, int(spec.output == "probability")))


def countable(spec: ModelSpec) -> list[int]:
    """The ids of all classes but a background."""
    return [id for id in class_ids(spec) if id != background(spec)]


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
    return measure.find_objects(ids, countable(spec), measuring.watershed)


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
    total = int(np.count_nonzero(known))
    confidence = entropy = unsure = None
    if spec.output == "probability":
        content = geometry.content_of(prediction.map, frame.placement)
        if frame.missing is not None:
            content = content[~geometry.resize_flags(frame.missing, (content.shape[0], content.shape[1]))]
        if content.size:
            confidence, entropy, unsure = measure.certainty(content)
    places = {}
    for id in class_ids(spec):
        where = (ids == id) & known
        if pixels := int(np.count_nonzero(where)):
            places[id] = (pixels, measure.box_of(where))
    return class_rows(
        spec,
        places,
        total,
        np.bincount(objects.classes, minlength=256),
        (confidence, entropy, unsure),
        frame.unlike,
        measuring.pixel_size or measure.PixelSize.of(frame.metadata),
    )


def class_rows(
    spec: ModelSpec,
    places: Mapping[int, tuple[int, tuple[int, int, int, int]]],
    total: int,
    components: NDArray[np.integer],
    certainty: tuple[float | None, float | None, float | None],
    unlike: float | None,
    pixel: PixelSize | None,
) -> list[ClassStats]:
    """Rows of the table `stats`.

    Args:
        spec: of the model.
        places: of each class that is there by its id: its pixels, and left, top, width, height of its box.
        total: pixels that have a value.
        components: of each id how many there are, (256,).
        certainty: means of confidence and entropy, and share of unsure pixels; None where nobody can say.
        unlike: as a `Frame` has it.
        pixel: what a pixel measures.
    """
    rows, (confidence, entropy, unsure) = [], certainty
    for id, name in class_ids(spec).items():
        pixels, (left, top, width, height) = places.get(id, (0, (None,) * 4))
        rows.append(
            ClassStats(
                page=None,
                name=name,
                pixels=pixels,
                share=pixels / max(1, total),
                left=left,
                top=top,
                width=width,
                height=height,
                components=None if id == background(spec) else int(components[id]),
                confidence=confidence,
                entropy=entropy,
                unsure=unsure,
                unlike=unlike,
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
    found, count = measure.measure_regions(objects.labels), len(objects.classes)
    intensity = measure.sum_of(objects.labels, measure.brightness(pixels), count) / found.pixels
    sure = None
    if probability is not None:
        sure = measure.sum_of(objects.labels, probability, count) / found.pixels / 255
    pixel = measuring.pixel_size or measure.PixelSize.of(prediction.frame.metadata)
    return list(object_rows(class_ids(spec), objects.classes, found, intensity, sure, pixel))


def object_rows(
    names: Mapping[int, str],
    classes: NDArray[np.integer],
    found: Regions,
    intensity: Floats | None,
    confidence: Floats | None,
    pixel: PixelSize | None,
    first: int = 1,
) -> Iterator[ObjectStats]:
    """Rows of the table `objects`.

    Args:
        names: of the classes by their ids.
        classes: of each object.
        found: their figures.
        intensity, confidence: their means; None where nobody can say.
        pixel: what a pixel measures.
        first: number of the first of them.
    """
    for at, id in enumerate(classes):
        pixels, (left, top, width, height) = int(found.pixels[at]), found.boxes[at].tolist()
        yield ObjectStats(
            page=None,
            id=first + at,
            name=names[int(id)],
            pixels=pixels,
            left=left,
            top=top,
            width=width,
            height=height,
            x=float(found.centroids[at, 0]),
            y=float(found.centroids[at, 1]),
            perimeter=float(found.perimeters[at]),
            orientation=math.degrees(found.orientations[at]),
            major_axis=float(found.axes[at, 0]),
            minor_axis=float(found.axes[at, 1]),
            intensity=None if intensity is None else float(intensity[at]),
            confidence=None if confidence is None else float(confidence[at]),
            area=None if pixel is None else pixels * pixel.area,
            unit="" if pixel is None else pixel.unit,
        )


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
        regions = [mask == id for id in ids if id != background(spec)]
    components = sum(measure.count_components(region) for region in regions)
    unlike = prediction.frame.unlike
    return (*(f"{area:.6f}" for area in areas), components, *sure, "" if unlike is None else f"{unlike:.3f}")


def background(spec: ModelSpec) -> int | None:
    """The id of the background, as `class_ids` has them; None where no class is one."""
    return spec.classes.background if spec.output == "class_ids" else 0
