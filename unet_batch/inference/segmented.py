"""A segmented picture at its own size: its mask, its probabilities, what is drawn of them and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from unet_batch.errors import EncodeError, UnetBatchError, UsageError
from unet_batch.files import tables
from unet_batch.files.outputs import PLAIN, Style
from unet_batch.files.tables import ClassStats, ObjectStats
from unet_batch.inference import measuring, postprocess
from unet_batch.media import backdrop, geometry, measure, render
from unet_batch.media.cleanup import UNTOUCHED, Cleanup, ground, settle
from unet_batch.media.legend import draw_legend
from unet_batch.media.measure import Measuring
from unet_batch.media.privacy import hide
from unet_batch.media.refine import refine

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from unet_batch.types import Colour, ModelSpec, Pixels, Prediction

T = TypeVar("T")

SHEET_HEIGHT = 720
"""Rows of a sheet at most: it is there to be looked at."""


@dataclass(frozen=True, eq=False)
class SegmentedPicture:
    """What became of one picture, and all that can be seen of it and measured: `Result` without its files.

    Its attributes are described there.
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

    def styled(self, **changes: Any) -> Self:
        """The same, drawn in another style: `result.styled(background="blur", crop=True).save("out", ...)`.

        Args:
            changes: of `files.outputs.Style`: `background`, `cutout_format`, `crop`.

        Raises:
            UsageError: there is no such style.
        """
        other = replace(self, style=replace(self.style, **changes))
        names = {each.name for each in fields(self)}
        vars(other).update({name: value for name, value in vars(self).items() if name not in names})
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
    def probability16(self) -> NDArray[np.uint16]:
        """uint16 (height, width), round(65535 p), of a model of one class.

        Raises:
            UsageError: the picture failed, or the model has several classes.
        """
        prediction = self._one_class("prob16")
        if self.refine:
            values = self._refined.copy()
        else:
            values = postprocess.probability16(prediction.map, prediction.frame.placement)
        return postprocess.blank(values, prediction.frame.missing)

    @property
    def probability32(self) -> NDArray[np.float32]:
        """float32 (height, width), p, of a model of one class; NaN where the picture has no value.

        Raises:
            UsageError: the picture failed, or the model has several classes.
        """
        self._one_class("prob32")
        values: NDArray[np.float32] = self.probability16 * np.float32(1 / 65535)
        if (missing := self.missing) is not None:
            values[missing] = np.nan
        return values

    @property
    def class_ids(self) -> Pixels:
        """uint8 (height, width), the id of each pixel's class; of a model of one class it has 1.

        Raises:
            UsageError: the picture failed.
        """
        mask = self._drawn_mask()
        return mask if self.spec.output == "class_ids" else mask // np.uint8(255)

    @property
    def missing(self) -> NDArray[np.bool_] | None:
        """Where the picture has no value, at its own size: bool (height, width), or None.

        Raises:
            UsageError: the picture failed.
        """
        frame = self._done("missing").frame
        return None if frame.missing is None else geometry.resize_flags(frame.missing, frame.placement.source)

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
        mask = self.coloured() if several else self._drawn_mask()
        height = min(SHEET_HEIGHT, photo.shape[0])
        parts = [render.side_by_side([part], height) for part in (photo, mask, drawn)]
        return render.side_by_side([*parts[:2], self._legend(parts[2])], height)

    def _over(self, what: str, tint: float) -> Pixels:
        pixels = self._pixels(what)
        drawn = render.overlay(pixels, self._drawn_mask(), self.spec.classes, tint)
        if (missing := self.missing) is not None:  # id 0 may be a class with a colour
            drawn[missing] = pixels[missing]
        return drawn

    def _legend(self, drawn: Pixels) -> Pixels:
        if len(self.spec.classes.names) == 1:
            return drawn
        present = np.flatnonzero(np.bincount(self._drawn_mask().reshape(-1)))
        kept = self.cleanup.chosen(self.spec.classes)
        return draw_legend(drawn, self.spec.classes, kept, frozenset(present.tolist()))

    def coloured(self) -> Pixels:
        """Each pixel in the colour of its class: RGB uint8 (height, width, 3); of one class on black.

        Raises:
            UsageError: the picture failed.
        """
        colours = np.zeros((256, 3), np.uint8)
        table = palette_of(self.spec)
        colours[: len(table)] = table
        coloured: Pixels = colours[self.class_ids]
        return coloured

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
        ids, missing, objects = self.class_ids, self.missing, self._objects
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
            lambda: measuring.find_objects(self.spec, self.class_ids, self.missing, self.measuring),
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


def palette_of(spec: ModelSpec) -> tuple[Colour, ...]:
    """The colours of the ids that masks of a model have: of one class black and its colour."""
    colours = spec.classes.colours
    return ((0, 0, 0), *colours) if spec.output == "probability" else colours


def check_object(spec: ModelSpec, cleanup: Cleanup, what: str) -> None:
    """See that a model tells an object from the rest.

    Raises:
        UsageError: it has several classes, of which none is called background and none are chosen.
    """
    if spec.output == "class_ids" and spec.classes.background is None and not cleanup.classes:
        raise UsageError(
            f"no {what}: none of the {len(spec.classes.names)} classes of {spec.name} is a background: a "
            "picture would be all object",
            hint=f"--classes says which are: --classes {spec.classes.names[0]}",
        )
