"""One picture that memory does not hold: its bands become tiles, and the maps of tiles rows of its outputs.

    read, shrink, cut ──▶ infer ──▶ blend ──▶ enlarge, encode, write
    the source's thread   batches   in order   in order

What is on its way is a few bands of the picture's width, whatever its height. The outputs (see `whole`) hold
what they would if the picture were read at once (`media.bands`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from unet_batch.errors import ImageTooLarge
from unet_batch.files.atomic import replacing, translate
from unet_batch.files.outputs import KINDS, OutputTree
from unet_batch.files.tables import TABLES, TableWriter, as_csv
from unet_batch.inference import postprocess
from unet_batch.inference.band_tables import BandTables
from unet_batch.inference.segmenter import PIXEL_BUDGET, Segmenter
from unet_batch.media import domain, images
from unet_batch.media.bands import Shrinker
from unet_batch.media.geometry import luminance
from unet_batch.media.measure import PixelSize, brightness
from unet_batch.media.tiling import Mosaic, Tiling
from unet_batch.pipeline import Pipeline, Stage
from unet_batch.run.observe import Stop
from unet_batch.run.whole import WholeResult, segment_whole
from unet_batch.types import Item, Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.files.tables import ObjectStats
    from unet_batch.types import Pixels, Size

MEMORY = 2**30
"""Bytes of a picture's numbers and pixels from which it is read in bands, unless an output needs all."""

_WRITTEN_AT_ONCE = 2**22  # pixels of outputs


def giant_size(item: Item, segmenter: Segmenter, outputs: OutputTree) -> Size | None:
    """Its (height, width) if an item is read in bands; None if it is read at once.

    Only its size decides, and what is to be made of it.
    """
    if segmenter.view.options.fit != "tile":
        return None
    found = images.measure(item.path, segmenter.channels)
    if found is None:
        return None
    size, memory = found
    by_rows = set(outputs.kinds) <= _POSSIBLE.keys() and not segmenter.cleanup.needs_whole
    too_much = memory > MEMORY and by_rows and not _splits(segmenter, outputs)
    return size if too_much or size[0] * size[1] > segmenter.max_pixels else None


def segment(
    item: Item,
    size: Size,
    segmenter: Segmenter,
    outputs: OutputTree,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    stop: Stop | None = None,
) -> WholeResult:
    """Segment a picture in bands.

    Args:
        item: the picture.
        size: as `giant_size` says.
        segmenter: open, and tiles are what it sees.
        outputs: what is wanted of it, and where it goes.
        on_rows: called in this thread with how many rows of the outputs are written, and of how many.
        stop: makes it end early when called; nothing is left then.

    Raises:
        ImageTooLarge: it cannot be read, enlarged or drawn in bands.
        ImageError: it cannot be decoded.
        BackendError: inference failed.
        OutputError: an output cannot be written.
    """
    return segment_whole(_GiantRun(item, size, segmenter, outputs), on_rows, stop)


def _splits(segmenter: Segmenter, outputs: OutputTree) -> bool:
    """Whether objects are split, for which all of them has to be seen."""
    return segmenter.measuring.watershed is not None and not TABLES.keys().isdisjoint(outputs.kinds)


@dataclass(frozen=True, eq=False)
class _Strip:
    """Rows of the picture beside what the network sees: which row they begin with, and what they hold."""

    top: int
    rows: NDArray[Any]


class _Strips:
    """Such rows, held until they have served."""

    def __init__(self) -> None:
        self._held: deque[_Strip] = deque()

    def add(self, strips: Sequence[_Strip]) -> None:
        """Take in the next ones."""
        self._held += strips

    def rows(self, first: int, end: int) -> NDArray[Any] | None:
        """The rows from one to before another, 0 where none came; None where none came at all."""
        found: NDArray[Any] | None = None
        for each in self._held:
            top, bottom = max(first, each.top), min(end, each.top + len(each.rows))
            if top < bottom:
                if found is None:
                    found = np.zeros((end - first, *each.rows.shape[1:]), each.rows.dtype)
                found[top - first : bottom - first] = each.rows[top - each.top : bottom - each.top]
        return found

    def drop(self, end: int) -> None:
        """Forget the rows before one."""
        while self._held and self._held[0].top + len(self._held[0].rows) <= end:
            self._held.popleft()


@dataclass(frozen=True, eq=False)
class _Tile:
    """A tile, or the map of one, or the rows that it has finished.

    Attributes:
        number: in the order of the grid.
        pixels: of any of these.
        missing: of what was read of the picture since the tile before it, where it has no value, bool
            (n, width).
        brightness: the same, uint8 (n, width); nothing where no table needs it.
    """

    number: int
    pixels: Pixels
    missing: tuple[_Strip, ...]
    brightness: tuple[_Strip, ...]

    @property
    def weight(self) -> int:
        """Bytes of pixels it holds."""
        return self.pixels.nbytes + sum(each.rows.nbytes for each in (*self.missing, *self.brightness))


@dataclass(frozen=True)
class _Output:
    """How a kind of output that is a picture is made of rows: of probabilities in 16 bit, or of ids.

    Attributes:
        make: rows of it, given those of probabilities and the threshold.
        bits, smooth: of a PNG, as `images.GreyPngWriter` takes them; 0 bits for a GeoTIFF.
        blank: what stands where the picture has no value.
    """

    make: Callable[[NDArray[Any], float], NDArray[Any]]
    bits: int = 8
    smooth: bool = True
    blank: int = 0


_OUTPUTS: Mapping[str, _Output] = {
    "mask": _Output(postprocess.mask16, smooth=False),
    "prob": _Output(lambda rows, threshold: postprocess.to_bytes(rows)),
    "prob16": _Output(lambda rows, threshold: rows, bits=16),
    "geotiff": _Output(
        lambda rows, threshold: postprocess.mask16(rows, threshold) // np.uint8(255), 0, blank=images.NODATA
    ),
}
_POSSIBLE = {**_OUTPUTS, **TABLES}


class _Writer:
    """A file of an output that grows.

    Args:
        path: its name in the end.
        temporary: its name until then.
        size: (height, width).
        kind: of output.
        place: where the picture is, for a GeoTIFF.

    Raises:
        OutputError: here and everywhere: it cannot be written.
    """

    def __init__(self, path: str, temporary: str, size: Size, kind: str, place: Metadata) -> None:
        self.path, self._temporary = path, temporary
        self._file: BinaryIO | None = None
        self._rows: images.GreyPngWriter | images.GeoTiffWriter | TableWriter
        output = _OUTPUTS.get(kind)
        try:
            if output is None:
                self._rows = TableWriter(temporary, kind)
            elif output.bits:
                self._file = open(temporary, "wb")  # noqa: SIM115 - stays open
                self._rows = images.GreyPngWriter(self._file, size, bits=output.bits, smooth=output.smooth)
            else:
                self._rows = images.GeoTiffWriter(temporary, size, place)
        except OSError as error:
            raise translate(error, path, 0) from error

    def write(self, rows: Any) -> None:
        """Write rows: of pixels, or a table as `as_csv` gives it."""
        try:
            self._rows.write(rows)
        except OSError as error:
            raise translate(error, self.path, memoryview(rows).nbytes) from error

    def close(self) -> None:
        """Close the file, whatever is in it; what a full disk refuses has been told."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
            elif not isinstance(self._rows, images.GreyPngWriter):
                self._rows.close()

    def finish(self) -> int:
        """Write the end; returns how many bytes there are."""
        try:
            self._rows.finish()
            if self._file is not None:
                self._file.close()
            return os.path.getsize(self._temporary)
        except OSError as error:
            raise translate(error, self.path, 0) from error


class _GiantRun:
    """The stages of one picture, and what they share."""

    source = "decode"  # which it does

    def __init__(self, item: Item, size: Size, segmenter: Segmenter, outputs: OutputTree) -> None:
        self.item, self.size, self.segmenter, self.outputs = item, size, segmenter, outputs
        what = f"{item.path}: {size[0]}x{size[1]} (height x width) is read in bands of rows, in which"
        if segmenter.view.tiling is None:
            raise ImageTooLarge(
                f"{what} models that see tiles of different sizes or scales cannot be averaged",
                hint="--size HxW and --scale F give all of them the same tiles",
            )
        self.tiling: Tiling = segmenter.view.tiling
        if self.tiling.scale > 1:
            raise ImageTooLarge(
                f"{what} it cannot be enlarged (scale {self.tiling.scale:g})", hint="take a --scale up to 1"
            )
        if segmenter.view.options.refine:
            raise ImageTooLarge(f"{what} edges are not moved to its own", hint="leave --refine out")
        if segmenter.cleanup.needs_whole:
            raise ImageTooLarge(
                f"{what} nobody knows how large a component is in the end ({segmenter.cleanup})",
                hint="leave --min-area, --fill-holes and --largest out, or raise --max-pixels",
            )
        if _splits(segmenter, outputs):
            raise ImageTooLarge(
                f"{what} no objects are split (watershed {segmenter.measuring.watershed})",
                hint="leave --watershed out, or raise --max-pixels",
            )
        if wrong := [kind for kind in outputs.kinds if kind not in _POSSIBLE]:
            possible = [kind for kind in _POSSIBLE if self._is_possible(kind)]
            raise ImageTooLarge(
                f"{what} no {' and no '.join(wrong)} can be drawn of it",
                hint=f"leave it out: --save {','.join(possible)} can be made of such pictures",
            )
        self.placement = segmenter.view.place(size)
        self.grid = self.tiling.grid(self.placement.network)
        spec = segmenter.spec
        ids = spec.output == "class_ids"
        self.mosaic = Mosaic(self.grid, ids=ids)
        self.rows = postprocess.MapRows(self.placement, len(spec.classes.names) if ids else None)
        self.ids, self.seen, self.written, self.total = ids, 0, 0, size[0]
        self.missing, self.brightness = _Strips(), _Strips()
        # Of other numbers of channels a person is shown what the range of the whole picture decides
        sees = segmenter.channels is None or len(segmenter.channels) == 3
        self.needs_brightness = sees and "objects" in outputs.kinds
        self.describer = domain.BandDescriber(self.placement.network)
        self.notes: list[str] = []
        self.writers: dict[str, _Writer] = {}
        self.tables: BandTables | None = None

    def _is_possible(self, kind: str) -> bool:
        return self.segmenter.spec.output != "class_ids" or not KINDS[kind].needs_probability

    def open_outputs(self, stack: ExitStack) -> None:
        """Open a file for each kind, which `stack` will close and rename, or remove."""
        kinds = self.outputs.kinds
        is_asked = "geotiff" in kinds or not TABLES.keys().isdisjoint(kinds)
        place = images.read_place(self.item.path) if is_asked else Metadata()
        for kind in kinds:
            path = self.outputs.path(kind, self.item.key)
            temporary = stack.enter_context(replacing(path))
            self.writers[kind] = _Writer(path, temporary, self.size, kind, place)
            stack.callback(self.writers[kind].close)
        if not TABLES.keys().isdisjoint(kinds):
            self.tables = BandTables(
                self.segmenter.spec,
                self.segmenter.measuring.pixel_size or PixelSize.of(place),
                with_brightness=self.needs_brightness,
                on_objects=self._write_objects if "objects" in kinds else None,
            )

    def _write_objects(self, rows: Iterable[ObjectStats]) -> None:
        self.writers["objects"].write(as_csv("objects", rows))

    def pipeline(self) -> Pipeline[_Tile, int]:
        """From tiles to how many rows are written."""
        backend = self.segmenter.backend
        stages: list[Stage[Any, Any]] = [
            Stage("infer", self.infer, backend.streams, backend.batch_size, enter=backend.thread),
            Stage("blend", self.blend, ordered=True),
            Stage("write", self.write, ordered=True),
        ]
        return Pipeline(
            self.tiles(),
            stages,
            in_flight=4 * backend.batch_size * backend.streams + len(stages),
            weigh=lambda value: getattr(value, "weight", 0),
            budget=PIXEL_BUDGET,
            describe=lambda value: f"{self.item.path}, tile {value.number}",
        )

    def take(self, value: int) -> int:
        """Rows that are written."""
        return value

    def finish(self) -> dict[str, int]:
        """Write the ends of all files."""
        unlike = self.describer.unlike(self.segmenter.view.domains)
        self.notes += domain.notes_on(unlike)
        if self.tables is not None:
            stats = self.tables.finish(unlike)
            if "stats" in self.writers:
                self.writers["stats"].write(as_csv("stats", stats))
        return {kind: writer.finish() for kind, writer in self.writers.items()}

    # The source, in a thread of its own.

    def tiles(self) -> Iterator[_Tile]:
        """Read bands, and cut the tiles of each row of the grid once all rows of the picture are there."""
        grid, shrinker, channels = self.grid, Shrinker(self.placement), self.segmenter.spec.in_channels
        missing, light = list[_Strip](), list[_Strip]()
        held = np.empty((0, grid.columns.length, channels), np.uint8)
        first, read, number = 0, 0, 0
        with closing(self._bands()) as bands:
            for top in grid.rows.starts:
                parts = [held[max(0, top) - first :]]
                first = max(0, top)
                while first + sum(map(len, parts)) < min(grid.rows.length, top + grid.rows.tile):
                    band = next(bands)
                    if band.missing is not None:
                        missing.append(_Strip(read, band.missing))
                    if self.needs_brightness:
                        light.append(_Strip(read, brightness(band.pixels)))
                    read += len(band.pixels)
                    if (rows := shrinker.add(band.pixels)) is not None:
                        parts.append(luminance(rows) if rows.shape[2] > channels else rows)
                        self.describer.add(parts[-1])
                held = np.concatenate(parts)
                for left in grid.columns.starts:
                    tile = self.segmenter.backend.buffer()
                    grid.cut(held, (top, left), tile, first)
                    yield _Tile(number, tile, tuple(missing), tuple(light))
                    number += 1
                    missing.clear()
                    light.clear()

    def _bands(self) -> Generator[images.Band, None, None]:
        """The picture from top to bottom; what is said of it becomes notes."""
        segmenter = self.segmenter
        for band in images.read_bands(
            self.item.path,
            self.size,
            segmenter.workers,
            segmenter.view.options.range,
            segmenter.channels,
        ):
            self.notes += [note for note in band.notes if note not in self.notes]
            yield band

    # The stages.

    def infer(self, tiles: Sequence[_Tile]) -> list[_Tile]:
        """Maps of tiles."""
        maps = self.segmenter.view.infer_tiles([tile.pixels for tile in tiles])
        return [replace(tile, pixels=map) for tile, map in zip(tiles, maps, strict=True)]

    def blend(self, tile: _Tile) -> _Tile:
        """Put the map of a tile to the others; what goes on are the rows that it has finished."""
        return replace(tile, pixels=self.mosaic.add(tile.pixels))

    def write(self, tile: _Tile) -> int:
        """Bring rows to the picture's size, and write them; returns how many are written."""
        self.missing.add(tile.missing)
        self.brightness.add(tile.brightness)
        step = max(1, round(_WRITTEN_AT_ONCE / self.size[1] * self.placement.content[0] / self.size[0]))
        for top in range(0, len(tile.pixels), step):
            map = tile.pixels[top : top + step]
            if self.tables is not None:
                self.tables.see(map, self._missing_in_map(len(map)))
            self.seen += len(map)
            rows = self.rows.add(map)
            if rows is None:
                continue
            end = self.written + len(rows)
            self._write_rows(rows, self.missing.rows(self.written, end))
            self.written = end
            self.missing.drop(end)
            self.brightness.drop(end)
        return self.written

    def _write_rows(self, rows: NDArray[np.uint16] | Pixels, blank: NDArray[np.bool_] | None) -> None:
        """Write rows of the picture's size, of which some pixels have no value."""
        threshold, ids = self.segmenter.threshold, None
        if self.ids:
            ids = self.segmenter.cleanup.only(cast("Pixels", rows), self.segmenter.spec.classes)
        for kind, output in _OUTPUTS.items():
            if kind in self.writers:
                made: NDArray[Any] = output.make(rows, threshold) if ids is None else ids
                empty = made.dtype.type(output.blank)
                self.writers[kind].write(made if blank is None else np.where(blank, empty, made))
        if self.tables is None:
            return
        light = self.brightness.rows(self.written, self.written + len(rows))
        if ids is None:
            wide = cast("NDArray[np.uint16]", rows)
            mask = postprocess.mask16(wide, threshold) // np.uint8(255)
            self.tables.add(mask, blank, postprocess.to_bytes(wide), light)
        else:
            self.tables.add(ids, blank, None, light)

    def _missing_in_map(self, count: int) -> NDArray[np.bool_] | None:
        """Which pixels of the next rows of the map have no value: what is at their centres."""
        (height, width), (rows, columns) = self.placement.source, self.placement.content
        down = _centres(np.arange(self.seen, self.seen + count), height, rows)
        first = int(down[0])
        missing = self.missing.rows(first, int(down[-1]) + 1)
        return (
            None
            if missing is None
            else missing[down - first][:, _centres(np.arange(columns), width, columns)]
        )


def _centres(places: NDArray[np.int64], length: int, into: int) -> NDArray[np.int64]:
    """Which of `length` pixels the middles of some of `into` lie in, which show the same."""
    centres: NDArray[np.int64] = (2 * places + 1) * length // (2 * into)
    return centres
