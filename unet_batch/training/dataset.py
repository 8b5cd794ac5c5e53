"""A folder of pictures and masks, understood: which belong together, what the values mean, what must stay together.

| what                | is recognised by                                                                               |
|---------------------|------------------------------------------------------------------------------------------------|
| folder of pictures  | images, image, imgs, img, JPEGImages, photos, train                                            |
| folder of masks     | masks, mask, labels, annotations, SegmentationClass, train_masks                               |
| a pair              | the same path below both folders but for the extension, and for a suffix of the mask's name:   |
|                     | _mask _masks _label _labels _labelIds _gt _seg _segmentation _L (also with -)                  |
| classes and void    | classes.toml beside the folders: `encoding.py` says how to write it; else the values  |
| a group             | what stands before the last _ or - of the names, else their folder; or a pattern of your own   |

Every guess is a sentence in `Dataset.reasons`.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unet_batch import images as pictures
from unet_batch.errors import ImageError, SourceError, UsageError
from unet_batch.sources import collect
from unet_batch.training.encoding import VOID, Encoding, understand
from unet_batch.types import ClassTable

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos", "train")
_MASKS = ("masks", "mask", "labels", "annotations", "segmentationclass", "train_masks")
_SUFFIX = re.compile(r"[_-](masks?|labels?|labelids|gt|seg|segmentation|l)$", re.IGNORECASE)
_BY_NAME, _BY_FOLDER = re.compile(r"(.*[^/_-])[_-][^/_-]+"), re.compile(r"(.+)/[^/]+")


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its mask: absolute paths, the picture's key (see `Item`), and what it must stay together with."""

    image: str
    mask: str
    key: str
    group: str


@dataclass(frozen=True)
class Dataset:
    """Pairs of pictures and masks, in the order of their keys.

    Attributes:
        root: the folder that was named, absolute.
        pairs: what belongs together.
        classes: one name: ids are 0 (background) and 1; several: ids 0, 1, ... in this order.
        void: 255 if masks may hold pixels of no class, else None.
        encoding: how the files spell ids.
        reasons: a sentence for everything that was guessed.
        unmatched_images, unmatched_masks: files without a partner.
        ambiguous: pictures with several masks, and masks that several pictures claim; not among the pairs.
    """

    root: str
    pairs: tuple[Pair, ...]
    classes: ClassTable
    void: int | None
    encoding: Encoding
    reasons: tuple[str, ...]
    unmatched_images: tuple[str, ...] = ()
    unmatched_masks: tuple[str, ...] = ()
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def read_mask(self, pair: Pair, size: Size | None = None) -> Pixels:
        """Read ids, uint8 (H, W), 255 where void.

        Args:
            pair: one of `pairs`.
            size: of the upright picture, as `images.read` gives it; None skips the comparison. A mask is never turned to fit.

        Raises:
            ImageError: the mask cannot be read, is of another size, or holds values without a meaning.
        """
        ids, stray = self.encoding.decode(pair.mask)
        if stray and not self.encoding.softened(stray, ids.size):
            raise ImageError(f"{pair.mask}: {self.encoding.spelled(stray)}", hint="name every value in classes.toml")
        if size is not None and ids.shape != size:
            why = misfit(size, ids.shape, pair.image)
            raise ImageError(f"{pair.mask}: {why}", hint="export the mask from the upright picture")
        return ids


def find_dataset(folder: str, *, images: str | None = None, masks: str | None = None, group_by: str | None = None) -> Dataset:
    """Find pairs, and work out what the masks hold, by the rules at the top of this module.

    Args:
        folder: holds classes.toml, if any, and both folders unless they are named.
        images, masks: the two folders; relative names start at `folder`, if they exist there.
        group_by: a regular expression searched in each key; its group named `group`, or its first one, names the group.

    Raises:
        SourceError: a folder is missing or holds no pictures, or no mask fits a picture.
        UsageError: classes.toml or `group_by` is wrong, or the values of the masks cannot be guessed.
        ImageError: not one of the masks can be read.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise SourceError(f"{folder}: no such folder", hint="name the folder that holds images and masks")
    image_folder, mask_folder = _subfolder(root, images, _IMAGES, "images"), _subfolder(root, masks, _MASKS, "masks")
    if os.path.samefile(image_folder, mask_folder):
        raise SourceError(f"{image_folder}: images and masks in one folder cannot be told apart", hint="use two folders")
    image_files, mask_files = (collect([name], is_picture=pictures.is_supported).items for name in (image_folder, mask_folder))
    by_stem: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # (path, key) of the pictures
    for item in image_files:
        by_stem[_stem(item.path, image_folder)].append((item.path, item.key))
    found: defaultdict[str, list[str]] = defaultdict(list)
    lonely, suffixes = [], Counter[str]()
    for item in mask_files:
        stem = _stem(item.path, mask_folder)
        short = stem if stem in by_stem else _SUFFIX.sub("", stem)  # a picture may itself be called car_gt
        if short in by_stem:
            found[short].append(item.path)
            suffixes[stem[len(short) :]] += 1
        else:
            lonely.append(item.path)
    matched: list[tuple[str, str, str]] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    for stem, paths in found.items():
        (image, key), *others = by_stem[stem]
        if others or len(paths) > 1:
            ambiguous[image] = (*(path for path, _ in others), *paths)
        else:
            matched.append((image, key, paths[0]))
    unmatched = [path for stem, files in by_stem.items() if stem not in found for path, _ in files]
    if not matched:
        names = f"such as {os.path.basename(image_files[0].path)} and {os.path.basename(mask_files[0].path)}"
        why = f"none of {len(image_files):,} images and {len(mask_files):,} masks belong together, {names}"
        raise SourceError(f"{root}: {why}", hint="a mask is called like its image, with _mask or nothing added")
    used = ", ".join(f"{suffix or 'nothing'} added ({count:,})" for suffix, count in suffixes.most_common(3))
    reasons = (
        f"images are in {os.path.relpath(image_folder, root)}, masks in {os.path.relpath(mask_folder, root)}",
        f"{len(matched):,} of {len(image_files):,} images have a mask of the same name, with {used}",
    )
    classes, encoding, why_classes = understand(os.path.join(root, "classes.toml"), sorted(mask for _, _, mask in matched))
    groups, why_groups = _groups([key for _, key, _ in matched], group_by)
    pairs = [Pair(image, mask, key, group) for (image, key, mask), group in zip(matched, groups, strict=True)]
    return Dataset(
        root=root,
        pairs=tuple(sorted(pairs, key=lambda pair: pair.key.split("/"))),
        classes=classes,
        void=VOID if VOID in encoding.table.values() else None,
        encoding=encoding,
        reasons=(*reasons, why_classes, why_groups),
        unmatched_images=tuple(sorted(unmatched)),
        unmatched_masks=tuple(sorted(lonely)),
        ambiguous=ambiguous,
    )


def split(pairs: Sequence[Pair], fractions: Mapping[str, float], seed: int = 0) -> dict[str, tuple[Pair, ...]]:
    """Deal whole groups to parts, the same way on every machine.

    Groups come in the order of a hash of (seed, group), after those that are larger than the smallest part; each goes to the
    part that is furthest below its share. No part exceeds its share by more than the largest group, and none is empty.

    Args:
        pairs: what to split; the order within a part is theirs.
        fractions: share of the pictures by name of the part; positive, adding up to 1.
        seed: another one gives another split.

    Raises:
        UsageError: the fractions are wrong, or there are fewer groups than parts.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UsageError(f"fractions {dict(fractions)}: positive numbers that add up to 1 expected")
    sizes = Counter(pair.group for pair in pairs)
    if len(sizes) < len(fractions):
        hint = "choose another group_by, or fewer parts"
        raise UsageError(f"{len(sizes)} groups cannot be split into {len(fractions)} parts ({', '.join(fractions)})", hint=hint)
    room = {part: fraction * len(pairs) for part, fraction in fractions.items()}
    smallest = min(room.values())

    def place(group: str) -> tuple[int, bytes]:
        digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
        return (-sizes[group] if sizes[group] > smallest else 0), digest

    order = sorted(sizes, key=place)
    home: dict[str, str] = {}
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        empty = [part for part in fractions if part not in home.values()] if left <= len(fractions) else []
        part = max(empty if len(empty) == left else fractions, key=lambda name: room[name])
        home[group] = part
        room[part] -= sizes[group]
    return {part: tuple(pair for pair in pairs if home[pair.group] == part) for part in fractions}


def read_split(file: str, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Read the pairs that a text file names, one key, file name or stem a line; `#` begins a comment line.

    Raises:
        UsageError: the file cannot be read, names nothing, or a line fits no picture or several.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as stream:
            lines = [unicodedata.normalize("NFC", line.strip()) for line in stream]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    names: defaultdict[str, dict[Pair, None]] = defaultdict(dict)
    for pair in pairs:
        base = os.path.basename(pair.image)
        for name in (pair.key, base, os.path.splitext(base)[0], pair.key + os.path.splitext(base)[1]):
            names[unicodedata.normalize("NFC", name)][pair] = None
    chosen: dict[Pair, None] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        fits = names.get(line) or names.get(line.rpartition("/")[2], {})
        if len(fits) != 1:
            what = f"fits {len(fits)} images" if fits else "fits no image that has a mask"
            raise UsageError(
                f"{file}, line {number}: {line!r} {what}", hint="write a key, such as " + pairs[0].key if pairs else ""
            )
        chosen.update(fits)
    if not chosen:
        raise UsageError(f"{file}: names no images", hint="write one key a line")
    return tuple(chosen)


def leaks(splits: Mapping[str, Iterable[Pair]]) -> dict[str, tuple[str, ...]]:
    """The parts of every group that lies in more than one."""
    parts: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for name, pairs in splits.items():
        for pair in pairs:
            parts[pair.group][name] = None
    return {group: tuple(names) for group, names in parts.items() if len(names) > 1}


def require_apart(splits: Mapping[str, Iterable[Pair]]) -> None:
    """Raise UsageError if a group lies in more than one part: its pictures would be judged after training on their like."""
    for group, names in leaks(splits).items():
        raise UsageError(f"group {group!r} is in {' and '.join(names)}", hint="keep all pictures of a group in one part")


def misfit(image: Size, mask: tuple[int, ...], path: str) -> str:
    """Say how a mask's size differs from that of its upright picture, the file `path`, and why if EXIF explains it."""
    text = f"the image is {image[0]}x{image[1]}, the mask {mask[0]}x{mask[1]} (height x width)"
    if mask != image[::-1]:
        return text
    turned = pictures.orientation(path)
    return text + (f": the image is turned by its EXIF orientation {turned}, the mask is not" if turned > 4 else ": transposed")


# Names ---------------------------------------------------------------------------------------------------------------------


def _subfolder(root: str, given: str | None, known: Sequence[str], what: str) -> str:
    if given is not None:
        for path in (os.path.join(root, given), os.path.abspath(given)):
            if os.path.isdir(path):
                return path
        raise SourceError(f"{given}: no such folder, neither here nor in {root}", hint=f"name the folder of {what}")
    here = {entry.name.lower(): entry.path for entry in os.scandir(root) if entry.is_dir()}
    for name in known:
        if name in here:
            return here[name]
    hint = f"name it with --{what} (looked for {', '.join(known)})"
    raise SourceError(f"{root}: no folder of {what}; there is {', '.join(sorted(here)) or 'no folder at all'}", hint=hint)


def _stem(path: str, folder: str) -> str:
    relative = os.path.splitext(os.path.relpath(path, folder))[0].replace(os.sep, "/")
    return unicodedata.normalize("NFC", relative)  # a Mac writes é as two characters


def _groups(keys: Sequence[str], group_by: str | None) -> tuple[list[str], str]:
    """A group for each key, and why."""
    if group_by is not None:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise UsageError(f"group-by {group_by!r} is not a regular expression: {error}") from error
        if not pattern.groups:
            raise UsageError(f"group-by {group_by!r} has no group", hint="put what names the group in brackets: '^(.+)_'")
        which: str | int = "group" if "group" in pattern.groupindex else 1
        found = [(key, pattern.search(key)) for key in keys]
        if misses := [key for key, match in found if not match or match[which] is None]:
            raise UsageError(f"group-by {group_by!r} does not fit {len(misses):,} of {len(keys):,} keys, such as {misses[0]!r}")
        groups = [match[which] for _, match in found if match]
        return groups, f"{len(set(groups)):,} groups by {group_by!r}"
    for pattern, what in ((_BY_NAME, "by what stands before the last _ or - of the names"), (_BY_FOLDER, "by folder")):
        groups = [match[1] if (match := pattern.fullmatch(key)) else key for key in keys]
        counts = Counter(groups)
        if sum(count > 1 for count in counts.values()) >= 2 and len(counts) <= len(keys) / 2:
            return groups, f"{len(counts):,} groups {what}, such as {groups[0]!r} with {counts[groups[0]]:,} images"
    return list(keys), "every image is a group of its own: the names share no prefixes"
