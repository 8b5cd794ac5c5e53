"""A session is handed as much as it will need until the next message, however long these take."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.helpers.crews import slowly
from tests.helpers.models import fake_file
from tests.helpers.runs import many
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.recipe import recipe_of
from unet_batch.run.session import Order, Session, outline
from unet_batch.testing import FakeBackend

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_messages_that_take_long_carry_more(tmp_path: Path) -> None:
    photos, out = many(tmp_path / "photos", 120), tmp_path / "out"
    plan = prepare(RunOptions((str(photos),), str(out)))
    out.mkdir()
    (out / "manifest.jsonl").touch()
    session = Session(lambda: Segmenter(FakeBackend(answer=slowly), model=fake_file(), workers=2))
    session.begin(outline(plan), recipe_of(session.segmenter, None))
    items, messages, wanted, done = list(plan.items), 0, 1, 0
    while done < len(plan.items):
        order = Order(tuple(items[:wanted]), finish=len(items) <= wanted)
        items, messages = items[wanted:], messages + 1
        time.sleep(0.2)  # on the way
        told = session.exchange(order)
        wanted, done = told.wanted, done + len(told.outcomes)
        assert told.error is None
    while not told.is_over:
        told = session.exchange(Order(finish=True))
    session.segmenter.close()
    assert messages < 60, "each carries one or two"
    stages = {stage.name: stage for stage in told.stages}
    source, infer = stages["source"], stages["infer"]
    assert source.busy < infer.busy, "to wait for a message is no work"
    assert source.waiting > 0.2
