"""Masked weights for training on a CPU, and the gradient of their scores, compiled; needs numba.

For each layer, forward, one pass over the scores finds the range of the off ones, and another makes
the factors and multiplies the weights by them; backward, one pass goes from the gradient of the
masked weights to that of the scores. A mask is never in memory.

Loops are over what lies side by side in memory, so that LLVM makes vectors of them: over inputs
where a unit's weights lie apart (channels last, and kernels of one weight), else over a unit.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ksm._threads import cfunc, in_threads, njit, pointer, taken
from ksm.again import all_is_kept, can_be_made_again
from ksm.layout import Layout
from ksm.mask import ON_COUNTS, Scaling, Settings

PLAIN = (Tensor, nn.Parameter)
PARTS = 64
"""Parts of a layer at most; one is done by one thread."""
PART = 2**14
"""Weights of a part at least."""


def fits(weight: Tensor, score: Tensor, cut: Layout, scaling: Scaling) -> bool:
    """Whether `masked` can take such a layer: frozen, and its units are its kernels or, where they
    lie side by side, some neighbouring ones of an output.

    It works on plain memory: neither what only looks like a tensor nor torch's tracing fits.
    """
    return (
        type(weight) in PLAIN
        and type(score) in PLAIN
        and _get_current_dispatch_mode() is None
        and scaling in ON_COUNTS
        and not cut.transposed_groups
        and weight.shape[:2].numel() == score.numel() * cut.per_unit[1]
        and weight.dtype == score.dtype == torch.float32
        and weight.device.type == score.device.type == "cpu"
        and not weight.requires_grad
        and score.is_contiguous()
        and weight.is_contiguous(memory_format=_order(weight, score))
    )


def _order(weight: Tensor, score: Tensor) -> torch.memory_format:
    """In which the weights of a unit are side by side, or those of all units are apart."""
    if weight.dim() != 4 or weight.is_contiguous() or score.shape[1] != weight.shape[1]:
        return torch.contiguous_format
    return torch.channels_last


def can_turn(weight: Tensor, score: Tensor) -> bool:
    """Whether the masked weight of a layer that `fits` can be channels last where the weight is in
    torch's order: a convolution's in two dimensions, of more than a weight a kernel, each of which
    is a unit."""
    kernels = weight.dim() == 4 and score.shape[:2] == weight.shape[:2]
    return kernels and weight.numel() > score.numel() and weight.is_contiguous()


def masked(
    weight: Tensor,
    score: Tensor,
    order: torch.memory_format = torch.preserve_format,
    **settings: Unpack[Settings],
) -> Tensor:
    """`M * W`, with `M` as from `ksm.mask.soft_mask`, up to the rounding of the last bits; it has
    no second derivative.

    Args:
        weight, score: of a layer that `fits`.
        order: see `Masked`.
    """
    (made,) = Masked([(weight, score, order)])([settings])
    return made


class Masked:
    """`masked` of some layers, as often as it is called: one operation for autograd.

    Args:
        layers: of each its weight and score, which fit at each call, and the order of the masked
            weight in memory: channels last only where it `can_turn`.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor, torch.memory_format]]) -> None:
        self.weights = [weight for weight, _, _ in layers]
        self.scores = [score for _, score, _ in layers]
        self.orders = [order for _, _, order in layers]
        self.settings: list[Settings] = []

    def __call__(self, settings: Sequence[Settings]) -> tuple[Tensor, ...]:
        """Args: settings: of each layer."""
        if settings != self.settings:
            self.settings = list(settings)
            each = zip(self.weights, self.scores, settings, self.orders, strict=True)
            self.layers = [_Layer.of(*one) for one in each]
        made: Any = _Masked.apply(self.layers, self.weights, *self.scores)
        return made


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: list[_Layer], weights: list[Tensor], *scores: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*scores, *weights)
        ctx.layers = layers
        ctx.set_materialize_grads(False)
        kept = all_is_kept()
        found: list[Tensor] = []
        for layer, score, weight in zip(layers, scores, weights, strict=True):
            made = layer.masked(score, weight)
            if not kept:
                can_be_made_again(made, partial(layer.masked, score, weight), score, weight)
            found.append(made)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        scores, weights = saved[: len(gradients)], saved[len(gradients) :]
        each = zip(ctx.layers, scores, weights, gradients, strict=True)
        return None, None, *(layer.gradient_of(*tensors) for layer, *tensors in each)


class _Layer(ctypes.Structure):
    """What the compiled functions work on."""

    _fields_ = (
        ("next", ctypes.c_uint64),  # part to be done, where `taken` looks for it
        *((name, ctypes.c_int64) for name in ("parts", "outputs", "inputs", "size")),
        *((name, ctypes.c_int64) for name in ("apart", "turned")),
        *((name, ctypes.c_uint64) for name in ("score", "weight", "gradient", "made")),
        *((name, ctypes.c_float) for name in ("tau", "slope", "alpha", "on_low", "on_high")),
        ("low", ctypes.c_int32 * PARTS),  # ranks, of each part
        ("high", ctypes.c_int32 * PARTS),
    )

    @classmethod
    def of(
        cls, weight: Tensor, score: Tensor, settings: Settings, order: torch.memory_format
    ) -> _Layer:
        outputs, inputs = score.shape[:2]
        layer = cls(outputs=outputs, inputs=inputs, size=weight.numel() // score.numel())
        layer.parts = max(1, min(weight.numel() // PART, PARTS, outputs))
        scaling = settings["scaling"]
        layer.tau, layer.slope = settings["tau"], settings["beta"] / settings["temperature"]
        layer.alpha = 0.0 if scaling == "none" else settings["alpha"]
        layer.on_low, layer.on_high = ON_COUNTS[scaling]
        layer.turned = order == torch.channels_last and can_turn(weight, score)
        return layer

    def masked(self, score: Tensor, weight: Tensor) -> Tensor:
        order = torch.channels_last if self.turned else torch.preserve_format
        made = torch.empty_like(weight, memory_format=order)
        self.run((_find, _multiply), score, weight, made, made)
        return made

    def gradient_of(self, score: Tensor, weight: Tensor, gradient: Tensor | None) -> Tensor | None:
        """Of the scores, from that of the masked weight."""
        if gradient is None:
            return None
        order = torch.contiguous_format if self.turned else _order(weight, score)
        weight = weight.contiguous(memory_format=order)
        gradient = gradient.contiguous(memory_format=torch.channels_last if self.turned else order)
        score = score.contiguous()
        made = torch.empty_like(score)
        self.run((_differentiate,), score, weight, gradient, made)
        return made

    def run(
        self,
        works: tuple[Any, ...],
        score: Tensor,
        weight: Tensor,
        gradient: Tensor,
        made: Tensor,
    ) -> None:
        self.score, self.weight = score.data_ptr(), weight.data_ptr()
        self.gradient, self.made = gradient.data_ptr(), made.data_ptr()
        self.apart = self.size == 1 or not weight.is_contiguous()
        threads = torch.get_num_threads() if self.parts > 1 else 1  # OpenMP ends those left out
        for work in works:
            self.next = 0
            in_threads(work.address, ctypes.addressof(self), threads)


_LAYER = np.dtype(_Layer)


# What follows is compiled. Its numbers are float32: a constant of another kind would widen them.

_0, _1 = np.float32(0), np.float32(1)
_INFINITE = np.float32(math.inf)
_SMALLEST = np.float32(-87)
"""Near the least x for which e^x is a normal float32."""
_LOG2_E = np.float32(1 / math.log(2))
_ROUNDING = np.float32(1.5 * 2**23)
"""Added to a small number it leaves no room for a fraction: the last bits are a whole number."""
_LN2, _LN2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""The logarithm of 2 in two numbers; the first has few bits, so that its multiples are exact."""
_EXP = tuple(
    np.float32(each)
    for each in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1, 0.5)
)
"""Of the polynomial for `(e^x - 1 - x) / x^2` near 0, from Cephes' expf."""

_plain = njit(error_model="numpy", fastmath={"contract"})
_compiled = cfunc("void(voidptr)", cache=True, error_model="numpy", fastmath={"contract"})


@_plain
def _rows(layer: Any, part: Any) -> Any:
    """The outputs of a part."""
    first = part * layer.outputs // layer.parts
    return range(first, (part + 1) * layer.outputs // layer.parts)


@_plain
def _shape(layer: Any) -> Any:
    """Of the weights as they lie in memory."""
    if layer.apart:
        return layer.outputs, layer.size, layer.inputs
    return layer.outputs, layer.inputs, layer.size


@_plain
def _turned_shape(layer: Any) -> Any:
    """Of the masked weights and their gradients, where the weights lie in another order."""
    return layer.outputs, layer.size, layer.inputs


@_plain
def _rank(score: Any) -> Any:
    """An int32 in place of a number, in the same order: LLVM makes vectors of comparing those. What
    is no number is beyond all others."""
    bits = np.float32(score).view(np.int32)
    return np.int32(bits if bits >= 0 else bits ^ np.int32(2**31 - 1))


@_plain
def _ranked(rank: Any) -> Any:
    """Inverse of `_rank`."""
    return np.int32(rank if rank >= 0 else rank ^ np.int32(2**31 - 1)).view(np.float32)


@_compiled
def _find(data: Any) -> None:
    """The range of the off scores of each part."""
    layer = carray(data, 1, _LAYER)[0]
    scores = carray(pointer(layer.score), (layer.outputs, layer.inputs), np.float32)
    tau, on_low, on_high = layer.tau, layer.on_low, layer.on_high
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        low, high = _rank(_INFINITE), _rank(-_INFINITE)
        for o in _rows(layer, part):
            for i in range(layer.inputs):
                score = scores[o, i]
                on = score >= tau
                low = min(low, _rank(on_low if on else score))
                high = max(high, _rank(on_high if on else score))
        layer.low[part], layer.high[part] = low, high


@_plain
def _factor(score: Any, tau: Any, low: Any, span: Any, alpha: Any, least: Any) -> Any:
    return _1 if score >= tau else alpha * ((score - low) / span) + least


@_compiled
def _multiply(data: Any) -> None:
    """The weights by their factors."""
    layer = carray(data, 1, _LAYER)[0]
    scores = carray(pointer(layer.score), (layer.outputs, layer.inputs), np.float32)
    weights = carray(pointer(layer.weight), _shape(layer), np.float32)
    made = carray(pointer(layer.made), _shape(layer), np.float32)
    turned = carray(pointer(layer.made), _turned_shape(layer), np.float32)
    tau, alpha = layer.tau, layer.alpha
    lowest, highest = layer.low[0], layer.high[0]
    for part in range(1, layer.parts):
        lowest, highest = min(lowest, layer.low[part]), max(highest, layer.high[part])
    low, least = _ranked(lowest), _0
    span = _ranked(highest) - low
    if not span > 0:  # every off unit that has a number has the factor alpha
        low, span, least = _0, _INFINITE, alpha
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        for o in _rows(layer, part):
            if layer.turned:
                for i in range(layer.inputs):
                    factor = _factor(scores[o, i], tau, low, span, alpha, least)
                    for k in range(layer.size):
                        turned[o, k, i] = weights[o, i, k] * factor
            elif layer.apart:
                last = layer.size - 1
                for i in range(layer.inputs):
                    made[o, last, i] = _factor(scores[o, i], tau, low, span, alpha, least)
                for k in range(last):
                    for i in range(layer.inputs):
                        made[o, k, i] = weights[o, k, i] * made[o, last, i]
                for i in range(layer.inputs):
                    made[o, last, i] *= weights[o, last, i]
            else:
                for i in range(layer.inputs):
                    factor = _factor(scores[o, i], tau, low, span, alpha, least)
                    for k in range(layer.size):
                        made[o, i, k] = weights[o, i, k] * factor


@_plain
def _uncertainty(logit: Any) -> Any:
    """`p (1 - p)` with `p = sigmoid(logit)`, by `e^-|logit|`, which is 2^n e^r with a small r."""
    negative = max(-abs(logit), _SMALLEST)
    rounded = negative * _LOG2_E + _ROUNDING
    n = rounded - _ROUNDING
    r = negative - n * _LN2 - n * _LN2_REST
    found = _EXP[0]
    for k in range(1, 6):
        found = found * r + _EXP[k]
    exponent = (np.float32(rounded).view(np.int32) + np.int32(127)) << np.int32(23)
    power = (found * r * r + r + _1) * np.int32(exponent).view(np.float32)
    return power / ((_1 + power) * (_1 + power))


@_compiled
def _differentiate(data: Any) -> None:
    """The gradient of the scores from that of the masked weights."""
    layer = carray(data, 1, _LAYER)[0]
    scores = carray(pointer(layer.score), (layer.outputs, layer.inputs), np.float32)
    made = carray(pointer(layer.made), (layer.outputs, layer.inputs), np.float32)
    weights = carray(pointer(layer.weight), _shape(layer), np.float32)
    gradients = carray(pointer(layer.gradient), _shape(layer), np.float32)
    turned = carray(pointer(layer.gradient), _turned_shape(layer), np.float32)
    tau, slope = layer.tau, layer.slope
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        for o in _rows(layer, part):
            if layer.turned:
                for i in range(layer.inputs):
                    total = _0
                    for k in range(layer.size):
                        total += turned[o, k, i] * weights[o, i, k]
                    made[o, i] = total
            elif layer.apart:
                for i in range(layer.inputs):
                    made[o, i] = gradients[o, 0, i] * weights[o, 0, i]
                for k in range(1, layer.size):
                    for i in range(layer.inputs):
                        made[o, i] += gradients[o, k, i] * weights[o, k, i]
            else:
                for i in range(layer.inputs):
                    total = _0
                    for k in range(layer.size):
                        total += gradients[o, i, k] * weights[o, i, k]
                    made[o, i] = total
            for i in range(layer.inputs):
                made[o, i] *= slope * _uncertainty(slope * (scores[o, i] - tau))
