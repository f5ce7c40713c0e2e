"""Masked weights from packed masks, again and again over the same memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ksm._fast import fast
from ksm.layout import Layout
from ksm.methods._unpacking import Unpacking


class Writing:
    """Writes `M * W` into these layers: in one pass with `ksm.fused` where it can, else with torch.

    Args:
        cuts: of the layers, in order.
        frozen, folded: their weights: the backbone's, and where the product goes.
        values: of the digits, as from `Masked.factor_values`, for their shape.
    """

    def __init__(
        self,
        cuts: Sequence[Layout],
        frozen: Sequence[Tensor],
        folded: Sequence[Tensor],
        values: Tensor,
    ) -> None:
        self.cuts, self.shape = list(cuts), values.shape
        layers = list(zip(cuts, frozen, folded, strict=True))
        fused, base = fast("fused") if values.dim() == 1 else None, values.shape[-1]
        fit = {i for i, each in enumerate(layers) if fused and fused.fits(base, *each)}
        self.unpacking = Unpacking(cuts, values, without=fit)
        self.others = [each[1:] for i, each in enumerate(layers) if i not in fit]
        self.fused = None
        if fused and fit:
            self.fused = fused.Fused(
                [(self.unpacking.firsts[i], *layers[i]) for i in sorted(fit)], base
            )

    def fits(self, cuts: Sequence[Layout], values: Tensor) -> bool:
        """Whether masks that are cut so, with so many values, can be written too."""
        return self.cuts == list(cuts) and self.shape == values.shape

    def write(self, packed: Tensor, values: Tensor) -> None:
        """Write a mask.

        Args:
            packed: uint8, on the CPU.
            values: of the shape that was promised.

        Raises:
            KsmError: these are not the bytes of such layers.
        """
        masks = self.unpacking.masks(packed, values)
        if self.fused:
            self.fused.write(packed, values)
        for (frozen, folded), mask in zip(self.others, masks, strict=True):
            torch.mul(frozen, mask.to(frozen), out=folded)
