"""The result of one picture: its mask, and all that can be drawn from it and saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from unet_batch.errors import EncodeError, OutputError, UnetBatchError, UsageError
from unet_batch.files import remote, tables
from unet_batch.files.atomic import write_atomic
from unet_batch.files.outputs import PLAIN, OutputTree, Style
from unet_batch.files.tables import ClassStats, ObjectStats
from unet_batch.inference import measuring, postprocess
from unet_batch.inference.renderers import (
    DRAWN,
    RENDERERS,
    check_object,
    class_ids_of,
    fit_jpeg,
    missing_of,
)
from unet_batch.media import backdrop, geometry, images, measure, render
from unet_batch.media.cleanup import UNTOUCHED, Cleanup, ground, settle
from unet_batch.media.legend import draw_legend
from unet_batch.media.measure import Measuring
from unet_batch.media.privacy import hide
from unet_batch.media.refine import refine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Colour, ModelSpec, Pixels, Prediction

T = TypeVar("T")

SHEET_HEIGHT = 720
"""Rows of a sheet at most: it is there to be looked at."""


@dataclass(frozen=True, eq=False)
class Result:
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

    path: str
    spec: ModelSpec = field(repr=False)
    threshold: float
    prediction: Prediction | None = field(repr=False)
    error: UnetBatchError | None = None
    refine: bool = field(default=False, repr=False)
    cleanup: Cleanup = field(default=UNTOUCHED, repr=False)
    style: Style = field(default=PLAIN, repr=False)
    measuring: Measuring = field(default=Measuring(), repr=False)

    def styled(self, **changes: Any) -> Result:
        """The same, drawn in another style: `result.styled(background="blur", crop=True).save("out", ...)`.

        Args:
            changes: of `files.outputs.Style`: `background`, `cutout_format`, `crop`.

        Raises:
            UsageError: there is no such style.
        """
        other = replace(self, style=replace(self.style, **changes))
        fields = self.__dataclass_fields__
        vars(other).update({name: value for name, value in vars(self).items() if name not in fields})
        return other

    @property
    def mask(self) -> Pixels | None:
        """uint8 (height, width) as a person sees the picture: 0/255 for one class, class ids for several.

        None if the picture failed.
        """
        return self._once("mask", self._make_mask)

    def _make_mask(self) -> Pixels | None:
        mask = self._raw_mask()
        if mask is None or not self.cleanup.facts():
            return mask
        assert self.prediction is not None
        return postprocess.blank(self.cleanup(mask, self.spec.classes), self.prediction.frame.missing)

    def _raw_mask(self) -> Pixels | None:
        """The mask before it is cleaned."""
        if self.prediction is None:
            return None
        map, frame = self.prediction.map, self.prediction.frame
        if self.spec.output == "class_ids":
            mask = postprocess.class_ids(map, frame.placement, len(self.spec.classes.names))
        elif self.refine:
            mask = postprocess.mask16(self._refined, self.threshold)
        else:
            mask = postprocess.mask_from_map(map, frame.placement, self.threshold)
        return postprocess.blank(mask, frame.missing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of how the picture was read, e.g. that it is the first of several pages."""
        return () if self.prediction is None else self.prediction.frame.notes

    @property
    def probability(self) -> Pixels:
        """uint8 (height, width), round(255 p), of a model of one class.

        Raises:
            UsageError: the picture failed, or the model has several classes.
        """
        return self._once("probability", self._make_probability)

    def _make_probability(self) -> Pixels:
        prediction = self._one_class("probability")
        if self.refine:
            values = postprocess.to_bytes(self._refined)
        else:
            values = postprocess.probability(prediction.map, prediction.frame.placement)
        return postprocess.blank(values, prediction.frame.missing)

    @property
    def _refined(self) -> NDArray[np.uint16]:
        """uint16 (height, width), round(65535 p), its edges moved to those of the picture."""
        return self._once("_wide", self._refine)

    def _refine(self) -> NDArray[np.uint16]:
        prediction = self._one_class("probability")
        placement = prediction.frame.placement
        enlarged = max(placement.source[axis] / placement.content[axis] for axis in (0, 1))
        wide = postprocess.probability16(prediction.map, placement)
        return refine(wide, self._pixels("mask"), max(2, round(enlarged)))

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """Make a value when it is first asked for.

        As `functools.cached_property`, but that one holds a lock before Python 3.12: the threads of a run
        would make their masks one after the other.
        """
        if name not in (made := vars(self)):
            made[name] = make()
        value: T = made[name]
        return value

    def overlay(self) -> Pixels:
        """Draw the classes over the picture: RGB uint8 (height, width, 3); several with a legend.

        Raises:
            UsageError: the picture failed, or its pixels were not kept.
        """
        return self._legend(self._over("overlay", 0.45))

    def contour(self) -> Pixels:
        """Draw the outlines of the classes alone over the picture: RGB uint8 (height, width, 3).

        Raises:
            UsageError: the picture failed, or its pixels were not kept.
        """
        return self._legend(self._over("contour", 0.0))

    def sheet(self) -> Pixels:
        """The picture, its mask in the colours of the classes, and its overlay, side by side.

        Returns:
            RGB uint8 (h, w, 3), h the picture's height, up to `SHEET_HEIGHT`.

        Raises:
            UsageError: the picture failed, or its pixels were not kept.
        """
        photo, drawn = self._pixels("sheet"), self._over("sheet", 0.45)
        several = len(self.spec.classes.names) > 1
        mask = self._coloured() if several else self._drawn_mask()
        height = min(SHEET_HEIGHT, photo.shape[0])
        parts = [render.side_by_side([part], height) for part in (photo, mask, drawn)]
        return render.side_by_side([*parts[:2], self._legend(parts[2])], height)

    def _over(self, what: str, tint: float) -> Pixels:
        frame, pixels = self._done(what).frame, self._pixels(what)
        drawn = render.overlay(pixels, self._drawn_mask(), self.spec.classes, tint)
        if frame.missing is not None:  # id 0 may be a class with a colour
            missing = geometry.resize_flags(frame.missing, frame.placement.source)
            drawn[missing] = pixels[missing]
        return drawn

    def _legend(self, drawn: Pixels) -> Pixels:
        if len(self.spec.classes.names) == 1:
            return drawn
        present = np.flatnonzero(np.bincount(self._drawn_mask().reshape(-1)))
        kept = self.cleanup.chosen(self.spec.classes)
        return draw_legend(drawn, self.spec.classes, kept, frozenset(present.tolist()))

    def _coloured(self) -> Pixels:
        """Each pixel in the colour of its class: RGB uint8 (height, width, 3); of one class on black."""
        colours = np.zeros((256, 3), np.uint8)
        table = self._palette()
        colours[: len(table)] = table
        coloured: Pixels = colours[class_ids_of(self)]
        return coloured

    def _palette(self) -> tuple[Colour, ...]:
        """The colours of the ids."""
        colours = self.spec.classes.colours
        return ((0, 0, 0), *colours) if self.spec.output == "probability" else colours

    def cutout(self) -> Pixels:
        """Cut the object out of the picture: RGBA uint8 (height, width, 4), with a soft edge.

        What is transparent in the picture is so in its cutout. Of several classes the object is all that is
        not background.

        Raises:
            UsageError: the picture failed, its pixels were not kept, or no class is the background.
        """
        return self._once("_cutout", self._make_cutout)

    def _make_cutout(self) -> Pixels:
        frame = self._done("cutout").frame
        rgba = render.cutout_by(self._pixels("cutout"), self._opacity("cutout"), frame.alpha)
        return postprocess.blank(rgba, frame.missing)

    def _opacity(self, what: str) -> Pixels:
        """How much of each pixel is the object: uint8 (height, width), 128 or more where the mask is set."""
        if self.spec.output == "class_ids":
            return render.soften(self._object(what))
        alpha, raw = render.opacity_of(self.probability, self.threshold), self._raw_mask()
        if raw is None or not self.cleanup.facts():
            return alpha
        return settle(alpha, raw, self._drawn_mask())

    def _object(self, what: str) -> Pixels:
        """Where the object is: uint8 (height, width), 0 or 255."""
        mask = self._drawn_mask()
        if self.spec.output == "probability":
            return mask
        check_object(self.spec, self.cleanup, what)
        marked: Pixels = np.where(mask == ground(self.spec.classes), np.uint8(0), np.uint8(255))
        return marked

    def on_background(self) -> Pixels:
        """The object before `style.background`: RGB uint8 (height, width, 3).

        Raises:
            UsageError: as for `cutout`; or the background is no colour, no picture and not "blur".
        """
        rgba = self.cutout()
        return backdrop.before(
            rgba, backdrop.behind(self.style.background, self._pixels("background"), rgba[..., 3])
        )

    def hidden(self, how: Literal["blur", "pixelate"]) -> Pixels:
        """The picture with its object unrecognisable: RGB uint8 (height, width, 3); see `media.privacy`.

        Raises:
            UsageError: the picture failed, its pixels were not kept, or no class is the background.
        """
        return hide(self._pixels(how), self._object(how), how)

    def stats(self) -> list[ClassStats]:
        """How much of the picture each class takes: a row for each.

        Raises:
            UsageError: the picture failed.
        """
        prediction = self._done("stats")
        ids, missing, objects = class_ids_of(self), missing_of(self), self._objects
        return measuring.stats_of(self.spec, prediction, ids, missing, objects, self.measuring)

    def objects(self) -> list[ObjectStats]:
        """The components of the classes: a row for each, by class and from the top.

        Raises:
            UsageError: the picture failed, or its pixels were not kept.
        """
        prediction, pixels = self._done("objects"), self._pixels("objects")
        probability = None if self.spec.output == "class_ids" else self.probability
        return measuring.objects_of(self.spec, prediction, self._objects, pixels, probability, self.measuring)

    @property
    def instances(self) -> NDArray[np.uint16]:
        """uint16 (height, width): 0 where there is no object, else the `id` that it has in `objects`.

        Raises:
            UsageError: the picture failed.
            EncodeError: there are more objects than 16 bits can tell apart.
        """
        self._done("instances")
        if (count := len(self._objects.classes)) > measure.MOST_OBJECTS:
            raise EncodeError(
                f"{count:,} objects: 16 bits tell {measure.MOST_OBJECTS:,} apart",
                hint="--save objects lists them all; a higher --threshold may leave fewer",
            )
        return self._objects.labels.astype(np.uint16)

    @property
    def _objects(self) -> measure.Objects:
        return self._once(
            "_found_objects",
            lambda: measuring.find_objects(self.spec, class_ids_of(self), missing_of(self), self.measuring),
        )

    def rows(self, kind: str, page: int | None = None) -> bytes:
        """The contents of a table of the picture, `stats` or `objects`.

        Args:
            kind: the table.
            page: that the picture is, of a file of several.

        Raises:
            UsageError: as for `stats` and `objects`.
        """
        rows: Sequence[ClassStats | ObjectStats] = self.stats() if kind == "stats" else self.objects()
        return tables.as_csv(kind, rows if page is None else [replace(row, page=page) for row in rows])

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
        return DRAWN[kind](self)

    def encode(self, kind: str) -> bytes:
        """The contents of the file that `unet-batch run` saves of a kind of output.

        What is too large for a JPEG is made smaller, the cutout apart.

        Raises:
            EncodeError: the format cannot hold a picture of this size.
            UsageError: the picture failed, or there is no such output of it.
        """
        return RENDERERS[kind](self)

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

    def _drawn_mask(self) -> Pixels:
        self._done("mask")
        assert self.mask is not None
        return self.mask

    def _done(self, what: str) -> Prediction:
        if self.prediction is None:
            raise UsageError(f"{self.path}: failed, there is no {what}: {self.error}")
        return self.prediction

    def _one_class(self, what: str) -> Prediction:
        prediction = self._done(what)
        if self.spec.output == "class_ids":
            count = len(self.spec.classes.names)
            raise UsageError(
                f"{self.path}: no {what}: {self.spec.name} has {count} classes: ids, not one probability",
                hint="use mask and overlay",
            )
        return prediction

    def _pixels(self, what: str) -> Pixels:
        pixels = self._done(what).frame.pixels
        if pixels is None:
            raise UsageError(
                f"{self.path}: no {what}: its pixels were not kept",
                hint="stream(pictures, keep_pixels=True), or predict(picture)",
            )
        return self._once("_visible", lambda: render.visible(pixels))


def _holds(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except OSError:
        return False
