"""Gradient checkpointing (Chen et al., arXiv 1604.06174) of each block of a network, by torch.

Between the forward and the backward pass only the blocks' inputs are kept; the activations inside
a block are computed a second time in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from ksm.core.forward import forward_of
from ksm.errors import KsmError


@contextmanager
def checkpointed(model: nn.Module) -> Generator[None]:
    """Checkpoint the model's blocks inside the `with` block; what the model computes is the same.

    Raises:
        KsmError: the model has no blocks; in a forward pass, a block changes its input in place.
    """
    found = list(dict.fromkeys(blocks(model)))
    if not found:
        raise KsmError(
            f"{type(model).__name__} has no blocks to compute twice (modules with parts, in a "
            "Sequential): train without checkpointing"
        )
    with ExitStack() as stack:
        for block in found:
            stack.enter_context(forward_of(block, partial(_twice, block, block.forward)))
        yield


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks: the modules in a Sequential that have children and something to train, and
    are no Sequential themselves, as the residual blocks of most networks.

    Of nested ones the outermost, but no stages, which hold several blocks of one class in a
    Sequential. Networks that name each block (RegNet, DLA) and plain layers (VGG) have none.
    """
    for module in model.children():
        if isinstance(model, nn.Sequential) and _is_block(module) and not _is_stage(module):
            if any(each.requires_grad for each in module.parameters()):
                yield module
        else:
            yield from blocks(module)


def _is_block(module: nn.Module) -> bool:
    parts = any(True for _ in module.children())
    return parts and not isinstance(module, nn.Sequential) and not is_parametrized(module)


def _is_stage(module: nn.Module) -> bool:
    for row in module.children():
        inside = [type(each) for each in row.children() if _is_block(each)]
        if isinstance(row, nn.Sequential) and len(inside) > len(set(inside)):
            return True
    return False


def _twice(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    before = [each._version for each in given]
    made = checkpoint(
        forward,
        *args,
        use_reentrant=False,
        context_fn=partial(_contexts, block),
        determinism_check="none",
        **kwargs,
    )
    if [each._version for each in given] != before:
        raise KsmError(
            f"the block {type(block).__name__} changes its input in place, and would do so again "
            "when it is computed twice: train without checkpointing"
        )
    return made


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _still(block)


@contextmanager
def _still(block: nn.Module) -> Generator[None]:
    """Leave running statistics as they are: the block's first pass has counted the images."""
    norms = [each for each in block.modules() if isinstance(each, _NormBase)]
    own = [dict(each._buffers) for each in norms]
    for each in norms:
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for each, buffers in zip(norms, own, strict=True):
            each._buffers.update(buffers)
