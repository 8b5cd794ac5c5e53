"""The pairs of pictures that a list names, as a report's page saves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.datasets import ids, mask, photo
from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.join import JoinedMasks, join
from unet_batch.datasets.named import UNLABELLED, check_named, choose_named
from unet_batch.errors import SourceError, UsageError
from unet_batch.media.render import class_table

UNREAD = JoinedMasks({}, {})


def make(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        photo(root / f"images/{name}.png", number)
        mask(root / f"masks/{name}.png", ids(0, 255))
    return root


def keys(dataset: Dataset, *listed: object, at: Path) -> list[str]:
    (at / "bad.txt").write_text("".join(f"{line}\n" for line in listed))
    return [pair.key for pair in choose_named(dataset, [str(at / "bad.txt")]).dataset.pairs]


def test_pictures_are_known_by_their_paths_and_copies_by_the_whole_of_their_keys(tmp_path: Path) -> None:
    dataset = find_dataset(str(make(tmp_path / "set", "a", "lot/a", "lot/b", "c")))
    images = tmp_path / "set/images"
    assert keys(dataset, images / "lot/b.png", images / "a.png", at=tmp_path) == ["a", "lot/b"]
    assert keys(dataset, "/photos/lot/a.png", at=tmp_path) == ["lot/a"], "not the a beside it"
    assert keys(dataset, "/photos/2024/lot/b.png", "/photos/other/b.png", at=tmp_path) == ["lot/b"]
    with pytest.raises(UsageError, match="not one of the 1 pictures"):
        keys(dataset, "/photos/b.png", at=tmp_path)
    with pytest.raises(UsageError, match=r"such as /photos/a\.jpg"):
        keys(dataset, "/photos/a.jpg", at=tmp_path)


def test_of_datasets_that_are_joined_keys_are_those_of_each(tmp_path: Path) -> None:
    sets = [make(tmp_path / "one", "a", "b"), make(tmp_path / "two", "lot/c", "d")]
    joined = join([find_dataset(str(root)) for root in sets])
    assert keys(joined, "/photos/lot/c.png", tmp_path / "one/images/b.png", at=tmp_path) == [
        "one/b",
        "two/lot/c",
    ]


def test_their_masks_are_checked_and_those_without_are_told(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "a_0", "a_1", "b_0")
    mask(root / "masks/a_1.png", ids(0, 255, size=(5, 5)))
    photo(root / "images/new.png", 9)
    (tmp_path / "bad.txt").write_text(
        f"{root}/images/a_1.png\n{root}/images/b_0.png\n{root}/images/new.png\n"
    )
    named = choose_named(find_dataset(str(root), faulty=True), [str(tmp_path / "bad.txt")])
    report = check_named(named)
    assert [(finding.severity, finding.kind) for finding in report.findings] == [
        ("error", "size mismatch"),
        ("warning", UNLABELLED),
    ]
    assert report.findings[1].files == (str(root / "images/new.png"),)
    assert "1 of 3 pictures" in report.findings[1].message


def test_one_picture_may_be_named_and_nothing_is_said_of_the_rest(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "a_0", "b_0")
    shutil.copy(root / "masks/a_0.png", root / "masks/extra.png")
    mask(root / "masks/a_0.png", ids(0))
    (tmp_path / "bad.txt").write_text(f"{root}/images/a_0.png\n")
    report = check_named(choose_named(find_dataset(str(root)), [str(tmp_path / "bad.txt")]))
    assert [finding.kind for finding in report.findings] == ["empty masks"]
    assert report.ok


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dataset = find_dataset(str(make(tmp_path / "set", "a", "b")))
    with pytest.raises(SourceError, match=r"nowhere\.txt"):
        choose_named(dataset, [str(tmp_path / "nowhere.txt")])


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.text("ab/", min_size=1, max_size=5).filter(lambda name: "" not in name.split("/")), min_size=1)
)
def test_a_copy_below_any_folder_is_found_by_its_longest_name(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    pairs = tuple(Pair(f"/set/images/{name}.png", "", name, name) for name in sorted(names))
    dataset = Dataset("/set", pairs, class_table(["car"]), UNREAD, ())
    for name in names:
        assert keys(dataset, f"/c/{name}.png", at=folder) == [name]
