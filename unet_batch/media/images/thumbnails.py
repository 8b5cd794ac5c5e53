"""Encode thumbnails: photos as small JPEGs, masks as palette PNGs that are clear where nothing is marked."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
import simplejpeg
from PIL import Image

if TYPE_CHECKING:
    from unet_batch.types import ClassTable, Pixels, Size

_QUALITY = 80
_LEVELS = 15  # of coverage: with "nothing" a palette of 4 bits


def fit(size: Size, box: Size) -> Size:
    """The largest (height, width) of the proportions of `size` inside `box`; never larger than `size`."""
    scale = min(box[0] / size[0], box[1] / size[1], 1)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def encode_photo_thumbnail(pixels: Pixels, size: Size) -> bytes:
    """Shrink RGB uint8 (h, w, 3) to `size`, and encode it as a JPEG without profile or metadata."""
    small = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    return cast("bytes", simplejpeg.encode_jpeg(np.ascontiguousarray(small), _QUALITY, "RGB", "420"))


def encode_mask_thumbnail(mask: Pixels, size: Size, classes: ClassTable) -> bytes:
    """Shrink a mask to `size`, and encode it as a PNG in the colours of its classes.

    Of one class the edge is soft, and an object of a single pixel still shows; of several the ids are those
    in the middle of each pixel, and the background is clear.

    Args:
        mask: uint8 (h, w): 0 or 255 for a table of one class, ids for several.
        size: (height, width).
        classes: names and colours.
    """
    if len(classes.names) == 1:
        covered = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA)
        places = ((covered.astype(np.uint16) * _LEVELS + 254) // 255).astype(np.uint8)
        colours = classes.colours * (_LEVELS + 1)
        opacity = bytes(round(255 * level / _LEVELS) for level in range(_LEVELS + 1))
    else:
        places = cast("Pixels", cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST))
        colours = classes.colours
        opacity = bytes(0 if id == classes.background else 255 for id in range(len(colours)))
        places = np.minimum(places, np.uint8(min(255, len(colours))))  # ids that no class has are clear
        if len(colours) < 256:
            colours, opacity = (*colours, (0, 0, 0)), opacity + b"\0"
    image = Image.fromarray(places, "L")
    image.putpalette(bytes(value for colour in colours for value in colour))
    data = BytesIO()
    image.save(data, "PNG", transparency=opacity, bits=4 if len(colours) <= 16 else 8, optimize=False)
    return data.getvalue()
