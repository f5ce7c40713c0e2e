"""Masked weights of all layers at once, and the gradients of their scores, on a GPU with Triton.

A GPU finishes the mask of a small layer before Python has launched the next operation. Here three
launches do all layers: one kernel finds the range of each layer's off scores, one makes the factors
and multiplies the weights by them, and in the backward pass one goes from the gradients of the
masked weights to those of the scores. Each program of a kernel does `PART` units of one layer, and
finds their addresses in a table. A mask is never in memory. Triton comes with torch for GPUs.
"""

# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ksm.core.units import Units
from ksm.mask import Scaling

PART = 256
"""Units that one program does."""
ALIGNED = 64
"""A layer's numbers begin at a multiple of this, which convolutions need to be fast."""
LARGEST = 16
"""Kernels in a unit at most: more are too much work for one thread."""
ON_COUNTS: dict[Scaling, tuple[float, float]] = {
    "minmax": (math.inf, -math.inf),
    "released": (0.0, 0.0),
    "none": (0.0, 0.0),
}
"""By scaling, the value that stands for a unit that is on where the smallest and where the largest
off score of a layer is sought."""
SCALINGS = tuple(ON_COUNTS)
"""Scalings that the kernels know: those without a gradient, but `detached`."""


@dataclass(frozen=True)
class Layer:
    """A layer whose masked weight is made here.

    Args:
        weight: frozen, float32, of the shape `cut.weight`.
        score: float32, of the shape `cut.units`.
        temperature: float32, no dimension.
        cut: how the weight is cut into units.
    """

    weight: Tensor
    score: Tensor
    temperature: Tensor
    cut: Units

    def fits(self) -> bool:
        """Tell whether the kernels take the layer: units of a few whole kernels, plain memory."""
        weight, score, cut = self.weight, self.score, self.cut
        tensors = weight, score, self.temperature
        last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        return (
            all(type(each) in (Tensor, nn.Parameter) for each in tensors)
            and all(each.dtype == torch.float32 for each in tensors)
            and weight.shape == cut.weight
            and math.prod(score.shape[2:]) == 1
            and math.prod(cut.per_unit) <= LARGEST
            and not cut.transposed_groups
            and not weight.requires_grad
            and score.is_contiguous()
            and (last or weight.is_contiguous())
        )

    def places(self) -> tuple[int, int, int]:
        """Return the addresses of the layer's tensors; a table holds until one changes."""
        return self.score.data_ptr(), self.weight.data_ptr(), self.temperature.data_ptr()

    def shape(self) -> tuple[int, ...]:
        """Return the layer's numbers in the table's columns from `_UNITS` on."""
        outputs, inputs, *kernel = self.cut.weight
        size = math.prod(kernel)
        steps = (size, 1) if self.weight.is_contiguous() else (1, inputs)
        per_unit = *self.cut.per_unit, size
        return (self.score.numel(), self.score.shape[1], outputs, inputs, *per_unit,
                inputs * size, *steps)  # fmt: skip


@functools.cache
def works(device: torch.device) -> bool:
    """Tell whether Triton compiles for the device, for which it needs a C compiler too."""
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones(1, 1, device=device, dtype=torch.float32)
        score = nn.Parameter(one.clone())
        layer = Layer(one, score, one[0, 0], Units((1, 1), (1, 1), (1, 1)))
        try:
            (made,) = AllMasked([layer], beta=1.0, tau=0.0, alpha=0.5, scaling="minmax")()
            made.sum().backward()
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False
        return True


class AllMasked:
    """Makes the masked weights `M * W` of layers at each call.

    `M` is that of `ksm.mask.soft_mask`, up to the rounding of the last bits; the masked weights
    have no second derivative.

    Args:
        layers: that fit (`Layer.fits`), all on one device.
        beta, tau, alpha, scaling: see `ksm.mask`; the scaling is one of `SCALINGS`.
    """

    def __init__(
        self, layers: Sequence[Layer], *, beta: float, tau: float, alpha: float, scaling: Scaling
    ) -> None:
        self.layers = layers
        self.beta, self.tau = beta, tau
        self.alpha = 0.0 if scaling == "none" else alpha
        self.on = ON_COUNTS[scaling]
        self.known: tuple[Any, ...] | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Return a tensor for each layer, of its weight's shape and order in memory, and of the
        dtype that autocast asks for, else float32."""
        made: Any = _AllMasked.apply(self, *(each.score for each in self.layers))
        return made

    def table(self) -> _Table:
        """Return the table, made afresh where a tensor has moved."""
        places = [each.places() for each in self.layers]
        if self.known is None or self.known[0] != places:
            self.known = places, _Table(self.layers)
        return self.known[1]


class _Table:
    """The layers' addresses and shapes, on their device, and the layer of each program.

    Args:
        layers: that fit, all on one device.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        device = layers[0].score.device
        self.weights = _starts([each.weight.numel() for each in layers])
        self.scores = _starts([each.score.numel() for each in layers])
        counts = [math.ceil(each.score.numel() / PART) for each in layers]
        first = [0, *accumulate(counts)]
        rows = zip(self.weights, self.scores, first, counts, strict=False)
        numbers = [
            (*layer.places(), *row, *layer.shape())
            for layer, row in zip(layers, rows, strict=False)
        ]
        self.rows = torch.tensor(numbers, dtype=torch.int64).to(device)
        layer = torch.arange(len(layers), dtype=torch.int32)
        self.layer = layer.repeat_interleave(torch.tensor(counts)).to(device)
        self.parts = first[-1]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each of the tensors begins in a flat one, and where the last ends."""
    return [0, *accumulate(math.ceil(size / ALIGNED) * ALIGNED for size in sizes)]


def _views(flat: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a flat tensor with the shapes and orders in memory of others."""
    return [
        flat.as_strided(each.shape, each.stride(), start)
        for start, each in zip(starts, like, strict=False)
    ]


class _AllMasked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, masked: AllMasked, *scores: Tensor) -> tuple[Tensor, ...]:
        table = masked.table()
        weights = [each.weight for each in masked.layers]
        ctx.masked = masked
        temperatures = [each.temperature for each in masked.layers]
        ctx.save_for_backward(*scores, *weights, *temperatures)
        ctx.set_materialize_grads(False)
        kind = scores[0].device.type
        asked = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        made = torch.empty(table.weights[-1], dtype=asked, device=scores[0].device)
        low, high = made.new_empty((2, table.parts), dtype=torch.float32)
        with _on(made.device):
            _find[(table.parts,)](table.rows, table.layer, low, high, masked.tau, *masked.on, PART)
            _multiply[(table.parts,)](
                table.rows, table.layer, low, high, made, masked.tau, masked.alpha, PART
            )
        return tuple(_views(made, table.weights, weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        masked: AllMasked = ctx.masked
        table = masked.table()
        count = len(gradients)
        scores, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count : 2 * count]
        given = [each for each in gradients if each is not None]
        if not given:
            return None, *gradients
        all_are = len(given) == len(gradients)
        new = given[0].new_empty if all_are else given[0].new_zeros
        gradient = new(table.weights[-1])
        places = _views(gradient, table.weights, weights)
        wanted = [place for place, each in zip(places, gradients, strict=True) if each is not None]
        torch._foreach_copy_(wanted, given)
        made = scores[0].new_empty(table.scores[-1])
        with _on(made.device):
            _differentiate[(table.parts,)](
                table.rows, table.layer, gradient, made, masked.tau, masked.beta, PART
            )
        found = zip(_views(made, table.scores, scores), gradients, strict=True)
        return None, *(view if each is not None else None for view, each in found)


def _on(device: torch.device) -> Any:
    """Make the tensors' GPU the current one, which Triton launches kernels on."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


_jit: Any = triton.jit

# What follows is compiled, and Triton takes no annotations. A table has a row for each layer, with
# these columns:

_SCORE, _WEIGHT, _TEMPERATURE = (tl.constexpr(at) for at in range(3))
"""Addresses."""
_MADE, _FOUND = tl.constexpr(3), tl.constexpr(4)
"""Where the layer begins in the masked weights, and in the gradients of the scores."""
_FIRST, _PARTS = tl.constexpr(5), tl.constexpr(6)
"""The layer's first program, and how many programs it has."""
_UNITS, _ACROSS = tl.constexpr(7), tl.constexpr(8)
"""The layer's units, and how many of them see one output."""
_OUTPUTS, _INPUTS = tl.constexpr(9), tl.constexpr(10)
_HIGH, _WIDE, _SIZE = (tl.constexpr(at) for at in range(11, 14))
"""Outputs and inputs in a unit, weights in a kernel."""
_BY_OUTPUT, _BY_INPUT, _BY_WEIGHT = (tl.constexpr(at) for at in range(14, 17))
"""Steps in memory from one to the next."""
_COLUMNS = tl.constexpr(17)


@_jit
def _units(table, layers, PART: tl.constexpr):
    """Return a program's row in the table, its units, which of them exist, and their scores."""
    part = tl.program_id(0)
    row = table + _COLUMNS * tl.load(layers + part)
    unit = (part - tl.load(row + _FIRST)).to(tl.int32) * PART + tl.arange(0, PART)
    inside = unit < tl.load(row + _UNITS)
    scores = tl.load(row + _SCORE).to(tl.pointer_type(tl.float32))
    return row, unit, inside, tl.load(scores + unit, mask=inside, other=0.0)


@_jit
def _find(table, layers, lows, highs, tau, on_low, on_high, PART: tl.constexpr):
    """Find the range of the off scores of each part."""
    _, _, inside, score = _units(table, layers, PART)
    on = score >= tau
    low = tl.where(inside, tl.where(on, on_low, score), float("inf"))
    high = tl.where(inside, tl.where(on, on_high, score), float("-inf"))
    tl.store(lows + tl.program_id(0), tl.min(low))
    tl.store(highs + tl.program_id(0), tl.max(high))


@_jit
def _multiply(table, layers, lows, highs, made, tau, alpha, PART: tl.constexpr):
    """Multiply the weights by their factors."""
    row, unit, inside, score = _units(table, layers, PART)
    first, parts = tl.load(row + _FIRST), tl.load(row + _PARTS)
    low = tl.full((PART,), float("inf"), tl.float32)
    high = tl.full((PART,), float("-inf"), tl.float32)
    for start in range(0, parts, PART):
        part = start + tl.arange(0, PART)
        there = part < parts
        low = tl.minimum(low, tl.load(lows + first + part, mask=there, other=float("inf")))
        high = tl.maximum(high, tl.load(highs + first + part, mask=there, other=float("-inf")))
    lowest = tl.min(low)
    span = tl.max(high) - lowest
    one = tl.where(score == score, 1.0, score)  # NaN stays NaN
    fraction = tl.where(span > 0, tl.div_rn(score - lowest, tl.where(span > 0, span, 1.0)), one)
    factor = tl.where(score >= tau, 1.0, alpha * fraction)

    weights = tl.load(row + _WEIGHT).to(tl.pointer_type(tl.float32))
    made += tl.load(row + _MADE)
    each, cut = _cut(row)
    for n in range(each):
        at, there = _place(cut, unit, inside, n)
        weight = tl.load(weights + at, mask=there, other=0.0)
        tl.store(made + at, weight * factor, mask=there)


@_jit
def _differentiate(table, layers, gradients, made, tau, beta, PART: tl.constexpr):
    """Make the gradients of the scores from those of the masked weights."""
    row, unit, inside, score = _units(table, layers, PART)
    weights = tl.load(row + _WEIGHT).to(tl.pointer_type(tl.float32))
    gradients += tl.load(row + _MADE)
    each, cut = _cut(row)
    total = tl.zeros((PART,), tl.float32)
    for n in range(each):
        at, there = _place(cut, unit, inside, n)
        weight = tl.load(weights + at, mask=there, other=0.0)
        total += weight * tl.load(gradients + at, mask=there, other=0.0)
    slope = beta / tl.load(tl.load(row + _TEMPERATURE).to(tl.pointer_type(tl.float32)))
    soft = tl.sigmoid(slope * (score - tau))
    made += tl.load(row + _FOUND)
    tl.store(made + unit, total * (slope * soft * (1 - soft)), mask=inside)


@_jit
def _cut(row):
    """Return how many weights a unit has, and what `_place` needs."""
    high, wide = tl.load(row + _HIGH).to(tl.int32), tl.load(row + _WIDE).to(tl.int32)
    size = tl.load(row + _SIZE).to(tl.int32)
    outputs, inputs = tl.load(row + _OUTPUTS).to(tl.int32), tl.load(row + _INPUTS).to(tl.int32)
    by_output = tl.load(row + _BY_OUTPUT).to(tl.int32)
    by_input = tl.load(row + _BY_INPUT).to(tl.int32)
    by_weight = tl.load(row + _BY_WEIGHT).to(tl.int32)
    across = tl.load(row + _ACROSS).to(tl.int32)
    cut = (across, high, wide, size, outputs, inputs, by_output, by_input, by_weight)
    return high * wide * size, cut


@_jit
def _place(cut, unit, inside, n):
    """Return where the n-th weight of each unit lies in its layer, and whether it exists."""
    across, high, wide, size, outputs, inputs, by_output, by_input, by_weight = cut
    output = unit // across * high + n // size // wide
    input = unit % across * wide + n // size % wide
    there = inside & (output < outputs) & (input < inputs)
    return output * by_output + input * by_input + n % size * by_weight, there
