"""Masked weights straight from a mask's bytes, in one pass over the memory; needs numba.

A byte stands for a row of neighbouring factors, one for each weight of its units, so what it makes
of the weights is one product of vectors. Rows seldom are as long as a vector: what is written past
the end of one is overwritten by the next, and the last of a block are written weight by weight.

The work is done by torch's own threads (`ksm._threads`). Importing this module compiles it, once on
a machine: numba keeps the result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from torch import Tensor

from ksm._threads import cfunc, in_threads, inline, taken
from ksm.layout import Layout
from ksm.pack import per_byte, table

LONGEST = 512
"""Weights that a byte may stand for: beyond that, tables are large and torch is as fast."""
BLOCK = 2**16
"""Weights that a thread takes at once."""


def fits(base: int, cut: Layout, *weights: Tensor) -> bool:
    """Whether `Fused` can write such a layer: its units are runs of neighbouring weights.

    Args:
        base: of the digits.
        weights: frozen and folded ones.
    """
    outputs, inputs = cut.per_unit
    return (
        all(
            one.dtype == torch.float32 and one.device.type == "cpu" and one.is_contiguous()
            for one in weights
        )
        and not cut.transposed_groups
        and outputs == 1
        and (cut.units[1] == 1 or cut.weight[1] % inputs == 0)
        and _size(cut) * per_byte(base) <= LONGEST
    )


def _size(cut: Layout) -> int:
    """Weights of a unit."""
    return math.prod(cut.weight[1:]) // math.prod(cut.units[1:])


class Fused:
    """Writes the masked weights of these layers, all of which `fits` takes.

    Args:
        layers: the first byte of each, its cut, frozen and folded weights.
        base: of the digits.

    Attributes:
        sizes: weights of a unit, each that there is; each has a table of its own.
        blocks: uint64, shape (1 + blocks, 6): the row to be done next and the number of rows; then
            for each block the addresses of its frozen and folded weights, its first byte, how many
            weights it has, how many a byte stands for, and which table.
    """

    def __init__(self, layers: Sequence[tuple[int, Layout, Tensor, Tensor]], base: int) -> None:
        self.layers = layers
        self.base = base
        self.sizes = sorted({_size(cut) for _, cut, _, _ in layers})
        self._locate()

    def _places(self) -> list[int]:
        """The addresses of the weights: torch may move them, as into shared memory."""
        return [one.data_ptr() for layer in self.layers for one in layer[2:]]

    def _locate(self) -> None:
        self.places = self._places()
        blocks: list[tuple[int, ...]] = []
        for first, cut, frozen, folded in self.layers:
            row = _size(cut) * per_byte(self.base)
            step = math.ceil(BLOCK / row)
            for begin in range(0, frozen.numel(), step * row):
                count = min(step * row, frozen.numel() - begin)
                addresses = [one.data_ptr() + 4 * begin for one in (frozen, folded)]
                which = self.sizes.index(_size(cut))
                blocks.append((*addresses, first + begin // row, count, row, which))
        self.blocks = np.array([(1, 1 + len(blocks), 0, 0, 0, 0), *blocks], np.uint64)

    def write(self, packed: Tensor, values: Tensor) -> None:
        """Write them.

        Args:
            packed: uint8, on the CPU, contiguous: the bytes of all layers.
            values: of the digits, float32, shape (base,).
        """
        if self._places() != self.places:
            self._locate()
        own = tuple(values.tolist())
        tables = [_padded(own, size) for size in self.sizes]
        work = self.blocks.copy()
        work[1:, 2] += np.uint64(packed.data_ptr())
        work[1:, 5] = np.array([one.data_ptr() for one in tables], np.uint64)[self.blocks[1:, 5]]
        in_threads(_work.address, work.ctypes.data, torch.get_num_threads())


@functools.lru_cache(maxsize=64)
def _padded(values: tuple[float, ...], repeat: int) -> Tensor:
    """`table`, its rows filled up to whole vectors."""
    rows = table(values, repeat)
    width = 4 if rows.shape[1] <= 4 else 8
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % width)).contiguous()


# What follows is compiled; an address there is a uint64.


def _product(width: int) -> Any:
    """`target[:width] = source[:width] * factors[:width]`, float32, by their addresses."""

    @inline
    def product(context: Any, target: Any, source: Any, factors: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, addresses: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), width).as_pointer()
            to, one, other = (builder.inttoptr(each, vector) for each in addresses)
            found = builder.fmul(builder.load(one, align=4), builder.load(other, align=4))
            builder.store(found, to, align=4)
            return context.get_dummy_value()

        return types.void(target, source, factors), generate

    return product


_product_1, _product_4, _product_8 = (_product(width) for width in (1, 4, 8))


@inline
def _byte(context: Any, address: Any) -> Any:
    """What is at an address."""

    def generate(context: Any, builder: Any, signature: Any, addresses: Any) -> Any:
        return builder.load(builder.inttoptr(addresses[0], ir.IntType(8).as_pointer()))

    return types.uint8(address), generate


@cfunc("void(voidptr)", cache=True)
def _work(data: Any) -> None:
    """Do one block after another, until none is left that no other thread took.

    Args:
        data: `Fused.blocks`, with addresses in place of the bytes' and tables' numbers.
    """
    count = carray(data, 2, np.uint64)[1]
    blocks = carray(data, (count, 6), np.uint64)
    one, four = np.uint64(1), np.uint64(4)
    while True:
        block = taken(data)
        if block >= count:
            return
        source, target, byte, size, row, table = blocks[block]
        width = four if row <= four else np.uint64(8)
        pitch = (row + width - one) // width * width * four
        whole = size // row
        whole -= min(whole, width // row + one)  # that no vector ends beyond the block
        for _ in range(whole):
            factors = table + _byte(byte) * pitch
            if row <= four:
                _product_4(target, source, factors)
            else:
                for at in range(np.uint64(0), row * four, np.uint64(32)):
                    _product_8(target + at, source + at, factors + at)
            source += row * four
            target += row * four
            byte += one
        for k in range(size - whole * row):
            factors = table + _byte(byte + k // row) * pitch
            _product_1(target + four * k, source + four * k, factors + k % row * four)
