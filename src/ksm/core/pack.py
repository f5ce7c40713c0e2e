"""Masks to bytes and back.

A mask is a sequence of digits, one for each unit: 0 for a unit that passes unchanged, the others
for a factor each. A byte holds as many digits as fit. Most bytes of a mask are then the same few
symbols, which zstandard's entropy coder (in `ksm.bank.taskfile`) shortens: on trained masks to 1
to 6 % above the entropy, since the units of a layer are nearly independent. Unpacking is a look-up
in a table, of two bytes at a time where the table is small.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from ksm.errors import KsmError


def per_byte(base: int) -> int:
    """Return how many digits below `base` (2 ... 256) a byte holds: 8 bits, 5 of base 3, 4 of 4."""
    return int(math.log(256) / math.log(base) + 1e-9)


def length(count: int, base: int) -> int:
    """Return how many bytes `count` digits take: an even number."""
    return 2 * -(-count // (2 * per_byte(base)))


def pack(digits: Tensor, base: int) -> Tensor:
    """Pack digits below `base` (any shape, uint8 or bool) into bytes (uint8, one dimension).

    In a byte the first digit is the most significant. The last bytes are filled up with zeros.
    """
    flat = digits.to("cpu", torch.uint8).reshape(-1).numpy()
    rows = np.zeros((length(flat.size, base), per_byte(base)), np.uint8)
    rows.reshape(-1)[: flat.size] = flat
    found = rows[:, 0]
    for place in range(1, per_byte(base)):
        found = found * np.uint8(base) + rows[:, place]
    return torch.from_numpy(np.ascontiguousarray(found))


def unpack(packed: Tensor, base: int, count: int) -> Tensor:
    """Unpack `count` digits (uint8, one dimension) from the bytes of `pack`.

    Raises:
        KsmError: `count` digits take another number of bytes, or a byte stands for no digits.
    """
    check(packed, base, length(count, base))
    found = look_up(indices(packed, wide=False), table(tuple(range(base))))
    return found[:count].to(torch.uint8)


def check(packed: Tensor, base: int, expected: int) -> None:
    """Refuse a tensor that is not `expected` bytes of digits below `base`.

    Raises:
        KsmError: the tensor has another dtype or length, or a byte that stands for no digits.
    """
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise KsmError(
            f"a packed mask has {packed.numel()} bytes of {packed.dtype}, expected {expected} of "
            "uint8"
        )
    if packed.numel() and int(packed.numpy().max()) >= base ** per_byte(base):
        raise KsmError(
            f"a packed mask holds {int(packed.max())}, which is no {per_byte(base)} digits"
        )


@functools.lru_cache(maxsize=256)
def table(values: tuple[float, ...], repeat: int = 1) -> Tensor:
    """Make the table of what the digits of each byte stand for.

    Args:
        values: one for each digit below the base.
        repeat: how many times each value is written, side by side.

    Returns:
        float32, shape (256, digits in a byte * repeat).
    """
    base = len(values)
    digits = torch.arange(256)[:, None] // base ** torch.arange(per_byte(base)).flip(0) % base
    return torch.tensor(values)[digits].repeat_interleave(repeat, dim=1)


@functools.lru_cache(maxsize=16)
def wide_table(values: tuple[float, ...], repeat: int = 1) -> Tensor:
    """Make the table of each pair of bytes, shape (65536, 2 * digits in a byte * repeat)."""
    rows = table(values, repeat)
    shape = (256, 256, rows.shape[1])
    return torch.cat([rows.expand(shape), rows[:, None].expand(shape)], dim=2).flatten(0, 1)


def look_up(index: Tensor, table: Tensor) -> Tensor:
    """Return what the digits stand for, with those that fill the last bytes; float32, 1-D.

    Args:
        index: from `indices`, `wide` for a table from `wide_table`.
    """
    return table.index_select(0, index).view(-1)


def indices(packed: Tensor, wide: bool) -> Tensor:
    """Turn bytes, or (`wide`) pairs of bytes, into rows of a table: int32."""
    return (packed.view(torch.uint16) if wide else packed).int()
