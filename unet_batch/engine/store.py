"""Engines on disk: a pure plan beside a JSON sidecar, found by what decides whether it is loaded.

    engines/cars-160x240-fp16-1f0c9a7b.plan    what trtexec or C++ loads; or OpenVINO's IR, zipped
    engines/cars-160x240-fp16-1f0c9a7b.json    the sidecar: for what, by what, proven how
    engines/cars-160x240-fp16-1f0c9a7b.npz     pictures and their float32 maps, to repeat the proof elsewhere
    engines/cars-160x240-fp16-82c1da8a.onnx    the graph it was compiled from, by the checkpoint's sha256

The sidecar is written last. What has none, or one that does not match the plan's bytes, is never loaded: a
build that was killed, a copy that was cut off and a file that was edited all look alike.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine import openvino
from unet_batch.engine.onnx_model import GRAPH_VERSION
from unet_batch.engine.proof import Reference
from unet_batch.engine.sidecar import PRECISIONS, EngineRecipe, Sidecar, parse_sidecar
from unet_batch.errors import BackendUnavailable, CheckpointError, OutputError
from unet_batch.files.atomic import clean_leftovers, make_folder, write_atomic, write_json
from unet_batch.gpu import Gpu
from unet_batch.types import Size

if TYPE_CHECKING:
    from unet_batch.engine.openvino import Cpu

    Device = Gpu | Cpu

# Of the pictures of a proof, so many are kept to repeat it on the GPU.
REFERENCE_PICTURES = 16


@dataclass(frozen=True)
class Engine:
    """A plan with its sidecar.

    Attributes:
        path: of the plan; the sidecar lies beside it.
        sidecar: what is known of it.
    """

    path: str
    sidecar: Sidecar

    @property
    def rebuild(self) -> str:
        """What to do about one that cannot be used."""
        return f"{REBUILD} --builder {openvino.NAME}" if self.sidecar.recipe.on_cpu else REBUILD

    def read_plan(self) -> bytes:
        """The plan, compared with the sidecar's sha256.

        Raises:
            BackendUnavailable: it is missing, or not what was built.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise BackendUnavailable(
                f"{self.path}: cannot be read: {error.strerror or error}", hint=self.rebuild
            ) from error
        if hashlib.sha256(data).hexdigest() != self.sidecar.plan_sha256:
            raise BackendUnavailable(
                f"{self.path}: not the plan that was built: its sha256 differs from the sidecar's "
                f"({len(data):,} bytes, {self.sidecar.plan_bytes:,} expected)",
                hint=self.rebuild,
            )
        return data

    def read_kernels(self, target: str) -> bytes:
        """Kernels that TensorRT-RTX compiled in an earlier run on such a GPU, `sm_89`; empty if none."""
        try:
            with open(_beside(self.path, f"-{target}.kernels"), "rb") as file:
                return file.read()
        except OSError:
            return b""

    def write_kernels(self, target: str, kernels: bytes) -> None:
        """Keep them for the next run. Raises OutputError."""
        write_atomic(_beside(self.path, f"-{target}.kernels"), kernels)

    def read_reference(self) -> Reference:
        """Pictures and their maps in float32.

        Raises:
            BackendUnavailable: missing, damaged, or of another size.
        """
        return unpack(_beside(self.path, ".npz"))

    def record_proof(self, device: str, proof: Mapping[str, Any]) -> Engine:
        """Record that the plan itself was run on a GPU or CPU of this name, and found equal."""
        sidecar = self.sidecar
        proofs = {**sidecar.proofs, device: {**sidecar.proofs.get(device, {}), **proof}}
        return self._rewrite(replace(sidecar, proofs=proofs, verified_on_gpu=not sidecar.recipe.on_cpu))

    def refuse(self, device: str, reason: str) -> Engine:
        """Record that the plan was run on a GPU or CPU of this name, and is not to be used there."""
        return self._rewrite(replace(self.sidecar, refused={**self.sidecar.refused, device: reason}))

    def _rewrite(self, sidecar: Sidecar) -> Engine:
        try:
            if load(self.path).sidecar.plan_sha256 != sidecar.plan_sha256:
                return self  # it was built again meanwhile: what was found out concerns a plan that is gone
        except CheckpointError:
            return self
        write_json(_beside(self.path, ".json"), sidecar.as_dict(), sync=True)
        return replace(self, sidecar=sidecar)


REBUILD = "build it again: unet-batch build-engine --force"


def load(path: str) -> Engine:
    """An engine by the path of its plan or sidecar; the plan's bytes are not read yet.

    Raises:
        CheckpointError: there is no sidecar, or it is damaged or newer than this program.
    """
    sidecar = _beside(path, ".json")
    try:
        with open(sidecar, encoding="utf-8") as file:
            return Engine(_beside(path, ".plan"), parse_sidecar(json.load(file)))
    except OSError as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise CheckpointError(
            f"{sidecar}: {path} needs its sidecar, and {reason}: nothing says what the plan computes",
            hint=REBUILD,
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"{sidecar}: not the sidecar of an engine: {error}", hint=REBUILD) from error


def list_engines(folder: str) -> tuple[list[Engine], list[str]]:
    """All engines of a folder by name, and a sentence for each sidecar or plan that cannot be used."""
    engines, problems = [], []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{folder} cannot be listed: {error.strerror or error}"]
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith(".plan") and os.path.splitext(name)[0] + ".json" not in names:
            problems.append(f"{path} has no sidecar")
        if name.endswith(".json"):
            try:
                engines.append(load(path))
            except CheckpointError as error:
                problems.append(error.message)
    return engines, problems


def find(
    folder: str,
    source_sha256: str,
    *,
    size: Size,
    flavour: str,
    version: str,
    device: Device | None,
    batch_size: int | None = None,
) -> Engine:
    """The engine to run a model with.

    Of those that fit, int8 comes before fp16 before bf16 before fp32, then what was proven on this GPU or
    CPU, what is tuned for this size, and the newest.

    Args:
        folder: with the engines.
        source_sha256: of the model, see `ModelFile`.
        size: (height, width) of the network's input.
        flavour, version: the library that will load it.
        device: that will run it; None finds one that may fit, before the library is asked for its device.
        batch_size: that was asked for.

    Raises:
        BackendUnavailable: none fits; one sentence says what is there and why it does not fit.
    """
    engines, problems = list_engines(folder)
    misfits: list[tuple[int, str, Engine]] = []
    fitting: list[Engine] = []
    for engine in engines:
        reason = _misfit(engine, source_sha256, size, flavour, version, device, batch_size)
        if reason is None:
            fitting.append(engine)
        else:
            misfits.append((*reason, engine))
    if fitting:
        return min(fitting, key=lambda engine: _rank(engine.sidecar, size, device))
    hint = "build one: unet-batch build-engine, or run with --build"
    closest = max(misfits, key=lambda misfit: misfit[0], default=None)
    # A damaged engine may have been the one; another model's was not
    if problems and (closest is None or closest[0] == 0):
        raise BackendUnavailable(problems[0], hint=hint)
    if closest is not None:
        raise BackendUnavailable(f"{os.path.basename(closest[2].path)} {closest[1]}", hint=hint)
    raise BackendUnavailable(f"no engine in {folder}", hint=hint)


def _rank(sidecar: Sidecar, size: Size, device: Device | None) -> tuple[int, bool, bool, float]:
    recipe = sidecar.recipe
    other_size = recipe.profile.size != (size, size, size)
    return (
        PRECISIONS.index(recipe.precision),
        device is not None and device.name not in sidecar.proofs,
        other_size,
        -_seconds(sidecar.built.get("at")),
    )


def _misfit(
    engine: Engine,
    source_sha256: str,
    size: Size,
    flavour: str,
    version: str,
    device: Device | None,
    batch_size: int | None,
) -> tuple[int, str] | None:
    """How close an engine comes (higher is closer), and why it does not fit; None if it does."""
    sidecar = engine.sidecar
    recipe = sidecar.recipe
    here = EngineRecipe.system
    if recipe.source_sha256 != source_sha256:
        return 0, f"belongs to another model ({sidecar.spec.name}, sha256 {recipe.source_sha256[:12]})"
    if recipe.flavour != flavour:
        return 1, f"was built by {recipe.flavour}, not by {flavour}"
    if recipe.system != here:
        return 2, f"was built for {recipe.system}, this is {here}"
    if not recipe.profile.holds(size):
        return 3, f"takes {recipe.profile}, not {size[0]}x{size[1]}"
    if recipe.graph != GRAPH_VERSION:
        made = f"this program makes version {GRAPH_VERSION}"
        return 4, f"holds version {recipe.graph} of the network's graph, {made}"
    if sidecar.spec.classes.foreground is not None:
        return 4, "computes ids of a background and one class, for which this program makes one probability"
    if recipe.version != version:
        return 5, f"was built by {flavour} {recipe.version}, installed is {version}"
    if device is not None and (reason := _excludes(recipe, device)):
        return 6, reason
    low, _, high = recipe.profile.batch
    if batch_size is not None and not low <= batch_size <= high:
        return 7, f"takes {recipe.profile}, not a batch of {batch_size}"
    if device is not None and device.name in sidecar.refused:
        return 8, f"was run and refused: {sidecar.refused[device.name]}"
    there = os.path.getsize(engine.path) if os.path.isfile(engine.path) else None
    # Read and compared byte by byte when it is loaded; this is what `--build` can mend
    if there != sidecar.plan_bytes:
        return 9, "is missing" if there is None else f"has {there:,} bytes, {sidecar.plan_bytes:,} were built"
    proven = device is None or device.name in sidecar.proofs
    if not proven and not os.path.isfile(_beside(engine.path, ".npz")):
        where = "CPU" if recipe.on_cpu else "GPU"
        return 10, f"was never run on this {where}, and the pictures to prove it on are missing"
    return None


def _excludes(recipe: EngineRecipe, device: Device) -> str:
    """Why an engine cannot run on a GPU or CPU, as the end of a sentence; empty if it can."""
    if not isinstance(device, Gpu):
        able = {"int8": device.has_int8, "bf16": device.has_bf16}.get(recipe.precision, True)
        return "" if able else f"computes in {recipe.precision}, which {device.name} does not execute"
    if recipe.target == "any":  # compiled for the GPU when it is loaded; the library has the last word
        return ""
    if recipe.options.get("hardware_compat") == "ampere+" and device.compute_capability >= (8, 0):
        return ""
    if recipe.target == device.sm:
        return ""
    return f"was built for {recipe.target}, the GPU is {device.name} ({device.sm})"


@contextmanager
def lock_build(folder: str, stem: str, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold the right to build an engine; others wait for it, and a process that dies gives it back.

    Args:
        folder, stem: of the engine.
        on_wait: called when another process holds it, before waiting.

    Yields:
        Whether this process had to wait, so that the engine may be there by now.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendUnavailable("filelock is not installed", hint="pip install filelock") from error
    try:
        make_folder(folder)
    except OutputError as error:
        raise OutputError(error.message, hint="choose another folder with --engines-dir") from error
    lock = FileLock(os.path.join(folder, f".{stem}.lock"))
    try:
        lock.acquire(timeout=0)
        waited = False
    except Timeout:
        on_wait()
        lock.acquire()
        waited = True
    except (OSError, NotImplementedError) as error:  # file systems without locks
        raise OutputError(
            f"{lock.lock_file} cannot be locked: {error}", hint="choose another folder with --engines-dir"
        ) from error
    clean_leftovers(folder)  # halves of files that a killed build left
    try:
        yield waited
    finally:
        lock.release()


def install(folder: str, sidecar: Sidecar, plan: bytes, reference: Reference) -> Engine:
    """Write an engine; the sidecar comes last, and with it the engine exists.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = os.path.join(folder, sidecar.recipe.stem(sidecar.spec) + ".plan")
    write_atomic(_beside(path, ".npz"), pack(reference), sync=True)
    write_atomic(path, plan, sync=True)
    write_json(_beside(path, ".json"), sidecar.as_dict(), sync=True)
    return Engine(path, sidecar)


def pack(reference: Reference) -> bytes:
    """A reference as the bytes of an `.npz` file, shortened to what a repetition of the proof needs."""
    arrays = io.BytesIO()
    # Those that show most, in their order: empty pictures prove little.
    busy = np.argsort(
        -reference.maps.reshape(len(reference.maps), -1).astype(np.float32).std(axis=1), kind="stable"
    )
    few = np.sort(busy[:REFERENCE_PICTURES])
    np.savez_compressed(
        arrays,
        pictures=reference.pictures[few],
        maps=reference.maps[few],
        made_by=np.array(reference.made_by),
    )
    return arrays.getvalue()


def unpack(path: str) -> Reference:
    """A reference that was packed.

    Raises:
        BackendUnavailable: missing, damaged, or not pictures and maps.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pictures, maps = arrays["pictures"], arrays["maps"]
            made_by = str(arrays["made_by"]) if "made_by" in arrays else "PyTorch"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (
            "there is none" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        )
        raise BackendUnavailable(
            f"{path}: pictures to prove the engine on, cannot be read: {reason}", hint=REBUILD
        ) from error
    if (
        pictures.dtype != np.uint8
        or maps.dtype != np.uint8
        or pictures.shape[:3] != maps.shape
        or not len(maps)
    ):
        raise BackendUnavailable(f"{path}: not pictures and maps, the engine cannot be proven", hint=REBUILD)
    return Reference(pictures, maps, made_by)


def _beside(path: str, suffix: str) -> str:
    return os.path.splitext(path)[0] + suffix


def _seconds(at: object) -> float:
    return float(at) if isinstance(at, (int, float)) else 0.0
