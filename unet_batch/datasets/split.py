"""Split pairs into training and validation, by whole groups or by lists of names."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from unet_batch.datasets.dataset import Pair
from unet_batch.errors import UsageError


def split(pairs: Sequence[Pair], fraction: float) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Keep whole groups out of training, the same ones on every machine and after the dataset has grown.

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
    """Raise UsageError if a group lies in more than one part of the split."""
    for group, names in leaks(splits).items():
        raise UsageError(
            f"group {group!r} is in {' and '.join(names)}", hint="keep all pictures of a group in one part"
        )
