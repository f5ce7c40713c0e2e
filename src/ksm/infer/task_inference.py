"""Which task an image belongs to, where nobody says: a number to rank tasks by, no certainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ksm.errors import KsmError

By = Literal["statistics", "entropy"]


@torch.no_grad()
def statistics(model: nn.Module, images: Tensor) -> Tensor:
    """Measure how far images are from the BatchNorm statistics of a task.

    The distance of one channel is the Kullback-Leibler divergence of two normal distributions: that
    of the image's activations, with mean m and variance v, and that of BatchNorm's running
    statistics M and V: `(v / V + (m - M)^2 / V - 1 - log(v / V)) / 2`. A distance above 10 counts
    as 10, or else one channel that is dead in an image would decide. The result is the mean over
    channels and layers.

    Args:
        model: from `Task.on`; no other thread may use the model meanwhile.
        images: shape (n, 3, h, w), float32, prepared as the task's `preprocess` says.

    Returns:
        float32, shape (n,), on the CPU; less is nearer.

    Raises:
        KsmError: the network has no BatchNorm statistics.
    """
    distances: list[Tensor] = []
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        raise KsmError(f"{type(model).__name__} has no BatchNorm whose statistics tell tasks apart")
    handles = [norm.register_forward_hook(partial(_measure, distances.append)) for norm in norms]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(distances).mean(0).cpu()


@torch.no_grad()
def entropy(model: nn.Module, images: Tensor) -> Tensor:
    """Measure the entropy of a task's probabilities, over that of a uniform guess.

    Args:
        model, images: see `statistics`.

    Returns:
        float32, shape (n,), on the CPU: 0 for a sure prediction, 1 for a uniform guess.
    """
    log = model(images).float().log_softmax(1)
    return (-(log.exp() * log).sum(1) / math.log(max(2, log.shape[1]))).cpu()


MEASURES: dict[By, Callable[[nn.Module, Tensor], Tensor]] = {
    "statistics": statistics,
    "entropy": entropy,
}
"""Measures of how well images fit a task, by name; less is better."""


def _measure(
    keep: Callable[[Tensor], None], norm: _BatchNorm, inputs: tuple[Tensor], _: Tensor
) -> None:
    flat = inputs[0].float().flatten(2) if inputs[0].dim() > 2 else inputs[0].float().unsqueeze(2)
    mean, variance = flat.mean(2), flat.var(2, correction=0)
    assert norm.running_mean is not None and norm.running_var is not None
    expected = norm.running_var.float() + norm.eps
    ratio = (variance + norm.eps) / expected
    shift = (mean - norm.running_mean.float()).square() / expected
    keep((0.5 * (ratio + shift - 1 - ratio.log())).clamp_max(10).mean(1))
