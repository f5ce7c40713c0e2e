"""CPG: pick earlier weights, train free ones beside them, compact these, grow if needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ksm.core.clone import own, own_norms
from ksm.core.widen import size_of
from ksm.errors import KsmError
from ksm.methods._layers import hold_trunk, others
from ksm.methods._owned import Full, OwnedWeight, Owning, own_weights, owned_weights
from ksm.methods.base import Course, Grow, Phase, Tensors

LADDER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Sparsities of the task's own weights that compacting goes through."""


@dataclass(frozen=True)
class CPG(Owning):
    """Compacting, picking and growing (arXiv 1910.06562).

    The first task frees the `base` smallest weights of each of the backbone's layers. Each task
    learns a binary mask over all earlier weights and trains the free ones with it; where `goal` is
    missed, the network is widened and the task starts again, up to `max_size`. Then its own
    weights are pruned step by step, as far as the goal allows, and what is left is retrained.
    Normalisation, biases, head and pick mask belong to the task. `CPG.released()` has the
    published settings for pretrained networks.

    Args:
        score_lr, start, tau: of the pick mask, as in Piggyback.
        goal: validation accuracy to meet, in [0, 1], such as a network of the task's own reaches.
        tolerance: where the largest network allowed misses the goal, or there is none (0), the
            accuracy after compacting may be so much below what picking reached. At 0 the noise of
            a validation split decides whether anything is compacted.
        compact_lr: share of the learning rates that compacting and retraining have. At full rates
            Adam undoes more in a short stage than it mends.
        max_size: how far the network may grow, in its own size; it does so by 0.5 each time.
        weight_lr, optimizer, nesterov, weight_decay, base, target_modules: see `Owning`.
    """

    name: ClassVar[str] = "cpg"
    published: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3, "weight_lr": 1e-3, "score_lr": 1e-4, "weight_decay": 4e-5, "optimizer": "sgd",
        "compact_lr": 1.0,
    }  # fmt: skip
    published_training: ClassVar[Mapping[str, Any]] = {
        "epochs": 330, "warmup": 0.0, "precise_bn": 0, "milestones": (0.5, 0.8)
    }  # fmt: skip

    nesterov: bool = True
    score_lr: float = 1e-3
    start: float = 1e-2
    tau: float = 5e-3
    goal: float = 0.0
    tolerance: float = 0.02
    compact_lr: float = 0.1
    max_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("start", "tau"):
            if not math.isfinite(getattr(self, key)):
                raise KsmError(f"{key} {getattr(self, key)}: expected a finite number")
        if not 0 <= self.goal <= 1:
            raise KsmError(f"goal {self.goal}: expected an accuracy from 0 to 1")
        if not 0 <= self.tolerance <= 1:
            raise KsmError(f"tolerance {self.tolerance}: expected a share of accuracy from 0 to 1")
        if not 1 <= self.max_size <= 16:
            raise KsmError(f"max_size {self.max_size}: expected 1 to 16")

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        outside = hold_trunk(model, self.mask_from) | {head}
        owned = list(own_norms(model, outside))
        layers = self.layers(model, head)
        try:
            own_weights(model, layers, earlier, self.base, self.start, self.tau)
        except Full:
            self._grow(model)
            raise
        for name, module in layers.items():
            if isinstance(module.bias, Tensor):
                own(module)  # its bias: the weight is parametrized by now
                owned.append(name)
        return owned

    def groups(self, model: nn.Module, head: str) -> list[dict[str, Any]]:
        layers = [layer for _, layer in owned_weights(model)]
        weights = [layer.value for layer in layers]
        scores = [layer.score for layer in layers if layer.score is not None]
        decay = {"weight_decay": self.weight_decay}
        return [
            {"params": others(model, [*weights, *scores]), "lr": self.lr, **self.options},
            {"params": weights, "lr": self.weight_lr, **self.options, **decay},
            {"params": scores, "lr": self.score_lr},
        ]

    def phases(self, model: nn.Module, head: str, epochs: int) -> Course:
        pick, stages, retrain = budget(epochs)
        kept = yield Phase("pick", pick, self.groups(model, head), keeps=False)
        if kept.score < self.goal:
            self._grow(model)
        met = 0 < self.goal <= kept.score
        goal = self.goal if met else kept.score - self.tolerance
        weights = [layer for _, layer in owned_weights(model)]
        slower = [
            {**group, "lr": self.compact_lr * group["lr"]} for group in self.groups(model, head)
        ]
        before, compacted = 0.0, False
        for sparsity, length in stages:
            prune = _Gradual(weights, before, sparsity)
            try:
                found = yield Phase(
                    f"compact to {sparsity:g}",
                    length,
                    slower,
                    keeps=False,
                    last=True,
                    decays=False,
                    before_step=prune.to,
                    repeats=False,
                )
            except KeyboardInterrupt:
                return kept
            if found.score < goal:
                break
            kept, before, compacted = found, sparsity, True
        if not compacted:
            return kept
        try:
            found = yield Phase(
                "retrain",
                retrain,
                slower,
                keeps=False,
                decays=False,
                start=kept.state,
            )
        except KeyboardInterrupt:
            return kept
        return max(found, kept, key=lambda outcome: outcome.score)

    def _grow(self, model: nn.Module) -> None:
        if (size := size_of(model) + 0.5) <= self.max_size:
            raise Grow(size)


class _Gradual:
    """Prunes a task's weights from one sparsity to another, in ten steps."""

    def __init__(self, layers: list[OwnedWeight], start: float, end: float) -> None:
        self.layers = layers
        self.start = start
        self.end = end
        self.tenths = 0

    def to(self, share: float) -> None:
        """Prune as far as is due when `share` of the stage is done."""
        if (tenths := math.ceil(10 * share - 1e-9)) != self.tenths:
            self.tenths = tenths
            for layer in self.layers:
                layer.prune(cubic(self.start, self.end, tenths / 10))


def cubic(start: float, end: float, progress: float) -> float:
    """Return the sparsity of gradual pruning, `s_f + (s_0 - s_f) (1 - p)^3` (Zhu and Gupta, arXiv
    1710.01878)."""
    return end + (start - end) * (1 - progress) ** 3


def budget(epochs: int) -> tuple[int, list[tuple[float, int]], int]:
    """Return the epochs of picking, of each compacting stage with its sparsity, and of retraining.

    The published 100, ten times 20, and 30 in proportion, each at least 1. With fewer epochs than
    sparsities some of these are left out, evenly, the last one never.

    Raises:
        KsmError: fewer than 3 epochs.
    """
    if epochs < 3:
        raise KsmError(f"epochs is {epochs}: cpg picks, compacts and retrains, expected at least 3")
    whole = 100 + 200 + 30
    pick = max(1, round(epochs * 100 / whole))
    retrain = max(1, round(epochs * 30 / whole))
    left = epochs - pick - retrain
    count = min(len(LADDER), left)
    chosen = [LADDER[round((i + 1) * len(LADDER) / count) - 1] for i in range(count)]
    lengths = [left // count + (i < left % count) for i in range(count)]
    return pick, list(zip(chosen, lengths, strict=True)), retrain
