"""Weight gradients from a part of each batch, which makes a step cheaper.

A convolution's weight gradient is a third of its work, and a sum over the images of a batch. A part
of them, which is random as the batch is, gives an estimate of the same mean. Gradients of inputs,
and so of what is not a convolution's weight, stay those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_NAME = "_conv_forward"
"""What torch's Conv2d does with its inputs, its weight and its bias."""


@contextmanager
def sampled(model: nn.Module, share: float) -> Generator[None]:
    """Estimate the weight gradients of plain Conv2d layers from the first images of a batch.

    Subclasses that convolve in a way of their own are left alone, and so is what runs under
    autocast.

    Args:
        share: of the images, in (0, 1].
    """
    convolve = nn.Conv2d._conv_forward
    layers = [
        each
        for each in model.modules()
        if isinstance(each, nn.Conv2d)
        and type(each)._conv_forward is convolve
        and each.padding_mode == "zeros"
        and not isinstance(each.padding, str)
    ]
    for each in layers:
        setattr(each, _NAME, partial(_convolve, each, share))
    try:
        yield
    finally:
        for each in layers:
            delattr(each, _NAME)


def _convolve(
    layer: nn.Conv2d, share: float, inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    settings: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    apart = bias is not None and bias.requires_grad
    if not weight.requires_grad or apart or torch.is_autocast_enabled(inputs.device.type):
        return functional.conv2d(inputs, weight, bias, *settings)
    found = _Sampled.apply(inputs, weight, bias, settings, max(1, round(share * len(inputs))))
    assert isinstance(found, Tensor)
    return found


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, settings: Any, count: int
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.settings, ctx.count = settings, count
        return functional.conv2d(inputs, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        count, gradient = ctx.count, gradients[0]

        def backward(part: slice, wanted: list[bool]) -> Any:
            return torch.ops.aten.convolution_backward(
                gradient[part], inputs[part], weight, None, stride, padding, dilation,
                False, [0, 0], groups, wanted,
            )  # fmt: skip

        below = backward(slice(None), [True, False, False])[0] if ctx.needs_input_grad[0] else None
        own = backward(slice(count), [False, True, False])[1]
        return below, own.mul_(len(inputs) / count), None, None, None
