"""Which sections run, in which order, for how long and with what."""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.gpu_check import clips, decoding, networks, sections, training
from scripts.gpu_check.networks import SIZE, WEAK
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
        rehearsal: arguments that replace some of these where it is gone through without a GPU.
    """

    name: str
    function: str
    seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    skip: str = ""
    rehearsal: Mapping[str, Any] = field(default_factory=dict)


# What is imported by whatever loads a checkpoint, draws the pictures of a proof, or reads and writes photos.
PICTURES = ("cv2", "PIL", "simplejpeg")
CHECKPOINTS = ("torch", "safetensors", *PICTURES)
GRAPHS = (*CHECKPOINTS, "filelock", "onnx", "onnxscript")
(TINY,) = networks.TINY
SMALLEST, ON_CPU = "4class", {"device": "cpu"}


def plan(options: argparse.Namespace, work: str) -> list[Section]:
    """All sections in their order: what matters most first, so that a run that is cut off has it."""
    # Libraries only: whether they work, and which version they are, each section finds out for itself.
    builders = [name for name in flavours.NAMES if sections.present(flavours.MODULES[name])]
    common = _Common(
        quick=options.quick,
        names=options.models,
        models=options.onnx or os.path.join(work, "models"),
        engines=os.path.join(work, "engines"),
        photos=os.path.join(work, "photos"),
        builders=builders,
        missing={name: f"{name} is not installed" for name in flavours.NAMES if name not in builders},
        onnx=options.onnx is not None,
    )
    arguments = {"names": common.names, "folder": common.models, "flavours": builders}
    rehearsal = {"names": [TINY], "flavours": [], "forms": [WEAK]}
    # The folder with all tests that need a GPU: others do not even import where kornia is missing, say
    marked = {"seconds": 150, "folder": os.path.join("tests", "inference", "backends")}
    found = [
        Section("environment", "environment", 120),
        Section("tests", "tests", 160, marked, common.lacking("pytest")),
        Section("models", "models", 150, arguments, common.lacking(*GRAPHS), rehearsal),
        *torch_plan(common),
        *engine_plan(common),
        *run_plan(common),
        *memory_plan(common, options.batches),
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
        models, engines, photos: folders.
        builders: flavours of TensorRT that are installed.
        missing: of the other flavours, why not.
        onnx: graphs instead of checkpoints: nothing runs that needs PyTorch.
    """

    quick: bool
    names: Sequence[str]
    models: str
    engines: str
    photos: str
    builders: Sequence[str]
    missing: Mapping[str, str]
    onnx: bool

    @property
    def repeat(self) -> dict[str, Any]:
        """How often speed is measured."""
        rounds, batches = (3, 100) if self.quick else (5, 200)
        return {"rounds": rounds, "batches": batches}

    def lacking(self, *modules: str) -> str:
        """Why a section is not worth starting that imports these; empty if it is."""
        return "not with --onnx" if self.onnx else lacking(*modules)

    def base(self, builder: str) -> dict[str, Any]:
        """Arguments of the sections that run engines of one library."""
        return {"flavour": builder, "engines": self.engines}

    def build(self, builder: str, model: str, *sizes: tuple[int, int, int]) -> Section:
        """Build engines of a model, one for each batch (min, opt, max)."""
        levels = build_levels(flavours.installed_version(builder))
        arguments = {
            "flavour": builder,
            "model": model,
            "batches": sizes,
            "folder": self.models,
            "engines": self.engines,
            "from_checkpoint": not self.lacking(*GRAPHS) and networks.is_trained(model),
            "levels": levels,
        }
        seconds = sum(build_seconds(flavours.installed_version(builder), model, level) for level in levels)
        name = f"build {builder} {model}" + ("" if len(sizes) == 1 else " in other batches")
        # A graph that a dry run has written itself, or that came with --onnx
        rehearsal = {} if self.onnx else {"model": TINY, "from_checkpoint": False}
        return Section(
            name, "build", seconds * len(sizes), arguments, self.missing.get(builder, ""), rehearsal
        )


def build_levels(version: str | None) -> tuple[int | None, ...]:
    """Levels at which the builder looks for kernels, in turn: 8.6 takes minutes, a quick one comes first."""
    return (2, None) if is_slow(version) else (None,)


def build_seconds(version: str | None, model: str, level: int | None) -> float:
    """After how long a build is given up: one of `bundled` by 8.6 takes up to 200 s."""
    seconds = 120.0 if not is_slow(version) else 100.0 if level is not None else 280.0
    return seconds * (1.5 if model == "31m" else 1.0)


def is_slow(version: str | None) -> bool:
    """Whether it is TensorRT 8.6."""
    return version is not None and version.startswith("8.")


def torch_plan(common: _Common) -> list[Section]:
    """PyTorch's speed, and the photos of all sections that read some."""
    quick, absent = common.quick, common.lacking(*CHECKPOINTS)
    speed = {"names": common.names, "models": common.models, "sizes": sections.SIZES, **common.repeat}
    tiny = {"names": [TINY], "sizes": [1, 32], "rounds": 1, "batches": 3, **ON_CPU}
    size = (1280, 1918)
    drawn = {
        "folder": common.photos,
        # A second each to draw; one that comes again costs the same to decode
        "drawn": 12 if quick else 96,
        "items": 400 if quick else 1500,
        "size": size,
    }
    small = {"drawn": 2, "items": 2, "size": (160, 240)}
    return [
        Section("throughput torch", "torch_speed", 120, speed | {"device": "cuda"}, absent, tiny),
        Section("photos", "photos", 120, drawn, common.lacking(*PICTURES), small),
    ]


def engine_plan(common: _Common) -> list[Section]:
    """TensorRT: built, proven, and timed."""
    found = [common.build(name, model, (1, 32, 32)) for name in flavours.NAMES for model in common.names]
    for name in flavours.NAMES:
        reason = common.missing.get(name, "")
        for provider in sections.PROVIDERS:
            arguments = common.base(name) | {"provider": provider}
            absent = reason or lacks_provider(provider)
            found.append(Section(f"buffers {name} {provider}", "buffers", 90, arguments, absent))
        speed = common.base(name) | {"best": [32], "sizes": sections.SIZES, **common.repeat}
        found.append(Section(f"throughput {name}", "throughput", 150, speed, reason))
    return found


def run_plan(common: _Common) -> list[Section]:
    """From photos to masks, whether they are right, and what decoding on the GPU would be worth."""
    quick, names = common.quick, common.names
    absent = common.lacking(*CHECKPOINTS, "filelock")
    base = {
        "models": common.models,
        "folder": common.photos,
        "engines": common.engines,
        "flavours": common.builders,
        "device": "cuda",
    }
    tiny = {"model": "bundled", "flavours": [], "rounds": 1, **ON_CPU}
    found = []
    for model in names[:1] if quick else [name for name in names if name != SMALLEST]:
        arguments = base | {"model": model, "rounds": common.repeat["rounds"]}
        found.append(Section(f"run {model}", "end_to_end", 150, arguments, absent, tiny))
    compared = base | {"names": [name for name in names if name != SMALLEST], "photos": 24}
    few = {"names": ["bundled"], "flavours": [], "photos": 2, **ON_CPU}
    found.append(Section("masks", "masks", 120, compared, absent, few))
    decoded = {
        "folder": common.photos,
        "photos": 256 if quick else 1024,
        "compared": 16,
        "rounds": common.repeat["rounds"],
        "device": "cuda",
    }
    small = {"photos": 4, "compared": 2, "rounds": 1, **ON_CPU}
    absent = common.lacking(*decoding.NEEDS)
    return [*found, Section("photo decoding", "photo_decoding", 90, decoded, absent, small)]


def memory_plan(common: _Common, batches: int) -> list[Section]:
    """Whether memory grows, and what happens when it runs out."""
    found, names = [], common.names
    for name, provider in itertools.product(flavours.NAMES, sections.PROVIDERS):
        growth = common.base(name) | {"provider": provider, "batches": batches}
        absent = common.missing.get(name) or lacks_provider(provider)
        found.append(Section(f"memory {name} {provider}", "memory_growth", 90, growth, absent))
    for name in flavours.NAMES:
        absent = common.missing.get(name, "")
        found.append(Section(f"out of memory {name}", "out_of_memory", 90, common.base(name), absent))
    largest = {"model": "31m" if "31m" in names else names[-1], "models": common.models}
    absent = common.lacking(*CHECKPOINTS)
    return [
        *found,
        Section("out of memory torch", "out_of_memory_torch", 90, largest, absent, {"model": TINY}),
    ]


def late_plan(common: _Common) -> list[Section]:
    """What may take minutes: engines for other batches, and torch.compile; not in a quick check."""
    found: list[Section] = []
    if common.quick:
        return found
    for name in flavours.NAMES:
        large = [model for model in common.names if model != SMALLEST]
        found += [common.build(name, model, (1, 8, 8), (1, 64, 64)) for model in large]
        speed = common.base(name) | {"best": [8, 64], "sizes": [8, 64], **common.repeat}
        reason = common.missing.get(name, "")
        found.append(Section(f"throughput {name} in other batches", "throughput", 90, speed, reason))
    absent, tiny = common.lacking(*CHECKPOINTS), {"model": TINY, "rounds": 1, "batches": 3, **ON_CPU}
    for mode in ("reduce-overhead", "max-autotune"):
        for model in common.names if mode == "reduce-overhead" else common.names[:2]:
            arguments = {
                "model": model,
                "models": common.models,
                "mode": mode,
                **common.repeat,
                "device": "cuda",
            }
            title = f"torch.compile {mode} {model}"
            found.append(Section(title, "torch_compiled", 180, arguments, absent, tiny))
    return found


def lacks_provider(name: str) -> str:
    """Why a way to the GPU's memory cannot be tried; empty if it can."""
    return "" if sections.present(sections.module_of(name)) else f"{name} is not installed"


def lacking(*modules: str) -> str:
    """Which modules are not installed, in words; empty if all are."""
    absent = [name for name in dict.fromkeys(modules) if not sections.present(name)]
    return f"{', '.join(absent)} not installed" if absent else ""


def training_plan(quick: bool, folder: str, onnx: str | None) -> list[Section]:
    """The trainer, at its default widths and size but for what is compared to the bit."""
    reason = "not with --onnx" if onnx else lacking(*training.NEEDS)
    command = reason or lacking(*training.NEEDS, *training.COMMAND_NEEDS)
    base: dict[str, Any] = {"folder": folder, "device": "cuda"}
    drawn = {"folder": folder, "drawn": 24 if quick else 48, "copies": 24, "size": (1280, 1918)}
    whole: dict[str, Any] = base | {"size": SIZE, "batch_size": 16, "epochs": 3 if quick else 6}
    few: dict[str, Any] = base | {"size": SIZE, "widths": (16, 32, 64, 128), "batch_size": 4}
    speed: dict[str, Any] = base | {
        "size": SIZE,
        "augment": "strong",
        "steps": 12,
        "rounds": 2 if quick else 3,
    }
    speed |= {"batch_sizes": (8, 64) if quick else (8, 32, 128)}
    tiny: dict[str, Any] = {"size": (32, 48), "widths": (4, 8), "batch_size": 4, **ON_CPU}
    small = {"drawn": 10, "copies": 4, "size": (64, 96)}
    # So few steps of so small a network learn little with a smaller rate.
    quickly: dict[str, Any] = tiny | {"epochs": 4, "lr": 1e-2}
    loading = tiny | {"batch_size": 1, "batch_sizes": (4,), "steps": 2, "rounds": 1}
    processes = few | {"epochs": 4, "precision": "fp32"}
    return [
        Section("training data", "training_data", 90, drawn, reason, small),
        *(
            Section(
                f"training {precision}",
                "training",
                100,
                whole | {"precision": precision},
                reason,
                # There is no fp16 on a processor.
                quickly | ({"precision": "bf16"} if precision == "fp16" else {}),
            )
            for precision in ("bf16", "fp16", "fp32")
        ),
        Section(
            "training deterministic",
            "training_deterministic",
            90,
            few | {"epochs": 2 if quick else 3},
            reason,
            tiny | {"epochs": 2},
        ),
        Section(
            "training killed and resumed",
            "training_killed",
            150,
            few | {"epochs": 8},
            command,
            tiny | {"epochs": 4},
        ),
        Section(
            "training in two processes", "training_processes", 150, processes, reason, tiny | {"epochs": 2}
        ),
        Section("training from files", "training_loading", 100, speed, reason, loading),
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
    decode = {"folder": folder, "hardware": "cuda", "rounds": rounds, "compared": 50 if quick else 200}
    encode = {"folder": folder, "codecs": ("h264", "h264_nvenc"), "frames": 100, "rounds": rounds}
    ways = {"decoders": (None, "cuda"), "codecs": ("h264", "h264_nvenc")}
    whole = {"folder": folder, "engines": engines, "device": None, **ways, "rounds": rounds}
    small = {"seconds": 0.12, "copies": 2, "size": (96, 128)}
    one, plain = {"rounds": 1}, {"decoders": [None], "codecs": ["h264"], **ON_CPU}
    return [
        Section("clip drawn", "clip_drawn", 90, drawn, reason, small),
        Section(
            "clip decoding", "clip_decoding", 60, decode, reason, one | {"hardware": None, "compared": 3}
        ),
        Section(
            "clip encoding", "clip_encoding", 60, encode, reason, one | {"codecs": ["h264"], "frames": 3}
        ),
        Section("clip to masks and overlay", "clip_run", 150, whole, reason, one | plain),
    ]
