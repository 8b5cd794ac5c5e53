"""Decode picture files to RGB pixels, and encode results as the contents of files.

`read` returns RGB uint8 as a person sees the picture, whatever was stored:

| stored                              | becomes                                                      |
|-------------------------------------|--------------------------------------------------------------|
| 8-bit RGB                           | itself                                                       |
| grey, palette, 1 bit                | replicated, looked up, 0 or 255                              |
| alpha (RGBA, LA, transparent colour)| composited over white                                        |
| CMYK, YCCK, YCbCr                   | the decoder's plain conversion; in a JPEG, CMYK is taken as  |
|                                     | inverted (Adobe)                                             |
| L*a*b*                              | sRGB by Little CMS                                           |
| unsigned 16 bits                    | v / 257 rounded; colour read by Pillow: v >> 8, at most 1     |
|                                     | below that                                                   |
| unsigned 12 bits (TIFF              | v * 255 / 4095 rounded. 12 bits inside 16-bit samples count  |
| BitsPerSample)                      | as 16: dark                                                  |
| integers of 32 bits, signed ones,   | minimum..maximum of the finite values to 0..255; floats      |
| floats                              | already within 0..1 times 255; NaN 0; a constant picture 0   |
| several frames or pages             | the first one; of an animated PNG the default image          |
| EXIF orientation 2..8               | applied; absent, invalid or unreadable: as stored            |
| an ICC profile, gamma, white point  | ignored: networks are trained on pixels as stored            |

A JPEG is decoded in libjpeg's strict mode, where every warning is an error: a lenient decoder fills what is
missing with grey. Some blemishes are cut out of the data, which must then pass the strict decoder as a whole:
metadata it dislikes (JFIF revision, Adobe transform), stray bytes between header segments, and, where one
Huffman-coded scan holds everything, a missing end marker or up to 16 surplus bytes (any number of zeros)
before it. A damaged scan that never shows as an error in the bit stream cannot be told from a picture; nor
can one inside a TIFF. PNG checksums are verified. libtiff, inside Pillow, writes a line of its own to stderr
when compressed TIFF data are damaged; nothing else here does.

In five modules: `common` (the table of formats, to which a new one is added; limits, errors), `jpeg`,
`decode` (every format but JPEG; the functions that read), `memory` (what was read already) and `encode`.
"""

from __future__ import annotations

from unet_batch.media.images.common import EXTENSIONS, MAX_PIXELS, Picture, is_supported
from unet_batch.media.images.decode import StoredMask, orientation, read, read_bytes, read_ids
from unet_batch.media.images.encode import JPEG_SIDE, encode_jpeg, encode_map, encode_mask, encode_rgba
from unet_batch.media.images.memory import from_memory

__all__ = [
    "EXTENSIONS",
    "JPEG_SIDE",
    "MAX_PIXELS",
    "Picture",
    "StoredMask",
    "encode_jpeg",
    "encode_map",
    "encode_mask",
    "encode_rgba",
    "from_memory",
    "is_supported",
    "orientation",
    "read",
    "read_bytes",
    "read_ids",
]
