"""Words as pixels, and colours by their names."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from unet_batch.types import Colour, Pixels


@functools.lru_cache(maxsize=256)
def draw_text(text: str, height: int) -> Pixels:
    """A line of text in Pillow's own font: uint8 (about 1.2 `height`, width), how much of a pixel is ink.

    Args:
        text: one line; what the font lacks becomes a box.
        height: of the font in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(height)
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (height, height // 4)
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    canvas = Image.new("L", (max(1, round(font.getlength(plain)) + 1), ascent + descent), 0)
    ImageDraw.Draw(canvas).text((0, 0), plain, fill=255, font=font)
    return np.asarray(canvas)


def parse_colour(text: str) -> Colour | None:
    """RGB of a colour as web pages name it: "white", "#ff8800", "rgb(255, 136, 0)"; None if it is none."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text.strip())[:3]
    except ValueError:
        return None
    return red, green, blue
