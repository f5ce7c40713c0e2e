"""A network of the task's own from random weights: what pretraining gives, and CPG's yardstick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ksm.errors import KsmError
from ksm.methods.base import Tensors
from ksm.methods.finetune import Finetune


@dataclass(frozen=True)
class Scratch(Finetune):
    """As `Finetune`, from fresh weights: each module's own `reset_parameters`, drawn from torch's
    global generator."""

    name: ClassVar[str] = "scratch"

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        owned = list(super().attach(model, head, earlier))
        for name in owned:
            module = model.get_submodule(name)
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            elif module._parameters:
                raise KsmError(
                    f"scratch cannot draw fresh values for {', '.join(module._parameters)} of "
                    f"{name or type(module).__name__}: {type(module).__name__} has no "
                    "reset_parameters"
                )
        return owned
