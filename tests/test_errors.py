"""The tree of errors: drawn as it is, and what can be said more exactly of an error on its way up."""

from __future__ import annotations

import re

import pytest

from unet_batch import errors
from unet_batch.errors import OutputError, UnetBatchError


def _tree(error: type[UnetBatchError], depth: int = 0) -> set[tuple[str, int]]:
    """Name and depth of an error and of all below it."""
    return {(error.__name__, depth)}.union(
        *(_tree(sub, depth + 1) for sub in error.__subclasses__() if sub.__module__ == errors.__name__)
    )


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {
        (match[2], len(match[1]) // 4)
        for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"((?:[│├└─ ]{4})*)([A-Z]\w+) {2,}\S", line))
    }
    assert drawn == _tree(UnetBatchError)


@pytest.mark.parametrize("name", sorted(name for name, _ in _tree(UnetBatchError)))
def test_every_error_can_be_told_more_exactly(name: str) -> None:
    error = getattr(errors, name)("a message", hint="a hint")
    other = error.with_hint("another")
    assert (type(other), other.message, other.hint) == (type(error), "a message", "another")
    other = error.with_context("a.jpg")
    assert (type(other), str(other), other.hint) == (type(error), "a.jpg: a message", "a hint")
    assert (error.message, error.hint) == ("a message", "a hint"), "the first one stays as it was"


def test_a_full_disk_is_no_wrong_usage() -> None:
    assert not issubclass(OutputError, errors.UsageError)
    assert issubclass(OutputError, errors.RunError)
