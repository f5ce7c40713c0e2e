"""Masks to bytes and back: one bit a unit, and a few bits for each unit that is off."""

import numpy as np
import torch
from torch import Tensor

from ksm.errors import KsmError


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Integers below `2 ** bits` (any shape, uint8 or bool) to uint8 bytes, `bits` for each.

    The values follow each other without gaps, most significant bit first; the last byte is
    filled with zeros.
    """
    numbers = values.to("cpu", torch.uint8).reshape(-1, 1).numpy()
    return torch.from_numpy(np.packbits(np.unpackbits(numbers, axis=1)[:, 8 - bits :]))


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack_bits`: `count` integers, uint8, one dimension.

    Raises:
        KsmError: the number of bytes is not the one that `count` values take.
    """
    if packed.dtype != torch.uint8 or packed.numel() != (count * bits + 7) // 8:
        raise KsmError(
            f"a packed mask has {packed.numel()} bytes of {packed.dtype}, expected "
            f"{(count * bits + 7) // 8} of uint8 for {count} values; the task file is damaged"
        )
    flat = np.unpackbits(packed.numpy(), count=count * bits)
    values = np.zeros(count, np.uint8)
    for place in range(bits):
        values = values << 1 | flat[place::bits]
    return torch.from_numpy(values)


def pack_mask(on: Tensor, level: Tensor, levels: int) -> dict[str, Tensor]:
    """A layer's mask as two byte tensors: `on`, a bit a unit, and `off`, a level an off unit.

    Args:
        on: bool, any shape.
        level: integers 0 ... levels - 1, uint8, same shape; used where off.
        levels: how many levels there are (1: all off units have level 0, and nothing is stored).
    """
    return {"on": pack_bits(on, 1), "off": pack_bits(level[~on], _bits(levels))}


def unpack_mask(
    packed: dict[str, Tensor], shape: tuple[int, ...], levels: int
) -> tuple[Tensor, Tensor]:
    """Inverse of `pack_mask`: `on` (bool) and `level` (uint8, 0 where on), both of `shape`.

    Raises:
        KsmError: the bytes do not fit the shape.
    """
    count = int(np.prod(shape))
    on = unpack_bits(packed["on"], 1, count).bool()
    level = torch.zeros(count, dtype=torch.uint8)
    level[~on] = unpack_bits(packed["off"], _bits(levels), int((~on).sum()))
    return on.reshape(shape), level.reshape(shape)


def _bits(levels: int) -> int:
    return (levels - 1).bit_length()
