"""What every label format is: labels of a picture made into bytes by threads, and put together in order."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

from unet_batch.files.atomic import make_folder, translate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from unet_batch.labels.picture import LabelledPicture
    from unet_batch.run.masks import LabelTable


@dataclass(frozen=True)
class LabelSettings:
    """How labels are written.

    Attributes:
        polygons: as outlines, where the format has masks, too, which are its default.
        simplify: leave out points of outlines that are no further from them than so many pixels; 0 for none.
        with_images: copy the pictures beside their labels.
        image_prefix: what Label Studio finds the pictures by: put before their names.
    """

    polygons: bool = False
    simplify: float = 0.0
    with_images: bool = False
    image_prefix: str = "/data/local-files/?d="


class LabelFormat(ABC):
    """Writes labels into a folder.

    Args:
        folder: absolute; files in it become the export once all is written.
        table: the classes.
        settings: how.

    Raises:
        OutputError: here and in `add` and `finish`: a file cannot be written.
    """

    images: ClassVar[str] = "images/"
    """Where copies of pictures lie, "" for beside their labels."""

    def __init__(self, folder: str, table: LabelTable, settings: LabelSettings) -> None:
        self.folder, self.table, self.settings = folder, table, settings

    @abstractmethod
    def encode(self, picture: LabelledPicture) -> Any:
        """Make the labels of a picture; called from several threads at once."""

    @abstractmethod
    def add(self, picture: LabelledPicture, encoded: Any) -> None:
        """Write what `encode` made; pictures come in order."""

    @abstractmethod
    def finish(self) -> None:
        """Write the end."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close files, whatever is written."""

    def image_file(self, picture: LabelledPicture) -> str:
        """Where the copy of a picture lies in the folder, `/`-separated."""
        return f"{self.images}{picture.file}"

    def path(self, file: str) -> str:
        """Path of a file of the folder, given its `/`-separated name in it; its own folder is made."""
        path = os.path.join(self.folder, *file.split("/"))
        make_folder(os.path.dirname(path))
        return path

    def write(self, file: str, text: str) -> None:
        """Write a whole small file."""
        path = self.path(file)
        try:
            with open(path, "w", encoding="utf-8", newline="\n") as out:
                out.write(text)
        except OSError as error:
            raise translate(error, path, len(text)) from error


class TextFile:
    """A file that is written piece by piece.

    Raises:
        OutputError: here and in `write` and `close`: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path, self.pieces = path, 0
        try:
            self._file: IO[str] | None = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        except OSError as error:
            raise translate(error, path, 0) from error

    def write(self, text: str) -> None:
        """Add text."""
        assert self._file is not None
        try:
            self._file.write(text)
        except OSError as error:
            raise translate(error, self.path, len(text)) from error

    def write_entries(self, entries: Sequence[str]) -> None:
        """Add entries of a JSON list, each on its own line, with commas between."""
        for entry in entries:
            self.write((",\n" if self.pieces else "") + entry)
            self.pieces += 1

    def copy_to(self, other: TextFile) -> None:
        """Close, and add all to another file."""
        self.close()
        try:
            with open(self.path, encoding="utf-8") as file:
                while block := file.read(1 << 20):
                    other.write(block)
        except OSError as error:
            raise translate(error, self.path, 0) from error

    def close(self) -> None:
        """Close it; more than once does no harm."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            raise translate(error, self.path, 0) from error


def compact(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def numbers(ring: NDArray[Any]) -> list[list[float]]:
    """Points of a ring for JSON: whole numbers as such, others to a thousandth."""
    rounded = ring.round(3)
    whole = bool((rounded == rounded.astype(int)).all())
    points: list[list[float]] = (rounded.astype(int) if whole else rounded).tolist()
    return points
