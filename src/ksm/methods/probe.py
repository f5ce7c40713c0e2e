"""Head only: a linear probe. The control that shows what the backbone's features give unchanged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ksm.methods._layers import hold_trunk
from ksm.methods.base import Method, Tensors


@dataclass(frozen=True)
class Probe(Method):
    """Trains the head; normalisation stays the backbone's, statistics too."""

    name: ClassVar[str] = "probe"

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        hold_trunk(model, self.mask_from)
        return []
