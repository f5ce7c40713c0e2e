"""The masked weights of all layers made at once, at the start of each forward pass, on a GPU.

There what takes the time of a small layer is Python, which asks for one operation after another;
for all layers together it asks three times (`ksm.fused_gpu`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ksm.methods.ksm import SoftMask
from ksm.shortcut import alone, exchanged

DEVICES = ("cuda",)
"""Kinds of devices where it is so."""


@contextmanager
def together(model: nn.Module) -> Generator[None]:
    """Let the model's masks be made so meanwhile, where they can be; else they are made as before.

    The weights of all layers are kept from the forward pass to the end of the backward pass.
    """
    masks: dict[nn.Module, tuple[SoftMask, Any]] = {}
    for layer, mask, weight in alone(model):
        if not isinstance(mask, SoftMask) or weight.device.type not in DEVICES:
            continue
        if found := mask.on_gpu(weight):
            masks[layer] = mask, found
    if len({mask.method for mask, _ in masks.values()}) != 1:
        yield
        return
    passes = _Passes(*zip(*masks.values(), strict=True))
    hooks = (
        model.register_forward_pre_hook(passes.begin),
        model.register_forward_hook(passes.end, always_call=True),
    )
    try:
        weights = {layer: partial(passes.weight, place, layer) for place, layer in enumerate(masks)}
        with exchanged(weights):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Passes:
    """The weights of the forward pass that is under way.

    Args:
        masks: of one method.
        layers: what their weights are made of, see `ksm.fused_gpu.Layer`.
    """

    def __init__(self, masks: Sequence[SoftMask], layers: Sequence[Any]) -> None:
        self.masks = masks
        self.make = masks[0].all_on_gpu(layers)
        self.under_way = False
        self.made: Sequence[Tensor] | None = None

    def begin(self, *_: Any) -> None:
        self.under_way = not any(mask.is_rounded() for mask in self.masks)
        self.made = None

    def end(self, *_: Any) -> None:
        self.under_way, self.made = False, None

    def weight(self, place: int, layer: Any) -> Tensor:
        """Of the layer at this place; the first that asks has all of them made, where autocast
        already says in which precision."""
        if not self.under_way:
            return layer.parametrizations.weight()
        if self.made is None:
            self.made = self.make()
        return self.made[place]
