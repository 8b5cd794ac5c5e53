"""Make a graph of ours of a foreign one: understand, compose, compare, write."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.engine import onnx_model, proof
from unet_batch.engine.importing import settings as settings_file
from unet_batch.engine.importing.compose import compose
from unet_batch.engine.importing.graph import ForeignGraph, read
from unet_batch.engine.importing.guess import Choice, draw_pictures, understand
from unet_batch.engine.importing.recipe import Recipe
from unet_batch.engine.importing.settings import Settings
from unet_batch.engine.onnx_model import GRAPH_VERSION, KEY, OnnxModel, OnnxRunner
from unet_batch.errors import BackendError, CheckpointError, OutputError, UsageError
from unet_batch.files.atomic import write_atomic
from unet_batch.media.render import class_table
from unet_batch.model import spec as spec_json
from unet_batch.types import ModelSpec

if TYPE_CHECKING:
    from unet_batch.engine.proof import Parity
    from unet_batch.types import Pixels


@dataclass(frozen=True, eq=False)
class Imported:
    """A foreign graph that became one of ours.

    Attributes:
        path: of the file that was written; "" where none was.
        graph: the foreign one.
        recipe: what was put around it.
        choices: how that was decided, in the order it was.
        model: the graph as it is now.
        parity: its masks against the original's.
        notes: what people should know.
    """

    path: str
    graph: ForeignGraph
    recipe: Recipe
    choices: tuple[Choice, ...]
    model: OnnxModel
    parity: Parity
    notes: tuple[str, ...]


def import_graph(source: str, target: str, given: Settings) -> Imported:
    """Write a foreign graph as one of ours, after its masks were found equal to the original's.

    Args:
        source: the graph; a TOML file beside it (`model.toml` for `model.onnx`) says what `given` does not.
        target: the file to write, `.onnx`; must not exist.
        given: what a person says of it.

    Raises:
        CheckpointError: it is damaged, no segmentation network, or does not compute the same when composed.
        UsageError: see `understand`.
        OutputError: the target exists or cannot be written.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    check_target(target)
    return write(target, make(read(source), with_file(source, given)))


def check_target(target: str) -> None:
    """Raise UsageError or OutputError where a graph cannot be written to."""
    if not target.lower().endswith(".onnx"):
        raise UsageError(f"{target}: graphs are .onnx files", hint="end the output's name with .onnx")
    if os.path.exists(target):
        raise OutputError(f"{target} exists already", hint="remove it, or choose another name")


def with_file(source: str, given: Settings) -> Settings:
    """What is given, and what the TOML file beside the graph says of the rest."""
    beside = settings_file.beside(source)
    return given if beside is None else given.over(settings_file.read(beside))


def make(graph: ForeignGraph, given: Settings) -> Imported:
    """Compose and compare. Raises what `import_graph` does."""
    recipe, choices = understand(graph, given)
    spec = _describe(graph, recipe, choices, given)
    pictures = draw_pictures(2, recipe.size, recipe.channels)
    maps = reference_maps(graph, recipe, pictures)
    fixed = graph.dims[0]
    tries: list[tuple[int | None, bool]] = [(None, False), (None, True), (1, False)]
    if fixed not in (None, 1):
        tries = tries[:2]
    problem = ""
    for batch, reshape in tries:
        try:
            model = _finish(compose(graph, recipe, batch=batch, reshape=reshape), spec, graph)
            parity = _compare(graph, model, pictures, maps)
        except (BackendError, CheckpointError) as error:
            problem = error.message
            continue
        notes = list(graph.notes)
        if model.batch is not None:
            notes.append("it computes one picture at a time: with two at once its masks change, or it fails")
        elif fixed is not None:
            notes.append(f"made for {fixed} picture{'s' * (fixed > 1)} at a time, it now takes any number")
        return Imported("", graph, recipe, choices, model, parity, tuple(notes))
    raise CheckpointError(
        f"{graph.path}: composed into a graph of ours it does not compute what it did: {problem}",
        hint="please report it, with the file or the program that made it",
    )


def write(target: str, made: Imported) -> Imported:
    """Write the graph, whole or not at all. Raises OutputError."""
    write_atomic(target, made.model.data)
    return replace(made, path=os.path.abspath(target))


def reference_maps(graph: ForeignGraph, recipe: Recipe, pictures: Sequence[Pixels] | Pixels) -> Pixels:
    """What the original gives, with all around it done in NumPy: uint8 (H, W, C) each -> uint8 (N, H, W)."""
    run = graph.runner()
    return np.stack(
        [
            recipe.finish(run(recipe.prepare(picture))[recipe.output], (picture.shape[0], picture.shape[1]))
            for picture in pictures
        ]
    )


def _describe(graph: ForeignGraph, recipe: Recipe, choices: Sequence[Choice], given: Settings) -> ModelSpec:
    facts = {
        "from": os.path.basename(graph.path),
        "sha256": graph.sha256,
        "opset": graph.opset,
        "choices": {choice.option: choice.value for choice in choices},
        "guessed": [choice.option for choice in choices if choice.is_guess],
    }
    return ModelSpec(
        name=given.name or os.path.splitext(os.path.basename(graph.path))[0],
        widths=(),
        in_channels=recipe.channels,
        input_size=recipe.size,
        mean=recipe.mean,
        std=recipe.std,
        classes=class_table(recipe.classes),
        output="probability" if recipe.channel is not None else "class_ids",
        training={"imported": facts},
        architecture="onnx",
        terms=" ".join(given.terms.split()),
    )


def _finish(proto: Any, spec: ModelSpec, graph: ForeignGraph) -> OnnxModel:
    """The composed graph with what it says of itself, checked."""
    import onnx

    text = spec_json.dumps(spec)
    convolutions = [node for node in proto.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    types = {weight.name: weight.data_type for weight in proto.graph.initializer}
    is_half = {types.get(node.input[1]) for node in convolutions} == {onnx.TensorProto.FLOAT16}
    facts = {
        "spec": json.loads(text),
        "source_sha256": hashlib.sha256(bytes.fromhex(graph.sha256) + text.encode()).hexdigest(),
        "precision": "fp16" if is_half else "fp32",
        "float32": [],
        "layers": [node.name for node in convolutions],
        "graph": GRAPH_VERSION,
    }
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(facts, sort_keys=True)
    try:
        onnx.checker.check_model(proto)
        data = proto.SerializeToString()
    except Exception as error:  # onnx's ValidationError and protobuf's EncodeError share no base
        raise CheckpointError(f"not valid ONNX: {' '.join(str(error).split())[:300]}") from error
    return onnx_model.parse(data)


def _compare(graph: ForeignGraph, model: OnnxModel, pictures: Pixels, maps: Pixels) -> Parity:
    """Run the composed graph, with two pictures at once where it takes any number.

    Raises:
        CheckpointError: its masks are not the original's.
        BackendError: it does not run.
    """
    run = OnnxRunner(model.data)
    alone = np.concatenate([run(picture[None]) for picture in pictures])
    parity = proof.compare(alone, maps, model.spec)
    _require_equal(parity, model.precision, "masks differ from the original's")
    if model.batch is None:
        together = proof.compare(run(pictures), alone, model.spec)
        _require_equal(together, model.precision, "two pictures at once give other masks than each alone")
    return parity


def _require_equal(parity: Parity, precision: str, what: str) -> None:
    if not parity.dice >= proof.MIN_DICE[precision] or (parity.largest or 0) > proof.MAX_OFF[precision]:
        off = "" if parity.largest is None else f", probability off by {parity.largest:.3f}"
        raise CheckpointError(f"{what}: Dice {parity.dice:.5f}{off}")
