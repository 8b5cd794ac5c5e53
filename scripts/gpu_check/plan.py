"""Which sections run, in which order, for how long and with what."""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.gpu_check import clips, sections, training
from scripts.gpu_check.networks import SIZE
from unet_batch.engine import flavours


@dataclass(frozen=True)
class Section:
    """One process.

    Attributes:
        name: unique.
        function: its name in the `FUNCTIONS` of one of the modules here.
        seconds: after which it is killed.
        arguments: for the function.
        skip: why it is not worth starting; empty if it is.
    """

    name: str
    function: str
    seconds: float
    arguments: dict[str, Any] = field(default_factory=dict)
    skip: str = ""


def plan(options: argparse.Namespace, work: str) -> list[Section]:
    """All sections in their order: the quick proofs first, so that a run that is cut off has them."""
    # Libraries only: whether they work, and which version they are, each section finds out for itself.
    builders = [name for name in flavours.NAMES if sections.present(flavours.MODULES[name])]
    # Drawing the pictures of a proof takes the codecs, too.
    no_torch = "not with --onnx" if options.onnx else lacking("torch", "simplejpeg", "PIL", "cv2")
    common = _Common(
        quick=options.quick,
        names=options.models,
        models=options.onnx or os.path.join(work, "models"),
        engines=os.path.join(work, "engines"),
        builders=builders,
        missing={name: f"{name} is not installed" for name in flavours.NAMES if name not in builders},
        no_torch=no_torch,
    )
    arguments = {"names": common.names, "folder": common.models, "flavours": builders}
    found = [
        Section("environment", "environment", 120),
        Section("tests", "tests", 160, {"seconds": 150}, "not with --onnx" if options.onnx else ""),
        Section("models", "models", 150, arguments, no_torch),
        *engine_plan(common, options.batches),
        *run_plan(common, os.path.join(work, "photos")),
        *training_plan(options.quick, os.path.join(work, "training"), options.onnx),
        *clip_plan(options.quick, os.path.join(work, "clips"), common.engines, options.onnx),
        *late_plan(common),
    ]
    return [
        each
        for each in found
        if not options.only or any(fnmatch.fnmatch(each.name, pattern) for pattern in options.only)
    ]


@dataclass(frozen=True)
class _Common:
    """What the sections on engines and pictures share.

    Attributes:
        quick: fewer rounds.
        names: of the models.
        models, engines: folders.
        builders: flavours of TensorRT that are installed.
        missing: of the other flavours, why not.
        no_torch: why nothing runs that needs PyTorch; empty if it does.
    """

    quick: bool
    names: Sequence[str]
    models: str
    engines: str
    builders: Sequence[str]
    missing: Mapping[str, str]
    no_torch: str

    @property
    def repeat(self) -> dict[str, Any]:
        """How often speed is measured."""
        rounds, batches = (3, 100) if self.quick else (5, 200)
        return {"models": self.models, "rounds": rounds, "batches": batches}

    def build(self, builder: str, model: str, *sizes: tuple[int, int, int]) -> Section:
        """Build engines of a model, one for each batch (min, opt, max)."""
        arguments = {
            "flavour": builder,
            "model": model,
            "batches": sizes,
            "folder": self.models,
            "engines": self.engines,
            "from_checkpoint": not self.no_torch and model == "bundled",
        }
        name = f"build {builder} {model}" + ("" if len(sizes) == 1 else " in other batches")
        return Section(name, "build", 120 * len(sizes), arguments, self.missing.get(builder, ""))


def engine_plan(common: _Common, growth_batches: int) -> list[Section]:
    """TensorRT, and PyTorch's speed beside it."""
    found = [common.build(name, model, (1, 32, 32)) for name in flavours.NAMES for model in common.names]
    for name in flavours.NAMES:
        base, reason = {"flavour": name, "engines": common.engines}, common.missing.get(name, "")
        for provider in sections.PROVIDERS:
            arguments = base | {"provider": provider}
            absent = reason or lacks_provider(provider)
            found.append(Section(f"buffers {name} {provider}", "buffers", 90, arguments, absent))
        speed = base | {**common.repeat, "sizes": [32]}
        found.append(Section(f"throughput {name}", "throughput", 150, speed, reason))
    speed = {"names": common.names, **common.repeat}
    found.append(Section("throughput torch", "torch_speed", 120, speed, common.no_torch))
    for name, provider in itertools.product(flavours.NAMES, sections.PROVIDERS):
        growth: dict[str, Any] = {"flavour": name, "engines": common.engines, "provider": provider}
        growth["batches"] = growth_batches
        absent = common.missing.get(name) or lacks_provider(provider)
        found.append(Section(f"memory {name} {provider}", "memory_growth", 90, growth, absent))
    return found


def run_plan(common: _Common, pictures: str) -> list[Section]:
    """From photos to masks, and what happens when memory runs out."""
    quick, names, no_torch = common.quick, common.names, common.no_torch
    drawn = {"folder": pictures, "drawn": 32 if quick else 96, "items": 400 if quick else 1500}
    found = [Section("photos", "photos", 120, drawn, no_torch)]
    for model in names[:1] if quick else [name for name in names if name != "4class"]:
        arguments = {
            "model": model,
            "models": common.models,
            "folder": pictures,
            "engines": common.engines,
            "flavours": common.builders,
            "rounds": common.repeat["rounds"],
        }
        found.append(Section(f"run {model}", "end_to_end", 120, arguments, no_torch))
    for name in flavours.NAMES:
        arguments, reason = {"flavour": name, "engines": common.engines}, common.missing.get(name, "")
        found.append(Section(f"out of memory {name}", "out_of_memory", 90, arguments, reason))
    largest = {"model": "31m" if "31m" in names else names[-1], "models": common.models}
    return [*found, Section("out of memory torch", "out_of_memory_torch", 90, largest, no_torch)]


def late_plan(common: _Common) -> list[Section]:
    """What may take minutes: engines for other batches, and torch.compile; not in a quick check."""
    found: list[Section] = []
    if common.quick:
        return found
    for name in flavours.NAMES if "31m" in common.names else ():
        found.append(common.build(name, "31m", (1, 8, 8), (1, 64, 64)))
        speed = {"flavour": name, "engines": common.engines, **common.repeat, "sizes": [8, 64]}
        reason = common.missing.get(name, "")
        found.append(Section(f"throughput {name} in other batches", "throughput", 90, speed, reason))
    for mode in ("reduce-overhead", "max-autotune"):
        for model in common.names if mode == "reduce-overhead" else common.names[:2]:
            arguments = {"model": model, "mode": mode, **common.repeat}
            title = f"torch.compile {mode} {model}"
            found.append(Section(title, "torch_compiled", 180, arguments, common.no_torch))
    return found


def lacks_provider(name: str) -> str:
    """Why a way to the GPU's memory cannot be tried; empty if it can."""
    return "" if sections.present(name) else f"{name} is not installed"


def lacking(*modules: str) -> str:
    """Which modules are not installed, in words; empty if all are."""
    absent = [name for name in modules if not sections.present(name)]
    return f"{', '.join(absent)} not installed" if absent else ""


def training_plan(quick: bool, folder: str, onnx: str | None) -> list[Section]:
    """The trainer, at its default widths and size but for what is compared to the bit."""
    reason = "not with --onnx" if onnx else lacking(*training.NEEDS)
    command = reason or lacking(*training.NEEDS, *training.COMMAND_NEEDS)
    base = {"folder": folder, "device": "cuda"}
    drawn = {"folder": folder, "drawn": 24 if quick else 48, "copies": 24, "size": (1280, 1918)}
    whole = base | {"size": SIZE, "batch_size": 16, "epochs": 3 if quick else 6}
    few = base | {"size": SIZE, "widths": (16, 32, 64, 128), "batch_size": 4}
    speed = base | {"size": SIZE, "augment": "strong", "steps": 12, "rounds": 2 if quick else 3}
    found = [Section("training data", "training_data", 90, drawn, reason)]
    found += [
        Section(f"training {precision}", "training", 100, whole | {"precision": precision}, reason)
        for precision in ("bf16", "fp16", "fp32")
    ]
    return [
        *found,
        Section(
            "training deterministic",
            "training_deterministic",
            90,
            few | {"epochs": 2 if quick else 3},
            reason,
        ),
        Section("training killed and resumed", "training_killed", 150, few | {"epochs": 8}, command),
        Section(
            "training in two processes",
            "training_processes",
            150,
            few | {"epochs": 4, "precision": "fp32"},
            reason,
        ),
        Section(
            "training from files",
            "training_loading",
            100,
            speed | {"batch_sizes": (8, 64) if quick else (8, 32, 128)},
            reason,
        ),
    ]


def clip_plan(quick: bool, folder: str, engines: str, onnx: str | None) -> list[Section]:
    """Video: the GPU's decoder and encoder by themselves, then whole clips."""
    reason = "not with --onnx" if onnx else lacking(*clips.NEEDS)
    rounds = 2 if quick else 3
    drawn = {
        "folder": folder,
        "seconds": 4 if quick else 10,
        "copies": 5 if quick else 8,
        "size": (720, 1280),
    }
    decoding = {"folder": folder, "hardware": "cuda", "rounds": rounds, "compared": 50 if quick else 200}
    encoding = {"folder": folder, "codecs": ("h264", "h264_nvenc"), "frames": 100, "rounds": rounds}
    ways = {"decoders": (None, "cuda"), "codecs": ("h264", "h264_nvenc")}
    whole = {"folder": folder, "engines": engines, "device": None, **ways, "rounds": rounds}
    return [
        Section("clip drawn", "clip_drawn", 90, drawn, reason),
        Section("clip decoding", "clip_decoding", 60, decoding, reason),
        Section("clip encoding", "clip_encoding", 60, encoding, reason),
        Section("clip to masks and overlay", "clip_run", 150, whole, reason),
    ]
