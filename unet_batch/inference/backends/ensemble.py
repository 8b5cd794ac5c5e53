"""Several models as one: each runs through its own backend, and their maps are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cached_property
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import UsageError
from unet_batch.inference.backends.base import Backend

if TYPE_CHECKING:
    from unet_batch.types import ModelSpec, Pixels, Size


class Ensemble(Backend):
    """Backends of models that agree in their classes, as one.

    Where their input sizes differ, `inference.views` shows each member the picture at its own; `infer` is for
    those that take the same.

    Args:
        members: open or not; opened with the ensemble, and closed with it.

    Attributes:
        spec: the first member's, with the names and terms of all. Its threshold is the mean of theirs, as its
            probability is.
        input_size: the largest of theirs.

    Raises:
        UsageError: they do not agree, see `check_members`.
    """

    def __init__(self, members: Sequence[Backend]) -> None:
        specs = [member.spec for member in members]
        check_members({f"{number}. {spec.name}": spec for number, spec in enumerate(specs, 1)})
        self._members = tuple(members)
        self.name, self.precision, self.reason = (
            " + ".join(dict.fromkeys(said)) for said in zip(*map(_said, members), strict=True)
        )
        self.spec = replace(
            specs[0],
            name=" + ".join(spec.name for spec in specs),
            threshold=fsum(spec.threshold for spec in specs) / len(specs),
            training={key: value for key, value in specs[0].training.items() if key == "channels"},
            terms=_terms(specs),
        )
        self._limits()

    @property
    def members(self) -> tuple[Backend, ...]:
        """The backends, in the order they were given."""
        return self._members

    @cached_property
    def input_size(self) -> Size:
        """(height, width) of the largest input."""
        sizes = [member.input_size for member in self._members]
        return max(sizes, key=lambda size: (size[0] * size[1], size))

    @property
    def notes(self) -> list[str]:
        """What the members' say."""
        return list(dict.fromkeys(note for member in self._members for note in member.notes))

    def describe(self) -> dict[str, Any]:
        """As of every backend, and of each member."""
        return {**super().describe(), "members": [member.describe() for member in self._members]}

    def close(self) -> None:
        """Close all members, whichever are open."""
        self._is_open = False
        self._close()

    def thread(self) -> AbstractContextManager[object]:
        """Enter it for every member."""
        with ExitStack() as entered:
            for member in self._members:
                entered.enter_context(member.thread())
            return entered.pop_all()

    def _limits(self) -> None:
        """Take no more at once than each member does."""
        self.batch_size = min(member.batch_size for member in self._members)
        self.streams = min(member.streams for member in self._members)

    def _open(self) -> None:
        for member in self._members:
            if not member.is_open:
                member.open()
        self._limits()

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        return average([member.infer(pictures) for member in self._members], self.spec)

    def _close(self) -> None:
        with ExitStack() as stack:
            for member in self._members:
                stack.callback(member.close)


def check_members(specs: dict[str, ModelSpec]) -> None:
    """See that the models of an ensemble can be averaged.

    Args:
        specs: of each model, by what a person calls it.

    Raises:
        UsageError: they have other classes or channels than the first, or are two whose ids can only be
            counted as votes.
    """
    (first, wanted), *others = specs.items()
    for name, spec in others:
        for what, one, other in (
            ("classes", wanted.classes.names, spec.classes.names),
            ("output", (wanted.output,), (spec.output,)),
            ("channels", _channels(wanted), _channels(spec)),
        ):
            if one != other:
                raise UsageError(
                    f"{first} and {name} cannot be averaged: their {what} are {', '.join(one)} and "
                    f"{', '.join(other)}",
                    hint="models that are averaged find the same classes in the same pictures",
                )
    if len(specs) == 2 and wanted.output == "class_ids":
        raise UsageError(
            f"{first} and {others[0][0]} say ids of {len(wanted.classes.names)} classes, which are votes, "
            "and of two the first would always win",
            hint="take three models or more, or one",
        )


def _channels(spec: ModelSpec) -> tuple[str, ...]:
    """What a model takes of a picture: how many, or which."""
    chosen = spec.training.get("channels")
    return tuple(map(str, chosen or (spec.in_channels,)))


def average(maps: Sequence[Pixels], spec: ModelSpec) -> Pixels:
    """The mean of probabilities; of ids the one that most have said, the first of those on a tie.

    Args:
        maps: uint8, all of one shape.
        spec: of what made them.
    """
    stacked = np.stack(maps)
    if spec.output == "probability":
        total = stacked.sum(0, dtype=np.uint16)
        mean: Pixels = ((total + len(maps) // 2) // len(maps)).astype(np.uint8)
        return mean
    votes = np.stack([(stacked == map).sum(0, dtype=np.uint8) for map in stacked])
    return np.asarray(np.take_along_axis(stacked, votes.argmax(0)[None], 0)[0])


def _said(member: Backend) -> tuple[str, str, str]:
    return member.name, member.precision, member.reason


def _terms(specs: Sequence[ModelSpec]) -> str:
    """The terms of all, each said once; of whom, where they differ."""
    terms: dict[str, list[str]] = {}
    for spec in specs:
        terms.setdefault(spec.terms, []).append(spec.name)
    if len(terms) == 1:
        return specs[0].terms
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in terms.items() if said)
