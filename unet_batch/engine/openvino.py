"""OpenVINO: an ONNX graph in float32 or INT8 to an engine for CPUs, and the engine loaded.

What is stored is OpenVINO's own format, IR, its two files in one uncompressed ZIP archive: it runs on every
CPU and at every size of its profile, and is compiled for this CPU when it is loaded, as TensorRT-RTX does it.
A blob of `export_model` would save 0.1 s of processor time at the start (0.21 s in place of 0.31 s for the
7.8 M parameters of `classic`; the ONNX graph itself takes 0.40 s), and run only on the kind of CPU that made
it, at one size.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine.compiler import Compiled, Profile
from unet_batch.engine.flavours import install_line, installed_version, is_supported, known_releases
from unet_batch.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from unet_batch.engine.onnx_model import Convolution
    from unet_batch.types import Pixels, Size

NAME = "openvino"
PRECISIONS = ("int8", "bf16", "fp32")
_HINTS = {"int8": "f32", "bf16": "bf16", "fp32": "f32"}  # INT8 is in the graph; this is for what is not
_TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_XML, _WEIGHTS = "model.xml", "model.bin"
_CONVERTER = "openvino.tools.ovc"


@dataclass(frozen=True)
class Cpu:
    """The processor, as OpenVINO sees it.

    Attributes:
        name: with what it computes natively; a proof holds for processors of the same name.
        has_bf16: it executes bfloat16.
        has_int8: OpenVINO has kernels in INT8 for it.
    """

    name: str
    has_bf16: bool
    has_int8: bool = True


class OpenVino:
    """An imported OpenVINO.

    Attributes:
        version: of the library, e.g. `2026.4.1`.
        cpu: that it runs on.
    """

    name = NAME

    def __init__(self) -> None:
        """Import it.

        Raises:
            BackendUnavailable: it is not installed, does not load, is of a version this program does not
                know, or knows no CPU here.
        """
        version = installed_version(NAME)
        if version is None:
            raise BackendUnavailable(f"{NAME} is not installed", hint=install_line(NAME))
        if not is_supported(NAME, version):
            raise BackendUnavailable(
                f"{NAME} {version} is installed, this program knows {known_releases(NAME)}",
                hint=install_line(NAME),
            )
        self.version = version
        try:
            self._library: Any = _import_library()
            self._core = _core()
            name = str(self._core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
            able = {str(each) for each in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")}
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailable(
                f"{NAME} does not load: {_line(error)}", hint=install_line(NAME)
            ) from error
        kinds = [kind for kind in ("FP32", "FP16", "BF16", "INT8") if kind in able]
        self.cpu = Cpu(f"{name} ({', '.join(kinds)})", "BF16" in able, "INT8" in able)

    def __str__(self) -> str:
        return f"{NAME} {self.version}"

    def compile(self, onnx: bytes, profile: Profile) -> Compiled:
        """Convert a graph, for one picture at a time.

        Raises:
            BackendError: OpenVINO cannot read it; the message is OpenVINO's.
        """
        begun = time.perf_counter()
        try:
            model = self._core.read_model(onnx)
            low, _, high = profile.size
            sides = [(low[axis], high[axis]) for axis in (0, 1)]
            dims = [self._library.Dimension(*side) for side in sides]
            channels = model.inputs[0].get_partial_shape()[3]
            model.reshape(self._library.PartialShape([self._library.Dimension(1), *dims, channels]))
            plan = self._serialize(model)
        except RuntimeError as error:
            raise BackendError(f"{self} cannot read the ONNX graph: {_line(error)}") from error
        return Compiled(plan, {}, time.perf_counter() - begun)

    def load(self, plan: bytes, size: Size, precision: str, streams: int) -> LoadedEngine:
        """Compile an engine for this CPU.

        Args:
            plan: its bytes, compared with the sidecar before.
            size: (height, width) of the pictures.
            precision: one of `PRECISIONS`.
            streams: pictures at the same time, a thread each.

        Raises:
            BackendUnavailable: OpenVINO refuses it, or this CPU does not execute the precision.
        """
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        try:
            with zipfile.ZipFile(io.BytesIO(plan)) as archive:
                model = self._core.read_model(archive.read(_XML), archive.read(_WEIGHTS))
            model.reshape([1, *size, model.inputs[0].get_partial_shape()[3].get_length()])
            compiled = self._core.compile_model(model, "CPU", config)
            found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        except (RuntimeError, KeyError, zipfile.BadZipFile) as error:
            raise BackendUnavailable(
                f"{self} refuses the engine: {_line(error)}",
                hint=f"build it again: unet-batch build-engine --force --builder {NAME}",
            ) from error
        if found != _HINTS[precision]:  # which it takes without a word in place of what it has not
            raise BackendUnavailable(
                f"{self.cpu.name} computes in {_TYPES.get(found, found)}, not {precision}"
            )
        return LoadedEngine(compiled, streams)

    def _serialize(self, model: Any) -> bytes:
        """IR as the bytes of an archive."""
        archive = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w") as packed:
            paths = {name: os.path.join(folder, name) for name in (_XML, _WEIGHTS)}
            self._library.serialize(model, *paths.values())
            for name, path in paths.items():
                with open(path, "rb") as file:
                    packed.writestr(zipfile.ZipInfo(name), file.read())  # dated 1980
        return archive.getvalue()


class LoadedEngine:
    """An engine that OpenVINO has compiled: one picture (1, H, W, C) to its map (H, W), from many threads.

    Each stream of OpenVINO is one thread of its own; who calls waits for a free one.
    """

    def __init__(self, compiled: Any, streams: int) -> None:
        self._compiled = compiled
        # In one thread: the first such call looks NumPy up under a lock of C++, which it keeps while it lets
        # go of Python's. Two threads that both came first hung so: 3 of 8 starts on busy cores.
        compiled.inputs[0].get_element_type().to_dtype()
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def __call__(self, picture: Pixels) -> Pixels:
        """Raises BackendError when the run fails."""
        request = self._idle.get()
        try:
            maps: Pixels = request.infer({0: picture}, share_inputs=True)[0]  # a copy of its own
        except RuntimeError as error:
            raise BackendError(f"{NAME}: {_line(error)}") from error
        finally:
            self._idle.put(request)
        return np.asarray(maps[0])

    def batch(self, pictures: Pixels) -> Pixels:
        """Maps (N, H, W) of pictures (N, H, W, C), one by one."""
        return np.stack([self(picture[None]) for picture in pictures])

    def precisions(self, convolutions: Mapping[str, Convolution]) -> dict[str, str]:
        """What each convolution of the ONNX graph really computes in; what was fused away is left out."""
        found = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            kind, kernel, names = (
                facts[fact].astype(str) if fact in facts else ""
                for fact in ("runtimePrecision", "primitiveType", "originalLayersNames")
            )
            # That is the type of its input; what runs is `jit_avx2_I8`, or `brgconv_avx2_f32` all the same
            if _TYPES.get(kind) == "int8":
                kind = kernel.rpartition("_")[2].lower()
            found.update(dict.fromkeys(convolutions.keys() & set(names.split(",")), _TYPES.get(kind, kind)))
        return found


def _import_library() -> Any:
    """Import OpenVINO without its converter of other formats, which it does without where that is missing.

    The converter takes 0.15 of the 0.25 s of processor time, and its import sends Intel an event (2026.4).
    """
    is_there = _CONVERTER in sys.modules
    if not is_there:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # to import it is an ImportError
    try:
        return importlib.import_module("openvino")
    finally:
        if not is_there:
            del sys.modules[_CONVERTER]


@functools.cache
def _core() -> Any:
    """The one of this process, which stays.

    The plugin for CPUs gives the thread that loads it a stack for signals. If its last core goes in another
    thread, that stack is gone and still in use: the next Ctrl-C is a segmentation fault (2026.4).
    """
    return _import_library().Core()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
