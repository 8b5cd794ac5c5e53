"""The arithmetic of `scripts.simulate_scale`, with costs that are round numbers."""

from __future__ import annotations

import sys

import pytest

from scripts import simulate_scale
from scripts.simulate_scale import Tree, largest_share, one_list, shards_that_list_all, shards_with_folders

ROUND = {
    "request": 0.32,
    "at once": 32,
    "page": 0.001,
    "listed name": 1e-6,
    "planned name": 1e-5,
    "compared name": 1e-5,
    "record": 1e-4,
    "joined record": 1e-5,
    "record bytes": 1000,
    "end bytes": 1000,
    "photo": 0.16,
    "lock": 0.001,
    "photo bytes": 1e5,
    "network": 1e8,
}


@pytest.fixture(autouse=True)
def round_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROUND.keys() == simulate_scale.COSTS.keys()
    monkeypatch.setattr(simulate_scale, "COSTS", {name: (value, "round") for name, value in ROUND.items()})


def test_requests_overlap_and_reading_does_not() -> None:
    tree = Tree(1_000_000, 1000)
    assert tree.listing(1_000_000, 1000) == pytest.approx(10), "1,000 pages of 0.32 s, 32 at once"
    assert tree.listing(1000, 1) == pytest.approx(0.01)
    assert tree.listing(2500, 1) == pytest.approx(0.03), "three pages"
    assert tree.listing(20e6, 1) == pytest.approx(200)


def test_a_worker_is_as_fast_as_what_it_has_least_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tree(1, 1).rate() == (pytest.approx(100), "its cores")
    monkeypatch.setitem(simulate_scale.COSTS, "photo bytes", (2e6, "larger"))
    assert Tree(1, 1).rate() == (pytest.approx(50), "its network")
    monkeypatch.setitem(simulate_scale.COSTS, "lock", (0.1, "slower"))
    assert Tree(1, 1).rate() == (pytest.approx(10), "its process")


def test_one_list_ends_where_one_process_records() -> None:
    tree = Tree(1_000_000, 1000)
    few, many = one_list(tree, 10), one_list(tree, 1000)
    assert (few.start, few.work, few.limit) == (pytest.approx(20), pytest.approx(1000), "its cores")
    assert many.work == pytest.approx(100)
    assert many.limit == "the one that records"


def test_what_every_shard_does_does_not_become_less_with_more_of_them() -> None:
    tree = Tree(1_000_000, 40_000)
    assert shards_that_list_all(tree, 100).start == shards_that_list_all(tree, 10).start
    assert shards_with_folders(tree, 100).start < shards_that_list_all(tree, 100).start / 20
    assert shards_with_folders(tree, 100).again < shards_that_list_all(tree, 100).again / 20


def test_too_few_folders_are_no_help() -> None:
    tree = Tree(1_000_000, 100)
    assert shards_with_folders(tree, 10) == shards_that_list_all(tree, 10)


def test_the_largest_share_comes_down_to_the_mean() -> None:
    assert largest_share(1e6, 1) == 1
    assert largest_share(1e9, 10) == pytest.approx(1, abs=0.001)
    assert 1.3 < largest_share(40_000, 1000) < 1.8


def test_the_table_has_a_row_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate_scale", "--workers", "1,10"])
    simulate_scale.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("| one list", "| shards")) for line in lines) == 6
