"""COCO annotations as masks: judged by pycocotools' own, and by what people's files hold."""

from __future__ import annotations

import builtins
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from tests.helpers.datasets import SIZE, ids, mask, photo, reason
from unet_batch.datasets.check import Report, check
from unet_batch.datasets.coco import load
from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.sheet import contact_sheet
from unet_batch.errors import ImageError, SourceError, UsageError

HEIGHT, WIDTH = SIZE
CAR = {"id": 3, "name": "car"}
WHEEL = {"id": 7, "name": "wheel"}


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def filled(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    area = np.zeros(size, np.uint8)
    area[top:bottom, left:right] = 1
    return area


def run_lengths(area: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE: down the columns, background first."""
    values = area.ravel(order="F").tolist()
    counts, now = [0], 0
    for value in values:
        if value != now:
            counts.append(0)
            now = value
        counts[-1] += 1
    return {"size": list(area.shape), "counts": counts}


def compressed(area: np.ndarray) -> dict[str, Any]:
    packed = rle.encode(np.asfortranarray(area))
    return {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}


def marked(segmentation: object, image: object = 0, category: object = 3, **other: object) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, **other}


def document(
    *annotations: dict[str, Any],
    files: tuple[str, ...] = ("a_0.png",),
    categories: tuple[dict[str, Any], ...] = (CAR,),
    size: tuple[int, int] = SIZE,
) -> dict[str, Any]:
    images = [
        {"id": id, "file_name": name, "height": size[0], "width": size[1]} for id, name in enumerate(files)
    ]
    numbered = [
        {"id": 100 + place, "iscrowd": 0, **annotation} for place, annotation in enumerate(annotations)
    ]
    return {"info": {}, "images": images, "annotations": numbered, "categories": list(categories)}


def saved(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def made(root: Path, content: dict[str, Any], *, folder: str = "images", **options: Any) -> Dataset:
    for index, image in enumerate(content["images"]):
        photo(root / folder / image["file_name"], index)
    saved(root / "annotations.json", content)
    return find_dataset(str(root), **options)


def drawn(
    root: Path, *annotations: dict[str, Any], categories: tuple[dict[str, Any], ...] = (CAR,)
) -> np.ndarray:
    dataset = made(root, document(*annotations, categories=categories))
    return dataset.read_mask(dataset.pairs[0], SIZE)


def only(report: Report, kind: str, severity: str) -> tuple[str, ...]:
    found = [finding for finding in report.findings if finding.kind == kind]
    assert [finding.severity for finding in found] == [severity], report.findings
    return found[0].files


def merged_by_hand(content: dict[str, Any]) -> np.ndarray:
    """What pycocotools makes of each annotation alone, one over the other."""
    theirs = COCO()
    theirs.dataset = content
    theirs.createIndex()
    order = {
        category["id"]: number
        for number, category in enumerate(sorted(content["categories"], key=lambda c: c["id"]), 1)
    }
    out = np.zeros((content["images"][0]["height"], content["images"][0]["width"]), np.uint8)
    areas = [(annotation, theirs.annToMask(annotation)) for annotation in content["annotations"]]
    for _, area in (one for one in areas if one[0]["iscrowd"]):
        out[area > 0] = 255
    for annotation, area in sorted(
        (one for one in areas if not one[0]["iscrowd"]), key=lambda one: -int(one[1].sum())
    ):
        out[area > 0] = order[annotation["category_id"]]
    return out


SPOTS = st.tuples(
    st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, 20), st.integers(1, 20)
)
POLYGONS = st.lists(
    st.lists(
        st.tuples(st.floats(-5, WIDTH + 5, width=32), st.floats(-5, HEIGHT + 5, width=32)),
        min_size=3,
        max_size=9,
    ).map(lambda points: [number for point in points for number in point]),
    min_size=1,
    max_size=3,
)
AREAS = SPOTS.map(lambda spot: filled(spot[0], spot[1], spot[0] + spot[2], spot[1] + spot[3]))
OBJECTS = st.tuples(
    st.one_of(POLYGONS, AREAS.map(run_lengths), AREAS.map(compressed)), st.sampled_from([3, 7]), st.booleans()
)


class TestDrawing:
    @given(objects=st.lists(OBJECTS, max_size=6))
    def test_agrees_with_pycocotools(
        self, tmp_path_factory: pytest.TempPathFactory, objects: list[Any]
    ) -> None:
        annotations = [
            marked(shape, category=category, iscrowd=int(crowd)) for shape, category, crowd in objects
        ]
        content = document(*annotations, categories=(WHEEL, CAR))
        coco = load(str(saved(tmp_path_factory.getbasetemp() / "drawn.json", content)))
        (name,) = coco.entries
        decoded = coco.decode(name)
        assert np.array_equal(decoded.ids, merged_by_hand(content))
        assert (decoded.ids.dtype, decoded.ids.flags.c_contiguous, decoded.unexpected) == (np.uint8, True, "")
        assert coco.void == any(crowd for _, _, crowd in objects)
        numbers = coco.objects(name)
        assert np.array_equal(numbers > 0, np.isin(decoded.ids, (1, 2)))
        for number in range(1, numbers.max(initial=0) + 1):
            assert len(set(decoded.ids[numbers == number].tolist())) <= 1, "an object is of one class"
        assert numbers.max(initial=0) <= sum(not crowd for _, _, crowd in objects)

    @pytest.mark.parametrize(
        "shape", [box(4, 2, 12, 10), run_lengths(filled(4, 2, 12, 10)), compressed(filled(4, 2, 12, 10))]
    )
    def test_three_ways_to_say_the_same(self, tmp_path: Path, shape: object) -> None:
        assert np.array_equal(drawn(tmp_path, marked(shape)), filled(4, 2, 12, 10))

    def test_several_polygons_are_one_object(self, tmp_path: Path) -> None:
        shape = box(0, 0, 4, 4) + box(20, 10, 24, 14)
        assert np.array_equal(drawn(tmp_path, marked(shape)), filled(0, 0, 4, 4) + filled(20, 10, 24, 14))

    @pytest.mark.parametrize("first", [3, 7])
    def test_the_smaller_object_wins_whatever_the_order(self, tmp_path: Path, first: int) -> None:
        shapes = {3: box(2, 2, 20, 20), 7: box(4, 4, 10, 10)}
        annotations = [marked(shapes[id], category=id) for id in (first, 10 - first)]
        values = drawn(tmp_path, *annotations, categories=(CAR, WHEEL))
        assert np.array_equal(values, filled(2, 2, 20, 20) + filled(4, 4, 10, 10))

    def test_crowds_are_void_but_for_objects(self, tmp_path: Path) -> None:
        crowd = marked(run_lengths(filled(0, 0, 16, 24)), iscrowd=1)
        dataset = made(tmp_path, document(marked(box(8, 8, 12, 12)), crowd))
        expected = np.where(filled(8, 8, 12, 12), 1, filled(0, 0, 16, 24) * 255)
        assert np.array_equal(dataset.read_mask(dataset.pairs[0], SIZE), expected)
        assert dataset.void == 255
        assert reason(dataset, "the smaller one counts; iscrowd is void (1 regions)")

    def test_objects_are_numbered_from_the_largest(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(marked(box(4, 4, 10, 10)), marked(box(2, 2, 20, 20))))
        numbers = dataset.masks.objects(dataset.pairs[0].mask)
        assert np.array_equal(numbers, filled(2, 2, 20, 20) + filled(4, 4, 10, 10))
        assert numbers.dtype == np.int32

    @given(
        shapes=st.lists(st.one_of(POLYGONS, AREAS.map(run_lengths), AREAS.map(compressed)), max_size=5),
        noise=st.integers(0, 99),
    )
    def test_objects_agree_with_pycocotools(
        self, tmp_path_factory: pytest.TempPathFactory, shapes: list[Any], noise: int
    ) -> None:
        specks = np.random.default_rng(noise).random(SIZE) < noise / 99
        annotations = [marked(shape) for shape in (*shapes, compressed(specks.astype(np.uint8)))]
        content = document(*annotations)
        coco = load(str(saved(tmp_path_factory.getbasetemp() / "numbered.json", content)))
        (name,) = coco.entries
        areas = [merged_by_hand(document(each)) > 0 for each in annotations]
        expected = np.zeros(SIZE, np.int32)
        for number, area in enumerate(sorted(areas, key=lambda area: -int(area.sum())), 1):
            expected[area] = number
        assert np.array_equal(coco.objects(name), expected)

    def test_a_small_object_of_a_large_picture_costs_little(self, tmp_path: Path) -> None:
        """Drawing 400 in one of 12 megapixels took six seconds when each was decoded as the whole picture."""
        content = document(*(marked(box(9 * i, 5, 9 * i + 6, 40)) for i in range(400)))
        content["images"][0].update(height=3000, width=4000)
        coco = load(str(saved(tmp_path / "large.json", content)))
        (name,) = coco.entries
        begun = time.process_time()
        numbers = coco.objects(name)
        assert time.process_time() - begun < 1.5
        assert np.array_equal(np.unique(numbers[20]), np.arange(401))

    def test_from_many_threads(self, tmp_path: Path) -> None:
        boxes = [box(i, i, i + 6, i + 4) for i in range(12)]
        names = tuple(f"x{i}.png" for i in range(12))
        dataset = made(tmp_path, document(*(marked(shape, i) for i, shape in enumerate(boxes)), files=names))
        expected = [dataset.read_mask(pair) for pair in dataset.pairs]
        with ThreadPoolExecutor(8) as pool:
            assert all(map(np.array_equal, pool.map(dataset.read_mask, dataset.pairs * 4), expected * 4))


class TestClasses:
    def test_one_category(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8))))
        assert (dataset.classes.names, dataset.void) == (("car",), None)
        assert reason(dataset, "one category: one class, called car")

    def test_several_in_the_order_of_their_ids(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8), category=7), categories=(WHEEL, CAR)))
        assert dataset.classes.names == ("background", "car", "wheel")
        assert dataset.classes.colours[0] == (0, 0, 0)
        assert len(set(dataset.classes.colours)) == 3
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), 2 * filled(0, 0, 8, 8))
        assert reason(dataset, "2 categories: classes 1 to 2 in the order of their ids, 0 is background")

    def test_a_category_called_background_is_background(self, tmp_path: Path) -> None:
        ground = {"id": 1, "name": "Background"}
        dataset = made(
            tmp_path,
            document(
                marked(box(0, 0, 20, 20)), marked(box(0, 0, 8, 8), category=1), categories=(ground, CAR)
            ),
        )
        assert dataset.classes.names == ("car",)
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), filled(0, 0, 20, 20) - filled(0, 0, 8, 8))

    def test_a_heading_is_no_class(self, tmp_path: Path) -> None:
        heading = {"id": 0, "name": "vehicles", "supercategory": "none"}
        car = {**CAR, "supercategory": "vehicles"}
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8)), categories=(heading, car)))
        assert dataset.classes.names == ("car",)
        assert reason(dataset, "'vehicles' only stands above others: not a class")

    def test_a_category_under_its_own_name_stays(self, tmp_path: Path) -> None:
        person = {"id": 1, "name": "person", "supercategory": "person"}
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8)), categories=(person, CAR)))
        assert dataset.classes.names == ("background", "person", "car")

    def test_254_and_one_more(self, tmp_path: Path) -> None:
        many = tuple({"id": id, "name": f"c{id}"} for id in range(1, 256))
        content = document(marked(box(0, 0, 8, 8), category=254), categories=many[:254])
        coco = load(str(saved(tmp_path / "most.json", content)))
        assert len(coco.classes.names) == 255
        assert coco.decode(next(iter(coco.entries))).ids.max() == 254
        with pytest.raises(UsageError, match="255 categories, 1 to 254 expected"):
            load(str(saved(tmp_path / "more.json", {**content, "categories": many})))

    def test_classes_toml_is_not_used_without_a_word(self, tmp_path: Path) -> None:
        (tmp_path / "classes.toml").write_text("[[class]]\nname = 'x'\n")
        assert reason(made(tmp_path, document(marked(box(0, 0, 8, 8)))), "classes.toml is not used")


class TestPairs:
    def test_are_found_and_grouped_like_files(self, tmp_path: Path) -> None:
        names = ("a_0.png", "a_1.png", "b_0.png", "sub/b_1.png")
        dataset = made(
            tmp_path,
            document(*(marked(box(0, 0, 8, 8), i) for i in range(4)), files=names),
            group_by="([ab])_",
        )
        assert [(pair.key, pair.group) for pair in dataset.pairs] == [
            ("a_0", "a"),
            ("a_1", "a"),
            ("b_0", "b"),
            ("sub/b_1", "b"),
        ]
        assert dataset.pairs[3].mask == f"{tmp_path / 'annotations.json'}: sub/b_1.png"
        assert (dataset.unmatched_images, dataset.unmatched_masks, dataset.ambiguous) == ((), (), {})
        assert reason(dataset, "4 of 4 images in the file are there")

    @pytest.mark.parametrize("name", ["images/a_0.png", "./a_0.png", "images\\a_0.png"])
    def test_other_ways_to_write_the_path(self, tmp_path: Path, name: str) -> None:
        photo(tmp_path / "images/a_0.png")
        saved(tmp_path / "annotations.json", document(marked(box(0, 0, 8, 8)), files=(name,)))
        assert [pair.key for pair in find_dataset(str(tmp_path)).pairs] == ["a_0"]

    def test_the_folder_itself_holds_the_images(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8))), folder=".")
        assert reason(dataset, "images are in .")

    def test_images_deeper_than_their_names(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8))), folder="images/train2017")
        assert [pair.key for pair in dataset.pairs] == ["train2017/a_0"]
        assert reason(dataset, "1 in folders that file_name does not name")

    def test_a_folder_in_a_name_is_never_dropped(self, tmp_path: Path) -> None:
        """Neither train/ alone nor the end of the name would tell the two apart."""
        for lot in ("train", "val"):
            photo(tmp_path / lot / "1.png", len(lot))
        content = document(marked(box(0, 0, 8, 8)), files=("val/1.png", "test/1.png"))
        saved(tmp_path / "annotations.json", content)
        dataset = find_dataset(str(tmp_path))
        assert [pair.key for pair in dataset.pairs] == ["val/1"]
        assert [name.rpartition(": ")[2] for name in dataset.unmatched_masks] == ["test/1.png"]

    def test_what_has_no_partner(self, tmp_path: Path) -> None:
        shapes = (
            marked(box(0, 0, 8, 8)),
            marked(box(0, 0, 8, 8), 99),
            {**marked(box(0, 0, 8, 8)), "image_id": None},
        )
        made(tmp_path, document(*shapes, files=("a_0.png", "gone.png")))
        (tmp_path / "images/gone.png").rename(tmp_path / "images/new.png")
        dataset = find_dataset(str(tmp_path))
        file = tmp_path / "annotations.json"
        assert dataset.unmatched_images == (str(tmp_path / "images/new.png"),)
        assert dataset.unmatched_masks == (
            f"{file}: gone.png",
            f"{file}: annotation 101 is of image 99, which is not in the file",
            f"{file}: annotation 102 is of image None, which is not in the file",
        )
        report = check(dataset)
        assert only(report, "missing mask", "warning") == ("images/new.png",)
        assert only(report, "extra mask", "warning")[0] == "annotations.json: gone.png"

    def test_more_images_than_the_file_lists_may_be_meant(self, tmp_path: Path) -> None:
        for index in range(5):
            photo(tmp_path / f"images/other{index}.png", 10 + index)
        files = ("a_0.png", "b_0.png")
        shapes = [marked(box(0, 0, 8, 8)), marked(box(0, 0, 8, 8), 1)]
        assert check(made(tmp_path, document(*shapes, files=files))).ok

    def test_one_file_twice_and_two_files_at_once(self, tmp_path: Path) -> None:
        for name in ("a_0.png", "x/b.png", "y/b.png", "c.png"):
            photo(tmp_path / "images" / name, len(name))
        files = ("a_0.png", "a_0.png", "b.png", "c.png")
        saved(tmp_path / "annotations.json", document(marked(box(0, 0, 8, 8), 3), files=files))
        dataset = find_dataset(str(tmp_path))
        assert [pair.key for pair in dataset.pairs] == ["c"]
        assert dataset.unmatched_images == ()
        shown = only(check(dataset), "ambiguous match", "warning")
        assert shown[0].startswith(
            "images/a_0.png: annotations.json: a_0.png (image 0), annotations.json: a_0.png (image 1)"
        )
        assert shown[1] == "images/x/b.png: images/y/b.png, annotations.json: b.png"

    def test_images_without_annotations_are_kept(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8)), files=("a.png", "b.png", "c.png")))
        assert len(dataset.pairs) == 3
        assert not dataset.read_mask(dataset.pairs[2], SIZE).any()
        assert reason(
            dataset, "3 of 3 images in the file are there; 2 without annotations are all background"
        )

    def test_none_is_there(self, tmp_path: Path) -> None:
        photo(tmp_path / "images/z.png")
        saved(tmp_path / "annotations.json", document(marked(box(0, 0, 8, 8))))
        with pytest.raises(SourceError, match=r"none of its 1 images is in .*, such as a_0\.png") as error:
            find_dataset(str(tmp_path))
        assert "--images" in error.value.hint


class TestWhichFile:
    @pytest.mark.parametrize(
        "name",
        [
            "annotations.json",
            "_annotations.coco.json",
            "instances_val.json",
            "annotations/instances_default.json",
            "my-coco.json",
        ],
    )
    def test_the_only_one_is_taken(self, tmp_path: Path, name: str) -> None:
        photo(tmp_path / "images/a_0.png")
        saved(tmp_path / name, document(marked(box(0, 0, 8, 8))))
        saved(tmp_path / "annotations/captions_val.json", [])
        saved(tmp_path / "package.json", {})
        dataset = find_dataset(str(tmp_path))
        assert reason(
            dataset,
            f"annotations are in {name}: no folder of masks, and no other COCO file; images are in images",
        )

    def test_among_the_images(self, tmp_path: Path) -> None:
        """As Roboflow lays it out; DATASET may be the folder above, too."""
        photo(tmp_path / "train/a_0.png")
        saved(tmp_path / "train/_annotations.coco.json", document(marked(box(0, 0, 8, 8))))
        for folder in (tmp_path, tmp_path / "train"):
            assert [pair.key for pair in find_dataset(str(folder)).pairs] == ["a_0"]

    def test_several(self, tmp_path: Path) -> None:
        photo(tmp_path / "images/a_0.png")
        for part in ("train", "val"):
            saved(tmp_path / f"annotations/instances_{part}.json", document(marked(box(0, 0, 8, 8))))
        with pytest.raises(
            UsageError, match=r"2 files may hold .*instances_train\.json, annotations.instances_val\.json"
        ) as error:
            find_dataset(str(tmp_path))
        assert "--coco" in error.value.hint
        dataset = find_dataset(str(tmp_path), coco="annotations/instances_val.json")
        assert reason(dataset, "annotations are in annotations/instances_val.json; images")

    def test_masks_come_first(self, tmp_path: Path) -> None:
        made_from_masks = tmp_path / "annotations/a_0.png"
        mask(made_from_masks, ids(0, 1))
        dataset = made(tmp_path, document(marked(box(0, 0, 8, 8))))
        assert dataset.pairs[0].mask == str(made_from_masks)

    def test_masks_and_coco_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"both masks \(m\) and COCO annotations \(c\.json\)"):
            find_dataset(str(tmp_path), masks="m", coco="c.json")

    def test_none(self, tmp_path: Path) -> None:
        photo(tmp_path / "images/a_0.png")
        with pytest.raises(SourceError, match="no folder of masks") as error:
            find_dataset(str(tmp_path))
        assert "--coco" in error.value.hint
        with pytest.raises(SourceError, match=r"typo\.json: no such file"):
            find_dataset(str(tmp_path), coco="typo.json")

    def test_without_pycocotools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def without(name: str, *rest: Any, **options: Any) -> Any:
            if name.startswith("pycocotools"):
                raise ModuleNotFoundError(name)
            return real(name, *rest, **options)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(UsageError, match="need pycocotools") as error:
            made(tmp_path, document(marked(box(0, 0, 8, 8))))
        assert error.value.hint == 'pip install "unet-batch[coco]"'


FINE = marked(box(0, 0, 8, 8))
TOTAL = HEIGHT * WIDTH


class TestFaults:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not JSON: Expecting"),
            ("[" * 100_000, "is not JSON: "),
            ("[]", "is not a COCO file: it holds a list"),
            ("7", "is not a COCO file: it holds a single value"),
            ({"images": []}, "has no list of annotations or categories"),
            ({**document(FINE), "images": []}, "names no images"),
            ({**document(FINE), "categories": []}, "0 categories, 1 to 254"),
            (
                {**document(FINE), "categories": [{"id": "1", "name": "a"}]},
                r"categories\[0\] needs a whole number 'id'",
            ),
            ({**document(FINE), "categories": [CAR, CAR]}, "two categories are the id 3"),
            (
                {**document(FINE), "categories": [CAR, {"id": 4, "name": "car"}]},
                "two categories are called 'car'",
            ),
            ({**document(FINE), "images": document()["images"] * 2}, "two images have the id 0"),
            (document(marked([]), marked(None)), "none of its 2 annotations has a segmentation: boxes only"),
        ],
    )
    def test_of_the_whole_file(self, tmp_path: Path, content: object, message: str) -> None:
        photo(tmp_path / "images/a_0.png")
        file = saved(tmp_path / "annotations.json", content)
        with pytest.raises(UsageError, match=message) as error:
            find_dataset(str(tmp_path))
        assert error.value.message.startswith(f"{file}: ")
        assert error.value.hint

    @pytest.mark.parametrize(
        ("annotation", "message"),
        [
            (marked([[1, 2, 3, 4, 5, 6, 7]]), "a polygon of 7 values"),
            (marked([[1, 2, 3, 4]]), "a polygon of 4 values"),
            (marked([1, 2, 3, 4, 5, 6]), "not a list of polygons"),
            (marked([[1, 2, 3, 4, 5, "6"]]), "not a list of polygons"),
            (marked([box(0, 0, 4, 4)]), "not a list of polygons"),
            (marked("polygon"), "neither a list of polygons nor an RLE"),
            (marked({"counts": [TOTAL]}), "neither a list of polygons nor an RLE"),
            (marked(box(0, 0, 1e9, 8)), r"reaches x = 1e\+09, but the image ends at 32"),
            (marked(box(0, -99, 8, 8)), "reaches y = -99, but the image ends at 24"),
            (marked([[0, 0, float("nan"), 4, 5, 5]]), "reaches x = nan"),
            (marked([[0, 0, float("inf"), 4, 5, 5]]), "reaches x = inf"),
            (
                marked(run_lengths(filled(0, 0, 4, 4, (32, 24)))),
                r"RLE is for size \[32, 24\], the image is \[24, 32\]",
            ),
            (marked({"size": [*SIZE], "counts": [3, 4]}), "counts 7 pixels, the image has 768"),
            (marked({"size": [*SIZE], "counts": [TOTAL + 4, -4]}), "no numbers of pixels"),
            (marked({"size": [*SIZE], "counts": None}), "RLE has no counts"),
            (marked({"size": [*SIZE], "counts": "34"}), "fewer than the 768 pixels"),
            (marked({"size": [*SIZE], "counts": ""}), "fewer than the 768 pixels"),
            (marked({"size": [*SIZE], "counts": "0" * 100_000}), "fewer than the 768 pixels"),
            (marked({"size": [*SIZE], "counts": "oooooo0"}), "more than the 768 pixels"),
            (marked({"size": [*SIZE], "counts": "é\ud800"}), "RLE is damaged"),
            (marked([]), "has no segmentation"),
            (marked(box(0, 0, 8, 8), category=9), "the category 9 is not in the file"),
            (marked(box(0, 0, 8, 8), category=[9]), r"the category \[9\] is not in the file"),
        ],
    )
    def test_of_one_annotation_cost_one_image(
        self, tmp_path: Path, annotation: dict[str, Any], message: str
    ) -> None:
        content = document(
            marked(box(0, 0, 8, 8), 1), {**annotation, "id": 42}, files=("bad.png", "good.png")
        )
        dataset = made(tmp_path, content)
        with pytest.raises(ImageError, match=message) as error:
            dataset.read_mask(dataset.pairs[0])
        assert error.value.message.startswith(f"{tmp_path / 'annotations.json'}: bad.png: annotation 42: ")
        assert error.value.hint == "correct this annotation, or take it out of the file"
        assert dataset.read_mask(dataset.pairs[1]).any()
        report = check(dataset)
        assert only(report, "unreadable mask", "error")[0].startswith(
            "annotations.json: bad.png: annotation 42: "
        )
        assert [share.images for share in report.classes] == [1, 1]

    def test_runs_of_no_pixels_are_harmless(self, tmp_path: Path) -> None:
        """Merged as they are, they would write beyond pycocotools' memory."""
        counts = [0] * 4001 + [TOTAL]
        dotted = {
            "size": [*SIZE],
            "counts": rle.frPyObjects({"size": [*SIZE], "counts": counts}, *SIZE)["counts"].decode(),
        }
        values = drawn(
            tmp_path, marked({"size": [*SIZE], "counts": counts}), marked(dotted), marked(box(0, 0, 4, 4))
        )
        assert values.all()

    @pytest.mark.parametrize(
        "sides",
        [{}, {"height": 0, "width": 32}, {"height": "24", "width": 32}, {"height": 24.5, "width": 32}],
    )
    def test_an_image_without_a_size(self, tmp_path: Path, sides: dict[str, Any]) -> None:
        content = document(FINE)
        content["images"][0] = {"id": 0, "file_name": "a_0.png", **sides}
        dataset = made(tmp_path, content)
        with pytest.raises(ImageError, match=r"a_0\.png: has no width and height"):
            dataset.read_mask(dataset.pairs[0])

    def test_an_image_of_a_size_that_no_memory_holds(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(FINE, size=(10**6, 10**6)))
        with pytest.raises(ImageError, match="1000000x1000000"):
            dataset.read_mask(dataset.pairs[0])

    def test_images_that_cannot_be_told_are_named(self, tmp_path: Path) -> None:
        content = document(FINE)
        photo(tmp_path / "images/a_0.png")
        content["images"] += [{"id": 5}, {"file_name": "b.png"}, "c.png"]
        content["annotations"].append("d")
        file = saved(tmp_path / "annotations.json", content)
        assert find_dataset(str(tmp_path)).unmatched_masks == (
            f"{file}: images[2] has no id",
            f"{file}: images[3] has no id",
            f"{file}: annotations[1] is not an object",
            f"{file}: image 5 has no file_name",
        )

    def test_another_size_than_the_image(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, document(FINE, size=(48, 64)))
        with pytest.raises(
            ImageError, match=r"annotations\.json: a_0\.png: the image is 24x32, the mask 48x64"
        ):
            dataset.read_mask(dataset.pairs[0], SIZE)
        assert "the image is 24x32, the mask 48x64" in only(check(dataset), "size mismatch", "error")[0]

    def test_annotations_of_a_picture_as_stored_not_as_seen(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        photo(tmp_path / "images/a_0.jpg", exif=exif)
        saved(tmp_path / "annotations.json", document(FINE, files=("a_0.jpg",)))
        dataset = find_dataset(str(tmp_path))
        with pytest.raises(ImageError, match="turned by its EXIF orientation 6, the mask is not"):
            dataset.read_mask(dataset.pairs[0], (32, 24))

    def test_objects_too_thin_to_be_seen_are_counted(self, tmp_path: Path) -> None:
        specks = [marked([[5, 5, 5.1, 5, 5.1, 5.1]]), marked(box(-20, -20, -4, -4))]
        dataset = made(tmp_path, document(FINE, *specks))
        files = only(check(dataset), "objects without pixels", "warning")
        assert files == ("annotations.json: a_0.png: 2 of 3 objects: annotation 101, annotation 102",)


def test_is_shown_like_masks_from_files(tmp_path: Path) -> None:
    dataset = made(tmp_path, document(FINE, marked([[1]], 1), files=("a.png", "b.png")))
    assert contact_sheet(dataset, check(dataset)).startswith(b"\xff\xd8")
