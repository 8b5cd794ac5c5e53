"""Which classes an evaluation is about: those of model and dataset matched, and those that count."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unet_batch.errors import UsageError
from unet_batch.types import ClassTable

_UNNAMED = re.compile(r"class\d+|foreground")


def match_classes(dataset: ClassTable, model: ClassTable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Match the classes of model and dataset: the names of the ids, and notes on what was assumed.

    Raises:
        UsageError: they do not; names that were made up for want of any fit all others.
    """
    ours, theirs = dataset.names, model.names
    real = [names for names in (ours, theirs) if not all(map(_UNNAMED.fullmatch, names))]
    both = f"the dataset has {_describe(ours)}, the model {_describe(theirs)}"
    if (len(ours) == 1) != (len(theirs) == 1):
        hint = "choose the model that was trained for these masks"
        if len(theirs) == 2:
            hint += ", or import it with --classes background,NAME if one of its classes is the background"
        raise UsageError(f"other classes: {both}", hint=hint)
    if len(ours) != len(theirs) or (len(ours) > 1 and len(real) == 2 and ours != theirs):
        raise UsageError(
            f"other classes: {both}", hint="the same classes in the same order are needed; see classes.toml"
        )
    names = real[0] if real else ours
    notes = () if ours == theirs else (f"taken as the same: {both}",)
    return id_names(names), notes


def choose_classes(
    dataset: ClassTable, names: Sequence[str], classes: Sequence[str] | None
) -> tuple[int, ...]:
    """Choose the ids that count: the only class, or all of several; or those of a list of names.

    Args:
        dataset: its classes.
        names: of the ids, as `match_classes` gives them.
        classes: the names of those that shall count; None for the choice above.

    Raises:
        UsageError: there is no such class.
    """
    if classes is None:
        return (1,) if len(dataset.names) == 1 else tuple(range(len(names)))
    if unknown := [name for name in classes if name not in names]:
        raise UsageError(
            f"--classes: there is no class {', '.join(map(repr, unknown))}",
            hint=f"the classes are {', '.join(names)}",
        )
    return tuple(id for id, name in enumerate(names) if name in classes)


def object_ids(names: Sequence[str], judged: Sequence[int], classes: Sequence[str] | None) -> tuple[int, ...]:
    """Choose the ids whose objects are looked at: those that count, a background only where it was named."""
    background = None if classes is not None else ClassTable(tuple(names), ()).background
    return tuple(id for id in judged if id != background)


def id_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Name the ids of a class table: of one class, the background and the class."""
    return names if len(names) > 1 else ("background", *names)


def _describe(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"one class ({names[0]})"
    return f"{len(names)} classes ({', '.join(names)})"
