"""What a method is: how it makes a frozen clone trainable, and how it is stored and restored."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ksm.clone import find, hold
from ksm.errors import KsmError


@dataclass(frozen=True)
class Method:
    """Base of all methods; a method's fields are its settings, stored in the task file.

    Args:
        lr: learning rate of normalisation and head.
        mask_from: qualified name of the module where the task starts. Modules registered before
            it are the trunk, which no task changes. None: the task starts at the input.
    """

    name: ClassVar[str]

    lr: float = 3e-3
    mask_from: str | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name.endswith("lr") and not 0 < value < math.inf:
                raise KsmError(f"{name} {value}: expected a number greater than 0")

    def attach(self, model: nn.Module, head: str) -> Iterable[str]:
        """Make `model`, a frozen clone with a new head at `head`, trainable.

        Returns:
            Names of the modules whose tensors the task now owns, the head aside.
        """
        raise NotImplementedError

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, each with its learning rate."""
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": self.lr}]

    def pack(self, model: nn.Module) -> dict[str, Tensor]:
        """What must be stored beside the owned tensors, by name."""
        return {}

    def fold(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Write what `pack` gave into `model`, a frozen clone, as plain weights."""

    def summary(self, model: nn.Module) -> dict[str, Any]:
        """Figures on what was learned, ready for JSON; empty where there is nothing to tell."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The fields and the name, ready for JSON."""
        return {"name": self.name, **dataclasses.asdict(self)}


def trunk(model: nn.Module, mask_from: str | None) -> frozenset[str]:
    """Hold the modules registered before `mask_from` in evaluation mode, and name them.

    Raises:
        KsmError: there is no module of that name.
    """
    if mask_from is None:
        return frozenset()
    find(model, mask_from, "start of the mask (mask_from)")
    before: set[str] = set()
    for name, module in model.named_modules():
        if name == mask_from:
            break
        before.add(name)
        if name and not mask_from.startswith(f"{name}."):
            hold(module)
    return frozenset(before)


def matches(name: str, targets: str | tuple[str, ...] | None) -> bool:
    """Whether a module name is among the targets: all (None), a regex on the whole name (str), or
    suffixes of dotted names (tuple), as in PEFT's `target_modules`.

    Raises:
        KsmError: the regex is not valid.
    """
    if targets is None:
        return True
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise KsmError(f"target_modules {targets!r} is not a valid regex: {error}") from None
    return any(name == target or name.endswith(f".{target}") for target in targets)
