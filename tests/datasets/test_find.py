"""Folders of pictures and masks, understood: pairs, values, groups, splits."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.datasets import SIZE, ids, mask, photo, reason
from unet_batch.datasets.check import check
from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.split import read_split, require_apart, split
from unet_batch.errors import ImageError, SourceError, UsageError


def made(root: Path, *masks: np.ndarray, toml: str = "") -> Dataset:
    for index, values in enumerate(masks):
        photo(root / f"images/p{index}.png", index)
        mask(root / f"masks/p{index}.png", values)
    if toml:
        (root / "classes.toml").write_text(toml)
    return find_dataset(str(root))


class TestPairs:
    @pytest.mark.parametrize("suffix", ["", "_mask", "-mask", "_label", "_gt", "_seg", "_L", "_segmentation"])
    @pytest.mark.parametrize(
        "folders",
        [
            ("images", "masks"),
            ("imgs", "labels"),
            ("JPEGImages", "SegmentationClass"),
            ("train", "train_masks"),
        ],
    )
    def test_are_matched_by_name(self, tmp_path: Path, suffix: str, folders: tuple[str, str]) -> None:
        photo(tmp_path / folders[0] / "a b é.jpg")
        mask(tmp_path / folders[1] / f"a b é{suffix}.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [pair.key for pair in dataset.pairs] == ["a b é"]
        assert reason(dataset, f"images are in {folders[0]}, masks in {folders[1]}")
        assert reason(dataset, f"with {suffix or 'nothing'} added (1)")

    def test_an_accent_in_two_spellings(self, tmp_path: Path) -> None:
        photo(tmp_path / "images" / (unicodedata.normalize("NFD", "é") + ".jpg"))
        mask(tmp_path / "masks" / "é.png", ids(0, 1))
        assert len(find_dataset(str(tmp_path)).pairs) == 1

    def test_a_picture_is_known_by_its_whole_name_too(self, tmp_path: Path) -> None:
        photo(tmp_path / "images/x/a.jpg")
        mask(tmp_path / "masks/x/a.jpg.png", ids(0, 1))
        photo(tmp_path / "images/b.jpg")
        mask(tmp_path / "masks/b.jpg_mask.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [pair.key for pair in dataset.pairs] == ["b", "x/a"]
        assert (dataset.unmatched_images, dataset.unmatched_masks, dataset.ambiguous) == ((), (), {})

    def test_pictures_of_one_stem_each_have_a_mask_of_their_whole_name(self, tmp_path: Path) -> None:
        for extension in ("jpg", "png", "webp"):
            photo(tmp_path / f"images/a.{extension}")
        for extension in ("jpg", "webp"):
            mask(tmp_path / f"masks/a.{extension}.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [os.path.basename(pair.image) for pair in dataset.pairs] == ["a.jpg", "a.webp"]
        assert [os.path.basename(pair.mask) for pair in dataset.pairs] == ["a.jpg.png", "a.webp.png"]
        assert [os.path.basename(path) for path in dataset.unmatched_images] == ["a.png"]

    def test_a_mask_that_fits_several_pictures_leaves_all_of_them_open(self, tmp_path: Path) -> None:
        for extension in ("jpg", "png"):
            photo(tmp_path / f"images/a.{extension}")
        photo(tmp_path / "images/b.png")
        for name in ("a", "a.jpg", "b"):
            mask(tmp_path / f"masks/{name}.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [pair.key for pair in dataset.pairs] == ["b"]
        ((image, others),) = dataset.ambiguous.items()
        names = {os.path.relpath(path, tmp_path).replace(os.sep, "/") for path in (image, *others)}
        assert names == {"images/a.jpg", "images/a.png", "masks/a.png", "masks/a.jpg.png"}

    def test_sub_folders_are_mirrored(self, tmp_path: Path) -> None:
        for lot in ("x", "y"):
            photo(tmp_path / f"images/{lot}/a.jpg")
            mask(tmp_path / f"masks/{lot}/a_mask.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [(pair.key, Path(pair.mask).parent.name) for pair in dataset.pairs] == [
            ("x/a", "x"),
            ("y/a", "y"),
        ]

    def test_a_picture_that_is_called_like_a_mask(self, tmp_path: Path) -> None:
        for name in ("car", "car_gt"):
            photo(tmp_path / f"images/{name}.jpg")
            mask(tmp_path / f"masks/{name}.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [(p.key, Path(p.mask).stem) for p in dataset.pairs] == [("car", "car"), ("car_gt", "car_gt")]

    def test_what_has_no_partner_or_two(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            photo(tmp_path / f"images/{name}.jpg")
        for name in ("a", "b", "b_mask", "d"):
            mask(tmp_path / f"masks/{name}.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        assert [pair.key for pair in dataset.pairs] == ["a"]
        assert [Path(path).name for path in dataset.unmatched_images] == ["c.jpg"]
        assert [Path(path).name for path in dataset.unmatched_masks] == ["d.png"]
        assert {Path(k).name: sorted(Path(p).name for p in v) for k, v in dataset.ambiguous.items()} == {
            "b.jpg": ["b.png", "b_mask.png"]
        }

    def test_folders_that_are_named(self, tmp_path: Path) -> None:
        photo(tmp_path / "in/a.jpg")
        mask(tmp_path / "elsewhere/a.png", ids(0, 1))
        root = tmp_path / "root"
        root.mkdir()
        assert (
            len(find_dataset(str(root), images=str(tmp_path / "in"), masks=str(tmp_path / "elsewhere")).pairs)
            == 1
        )
        assert len(find_dataset(str(tmp_path), images="in", masks="elsewhere").pairs) == 1

    def test_folders_on_another_drive_are_named_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Windows has no relative path from one drive to another."""
        real = os.path.relpath

        def relpath(path: str, start: str) -> str:
            if str(path).startswith(str(tmp_path / "D")) != str(start).startswith(str(tmp_path / "D")):
                raise ValueError("path is on mount 'D:', start on mount 'C:'")
            return real(path, start)

        monkeypatch.setattr(os.path, "relpath", relpath)
        photo(tmp_path / "C/images/a.png")
        photo(tmp_path / "C/images/b.png", 1)
        for name in ("a", "c"):
            mask(tmp_path / f"D/{name}.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path / "C"), masks=str(tmp_path / "D"))
        assert reason(dataset, f"masks in {tmp_path / 'D'}")
        extra = next(finding for finding in check(dataset).findings if finding.kind == "extra mask")
        assert extra.files == (str(tmp_path / "D/c.png"),)

    def test_errors_say_what_was_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no such folder"):
            find_dataset(str(tmp_path / "none"))
        photo(tmp_path / "images/a.jpg")
        with pytest.raises(SourceError, match="no folder of masks; there is images") as error:
            find_dataset(str(tmp_path))
        assert "--masks" in error.value.hint
        with pytest.raises(SourceError, match="typo: no such folder"):
            find_dataset(str(tmp_path), masks="typo")
        with pytest.raises(SourceError, match="one folder"):
            find_dataset(str(tmp_path), masks="images")
        mask(tmp_path / "masks/b.png", ids(0, 1))
        with pytest.raises(SourceError, match=r"none of 1 images and 1 masks .* a\.jpg and b\.png"):
            find_dataset(str(tmp_path))


class TestValues:
    @pytest.mark.parametrize(
        ("stored", "expected", "void", "why"),
        [
            ([0, 1], [0, 1], None, "masks hold 0 and 1: one class, called foreground"),
            ([0, 255], [0, 1], None, "masks hold 0 and 255: one class, called foreground"),
            ([0, 1, 255], [0, 1, 255], 255, "foreground, and void"),
        ],
    )
    def test_one_class(
        self, tmp_path: Path, stored: list[int], expected: list[int], void: int | None, why: str
    ) -> None:
        dataset = made(tmp_path, ids(*stored))
        assert dataset.classes.names == ("foreground",)
        assert dataset.void == void
        assert reason(dataset, why)
        assert np.array_equal(dataset.read_mask(dataset.pairs[0], SIZE), ids(*expected))

    def test_one_class_in_two_spellings(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, ids(0, 1), ids(0, 255))
        assert reason(dataset, "some masks hold 0 and 1, others 0 and 255")
        assert all(np.array_equal(dataset.read_mask(pair), ids(0, 1)) for pair in dataset.pairs)

    @pytest.mark.parametrize("last", [[], [255]])
    def test_ids_without_names(self, tmp_path: Path, last: list[int]) -> None:
        dataset = made(tmp_path, ids(0, 3, *last), ids(1, 2))
        assert dataset.classes.names == ("class0", "class1", "class2", "class3")
        assert len(set(dataset.classes.colours)) == 4
        assert reason(dataset, "ids from 0 to 3: 4 classes without names")
        assert (dataset.void == 255) == bool(last) == reason(dataset, "255 is void")
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), ids(0, 3, *last))

    def test_names_ids_and_void_from_a_file(self, tmp_path: Path) -> None:
        toml = (
            'void = [9, 255]\n[[class]]\nname = "sky"\ncolor = [1, 2, 3]\n[[class]]\nname = "road"\nid = 7\n'
        )
        dataset = made(tmp_path, ids(0, 7, 9, 255), toml=toml)
        assert dataset.classes.names == ("sky", "road")
        assert dataset.classes.colours[0] == (1, 2, 3)
        assert reason(dataset, "2 classes from classes.toml; masks hold ids")
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), ids(0, 1, 255, 255))

    @pytest.mark.parametrize(
        ("toml", "stored"),
        [
            ('[[class]]\nname = "background"\n[[class]]\nname = "car"\n', (0, 1)),
            ('[[class]]\nname = "car"\n[[class]]\nname = "background"\n', (1, 0)),
            ('[[class]]\nname = "bg"\n[[class]]\nname = "car"\nid = 7\n', (0, 7)),
            ('[[class]]\nname = "car"\nid = 255\n[[class]]\nname = "none"\nid = 0\n', (0, 255)),
        ],
    )
    def test_a_background_and_one_class_are_one(
        self, tmp_path: Path, toml: str, stored: tuple[int, int]
    ) -> None:
        """As a model of them gives one probability, so that both can be compared."""
        dataset = made(tmp_path, ids(*stored, 9), toml="void = 9\n" + toml)
        assert dataset.classes.names == ("car",)
        assert len(dataset.classes.colours) == 1
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), ids(0, 1, 255))
        assert reason(dataset, ": car against ")

    def test_one_named_class(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, ids(0, 255, 128), toml='void = 128\n[[class]]\nname = "cell"\n')
        assert (dataset.classes.names, dataset.void) == (("cell",), 255)
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), ids(0, 1, 255))

    @pytest.mark.parametrize("alpha", [False, True])
    def test_colours(self, tmp_path: Path, alpha: bool) -> None:
        table = np.array([[0, 0, 0], [128, 64, 128], [9, 9, 9]], np.uint8)
        toml = "void = [[9, 9, 9]]\n" + "".join(
            f'[[class]]\nname = "{n}"\ncolor = {c}\n' for n, c in (("a", [0, 0, 0]), ("b", [128, 64, 128]))
        )
        (tmp_path / "classes.toml").write_text(toml)
        stored = table[ids(0, 1, 2)]
        if alpha:  # what is transparent is black, whatever its colour
            stored = np.dstack(
                [np.where(stored.any(-1, keepdims=True), stored, 77), 255 * stored.any(-1)]
            ).astype(np.uint8)
        photo(tmp_path / "images/a.png")
        mask(tmp_path / "masks/a.png", stored)
        photo(tmp_path / "images/b.png")
        mask(tmp_path / "masks/b.png", np.zeros(SIZE))  # grey among coloured ones
        dataset = find_dataset(str(tmp_path))
        assert reason(dataset, "masks hold colors")
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), ids(0, 1, 255))
        assert not dataset.read_mask(dataset.pairs[1]).any()

    def test_colours_without_a_file_are_listed(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"2 colours: \[10, 20, 30\], \[200, 0, 0\]") as error:
            made(tmp_path, np.array([[10, 20, 30], [200, 0, 0]])[ids(0, 1, 0)])
        assert "classes.toml" in error.value.hint

    def test_the_index_counts_not_the_colour(self, tmp_path: Path) -> None:
        for suffix in ("png", "gif"):
            photo(tmp_path / f"images/{suffix}.png")
            (tmp_path / "masks").mkdir(exist_ok=True)
            image = Image.frombytes("P", SIZE[::-1], ids(0, 1, 2).astype(np.uint8).tobytes())
            image.putpalette([0, 0, 0, 255, 255, 255, 128, 0, 0])
            image.save(tmp_path / f"masks/{suffix}.{suffix}")
        dataset = find_dataset(str(tmp_path))
        assert len(dataset.classes.names) == 3
        assert all(np.array_equal(dataset.read_mask(pair), ids(0, 1, 2)) for pair in dataset.pairs)

    @pytest.mark.parametrize(
        "name", ["bits.png", "bits.tif", "sixteen.png", "sixteen.tif", "grey.bmp", "rgb.png"]
    )
    def test_ways_to_store_two_values(self, tmp_path: Path, name: str) -> None:
        photo(tmp_path / f"images/{Path(name).stem}.jpg")
        values = ids(0, 1)
        if name.startswith("bits"):
            (tmp_path / "masks").mkdir()
            Image.fromarray(values.astype(bool)).save(tmp_path / "masks" / name)
        elif name.startswith("rgb"):
            mask(tmp_path / "masks" / name, np.dstack([values] * 3))
        else:
            mask(tmp_path / "masks" / name, values, np.uint16 if name.startswith("sixteen") else np.uint8)
        dataset = find_dataset(str(tmp_path))
        assert reason(dataset, "masks hold 0 and 1:")
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), values)

    def test_few_bits_of_grey_are_not_stretched(self, tmp_path: Path) -> None:
        import struct
        import zlib

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        photo(tmp_path / "images/a.jpg", size=(1, 4))
        (tmp_path / "masks").mkdir()
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(bytes([0, 0b00011011])))
        (tmp_path / "masks/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
        dataset = find_dataset(str(tmp_path))
        assert dataset.read_mask(dataset.pairs[0]).tolist() == [[0, 1, 2, 3]]

    def test_jpeg_is_cut_at_128(self, tmp_path: Path) -> None:
        truth = np.zeros((128, 128), np.uint8)
        truth[37:90, 21:77] = 255
        photo(tmp_path / "images/a.png", size=truth.shape)
        mask(tmp_path / "masks/a.jpg", truth)
        dataset = find_dataset(str(tmp_path))
        assert reason(dataset, "soft edges (JPEG or anti-aliasing")
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), truth // 255)

    def test_a_value_without_a_meaning(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, ids(0, 1, 5), toml='[[class]]\nname = "a"\n[[class]]\nname = "b"\n')
        with pytest.raises(ImageError, match=r"p0\.png: unexpected value 5 in 240 pixels") as error:
            dataset.read_mask(dataset.pairs[0])
        assert "classes.toml" in error.value.hint

    def test_another_size_names_both(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, ids(0, 1))
        with pytest.raises(ImageError, match=r"image is 32x24, the mask 24x32 .*: transposed"):
            dataset.read_mask(dataset.pairs[0], (32, 24))

    def test_a_picture_turned_by_exif_and_a_mask_that_is_not(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        photo(tmp_path / "images/a.jpg", exif=exif)
        mask(tmp_path / "masks/a.png", ids(0, 1))
        dataset = find_dataset(str(tmp_path))
        with pytest.raises(ImageError, match="turned by its EXIF orientation 6, the mask is not"):
            dataset.read_mask(dataset.pairs[0], (32, 24))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 254, "254 different values: photos"),
            (ids(0, 700), "values up to 700: numbers of objects"),
            (ids(0, 128, 255), "the values 0, 128, 255, too far apart"),
        ],
    )
    def test_what_cannot_be_guessed(self, tmp_path: Path, values: np.ndarray, message: str) -> None:
        photo(tmp_path / "images/p.png")
        mask(tmp_path / "masks/p.png", values, np.uint16)
        with pytest.raises(UsageError, match=message):
            find_dataset(str(tmp_path))

    def test_fractions_are_no_ids(self, tmp_path: Path) -> None:
        photo(tmp_path / "images/a.png")
        mask(tmp_path / "masks/a.tif", ids(0, 1) / 2, np.float32)
        with pytest.raises(UsageError, match=r"a\.tif: holds 0, 0\.5; masks hold fractions up to 0\.5"):
            find_dataset(str(tmp_path))

    @pytest.mark.parametrize(
        ("toml", "message"),
        [
            ("[[class]]\nname = 'a'\nid = 1\n[[class]]\nname = 'b'\nid = 1\n", "have the same id"),
            ("[[class]]\nid = 1\n", "'name' is missing"),
            ("void = 3\n", "'class' is missing"),
            ("class = [", "classes.toml: "),
            ("[[class]]\nname = 'a'\ncolor = [1, 2]\n", "is not a colour"),
            ("[[class]]\nname = 'a'\n[[class]]\nname = 'b'\nid = 70000\n", "ids from 0 to 65535"),
        ],
    )
    def test_a_wrong_file(self, tmp_path: Path, toml: str, message: str) -> None:
        with pytest.raises(UsageError, match=message) as error:
            made(tmp_path, ids(0, 1), toml=toml)
        assert "classes.toml" in error.value.message

    def test_one_unreadable_mask_does_not_hide_the_others(self, tmp_path: Path) -> None:
        made(tmp_path, ids(0, 1), ids(0, 1))
        (tmp_path / "masks/p0.png").write_bytes(b"")
        assert reason(find_dataset(str(tmp_path)), "1 of 2 masks looked at")
        (tmp_path / "masks/p1.png").write_bytes(b"")
        with pytest.raises(ImageError, match="an empty file"):
            find_dataset(str(tmp_path))


class TestGroups:
    def named(self, root: Path, *names: str, group_by: str | None = None) -> tuple[list[str], str]:
        for name in names:
            photo(root / f"images/{name}.png")
            mask(root / f"masks/{name}.png", ids(0, 1))
        dataset = find_dataset(str(root), group_by=group_by)
        return [pair.group for pair in dataset.pairs], dataset.reasons[-1]

    def test_by_what_stands_before_the_last_separator(self, tmp_path: Path) -> None:
        groups, why = self.named(tmp_path, "a_x_1", "a_x_2", "b-1", "b-2")
        assert groups == ["a_x", "a_x", "b", "b"]
        assert (
            "2 groups by what stands before the last _ or - of the names, such as 'a_x' with 2 images" in why
        )

    def test_by_folder(self, tmp_path: Path) -> None:
        groups, why = self.named(tmp_path, "a/1", "a/2", "b/1", "b/2")
        assert groups == ["a", "a", "b", "b"]
        assert "2 groups by folder" in why

    @pytest.mark.parametrize(
        "names",
        [("img_1", "img_2", "img_3"), ("a_1", "b_1", "c_1"), ("a", "b"), ("a_1", "a_2", "b_1", "c_1")],
    )
    def test_none_where_that_would_make_no_sense(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        groups, why = self.named(tmp_path, *names)
        assert groups == sorted(names)
        assert "every image is a group of its own" in why

    @pytest.mark.parametrize("pattern", ["^(..)", "^(?P<group>..)", "(x)?^(?P<group>..)"])
    def test_by_a_pattern(self, tmp_path: Path, pattern: str) -> None:
        groups, why = self.named(tmp_path, "ab1", "ab2", "cd1", group_by=pattern)
        assert groups == ["ab", "ab", "cd"]
        assert pattern in why

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("(", "not a regular expression"),
            ("x", "has no group"),
            ("(z)", "does not fit 1 of 1 keys, such as 'a'"),
        ],
    )
    def test_a_wrong_pattern(self, tmp_path: Path, pattern: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            self.named(tmp_path, "a", group_by=pattern)


def pairs_of(sizes: list[int]) -> list[Pair]:
    return [
        Pair(f"/i/{g}_{n}.jpg", f"/m/{g}_{n}.png", f"{g}_{n}", f"g{g}")
        for g, size in enumerate(sizes)
        for n in range(size)
    ]


SIZES = st.lists(st.integers(1, 20), min_size=3, max_size=60)


class TestSplit:
    @given(sizes=SIZES, fraction=st.floats(0.05, 0.6))
    def test_keeps_groups_whole_and_neither_part_empty(self, sizes: list[int], fraction: float) -> None:
        pairs = pairs_of(sizes)
        train, val = split(pairs, fraction)
        assert sorted(pair.key for pair in (*train, *val)) == sorted(pair.key for pair in pairs)
        require_apart({"train": train, "val": val})
        assert train
        assert val

    @given(count=st.integers(40, 300), fraction=st.floats(0.1, 0.5))
    def test_of_many_groups_meets_the_fraction_within_a_factor_of_two(
        self, count: int, fraction: float
    ) -> None:
        _, val = split(pairs_of([2] * count), fraction)
        assert fraction / 2 <= len(val) / (2 * count) <= 2 * fraction

    @given(sizes=SIZES, order=st.randoms())
    def test_does_not_depend_on_the_order_of_the_pairs(self, sizes: list[int], order: object) -> None:
        pairs = pairs_of(sizes)
        shuffled = list(pairs)
        order.shuffle(shuffled)  # type: ignore[attr-defined]
        assert [set(part) for part in split(pairs, 0.3)] == [set(part) for part in split(shuffled, 0.3)]

    @given(count=st.integers(60, 120), more=st.integers(1, 60))
    def test_what_trained_never_validates_when_groups_are_added(self, count: int, more: int) -> None:
        grown = pairs_of([3] * (count + more))
        train, _ = split(grown[: 3 * count], 0.25)
        _, val = split(grown, 0.25)
        assert not {pair.group for pair in train} & {pair.group for pair in val}

    def test_is_the_same_on_every_machine(self) -> None:
        assert [pair.group for pair in split(pairs_of([1] * 8), 0.5)[1]] == RECORDED

    def test_a_few_large_groups_meet_the_fraction_as_well_as_they_can(self) -> None:
        for sizes, kept_out in (
            ([62, 101, 204], 101),
            ([204, 101, 62], 62),
            ([5, 5], 5),
            ([90, 10], 10),
            ([1, 99], 1),
        ):
            assert len(split(pairs_of(sizes), 0.25)[1]) == kept_out

    def test_wrong_requests(self) -> None:
        for fraction in (0.0, 1.0, -0.2, float("nan")):
            with pytest.raises(UsageError, match="above 0 and below 1"):
                split(pairs_of([1] * 4), fraction)
        with pytest.raises(UsageError, match="1 group cannot be on both sides"):
            split(pairs_of([5]), 0.2)

    def test_a_group_on_both_sides_is_named(self) -> None:
        one, other = pairs_of([2])
        with pytest.raises(UsageError, match="group 'g0' is in train and val"):
            require_apart({"train": [one], "val": [other]})


class TestReadSplit:
    PAIRS = (
        Pair("/i/x/a b.jpg", "", "x/a b", "x"),
        Pair("/i/y/c.jpg", "", "y/c", "y"),
        Pair("/i/z/c.jpg", "", "z/c", "z"),
    )

    def written(self, folder: Path, *lines: str) -> str:
        (folder / "val.txt").write_text("\n".join(lines), encoding="utf-8-sig")
        return str(folder / "val.txt")

    @pytest.mark.parametrize("name", ["x/a b", "a b", "a b.jpg", "x/a b.jpg", "images/x/a b.jpg"])
    def test_keys_stems_and_file_names(self, tmp_path: Path, name: str) -> None:
        assert (
            read_split(self.written(tmp_path, "# val", "", name, "y/c", name), self.PAIRS) == self.PAIRS[:2]
        )

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["x/a b", "nope"], "line 2: 'nope' fits no image"),
            (["c"], "line 1: 'c' fits 2 images"),
            (["# nothing"], "names no images"),
        ],
    )
    def test_a_line_that_fits_nothing_or_too_much(
        self, tmp_path: Path, lines: list[str], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            read_split(self.written(tmp_path, *lines), self.PAIRS)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"none\.txt: cannot be read"):
            read_split(str(tmp_path / "none.txt"), self.PAIRS)


class TestRealData:
    def test_carvana(self, data: Path) -> None:
        dataset = find_dataset(str(data / "carvana"))
        assert (len(dataset.pairs), dataset.unmatched_images, dataset.unmatched_masks, dataset.ambiguous) == (
            1000,
            (),
            (),
            {},
        )
        assert {pair.group for pair in dataset.pairs} == {pair.key.split("_")[0] for pair in dataset.pairs}
        assert len({pair.group for pair in dataset.pairs}) == 63
        assert set(np.unique(dataset.read_mask(dataset.pairs[0], (1280, 1918)))) == {0, 1}

    def test_camvid(self, data: Path, tmp_path: Path) -> None:
        names = [
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ]
        (tmp_path / "classes.toml").write_text(
            "void = 11\n" + "".join(f'[[class]]\nname = "{name}"\n' for name in names)
        )
        dataset = find_dataset(
            str(tmp_path), images=str(data / "camvid/images"), masks=str(data / "camvid/masks")
        )
        assert (len(dataset.pairs), dataset.classes.names, dataset.void) == (367, tuple(names), 255)
        assert Counter(pair.group for pair in dataset.pairs) == {"0001TP": 62, "0006R0": 101, "0016E5": 204}
        assert set(np.unique(dataset.read_mask(dataset.pairs[0], (360, 480)))) <= {*range(11), 255}

    @pytest.mark.parametrize(("name", "count"), [("dsb2018", 332), ("isbi2012", 24)])
    def test_binary(self, data: Path, name: str, count: int) -> None:
        dataset = find_dataset(str(data / name))
        assert (len(dataset.pairs), dataset.classes.names, dataset.void) == (count, ("foreground",), None)
        assert len({pair.group for pair in dataset.pairs}) == count
        assert set(np.unique(dataset.read_mask(dataset.pairs[0]))) == {0, 1}


RECORDED = ["g1", "g2", "g3", "g5", "g6", "g7"]
