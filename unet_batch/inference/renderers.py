"""How each kind of output of a picture is made: as pixels, and as the contents of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.inference import postprocess
from unet_batch.inference.segmented import SegmentedPicture, palette_of
from unet_batch.media import backdrop, images, render
from unet_batch.types import Metadata, Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Size

Renderer = Callable[[SegmentedPicture, Prediction], bytes]
"""Given a picture and its prediction, which is there: one that failed has no outputs."""


def _mask(picture: SegmentedPicture, prediction: Prediction) -> bytes:
    frame = prediction.frame
    # Without the picture's pixels no overlay needs the mask, too: it is drawn where it is encoded
    kept = "mask" in vars(picture) or frame.pixels is not None or bool(picture.cleanup.facts())
    if kept or picture.spec.output == "class_ids":
        return images.encode_mask(_whole_mask(picture))
    canvas = images.mask_canvas(frame.placement.source)
    mask = postprocess.mask_from_map(prediction.map, frame.placement, picture.threshold, canvas)
    return images.encode_mask(postprocess.blank(mask, frame.missing))


def _whole_mask(picture: SegmentedPicture) -> Pixels:
    assert picture.mask is not None, "one that failed has no outputs"
    return picture.mask


def _jpeg(pixels: Pixels, metadata: Metadata) -> bytes:
    size = fit_jpeg(*pixels.shape[:2])
    if size != pixels.shape[:2]:
        pixels = render.shrink(pixels, size)
    return images.encode_jpeg(pixels, metadata=metadata)


def _drawing(kind: str) -> Renderer:
    """The renderer of a kind that is a photo with something drawn on it."""
    return lambda picture, prediction: _jpeg(DRAWN[kind](picture), prediction.frame.metadata)


def _private(kind: str) -> Renderer:
    """The same, without what its file says: that may hold a preview, and tell where it was taken."""
    return lambda picture, prediction: _jpeg(
        DRAWN[kind](picture), Metadata(dpi=prediction.frame.metadata.dpi)
    )


def fit_jpeg(height: int, width: int) -> Size:
    """The size of an overlay: the picture's own, or the largest of its shape that a JPEG holds."""
    scale = min(1.0, images.JPEG_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _cutout(picture: SegmentedPicture, prediction: Prediction) -> bytes:
    rgba, metadata = _cropped(picture, picture.cutout()), prediction.frame.metadata
    if picture.style.cutout_format == "png":
        return images.encode_rgba(rgba, metadata)
    if picture.style.cutout_format == "webp":
        return images.encode_webp(rgba, metadata=metadata)
    return images.encode_jpeg(backdrop.before(rgba, np.full_like(rgba[..., :3], 255)), metadata=metadata)


def _background(picture: SegmentedPicture, prediction: Prediction) -> bytes:
    return _jpeg(_cropped(picture, picture.on_background()), prediction.frame.metadata)


def _cropped(picture: SegmentedPicture, drawn: Pixels) -> Pixels:
    """What is seen of the object, if that is the style; all where nothing is."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(picture.cutout()[..., 3]))
    if not picture.style.crop or not width:
        return drawn
    return np.ascontiguousarray(drawn[top : top + height, left : left + width])


def _geotiff(picture: SegmentedPicture, prediction: Prediction) -> bytes:
    return images.encode_geotiff(picture.class_ids, picture.missing, prediction.frame.metadata)


def _segment_ids(picture: SegmentedPicture) -> Pixels:
    """Class ids, NODATA where the picture has no value."""
    ids, missing = picture.class_ids, picture.missing
    return ids if missing is None else np.where(missing, np.uint8(images.NODATA), ids)


def _dicomseg(picture: SegmentedPicture, _: Prediction) -> bytes:
    spec = picture.spec
    return images.encode_dicomseg(picture.path, {0: _segment_ids(picture)}, spec.classes, spec.name)


RENDERERS: Mapping[str, Renderer] = {
    "mask": _mask,
    "overlay": _drawing("overlay"),
    "contour": _drawing("contour"),
    "sheet": _drawing("sheet"),
    "cutout": _cutout,
    "background": _background,
    "blur": _private("blur"),
    "pixelate": _private("pixelate"),
    "palette": lambda picture, _: images.encode_palette(picture.class_ids, palette_of(picture.spec)),
    "prob": lambda picture, _: images.encode_map(picture.probability),
    "prob16": lambda picture, _: images.encode_map(picture.probability16),
    "prob32": lambda picture, prediction: images.encode_floats(
        picture.probability32, prediction.frame.metadata
    ),
    "instances": lambda picture, _: images.encode_map(picture.instances),
    "stats": lambda picture, _: picture.rows("stats"),
    "objects": lambda picture, _: picture.rows("objects"),
    "geotiff": _geotiff,
    "dicomseg": _dicomseg,
}
"""How each kind of `files.outputs.KINDS` that pictures have is made."""

DRAWN: Mapping[str, Callable[[SegmentedPicture], NDArray[Any]]] = {
    "mask": _whole_mask,
    "overlay": lambda picture: picture.overlay(),
    "contour": lambda picture: picture.contour(),
    "sheet": lambda picture: picture.sheet(),
    "cutout": lambda picture: picture.cutout(),
    "background": lambda picture: picture.on_background(),
    "blur": lambda picture: picture.hidden("blur"),
    "pixelate": lambda picture: picture.hidden("pixelate"),
    "palette": lambda picture: picture.coloured(),
    "prob": lambda picture: picture.probability,
    "prob16": lambda picture: picture.probability16,
    "prob32": lambda picture: picture.probability32,
    "instances": lambda picture: picture.instances,
    "geotiff": lambda picture: picture.class_ids,
    "dicomseg": _segment_ids,
}
"""The same, as pixels, of those that are pictures."""
