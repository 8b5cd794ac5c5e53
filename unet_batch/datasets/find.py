"""Find a dataset in a folder: which files belong together, what the masks hold, what must stay together.

| what               | is recognised by                                                                     |
|--------------------|--------------------------------------------------------------------------------------|
| folder of pictures | images, image, imgs, img, JPEGImages, photos, train                                  |
| folder of masks    | masks, mask, labels, annotations, SegmentationClass, train_masks                     |
| a pair             | the same path below both folders but for the extension, and for a suffix of the      |
|                    | mask's name: _mask _masks _label _labels _labelIds _gt _seg _segmentation _L (or -); |
|                    | or the picture's whole name, as a run has it: car.jpg.png                            |
| classes and void   | classes.toml beside the folders: `guess.py` says how to write it; else the values |
| COCO annotations   | the only .json whose name has the word annotations, instances or coco, in the folder |
|                    | itself, in annotations/ or among the pictures, if there is no folder of masks        |
| their pictures     | `file_name` below the folder of pictures, which may be the folder itself; else files |
|                    | whose paths end in `file_name`                                                       |
| a group            | what stands before the last _ or - of the names, else their folder; or a pattern     |

Every guess is a sentence in `Dataset.reasons`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from unet_batch.datasets import format_coco, format_masks
from unet_batch.datasets.dataset import Dataset
from unet_batch.errors import SourceError, UsageError

Find = Callable[[str, "str | None", "str | None", "str | None"], "Dataset | None"]
FORMATS: dict[str, Find] = {"coco": format_coco.find, "masks": format_masks.find}
"""The label formats in the order they are tried. A new one is a module `format_*.py` and a row here.

Each gives `find(root, labels, images, group_by)`: `labels` is what the option of the row's name says, or None
to look for labels of this format; the answer is None if there are none.
"""


def find_dataset(
    folder: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    coco: str | None = None,
    group_by: str | None = None,
    faulty: bool = False,
) -> Dataset:
    """Find pairs, and work out what the masks hold, by the rules at the top of this module.

    Args:
        folder: holds classes.toml, if any, and both folders unless they are named.
        images, masks: the two folders; relative names start at `folder`, if they exist there.
        coco: a file of COCO annotations in place of masks; named like the folders.
        group_by: a regular expression searched in each key; its group named `group`, or its first one, names
            the group.
        faulty: also give a dataset whose masks nobody understands (`Dataset.fault`), for `check` to say what
            else is wrong with it.

    Raises:
        SourceError: a folder is missing or holds no pictures, or no mask fits a picture.
        UsageError: classes.toml, the annotations or `group_by` are wrong, there are several files of
            annotations, or the values of the masks cannot be guessed; the last not if `faulty`.
        ImageError: not one of the masks can be read; not if `faulty`.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise SourceError(f"{folder}: no such folder", hint="name the folder that holds images and masks")
    named = {"coco": coco, "masks": masks}
    if coco is not None and masks is not None:
        raise UsageError(
            f"both masks ({masks}) and COCO annotations ({coco}) are named", hint="name one of them"
        )
    asked = [option for option in FORMATS if named[option] is not None]
    for option in asked or FORMATS:
        if (dataset := FORMATS[option](root, named[option], images, group_by)) is not None:
            if dataset.fault is not None and not faulty:
                raise dataset.fault
            return dataset
    raise AssertionError("the last format finds a dataset, or says why there is none")
