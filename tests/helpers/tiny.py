"""A small model that was not trained."""

from __future__ import annotations

import torch

from unet_batch.model.architectures import build_network
from unet_batch.model.network import SegmentationNetwork
from unet_batch.types import ClassTable, ModelSpec


def tiny_spec(classes: int = 1, size: tuple[int, int] = (32, 48), **changes: object) -> ModelSpec:
    """The spec of a network that is quick to make and run."""
    values = {
        "name": "tiny",
        "widths": (4, 8, 16),
        "in_channels": 3,
        "input_size": size,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
        "classes": ClassTable(
            tuple(f"class{i}" for i in range(classes)), tuple((i, 80, 200) for i in range(classes))
        ),
        "output": "probability" if classes == 1 else "class_ids",
        **changes,
    }
    return ModelSpec(**values)  # type: ignore[arg-type]


def encoder_spec(
    encoder: str = "efficientnet-lite0", classes: int = 1, size: tuple[int, int] = (64, 96), **changes: object
) -> ModelSpec:
    """The spec of a U-Net on an encoder, its decoder thin."""
    of_encoder = {"architecture": "encoder-unet", "encoder": encoder, "widths": (8, 8, 8, 8)}
    return tiny_spec(classes, size, **{**of_encoder, **changes})


def tiny_model(spec: ModelSpec) -> SegmentationNetwork:
    """Random weights, with BatchNorm statistics as training leaves them: neither 0 nor 1."""
    torch.manual_seed(0)
    model = build_network(spec)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    model.eval()
    if spec.encoder:
        settle(model, torch.randn(4, spec.in_channels, 64, 96))
    with torch.no_grad():  # logits of mean 0 and deviation 2 for each class: a flat answer would test nothing
        logits = model(torch.randn(4, spec.in_channels, 32, 48))
        model.head.weight *= 2 / logits.std((0, 2, 3)).view(-1, 1, 1, 1)
        assert model.head.bias is not None
        model.head.bias.zero_()
        model.head.bias -= model(torch.randn(4, spec.in_channels, 32, 48)).mean((0, 2, 3))
    return model


def settle(model: SegmentationNetwork, pictures: torch.Tensor) -> None:
    """Measure BatchNorm's statistics on pictures: in fifty layers, random ones fade or saturate."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pictures)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
