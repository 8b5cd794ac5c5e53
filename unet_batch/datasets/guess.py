"""Find out what the values of masks mean, from classes.toml or from the values themselves.

classes.toml lies beside the folders of images and masks. `id` (the class's place in the file, unless given)
and `color` are what masks hold; which of the two, the masks show.

    void = 255                  # ignored in training; also [254, 255], or colours such as [[0, 0, 0]]
    values = "probability"      # only if that is what the masks of one class hold; else leave it out
    [[class]]
    name = "road"
    color = [128, 64, 128]
    id = 3

One class alone is the foreground: 1 or 255 in the masks unless it has an id or a color, and 0 (black) is the
background. Of a palette mask the index counts, and its colour only where classes.toml gives no id, and all
masks show the colours that it names and no more; or black and white and no more: then white is 1, wherever
the palette has it. The numbers of a TIFF count, though it may ask viewers to show 0 as white; bits alone are
read as they are shown, unless they are an array of tifffile, which asks for that and means the numbers.

Of two values the higher may be the highest that its type can hold, whatever type that is: 255, 65535 or 1.0.

Levels between are guessed to be soft edges at most, cut at half. That masks are probabilities, which are
trained on as they are, is never guessed: `values` says it.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from unet_batch.datasets.encoding import (
    DARK,
    LIGHT,
    STRAY,
    VOID,
    Encoding,
    format_value,
)
from unet_batch.datasets.look import Looked, Sample, look_at
from unet_batch.errors import ImageError, UnetBatchError, UsageError
from unet_batch.media.render import palette
from unet_batch.types import ClassTable, Colour


@dataclass(frozen=True)
class Understanding:
    """What was made of the masks of a dataset.

    Attributes:
        classes: named in classes.toml, or made up.
        encoding: how the files spell them.
        why: a sentence.
        fault: why nobody knows; then `encoding` knows no value, and each mask is one that cannot be used.
    """

    classes: ClassTable
    encoding: Encoding
    why: str
    fault: UnetBatchError | None = None


def infer_encoding(toml: str, masks: Sequence[str]) -> Understanding:
    """Work out classes and encoding, and why, from classes.toml if there is one and from some masks.

    Raises:
        UsageError: classes.toml is wrong.
    """
    sample = look_at(masks)
    basis = f" ({len(sample.files):,} of {len(masks):,} masks looked at)"
    if os.path.exists(toml):
        found = _from_toml(toml, sample)
    elif sample.files:
        found = _from_values(toml, sample)
    else:
        found = _unknown("not one mask can be read", sample.error or ImageError(f"{toml}: no masks"))
    return replace(found, why=found.why + sample.remarks(found.encoding.by_look) + basis)


def _unknown(why: str, fault: UnetBatchError, classes: ClassTable | None = None) -> Understanding:
    return Understanding(classes or ClassTable(("foreground",), palette(1)), Encoding("grey", {}), why, fault)


def _from_values(toml: str, sample: Sample) -> Understanding:
    """Guess the encoding where no file says what the values mean."""
    if coloured := [file for file in sample.files if file.kind == "colour"]:
        common = sum((file.values for file in coloured), Counter[int]()).most_common()
        shown = ", ".join(format_value(value, "colour") for value, _ in common[:8]) + ", ..." * (
            len(common) > 8
        )
        why = f"masks hold {len(common):,} colours: {shown}"
        fault = UsageError(f"{coloured[0].path}: {why}", hint=f"name each of them in {toml}")
        return replace(_unknown(why, fault), encoding=Encoding("colour", {}))
    by_look = sample.shows_black_and_white
    guess, why, odd = _guess(sample.by_look() if by_look else sample)
    if guess is None:
        fault = UsageError(
            f"{odd.path}: holds {_list_values(odd)}; masks hold {why}",
            hint=f"save masks as 8-bit ids, or name each value in {toml}" + sample.hint_at_probabilities,
        )
        return _unknown(f"masks hold {why}", fault)
    count = max(id for id in guess.table.values() if id != VOID) + 1
    names = ("foreground",) if count <= 2 else tuple(f"class{id}" for id in range(count))
    return Understanding(ClassTable(names, palette(len(names))), replace(guess, by_look=by_look), why)


def _list_values(file: Looked) -> str:
    """`0, 5, 7 and 61 more values`, in order."""
    shown = [f"{value:.6g}" for value in sorted(file.values)]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more values" if len(shown) > 8 else "")


def _guess(sample: Sample) -> tuple[Encoding | None, str, Looked]:
    """Guess the encoding of grey masks, which most of them must fit; files that do not are found by `check`.

    Returns:
        The encoding, None if there is none; the reason, for it or against any; the file that fits least.
    """
    files = sample.files
    lossy = any(file.kind == "jpeg" for file in files)
    odd = max(files, key=lambda file: (len(file.values.keys() - {0, 1, 255}), max(file.values, default=0)))
    # 16 bits and fractions are levels if they make a mask of two values, else they are what they are.
    if high := _ranged(files):
        levels = [file.as_levels() if file.full == high else file for file in files]
        # Fractions are no ids, so they need not look like edges.
        guess, why = _guess_values([file.values for file in levels], lossy or high == 1, f"{high:,}")
        if guess is not None and guess.between == "edges":
            return guess, why, odd
    if any(value != int(value) for file in files for value in file.values):
        top = max(max(file.values) for file in files)
        return None, f"fractions up to {top:.6g}, with more in between than soft edges", odd
    guess, why = _guess_values([file.values for file in files], lossy)
    if guess is not None and set(guess.table) <= {0, 1, 255}:
        return guess, why, odd
    # A mask or two of something else must not turn the others' 255 into void, or make them all a riddle.
    marked = [file for file in files if set(file.values) != {0}]
    two = [file for file in files if set(file.values) <= {0, 255}]
    single = two if 2 * len([file for file in two if file in marked]) > len(marked) else []
    if guess is None and not single:
        single = [file for file in files if _guess_values([file.values], lossy)[0] is not None]
        single = single if 2 * len(single) > len(files) else []
    if len(single) in (0, len(files)):
        return guess, why, odd
    guess, why = _guess_values([file.values for file in single], lossy)
    return guess, f"{why}; {len(files) - len(single):,} of {len(files):,} hold other values", odd


def _ranged(files: Iterable[Looked]) -> int:
    """The highest value of a type other than bytes that some files may be levels of; 0 if there is none."""
    for full in sorted({file.full for file in files if file.kind == "grey"} - {0, 255}):
        found = {value for file in files if file.full == full for value in file.values}
        wide = full > 255 or any(value != int(value) for value in found)
        if (wide or found == {0, full}) and not found <= {0, 1, 255} and 2 * max(found) >= full:
            return full
    return 0


def _guess_values(
    files: Sequence[Counter[int]], lossy: bool, high: str = "255"
) -> tuple[Encoding | None, str]:
    """Guess the encoding of grey masks by the values of each; with the reason, for it or against any.

    Args:
        files: how often each mask holds each value.
        lossy: whether there are JPEGs.
        high: what files hold that is 255 here.
    """
    counts = sum(files, Counter[int]())
    values = set(counts)
    top = max(values - {VOID}, default=0)
    if values <= {0, 1}:
        return Encoding("grey", {0: 0, 1: 1}), "masks hold 0 and 1: one class, called foreground"
    if values <= {0, 255}:
        why = f"masks hold 0 and {high}: one class, called foreground"
        return Encoding("grey", {0: 0, 255: 1}, "edges"), why
    if values == {0, 1, 255}:
        if any({1, 255} <= set(file) for file in files):
            return Encoding(
                "grey", {0: 0, 1: 1, 255: VOID}
            ), "masks hold 0, 1 and 255: one class, called foreground, and void"
        return Encoding(
            "grey", {0: 0, 1: 1, 255: 1}
        ), "some masks hold 0 and 1, others 0 and 255: one class, called foreground"
    extreme = (
        sum(count for value, count in counts.items() if value < DARK or LIGHT <= value < 256) / counts.total()
    )
    # Up to 20 ids and 255 would not be
    smooth = lossy or (len(values) > 4 and any(64 <= value < 192 for value in values))
    if extreme > 0.9 and LIGHT <= max(values) < 256 and smooth:
        soft = 1 - (counts[0] + counts[255]) / counts.total()
        edges = f"soft edges (JPEG or anti-aliasing, {soft:.1%} of the pixels)"
        why = f"masks hold 0 and {high} with {edges}: from half on it is foreground"
        return Encoding("grey", {0: 0, 255: 1}, "edges"), why
    if top >= STRAY:
        return None, f"values up to {top:,}: numbers of objects, not of classes?"
    if top > 32 and len(values) < top / 4:
        return None, f"the values {', '.join(map(str, sorted(values)))}, too far apart to be ids"
    if sorted(map(len, files))[len(files) // 2] > 64:
        return None, f"{len(values)} different values: photos, or ids blurred by JPEG?"
    table, why = (
        {id: id for id in range(top + 1)},
        f"masks hold ids from 0 to {top}: {top + 1} classes without names",
    )
    return (
        (Encoding("grey", {**table, 255: VOID}), why + "; 255 is void")
        if VOID in values
        else (Encoding("grey", table), why)
    )


def _from_toml(path: str, sample: Sample) -> Understanding:
    """Read classes.toml; the sample of masks says whether they hold ids or colours."""
    hint = (
        '[[class]] name = "road" color = [128, 64, 128] id = 3, each on a line of its own; void = 255 above '
        "them"
    )
    try:
        document = load_toml(path)
        entries = document["class"]
        if below := {"values", "void"} & {key for entry in entries for key in entry}:
            raise ValueError(f"{min(below)} stands below [[class]]: it belongs above the first of them")
        names = tuple(str(entry["name"]) for entry in entries)
        colours = tuple(
            _colour(entry.get("color", chosen))
            for entry, chosen in zip(entries, palette(len(names)), strict=True)
        )
        named = any("id" in entry for entry in entries)  # ids that a person has written down are places
        colour = "values" not in document and _hold_colours(sample, document)
        key = "color" if colour else "id"
        stored = [
            _pack_rgb(entry["color"]) if colour else int(entry.get("id", place))
            for place, entry in enumerate(entries)
        ]
        listed = document.get("void", [])
        void = listed if isinstance(listed, list) else [listed]
        ignored = [
            _pack_rgb(value) if colour else int(value) for value in void if isinstance(value, list) == colour
        ]
        if not 0 < len(names) < STRAY or not all(
            0 <= value < 1 << (24 if colour else 16) for value in stored + ignored
        ):
            raise ValueError("1 to 253 classes, ids from 0 to 65535")
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # Tomllib's own is a ValueError
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{path}: {reason}", hint=hint) from error
    if "values" in document:
        return _from_probabilities(path, document, ClassTable(names, colours), ignored, sample)
    if len({*stored, *ignored}) < len(stored) + len(ignored):
        raise UsageError(f"{path}: two classes, or a class and void, have the same {key}", hint=hint)
    kind: Literal["grey", "colour"] = "colour" if colour else "grey"
    why = f"{len(names)} class{'es' * (len(names) > 1)} from classes.toml; masks hold {key}s"
    classes, voids = ClassTable(names, colours), dict.fromkeys(ignored, VOID)
    by_look = not named and not colour and sample.shows_black_and_white
    if (one := classes.foreground) is not None:
        why += f": {names[one]} against {names[1 - one]}"
        table = {stored[1 - one]: 0, stored[one]: 1, **voids}
        plain = Understanding(classes.only(one), Encoding(kind, table, by_look=by_look), why)
        if one == 0 or colour or named:
            return plain
        classes = plain.classes
    elif len(names) > 1:
        table = {value: id for id, value in enumerate(stored)} | voids
        return Understanding(classes, Encoding(kind, table, by_look=by_look), why)
    if colour or named:
        return Understanding(classes, Encoding(kind, {0: 0, stored[0]: 1, **voids}), why)
    if not sample.files:
        return _unknown(why, sample.error or UsageError(f"{path}: no mask can be read"), classes)
    marked = tuple(
        replace(
            file, values=Counter({value: count for value, count in file.values.items() if value not in voids})
        )
        for file in (sample.by_look() if by_look else sample).files
    )
    encoding, guess, odd = _guess(replace(sample, files=marked))
    if encoding is None or max(encoding.table.values()) > 1:
        if one is not None:
            return plain
        fault = UsageError(
            f"{path}: names one class, but {odd.path} holds {_list_values(odd)}, and {guess}",
            hint="name the other classes, or list their values as void" + sample.hint_at_probabilities,
        )
        return _unknown(f"{why}: {guess}", fault, classes)
    found = replace(encoding, table={**encoding.table, **voids}, by_look=by_look)
    return Understanding(classes, found, f"{why}: {guess.replace(', called foreground', '')}")


def _from_probabilities(
    path: str, document: dict[str, Any], classes: ClassTable, void: Sequence[int], sample: Sample
) -> Understanding:
    """Take masks as what classes.toml says they are, probabilities of its class."""
    said = 'values = "probability"'
    if document["values"] != "probability":
        raise UsageError(
            f"{path}: values = {document['values']!r} is unknown", hint=f"{said}, or leave it out"
        )
    if len(classes.names) > 1 and classes.foreground is None:
        raise UsageError(
            f"{path}: {said} beside {len(classes.names)} classes: a map holds the probability of one",
            hint="name one class, or a background and one; masks of several classes hold ids",
        )
    if any("id" in entry for entry in document["class"]):
        raise UsageError(f"{path}: {said} beside an id, which no probability has", hint="leave the id out")
    highest = {file.full for file in sample.files if file.full}
    if taken := sorted({0, *highest}.intersection(void)):
        raise UsageError(
            f"{path}: void = {taken[0]} is also the probability {int(taken[0] > 0)}",
            hint="save void as a value that no probability has, or leave void out",
        )
    if classes.foreground is not None:
        classes = classes.only(classes.foreground)
    high = " or ".join(f"{full:,}" for full in sorted(highest)) or "255"
    why = (
        f"1 class from classes.toml: masks are probabilities of {classes.names[0]}, 0 to {high}, used as "
        "they are in training, counted from half on"
    )
    return Understanding(classes, Encoding("grey", dict.fromkeys(void, VOID), "probability"), why)


def _hold_colours(sample: Sample, document: dict[str, Any]) -> bool:
    """Whether masks hold the colours that classes.toml names, and not ids.

    So it is if some are coloured, or, where there are colours and no ids, if palettes or grey levels show
    these colours and no others.
    """
    if any(file.kind == "colour" for file in sample.files):
        return True
    entries, void = document["class"], document.get("void", [])
    if any("id" in entry or "color" not in entry for entry in entries):
        return False
    marks = [entry["color"] for entry in entries]
    marks += [value for value in (void if isinstance(void, list) else []) if isinstance(value, list)]
    known = {_pack_rgb(mark) for mark in marks} | ({0} if len(entries) == 1 else set())
    if len(entries) == 1 and any(file.kind != "index" for file in sample.files):
        return False  # of one class, grey levels may also be soft edges
    return bool(sample.files) and all(file.shown is not None and file.shown <= known for file in sample.files)


def load_toml(path: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML.
        UsageError: there is no parser, before Python 3.11 without tomli.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for name in ("tomllib", "tomli"):  # the first came with Python 3.11
        with suppress(ModuleNotFoundError):
            document: dict[str, Any] = importlib.import_module(name).loads(text)
            return document
    raise UsageError(f"{path}: needs Python 3.11 or the package tomli", hint="pip install tomli")


def _colour(value: Sequence[int]) -> Colour:
    if len(value) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        raise ValueError(f"{value!r} is not a colour: [red, green, blue], each 0 to 255, expected")
    return (value[0], value[1], value[2])


def _pack_rgb(value: Sequence[int]) -> int:
    red, green, blue = _colour(value)
    return red << 16 | green << 8 | blue
