"""`unet-batch evaluate` as a person meets it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from rich.console import Console

from tests.helpers.command import unet_batch
from tests.helpers.datasets import ids, mask, photo
from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.cli import main
from unet_batch.cli.evaluate import _OBJECT_COLUMNS, _print_table
from unet_batch.datasets.encoding import VOID
from unet_batch.media import images
from unet_batch.model import checkpoint
from unet_batch.version import __version__

CPU = ("--device", "cpu", "--workers", "2")


def invoked(*arguments: str | Path) -> Result:
    """In this process: a new one would spend seconds on loading torch."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(("a_0", "a_1", "b_0", "b_1", "c_0", "c_1")):
        photo(tmp_path / f"my data/images/{name}.png", index, (40, 50))
        mask(tmp_path / f"my data/masks/{name}.png", ids(0, 255, size=(40, 50)))
    return tmp_path / "my data"


class TestModel:
    def test_says_what_it_found(self, root: Path, tiny: str) -> None:
        done = unet_batch("evaluate", root, "-m", tiny, *CPU)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith("dataset   ")
        assert "model     tiny" in done.stdout
        assert (
            "note      taken as the same: the dataset has one class (foreground), the model one class "
            "(class0)" in lines
        )
        number = r"[01]\.\d{4}"
        assert "at the photos' own size" in lines
        assert "at the network's size, 32x48" in lines
        for label in (
            "accuracy",
            r"Dice \(all pixels\)",
            r"IoU \(all pixels\)",
            "mean Dice per picture",
            "mean IoU per picture",
        ):
            pattern = rf"^  {label} +{number}   95 % between {number} and {number}$"
            assert len(re.findall(pattern, done.stdout, re.MULTILINE)) == 2, label
        assert len(re.findall(rf"^  foreground +({number} +){{4}}{number}$", done.stdout, re.MULTILINE)) == 2
        assert "with 3 groups only" in done.stdout
        assert lines[-1] == "Judged on 6 pictures in 3 groups."
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.stdout)

    def test_of_several_models_the_mean(self, root: Path, tiny: str, tmp_path: Path) -> None:
        spec = tiny_spec(name="wide", size=(64, 96))
        checkpoint.save(str(tmp_path / "wide.safetensors"), tiny_model(spec), spec)
        done = invoked(root, "-m", tiny, "-m", tmp_path / "wide.safetensors", *CPU, "-o", tmp_path / "out")
        assert done.exit_code == 0
        assert "at the network's size, 64x96" in done.stdout
        report = json.loads((tmp_path / "out/evaluation.json").read_text())
        assert [member["name"] for member in report["model"]["members"]] == ["tiny", "wide"]
        assert report["judged"] == 6

    def test_files_and_json(self, root: Path, tiny: str, tmp_path: Path) -> None:
        photo(root / "images/c_1.png", 9, (7, 7))  # now its mask does not fit
        (tmp_path / "val.txt").write_text("a_0\nb_0\nb_1\nc_1\n")
        sheet = tmp_path / "new/worst.jpg"
        files = ("--split", tmp_path / "val.txt", "-o", tmp_path / "out/x", "--sheet", sheet)
        done = invoked(root, "-m", tiny, *CPU, *files, "--json", "--worst", 2)
        assert done.exit_code == 1
        report = json.loads(done.stdout)
        assert report == json.loads((tmp_path / "out/x/evaluation.json").read_text())
        assert next(iter(report)) == "unet_batch"
        assert report["unet_batch"] == __version__
        assert (report["ok"], report["pairs"], report["judged"], report["failed"]) == (False, 4, 3, 1)
        assert report["failures"][0]["key"] == "c_1"
        assert "the image is 7x7, the mask 40x50" in report["failures"][0]["message"]
        assert report["model"]["sha256"] == checkpoint.identify(tiny).sha256
        assert report["backend"]["name"] == "torch-cpu"
        assert report["backend"]["threshold"] == 0.5
        assert report["options"]["split"].endswith("val.txt")
        assert report["versions"]["torch"]
        assert report["photo"]["groups"] == 2
        assert report["photo"]["intervals"]["mean"].keys() == {
            "dice",
            "iou",
            "dice_per_picture",
            "iou_per_picture",
        }
        rows = list(csv.DictReader((tmp_path / "out/x/pictures.csv").read_text().splitlines()))
        assert [(row["key"], row["group"]) for row in rows] == [
            ("a_0", "a"),
            ("b_0", "b"),
            ("b_1", "b"),
            ("c_1", "c"),
        ]
        assert "the mask 40x50" in rows[3]["error"]
        assert rows[3]["photo_dice_foreground"] == rows[3]["network_accuracy"] == ""
        for size in ("photo", "network"):
            dice = [float(row[f"{size}_dice_foreground"]) for row in rows[:3]]
            assert np.mean(dice) == pytest.approx(report[size]["per_picture"]["dice"]["foreground"], abs=1e-6)
        assert images.read(str(sheet)).size[1] > 1200

    def test_a_failure_is_named_and_the_rest_is_judged(self, root: Path, tiny: str) -> None:
        (root / "images/esc\x1b[31m_0.png").write_bytes(b"")
        mask(root / "masks/esc\x1b[31m_0.png", ids(0, 255))
        done = invoked(root, "-m", tiny, *CPU)
        assert done.exit_code == 1
        assert "an empty file" in done.stderr
        assert (
            done.stdout.splitlines()[-1]
            == "1 of 7 pictures could not be judged: the figures are over the others."
        )
        assert "\x1b" not in done.stdout + done.stderr, "a file name must not steer the terminal"

    def test_several_classes(self, root: Path, tmp_path: Path) -> None:
        for path in (root / "masks").iterdir():
            mask(path, ids(0, 1, 2, size=(40, 50)))
        spec = tiny_spec(3)
        checkpoint.save(str(tmp_path / "three.safetensors"), tiny_model(spec), spec)
        done = invoked(root, "-m", tmp_path / "three.safetensors", *CPU)
        assert done.exit_code == 0, done.stderr
        assert "  mean IoU " in done.stdout
        assert len(re.findall(r"^  (class[012]|mean) +[01]\.", done.stdout, re.MULTILINE)) == 8

    def test_classes_must_agree(self, root: Path, tiny: str) -> None:
        mask(root / "masks/a_0.png", ids(0, 1, 2, size=(40, 50)))
        for path in list((root / "masks").iterdir())[1:]:
            mask(path, ids(0, 1, 2, size=(40, 50)))
        done = invoked(root, "-m", tiny, *CPU)
        assert done.exit_code == 2
        assert (
            "error: other classes: the dataset has 3 classes (class0, class1, class2), the model one class "
            "(class0)" in done.stderr
        )

    def test_masks_that_mark_nothing(self, root: Path, tiny: str) -> None:
        """Dice says nothing then: the share of pixels that is marked does."""
        for path in (root / "masks").iterdir():
            mask(path, ids(0, size=(40, 50)))
        done = invoked(root, "-m", tiny, *CPU)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("the true masks mark nothing, so there is no Dice") == 2
        assert "Dice (all pixels)" not in done.stdout
        assert done.stdout.count("the true masks mark nothing") == 2, "once for each size"
        assert done.stdout.count("  pixels marked in 6 pictures without foreground\n") == 2
        share = r" +\d+\.\d\d"
        for label in ("mean per picture", "all pixels"):
            pattern = rf"^  {label}{share} %   95 % between{share} and{share} %$"
            assert len(re.findall(pattern, done.stdout, re.MULTILINE)) == 2, label
        assert len(re.findall(rf"^  most{share} %   [abc]_[01]$", done.stdout, re.MULTILINE)) == 2

    def test_some_masks_that_mark_nothing(self, root: Path, tiny: str) -> None:
        mask(root / "masks/a_0.png", ids(0, size=(40, 50)))
        done = invoked(root, "-m", tiny, *CPU)
        assert done.stdout.count("  pixels marked in 1 picture without foreground\n") == 2
        assert done.stdout.count("  Dice (all pixels)") == 2

    def test_images_left_out_are_counted(self, root: Path, tiny: str) -> None:
        photo(root / "images/z.png")
        assert "1 images without one mask of their own are left out" in invoked(root, "-m", tiny, *CPU).stdout


class TestPredictions:
    def test_the_output_of_a_run_is_as_good_as_the_run(self, root: Path, tiny: str, tmp_path: Path) -> None:
        run = CliRunner().invoke(
            main, ["run", str(root / "images"), "-o", str(tmp_path / "out"), "-m", tiny, *CPU]
        )
        assert run.exit_code == 0
        direct = json.loads(invoked(root, "-m", tiny, *CPU, "--json").stdout)
        for folder in ("out", "out/masks"):
            later = json.loads(invoked(root, "--predictions", tmp_path / folder, "--json").stdout)
            assert later["network"] is None
            assert later["model"] is None
            assert later["predictions"]["folder"] == str(tmp_path / "out/masks")
            assert later["photo"] == direct["photo"], "to the last digit"

    @pytest.mark.parametrize("classes", [2, 5])
    def test_agrees_with_torchmetrics(self, tmp_path: Path, classes: int) -> None:
        torch = pytest.importorskip("torch")
        functional = pytest.importorskip(
            "torchmetrics.functional.classification", reason="needs torchmetrics"
        )
        random = np.random.default_rng(classes)
        found, truth = random.integers(0, classes, (2, 6, 30, 41)).astype(np.uint8)
        truth = np.where(random.random(truth.shape) < 0.7, found, truth).astype(np.uint8)
        truth[random.random(truth.shape) < 0.1] = VOID
        for index in range(6):
            mask(tmp_path / f"true/p{index}.png", truth[index])
            mask(tmp_path / f"found/p{index}_mask.png", found[index])
        done = invoked(tmp_path / "true", "--predictions", tmp_path / "found", "--json")
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)["photo"]
        tensors = [torch.from_numpy(each.astype(np.int64)) for each in (found, truth)]
        common = {"num_classes": classes, "ignore_index": VOID}
        for metric, theirs in (
            ("iou", functional.multiclass_jaccard_index),
            ("dice", functional.multiclass_f1_score),
            ("precision", functional.multiclass_precision),
            ("recall", functional.multiclass_recall),
        ):
            expected = theirs(*tensors, **common, average="none").numpy()
            assert list(report["pooled"][metric].values()) == pytest.approx(expected, abs=1e-6), metric
            mean = expected[1] if classes == 2 else expected.mean()  # two ids are one class and background
            assert report["mean"][metric] == pytest.approx(mean, abs=1e-6), metric
        accuracy = functional.multiclass_accuracy(*tensors, **common, average="micro")
        assert report["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)

    def test_needs_neither_photos_nor_torch(self, root: Path, tmp_path: Path) -> None:
        for path in (root / "masks").iterdir():
            mask(tmp_path / "found" / path.name, ids(0, 1, size=(40, 50)))
        arguments = [
            "evaluate",
            str(root / "masks"),
            "--predictions",
            str(tmp_path / "found"),
            "--sheet",
            str(tmp_path / "s.jpg"),
        ]
        code = (
            f"import sys\nfrom unet_batch.cli import main\ntry: main({arguments!r})\n"
            "except SystemExit as e: assert not e.code\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "6 masks, no pictures" in done.stdout
        assert "predictions hold 0 and 1 (6 of 6 looked at fit)" in done.stdout
        assert "at the network's size" not in done.stdout
        assert (tmp_path / "s.jpg").is_file()

    def test_not_one_fits(self, root: Path, tmp_path: Path) -> None:
        for path in (root / "masks").iterdir():
            mask(tmp_path / "found" / path.name, ids(0, 1, size=(4, 5)))
        done = invoked(
            root, "--predictions", tmp_path / "found", "--sheet", tmp_path / "s.jpg", "-o", tmp_path / "out"
        )
        assert done.exit_code == 1
        assert done.stdout.splitlines()[-1] == "Not one of 6 pictures could be judged."
        assert json.loads((tmp_path / "out/evaluation.json").read_text())["photo"] is None
        assert not (tmp_path / "s.jpg").exists()


class TestObjects:
    @pytest.fixture
    def cells(self, tmp_path: Path) -> Path:
        """Six stripes in each of four pictures, of which four are found."""
        for index in range(4):
            truth = ids(*[255] * 5, *[0] * 5, size=(20, 60))
            mask(tmp_path / f"true/p{index}.png", truth)
            mask(tmp_path / f"found/p{index}.png", np.where(np.arange(60) < 40, truth, 0))
        return tmp_path

    def test_are_judged_where_asked_for(self, cells: Path) -> None:
        command = (cells / "true", "--predictions", cells / "found", "-o", cells / "out")
        done = invoked(*command, "--objects")
        assert done.exit_code == 0, done.stderr
        lines = done.stdout.splitlines()
        assert "objects, at the photos' own size" in lines
        number = r"[01]\.\d{4}"
        for label, value in (
            ("mean AP per picture", "0.6667"),
            ("mean AP50 per picture", "0.6667"),
            (r"PQ \(all objects\)", "0.8000"),
            ("mean V-Rand per picture", number),
            ("mean V-Info per picture", number),
        ):
            pattern = rf"^  {label} +{value}   95 % between {number} and {number}$"
            assert len(re.findall(pattern, done.stdout, re.MULTILINE)) == 1, label
        assert "  foreground: 24 true, 16 found" in lines
        report = json.loads((cells / "out/evaluation.json").read_text())
        assert report["objects"]["mean"]["ap_per_picture"] == pytest.approx(2 / 3)
        assert report["options"]["objects"] is True
        rows = list(csv.DictReader((cells / "out/pictures.csv").read_text().splitlines()))
        assert [row["objects_pq_foreground"] for row in rows] == ["0.800000"] * 4
        assert "objects, at" not in invoked(*command).stdout

    def test_of_some_classes_with_their_mean(self, cells: Path) -> None:
        for path in (*(cells / "true").iterdir(), *(cells / "found").iterdir()):
            mask(path, ids(0, 0, 1, 1, 2, 2, size=(20, 60)))
        names = ("background", "road", "car")
        text = "".join(f'[[class]]\nname = "{name}"\n' for name in names)
        (cells / "true/classes.toml").write_text(text)
        command = (cells / "true", "--predictions", cells / "found", "--objects")
        done = invoked(*command, "--classes", "car, road")
        assert done.exit_code == 0, done.stderr
        assert len(re.findall(r"^  mean( +1\.0000){5}$", done.stdout, re.MULTILINE)) == 1
        assert len(re.findall(r"^  mean( +1\.0000){7}$", done.stdout, re.MULTILINE)) == 1
        assert done.stdout.count("  means over 2 classes: road, car\n") == 2
        assert "  background" not in done.stdout
        report = json.loads(invoked(*command, "--classes", "car", "--json").stdout)
        assert report["counted"] == report["options"]["classes"] == ["car"]

    def test_a_class_that_is_none_is_named_before_the_model_is_loaded(self, root: Path, tiny: str) -> None:
        done = invoked(root, "-m", tiny, *CPU, "--classes", "bus")
        assert done.exit_code == 2
        assert "error: --classes: there is no class 'bus'" in done.stderr
        assert "the classes are background, foreground" in done.stderr
        assert "backend " not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: no such folder"),
        (["{root}", "-m", "none.safetensors"], "error: none.safetensors: no such model file"),
        (["{root}", "--predictions", "none"], "error: none: no such folder"),
        (
            ["{root}", "--predictions", "{root}/images", "-m", "x", "--size", "32x32"],
            "error: --model, --size: there is no model",
        ),
        (["{root}", "--split", "none.txt"], "none.txt: cannot be read"),
        (["{root}", "--classes", " , "], "' , ' names no class"),
        (["{root}", "--threshold", "2", "--device", "cpu"], "2.0 is not in the range 0<x<=1"),
        ([], "Missing argument 'DATASET'"),
    ],
)
def test_wrong_usage_is_exit_code_2(root: Path, arguments: list[str], message: str) -> None:
    done = invoked(*(part.format(root=root) for part in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [80, 100])
def test_a_table_of_long_names_fits_a_terminal(columns: int) -> None:
    """In cells, of which some letters take two."""
    out = Console(file=io.StringIO(), force_terminal=True, width=columns, color_system=None, highlight=False)
    headings = [heading for _, heading in _OBJECT_COLUMNS]
    names = ("a class of a name that takes more than a line", "道路")
    _print_table(out, "over all objects", headings, [(name, [0.5] * 7) for name in names])
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3
    assert {cell_len(line) for line in lines} == {min(columns, 58 + len(names[0]))}


@pytest.mark.parametrize(("columns", "parts"), [(60, 2), (40, 4)])
def test_a_table_is_parted_where_a_terminal_is_too_narrow_for_it(columns: int, parts: int) -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=columns, color_system=None, highlight=False)
    headings = [heading for _, heading in _OBJECT_COLUMNS]
    _print_table(
        out, "over all objects", headings, [("a class of a long name", [0.5] * 7), ("b", [0.25] * 7)]
    )
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3 * parts
    assert max(map(cell_len, lines)) <= columns
    for heading in headings:
        assert sum(heading in line.split() for line in lines) == 1
    assert sum(line.count("0.2500") for line in lines) == 7
