"""What a run can save and where each file of it goes in the output folder: one table, `KINDS`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from unet_batch.errors import OutputError, UsageError
from unet_batch.files import remote
from unet_batch.files.atomic import clean_leftovers, open_temporary, remove_leftovers, scan, translate
from unet_batch.files.branches import Branches
from unet_batch.files.roots import name_below

if TYPE_CHECKING:
    from unet_batch.files.staging import RemoteFolder

Source = Literal["picture", "clip"]


@dataclass(frozen=True)
class Kind:
    """A kind of output.

    Attributes:
        folder: below the output folder.
        suffix: of the file made of a picture; a clip's comes from its codec, "" stands for a folder of files.
        of: what it can be made of.
        needs_pixels: it is drawn from the picture's own pixels, which must then be kept at full size.
        needs_probability: it is drawn from a probability, which a model of several classes does not have.
        of_object: it tells the object from the rest: of several classes, one has to be the background.
        for_viewing: of a clip, it is coded as asked for and has the sound; else it is lossless and silent. A
            cutout has a codec that knows opacity.
    """

    folder: str
    suffix: str
    of: tuple[Source, ...]
    needs_pixels: bool = False
    needs_probability: bool = False
    of_object: bool = False
    for_viewing: bool = False


_SHOWN: Mapping[str, bool] = {"needs_pixels": True, "for_viewing": True}

KINDS: Mapping[str, Kind] = {
    "mask": Kind("masks", ".png", ("picture", "clip")),
    "overlay": Kind("overlays", ".jpg", ("picture", "clip"), **_SHOWN),
    "contour": Kind("contours", ".jpg", ("picture", "clip"), **_SHOWN),
    "sheet": Kind("sheets", ".jpg", ("picture",), needs_pixels=True),
    "cutout": Kind("cutouts", ".png", ("picture", "clip"), **_SHOWN, of_object=True),
    "background": Kind("backgrounds", ".jpg", ("picture", "clip"), **_SHOWN, of_object=True),
    "blur": Kind("blurred", ".jpg", ("picture", "clip"), **_SHOWN, of_object=True),
    "pixelate": Kind("pixelated", ".jpg", ("picture", "clip"), **_SHOWN, of_object=True),
    "palette": Kind("palettes", ".png", ("picture",)),
    "prob": Kind("probs", ".png", ("picture",), needs_probability=True),
    "prob16": Kind("probs16", ".png", ("picture",), needs_probability=True),
    "prob32": Kind("probs32", ".tif", ("picture",), needs_probability=True),
    "instances": Kind("instances", ".png", ("picture",)),
    # What a pixel measures is known where the file is read in full
    "stats": Kind("stats", ".csv", ("picture",), needs_pixels=True),
    "objects": Kind("objects", ".csv", ("picture",), needs_pixels=True),
    "geotiff": Kind("geotiffs", ".tif", ("picture",)),
    "dicomseg": Kind("dicomsegs", ".dcm", ("picture",)),
    "frames": Kind("frames", "", ("clip",)),
}
"""All that `--save` knows. A new kind is a row here and a renderer in `inference/renderers.py`."""

PICTURE_KINDS = tuple(name for name, kind in KINDS.items() if "picture" in kind.of)
CLIP_KINDS = tuple(name for name, kind in KINDS.items() if "clip" in kind.of)
TIMELINES = Kind("timelines", ".csv", ("clip",))
"""Comes with every clip, whatever else is saved."""
UNFINISHED = "unfinished"
"""Folder of the parts of clips that are not done."""
CUTOUT_FORMATS: Mapping[str, str] = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
"""What cutouts of pictures can be, and the suffix of each."""
BLUR = "blur"
"""The background that is the picture's own, out of focus."""


@dataclass(frozen=True)
class Style:
    """How outputs are drawn, where there is a choice.

    Attributes:
        background: of `background`, what is behind the object: a colour by its name or as #rrggbb, the path
            of a picture, or "blur".
        cutout_format: of `cutout`, a key of `CUTOUT_FORMATS`; JPEG has no transparency, but white.
        crop: `cutout` and `background` of pictures are cut to what is seen of the object.

    Raises:
        UsageError: the format is unknown.
    """

    background: str = "white"
    cutout_format: str = "png"
    crop: bool = False

    def __post_init__(self) -> None:
        if self.cutout_format not in CUTOUT_FORMATS:
            raise UsageError(
                f"cutout format {self.cutout_format!r}", hint=f"choose from {', '.join(CUTOUT_FORMATS)}"
            )

    def suffix(self, kind: str) -> str:
        """Of the file that is made of a picture."""
        return CUTOUT_FORMATS[self.cutout_format] if kind == "cutout" else KINDS[kind].suffix

    def name(self, kind: str, *, of_clip: bool = False) -> str:
        """A kind of output with what decides how it is drawn: equal names mean equal contents."""
        words = [kind]
        if kind == "cutout" and self.cutout_format != "png" and not of_clip:
            words.append(self.cutout_format)
        if kind == "background":
            words.append(_identity(self.background))
        if self.crop and kind in ("cutout", "background") and not of_clip:
            words.append("crop")
        return " ".join(words)


PLAIN = Style()
"""As it is where nobody asks for anything."""


@functools.lru_cache(maxsize=4)
def _identity(background: str) -> str:
    """A background by its contents: of a file its checksum, else its name."""
    try:
        with open(background, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()[:16]
    except (OSError, ValueError):
        return background.lower()


class OutputTree:
    """The output folder: `masks/<key>.png`, `overlays/<key>.jpg`, and so on by `KINDS`.

    Args:
        folder: the output folder, or its address; need not exist yet.
        kinds: which outputs are wanted, of `PICTURE_KINDS`.
        style: how they are drawn.

    Attributes:
        name: the folder as people know it: its path or address.
        store: what uploads the files, if it is an address.
        folder: where files are written: the folder, or what stands for the address on this machine.

    Raises:
        UsageError: a kind is unknown, or nothing can be written to an address.
    """

    def __init__(self, folder: str, kinds: Sequence[str], style: Style = PLAIN) -> None:
        unknown = [kind for kind in kinds if kind not in PICTURE_KINDS]
        if unknown:
            raise UsageError(
                f"unknown kind of output: {', '.join(unknown)}",
                hint=f"choose from {', '.join(PICTURE_KINDS)}",
            )
        self.store: RemoteFolder | None = None
        if remote.is_remote(folder):
            from unet_batch.files.staging import RemoteFolder

            self.store = RemoteFolder(folder)
        self.folder = os.path.abspath(folder) if self.store is None else self.store.folder
        self.name = self.folder if self.store is None else self.store.url
        self.kinds = tuple(dict.fromkeys(kinds))
        self.style = style

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which connects to a store by itself."""
        return OutputTree, (self.name, self.kinds, self.style)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The kinds as the manifest has them: with what decides how each is drawn."""
        return tuple(map(self.style.name, self.kinds))

    @property
    def need_pixels(self) -> bool:
        """Whether any of them is drawn from the picture's own pixels."""
        return any(KINDS[kind].needs_pixels for kind in self.kinds)

    def path(self, kind: str, key: str) -> str:
        """Say where an output goes.

        Raises:
            OutputError: it would lie outside the output folder.
        """
        return os.path.join(self.folder, *self.file(kind, key).split("/"))

    def shown_path(self, path: str) -> str:
        """The path or address under which people find a file of the output folder."""
        if self.store is None:
            return path
        return f"{self.name}/{os.path.relpath(path, self.folder).replace(os.sep, '/')}"

    def file(self, kind: str, key: str) -> str:
        """The same, relative to the output folder and `/`-separated.

        Raises:
            OutputError: it would lie outside the output folder.
        """
        steps = re.split(r"[/\\]" if os.name == "nt" else "/", key)
        if "\0" in key or os.path.splitdrive(key)[0] or not {"", os.curdir, os.pardir}.isdisjoint(steps):
            raise OutputError(f"{key!r} would lie outside the output folder {self.folder}")
        return "/".join((KINDS[kind].folder, *steps)) + self.style.suffix(kind)

    def prepare(self) -> None:
        """Make the output folder and write a byte into it, to fail before the work rather than after.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        temporary = ""
        try:
            temporary, descriptor = open_temporary(self.folder)
            with open(descriptor, "wb") as file:
                file.write(b"\n")
        except (OSError, ValueError) as error:
            raise translate(error, self.folder, 1) from error
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def clean_leftovers(self, branches: Branches | None = None) -> int:
        """Remove the temporary files of killed runs from all folders of outputs; return how many.

        Args:
            branches: of each folder of outputs, which below it are looked into; all without it.
        """
        removed = clean_leftovers(self.folder)
        branches = branches or Branches(depth=0)
        for kind in (*(kind.folder for kind in KINDS.values()), TIMELINES.folder, UNFINISHED):
            top = os.path.join(self.folder, kind)
            level: Sequence[str] = [top]
            depth = 0
            while level:
                below: list[str] = []
                for folder in level:
                    with contextlib.suppress(OutputError, OSError):  # no reason not to work
                        entries = scan(folder)
                        removed += remove_leftovers(entries)
                        below += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
                depth += 1
                level = branches.narrow(below, depth, partial(name_below, top))
        return removed


class ClipTree:
    """Where the outputs of clips go: `masks/<key>.mkv`, `frames/<key>/`, `timelines/<key>.csv`, ...

    Args:
        folder: the output folder.
        kinds: what is wanted; those that no clip has are left out.
        suffixes: of the videos, by kind: their codecs decide.
    """

    def __init__(self, folder: str, kinds: Sequence[str], suffixes: Mapping[str, str]) -> None:
        self.folder = folder
        self.kinds = tuple(kind for kind in CLIP_KINDS if kind in kinds)
        self.suffixes = suffixes

    def path(self, kind: str, key: str) -> str:
        """The file of a kind, or of "timeline"; for "frames" the folder."""
        entry = TIMELINES if kind == "timeline" else KINDS[kind]
        suffix = self.suffixes.get(kind, entry.suffix)
        return os.path.join(self.folder, entry.folder, *key.split("/")) + suffix

    def unfinished(self, key: str) -> str:
        """The folder of a clip's parts."""
        return os.path.join(self.folder, UNFINISHED, *key.split("/"))
