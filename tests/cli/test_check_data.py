"""`unet-batch check-data` as a person meets it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.command import unet_batch
from tests.helpers.datasets import ids, mask, photo
from unet_batch.cli import main
from unet_batch.media import images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(("a_0", "a_1", "b_0", "b_1")):
        photo(tmp_path / f"my data/images/{name}.png", index)
        mask(tmp_path / f"my data/masks/{name}.png", ids(0, 255))
    return tmp_path / "my data"


def test_fine(root: Path) -> None:
    done = unet_batch("check-data", root)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("dataset   ")
    assert "4 of 4 images have a mask" in done.stdout
    assert "2 groups by what stands before" in done.stdout
    assert re.search(r"^  foreground +50\.00% +4$", done.stdout, re.MULTILINE)
    assert lines[-1] == "4 pairs are ready for training."
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.stdout)


def test_wrong(root: Path) -> None:
    for index in range(6):
        photo(root / f"images/c\x1b[31m_{index}.png", 10 + index)
        mask(root / f"masks/c\x1b[31m_{index}.png", ids(0, 255, size=(5, 5)))
    done = unet_batch("check-data", root)
    assert done.returncode == 1
    assert "error     size mismatch" in done.stdout
    assert "the image is 24x32, the mask 5x5" in done.stdout
    assert "and 2 more (--json lists them)" in done.stdout
    assert "fix: export masks from the picture" in done.stdout
    assert done.stdout.splitlines()[-1] == "A training on these 10 pairs would be wrong: 1 error."
    assert "\x1b" not in done.stdout + done.stderr, "a file name must not steer the terminal"


def test_splits(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a_0\nb_0\n")
    (tmp_path / "val.txt").write_text("a_1.png\n")
    done = unet_batch("check-data", root, "--split", tmp_path / "train.txt", "--split", tmp_path / "val.txt")
    assert done.returncode == 1
    assert "2 images in 2 groups are in train" in done.stdout
    assert "group 'a' is in train and val" in done.stdout
    own = unet_batch(
        "check-data",
        root,
        "--split",
        tmp_path / "train.txt",
        "--split",
        tmp_path / "val.txt",
        "--group-by",
        "(.+)",
    )
    assert own.returncode == 0


def test_json_and_sheet(root: Path, tmp_path: Path) -> None:
    done = unet_batch("check-data", root, "--json", "--sheet", tmp_path / "new/sheet.jpg")
    report = json.loads(done.stdout)
    assert (report["ok"], report["pairs"], report["groups"], report["findings"]) == (True, 4, 2, [])
    assert report["classes"][1] == {"name": "foreground", "pixels": 0.5, "images": 4}
    assert done.stderr == ""
    assert images.read(str(tmp_path / "new/sheet.jpg")).size[1] > 900


class TestCoco:
    @pytest.fixture
    def root(self, root: Path) -> Path:
        """The pictures of before, cars and wheels drawn in COCO's way, and no masks."""
        shutil.rmtree(root / "masks")
        names = ("a_0", "a_1", "b_0", "b_1")
        shapes = ([[4, 2, 20, 2, 20, 20, 4, 20]], [[6, 12, 10, 12, 10, 16, 6, 16]])
        document = {
            "images": [
                {"id": i, "file_name": f"{name}.png", "height": 24, "width": 32}
                for i, name in enumerate(names)
            ],
            "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "wheel"}],
            "annotations": [
                {"id": 2 * i + k, "image_id": i, "category_id": k + 1, "segmentation": shape, "iscrowd": 0}
                for i in range(4)
                for k, shape in enumerate(shapes)
            ],
        }
        (root / "annotations").mkdir()
        (root / "annotations/instances_all.json").write_text(json.dumps(document))
        return root

    @pytest.mark.parametrize("named", [[], ["--coco", "annotations/instances_all.json"]])
    def test_fine(self, root: Path, tmp_path: Path, named: list[str]) -> None:
        done = unet_batch("check-data", root, *named, "--sheet", tmp_path / "sheet.jpg")
        assert (done.returncode, done.stderr) == (0, "")
        assert "annotations are in annotations/instances_all.json" in done.stdout
        assert "2 groups by what stands before" in done.stdout
        assert re.search(r"^  wheel +2\.08% +4$", done.stdout, re.MULTILINE)
        assert done.stdout.splitlines()[-1] == "4 pairs are ready for training."
        assert images.read(str(tmp_path / "sheet.jpg")).size[1] > 900

    def test_wrong(self, root: Path, tmp_path: Path) -> None:
        file = root / "annotations/instances_all.json"
        document = json.loads(file.read_text())
        document["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
        document["images"][1]["width"] = 640
        document["images"].append({"id": 9, "file_name": "gone.png", "height": 24, "width": 32})
        file.write_text(json.dumps(document))
        (tmp_path / "train.txt").write_text("a_0\nb_0\n")
        (tmp_path / "val.txt").write_text("b_1.png\n")
        done = unet_batch(
            "check-data", root, "--split", tmp_path / "train.txt", "--split", tmp_path / "val.txt"
        )
        assert done.returncode == 1
        assert "instances_all.json: a_0.png: annotation 1: a polygon of 7 values" in done.stdout
        assert "the image is 24x32, the mask 24x640" in done.stdout
        assert "annotations/instances_all.json: gone.png" in done.stdout
        assert "group 'b' is in train and val" in done.stdout
        assert (
            done.stdout.splitlines()[-1]
            == "A training on these 4 pairs would be wrong: 3 errors and 1 warning."
        )

    def test_two_files(self, root: Path) -> None:
        (root / "annotations/instances_val.json").write_text("{}")
        done = unet_batch("check-data", root)
        assert done.returncode == 2
        assert "2 files may hold COCO annotations" in done.stderr
        assert "hint: name one of them with --coco" in done.stderr

    def test_torch_is_not_needed(self, root: Path) -> None:
        test_imports_no_torch(root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: no such folder"),
        (["{root}", "--masks", "typo"], "typo: no such folder"),
        (["{root}", "--coco", "typo.json"], "typo.json: no such file"),
        (["{root}", "--coco", "images/a_0.png"], "images/a_0.png: is not JSON"),
        (
            ["{root}", "--coco", "c.json", "--masks", "masks"],
            "both masks (masks) and COCO annotations (c.json) are named",
        ),
        (["{root}", "--group-by", "("], "is not a regular expression"),
        (["{root}", "--split", "none.txt"], "none.txt: cannot be read"),
        ([], "Missing argument 'DATASET..."),
    ],
)
def test_wrong_usage_is_exit_code_2(root: Path, arguments: list[str], message: str) -> None:
    done = unet_batch("check-data", *(part.format(root=root) for part in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_two_parts_of_one_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a_0\n")
    done = unet_batch("check-data", root, "--split", tmp_path / "val.txt", "--split", tmp_path / "val.txt")
    assert done.returncode == 2
    assert "two parts are called val" in done.stderr


def test_imports_no_torch(root: Path) -> None:
    code = (
        "import sys\nfrom unet_batch.cli import main\n"
        f"try: main(['check-data', {str(root)!r}])\nexcept SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "count"), [("camvid", 367), ("dsb2018", 332), ("isbi2012", 24)])
def test_real_data(data: Path, name: str, count: int) -> None:
    done = unet_batch("check-data", data / name)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"{count} pairs are ready for training."


def test_several_are_checked_as_a_training_joins_them(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    found = json.loads(CliRunner().invoke(main, ["check-data", str(root), str(other), "--json"]).stdout)
    assert (found["pairs"], found["groups"]) == (8, 2)
    assert any(reason.startswith("other: ") for reason in found["reasons"])
    (tmp_path / "one.txt").write_text(f"{root.name}/a_0\n")
    (tmp_path / "two.txt").write_text("other/a_0\n")
    lists = [f"--split={tmp_path / name}.txt" for name in ("one", "two")]
    leaked = CliRunner().invoke(main, ["check-data", str(root), str(other), *lists])
    assert leaked.exit_code == 1
    assert "group 'a' is in one and two" in leaked.output


def test_pictures_that_a_list_names(root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text(f"{root}/images/a_1.png\n{root}/images/gone.png\n")
    done = CliRunner().invoke(
        main, ["check-data", str(root), f"@{bad}", "--sheet", str(tmp_path / "bad.jpg")]
    )
    assert done.exit_code == 0, done.output
    assert "1 of 4 pairs: what the list names" in done.output
    assert "1 of 2 pictures named have no mask here" in done.output
    assert "1 pair is ready for training: 1 warning." in done.output
    assert images.read(str(tmp_path / "bad.jpg")).size[0] < 200, "one row: the others are not in it"
    for wrong, what in (
        ([f"@{bad}"], "no dataset"),
        ([str(root), f"@{bad}", "--split", str(bad)], "--split"),
    ):
        done = CliRunner().invoke(main, ["check-data", *wrong])
        assert done.exit_code == 2
        assert what in done.output
