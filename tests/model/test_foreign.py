"""Every file that somebody may take for a model is called what it is, with what makes it usable."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save as save_tensors

from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.cli import main
from unet_batch.errors import CheckpointError
from unet_batch.model import checkpoint, importer


def torch_file(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is old, and people have such files
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 4, 4)), buffer)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 1, 1), (torch.zeros(1, 3, 4, 4),)), buffer)
    return buffer.getvalue()


def onnx_graph(**metadata: str) -> bytes:
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, producer_name="pytorch")
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


def picture(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 31037633\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
IMPORT = "unet-batch import-weights FILE.pth -o MODEL.safetensors"
KINDS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "weights.pth": (lambda: torch_file({"w": torch.zeros(3)}), "a pickled PyTorch file", IMPORT),
    "old.pth": (
        lambda: torch_file({"w": torch.zeros(3)}, _use_new_zipfile_serialization=False),
        "a pickled PyTorch file",
        IMPORT,
    ),
    "cut.pth": (lambda: torch_file({"w": torch.zeros(999)})[:900], "a pickled PyTorch file", IMPORT),
    "script.pt": (torchscript, "a TorchScript program", "torch.jit.load(FILE).state_dict()"),
    "program.pt2": (exported, "a program of torch.export", "torch.export.load(FILE).state_dict"),
    "plain.onnx": (
        onnx_graph,
        "an ONNX graph of another program",
        "unet-batch import FILE.onnx -o MODEL.onnx",
    ),
    "renamed.safetensors": (onnx_graph, "an ONNX graph of another program", "unet-batch inspect FILE.onnx"),
    "ours.onnx": (
        lambda: onnx_graph(unet_batch="{}"),
        "an ONNX graph of unet-batch, which engines are built from",
        "name the checkpoint",
    ),
    "net.engine": (lambda: b"ftrt\0\0\0\0" + bytes(99), "a TensorRT engine", "--engines-dir"),
    "rtx.plan": (lambda: b"vtrt\0\0\0\0\x02" + bytes(99), "a TensorRT engine", "--engines-dir"),
    "unknown.trt": (lambda: bytes(range(200, 256)) * 9, "a TensorRT engine", "--engines-dir"),
    "net.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes them", IMPORT),
    "net.keras": (lambda: zipped(config_json=b"{}", model_weights_h5=b""), "a Keras model", IMPORT),
    "net.tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite model", IMPORT),
    "saved_model.pb": (lambda: b"\x08\x01\x12\xaa\x10" + bytes(99), "a TensorFlow SavedModel", IMPORT),
    "net.npz": (arrays, "an archive of NumPy arrays", IMPORT),
    "net.npy": (lambda: b"\x93NUMPY\x01\0" + bytes(99), "a NumPy array", IMPORT),
    "net.gguf": (lambda: b"GGUF\x03\0\0\0" + bytes(99), "a GGUF model", IMPORT),
    "net.xml": (
        lambda: b'<?xml version="1.0"?>\n<net name="unet" version="11">',
        "an OpenVINO model",
        IMPORT,
    ),
    "lfs.safetensors": (lambda: LFS, "a Git LFS pointer, not the model", "git lfs pull"),
    "page.safetensors": (lambda: PAGE, "a web page", "download the file itself"),
    "xhtml.safetensors": (
        lambda: b'<?xml version="1.0"?>\n<!DOCTYPE html><html></html>',
        "a web page",
        "download the file itself",
    ),
    "photo.jpg": (lambda: picture("JPEG"), r"a picture \(JPEG\), not a model", "pictures are sources"),
    "photo.safetensors": (lambda: picture("PNG"), r"a picture \(PNG\), not a model", "pictures are sources"),
    "model.zip": (lambda: zipped(model_safetensors=b""), "a ZIP archive", "unpack it"),
    "model.tar": (tarred, "a tar archive", "unpack it"),
    "model.gz": (lambda: b"\x1f\x8b\x08" + bytes(99), "a compressed file", "unpack it"),
    "notes.txt": (lambda: "Gewichte für das U-Net".encode(), "a text file", "the weights"),
    "config.json": (lambda: json.dumps({"model": "unet"}).encode(), "a text file", "the weights"),
}


@pytest.mark.parametrize("name", KINDS)
def test_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    data, what, fix = KINDS[name]
    path = tmp_path / name
    path.write_bytes(data())
    for read in (checkpoint.identify, checkpoint.load):
        with pytest.raises(CheckpointError, match=rf"{name}: {what}") as caught:
            read(str(path))
        assert fix in caught.value.hint
        assert "damaged" not in caught.value.message
        assert "copy" not in caught.value.hint


@pytest.mark.parametrize("command", ["run", "evaluate", "inspect", "train"])
def test_by_every_command_that_takes_a_model(tmp_path: Path, command: str) -> None:
    (tmp_path / "page.safetensors").write_bytes(PAGE)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index in range(4):
        (tmp_path / f"images/{index}.png").write_bytes(picture("PNG"))
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / f"masks/{index}.png")
    model, dataset = str(tmp_path / "page.safetensors"), str(tmp_path)
    arguments = {
        "run": [f"{dataset}/images", "-m", model, "-o", f"{dataset}/out"],
        "evaluate": [dataset, "-m", model],
        "inspect": [model],
        "train": [dataset, "--init", model, "-o", f"{dataset}/new.safetensors"],
    }
    done = CliRunner().invoke(main, [command, *arguments[command]])
    assert done.exit_code == 2, done.output
    assert "page.safetensors: a web page" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith((".pth", ".pt"))])
def test_by_import_weights_too(tmp_path: Path, name: str) -> None:
    data, what, _ = KINDS[name]
    (tmp_path / name).write_bytes(data())
    with pytest.raises(CheckpointError, match=rf"{name}: {what}"):
        importer.import_weights(str(tmp_path / name), str(tmp_path / "out.safetensors"))


@pytest.mark.parametrize("name", ["lfs.safetensors", "page.safetensors", "model.zip", "notes.txt"])
def test_a_graph_that_is_none(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnx")
    data, what, _ = KINDS[name]
    (tmp_path / "net.onnx").write_bytes(data())
    done = CliRunner().invoke(main, ["build-engine", str(tmp_path / "net.onnx"), "--onnx-only"])
    assert done.exit_code == 2
    assert f"net.onnx: {what}" in " ".join(done.stderr.split())


def test_a_folder_and_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        checkpoint.identify(str(tmp_path))
    assert "name the file in it" in caught.value.hint


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"damaged or not a safetensors file \(0 bytes\)") as caught:
        checkpoint.identify(str(tmp_path / "empty.safetensors"))
    assert caught.value.hint == "copy or download it again"


def test_a_checkpoint_is_none_of_them(tmp_path: Path) -> None:
    """Not even one whose header is as long as another kind's first bytes say."""
    path = tmp_path / "model.safetensors"
    checkpoint.save(str(path), tiny_model(tiny_spec()), tiny_spec())
    data = path.read_bytes()
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    for start in (b"PK", b"BM", b"\x80\x02", b"\x1f\x8b"):
        length = struct.unpack("<H", start)[0]
        if length >= len(header):
            path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + data[8 + len(header) :])
            assert checkpoint.identify(str(path)).spec == tiny_spec()
    other = save_tensors({"weight": torch.zeros(3)})
    (tmp_path / "other.safetensors").write_bytes(other)
    with pytest.raises(CheckpointError, match="a safetensors file, but not a checkpoint of unet-batch"):
        checkpoint.identify(str(tmp_path / "other.safetensors"))
