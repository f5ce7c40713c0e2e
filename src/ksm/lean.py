"""Training in little memory: the blocks of a network are computed a second time, going back.

Gradient checkpointing (Chen et al., arXiv 1604.06174), by torch, of each block: what a block holds,
its masked weights too, is there only while it is worked on; between blocks one tensor is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from ksm.errors import KsmError


@contextmanager
def lean(model: nn.Module) -> Generator[None]:
    """Checkpoint the model's blocks meanwhile; what it computes stays the same.

    Raises:
        KsmError: it has no blocks.
    """
    found = list(blocks(model))
    if not found:
        raise KsmError(
            f"{type(model).__name__} has no blocks to compute twice (modules with parts, in a "
            "Sequential): train without lean"
        )
    before = [block.__dict__.get("forward") for block in found]
    for block in found:
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            context_fn=partial(_contexts, block),
            determinism_check="none",
        )
    try:
        yield
    finally:
        for block, forward in zip(found, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules in a Sequential that have parts of their own and something to train,
    and are no Sequential themselves: the residual blocks of most networks."""
    for module in model.children():
        inside = isinstance(model, nn.Sequential) and not isinstance(module, nn.Sequential)
        if inside and list(module.children()) and not parametrize.is_parametrized(module):
            if any(each.requires_grad for each in module.parameters()):
                yield module
        else:
            yield from blocks(module)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _still(block)


@contextmanager
def _still(block: nn.Module) -> Generator[None]:
    """Leave the running statistics as they are: the first time counted."""
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm)]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.momentum = 0.0
    try:
        yield
    finally:
        for each, momentum in zip(norms, momenta, strict=True):
            each.momentum = momentum
