"""Label format: a folder of mask files beside the folder of images, paired by their names.

What the values in the files mean is found out in `encoding.py`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict

from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.guess import infer_encoding
from unet_batch.datasets.names import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    make_pairs,
    shown_below,
    slashed,
    stem_of,
    subfolder,
    without_suffix,
)
from unet_batch.errors import SourceError
from unet_batch.files.sources import collect
from unet_batch.media.images import is_supported


def find(root: str, masks: str | None, images: str | None, group_by: str | None) -> Dataset:
    """Find a dataset whose masks are files in a folder.

    Args:
        root: the folder of the dataset, absolute.
        masks, images: its two folders, if they are named.
        group_by: see `find_dataset`.

    Raises:
        SourceError, UsageError, ImageError: see `find_dataset`.
    """
    image_folder, mask_folder = (
        subfolder(root, images, IMAGE_FOLDERS, "images"),
        subfolder(root, masks, MASK_FOLDERS, "masks"),
    )
    if os.path.samefile(image_folder, mask_folder):
        raise SourceError(
            f"{image_folder}: images and masks in one folder cannot be told apart", hint="use two folders"
        )
    image_files, mask_files = (
        collect([name], is_picture=is_supported).items for name in (image_folder, mask_folder)
    )
    by_stem: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # (path, key) of the pictures
    by_name: dict[str, tuple[str, tuple[str, str]]] = {}  # their stems, and themselves
    for item in image_files:
        stem = stem_of(item.path, image_folder)
        by_stem[stem].append((item.path, item.key))
        for name in (slashed(item.key), stem + os.path.splitext(item.path)[1]):
            by_name[name] = stem, (item.path, item.key)
    found: defaultdict[str, list[str]] = defaultdict(list)
    lonely, suffixes = [], Counter[str]()
    for item in mask_files:
        stem = stem_of(item.path, mask_folder)
        called = (stem, without_suffix(stem))  # a picture may itself be called car_gt
        if known := [name for name in called if name in by_stem or name in by_name]:
            found[known[0]].append(item.path)
            suffixes[stem[len(known[0]) :]] += 1
        else:
            lonely.append(item.path)
    for name in [name for name in found if name not in by_stem]:  # as a run names masks, such as car.jpg
        stem, file = by_name[name]
        if stem in found or len(by_stem[stem]) == 1:
            found[stem] += found.pop(name)
        else:  # beside car.png, and nothing is called car alone
            by_stem[stem].remove(file)
            by_stem[name].append(file)
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
        f"images are in {shown_below(image_folder, root)}, masks in {shown_below(mask_folder, root)}",
        f"{len(matched):,} of {len(image_files):,} images have a mask of the same name, with {used}",
    )
    masks_hold = infer_encoding(os.path.join(root, "classes.toml"), sorted(mask for _, _, mask in matched))
    pairs, why_groups = make_pairs(matched, group_by)
    return Dataset(
        root=root,
        pairs=pairs,
        classes=masks_hold.classes,
        masks=masks_hold.encoding,
        reasons=(*reasons, masks_hold.why, why_groups),
        unmatched_images=tuple(sorted(unmatched)),
        unmatched_masks=tuple(sorted(lonely)),
        ambiguous=ambiguous,
        fault=masks_hold.fault,
    )
