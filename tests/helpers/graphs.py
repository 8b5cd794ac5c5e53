"""Graphs and engines for CPUs of small networks, exported and built once for all tests of a run."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.engines import confident, remember_exports
from tests.helpers.shared import once
from unet_batch.build import BuildOptions, build_engine
from unet_batch.engine import export, store
from unet_batch.engine.store import Engine
from unet_batch.model import checkpoint
from unet_batch.scenes import write_samples


def photos() -> str:
    """A few drawn photos to prove engines on."""
    return str(once("drawn", lambda path: write_samples(str(path), 4, (128, 192))) / "photos")


def saved_checkpoint(size: tuple[int, int] = (32, 48), classes: int = 1) -> str:
    """Path of a checkpoint whose masks are not flat."""

    def make(path: Path) -> None:
        model = confident(classes, size=size)
        checkpoint.save(str(path), model.model, replace(model.spec, name="net"))

    return str(once(f"net{classes}-{size[0]}x{size[1]}.safetensors", make))


def saved_graph(size: tuple[int, int] = (32, 48), classes: int = 1, *, any_size: bool = False) -> str:
    """Path of the float32 graph of `saved_checkpoint`, without the pictures that a build leaves beside it."""

    def make(path: Path) -> None:
        loaded = checkpoint.load(saved_checkpoint(size, classes))
        with pytest.MonkeyPatch.context() as patch:
            remember_exports(patch)
            path.write_bytes(export.export(loaded, precision="fp32", any_size=any_size).data)

    return str(once(f"net{classes}-{size[0]}x{size[1]}{'-any' * any_size}.onnx", make))


@functools.cache
def openvino_engine(size: tuple[int, int] = (32, 48)) -> Engine:
    """An engine for CPUs of `saved_graph`; skips the test where OpenVINO is not installed."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')

    def make(path: Path) -> None:
        build_engine(BuildOptions(saved_graph(size), str(path), builder="openvino", proof_images=(photos(),)))

    (sidecar,) = once(f"engines-{size[0]}x{size[1]}", make).glob("*.json")
    return store.load(str(sidecar))
