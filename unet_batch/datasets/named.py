"""The pairs of some pictures only: of those that a person has marked, and wants to look at again."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unet_batch.datasets.check import Finding, Report, check
from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.errors import UsageError
from unet_batch.files.lists import read_list
from unet_batch.media import images

UNLABELLED = "named without a mask"
"""The kind of the finding that pictures were named of which the dataset has no mask."""


@dataclass(frozen=True)
class Named:
    """Pictures that lists name, in a dataset.

    Attributes:
        dataset: with no other pairs than theirs.
        missing: paths of those that have no pair.
    """

    dataset: Dataset
    missing: tuple[str, ...]


def choose_named(dataset: Dataset, lists: Sequence[str]) -> Named:
    """Choose the pairs of the pictures that lists name.

    A picture is known by its path, or by the end of its path where that is a whole key: `/photos/lot/a.jpg`
    is `lot/a.jpg` of a dataset into which copies were put (`labels --with-images`).

    Args:
        dataset: found.
        lists: files with one path a line, as `run @list` takes them, and the page of a report saves them.

    Raises:
        SourceError: a list cannot be read, or names nothing.
        UsageError: not one of the pictures has a mask in the dataset.
    """
    places: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in dataset.pairs:
        key = pair.key.partition("/")[2] if dataset.parts else pair.key
        for name in {_slashed(pair.image), _slashed(key + os.path.splitext(pair.image)[1])}:
            places[name].append(pair)
    names = dict.fromkeys(entry for each in lists for entry in read_list(each))
    chosen: set[Pair] = set()
    missing = []
    for name in names:
        found = _find(_slashed(name), places)
        chosen.update(found)
        missing += [] if found else [name]
    if not chosen:
        listed = " and ".join(map(os.path.basename, lists))
        raise UsageError(
            f"{listed}: not one of the {len(names):,} pictures named has a mask in {dataset.root}, such as "
            f"{missing[0]}",
            hint="name the dataset that holds them, such as what `labels OUT @list --with-images` wrote",
        )
    pairs = tuple(pair for pair in dataset.pairs if pair in chosen)
    only = replace(dataset, pairs=pairs, unmatched_images=(), unmatched_masks=(), ambiguous={})
    return Named(only, tuple(missing))


def check_named(
    named: Named,
    *,
    value_range: images.Range = images.AUTO,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Check these pairs as `check` does, but for what can be said of a whole dataset only."""
    report = check(named.dataset, is_whole=False, value_range=value_range, progress=progress)
    if not named.missing:
        return report
    total = len(named.missing) + len(named.dataset.pairs)
    finding = Finding(
        "warning",
        UNLABELLED,
        f"{len(named.missing):,} of {total:,} pictures named have no mask here",
        named.missing,
        "label them and put them in, or leave them out of the list",
    )
    errors = sum(each.severity == "error" for each in report.findings)
    return replace(report, findings=(*report.findings[:errors], finding, *report.findings[errors:]))


def _find(name: str, places: dict[str, list[Pair]]) -> list[Pair]:
    """The pairs of the longest end of a path that is known."""
    while name not in places and "/" in name:
        name = name.partition("/")[2]
    return places.get(name, [])


def _slashed(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))
