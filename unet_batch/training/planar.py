"""Gradients of narrow convolutions, on planes, where CPUs are slow with channels last.

Everything runs channels last, as oneDNN likes it, but for one of its kernels: the gradient of the weights of
a 3x3 convolution to few channels. 64 to 32 of them at 128x192, batches of 8, two cores of AVX2: 352 ms, on
planes 85, while forward takes 51 and the other gradient 50. From 64 channels on there is nothing to gain. A
step of the U-Net on EfficientNet-Lite0 at 256x384 takes 17 % less, one of `classic` 15 %
(docs/log/2026-11-28.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

_WIDEST = 48


def with_planar_gradients(model: nn.Module) -> None:
    """Let the narrow 3x3 convolutions of a model take the gradients of their weights on planes, in place.

    Names, weights and results of a forward pass stay what they are; gradients differ by rounding.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_narrow(module):
            module.__class__ = _PlanarConv2d


def _is_narrow(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (3, 3)
        and convolution.groups == 1
        and convolution.out_channels <= _WIDEST
        and convolution.bias is None
        and convolution.padding_mode == "zeros"
    )


class _PlanarConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        found: Tensor = _Convolution.apply(input, self.weight, self.stride, self.padding, self.dilation)  # type: ignore[no-untyped-call]
        return found


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        stride, padding, dilation = geometry
        return nn.functional.conv2d(x, weight, None, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry

        def gradients(of_output: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
            return torch.ops.aten.convolution_backward(
                of_output, x, weight, None, stride, padding, dilation, False, [0, 0], 1, wanted
            )

        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = gradients(gradient, x, weight, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            of_weight = gradients(
                gradient.contiguous(), x.contiguous(), weight.contiguous(), [False, True, False]
            )[1]
        return of_x, of_weight, None, None, None
