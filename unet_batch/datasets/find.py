"""A folder of pictures and their masks, understood: which belong together, what the values mean, what must
stay together.

| what                | is recognised by                                                                               |
|---------------------|------------------------------------------------------------------------------------------------|
| folder of pictures  | images, image, imgs, img, JPEGImages, photos, train                                            |
| folder of masks     | masks, mask, labels, annotations, SegmentationClass, train_masks                               |
| a pair              | the same path below both folders but for the extension, and for a suffix of the mask's name:   |
|                     | _mask _masks _label _labels _labelIds _gt _seg _segmentation _L (also with -)                  |
| classes and void    | classes.toml beside the folders: `encoding.py` says how to write it; else the values           |
| COCO annotations    | the only .json whose name has the word annotations, instances or coco, in the folder itself,   |
|                     | in annotations/ or among the pictures, if there is no folder of masks: see `coco.py`           |
| their pictures      | `file_name` below the folder of pictures, which may be the folder itself; else files whose     |
|                     | paths end in `file_name`                                                                       |
| a group             | what stands before the last _ or - of the names, else their folder; or a pattern of your own   |

Every guess is a sentence in `Dataset.reasons`.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from unet_batch.datasets.coco import Coco
from unet_batch.datasets.coco import load as load_coco
from unet_batch.datasets.encoding import VOID, Masks, understand
from unet_batch.errors import ImageError, SourceError, UsageError
from unet_batch.files.sources import collect
from unet_batch.media import images as pictures
from unet_batch.types import ClassTable

if TYPE_CHECKING:
    from unet_batch.types import Item, Pixels, Size

_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos", "train")
_MASKS = ("masks", "mask", "labels", "annotations", "segmentationclass", "train_masks")
_SUFFIX = re.compile(r"[_-](masks?|labels?|labelids|gt|seg|segmentation|l)$", re.IGNORECASE)
_COCO = re.compile(r"(.*[_.-])?(annotations?|instances|coco)([_.-].*)?\.json", re.IGNORECASE)
_BY_NAME, _BY_FOLDER = re.compile(r"(.*[^/_-])[_-][^/_-]+"), re.compile(r"(.+)/[^/]+")


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its mask: absolute paths, the picture's key (see `Item`), and what it must stay together
    with.

    A mask in a file of annotations is named by both: `/data/annotations.json: car_01.jpg`.
    """

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
        masks: reads them; `read_mask` also says no to those that cannot be used.
        reasons: a sentence for everything that was guessed.
        unmatched_images, unmatched_masks: files without a partner, and annotations of no image.
        ambiguous: pictures with several masks, and masks that several pictures claim; not among the pairs.
    """

    root: str
    pairs: tuple[Pair, ...]
    classes: ClassTable
    masks: Masks
    reasons: tuple[str, ...]
    unmatched_images: tuple[str, ...] = ()
    unmatched_masks: tuple[str, ...] = ()
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def void(self) -> int | None:
        """255 if masks may hold pixels of no class, else None."""
        return VOID if self.masks.void else None

    def read_mask(self, pair: Pair, size: Size | None = None) -> Pixels:
        """Read ids, uint8 (H, W), 255 where void.

        Args:
            pair: one of `pairs`.
            size: of the upright picture, as `images.read` gives it; None skips the comparison. A mask is
                never turned to fit.

        Raises:
            ImageError: the mask cannot be read, is of another size, or holds values without a meaning.
        """
        mask = self.masks.decode(pair.mask)
        if mask.unexpected:
            raise ImageError(f"{pair.mask}: {mask.unexpected}", hint="name every value in classes.toml")
        if size is not None and mask.ids.shape != size:
            why = misfit(size, mask.ids.shape, pair.image)
            raise ImageError(f"{pair.mask}: {why}", hint="export the mask from the upright picture")
        return mask.ids


def find_dataset(
    folder: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    coco: str | None = None,
    group_by: str | None = None,
) -> Dataset:
    """Find pairs, and work out what the masks hold, by the rules at the top of this module.

    Args:
        folder: holds classes.toml, if any, and both folders unless they are named.
        images, masks: the two folders; relative names start at `folder`, if they exist there.
        coco: a file of COCO annotations in place of masks; named like the folders.
        group_by: a regular expression searched in each key; its group named `group`, or its first one, names
            the group.

    Raises:
        SourceError: a folder is missing or holds no pictures, or no mask fits a picture.
        UsageError: classes.toml, the annotations or `group_by` are wrong, there are several files of
            annotations, or the values of the masks cannot be guessed.
        ImageError: not one of the masks can be read.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise SourceError(f"{folder}: no such folder", hint="name the folder that holds images and masks")
    if coco is not None and masks is not None:
        raise UsageError(
            f"both masks ({masks}) and COCO annotations ({coco}) are named", hint="name one of them"
        )
    if coco is not None:
        return _from_coco(
            root, _named(root, coco, os.path.isfile, "the file of annotations"), "", images, group_by
        )
    if (
        masks is None
        and _known(root, _MASKS, besides=_holds_json_only) is None
        and (only := _only_coco(root, images))
    ):
        return _from_coco(root, only, ": no folder of masks, and no other COCO file", images, group_by)
    return _from_folders(root, images, masks, group_by)


def _from_folders(root: str, images: str | None, masks: str | None, group_by: str | None) -> Dataset:
    image_folder, mask_folder = (
        _subfolder(root, images, _IMAGES, "images"),
        _subfolder(root, masks, _MASKS, "masks"),
    )
    if os.path.samefile(image_folder, mask_folder):
        raise SourceError(
            f"{image_folder}: images and masks in one folder cannot be told apart", hint="use two folders"
        )
    image_files, mask_files = (
        collect([name], is_picture=pictures.is_supported).items for name in (image_folder, mask_folder)
    )
    by_stem: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # (path, key) of the pictures
    for item in image_files:
        by_stem[stem_of(item.path, image_folder)].append((item.path, item.key))
    found: defaultdict[str, list[str]] = defaultdict(list)
    lonely, suffixes = [], Counter[str]()
    for item in mask_files:
        stem = stem_of(item.path, mask_folder)
        short = stem if stem in by_stem else without_suffix(stem)  # a picture may itself be called car_gt
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
        raise SourceError(
            f"{root}: {why}", hint="a mask is called like its image, with _mask or nothing added"
        )
    used = ", ".join(f"{suffix or 'nothing'} added ({count:,})" for suffix, count in suffixes.most_common(3))
    reasons = (
        f"images are in {os.path.relpath(image_folder, root)}, masks in {os.path.relpath(mask_folder, root)}",
        f"{len(matched):,} of {len(image_files):,} images have a mask of the same name, with {used}",
    )
    classes, encoding, why_classes = understand(
        os.path.join(root, "classes.toml"), sorted(mask for _, _, mask in matched)
    )
    pairs, why_groups = paired(matched, group_by)
    return Dataset(
        root=root,
        pairs=pairs,
        classes=classes,
        masks=encoding,
        reasons=(*reasons, why_classes, why_groups),
        unmatched_images=tuple(sorted(unmatched)),
        unmatched_masks=tuple(sorted(lonely)),
        ambiguous=ambiguous,
    )


def _from_coco(root: str, file: str, why: str, images: str | None, group_by: str | None) -> Dataset:
    coco = load_coco(file)
    if images is not None:
        folders = [_subfolder(root, images, _IMAGES, "images")]
    else:
        folders = [folder for folder in (_known(root, _IMAGES), root) if folder is not None]
    found = _claims(coco, folders[0])
    if (
        found.missing
        and len(folders) > 1
        and len((other := _claims(coco, root)).missing) < len(found.missing)
    ):
        found = other
    takers = Counter(item.path for items in found.claims.values() for item in items)
    matched: list[tuple[str, str, str]] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    for mask, (item, *others) in found.claims.items():
        if others or takers[item.path] > 1:
            ambiguous[item.path] = (*ambiguous.get(item.path, ()), *(other.path for other in others), mask)
        else:
            matched.append((item.path, item.key, mask))
    if not matched:
        example = next(iter(coco.entries.values())).file_name if coco.entries else "none with a file_name"
        raise SourceError(
            f"{file}: none of its {len(coco.entries):,} images is in {found.folder}, such as {example}",
            hint="name the folder with --images: file_name is the path below it",
        )
    bare = sum(not coco.entries[mask].annotations for _, _, mask in matched)
    reasons = [
        f"annotations are in {os.path.relpath(file, root)}{why}; images are in "
        f"{os.path.relpath(found.folder, root)}",
        f"{len(matched):,} of {len(coco.entries):,} images in the file are there"
        + (f", {found.deeper:,} in folders that file_name does not name" if found.deeper else "")
        + (f"; {bare:,} without annotations are all background" if bare else ""),
        *coco.reasons,
    ]
    if os.path.exists(os.path.join(root, "classes.toml")):
        reasons.append("classes.toml is not used: the file of annotations names the classes")
    pairs, why_groups = paired(matched, group_by)
    return Dataset(
        root=root,
        pairs=pairs,
        classes=coco.classes,
        masks=coco,
        reasons=(*reasons, why_groups),
        unmatched_images=tuple(sorted(item.path for item in found.items if item.path not in takers)),
        unmatched_masks=(*sorted(found.missing), *coco.lost),
        ambiguous=ambiguous,
    )


class _Claims(NamedTuple):
    """The pictures in a folder, those that each mask may belong to, how many were found by the end of their
    path, and the masks of none.
    """

    folder: str
    items: Sequence[Item]
    claims: dict[str, list[Item]]
    deeper: int
    missing: list[str]


def _claims(coco: Coco, folder: str) -> _Claims:
    items = collect([folder], is_picture=pictures.is_supported).items
    exact = {_slashed(os.path.relpath(item.path, folder)): item for item in items}
    by_name: defaultdict[str, list[tuple[str, Item]]] = defaultdict(list)
    for item in items:
        path = _slashed(item.path)
        by_name[posixpath.basename(path)].append((path, item))
    names = {
        mask: posixpath.normpath(_slashed(entry.file_name.replace("\\", "/")))
        for mask, entry in coco.entries.items()
    }
    claims = {mask: [exact[name]] for mask, name in names.items() if name in exact}
    taken, straight, missing = {item.path for (item,) in claims.values()}, len(claims), []
    for mask, name in names.items():
        if mask in claims:
            continue
        end = "/" + name.lstrip("/")  # never cut: val/1.jpg is not train/1.jpg
        near = [
            item
            for path, item in by_name[posixpath.basename(name)]
            if path.endswith(end) and item.path not in taken
        ]
        if near:
            claims[mask] = near
        else:
            missing.append(mask)
    return _Claims(folder, items, claims, len(claims) - straight, missing)


def split(pairs: Sequence[Pair], fraction: float) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Keep whole groups out of training: the same ones on every machine, and still the same ones when others
    come to them.

    A group validates if a hash of its name falls below the fraction, whatever other groups there are: a model
    can be trained further on a dataset that has grown, and no picture that it was trained on is among those
    that judge it. Where that misses the fraction by a factor of two, as it may with a few groups, those are
    kept out, in the order of their hashes, that bring the share closer to it.

    Args:
        pairs: what to split; the order within a part is theirs.
        fraction: about so many of the pictures are kept out; above 0, below 1.

    Returns:
        What is for training, and what is kept out; neither is empty.

    Raises:
        UsageError: the fraction is out of range, or there is a single group.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"a fraction of {fraction} cannot be kept out: above 0 and below 1 expected")
    sizes = Counter(pair.group for pair in pairs)
    if len(sizes) < 2:
        hint = "choose another --group-by, or name the pictures of each part in a list"
        raise UsageError(f"{len(sizes)} group cannot be on both sides of a split", hint=hint)

    def place(group: str) -> float:
        return (
            int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        )

    kept_out = {group for group in sizes if place(group) < fraction}
    share = sum(sizes[group] for group in kept_out) / len(pairs)
    if not fraction / 2 <= share <= min(2 * fraction, (1 + fraction) / 2):
        kept_out, taken, wanted = set(), 0, fraction * len(pairs)
        for group in sorted(sizes, key=place):
            if abs(taken + sizes[group] - wanted) < abs(taken - wanted):
                kept_out.add(group)
                taken += sizes[group]
        if not 0 < len(kept_out) < len(sizes):
            kept_out = {min(sizes, key=lambda group: (sizes[group], place(group)))}
    training, out = ([pair for pair in pairs if (pair.group in kept_out) is side] for side in (False, True))
    return tuple(training), tuple(out)


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
                f"{file}, line {number}: {line!r} {what}",
                hint="write a key, such as " + pairs[0].key if pairs else "",
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
    """Raise UsageError if a group lies in more than one part: its pictures would be judged after training on
    their like.
    """
    for group, names in leaks(splits).items():
        raise UsageError(
            f"group {group!r} is in {' and '.join(names)}", hint="keep all pictures of a group in one part"
        )


def misfit(image: Size, mask: tuple[int, ...], path: str) -> str:
    """Say how a mask's size differs from that of its upright picture, the file `path`, and why if EXIF
    explains it.
    """
    text = f"the image is {image[0]}x{image[1]}, the mask {mask[0]}x{mask[1]} (height x width)"
    if mask != image[::-1]:
        return text
    turned = pictures.orientation(path)
    return text + (
        f": the image is turned by its EXIF orientation {turned}, the mask is not"
        if turned > 4
        else ": transposed"
    )


# Names ------------------------------------------------------------------------------------------------------


def _subfolder(root: str, given: str | None, known: Sequence[str], what: str) -> str:
    if given is not None:
        return _named(root, given, os.path.isdir, f"the folder of {what}")
    if (found := _known(root, known, besides=_holds_json_only)) is not None:
        return found
    here = ", ".join(sorted(entry.name.lower() for entry in os.scandir(root) if entry.is_dir()))
    hint = f"name it with --{what} (looked for {', '.join(known)}), or a COCO file with --coco"
    raise SourceError(f"{root}: no folder of {what}; there is {here or 'no folder at all'}", hint=hint)


def _named(root: str, given: str, exists: Callable[[str], bool], what: str) -> str:
    for path in (os.path.join(root, given), os.path.abspath(given)):
        if exists(path):
            return path
    kind = what.split()[1]
    raise SourceError(f"{given}: no such {kind}, neither here nor in {root}", hint=f"name {what}")


def _known(
    root: str, names: Sequence[str], besides: Callable[[str], bool] = lambda path: False
) -> str | None:
    """The first folder in `root` that has one of these names, in any case, leaving some out."""
    here = {entry.name.lower(): entry.path for entry in os.scandir(root) if entry.is_dir()}
    return next((here[name] for name in names if name in here and not besides(here[name])), None)


def _holds_json_only(folder: str) -> bool:
    """Whether a folder, called annotations perhaps, holds .json but no picture and no folder: then it holds
    no masks.
    """
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if pictures.is_supported(entry.name) or entry.is_dir():
                return False
            found = found or entry.name.lower().endswith(".json")
    return found


def _only_coco(root: str, images: str | None) -> str | None:
    """The file of COCO annotations, by its name, if there is one.

    Raises:
        UsageError: there are several.
    """
    places = [
        root,
        _known(root, ("annotations",)),
        _known(root, _IMAGES) if images is None else os.path.join(root, images),
    ]
    found: dict[str, None] = {}
    for place in places:
        if place is not None and os.path.isdir(place):
            found.update(
                (os.path.join(place, name), None)
                for name in sorted(os.listdir(place))
                if _COCO.fullmatch(name)
            )
    if len(found) > 1:
        names = [os.path.relpath(path, root) for path in found]
        shown = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
        raise UsageError(
            f"{root}: {len(names):,} files may hold COCO annotations, {shown}",
            hint="name one of them with --coco",
        )
    return next(iter(found), None)


def stem_of(path: str, folder: str) -> str:
    """The name of a file below a folder, `/`-separated, without its extension: what tells which files belong
    together.
    """
    return _slashed(os.path.splitext(os.path.relpath(path, folder))[0])


def without_suffix(stem: str) -> str:
    """The stem of the picture that a mask is called after."""
    return _SUFFIX.sub("", stem)


def _slashed(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))  # a Mac writes é as two characters


def paired(matched: Sequence[tuple[str, str, str]], group_by: str | None) -> tuple[tuple[Pair, ...], str]:
    """Pairs of (image, key, mask) in the order of their keys, and why they are grouped as they are."""
    groups, why = _groups([key for _, key, _ in matched], group_by)
    pairs = [Pair(image, mask, key, group) for (image, key, mask), group in zip(matched, groups, strict=True)]
    return tuple(sorted(pairs, key=lambda pair: pair.key.split("/"))), why


def _groups(keys: Sequence[str], group_by: str | None) -> tuple[list[str], str]:
    """A group for each key, and why."""
    if group_by is not None:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise UsageError(f"group-by {group_by!r} is not a regular expression: {error}") from error
        if not pattern.groups:
            raise UsageError(
                f"group-by {group_by!r} has no group", hint="put what names the group in brackets: '^(.+)_'"
            )
        which: str | int = "group" if "group" in pattern.groupindex else 1
        found = [(key, pattern.search(key)) for key in keys]
        if misses := [key for key, match in found if not match or match[which] is None]:
            raise UsageError(
                f"group-by {group_by!r} does not fit {len(misses):,} of {len(keys):,} keys, such as "
                f"{misses[0]!r}"
            )
        groups = [match[which] for _, match in found if match]
        return groups, f"{len(set(groups)):,} groups by {group_by!r}"
    for pattern, what in (
        (_BY_NAME, "by what stands before the last _ or - of the names"),
        (_BY_FOLDER, "by folder"),
    ):
        groups = [match[1] if (match := pattern.fullmatch(key)) else key for key in keys]
        counts = Counter(groups)
        if sum(count > 1 for count in counts.values()) >= 2 and len(counts) <= len(keys) / 2:
            return (
                groups,
                f"{len(counts):,} groups {what}, such as {groups[0]!r} with {counts[groups[0]]:,} images",
            )
    return list(keys), "every image is a group of its own: the names share no prefixes"
