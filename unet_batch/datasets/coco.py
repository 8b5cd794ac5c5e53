"""Read a file of COCO annotations, and draw masks from it when they are asked for.

| in the file                         | becomes                                                              |
|-------------------------------------|----------------------------------------------------------------------|
| one category                        | one class: 0 is background, 1 the category                           |
| several categories                  | 0 is background, 1, 2, ... the categories in the order of their ids  |
| a category called background        | 0                                                                    |
| a category that is nothing but the  | nothing (Roboflow writes one)                                        |
| supercategory of others             |                                                                      |
| polygons, RLE of either kind        | the pixels that pycocotools gives them                               |
| objects that overlap                | the smaller one wins: larger ones, by pixels, are drawn first; equal |
|                                     | ones in the order of the file                                        |
| iscrowd: 1                          | void, where no other object lies                                     |
| an image without annotations        | background                                                           |

Of the file only what is needed stays in memory, outlines as packed numbers: 1.7 times its size, and 2.4 times
while it is read (a drawn-up 94 MB of 172,000 polygons: 3.6 s). A mask of 480x640 with seven objects is drawn
in 4 ms. An annotation that cannot be drawn costs its own image only.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unet_batch.datasets.encoding import NO_PIXELS, VOID, Mask
from unet_batch.errors import ImageError, ImageTooLarge, UsageError
from unet_batch.media.images import MAX_PIXELS
from unet_batch.media.render import palette
from unet_batch.types import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Size

_MOST = 255  # classes, background included: the last id is void
_LISTS = ("images", "annotations", "categories")
_KEPT = {"id", "name", "supercategory", "file_name", "width", "height", "image_id", "category_id", "iscrowd"}
_KEPT |= {*_LISTS, "segmentation", "size", "counts"}
_HINT = "correct this annotation, or take it out of the file"


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the file.

    Attributes:
        mask: names its mask in messages, and for `Coco.decode`: `/data/annotations.json: car_01.jpg`.
        file_name: as it is written.
        size: (height, width) as it is written; None if that makes no sense.
        annotations: its own, as they are in the file, but for what `load` leaves out.
    """

    mask: str
    file_name: str
    size: Size | None
    annotations: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Coco:
    """A file of annotations. Safe to use from many threads.

    Attributes:
        classes: see `Dataset`.
        void: whether there are crowds.
        ids: class by category.
        entries: what can be drawn, by `Entry.mask`.
        lost: what belongs to no image, in words that begin with the file.
        reasons: a sentence for everything that was decided.
    """

    lists_images: ClassVar[bool] = True

    classes: ClassTable
    void: bool
    ids: Mapping[int, int]
    entries: Mapping[str, Entry]
    lost: tuple[str, ...]
    reasons: tuple[str, ...]

    def decode(self, mask: str) -> Mask:
        """Draw the mask of an image, at the size that the file gives.

        Raises:
            ImageError: an annotation cannot be drawn; the message names it.
        """
        from pycocotools import mask as rle

        size, crowds, objects, remark = self._outlines(mask)
        ids = np.zeros(size, np.uint8, order="F")  # as pycocotools lays out its own
        layers = [(VOID, crowds)] if crowds else []
        # Neighbours of one class are drawn together: with one class alone, that is everything in one go.
        layers += [
            (id, [outline for _, outline in run])
            for id, run in itertools.groupby(objects, key=lambda drawn: drawn[0])
        ]
        for id, outlines in layers:
            np.copyto(ids, np.uint8(id), where=rle.decode(rle.merge(outlines)).view(bool))
        return Mask(np.ascontiguousarray(ids), remark=remark)

    def objects(self, mask: str) -> NDArray[np.int32]:
        """Number the objects of an image from 1 as `decode` draws them: int32 (H, W), 0 where there is none.

        Raises:
            ImageError: as `decode` does.
        """
        (height, width), _, objects, _ = self._outlines(mask)
        down = np.zeros(height * width, np.int32)  # column after column
        for number, (_, outline) in enumerate(objects, 1):
            for start, end in _runs(outline["counts"]):
                down[start:end] = number
        return np.ascontiguousarray(down.reshape(width, height).T)

    def _outlines(self, mask: str) -> tuple[Size, list[Any], list[tuple[int, Any]], tuple[str, str]]:
        """The size of an image, outlines of its crowds, class and outline of its objects, and the remark.

        Objects are in the order in which they are drawn, the largest first.
        """
        from pycocotools import mask as rle

        entry = self.entries[mask]
        if entry.size is None:
            raise ImageError(
                f"{mask}: has no width and height in pixels", hint="export the file again, with both"
            )
        height, width = entry.size
        if height * width > MAX_PIXELS:
            raise ImageTooLarge(
                f"{mask}: {height}x{width} (height x width) is over the limit of {MAX_PIXELS:,} pixels"
            )
        crowds: list[Any] = []
        objects: list[tuple[int, int, Any]] = []  # pixels, class, outline
        invisible = []
        for place, annotation in enumerate(entry.annotations):
            name = f"annotation {annotation.get('id', f'number {place + 1} of this image')}"
            try:
                outline, id = (
                    _outline(annotation, entry.size),
                    self.ids.get(_key(annotation.get("category_id"))),
                )
                if id is None:
                    raise ValueError(f"the category {annotation.get('category_id')!r} is not in the file")
            except ValueError as error:
                raise ImageError(f"{mask}: {name}: {error}", hint=_HINT) from error
            pixels = int(rle.area(outline))
            if annotation.get("iscrowd") == 1:
                crowds.append(outline)
            else:
                objects.append((pixels, id, outline))
            if not pixels:
                invisible.append(name)
        objects.sort(key=lambda drawn: -drawn[0])
        remark = ("", "")
        if invisible:
            shown = ", ".join(invisible[:3]) + ", ..." * (len(invisible) > 3)
            remark = NO_PIXELS, f"{len(invisible):,} of {len(entry.annotations):,} objects: {shown}"
        return entry.size, crowds, [(id, outline) for _, id, outline in objects], remark


def load(file: str) -> Coco:
    """Read a file of annotations; see the top of this module for what becomes of it.

    Raises:
        UsageError: pycocotools is missing, the file cannot be read, is not COCO's, holds boxes only, or its
            images or categories contradict each other.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        hint = 'pip install "unet-batch[coco]"'
        raise UsageError(
            f"{file}: COCO annotations need pycocotools, which is not installed", hint=hint
        ) from error
    images, annotations, categories = _lists(file)
    if not images:
        raise UsageError(f"{file}: names no images", hint="export it again")
    if annotations and not any(
        isinstance(entry, dict) and entry.get("segmentation") for entry in annotations
    ):
        why = f"none of its {len(annotations):,} annotations has a segmentation: boxes only?"
        raise UsageError(f"{file}: {why}", hint="export polygons or masks (COCO instance segmentation)")
    ids, classes, why_classes = _classes(file, categories, annotations)
    lost: list[str] = []
    entries = _entries(file, images, annotations, lost)
    crowds = sum(entry.get("iscrowd") == 1 for entry in annotations if isinstance(entry, dict))
    overlap = "where objects overlap, the smaller one counts" + (
        f"; iscrowd is void ({crowds:,} regions)" if crowds else ""
    )
    return Coco(
        classes=classes,
        void=crowds > 0,
        ids=ids,
        entries={entry.mask: entry for entry in entries},
        lost=tuple(lost),
        reasons=(why_classes, overlap),
    )


# The file ---------------------------------------------------------------------------------------------------


def _lists(file: str) -> list[list[Any]]:
    """The lists of images, annotations and categories."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            document = json.load(stream, object_hook=_slim)
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror or error}", hint="name a file of annotations"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file}: is not JSON: {error}", hint="it may be cut short: export or copy it again"
        ) from error
    hint = "COCO's format is an object with the lists images, annotations and categories"
    if not isinstance(document, dict):
        what = "a list" if isinstance(document, list) else "a single value"
        raise UsageError(f"{file}: is not a COCO file: it holds {what}", hint=hint)
    if missing := [name for name in _LISTS if not isinstance(document.get(name), list)]:
        raise UsageError(f"{file}: is not a COCO file: it has no list of {' or '.join(missing)}", hint=hint)
    return [document[name] for name in _LISTS]


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """Called for each object while the file is parsed: keep what is needed, polygons as packed numbers."""
    kept = {key: value for key, value in entry.items() if key in _KEPT}
    polygons = kept.get("segmentation")
    if isinstance(polygons, list):
        kept["segmentation"] = [_pack_numbers(polygon) for polygon in polygons]
    return kept


def _pack_numbers(polygon: Any) -> Any:
    """Numbers as 8 bytes each, not 32; what is not a list of numbers as it is, for `_outline` to name."""
    try:
        return array("d", polygon)
    except (TypeError, OverflowError):
        return polygon


def _classes(
    file: str, categories: list[Any], annotations: list[Any]
) -> tuple[dict[int, int], ClassTable, str]:
    """Class by category, the table, and why."""
    names: dict[int, str] = {}
    parents: dict[int, object] = {}
    for place, category in enumerate(categories):
        id, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if not isinstance(id, int) or not isinstance(name, str) or not name:
            raise UsageError(
                f"{file}: categories[{place}] needs a whole number 'id' and a 'name'", hint="export it again"
            )
        if id in names or name in names.values():
            same = f"the id {id}" if id in names else f"called {name!r}"
            raise UsageError(
                f"{file}: two categories are {same}", hint="give each an id and a name of its own"
            )
        names[id], parents[id] = name, category.get("supercategory")
    used = {_key(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
    headings = [
        id for id in names if id not in used and any(parents[k] == names[id] for k in names if k != id)
    ]
    empty = [id for id in names if names[id].lower() == "background"]
    kept = [id for id in sorted(names) if id not in headings and id not in empty]
    if not 0 < len(kept) < _MOST:
        why = f"{len(kept)} categories, 1 to {_MOST - 1} expected"
        raise UsageError(
            f"{file}: {why}", hint="merge categories" if kept else "export it again, with its categories"
        )
    ids = {id: number for number, id in enumerate(kept, 1)} | dict.fromkeys(empty, 0)
    extra = "".join(f"; {names[id]!r} only stands above others: not a class" for id in headings)
    colours = palette(len(kept))
    if len(kept) == 1:
        return (
            ids,
            ClassTable((names[kept[0]],), colours),
            f"one category: one class, called {names[kept[0]]}{extra}",
        )
    why = (
        f"{len(kept)} categories: classes 1 to {len(kept)} in the order of their ids, 0 is background{extra}"
    )
    return ids, ClassTable(("background", *(names[id] for id in kept)), ((0, 0, 0), *colours)), why


def _entries(file: str, images: list[Any], annotations: list[Any], lost: list[str]) -> list[Entry]:
    """The images with their annotations; what belongs to none is added to `lost`."""
    own: dict[int | str, list[dict[str, Any]]] = {}
    for place, image in enumerate(images):
        key = _key(image.get("id")) if isinstance(image, dict) else None
        if key is None:
            lost.append(f"{file}: images[{place}] has no id")
        elif key in own:
            raise UsageError(
                f"{file}: two images have the id {key!r}",
                hint="number them anew, and their annotations with them",
            )
        else:
            own[key] = []
    for place, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            lost.append(f"{file}: annotations[{place}] is not an object")
            continue
        key = _key(annotation.get("image_id"))
        if key in own:
            own[key].append(annotation)
        else:
            name = annotation.get("id", f"number {place + 1}")
            lost.append(
                f"{file}: annotation {name} is of image {annotation.get('image_id')!r}, which is not in the "
                f"file"
            )
    named = [image for image in images if isinstance(image, dict) and _key(image.get("id")) is not None]
    copies = Counter(image["file_name"] for image in named if isinstance(image.get("file_name"), str))
    entries = []
    for image in named:
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            lost.append(f"{file}: image {image['id']!r} has no file_name")
            continue
        mask = f"{file}: {name}" + (f" (image {image['id']})" if copies[name] > 1 else "")
        sides = _side(image.get("height")), _side(image.get("width"))
        entries.append(Entry(mask, name, sides if all(sides) else None, own[image["id"]]))
    return entries


def _key(value: object) -> Any:
    """An id, or None for what cannot be one."""
    return value if isinstance(value, (int, str)) else None


def _side(value: object) -> int:
    """A number of pixels, or 0 for what cannot be one."""
    return int(value) if isinstance(value, (int, float)) and value > 0 and float(value).is_integer() else 0


# Outlines ---------------------------------------------------------------------------------------------------


def _outline(annotation: Mapping[str, Any], size: Size) -> Any:
    """Convert an annotation into a sound RLE of pycocotools.

    Its C code trusts what it is given: bad numbers end the process. So everything is looked at first.

    Raises:
        ValueError: says what is wrong.
    """
    from pycocotools import mask as rle

    shape = annotation.get("segmentation")
    if not shape:
        raise ValueError("has no segmentation, and a box alone does not say which pixels are meant")
    if isinstance(shape, list):
        for polygon in shape:
            _check_polygon(polygon, size)
        return rle.merge(rle.frPyObjects(shape, *size))
    if not isinstance(shape, dict) or not {"size", "counts"} <= shape.keys():
        raise ValueError("its segmentation is neither a list of polygons nor an RLE with size and counts")
    if shape["size"] != list(size):
        raise ValueError(
            f"its RLE is for size {shape['size']}, the image is {list(size)} (height, width) in the file"
        )
    counts, total = shape["counts"], size[0] * size[1]
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its RLE has counts that are no numbers of pixels")
        if sum(counts) != total:
            raise ValueError(f"its RLE counts {sum(counts):,} pixels, the image has {total:,}")
        shape = rle.frPyObjects(shape, *size)
    elif not isinstance(counts, str):
        raise ValueError("its RLE has no counts")
    try:
        pixels = rle.decode(shape)
    except ValueError:
        raise ValueError(
            f"its RLE is damaged: it counts more than the {total:,} pixels of the image"
        ) from None
    try:  # what is too short leaves pixels that were never set; it would fit into one pixel less, too
        rle.decode({"size": [total - 1, 1], "counts": shape["counts"]})
    except ValueError:
        # Anew: `merge` writes beyond its memory if runs of no pixels are among the counts
        return rle.encode(pixels)
    raise ValueError(f"its RLE is damaged: it counts fewer than the {total:,} pixels of the image")


def _check_polygon(polygon: Any, size: Size) -> None:
    """Raise ValueError unless it is a polygon that lies near the picture."""
    if not isinstance(polygon, array):
        raise ValueError("its segmentation is not a list of polygons, each a list of numbers x, y, x, y, ...")
    if len(polygon) % 2 or len(polygon) < 6:
        raise ValueError(f"a polygon of {len(polygon)} values: pairs x, y of at least 3 points expected")
    for axis, values, side in (("x", polygon[::2], size[1]), ("y", polygon[1::2], size[0])):
        points = np.asarray(values)
        far = points[~((points >= -side) & (points <= 2 * side))]  # also what is not a number
        if far.size:  # pycocotools would need memory for each step out there
            raise ValueError(
                f"a polygon reaches {axis} = {far[0]:g}, but the image ends at {side}: of another image or "
                f"size?"
            )


def _runs(counts: bytes) -> list[tuple[int, int]]:
    """Begin and end of each run of pixels of a compressed RLE.

    Pycocotools decodes whole pictures only: 15 ms an object in one of 12 megapixels. Numbers have 5 bits a
    character, lowest first, and a bit for "more follows"; from the fourth on they are differences to the one
    before the last.
    """
    lengths: list[int] = []
    value = bits = 0
    for character in counts:
        character -= 48
        value |= (character & 31) << bits
        bits += 5
        if character & 32:
            continue
        if character & 16:  # the sign
            value -= 1 << bits
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = bits = 0
    ends = list(itertools.accumulate(lengths))
    return list(zip(ends[::2], ends[1::2], strict=False))
