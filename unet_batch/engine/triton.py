"""A model repository of Triton Inference Server, made of an engine or a graph.

    DIR/cars/config.pbtxt    what Triton is told of the model, and what a client has to know
    DIR/cars/1/model.plan    TensorRT's plan; model.xml and model.bin of OpenVINO, model.onnx of a graph

A model of the same name and the same inputs and outputs becomes the next version, 2, 3, ..., of which Triton
serves the newest; everything else in its configuration is left as a person has changed it. Field names and
types are those of Triton's `model_config.proto`.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unet_batch.engine import openvino
from unet_batch.engine.compiler import Profile
from unet_batch.engine.onnx_model import INPUT, OUTPUT, OnnxModel
from unet_batch.engine.sidecar import file_name
from unet_batch.engine.store import Engine
from unet_batch.errors import OutputError, UsageError
from unet_batch.files.atomic import new_folder, write_atomic
from unet_batch.files.remote import is_remote
from unet_batch.types import ModelSpec

BACKENDS = ("tensorrt", openvino.NAME)
"""Builders whose engines Triton loads; the backends that load them are called the same."""
CONFIG, PARAMETER = "config.pbtxt", "unet_batch"
_HEADER = "# Written by unet-batch; its page on serving says what a client sends and gets.\n"
_TRIES = 100  # that others may win, who add versions at the same time


@dataclass(frozen=True)
class Servable:
    """What a repository holds of a model.

    Attributes:
        name: of the model, and of its folder.
        interface: the part of the configuration that every version has to have: tensors and their meaning.
        tuning: the rest of it, which a person may change.
        files: of a version, by name.
    """

    name: str
    interface: str
    tuning: str
    files: Mapping[str, bytes]


def check(repository: str, builder: str | None, profile: Profile) -> None:
    """Whether a repository can be made of what is to be built.

    Args:
        repository: the folder.
        builder: name of what compiles; None where the graph itself is served.
        profile: shapes of the engine.

    Raises:
        UsageError: it cannot.
    """
    if is_remote(repository):
        raise UsageError(
            f"--triton {repository}: a folder expected", hint="write it to a folder, and upload that"
        )
    if builder is None:
        return
    if builder not in BACKENDS:
        raise UsageError(
            f"--triton with {builder}: Triton loads plans of TensorRT, and none of {builder}",
            hint="--builder tensorrt on the GPU that will serve, or --onnx-only for Triton's ONNX Runtime",
        )
    if builder == openvino.NAME and profile.size[0] != profile.size[2]:
        raise UsageError(
            "--triton with openvino: Triton's backend for it takes one size, not a range",
            hint="give one --size, or --onnx-only for Triton's ONNX Runtime",
        )


def from_engine(engine: Engine) -> Servable:
    """The repository of an engine of TensorRT or OpenVINO.

    Raises:
        BackendUnavailable: its plan is missing, or not what was built.
    """
    recipe, plan = engine.sidecar.recipe, engine.read_plan()
    low, _, high = recipe.profile.batch
    smallest, _, largest = recipe.profile.size
    sides = [least if least == most else -1 for least, most in zip(smallest, largest, strict=True)]
    # Triton's batches begin at one picture; what takes no single one is given whole batches by its clients.
    batch = None if low == 1 < high else low if low == high else -1
    parameters, files = {}, {"model.plan": plan}
    if recipe.on_cpu:
        with zipfile.ZipFile(io.BytesIO(plan)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        if recipe.precision == "bf16":
            parameters["HINT_BF16"] = "YES"
    kind = "KIND_CPU" if recipe.on_cpu else "KIND_GPU"
    return _servable(engine.sidecar.spec, recipe.flavour, sides, batch, high, kind, files, parameters)


def from_graph(graph: OnnxModel, most: int) -> Servable:
    """The repository of a graph, for Triton's ONNX Runtime.

    Args:
        graph: the graph.
        most: pictures in a batch, where the graph takes any number.
    """
    sides = list(graph.size or (-1, -1))
    files = {"model.onnx": graph.data}
    return _servable(graph.spec, "onnxruntime", sides, graph.batch, most, "KIND_AUTO", files, {})


def publish(repository: str, servable: Servable) -> str:
    """Write a model into a repository, as its first version or its next; whole or not at all.

    Returns:
        The folder of the version; of the newest one, where it is the same to the byte.

    Raises:
        UsageError: a model of this name is there, of other inputs or outputs, or without configuration.
        OutputError: the folder cannot be written.
    """
    folder = os.path.join(repository, servable.name)
    for _ in range(_TRIES):
        try:
            if not os.path.lexists(folder):
                with new_folder(folder) as temporary:
                    # First, as it names another folder: Triton, if it looks now, will not load it from here
                    text = f"{_HEADER}{servable.interface}{servable.tuning}"
                    write_atomic(os.path.join(temporary, CONFIG), text.encode(), sync=True)
                    _write_version(os.path.join(temporary, "1"), servable.files)
                return os.path.join(folder, "1")
            newest = _newest_version(folder, servable)
            version = os.path.join(folder, str(newest))
            if newest and _holds(version, servable.files):
                return version
            with new_folder(os.path.join(folder, str(newest + 1))) as temporary:
                _write_version(temporary, servable.files)
            return os.path.join(folder, str(newest + 1))
        except FileExistsError:  # somebody else was faster
            continue
        except OutputError as error:
            raise OutputError(error.message, hint="free some space, or give another --triton DIR") from error
    raise OutputError(f"{folder} cannot be written: others add versions all the time", hint="try again later")


def _newest_version(folder: str, servable: Servable) -> int:
    """Number of the newest version; 0 where there is none. Raises UsageError for a model that differs."""
    hint = "give another --triton DIR, or remove that folder"
    path = os.path.join(folder, CONFIG)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        names = os.listdir(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", hint=hint) from error
    if servable.interface not in text:
        raise UsageError(
            f"{path}: is of a model with another backend, other inputs, outputs or classes", hint=hint
        )
    return max((int(name) for name in names if name.isdecimal() and name.isascii()), default=0)


def _write_version(folder: str, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_atomic(os.path.join(folder, name), data, sync=True)


def _holds(folder: str, files: Mapping[str, bytes]) -> bool:
    try:
        for name, data in files.items():
            with open(os.path.join(folder, name), "rb") as file:
                if file.read() != data:
                    return False
    except OSError:
        return False
    return True


def _servable(
    spec: ModelSpec,
    backend: str,
    sides: Sequence[int],
    batch: int | None,
    most: int,
    kind: str,
    files: Mapping[str, bytes],
    parameters: Mapping[str, str],
) -> Servable:
    """Put a repository together.

    Args:
        spec: of the model.
        backend: of Triton.
        sides: height and width of the input; -1 where it takes several.
        batch: pictures in a call, -1 for several; None lets Triton make batches of one to `most`.
        most: most pictures in a batch.
        kind: of the instances.
        files: of the version.
        parameters: of the backend.
    """
    name = file_name(spec)
    first = [] if batch is None else [batch]
    facts = {
        "output": spec.output,
        "classes": list(spec.classes.names),
        "colours": [list(colour) for colour in spec.classes.colours],
        **({"threshold": spec.threshold} if spec.output == "probability" else {}),
        **({"channels": list(spec.channels)} if spec.channels else {}),
        **({"range": spec.training["range"]} if "range" in spec.training else {}),
    }
    parameters = {PARAMETER: json.dumps(facts), **parameters}
    interface = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(backend)}",
        f"max_batch_size: {most if batch is None else 0}",
        *_tensor("input", INPUT, [*first, *sides, spec.in_channels]),
        *_tensor("output", OUTPUT, [*first, *sides]),
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    tuning = [
        *(["dynamic_batching { }"] if batch is None and most > 1 else []),
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
    ]
    return Servable(name, "\n".join(interface) + "\n", "\n".join(tuning) + "\n", files)


def _tensor(field: str, name: str, dims: Sequence[int]) -> list[str]:
    shape = ", ".join(map(str, dims))
    return [f"{field} [", f"  {{ name: {_quoted(name)} data_type: TYPE_UINT8 dims: [ {shape} ] }}", "]"]


def _quoted(text: str) -> str:
    """A string of protobuf's text format; what cannot be printed is escaped byte by byte."""
    quote = "'" if '"' in text else '"'
    return quote + "".join(_escaped(character, quote) for character in text) + quote


def _escaped(character: str, quote: str) -> str:
    if character.isprintable() and character not in (quote, "\\"):
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "replace"))
