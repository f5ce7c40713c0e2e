"""The soft mask of `ksm.mask` in few passes over memory, for training on any device.

As plain autograd the equations take some thirty operations a layer, and those on bool tensors are
slow on CPUs. Here `1[S >= tau]` is a float, a sum replaces `where`, and the gradient is written
out. No value is read into Python, so that a GPU does not wait.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ksm.mask import Scaling

_FAR = 3e38
"""Larger than any score: subtracted from those that are on, it leaves the largest off score."""


def fits(score: Tensor) -> bool:
    """Tell whether `soft_mask` takes the scores: float32, outside of `torch.compile`."""
    return score.dtype == torch.float32 and not torch.compiler.is_compiling()


def soft_mask(
    score: Tensor,
    *,
    beta: float,
    tau: float,
    temperature: Tensor,
    alpha: float,
    scaling: Scaling,
) -> Tensor:
    """Compute `ksm.mask.soft_mask` without noise and levels, up to the rounding of the last bits.

    The result has no second derivative.

    Args:
        score: float32, any shape.
        temperature: float32, no dimension, on the scores' device.
        beta, tau, alpha, scaling: see `ksm.mask.soft_mask`.
    """
    mask = _SoftMask.apply(score, temperature, beta, tau, alpha, scaling)
    assert isinstance(mask, Tensor)
    return mask


class _SoftMask(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        score: Tensor,
        temperature: Tensor,
        beta: float,
        tau: float,
        alpha: float,
        scaling: Scaling,
    ) -> Tensor:
        ctx.save_for_backward(score, temperature)
        ctx.settings = beta, tau, alpha, scaling
        on = torch.ge(score, tau, out=torch.empty_like(score))
        if scaling == "none" or alpha == 0:
            return on
        if scaling in ("continuous", "detached"):
            part = _soft(score, temperature, beta, tau).mul_(2 * alpha)
        else:
            if scaling == "minmax":
                counted, low = score, score.amin()
                high = torch.sub(score, on, alpha=_FAR).amax()
            else:
                counted = torch.addcmul(score, score, on, value=-1)  # the on units counted as 0
                low, high = counted.aminmax()
            span = high - low
            level = span <= 0  # then all off units have the factor alpha
            part = counted.sub(low).div_(span.masked_fill(level, 1)).add_(level).mul_(alpha)
        return part.clamp_max_(alpha).lerp_(on.new_ones(()), on)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        score, temperature = ctx.saved_tensors
        beta, tau, alpha, scaling = ctx.settings
        gradient = gradients[0]
        if scaling == "continuous":
            off = torch.lt(score, tau, out=torch.empty_like(score))
            gradient = gradient * off.mul_(2 * alpha).add_(1)
        soft = _soft(score, temperature, beta, tau)
        found = torch.ops.aten.sigmoid_backward(gradient, soft).mul_(beta / temperature)
        return found, None, None, None, None, None


def _soft(score: Tensor, temperature: Tensor, beta: float, tau: float) -> Tensor:
    return score.sub(tau).mul_(beta / temperature).sigmoid_()
