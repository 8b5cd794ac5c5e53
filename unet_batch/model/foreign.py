"""Name a file that was given as a model and is none of ours, and say what would make it usable."""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from typing import NamedTuple


class Foreign(NamedTuple):
    """A file of another kind.

    Attributes:
        what: it is, with an article.
        fix: the command or the step that leads on.
        is_pickle: PyTorch wrote it as a pickle, whose tensors alone can be read.
    """

    what: str
    fix: str
    is_pickle: bool = False

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX graph, of whatever program."""
        return self in (ONNX, _OUR_ONNX)


_IMPORT = "unet-batch import-weights FILE.pth -o MODEL.safetensors"
_PICKLE = Foreign(
    "a pickled PyTorch file; reading one can run code hidden in it",
    f"a public U-Net's weights become a checkpoint with: {_IMPORT}",
    is_pickle=True,
)
_TORCHSCRIPT = Foreign(
    "a TorchScript program; reading one can run code hidden in it",
    "where you trust it, save its weights alone, torch.save(torch.jit.load(FILE).state_dict(), 'FILE.pth'), "
    f"then: {_IMPORT}",
    is_pickle=True,
)
_EXPORTED = Foreign(
    "a program of torch.export",
    "where you trust it, save its weights alone, torch.save(torch.export.load(FILE).state_dict, 'FILE.pth'), "
    f"then: {_IMPORT}",
)
IMPORT_ONNX = "it becomes a model with: unet-batch import FILE.onnx -o MODEL.onnx"
ONNX = Foreign(
    "an ONNX graph of another program, which does not say what its values mean",
    f"{IMPORT_ONNX}; what is seen in it: unet-batch inspect FILE.onnx",
)
_OUR_ONNX = Foreign(
    "an ONNX graph of unet-batch, which engines are built from: unet-batch build-engine FILE.onnx",
    "name the checkpoint that it was exported from; engines are found by themselves, in --engines-dir",
)
_ENGINE = Foreign(
    "a TensorRT engine",
    "name the checkpoint that it was built from; engines are found by themselves, in --engines-dir",
)
_TEXT = Foreign("a text file, not a safetensors file", "name the file that holds the weights")
_PACKED = "unpack it, and name the model in it"
_OTHER = f"PyTorch weights of a public U-Net become a checkpoint with: {_IMPORT}"

# Of the first bytes of a file, in this order.
_SIGNATURES = (
    (
        rb"version https://git-lfs",
        Foreign("a Git LFS pointer, not the model it stands for", "fetch the model with: git lfs pull"),
    ),
    (rb"\s*<\?xml.*<net\b", Foreign("an OpenVINO model", _OTHER)),
    (
        rb"\s*(<\?xml.*)?(<!--.*)?<(!doctype html|html|head|body)\b",
        Foreign(
            "a web page, as a download leaves that met a login or an error",
            "open the address in a browser, and download the file itself",
        ),
    ),
    (rb"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file, as Keras writes them", _OTHER)),
    (rb".{4}TFL3", Foreign("a TensorFlow Lite model", _OTHER)),
    (rb"\x08\x01\x12", Foreign("a TensorFlow SavedModel", _OTHER)),
    (rb"\x93NUMPY", Foreign("a NumPy array", _OTHER)),
    (rb"GGUF", Foreign("a GGUF model", _OTHER)),
    (rb"\x80[\x02-\x05]", _PICKLE),
    # ir_version, then any of the fields that follow it: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    (rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", ONNX),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", Foreign("a compressed file", _PACKED)),
    (rb"[a-z]trt\0{4}", _ENGINE),
    (rb".{257}ustar", Foreign("a tar archive", _PACKED)),
)
_ENGINES = (".plan", ".engine", ".trt")


def recognise(path: str) -> Foreign | None:
    """Name a file by its first bytes, one without any mark by its suffix; None where it may be a checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(4096)
    # A safetensors file begins with the length of its header, which may have any bytes, and then the header,
    # a JSON object.
    if start[8:9] == b"{" or not start:
        return None
    if start.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    for pattern, found in _SIGNATURES:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return _OUR_ONNX if found is ONNX and _is_ours(path) else found
    if picture := _picture(start):
        return picture
    if os.path.splitext(path)[1].lower() in _ENGINES:
        return _ENGINE
    return _TEXT if _is_text(start) else None


def _of_zip(path: str) -> Foreign:
    """Tell by the names in it what a ZIP archive is; one that is cut off is most likely a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return _PICKLE
    last = {name.rpartition("/")[2] for name in names}
    if "serialized_exported_program.json" in last or {"archive_format", "model.json"} <= last:
        return _EXPORTED
    if "constants.pkl" in last:
        return _TORCHSCRIPT
    if "data.pkl" in last:
        return _PICKLE
    if "model.weights.h5" in last:
        return Foreign("a Keras model", _OTHER)
    if names and all(name.endswith(".npy") for name in names):
        return Foreign("an archive of NumPy arrays", _OTHER)
    return Foreign("a ZIP archive", _PACKED)


def _is_ours(path: str) -> bool:
    """Whether a graph carries our entry in `metadata_props`, see `engine.onnx_model.KEY`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.rfind(b"\x0a\x0aunet_batch\x12") >= 0


def _is_text(start: bytes) -> bool:
    """Whether these are characters; fewer than a safetensors file begins with say nothing."""
    text = start.decode("utf-8", "ignore")
    return len(start) > 8 and len(text.encode()) >= len(start) - 3 and "\0" not in text


def _picture(start: bytes) -> Foreign | None:
    from unet_batch.media.images.common import FORMATS

    for format in FORMATS:
        if format.signature and re.match(format.signature, start, re.DOTALL):
            return Foreign(
                f"a picture ({format.name}), not a model",
                "pictures are sources: unet-batch run PICTURE -m MODEL",
            )
    return None
