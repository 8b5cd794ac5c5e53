"""Decode JPEG strictly, at a reduced size where that is enough, and repair harmless blemishes."""

from __future__ import annotations

import re
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from unet_batch.errors import ImageError
from unet_batch.media import geometry
from unet_batch.media.images import huffman
from unet_batch.media.images.common import (
    CONVERT,
    Damage,
    Picture,
    Source,
    apply_orientation,
    exif_orientation,
)
from unet_batch.media.images.metadata import outputs_metadata
from unet_batch.media.images.profiles import named_profile, to_srgb
from unet_batch.media.images.ranges import AUTO, Range, Usage
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels, Size

_ATTEMPTS = 4
_SURPLUS_BYTES = 16
_RARE = {
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xCB: "lossless with arithmetic coding",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
    0xF7: "JPEG-LS",
}
# Orientations of EXIF that show the last stored row, or column, as the first row or column
_BOTTOM_FIRST, _RIGHT_FIRST = (3, 4, 6, 7), (2, 3, 7, 8)
# How the blocks begin that makers hang behind a picture: Samsung's (a kind, the length of a name, the name),
# an MP4
_TRAILER = re.compile(rb"\0\0..[\x01-\x7f]\0\0\0[ -~]{4}|\0\0..ftyp[ -~]{4}", re.DOTALL)


def read_jpeg(source: Source, at_least: Size | None, value_range: Range = AUTO) -> Picture:
    """Decode with TurboJPEG, which makes RGB itself; with imagecodecs what TurboJPEG refuses.

    3.3 ms for 1280x1918, cv2 3.6, Pillow 5 and more; 1.7 ms at 1/4. Where no pixels at full size are asked
    for, outputs take over no metadata either, and a file without any is not shown to Pillow.

    Raises:
        ImageTooLarge: the header asks for more than the source's limit.
        ImageError: it is of a kind that is not supported.
        Damage: it cannot be decoded.
    """
    data = source.file.read()
    frame = huffman.read_frame(data)
    if frame is None:
        raise Damage("its header is damaged or cut short")
    source.check_size(frame.height, frame.width)
    header = None
    if at_least is None or huffman.has_metadata(data):  # Pillow takes 0.2 ms of the 3.5
        header = open_header(data, frame)
    orientation = 1 if header is None else exif_orientation(header)  # 0.02 to 0.05 ms
    step = _reduction(frame.height, frame.width, at_least, orientation)
    info: dict[Any, Any] = {} if header is None else header.info
    profile = info.get("icc_profile", b"?" if "icc_profile" in info else None)
    if profile is None and header is not None:
        profile = named_profile(header)
    values, bits = _decode(data, frame, step, with_inks=profile is not None, name=source.name)
    usage = Usage()
    if len(frame.components) < 4:  # a range of inks would change colours
        if value_range == AUTO:
            usage.add(values, 2**bits - 1)
        values = value_range.apply(values, bits)
    pixels, notes = to_srgb(cast("Pixels", values), profile)
    notes += usage.notes
    metadata = Metadata()
    if at_least is None:
        metadata, more = outputs_metadata(info, orientation, _density(info))
        notes += more
    if header is not None and (count := _count_pictures(data, header, frame)) > 1:
        notes += (f"{count} pictures: the first is read",)
    size = (frame.height, frame.width) if orientation < 5 else (frame.width, frame.height)
    upright = cast("Pixels", apply_orientation(pixels, orientation))
    return Picture(upright, size, metadata=metadata, notes=notes)


def open_header(data: bytes, frame: huffman.Frame) -> JpegImageFile | None:
    """Read the metadata of a JPEG with Pillow, which wants 8 bits; None where it cannot."""
    if frame.bits != 8:
        data = data[: frame.at + 4] + b"\x08" + data[frame.at + 5 :]
    with suppress(
        Exception
    ):  # on a hostile header Pillow raises nearly anything; pixels have their own decoder
        return JpegImageFile(BytesIO(data))
    return None


def _density(info: dict[Any, Any]) -> tuple[float, float] | None:
    """Dots per inch, (across, down), of JFIF."""
    scale = {1: 1.0, 2: 2.54}.get(info.get("jfif_unit", 0))
    across, down = info.get("jfif_density", (0, 0))
    return (across * scale, down * scale) if scale else None


def _count_pictures(data: bytes, header: JpegImageFile, frame: huffman.Frame) -> int:
    """Pictures in an MPO that are as large as the first: not thumbnails, previews, and gain maps of HDR."""
    count = 1
    if "mp" not in header.info:
        return count
    with suppress(Exception):
        index = header._getmp() or {}
        for entry in index[0xB002][1:]:
            start = entry["DataOffset"] + header.info["mpoffset"]
            other = data[start : start + entry["Size"]]
            sides = huffman.read_frame(other) if other.startswith(b"\xff\xd8\xff") else None
            same = sides is not None and (sides.height, sides.width) == (frame.height, frame.width)
            head = other[: sides.at] if sides else b""
            count += same and b"hdrgm:" not in head and b"HDRGainMap" not in head
    return count


def _decode(
    data: bytes, frame: huffman.Frame, step: int, *, with_inks: bool, name: str
) -> tuple[NDArray[Any], int]:
    """Values as stored, and their bits: RGB (h, w, 3), grey (h, w), or CMYK (h, w, 4) where 255 is full ink.

    Args:
        data: the file.
        frame: its header.
        step: 1, 2, 4 or 8: how much smaller both sides shall be, if TurboJPEG decodes it.
        with_inks: a profile waits for CMYK; otherwise it becomes RGB here.
        name: of the file, for errors.
    """
    if frame.kind in _RARE or not frame.height or len(frame.components) not in (1, 3, 4):
        what = _RARE.get(frame.kind, "")
        if not what:
            what = f"of {len(frame.components)} colours" if frame.height else "without a height in its header"
        raise ImageError(f"{name}: a JPEG that is {what} is not supported", hint=CONVERT)
    if frame.kind == 0xC3 or frame.bits != 8:
        return _decode_rare(data, frame, name)
    inks = with_inks and len(frame.components) == 4
    complaint = ""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            values = simplejpeg.decode_jpeg(
                data,
                "CMYK" if inks else "RGB",
                min_height=-(-frame.height // step),
                min_width=-(-frame.width // step),
            )
            break
        except ValueError as error:
            if "subsampling" in str(error):
                return _decode_rare(data, frame, name)
            complaint = complaint or str(error).split("(): ")[-1]
            repaired = _repair(data, str(error))
            if attempt == _ATTEMPTS or repaired is None or repaired == data:
                raise Damage(f"libjpeg finds it damaged: {complaint}") from error
            data = repaired
    if inks:
        return 255 - values, 8  # Adobe's files, and nearly all others, hold what is left white
    return (values if len(frame.components) > 1 or not with_inks else values[..., 0].copy()), 8


def _decode_rare(data: bytes, frame: huffman.Frame, name: str) -> tuple[NDArray[Any], int]:
    """Decode what TurboJPEG refuses: unusual sampling, more than 8 bits, lossless files. As `_decode`.

    The decoder fills in silently what is missing, so the data are checked before.
    """
    import imagecodecs

    if frame.kind not in (0xC0, 0xC1, 0xC3):
        coding = "progressive" if frame.kind == 0xC2 else "with arithmetic coding"
        raise ImageError(
            f"{name}: a JPEG that is {coding}, of {frame.bits} bits and sampling {frame.sampling} is not "
            f"supported",
            hint=CONVERT,
        )
    huffman.check(data, frame)
    # Of a lossless file libjpeg converts no colours, and refuses to where they are YCbCr
    as_stored = _is_lossless_ycbcr(data, frame)
    colours = "ycbcr" if as_stored else None
    try:
        values: NDArray[Any] = imagecodecs.jpeg8_decode(data, colorspace=colours, outcolorspace=colours)
    except RuntimeError as error:
        if "not implemented" in str(error) or "Sampling factors" in str(error):
            raise ImageError(
                f"{name}: a JPEG of sampling {frame.sampling} is not supported", hint=CONVERT
            ) from error
        raise Damage("its data are damaged or cut short") from error
    if as_stored:
        levels = AUTO.apply(values, frame.bits)[..., [0, 2, 1]]
        return cv2.cvtColor(np.ascontiguousarray(levels), cv2.COLOR_YCrCb2RGB), 8
    if values.ndim == 3 and values.shape[2] == 4:
        return 255 - AUTO.apply(values, frame.bits), 8
    return values, frame.bits


def _is_lossless_ycbcr(data: bytes, frame: huffman.Frame) -> bool:
    """Whether the colours of a lossless JPEG are YCbCr: it says so, or has less colour than light.

    Without a word they are RGB, as libjpeg-turbo takes them, and as DICOM and cjpeg write them.
    """
    if frame.kind != 0xC3 or len(frame.components) != 3:
        return False
    head = data[: frame.at]
    adobe = head.find(b"\xff\xee\0\x0eAdobe")
    if b"\xff\xe0\0\x10JFIF\0" in head:  # which knows no RGB
        return True
    subsampled = len({(component.across, component.down) for component in frame.components}) > 1
    return head[adobe + 15 : adobe + 16] == b"\1" if adobe >= 0 else subsampled


def _reduction(height: int, width: int, at_least: Size | None, orientation: int) -> int:
    """Choose how much smaller both sides are decoded: 8, 4, 2 or 1.

    Where a step does not divide a side, libjpeg rounds up, and the last pixel reaches past the picture. That
    is allowed for where it is so at the bottom or right of the upright picture (see `geometry`). Orientations
    that turn such a side to the top or left need one that the step divides.

    Args:
        height, width: as stored.
        at_least: (height, width), upright, that is enough; None for all pixels.
        orientation: of EXIF, 1 to 8.
    """
    if at_least is None:
        return 1
    step = geometry.reduction((height, width), at_least if orientation < 5 else at_least[::-1])
    while (orientation in _BOTTOM_FIRST and height % step) or (orientation in _RIGHT_FIRST and width % step):
        step //= 2
    return step


def _repair(data: bytes, complaint: str) -> bytes | None:
    """Cut from a JPEG what only a strict decoder rejects; None if that cannot be done.

    The result proves itself by decoding. Where several scans follow each other (progressive files), a missing
    end can be a missing scan, which no decoder notices. A surplus of random bytes means that the decoder lost
    its place: of 200 flipped bits none left fewer than 17 behind.

    Args:
        data: the file.
        complaint: what the decoder said of it.
    """
    keep, at, frame, components = [b"\xff\xd8"], 2, 0, 0
    while True:
        at = data.find(b"\xff", at)
        if not 0 <= at < len(data) - 9:
            return None
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        # Not a segment: stray bytes, or a marker without contents
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1
            continue
        if marker == 0xD9:  # end of image
            return None
        if marker == 0xDA:  # start of scan
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            frame, components = marker, data[at + 9]
        adobe = marker == 0xEE and "Adobe" not in complaint  # tells RGB from YCbCr
        if adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # neither metadata nor a comment
            keep.append(data[at:end])
        at = end
    scan = data[at:]
    if frame in (0xC0, 0xC1) and scan[4] == components:  # Huffman, and one scan for all components
        scan = _repair_end(scan, complaint)
    return b"".join((*keep, scan))


def _repair_end(scan: bytes, complaint: str) -> bytes:
    """Add a missing end marker to the only scan of a JPEG, or cut surplus bytes before it.

    The decoder says how many bytes before the next marker it did not need. They are a maker's trailer if they
    begin like one; its own bytes may look like markers.
    """
    markers = (found.start() for found in re.finditer(rb"\xff[^\x00\xff\xd0-\xd7]", scan[2:]))
    close = next(markers, -3) + 2
    if close < 0 and "Premature end" in complaint:
        return scan + b"\xff\xd9"
    if close > 0 and "two SOI" in complaint:
        return scan[:close] + b"\xff\xd9"
    surplus = re.search(r"(\d+) extraneous bytes before marker 0x(\w\w)", complaint)
    if close > 0 and surplus and int(surplus[2], 16) == scan[close + 1]:
        cut = close - int(surplus[1])
        ended = scan[close + 1] == 0xD9
        if ended and (close - cut <= _SURPLUS_BYTES or not scan[cut:close].strip(b"\0")):
            return scan[:cut] + scan[close:]
        # The decoder has looked up to 8 bytes ahead, which it does not count
        for end in range(cut, cut - 9, -1):
            if _TRAILER.match(scan, end):
                return scan[:end] + b"\xff\xd9"
    return scan
