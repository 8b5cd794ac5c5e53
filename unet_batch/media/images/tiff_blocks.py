"""From the strips and tiles of a TIFF page to its numbers.

tifffile reads the directory, imagecodecs decompresses. Its own way from there to an array
(`TiffPage.asarray`) is made for files that one trusts: a block that is absent becomes zeros, a damaged JPEG
grey, and a JPEG 2000 of 16 pixels in the directory and 10^9 in the stream is decoded. Here a block is decoded
into an array of the size that the directory announces or not at all, is complete or an error, and only the
bands that are asked for are kept.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import simplejpeg
from PIL.TiffImagePlugin import TiffImageFile

from unet_batch.media.images.common import Damage
from unet_batch.media.images.tiff_ycbcr import Units, numbers, ycbcr_to_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage

    Block = tuple[NDArray[Any], NDArray[np.bool_] | None]
    Decode = Callable[[bytes, int, int], Block]
    Each = Callable[[Callable[[Any], Any], Iterator[Any]], Iterator[Any]]

JPEG = (6, 7, 33007, 34892)
"""Values of the tag Compression that mean JPEG."""

# Codecs whose stream has a size of its own: the function of imagecodecs
_PICTURES = {
    22610: "jpegxr_decode",
    33003: "jpeg2k_decode",
    33004: "jpeg2k_decode",
    33005: "jpeg2k_decode",
    34712: "jpeg2k_decode",
    34927: "webp_decode",
    34933: "png_decode",
    34934: "jpegxr_decode",
    50001: "webp_decode",
    50002: "jpegxl_decode",
    52546: "jpegxl_decode",
}
_LERC = 34887
_DEFLATE = (8, 32946, 50013)
# Uncompressed samples are not predicted, whatever the tag says: some writers leave it there
_PREDICTED = (5, *_DEFLATE, 32773, 34925, 34926, 50000)
_BYTES = {5: "lzw", 32773: "packbits", 34925: "lzma", 34926: "zstd", 50000: "zstd"}
_PART = 2**22  # bytes of a strip without compression that are read together
_FAX = {2: "ccittrle_decode", 3: "ccittfax3_decode", 4: "ccittfax4_decode"}

_NAMES = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    262: "Kodak DCR",
    32766: "NeXT's 2-bit coding",
    32767: "Sony ARW",
    32771: "word-aligned CCITT",
    32809: "ThunderScan",
    32908: "Pixar's film coding",
    32909: "Pixar's log coding",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv (24 bits)",
    34713: "Nikon NEF",
    34715: "JBIG2",
    34892: "lossy JPEG (DNG)",
    48124: "Jetraw",
    65000: "Kodak DCR or EER",
    65535: "Pentax PEF",
}


class UnsupportedTiff(ValueError):
    """A TIFF that may well be whole, of a kind that is not read; says which: "compressed with JBIG"."""


def check_compression(page: TiffPage) -> None:
    """Raise UnsupportedTiff if nothing here decompresses a page."""
    code = int(page.compression)
    known = (1, *JPEG, *_PICTURES, _LERC, *_DEFLATE, *_BYTES, *_FAX)
    if code not in known:
        raise UnsupportedTiff(f"compressed with {compression_name(code)}")


def compression_name(code: int) -> str:
    """The name of a value of the tag Compression."""
    from tifffile import COMPRESSION

    if code in _NAMES:
        return _NAMES[code]
    try:
        return COMPRESSION(code).name.replace("_", " ")
    except ValueError:
        return f"an unknown method (Compression {code})"


@dataclass(frozen=True)
class _Grid:
    """How a page is cut into blocks: strips or tiles.

    Attributes:
        rows, columns: of a block; strips are as wide as the picture.
        down, across: how many blocks.
        deep: how many layers of them, of which the first is the picture.
        planes: how many times all that: one for each band where bands lie apart.
        bands: in each pixel of a block.
    """

    rows: int
    columns: int
    down: int
    across: int
    deep: int
    planes: int
    bands: int

    @classmethod
    def of(cls, page: TiffPage) -> _Grid:
        height, width, apart = page.imagelength, page.imagewidth, page.planarconfig == 2
        rows, columns = page.rowsperstrip, width
        deep = page.imagedepth
        if page.is_tiled:
            rows, columns = page.tilelength, page.tilewidth
            deep = -(-page.imagedepth // max(1, page.tiledepth))
        if min(height, width, rows, columns, deep, page.samplesperpixel) < 1:
            raise Damage(f"{height}x{width} pixels in blocks of {rows}x{columns}")
        planes, bands = (page.samplesperpixel, 1) if apart else (1, page.samplesperpixel)
        return cls(rows, columns, -(-height // rows), -(-width // columns), deep, planes, bands)

    def blocks(self, plane: int, rows: range) -> Iterator[tuple[int, int, int]]:
        """Number, top and left of each block of the first layer of a plane that holds some of the rows."""
        first = plane * self.deep * self.down * self.across
        for index in range(rows.start // self.rows * self.across, -(-rows.stop // self.rows) * self.across):
            down, across = divmod(index, self.across)
            yield first + index, down * self.rows, across * self.columns


def block_size(page: TiffPage) -> int:
    """How many numbers one block of a page holds."""
    grid = _Grid.of(page)
    return grid.rows * grid.columns * grid.bands * (max(1, page.tiledepth) if page.is_tiled else 1)


def block_rows(page: TiffPage, file: BinaryIO) -> int:
    """How many rows of a page are decoded together: those of a strip or tile, some of a plain strip."""
    return min(page.imagelength, _lay_out(page, file, in_parts=True)[0].rows)


def read_blocks(
    page: TiffPage,
    file: BinaryIO,
    bands: Sequence[int],
    *,
    sparse: bool,
    rows: range | None = None,
    each: Each = map,
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Decode a page, or some rows of it.

    Args:
        page: whose sizes have been checked.
        file: that it is in.
        bands: which ones, in this order.
        sparse: blocks that are absent are a way to say that there is no value, as GDAL does; else an error.
        rows: which ones; None for all.
        each: calls a function with each of many values, as `map`; several at once, perhaps.

    Returns:
        The numbers as they are stored, (h, w, len(bands)) of the page's dtype, but YCbCr made RGB; and where
        there is none, bool (h, w), or None.

    Raises:
        UnsupportedTiff: it is of a kind that is not read.
        ValueError, RuntimeError: it is damaged.
    """
    grid, offsets, counts = _lay_out(page, file, in_parts=rows is not None)
    wanted, height, width = rows or range(page.imagelength), page.imagelength, page.imagewidth
    total = grid.planes * grid.deep * grid.down * grid.across
    if min(len(offsets), len(counts)) < total:
        raise Damage(f"{total} strips or tiles are needed, {min(len(offsets), len(counts))} are listed")
    decode, end = _decoder(page, grid), file.seek(0, io.SEEK_END)
    values = np.empty((len(wanted), width, len(bands)), page.dtype)

    def blocks() -> Iterator[tuple[Any, ...]]:
        for index, top, left, into, kept in _plan(grid, bands, wanted):
            if absent := offsets[index] == 0 or counts[index] == 0:
                if not sparse:
                    raise Damage(f"strip or tile {index + 1} of {total} is absent")
                data = b""
            else:
                data = _read(file, end, offsets[index], counts[index], page, grid if total == 1 else None)
            yield None if absent else data, top, left, into, kept

    def fill(block: tuple[Any, ...]) -> tuple[tuple[slice, slice], NDArray[np.bool_] | bool]:
        data, top, left, into, kept = block
        high, wide = min(grid.rows, height - top), min(grid.columns, width - left)
        part = slice(max(0, wanted.start - top), min(high, wanted.stop - top))
        area = (
            slice(top + part.start - wanted.start, top + part.stop - wanted.start),
            slice(left, left + wide),
        )
        if data is None:
            values[area[0], area[1], into] = 0
            return area, False
        decoded, found = decode(data, high, wide)
        values[area[0], area[1], into] = decoded[part, :wide, kept]
        return area, True if found is None else found[part, :wide]

    missing: NDArray[np.bool_] | None = None
    absent = False
    for area, valid in each(fill, blocks()):
        absent |= valid is False
        if valid is not True and not np.all(valid):
            missing = np.zeros((len(wanted), width), np.bool_) if missing is None else missing
            missing[area] |= np.logical_not(valid)
    if rows is None and absent and missing is not None and missing.all():
        raise Damage("all of its strips or tiles are absent: there is no picture in it")
    return values, missing


def _lay_out(page: TiffPage, file: BinaryIO, *, in_parts: bool) -> tuple[_Grid, Sequence[int], Sequence[int]]:
    """The blocks of a page, and where each of them begins, and how many bytes it has.

    Args:
        page: whose sizes have been checked.
        file: that it is in.
        in_parts: take a single strip without compression as many, whose size can be chosen.
    """
    grid = _Grid.of(page)
    offsets: Sequence[int] = page.dataoffsets
    counts: Sequence[int] = page.databytecounts
    if page.compression == 6 and 513 in page.tags:  # JPEGInterchangeFormat: one stream for all strips
        grid = _Grid(page.imagelength, page.imagewidth, 1, 1, 1, 1, page.samplesperpixel)
        start, size = numbers(page, 513)[0], (*numbers(page, 514), 0)[0]
        offsets, counts = (start,), (size or file.seek(0, io.SEEK_END) - start,)
    plain = page.compression == 1 and not page.is_tiled and not page.is_subsampled
    if in_parts and plain and grid.down == 1 and grid.deep == 1 and 0 not in (*offsets, *counts):
        row = -(-grid.columns * grid.bands * _bits(page) // 8)
        rows = max(1, min(page.imagelength, _PART // row))
        down = -(-page.imagelength // rows)
        offsets = [start + part * rows * row for start in offsets for part in range(down)]
        counts = [row * min(rows, page.imagelength - part * rows) for part in range(down)] * grid.planes
        grid = replace(grid, rows=rows, down=down)
    return grid, offsets, counts


def _plan(
    grid: _Grid, bands: Sequence[int], rows: range
) -> Iterator[tuple[int, int, int, slice, slice | list[int]]]:
    """Go through the blocks that hold the bands and rows that are wanted.

    Yields:
        Number, top and left of a block, the bands of the result that it fills, and those of its own that are
        taken: planes fill one after the other, else all come from each block.
    """
    every = slice(None)
    if grid.planes > 1:
        for at, band in enumerate(bands):
            yield from ((*place, slice(at, at + 1), every) for place in grid.blocks(band, rows))
    else:
        kept = every if list(bands) == list(range(grid.bands)) else list(bands)
        yield from ((*place, every, kept) for place in grid.blocks(0, rows))


def _read(file: BinaryIO, end: int, offset: int, count: int, page: TiffPage, only: _Grid | None) -> bytes:
    """Read the bytes of a block, all of them.

    Args:
        file: to read from.
        end: its size.
        offset, count: of the block, from the directory.
        page: that it belongs to.
        only: of a page with a single block: then, uncompressed, its size is known, whatever the directory
            says, which some writers get wrong.
    """
    if only and page.compression == 1 and not page.is_subsampled:
        count = only.rows * -(-only.columns * only.bands * _bits(page) // 8)
    if offset + count > end:
        raise Damage(f"the pixel data end {offset + count - end:,} bytes early")
    file.seek(offset)
    return file.read(count)


def _bits(page: TiffPage) -> int:
    """Bits of a sample, the same for all bands."""
    bits: Any = page.bitspersample  # several, where they differ
    if not isinstance(bits, int) or page.dtype is None or page.dtype.kind == "c":
        kinds = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex numbers"}
        kind = kinds.get(int(page.sampleformat), "complex numbers" if page.sampleformat == 6 else "samples")
        bits = " and ".join(map(str, bits)) if isinstance(bits, tuple) else bits
        raise UnsupportedTiff(f"of {bits}-bit {kind}")
    return int(bits)


def _decoder(page: TiffPage, grid: _Grid) -> Decode:
    """Choose what makes an array (at least rows x columns x bands) of the bytes of a block of a page."""
    code = int(page.compression)
    _bits(page)
    check_compression(page)
    if code in JPEG:
        return _jpeg_decoder(page, grid)
    if code in _PICTURES or code == _LERC:
        return _picture_decoder(page, grid)
    return _sample_decoder(page, grid)


# Codecs of pictures -----------------------------------------------------------------------------------------


def _jpeg_decoder(page: TiffPage, grid: _Grid) -> Decode:
    """Decode JPEG strictly, as files of it are: libjpeg fills with grey what is missing.

    What colours a stream without a JFIF or Adobe marker holds is for the directory to say.
    """
    tables = page.jpegtables or b""
    transform = 1 if page.photometric == 6 and grid.bands == 3 else 0
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    head = b"\xff\xd8" + adobe + (tables[2:-2] if tables.startswith(b"\xff\xd8") else tables)
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(grid.bands)
    if page.bitspersample != 8 or space is None:
        return _picture_decoder(page, grid)

    def decode(data: bytes, rows: int, columns: int) -> Block:
        # Of an old-style JPEG, the strip may begin with its scan
        if not data.startswith(b"\xff\xd8"):
            raise UnsupportedTiff("compressed with old-style JPEG in pieces")
        stream = head + data[2:]
        height, width, *_ = simplejpeg.decode_jpeg_header(stream)
        if not (rows <= height <= grid.rows and columns <= width <= grid.columns):
            raise Damage(f"a block of {rows}x{columns} holds a JPEG of {height}x{width}")
        return simplejpeg.decode_jpeg(stream, space), None

    return decode


def _picture_decoder(page: TiffPage, grid: _Grid) -> Decode:
    """Decode streams that have a size of their own: only where it is the block's.

    At the right and bottom, a block may be whole or end with the picture.
    """
    import imagecodecs

    code, kind = int(page.compression), page.dtype
    packing = (*numbers(page, 50674), 0, 0)[1]  # of LercParameters: 1 is deflate, 2 Zstandard
    limit = grid.rows * grid.columns * grid.bands * np.dtype(kind).itemsize
    function: Callable[..., Any]
    options: dict[str, Any] = {}
    if code in JPEG:
        function, options = imagecodecs.jpeg_decode, {"bitspersample": page.bitspersample}
        options["tables"] = page.jpegtables
    elif code == _LERC:
        function, options = imagecodecs.lerc_decode, {"masks": True}
        if page.predictor not in (1, 2):
            raise UnsupportedTiff(f"compressed with LERC and predictor {int(page.predictor)}")
    else:
        function = getattr(imagecodecs, _PICTURES[code])
        if "webp" in _PICTURES[code] and grid.bands == 4:
            options = {"hasalpha": True}  # opaque tiles have none

    def decode(data: bytes, rows: int, columns: int) -> Block:
        if code == _LERC and packing in (1, 2):  # compressed once more, by GDAL
            data = _decompress(data, 8 if packing == 1 else 50000, 2 * limit + 65536)
        shapes = {(r, c): None for r in (grid.rows, rows) for c in (grid.columns, columns)}
        for shape in shapes:
            out = np.empty(shape if grid.bands == 1 else (*shape, grid.bands), kind)
            try:
                result = function(data, out=out, **options)
                break
            except ValueError as error:  # imagecodecs compares the sizes before it decodes
                problem = error
        else:
            raise Damage(f"a block of {rows}x{columns} holds another picture: {problem}")
        values, valid = result if isinstance(result, tuple) else (result, None)
        if valid is not None and valid.ndim == 3:
            valid = valid.any(axis=-1)
        values = values.reshape(*shape, grid.bands)
        if code == _LERC and page.predictor == 2:
            values = np.asarray(imagecodecs.delta_decode(values, axis=-2))
        return (ycbcr_to_rgb(page, values) if code == 33003 else values), valid

    return decode


# Plain samples ----------------------------------------------------------------------------------------------


def _sample_decoder(page: TiffPage, grid: _Grid) -> Decode:
    """Decode samples that were packed, perhaps predicted, and compressed as bytes are."""
    bits, code, reversed_bits = _bits(page), int(page.compression), page.fillorder == 2
    predictor = int(page.predictor) if code in _PREDICTED else 1
    if predictor not in (1, 2, 3) or (predictor > 1 and bits not in (8, 16, 32, 64)):
        raise UnsupportedTiff(f"of {bits}-bit samples with predictor {predictor}")
    subsampled = page.photometric == 6 and page.is_subsampled
    if page.photometric == 6 and (grid.bands != 3 or bits != 8):
        raise UnsupportedTiff("of YCbCr in separate planes, or of other than 8 bits")
    per_row = -(-grid.columns * grid.bands * bits // 8)
    units = Units.of(page, grid.columns) if subsampled else None
    most = units.size(grid.rows) if units else grid.rows * per_row

    def decode(data: bytes, rows: int, columns: int) -> Block:
        if reversed_bits:
            import imagecodecs

            data = bytes(imagecodecs.bitorder_decode(data))
        if code in _FAX:
            return _decode_fax(page, data, rows, grid.columns), None
        data = _decompress(data, code, most)
        if units:
            return ycbcr_to_rgb(page, units.spread(data, rows)), None
        if len(data) < rows * per_row:
            raise Damage(f"a block of pixels ends {rows * per_row - len(data):,} bytes early")
        values = _unpack(page, data[: rows * per_row], bits, (rows, grid.columns, grid.bands), predictor)
        return (ycbcr_to_rgb(page, values) if page.photometric == 6 else values), None

    return decode


def _decompress(data: bytes, code: int, most: int) -> bytes:
    """Decompress to at most so many bytes: what a hostile block holds beyond that is never made."""
    import imagecodecs

    if code == 1:
        return data
    if code in _DEFLATE:
        try:
            return bytes(imagecodecs.deflate_decode(data, out=most))
        except RuntimeError:  # libdeflate refuses a stream that holds more, too
            inflate = zlib.decompressobj()
            decoded = inflate.decompress(data, most)
            inflate.decompress(inflate.unconsumed_tail, 1)  # checks the sum, if this is the end
            return decoded
    return bytes(getattr(imagecodecs, f"{_BYTES[code]}_decode")(data, out=most))


def _decode_fax(page: TiffPage, data: bytes, rows: int, columns: int) -> NDArray[Any]:
    """Decode CCITT's codings of black and white, which know no error: what is damaged looks it."""
    import imagecodecs

    code, options = int(page.compression), (*numbers(page, 292), 0)[0]
    decode = getattr(imagecodecs, _FAX[code], None)
    if decode is not None:
        decoded = decode(data, rows, columns, **({"t4options": options} if code == 3 else {}))
    else:  # before 2026.3, the last for Python 3.10 among them: by Pillow's libtiff, as a TIFF of one strip
        tags = {256: columns, 257: rows, 258: 1, 259: code, 262: 1, 273: 8, 277: 1, 278: rows, 279: len(data)}
        tags |= {292: options} if code == 3 else {}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
        tail = struct.pack("<H", len(tags)) + entries + bytes(4)
        decoded = TiffImageFile(io.BytesIO(head + data + tail))
    return np.asarray(decoded).reshape(rows, columns, 1)


def _unpack(
    page: TiffPage, data: bytes, bits: int, shape: tuple[int, int, int], predictor: int
) -> NDArray[Any]:
    """Make numbers in the machine's byte order of the bytes of whole rows."""
    import imagecodecs

    kind = np.dtype(page.dtype)
    order = page.parent.byteorder
    if bits == 24 and kind.kind == "f":
        return np.asarray(imagecodecs.float24_decode(data, byteorder=order)).reshape(shape)
    if bits == 1:
        rows = np.unpackbits(np.frombuffer(data, np.uint8).reshape(shape[0], -1), axis=1)
        return rows[:, : shape[1] * shape[2]].reshape(shape)
    if bits not in (8, 16, 32, 64):
        packed = imagecodecs.packints_decode(data, kind, bits, runlen=shape[1] * shape[2])
        return np.asarray(packed).reshape(shape)
    if predictor == 3:  # its bytes are sorted by weight, whatever the file's order
        values = np.frombuffer(data, kind).reshape(shape)
        return np.asarray(imagecodecs.floatpred_decode(values, axis=-2))
    values = np.frombuffer(data, kind.newbyteorder(order)).reshape(shape)
    if predictor == 2:
        values = values.astype(kind)
        values = np.asarray(imagecodecs.delta_decode(values, axis=-2, out=values))
    return values
