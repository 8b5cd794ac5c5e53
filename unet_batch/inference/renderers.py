"""How each kind of output of a picture is made of its result: as pixels, and as the contents of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.errors import UsageError
from unet_batch.inference import postprocess
from unet_batch.media import backdrop, geometry, images, render
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.inference.result import Result
    from unet_batch.media.cleanup import Cleanup
    from unet_batch.types import ModelSpec, Pixels, Size


def _mask(result: Result) -> bytes:
    prediction = result._done("mask")
    frame = prediction.frame
    # Without the picture's pixels no overlay needs the mask, too: it is drawn where it is encoded
    kept = "mask" in vars(result) or frame.pixels is not None or bool(result.cleanup.facts())
    if kept or result.spec.output == "class_ids":
        assert result.mask is not None
        return images.encode_mask(result.mask)
    canvas = images.mask_canvas(frame.placement.source)
    mask = postprocess.mask_from_map(prediction.map, frame.placement, result.threshold, canvas)
    return images.encode_mask(postprocess.blank(mask, frame.missing))


def _probability16(result: Result) -> NDArray[np.uint16]:
    prediction = result._one_class("prob16")
    if result.refine:
        values = result._refined.copy()
    else:
        values = postprocess.probability16(prediction.map, prediction.frame.placement)
    return postprocess.blank(values, prediction.frame.missing)


def _probability32(result: Result) -> NDArray[np.float32]:
    prediction = result._one_class("prob32")
    values: NDArray[np.float32] = _probability16(result) * np.float32(1 / 65535)
    if prediction.frame.missing is not None:
        values[geometry.resize_flags(prediction.frame.missing, values.shape)] = np.nan
    return values


def _jpeg(pixels: Pixels, metadata: Metadata) -> bytes:
    size = fit_jpeg(*pixels.shape[:2])
    if size != pixels.shape[:2]:
        pixels = render.shrink(pixels, size)
    return images.encode_jpeg(pixels, metadata=metadata)


def _drawing(kind: str) -> Callable[[Result], bytes]:
    """The renderer of a kind that is a photo with something drawn on it."""
    return lambda result: _jpeg(result.draw(kind), result._done(kind).frame.metadata)


def _private(kind: str) -> Callable[[Result], bytes]:
    """The same, without what its file says: that may hold a preview, and tell where it was taken."""
    return lambda result: _jpeg(result.draw(kind), Metadata(dpi=result._done(kind).frame.metadata.dpi))


def fit_jpeg(height: int, width: int) -> Size:
    """The size of an overlay: the picture's own, or the largest of its shape that a JPEG holds."""
    scale = min(1.0, images.JPEG_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _cutout(result: Result) -> bytes:
    rgba, metadata = _cropped(result, result.cutout()), result._done("cutout").frame.metadata
    if result.style.cutout_format == "png":
        return images.encode_rgba(rgba, metadata)
    if result.style.cutout_format == "webp":
        return images.encode_webp(rgba, metadata=metadata)
    return images.encode_jpeg(backdrop.before(rgba, np.full_like(rgba[..., :3], 255)), metadata=metadata)


def _background(result: Result) -> bytes:
    return _jpeg(_cropped(result, result.on_background()), result._done("background").frame.metadata)


def _cropped(result: Result, drawn: Pixels) -> Pixels:
    """What is seen of the object, if that is the style; all where nothing is."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(result.cutout()[..., 3]))
    if not result.style.crop or not width:
        return drawn
    return np.ascontiguousarray(drawn[top : top + height, left : left + width])


def check_object(spec: ModelSpec, cleanup: Cleanup, what: str) -> None:
    """See that a model tells an object from the rest.

    Raises:
        UsageError: it has several classes, of which none is called background and none are chosen.
    """
    if spec.output == "class_ids" and spec.classes.background is None and not cleanup.classes:
        raise UsageError(
            f"no {what}: none of the {len(spec.classes.names)} classes of {spec.name} is a background: a "
            "picture would be all object",
            hint=f"--classes says which are: --classes {spec.classes.names[0]}",
        )


def class_ids_of(result: Result) -> Pixels:
    """Class ids: 1 for the only class."""
    mask = result._drawn_mask()
    return mask if result.spec.output == "class_ids" else mask // np.uint8(255)


def missing_of(result: Result) -> NDArray[np.bool_] | None:
    """Where the picture has no value, at its own size: bool (height, width), or None."""
    frame = result._done("missing").frame
    return None if frame.missing is None else geometry.resize_flags(frame.missing, frame.placement.source)


def _geotiff(result: Result) -> bytes:
    metadata = result._done("geotiff").frame.metadata
    return images.encode_geotiff(class_ids_of(result), missing_of(result), metadata)


def _segment_ids(result: Result) -> Pixels:
    """Class ids, NODATA where the picture has no value."""
    missing = missing_of(result)
    return (
        class_ids_of(result)
        if missing is None
        else np.where(missing, np.uint8(images.NODATA), class_ids_of(result))
    )


def _dicomseg(result: Result) -> bytes:
    spec = result.spec
    return images.encode_dicomseg(result.path, {0: _segment_ids(result)}, spec.classes, spec.name)


RENDERERS: Mapping[str, Callable[[Result], bytes]] = {
    "mask": _mask,
    "overlay": _drawing("overlay"),
    "contour": _drawing("contour"),
    "sheet": _drawing("sheet"),
    "cutout": _cutout,
    "background": _background,
    "blur": _private("blur"),
    "pixelate": _private("pixelate"),
    "palette": lambda result: images.encode_palette(class_ids_of(result), result._palette()),
    "prob": lambda result: images.encode_map(result.probability),
    "prob16": lambda result: images.encode_map(_probability16(result)),
    "prob32": lambda result: images.encode_floats(_probability32(result), result._done("").frame.metadata),
    "instances": lambda result: images.encode_map(result.instances),
    "stats": lambda result: result.rows("stats"),
    "objects": lambda result: result.rows("objects"),
    "geotiff": _geotiff,
    "dicomseg": _dicomseg,
}
"""How each kind of `files.outputs.KINDS` that pictures have is made."""

DRAWN: Mapping[str, Callable[[Result], NDArray[Any]]] = {
    "mask": lambda result: result._drawn_mask(),
    "overlay": lambda result: result.overlay(),
    "contour": lambda result: result.contour(),
    "sheet": lambda result: result.sheet(),
    "cutout": lambda result: result.cutout(),
    "background": lambda result: result.on_background(),
    "blur": lambda result: result.hidden("blur"),
    "pixelate": lambda result: result.hidden("pixelate"),
    "palette": lambda result: result._coloured(),
    "prob": lambda result: result.probability,
    "prob16": _probability16,
    "prob32": _probability32,
    "instances": lambda result: result.instances,
    "geotiff": class_ids_of,
    "dicomseg": _segment_ids,
}
"""The same, as pixels, of those that are pictures."""
