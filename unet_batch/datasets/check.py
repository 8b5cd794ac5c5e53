"""Check a dataset for what would spoil a training.

Every file is decoded once, on all cores, and of its pixels only digests and a copy of 9 x 8 are kept: memory
grows by about a kilobyte a pair. An error means that a training would be wrong and does not start, a warning
that it may be; a note only informs. `unet-batch train` asks `check`, too: there is no other rule for what can
be trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from unet_batch.datasets import duplicates
from unet_batch.datasets.dataset import Dataset, Pair, misfit
from unet_batch.datasets.duplicates import Fingerprint
from unet_batch.datasets.encoding import NO_PIXELS, SOFT, VOID
from unet_batch.datasets.names import shown_below
from unet_batch.datasets.split import choose_parts, leaks
from unet_batch.errors import ImageError, SplitError
from unet_batch.media import images, render

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Channels, Pixels, Size

_CHUNK = 1024  # pairs handed to the threads at a time
_RARE = 0.001
_NONE = Fingerprint(0, b"")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a person should know.

    Attributes:
        severity: "error" if a training would be wrong, "warning" if it may be, "note" otherwise.
        kind: a short name, the same for all findings of its kind.
        message: what was found, with numbers.
        files: one line for each case, beginning with a key or path.
        fix: what to do.
        keys: of the pairs concerned, for pictures of them.
    """

    severity: Literal["error", "warning", "note"]
    kind: str
    message: str
    files: tuple[str, ...]
    fix: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """How often a class occurs: its share of the pixels that are not void (0..1), and in how many masks."""

    name: str
    pixels: float
    images: int


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        findings: errors first.
        classes: the share of each class.
        void: share of all pixels that are void, 0..1.
        pairs: number of pairs that were decoded.
    """

    findings: tuple[Finding, ...]
    classes: tuple[Share, ...]
    void: float
    pairs: int

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would make a training wrong."""
        return all(finding.severity != "error" for finding in self.findings)


@dataclass(slots=True)
class _Facts:
    """What is kept of a pair; the fields from `size` on are set only where both files could be read."""

    pair: Pair
    problems: list[tuple[str, str]] = field(default_factory=list)  # kind and detail
    marked: bool = False
    size: Size = (0, 0)
    image: bytes = b""  # digests of the pixels
    mask: bytes = b""
    fingerprint: Fingerprint = _NONE
    remark: tuple[str, str] = ("", "")  # see `Mask`
    channels: Channels | None = None  # see `images.natural_channels`


def check(
    dataset: Dataset,
    *,
    splits: Mapping[str, Sequence[Pair]] | None = None,
    is_whole: bool = True,
    value_range: images.Range = images.AUTO,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Decode every pair and look for what would spoil a training.

    Args:
        dataset: what `find_dataset` found.
        splits: parts by name, such as `read_split` gives: a picture or group in two of them is an error. Of a
            single part, the other one is what it leaves. None for the parts that `unet-batch train` would
            choose by itself.
        is_whole: False where the pairs are some of a dataset: of classes and parts nothing is said then.
        value_range: which values of an image are black and white: in another range two images may look alike.
        progress: called with the number of pairs done, from this thread.
    """
    facts: list[_Facts] = []
    pixels, occurs = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for done, (fact, counts) in enumerate(_examine_all(dataset, value_range), 1):
        facts.append(fact)
        pixels += counts
        occurs += counts > 0
        if progress is not None:
            progress(done)
    sound = [fact for fact in facts if fact.size != (0, 0)]
    names = (
        dataset.classes.names if len(dataset.classes.names) > 1 else ("background", *dataset.classes.names)
    )
    total = max(1, int(pixels[: len(names)].sum()))
    classes = tuple(Share(name, int(pixels[id]) / total, int(occurs[id])) for id, name in enumerate(names))
    parts, findings = _parts(dataset, splits) if is_whole else ({}, [])
    findings += [*_names(dataset), *_files(dataset, facts)]
    findings += _copies(sound, parts, by_group=splits is None)
    if is_whole and any(not fact.problems or fact.problems[0][0] in _SOUND for fact in sound):
        balance = list(_balance(classes))
        findings += balance
        if not any(finding.severity == "error" for finding in balance):
            findings += _unmarked(facts, parts, dataset.classes.names)
    findings += [*_sizes(sound), *_channels(sound, dataset.channels)]
    for group, where in sorted(leaks(parts).items()):
        keys = tuple(fact.pair.key for fact in facts if fact.pair.group == group)
        what = (
            f"group {group!r} is in {' and '.join(where)}: the score would be that of pictures known from "
            f"training"
        )
        findings.append(
            Finding("error", "leakage", what, keys, "keep all pictures of a group in one part", keys)
        )
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    return Report(tuple(findings), classes, int(pixels[VOID]) / max(1, int(pixels.sum())), len(facts))


def _parts(
    dataset: Dataset, splits: Mapping[str, Sequence[Pair]] | None
) -> tuple[dict[str, Sequence[Pair]], list[Finding]]:
    """What trains and what validates, and why there is no such thing."""
    if not splits:
        try:
            return dict(choose_parts(dataset.pairs)[0]), []
        except SplitError as error:
            return {}, [Finding("error", NO_SPLIT, error.message, (), error.hint)]
    if len(splits) > 1:
        return dict(splits), []
    ((name, chosen),) = splits.items()
    left = tuple(pair for pair in dataset.pairs if pair not in set(chosen))
    if left:
        return {name: chosen, "the others": left}, []
    what = f"{name} names all {len(chosen):,} images: none is left for another part"
    return dict(splits), [Finding("error", NO_SPLIT, what, (), "name fewer in the list")]


# One pair ---------------------------------------------------------------------------------------------------


def _examine_all(dataset: Dataset, value_range: images.Range) -> Iterator[tuple[_Facts, NDArray[np.int64]]]:
    """Examine every pair on all cores; yields facts and pixels by id, int64 (256,), in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(dataset.pairs), _CHUNK):  # `map` would queue 100,000 results at once
            chunk = dataset.pairs[start : start + _CHUNK]
            yield from pool.map(lambda pair: _examine(dataset, pair, value_range), chunk)


def _examine(dataset: Dataset, pair: Pair, value_range: images.Range) -> tuple[_Facts, NDArray[np.int64]]:
    fact, nothing = _Facts(pair), np.zeros(256, np.int64)
    picture = mask = None
    try:
        fact.channels = images.natural_channels(pair.image)
        picture = dataset.read_picture(pair, value_range=value_range).pixels
    except ImageError as error:
        fact.problems.append(("unreadable image", error.message.removeprefix(f"{pair.image}: ")))
    try:
        mask = dataset.masks.decode(pair.mask)
    except ImageError as error:
        fact.problems.append(("unreadable mask", error.message.removeprefix(f"{pair.mask}: ")))
    if mask is not None and mask.unexpected:
        fact.problems.append(("unexpected mask values", mask.unexpected))
    if picture is None or mask is None:
        return fact, nothing
    ids, size = mask.ids, (picture.shape[0], picture.shape[1])
    if ids.shape != size:
        fact.problems.append(("size mismatch", misfit(size, ids.shape, pair.image)))
        return fact, nothing
    counts = np.bincount(ids.ravel(), minlength=256)
    fact.remark = mask.remark
    fact.marked = bool(counts[1 if len(dataset.classes.names) == 1 else 0 : VOID].any())
    if not mask.unexpected:
        if not fact.marked:
            what = "nothing but void" if counts[VOID] == ids.size else "nothing but background"
            if mask.levels is not None and counts[0]:
                highest = mask.levels[ids == 0].max()
                what = f"nothing reaches half, the highest probability is {highest / 255:.2f}"
            fact.problems.append(("empty masks", what))
        elif _same_regions(render.visible(picture), ids if mask.levels is None else mask.levels):
            what = "as many colours as its mask has values, in the same places"
            fact.problems.append(("images that are masks", what))
    fact.size = size
    fact.image, fact.mask = _digest(picture), _digest(ids)
    fact.fingerprint = duplicates.fingerprint(render.visible(picture))
    return fact, counts


def _digest(pixels: Pixels) -> bytes:
    """16 bytes that tell these pixels, and their shape, from all others."""
    return hashlib.sha256(repr(pixels.shape).encode() + b"\0" + np.ascontiguousarray(pixels).data).digest()[
        :16
    ]


def _same_regions(picture: Pixels, ids: Pixels) -> bool:
    """Whether the picture shows the regions of ids, or levels, in flat colours: then it is a mask itself."""
    step = max(1, max(ids.shape) // 256)
    colour = picture[::step, ::step].reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    region = ids[::step, ::step].ravel()
    count = len(np.unique(region))
    return 1 < count == len(np.unique(colour)) == len(np.unique(colour * 256 + region))


# All of them ------------------------------------------------------------------------------------------------

_KINDS: dict[str, tuple[Literal["error", "warning"], str, str]] = {
    "unreadable image": ("error", "cannot be decoded", "restore the file, or take the pair out"),
    "unreadable mask": (
        "error",
        "cannot be decoded",
        "save the mask again as an 8-bit grey PNG, or correct the annotation that is named",
    ),
    "size mismatch": (
        "error",
        "not as large as the image, upright",
        "export masks from the picture as it is seen (EXIF applied), at its full size",
    ),
    "unexpected mask values": (
        "error",
        "values that stand for no class",
        "name every value in classes.toml (or as void), or correct the masks",
    ),
    "images that are masks": (
        "error",
        "the image shows the regions of its mask and no more",
        "put the photo in its place",
    ),
    "empty masks": (
        "warning",
        "nothing is marked",
        "fine if there is nothing to find; else draw them again, or take them out",
    ),
}
_SOUND = ("images that are masks", "empty masks")  # of these, the mask says what its maker meant
NO_SPLIT = "no split"
"""The kind of the finding that a dataset cannot be parted into training and validation."""
_REMARKS = {
    SOFT: (
        "edges in between 0 and 255, counted as foreground from half on",
        "save masks as PNG, without anti-aliasing, for exact edges; "
        'or train on the levels: values = "probability" in classes.toml',
    ),
    NO_PIXELS: (
        "objects that cover not one pixel: too thin, or outside the image",
        "fine if they are specks; else draw them again",
    ),
}


def _files(dataset: Dataset, facts: Sequence[_Facts]) -> Iterator[Finding]:
    """What is wrong with single files."""
    twice = [
        {name for name, count in Counter(map(os.path.basename, paths)).items() if count > 1}
        for paths in ([pair.image for pair in dataset.pairs], [pair.mask for pair in dataset.pairs])
    ]

    def name(pair: Pair, kind: str) -> str:
        of_mask = "mask" in kind and not kind.startswith("images")
        path = pair.mask if of_mask else pair.image
        base = os.path.basename(path)
        return shown_below(path, dataset.root) if base in twice[of_mask] else base

    cases: defaultdict[str, list[tuple[Pair, str]]] = defaultdict(list)
    for fact in facts:
        for kind, detail in fact.problems:
            cases[kind].append((fact.pair, detail))
    for kind, (severity, what, fix) in _KINDS.items():
        if found := cases.get(kind):
            lines = tuple(f"{name(pair, kind)}: {detail}" for pair, detail in found)
            keys = tuple(pair.key for pair, _ in found)
            yield Finding(severity, kind, f"{_pairs(len(found))}: {what}", lines, fix, keys)
    for kind, (what, fix) in _REMARKS.items():
        if noted := [fact for fact in facts if fact.remark[0] == kind]:
            lines = tuple(f"{name(fact.pair, 'mask')}: {fact.remark[1]}" for fact in noted)
            keys = tuple(fact.pair.key for fact in noted)
            yield Finding("warning", kind, f"{_pairs(len(noted))}: {what}", lines, fix, keys)


def _channels(facts: Sequence[_Facts], taken: Channels | None) -> Iterator[Finding]:
    """Pictures with other bands than most, where that decides what a network is given."""
    most = Counter(fact.channels for fact in facts).most_common()
    if len(most) < 2 or (taken is not None and taken != most[0][0]):  # somebody has chosen
        return
    others = [fact for fact in facts if fact.channels != most[0][0]]
    lines = tuple(f"{fact.pair.key}: {_describe_channels(fact.channels)}" for fact in others)
    what = f"{_pairs(len(others))}: not {_describe_channels(most[0][0])}, as the {_pairs(most[0][1])} else"
    fix = "take them out; or name the bands that all have with --channels, such as 1,2,3"
    # As a person sees them, all of them have three; of others, one with more has channels nobody knows
    severity: Literal["error", "warning"] = "warning" if taken is None else "error"
    yield Finding(severity, "channels differ", what, lines, fix, tuple(fact.pair.key for fact in others))


def _describe_channels(channels: Channels | None) -> str:
    return "grey or colour" if channels is None else f"{len(channels)} bands"


def _names(dataset: Dataset) -> Iterator[Finding]:
    """What has no partner, or too many."""

    def shown(path: str) -> str:
        return shown_below(path, dataset.root)

    if dataset.ambiguous:
        lines = tuple(
            f"{shown(image)}: {', '.join(map(shown, others))}" for image, others in dataset.ambiguous.items()
        )
        count = len(dataset.ambiguous)
        names = f"{count:,} name{'s' * (count > 1)}"
        what = f"{names}: several files for one image and one mask, none of them is used"
        yield Finding("warning", "ambiguous match", what, lines, "keep one image and one mask of each name")
    for kind, files, what, fix in (
        (
            "missing mask",
            dataset.unmatched_images,
            "without a mask, left out",
            "add the masks, or ignore this",
        ),
        (
            "extra mask",
            dataset.unmatched_masks,
            "without an image, left out",
            "add the images, or ignore this",
        ),
    ):
        if files:
            meant = kind == "missing mask" and dataset.masks.lists_images
            many = len(files) > len(dataset.pairs) and not meant
            more = f": more than the {_pairs(len(dataset.pairs))} that are left, which is seldom meant"
            message = f"{len(files):,} {what}{more if many else ''}"
            yield Finding("warning", kind, message, tuple(map(shown, files)), fix)


def _copies(
    facts: Sequence[_Facts], parts: Mapping[str, Sequence[Pair]], *, by_group: bool
) -> Iterator[Finding]:
    """The same picture twice, or nearly so; `by_group` if the parts may yet be others."""
    part = {pair.key: name for name, pairs in parts.items() for pair in pairs}
    same: defaultdict[bytes, list[_Facts]] = defaultdict(list)
    for fact in facts:
        same[fact.image].append(fact)
    twins = [copies for copies in same.values() if len(copies) > 1]

    def across(copies: Sequence[_Facts]) -> bool:
        return len({part[fact.pair.key] for fact in copies if fact.pair.key in part}) > 1

    def contradict(copies: Sequence[_Facts]) -> bool:
        return len({fact.mask for fact in copies}) > 1

    distinct = list({fact.image: fact for fact in facts if by_group or fact.pair.key in part}.values())
    clusters = duplicates.near_duplicates(
        [fact.fingerprint for fact in distinct],
        [fact.pair.group if by_group else part[fact.pair.key] for fact in distinct],
    )
    near = [[distinct[index] for index in cluster] for cluster in clusters]
    harmless = [copies for copies in twins if not across(copies) and not contradict(copies)]
    apart = "but in different groups, which a split may part" if by_group else "in different parts"
    cases: tuple[tuple[Literal["error", "warning"], str, str, list[list[_Facts]], str], ...] = (
        (
            "error",
            "different masks for one image",
            "the same pixels with different masks",
            list(filter(contradict, twins)),
            "keep the right mask",
        ),
        (
            "error",
            "duplicates across splits",
            f"the same pixels in {' and '.join(parts)}",
            list(filter(across, twins)),
            "keep one of each",
        ),
        ("warning", "duplicates", "the same pixels", harmless, "keep one of each"),
        (
            "warning",
            "near duplicates",
            f"hardly different, {apart}",
            near,
            "put them into one group (--group-by), or keep one",
        ),
    )
    for severity, kind, what, found, fix in cases:
        if found:
            keys = [[fact.pair.key for fact in copies] for copies in found]
            lines = tuple(" = ".join(k[:4]) + (f" and {len(k) - 4} more" if len(k) > 4 else "") for k in keys)
            message = f"{len(found):,} set{'s' * (len(found) > 1)} of {sum(map(len, keys)):,} images: {what}"
            yield Finding(severity, kind, message, lines, fix, tuple(itertools.chain(*keys)))


def _balance(classes: Sequence[Share]) -> Iterator[Finding]:
    """Classes that are missing or rare."""
    if sum(share.images > 0 for share in classes) < 2:
        yield Finding(
            "error",
            "nothing to learn",
            "all masks together hold one class only",
            (),
            "mark something in the masks",
        )
    absent = tuple(share.name for share in classes if not share.images)
    rare = tuple(
        f"{s.name}: {s.pixels:.3%} of the pixels, in {s.images:,} masks"
        for s in classes
        if 0 < s.pixels < _RARE
    )
    if absent:
        fix = "leave them out of the list of classes, or add pictures that show them"
        yield Finding(
            "warning", "classes that never occur", f"{len(absent)} of {len(classes)} classes", absent, fix
        )
    if rare:
        fix = "add pictures that show them, or expect little of these classes"
        yield Finding(
            "warning",
            "rare classes",
            f"{len(rare)} of {len(classes)} classes: under 0.1 % of the pixels",
            rare,
            fix,
        )


def _unmarked(
    facts: Sequence[_Facts], parts: Mapping[str, Sequence[Pair]], names: Sequence[str]
) -> Iterator[Finding]:
    """Parts of which no mask holds a class."""
    by_key = {fact.pair.key: fact for fact in facts}
    for part, pairs in parts.items():
        found = [by_key[pair.key] for pair in pairs]
        if all(fact.size != (0, 0) and not fact.marked for fact in found):
            use = {"training": "learnt from", "validation": "judged by"}.get(part, "learnt from or judged by")
            what = f"not one {part} mask holds {' or '.join(names)}: nothing could be {use} them"
            keys = tuple(fact.pair.key for fact in found)
            fix = "put images that show it into each part (--train-list, --val-list)"
            yield Finding("error", "nothing marked in a part", what, keys, fix, keys)


def _sizes(facts: Sequence[_Facts]) -> Iterator[Finding]:
    sizes = Counter(fact.size for fact in facts)
    if len(sizes) > 1:
        lines = tuple(f"{height}x{width}: {count:,}" for (height, width), count in sizes.most_common())
        ratios = sorted(width / height for height, width in sizes)
        shape = f"{ratios[0]:.2f} to {ratios[-1]:.2f} times as wide as high"
        what = f"{len(sizes):,} sizes (height x width), {shape}"
        yield Finding(
            "note", "mixed sizes", what, lines, "nothing to do: pictures keep their shape, and are padded"
        )


def _pairs(count: int) -> str:
    return f"{count:,} pair{'s' * (count != 1)}"
