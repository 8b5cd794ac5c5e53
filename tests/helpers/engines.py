"""For tests of export and engines: checkpoints whose answers are not flat, and damage to engines."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save

from tests.helpers.shared import once
from tests.helpers.tiny import encoder_spec, settle, tiny_spec
from unet_batch.engine import export
from unet_batch.engine.onnx_model import OnnxModel
from unet_batch.model.architectures import build_network
from unet_batch.model.checkpoint import Checkpoint


def confident(
    classes: int = 1,
    widths: tuple[int, ...] = (8, 16, 32),
    size: tuple[int, int] = (32, 48),
    *,
    encoder: str = "",
) -> Checkpoint:
    """Random weights whose answers are as sure of themselves as a trained network's: few pixels lie near the
    threshold.
    """
    spec = encoder_spec(encoder, classes, size) if encoder else tiny_spec(classes, size, widths=widths)
    torch.manual_seed(1)
    model = build_network(spec)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, torch.nn.Conv2d):  # blur rather than noise: regions, not speckles
                module.weight.data = 0.8 * module.weight.mean((2, 3), keepdim=True) + 0.2 * module.weight
    model.eval()
    with torch.no_grad():
        smooth = torch.nn.functional.interpolate(torch.randn(2, 3, 4, 6), size, mode="bicubic")
        if encoder:
            settle(model, smooth)
        assert model.head.bias is not None
        model.head.bias.zero_()
        logits = model(smooth)
        model.head.weight *= 60 / logits.std((0, 2, 3)).view(-1, 1, 1, 1)
        model.head.bias -= model(smooth).mean((0, 2, 3))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Checkpoint(model, spec, "5" * 64, "confident")


def overflowing(
    checkpoint: Checkpoint,
    factor: float = 1e6,
    *,
    made: Sequence[str] = ("down.1.1",),
    undone: Sequence[str] = ("down.1.4",),
) -> Checkpoint:
    """The same function through values beyond float16: what some norms make times a factor, which the norms
    behind the next convolutions undo.
    """
    with torch.no_grad():
        for norm in (norm_of(checkpoint, name) for name in made):
            norm.weight *= factor
            norm.bias *= factor
        for norm in (norm_of(checkpoint, name) for name in undone):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)
    return checkpoint


def norm_of(checkpoint: Checkpoint, name: str) -> torch.nn.BatchNorm2d:
    norm = checkpoint.model.get_submodule(name)
    assert isinstance(norm, torch.nn.BatchNorm2d)
    return norm


def overflowing_encoder(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """The same of a U-Net on an encoder, in blocks that add to what they were given; and the layers.

    A stage is taken that the decoder does not see: the next one goes on at its resolution.
    """
    stage, blocks = "encoder.stages.3", range(3)
    made = [f"{stage}.{block}.layers" for block in blocks]
    taken = [*made[1:], "encoder.stages.4.0.layers"]
    checkpoint = overflowing(
        checkpoint, made=[f"{block}.7" for block in made], undone=[f"{block}.1" for block in taken]
    )
    layers = {*(f"{block}.6" for block in made), *(f"{block}.0" for block in taken)}
    return checkpoint, tuple(name for name in checkpoint.model.convolutions() if name in layers)


def harm(path: str, how: str) -> None:
    """Damage an engine in one of the ways that disks, copies and people do."""
    plan, sidecar = Path(path), Path(path).with_suffix(".json")
    if how == "byte":
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
    elif how == "cut":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif how == "no sidecar":
        sidecar.unlink()
    elif how == "no plan":
        plan.unlink()
    elif how == "no pictures":
        plan.with_suffix(".npz").unlink()
    elif how == "half a sidecar":
        sidecar.write_bytes(sidecar.read_bytes()[:200])
    else:
        sidecar.write_text(sidecar.read_text().replace('"precision": "fp16"', '"precision": "fp32"', 1))


EXPORT, TRACE, CONVERT = export.export, export._trace, export._convert  # the real ones


def _convert(*arguments: Any, **names: Any) -> Any:
    _register_operators_once()
    return CONVERT(*arguments, **names)


@functools.cache
def _register_operators_once() -> None:
    """PyTorch parses and registers 497 operators anew for each export: a third of what it takes."""
    with suppress(ImportError, AttributeError):  # a PyTorch that does it in another way
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        register = functools.cache(ONNXRegistry.from_torchlib)
        ONNXRegistry.from_torchlib = staticmethod(register)  # type: ignore[method-assign]


export._convert = _convert  # for all tests of this process


def remember_exports(patch: pytest.MonkeyPatch) -> None:
    """Trace each network once for all tests of a run, whatever it is called.

    PyTorch takes 4 seconds for it, many times as long as all else that builds of small networks do. That the
    same checkpoint gives the same bytes is a test of its own (`test_export`).
    """

    def remembered(checkpoint: Checkpoint, **options: Any) -> OnnxModel:
        call = inspect.signature(EXPORT).bind(checkpoint, **options)
        call.apply_defaults()
        asked = dict(list(call.arguments.items())[1:])
        asked |= {"size": asked["size"] or checkpoint.spec.input_size, "float32": tuple(asked["float32"])}
        asked["opset"] = asked["opset"] or export.DEFAULT_OPSET.get(asked["precision"])
        weights = hashlib.sha256(save(checkpoint.model.state_dict())).hexdigest()
        spec = replace(checkpoint.spec, name="any", terms="", training={})
        name = f"{hashlib.sha256(f'{weights} {spec} {asked}'.encode()).hexdigest()}.onnx"

        def traced(*arguments: Any) -> Any:
            path = once(name, lambda path: path.write_bytes(TRACE(*arguments).SerializeToString()))
            return onnx.load_model_from_string(path.read_bytes())

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(export, "_trace", traced)
            return EXPORT(checkpoint, **options)

    patch.setattr(export, "export", remembered)
