"""What all sections share, and those that need no library: each is run in a process of its own.

A section fills `data` and calls `save` whenever something was added, so that a crash costs only what had not
been measured. It raises `Skip` where something is not installed, `NoGpu` where nothing but the GPU is
missing, and an error where something is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpu_check.networks import (
    MODELS,
    SPEC_NAMES,
    TYPED,
    WEAK,
    export,
    floor,
    flops,
    graphs,
    write_checkpoint,
)
from unet_batch import gpu
from unet_batch.errors import BackendError, BackendUnavailable
from unet_batch.inference.backends import cuda_memory

if TYPE_CHECKING:
    from unet_batch.engine.flavours import Flavour
    from unet_batch.engine.store import Engine
    from unet_batch.inference.backends.base import Backend
    from unet_batch.inference.backends.cuda_memory import CudaMemory
    from unet_batch.types import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
Data = dict[str, Any]
Save = Callable[[], None]

__all__ = ["graphs"]  # a kit for machines without PyTorch finds it here
PROVIDERS = tuple(cuda_memory.PROVIDERS)
MAIN_BATCH = 32
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Batches at which speed is measured."""


class Skip(Exception):
    """Nothing can be measured here, and why; not an error."""


class NoGpu(Skip):
    """Nothing but the GPU is missing."""


# What is there ----------------------------------------------------------------------------------------------


def present(module: str) -> bool:
    """Whether a module is installed; nothing is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is not installed, or was imported in an odd way
        return False


def need_gpu() -> None:
    """Raise NoGpu without one: all that a machine without a GPU can do comes before."""
    if reason := gpu.missing():
        raise NoGpu(reason)


def gpu_name() -> str | None:
    """What the driver calls the GPU that is measured."""
    driver = gpu.driver()
    return driver.gpus[0].name if driver is not None and driver.gpus else None


def open_flavour(name: str) -> Flavour:
    from unet_batch.engine.flavours import Flavour

    try:
        return Flavour(name)
    except BackendUnavailable as error:
        raise Skip(error.message) from error


def module_of(provider: str) -> str:
    """The module whose presence decides whether a way to the GPU's memory can be tried."""
    return provider.replace("-", ".")


def open_provider(name: str) -> CudaMemory:
    if not present(module_of(name)):
        raise Skip(f"{name} is not installed")
    need_gpu()
    try:
        return cuda_memory.open_memory(0, name)
    except BackendUnavailable as error:
        raise Skip(error.message) from error


def usable_providers() -> list[str]:
    """Those that open; importing the others costs time only."""
    usable, reasons = [], []
    for name in PROVIDERS:
        try:
            open_provider(name)
            usable.append(name)
        except NoGpu:
            raise
        except Skip as error:
            reasons.append(str(error))
    if not usable:
        raise Skip("; ".join(reasons))
    return usable


def built_engines(flavour: Flavour, folder: str, batches: Sequence[int] = ()) -> list[tuple[str, Engine]]:
    """Engines of this library with their models' names; of all best batches, or of `batches` only.

    Of several for one batch the one whose kernels were looked for longest; none that was refused on this GPU.
    """
    from unet_batch.engine import store

    engines, _ = store.list_engines(folder)
    here = gpu_name()
    found: dict[tuple[str, tuple[int, int, int]], Engine] = {}
    for engine in sorted(engines, key=_builder_level):
        recipe, name = engine.sidecar.recipe, engine.sidecar.spec.name
        if (recipe.flavour, recipe.version) != (flavour.name, flavour.version):
            continue
        if here not in engine.sidecar.refused and (not batches or recipe.profile.batch[1] in batches):
            found[SPEC_NAMES.get(name, name), recipe.profile.batch] = engine
    if not found:
        raise Skip(f"no engine of {flavour.name} {flavour.version} was built")
    order = list(MODELS)
    return sorted(
        ((model, engine) for (model, _), engine in found.items()),
        key=lambda pair: (order.index(pair[0]) if pair[0] in order else len(order), pair[1].path),
    )


def _builder_level(engine: Engine) -> int:
    """How long the builder looked for kernels: TensorRT's own choice is level 3."""
    level = engine.sidecar.recipe.options.get("opt_level")
    return 3 if level is None else int(level)


def open_engine(
    flavour: Flavour, engine: Engine, memory: CudaMemory | None = None, **options: Any
) -> Backend:
    from unet_batch.inference.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(flavour, engine, memory=memory, **options)


def speed(rates: Data, spec: ModelSpec) -> Data:
    """`rates` with TFLOP/s, and beside what the GPU could do at this batch, where that is known."""
    median = rates["images_per_s"]["median"]
    most = floor(spec, rates["batch"], gpu_name())
    return rates | {
        "tflops": median * flops(spec) / 1e12,
        "floor_images_per_s": most,
        "share_of_floor": None if most is None else median / most,
    }


# 1, 2: the machine, and the tests ---------------------------------------------------------------------------


def environment(data: Data, save: Save) -> None:
    driver = gpu.driver()
    data["driver"] = None if driver is None else dataclasses.asdict(driver)
    query = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,memory.used"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        data["nvidia_smi"] = {
            query: subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[0]
        }
    except (OSError, subprocess.TimeoutExpired) as error:
        data["nvidia_smi"] = {"reason": str(error)}
    save()
    from unet_batch.doctor.checks import examine

    data["doctor"] = [dataclasses.asdict(check) for check in examine()]


def tests(data: Data, save: Save, seconds: float, folder: str) -> None:
    """The tests marked `gpu` of a folder."""
    if not present("pytest"):
        raise Skip("pytest is not installed")
    with tempfile.TemporaryDirectory() as out:
        report = os.path.join(out, "junit.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            folder,
            "-m",
            "gpu",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            text = (
                error.stdout
                if isinstance(error.stdout, str)
                else (error.stdout or b"").decode(errors="replace")
            )
            data["output"] = text.splitlines()[-20:]
            raise BackendError(f"pytest had not ended after {seconds:.0f} s") from error
        data |= {"exit_status": done.returncode, "output": done.stdout.splitlines()[-20:]}
        save()
        cases = list(ET.parse(report).getroot().iter("testcase")) if os.path.exists(report) else []
    kinds = [(case, {child.tag for child in case}) for case in cases]
    failed = [
        f"{case.get('classname')}::{case.get('name')}" for case, tags in kinds if tags & {"failure", "error"}
    ]
    skipped = sum("skipped" in tags for _, tags in kinds)
    data |= {"passed": len(cases) - len(failed) - skipped, "failed": failed, "skipped": skipped}
    if done.returncode not in (0, 5) or failed:  # 5: nothing was selected
        raise BackendError(f"pytest ended with {done.returncode}, {len(failed)} tests failed")
    if not data["passed"]:
        need_gpu()
        raise Skip(f"pytest skipped all {skipped} tests")


# The models -------------------------------------------------------------------------------------------------


def models(
    data: Data,
    save: Save,
    names: Sequence[str],
    folder: str,
    flavours: Sequence[str],
    forms: Sequence[tuple[str, int]] = (),
) -> None:
    """Checkpoints, and the graphs that the installed builders take; those of `forms` in any case."""
    wanted = [(precision, opset) for precision, opset in forms]
    for name in flavours:
        with contextlib.suppress(Skip):
            wanted.append(TYPED if open_flavour(name).strongly_typed else WEAK)
    os.makedirs(folder, exist_ok=True)
    data["checkpoints"] = [write_checkpoint(name, folder) for name in names]
    save()
    data["written"] = []
    if wanted:
        export(folder, names, list(dict.fromkeys(wanted)), data["written"].append)


def _stand_ins() -> None:
    """For what `unet_batch.build` imports and a build from ONNX does not need."""
    if not present("filelock"):  # nobody else builds in the folder of this check
        from unet_batch.engine import store

        setattr(store, "lock_build", lambda *_: contextlib.nullcontext(False))  # noqa: B010 - mypy knows its type
    if not present("safetensors"):
        stub: Any = types.ModuleType("safetensors")
        stub.SafetensorError, stub.safe_open = OSError, None
        sys.modules["safetensors"] = stub


OOM = "DeviceOutOfMemory"


def judge_starved(data: Data, lends_memory: bool = True) -> None:
    """Raise BackendError for what is wrong with the result of `measure.starve`.

    Args:
        data: the result.
        lends_memory: a smaller batch takes less memory. A context of TensorRT 8.6 has what the largest batch
            of its profile needs, whatever it runs: there a refusal in words is right, and the right maps
            after it.
    """
    least = data["alone"]["dice"] - 0.001  # other kernels may round otherwise
    wrong = [f"Dice {entry['dice']:.5f}" for entry in data["starved"] if entry.get("dice", 1) < least]
    wrong += [
        f"{entry['kind']}: {entry['refused']}" for entry in data["starved"] if entry.get("kind", OOM) != OOM
    ]
    if "refused" in data["after"] or data["after"]["digest"] != data["alone"]["digest"]:
        wrong.append("after it the maps are not what they were")
    short = [
        entry
        for entry in data["starved"]
        if "refused" in entry or entry["batch"] < entry["asked"] or entry["notes"]
    ]
    if not short:
        wrong.append("memory never ran out")
    if lends_memory and all("refused" in entry for entry in short):
        wrong.append("no smaller batch was ever taken")
    if wrong:
        raise BackendError("; ".join(wrong))


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (environment, tests, models)
}
