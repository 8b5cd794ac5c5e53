"""Choose the backend that runs a model, with the reason for the choice.

`auto` takes the first that can run: tensorrt, tensorrt-rtx, PyTorch on a GPU, PyTorch on the CPU. Each step
down keeps its reason and the command that would have helped. An explicit choice never falls back. What one
backend alone needs is imported when its turn comes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from unet_batch import gpu
from unet_batch.engine.flavours import NAMES
from unet_batch.errors import BackendError, BackendUnavailable, UsageError
from unet_batch.inference.backends.base import Backend
from unet_batch.model import checkpoint, zoo
from unet_batch.model.checkpoint import ModelFile

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.types import Size

_NO_TORCH = "PyTorch is not installed or does not load"
CHOICES = ("auto", *NAMES, "torch")


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
        model: the checkpoint.
        backend: one of `CHOICES`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None chooses.
        batch_size: None lets the backend choose.
        size: (height, width) of the network's input; None takes the model's own.
        engines_dir: where engines are looked for.
        require_gpu: refuse to run on the CPU.
        build: called with `tensorrt` or `tensorrt-rtx` where no engine fits, to build one; None leaves it.
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
    on_cuda = request.device is None or request.device.startswith("cuda")
    if on_cuda:
        _index(request.device)
    if request.backend in NAMES and not on_cuda:
        raise UsageError(
            f"--backend {request.backend} runs on NVIDIA GPUs, not on {request.device}",
            hint="leave --device out",
        )
    if request.require_gpu and request.device == "cpu":
        raise UsageError("--require-gpu contradicts --device cpu", hint="leave one of them out")
    if request.backend in NAMES:
        return Selection(_tensorrt(request, request.backend, "as asked").open())
    if request.backend == "torch" or not on_cuda:
        return Selection(_torch(request, request.device, _why_torch(request)).open())
    return _select_automatically(request)


def _select_automatically(request: Request) -> Selection:
    passed: list[Step] = []
    for name in NAMES:
        try:
            return Selection(_tensorrt(request, name, _because(passed)).open(), tuple(passed))
        except (BackendError, UsageError) as error:
            # Also one that opens but cannot run, or a build that failed
            passed.append(Step(name, error.message, error.hint))
    try:
        if request.device is None and (reason := missing_gpu()):
            raise BackendUnavailable(reason, hint=_gpu_fix())
        return Selection(_torch(request, request.device or "cuda", _because(passed)).open(), tuple(passed))
    except BackendError as error:
        if request.device is not None:
            raise
        passed.append(Step("torch-cuda", error.message, error.hint))
    if request.require_gpu:
        raise BackendUnavailable(f"no GPU can be used: {_because(passed)}", hint=passed[-1].fix)
    return Selection(_torch(request, "cpu", _because(passed)).open(), tuple(passed))


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
    from unet_batch.engine import store
    from unet_batch.engine.flavours import Flavour
    from unet_batch.engine.onnx_model import check_size

    flavour = Flavour(name)
    found = gpu.driver()
    index = _index(request.device)
    check_size(request.size or request.model.spec.input_size, request.model.spec)
    if found is None or index >= len(found.gpus):
        raise BackendUnavailable(
            f"cuda:{index}: this machine has {len(found.gpus) if found else 0} GPU(s), counted from 0"
        )

    def find() -> store.Engine:
        return store.find(
            request.engines_dir,
            request.model.sha256,
            size=request.size or request.model.spec.input_size,
            flavour=name,
            version=flavour.version,
            gpu=found.gpus[index],
            batch_size=request.batch_size,
        )

    try:
        engine = find()
    except BackendUnavailable as error:
        if request.build is None:
            raise BackendUnavailable(error.message, hint=_build_command(request, name)) from error
        if index:
            raise BackendUnavailable(
                f"{error.message}; engines are built on the first GPU that is visible",
                hint=f"CUDA_VISIBLE_DEVICES={index} and --device cuda",
            ) from error
        request.build(name)
        engine = find()
    from unet_batch.inference.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(
        flavour,
        engine,
        size=request.size or request.model.spec.input_size,
        batch_size=request.batch_size,
        device=index,
        reason=reason,
    )


def _torch(request: Request, device: str | None, reason: str) -> Backend:
    try:
        from unet_batch.inference.backends.torch import TorchBackend
    except (ImportError, OSError) as error:  # engines run without it, so it may be missing
        raise BackendUnavailable(
            f"{reason}; {_NO_TORCH}" if reason else _NO_TORCH, hint=_torch_fix()
        ) from error
    loaded = checkpoint.load(request.model.path)
    backend = TorchBackend(loaded, device, batch_size=request.batch_size, reason=reason, size=request.size)
    if request.require_gpu and backend.name == "torch-cpu":
        raise BackendUnavailable(f"no GPU can be used: {missing_gpu() or 'not asked for'}", hint=_gpu_fix())
    return backend


def _why_torch(request: Request) -> str:
    return "as asked" if request.device else missing_gpu()


def _because(passed: list[Step]) -> str:
    """Join the reasons for stepping down, each said once: `tensorrt: ...; tensorrt-rtx: ...`."""
    reasons = dict.fromkeys(step.reason for step in passed)
    if len(reasons) <= 1:
        return "".join(reasons)
    return "; ".join(
        step.reason if step.name in step.reason else f"{step.name}: {step.reason}" for step in passed
    )


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
