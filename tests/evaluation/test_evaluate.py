"""Models and predictions against true masks: where the truth lies at the network's size, what is matched,
what fails.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.datasets import ids, mask, photo
from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.encoding import VOID
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.sheet import Comparison, comparison_sheet
from unet_batch.errors import BackendError, SourceError, UsageError
from unet_batch.evaluation.classes import match_classes
from unet_batch.evaluation.evaluate import (
    Evaluation,
    compare,
    comparison,
    evaluate,
    resize_truth,
)
from unet_batch.evaluation.metrics import count, scores
from unet_batch.evaluation.predictions import find_masks, find_predictions, is_mask_folder
from unet_batch.evaluation.report import EvaluationReport
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import geometry, images
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import ClassTable

SIZE = (64, 96)  # twice the fake network's


def shown(path: Path, values: np.ndarray, **options: object) -> Path:
    """A photo whose brightness is these values: what the fake network of one class finds where they are 128
    or more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)).save(path, **options)
    return path


def half(right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """1 left of a column."""
    return np.repeat((np.arange(size[1]) < right)[None].astype(np.uint8), size[0], 0)


def one_class(root: Path, *rights: int, found: int = 48) -> Dataset:
    """Photos in which the fake network finds `found` columns, with masks of others."""
    for index, right in enumerate(rights):
        shown(root / f"images/g{index // 2}_{index}.png", 255 * half(found))
        mask(root / f"masks/g{index // 2}_{index}.png", 255 * half(right))
    return find_dataset(str(root))


def judged(dataset: Dataset, backend: FakeBackend | None = None, **options: object) -> Evaluation:
    with Segmenter(backend or FakeBackend(), workers=2, **options) as segmenter:
        return evaluate(dataset, dataset.pairs, segmenter)


class TestAtNetwork:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans(), st.booleans())
    def test_is_the_majority_of_each_block(self, seed: int, classes: int, void: bool, upper: bool) -> None:
        random = np.random.default_rng(seed)
        truth = random.integers(0, classes, (4 * 8, 4 * 12)).astype(np.uint8)
        if void:
            truth[random.random(truth.shape) < 0.5] = VOID
        small = resize_truth(truth, geometry.place(truth.shape, (8, 12)), ties_to_class=upper)
        blocks = truth.reshape(8, 4, 12, 4).swapaxes(1, 2).reshape(8, 12, 16)
        for found, block in zip(small.ravel(), blocks.reshape(-1, 16), strict=True):
            counts = np.bincount(block, minlength=256)
            if counts[VOID] >= 8:
                assert found == VOID
            else:
                best = np.flatnonzero(counts[:VOID] == counts[:VOID].max())
                assert found == best[-1 if upper else 0]

    def test_a_pixel_half_covered_belongs_to_the_class(self) -> None:
        """As a probability of exactly one half does."""
        truth = half(49)
        assert resize_truth(truth, geometry.place(SIZE, (32, 48)), ties_to_class=True)[0, 23:26].tolist() == [
            1,
            1,
            0,
        ]
        assert resize_truth(truth, geometry.place(SIZE, (32, 48)))[0, 23:26].tolist() == [1, 0, 0]

    def test_is_as_large_as_the_picture_in_there(self) -> None:
        placement = geometry.place((90, 30), (32, 48))
        assert resize_truth(half(15, (90, 30)), placement).shape == placement.content == (32, 11)

    def test_lies_where_the_picture_does(self) -> None:
        """131x197 is placed as 132x198: the edge at 187 of 197 columns comes to 45.33 of 48, not to 45.56."""
        truth = half(187, (131, 197))
        placement = geometry.place(truth.shape, (32, 48))
        assert placement.covered == (132, 198)
        assert resize_truth(truth, placement)[0, 43:].tolist() == [1, 1, 0, 0, 0]

    def test_all_void(self) -> None:
        truth = np.full(SIZE, VOID, np.uint8)
        assert (resize_truth(truth, geometry.place(SIZE, (32, 48))) == VOID).all()


class TestEvaluate:
    def test_pixels_without_a_value_are_not_judged(self, tmp_path: Path) -> None:
        """Else the half of which the survey has nothing, and the mask something, would count as missed."""
        values = np.ones(SIZE, np.float32)
        values[:, 48:] = np.nan
        (tmp_path / "images").mkdir()
        tifffile.imwrite(tmp_path / "images/a.tif", values, metadata=None)
        mask(tmp_path / "masks/a.png", np.full(SIZE, 255))
        found = judged(find_dataset(str(tmp_path)))
        assert found.photo.mean("dice") == found.network.mean("dice") == 1

    def test_both_sizes_by_hand(self, tmp_path: Path) -> None:
        found = judged(one_class(tmp_path, 48, 40))
        assert found.photo.names == ("background", "foreground")
        assert found.photo.judged == (1,)
        assert found.size == (32, 48)
        assert not found.failures
        for figures, columns in ((found.photo, (48, 40)), (found.network, (24, 20))):
            assert figures is not None
            true, right = sum(columns), sum(columns)
            assert figures.mean("dice") == pytest.approx(2 * right / (2 * columns[0] + true))
            assert figures.scores.accuracy == pytest.approx(1 - (columns[0] - columns[1]) / (4 * columns[0]))
            assert figures.mean("dice", per_picture=True) == pytest.approx((1 + 2 * 40 / 88) / 2)
        assert found.ranked() == [("g0_1", pytest.approx(80 / 88)), ("g0_0", 1)]

    def test_padding_counts_in_neither(self, tmp_path: Path) -> None:
        shown(tmp_path / "images/a.png", 255 * half(15, (90, 30)))
        mask(tmp_path / "masks/a.png", 255 * half(15, (90, 30)))
        found = judged(find_dataset(str(tmp_path)))
        assert found.network is not None
        assert found.network.counts[0].confusion.sum() == 32 * 11
        assert found.photo.counts[0].confusion.sum() == 90 * 30

    def test_the_threshold_is_the_segmenters(self, tmp_path: Path) -> None:
        shown(tmp_path / "images/a.png", np.full(SIZE, 100))
        mask(tmp_path / "masks/a.png", 255 * half(48))
        dataset = find_dataset(str(tmp_path))
        for threshold, recall in ((0.5, 0), (0.3, 1)):
            found = judged(dataset, threshold=threshold)
            assert found.network is not None
            assert found.photo.mean("recall") == found.network.mean("recall") == recall

    def test_a_photo_that_exif_turns(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        upright = 255 * half(20, (96, 64))
        shown(tmp_path / "images/a.png", np.rot90(upright), exif=exif)
        mask(tmp_path / "masks/a.png", upright)
        found = judged(find_dataset(str(tmp_path)))
        assert not found.failures
        assert found.photo.mean("dice") == 1

    def test_several_classes_and_void(self, tmp_path: Path) -> None:
        truth = np.repeat(ids(0, 1, 2, 2, size=(1, 4)), 24, axis=1).repeat(64, axis=0).astype(np.uint8)
        shown(tmp_path / "images/a.png", np.where(truth == 2, 0, 80 * truth))  # class 2 is found as 0
        truth[:, 72:] = VOID
        mask(tmp_path / "masks/a.png", truth)
        backend = FakeBackend(
            fake_spec(classes=3), lambda pictures: (pictures[..., 0] // 80).astype(np.uint8)
        )
        found = judged(find_dataset(str(tmp_path)), backend)
        assert found.photo.names == ("class0", "class1", "class2")
        for figures in (found.photo, found.network):
            assert figures is not None
            assert figures.scores.pooled["iou"] == pytest.approx([1 / 2, 1, 0])
            assert figures.mean("iou") == pytest.approx(1 / 2)
            assert figures.scores.accuracy == pytest.approx(2 / 3), "void is left out"

    def test_what_cannot_be_judged_is_named_and_the_rest_is_judged(self, tmp_path: Path) -> None:
        dataset = one_class(tmp_path, 48, 48, 48, 48)
        (tmp_path / "images/g0_0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        mask(tmp_path / "masks/g0_1.png", half(10, (10, 20)) * 255)
        mask(tmp_path / "masks/g1_2.png", np.full(SIZE, 9))
        found = judged(dataset)
        assert [failure.key for failure in found.failures] == ["g0_0", "g0_1", "g1_2"]
        messages = [failure.message for failure in found.failures]
        assert "cannot decode this PNG" in messages[0]
        assert "the image is 64x96, the mask 10x20" in messages[1]
        assert "unexpected value 9" in messages[2]
        assert [each.key for each in found.photo.counts] == ["g1_3"]
        assert found.photo.mean("dice") == 1

    def test_nothing_can_be_judged(self, tmp_path: Path) -> None:
        dataset = one_class(tmp_path, 48)
        (tmp_path / "images/g0_0.png").unlink()
        found = judged(dataset)
        assert not found.photo.counts
        assert found.ranked() == []
        assert found.as_dict()["photo"] is None

    def test_a_broken_device_ends_it(self, tmp_path: Path) -> None:
        def broken(pictures: np.ndarray) -> np.ndarray:
            raise BackendError("the device is gone")

        dataset = one_class(tmp_path, *range(10, 22))
        with pytest.raises(BackendError, match="the device is gone"):
            judged(dataset, FakeBackend(answer=broken))

    def test_progress_counts_failures_too(self, tmp_path: Path) -> None:
        dataset = one_class(tmp_path, 48, 48, 48)
        (tmp_path / "images/g0_1.png").write_bytes(b"")
        heard: list[int] = []
        with Segmenter(FakeBackend(), workers=2) as segmenter:
            evaluate(dataset, dataset.pairs, segmenter, progress=heard.append)
        assert heard == [1, 2, 3]

    def test_what_is_marked_in_pictures_without_the_class(self, tmp_path: Path) -> None:
        """Of 48, 24 and 12 of 96 columns found, where true masks hold nothing; the fourth holds something."""
        for index, found in enumerate((48, 24, 12, 48)):
            shown(tmp_path / f"images/p{index}.png", 255 * half(found))
            mask(tmp_path / f"masks/p{index}.png", 255 * half(48 if index == 3 else 0))
        found = judged(find_dataset(str(tmp_path))).photo
        assert found.scores.without["pictures"].tolist() == [0, 3], "each shows background"
        assert found.scores.without["marked"][1] == pytest.approx((48 + 24 + 12) / (3 * 96))
        assert found.scores.without["marked_per_picture"][1] == pytest.approx((48 + 24 + 12) / (3 * 96))
        assert found.most_marked(1) == ("p0", pytest.approx(0.5))
        assert found.most_marked(0) is None
        facts = found.as_dict()["without"]["foreground"]
        assert facts["pictures"] == 3
        assert facts["worst"] == {"key": "p0", "marked": pytest.approx(0.5)}
        assert facts["marked_interval"][0] < facts["marked"] < facts["marked_interval"][1]
        assert set(found.as_dict()["intervals"]["pooled"]) == {"dice", "iou"}

    def test_of_pictures_with_the_same_dice_the_one_with_more_wrong_pixels_is_worse(
        self, tmp_path: Path
    ) -> None:
        for index, found in enumerate((24, 48, 12)):
            shown(tmp_path / f"images/p{index}.png", 255 * half(found))
            mask(tmp_path / f"masks/p{index}.png", half(0))
        assert judged(find_dataset(str(tmp_path))).ranked() == [("p1", 0), ("p0", 0), ("p2", 0)]

    def test_intervals_are_over_groups(self, tmp_path: Path) -> None:
        dataset = one_class(tmp_path, 48, 48, 40, 40, 30, 30)
        found = judged(dataset)
        assert found.photo.groups == 3
        assert set(found.photo.intervals) == {
            "accuracy", "dice", "iou", "dice_per_picture", "iou_per_picture",
            "dice foreground", "iou foreground", "marked foreground", "marked_per_picture foreground",
        }  # fmt: skip
        for name, value in (("dice", found.photo.mean("dice")), ("accuracy", found.photo.scores.accuracy)):
            low, high = found.photo.intervals[name]
            assert low < value < high
        assert found.photo.intervals["dice"] == found.photo.intervals["dice foreground"]
        alone = judged(find_dataset(str(tmp_path), group_by="^(g)"))
        assert alone.photo.intervals == {}

    def test_is_json(self, tmp_path: Path) -> None:
        document = judged(one_class(tmp_path, 48, 0, 20)).as_dict()
        text = json.loads(json.dumps(document, allow_nan=False))
        assert text["photo"]["pooled"]["dice"]["foreground"] == document["photo"]["mean"]["dice"]
        assert (
            text["photo"]["intervals"]["mean"]["dice"]
            == text["photo"]["intervals"]["pooled"]["dice"]["foreground"]
        )
        assert text["network_size"] == [32, 48]
        assert text["counted"] == ["foreground"]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_does_not_depend_on_threads(self, tmp_path: Path, workers: int) -> None:
        dataset = one_class(tmp_path, *range(10, 30))
        with Segmenter(FakeBackend(batch_size=workers), workers=workers) as segmenter:
            found = evaluate(dataset, dataset.pairs, segmenter)
        assert [each.key for each in found.photo.counts] == [pair.key for pair in dataset.pairs]
        assert [int(each.confusion[1].sum()) // 64 for each in found.photo.counts] == [
            int(pair.key.split("_")[1]) + 10 for pair in dataset.pairs
        ]


class TestAgreed:
    def table(self, *names: str) -> ClassTable:
        return ClassTable(names, ((0, 0, 0),) * len(names))

    @pytest.mark.parametrize(
        ("dataset", "model", "names"),
        [
            (("car",), ("car",), ("background", "car")),
            (("foreground",), ("car",), ("background", "car")),
            (("cell",), ("class0",), ("background", "cell")),
            (("cell",), ("car",), ("background", "cell")),
            (("class0", "class1"), ("sky", "road"), ("sky", "road")),
            (("sky", "road"), ("class0", "class1"), ("sky", "road")),
        ],
    )
    def test_one_class_fits_any_other_and_made_up_names_fit_real_ones(
        self, dataset: tuple[str, ...], model: tuple[str, ...], names: tuple[str, ...]
    ) -> None:
        found, notes = match_classes(self.table(*dataset), self.table(*model))
        assert found == names
        assert bool(notes) == (dataset != model)
        assert all(name in "".join(notes) for name in (*dataset, *model) if notes)

    @pytest.mark.parametrize(
        ("dataset", "model"),
        [
            (("car",), ("background", "car")),
            (("sky", "road"), ("road",)),
            (("sky", "road"), ("road", "sky")),
            (("class0", "class1"), ("sky", "road", "tree")),
        ],
    )
    def test_others_are_refused_with_both_lists(
        self, dataset: tuple[str, ...], model: tuple[str, ...]
    ) -> None:
        with pytest.raises(UsageError, match=r"other classes: the dataset has .+, the model ") as caught:
            match_classes(self.table(*dataset), self.table(*model))
        assert caught.value.hint
        assert all(name in caught.value.message for name in (*dataset, *model))
        assert ("--classes background,NAME" in caught.value.hint) == (len(dataset) < len(model) == 2)


class TestPredictions:
    def dataset(self, root: Path, *names: str, values: tuple[int, ...] = (0, 255)) -> Dataset:
        for index, name in enumerate(names):
            photo(root / f"images/{name}.png", index)
            mask(root / f"masks/{name}_mask.png", ids(*values))
        return find_dataset(str(root))

    def dice(self, dataset: Dataset, folder: Path) -> float:
        found = compare(
            dataset, dataset.pairs, find_predictions(dataset, dataset.pairs, str(folder)), workers=2
        )
        assert not found.failures, found.failures
        assert found.network is None
        return found.photo.mean("dice")

    @pytest.mark.parametrize("name", ["x/a", "x/a_mask", "a", "a-pred/a_gt", "elsewhere/deep/a"])
    def test_are_matched_by_key_or_name(self, tmp_path: Path, name: str) -> None:
        dataset = self.dataset(tmp_path / "data", "x/a", "x/b")
        mask(tmp_path / f"found/{name}.png", ids(0, 255))
        mask(tmp_path / "found/x/b.png", ids(0, 255))
        assert self.dice(dataset, tmp_path / "found") == 1

    def test_missing_ones_are_counted_and_named(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data", *"abcdefgh")
        mask(tmp_path / "found/c.png", ids(0, 255))
        with pytest.raises(SourceError, match=r"no prediction for 7 of 8 pictures: a, b, d, e, f, \.\.\."):
            find_predictions(dataset, dataset.pairs, str(tmp_path / "found"))

    def test_what_fits_twice_is_refused(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data", "x/a", "y/a")
        mask(tmp_path / "flat/a.png", ids(0, 255))
        with pytest.raises(SourceError, match=r"a\.png fits x/a and y/a"):
            find_predictions(dataset, dataset.pairs, str(tmp_path / "flat"))
        mask(tmp_path / "two/x/a_gt.png", ids(0, 255))
        mask(tmp_path / "two/x/a_seg.png", ids(0, 255))
        mask(tmp_path / "two/y/a.png", ids(0, 255))
        with pytest.raises(SourceError, match=r"several predictions for x/a: x/a_gt\.png, x/a_seg\.png"):
            find_predictions(dataset, dataset.pairs, str(tmp_path / "two"))

    @pytest.mark.parametrize("true", [(0, 255), (0, 1), (0, 1, 255)])
    @pytest.mark.parametrize("found", [(0, 255), (0, 1)])
    def test_one_class_spelled_either_way(
        self, tmp_path: Path, true: tuple[int, ...], found: tuple[int, ...]
    ) -> None:
        """(0, 1, 255) has void: 255 in a prediction is the class all the same."""
        dataset = self.dataset(tmp_path / "data", "a", values=true)
        truth = ids(*true)
        assert dataset.void == (VOID if len(true) == 3 else None)
        on = truth == 1 if len(true) == 3 else truth > 0
        mask(tmp_path / "found/a.png", np.where(on, found[1], found[0]))
        assert self.dice(dataset, tmp_path / "found") == 1

    def test_ids_of_classes_that_the_masks_number_otherwise(self, tmp_path: Path) -> None:
        for name, values in (("a", (7, 11)), ("b", (11, 8))):
            photo(tmp_path / f"data/images/{name}.png")
            mask(tmp_path / f"data/masks/{name}.png", ids(*values))
        (tmp_path / "data/classes.toml").write_text(
            "".join(
                f'[[class]]\nname = "{name}"\nid = {id}\n'
                for name, id in (("road", 7), ("car", 8), ("sky", 11))
            )
        )
        dataset = find_dataset(str(tmp_path / "data"))
        for folder, spelled in (("own", {7: 7, 8: 8, 11: 11}), ("plain", {7: 0, 8: 1, 11: 2})):
            for name, values in (("a", (7, 11)), ("b", (11, 8))):
                mask(tmp_path / f"{folder}/{name}.png", ids(*(spelled[value] for value in values)))
            assert self.dice(dataset, tmp_path / folder) == 1, folder

    def test_the_output_of_a_run_stands_for_its_masks(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data", "a", values=(0, 1))
        mask(tmp_path / "out/masks/a.png", ids(0, 255))
        (tmp_path / "out/run.json").write_text('{"unet_batch": "1"}')
        assert self.dice(dataset, tmp_path / "out") == self.dice(dataset, tmp_path / "out/masks") == 1
        (tmp_path / "other").mkdir()
        (tmp_path / "other/run.json").write_text('{"unet_batch": "1"}')
        with pytest.raises(SourceError, match="a run's output without masks"):
            find_predictions(dataset, dataset.pairs, str(tmp_path / "other"))

    def test_what_cannot_be_compared_is_a_failure_of_its_own(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data", *"abcd")
        mask(tmp_path / "found/a.png", ids(0, 255))
        mask(tmp_path / "found/b.png", ids(0, 255, size=(12, 16)))
        mask(tmp_path / "found/c.png", ids(0, 7, 255))
        (tmp_path / "found/d.png").write_bytes(b"")
        predictions = find_predictions(dataset, dataset.pairs, str(tmp_path / "found"))
        found = compare(dataset, dataset.pairs, predictions, workers=2)
        assert [each.key for each in found.photo.counts] == ["a"]
        messages = [failure.message for failure in found.failures]
        assert "the prediction is 12x16, the mask 24x32" in messages[0]
        assert "unexpected value 7" in messages[1]
        assert "an empty file" in messages[2]

    def test_soft_edges(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path / "data", "a")
        soft = np.repeat(np.repeat([0, 40, 90, 200, 255], [100, 1, 1, 1, 97])[None], 50, 0)
        mask(tmp_path / "data/masks/a_mask.png", 255 * (soft >= 128))
        mask(tmp_path / "found/a.png", soft)
        assert self.dice(dataset, tmp_path / "found") == 1

    def test_masks_against_masks(self, tmp_path: Path) -> None:
        for name, value in (("a_0", 255), ("a_1", 255), ("b_0", 0), ("b_1", 255)):
            mask(tmp_path / f"true/{name}_mask.png", ids(0, 255))
            mask(tmp_path / f"found/{name}.png", ids(0, value))
        assert is_mask_folder(str(tmp_path / "true"))
        assert not is_mask_folder(str(tmp_path))
        dataset = find_masks(str(tmp_path / "true"))
        assert [(pair.key, pair.group) for pair in dataset.pairs] == [
            ("a_0", "a"),
            ("a_1", "a"),
            ("b_0", "b"),
            ("b_1", "b"),
        ]
        assert self.dice(dataset, tmp_path / "found") == pytest.approx(2 * 3 / (3 + 4))

    def test_masks_of_one_name_are_an_error(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png", "b.tif", "c.png"):
            mask(tmp_path / name, ids(0, 1))
        with pytest.raises(SourceError, match=r"b\.png and b\.tif are 2 masks of one name"):
            find_masks(str(tmp_path))

    def test_annotations_as_truth(self, tmp_path: Path) -> None:
        pytest.importorskip("pycocotools", reason="needs pycocotools")
        photo(tmp_path / "data/images/a.png", size=(20, 30))
        square = {
            "id": 1,
            "image_id": 1,
            "category_id": 5,
            "iscrowd": 0,
            "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]],
        }
        document = {
            "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
            "annotations": [square],
            "categories": [{"id": 5, "name": "cell"}],
        }
        (tmp_path / "data/annotations.json").write_text(json.dumps(document))
        dataset = find_dataset(str(tmp_path / "data"))
        found = np.zeros((20, 30), np.uint8)
        found[5:15, 5:15] = 255
        mask(tmp_path / "found/a.png", found)
        assert self.dice(dataset, tmp_path / "found") == 1


class TestSheet:
    CAR = ClassTable(("car",), ((200, 40, 255),))

    def drawn(self, tmp_path: Path, rows: list[Comparison], classes: ClassTable = CAR) -> np.ndarray:
        (tmp_path / "sheet.jpg").write_bytes(comparison_sheet(rows, classes))
        return images.read(str(tmp_path / "sheet.jpg")).pixels.astype(int)

    def near(self, pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((np.abs(pixels - np.array(colour)).max(axis=-1) < 40).sum())

    def test_missed_and_invented_have_their_colours(self, tmp_path: Path) -> None:
        grey = np.full((*SIZE, 3), 120, np.uint8)
        sheet = self.drawn(tmp_path, [Comparison("a", "Dice 0.8", grey, half(60), half(40))])
        area = 280 * 320 / 5
        assert sheet.shape[1] == pytest.approx(4 * 320, rel=0.05)
        assert self.near(sheet, (235, 90, 0)) > area / 2, "missed"
        assert self.near(sheet, (0, 100, 235)) < area / 20, "invented, in the legend alone"
        invented = self.drawn(tmp_path, [Comparison("a", "Dice 0.8", grey, half(40), half(60))])
        assert self.near(invented, (0, 100, 235)) > area / 2

    def test_thin_errors_of_large_photos_can_be_seen(self, tmp_path: Path) -> None:
        truth = np.zeros((1280, 1918), np.uint8)
        truth[:, 900:903] = 1
        sheet = self.drawn(tmp_path, [Comparison("a", "", None, truth, np.zeros_like(truth))])
        assert self.near(sheet, (235, 90, 0)) > 200

    def test_several_classes_void_and_other_shapes(self, tmp_path: Path) -> None:
        names = ("background", *(f"a class with a long name {n}" for n in range(12)))
        classes = ClassTable(names, tuple((20 * n, 255 - 20 * n, 128) for n in range(13)))
        truth, found = np.full((90, 30), 3, np.uint8), np.full((90, 30), 5, np.uint8)
        truth[:20] = VOID
        rows = [
            Comparison("ä" * 200, "portrait", None, truth, found),
            Comparison("b", "", None, half(9), half(9)),
        ]
        sheet = self.drawn(tmp_path, rows, classes)
        assert self.near(sheet, (150, 30, 160)) > 5000, "another class"
        assert self.near(sheet, (150, 150, 150)) > 1000, "void"

    def test_rows_are_read_again(self, tmp_path: Path) -> None:
        dataset = one_class(tmp_path, 40)
        with Segmenter(FakeBackend()) as segmenter:
            row = comparison(dataset, dataset.pairs[0], segmenter, "Dice 0.9")
        assert (row.key, row.caption) == ("g0_0", "Dice 0.9")
        assert np.array_equal(row.truth, half(40))
        assert np.array_equal(row.found, half(48))
        assert row.pixels is not None
        assert row.pixels.shape == (*SIZE, 3)


def test_pooled_figures_are_those_of_the_counts(tmp_path: Path) -> None:
    found = judged(one_class(tmp_path, 48, 40, 20))
    expected = scores([count(half(48), half(right), 2) for right in (48, 40, 20)])
    assert found.photo.scores.as_dict(["a", "b"]) == expected.as_dict(["a", "b"])


class TestObjects:
    def test_are_those_of_the_masks_at_the_photos_size(self, tmp_path: Path) -> None:
        """Two stripes of which one is found, in each of two pictures."""
        both = np.zeros(SIZE, np.uint8)
        both[:, 8:24] = both[:, 48:80] = 1
        for name in ("a_0", "b_0"):
            shown(tmp_path / f"images/{name}.png", 255 * both * (np.arange(SIZE[1]) > 40))
            mask(tmp_path / f"masks/{name}.png", 255 * both)
        dataset = find_dataset(str(tmp_path))
        with Segmenter(FakeBackend(), workers=2) as segmenter:
            found = evaluate(dataset, dataset.pairs, segmenter, objects=True)
        assert found.objects is not None
        assert found.objects.names == ("foreground",)
        assert not found.objects.annotated
        assert found.objects.headline("ap") == found.objects.headline("ap50") == pytest.approx(1 / 2)
        assert found.objects.headline("pq") == pytest.approx(1 / 1.5)
        assert found.objects.intervals["pq"] == pytest.approx((1 / 1.5, 1 / 1.5))
        assert [each.key for each in found.objects.counts] == ["a_0", "b_0"]
        assert found.as_dict()["objects"]["true"] == {"foreground": 4}
        report = EvaluationReport(dataset, dataset.pairs, found)
        rows = list(csv.DictReader(report.pictures_csv().decode().splitlines()))
        assert [row["objects_ap_foreground"] for row in rows] == ["0.500000"] * 2
        assert [row["objects_found_foreground"] for row in rows] == ["1"] * 2

    def test_nobody_asked_for_them(self, tmp_path: Path) -> None:
        found = judged(one_class(tmp_path, 48, 48))
        assert found.objects is None
        assert found.as_dict()["objects"] is None

    def test_none_could_be_judged(self, tmp_path: Path) -> None:
        dataset = one_class(tmp_path, 48)
        (tmp_path / "images/g0_0.png").write_bytes(b"")
        with Segmenter(FakeBackend(), workers=2) as segmenter:
            found = evaluate(dataset, dataset.pairs, segmenter, objects=True)
        assert found.as_dict()["objects"] is None
        EvaluationReport(dataset, dataset.pairs, found).pictures_csv()

    def test_annotations_part_what_touches(self, tmp_path: Path) -> None:
        """Two boxes side by side, found as they are drawn: as one."""
        pytest.importorskip("pycocotools", reason="needs pycocotools")
        boxes = [[0, 0, 20, 0, 20, 30, 0, 30], [20, 0, 44, 0, 44, 30, 20, 30]]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "segmentation": [box], "iscrowd": 0}
                for n, box in enumerate(boxes)
            ],
        }
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        drawn = np.zeros(SIZE, np.uint8)
        drawn[:30, :44] = 1
        shown(tmp_path / "images/a.png", 255 * drawn)
        mask(tmp_path / "found/a.png", 255 * drawn)
        dataset = find_dataset(str(tmp_path))
        predictions = find_predictions(dataset, dataset.pairs, str(tmp_path / "found"))
        found = compare(dataset, dataset.pairs, predictions, objects=True, workers=1)
        assert found.photo.mean("dice") == 1
        assert found.objects is not None
        assert found.objects.annotated
        assert (found.objects.scores.true[0], found.objects.scores.found[0]) == (2, 1)
        assert found.objects.headline("ap50") == pytest.approx(1 / 2), "24 of 44 columns are an IoU of 0.545"


class TestChosenClasses:
    def three(self, root: Path) -> Dataset:
        """Class 2 is found as 0."""
        truth = np.repeat(ids(0, 1, 2, 2, size=(1, 4)), 24, axis=1).repeat(64, axis=0).astype(np.uint8)
        mask(root / "masks/a.png", truth)
        mask(root / "found/a.png", np.where(truth == 2, 0, truth))
        names = ("background", "road", "car")
        (root / "classes.toml").write_text("".join(f'[[class]]\nname = "{name}"\n' for name in names))
        shown(root / "images/a.png", 80 * truth)
        return find_dataset(str(root))

    def compared(self, dataset: Dataset, **options: object) -> Evaluation:
        predictions = find_predictions(dataset, dataset.pairs, f"{dataset.root}/found")
        return compare(dataset, dataset.pairs, predictions, workers=1, **options)

    def test_means_are_over_them(self, tmp_path: Path) -> None:
        dataset = self.three(tmp_path)
        assert dataset.classes.names == ("background", "road", "car")
        whole = self.compared(dataset)
        part = self.compared(dataset, classes=("car", "road"))
        assert (whole.photo.judged, part.photo.judged) == ((0, 1, 2), (1, 2))
        assert whole.photo.mean("iou") == pytest.approx((1 / 3 + 1 + 0) / 3)
        assert part.photo.mean("iou") == pytest.approx((1 + 0) / 2)
        assert part.as_dict()["counted"] == ["road", "car"]

    def test_objects_of_the_background_only_if_it_is_named(self, tmp_path: Path) -> None:
        dataset = self.three(tmp_path)
        found = self.compared(dataset, objects=True).objects
        assert found is not None
        assert found.names == ("road", "car")
        found = self.compared(dataset, objects=True, classes=("background",)).objects
        assert found is not None
        assert found.names == ("background",)

    def test_the_background_of_one_class(self, tmp_path: Path) -> None:
        """Where masks mark membranes, the cells are what lies between them."""
        dataset = one_class(tmp_path, 48, 48)
        with Segmenter(FakeBackend(), workers=2) as segmenter:
            found = evaluate(dataset, dataset.pairs, segmenter, classes=("background",), objects=True)
        assert found.photo.judged == (0,)
        assert found.photo.mean("dice") == 1
        assert found.objects is not None
        assert found.objects.headline("rand") == 1

    def test_a_class_that_is_none_is_named(self, tmp_path: Path) -> None:
        dataset = self.three(tmp_path)
        with pytest.raises(UsageError, match="there is no class 'bus', 'sky'") as caught:
            self.compared(dataset, classes=("bus", "car", "sky"))
        assert caught.value.hint == "the classes are background, road, car"
