"""Graphs and engines for CPUs of small networks, exported and built once for all tests of a process."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.engines import confident
from unet_batch.build import BuildOptions, build_engine
from unet_batch.engine import export, store
from unet_batch.engine.store import Engine
from unet_batch.model import checkpoint
from unet_batch.scenes import write_samples


@functools.cache
def folder() -> Path:
    """A folder that goes with the process."""
    path = tempfile.mkdtemp(prefix="unet-batch-graphs-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@functools.cache
def photos() -> str:
    """A few drawn photos to prove engines on."""
    write_samples(str(folder() / "drawn"), 4, (128, 192))
    return str(folder() / "drawn/photos")


def saved_checkpoint(size: tuple[int, int] = (32, 48), classes: int = 1) -> str:
    """Path of a checkpoint whose masks are not flat."""
    path = str(folder() / f"net{classes}-{size[0]}x{size[1]}.safetensors")
    if os.path.exists(path):
        return path
    model = confident(classes, size=size)
    checkpoint.save(path, model.model, replace(model.spec, name="net"))
    return path


def saved_graph(size: tuple[int, int] = (32, 48), classes: int = 1, *, any_size: bool = False) -> str:
    """Path of the float32 graph of `saved_checkpoint`, without the pictures that a build leaves beside it."""
    path = folder() / f"net{classes}-{size[0]}x{size[1]}{'-any' * any_size}.onnx"
    if not path.exists():
        loaded = checkpoint.load(saved_checkpoint(size, classes))
        path.write_bytes(export.export(loaded, precision="fp32", any_size=any_size).data)
    return str(path)


@functools.cache
def openvino_engine(size: tuple[int, int] = (32, 48)) -> Engine:
    """An engine for CPUs of `saved_graph`; skips the test where OpenVINO is not installed."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')
    options = BuildOptions(
        saved_graph(size), str(folder() / "engines"), builder="openvino", proof_images=(photos(),)
    )
    built = build_engine(options).engine
    assert built is not None
    return store.load(built.path)
