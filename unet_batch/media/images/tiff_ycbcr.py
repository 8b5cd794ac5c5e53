"""YCbCr in a TIFF: colours that are shared by several pixels are spread, and all become RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.media.images.common import Damage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage


@dataclass(frozen=True)
class Units:
    """Uncompressed YCbCr with less colour than light: units of `down` x `across` Y, a Cb and a Cr."""

    down: int
    across: int
    columns: int

    @classmethod
    def of(cls, page: TiffPage, columns: int) -> Units:
        across, down = page.subsampling or (2, 2)
        return cls(int(down), int(across), columns)

    @property
    def _row(self) -> int:
        return -(-self.columns // self.across)

    def size(self, rows: int) -> int:
        """How many bytes so many rows of pixels take."""
        return -(-rows // self.down) * self._row * (self.down * self.across + 2)

    def spread(self, data: bytes, rows: int) -> NDArray[np.uint8]:
        """Give every pixel its colour: uint8 (rows, columns, 3)."""
        needed = self.size(rows)
        if len(data) < needed:
            raise Damage(f"a block of pixels ends {needed - len(data):,} bytes early")
        high = -(-rows // self.down)
        units = np.frombuffer(data[:needed], np.uint8).reshape(high, self._row, -1)
        light = units[..., :-2].reshape(high, self._row, self.down, self.across).swapaxes(1, 2)
        colour = units[..., -2:].repeat(self.down, axis=0).repeat(self.across, axis=1)
        light = light.reshape(high * self.down, self._row * self.across, 1)
        return np.concatenate([light, colour], axis=-1)[:rows, : self.columns]


def ycbcr_to_rgb(page: TiffPage, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert by the page's own coefficients and range (TIFF 6.0, section 21)."""
    red, green, blue = _rationals(page, 529) or (0.299, 0.587, 0.114)
    reference = _rationals(page, 532) or (0, 255, 128, 255, 128, 255)
    low, high = np.array(reference, np.float32).reshape(3, 2).T
    scale = np.array([255, 127, 127], np.float32) / (high - low)
    scaled = (values.astype(np.float32) - low) * scale
    light, to_blue, to_red = scaled[..., 0], scaled[..., 1], scaled[..., 2]
    r = light + (2 - 2 * red) * to_red
    b = light + (2 - 2 * blue) * to_blue
    g = (light - red * r - blue * b) / green
    rgb: NDArray[np.uint8] = np.rint(np.stack([r, g, b], axis=-1)).clip(0, 255).astype(np.uint8)
    return rgb


def _rationals(page: TiffPage, tag: int) -> tuple[float, ...]:
    """The fractions that a tag holds; none where it is absent."""
    value = numbers(page, tag)
    return tuple(a / b for a, b in zip(value[::2], value[1::2], strict=True))


def numbers(page: TiffPage, tag: int) -> tuple[int, ...]:
    """What a tag holds, one number or several; none where it is absent."""
    value = page.tags.valueof(tag, ())
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
