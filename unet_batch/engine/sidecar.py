"""The sidecar of an engine: what a plan was made of and for, and how it was proven, as JSON."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_batch.engine import openvino
from unet_batch.engine.compiler import Profile
from unet_batch.engine.onnx_model import GRAPH_VERSION
from unet_batch.model import spec as spec_json
from unet_batch.types import ModelSpec

FORMAT = "unet-batch engine"
VERSION = 1
# Fastest first
PRECISIONS = ("int8", "fp16", "bf16", "fp32")


@dataclass(frozen=True)
class EngineRecipe:
    """All that decides what a plan is and whether it may be loaded; the cache key is made of it.

    Attributes:
        source_sha256: of the checkpoint.
        precision: `int8`, `fp16`, `bf16` or `fp32`.
        profile: shapes it takes.
        flavour: `tensorrt`, `tensorrt-rtx` or `openvino`.
        version: of the flavour.
        target: the GPU it was built for, `sm_90`; `any` where the flavour compiles for the one it finds.
        system: operating system and processor, `linux-x86_64`.
        options: of the compiler, those that were given.
        graph: version of the exporter's graph.
        calibration: sha256 of the pictures that the ranges of INT8 were taken from; empty for all else.
    """

    source_sha256: str
    precision: str
    profile: Profile
    flavour: str
    version: str
    target: str
    options: Mapping[str, Any]
    system: str = f"{sys.platform}-{platform.machine().lower()}"
    graph: int = GRAPH_VERSION
    calibration: str = ""

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU runs it."""
        return self.flavour == openvino.NAME

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source_sha256": self.source_sha256,
            "precision": self.precision,
            "batch": list(self.profile.batch),
            "size": [list(size) for size in self.profile.size],
            "flavour": self.flavour,
            "version": self.version,
            "target": self.target,
            "system": self.system,
            "options": dict(self.options),
            "graph": self.graph,
            **({"calibration": self.calibration} if self.calibration else {}),
        }

    def stem(self, spec: ModelSpec) -> str:
        """Name of its files, without their suffixes."""
        low, best, high = self.profile.size
        size = f"{best[0]}x{best[1]}" if low == high else f"{low[0]}x{low[1]}-{high[0]}x{high[1]}"
        return f"{file_name(spec)}-{size}-{self.precision}-{self.key[:8]}"


@dataclass(frozen=True)
class Sidecar:
    """What is known of a plan.

    Attributes:
        spec: of the model.
        recipe: what it was made of and for.
        plan_sha256: of the plan's bytes, and `plan_bytes` their number.
        float32: names of the layers that were kept in float32 because half precision or INT8 broke them, or
            has no kernels for them.
        shares: of the arithmetic in the precision asked for, one entry for each source that could be counted.
        proofs: parity with float32, by what ran: `onnxruntime 1.31`, `NVIDIA H200`, each with its numbers by
            batch.
        refused: GPUs and CPUs on which the plan was run and its masks were wrong, with the reason.
        verified_on_gpu: the plan itself was run on some GPU and found equal; another GPU proves it again.
        built: when, by what, beside what GPU, in how many seconds; of INT8 also which pictures calibrated it.
    """

    spec: ModelSpec
    recipe: EngineRecipe
    plan_sha256: str
    plan_bytes: int
    float32: tuple[str, ...]
    shares: tuple[Mapping[str, Any], ...]
    proofs: Mapping[str, Any]
    verified_on_gpu: bool
    built: Mapping[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the first two keys say what it is."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "key": self.recipe.key,
            "verified_on_gpu": self.verified_on_gpu,
            "plan": {"sha256": self.plan_sha256, "bytes": self.plan_bytes},
            "recipe": self.recipe.as_dict(),
            "float32": list(self.float32),
            "shares": [dict(share) for share in self.shares],
            "proofs": dict(self.proofs),
            "refused": dict(self.refused),
            "built": dict(self.built),
            "spec": json.loads(spec_json.dumps(self.spec)),
        }


def file_name(spec: ModelSpec) -> str:
    """The model's name as part of a file name: whatever a checkpoint calls itself, it stays in the folder."""
    return re.sub(r"[^\w.-]+", "-", spec.name, flags=re.ASCII).strip(".-")[:60] or "model"


def parse_sidecar(data: Any) -> Sidecar:
    """A sidecar from its JSON value.

    Raises:
        ValueError, KeyError, TypeError, IndexError, CheckpointError: it is damaged, or of a newer program.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"no {FORMAT!r} in it")
    if data["format_version"] > VERSION:
        raise ValueError(f"version {data['format_version']}, this program reads up to {VERSION}")
    recipe = data["recipe"]
    sidecar = Sidecar(
        spec=spec_json.loads(json.dumps(data["spec"])),
        recipe=EngineRecipe(
            source_sha256=str(recipe["source_sha256"]),
            precision=str(recipe["precision"]),
            profile=Profile(_three(recipe["batch"]), _three([(int(h), int(w)) for h, w in recipe["size"]])),
            flavour=str(recipe["flavour"]),
            version=str(recipe["version"]),
            target=str(recipe["target"]),
            system=str(recipe["system"]),
            options=dict(recipe["options"]),
            graph=int(recipe["graph"]),
            calibration=str(recipe.get("calibration", "")),
        ),
        plan_sha256=str(data["plan"]["sha256"]),
        plan_bytes=int(data["plan"]["bytes"]),
        float32=tuple(map(str, data["float32"])),
        shares=tuple(data["shares"]),
        proofs=dict(data["proofs"]),
        refused={str(gpu): str(reason) for gpu, reason in data["refused"].items()},
        verified_on_gpu=data["verified_on_gpu"] is True,
        built=dict(data["built"]),
    )
    if sidecar.recipe.precision not in PRECISIONS:
        raise ValueError(f"precision {sidecar.recipe.precision!r}")
    if sidecar.recipe.key != data["key"]:
        raise ValueError("its key does not belong to its recipe")
    return sidecar


def _three(values: Any) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third
