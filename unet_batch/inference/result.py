"""The result of one picture: what can be seen of it, and its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from unet_batch.errors import OutputError, UnetBatchError, UsageError
from unet_batch.files import remote
from unet_batch.files.atomic import write_atomic
from unet_batch.files.outputs import OutputTree
from unet_batch.inference.renderers import DRAWN, RENDERERS, fit_jpeg
from unet_batch.inference.segmented import SegmentedPicture
from unet_batch.media import images

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Result(SegmentedPicture):
    """What became of one picture of `Segmenter.predict` or `Segmenter.stream`.

    Where the picture's file has no value (nodata, NaN), all of it is 0, and an overlay shows the picture.

    Attributes:
        path: the picture's file as it was given; "array", "bytes" or "image" for one that was in memory.
        spec: of the model.
        threshold: probability from which a pixel counts.
        prediction: None if the picture failed.
        error: why it failed, else None.
        refine: move edges to those of the picture, whose pixels are kept then.
        cleanup: what its mask is cleaned of, and so all that shows the mask; probabilities stay as they are.
        style: how it is drawn, where there is a choice; `styled` gives another.
        measuring: how it is measured.
    """

    def notes_on(self, kinds: Sequence[str]) -> tuple[str, ...]:
        """What people should know of how the picture was read, and of its outputs of some kinds."""
        prediction = self._done("notes")
        height, width = prediction.frame.placement.source
        notes = prediction.frame.notes
        if max(height, width) <= images.JPEG_SIDE:
            return notes
        new = fit_jpeg(height, width)
        jpegs = (kind for kind in kinds if self.style.suffix(kind) == ".jpg" and kind != "sheet")
        return notes + tuple(
            f"its {kind} is {new[0]}x{new[1]} instead of {height}x{width}: a JPEG holds no longer side"
            for kind in jpegs
        )

    def draw(self, kind: str) -> NDArray[Any]:
        """The pixels of a kind of output, not cropped.

        uint8, uint16 or float32 (height, width), or uint8 (height, width, 3 or 4).

        Raises:
            UsageError: the picture failed, or there is no such output of it.
        """
        self._done(kind)
        return _known(DRAWN, kind)(self)

    def encode(self, kind: str) -> bytes:
        """The contents of the file that `unet-batch run` saves of a kind of output.

        What is too large for a JPEG is made smaller, the cutout apart.

        Raises:
            EncodeError: the format cannot hold a picture of this size.
            UsageError: the picture failed, or there is no such output of it.
        """
        return _known(RENDERERS, kind)(self, self._done(kind))

    def encode_all(self, kinds: Sequence[str]) -> list[tuple[str, bytes]]:
        """`encode` several kinds: each with its contents.

        Raises:
            EncodeError, UsageError: as for `encode`; the message names the picture and the kind.
        """
        files = []
        for kind in kinds:
            try:
                files.append((kind, self.encode(kind)))
            except UnetBatchError as error:
                raise error.with_context(f"{self.path}: {kind}") from error
        return files

    def save(
        self,
        folder: str | os.PathLike[str],
        kinds: Sequence[str] = ("mask",),
        *,
        name: str = "",
        overwrite: bool = False,
    ) -> dict[str, str]:
        """Save the result as `unet-batch run` does: `FOLDER/masks/NAME.png`, `FOLDER/overlays/NAME.jpg`, ...

        Each file appears whole or not at all.

        Args:
            folder: the output folder; made where it is missing.
            kinds: of `files.outputs.PICTURE_KINDS`: "mask", "overlay", "cutout", "stats", ...
            name: of the files; "" takes the name of the picture's own file.
            overwrite: replace files that hold something else.

        Returns:
            The path of each kind.

        Raises:
            UsageError: the picture failed, a kind is unknown or cannot be made of it, or it has no name.
            OutputError: a file cannot be written, or is there with other contents.
            EncodeError: the format cannot hold a picture of this size.
        """
        key = name or self._done("save").frame.item.key
        if not key:
            raise UsageError(f"{self.path}: has no file name of its own", hint="save(folder, name='...')")
        if remote.is_remote(os.fspath(folder)):
            raise UsageError(
                f"{os.fspath(folder)}: only `unet-batch run` writes to addresses",
                hint="save it in a folder, or upload what encode() returns",
            )
        tree = OutputTree(os.fspath(folder), kinds, self.style)
        files = {kind: (tree.path(kind, key), self.encode(kind)) for kind in tree.kinds}
        for path, data in files.values():
            if not overwrite and os.path.lexists(path) and not _holds(path, data):
                raise OutputError(
                    f"{path}: is there already, with other contents",
                    hint="save(..., name='...') gives it another name, overwrite=True replaces it",
                )
        for path, data in files.values():
            write_atomic(path, data)
        return {kind: path for kind, (path, _) in files.items()}


def _known(table: Mapping[str, T], kind: str) -> T:
    if kind not in table:
        raise UsageError(f"unknown kind of output: {kind}", hint=f"choose from {', '.join(table)}")
    return table[kind]


def _holds(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except OSError:
        return False
