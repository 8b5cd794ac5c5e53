"""Put an object before another background: a colour, a picture, or its own picture out of focus."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from unet_batch.errors import ImageError, UsageError
from unet_batch.files.outputs import BLUR
from unet_batch.media import images

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

_SMALL = 200  # pixels of a shorter side at which a picture is blurred
_FOCUS = 4.0  # standard deviation there: a fiftieth of the shorter side


def check(background: str) -> None:
    """See that a background can be drawn.

    Args:
        background: a colour, the path of a picture, or "blur".

    Raises:
        UsageError: it is none of them.
    """
    if background != BLUR and images.parse_colour(background) is None:
        _read(background)


def behind(background: str, pixels: Pixels, alpha: Pixels) -> Pixels:
    """What is behind an object.

    Args:
        background: a colour, the path of a picture, which covers all, or "blur".
        pixels: RGB uint8 (h, w, 3), with the object.
        alpha: uint8 (h, w), how much of each pixel is the object.

    Returns:
        RGB uint8 (h, w, 3); not to be written to.

    Raises:
        UsageError: the background is none of these.
    """
    if background == BLUR:
        return out_of_focus(pixels, alpha)
    if (colour := images.parse_colour(background)) is not None:
        return np.broadcast_to(np.array(colour, np.uint8), pixels.shape)
    return _covered(background, alpha.shape)


@functools.lru_cache(maxsize=1)
def _read(path: str) -> Pixels:
    try:
        return images.read(path).pixels
    except ImageError as error:
        raise UsageError(
            f"--background {path}: no colour, and no picture: {error.message}",
            hint='a colour such as white or "#ff8800", the path of a picture, or blur',
        ) from error


@functools.lru_cache(maxsize=1)  # all frames of a clip have the same
def _covered(path: str, size: Size) -> Pixels:
    return cover(_read(path), size)


def before(rgba: Pixels, background: Pixels) -> Pixels:
    """Lay a picture with alpha over another one of its size.

    Args:
        rgba: uint8 (h, w, 4), straight alpha.
        background: RGB uint8 (h, w, 3).

    Returns:
        RGB uint8 (h, w, 3), a new array.
    """
    own, alpha = rgba[..., :3], rgba[..., 3]
    out: Pixels = np.array(background, order="C")
    cv2.copyTo(np.ascontiguousarray(own), np.equal(alpha, 255).view(np.uint8), out)
    soft = np.subtract(alpha, np.uint8(1)) < 254
    share = alpha[soft].astype(np.uint16)[:, None]
    out[soft] = (own[soft] * share + background[soft] * (255 - share) + 127) // 255
    return out


def cover(picture: Pixels, size: Size) -> Pixels:
    """A picture at another size, its middle, without a change of its proportions: uint8 (*size, 3)."""
    height, width = size
    scale = max(height / picture.shape[0], width / picture.shape[1])
    rows, columns = (
        min(there, max(1, round(wanted / scale)))
        for there, wanted in zip(picture.shape[:2], size, strict=True)
    )
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    part = picture[top : top + rows, left : left + columns]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cast("Pixels", cv2.resize(part, (width, height), interpolation=method))


def out_of_focus(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Blur a picture as if the focus were on its object, whose colours do not run into the rest.

    Args:
        pixels: RGB uint8 (h, w, 3).
        alpha: uint8 (h, w), how much of each pixel is the object.

    Returns:
        RGB uint8 (h, w, 3).
    """
    height, width = alpha.shape
    step = max(1.0, min(height, width) / _SMALL)
    size = max(1, round(width / step)), max(1, round(height / step))
    rest = np.where(alpha > 0, np.uint8(0), np.uint8(255))
    seen = cv2.copyTo(pixels, rest, np.zeros_like(pixels))
    small = cv2.resize(seen, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    share = cv2.resize(rest, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    deviation = _FOCUS if step > 1 else max(1.0, min(height, width) / _SMALL * _FOCUS)
    colours, weight = (cv2.GaussianBlur(part, (0, 0), deviation) for part in (small, share))
    blurred = np.rint(colours / np.maximum(weight, 1e-3)[..., None]).clip(0, 255).astype(np.uint8)
    return cast("Pixels", cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR))
