"""Metrics of continual learning: average accuracy, forgetting, transfer.

Everything starts from the accuracy matrix `R`, shape (T, T): `R[i, j]` is the test accuracy of task
`j` after task `i` was learned, in [0, 1]; nan where it was not measured (`j > i`: a task has no
head before it is learned).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from ksm.errors import KsmError

Matrix = NDArray[np.float64]


def average_accuracy(matrix: Matrix) -> float:
    """Return the mean of the last row: all tasks after the last one was learned (`ACC` of
    Lopez-Paz and Ranzato, arXiv 1706.08840)."""
    return float(_checked(matrix)[-1].mean())


def forgetting(matrix: Matrix) -> float:
    """Return how far tasks fell from their best, `mean_j (max_{i<T} R[i, j] - R[T, j])` over all
    tasks but the last (Chaudhry et al., arXiv 1801.10112); 0 for a single task."""
    r = _checked(matrix)
    if len(r) == 1:
        return 0.0
    return float(mean(np.nanmax(r[j:-1, j]) - r[-1, j] for j in range(len(r) - 1)))


def backward_transfer(matrix: Matrix) -> float:
    """Return what later tasks did to earlier ones, `mean_j (R[T, j] - R[j, j])` over all tasks but
    the last (arXiv 1706.08840); 0 for a single task."""
    r = _checked(matrix)
    if len(r) == 1:
        return 0.0
    return float(mean(r[-1, j] - r[j, j] for j in range(len(r) - 1)))


def forward_transfer(matrix: Matrix, alone: Sequence[float]) -> float:
    """Return what earlier tasks did for later ones, `mean_j (R[j, j] - alone[j])` over all tasks
    but the first; 0 for a single task.

    Lopez-Paz and Ranzato take the accuracy before a task is learned, but a task with a head of its
    own has none before. This is the negative of the intransigence of Chaudhry et al.

    Args:
        alone: accuracy of each task learned without the others, by the reference method, in
            [0, 1].

    Raises:
        KsmError: not one accuracy for each task.
    """
    r = _checked(matrix)
    if len(alone) != len(r):
        raise KsmError(f"{len(alone)} accuracies for {len(r)} tasks: expected one a task")
    if len(r) == 1:
        return 0.0
    return float(mean(r[j, j] - alone[j] for j in range(1, len(r))))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and half the width of its confidence interval, by Student's t.

    The half width is nan for one value.

    Raises:
        KsmError: there is no value, or scipy is not installed.
    """
    if not values:
        raise KsmError("no value to average")
    if len(values) == 1:
        return values[0], math.nan
    try:
        from scipy.special import stdtrit  # scipy.stats has it too, and takes seconds to import
    except ImportError:
        raise KsmError("confidence intervals need scipy: pip install 'ksm[compare]'") from None
    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    return mean(values), quantile * stdev(values) / math.sqrt(len(values))


def paired(
    first: dict[tuple[str, int], float], second: dict[tuple[str, int], float]
) -> list[float]:
    """Return the difference `first - second` for each seed that both have, the mean over tasks.

    Args:
        first, second: accuracies by task and seed.
    """
    both = sorted(first.keys() & second.keys(), key=lambda key: (key[1], key[0]))
    seeds = dict.fromkeys(seed for _, seed in both)
    return [mean(first[k] - second[k] for k in both if k[1] == seed) for seed in seeds]


def _checked(matrix: Matrix) -> Matrix:
    r = np.asarray(matrix, np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not len(r):
        raise KsmError(f"an accuracy matrix has shape {r.shape}: expected (tasks, tasks)")
    if np.isnan(r[np.tril_indices(len(r))]).any():
        raise KsmError("the accuracy matrix has no value for a task that was learned")
    return r
