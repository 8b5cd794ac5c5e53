"""Several datasets as one: keys, groups and masks stay those of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.join import join
from unet_batch.datasets.split import choose_parts
from unet_batch.errors import SourceError, UsageError


def write(root: Path, names: list[str], white: int = 255, toml: str = "") -> Dataset:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in names:
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(np.eye(8, dtype=np.uint8) * white).save(root / f"masks/{name}.png")
    (root / "classes.toml").write_text(toml or '[[class]]\nname = "car"\n')
    return find_dataset(str(root), group_by="^(.+)_")


def test_one_is_left_as_it_is(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a", ["x_1"])
    assert join([dataset]) is dataset
    assert dataset.name == "a"


def test_keys_begin_with_the_dataset_and_groups_keep_their_names(tmp_path: Path) -> None:
    joined = join([write(tmp_path / "a", ["x_1", "x_2"]), write(tmp_path / "b", ["x_1", "y_1"])])
    assert [pair.key for pair in joined.pairs] == ["a/x_1", "a/x_2", "b/x_1", "b/y_1"]
    assert [pair.group for pair in joined.pairs] == ["x", "x", "x", "y"]
    assert (joined.parts, joined.name) == (("a", "b"), "a + b")
    assert all(reason.startswith(("a: ", "b: ")) for reason in joined.reasons)


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    joined = join([write(tmp_path / place / "cars", ["x_1"]) for place in ("one", "two", "three")])
    assert joined.parts == ("cars", "cars-2", "cars-3")
    assert len({pair.key for pair in joined.pairs}) == 3


def test_each_mask_is_read_as_its_dataset_says(tmp_path: Path) -> None:
    plain = write(tmp_path / "a", ["x_1"])
    void = write(tmp_path / "b", ["x_1"], white=7, toml='void = 0\n[[class]]\nname = "car"\nid = 7\n')
    joined = join([plain, void])
    first, second = (joined.read_mask(pair) for pair in joined.pairs)
    assert np.unique(first).tolist() == [0, 1]
    assert np.unique(second).tolist() == [1, 255]
    assert joined.void == 255


def test_a_split_keeps_out_what_it_kept_out_of_each_alone(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [f"car{number}_1" for number in range(40)])
    two = write(tmp_path / "b", [f"van{number}_1" for number in range(40)])
    alone = choose_parts(one.pairs)[0]["validation"]
    together = choose_parts(join([one, two]).pairs)[0]["validation"]
    assert {f"a/{pair.key}" for pair in alone} == {p.key for p in together if p.key.startswith("a/")}


def test_other_classes_are_refused_with_both_lists(tmp_path: Path) -> None:
    one = write(tmp_path / "a", ["x_1"])
    two = write(tmp_path / "b", ["x_1"], toml='[[class]]\nname = "van"\n')
    with pytest.raises(UsageError, match=r"its classes are van, those of .*a are car") as error:
        join([one, two])
    assert "classes.toml" in error.value.hint


def test_the_same_dataset_twice_is_refused(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a", ["x_1"])
    with pytest.raises(UsageError, match=r"x_1\.png: is in two of the datasets"):
        join([dataset, dataset])


def test_a_fault_of_one_is_that_of_all(tmp_path: Path) -> None:
    sound = write(tmp_path / "a", ["x_1"])
    (tmp_path / "b" / "images").mkdir(parents=True)
    with pytest.raises(SourceError):
        join([sound, find_dataset(str(tmp_path / "b"))])


def test_a_fault_of_one_is_not_hidden_by_classes_that_nobody_knows(tmp_path: Path) -> None:
    sound = write(tmp_path / "a", ["x_1"])
    folder = tmp_path / "b"
    write(folder, ["x_1"])
    Image.fromarray(np.eye(8, dtype=np.uint8) * 77).save(folder / "masks/x_1.png")
    (folder / "classes.toml").unlink()
    faulty = find_dataset(str(folder), faulty=True)
    assert faulty.fault is not None
    for both in ([sound, faulty], [faulty, sound]):
        joined = join(both)
        assert (joined.fault, joined.classes) == (faulty.fault, sound.classes)


def test_datasets_without_a_folder_in_common_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two drives of Windows."""
    parts = [write(tmp_path / name, ["x_1"]) for name in ("a", "b")]
    assert join(parts).root == str(tmp_path)

    def refuse(paths: list[str]) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", refuse)
    assert join(parts).root == str(tmp_path / "a")
