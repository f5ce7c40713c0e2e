"""Normalisation and head: the control that shows what masks add to a task's own BatchNorm."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ksm.core.clone import own_norms
from ksm.methods._layers import hold_trunk
from ksm.methods.base import Method, Tensors


@dataclass(frozen=True)
class BN(Method):
    """Trains the affine values and statistics of every normalisation, and the head."""

    name: ClassVar[str] = "bn"

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        return list(own_norms(model, hold_trunk(model, self.mask_from) | {head}))
