"""Choose the backend that runs a model, with the reason for the choice.

`auto` takes the first that can run: tensorrt, tensorrt-rtx, PyTorch on a GPU, OpenVINO, PyTorch on the CPU,
ONNX Runtime. Engines must be there, or be built. Each step down keeps its reason and the command that would
have helped. An explicit choice never falls back. What one backend alone needs is imported in its turn.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from unet_batch import gpu
from unet_batch.engine.flavours import NAMES, install_line, installed_version
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.inference.backends.base import Backend
from unet_batch.model import checkpoint, zoo
from unet_batch.model.checkpoint import ModelFile

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.engine.openvino import Cpu
    from unet_batch.engine.store import Engine
    from unet_batch.gpu import Gpu
    from unet_batch.types import Size

_NO_TORCH = "PyTorch is not installed or does not load"
CHOICES = ("auto", *NAMES, "torch", "openvino", "onnxruntime")


@dataclass(frozen=True)
class Step:
    """A backend that `auto` passed over.

    Attributes:
        name: of the backend.
        reason: why it cannot run, in one sentence.
        fix: the command or step that would help; may be empty.
    """

    name: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Selection:
    """The backend that was chosen; a context manager that closes it.

    Attributes:
        backend: open.
        passed_over: the backends that `auto` tried before it, best first.
    """

    backend: Backend
    passed_over: tuple[Step, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.backend.close()


@dataclass(frozen=True)
class Request:
    """What to run, and how.

    Attributes:
        model: the checkpoint or graph.
        backend: one of `CHOICES`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None chooses.
        batch_size: None lets the backend choose.
        size: (height, width) of the network's input; None takes the model's own.
        engines_dir: where engines are looked for.
        require_gpu: refuse to run on the CPU.
        build: called with `tensorrt`, `tensorrt-rtx` or `openvino` where no engine fits, to build one; None
            leaves it.
    """

    model: ModelFile
    backend: str = "auto"
    device: str | None = None
    batch_size: int | None = None
    size: Size | None = None
    engines_dir: str = "engines"
    require_gpu: bool = False
    build: Callable[[str], object] | None = None


def select(request: Request) -> Selection:
    """Open the backend that was asked for, or the best one that can run.

        with select(request) as selection:
            maps = selection.backend.infer(pictures)

    A `Segmenter` that is given the backend closes it, too; `open_segmenter` makes both.

    Raises:
        UsageError: an unknown backend, or a device that contradicts it.
        BackendUnavailable: what was asked for cannot run; the hint is the command that would fix it.
    """
    if request.backend not in CHOICES:
        raise UsageError(
            f"backend {request.backend!r} is not known", hint=f"choose from: {', '.join(CHOICES)}"
        )
    device = request.device
    on_cuda = device is None or device.startswith("cuda")
    if on_cuda:
        _index(device)
    if request.backend in NAMES and not on_cuda:
        raise UsageError(
            f"--backend {request.backend} runs on NVIDIA GPUs, not on {device}", hint="leave --device out"
        )
    if request.backend == "openvino" and (request.require_gpu or device not in (None, "cpu")):
        where = "--require-gpu" if request.require_gpu else device
        raise UsageError(f"--backend openvino runs on CPUs, not with {where}", hint=f"leave {where} out")
    if request.require_gpu and device == "cpu":
        raise UsageError("--require-gpu contradicts --device cpu", hint="leave one of them out")
    if request.backend != "auto":
        return Selection(_explicit(request).open())
    return _select_automatically(request)


def _explicit(request: Request) -> Backend:
    if request.backend in NAMES:
        return _tensorrt(request, request.backend, "as asked")
    if request.backend == "openvino":
        return _openvino(request, "as asked")
    if request.backend == "onnxruntime":
        return _onnxruntime(request, "as asked")
    return _torch(request, request.device, "as asked" if request.device else missing_gpu())


def _select_automatically(request: Request) -> Selection:
    passed: list[Step] = []
    candidates = _candidates(request)
    for number, (name, make) in enumerate(candidates):
        try:
            return Selection(make(_because(request, passed)).open(), tuple(passed))
        except (BackendError, UsageError) as error:
            # Also one that opens but cannot run, or a build that failed
            is_last = number == len(candidates) - 1
            if is_last and (isinstance(error, UsageError) or request.device is not None):
                raise
            passed.append(Step(name, error.message, error.hint))
    what = "no GPU can be used: " if request.require_gpu else ""
    raise BackendUnavailable(f"{what}{_because(request, passed)}", hint=passed[-1].fix)


def _candidates(request: Request) -> list[tuple[str, Callable[[str], Backend]]]:
    """What `auto` tries, best first: each with the function that makes it, given the reason for its turn."""
    device = request.device
    makers: dict[str, Callable[[str], Backend]] = {
        **{name: partial(_tensorrt, request, name) for name in NAMES},
        "torch-cuda": partial(_torch_on_gpu, request),
        "openvino": partial(_openvino, request),
        "torch-cpu": partial(_torch, request, "cpu"),
        "onnxruntime": partial(_onnxruntime, request),
    }
    left_out: set[str] = set()
    if not request.model.is_graph:  # for which ONNX Runtime has nothing to run
        left_out |= {"onnxruntime"}
    if request.require_gpu or (device is not None and device.startswith("cuda")):
        left_out |= {"openvino", "torch-cpu"}
    elif device == "cpu":
        left_out |= {*NAMES, "torch-cuda"}
    elif device is not None:  # Apple's GPUs
        return [("torch", partial(_torch, request, device))]
    return [(name, make) for name, make in makers.items() if name not in left_out]


def missing_gpu() -> str:
    """Why PyTorch cannot use an NVIDIA GPU, in a few words; empty when it can."""
    if reason := gpu.missing():
        return reason
    try:
        import torch
    except (ImportError, OSError):
        return _NO_TORCH
    if not torch.cuda.is_available():
        return "an NVIDIA GPU is present, but this PyTorch was built without CUDA or needs a newer driver"
    return ""


def _tensorrt(request: Request, name: str, reason: str) -> Backend:
    if missing := gpu.missing():
        raise BackendUnavailable(
            missing, hint="install NVIDIA's driver (https://www.nvidia.com/drivers), or use --backend torch"
        )
    from unet_batch.engine.flavours import Flavour

    flavour = Flavour(name)
    found = gpu.driver()
    index = _index(request.device)
    if found is None or index >= len(found.gpus):
        raise BackendUnavailable(
            f"cuda:{index}: this machine has {len(found.gpus) if found else 0} GPU(s), counted from 0"
        )
    card = found.gpus[index]
    engine = _find_or_build(request, name, lambda: _find(request, name, flavour.version, card))
    from unet_batch.inference.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(
        flavour,
        engine,
        size=request.size or request.model.spec.input_size,
        batch_size=request.batch_size,
        device=index,
        reason=reason,
    )


def _openvino(request: Request, reason: str) -> Backend:
    version = installed_version("openvino")
    if version is None:
        raise BackendUnavailable("openvino is not installed", hint=install_line("openvino"))
    from unet_batch.engine.openvino import OpenVino

    libraries: list[OpenVino] = []

    def find() -> Engine:
        _find(request, "openvino", version, None)  # before the second that importing it takes
        libraries.append(OpenVino())
        return _find(request, "openvino", version, libraries[-1].cpu)

    engine = _find_or_build(request, "openvino", find)
    from unet_batch.inference.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(
        libraries[-1],
        engine,
        size=request.size or request.model.spec.input_size,
        batch_size=request.batch_size,
        reason=reason,
    )


def _find(request: Request, flavour: str, version: str, device: Gpu | Cpu | None) -> Engine:
    """The engine that fits a request; see `store.find`."""
    from unet_batch.engine import store
    from unet_batch.engine.onnx_model import check_size

    size = request.size or request.model.spec.input_size
    check_size(size, request.model.spec)
    return store.find(
        request.engines_dir,
        request.model.sha256,
        size=size,
        flavour=flavour,
        version=version,
        device=device,
        batch_size=None if flavour == "openvino" else request.batch_size,  # it takes pictures one by one
    )


def _find_or_build(request: Request, name: str, find: Callable[[], Engine]) -> Engine:
    """The engine that `find` finds, built before where that was asked for."""
    try:
        return find()
    except BackendUnavailable as error:
        if request.build is None:
            raise BackendUnavailable(error.message, hint=_build_command(request, name)) from error
        if index := _index(request.device) if name in NAMES else 0:
            raise BackendUnavailable(
                f"{error.message}; engines are built on the first GPU that is visible",
                hint=f"CUDA_VISIBLE_DEVICES={index} and --device cuda",
            ) from error
        request.build(name)
        return find()


def _torch_on_gpu(request: Request, reason: str) -> Backend:
    if request.device is None and not request.model.is_graph and (missing := missing_gpu()):
        raise BackendUnavailable(missing, hint=_gpu_fix())
    return _torch(request, request.device or "cuda", reason)


def _torch(request: Request, device: str | None, reason: str) -> Backend:
    if request.model.is_graph:
        raise BackendUnavailable(
            "PyTorch runs checkpoints, not ONNX graphs",
            hint="use --backend onnxruntime, or build an engine: unet-batch build-engine "
            + shlex.quote(request.model.path),
        )
    try:
        from unet_batch.inference.backends.torch import TorchBackend
    except (ImportError, OSError) as error:  # engines run without it, so it may be missing
        why = f"{reason}; {_NO_TORCH}" if reason and request.backend != "auto" else _NO_TORCH
        raise BackendUnavailable(why, hint=_torch_fix()) from error
    loaded = checkpoint.load(request.model.path)
    backend = TorchBackend(loaded, device, batch_size=request.batch_size, reason=reason, size=request.size)
    if request.require_gpu and backend.name == "torch-cpu":
        raise BackendUnavailable(f"no GPU can be used: {missing_gpu() or 'not asked for'}", hint=_gpu_fix())
    return backend


def _onnxruntime(request: Request, reason: str) -> Backend:
    model, device = request.model, request.device
    if not model.is_graph:
        raise BackendUnavailable(
            f"{model.path}: a checkpoint, and ONNX Runtime runs graphs",
            hint=f"unet-batch build-engine {shlex.quote(model.path)} --onnx-only --precision fp32, and give "
            "-m the .onnx file that it names",
        )
    if device is not None and device != "cpu" and not device.startswith("cuda"):
        raise UsageError(
            f"--backend onnxruntime runs on CPUs and NVIDIA GPUs, not on {device}", hint="leave --device out"
        )
    from unet_batch.engine import onnx_model
    from unet_batch.inference.backends.onnxruntime import OnnxRuntimeBackend

    on_gpu = request.require_gpu or (device is not None and device != "cpu")
    if device is None and not gpu.missing():
        on_gpu = on_gpu or onnx_model.has_cuda()
    return OnnxRuntimeBackend(
        onnx_model.read(model.path),
        device=_index(device) if on_gpu else None,
        batch_size=request.batch_size,
        size=request.size,
        reason=reason,
    )


def _because(request: Request, passed: list[Step]) -> str:
    """Join the reasons for stepping down, each said once: `no NVIDIA driver; openvino is not installed`."""
    parts = ["as asked"] if request.device is not None else []
    steps: dict[str, list[str]] = {}
    for step in passed:
        steps.setdefault(step.reason, []).append(step.name)
    for reason, names in steps.items():
        says_whose = len(steps) == 1 or len(names) > 1 or names[0] in reason
        parts.append(reason if says_whose else f"{names[0]}: {reason}")
    return "; ".join(parts)


def _gpu_fix() -> str:
    if gpu.missing():
        driver = "install NVIDIA's driver (https://www.nvidia.com/drivers)"
        return f"{driver}, or run on the CPU without --require-gpu"
    return _torch_fix()


def _torch_fix() -> str:
    return f"pip install --force-reinstall torch -i https://download.pytorch.org/whl/{gpu.torch_wheel()}"


def _build_command(request: Request, name: str) -> str:
    words = ["unet-batch", "build-engine"]
    if request.model.path != zoo.resolve(None):
        words.append(request.model.path)
    words += ["--builder", name]
    if request.size is not None:
        words += ["--size", f"{request.size[0]}x{request.size[1]}"]
    if request.engines_dir != "engines":
        words += ["--engines-dir", request.engines_dir]
    if request.batch_size is not None:
        words += ["--batch", str(request.batch_size)]
    return f"build one: {shlex.join(words)}"


def _index(device: str | None) -> int:
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device or "cuda")
    if match is None:
        raise UsageError(f"device {device!r} is not known", hint="use cpu, cuda, cuda:N or mps")
    return int(match[1] or 0)
