"""The order of values in memory, while a model trains: channels last is fastest."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ksm.errors import reason_of

log = logging.getLogger("ksm")

WIDEST = 16
"""float32 numbers in the longest vector of a processor."""


def memory_format_of(model: nn.Module, shape: tuple[int, ...]) -> torch.memory_format:
    """Return the order of the inputs' values for training: channels last, in which convolutions are
    fastest, unless the network cannot take it, as where it calls `view` on a convolution's output,
    or torch cannot. A line at the log level INFO then says why.

    Args:
        shape: of one input, (channels, height, width).
    """
    device = next(model.parameters()).device
    if device.type == "cpu" and any(_overflows(each) for each in model.modules()):
        log.info("inputs are not channels last: a strided pointwise convolution has few channels")
        return torch.contiguous_format
    model.eval()
    inputs = torch.zeros(2, *shape, device=device).contiguous(memory_format=torch.channels_last)
    try:
        with ordered(model, torch.channels_last):
            model(inputs).sum().backward()
    except (
        Exception
    ) as error:  # the network's own code; if the order is not why, the first step tells
        reason = reason_of(error)
        log.info("inputs are not channels last: the network does not take them (%s)", reason)
        return torch.contiguous_format
    finally:
        model.zero_grad()
    return torch.channels_last


def _overflows(layer: nn.Module) -> bool:
    """Tell whether torch would write the weight's gradient past its end: a pointwise convolution
    with strides and fewer channels than a vector has room for (oneDNN issue 6035)."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < WIDEST
    )


@contextmanager
def ordered(model: nn.Module, memory_format: torch.memory_format) -> Generator[None]:
    """Keep the model's trained, plain convolution weights in the order of its inputs in the block.

    Outside they are in torch's usual order: the last bits of a convolution depend on the order, and
    a task must give the same in validation, from its file and in an `Engine`. Frozen weights stay
    as they are, since others share them, and masked ones are made afresh at each step.
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
