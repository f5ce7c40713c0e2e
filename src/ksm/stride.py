"""Where a network has become coarse: from which module on its maps have 1/N of the image's side."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ksm.errors import KsmError
from ksm.layout import can_mask


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
    16. One black image through the model tells, which is then in evaluation mode.

    Args:
        head: qualified name of the head, which no such module holds.
        size: image side in pixels.

    Returns:
        None where no module does so: the stride is 1, the network stays finer or is coarser from
        its first layer on (a ViT), gives something else than maps (n, channels, height, width), or
        does not take images of that size.
    """
    if stride == 1:
        return None
    most = math.ceil(size / stride)
    calls: list[tuple[str, int]] = []
    sides: dict[str, int] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: calls.append((name, _side(inputs[0]) if inputs else 0))

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: sides.update({name: _side(output)})

    with ExitStack() as stack:
        for name, module in model.named_modules():
            holds_head = not name or f"{head}.".startswith(f"{name}.")
            if not holds_head and any(can_mask(each) for each in module.modules()):
                stack.enter_context(module.register_forward_pre_hook(before(name)))
                stack.enter_context(module.register_forward_hook(after(name)))
        where = next(model.parameters()).device
        model.eval()
        try:
            with torch.no_grad():
                model(torch.zeros(1, 3, size, size, device=where))
        except Exception:  # the network's own code
            return None
    times = Counter(name for name, _ in calls)
    for name, side in calls:
        if times[name] == 1 and side <= 2 * most and most / 2 < sides[name] <= most:
            return name
    return None


def _side(value: object) -> int:
    """The longer side of a map; 0 for what is none."""
    return max(value.shape[2:]) if isinstance(value, Tensor) and value.dim() == 4 else 0
