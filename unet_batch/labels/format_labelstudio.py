"""Label Studio: `tasks.json` with predictions, and `labels.xml`, the interface that shows them.

A class is one brush mask, in Label Studio's own packing of runs, or each object is a polygon in per cent of
the picture.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from unet_batch.labels.base import LabelFormat, LabelSettings, TextFile, compact
from unet_batch.labels.picture import split_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.labels.picture import LabelledPicture
    from unet_batch.run.masks import LabelTable

_WORD, _SIZES = 8, (3, 4, 8, 16)  # bits of a value, and of the four kinds of run lengths
_LONGEST = 1 << _SIZES[-1]
_CHANNELS = 4  # a mask is packed as RGBA, all channels alike


class LabelStudioFormat(LabelFormat):
    """See the top of this module."""

    def __init__(self, folder: str, table: LabelTable, settings: LabelSettings) -> None:
        super().__init__(folder, table, settings)
        self._tasks = TextFile(self.path("tasks.json"))
        self._tasks.write("[\n")

    def encode(self, picture: LabelledPicture) -> str:
        """Its task."""
        results = self._outlines(picture) if self.settings.polygons else self._masks(picture)
        return compact(
            {
                "data": {"image": f"{self.settings.image_prefix}{self._name(picture)}"},
                "predictions": [{"model_version": "unet-batch", "result": results}],
            }
        )

    def add(self, picture: LabelledPicture, encoded: str) -> None:
        """Write it."""
        self._tasks.write_entries([encoded])

    def finish(self) -> None:
        """Write the end, and the labelling interface."""
        self._tasks.write("\n]\n")
        self._tasks.close()
        tag = "PolygonLabels" if self.settings.polygons else "BrushLabels"
        labels = "".join(
            f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>\n'
            for name, (red, green, blue) in zip(self.table.names, self.table.colours, strict=True)
        )
        self.write(
            "labels.xml",
            f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n</View>\n',
        )

    def close(self) -> None:
        """Close the file."""
        self._tasks.close()

    def _name(self, picture: LabelledPicture) -> str:
        return self.image_file(picture) if self.settings.with_images else picture.file

    def _masks(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        return [
            self._result(picture, number, "brushlabels", category, {"format": "rle", "rle": pack(mask)})
            for number, (category, mask) in enumerate(picture.masks())
        ]

    def _outlines(self, picture: LabelledPicture) -> list[dict[str, Any]]:
        share = 100 / np.array(picture.size[::-1], np.float64)
        return [
            self._result(
                picture,
                number,
                "polygonlabels",
                category,
                {"points": (ring * share).round(6).tolist(), "closed": True},
            )
            for number, (category, ring) in enumerate(picture.rings(self.settings.simplify))
        ]

    def _result(
        self, picture: LabelledPicture, number: int, kind: str, category: int, value: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = picture.size
        name = hashlib.sha256(f"{picture.key}\0{number}".encode("utf-8", "surrogatepass")).hexdigest()[:10]
        return {
            "id": name,
            "type": kind,
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, kind: [self.table.names[category]]},
        }


def pack(mask: NDArray[np.bool_]) -> list[int]:
    """A mask, bool (height, width), as Label Studio's brush keeps it: numbers of a byte each.

    The packing is that of `@thi.ng/rle-pack`: 32 bits for how many values there are, 5 for the bits of a
    value less one, 4 for each of the four sizes of lengths less one; then the runs: a bit that says so, 2 for
    the size of its length, the length less one, and the value.
    """
    lengths = np.array(split_runs(mask), np.int64) * _CHANNELS
    values = np.where(np.arange(len(lengths)) % 2, 255, 0)
    pieces = -(-lengths // _LONGEST)  # a run longer than its 16 bits can tell is several
    values = np.repeat(values, pieces)
    full = np.full(len(values), _LONGEST)
    last = np.cumsum(pieces)[pieces > 0] - 1
    full[last] = (lengths - (pieces - 1) * _LONGEST)[pieces > 0]
    head = (
        np.array([mask.size * _CHANNELS]),
        np.array([_WORD - 1]),
        *(np.array([size - 1]) for size in _SIZES),
    )
    bits = [_bits(part, wide).ravel() for part, wide in zip(head, (32, 5, 4, 4, 4, 4), strict=True)]
    longest = np.full(len(values), len(_SIZES) - 1)
    columns = ((np.ones_like(longest), 1), (longest, 2), (full - 1, _SIZES[-1]), (values, _WORD))
    bits.append(np.hstack([_bits(part, wide) for part, wide in columns]).ravel())
    packed: list[int] = np.packbits(np.concatenate(bits)).tolist()
    return packed


def _bits(values: NDArray[Any], wide: int) -> NDArray[np.uint8]:
    """Bits of numbers, (n, wide), the highest first."""
    return (values[:, None] >> np.arange(wide - 1, -1, -1) & 1).astype(np.uint8)
