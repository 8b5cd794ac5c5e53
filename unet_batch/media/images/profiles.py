"""Colour profiles: pixels to sRGB by Little CMS, once, as they are decoded.

Relative colorimetric with black point compensation, as photo editors convert. Whether a profile is sRGB is not
asked of its name or bytes: one that moves no colour by more than two levels is, and costs nothing.
"""

from __future__ import annotations

import functools
import struct
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from unet_batch.types import Pixels

_NEAR = 2
_MODES = {2: "L", 3: "RGB", 4: "CMYK"}  # by the dimensions of an array, and its channels
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_WORDS = {"GRAY": "grey", "RGB": "RGB", "CMYK": "CMYK", "Lab": "L*a*b*"}
# Chromaticities of red, green, blue by the number that PNG's cICP and ISO 23091-2 give the primaries; the white
# point of both is D65.
_PRIMARIES = {
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_D65 = (0.3127, 0.3290, 1.0)


def to_srgb(values: Pixels, profile: bytes | None) -> tuple[Pixels, tuple[str, ...]]:
    """Convert pixels to sRGB; safe to call from many threads.

    20 megapixels of RGB take 0.3 s on one core, nothing where the profile is absent or sRGB's.

    Args:
        values: uint8; grey (h, w), RGB (h, w, 3), or CMYK (h, w, 4) where 255 is full ink.
        profile: an ICC profile; None takes grey and RGB as sRGB, and CMYK by the plain formula.

    Returns:
        RGB (h, w, 3), the array itself where nothing is to be done; and what people should know: that the
        profile was ignored, since it is damaged or made for other pixels.
    """
    mode = _MODES[values.ndim if values.ndim == 2 else values.shape[2]]
    transform, notes = _transform(profile, mode) if profile else (None, ())
    if mode == "L":
        levels = values if transform is None else cv2.LUT(values, _apply(transform, _RAMP, "L")[0, :, 1])
        return cast("Pixels", cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB)), notes
    if transform is not None:
        return _apply(transform, values, mode), notes
    if mode == "CMYK":
        return np.array(Image.fromarray(values, "CMYK").convert("RGB")), notes
    return values, notes


_RAMP: Pixels = np.arange(256, dtype=np.uint8)[None]


def _apply(transform: Any, values: Pixels, mode: str) -> Pixels:
    image = Image.fromarray(values) if mode != "CMYK" else Image.frombytes("CMYK", values.shape[1::-1], values)
    return np.array(transform.apply(image), np.uint8)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[Any, tuple[str, ...]]:
    """Make the conversion of a profile; None where there is nothing to convert, with the reason if any."""
    from PIL import ImageCms

    ignored = "its colours are taken as sRGB" if mode != "CMYK" else "its inks are converted plainly"
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != _SPACES[mode]:
            theirs, ours = _WORDS.get(space, space), _WORDS[_SPACES[mode]]
            return None, (f"its colour profile is one for {theirs}, the picture is {ours}: {ignored}",)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform, ()
        if mode == "L":
            probe, plain = _RAMP, np.repeat(_RAMP[..., None], 3, axis=2)
        else:
            steps = np.linspace(0, 255, 18).astype(np.uint8)
            probe = plain = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
        moved = np.abs(_apply(transform, probe, mode).astype(np.int16) - plain).max()
    except Exception:  # noqa: BLE001 - of a hostile profile Little CMS and Pillow say anything
        return None, (f"its colour profile is damaged: {ignored}",)
    return (None if moved <= _NEAR else transform), ()


@functools.cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, the same bytes at every call: Little CMS writes the time into it."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    profile[84:100] = bytes(16)  # the checksum, which may be absent
    return bytes(profile)


@functools.cache
def coded_profile(primaries: int, transfer: int) -> tuple[bytes | None, tuple[str, ...]]:
    """ICC profile of the code points that PNG's cICP chunk gives; None for sRGB's own, and for unknown ones.

    High dynamic range (PQ, HLG) has no place in 8 bits of sRGB: taken as it is, with a note.
    """
    if transfer in (16, 18):
        return None, (f"high dynamic range ({'PQ' if transfer == 16 else 'HLG'}): its values are taken as sRGB",)
    if primaries not in _PRIMARIES or transfer not in (1, 6, 13, 14, 15):
        return None, ()
    import imagecodecs

    red_x, red_y, green_x, green_y, blue_x, blue_y = _PRIMARIES[primaries]
    profile = imagecodecs.cms_profile(
        "rgb",
        whitepoint=_D65,
        primaries=(red_x, red_y, 1.0, green_x, green_y, 1.0, blue_x, blue_y, 1.0),
        transferfunction=_srgb_curve(),
    )
    return profile, ()


def _srgb_curve() -> Any:
    level = np.linspace(0, 1, 1024)
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return np.rint(65535 * linear).astype(np.uint16)
