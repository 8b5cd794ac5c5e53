"""`unet-batch import` and `inspect` of foreign graphs: what they print, draw and refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from tests.helpers.foreign import SIZE, Net
from unet_batch import scenes
from unet_batch.cli import main
from unet_batch.engine import onnx_model


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def said(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two channels of logits; nothing says how its pictures are scaled."""
    return Net().body(2).save(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="module")
def mine(net: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    path = tmp_path_factory.mktemp("mine") / "mine.onnx"
    return path, invoke("import", net, "-o", path, "--terms", "MIT", "--classes", "background,car")


def test_every_choice_is_printed_with_its_reason_and_guesses_as_such(mine: tuple[Path, Result]) -> None:
    path, done = mine
    assert done.exit_code == 0, done.output
    text = said(done.output)
    assert "layout nchw · its input is 1x3x32x48" in text
    assert "range imagenet · a guess: the graph does not say" in text
    assert "size 32x48 · its input takes no other" in text
    assert "on drawn pictures: logits" in text
    assert "channel 1 · car, beside background: one probability" in text
    assert "made for 1 picture at a time, it now takes any number" in text
    assert "proven Dice 1.00000 with the masks of the original" in text
    assert "--colour, --range: guesses, which a look at masks settles: --check ./photos" in text
    assert f"unet-batch run ./photos -m {path}" in text


def test_inspect_says_what_was_chosen(mine: tuple[Path, Result]) -> None:
    path, _ = mine
    text = said(invoke("inspect", path).output)
    assert "model net · imported ONNX graph · 32x48" in text
    assert "terms MIT" in text
    assert "source imported from net.onnx" in text
    assert "range imagenet (a guess)" in text
    assert "channel 1 colour rgb (a guess)" in text, "what was given is no guess"


def test_inspect_suggests_the_line_that_imports(net: str, tmp_path: Path) -> None:
    done = invoke("inspect", net, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["input"] == {"name": "input", "shape": [1, 3, 32, 48], "dtype": "float32"}
    line = found["import"].split()
    assert line[:3] == ["unet-batch", "import", net]
    assert line[-6:] == ["--range", "imagenet", "--channel", "1", "--check", "./photos"]
    target = tmp_path / "mine.onnx"
    line[line.index("-o") + 1] = str(target)
    assert invoke(*line[1:-2]).exit_code == 0
    assert onnx_model.read(str(target)).spec.architecture == "onnx"


def test_inspect_of_what_cannot_be_known_names_the_option(tmp_path: Path) -> None:
    path = Net((None, None, None, None)).add("Sigmoid").save(tmp_path / "net.onnx")
    done = invoke("inspect", path)
    assert done.exit_code == 2
    assert "input · ?x?x?x? float32" in done.stdout.replace("input     ", "")
    assert "--layout nchw or --layout nhwc" in done.stderr


def test_a_foreign_graph_as_a_model_is_an_error_that_names_the_import(net: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((9, 9, 3), np.uint8))
    done = invoke("run", tmp_path / "photos", "-m", net)
    assert done.exit_code == 2
    text = said(done.stderr)
    assert f"{net}: an ONNX graph, but not one of unet-batch" in text
    assert "unet-batch import FILE.onnx -o MODEL.onnx" in text


def photos(folder: Path) -> Path:
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), scenes.draw(number, (64, 96))[0][..., ::-1])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def sheet_of(target: Path) -> Any:
    return cv2.imread(str(target))


@pytest.mark.parametrize("is_grey", [False, True], ids=["RGB", "grey"])
def test_a_network_of_one_channel_gets_the_grey_of_any_photo(tmp_path: Path, is_grey: bool) -> None:
    height, width = SIZE
    path = Net((1, 1, height, width)).body(1, 1).save(tmp_path / "net.onnx")
    done = invoke("import", path, "-o", tmp_path / "mine.onnx", "--range", "0..1", "--classes", "car")
    assert done.exit_code == 0, done.output
    assert "it takes one channel: 0.299 red + 0.587 green + 0.114 blue" in said(done.output)
    photo = scenes.draw(7, (64, 96))[0][::2, ::2]
    photo = np.repeat(photo[..., 1:2], 3, axis=2) if is_grey else photo
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a.png"), photo[..., 0] if is_grey else photo[..., ::-1])
    done = invoke("run", tmp_path / "photos", "-m", tmp_path / "mine.onnx", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    if importlib.util.find_spec("openvino") is not None:
        command = f"unet-batch build-engine {tmp_path / 'mine.onnx'} --builder openvino"
        assert f"faster on this CPU: {command}" in said(done.output)
    mask = cv2.imread(str(tmp_path / "out/masks/a.png"), cv2.IMREAD_UNCHANGED)
    grey = (photo.astype(np.float64) @ (0.299, 0.587, 0.114)).astype(np.float32) / 255
    logits = onnxruntime.InferenceSession(path).run(None, {"input": grey[None, None]})[0][0, 0]
    assert 0.05 < (mask > 0).mean() < 0.95
    assert ((mask > 0) != (logits > 0)).mean() < 0.01


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_numbers_of_channels_come_in_and_are_fed_with_bands(tmp_path: Path, channels: int) -> None:
    path = Net((1, channels, *SIZE)).body(1, channels).save(tmp_path / "net.onnx")
    looked = json.loads(invoke("inspect", path, "--json").stdout)
    assert "--check" not in looked["import"]
    done = invoke("import", path, "-o", tmp_path / "mine.onnx", "--classes", "car")
    assert done.exit_code == 0, done.output
    assert f"it takes {channels} channels, as they come" in said(done.output)
    assert "range 0..1 · a guess" in said(done.output)
    assert "unet-batch run" not in done.output
    assert f"{channels} channels" in invoke("inspect", tmp_path / "mine.onnx").output
    bands = np.random.default_rng(0).integers(0, 256, (*SIZE, channels), np.uint8)
    np.save(tmp_path / "bands.npy", bands)
    done = invoke("run", tmp_path / "bands.npy", "-m", tmp_path / "mine.onnx", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    mask = cv2.imread(str(tmp_path / "out/masks/bands.png"), cv2.IMREAD_UNCHANGED)
    planes = (bands / np.float32(255)).transpose(2, 0, 1)[None]
    logits = onnxruntime.InferenceSession(path).run(None, {"input": planes})[0][0, 0]
    assert 0.02 < (mask > 0).mean() < 0.98
    assert ((mask > 0) != (logits > 0)).mean() < 0.01


def test_the_sheet_shows_the_guess_beside_the_others(net: str, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    done = invoke("import", net, "-o", tmp_path / "a.onnx", "--check", folder)
    assert done.exit_code == 0, done.output
    assert "check" in done.output
    guessed = sheet_of(tmp_path / "a.check.jpg")
    done = invoke(
        *(
            "import",
            net,
            "-o",
            tmp_path / "b.onnx",
            "--check",
            folder,
            "--range",
            "imagenet",
            "--colour",
            "rgb",
        ),
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sheet"] == str(tmp_path / "b.check.jpg")
    sure = sheet_of(tmp_path / "b.check.jpg")
    # As imported, three other scalings, and blue first: six panels with the picture, for two.
    assert guessed.shape[0] == sure.shape[0]
    assert guessed.shape[1] == pytest.approx(3 * sure.shape[1], rel=0.05)


def test_a_sheet_of_nothing_leaves_the_model(net: str, tmp_path: Path) -> None:
    done = invoke("import", net, "-o", tmp_path / "a.onnx", "--check", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "nowhere does not exist" in done.stderr
    assert (tmp_path / "a.onnx").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "a,b"), "a number for each channel"),
        (("--range", "0..2"), "'0..2' is not one of"),
        (("--size", "32"), "is not a size"),
        (("--channel", "-1"), "-1 is not in the range"),
        (("--mean", "123,117,104"), "--range 0..255"),
    ],
)
def test_options_that_cannot_be_are_refused(
    net: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = invoke("import", net, "-o", tmp_path / "a.onnx", *options)
    assert done.exit_code == 2
    assert message in said(done.stderr)


def test_a_range_below_zero_can_be_typed(net: str, tmp_path: Path) -> None:
    done = invoke("import", net, "-o", tmp_path / "a.onnx", "--range", "-1..1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["mean"] == [0.5, 0.5, 0.5]
