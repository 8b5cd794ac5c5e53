"""Checkpoints: `.safetensors` files that carry their ModelSpec.

What a file says of itself is read without PyTorch, which a run through TensorRT does not need; the weights
are not.

Convolution weights are stored as float16, which costs nothing measurable in Dice and halves the file, but for
those that a network wants stored exactly; everything that is one value a channel (BatchNorm, biases) stays
float32, since running variances go below what float16 can hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from unet_batch.errors import CheckpointError
from unet_batch.files.atomic import write_atomic
from unet_batch.model import foreign
from unet_batch.model import spec as spec_json
from unet_batch.types import ModelSpec

if TYPE_CHECKING:
    from unet_batch.model.network import SegmentationNetwork

FORMAT = "unet-batch checkpoint"
VERSION = 2
_VERSION_OF = {"unet": 1, "encoder-unet": 2}  # what a program must read to understand a file
_SHARED = "weights"  # in the metadata: the checkpoint beside this one whose weights it takes


@dataclass(frozen=True)
class ModelFile:
    """What a model's file says of itself, its weights not loaded: a checkpoint, or an ONNX graph.

    Attributes:
        path: the file, absolute.
        spec: of the model as `load` gives it: of a background and one class, the probability of that class;
            of a graph of one size, with that size.
        sha256: in hexadecimal: of a checkpoint's bytes, and of those whose weights it shares; of a graph, of
            what it was made from, so that a checkpoint and its graph are one model.
        parameters: number of trained values.
        is_graph: it is an ONNX graph.
        shared: the file beside it whose weights a checkpoint takes; "" where it has its own.
    """

    path: str
    spec: ModelSpec
    sha256: str
    parameters: int
    is_graph: bool = False
    shared: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What identifies the model, for reports."""
        height, width = self.spec.input_size
        return {
            "name": self.spec.name,
            "path": self.path,
            "sha256": self.sha256,
            "parameters": self.parameters,
            "architecture": self.spec.architecture,
            "encoder": self.spec.encoder,
            "widths": list(self.spec.widths),
            "input_size": [height, width],
            "classes": list(self.spec.classes.names),
            "colours": [list(colour) for colour in self.spec.classes.colours],
            "terms": self.spec.terms,
        }


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that was read from a file.

    Attributes:
        model: the network in evaluation mode, float32, on the CPU.
        spec: of the model, see `ModelFile`.
        sha256: see `ModelFile`.
        path: where it was read.
    """

    model: SegmentationNetwork
    spec: ModelSpec
    sha256: str
    path: str


def save(path: str, model: SegmentationNetwork, spec: ModelSpec, *, sync: bool = False) -> None:
    """Write a checkpoint atomically; with `sync`, wait until it is on the disk.

    Raises:
        CheckpointError: the spec does not describe this network.
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save as save_tensors

    expected = (spec.encoder, spec.in_channels, len(spec.classes.names), spec.widths)
    actual = (model.encoder_name, model.in_channels, model.out_channels, model.widths)
    if expected != actual:
        raise CheckpointError(
            f"{path}: the spec says (encoder, in, classes, widths) = {expected}, the network has {actual}"
        )
    kept = {f"{name}.weight" for name in model.stored_exactly()}
    tensors = {
        name: (
            tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 and name not in kept else tensor
        )
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    version = str(_VERSION_OF[spec.architecture])
    metadata = {"format": FORMAT, "version": version, "spec": spec_json.dumps(spec)}
    write_atomic(path, save_tensors(tensors, metadata), sync=sync)


def share(path: str, weights: str, spec: ModelSpec) -> None:
    """Write a checkpoint that takes the weights of another one in its folder, to use it at another size.

    Args:
        path: the file to write.
        weights: file name of the other one.
        spec: of the model; describes the same network as the other's.

    Raises:
        CheckpointError: the other one is missing, lies elsewhere, or is another network.
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save as save_tensors

    metadata = {"format": FORMAT, "version": str(VERSION), "spec": spec_json.dumps(spec)}
    metadata[_SHARED] = weights
    other = _read_spec(weights, _read_header(_shared_file(path, metadata) or weights).metadata)
    wanted, found = (
        f"{each.network}, {each.in_channels} channels, {len(each.classes.names)} classes"
        for each in (spec, other)
    )
    if wanted != found:
        raise CheckpointError(f"{path}: {wanted}: cannot take the weights of {weights}: {found}")
    write_atomic(path, save_tensors({}, metadata))


def identify(path: str) -> ModelFile:
    """Read what a checkpoint says of itself, and its sha256; loads no weights and no PyTorch.

    Raises:
        CheckpointError: see `load`.
    """
    file = _identify(path)
    return replace(file, spec=spec_json.as_one_class(file.spec))


def _identify(path: str) -> ModelFile:
    """Read what a checkpoint says of itself, as it says it."""
    header = _read_header(path)
    spec = _read_spec(path, header.metadata)
    files, shapes = [path], header.shapes
    shared = _shared_file(path, header.metadata) or ""
    if shared:
        files, shapes = [path, shared], _read_header(shared).shapes
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as raw:
                while block := raw.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise _translate(file, error) from error
    # BatchNorm's running statistics are measured, not trained.
    trained = [
        shape
        for name, shape in shapes.items()
        if not name.endswith(("running_mean", "running_var", "_tracked"))
    ]
    parameters = sum(map(math.prod, trained))
    return ModelFile(os.path.abspath(path), spec, digest.hexdigest(), parameters, shared=shared)


class _Header(NamedTuple):
    metadata: dict[str, str]
    shapes: dict[str, list[int]]


def _read_header(path: str) -> _Header:
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="numpy") as file:
            # `file` is not a mapping
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            return _Header(file.metadata() or {}, shapes)
    except (OSError, SafetensorError, ValueError) as error:
        raise _translate(path, error) from error


def _shared_file(path: str, metadata: Mapping[str, str]) -> str | None:
    """The checkpoint whose weights this one takes; None where it has its own."""
    name = metadata.get(_SHARED)
    if name is None:
        return None
    file = os.path.join(os.path.dirname(path), name)
    if os.path.basename(name) != name or not os.path.isfile(file):
        raise CheckpointError(
            f"{path}: takes the weights of {name}, which is not beside it", hint="copy both files together"
        )
    return file


def load(path: str) -> Checkpoint:
    """Read a checkpoint; of a background and one class, as the logit of that class's probability.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint of this program, a pickle, or newer
            than this program; or its weights do not fit its own spec.
    """
    import torch
    from safetensors.torch import load as load_tensors

    from unet_batch.model.architectures import build_network

    found, data = _identify(path), b""
    spec = found.spec
    for file in filter(None, (path, found.shared)):
        try:
            with open(file, "rb") as raw:
                read = raw.read()
            data, tensors = data + read, load_tensors(read)
        except (OSError, SafetensorError, ValueError) as error:
            raise _translate(file, error) from error
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        model = build_network(spec)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite", hint="train again, or use an earlier file"
            )
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path}: the weights do not fit the file's own description: {reason}"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if (one := spec.classes.foreground) is not None:
        model.merge_background(one)
        spec = spec_json.as_one_class(spec)
    return Checkpoint(model.eval(), spec, hashlib.sha256(data).hexdigest(), os.path.abspath(path))


def _read_spec(path: str, metadata: dict[str, str]) -> ModelSpec:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of unet-batch",
            hint="a public U-Net's weights become one with: unet-batch import-weights FILE.safetensors -o "
            "MODEL.safetensors",
        )
    version = metadata.get("version", "")
    if not version.isdecimal() or int(version) > VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {version or 'unknown'}, this program reads up to {VERSION}",
            hint="update with: pip install --upgrade unet-batch",
        )
    try:
        return spec_json.loads(metadata.get("spec", ""))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _refuse_foreign(path: str) -> None:
    """Refuse a file of another kind by its first bytes; of a pickle, reading more could run any code."""
    try:
        found = foreign.recognise(path)
    except OSError as error:
        raise _translate(path, error) from error
    if found is not None:
        raise CheckpointError(f"{path}: {found.what}", hint=found.fix)


def _translate(path: str, error: Exception) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: no such model file", hint="leave -m out to use the bundled model")
    if isinstance(error, OSError) and error.strerror:
        hint = (
            f"name the file in it: {os.path.join(path, 'MODEL.safetensors')}" if os.path.isdir(path) else ""
        )
        return CheckpointError(f"{path}: cannot be read: {error.strerror}", hint=hint)
    size = os.path.getsize(path)
    return CheckpointError(
        f"{path}: damaged or not a safetensors file ({size:,} bytes): {error}",
        hint=_size_hint(path, size),
    )


def _size_hint(path: str, size: int) -> str:
    """Compare the file with the size its header promises: says whether a copy or download was cut off."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < min(size, 100_000_000) else {}
        end = max(int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "copy or download it again"
    promised = 8 + length + end
    return f"its header promises {promised:,} bytes: copy or download it again" if promised != size else ""
