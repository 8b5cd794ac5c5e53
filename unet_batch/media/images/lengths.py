"""How large pixels are, where formats of microscopes and scanners say it in a way of their own."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tifffile import TiffFile

_MILLIMETRES = {
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("um", "µm", "μm", "\\u00B5m", "micron", "microns", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("in", "inch"), 25.4),
}
Dpi = tuple[float, float]


def to_dpi(across: Any, down: Any, unit: str = "mm", unit_down: str = "") -> Dpi | None:
    """Pixels per inch, (across, down), by a pixel's sides; None where these are none, or the unit unknown."""
    with suppress(TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError):
        sides = float(across) * _MILLIMETRES[unit], float(down) * _MILLIMETRES[unit_down or unit]
        if all(1e-9 < side < 1e9 for side in sides):
            return 25.4 / sides[0], 25.4 / sides[1]
    return None


def dpi_of_tiff(file: TiffFile, per_unit: Sequence[float]) -> Dpi | None:
    """What OME-TIFF and ImageJ say beside the tags of TIFF; None where they do not.

    Args:
        file: the file.
        per_unit: pixels per unit, (across, down), by its tags; ImageJ names the unit.
    """
    if file.is_ome and (text := file.ome_metadata):
        with suppress(ElementTree.ParseError):
            for element in ElementTree.fromstring(text).iter():
                if element.tag.rpartition("}")[2] == "Pixels":
                    return _of_ome(element.attrib)
    if file.is_imagej:
        unit = str((file.imagej_metadata or {}).get("unit", ""))
        return to_dpi(1 / per_unit[0], 1 / per_unit[1], unit)
    return None


def _of_ome(pixels: Mapping[str, str]) -> Dpi | None:
    """Of the attributes of OME's Pixels, whose lengths are micrometres unless they say otherwise."""
    across, down = (pixels.get(f"PhysicalSize{axis}") for axis in "XY")
    return to_dpi(across, down, *(pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in "XY"))
