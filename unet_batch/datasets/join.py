"""Join several datasets of the same classes into one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.encoding import Mask, Masks
from unet_batch.errors import UsageError


@dataclass(frozen=True, eq=False)
class JoinedMasks:
    """Masks of several datasets, each read as its own says.

    Attributes:
        readers: by the path of the mask.
        table: id by dataset and stored value, for what a training must find unchanged.
    """

    lists_images: ClassVar[bool] = False

    readers: Mapping[str, Masks]
    table: Mapping[str, int]

    @property
    def void(self) -> bool:
        """Whether masks may hold pixels of no class."""
        return any(masks.void for masks in {id(masks): masks for masks in self.readers.values()}.values())

    def decode(self, mask: str) -> Mask:
        """Read a mask as its dataset does; see `Masks.decode`."""
        return self.readers[mask].decode(mask)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Join datasets; a single one is left as it is.

    Keys begin with the name of their dataset's folder. Groups keep their names, so that a split by groups
    keeps out of training what it kept out of each dataset alone, but where there are few of them (`split`).

    Raises:
        UsageError: they have other classes, or a file is in two of them.
    """
    if len(datasets) == 1:
        return datasets[0]
    # What a faulty one holds nobody knows, its classes neither: that is said first.
    sound = [dataset for dataset in datasets if dataset.fault is None] or datasets[:1]
    first = sound[0]
    for other in sound[1:]:
        if other.classes.names != first.classes.names:
            raise UsageError(
                f"{other.root}: its classes are {', '.join(other.classes.names)}, those of {first.root} are "
                f"{', '.join(first.classes.names)}",
                hint="name them alike, and in the same order, in the classes.toml of each",
            )
    names = _distinct([os.path.basename(dataset.root) for dataset in datasets])
    pairs = tuple(
        replace(pair, key=f"{name}/{pair.key}")
        for name, dataset in zip(names, datasets, strict=True)
        for pair in dataset.pairs
    )
    readers: dict[str, Masks] = {}
    for dataset in datasets:
        for pair in dataset.pairs:
            if pair.mask in readers:
                raise UsageError(f"{pair.mask}: is in two of the datasets", hint="name each dataset once")
            readers[pair.mask] = dataset.masks
    table = {
        f"{name}/{value}": id
        for name, dataset in zip(names, datasets, strict=True)
        for value, id in sorted(getattr(dataset.masks, "table", {}).items())
    }
    return Dataset(
        root=_common([dataset.root for dataset in datasets]),
        pairs=pairs,
        classes=first.classes,
        masks=JoinedMasks(readers, table),
        reasons=tuple(
            f"{name}: {reason}"
            for name, dataset in zip(names, datasets, strict=True)
            for reason in dataset.reasons
        ),
        unmatched_images=tuple(file for dataset in datasets for file in dataset.unmatched_images),
        unmatched_masks=tuple(file for dataset in datasets for file in dataset.unmatched_masks),
        ambiguous={key: files for dataset in datasets for key, files in dataset.ambiguous.items()},
        parts=tuple(names),
        fault=next((dataset.fault for dataset in datasets if dataset.fault is not None), None),
    )


def _common(folders: Sequence[str]) -> str:
    """The folder that holds all of them; the first one where none does, as on two drives of Windows."""
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return folders[0]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, with a number behind those that others have too: `cars`, `cars-2`."""
    found: list[str] = []
    for name in names:
        number, distinct = 2, name
        while distinct in found:
            distinct, number = f"{name}-{number}", number + 1
        found.append(distinct)
    return found
