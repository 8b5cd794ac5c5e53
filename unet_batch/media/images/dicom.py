"""Read DICOM by pydicom: frames through the rescaling and the window that their file asks for.

1. Grey: the modality's rescaling (slope and intercept, or a table), then the first window, or table of the
   values of interest, of the frame, of all frames, or of the picture. Without one, numbers become grey as
   those of any other format. A range other than `auto` is of the rescaled numbers (Hounsfield units of a CT),
   in the place of windows.
2. MONOCHROME1 is inverted; palettes are looked up; YCbCr becomes RGB.
3. Pixels of padding have no value.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ImageError
from unet_batch.media.images.common import Damage, Picture, Source
from unet_batch.media.images.lengths import to_dpi
from unet_batch.media.images.profiles import to_srgb
from unet_batch.media.images.ranges import AUTO, Range
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

    from unet_batch.types import Pixels

_HELD = 2**28  # bytes of a file up to which it is read at once; of a larger one each frame by itself
_DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax
_MISSING_DECODER = "unable to decompress"  # in what pydicom says where none of its libraries is installed
_lock = threading.Lock()


def read_dicom(source: Source, value_range: Range = AUTO) -> Picture:
    """Decode the first frame of a DICOM file; a note tells of others.

    Raises:
        ImageTooLarge: it has more pixels than the source's limit.
        ImageError: pydicom is not installed, the file holds no picture, or is compressed in an unknown way.
        Exception: it is damaged; pydicom raises nearly anything.
    """
    header = read_header(source, with_pixels=True)
    picture = next(_decode(source, header, [0], value_range))
    count = count_frames(header)
    notes = (f"{count:,} frames: the first is read",) if count > 1 else ()
    return replace(picture, notes=picture.notes + notes)


def read_frames(source: Source, numbers: Sequence[int], value_range: Range = AUTO) -> Iterator[Picture]:
    """Decode frames, counted from 0, all in one range, one after the other; raises as `read_dicom`."""
    header = read_header(source, with_pixels=True)

    def parts() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
        for number, stored in zip(numbers, _iterate(source, header, numbers), strict=True):
            values, _, missing = _measured(stored, header, number)
            yield values, missing

    if value_range != AUTO:
        values, bits, _ = _measured(next(_iterate(source, header, numbers[:1])), header, numbers[0])
        value_range = value_range.settle(values.dtype, bits, parts)
    return _decode(source, header, numbers, value_range)


def read_stored_frame(source: Source) -> tuple[NDArray[Any], int]:
    """Decode the numbers of the first frame, (h, w) or RGB (h, w, 3); and how many bits they have.

    Raises:
        As `read_dicom`.
    """
    header = read_header(source, with_pixels=True)
    values, bits = _as_native(next(_iterate(source, header, [0])), header)
    return (AUTO.apply(values, bits) if values.ndim == 3 else values), bits


def count_frames(header: Dataset) -> int:
    """How many frames a picture has."""
    return max(1, int(header.get("NumberOfFrames") or 1))


def read_header(source: Source, *, with_pixels: bool = False) -> Dataset:
    """Read what stands before the pixels, and check the size it announces.

    Args:
        source: a DICOM file.
        with_pixels: read these, too, still encoded, unless they are for memory to be spared.

    Raises:
        As `read_dicom`.
    """
    pydicom = _load_pydicom(source)
    size = source.file.seek(0, os.SEEK_END)
    source.file.seek(0)
    header: Dataset = pydicom.dcmread(source.file, stop_before_pixels=not with_pixels or size > _HELD)
    if header.file_meta.get("TransferSyntaxUID") == _DEFLATED and with_pixels and size > _HELD:
        source.file.seek(0)
        header = pydicom.dcmread(source.file)  # no part of it can be read by itself
    if "Rows" not in header or "Columns" not in header:
        kind = header.get("SOPClassUID")
        what = getattr(kind, "name", "") or "of no stated kind"
        raise ImageError(f"{source.name}: this DICOM file holds no picture ({what})", hint="leave it out")
    source.check_size(int(header.Rows), int(header.Columns))
    return header


def _load_pydicom(source: Source) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImageError(
            f"{source.name}: DICOM needs the package pydicom", hint="pip install 'unet-batch[dicom]'"
        ) from error
    with _lock:  # or two threads would add the decoders
        _add_decoders()
    return pydicom


# Decoding ---------------------------------------------------------------------------------------------------


def _decode(source: Source, header: Dataset, numbers: Sequence[int], value_range: Range) -> Iterator[Picture]:
    """Decode frames as a viewer shows them."""
    for number, stored in zip(numbers, _iterate(source, header, numbers), strict=True):
        values, bits, missing = _measured(stored, header, number)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            from pydicom.pixels.processing import apply_color_lut

            levels = AUTO.apply(apply_color_lut(values, header))
        elif values.ndim == 3:
            levels = value_range.apply(values, bits)
        else:
            levels = _to_grey(values, bits, header, number, missing, value_range)
        pixels, notes = to_srgb(levels, header.get("ICCProfile"))
        # In the patient, down first; what others say holds at the detector
        down, across = _functional(header, number, "PixelMeasuresSequence").get("PixelSpacing") or (
            None,
            None,
        )
        metadata = Metadata(dpi=to_dpi(across, down))
        yield Picture(pixels, (pixels.shape[0], pixels.shape[1]), missing, metadata=metadata, notes=notes)


def _measured(
    stored: NDArray[Any], header: Dataset, number: int
) -> tuple[NDArray[Any], int, NDArray[np.bool_] | None]:
    """What a frame's numbers are: of grey in the modality's own units; their bits; where there is padding."""
    from pydicom.pixels.processing import apply_modality_lut

    values, bits = _as_native(stored, header)
    if values.ndim == 3 or header.PhotometricInterpretation == "PALETTE COLOR":
        return values, bits, None
    missing = _padding(values, header)
    how = _functional(header, number, "PixelValueTransformationSequence")
    if "ModalityLUTSequence" in how or not _is_identity(how):
        values, bits = apply_modality_lut(values, how), 0
    return values, bits, missing


def _iterate(source: Source, header: Dataset, numbers: Iterable[int]) -> Iterator[NDArray[Any]]:
    """The numbers of frames as they are stored, (h, w) or (h, w, 3); YCbCr is RGB by now."""
    from pydicom.pixels.utils import iter_pixels

    source.file.seek(0)
    shape = (int(header.Rows), int(header.Columns))
    with _explained(source, header):
        for values in iter_pixels(header if "PixelData" in header else source.file, indices=numbers):
            if values.shape[:2] != shape or values.shape[2:] not in ((), (3,)):
                raise Damage(f"its header says {shape}, and there are {values.shape} pixels")
            yield values


@contextmanager
def _explained(source: Source, header: Dataset) -> Iterator[None]:
    """Say of a compression that nothing here decodes how it is called."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error).lower()
        if _MISSING_DECODER not in text and "not supported" not in text:
            raise
        kind = header.file_meta.TransferSyntaxUID.name
        raise ImageError(
            f"{source.name}: DICOM compressed with {kind} cannot be read",
            hint="save it uncompressed, with DCMTK: dcmdjpeg IN OUT, or gdcmconv --raw IN OUT",
        ) from error


def _as_native(values: NDArray[Any], header: Dataset) -> tuple[NDArray[Any], int]:
    """Numbers in this machine's order, in the smallest type that holds them; and how many bits they have."""
    bits, kind = int(header.get("BitsStored") or 0), values.dtype.kind
    if kind == "u" and 0 < bits <= 16:
        return np.minimum(values, 2**bits - 1).astype(np.uint8 if bits <= 8 else np.uint16), bits
    return values.astype(values.dtype.newbyteorder("="), copy=False), 0


def _padding(values: NDArray[Any], header: Dataset) -> NDArray[np.bool_] | None:
    """Where there is nothing but padding: bool (h, w), or None."""
    first = header.get("PixelPaddingValue")
    if not isinstance(first, int):
        return None
    last = header.get("PixelPaddingRangeLimit")
    low, high = sorted((first, last if isinstance(last, int) else first))
    missing: NDArray[np.bool_] = (values >= low) & (values <= high)
    return missing if missing.any() else None


def _to_grey(
    values: NDArray[Any],
    bits: int,
    header: Dataset,
    number: int,
    missing: NDArray[np.bool_] | None,
    value_range: Range,
) -> Pixels:
    """Grey levels (h, w), as the file wants them shown; black where there is only padding."""
    from pydicom.pixels.processing import apply_voi

    view = _functional(header, number, "FrameVOILUTSequence")
    window = _window_of(view)
    if value_range != AUTO:
        levels = value_range.apply(values, bits, missing)
    elif "VOILUTSequence" in view and values.dtype.kind in "iu":
        shown = apply_voi(values, view)
        levels = AUTO.apply(shown, int(view.VOILUTSequence[0].LUTDescriptor[2]))
    elif window is not None:
        levels = apply_window(values, *window)
    else:
        levels = AUTO.apply(values, bits, missing)
    if header.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    return levels if missing is None else np.where(missing, np.uint8(0), levels)


def _functional(header: Dataset, number: int, name: str) -> Dataset:
    """What a header says of a frame: for the frame itself, for all of them, or for the picture."""
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or ())[number : number + 1]
    for group in (*groups, *(header.get("SharedFunctionalGroupsSequence") or ())):
        if found := group.get(name):
            item: Dataset = found[0]
            return item
    return header


def _is_identity(how: Dataset) -> bool:
    slope, intercept = how.get("RescaleSlope"), how.get("RescaleIntercept")
    return slope is None or intercept is None or (float(slope) == 1 and float(intercept) == 0)


def _window_of(view: Dataset) -> tuple[float, float, str] | None:
    """The centre, width and function of the first window; None without one that makes sense."""
    with suppress(TypeError, ValueError, IndexError):
        centre, width = (float(np.atleast_1d(view.get(f"Window{side}"))[0]) for side in ("Center", "Width"))
        function = str(view.get("VOILUTFunction") or "LINEAR")
        if np.isfinite(centre) and width >= (1 if function == "LINEAR" else np.finfo(float).tiny):
            return centre, width, function
    return None


def apply_window(values: NDArray[Any], centre: float, width: float, function: str) -> Pixels:
    """Show numbers through a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3): uint8 of the same shape."""
    places = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            shares = 1 / (1 + np.exp(-4 * (places - centre) / width))
    elif function == "LINEAR_EXACT":
        shares = (places - centre) / width + 0.5
    elif width == 1:
        shares = np.where(places > centre - 0.5, 1.0, 0.0)
    else:
        shares = (places - (centre - 0.5)) / (width - 1) + 0.5
    levels: Pixels = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return levels


# JPEG of 12 bits, and lossless: pydicom leaves them to libraries under the GPL; imagecodecs reads both. -----


@functools.cache
def _add_decoders() -> None:
    """Let pydicom decode by imagecodecs what it has no library for."""
    from pydicom.pixels.decoders import base as decoders

    for decoder in (
        decoders.JPEGExtended12BitDecoder,
        decoders.JPEGLosslessDecoder,
        decoders.JPEGLosslessSV1Decoder,
    ):
        decoder.add_plugin("imagecodecs", (__name__, "decode_jpeg"))


def is_available(uid: str) -> bool:
    """Tell pydicom that imagecodecs is installed."""
    return True


def decode_jpeg(data: bytes, runner: Any) -> bytes:
    """Decode a frame for pydicom.

    Args:
        data: a JPEG.
        runner: pydicom's DecodeRunner.
    """
    import imagecodecs

    values = imagecodecs.jpeg_decode(data)
    runner.set_option("bits_allocated", values.itemsize * 8)
    if values.ndim == 3:
        runner.set_option("planar_configuration", 0)
        runner.set_option("photometric_interpretation", "RGB")
    return np.ascontiguousarray(values).tobytes()
