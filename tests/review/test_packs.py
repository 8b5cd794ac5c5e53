"""Packs of thumbnails are kept while their items stay as they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.review import packs
from unet_batch.review.packs import Entry, PackStore, Task, Thumbnails, is_current

KEYS = st.lists(st.sampled_from([f"{a}/{b}" for a in "ab!" for b in range(9)] + list("abc")), unique=True)


def task(key: str, version: int = 1) -> Task:
    return Task(key, f"/photos/{key}.jpg", {"mask": f"masks/{key}.png"}, [["mask", version, version]])


def entry(task: Task) -> Entry:
    return Entry(task.key, task.source, task.files, task.stamp)


def bring_up_to_date(store: PackStore, tasks: list[Task]) -> tuple[list[str], int]:
    """Names of the packs, as `report` makes them, and how many entries are new."""
    names, made = [], 0
    for old, chunk in store.ranges(tasks):
        known = {each.key: each for each in store.entries(old)} if old else {}
        fresh = [each for each in chunk if each.key not in known or not is_current(known[each.key], each)]
        made += len(fresh)
        if fresh or [*known] != [each.key for each in chunk]:
            old = store.write([entry(each) for each in chunk], [Thumbnails(b"", b"").line()] * len(chunk))
        names.append(old)
    store.keep_only(names)
    return names, made


def order(keys: list[str]) -> list[str]:
    return sorted(keys, key=lambda key: key.split("/"))


@settings(max_examples=60)
@given(st.lists(KEYS, min_size=2, max_size=4))
def test_packs_hold_all_items_in_order_and_only_new_ones_are_made(steps: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "SIZE", 3)
        before: set[str] = set()
        for keys in steps:
            names, made = bring_up_to_date(PackStore(folder, "look"), [task(key) for key in order(keys)])
            store = PackStore(folder, "look")
            held = [each.key for name in names for each in store.entries(name)]
            assert held == order(keys)
            assert all(len(store.entries(name)) <= 3 for name in names)
            assert {path.stem for path in Path(folder).iterdir()} == set(names)
            assert made == len(set(keys) - before), "what a pack holds already is not made again"
            again, made = bring_up_to_date(store, [task(key) for key in order(keys)])
            assert (again, made) == (names, 0)
            before = set(keys)


def test_what_has_changed_is_made_again_and_its_pack_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "SIZE", 2)
    names, _ = bring_up_to_date(PackStore(str(tmp_path), "look"), [task(key) for key in "abcdef"])
    tasks = [task(key, 2 if key == "c" else 1) for key in "abcdef"]
    later, made = bring_up_to_date(PackStore(str(tmp_path), "look"), tasks)
    assert made == 1
    assert (later[0], later[2]) == (names[0], names[2])
    assert later[1] != names[1]


def test_packs_of_another_look_or_cut_short_are_not_used(tmp_path: Path) -> None:
    store = PackStore(str(tmp_path), "look")
    name = store.write([entry(task("a"))], [Thumbnails(b"photo", b"mask").line()])
    assert store.entries(name)
    assert list(store.lines(name)) == [Thumbnails(b"photo", b"mask").line()]
    assert not PackStore(str(tmp_path), "other").entries(name)
    (tmp_path / f"{name}.json").write_text('{"look": ')
    assert not store.entries(name)
    name = store.write([entry(task("a"))], ["[]"])
    (tmp_path / f"{name}.js").unlink()
    assert not store.entries(name)
