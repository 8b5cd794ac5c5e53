"""Decode pictures from files and from memory: JPEG by `jpeg.py`, every other format with Pillow."""

from __future__ import annotations

import importlib
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import cv2
import numpy as np
from PIL import Image

from unet_batch.errors import ImageError
from unet_batch.media.images.common import (
    MAX_PIXELS,
    Damage,
    Picture,
    Source,
    apply_orientation,
    exif_orientation,
    open_source,
)
from unet_batch.media.images.huffman import read_frame
from unet_batch.media.images.jpeg import open_header, read_jpeg
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.media.images.png import open_png
from unet_batch.media.images.profiles import coded_profile, to_srgb
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from unet_batch.types import Pixels, Size

_CONVERT = "convert it to 8-bit RGB"


def read(path: str, *, at_least: Size | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture file.

    The contents decide the format, not the extension (but for TGA, which has no signature). Safe to call from
    many threads; the decoders release the GIL.

    Args:
        path: a regular file.
        at_least: (height, width), upright, that is enough for the caller: a JPEG is then decoded at 1/8, 1/4
            or 1/2, the first that divides both sides and is at least as large in both directions. Other
            formats ignore it.
        max_pixels: largest height x width that is decoded.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: no such file, not a picture, truncated, damaged, or of a kind that is not supported.
    """
    with open_source(path, max_pixels) as source:
        return _read(source, at_least)


def read_bytes(
    data: bytes, name: str = "picture", *, at_least: Size | None = None, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Decode a picture that is in memory, as `read` does a file.

    Args:
        data: the contents of a picture file.
        name: what errors call it; "x.tga" also says that it is a TGA.
        at_least: as for `read`.
        max_pixels: as for `read`.

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: not a picture, truncated, damaged, or of a kind that is not supported.
    """
    with open_source(name, max_pixels, data) as source:
        return _read(source, at_least)


def _read(source: Source, at_least: Size | None) -> Picture:
    """Decode by the format's own function; a format that needs one gets its branch here."""
    if source.format.name == "JPEG":
        return read_jpeg(source, at_least)
    notes: tuple[str, ...] = ()
    if source.format.name == "TIFF":
        image = _open_tiff(source)
    elif source.format.name == "PNG":
        image = open_png(source, source.file.read())
    else:
        image = _open_image(source)
        notes = frame_notes(image)
    image.load()
    # A TIFF is upright by now, and has lost its orientation tag
    return to_picture(image, notes, with_metadata=at_least is None)


def to_picture(image: Image.Image, notes: tuple[str, ...] = (), *, with_metadata: bool = True) -> Picture:
    """Make of a loaded picture what `read` returns: by the package's table, in sRGB, over white, upright."""
    info = image.info
    values, alpha = stored_values(image)
    profile, notes = info.get("icc_profile"), notes + info.get("notes", ())
    if not profile and isinstance(coded := info.get("nclx_profile"), dict):  # of pillow-heif
        profile, more = coded_profile(
            coded.get("color_primaries", 0), coded.get("transfer_characteristics", 0)
        )
        notes += more
    pixels, more = to_srgb(values, profile)
    notes += more
    turn = exif_orientation(image)
    if alpha is not None:
        pixels, alpha = over_white(pixels, alpha), cast("Pixels", apply_orientation(alpha, turn))
    metadata = Metadata()
    if with_metadata:
        metadata, more = outputs_metadata(info, turn, info.get("dpi"))
        notes += more
    upright = cast("Pixels", apply_orientation(pixels, turn))
    return Picture(upright, upright.shape[:2], alpha=alpha, metadata=metadata, notes=notes)


def frame_notes(image: Image.Image) -> tuple[str, ...]:
    """Say of a picture, not loaded yet, that it is the first of several."""
    count = 1 if image.format == "PSD" else getattr(image, "n_frames", 1)  # of a PSD those are layers
    if count == 1 or (image.format != "HEIF" and image.tell() > 0):  # a frame that the caller chose
        return ()
    return (f"{count} {'pictures: the main one' if image.format == 'HEIF' else 'frames: the first'} is read",)


def read_ids(path: str, *, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[Any], str]:
    """Decode a mask, upright: the numbers that are stored, not what a person sees.

    Args:
        path: a regular file.
        max_pixels: largest height x width that is decoded.

    Returns:
        The values and what they are: "grey" (uint8 or uint16, h x w; 1-bit pixels are 0 and 1), "index"
        (uint8, h x w: places in a palette, whatever its colours), "colour" (RGB uint8, h x w x 3; black where
        alpha is 0), "jpeg" (uint8, h x w: grey levels that the compression has blurred).

    Raises:
        ImageTooLarge: the header asks for more than `max_pixels`.
        ImageError: as for `read`; or the values are fractions, negative, or above 65535.
    """
    with open_source(path, max_pixels) as source:
        if source.format.name == "JPEG":
            return cv2.cvtColor(read_jpeg(source, None).pixels, cv2.COLOR_RGB2GRAY), "jpeg"
        grey_bits = 8
        if source.format.name == "PNG":
            data = source.file.read()
            image: ImageFile = open_png(source, data)
            grey_bits = data[24]
        else:
            image = _open_image(source)
        image.load()
        if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
            values = _stored_ids(image)
            # Pillow stretches 2 and 4 bits of grey over 0..255
            if image.mode == "L" and grey_bits in (2, 4):
                values //= 255 // (2**grey_bits - 1)
        elif image.mode in ("F", "LAB"):
            raise ImageError(
                f"{path}: pixels of type {image.mode} cannot be ids",
                hint="save the mask as an 8-bit grey PNG",
            )
        elif image.has_transparency_data:
            rgba = np.array(image.convert("RGBA"))
            values = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(0))
        else:
            values = np.array(image.convert("RGB"))
        kind = "index" if image.mode == "P" else "grey" if values.ndim == 2 else "colour"
        return apply_orientation(values, exif_orientation(image)), kind


def _stored_ids(image: ImageFile) -> NDArray[Any]:
    """Values of a picture with one channel of integers as uint8 or uint16 (h, w)."""
    values: NDArray[Any] = np.array(image)
    if values.dtype.kind == "u":
        return values
    # Bits, and 16-bit numbers that Pillow holds in 32
    if values.min() < 0 or values.max() > 65535:
        raise Damage(f"its values, {values.min()} to {values.max()}, cannot be ids: 0 to 65535 expected")
    return values.astype(np.uint8 if image.mode == "1" else np.uint16)


def orientation(path: str) -> int:
    """EXIF orientation of a picture file, 1 to 8, which `read` undoes; 1 where it is absent or unreadable.

    Raises:
        ImageError: no such file, or not a picture.
    """
    with open_source(path, MAX_PIXELS) as source:
        if source.format.name != "JPEG":
            return exif_orientation(_open_image(source))
        data = source.file.read()
        frame = read_frame(data)
        header = open_header(data, frame) if frame else None
        return 1 if header is None else exif_orientation(header)


def _open_image(source: Source, file: BinaryIO | None = None) -> ImageFile:
    """Read a header with Pillow, and check the size it announces.

    Args:
        source: the picture.
        file: what Pillow reads instead of the source's own file.
    """
    module, _, plugin = source.format.plugin.partition(":")
    try:
        opener = getattr(importlib.import_module(module), plugin)
    except ImportError as error:
        raise ImageError(
            f"{source.name}: {source.format.name} needs the package pillow-heif",
            hint="pip install 'unet-batch[heic]'",
        ) from error
    if source.format.name == "ICO":
        _check_icons(source)
    image = cast("ImageFile", opener(file or source.file))
    source.check_size(image.height, image.width)
    return image


def _check_icons(source: Source) -> None:
    """Check the sizes of the pictures inside an ICO, of which Pillow decodes one on opening.

    Its directory may say anything else.
    """
    file = source.file
    directory = file.read(6 + 16 * 65535)
    for entry in range(6, min(len(directory), 6 + 16 * int.from_bytes(directory[4:6], "little")) - 15, 16):
        file.seek(int.from_bytes(directory[entry + 12 : entry + 16], "little"))
        head = file.read(24)
        png = head.startswith(b"\x89PNG")
        layout = ">16xII" if png else "<4xHH" if head.startswith(b"\x0c\0\0\0") else "<4xii"
        if len(head) >= struct.calcsize(layout):
            width, height = struct.unpack_from(layout, head)
            # A bitmap counts its mask's rows, too
            source.check_size(abs(height) // (1 if png else 2), abs(width))
    file.seek(0)


def _open_tiff(source: Source) -> ImageFile:
    """Open the first page with Pillow, and refuse what it would misread.

    cv2 knows a few layouts more, but takes planes of 16 bits for interleaved pixels.
    """
    try:
        image = _open_image(source)
    except SyntaxError as error:
        if "unknown pixel mode" not in str(error):
            raise
        reason = "its kind of TIFF (64-bit or RGB floats, over 4 channels...) is not supported"
        raise ImageError(f"{source.name}: {reason}", hint=_CONVERT) from error
    tags = cast("Any", image).tag_v2
    if tags.get(284) == 2 and max(tags.get(258, (1,))) > 8:  # Pillow reads planes of 16 bits as if they had 8
        raise ImageError(
            f"{source.name}: TIFF in separate planes of more than 8 bits is not supported", hint=_CONVERT
        )
    # Tiles, which are decoded whole, however much larger than the picture they are
    if 322 in tags and 323 in tags:
        source.check_size(tags[323], tags[322])
    return image


def stored_values(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Apply the package's table of conversions to a loaded picture.

    Returns:
        uint8: grey (h, w), RGB (h, w, 3) or CMYK (h, w, 4), in the picture's own colours, also where nothing
        of them shows; and its opacity (h, w), None where it is opaque.
    """
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    alpha: Pixels | None = image.info.get("alpha")
    if mode.startswith("I") or mode == "F":
        values: NDArray[Any] = np.asarray(image)
        if mode == "I" and image.format == "PPM":  # 0..65535, whatever the file's own maximum
            values = values.astype(np.uint16)
        elif mode == "I" and image.format == "TIFF" and tags.get(339, (1,))[0] == 1:
            # Unsigned, held as signed
            values = values.view(np.uint32)
        levels = _to_uint8(values, 4095 if tags.get(258) == (12,) else 65535)
        if values.itemsize == 2 and tags.get(262) == 0:  # PhotometricInterpretation 0: zero is white
            levels = 255 - levels
        return levels, alpha
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.array(converted, np.uint8), None
    grey = mode in ("1", "L", "LA", "La")
    if alpha is None and image.has_transparency_data:
        full = np.array(image.convert("RGBA"))
        alpha = full[..., 3].copy()
        return full[..., 0 if grey else slice(3)].copy(), None if alpha.min() == 255 else alpha
    plain = mode if mode in ("RGB", "CMYK") else "L" if grey else "RGB"
    values = np.array(image if mode == plain else image.convert(plain), np.uint8)
    return values, alpha


def over_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Composite RGB pixels with their opacity over white."""
    canvas = Image.new("RGB", rgb.shape[1::-1], (255, 255, 255))
    canvas.paste(Image.fromarray(rgb), mask=Image.fromarray(alpha))
    return np.array(canvas, np.uint8)


def _to_uint8(values: NDArray[Any], full: int = 65535) -> Pixels:
    """Scale numbers of any kind to uint8 by the package's table; `full` is white for uint16."""
    if values.dtype == np.uint8:
        return cast("Pixels", values)
    if values.dtype.kind == "u" and values.itemsize == 2:
        table = (np.arange(65536, dtype=np.uint32).clip(max=full) * 255 + full // 2) // full
        return cast("Pixels", table.astype(np.uint8)[values])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if low == high:
        return np.zeros(values.shape, np.uint8)
    with np.errstate(all="ignore"):
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    scaled = np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
