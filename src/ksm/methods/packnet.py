"""PackNet: each task trains the weights that are still free, keeps some, and frees the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ksm.core.clone import own_norms
from ksm.errors import KsmError
from ksm.methods._layers import hold_trunk, others
from ksm.methods._masked import Norms, check_norms
from ksm.methods._owned import Owning, own_weights, owned_weights
from ksm.methods.base import Course, Phase, Tensors


@dataclass(frozen=True)
class PackNet(Owning):
    """Weights shared by pruning and retraining (arXiv 1711.05769).

    The first task frees the `base` smallest weights of each of the backbone's layers. Each task
    trains the free weights with all owned ones in use, for two thirds of the epochs; then it lets
    go of the `prune` smallest of each layer's and retrains the others at a tenth of the learning
    rate. `PackNet.released()` has the published settings; the published network was also retrained
    on ImageNet after its first pruning, for which a backbone here has no images.

    Args:
        prune: share of the weights that a task trained and then lets go, in each layer.
        norms: `frozen` as published, or `task`: each task has its own normalisation.
        weight_lr, optimizer, nesterov, weight_decay, base, target_modules: see `Owning`.
    """

    name: ClassVar[str] = "packnet"
    published: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3, "weight_lr": 1e-3, "optimizer": "sgd", "norms": "frozen"
    }  # fmt: skip
    published_training: ClassVar[Mapping[str, Any]] = {
        "epochs": 30, "warmup": 0.0, "precise_bn": 0, "milestones": (0.5,)
    }  # fmt: skip

    prune: float = 0.75
    norms: Norms = "task"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norms(self.norms)
        if not 0 <= self.prune < 1:
            raise KsmError(f"prune {self.prune}: expected at least 0 and less than 1")

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        outside = hold_trunk(model, self.mask_from) | {head}
        owned = list(own_norms(model, outside)) if self.norms == "task" else []
        own_weights(model, self.layers(model, head), earlier, self.base)
        return owned

    def groups(self, model: nn.Module, head: str) -> list[dict[str, Any]]:
        weights = [owned.value for _, owned in owned_weights(model)]
        return [
            {"params": others(model, weights), "lr": self.lr, **self.options},
            {
                "params": weights,
                "lr": self.weight_lr,
                **self.options,
                "weight_decay": self.weight_decay,
            },
        ]

    def phases(self, model: nn.Module, head: str, epochs: int) -> Course:
        if epochs < 2:
            raise KsmError(f"epochs is {epochs}: packnet trains and retrains, expected at least 2")
        train = max(1, round(epochs * 2 / 3))
        yield Phase("train", train, self.groups(model, head), keeps=False)
        for _, owned in owned_weights(model):
            owned.prune(self.prune)
        slower = [{**group, "lr": group["lr"] / 10} for group in self.groups(model, head)]
        return (yield Phase("retrain", epochs - train, slower, decays=False))
