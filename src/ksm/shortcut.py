"""Masked weights while a model trains, without what torch's parametrization takes around them.

A layer asks for its weight at each step. torch then calls two modules in turn, and the mask looks
whether it can be compiled: together half the time of a small layer's mask on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ksm.methods._masked import LayerMask


@contextmanager
def short(model: nn.Module) -> Generator[None]:
    """Let the layers' masks take their shortcuts meanwhile, where they have one."""
    found = {layer: mask.shortcut(weight) for layer, mask, weight in alone(model)}
    with exchanged({layer: shortcut for layer, shortcut in found.items() if shortcut}):
        yield


def alone(model: nn.Module) -> Iterator[tuple[nn.Module, LayerMask, Tensor]]:
    """The layers with a mask and nothing else between their weight and the frozen one; the mask,
    and the frozen weight."""
    for layer in model.modules():
        if not is_parametrized(layer):
            continue
        parts: Any = layer.parametrizations
        if list(parts) != ["weight"] or len(parts.weight) > 1:
            continue
        mask = parts.weight[0]
        hooks = any(each._forward_hooks or each._forward_pre_hooks for each in (mask, parts.weight))
        if isinstance(mask, LayerMask) and not hooks:
            yield layer, mask, parts.weight.original


@contextmanager
def exchanged(weights: Mapping[nn.Module, Callable[[], Tensor]]) -> Generator[None]:
    """Let parametrized layers have these weights meanwhile, asked for at each use."""
    kinds = {layer: type(layer) for layer in weights}
    before = {layer: vars(layer).get("_weight") for layer in weights}
    try:
        for layer, weight in weights.items():
            vars(layer)["_weight"] = weight
            layer.__class__ = _with_weight(kinds[layer].__bases__[0])
        yield
    finally:
        for layer, kind in kinds.items():
            layer.__class__ = kind
            vars(layer)["_weight"] = before[layer]
            if not before[layer]:
                del vars(layer)["_weight"]


@functools.cache
def _with_weight(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a kind of layer whose weight is asked for."""
    weight = property(lambda layer: layer._weight())
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "weight": weight})
