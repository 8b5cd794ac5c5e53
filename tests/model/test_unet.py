from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unet_batch.model.unet import DEFAULT_WIDTHS, UNet


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_papers_size_has_31_million_parameters() -> None:
    assert count(UNet(3, 2, (64, 128, 256, 512, 1024))) == 31_037_698
    assert count(UNet(3, 1, (64, 128, 256, 512, 1024))) == 31_037_633


def test_the_default_has_a_quarter_of_that() -> None:
    assert UNet().widths == DEFAULT_WIDTHS
    assert count(UNet()) == 7_763_041


def test_layers_are_the_classic_ones() -> None:
    kinds = [type(module).__name__ for module in UNet(widths=(4, 8, 16)).modules()]
    assert kinds.count("Conv2d") == 2 * 5 + 1
    assert kinds.count("BatchNorm2d") == 2 * 5
    assert kinds.count("ConvTranspose2d") == 2


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    in_channels=st.integers(1, 4),
    classes=st.integers(1, 5),
    levels=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_output_is_as_large_as_the_input(
    height: int, width: int, in_channels: int, classes: int, levels: int
) -> None:
    model = UNet(in_channels, classes, (2, 3, 4, 5)[:levels]).eval()
    assert model(torch.zeros(2, in_channels, height, width)).shape == (2, classes, height, width)


def test_padding_repeats_the_edge() -> None:
    """A constant picture stays constant inside when it has to be padded: zeros would darken the edge."""
    torch.manual_seed(0)
    model = UNet(widths=(4, 8)).eval()
    padded = model(torch.ones(1, 3, 33, 33))
    whole = model(torch.ones(1, 3, 34, 34))
    torch.testing.assert_close(padded, whole[..., :33, :33])


def test_every_parameter_learns() -> None:
    model = UNet(widths=(4, 8, 16))
    model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("in_channels", "classes", "widths"), [(0, 1, (4,)), (3, 0, (4,)), (3, 1, ()), (3, 1, (4, 0))]
)
def test_impossible_networks_are_refused(in_channels: int, classes: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="channels must be 1 or more"):
        UNet(in_channels, classes, widths)
