"""Trees of which each of several listings looks into its own branches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unet_batch.files import listing, remote
from unet_batch.files.branches import Branches
from unet_batch.files.roots import is_below
from unet_batch.files.sources import Sources, collect
from unet_batch.run import shard as shards
from unet_batch.run.shard import Shard
from unet_batch.types import Item

SHARDS = 3
# Folders that are one where case is ignored, and such as are called like an output of a file beside them
FOLDERS = st.lists(st.sampled_from(["a", "A", "b", "c", "a.png", "b.jpg"]), max_size=3).map("/".join)
FILES = st.sampled_from(["a.jpg", "a.png", "b.jpg", "a", "A.JPG", "notes.txt"])
TREES = st.lists(st.tuples(FOLDERS, FILES).map(lambda each: f"{each[0]}/{each[1]}".lstrip("/")), min_size=1)


@pytest.fixture(autouse=True)
def few_folders_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "FOLDERS", 1)


def is_picture(path: str) -> bool:
    return path.lower().endswith((".jpg", ".png"))


def find(source: str, shard: Shard | None = None, depth: int | None = None) -> Sources:
    branches = shard.branches(depth) if shard is not None else None
    return collect([source], is_picture=is_picture, branches=branches, may_be_empty=True)


def ours(found: Sources, shard: Shard) -> list[Item]:
    return [item for item in found.items if shard.takes(item.key, found.depth)]


def check_shares(source: str) -> None:
    """All shards together have every item once, under the key that it would have without them."""
    whole = find(source).items
    shares = [
        ours(find(source, shard), shard)
        for shard in (Shard(number, SHARDS) for number in range(1, SHARDS + 1))
    ]
    assert sorted((item for share in shares for item in share), key=whole.index) == list(whole)


@settings(max_examples=60, deadline=None)
@given(names=TREES)
@example(
    names=["a.jpg", "a.png/b/c.jpg", "b/c.jpg", "c/d.jpg"]
)  # `a` is in the way of a folder that others deal
@example(names=["a/b.jpg", "A/b.jpg", "b/a.jpg", "c/a.jpg"])
def test_shares_of_a_folder_are_the_whole(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("tree")
    for name in names:
        folder = top / Path(name).parent
        if any(path.is_file() for path in (folder, *folder.parents)) or (top / name).is_dir():
            continue  # as a file system has it
        folder.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"")
    if any(is_picture(name) for _, _, names in os.walk(top) for name in names):
        check_shares(str(top))


@settings(max_examples=60, deadline=None)
@given(names=TREES)
@example(names=["a.jpg", "a.png/b/c.jpg", "b/c.jpg", "c/d.jpg"])
def test_shares_of_a_bucket_are_the_whole(names: list[str]) -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    remote._versions.clear()
    pictures = {"b/deep/z.jpg"}
    for name in names:  # nothing is a file and a folder at once, as this file system has it
        if not any(is_below(name, each) or is_below(each, name) for each in pictures):
            pictures.add(name)
    system = MemoryFileSystem()
    for name in pictures:
        system.pipe_file(f"/bucket/{name}", b"")
    check_shares("memory://bucket/")
    found = {name for name, _ in listing.find("memory://bucket")}
    assert found == pictures


def test_a_shard_lists_its_own_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}" / "below").mkdir(parents=True)
        (tmp_path / f"{number:02}" / "below" / "a.jpg").write_bytes(b"")
    (tmp_path / "top.jpg").write_bytes(b"")
    looked: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looked.append(os.fspath(path)), scandir(path))[1])
    shard = Shard(1, SHARDS)
    found = find(str(tmp_path), shard)
    folders = {item.key.split("/")[0] for item in ours(found, shard)} - {"top"}
    assert found.depth == 1
    assert 4 <= len(folders) <= 24
    assert len(looked) == 1 + 2 * len(folders), "the top, and two levels of each of its own"
    assert [item.key for item in found.items if item.key == "top"] == ["top"], "everybody sees it"


def test_a_tree_with_few_folders_is_dealt_item_by_item(tmp_path: Path) -> None:
    for number in range(9):
        folder = tmp_path / ("x" if number % 2 else "y")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"")
    found = find(str(tmp_path), Shard(1, SHARDS))
    assert (found.depth, len(found.items)) == (0, 9)


def test_an_agreed_depth_holds_whatever_is_there(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / "x" / f"{number:02}").mkdir(parents=True)
        (tmp_path / "x" / f"{number:02}" / "a.jpg").write_bytes(b"")
    assert find(str(tmp_path), Shard(1, SHARDS)).depth == 2
    assert len(find(str(tmp_path), Shard(1, SHARDS), depth=0).items) == 40
    shares = [find(str(tmp_path), Shard(number, SHARDS), depth=1).items for number in range(1, SHARDS + 1)]
    assert sorted(map(len, shares)) == [0, 0, 40]


def test_lists_and_several_sources_are_seen_by_everybody(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.jpg").write_bytes(b"")
    (tmp_path / "list.txt").write_text("".join(f"{number}/a.jpg\n" for number in range(8)))
    for sources in ([f"@{tmp_path / 'list.txt'}"], [str(tmp_path / "1"), str(tmp_path / "2")]):
        found = collect(sources, is_picture=is_picture, branches=Shard(1, SHARDS).branches())
        assert found.depth == 0
        assert len(found.items) in (8, 2)


def test_the_frames_of_a_clip_are_listed_by_whom_the_clip_is_of() -> None:
    shard = next(
        each
        for each in (Shard(number, SHARDS) for number in range(1, SHARDS + 1))
        if each.takes("Clips/A", 2) and not each.takes_folder("clips/a")
    )
    assert shard.branches(2).narrow(["Clips/A"], 2, str) == ["Clips/A"]


def test_everybody_looks_into_all_without_branches() -> None:
    assert list(Branches(depth=0).narrow(["a", "b"], 1, str)) == ["a", "b"]


@pytest.mark.parametrize("name", ["photos//a.jpg", "photos/./a.jpg", "photos/b/../a.jpg"])
def test_names_that_no_folder_tells_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        """As S3 answers: of `b//a` it tells a folder of `b` that has an empty name."""

        names = ("bucket/" + name, "bucket/photos/c.jpg")

        def _strip_protocol(self, url: str) -> str:
            return url.partition("://")[2].rstrip("/")

        def ls(self, url: str, detail: bool) -> list[dict[str, object]]:
            folder = url.partition("://")[2].rstrip("/") + "/"
            found: dict[str, dict[str, object]] = {}
            for each in self.names:
                if each.startswith(folder):
                    step, slash, _ = each[len(folder) :].partition("/")
                    kind = "directory" if slash else "file"
                    found[folder + step] = {"name": folder + step, "type": kind, "size": 1}
            return list(found.values())

        def find(self, url: str, detail: bool) -> dict[str, dict[str, object]]:
            folder = url.partition("://")[2].rstrip("/") + "/"
            return {
                each: {"name": each, "type": "file", "size": 1}
                for each in self.names
                if each.startswith(folder)
            }

    monkeypatch.setattr(remote, "connect", lambda url: Store())
    assert {found for found, _ in listing.find("s3://bucket")} == {name, "photos/c.jpg"}
