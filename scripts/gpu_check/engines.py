"""The sections on engines of TensorRT: built, proven, in buffers of each kind, timed, short of memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from scripts.gpu_check import measure
from scripts.gpu_check.networks import checkpoint_path, graphs
from scripts.gpu_check.sections import (
    MAIN_BATCH,
    Data,
    Save,
    Skip,
    _stand_ins,
    built_engines,
    judge_starved,
    need_gpu,
    open_engine,
    open_flavour,
    open_provider,
    speed,
    usable_providers,
)
from unet_batch.errors import BackendError, UnetBatchError

if TYPE_CHECKING:
    from unet_batch.build import BuildOptions
    from unet_batch.engine.flavours import Flavour
    from unet_batch.engine.onnx_model import Convolution
    from unet_batch.engine.store import Engine

# Engines ----------------------------------------------------------------------------------------------------


def build(
    data: Data,
    save: Save,
    flavour: str,
    model: str,
    batches: Sequence[tuple[int, int, int]],
    folder: str,
    engines: str,
    from_checkpoint: bool,
    levels: Sequence[int | None] = (None,),
) -> None:
    """Build engines of a model for several batches, at each level of the builder in turn.

    A build that is killed loses what it measured of kernels, as TensorRT hands that out at the end only. So
    where a build takes minutes a quick level comes first: its engine is there whatever happens, and its times
    of kernels make the next build shorter.
    """
    library = open_flavour(flavour)
    _stand_ins()
    from unet_batch.build import BuildOptions
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
    need_gpu()
    failed: list[str] = []
    for batch, level in itertools.product(batches, levels):
        entry: Data = {"model": model, "batch": list(batch), "level": level}
        data["engines"].append(entry)
        options = BuildOptions(source, engines, batch=_three(batch), builder=flavour, opt_level=level)
        failed += [
            f"batch {batch[1]}: {each}" for each in _build(entry, save, library, options, convolutions)
        ]
    if failed:
        raise BackendError("; ".join(failed))


def _build(
    entry: Data, save: Save, library: Flavour, options: BuildOptions, convolutions: Mapping[str, Convolution]
) -> list[str]:
    """Build one engine, and fill its entry; what is wrong with it."""
    from unet_batch.build import build_engine

    begun = time.perf_counter()
    try:
        built = build_engine(options)
    except UnetBatchError as error:
        entry |= {"failed": error.message, "hint": error.hint}
        save()
        return [error.message]
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
    return [] if sidecar.verified_on_gpu else [": ".join(("not verified on the GPU", *built.notes[-1:]))]


def _inspect(library: Flavour, engine: Engine, convolutions: Mapping[str, Convolution]) -> Data:
    """What the engine inspector tells of the precision, with examples: its format differs by version."""
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


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    low, best, high = values
    return low, best, high


# Buffers ----------------------------------------------------------------------------------------------------


def buffers(data: Data, save: Save, flavour: str, provider: str, engines: str) -> None:
    """Masks of every engine, with and without CUDA graphs, in other batches, buffers and threads."""
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


# Memory -----------------------------------------------------------------------------------------------------


def memory_growth(data: Data, save: Save, flavour: str, provider: str, engines: str, batches: int) -> None:
    """Memory of the process and of the GPU over many batches, and over opening and closing."""
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
    judge_starved(data, library.lends_memory)


# Speed ------------------------------------------------------------------------------------------------------


def throughput(
    data: Data,
    save: Save,
    flavour: str,
    engines: str,
    best: Sequence[int],
    sizes: Sequence[int],
    rounds: int,
    batches: int,
) -> None:
    """The network alone at each batch that an engine takes, and `Backend.infer` with copies at its best one.

    Args:
        data, save: see the module.
        flavour, engines: the library, and the folder with what it built.
        best: engines tuned for these batches.
        sizes: batches to measure.
        rounds, batches: how often.
    """
    from unet_batch.inference.backends.tensorrt import LoadedEngine, Program

    library, providers = open_flavour(flavour), usable_providers()
    data["entries"] = []
    for model, engine in built_engines(library, engines, best):
        recipe, reference, spec = engine.sidecar.recipe, engine.read_reference(), engine.sidecar.spec
        low, middle, high = recipe.profile.batch
        memory = open_provider(providers[0])
        loaded = LoadedEngine(library, engine.read_plan(), memory)
        try:
            program = Program(loaded, (*recipe.profile.size[1], spec.in_channels))
            for batch in [size for size in sizes if low <= size <= high]:
                entry: Data = {
                    "backend": f"{library.name} {library.version}",
                    "model": model,
                    "batch": batch,
                    "provider": memory.name,
                    "pipeline": {},
                }
                data["entries"].append(entry)
                alone = measure.engine_only(memory, program, program.shape, reference, batch, rounds, batches)
                entry["engine"] = {
                    way: speed(found, spec) if "images_per_s" in found else found
                    for way, found in alone.items()
                }
                save()
        finally:
            loaded.close()
        for entry in data["entries"]:
            if (entry["model"], entry["batch"]) != (model, middle):
                continue
            for provider in providers if middle == MAIN_BATCH else providers[:1]:
                with open_engine(library, engine, open_provider(provider)) as backend:
                    found = measure.pipelined(backend, reference, rounds, batches)
                entry["pipeline"][provider] = beside_engine(speed(found, spec), entry["engine"])
                save()


def beside_engine(found: Data, engine: Data) -> Data:
    """`found` with its rate as a share of the best that the network alone reached."""
    alone = [way["images_per_s"]["median"] for way in engine.values() if "images_per_s" in way]
    return found | {"share_of_engine": found["images_per_s"]["median"] / max(alone) if alone else None}


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (build, buffers, throughput, memory_growth, out_of_memory)
}
