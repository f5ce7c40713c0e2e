"""Training compiled by torch, one graph for all tasks that are alike.

torch compiles again what is of another class or shape. Its parametrization gives every layer a
class of its own, and heads differ in their number of classes: so meanwhile layers of one kind have
one class, and the head stays outside the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ksm.errors import KsmError


@contextmanager
def compiled(
    model: nn.Module, head: nn.Module | None, backend: str = "inductor"
) -> Generator[Callable[[Tensor], Tensor]]:
    """The model as a compiled function meanwhile; the graph is kept for the next model like it.
    torch keeps eight a process, and runs what would need more without compiling it.

    Not for use within torch's cache for parametrizations, which goes by the classes that are
    replaced here.

    Args:
        head: the module of the model whose shape differs from task to task.
        backend: see `torch.compile`.

    Raises:
        KsmError: torch cannot compile it.
    """
    layers: dict[Any, type[nn.Module]] = {
        layer: type(layer) for layer in model.modules() if is_parametrized(layer)
    }
    own = {key: each for key, each in vars(head).items() if key == "forward"} if head else {}
    try:
        for layer, kind in layers.items():
            layer.__class__ = _alike(kind.__bases__[0], tuple(layer.parametrizations))
        if head:
            head.forward = torch.compiler.disable(head.forward)
        yield torch.compile(model, backend=backend)
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        inner = getattr(error, "inner_exception", error)
        reason = f"{type(inner).__name__}: {str(inner).strip()}".splitlines()[0]
        raise KsmError(f"torch cannot compile the training: {reason}") from error
    finally:
        for layer, kind in layers.items():
            layer.__class__ = kind
        if head:
            vars(head).pop("forward", None)
            vars(head).update(own)


@functools.cache
def _alike(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of all layers of a kind with parametrized tensors of these names."""

    def made(name: str) -> property:
        return property(lambda layer: layer.parametrizations[name]())

    properties = {name: made(name) for name in names}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **properties})
