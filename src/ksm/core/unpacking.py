"""Masks of many layers from their bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ksm.core.pack import check, indices, length, per_byte, table, wide_table
from ksm.core.units import Units

STRETCH = 2**19
"""How many factors are looked up at once: enough that few operations are needed, and few enough
that the factors are still in the processor's cache when they multiply the weights."""


@dataclass(frozen=True)
class _Stretch:
    """Neighbouring layers whose bytes are looked up in one table.

    Args:
        first, last: their first byte, and the first one after them.
        repeat: see `Units.repeat`.
        rows: where the factors are written.
        masks: for each layer its cut, its factors in `rows`, and what `Units.spread` makes of these
            where that is the same memory, else None.
        table: number of the first layer, whose row of values is used where layers have their own.
    """

    first: int
    last: int
    repeat: int
    rows: Tensor
    masks: list[tuple[Units, Tensor, Tensor | None]]
    table: int


class Unpacking:
    """Turns the bytes of `ksm.core.pack.pack` into the factors of the weights of these layers.

    Args:
        cuts: of the layers, in order.
        values: of the digits: shape (base,), or (layers, base) where layers have their own. Only
            the shape is used.

    Attributes:
        firsts: the first byte of each layer, and at the end the number of bytes.
    """

    def __init__(self, cuts: Sequence[Units], values: Tensor) -> None:
        self.base = values.shape[-1]
        self.shared = values.dim() == 1
        sizes = (length(math.prod(cut.units), self.base) for cut in cuts)
        self.firsts = list(accumulate(sizes, initial=0))
        runs: list[list[int]] = []
        room = 0
        for i, cut in enumerate(cuts):
            room -= self._factors(cut)
            last = runs[-1][-1] if runs else -2
            apart = last != i - 1 or not self.shared or cut.repeat != cuts[last].repeat
            if apart or room < 0:
                runs.append([])
                room = STRETCH - self._factors(cut)
            runs[-1].append(i)
        most = max((sum(self._factors(cuts[i]) for i in run) for run in runs), default=0)
        found = torch.empty(most)
        self.stretches = [self._stretch(run[0], [cuts[i] for i in run], found) for run in runs]

    def _factors(self, cut: Units) -> int:
        """Count the factors that a layer's bytes give, with those that fill the last bytes."""
        return length(math.prod(cut.units), self.base) * per_byte(self.base) * cut.repeat

    def _stretch(self, begin: int, run: list[Units], found: Tensor) -> _Stretch:
        masks: list[tuple[Units, Tensor, Tensor | None]] = []
        repeat, at = run[0].repeat, 0
        for cut in run:
            outputs, inputs, *kernel = cut.units
            shape = (outputs, inputs * repeat, *kernel)
            mask = found[at : at + math.prod(shape)].view(shape)
            spread = cut.spread(mask)
            masks.append((cut, mask, spread if spread.data_ptr() == mask.data_ptr() else None))
            at += self._factors(cut)
        # A pair of bytes is looked up at once where that table is small enough, and the only one.
        together = per_byte(self.base) * (2 if self._wide(repeat) else repeat)
        first, last = self.firsts[begin], self.firsts[begin + len(run)]
        return _Stretch(first, last, repeat, found[:at].view(-1, together), masks, begin)

    def _wide(self, repeat: int) -> bool:
        return self.shared and repeat == 1

    def masks(self, packed: Tensor, values: Tensor) -> Iterator[Tensor]:
        """Yield the mask of each layer, float32, of a shape that broadcasts over the weight.

        Use each mask before you ask for the next one, which may be written to the same memory.

        Args:
            packed: bytes of the digits of all layers, uint8, on the CPU.
            values: of the digits, float32, of the shape given to the constructor.

        Raises:
            KsmError: `packed` has not the length of these layers, or a byte stands for no digits.
        """
        check(packed, self.base, self.firsts[-1])
        return self._masks(packed, values)

    def _masks(self, packed: Tensor, values: Tensor) -> Iterator[Tensor]:
        own = [tuple(row) for row in values.reshape(-1, self.base).tolist()]
        for one in self.stretches:
            if wide := self._wide(one.repeat):
                known = wide_table(own[0])
            else:
                known = table(own[0 if self.shared else one.table], one.repeat)
            index = indices(packed[one.first : one.last], wide)
            torch.index_select(known, 0, index, out=one.rows)
            for cut, mask, spread in one.masks:
                yield cut.spread(mask) if spread is None else spread
