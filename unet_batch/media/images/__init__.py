"""Decode picture files to RGB pixels, and encode results as the contents of files.

`read` returns RGB uint8 as a person sees the picture, whatever was stored. Unless a `Range` says otherwise:

| stored                              | becomes                                                      |
|-------------------------------------|--------------------------------------------------------------|
| 8-bit RGB                           | itself                                                       |
| grey, palette, 1 bit                | replicated, looked up, 0 or 255; inverted where a TIFF says  |
|                                     | that white is 0                                              |
| alpha (RGBA, LA, transparent colour)| composited over white; the opacity itself is `Picture.alpha` |
| CMYK, YCCK, YCbCr                   | by the profile of CMYK, if there is one; else the decoder's  |
|                                     | plain conversion; in a JPEG, CMYK is taken as inverted       |
|                                     | (Adobe)                                                      |
| L*a*b*                              | sRGB by Little CMS                                           |
| unsigned, 2 to 16 bits              | v * 255 / (2 ** bits - 1) rounded; PNG in colour: v >> 8, at |
|                                     | most 1 below that. 12 bits inside 16-bit samples count as    |
|                                     | 16: dark                                                     |
| larger and signed integers, floats  | minimum..maximum of the values to 0..255, over all bands;    |
|                                     | floats already within 0..1 times 255; a constant picture 0   |
| NaN, infinity; in a TIFF also GDAL's| 0, and `Picture.missing`: they widen no range, and are 0 in  |
| nodata, absent tiles, a mask inside | masks, probabilities and cutouts                             |
| other bands than those of colour    | left out, with a note; three or more bands of grey are taken |
|                                     | for red, green, blue                                         |
| several frames or pages             | the first one, with a note; of an animated PNG the default   |
|                                     | image; of a TIFF the first that is not a reduced copy; of an |
|                                     | MPO the first: only pictures as large count, no previews and |
|                                     | no gain maps                                                 |
| a window, rescaling (DICOM)         | applied, the first there is; padding has no value            |
| a camera's raw data                 | developed: its white balance, exposure by the histogram      |
| orientation 2..8 (EXIF, TIFF)       | applied; absent, invalid or unreadable: as stored            |
| an ICC profile; PNG's cICP; a JPEG  | sRGB by Little CMS, relative colorimetric with black point   |
| that names Adobe RGB in EXIF (DCF)  | compensation; one that is damaged or made for other colours  |
|                                     | is ignored, with a note; so is high dynamic range (PQ, HLG)  |
| PNG's gAMA and cHRM                 | ignored: many programs write wrong ones                      |
| an array of NumPy (.npy)            | as a TIFF of such bands; NaN and infinity have no value      |

Where `channels` are chosen it returns uint8 (h, w, n): those bands of the file by their numbers from 1, as
they are stored but upright: no profile, no opacity over white, nothing inverted. Of a TIFF, bands of the
page, and the channels that ImageJ and OME store as pages; of an array their axis; of a JPEG red, green and
blue; of all else grey or red, green and blue, then opacity where the format has it. Numbers become levels by
the table, but each channel by itself where minimum and maximum decide: a channel is the same beside any
others. `missing` is where none of them has a value.

A JPEG is decoded in libjpeg's strict mode, where every warning is an error: a lenient decoder fills what is
missing with grey. Some blemishes are cut out of the data, which must then pass the strict decoder as a whole:
metadata it dislikes (JFIF revision, Adobe transform), stray bytes between header segments, and, where one
Huffman-coded scan holds everything, a missing end marker, also before the trailer of a Samsung phone or an
MP4, or up to 16 surplus bytes (any number of zeros) before it. Unusual samplings, 12 bits and lossless files
have another decoder, which is not strict, and a check of their own (`huffman`). A damaged scan that never
shows as an error in the bit stream cannot be told from a picture. PNG checksums are verified.

A TIFF whose strips or tiles are cut short or absent is an error. Of changed bytes inside one, deflate, PNG
and LERC notice any, JPEG most; the others (LZW, fax, none...) show them.

`common` has the table of formats, to which a new one is added, limits and errors; `ranges` makes uint8 of
numbers of any type. `jpeg` (with `huffman`), `png`, `tiff` (with `tiff_pages`, `tiff_blocks`, `tiff_ycbcr`,
and `tiff_bands` for what memory does not hold), `raw`, `dicom` (with `dicomseg` for masks) and `ome_zarr`
have their formats, `decode` all others (with `depth`), and the functions that read, `masks` those for ids;
`memory` takes what was read already, `profiles` makes it sRGB, `metadata` chooses what outputs take over, and
`encode` writes them.
"""

from __future__ import annotations

from unet_batch.media.images.common import (
    EXTENSIONS,
    MAX_PIXELS,
    Picture,
    is_supported,
    is_unnamed_dicom,
    may_be_dicom,
)
from unet_batch.media.images.decode import natural_channels, orientation, read, read_bytes
from unet_batch.media.images.dicomseg import SegmentationWriter, check_dicomseg, encode_dicomseg
from unet_batch.media.images.encode import (
    JPEG_SIDE,
    GreyPngWriter,
    encode_jpeg,
    encode_map,
    encode_mask,
    encode_palette,
    encode_rgba,
    encode_webp,
    mask_canvas,
)
from unet_batch.media.images.geotiff import NODATA, GeoTiffWriter, encode_floats, encode_geotiff
from unet_batch.media.images.lettering import parse_colour
from unet_batch.media.images.masks import StoredMask, read_ids
from unet_batch.media.images.memory import from_memory
from unet_batch.media.images.pages import Stack, StackWriter, look_at_pages, read_pages
from unet_batch.media.images.ranges import AUTO, Range, trained_range
from unet_batch.media.images.tiff_bands import Band, measure, read_bands, read_place

__all__ = [
    "AUTO",
    "EXTENSIONS",
    "JPEG_SIDE",
    "MAX_PIXELS",
    "NODATA",
    "Band",
    "GeoTiffWriter",
    "GreyPngWriter",
    "Picture",
    "Range",
    "SegmentationWriter",
    "Stack",
    "StackWriter",
    "StoredMask",
    "check_dicomseg",
    "encode_dicomseg",
    "encode_floats",
    "encode_geotiff",
    "encode_jpeg",
    "encode_map",
    "encode_mask",
    "encode_palette",
    "encode_rgba",
    "encode_webp",
    "from_memory",
    "is_supported",
    "is_unnamed_dicom",
    "look_at_pages",
    "mask_canvas",
    "may_be_dicom",
    "measure",
    "natural_channels",
    "orientation",
    "parse_colour",
    "read",
    "read_bands",
    "read_bytes",
    "read_ids",
    "read_pages",
    "read_place",
    "trained_range",
]
