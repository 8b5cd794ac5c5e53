"""A foreign graph all the way: imported, built, run, killed and gone on with, judged, and in Python."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import unet_batch as package
from tests.helpers.command import unet_batch
from tests.helpers.foreign import SIZE, Net
from tests.helpers.processes import Forked, command_line
from tests.helpers.systems import needs_posix
from unet_batch.build import BuildOptions, build_engine
from unet_batch.cli import main
from unet_batch.scenes import write_samples

PHOTOS, FILES = 4, 120


def done(*arguments: object) -> str:
    """What a command prints that has to succeed."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an imported model, `drawn/photos` and their masks."""
    folder = tmp_path_factory.mktemp("foreign")
    write_samples(str(folder / "drawn"), PHOTOS, (64, 96))
    net = Net().body(2).save(folder / "net.onnx")
    given = ("--range", "0..1", "--classes", "background,car", "--terms", "MIT")
    assert "Dice 1.00000 with the masks of the original" in " ".join(
        done("import", net, "-o", folder / "mine.onnx", *given).split()
    )
    return folder


@pytest.fixture(scope="module")
def engines(home: Path) -> Path:
    """A folder with its engine for CPUs."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')
    options = ("--builder", "openvino", "--precision", "fp32", "--proof-images", home / "drawn/photos")
    out = done("build-engine", home / "mine.onnx", *options, "--engines-dir", home / "engines")
    assert re.search(r"parity +Dice 1\.0+ with ONNX Runtime float32", out)
    return home / "engines"


def test_inspect_says_where_it_comes_from(home: Path) -> None:
    out = " ".join(done("inspect", home / "mine.onnx").split())
    assert "imported from net.onnx" in out
    assert "classes car · the map holds the probability of it" in out
    assert "terms MIT" in out
    assert re.search(r"memory a picture takes about \d\.\d MB between its layers", out)


@needs_posix
def test_a_killed_run_goes_on_and_leaves_what_an_undisturbed_one_does(
    home: Path, engines: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files = sorted((home / "drawn/photos").iterdir())
    for number in range(FILES):
        (folder / f"{number:04}.jpg").hardlink_to(files[number % PHOTOS])
    command = ("run", str(folder), "-m", str(home / "mine.onnx"), "--engines-dir", str(engines))
    process = Forked(command_line, *command, "-o", str(tmp_path / "killed"))
    try:
        while len(list((tmp_path / "killed/masks").glob("*.png"))) < 5:
            time.sleep(0.01)
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    trees = []
    for name in ("killed", "whole"):
        out = tmp_path / name
        before = len(list((out / "masks").glob("*.png")))
        finished = unet_batch(*command, "-o", out)
        assert finished.returncode == 0, finished.stderr
        assert re.search(r"^backend +openvino fp32 \(", finished.stdout, re.M), "auto takes the engine"
        assert bool(re.search(r"^resume +.* already done", finished.stdout, re.M)) == (name == "killed")
        assert (5 <= before < FILES) == (name == "killed")
        trees.append(
            {
                path.relative_to(out): path.read_bytes()
                for path in out.rglob("*")
                if path.suffix in (".png", ".jpg")
            }
        )
    assert trees[0] == trees[1]
    assert len(trees[0]) == FILES


def test_evaluate_judges_the_masks_that_run_writes(home: Path, engines: Path, tmp_path: Path) -> None:
    options = ("-m", home / "mine.onnx", "--engines-dir", engines)
    report = json.loads(done("evaluate", home / "drawn", *options, "--json"))
    assert report["model"]["terms"] == "MIT"
    done("run", home / "drawn/photos", "-o", tmp_path / "out", *options)
    truth, found = (
        [np.array(Image.open(path)) > 0 for path in sorted(folder.iterdir())]
        for folder in (home / "drawn/masks", tmp_path / "out/masks")
    )
    both = sum((a & b).sum() for a, b in zip(truth, found, strict=True))
    dice = 2 * both / sum(a.sum() + b.sum() for a, b in zip(truth, found, strict=True))
    assert 0.05 < dice < 1
    assert report["photo"]["mean"]["dice"] == pytest.approx(dice, abs=1e-4)


def test_python_gives_the_same_masks(home: Path, engines: Path, tmp_path: Path) -> None:
    photo = min((home / "drawn/photos").iterdir())
    model = str(home / "mine.onnx")
    with package.load(model, engines_dir=str(engines)) as segmenter:
        assert segmenter.backend.name == "openvino", segmenter.passed_over
        assert segmenter.terms == "MIT"
        ours = segmenter(photo)
    with package.load(model, backend="onnxruntime") as segmenter:
        exact = segmenter(photo)
    assert ours.shape == (64, 96)
    assert set(np.unique(ours)) == {0, 255}
    assert (ours != exact).mean() < 0.002


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_for_gpus_is_built_of_it(home: Path, tmp_path: Path, precision: str) -> None:
    """In float16 by halving the graph, which ONNX Runtime proves; the plan itself is proven on a GPU."""
    pytest.importorskip(
        "tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU: pip install tensorrt-rtx"
    )
    built = build_engine(
        BuildOptions(
            str(home / "mine.onnx"),
            str(tmp_path),
            size=(SIZE,) * 3,
            batch=(1, 2, 2),
            builder="tensorrt-rtx",
            precision=precision,
            proof_images=(str(home / "drawn/photos"),),
        )
    )
    assert built.engine is not None
    sidecar = built.engine.sidecar
    assert sidecar.recipe.precision == precision
    assert [share["body"] for share in sidecar.shares][-1] == 1.0
    ran = [parity for proof in built.proofs.values() for parity in proof.values()]
    assert bool(ran) == (precision == "fp16"), "in float32 it is the very graph that the reference is of"
    assert all(parity["dice"] >= 0.999 for parity in ran)
