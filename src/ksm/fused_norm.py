"""BatchNorm in training with what follows it, as one compiled operation on a CPU; needs numba.

`ReLU(BatchNorm(x) + other)` goes through memory three times forward and five times back, where
torch's separate operations do so nine and eight times. Values are float32 in channels-last order: a
row is a position of an image, and what lies side by side in it are the channels.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ksm._threads import cfunc, in_threads, njit, pointer, taken
from ksm.again import can_be_made_again, is_made_again

PARTS = 64
"""Parts of a layer's rows at most; one is done by one thread."""
PART = 2**15
"""Values of a part at least."""
FIRST = 16
"""Rows whose mean stands for that of their part until it is known."""


class Normalized:
    """`clamp(norm(inputs) + other, low, high)` with the statistics of the inputs; those that the
    norm keeps move on. It has no second derivative.

    Args:
        norm: in training; as `can` takes it.
        low, high: the gradient is 0 where the value is not between them.
    """

    def __init__(self, norm: nn.BatchNorm2d, low: float, high: float) -> None:
        self.norm, self.low, self.high = norm, low, high

    def fits(self, inputs: Tensor, other: Tensor | None) -> bool:
        """Whether it can be called with these: plain float32 tensors of one shape on the CPU whose
        channels lie side by side."""
        return _fits(inputs) and (other is None or (_fits(other) and other.shape == inputs.shape))

    def __call__(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        norm = self.norm
        mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
        assert mean is not None and variance is not None and batches is not None
        batches.add_(1)
        layer = _Layer(0, norm.num_features, self.low, self.high, norm.eps, norm.momentum)
        layer.set(running_mean=mean, running_var=variance)
        made = _Normalized.apply(inputs, other, norm.weight, norm.bias, layer)
        assert isinstance(made, Tensor)
        return made


def can(norm: nn.BatchNorm2d) -> bool:
    """Whether there can be a `Normalized` of it: plain float32 on the CPU, with weights, and with
    running statistics that move by a share."""
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return None not in (norm.momentum, norm.num_batches_tracked) and all(
        isinstance(each, Tensor) and each.dtype == torch.float32 and each.device.type == "cpu"
        for each in tensors
    )


def _fits(values: Tensor) -> bool:
    return (
        type(values) is Tensor
        and values.dtype == torch.float32
        and values.is_cpu
        and values.dim() == 4
        and values.is_contiguous(memory_format=torch.channels_last)
        and values.numel() > values.shape[1]
    )


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, layer: _Layer
    ) -> Tensor:
        found = torch.empty(2, layer.channels)
        ctx.layer = layer
        layer.rows = inputs.numel() // layer.channels
        layer.parts = max(1, min(inputs.numel() // PART, PARTS, layer.rows))
        sums = torch.empty(layer.parts, 3, layer.channels)
        layer.set(inputs=inputs, found=found, sums=sums)
        _run(layer, _add_up, _estimate)

        def again() -> Tensor:
            made = torch.empty_like(inputs)
            layer.set(inputs=inputs, found=found, weight=weight, bias=bias, other=other, made=made)
            _run(layer, _normalize)
            return made

        made = again()
        if other is None or not is_made_again(other):  # else one would be made from the other
            sources = inputs, weight, bias, found, other
            can_be_made_again(made, again, *(each for each in sources if each is not None))
            ctx.share, seen = 1, other
        else:
            ctx.share, seen = 0, made
        ctx.save_for_backward(inputs, weight, bias, found, seen)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight, bias, found, seen = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        passed = gradient if seen is None else torch.empty_like(inputs)
        to_inputs, to_weight, to_bias = (torch.empty_like(each) for each in (inputs, weight, bias))
        layer = _Layer.from_buffer_copy(ctx.layer)
        sums = torch.empty(layer.parts, 2, layer.channels)
        layer.share = ctx.share
        layer.set(inputs=inputs, found=found, weight=weight, bias=bias, seen=seen, sums=sums)
        layer.set(gradient=gradient, passed=passed)
        layer.set(to_inputs=to_inputs, to_weight=to_weight, to_bias=to_bias)
        _run(layer, _add_up_gradients, _join_gradients, _differentiate)
        return to_inputs, None if seen is None else passed, to_weight, to_bias, None


class _Layer(ctypes.Structure):
    """What the compiled functions work on."""

    _fields_ = (
        ("next", ctypes.c_uint64),  # part to be done, where `taken` looks for it
        ("channels", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("low", "high", "eps", "momentum")),
        *((name, ctypes.c_uint64) for name in ("weight", "bias", "running_mean", "running_var")),
        *((name, ctypes.c_int64) for name in ("parts", "rows")),
        *((name, ctypes.c_uint64) for name in ("inputs", "other", "made", "seen", "found", "sums")),
        ("share", ctypes.c_double),  # 1: `seen` was added before the clamp; 0: it is what came out
        *((name, ctypes.c_uint64) for name in ("gradient", "passed")),
        *((name, ctypes.c_uint64) for name in ("to_inputs", "to_weight", "to_bias")),
    )

    def set(self, **tensors: Tensor | None) -> None:
        """Work on these, which must be there meanwhile."""
        for name, tensor in tensors.items():
            setattr(self, name, 0 if tensor is None else tensor.data_ptr())


_LAYER = np.dtype(_Layer)


def _run(layer: _Layer, *works: Any) -> None:
    """Work on all parts with all threads, but the second of several works with one."""
    threads = torch.get_num_threads() if layer.parts > 1 else 1
    for place, work in enumerate(works):
        layer.next = 0
        in_threads(work.address, ctypes.addressof(layer), 1 if place == 1 else threads)


# What follows is compiled. Its numbers are float32: a constant of another kind would widen them.

_0 = np.float32(0)

_plain = njit(error_model="numpy", fastmath={"contract"})
_compiled = cfunc("void(voidptr)", cache=True, error_model="numpy", fastmath={"contract"})


@_plain
def _first(layer: Any, part: Any) -> Any:
    """The first row of a part; of the part after the last, the number of rows."""
    return part * layer.rows // layer.parts


@_plain
def _map(address: Any, layer: Any) -> Any:
    return carray(pointer(address), (layer.rows, layer.channels), np.float32)


@_plain
def _vector(address: Any, layer: Any) -> Any:
    return carray(pointer(address), (layer.channels,), np.float32)


@_plain
def _found(layer: Any) -> Any:
    """Mean and inverse deviation."""
    found = carray(pointer(layer.found), (2, layer.channels), np.float32)
    return found[0], found[1]


@_plain
def _sums(count: Any, layer: Any) -> Any:
    return carray(pointer(layer.sums), (layer.parts, count, layer.channels), np.float32)


@_compiled
def _add_up(data: Any) -> None:
    """Of each part, the mean of its first rows; the sums of the values less that, and of the
    squares: numbers near 0, of which little is lost."""
    layer = carray(data, 1, _LAYER)[0]
    channels, x, sums = layer.channels, _map(layer.inputs, layer), _sums(3, layer)
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        row, end = _first(layer, part), _first(layer, part + 1)
        few = min(end - row, FIRST)
        for c in range(channels):
            for k in range(3):
                sums[part, k, c] = _0
        for k in range(few):
            for c in range(channels):
                sums[part, 0, c] += x[row + k, c]
        for c in range(channels):
            sums[part, 0, c] /= np.float32(few)
        while row + 4 <= end:
            for c in range(channels):
                middle = sums[part, 0, c]
                a, b = x[row, c] - middle, x[row + 1, c] - middle
                d, e = x[row + 2, c] - middle, x[row + 3, c] - middle
                sums[part, 1, c] += (a + b) + (d + e)
                sums[part, 2, c] += (a * a + b * b) + (d * d + e * e)
            row += 4
        while row < end:
            for c in range(channels):
                a = x[row, c] - sums[part, 0, c]
                sums[part, 1, c] += a
                sums[part, 2, c] += a * a
            row += 1


@_compiled
def _estimate(data: Any) -> None:
    """Mean and inverse deviation from the sums of all parts, and the running statistics.

    What the parts say of themselves is put together as by Chan, Golub and LeVeque (1979).
    """
    layer = carray(data, 1, _LAYER)[0]
    sums = _sums(3, layer)
    mean, inverse = _found(layer)
    running_mean = _vector(layer.running_mean, layer)
    running_var = _vector(layer.running_var, layer)
    momentum = np.float64(layer.momentum)
    for c in range(layer.channels):
        rows = middle = square = 0.0
        for part in range(layer.parts):
            more = np.float64(_first(layer, part + 1) - _first(layer, part))
            off = np.float64(sums[part, 1, c]) / more
            apart = np.float64(sums[part, 0, c]) + off - middle
            square += np.float64(sums[part, 2, c]) - more * off * off
            square += apart * apart * rows * more / (rows + more)
            middle += apart * more / (rows + more)
            rows += more
        variance = max(square / rows, 0.0)
        mean[c] = np.float32(middle)
        inverse[c] = np.float32(1.0 / math.sqrt(variance + np.float64(layer.eps)))
        unbiased = variance * rows / (rows - 1.0)
        running_mean[c] += np.float32(momentum * (np.float64(mean[c]) - running_mean[c]))
        running_var[c] += np.float32(momentum * (unbiased - running_var[c]))


@_compiled
def _normalize(data: Any) -> None:
    layer = carray(data, 1, _LAYER)[0]
    channels, low, high = layer.channels, np.float32(layer.low), np.float32(layer.high)
    x, made = _map(layer.inputs, layer), _map(layer.made, layer)
    mean, inverse = _found(layer)
    weight, bias = _vector(layer.weight, layer), _vector(layer.bias, layer)
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        for row in range(_first(layer, part), _first(layer, part + 1)):
            if layer.other:
                other = _map(layer.other, layer)
                for c in range(channels):
                    value = (x[row, c] - mean[c]) * (weight[c] * inverse[c]) + bias[c]
                    made[row, c] = min(max(value + other[row, c], low), high)
            else:
                for c in range(channels):
                    value = (x[row, c] - mean[c]) * (weight[c] * inverse[c]) + bias[c]
                    made[row, c] = min(max(value, low), high)


@_compiled
def _add_up_gradients(data: Any) -> None:
    """Of each part, the sums of the gradients and of their products with the values."""
    layer = carray(data, 1, _LAYER)[0]
    channels, low, high = layer.channels, np.float32(layer.low), np.float32(layer.high)
    x, gradient = _map(layer.inputs, layer), _map(layer.gradient, layer)
    mean, inverse = _found(layer)
    weight, bias = _vector(layer.weight, layer), _vector(layer.bias, layer)
    sums = _sums(2, layer)
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        for c in range(channels):
            sums[part, 0, c] = _0
            sums[part, 1, c] = _0
        for row in range(_first(layer, part), _first(layer, part + 1)):
            if layer.seen:
                seen, passed = _map(layer.seen, layer), _map(layer.passed, layer)
                share = np.float32(layer.share)
                for c in range(channels):
                    centred = x[row, c] - mean[c]
                    value = centred * (weight[c] * inverse[c]) + bias[c]
                    inside = low < share * value + seen[row, c] < high
                    g = gradient[row, c] if inside else _0
                    passed[row, c] = g
                    sums[part, 0, c] += g
                    sums[part, 1, c] += g * centred
            else:
                for c in range(channels):
                    centred = x[row, c] - mean[c]
                    inside = low < centred * (weight[c] * inverse[c]) + bias[c] < high
                    g = gradient[row, c] if inside else _0
                    sums[part, 0, c] += g
                    sums[part, 1, c] += g * centred


@_compiled
def _join_gradients(data: Any) -> None:
    """The gradients of weight and bias; the first part's sums become what `_differentiate` takes
    off: a constant, and a factor of the centred value."""
    layer = carray(data, 1, _LAYER)[0]
    sums, inverse = _sums(2, layer), _found(layer)[1]
    weight = _vector(layer.weight, layer)
    to_weight, to_bias = _vector(layer.to_weight, layer), _vector(layer.to_bias, layer)
    rows = np.float32(layer.rows)
    for c in range(layer.channels):
        total = product = 0.0
        for part in range(layer.parts):
            total += np.float64(sums[part, 0, c])
            product += np.float64(sums[part, 1, c])
        to_weight[c] = np.float32(product) * inverse[c]
        to_bias[c] = np.float32(total)
        scale = weight[c] * inverse[c] / rows
        sums[0, 0, c] = scale * to_bias[c]
        sums[0, 1, c] = scale * to_weight[c] * inverse[c]


@_compiled
def _differentiate(data: Any) -> None:
    """The gradient of the inputs."""
    layer = carray(data, 1, _LAYER)[0]
    channels, low, high = layer.channels, np.float32(layer.low), np.float32(layer.high)
    x, to_inputs = _map(layer.inputs, layer), _map(layer.to_inputs, layer)
    mean, inverse = _found(layer)
    weight, bias = _vector(layer.weight, layer), _vector(layer.bias, layer)
    passed, sums = _map(layer.passed, layer), _sums(2, layer)
    while True:
        part = np.int64(taken(data))
        if part >= layer.parts:
            return
        for row in range(_first(layer, part), _first(layer, part + 1)):
            if layer.seen:
                for c in range(channels):
                    centred = x[row, c] - mean[c]
                    g = passed[row, c] * (weight[c] * inverse[c])
                    to_inputs[row, c] = g - sums[0, 0, c] - sums[0, 1, c] * centred
            else:
                for c in range(channels):
                    centred = x[row, c] - mean[c]
                    scale = weight[c] * inverse[c]
                    inside = low < centred * scale + bias[c] < high
                    g = passed[row, c] * scale if inside else _0
                    to_inputs[row, c] = g - sums[0, 0, c] - sums[0, 1, c] * centred
