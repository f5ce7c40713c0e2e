"""Masked weights while a model trains, without what torch's parametrization takes around them.

A layer asks for its weight at each step. torch then calls two modules in turn, and the mask looks
whether it can be compiled: together half the time of a small layer's mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ksm.methods._masked import LayerMask


@contextmanager
def short(model: nn.Module) -> Generator[None]:
    """Let the layers' masks take their shortcuts meanwhile, where they have one."""
    layers: dict[Any, type[nn.Module]] = {
        layer: type(layer) for layer in model.modules() if is_parametrized(layer)
    }
    try:
        for layer, kind in layers.items():
            if shortcut := _shortcut(layer):
                vars(layer)["_shortcut"] = shortcut
                layer.__class__ = _with_shortcut(kind.__bases__[0])
        yield
    finally:
        for layer, kind in layers.items():
            layer.__class__ = kind
            vars(layer).pop("_shortcut", None)


def _shortcut(layer: Any) -> Callable[[], Tensor] | None:
    parts = layer.parametrizations
    if list(parts) != ["weight"] or len(parts.weight) > 1:
        return None
    mask = parts.weight[0]
    hooks = any(each._forward_hooks or each._forward_pre_hooks for each in (mask, parts.weight))
    return (
        mask.shortcut(parts.weight.original) if isinstance(mask, LayerMask) and not hooks else None
    )


@functools.cache
def _with_shortcut(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a kind of layer whose weight comes by a shortcut."""
    weight = property(lambda layer: layer._shortcut())
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "weight": weight})
