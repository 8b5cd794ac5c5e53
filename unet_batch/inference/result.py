"""The result of one picture: its mask, and all that can be drawn from it and saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from unet_batch.errors import EncodeError, OutputError, UnetBatchError, UsageError
from unet_batch.files import remote, tables
from unet_batch.files.atomic import write_atomic
from unet_batch.files.outputs import OutputTree
from unet_batch.files.tables import ClassStats, ObjectStats
from unet_batch.inference import measuring, postprocess
from unet_batch.media import geometry, images, measure, render
from unet_batch.media.measure import Measuring
from unet_batch.media.refine import refine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import ModelSpec, Pixels, Prediction, Size

T = TypeVar("T")


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
        measuring: how it is measured.
    """

    path: str
    spec: ModelSpec = field(repr=False)
    threshold: float
    prediction: Prediction | None = field(repr=False)
    error: UnetBatchError | None = None
    refine: bool = field(default=False, repr=False)
    measuring: Measuring = field(default=Measuring(), repr=False)

    @property
    def mask(self) -> Pixels | None:
        """uint8 (height, width) as a person sees the picture: 0/255 for one class, class ids for several.

        None if the picture failed.
        """
        return self._once("mask", self._make_mask)

    def _make_mask(self) -> Pixels | None:
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
        """Draw the classes over the picture: RGB uint8 (height, width, 3).

        Raises:
            UsageError: the picture failed, or its pixels were not kept.
        """
        frame, pixels = self._done("overlay").frame, self._pixels("overlay")
        assert self.mask is not None
        drawn = render.overlay(pixels, self.mask, self.spec.classes)
        if frame.missing is not None:  # id 0 may be a class with a colour
            missing = geometry.resize_flags(frame.missing, frame.placement.source)
            drawn[missing] = pixels[missing]
        return drawn

    def cutout(self) -> Pixels:
        """Cut the class out of the picture: RGBA uint8 (height, width, 4), with a soft edge.

        What is transparent in the picture is so in its cutout.

        Raises:
            UsageError: the picture failed, its pixels were not kept, or the model has several classes.
        """
        frame = self._one_class("cutout").frame
        rgba = render.cutout(self._pixels("cutout"), self.probability, self.threshold, frame.alpha)
        return postprocess.blank(rgba, frame.missing)

    def stats(self) -> list[ClassStats]:
        """How much of the picture each class takes: a row for each.

        Raises:
            UsageError: the picture failed.
        """
        prediction = self._done("stats")
        ids, missing, objects = _ids(self), _missing(self), self._objects
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
            lambda: measuring.find_objects(self.spec, _ids(self), _missing(self), self.measuring),
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
        if "overlay" not in kinds or max(height, width) <= images.JPEG_SIDE:
            return prediction.frame.notes
        new = _fit_jpeg(height, width)
        note = f"its overlay is {new[0]}x{new[1]} instead of {height}x{width}: a JPEG holds no longer side"
        return (*prediction.frame.notes, note)

    def draw(self, kind: str) -> NDArray[Any]:
        """The pixels of a kind of output: uint8 or uint16 (height, width), or uint8 (height, width, 3 or 4).

        Raises:
            UsageError: the picture failed, or there is no such output of it.
        """
        return DRAWN[kind](self)

    def encode(self, kind: str) -> bytes:
        """The contents of the file that `unet-batch run` saves of a kind of output.

        An overlay is made smaller where it is too large for a JPEG.

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
            kinds: of "mask", "overlay", "cutout", "prob", "prob16", "instances", "stats", "objects",
                "geotiff", "dicomseg".
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
        tree = OutputTree(os.fspath(folder), kinds)
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


def _mask(result: Result) -> bytes:
    prediction = result._done("mask")
    frame = prediction.frame
    # Without the picture's pixels no overlay needs the mask, too: it is drawn where it is encoded
    if "mask" in vars(result) or frame.pixels is not None or result.spec.output == "class_ids":
        assert result.mask is not None
        return images.encode_mask(result.mask)
    canvas = images.mask_canvas(frame.placement.source)
    mask = postprocess.mask_from_map(prediction.map, frame.placement, result.threshold, canvas)
    return images.encode_mask(postprocess.blank(mask, frame.missing))


def _probability16(result: Result) -> NDArray[np.uint16]:
    prediction = result._one_class("prob16")
    if result.refine:
        values = result._refined.copy()
    else:
        values = postprocess.probability16(prediction.map, prediction.frame.placement)
    return postprocess.blank(values, prediction.frame.missing)


def _overlay(result: Result) -> bytes:
    pixels = result.overlay()
    size = _fit_jpeg(*pixels.shape[:2])
    if size != pixels.shape[:2]:
        pixels = render.shrink(pixels, size)
    return images.encode_jpeg(pixels, metadata=result._done("overlay").frame.metadata)


def _fit_jpeg(height: int, width: int) -> Size:
    """The size of an overlay: the picture's own, or the largest of its shape that a JPEG holds."""
    scale = min(1.0, images.JPEG_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _cutout(result: Result) -> bytes:
    return images.encode_rgba(result.cutout(), result._done("cutout").frame.metadata)


def _ids(result: Result) -> Pixels:
    """Class ids: 1 for the only class."""
    mask = result._drawn_mask()
    return mask if result.spec.output == "class_ids" else mask // np.uint8(255)


def _missing(result: Result) -> NDArray[np.bool_] | None:
    """Where the picture has no value, at its own size: bool (height, width), or None."""
    frame = result._done("missing").frame
    return None if frame.missing is None else geometry.resize_flags(frame.missing, frame.placement.source)


def _geotiff(result: Result) -> bytes:
    metadata = result._done("geotiff").frame.metadata
    return images.encode_geotiff(_ids(result), _missing(result), metadata)


def _segment_ids(result: Result) -> Pixels:
    """Class ids, NODATA where the picture has no value."""
    missing = _missing(result)
    return _ids(result) if missing is None else np.where(missing, np.uint8(images.NODATA), _ids(result))


def _dicomseg(result: Result) -> bytes:
    spec = result.spec
    return images.encode_dicomseg(result.path, {0: _segment_ids(result)}, spec.classes, spec.name)


RENDERERS: Mapping[str, Callable[[Result], bytes]] = {
    "mask": _mask,
    "overlay": _overlay,
    "cutout": _cutout,
    "prob": lambda result: images.encode_map(result.probability),
    "prob16": lambda result: images.encode_map(_probability16(result)),
    "instances": lambda result: images.encode_map(result.instances),
    "stats": lambda result: result.rows("stats"),
    "objects": lambda result: result.rows("objects"),
    "geotiff": _geotiff,
    "dicomseg": _dicomseg,
}
"""How each kind of `files.outputs.KINDS` that pictures have is made."""

DRAWN: Mapping[str, Callable[[Result], NDArray[Any]]] = {
    "mask": lambda result: result._drawn_mask(),
    "overlay": Result.overlay,
    "cutout": Result.cutout,
    "prob": lambda result: result.probability,
    "prob16": _probability16,
    "instances": lambda result: result.instances,
    "geotiff": _ids,
    "dicomseg": _segment_ids,
}
"""The same, as pixels, of those that are pictures."""


def _holds(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except OSError:
        return False
