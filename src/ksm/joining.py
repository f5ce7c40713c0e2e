"""BatchNorm, an addition and a ReLU after it joined into one operation, in training on a CPU.

torch.fx goes through the network's own code once and writes down what it calls. That is then
run: the same modules, but for those operations.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from ksm._fast import fast

KNOWN = ("torch", "torchvision", "timm", "ksm")
"""Packages whose networks call the same at each step. What other code calls can depend on what it
counts or draws, and torch.fx would keep to what it saw once."""

_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_LARGEST = {nn.ReLU: math.inf, nn.ReLU6: 6.0}


def joined(model: nn.Module) -> nn.Module:
    """A network of the same modules with these operations joined, for training; the model itself
    where that cannot be: without numba, with hooks, or where torch.fx cannot follow its code."""
    if not fast("fused_norm") or not all(_is_known(each) for each in model.modules()):
        return model
    try:
        graph = _Tracer().trace(model)
    except Exception:  # the network's own code
        return model
    parts: dict[str, nn.Module] = dict(model.named_modules())
    for node in list(graph.nodes):  # one of these would stand between norm and ReLU
        if type(_part(node, parts)) is nn.Identity and _takes_one(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    called = Counter(map(id, filter(None, (_part(node, parts) for node in graph.nodes))))
    for node in list(graph.nodes):
        norm = _part(node, parts)
        if type(norm) is nn.BatchNorm2d and _takes_one(node) and called[id(norm)] == 1:
            _join(graph, node, norm, parts)
    return fx.GraphModule(parts, graph)


class Joined(nn.Module):
    """`clamp(norm(inputs) + other, 0, largest)`; without the clamp where `largest` is 0."""

    def __init__(self, norm: nn.BatchNorm2d, largest: float) -> None:
        super().__init__()
        self.norm, self.largest = norm, largest
        fused = fast("fused_norm")
        limits = (0.0, largest) if largest else (-math.inf, math.inf)
        self.fused = fused.Normalized(norm, *limits) if fused and fused.can(norm) else None

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        if self.fused and self.norm.training and self.fused.fits(inputs, other):
            return self.fused(inputs, other)
        made = self.norm(inputs)
        if other is not None:
            made = made + other
        if self.largest == math.inf:
            return functional.relu(made)
        return functional.hardtanh(made, 0.0, self.largest) if self.largest else made


def _join(graph: fx.Graph, node: fx.Node, norm: nn.BatchNorm2d, parts: dict[str, Any]) -> None:
    """Put one call in place of the norm's, and of the addition and the ReLU that are the only ones
    to use what it gives; of an addition if a ReLU follows.

    It is where the last of them was, so it is not done where what it takes is changed in place.
    """
    chain, inputs = [node], [node.args[0]]
    user = _only_user(node)
    if user and _calls(user, _ADDITIONS) and len(user.args) == 2 and not user.kwargs:
        other = user.args[1] if user.args[0] is node else user.args[0]
        if (
            isinstance(other, fx.Node)
            and other is not node
            and not (_changes_first(user, parts) and user.args[0] is other)
            and _largest(_only_user(user), parts)
        ):
            chain.append(user)
            inputs.append(other)
    user = _only_user(chain[-1])
    if largest := _largest(user, parts):
        assert user
        chain.append(user)
    users = {user for each in inputs if isinstance(each, fx.Node) for user in each.users}
    if any(_changes_first(user, parts) and user.args[0] in inputs for user in users - set(chain)):
        return
    name = f"joined_{len(parts)}"
    parts[name] = Joined(norm, largest)
    with graph.inserting_before(chain[-1]):
        new = graph.call_module(name, tuple(inputs))
    chain[-1].replace_all_uses_with(new)
    for each in reversed(chain):
        graph.erase_node(each)


class _Proxy(fx.Proxy):
    """Tells `x += y` from `x = x + y`, which torch.fx does not."""

    def _note(self, function: Any, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    __iadd__ = partialmethod(_note, operator.iadd)
    __isub__ = partialmethod(_note, operator.isub)
    __imul__ = partialmethod(_note, operator.imul)
    __itruediv__ = partialmethod(_note, operator.itruediv)


class _Tracer(fx.Tracer):
    """Goes into modules that only call others, and gives up where there is more to see."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = any(True for each in (m.parameters(False), m.buffers(False)) for _ in each)
        whole = own or is_parametrized(m) or not any(True for _ in m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            raise NotImplementedError("a constant")
        return super().create_arg(a)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind == "get_attr" or not torch.is_grad_enabled():
            raise NotImplementedError("a parameter, or a part without gradients")
        return super().create_node(kind, *args, **kwargs)


def _is_known(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    backward = module._backward_hooks or module._backward_pre_hooks
    known = type(module).__module__.partition(".")[0] in KNOWN
    return known and not hooks and not backward and "forward" not in vars(module)


def _part(node: fx.Node, parts: dict[str, Any]) -> Any:
    """The module that the node calls."""
    return parts[str(node.target)] if node.op == "call_module" else None


def _takes_one(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs


def _changes_first(node: fx.Node, parts: dict[str, Any]) -> bool:
    """Whether the node may change its first argument in place."""
    if not node.args:
        return bool(node.kwargs)
    if node.op == "call_module":
        return bool(getattr(_part(node, parts), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    in_place = name.endswith("_") or node.target in _IN_PLACE
    return in_place or bool(node.kwargs.get("inplace"))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _largest(node: fx.Node | None, parts: dict[str, Any]) -> float:
    """What a ReLU lets through at most; 0 where the node is none."""
    if node is None:
        return 0.0
    if node.op == "call_module":
        return _LARGEST.get(type(_part(node, parts)), 0.0)
    return math.inf if _calls(node, _RELUS) else 0.0
