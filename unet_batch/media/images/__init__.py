"""Decode picture files to RGB pixels, and encode results as the contents of files.

`read` returns RGB uint8 as a person sees the picture, whatever was stored:

| stored                              | becomes                                                      |
|-------------------------------------|--------------------------------------------------------------|
| 8-bit RGB                           | itself                                                       |
| grey, palette, 1 bit                | replicated, looked up, 0 or 255                              |
| alpha (RGBA, LA, transparent colour)| composited over white; the opacity itself is `Picture.alpha` |
| CMYK, YCCK, YCbCr                   | by the profile of CMYK, if there is one; else the decoder's  |
|                                     | plain conversion; in a JPEG, CMYK is taken as inverted       |
|                                     | (Adobe)                                                      |
| L*a*b*                              | sRGB by Little CMS                                           |
| unsigned 16 bits                    | v / 257 rounded; colour read by Pillow: v >> 8, at most 1     |
|                                     | below that                                                   |
| unsigned 12 bits (TIFF              | v * 255 / 4095 rounded. 12 bits inside 16-bit samples count  |
| BitsPerSample)                      | as 16: dark                                                  |
| integers of 32 bits, signed ones,   | minimum..maximum of the finite values to 0..255; floats      |
| floats                              | already within 0..1 times 255; NaN 0; a constant picture 0   |
| several frames or pages             | the first one, with a note; of an animated PNG the default   |
|                                     | image; of an MPO the first, and only pictures as large count,|
|                                     | no previews and no gain maps                                 |
| EXIF orientation 2..8               | applied; absent, invalid or unreadable: as stored            |
| an ICC profile; PNG's cICP          | sRGB by Little CMS, relative colorimetric with black point   |
|                                     | compensation; one that is damaged or made for other colours  |
|                                     | is ignored, with a note; so is high dynamic range (PQ, HLG)  |
| PNG's gAMA and cHRM                 | ignored: many programs write wrong ones                      |

A JPEG is decoded in libjpeg's strict mode, where every warning is an error: a lenient decoder fills what is
missing with grey. Some blemishes are cut out of the data, which must then pass the strict decoder as a whole:
metadata it dislikes (JFIF revision, Adobe transform), stray bytes between header segments, and, where one
Huffman-coded scan holds everything, a missing end marker, also before the trailer of a Samsung phone or an
MP4, or up to 16 surplus bytes (any number of zeros) before it. Unusual samplings, 12 bits and lossless files
have another decoder, which is not strict, and a check of their own (`huffman`). A damaged scan that never
shows as an error in the bit stream cannot be told from a picture; nor can one inside a TIFF. PNG checksums
are verified. libtiff, inside Pillow, writes a line of its own to stderr when compressed TIFF data are
damaged; nothing else here does.

`common` has the table of formats, to which a new one is added, limits and errors; `jpeg` (with `huffman`),
`png` and `tiff` (with `tiff_blocks`) have their formats, `decode` all others, and the functions that read;
`memory` takes what was read already, `profiles` makes it sRGB, `metadata` chooses what outputs take over, and
`encode` writes them.
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
