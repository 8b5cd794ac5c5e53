"""Several backends as one: what is asked of it is asked of each, and their maps are averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unet_batch.errors import BackendError, UsageError
from unet_batch.inference.backends.ensemble import Ensemble
from unet_batch.inference.segmenter import Segmenter
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import ClassTable


def constant(value: int, classes: int = 1, *, size: tuple[int, int] = (32, 48), **limits: int) -> FakeBackend:
    """One that says the same everywhere."""
    return FakeBackend(
        fake_spec(size, classes), lambda batch: np.full(batch.shape[:3], value, np.uint8), **limits
    )


PICTURES = np.zeros((2, 32, 48, 3), np.uint8)


def test_probabilities_are_averaged_in_one_batch() -> None:
    members = constant(10), constant(20), constant(40)
    with Ensemble(members) as ensemble:
        assert set(np.unique(ensemble.infer(PICTURES))) == {23}
    assert [member.batches for member in members] == [[2]] * 3


@pytest.mark.parametrize(("ids", "expected"), [((2, 1, 1), 1), ((2, 1, 0), 2), ((0, 2, 1, 2, 1), 2)])
def test_of_ids_most_decide_and_the_first_of_them_on_a_tie(ids: tuple[int, ...], expected: int) -> None:
    with Ensemble([constant(id, 3) for id in ids]) as ensemble:
        assert set(np.unique(ensemble.infer(PICTURES))) == {expected}


def test_it_takes_no_more_than_each_member() -> None:
    one, other = constant(1, batch_size=8, streams=2), constant(2, size=(64, 40), batch_size=3, streams=5)
    with Ensemble([one, other]) as ensemble:
        assert (ensemble.batch_size, ensemble.streams) == (3, 2)
        assert ensemble.input_size == (64, 40)


def test_members_are_opened_where_they_are_not_and_closed_whatever_happens() -> None:
    class Unclosable(FakeBackend):
        def _close(self) -> None:
            raise BackendError("the device is gone")

    class Unopenable(FakeBackend):
        def _open(self) -> None:
            raise BackendError("no device")

    one, other = FakeBackend().open(), Unclosable()
    ensemble = Ensemble([one, other]).open()
    assert other.is_open
    with pytest.raises(BackendError, match="is gone"):
        ensemble.close()
    assert not one.is_open
    one.open()
    with pytest.raises(BackendError, match="no device"):
        Segmenter(Ensemble([one, Unopenable()]))
    assert not one.is_open


def test_it_says_what_each_member_says() -> None:
    one, other = constant(1), constant(2)
    one.spec = replace(one.spec, name="a", threshold=0.4, terms="for all")
    other.spec = replace(other.spec, name="b", threshold=0.6, terms="for some")
    other.name = "other"
    with Ensemble([one, other]) as ensemble:
        one.notes.append("one is slow")
        assert (ensemble.name, ensemble.precision) == ("fake + other", "fp32")
        assert (ensemble.spec.name, ensemble.spec.threshold) == ("a + b", 0.5)
        assert ensemble.spec.terms == "a: for all; b: for some"
        assert ensemble.notes == ["one is slow"]
        assert [member["name"] for member in ensemble.describe()["members"]] == ["fake", "other"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"classes": ClassTable(("road",), ((0, 0, 0),))},
            r"1\. fake and 2\. fake .*classes are class0 and road",
        ),
        ({"in_channels": 4}, "channels are 3 and 4"),
        ({"output": "class_ids"}, "output are probability and class_ids"),
    ],
)
def test_members_that_do_not_agree_are_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Ensemble([FakeBackend(), FakeBackend(replace(fake_spec(), **changes))])


def test_two_that_say_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="of two the first would always win"):
        Ensemble([constant(0, 3), constant(1, 3)])
