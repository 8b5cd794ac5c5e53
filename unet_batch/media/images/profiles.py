"""Colour profiles: pixels to sRGB by Little CMS, once, as they are decoded.

Relative colorimetric with black point compensation, as photo editors convert. Whether a profile is sRGB is
not asked of its name or bytes: one that moves no colour by more than two levels is, and costs nothing. Little
CMS comes with imagecodecs, which calls it on arrays: by Pillow it takes twice the time, for copies.
"""

from __future__ import annotations

import functools
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from unet_batch.types import Pixels

_NEAR = 2
_RELATIVE_COLORIMETRIC, _BLACK_POINT_COMPENSATION = 1, 0x2000
_SPACES = {
    1: "GRAY",
    3: "RGB",
    4: "CMYK",
}  # by the number of channels, as bytes 16 to 20 of a profile name them
_WORDS = {"GRAY": "grey", "Lab": "L*a*b*"}
# Chromaticities of red, green, blue by the number that PNG's cICP and ISO 23091-2 give the primaries; the
# white point of both is D65.
_PRIMARIES = {
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_D65 = (0.3127, 0.3290, 1.0)
_RAMP: Pixels = np.arange(256, dtype=np.uint8)[None]


def to_srgb(values: Pixels, profile: bytes | None) -> tuple[Pixels, tuple[str, ...]]:
    """Convert pixels to sRGB; safe to call from many threads.

    20 megapixels of Display P3 take 0.3 s on one core, where decoding them from a JPEG takes 0.08 s.

    Args:
        values: uint8; grey (h, w), RGB (h, w, 3), or CMYK (h, w, 4) where 255 is full ink.
        profile: an ICC profile; None takes grey and RGB as sRGB, and CMYK by the plain formula.

    Returns:
        RGB (h, w, 3), the array itself where nothing is to be done; and what people should know: that the
        profile was ignored, since it is damaged or made for other pixels.
    """
    space = _SPACES[1 if values.ndim == 2 else values.shape[2]]
    moves, notes = (False, ()) if not profile or _is_ours(profile, space) else _examine(profile, space)
    if space == "GRAY":
        if moves:
            values = cast("Pixels", cv2.LUT(values, _convert(_RAMP, cast("bytes", profile), space)[0, :, 1]))
        return cast("Pixels", cv2.cvtColor(values, cv2.COLOR_GRAY2RGB)), notes
    if moves:
        return _convert(values, cast("bytes", profile), space), notes
    if space == "CMYK":
        inks = Image.frombuffer(
            "CMYK", values.shape[1::-1], np.ascontiguousarray(values), "raw", "CMYK", 0, 1
        )
        return np.array(inks.convert("RGB")), notes
    return values, notes


def _convert(values: Pixels, profile: bytes, space: str) -> Pixels:
    import imagecodecs

    converted: Pixels = imagecodecs.cms_transform(
        np.ascontiguousarray(values),
        profile,
        srgb_profile(),
        colorspace=space.lower(),
        outcolorspace="rgb",
        intent=_RELATIVE_COLORIMETRIC,
        flags=_BLACK_POINT_COMPENSATION,
    )
    return converted


@functools.lru_cache(maxsize=16)
def _examine(profile: bytes, space: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a profile moves colours, and why it is ignored if it is."""
    instead = "its inks are converted plainly" if space == "CMYK" else "its colours are taken as sRGB"
    theirs = profile[16:20].decode("latin-1").strip()
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    try:
        if profile[36:40] == b"acsp" and theirs != space:
            kinds = f"{_WORDS.get(theirs, theirs)}, the picture is {_WORDS.get(space, space)}"
            return False, (f"its colour profile is one for {kinds}: {instead}",)
        if space == "CMYK":
            _convert(np.zeros((1, 1, 4), np.uint8), profile, space)
            return True, ()
        plain = grid if space == "RGB" else np.repeat(_RAMP[..., None], 3, axis=2)
        probe = grid if space == "RGB" else _RAMP
        moved = np.abs(_convert(probe, profile, space).astype(np.int16) - plain).max()
    except (RuntimeError, ValueError):
        return False, (f"its colour profile is damaged: {instead}",)
    return bool(moved > _NEAR), ()


def _is_ours(profile: bytes, space: str) -> bool:
    """Whether it is the one that is written here, which needs no look."""
    return space == "RGB" and profile == srgb_profile()


@functools.cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, 588 bytes, the same in every run: Little CMS writes the time into it.

    By Pillow's Little CMS, whose bytes are imagecodecs': most photos need no other use of that library.
    """
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    profile[84:100] = bytes(16)  # the checksum, which may be absent
    return bytes(profile)


def named_profile(image: Image.Image) -> bytes | None:
    """The profile of a JPEG that has none, but is Adobe RGB by the name that cameras give it (DCF: "R03")."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and b"R03\0" in exif and image.mode == "RGB":
        with suppress(Exception):  # damaged EXIF
            if image.getexif().get_ifd(0xA005)[1] == "R03":
                return _adobe_rgb_profile()
    return None


@functools.cache
def _adobe_rgb_profile() -> bytes:
    import imagecodecs

    profile: bytes = imagecodecs.cms_profile(
        "rgb",
        whitepoint=_D65,
        primaries=(0.64, 0.33, 1.0, 0.21, 0.71, 1.0, 0.15, 0.06, 1.0),
        gamma=2.19921875,
    )
    return profile


@functools.cache
def coded_profile(primaries: int, transfer: int) -> tuple[bytes | None, tuple[str, ...]]:
    """ICC profile of the code points that PNG's cICP chunk gives; None for sRGB's own, and for unknown ones.

    High dynamic range (PQ, HLG) has no place in 8 bits of sRGB: taken as it is, with a note.
    """
    if transfer in (16, 18):
        return None, (
            f"high dynamic range ({'PQ' if transfer == 16 else 'HLG'}): its values are taken as sRGB",
        )
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
