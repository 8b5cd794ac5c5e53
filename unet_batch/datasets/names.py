"""What the names of files and folders say: where pictures and masks lie, what belongs together."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from unet_batch.datasets.dataset import Pair
from unet_batch.errors import SourceError, UsageError
from unet_batch.media import images

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "photos", "train")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "segmentationclass", "train_masks")
_SUFFIX = re.compile(r"[_-](masks?|labels?|labelids|gt|seg|segmentation|l)$", re.IGNORECASE)
_BY_NAME, _BY_FOLDER = re.compile(r"(.*[^/_-])[_-][^/_-]+"), re.compile(r"(.+)/[^/]+")


def subfolder(root: str, given: str | None, known: Sequence[str], what: str) -> str:
    if given is not None:
        return named_path(root, given, os.path.isdir, f"the folder of {what}")
    if (found := known_folder(root, known, besides=holds_json_only)) is not None:
        return found
    here = ", ".join(sorted(entry.name.lower() for entry in os.scandir(root) if entry.is_dir()))
    hint = f"name it with --{what} (looked for {', '.join(known)}), or a COCO file with --coco"
    raise SourceError(f"{root}: no folder of {what}; there is {here or 'no folder at all'}", hint=hint)


def named_path(root: str, given: str, exists: Callable[[str], bool], what: str) -> str:
    for path in (os.path.join(root, given), os.path.abspath(given)):
        if exists(path):
            return path
    kind = what.split()[1]
    raise SourceError(f"{given}: no such {kind}, neither here nor in {root}", hint=f"name {what}")


def known_folder(
    root: str, names: Sequence[str], besides: Callable[[str], bool] = lambda path: False
) -> str | None:
    """The first folder in `root` that has one of these names, in any case, leaving some out."""
    here = {entry.name.lower(): entry.path for entry in os.scandir(root) if entry.is_dir()}
    return next((here[name] for name in names if name in here and not besides(here[name])), None)


def holds_json_only(folder: str) -> bool:
    """Whether a folder holds .json but no picture and no folder, and so no masks."""
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if images.is_supported(entry.name) or entry.is_dir():
                return False
            found = found or entry.name.lower().endswith(".json")
    return found


def stem_of(path: str, folder: str) -> str:
    """The path of a file below a folder, `/`-separated, without its extension: files are paired by it."""
    return slashed(os.path.splitext(os.path.relpath(path, folder))[0])


def shown_below(path: str, root: str) -> str:
    """The path as seen from a folder; whole where no way leads there, as to another drive of Windows."""
    try:
        return os.path.relpath(path, root)
    except ValueError:
        return path


def without_suffix(stem: str) -> str:
    """The stem of the picture that a mask is called after."""
    return _SUFFIX.sub("", stem)


def slashed(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))  # a Mac writes é as two characters


def make_pairs(matched: Sequence[tuple[str, str, str]], group_by: str | None) -> tuple[tuple[Pair, ...], str]:
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
