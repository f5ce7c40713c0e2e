"""Where a network has become coarse: from which module on its maps have 1/N of the image's side."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ksm.core.units import can_mask
from ksm.errors import KsmError


def stride_of(start: str | None) -> int | None:
    """The N of `strideN`; None for any other text.

    Raises:
        KsmError: it is 0.
    """
    found = re.fullmatch(r"stride(\d+)", start or "")
    if found is None:
        return None
    if int(found[1]) < 1:
        raise KsmError(f"mask_from {start!r}: expected stride1, for all layers, or more")
    return int(found[1])


def coarse_from(model: nn.Module, head: str, stride: int, size: int) -> str | None:
    """Qualified name of the module from which on maps have 1/stride of the image's side.

    That is the first module called, and the outermost of those that begin there, that has a layer
    to mask and turns a map at most twice as fine into one of that size: `layer3` of a ResNet for
    16. Nothing registered before it may be called after it, and at least half of the weights to
    mask must lie from it on. One black image through the model tells, which is then in evaluation
    mode and has the buffers that it had.

    Args:
        head: qualified name of the head, which no such module holds.
        size: image side in pixels.

    Returns:
        None where there is no such module: the stride is 1 or leaves less than two pixels, the
        network stays finer or is coarser from its first layer on (a ViT), gives something else
        than maps (n, channels, height, width) (a Swin), or does not take images of that size.
    """
    most = math.ceil(size / stride)
    if stride == 1 or most < 2:
        return None
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    calls: list[tuple[str, int]] = []
    sides: dict[str, int] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: calls.append((name, _side(inputs)))

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: sides.update({name: _side((output,))})

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not f"{head}.".startswith(f"{name}."):
                stack.enter_context(module.register_forward_pre_hook(before(name)))
                stack.enter_context(module.register_forward_hook(after(name)))
        try:
            _show_black(model, size)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the network's own code
            return None
    weights = _weights(model, head)
    times = Counter(name for name, _ in calls)
    last = {name: at for at, (name, _) in enumerate(calls) if _matters(model.get_submodule(name))}
    for at, (name, side) in enumerate(calls):
        inside = sum(
            count for layer, count in weights.items() if f"{layer}.".startswith(f"{name}.")
        )
        fits = side <= 2 * most and most / 2 < sides.get(name, 0) <= most
        if not inside or not fits or times[name] > 1:
            continue
        left = sum(count for layer, count in weights.items() if places[layer] >= places[name])
        frozen = any(places[each] < places[name] for each, called in last.items() if called > at)
        if 2 * left >= sum(weights.values()) and not frozen:
            return name
    return None


@torch.no_grad()
def _show_black(model: nn.Module, size: int) -> None:
    """One black image through the model; its buffers and torch's random state stay as they are."""
    one = next(model.parameters())
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.random.fork_rng(gpus):
            model(torch.zeros(1, 3, size, size, device=one.device, dtype=one.dtype))
    finally:
        for buffer, value in kept:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def _weights(model: nn.Module, head: str) -> dict[str, int]:
    """How many weights each layer has that can have a mask, by its name."""
    return {
        name: sum(tensor.numel() for tensor in module.parameters(recurse=False))
        for name, module in model.named_modules()
        if can_mask(module) and name != head
    }


def _matters(module: nn.Module) -> bool:
    """Whether it makes a difference that a module is frozen and in evaluation mode."""
    return bool(module._parameters or module._buffers) or isinstance(module, _DropoutNd)


def _side(values: tuple[Any, ...]) -> int:
    """The longer side of the first value, if that is a map; else infinite, which fits nowhere."""
    first = values[0] if values else None
    return max(first.shape[2:]) if isinstance(first, Tensor) and first.dim() == 4 else sys.maxsize
