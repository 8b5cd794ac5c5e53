"""Find predicted masks for the true ones: which belong together, and what their values mean.

A prediction is called like its picture, or like the picture's key, with a suffix that masks may have; where
that is the only one, its folder does not matter. Its values are those of the dataset's own masks, else 0 and
1, 0 and 255, or probabilities for one class, and ids 0, 1, ... for several. Probabilities go from 0 to the
highest value of their type, 255, 65535 or 1.0, and count as the class from half on.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.encoding import VOID, Encoding
from unet_batch.datasets.guess import infer_encoding
from unet_batch.datasets.look import look_at
from unet_batch.datasets.names import make_pairs, stem_of, without_suffix
from unet_batch.errors import ImageError, SourceError
from unet_batch.files.outputs import KINDS
from unet_batch.files.sources import collect
from unet_batch.media import images

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

_SAMPLE = 64  # predictions that a guess rests on
_RUN = "run.json"  # `unet-batch run` leaves it beside its folders


@dataclass(frozen=True)
class Predictions:
    """A prediction for each of some pairs.

    Attributes:
        folder: where they are, absolute.
        files: by the pair's key.
        encoding: how they spell ids; never void.
        reasons: a sentence for everything that was guessed.
    """

    folder: str
    files: Mapping[str, str]
    encoding: Encoding
    reasons: tuple[str, ...]

    def read(self, pair: Pair, size: Size | None = None) -> Pixels:
        """Read the ids predicted for a pair, uint8 (H, W); `size` is the true mask's, None accepts any.

        Raises:
            ImageError: the prediction cannot be read, is of another size, or holds values without a meaning.
        """
        path = self.files[pair.key]
        mask = self.encoding.decode(path)
        if mask.unexpected:
            raise ImageError(
                f"{path}: {mask.unexpected}",
                hint="predictions hold 0 and 255 for one class, ids for several, or probabilities of one "
                "class: 0 to the highest value of their type",
            )
        if size is not None and mask.ids.shape != size:
            height, width = mask.ids.shape
            why = f"the prediction is {height}x{width}, the mask {size[0]}x{size[1]} (height x width)"
            raise ImageError(f"{path}: {why}", hint="predict masks as large as each picture, upright")
        return mask.ids


def find_predictions(dataset: Dataset, pairs: Sequence[Pair], folder: str) -> Predictions:
    """Find a prediction for every pair.

    Args:
        dataset: says which classes there are, and how its own masks spell them.
        pairs: those that need a prediction.
        folder: holds mask files; or an output folder of `unet-batch run`, whose masks are taken.

    Raises:
        SourceError: there is no such folder, it holds no pictures, or a pair has no prediction or several.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise SourceError(f"{folder}: no such folder", hint="name the folder that holds the predicted masks")
    reasons = []
    if os.path.isfile(os.path.join(root, _RUN)):
        root = os.path.join(root, KINDS["mask"].folder)
        if not os.path.isdir(root):
            raise SourceError(f"{folder}: a run's output without masks", hint="run again with --save mask")
        reasons.append(f"predictions are the masks of a run, in {KINDS['mask'].folder}")
    paths = [item.path for item in collect([root], is_picture=images.is_supported).items]
    files = _match(pairs, paths, root)
    others = "; the others belong to no picture" if len(paths) > len(files) else ""
    reasons.append(f"{len(files):,} of {len(paths):,} predictions are used{others}")
    ours = os.path.isfile(os.path.join(os.path.dirname(root), _RUN))
    encoding, why = _choose_encoding(dataset, [files[pair.key] for pair in pairs], ours)
    reasons.append(why)
    return Predictions(root, files, encoding, tuple(reasons))


def is_mask_folder(folder: str) -> bool:
    """Whether a folder holds pictures and no folders, so that it can be one of masks without photos."""
    if not os.path.isdir(folder):
        return False
    with os.scandir(folder) as entries:
        here = [(entry.is_dir(), entry.name) for entry in entries if not entry.name.startswith(".")]
    # Annotations are of pictures
    if any(is_folder or name.lower().endswith(".json") for is_folder, name in here):
        return False
    return any(images.is_supported(name) for _, name in here)


def find_masks(folder: str, *, group_by: str | None = None) -> Dataset:
    """Find a dataset of masks alone: each pair's picture is the mask itself.

    Args:
        folder: holds the masks, and classes.toml, if any.
        group_by: see `find_dataset`.

    Raises:
        SourceError, UsageError, ImageError: see `find_dataset`.
    """
    root = os.path.abspath(folder)
    paths = [item.path for item in collect([root], is_picture=images.is_supported).items]
    stems = [stem_of(path, root) for path in paths]
    short = [without_suffix(stem) for stem in stems]
    keys = short if len(set(short)) == len(short) else stems
    twice, times = max(Counter(keys).items(), key=itemgetter(1), default=("", 0))
    if times > 1:
        files = " and ".join(
            os.path.relpath(path, root) for path, key in zip(paths, keys, strict=True) if key == twice
        )
        raise SourceError(f"{root}: {files} are {times} masks of one name", hint="keep one of them")
    found = infer_encoding(os.path.join(root, "classes.toml"), sorted(paths))
    if found.fault is not None:
        raise found.fault
    pairs, why_groups = make_pairs(list(zip(paths, keys, paths, strict=True)), group_by)
    return Dataset(
        root=root,
        pairs=pairs,
        classes=found.classes,
        masks=found.encoding,
        reasons=(f"{len(paths):,} masks, no pictures", found.why, why_groups),
    )


def _match(pairs: Sequence[Pair], paths: Sequence[str], root: str) -> dict[str, str]:
    """Match each pair with its prediction, by key."""
    tables: list[defaultdict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
    for path in paths:
        stem = stem_of(path, root)
        base = posixpath.basename(stem)
        for table, name in zip(tables, (stem, without_suffix(stem), base, without_suffix(base)), strict=True):
            table[name].append(path)

    def fits(pair: Pair) -> Iterator[list[str]]:
        base = unicodedata.normalize("NFC", os.path.splitext(os.path.basename(pair.image))[0])
        key = unicodedata.normalize("NFC", pair.key)
        for table, name in zip((*tables[:2], *tables), (key, key, base, base, base, base), strict=True):
            yield table.get(name, [])

    found = {pair.key: next(filter(None, fits(pair)), []) for pair in pairs}
    if missing := [key for key, files in found.items() if not files]:
        shown = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        why = f"no prediction for {len(missing):,} of {len(pairs):,} pictures: {shown}"
        raise SourceError(
            f"{root}: {why}", hint="a prediction is called like its picture; --split judges a part of them"
        )
    users: defaultdict[str, list[str]] = defaultdict(list)
    for key, files in found.items():
        users[files[0]].append(key)
        if len(files) > 1:
            several = ", ".join(os.path.relpath(path, root) for path in files[:4])
            raise SourceError(f"{root}: several predictions for {key}: {several}", hint="keep one of them")
    if shared := [(path, keys) for path, keys in users.items() if len(keys) > 1]:
        path, keys = shared[0]
        why = f"{os.path.relpath(path, root)} fits {' and '.join(keys[:4])}"
        raise SourceError(f"{root}: {why}", hint="put predictions into the same folders as the pictures")
    return {key: files[0] for key, files in found.items()}


def _choose_encoding(dataset: Dataset, files: Sequence[str], ours: bool) -> tuple[Encoding, str]:
    """Choose what the values of predictions mean, and why: the first encoding that fits most of a sample."""
    sample = look_at(files, _SAMPLE)
    by_look = sample.shows_black_and_white
    ways: list[tuple[Encoding, str]] = []
    # As the true masks, but for void, which nobody can predict; any number would be a probability
    if isinstance(dataset.masks, Encoding) and not ours and dataset.masks.between != "probability":
        known = {value: id for value, id in dataset.masks.table.items() if id != VOID}
        same = replace(dataset.masks, table=known, by_look=by_look)
        ways.append((same, "the values of the dataset's own masks"))
    if len(dataset.classes.names) == 1:
        ways.append((Encoding("grey", {0: 0, 1: 1}, by_look=by_look), "0 and 1"))
        high = max((file.full for file in sample.files if file.kind == "grey"), default=255)
        ways.append((Encoding("grey", {0: 0, 255: 1}, "edges"), f"0 and {max(high, 255):,}"))
        if ours or sample.holds_probabilities:
            why = f"probabilities from 0 to {high:,}, counted as the class from half on"
            ways.append((Encoding("grey", {}, "probability"), why))
    else:
        ids = len(dataset.classes.names)
        ways.append((Encoding("grey", {id: id for id in range(ids)}), f"ids from 0 to {ids - 1}"))
    paths = files[:: -(-len(files) // _SAMPLE)]

    def wrong(way: Encoding, path: str) -> bool:
        try:
            return bool(way.decode(path).unexpected)
        except ImageError:
            return True

    misfits = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for way, _ in ways:
            misfits.append(sum(pool.map(wrong, [way] * len(paths), paths)))
            if not misfits[-1]:
                break
    best = misfits.index(min(misfits))
    way, what = ways[best]
    ranges = {file.full for file in sample.files if file.kind == "grey" and max(file.values, default=0) > 255}
    ranges |= {file.full for file in sample.files if any(value != int(value) for value in file.values)}
    if way.between == "edges" and ranges:
        what += f", as levels from 0 to {' or '.join(f'{full:,}' for full in sorted(ranges))}, cut at half"
    fit = f"{len(paths) - misfits[best]:,} of {len(paths):,} looked at fit"
    return way, f"predictions hold {what} ({fit}){sample.remarks(way.by_look)}"
