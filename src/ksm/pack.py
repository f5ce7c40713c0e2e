"""Masks to bytes and back.

A mask is a sequence of digits, one for each unit: 0 passes unchanged, the others name a factor. As
many digits as fit go into a byte, so that a byte is one of few symbols, most of them the same, and
an entropy coder (`ksm.taskfile` uses zstandard's) finds the bits that are really needed: on trained
masks within 1 to 6 % of the entropy, since the units of a layer are as good as independent.
Unpacking is one look-up in a table of 256 rows.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ksm.errors import KsmError


def per_byte(base: int) -> int:
    """How many digits below `base` (2 ... 256) fit a byte: 8 for bits, 5 for base 3, 4 for 4."""
    return int(math.log(256) / math.log(base) + 1e-9)


def pack(digits: Tensor, base: int) -> Tensor:
    """Digits below `base` (any shape, uint8 or bool) to bytes (uint8, one dimension).

    In a byte the first digit is the most significant; the last byte is filled with zeros.
    """
    flat = digits.to("cpu", torch.uint8).reshape(-1).numpy()
    places = per_byte(base)
    rows = np.zeros((-(-flat.size // places), places), np.uint8)
    rows.reshape(-1)[: flat.size] = flat
    found = rows[:, 0]
    for place in range(1, places):
        found = found * np.uint8(base) + rows[:, place]
    return torch.from_numpy(np.ascontiguousarray(found))


def unpack(packed: Tensor, base: int, count: int) -> Tensor:
    """Inverse of `pack`: `count` digits, uint8, one dimension.

    Raises:
        KsmError: the number of bytes is not the one that `count` digits take, or a byte is none.
    """
    return look_up(packed, torch.arange(base, dtype=torch.uint8), count)


def look_up(packed: Tensor, values: Tensor, count: int) -> Tensor:
    """`unpack`, with each digit replaced by its value.

    Args:
        values: one for each digit below the base, any dtype.

    Returns:
        `count` values in one dimension, on the CPU.

    Raises:
        KsmError: as `unpack`.
    """
    base = len(values)
    places = per_byte(base)
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // places):
        raise KsmError(
            f"a packed mask has {packed.numel()} bytes of {packed.dtype}, expected "
            f"{-(-count // places)} of uint8 for {count} digits; the task file is damaged"
        )
    if packed.numel() and int(packed.max()) >= base**places:
        raise KsmError(f"a packed mask holds {int(packed.max())}, which is no {places} digits")
    numbers = np.arange(256)[:, None] // base ** np.arange(places)[::-1] % base
    table = values.cpu().numpy()[numbers]
    return torch.from_numpy(np.take(table, packed.numpy(), axis=0).reshape(-1)[:count])
