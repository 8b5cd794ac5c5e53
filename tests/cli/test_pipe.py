"""One picture from standard input, one mask to standard output."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.runs import files, half_bright, read, write
from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.cli import main
from unet_batch.model import checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = tiny_spec()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    checkpoint.save(str(path), tiny_model(spec), spec)
    return str(path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write(tmp_path / "photo.png", half_bright())
    return tmp_path / "photo.png"


def run(model: str, *arguments: str | Path, input: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments), "-m", model], input=input)


def expected(model: str, photo: Path, folder: Path, kind: str = "masks") -> bytes:
    done = run(model, photo, "-o", folder, "--save", "mask,cutout")
    assert done.exit_code == 0, done.output
    return (folder / kind / "photo.png").read_bytes()


def test_a_mask_is_all_that_standard_output_gets(model: str, photo: Path, tmp_path: Path) -> None:
    done = run(model, "-", "-o", "-", input=photo.read_bytes())
    assert done.exit_code == 0, done.stderr
    assert done.stdout_bytes == expected(model, photo, tmp_path / "out")
    with Image.open(io.BytesIO(done.stdout_bytes)) as mask:
        assert np.array(mask).shape == (64, 96)
    assert "backend" in done.stderr


def test_a_file_to_standard_output(model: str, photo: Path, tmp_path: Path) -> None:
    done = run(model, photo, "-o", "-", "--save", "cutout", "--quiet")
    assert done.stdout_bytes == expected(model, photo, tmp_path / "out", "cutouts")
    assert done.stderr == ""


def test_standard_input_to_a_folder(model: str, photo: Path, tmp_path: Path) -> None:
    done = run(model, "-", "-o", tmp_path / "out", "--overlay", input=photo.read_bytes())
    assert done.exit_code == 0, done.stderr
    assert files(tmp_path / "out") == ["masks/stdin.png", "overlays/stdin.jpg"]
    assert read(tmp_path / "out" / "masks" / "stdin.png").shape == (64, 96)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-", "photo.png", "-o", "-"], "2 sources"),
        (["-", "-o", "-", "--save", "mask,prob"], "one kind of output"),
        (["-", "-o", "-", "--json"], "--json prints on standard output"),
        (["-", "-o", "-", "--log-json", "-"], "standard output, where the mask goes"),
        (["-"], "-o FOLDER"),
    ],
)
def test_what_does_not_fit_a_pipe_is_refused(
    model: str, photo: Path, arguments: list[str], told: str
) -> None:
    done = run(model, *arguments, input=photo.read_bytes())
    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stdout_bytes == b""


@pytest.mark.parametrize(("data", "told"), [(b"", "an empty file"), (b"no picture" * 9, "looks like a text")])
def test_what_is_no_picture_says_so(model: str, data: bytes, told: str) -> None:
    done = run(model, "-", "-o", "-", input=data)
    assert done.exit_code != 0
    assert told in done.stderr
    assert done.stdout_bytes == b""
