"""The sections of `scripts.gpu_check` on engines, with a library and a GPU that are pretended."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scripts.gpu_check import engines, sections
from tests.helpers.host import Brightness, HostBackend, brightness
from unet_batch import build as building
from unet_batch import gpu
from unet_batch.engine import onnx_model, store
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendError
from unet_batch.inference.backends import tensorrt
from unet_batch.testing import HostMemory, fake_spec

SHAPE = (32, 48, 3)
HERE = "NVIDIA H200"
LIBRARY: Any = SimpleNamespace(name="tensorrt", version="8.6.0", strongly_typed=False, lends_memory=False)


def nothing() -> None:
    """A `save`."""


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = gpu.Driver((13, 0), (gpu.Gpu(0, HERE, (9, 0), 150_000_000_000),))
    monkeypatch.setattr(gpu, "driver", lambda: driver)
    monkeypatch.setattr(gpu, "missing", lambda: "")


def engine(name: str = "31m", level: int | None = None, refused: str = "", version: str = "8.6.0") -> Any:
    """What is known of an engine, no more than what is asked for here."""
    profile = SimpleNamespace(batch=(1, 8, 8), size=(SHAPE[:2],) * 3)
    options = {} if level is None else {"opt_level": level}
    recipe = SimpleNamespace(flavour="tensorrt", version=version, profile=profile, options=options)
    spec = dataclasses.replace(fake_spec(SHAPE[:2]), name=name)
    pictures = np.random.default_rng(3).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    sidecar = SimpleNamespace(
        spec=spec, recipe=recipe, proofs={}, refused={refused: "wrong"} if refused else {}
    )
    return SimpleNamespace(
        path=f"{name}-{level}",
        sidecar=sidecar,
        read_plan=lambda: b"",
        read_reference=lambda: Reference(pictures, brightness(pictures)),
    )


def listed(monkeypatch: pytest.MonkeyPatch, *there: Any) -> list[str]:
    monkeypatch.setattr(store, "list_engines", lambda folder: (list(there), []))
    return [found.path for _, found in sections.built_engines(LIBRARY, "engines")]


def test_an_engine_that_was_refused_on_this_gpu_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    others = engine("default", refused="NVIDIA L4")
    assert listed(monkeypatch, engine(refused=HERE), others) == ["default-None"]
    with pytest.raises(sections.Skip, match=r"no engine of tensorrt 8\.6\.0 was built"):
        listed(monkeypatch, engine(refused=HERE), engine(version="10.13"))


def test_of_a_quick_and_a_whole_build_the_whole_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(monkeypatch, engine(level=None), engine(level=2), engine("4class", 2)) == [
        "31m-None",
        "4class-2",
    ]


def test_a_quick_level_is_built_first_and_kept_if_the_other_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    saved: list[list[Any]] = []

    def build_engine(options: building.BuildOptions) -> Any:
        asked.append((options.model, options.engines_dir, options.batch, options.builder, options.opt_level))
        if options.opt_level is None:
            raise BackendError("no memory")
        sidecar = SimpleNamespace(
            built={"seconds": 9}, plan_bytes=1, float32=(), shares=(), proofs={}, verified_on_gpu=True
        )
        return SimpleNamespace(
            engine=SimpleNamespace(sidecar=sidecar, path="a.plan"), was_there=False, notes=()
        )

    monkeypatch.setattr(engines, "open_flavour", lambda name: LIBRARY)
    monkeypatch.setattr(engines, "graphs", lambda folder: {"31m": {"fp32": "31m.onnx"}})
    monkeypatch.setattr(onnx_model, "read", lambda path: SimpleNamespace(convolutions={}))
    monkeypatch.setattr(engines, "_inspect", lambda *_: {})
    monkeypatch.setattr(building, "build_engine", build_engine)
    data: dict[str, Any] = {}
    with pytest.raises(BackendError, match=r"^batch 32: no memory$"):
        engines.build(
            data,
            lambda: saved.append([entry.get("plan") for entry in data["engines"]]),
            "tensorrt",
            "31m",
            [(1, 32, 32)],
            "models",
            "engines",
            from_checkpoint=False,
            levels=(2, None),
        )
    assert asked == [("31m.onnx", "engines", (1, 32, 32), "tensorrt", level) for level in (2, None)]
    assert saved[0] == ["a.plan"]  # on disk before the long one begins
    assert data["engines"][1]["failed"] == "no memory"


def test_speed_is_measured_at_each_batch_that_an_engine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory()

    class Backend(HostBackend):
        def __init__(self) -> None:
            super().__init__(fake_spec(SHAPE[:2]), batch_size=8)
            self.memory, self.program = memory, Brightness(memory, SHAPE)

    monkeypatch.setattr(engines, "open_flavour", lambda name: LIBRARY)
    monkeypatch.setattr(engines, "usable_providers", lambda: ["host"])
    monkeypatch.setattr(engines, "open_provider", lambda name: memory)
    monkeypatch.setattr(engines, "open_engine", lambda *_: Backend())
    monkeypatch.setattr(
        tensorrt, "LoadedEngine", lambda *_: SimpleNamespace(close=contextlib.nullcontext().__enter__)
    )
    monkeypatch.setattr(tensorrt, "Program", lambda loaded, shape: Brightness(memory, shape))
    monkeypatch.setattr(store, "list_engines", lambda folder: ([engine()], []))
    data: dict[str, Any] = {}
    engines.throughput(
        data, nothing, "tensorrt", "engines", best=[8], sizes=(1, 2, 4, 8, 16), rounds=2, batches=5
    )
    assert [entry["batch"] for entry in data["entries"]] == [1, 2, 4, 8]
    assert all(entry["engine"]["plain"]["floor_images_per_s"] > 0 for entry in data["entries"])
    assert [list(entry["pipeline"]) for entry in data["entries"]] == [[], [], [], ["host"]]
    assert data["entries"][-1]["pipeline"]["host"]["share_of_engine"] > 0


def test_a_pipeline_stands_beside_the_fastest_way_of_the_network_alone() -> None:
    def rate(images: float) -> dict[str, Any]:
        return {"images_per_s": {"median": images}}

    alone = {"graph": rate(1000), "plain": rate(500), "graph_late": {"reason": "no graphs"}}
    assert engines.beside_engine(rate(950), alone)["share_of_engine"] == 0.95
    assert engines.beside_engine(rate(950), {})["share_of_engine"] is None
