"""Label format: COCO annotations in one JSON file, paired with the images by their `file_name`.

What is in the file becomes masks in `coco.py`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from unet_batch.datasets.coco import Coco, load
from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.names import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    holds_json_only,
    known_folder,
    make_pairs,
    named_path,
    shown_below,
    slashed,
    subfolder,
)
from unet_batch.errors import SourceError, UsageError
from unet_batch.files.sources import collect
from unet_batch.media.images import is_supported

if TYPE_CHECKING:
    from unet_batch.types import Item

_NAME = re.compile(r"(.*[_.-])?(annotations?|instances|coco)([_.-].*)?\.json", re.IGNORECASE)


def find(root: str, labels: str | None, images: str | None, group_by: str | None) -> Dataset | None:
    """Find a dataset whose masks are COCO annotations.

    Args:
        root: the folder of the dataset, absolute.
        labels: the file of annotations; None for the only one there is, unless there is a folder of masks.
        images: the folder of images, if it is named.
        group_by: see `find_dataset`.

    Returns:
        The dataset; None if no file is named, and none is found.

    Raises:
        SourceError, UsageError: see `find_dataset`.
    """
    if labels is not None:
        file = named_path(root, labels, os.path.isfile, "the file of annotations")
        return _pair(root, file, "", images, group_by)
    if known_folder(root, MASK_FOLDERS, besides=holds_json_only) is None and (
        only := _only_file(root, images)
    ):
        return _pair(root, only, ": no folder of masks, and no other COCO file", images, group_by)
    return None


def _pair(root: str, file: str, why: str, images: str | None, group_by: str | None) -> Dataset:
    """Pair the images of a file of annotations with those in a folder."""
    coco = load(file)
    if images is not None:
        folders = [subfolder(root, images, IMAGE_FOLDERS, "images")]
    else:
        folders = [folder for folder in (known_folder(root, IMAGE_FOLDERS), root) if folder is not None]
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
        f"annotations are in {shown_below(file, root)}{why}; images are in {shown_below(found.folder, root)}",
        f"{len(matched):,} of {len(coco.entries):,} images in the file are there"
        + (f", {found.deeper:,} in folders that file_name does not name" if found.deeper else "")
        + (f"; {bare:,} without annotations are all background" if bare else ""),
        *coco.reasons,
    ]
    if os.path.exists(os.path.join(root, "classes.toml")):
        reasons.append("classes.toml is not used: the file of annotations names the classes")
    pairs, why_groups = make_pairs(matched, group_by)
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
    """Which pictures of a folder each mask may belong to, and which masks have none.

    `deeper` counts the masks that were found by the end of their path.
    """

    folder: str
    items: Sequence[Item]
    claims: dict[str, list[Item]]
    deeper: int
    missing: list[str]


def _claims(coco: Coco, folder: str) -> _Claims:
    items = collect([folder], is_picture=is_supported).items
    exact = {slashed(os.path.relpath(item.path, folder)): item for item in items}
    by_name: defaultdict[str, list[tuple[str, Item]]] = defaultdict(list)
    for item in items:
        path = slashed(item.path)
        by_name[posixpath.basename(path)].append((path, item))
    names = {
        mask: posixpath.normpath(slashed(entry.file_name.replace("\\", "/")))
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


def _only_file(root: str, images: str | None) -> str | None:
    """The file of COCO annotations, by its name, if there is one.

    Raises:
        UsageError: there are several.
    """
    places = [
        root,
        known_folder(root, ("annotations",)),
        known_folder(root, IMAGE_FOLDERS) if images is None else os.path.join(root, images),
    ]
    found: dict[str, None] = {}
    for place in places:
        if place is not None and os.path.isdir(place):
            found.update(
                (os.path.join(place, name), None)
                for name in sorted(os.listdir(place))
                if _NAME.fullmatch(name)
            )
    if len(found) > 1:
        names = [shown_below(path, root) for path in found]
        shown = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
        raise UsageError(
            f"{root}: {len(names):,} files may hold COCO annotations, {shown}",
            hint="name one of them with --coco",
        )
    return next(iter(found), None)
