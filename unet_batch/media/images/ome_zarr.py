"""Read OME-Zarr (0.1 to 0.5) by its chunks: which level, what a page is, and its channels as RGB.

The full resolution is read, of several series the first. A page is a plane of the picture at one time and
depth; of its channels the first three are red, green and blue, of one or two the first is grey, as bands of a
TIFF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.files import stores
from unet_batch.media.images.common import Damage, Picture, Source, check_channels
from unet_batch.media.images.lengths import to_dpi
from unet_batch.media.images.ranges import AUTO, Range, scale_channels
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Channels, Pixels, Size

_AXES = "tczyx"
_TRANSFORMS = "coordinateTransformations"
_BAND = 2**25  # bytes of numbers that are read at once, where chunks allow
_BYTES_PER_PIXEL = 16  # of the source's limit, for what is decoded at once
_BLOSC = 16  # bytes of the header of a chunk, of which the last four are how many there are


@dataclass(frozen=True, eq=False)
class Volume:
    """The full resolution of a picture.

    Attributes:
        name: of its folder.
        array: of zarr.
        axes: what its dimensions are, of "tczyx"; the last two are "yx".
        notes: what people should know of how it was chosen.
        metadata: how large a pixel is.
    """

    name: str
    array: Any
    axes: str
    notes: tuple[str, ...]
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def size(self) -> Size:
        """(height, width) of a plane."""
        return int(self.array.shape[-2]), int(self.array.shape[-1])

    @property
    def outer(self) -> tuple[int, ...]:
        """How many times and depths there are, in the order that is stored."""
        return tuple(int(n) for n, axis in zip(self.array.shape, self.axes, strict=True) if axis in "tz")

    @property
    def count(self) -> int:
        """How many pages there are."""
        return int(np.prod(self.outer, dtype=np.int64))

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(self.array.shape[self.axes.index("c")]) if "c" in self.axes else 1

    @property
    def bands(self) -> int:
        """How many of the channels are read."""
        return 3 if self.channels >= 3 else 1

    def read(self, number: int, rows: slice = slice(None), channels: Channels | None = None) -> NDArray[Any]:
        """Read some rows of a page: (n, width, bands), or the chosen channels.

        Raises:
            Damage: a chunk is cut short.
            Exception: it is damaged otherwise; what unpacks chunks raises nearly anything.
        """
        places = iter(np.unravel_index(number, self.outer) if self.outer else ())
        first, end = (min(channels) - 1, max(channels)) if channels else (0, self.bands)
        where = {"c": slice(first, end), "y": rows, "x": slice(None)}
        index = tuple(where[axis] if axis in where else int(next(places)) for axis in self.axes)
        _check_chunks(self, index)
        values = np.asarray(self.array[index])
        values = np.moveaxis(values, 0, -1) if "c" in self.axes else values[..., None]
        return values[..., [channel - 1 - first for channel in channels]] if channels else values


def open_volume(source: Source) -> Volume:
    """Read what a picture says of itself.

    Raises:
        ImageError: zarr is not installed, or what the folder holds is no picture that is read.
        Damage: its metadata make no sense.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImageError(
            f"{source.name}: OME-Zarr needs the package zarr", hint="pip install 'unet-batch[zarr]'"
        ) from error
    with _explained():
        if int(zarr.__version__.partition(".")[0]) < 3 and stores.has_version_3(source.name):
            raise ImageError(
                f"{source.name}: OME-Zarr 0.5 needs zarr 3, which needs Python 3.11",
                hint="save it as OME-Zarr 0.4, or install Python 3.11 or newer",
            )
        group: Any = zarr.open_group(source.name, mode="r")
        about = _about(group)
        notes: tuple[str, ...] = ()
        if "multiscales" not in about and "bioformats2raw.layout" in about:
            series = [name for name in group.group_keys() if name.isdigit()]
            group = group["0"]
            about = _about(group)
            notes = (f"{len(series):,} series: the first is read",) if len(series) > 1 else ()
        if "plate" in about:
            raise ImageError(
                f"{source.name}: holds a plate of wells, which is not one picture",
                hint="copy the folder of a well's image (such as A/1/0) to one called NAME.zarr",
            )
        if not about.get("multiscales"):
            raise ImageError(
                f"{source.name}: holds nothing that OME-Zarr calls a picture (multiscales)",
                hint="leave it out",
            )
        scales = about["multiscales"][0]
        array = group[scales["datasets"][0]["path"]]
        named = scales.get("axes") or list(_AXES[-len(array.shape) :])
        axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in named)
        if len(axes) != len(array.shape) or axes[-2:] != "yx" or not set(axes[:-2]) <= set("tcz"):
            raise Damage(f"its axes are {axes}, of {array.shape}: some of t, c, z, then y, x expected")
        metadata = Metadata(dpi=_dpi(scales, named))
    volume = Volume(source.name, array, axes, notes)
    if 0 in array.shape:
        raise Damage(f"its shape is {array.shape}")
    if array.dtype.kind not in "buif":
        raise ImageError(
            f"{source.name}: OME-Zarr of {array.dtype} cannot be read", hint="save it as integers or floats"
        )
    if volume.channels not in (1, 3):
        taken = "the first is" if volume.bands == 1 else "the first three are"
        how = "" if volume.bands == 1 else " as red, green and blue"
        notes += (f"{volume.channels} channels: {taken} read{how}",)
    return Volume(source.name, array, axes, notes, metadata)


def _dpi(scales: Mapping[str, Any], named: Sequence[Any]) -> tuple[float, float] | None:
    """Pixels per inch, (across, down), by the scale of the full resolution and the units of the axes."""
    units = [axis.get("unit", "") if isinstance(axis, dict) else "" for axis in named[-2:]]
    sides = [1.0, 1.0]
    found = False
    for each in (*scales["datasets"][0].get(_TRANSFORMS, ()), *scales.get(_TRANSFORMS, ())):
        if each.get("type") == "scale" and len(each.get("scale", ())) == len(named):
            sides = [side * float(factor) for side, factor in zip(sides, each["scale"][-2:], strict=True)]
            found = True
    return to_dpi(sides[1], sides[0], units[1], units[0]) if found else None


def _about(group: Any) -> dict[str, Any]:
    """The attributes of a group; those of 0.5 have a level more."""
    found = dict(group.attrs)
    about: dict[str, Any] = found.get("ome", found)
    return about


@contextmanager
def _explained() -> Iterator[None]:
    """Say of what is raised inside that the metadata are to blame."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Damage("its metadata make no sense") from error


def read_volume(source: Source, value_range: Range = AUTO, channels: Channels | None = None) -> Picture:
    """Decode the first page; a note tells of others.

    Raises:
        ImageTooLarge: it has more pixels, or larger chunks, than the source's limit.
        ImageError, Damage, ...: as `open_volume` and `Volume.read`.
    """
    volume = open_volume(source)
    count = volume.count
    notes: tuple[str, ...] = (f"{count:,} pages: the first is read",) if count > 1 else ()
    notes += check_channels(volume.channels, channels, source.name) if channels else ()
    return _read_page(source, volume, 0, _ranges(value_range, channels), channels, notes)


def read_volume_pages(
    source: Source,
    choose: Callable[[int], range],
    value_range: Range = AUTO,
    channels: Channels | None = None,
) -> Iterator[Picture]:
    """Decode some pages, in order and all in one range; raises as `read_volume`."""
    volume = open_volume(source)
    numbers = choose(volume.count)
    if channels:
        check_channels(volume.channels, channels, source.name)
    ranges = _ranges(value_range, channels)
    if value_range != AUTO:
        _check_page(source, volume)
        ranges = _settle(volume, ranges, channels, [(number, slice(None)) for number in numbers])
    for number in numbers:
        yield _read_page(source, volume, number, ranges, channels)


def read_stored_page(source: Source) -> NDArray[Any]:
    """Decode the numbers of the first page: (h, w), or RGB uint8 (h, w, 3). Raises as `read_volume`."""
    volume = open_volume(source)
    _check_page(source, volume)
    values = volume.read(0)
    return values[..., 0] if volume.bands == 1 else _to_pixels(values, [AUTO])[0]


def _check_page(source: Source, volume: Volume) -> None:
    """Raise ImageTooLarge if a page announces more than may be decoded."""
    (height, width), bytes = volume.size, volume.array.dtype.itemsize
    source.check_size(height, width)
    size = max(height * width * volume.bands, _chunk_size(volume)) * bytes
    if size > (limit := _BYTES_PER_PIXEL * source.max_pixels):
        raise ImageTooLarge(
            f"{source.name}: {height}x{width} (height x width) in chunks of {volume.array.chunks}: {size:,} "
            f"bytes to be decoded at once, the limit is {limit:,}",
            hint="save it with smaller chunks",
        )


def _read_page(
    source: Source,
    volume: Volume,
    number: int,
    ranges: Sequence[Range],
    channels: Channels | None,
    notes: tuple[str, ...] = (),
) -> Picture:
    _check_page(source, volume)
    pixels, missing = _to_pixels(volume.read(number, channels=channels), ranges, channels)
    return Picture(pixels, volume.size, missing, metadata=volume.metadata, notes=volume.notes + notes)


def _invalid(values: NDArray[Any]) -> NDArray[np.bool_] | None:
    return ~np.isfinite(values) if values.dtype.kind == "f" else None


def _ranges(value_range: Range, channels: Channels | None) -> list[Range]:
    """The range of each chosen channel; one for all bands of a picture that a person sees."""
    return [value_range] * (len(channels) if channels else 1)


def _settle(
    volume: Volume,
    ranges: Sequence[Range],
    channels: Channels | None,
    parts: Sequence[tuple[int, slice]],
) -> list[Range]:
    """Each range, settled by all parts (page, rows) of the picture where its values decide."""

    def settle(value_range: Range, channels: Channels | None) -> Range:
        read = lambda: (  # noqa: E731
            (values := volume.read(*part, channels), _invalid(values)) for part in parts
        )
        return value_range.settle(volume.array.dtype, 0, read)

    if not channels:
        return [settle(ranges[0], None)]
    return [settle(value_range, (channel,)) for value_range, channel in zip(ranges, channels, strict=True)]


def _to_pixels(
    values: NDArray[Any], ranges: Sequence[Range], channels: Channels | None = None
) -> tuple[Pixels, NDArray[np.bool_] | None]:
    """RGB (h, w, 3) of numbers (h, w, bands) in one range, or chosen channels, each in its own.

    Returns:
        It; and where there is no value in any band, or None.
    """
    invalid = _invalid(values)
    if channels:
        levels = scale_channels(values, 0, invalid, ranges)
    else:
        levels = ranges[0].apply(np.ascontiguousarray(values), 0, invalid)
        if levels.shape[2] == 1:
            levels = cast("Pixels", cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB))
    missing: NDArray[np.bool_] | None = None if invalid is None else np.all(invalid, axis=-1)
    if missing is None or not missing.any():
        return levels, None
    return np.where(missing[..., None], np.uint8(0), levels), missing


# In bands of rows -------------------------------------------------------------------------------------------


def measure_volume(source: Source, channels: Channels | None = None) -> tuple[Size, int]:
    """Its size, and the bytes of its numbers and of its pixels, as `tiff_bands.measure`."""
    volume = open_volume(source)
    height, width = volume.size
    bands, kept = (len(channels),) * 2 if channels else (volume.bands, 3)
    return volume.size, height * width * (kept + volume.array.dtype.itemsize * bands)


def read_volume_bands(
    source: Source,
    size: Size,
    largest: int,
    value_range: Range = AUTO,
    channels: Channels | None = None,
) -> Iterator[tuple[Pixels, NDArray[np.bool_] | None, tuple[str, ...]]]:
    """Decode the first page from top to bottom, see `tiff_bands.read_bands`.

    Args:
        source: the picture.
        size: (height, width), as `measure_volume` has found it.
        largest: bytes of a row of chunks, or of a chunk, at most.
        value_range: which of its values are black and white.
        channels: as for `images.read`.

    Yields:
        Rows, RGB uint8 (n, width, 3) or the chosen channels, where they have no value, and notes.

    Raises:
        ImageTooLarge: its chunks do not allow it.
    """
    volume = open_volume(source)
    array, (height, width) = volume.array, size
    if volume.size != size:
        raise Damage("it was changed while it was read")
    what = f"{source.name}: {height}x{width} (height x width) is read in bands of rows, and"
    row = width * volume.bands * array.dtype.itemsize
    rows = int(array.chunks[-2])
    if (taken := max(rows * row, _chunk_size(volume) * array.dtype.itemsize)) > largest:
        raise ImageTooLarge(
            f"{what} its chunks have {rows:,} of them: {taken:,} bytes at once, the limit is {largest:,}",
            hint="save it with smaller chunks",
        )
    notes = volume.notes + (check_channels(volume.channels, channels, source.name) if channels else ())
    if volume.count > 1:
        notes += (f"{volume.count:,} pages: the first is read",)
    step = rows * max(1, _BAND // (rows * row))

    bands = [(0, slice(top, min(height, top + step))) for top in range(0, height, step)]
    ranges = _settle(volume, _ranges(value_range, channels), channels, bands)
    for part in bands:
        pixels, missing = _to_pixels(volume.read(*part, channels), ranges, channels)
        yield pixels, missing, notes


# Chunks -----------------------------------------------------------------------------------------------------


def _chunk_size(volume: Volume) -> int:
    """How many numbers are unpacked together."""
    return int(np.prod(volume.array.chunks, dtype=np.int64))


def _check_chunks(volume: Volume, index: tuple[int | slice, ...]) -> None:
    """See that the chunks packed by Blosc are whole, which what unpacks them does not.

    Chunks that are absent are not: they hold the array's fill value.

    Raises:
        Damage: one is cut short.
    """
    array = volume.array
    packed = array.compressors if hasattr(array, "compressors") else array.compressor  # of zarr 3, of 2
    if "Blosc" not in str(packed) or getattr(array, "shards", None):
        return
    spans = []
    for at, length, chunk in zip(index, array.shape, array.chunks, strict=True):
        first, last, _ = at.indices(length) if isinstance(at, slice) else (at, at + 1, 1)
        spans.append(range(first // chunk, -(-last // chunk)))
    for place in np.ndindex(*map(len, spans)):
        key = _chunk_key(array, tuple(span[at] for span, at in zip(spans, place, strict=True)))
        head = stores.read_head(volume.name, f"{array.path}/{key}", _BLOSC)
        if head is not None and int.from_bytes(head[0][12:16], "little") > head[1]:
            raise Damage(f"its chunk {key} is cut short")


def _chunk_key(array: Any, place: tuple[int, ...]) -> str:
    if hasattr(array, "metadata"):  # zarr 3
        return str(array.metadata.encode_chunk_key(place))
    return str(array._chunk_key(place)).removeprefix(f"{array.path}/")
