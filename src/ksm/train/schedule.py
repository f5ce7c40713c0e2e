"""Factors of the learning rates over the steps of a phase."""

from __future__ import annotations

import math
from collections.abc import Callable

from ksm.train.settings import Training

Factor = Callable[[int], float]
"""From a step, counted from 0, to what the learning rates are multiplied by."""


def schedule(settings: Training, steps: int, decays: bool) -> Factor:
    """Return the factor that the settings ask for.

    Args:
        steps: of the whole phase.
        decays: whether the phase's rates fall at the milestones, where there are any.
    """
    warmup = round(settings.warmup * steps)
    if settings.milestones:
        return tenths(steps, warmup, settings.milestones if decays else ())
    return cosine(steps, warmup)


def share(step: int, steps: int) -> float:
    """Return how much of a run is done at a step: 0 at the first, 1 at the last or only one."""
    return step / (steps - 1) if steps > 1 else 1.0


def tenths(steps: int, warmup: int, milestones: tuple[float, ...]) -> Factor:
    """Return a factor that rises in a line from 0 to 1 in `warmup` steps, and then falls to a tenth
    of its value at each of the shares `milestones` of all steps."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.1 ** sum(step >= round(at * steps) for at in milestones)

    return factor


def cosine(steps: int, warmup: int) -> Factor:
    """Return a factor that rises in a line from 0 to 1 in `warmup` steps, and then falls to 0 in a
    half cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
