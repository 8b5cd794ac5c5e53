"""TensorRT 8.6, 10 and 11 and TensorRT-RTX: everything in which they differ.

| | 8.6 | 10 | 11 | RTX 1.x |
|---|---|---|---|---|
| precision comes from | `BuilderFlag.FP16` | the graph | the graph | the graph |
| network flag | `EXPLICIT_BATCH` | `STRONGLY_TYPED` | none needed | `STRONGLY_TYPED` or none |
| builds without a GPU | no | no | no | yes |
| a `Runtime` without a driver | ends the process | an error | an error | an error |
| progress monitor | no | yes | yes | yes |

Members are looked up with a default, because each release removes some: 11 raises AttributeError for what 8.6
requires.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable
from typing import Any

from unet_batch import gpu
from unet_batch.errors import BackendUnavailable

NAMES = ("tensorrt", "tensorrt-rtx")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The module of each flavour's library."""
# Releases that this code is written for; OpenVINO is no flavour of TensorRT, see `engine.openvino`.
SUPPORTED = {"tensorrt": ("8.6", "10", "11"), "tensorrt-rtx": ("1",), "openvino": ("2026",)}


def install_line(name: str) -> str:
    """The command that installs what builds engines, with all it needs to build and run."""
    return f'pip install "unet-batch[{name}]"'


def is_supported(name: str, version: str) -> bool:
    """Whether this program is written for a version of what builds engines."""
    return any(f"{version}.".startswith(f"{release}.") for release in SUPPORTED[name])


def known_releases(name: str) -> str:
    """The versions this program is written for, for people: `8.6.x, 10.x`."""
    return ", ".join(f"{release}.x" for release in SUPPORTED[name])


class Flavour:
    """An imported TensorRT.

    Attributes:
        name: one of `NAMES`.
        module: `tensorrt` or `tensorrt_rtx`.
        version: of the library, e.g. `10.13.3.9`.
        errors: what TensorRT reported as errors since the last `take_errors`; its log goes nowhere else.
    """

    def __init__(self, name: str) -> None:
        """Import it.

        Raises:
            BackendUnavailable: it is not installed, does not load, or is of a version this program does not
                know.
        """
        self.name = name
        try:
            self.module: Any = importlib.import_module(MODULES[name])
        except ModuleNotFoundError as error:
            if error.name != MODULES[name]:
                raise BackendUnavailable(f"{name} does not load: {error}", hint=install_line(name)) from error
            raise BackendUnavailable(f"{name} is not installed", hint=install_line(name)) from error
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailable(
                f"{name} does not load: {_first_line(error)}", hint=install_line(name)
            ) from error
        self.version = str(self.module.__version__)
        if not is_supported(name, self.version):
            raise BackendUnavailable(
                f"{name} {self.version} is installed, this program knows {known_releases(name)}",
                hint=install_line(name),
            )
        self.errors: deque[str] = deque(maxlen=20)  # nobody may ask for a whole night
        self.logger = _logger(self.module, self.errors)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def strongly_typed(self) -> bool:
        """Whether precision comes from the graph; otherwise a float32 graph and a flag ask for it (8.6)."""
        return self.name == "tensorrt-rtx" or int(self.version.split(".")[0]) >= 10

    @property
    def needs_gpu_to_build(self) -> bool:
        """TensorRT times its kernels on the GPU; TensorRT-RTX compiles them when the engine is loaded."""
        return self.name == "tensorrt"

    @property
    def max_opset(self) -> int | None:
        """Newest ONNX opset the parser is known to read; None where it reads all that are written here."""
        return None if self.strongly_typed else 17

    def take_errors(self) -> str:
        """What went wrong, on one line, and forget it."""
        text = "; ".join(" ".join(message.split())[:300] for message in list(self.errors)[:3])
        self.errors.clear()
        return text or "no reason given"

    def network_flags(self) -> int:
        """Flags for `Builder.create_network`."""
        flags = self.module.NetworkDefinitionCreationFlag
        wanted = getattr(flags, "STRONGLY_TYPED", None) or (
            None if self.strongly_typed else flags.EXPLICIT_BATCH
        )
        return 0 if wanted is None else 1 << int(wanted)

    def runtime(self) -> Any:
        """A `Runtime`, for loading plans.

        Raises:
            BackendUnavailable: there is no driver (8.6 would end the process), or the library refuses.
        """
        if reason := gpu.missing():
            raise BackendUnavailable(reason, hint="install NVIDIA's driver, or use --backend torch")
        runtime = self.module.Runtime(self.logger)
        if runtime is None:
            raise BackendUnavailable(f"{self.name} {self.version}: {self.take_errors()}")
        return runtime

    @property
    def lends_memory(self) -> bool:
        """Whether a context takes memory for the shapes it runs; 8.6 allocates for its largest profile."""
        context = self.module.IExecutionContext
        return hasattr(context, "update_device_memory_size_for_shapes") and hasattr(
            context, "set_device_memory"
        )

    def create_context(self, engine: Any, config: Any | None) -> Any | None:
        """An execution context, without memory of its own if the flavour `lends_memory`; None on failure."""
        if not self.lends_memory:
            return engine.create_execution_context()
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if config is None:
            return engine.create_execution_context(strategy)
        config.set_execution_context_allocation_strategy(strategy)
        return engine.create_execution_context(config)

    def runtime_config(self, engine: Any, kernels: bytes) -> tuple[Any, Any] | None:
        """How contexts of an engine are made, and their cache of kernels; None where neither is chosen.

        TensorRT-RTX compiles kernels when it meets a shape. By default it answers with slower ones until
        those are ready: masks would then depend on the time, and a CUDA graph would keep the slow ones.
        `kernels` holds those of an earlier run.
        """
        if self.name != "tensorrt-rtx":
            return None
        config = engine.create_runtime_config()
        strategies = getattr(self.module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None:
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        cache = config.create_runtime_cache()
        if kernels and not cache.deserialize(kernels):
            self.errors.clear()  # of another GPU or version: they are compiled again
        config.set_runtime_cache(cache)
        return config, cache

    def progress_monitor(self, step: Callable[[float], None]) -> Any | None:
        """A monitor that reports the share that is done, and stops when `step` raises; None in 8.6.

        What `step` raised is in the monitor's `stopped_by`: an exception must not travel through TensorRT.
        """
        base = getattr(self.module, "IProgressMonitor", None)
        if base is None:
            return None

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)  # type: ignore[misc]
                self.phases: dict[str, list[Any]] = {}  # name -> [parent, steps, steps done]
                self.stopped_by: BaseException | None = None
                self.done = 0.0

            def phase_start(self, name: str, parent: str | None, steps: int) -> None:
                self.phases[name] = [parent, max(1, steps), 0]
                self._report()

            def step_complete(self, name: str, number: int) -> bool:
                self.phases[name][2] = number + 1
                return self._report()

            def phase_finish(self, name: str) -> None:
                self.phases.pop(name, None)

            def _report(self) -> bool:
                if self.stopped_by is None:
                    try:
                        # A phase that ends takes its share away
                        self.done = max(self.done, min(1.0, self._share(None)))
                        step(self.done)
                    except BaseException as error:  # noqa: BLE001 - raised again by whoever started the build
                        self.stopped_by = error
                return self.stopped_by is None

            def _share(self, parent: str | None) -> float:
                """How much of the phases below `parent` is done, as a share of one phase."""
                below = [(name, *phase[1:]) for name, phase in self.phases.items() if phase[0] == parent]
                if not below:
                    return 0.0
                return float(
                    max((done + min(0.999, self._share(name))) / steps for name, steps, done in below)
                )

        return Monitor()


def installed_version(name: str) -> str | None:
    """Version of what builds engines, without importing it; None where it is not installed.

    The distribution names differ: a wheel for one CUDA release is called `tensorrt-cu12`, say, and JetPack's
    is `tensorrt`.
    """
    from importlib import metadata

    for suffix in ("", "-cu13", "-cu12", "-cu11"):
        try:
            return metadata.version(name + suffix)
        except metadata.PackageNotFoundError:
            continue
    return None


def _logger(module: Any, errors: deque[str]) -> Any:
    base = module.ILogger

    class Log(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Log()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
