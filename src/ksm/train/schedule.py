"""Factors of the learning rates over the steps of a phase."""

from __future__ import annotations

import math
from collections.abc import Callable

Factor = Callable[[int], float]


def share(step: int, steps: int) -> float:
    """How far a run is at a step: 0 at the first, 1 at the last; 1 if there is but one."""
    return step / (steps - 1) if steps > 1 else 1.0


def tenths(steps: int, warmup: int, milestones: tuple[float, ...]) -> Factor:
    """Factor of the learning rate at a step: a line from 0 to 1 in `warmup`, then 1, and a tenth
    of what it was at each of the shares `milestones` of all steps."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.1 ** sum(step >= round(at * steps) for at in milestones)

    return factor


def cosine(steps: int, warmup: int) -> Factor:
    """Factor of the learning rate at a step: a line from 0 to 1 in `warmup`, then a half cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
