"""Masks to bytes and back.

A mask is a sequence of digits, one for each unit: 0 passes unchanged, the others name a factor. A
byte holds as many digits as fit. Most bytes are then one of few values, and an entropy coder
(`ksm.bank.taskfile` uses zstandard's) needs 1 to 6 % more than the entropy of trained masks.
Unpacking looks digits up in a table, two bytes at a time.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from ksm.errors import KsmError


def per_byte(base: int) -> int:
    """How many digits below `base` (2 ... 256) fit a byte: 8 for bits, 5 for base 3, 4 for 4."""
    return int(math.log(256) / math.log(base) + 1e-9)


def length(count: int, base: int) -> int:
    """How many bytes `count` digits take: an even number."""
    return 2 * -(-count // (2 * per_byte(base)))


def pack(digits: Tensor, base: int) -> Tensor:
    """Digits below `base` (any shape, uint8 or bool) to bytes (uint8, one dimension).

    In a byte the first digit is the most significant; what is left at the end is filled with zeros.
    """
    flat = digits.to("cpu", torch.uint8).reshape(-1).numpy()
    rows = np.zeros((length(flat.size, base), per_byte(base)), np.uint8)
    rows.reshape(-1)[: flat.size] = flat
    found = rows[:, 0]
    for place in range(1, per_byte(base)):
        found = found * np.uint8(base) + rows[:, place]
    return torch.from_numpy(np.ascontiguousarray(found))


def unpack(packed: Tensor, base: int, count: int) -> Tensor:
    """Inverse of `pack`: `count` digits, uint8, one dimension.

    Raises:
        KsmError: the number of bytes is not the one that `count` digits take, or a byte is none.
    """
    check(packed, base, length(count, base))
    found = look_up(indices(packed, wide=False), table(tuple(range(base))))
    return found[:count].to(torch.uint8)


def check(packed: Tensor, base: int, expected: int) -> None:
    """Tell whether these are `expected` bytes of digits.

    Raises:
        KsmError: they are not.
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
    """What the digits of each possible byte stand for, float32, shape (256, digits in a byte *
    repeat).

    Args:
        values: one for each digit below the base.
        repeat: how many times each stands there.
    """
    base = len(values)
    digits = torch.arange(256)[:, None] // base ** torch.arange(per_byte(base)).flip(0) % base
    return torch.tensor(values)[digits].repeat_interleave(repeat, dim=1)


@functools.lru_cache(maxsize=16)
def wide_table(values: tuple[float, ...], repeat: int = 1) -> Tensor:
    """As `table`, of each possible pair of bytes, shape (65536, ...)."""
    rows = table(values, repeat)
    shape = (256, 256, rows.shape[1])
    return torch.cat([rows.expand(shape), rows[:, None].expand(shape)], dim=2).flatten(0, 1)


def look_up(index: Tensor, table: Tensor) -> Tensor:
    """What digits stand for, those that fill the last bytes too; float32, one dimension.

    Args:
        index: from `indices`, for a table of that kind.
    """
    return table.index_select(0, index).view(-1)


def indices(packed: Tensor, wide: bool) -> Tensor:
    """Bytes, or (`wide`) pairs of them, as the rows of a table: int32."""
    return (packed.view(torch.uint16) if wide else packed).int()
