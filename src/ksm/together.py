"""The masked weights of several layers made at once, when the first is asked for.

What takes the time of a small layer is Python and autograd around it; of several together they ask
once. On a GPU these are all layers, and three kernels do the work (`ksm.fused_gpu`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ksm.methods import ksm as soft_masks
from ksm.methods.ksm import SoftMask
from ksm.shortcut import alone, exchanged

ROOM = 2**20
"""Weights of the layers that go together on a CPU: going back, the gradients of the masked weights
are kept until all of them are there."""

Masks = dict[nn.Module, tuple[SoftMask, Tensor]]


@contextmanager
def together(model: nn.Module) -> Generator[None]:
    """Let the model's masks be made so meanwhile, where they can be; else they are made as before.

    They are so within a forward pass of the model. Masked weights are kept from there to the
    backward pass, as plain ones are.
    """
    masks: Masks = {
        layer: (mask, weight)
        for layer, mask, weight in alone(model)
        if isinstance(mask, SoftMask) and mask.goes_together(weight)
    }
    if len({mask.method for mask, _ in masks.values()}) != 1:
        yield
        return
    groups = [_Group(group) for group in _groups(masks)]

    def begin(*_: Any) -> None:
        exact = not any(mask.is_rounded() for mask, _ in masks.values())
        for group in groups:
            group.begin(exact)

    def end(*_: Any) -> None:
        for group in groups:
            group.begin(False)

    hooks = (
        model.register_forward_pre_hook(begin),
        model.register_forward_hook(end, always_call=True),
    )
    try:
        weights = [each for group in groups for each in group.weights.items()]
        with exchanged(dict(weights)):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _groups(masks: Masks) -> list[Masks]:
    """Layers that go together: neighbours on one device, with as many weights as there is room
    for."""
    found: list[Masks] = []
    left, device = 0.0, None
    for layer, (mask, weight) in masks.items():
        if not found or weight.numel() > left or weight.device != device:
            found.append({})
            left = math.inf if weight.device.type in soft_masks.GPUS else ROOM
            device = weight.device
        found[-1][layer] = mask, weight
        left -= weight.numel()
    return found


class _Group:
    """The weights of some layers in the forward pass that is under way."""

    def __init__(self, masks: Masks) -> None:
        self.make = soft_masks.together(*zip(*masks.values(), strict=True))
        self.weights = {layer: partial(self.weight, at, layer) for at, layer in enumerate(masks)}
        (self.device,) = {weight.device.type for _, weight in masks.values()}
        self.begin(False)

    def begin(self, under_way: bool) -> None:
        self.under_way = under_way
        self.gradients = _gradients()
        self.made: Sequence[Tensor] | None = None

    def weight(self, place: int, layer: Any) -> Tensor:
        """Of the layer at this place. The first that asks has all of them made, within the pass,
        where autocast already says in which precision.

        A layer that asks where gradients, what is saved for them or the precision are others than
        for the pass has its weight made alone.
        """
        if not self.under_way or _gradients() != self.gradients:
            return layer.parametrizations.weight()
        precision = _precision(self.device)
        if precision and type(layer).forward not in CAST:
            return layer.parametrizations.weight()
        if self.made is None:
            self.made, self.precision = self.make(), precision
        return self.made[place] if precision == self.precision else layer.parametrizations.weight()


CAST = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward)
"""Of layers that do nothing with their weight but what autocast casts it for."""


def _gradients() -> tuple[Any, ...]:
    """Whether autograd sees what is done, and what it saves: checkpointing changes that."""
    autograd: Any = torch._C
    hooks = autograd._autograd._top_saved_tensors_default_hooks(True)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks


def _precision(device: str) -> torch.dtype | None:
    """That autocast asks for, if it does."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
