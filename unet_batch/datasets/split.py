"""Split pairs into training and validation, by whole groups or by lists of names."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from unet_batch.datasets.dataset import Pair
from unet_batch.errors import SplitError, UsageError


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
        SplitError: there is a single group.
        UsageError: the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"a fraction of {fraction} cannot be kept out: above 0 and below 1 expected")
    sizes = Counter(pair.group for pair in pairs)
    if len(sizes) < 2:
        hint = "choose another --group-by, or name the pictures of each part in a list"
        if len(pairs) < 2:
            hint = "at least two images with masks are needed: one to train on, one to validate"
        raise SplitError(f"{len(sizes)} group cannot be on both sides of a split", hint=hint)

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


def choose_parts(
    pairs: Sequence[Pair],
    *,
    train_list: str | None = None,
    val_list: str | None = None,
    fraction: float = 0.2,
) -> tuple[dict[str, tuple[Pair, ...]], str]:
    """Choose what trains and what validates, by lists of names where there are any, else by `split`.

    Args:
        pairs: of the dataset.
        train_list, val_list: files for `read_split`; a part without a list is what the other one leaves.
        fraction: see `split`.

    Returns:
        Both parts, in the order of the pairs, called "training" and "validation"; and why they are as they
        are.

    Raises:
        SplitError: a part would be empty, or a group in both.
        UsageError: a list cannot be read, or the fraction is out of range.
    """
    if train_list or val_list:
        listed = [set(read_split(file, pairs)) if file else None for file in (train_list, val_list)]
        named = set().union(*filter(None, listed))
        train, val = (
            tuple(pair for pair in pairs if (pair in chosen if chosen is not None else pair not in named))
            for chosen in listed
        )
        why = "by list"
    else:
        # Not by the seed of a training: a second one that starts from the first must not validate on what
        # that one has seen.
        train, val = split(pairs, fraction)
        why = f"by a hash of the group, about {fraction:.0%} for validation"
    if not train or not val:
        empty = "training" if not train else "validation"
        raise SplitError(
            f"no picture is left for {empty}: {len(pairs):,} in all", hint="name fewer in the other list"
        )
    parts = {"training": train, "validation": val}
    require_apart(parts)
    groups = [len({pair.group for pair in part}) for part in (train, val)]
    return parts, (
        f"{len(train):,} pictures of {groups[0]:,} groups train, "
        f"{len(val):,} of {groups[1]:,} validate ({why})"
    )


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
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        fits = names.get(line) or names.get(line.rpartition("/")[2], {})
        if len(fits) != 1:
            what = f"fits {len(fits)} images" if fits else "fits no image that has a mask"
            wrong.append(f"line {number}: {line!r} {what}")
            continue
        chosen.update(fits)
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5:,} more lines" if len(wrong) > 5 else "")
        raise UsageError(f"{file}, {shown}", hint="write a key, such as " + pairs[0].key if pairs else "")
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
    """Raise SplitError if a group lies in more than one part of the split."""
    if found := list(leaks(splits).items()):
        group, names = found[0]
        more = f", and so are {len(found) - 1:,} more" if len(found) > 1 else ""
        raise SplitError(
            f"group {group!r} is in {' and '.join(names)}{more}",
            hint="keep all pictures of a group in one part",
        )
