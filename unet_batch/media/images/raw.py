"""Develop raw files of cameras (DNG, CR2, NEF, ARW...) by LibRaw: white balance of the camera, sRGB, upright.

Most of them are TIFFs by their first bytes. `tiff` finds out, from the page that it would read, that it holds
the numbers behind a colour filter array, or what was made of them without developing (`RawInTiff`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from unet_batch.errors import ImageError
from unet_batch.media.images.common import Damage, Picture, Source

if TYPE_CHECKING:
    from unet_batch.types import Pixels

NO_MASK = "a camera's raw file is developed, so its values are no ids"


class RawInTiff(Damage):
    """What looks like a TIFF is a raw file of a camera."""

    def __init__(self) -> None:
        super().__init__("it holds a camera's raw data, where a picture is expected")


def read_raw(source: Source) -> Picture:
    """Develop a raw file at full size.

    Raises:
        ImageTooLarge: the sensor has more pixels than the source's limit.
        ImageError: rawpy is not installed, or LibRaw does not know the camera.
        rawpy.LibRawError: the file is cut short. Damage inside shows in the pixels.
    """
    with _open(source) as raw:
        # Exposure by the histogram, as dcraw's: without it most cameras' pictures are a stop too dark
        pixels = cast("Pixels", raw.postprocess(use_camera_wb=True, output_bps=8))
    return Picture(pixels, (pixels.shape[0], pixels.shape[1]))


def _open(source: Source) -> Any:
    """Read the header, and check the sizes it announces."""
    try:
        import rawpy
    except ImportError as error:
        raise ImageError(
            f"{source.name}: raw files of cameras need the package rawpy",
            hint="pip install 'unet-batch[raw]'",
        ) from error
    source.file.seek(0)
    raw = rawpy.imread(source.file)
    try:
        sizes = raw.sizes
        source.check_size(max(sizes.raw_height, sizes.iheight), max(sizes.raw_width, sizes.iwidth))
    except BaseException:
        raw.close()
        raise
    return raw
