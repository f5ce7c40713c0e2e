"""The order of values in memory in which convolutions are fastest, while a model trains."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

WIDEST = 16
"""float32 numbers in the longest vector of a processor."""


def memory_format_of(model: nn.Module, shape: tuple[int, ...]) -> torch.memory_format:
    """The order of the input's values: channels last, in which convolutions are fastest, unless the
    network cannot take it, as where it calls `view` on what a convolution gives, or torch cannot.
    """
    device = next(model.parameters()).device
    if device.type == "cpu" and any(_overflows(each) for each in model.modules()):
        return torch.contiguous_format
    model.eval()
    inputs = torch.zeros(2, *shape, device=device).contiguous(memory_format=torch.channels_last)
    try:
        with ordered(model, torch.channels_last):
            model(inputs).sum().backward()
    except Exception:  # the network's own code; if the order is not why, the first step tells
        return torch.contiguous_format
    finally:
        model.zero_grad()
    return torch.channels_last


def _overflows(layer: nn.Module) -> bool:
    """Whether its weight's gradient would be written past its end: with strides, a few channels in
    and one weight a kernel (oneDNN issue 6035; fewer channels than a vector has room for)."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < WIDEST
    )


@contextmanager
def ordered(model: nn.Module, memory_format: torch.memory_format) -> Generator[None]:
    """Keep the model's trained convolution weights in the order of its inputs, while it trains.

    Elsewhere they are in torch's usual order, since the last bits of what a convolution gives
    depend on it, and a task shall give in training, from its file, and in an `Engine` the same.
    Frozen weights stay as they are: others share them.
    """
    if memory_format == torch.contiguous_format:
        yield
        return
    tensors = [
        each
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d) and not is_parametrized(layer)
        for each in layer.parameters()
        if each.dim() == 4 and each.requires_grad
    ]
    try:
        for each in tensors:
            each.data = each.data.contiguous(memory_format=memory_format)
        yield
    finally:
        for each in tensors:
            each.data = each.data.contiguous()
