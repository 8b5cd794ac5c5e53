"""Gradients on planes are the gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from unet_batch.model.encoder_unet import EncoderUNet
from unet_batch.model.unet import UNet
from unet_batch.training import planar


def gradients(model: nn.Module, pictures: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(pictures).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("network", [UNet(3, 1, (8, 64)), EncoderUNet(3, 2)])
def test_they_are_those_of_channels_last(network: nn.Module) -> None:
    torch.manual_seed(1)
    before = network.train().to(memory_format=torch.channels_last)
    after = copy.deepcopy(before)
    planar.with_planar_gradients(after)
    pictures = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    expected, found = gradients(before, pictures), gradients(after, pictures)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-5 * value.abs().max().item()), name
    assert before.state_dict().keys() == after.state_dict().keys()


def test_narrow_convolutions_alone_are_changed() -> None:
    model = UNet(3, 1, (8, 64))
    planar.with_planar_gradients(model)
    changed = {
        module.out_channels
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d
    }
    assert changed == {8}
    assert type(model.head) is nn.Conv2d


def test_without_gradients_and_in_bfloat16_they_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = UNet(3, 1, (8, 16))
    planar.with_planar_gradients(model)
    calls: list[None] = []
    apply = planar._Convolution.apply
    monkeypatch.setattr(planar._Convolution, "apply", lambda *inputs: (calls.append(None), apply(*inputs))[1])
    pictures = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        model(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        model(pictures).float().mean().backward()
    assert not calls
    model(pictures).mean().backward()
    assert calls
