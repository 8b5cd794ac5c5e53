"""CVAT for images 1.1: one `annotations.xml`, each object a mask or a polygon."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from unet_batch.labels.base import LabelFormat, LabelSettings, TextFile, numbers
from unet_batch.labels.picture import split_runs

if TYPE_CHECKING:
    from unet_batch.labels.picture import LabelledPicture
    from unet_batch.run.masks import LabelTable


class CvatFormat(LabelFormat):
    """See the top of this module."""

    def __init__(self, folder: str, table: LabelTable, settings: LabelSettings) -> None:
        super().__init__(folder, table, settings)
        self._file = TextFile(self.path("annotations.xml"))
        self._count = 0
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        self._file.write("<meta><task><labels>\n")
        for name, colour in zip(table.names, table.colours, strict=True):
            code = "#{:02x}{:02x}{:02x}".format(*colour)
            self._file.write(f"<label><name>{_text(name)}</name><color>{code}</color><attributes/></label>\n")
        self._file.write("</labels></task></meta>\n")

    def encode(self, picture: LabelledPicture) -> str:
        """Its shapes."""
        return "".join(self._outlines(picture) if self.settings.polygons else self._masks(picture))

    def add(self, picture: LabelledPicture, encoded: str) -> None:
        """Write an image with its shapes."""
        height, width = picture.size
        name = quoteattr(_clean(picture.file))
        self._file.write(f'<image id="{self._count}" name={name} width="{width}" height="{height}">\n')
        self._file.write(f"{encoded}</image>\n")
        self._count += 1

    def finish(self) -> None:
        """Write the end."""
        self._file.write("</annotations>\n")
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _masks(self, picture: LabelledPicture) -> list[str]:
        return [
            f'<mask {self._label(each.category)} rle="{", ".join(map(str, split_runs(each.mask)))}" '
            f'left="{each.left}" top="{each.top}" width="{each.mask.shape[1]}" '
            f'height="{each.mask.shape[0]}" z_order="0"/>\n'
            for each in picture.objects()
        ]

    def _outlines(self, picture: LabelledPicture) -> list[str]:
        return [
            f'<polygon {self._label(category)} points="{";".join(f"{x},{y}" for x, y in numbers(ring))}" '
            f'z_order="0"/>\n'
            for category, ring in picture.rings(self.settings.simplify)
        ]

    def _label(self, category: int) -> str:
        name = quoteattr(_clean(self.table.names[category]))
        return f'label={name} source="auto" occluded="0"'


def _text(name: str) -> str:
    return _clean(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clean(text: str) -> str:
    """Text without what XML cannot hold."""
    return "".join(
        letter if letter.isprintable() and not "\ud800" <= letter <= "\udfff" else "\ufffd" for letter in text
    )
