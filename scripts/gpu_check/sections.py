"""The sections that need TensorRT or no library at all, each run in a process of its own.

A section fills `data` and calls `save` whenever something was added, so that a crash costs only what had not
been measured. It raises `Skip` where something is not installed, and an error where something is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpu_check import measure
from scripts.gpu_check.networks import (
    MODELS,
    SPEC_NAMES,
    TYPED,
    WEAK,
    checkpoint_path,
    export,
    flops_of,
    graphs,
    write_checkpoint,
)
from unet_batch import gpu
from unet_batch.errors import BackendError, BackendUnavailable, UnetBatchError

if TYPE_CHECKING:
    from unet_batch.engine.flavours import Flavour
    from unet_batch.engine.store import Engine
    from unet_batch.inference.backends.base import Backend
    from unet_batch.inference.backends.cuda_memory import CudaMemory

ROOT = Path(__file__).resolve().parents[2]
Data = dict[str, Any]
Save = Callable[[], None]

PROVIDERS = ("pycuda", "torch")
MAIN_BATCH = 32
# Images a second that no engine can exceed, by width of the first level, of the classic five levels at
# 160x240 on an NVIDIA H200: derived layer by layer, the larger of FLOPs / 790 TFLOP/s and bytes / 4.3 TB/s
# (16 bit, activations read and written once), both rates as measured on such a GPU with PyTorch. On other
# GPUs nothing is known, and no fraction is given.
H200_FLOORS = {64: 13_399, 32: 48_900, 16: 141_800}


class Skip(Exception):
    """Nothing can be measured here, and why; not an error."""


# What is there ----------------------------------------------------------------------------------------------


def present(module: str) -> bool:
    """Whether a module is installed; nothing is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is not installed, or was imported in an odd way
        return False


def open_flavour(name: str) -> Flavour:
    from unet_batch.engine.flavours import Flavour

    try:
        return Flavour(name)
    except BackendUnavailable as error:
        raise Skip(error.message) from error


def open_provider(name: str) -> CudaMemory:
    from unet_batch.inference.backends.cuda_memory import open_memory

    try:
        return open_memory(0, name)
    except BackendUnavailable as error:
        raise Skip(error.message) from error


def usable_providers() -> list[str]:
    """Those that open; importing the others costs time only."""
    usable = []
    for name in PROVIDERS:
        with contextlib.suppress(Skip):
            open_provider(name)
            usable.append(name)
    if not usable:
        raise Skip("neither pycuda nor PyTorch can reach the GPU")
    return usable


def built_engines(flavour: Flavour, folder: str, batches: Sequence[int] = ()) -> list[tuple[str, Engine]]:
    """Engines of this library with their models' names; of all best batches, or of `batches` only."""
    from unet_batch.engine import store

    engines, _ = store.list_engines(folder)
    found = [
        (SPEC_NAMES.get(engine.sidecar.spec.name, engine.sidecar.spec.name), engine)
        for engine in engines
        if (engine.sidecar.recipe.flavour, engine.sidecar.recipe.version) == (flavour.name, flavour.version)
        and "refused" not in engine.sidecar.proofs
        and (not batches or engine.sidecar.recipe.profile.batch[1] in batches)
    ]
    if not found:
        raise Skip(f"no engine of {flavour.name} {flavour.version} was built")
    order = list(MODELS)
    return sorted(
        found, key=lambda pair: (order.index(pair[0]) if pair[0] in order else len(order), pair[1].path)
    )


def open_engine(
    flavour: Flavour, engine: Engine, memory: CudaMemory | None = None, **options: Any
) -> Backend:
    from unet_batch.inference.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(flavour, engine, memory=memory, **options)


def speed(rates: Data, widths: Sequence[int], flops: int | None) -> Data:
    """`rates` with TFLOP/s, and the share of the H200's floor where that is known."""
    median = rates["images_per_s"]["median"]
    driver = gpu.driver()
    on_h200 = driver is not None and bool(driver.gpus) and "H200" in driver.gpus[0].name
    doubling = len(widths) == 5 and all(wide == 2 * narrow for narrow, wide in itertools.pairwise(widths))
    floor = H200_FLOORS.get(widths[0]) if on_h200 and doubling else None
    return rates | {
        "tflops": None if flops is None else median * flops / 1e12,
        "share_of_h200_floor": None if floor is None else median / floor,
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
    from unet_batch import doctor

    data["doctor"] = [dataclasses.asdict(check) for check in doctor.examine()]


def tests(data: Data, save: Save, seconds: float) -> None:
    if not present("pytest"):
        raise Skip("pytest is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "junit.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
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
        raise Skip(f"pytest skipped all {skipped} tests")


# The models -------------------------------------------------------------------------------------------------


def models(data: Data, save: Save, names: Sequence[str], folder: str, flavours: Sequence[str]) -> None:
    """Checkpoints, and the graphs that the installed builders take."""
    if not present("torch"):
        raise Skip("PyTorch is not installed")
    forms = []
    for name in flavours:
        with contextlib.suppress(Skip):
            forms.append(TYPED if open_flavour(name).strongly_typed else WEAK)
    os.makedirs(folder, exist_ok=True)
    data["checkpoints"] = [write_checkpoint(name, folder) for name in names]
    save()
    data["written"] = []
    if forms:
        export(folder, names, list(dict.fromkeys(forms)), data["written"].append)


# 3: engines -------------------------------------------------------------------------------------------------


def build(
    data: Data,
    save: Save,
    flavour: str,
    model: str,
    batches: Sequence[tuple[int, int, int]],
    folder: str,
    engines: str,
    from_checkpoint: bool,
) -> None:
    library = open_flavour(flavour)
    _stand_ins()
    from unet_batch.build import BuildOptions, build_engine
    from unet_batch.engine import onnx_model

    precision = "fp16" if library.strongly_typed else "fp32"
    graph = graphs(folder).get(model, {}).get(precision)
    if graph is None:
        raise Skip(f"no {precision} ONNX graph of {model} in {folder}")
    # The way of `unet-batch build-engine`, from the checkpoint, once; the others start where the graph is
    # written.
    source = checkpoint_path(model, folder) if from_checkpoint else graph
    convolutions = onnx_model.read(graph).convolutions
    data |= {"version": library.version, "source": os.path.basename(source), "engines": []}
    failed = []
    for batch in batches:
        entry: Data = {"model": model, "batch": list(batch)}
        data["engines"].append(entry)
        begun = time.perf_counter()
        try:
            built = build_engine(BuildOptions(source, engines, batch=_three(batch), builder=flavour))
        except UnetBatchError as error:
            entry |= {"failed": error.message, "hint": error.hint}
            failed.append(f"batch {batch[1]}: {error.message}")
            save()
            continue
        assert built.engine is not None
        sidecar = built.engine.sidecar
        entry |= {
            "was_there": built.was_there,
            "seconds": time.perf_counter() - begun,
            "compile_seconds": sidecar.built.get("seconds"),
            "plan": os.path.basename(built.engine.path),
            "plan_bytes": sidecar.plan_bytes,
            "float32": list(sidecar.float32),
            "shares": [dict(share) for share in sidecar.shares],
            "proofs": dict(sidecar.proofs),
            "verified_on_gpu": sidecar.verified_on_gpu,
            "notes": list(built.notes),
        }
        save()
        try:
            entry["inspector"] = _inspect(library, built.engine, convolutions)
        except UnetBatchError as error:
            entry["inspector"] = {"reason": error.message}
        save()
        if not sidecar.verified_on_gpu:
            failed.append(": ".join((f"batch {batch[1]}: not verified on the GPU", *built.notes[-1:])))
    if failed:
        raise BackendError("; ".join(failed))


def _inspect(library: Flavour, engine: Engine, convolutions: Any) -> Data:
    """What the engine inspector tells of the precision, with examples: its format differs by version."""
    import json

    from unet_batch.engine import proof
    from unet_batch.inference.backends.cuda_memory import open_memory
    from unet_batch.inference.backends.tensorrt import LoadedEngine

    loaded = LoadedEngine(library, engine.read_plan(), open_memory(0))
    try:
        text = loaded.information()
    finally:
        loaded.close()
    recipe = engine.sidecar.recipe
    found = proof.inspected_precisions(text, convolutions)
    counted = proof.share(convolutions, recipe.precision, engine.sidecar.float32, found, "engine")
    named = proof.share({name: convolutions[name] for name in found}, recipe.precision, (), found, "engine")
    layers = json.loads(text).get("Layers", [])
    return {
        "named": len(found),
        "of": len(convolutions),
        "share": counted.body if len(found) == len(convolutions) else None,
        "share_of_named": named.overall if found else None,
        "layers": len(layers),
        "examples": [json.dumps(layer)[:600] for layer in layers[:3] + layers[-1:]],
    }


def _stand_ins() -> None:
    """For what `unet_batch.build` imports and a build from ONNX does not need."""
    if not present("filelock"):  # nobody else builds in the folder of this check
        from unet_batch.engine import store

        setattr(store, "lock_build", lambda *_: contextlib.nullcontext(False))  # noqa: B010 - mypy knows its type
    if not present("safetensors"):
        stub: Any = types.ModuleType("safetensors")
        stub.SafetensorError, stub.safe_open = OSError, None
        sys.modules["safetensors"] = stub


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    low, best, high = values
    return low, best, high


# 4: buffers -------------------------------------------------------------------------------------------------


def buffers(data: Data, save: Save, flavour: str, provider: str, engines: str) -> None:
    from unet_batch.engine.proof import MIN_DICE

    library, memory = open_flavour(flavour), open_provider(provider)
    data["entries"], wrong = [], []
    for model, engine in built_engines(library, engines):
        reference = engine.read_reference()
        digests = set()
        for asked in (True, False):
            recipe = engine.sidecar.recipe
            entry: Data = {
                "model": model,
                "profile": list(recipe.profile.batch),
                "provider": provider,
                "graphs": asked,
            }
            data["entries"].append(entry)
            with (
                measure.count_launches(memory) as launches,
                open_engine(library, engine, memory, graphs=asked) as backend,
            ):
                entry |= measure.exercise(backend, reference)
            entry["graph_launches"] = launches[0]
            found = measure.problems(entry, MIN_DICE[recipe.precision])
            if asked and not launches[0]:
                found.append("no CUDA graph was captured")
            entry["problems"] = found
            digests.add(entry["digest"])
            wrong += [
                f"{model}, batch {entry['batch']}, graphs {'on' if asked else 'off'}: {each}"
                for each in found
            ]
            save()
        if len(digests) > 1:
            wrong.append(f"{model}: maps with and without CUDA graphs differ")
    if wrong:
        raise BackendError("; ".join(wrong))


# 5, 7: memory -----------------------------------------------------------------------------------------------


def memory_growth(data: Data, save: Save, flavour: str, provider: str, engines: str, batches: int) -> None:
    library, memory = open_flavour(flavour), open_provider(provider)
    model, engine = built_engines(library, engines, (MAIN_BATCH,))[0]
    reference = engine.read_reference()
    data |= {"model": model, "batch": MAIN_BATCH, "provider": provider, "threads": measure.THREADS}
    with open_engine(library, engine, memory) as backend:
        data["points"] = measure.growth(backend, memory, reference, batches)
    save()
    data["free_after_closing"] = []
    for _ in range(5):  # what opening and closing leaves behind
        with open_engine(library, engine, memory) as backend:
            backend.infer(list(reference.pictures[:1]))
        data["free_after_closing"].append(measure.free_bytes(memory))


def out_of_memory(data: Data, save: Save, flavour: str, engines: str) -> None:
    """With most GPU memory taken: a smaller batch and a note, or a refusal, and the right maps after."""
    library = open_flavour(flavour)
    memory = open_provider(usable_providers()[0])
    model, engine = built_engines(library, engines, (MAIN_BATCH,))[-1]
    with contextlib.suppress(StopIteration):  # the large one has the most to lose
        model, engine = next(
            pair for pair in built_engines(library, engines, (MAIN_BATCH,)) if pair[0] == "31m"
        )
    data |= {"model": model, "provider": memory.name}
    data |= measure.starve(lambda: open_engine(library, engine, memory), memory, engine.read_reference())
    judge_starved(data)


OOM = "DeviceOutOfMemory"


def judge_starved(data: Data) -> None:
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
    if all("refused" in entry for entry in short):
        wrong.append("no smaller batch was ever taken")
    if wrong:
        raise BackendError("; ".join(wrong))


# 6: speed ---------------------------------------------------------------------------------------------------


def throughput(
    data: Data,
    save: Save,
    flavour: str,
    engines: str,
    models: str,
    sizes: Sequence[int],
    rounds: int,
    batches: int,
) -> None:
    """Engine alone, and `Backend.infer` with copies, of every engine for one of the batch sizes."""
    from unet_batch.inference.backends.tensorrt import LoadedEngine, Program

    library, providers = open_flavour(flavour), usable_providers()
    data["entries"] = []
    for model, engine in built_engines(library, engines, sizes):
        recipe, reference, spec = engine.sidecar.recipe, engine.read_reference(), engine.sidecar.spec
        batch, flops = recipe.profile.batch[1], flops_of(model, models)
        entry: Data = {
            "backend": f"{library.name} {library.version}",
            "model": model,
            "batch": batch,
            "pipeline": {},
        }
        data["entries"].append(entry)
        memory = open_provider(providers[0])
        loaded = LoadedEngine(library, engine.read_plan(), memory)
        try:
            program = Program(loaded, (*recipe.profile.size[1], spec.in_channels))
            alone = measure.engine_only(memory, program, program.shape, reference, batch, rounds, batches)
        finally:
            loaded.close()
        entry["engine"] = {
            way: speed(found, spec.widths, flops) if "images_per_s" in found else found
            for way, found in alone.items()
        }
        entry["provider"] = memory.name
        save()
        for provider in providers if batch == MAIN_BATCH else providers[:1]:
            with open_engine(library, engine, open_provider(provider)) as backend:
                found = measure.pipelined(backend, reference, rounds, batches)
            entry["pipeline"][provider] = speed(found, spec.widths, flops)
            save()


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (environment, tests, models, build, buffers, throughput, memory_growth, out_of_memory)
}
