"""The masked weights of several layers made at once, when a forward pass asks for the first.

On a GPU small layers cost Python and kernel launches; a group costs them once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ksm.core.units import Units

CASTING = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward)
"""Forwards that use the weight in one operation alone, for which autocast casts it."""


@dataclass(eq=False)
class Member:
    """A layer whose masked weight can be made with those of others.

    Args:
        layer: that asks for the weight.
        weight: frozen, float32, of the shape `units.weight`.
        score: float32, of the shape `units.units`.
        temperature: float32, no dimension.
        units: how the weight is cut.
        exact: tells whether the mask is not rounded now.
        group: the group that the member is in; None: it is in none.
    """

    layer: nn.Module
    weight: Tensor
    score: Tensor
    temperature: Tensor
    units: Units
    exact: Callable[[], bool]
    group: Group | None = None

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Units]:
        """Weight, score, temperature and units."""
        return self.weight, self.score, self.temperature, self.units

    def made(self) -> Tensor | None:
        """Return the masked weight, made with the group's; None where it must be made alone."""
        return self.group.weight(self) if self.group else None


class Group:
    """The masked weights of some layers in the forward pass that is under way.

    Args:
        members: on one device.
        make: makes all masked weights, in their order, as one operation for autograd.
    """

    def __init__(self, members: Sequence[Member], make: Callable[[], Sequence[Tensor]]) -> None:
        self.members = members
        self.make = make
        self.places = {member: place for place, member in enumerate(members)}
        self.device = members[0].weight.device.type
        self.begin(False)

    def begin(self, under_way: bool) -> None:
        """Forget the weights of the last pass, at the begin of a pass and at its end."""
        self.under_way = under_way and all(member.exact() for member in self.members)
        self.gradients = _gradients()
        self.made: Sequence[Tensor] | None = None

    def weight(self, member: Member) -> Tensor | None:
        """Return a member's masked weight, or None where it must be made alone.

        The first call of a pass makes the weights of all members: only within the pass does
        autocast say in which precision. A part of the network that runs without gradients, under
        checkpointing or in another precision than the pass has its weights made alone.
        """
        if not self.under_way or _gradients() != self.gradients:
            return None
        precision = _precision(self.device)
        if precision and type(member.layer).forward not in CASTING:
            return None
        if self.made is None:
            self.made, self.precision = self.make(), precision
        return self.made[self.places[member]] if precision == self.precision else None


@contextmanager
def hooked(model: nn.Module, group: Group) -> Generator[None]:
    """Let members take their weights from the group in the model's forward passes in the block."""

    def begin(*_: Any) -> None:
        group.begin(True)

    def end(*_: Any) -> None:
        group.begin(False)

    hooks = (
        model.register_forward_pre_hook(begin),
        model.register_forward_hook(end, always_call=True),
    )
    for member in group.members:
        member.group = group
    try:
        yield
    finally:
        for member in group.members:
            member.group = None
        for hook in hooks:
            hook.remove()


def _gradients() -> tuple[Any, ...]:
    """Return whether autograd records operations, and its hooks on what it saves, which
    checkpointing sets."""
    autograd: Any = torch._C
    hooks = autograd._autograd._top_saved_tensors_default_hooks(True)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks


def _precision(device: str) -> torch.dtype | None:
    """Return the precision that autocast asks for; None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
