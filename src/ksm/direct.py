"""The soft mask of `ksm.mask` in few passes over memory, for training on a CPU.

Written as plain autograd, the equations take some thirty operations a layer, and those on truth
values are not vectorised on CPUs: on a ResNet-50 they took longer than its weight gradients. Here
`1[S >= tau]` is a float, the larger of two numbers takes the place of a choice, and the gradient is
written out: twelve operations, of which none is slow. It reads two numbers a layer into Python,
which would make another device wait.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ksm.mask import Scaling, Settings

_FAR = 3e38
"""More than any score: what is taken from those that are on, to find the largest of the others."""
_NARROW = 1e-30
"""A range by which a score can be divided without leaving float32."""


def soft_mask(score: Tensor, **settings: Unpack[Settings]) -> Tensor:
    """As `ksm.mask.soft_mask`, without noise and levels, up to the rounding of the last bits; it
    has no second derivative.

    Args:
        score: float32, any shape.
    """
    s = settings
    mask = _SoftMask.apply(score, s["beta"], s["tau"], s["temperature"], s["alpha"], s["scaling"])
    assert isinstance(mask, Tensor)
    return mask


class _SoftMask(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        score: Tensor,
        beta: float,
        tau: float,
        temperature: float,
        alpha: float,
        scaling: Scaling,
    ) -> Tensor:
        ctx.save_for_backward(score)
        ctx.settings = beta, tau, temperature, alpha, scaling
        on = torch.ge(score, tau, out=torch.empty_like(score))
        if scaling == "none" or alpha == 0:
            return on
        if scaling in ("continuous", "detached"):
            part = _soft(score, beta, tau, temperature).mul_(2 * alpha)
        else:
            if scaling == "minmax":
                part = score
                low = score.amin().item()
                high = torch.sub(score, on, alpha=_FAR).amax().item()
            else:
                part = torch.addcmul(score, score, on, value=-1)  # the on units counted as 0
                low, high = (each.item() for each in part.aminmax())
            span = high - low
            part = torch.full_like(score, alpha) if span <= 0 else part.sub(low).div_(span / alpha)
            if span < _NARROW:
                part.clamp_max_(alpha)  # else what is on can be infinite here
        return part.lerp_(on.new_ones(()), on)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (score,) = ctx.saved_tensors
        beta, tau, temperature, alpha, scaling = ctx.settings
        gradient = gradients[0]
        if scaling == "continuous":
            off = torch.lt(score, tau, out=torch.empty_like(score))
            gradient = gradient * off.mul_(2 * alpha).add_(1)
        soft = _soft(score, beta, tau, temperature)
        found = torch.ops.aten.sigmoid_backward(gradient, soft).mul_(beta / temperature)
        return found, None, None, None, None, None


def _soft(score: Tensor, beta: float, tau: float, temperature: float) -> Tensor:
    slope = beta / temperature
    return torch.add(score.new_tensor(-tau * slope), score, alpha=slope).sigmoid_()
