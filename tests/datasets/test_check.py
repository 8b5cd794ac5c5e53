"""Every kind of finding, on data that has just this one fault, and none on data that has no fault."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.datasets import SIZE, ids, mask, photo
from unet_batch.datasets.check import Finding, Report, check
from unet_batch.datasets.duplicates import Fingerprint, near_duplicates
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.sheet import contact_sheet
from unet_batch.datasets.split import read_split
from unet_batch.errors import ImageError
from unet_batch.media import images
from unet_batch.media.images import Range


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pairs in three groups, without fault."""
    for index in range(6):
        name = f"{'abc'[index // 2]}_{index % 2}"
        photo(tmp_path / f"images/{name}.png", index)
        mask(tmp_path / f"masks/{name}_mask.png", ids(0, 255))
    return tmp_path


def report_on(root: Path, splits: dict[str, list[str]] | None = None) -> Report:
    dataset = find_dataset(str(root))
    parts = {}
    for name, keys in (splits or {}).items():
        (root / f"{name}.txt").write_text("\n".join(keys))
        parts[name] = read_split(str(root / f"{name}.txt"), dataset.pairs)
    return check(dataset, splits=parts or None)


def only(report: Report, kind: str, severity: str) -> Finding:
    assert [(finding.kind, finding.severity) for finding in report.findings] == [(kind, severity)]
    assert report.ok == (severity != "error")
    (finding,) = report.findings
    assert finding.message
    assert finding.fix
    return finding


def gradient(path: Path, size: tuple[int, int] = (90, 120), **options: object) -> None:
    """A picture with large shapes, as photos have; noise has no look that a hash could keep."""
    rows, columns = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    pixels = np.stack([np.sin(7 * columns + 3 * rows), np.cos(9 * rows * columns), np.sin(5 * rows)], -1)
    Image.fromarray(((pixels + 1) * 127).astype(np.uint8)).save(path, **options)


def test_nothing_to_say(root: Path) -> None:
    heard: list[int] = []
    report = check(find_dataset(str(root)), progress=heard.append)
    assert report.findings == ()
    assert report.ok
    assert heard == [1, 2, 3, 4, 5, 6]
    assert [(s.name, s.pixels, s.images) for s in report.classes] == [
        ("background", 0.5, 6),
        ("foreground", 0.5, 6),
    ]
    assert (report.pairs, report.void) == (6, 0)


def test_shares_leave_out_void(root: Path) -> None:
    mask(root / "masks/a_0_mask.png", ids(0, 1, 255, 255))
    for name in ("a_1", "b_0", "b_1", "c_0", "c_1"):
        mask(root / f"masks/{name}_mask.png", ids(0, 1))
    report = report_on(root)
    assert [share.pixels for share in report.classes] == [0.5, 0.5]
    assert report.void == pytest.approx(0.5 / 6)


class TestNames:
    def test_missing_mask(self, root: Path) -> None:
        photo(root / "images/d d é.png", 9)
        finding = only(report_on(root), "missing mask", "warning")
        assert finding.files == ("images/d d é.png",)

    def test_extra_mask(self, root: Path) -> None:
        mask(root / "masks/zzz_mask.png", ids(0, 255))
        assert only(report_on(root), "extra mask", "warning").files == ("masks/zzz_mask.png",)

    def test_more_missing_than_found(self, root: Path) -> None:
        for index in range(7):
            photo(root / f"images/extra{index}.png", 10 + index)
        finding = only(report_on(root), "missing mask", "warning")
        assert finding.message.startswith("7 without a mask, left out: more than the 6 pairs that are left")

    def test_ambiguous(self, root: Path) -> None:
        photo(root / "images/d_0.png", 9)
        for name in ("d_0", "d_0_mask"):
            mask(root / f"masks/{name}.png", ids(0, 255))
        finding = only(report_on(root), "ambiguous match", "warning")
        assert finding.files[0].startswith("images/d_0.png: ")
        assert "masks/d_0_mask.png" in finding.files[0]


class TestFiles:
    @pytest.mark.parametrize(
        ("where", "kind"), [("images/a_0.png", "unreadable image"), ("masks/a_0_mask.png", "unreadable mask")]
    )
    def test_unreadable(self, root: Path, where: str, kind: str) -> None:
        path = root / where
        path.write_bytes(path.read_bytes()[:-40])
        finding = only(report_on(root), kind, "error")
        assert finding.files[0].startswith(f"{path.name}: cannot decode this PNG")

    def test_coloured_among_grey(self, root: Path) -> None:
        path = root / "masks/a_0_mask.png"
        dataset = find_dataset(str(root))
        mask(path, np.dstack([ids(0, 255), ids(0), ids(0)]))
        finding = only(check(dataset), "unreadable mask", "error")
        assert "is coloured" in finding.files[0]

    def test_size(self, root: Path) -> None:
        mask(root / "masks/a_0_mask.png", ids(0, 255, size=(12, 16)))
        mask(root / "masks/b_0_mask.png", ids(0, 255, size=(32, 24)))
        finding = only(report_on(root), "size mismatch", "error")
        assert finding.message.startswith("2 pairs")
        assert "the image is 24x32, the mask 12x16" in finding.files[0]
        assert "transposed" in finding.files[1]

    def test_size_because_of_exif(self, root: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 8
        photo(root / "images/d_0.jpg", exif=exif)
        mask(root / "masks/d_0_mask.png", ids(0, 255))
        report = report_on(root)
        assert any("EXIF orientation 8" in f.files[0] for f in report.findings if f.kind == "size mismatch")
        assert not report.ok

    def test_unexpected_values(self, root: Path) -> None:
        (root / "classes.toml").write_text("[[class]]\nname = 'a'\n[[class]]\nname = 'b'\nid = 255\n")
        mask(root / "masks/a_0_mask.png", ids(0, 7, 255))
        finding = only(report_on(root), "unexpected mask values", "error")
        assert finding.files == ("a_0_mask.png: unexpected value 7 in 264 pixels",)

    @pytest.mark.parametrize("values", [(0, 1), (0, 1, 2, 3)])
    def test_ids_among_masks_of_0_and_255(self, root: Path, values: tuple[int, ...]) -> None:
        """A threshold would call them background without a word."""
        dataset = find_dataset(str(root))
        mask(root / "masks/a_0_mask.png", ids(*values))
        only(check(dataset), "unexpected mask values", "error")
        with pytest.raises(ImageError, match="unexpected value 1"):
            dataset.read_mask(dataset.pairs[0])

    def test_anti_aliased(self, root: Path) -> None:
        soft = ids(*[0] * 20, 60, 130, 200, *[255] * 9)
        mask(root / "masks/a_0_mask.png", soft)
        finding = only(report_on(root), "anti-aliased masks", "warning")
        assert finding.files == ("a_0_mask.png: 72 of 768 pixels between 0 and 255",)

    @pytest.mark.parametrize(("value", "detail"), [(0, "nothing but background"), (3, "nothing but void")])
    def test_empty(self, root: Path, value: int, detail: str) -> None:
        (root / "classes.toml").write_text("void = 3\n[[class]]\nname = 'a'\n")
        mask(root / "masks/a_0_mask.png", ids(value))
        assert only(report_on(root), "empty masks", "warning").files == (f"a_0_mask.png: {detail}",)

    def test_an_image_that_is_a_mask(self, root: Path) -> None:
        Image.fromarray(np.where(ids(0, 255)[..., None] > 0, (9, 80, 9), (200, 0, 0)).astype(np.uint8)).save(
            root / "images/a_0.png"
        )
        assert only(report_on(root), "images that are masks", "error").files[0].startswith("a_0.png: ")


class TestProbabilities:
    @pytest.fixture
    def soft(self, root: Path) -> Path:
        """The same pairs; masks rise from 0 to 1."""
        (root / "classes.toml").write_text('values = "probability"\n[[class]]\nname = "car"\n')
        for path in (root / "masks").iterdir():
            mask(path, np.linspace(0, 255, 32)[None].repeat(24, 0))
        return root

    def test_are_counted_from_half_on(self, soft: Path) -> None:
        report = report_on(soft)
        assert report.findings == ()
        assert [(share.name, share.pixels) for share in report.classes] == [("background", 0.5), ("car", 0.5)]

    def test_that_never_reach_half_are_told_with_the_highest(self, soft: Path) -> None:
        mask(soft / "masks/a_0_mask.png", ids(0, 51))
        finding = only(report_on(soft), "empty masks", "warning")
        assert finding.files == ("a_0_mask.png: nothing reaches half, the highest probability is 0.20",)
        for path in (soft / "masks").iterdir():
            mask(path, ids(0, 1))  # ids, and no probabilities
        report = report_on(soft)
        assert not report.ok
        assert [f.kind for f in report.findings if f.severity == "error"] == ["nothing to learn"]
        (empty,) = (found for found in report.findings if found.kind == "empty masks")
        assert empty.files[0].endswith("the highest probability is 0.00")

    def test_of_which_all_is_void_are_told_as_such(self, soft: Path) -> None:
        path = soft / "classes.toml"
        path.write_text("void = 7\n" + path.read_text())
        mask(soft / "masks/a_0_mask.png", ids(7))
        assert only(report_on(soft), "empty masks", "warning").files == ("a_0_mask.png: nothing but void",)

    def test_in_the_place_of_a_photo_are_found_out(self, soft: Path) -> None:
        Image.open(soft / "masks/a_0_mask.png").convert("RGB").save(soft / "images/a_0.png")
        assert only(report_on(soft), "images that are masks", "error").files[0].startswith("a_0.png: ")

    def test_sheets_draw_the_cut_at_half(self, soft: Path, tmp_path: Path) -> None:
        dataset = find_dataset(str(soft))
        drawn = contact_sheet(dataset, check(dataset))
        for path in (soft / "masks").iterdir():
            mask(path, np.where(np.arange(32) < 16, 0, 255)[None].repeat(24, 0))
        assert contact_sheet(dataset, check(dataset)) == drawn


class TestCopies:
    def test_in_8_bits_of_16_are_none_in_another_range(self, root: Path) -> None:
        for number, path in enumerate(sorted((root / "images").rglob("*.png"))):
            levels = np.random.default_rng(number).integers(0, 100, SIZE).astype(np.uint16)
            Image.fromarray(levels).save(path)
        dataset = find_dataset(str(root))
        assert [found.kind for found in check(dataset).findings if "duplicates" in found.kind]
        seen = check(dataset, value_range=Range.parse("percentile"))
        assert not [found.kind for found in seen.findings if "duplicates" in found.kind]

    def test_within_a_group(self, root: Path) -> None:
        photo(root / "images/a_1.png", 0)
        assert only(report_on(root), "duplicates", "warning").files == ("a_0 = a_1",)

    def test_the_same_pixels_in_another_format_and_folder(self, root: Path) -> None:
        photo(root / "images/deep/er/x_0.bmp", 0)
        mask(root / "masks/deep/er/x_0.png", ids(0, 255))
        photo(root / "images/deep/er/x_1.bmp", 99)
        mask(root / "masks/deep/er/x_1.png", ids(0, 255))
        assert only(report_on(root), "duplicates", "warning").files == ("a_0 = deep/er/x_0",)

    def test_across_splits(self, root: Path) -> None:
        photo(root / "images/b_0.png", 0)
        report = report_on(root, {"train": ["a_0", "a_1"], "val": ["b_0", "b_1"]})
        assert only(report, "duplicates across splits", "error").files == ("a_0 = b_0",)

    def test_on_one_side_of_a_split(self, root: Path) -> None:
        photo(root / "images/b_0.png", 0)
        only(
            report_on(root, {"train": ["a_0", "a_1", "b_0", "b_1"], "val": ["c_0", "c_1"]}),
            "duplicates",
            "warning",
        )

    def test_with_another_mask(self, root: Path) -> None:
        photo(root / "images/b_0.png", 0)
        mask(root / "masks/b_0_mask.png", ids(255, 0))
        report = report_on(root)
        assert not report.ok
        assert [finding.kind for finding in report.findings] == ["different masks for one image"]

    def test_near(self, root: Path) -> None:
        for name, options in (("x_0.png", {}), ("y_0.jpg", {"quality": 60})):
            gradient(root / "images" / name, **options)
            mask(root / f"masks/{name[:3]}.png", ids(0, 255, size=(90, 120)))
        finding, sizes = report_on(root).findings
        assert (finding.kind, finding.severity, finding.files) == (
            "near duplicates",
            "warning",
            ("x_0 = y_0",),
        )
        assert sizes.kind == "mixed sizes"

    def test_near_in_one_group_is_meant(self, root: Path) -> None:
        for name, options in (("x_0.png", {}), ("x_1.jpg", {"quality": 60})):
            gradient(root / "images" / name, **options)
            mask(root / f"masks/{name[:3]}.png", ids(0, 255, size=(90, 120)))
        only(report_on(root), "mixed sizes", "note")

    def test_leakage_names_the_group(self, root: Path) -> None:
        finding = only(report_on(root, {"train": ["a_0", "b_0", "b_1"], "val": ["a_1"]}), "leakage", "error")
        assert "group 'a' is in train and val" in finding.message


def prints(hashes: list[int]) -> list[Fingerprint]:
    return [Fingerprint(value, bytes(216)) for value in hashes]


class TestNear:
    def test_finds_what_comparing_all_would_find(self) -> None:
        random = np.random.default_rng(0)
        base = [int(value) for value in random.integers(0, 1 << 63, 40)]
        hashes = list(base)
        for count in (1, 2, 3, 4):
            flips = (sum(1 << int(bit) for bit in random.choice(64, count, replace=False)) for _ in base)
            hashes += [value ^ flip for value, flip in zip(base[:: count + 1], flips, strict=False)]
        found = near_duplicates(prints(hashes), [str(index) for index in range(len(hashes))])
        together = {index: number for number, cluster in enumerate(found) for index in cluster}
        pairs = [
            (i, j) for j in range(len(hashes)) for i in range(j) if (hashes[i] ^ hashes[j]).bit_count() <= 3
        ]
        assert len(pairs) > 40
        assert all(together[i] == together[j] for i, j in pairs)
        assert set(together) == {index for pair in pairs for index in pair}

    @pytest.mark.parametrize("spread", [1 << 63, 64])
    def test_does_not_compare_all_with_all(self, spread: int) -> None:
        many = prints([int(value) for value in np.random.default_rng(0).integers(0, spread, 20_000)])
        begun = time.process_time()
        near_duplicates(many, [str(index) if spread > 64 else "one" for index in range(len(many))])
        assert time.process_time() - begun < 5


class TestBalance:
    def test_a_class_that_never_occurs(self, root: Path) -> None:
        (root / "classes.toml").write_text(
            "".join(f"[[class]]\nname = '{n}'\nid = {i}\n" for n, i in (("a", 0), ("b", 255), ("c", 9)))
        )
        assert only(report_on(root), "classes that never occur", "warning").files == ("c",)

    def test_a_rare_class(self, root: Path) -> None:
        for path in (root / "masks").iterdir():
            mask(path, ids(0, 1))
        rare = ids(0, 1)
        rare[0, 0] = 2
        mask(root / "masks/a_0_mask.png", rare)
        assert only(report_on(root), "rare classes", "warning").files == (
            "class2: 0.022% of the pixels, in 1 masks",
        )

    def test_nothing_to_learn(self, root: Path) -> None:
        for path in (root / "masks").iterdir():
            mask(path, ids(0))
        report = report_on(root)
        assert not report.ok
        assert {finding.kind for finding in report.findings} == {
            "nothing to learn",
            "empty masks",
            "classes that never occur",
        }

    def test_mixed_sizes(self, root: Path) -> None:
        photo(root / "images/d_0.png", 9, size=(10, 30))
        mask(root / "masks/d_0.png", ids(0, 255, size=(10, 30)))
        finding = only(report_on(root), "mixed sizes", "note")
        assert finding.files == ("24x32: 6", "10x30: 1")
        assert "1.33 to 3.00 times as wide as high" in finding.message


class TestSheet:
    def picture(self, root: Path, tmp_path: Path) -> np.ndarray:
        dataset = find_dataset(str(root))
        data = contact_sheet(dataset, check(dataset))
        (tmp_path / "sheet.jpg").write_bytes(data)
        return images.read(str(tmp_path / "sheet.jpg")).pixels

    def test_the_mask_is_drawn_where_it_lies(self, root: Path, tmp_path: Path) -> None:
        for path in (root / "masks").iterdir():
            mask(path, ids(*[0] * 16, *[255] * 16))
        pixels = self.picture(root, tmp_path).astype(int)
        violet = pixels[20:150, :, 2] - pixels[20:150, :, 1]  # no noise has that on average
        assert abs(violet[:, 12:232].mean()) < 15
        assert abs(violet[:, 256:330].mean()) < 15
        assert violet[:, 360:430].mean() > 70

    def test_faults_come_first_and_break_nothing(self, root: Path, tmp_path: Path) -> None:
        sound = self.picture(root, tmp_path)
        (root / "images/c_0.png").write_bytes(b"")
        mask(root / "masks/c_1_mask.png", ids(0, 255, size=(32, 24)))
        marked = self.picture(root, tmp_path)

        def red(pixels: np.ndarray) -> int:
            caption = pixels[162:184, 236:446].astype(int)
            return int((caption[..., 0] - caption[..., 1] > 80).sum())

        assert red(sound) == 0 < red(marked)
        assert marked.shape == sound.shape

    def test_one_pair_and_many(self, root: Path, tmp_path: Path) -> None:
        for name in ("a_1", "b_0", "b_1", "c_0", "c_1"):
            (root / f"images/{name}.png").unlink()
        assert self.picture(root, tmp_path).shape[1] < 500
        for index in range(40):
            photo(root / f"images/n{index}.png", 20 + index)
            mask(root / f"masks/n{index}.png", ids(0, 255))
        assert self.picture(root, tmp_path).shape[0] == 12 + 8 * 184
